"""The last changes, from which a watcher resumes: the changes of some revisions in a row in each record, in the form
of their commands.

The history is not part of the digest, and nothing is decided by it. `since` reads it; machine.py appends to it.
Invariant: every change above some revision is kept, without a gap. A reader of an older revision gets WatchLost.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
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

_SPARE: Final = 200
"""When a bound is exceeded, its 200th part is dropped beyond it, so that not every entry has to drop something. It
would change pages at both ends of the history."""

RECORD_BYTES: Final = 16 * 1024
"""The changes of an entry are kept in records of about this size: one record takes the time of one change. A larger
record would need more pages in a row, which LMDB finds slowly in a file with many free pages."""

MAX_DROPPED_PER_APPLY: Final = 4_096
"""The most records dropped in one transaction (a few milliseconds), however large the new change is. Meanwhile the
bounds above may be exceeded, by at most 100 MB in the worst case of the largest batches."""

RECORD_OVERHEAD_BYTES: Final = 32
"""The approximate bytes that LMDB and the key add to a record."""

_HEAD_SIZE: Final = 8
_TOTAL_BITS: Final = 48
_LENGTH_SIZE: Final = 4
_CHANGES_MAX: Final = 1 << 16


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
    for key, record in transaction.scan(HISTORY):
        return _revision_in(key) - _count_of(record)
    return transaction.revision


def since(transaction: ReadTransaction, revision: int) -> Iterator[Change]:
    """The changes after `revision` that `transaction` sees, oldest first. Take as many as needed.

    Raises WatchLost at once if some of them are no longer kept. Its `resume_from` is the revision of `transaction`.
    """
    if revision < floor(transaction):
        raise WatchLost(transaction.revision)
    return _changes(transaction.scan(HISTORY, _key(revision + 1)), revision)


def _changes(records: Iterator[tuple[bytes, bytes]], after: int) -> Iterator[Change]:
    for key, record in records:
        bodies = _bodies_of(record)
        for revision, body in enumerate(bodies, _revision_in(key) - len(bodies) + 1):
            if revision <= after:
                continue
            for index, operation in enumerate(commands.decode_operations(body)):
                kind = BY_NUMBER[operation.kind_number]
                word: Literal["put", "delete"] = "put" if operation.verb == PUT else "delete"
                yield Change(revision, word, kind, operation.id, operation.entity, index)


class History:
    """The appending side: the amount that is kept, as of the current transaction. Make a new object after a failed one.

    The key of a record is its last revision. A record is a head of 8 bytes, and the operations that changed something,
    revision after revision. If there are several revisions, the lengths of their operations come first, 4 bytes each.
    The head has the number of revisions minus one in its high 16 bits, and in the others the number of bytes ever
    appended, including this record. From the first and the last record follows how many bytes are between them.
    """

    def __init__(self, transaction: ReadTransaction | WriteTransaction) -> None:
        self._count = 0  # revisions
        self._total = self._dropped = 0  # bytes ever appended, and ever dropped
        self._revision = 0  # of the last one in `_bodies`
        self._bodies: list[bytes] = []
        self._size = 0
        for key, record in transaction.scan(HISTORY, reverse=True):
            self._total = _total_of(record)
            self._count = _revision_in(key) - floor(transaction)
            break
        for _, record in transaction.scan(HISTORY):
            self._dropped = _total_of(record) - _size_of(record)
            break

    def append(self, transaction: WriteTransaction, revision: int, body: bytes) -> None:
        """Keep the operations of `revision`, in the form of `encode_operations`. Call `finish` before the commit."""
        self._bodies.append(body)
        self._revision = revision
        self._size += len(body)
        if self._size >= RECORD_BYTES or len(self._bodies) == _CHANGES_MAX:
            self._store(transaction)

    def finish(self, transaction: WriteTransaction) -> None:
        """Store the rest, and drop what is too old. Call once a transaction, at its end."""
        if self._bodies:
            self._store(transaction)
        if self._count > MAX_CHANGES or self._total - self._dropped > MAX_BYTES:
            self._drop_oldest(transaction)

    def _store(self, transaction: WriteTransaction) -> None:
        bodies, count = self._bodies, len(self._bodies)
        if count > 1:
            bodies = [struct.pack(f">{count}I", *map(len, bodies)), *bodies]
        rest = b"".join(bodies)
        self._total += _HEAD_SIZE + len(rest) + RECORD_OVERHEAD_BYTES
        self._count += count
        head = (count - 1 << _TOTAL_BITS | self._total).to_bytes(_HEAD_SIZE, "big")
        transaction.store(HISTORY, _key(self._revision), head + rest)
        self._bodies = []
        self._size = 0

    def _drop_oldest(self, transaction: WriteTransaction) -> None:
        """Drop records until the bounds hold, with something to spare, at most MAX_DROPPED_PER_APPLY."""
        excess = self._count - MAX_CHANGES + MAX_CHANGES // _SPARE
        excess_bytes = self._total - self._dropped - MAX_BYTES + MAX_BYTES // _SPARE
        keys: list[bytes] = []
        for key, record in transaction.scan(HISTORY):
            if (excess <= 0 and excess_bytes <= 0) or len(keys) == MAX_DROPPED_PER_APPLY:
                break
            keys.append(key)
            excess -= _count_of(record)
            excess_bytes -= _size_of(record)
            self._count -= _count_of(record)
            self._dropped += _size_of(record)
        for key in keys:  # not while scanning: a deletion moves LMDB's cursor
            transaction.erase(HISTORY, key)


def _key(revision: int) -> bytes:
    return revision.to_bytes(8, "big")


def _revision_in(key: bytes) -> int:
    return int.from_bytes(key, "big")


def _count_of(record: bytes) -> int:
    """How many revisions are in the record."""
    return 1 + (int.from_bytes(record[:_HEAD_SIZE], "big") >> _TOTAL_BITS)


def _total_of(record: bytes) -> int:
    return int.from_bytes(record[:_HEAD_SIZE], "big") & (1 << _TOTAL_BITS) - 1


def _size_of(record: bytes) -> int:
    return len(record) + RECORD_OVERHEAD_BYTES


def _bodies_of(record: bytes) -> list[bytes]:
    """The operations of each revision in the record. Raises ValueError for a record that `History` did not make."""
    count = _count_of(record)
    if count == 1:
        return [record[_HEAD_SIZE:]]
    try:
        lengths = struct.unpack_from(f">{count}I", record, _HEAD_SIZE)
    except struct.error as error:
        raise ValueError(f"a record of the history that ends too early: {error}") from None
    ends = [*accumulate(lengths, initial=_HEAD_SIZE + count * _LENGTH_SIZE)]
    if ends[-1] != len(record):
        raise ValueError("a record of the history with lengths that do not fit it")
    return [record[start:end] for start, end in pairwise(ends)]
