"""The last changes, from which a watcher resumes: the changes of some revisions in a row in each record, in the form
of their commands.

The history is not part of the digest, and nothing is decided by it. `since` reads it; machine.py appends to it.
Invariant: every change above some revision is kept, without a gap. A reader of an older revision gets WatchLost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, TypeAlias

from warren_raft.errors import WatchLost
from warren_raft.store.command import Operation, decode_operations
from warren_raft.store.tables import BY_NUMBER
from warren_raft.store.transactions import HISTORY, KeysBefore, ReadTransaction, WriteTransaction

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
_COUNT_SHIFT: Final = 48
_TOTAL_BITS: Final = 47
_HAS_BEFORE: Final = 1 << _TOTAL_BITS
"""In the head of a record whose changes have the values before them. The first releases kept no such values."""
_BEFORE: Final = b"\x5a"
"""Before the operations of a revision, if it removed or changed an indexed value. (Operations begin with 9a.)"""
_LENGTH_SIZE: Final = 4
_CHANGES_MAX: Final = 1 << 16


_SINGLE: Final[Mapping[int, tuple[int, ...]]] = {
    number: tuple(place for place, index in enumerate(kind.indexes) if not index.many)
    for number, kind in BY_NUMBER.items()
}
"""For each kind, the places of the indexes whose values are kept: those of one value an entity."""

Values: TypeAlias = tuple[str, ...]
"""The indexed values of an entity, without those of sequences (hosts), in the order of `Kind.indexes`. For a container
(service_id, node_id). A value that is not indexed, because it is empty or too long, is ""."""


class Change(NamedTuple):
    """One revision: the operations that changed something, in their order.

    `before` has for each operation the values before it, if it deleted the entity or changed one of them, else None (so
    also for the first put of an entity, and for a kind without indexes). It is None as a whole if the values are not
    known, because an earlier release kept this change.
    """

    revision: int
    operations: tuple[Operation, ...]
    before: tuple[Values | None, ...] | None


def floor(transaction: ReadTransaction | WriteTransaction) -> int:
    """The lowest revision from which `since` is complete: every change after it is kept."""
    for key, record in transaction.scan(HISTORY):
        return _revision_in(key) - _count_of(record)
    return transaction.revision


def since(
    transaction: ReadTransaction, revision: int, skips: Callable[[bytes], bool] | None = None
) -> Iterator[Change]:
    """The changes after `revision` that `transaction` sees, oldest first. Take as many as needed.

    `skips`: is given the encoded operations of a change, and says whether to leave the change out, undecoded. It is not
    asked about changes with values before them. Raises WatchLost at once if some changes are no longer kept. Its
    `resume_from` is the revision of `transaction`.
    """
    if revision < floor(transaction):
        raise WatchLost(transaction.revision)
    return _changes(transaction.scan(HISTORY, _key(revision + 1)), revision, skips)


def _changes(
    records: Iterator[tuple[bytes, bytes]], after: int, skips: Callable[[bytes], bool] | None
) -> Iterator[Change]:
    for key, record in records:
        bodies = _bodies_of(record)
        has_before = bool(_head_of(record) & _HAS_BEFORE)
        for revision, body in enumerate(bodies, _revision_in(key) - len(bodies) + 1):
            if revision <= after:
                continue
            if skips is None or not has_before or body.startswith(_BEFORE) or not skips(body):
                yield _change_in(revision, body, has_before=has_before)


def _change_in(revision: int, body: bytes, *, has_before: bool) -> Change:
    """Raises ValueError for bytes that `History` did not make."""
    if not has_before:
        return Change(revision, decode_operations(body), None)
    if not body.startswith(_BEFORE):
        operations = decode_operations(body)
        return Change(revision, operations, (None,) * len(operations))
    try:
        (size,) = struct.unpack_from(">I", body, 1)
        start = 1 + _LENGTH_SIZE
        operations = decode_operations(body, start + size)
        return Change(revision, operations, _values_in(body[start : start + size], len(operations)))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"a record of the history without the values that it names: {error}") from None


def with_before(operations: bytes, changed: Sequence[Operation], before: Mapping[int, KeysBefore]) -> bytes:
    """The body of a revision: the encoded operations, behind the values that they removed or changed.

    `before`: by the place of an operation in `changed`, the keys of its entity before it. For each operation one byte
    is kept, 0 or one more than its number of values, and each value with its length in 2 bytes.
    """
    parts = []
    for place, operation in enumerate(changed):
        keys = before.get(place)
        if keys is None:
            parts.append(b"\0")
            continue
        single = _SINGLE[operation.kind_number]
        parts.append(bytes((1 + len(single),)))
        for index in single:
            value = keys[index][0] if keys[index] else b""
            parts += (len(value).to_bytes(2, "big"), value)
    values = b"".join(parts)
    return b"".join((_BEFORE, len(values).to_bytes(_LENGTH_SIZE, "big"), values, operations))


def _values_in(data: bytes, count: int) -> tuple[Values | None, ...]:
    """The values before `count` operations. Raises IndexError, struct.error or UnicodeDecodeError."""
    found: list[Values | None] = []
    at = 0
    for _ in range(count):
        size = data[at]
        at += 1
        values = []
        for _ in range(size - 1):
            (length,) = struct.unpack_from(">H", data, at)
            at += 2 + length
            values.append(data[at - length : at].decode())
        found.append(tuple(values) if size else None)
    if at != len(data):
        raise IndexError("a length that does not fit")
    return tuple(found)


class History:
    """The appending side: the amount that is kept, as of the current transaction. Make a new object after a failed one.

    The key of a record is its last revision. A record is a head of 8 bytes, and the body of each revision (the
    operations that changed something, see `with_before`). If there are several revisions, the lengths of their bodies
    come first, 4 bytes each. The head has the number of revisions minus one in its high 16 bits, then one bit which is
    1 (`_HAS_BEFORE`), and in the others the number of bytes ever appended, including this record. From the first and
    the last record follows how many bytes are between them.
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
        """Keep the operations of `revision`, in the form of `encode_operations` or `with_before`. Call `finish` before
        the commit."""
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
        head = (count - 1 << _COUNT_SHIFT | _HAS_BEFORE | self._total).to_bytes(_HEAD_SIZE, "big")
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
    return 1 + (_head_of(record) >> _COUNT_SHIFT)


def _total_of(record: bytes) -> int:
    return _head_of(record) & _HAS_BEFORE - 1


def _head_of(record: bytes) -> int:
    return int.from_bytes(record[:_HEAD_SIZE], "big")


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
