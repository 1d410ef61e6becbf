"""The last changes, from which a watcher resumes: one record for each revision, in the form of its command.

The history is not part of the digest, and nothing is decided by it. `since` reads it; machine.py appends to it.
Invariant: every change above some revision is kept, without a gap. A reader of an older revision gets WatchLost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from warren_raft.errors import WatchLost
from warren_raft.store import command as commands
from warren_raft.store.command import PUT
from warren_raft.store.tables import BY_NUMBER, Kind
from warren_raft.store.transactions import HISTORY, ReadTransaction, WriteTransaction

MAX_CHANGES: Final = 100_000
"""Revisions kept. At 100 changes a second, a watcher may be away for a quarter of an hour."""

MAX_BYTES: Final = 32 * 1024 * 1024
"""The same limit in bytes. The history is part of each snapshot, and a snapshot replaces at least this much log: with
more history, writing snapshots would cost more than writing the log."""

MAX_DROPPED_PER_APPLY: Final = 4_096
"""The most records dropped in one transaction (a few milliseconds), however large the new change is. Meanwhile the
bounds above may be exceeded, by at most 100 MB in the worst case of the largest batches."""

RECORD_OVERHEAD_BYTES: Final = 32
"""The approximate bytes that LMDB and the key add to a record."""

_TOTAL_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one entity. `index` counts the changes of one revision; a batch has several.

    `entity` is the entity bytes of store/codec.py as of that revision, None for a delete.
    """

    revision: int
    operation: Literal["put", "delete"]
    kind: Kind[Any]
    id: str
    entity: bytes | None = field(repr=False)  # it may be a secret
    index: int


def floor(transaction: ReadTransaction | WriteTransaction) -> int:
    """The lowest revision from which `since` is complete: every change after it is kept."""
    for key, _ in transaction.scan(HISTORY):
        return int.from_bytes(key, "big") - 1
    return transaction.revision


def since(transaction: ReadTransaction, revision: int) -> Iterator[Change]:
    """The changes after `revision` that `transaction` sees, oldest first. Take as many as needed.

    Raises WatchLost at once if some of them are no longer kept. Its `resume_from` is the revision of `transaction`.
    """
    if revision < floor(transaction):
        raise WatchLost(transaction.revision)
    return _changes(transaction.scan(HISTORY, _key(revision + 1)))


def _changes(records: Iterator[tuple[bytes, bytes]]) -> Iterator[Change]:
    for key, record in records:
        revision = int.from_bytes(key, "big")
        for index, operation in enumerate(commands.decode_operations(record, _TOTAL_SIZE)):
            kind = BY_NUMBER[operation.kind_number]
            word: Literal["put", "delete"] = "put" if operation.verb == PUT else "delete"
            yield Change(revision, word, kind, operation.id, operation.entity, index)


class History:
    """The appending side: the amount that is kept, as of the current transaction. Make a new object after a failed one.

    A record is the number of bytes ever appended, including this record, and the operations that changed something.
    From the first and the last record follows how many bytes are between them.
    """

    def __init__(self, transaction: ReadTransaction | WriteTransaction) -> None:
        self._count = transaction.size(HISTORY)
        self._total = self._dropped = 0  # bytes ever appended, and ever dropped
        for _, record in transaction.scan(HISTORY, reverse=True):
            self._total = _total_of(record)
            break
        for _, record in transaction.scan(HISTORY):
            self._dropped = _total_of(record) - _size_of(record)
            break

    def append(self, transaction: WriteTransaction, revision: int, body: bytes) -> None:
        """Keep the operations of `revision`, in the form of `encode_operations`."""
        self._total += _TOTAL_SIZE + len(body) + RECORD_OVERHEAD_BYTES
        self._count += 1
        transaction.store(HISTORY, _key(revision), self._total.to_bytes(_TOTAL_SIZE, "big") + body)

    def drop_oldest(self, transaction: WriteTransaction) -> None:
        """Drop records until the bounds hold, at most MAX_DROPPED_PER_APPLY. Call once an entry, at its end."""
        excess = self._count - MAX_CHANGES
        excess_bytes = self._total - self._dropped - MAX_BYTES
        if excess <= 0 and excess_bytes <= 0:
            return
        keys: list[bytes] = []
        for key, record in transaction.scan(HISTORY):
            if (excess <= 0 and excess_bytes <= 0) or len(keys) == MAX_DROPPED_PER_APPLY:
                break
            keys.append(key)
            excess -= 1
            excess_bytes -= _size_of(record)
            self._dropped += _size_of(record)
        for key in keys:  # not while scanning: a deletion moves LMDB's cursor
            transaction.erase(HISTORY, key)
        self._count -= len(keys)


def _key(revision: int) -> bytes:
    return revision.to_bytes(8, "big")


def _total_of(record: bytes) -> int:
    return int.from_bytes(record[:_TOTAL_SIZE], "big")


def _size_of(record: bytes) -> int:
    return len(record) + RECORD_OVERHEAD_BYTES
