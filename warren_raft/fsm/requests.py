"""Request keys: the callers' own ids of writes that were carried out, so that a write that a caller makes again, after
its own crash, is not carried out again.

Sessions (sessions.py) end with their process; these keys outlast every process. Refusals are not kept: a refused write
changed nothing, and its caller may try it again under the same key.
Invariant: a key that was carried out is found until it may be forgotten; the number of keys is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as struct_error
from typing import Final

from warren_raft.fsm import digest
from warren_raft.store.command import REQUEST_KEY_MAX_BYTES
from warren_raft.store.transactions import SESSIONS, ReadTransaction, WriteTransaction

MAX_REQUESTS: Final = 100_000
"""Keys kept; beyond it the oldest is forgotten, whatever its age. At most 40 MB of the database, in every snapshot."""

MAX_FORGOTTEN_PER_COMMAND: Final = 16
"""Each command with a key adds one, so more than one is enough to get rid of the old ones."""

BEGIN: Final = b"\xff"
"""The first byte of these records' keys. They follow the sessions, in one sub-database: a session's number is below
2^63, so its key begins with a smaller byte."""

OTHERS: Final = b"\x80"
"""The keys from here on are not those of sessions."""
_BY_KEY: Final = BEGIN + b"k"
_BY_ORDER: Final = BEGIN + b"o"
_ORDER: Final = Struct(">QI")
"""The index of the entry, and a number within the entry."""
_ANSWER: Final = Struct(">QIQ")
"""The place in the order, and the revision of the answer."""
_FRAME: Final = digest.framed(SESSIONS)


def sessions_in(transaction: ReadTransaction | WriteTransaction) -> Iterator[tuple[bytes, bytes]]:
    """The records of the sessions, without those of request keys and leases (leases.py)."""
    for key, record in transaction.scan(SESSIONS):
        if key >= OTHERS:
            return
        yield key, record


def check(transaction: ReadTransaction) -> None:
    """Read every record of request keys. Raises ValueError if they do not belong together."""
    by_key = {}
    order = []
    for key, record in transaction.scan(SESSIONS, BEGIN):
        if key.startswith(_BY_KEY):
            by_key[key[len(_BY_KEY) :]] = _order_in(record)
        elif key.startswith(_BY_ORDER):
            _order_in(key[len(_BY_ORDER) :] + bytes(_ANSWER.size - _ORDER.size))
            order.append((key[len(_BY_ORDER) :], record))
        else:
            raise ValueError(f"a request under the key {key[:8]!r}")
    if {request: place for place, request in order} != by_key or len(order) != len(by_key):
        raise ValueError("request keys that are not in their order")
    if any(not 0 < len(key) <= REQUEST_KEY_MAX_BYTES for key in by_key):
        raise ValueError("a request key that is too long")


class Requests:
    """The keys, as of the current transaction. Make a new object after a failed transaction."""

    def __init__(self, transaction: ReadTransaction | WriteTransaction, sessions: int) -> None:
        """`sessions`: the number of the other records."""
        self._count = (transaction.size(SESSIONS) - sessions) // 2
        self._index = self._number = 0

    def __len__(self) -> int:
        return self._count

    def recall(self, transaction: WriteTransaction, key: str) -> int | None:
        """The revision in the answer to the command that was carried out under this key; None if there was none."""
        record = transaction.fetch(SESSIONS, _BY_KEY + key.encode())
        if record is None:
            return None
        revision: int = _ANSWER.unpack(record)[2]
        return revision

    def remember(self, transaction: WriteTransaction, key: str, index: int, revision: int, forget_below: int) -> int:
        """Keep the answer to the command of this key, in the entry `index`. Forget old keys: those of entries below
        `forget_below`, and beyond MAX_REQUESTS. Returns the change of the digest's sum."""
        self._number = self._number + 1 if index == self._index else 0
        self._index = index
        order = _ORDER.pack(index, self._number)
        request = key.encode()
        change = _store(transaction, _BY_KEY + request, order + revision.to_bytes(8, "big"))
        change += _store(transaction, _BY_ORDER + order, request)
        self._count += 1
        return change + self._forget(transaction, min(forget_below, index))

    def _forget(self, transaction: WriteTransaction, below: int) -> int:
        old: list[tuple[bytes, bytes]] = []
        end = _BY_ORDER + _ORDER.pack(below, 0)
        excess = self._count - MAX_REQUESTS
        for key, request in transaction.scan(SESSIONS, _BY_ORDER):
            if (key >= end and len(old) >= excess) or len(old) == MAX_FORGOTTEN_PER_COMMAND:
                break
            old.append((key, request))
        self._count -= len(old)
        return sum(_erase(transaction, key) + _erase(transaction, _BY_KEY + request) for key, request in old)


def _store(transaction: WriteTransaction, key: bytes, record: bytes) -> int:
    transaction.store(SESSIONS, key, record)
    return digest.hash_of(digest.keyed(_FRAME, key), record)


def _erase(transaction: WriteTransaction, key: bytes) -> int:
    record = transaction.fetch(SESSIONS, key)
    if record is None:
        return 0
    transaction.erase(SESSIONS, key)
    return -digest.hash_of(digest.keyed(_FRAME, key), record)


def _order_in(record: bytes) -> bytes:
    try:
        _ANSWER.unpack(record)
    except struct_error as error:
        raise ValueError(f"not an answer under a request key: {error}") from None
    return record[: _ORDER.size]
