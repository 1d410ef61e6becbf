"""The last changes, from which a watcher resumes: one record a revision, in the form of the command that made it.

Not part of the digest, and nothing is decided by it. Reading is `since`; machine.py appends.
Invariant: what is kept is every change above some revision, without a gap; a reader of less is told WatchLost.
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
"""The same in bytes. It is part of each snapshot, and this is the least log that a snapshot replaces: with more
history than that, writing snapshots would cost more than the log does."""

MAX_DROPPED_PER_APPLY: Final = 4_096
"""Records dropped in one transaction (a few milliseconds), however large the change is that takes their place. The
bounds above may be exceeded for that long: by no more than 100 MB, in the worst case of the largest batches."""

RECORD_OVERHEAD_BYTES: Final = 32
"""What LMDB and the key add to a record, about."""

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
    """The lowest revision from which `since` is complete: everything after it is kept."""
    for key, _ in transaction.scan(HISTORY):
        return int.from_bytes(key, "big") - 1
    return transaction.revision


def since(transaction: ReadTransaction, revision: int) -> Iterator[Change]:
    """The changes after `revision`, oldest first, all that `transaction` sees; take as many as needed.

    Raises WatchLost, at once, where some of them are no longer kept; `resume_from` is what `transaction` sees.
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
    """The appending side: how much is kept, as of the transaction under way. After one that failed, make it anew.

    A record is the number of bytes ever appended, itself included (so that the first and the last record tell
    how much is between them), and the operations that changed something.
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
        """Keep the operations that `revision` consists of, in the form that `encode_operations` gives them."""
        self._total += _TOTAL_SIZE + len(body) + RECORD_OVERHEAD_BYTES
        self._count += 1
        transaction.store(HISTORY, _key(revision), self._total.to_bytes(_TOTAL_SIZE, "big") + body)

    def drop_oldest(self, transaction: WriteTransaction) -> None:
        """Back to within the bounds, or as far as MAX_DROPPED_PER_APPLY allows. Once an entry, at its end."""
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
