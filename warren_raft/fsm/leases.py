"""The nodes that beat, and their ttl: written once, at a node's first beat, so that no restart forgets them.

Not here: beats (raft/beats.py), and the status of nodes (heartbeats/judging.py). A lease is no entity: it has no
revision, and watchers do not see it.
Invariant: only nodes that are stored have a lease. It goes with its node.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from struct import Struct
from struct import error as struct_error
from typing import Final

from warren_raft.fsm import digest, requests
from warren_raft.store.transactions import SESSIONS, ReadTransaction, WriteTransaction

BEGIN: Final = b"\xfe"
"""The first byte of these records' keys: they lie between the sessions and the request keys (requests.py)."""
_HASH_BYTES: Final = 16
"""A node's id may be as long as a key, so the key is its hash."""
_TTL: Final = Struct(">I")
_FRAME: Final = digest.framed(SESSIONS)


def ttl_bytes(ttl_seconds: float) -> bytes:
    """The form of a ttl in a command and in a record: milliseconds, in 4 bytes."""
    return _TTL.pack(round(ttl_seconds * 1e3))


def records_in(transaction: ReadTransaction | WriteTransaction) -> Iterator[tuple[bytes, bytes]]:
    for key, record in transaction.scan(SESSIONS, BEGIN):
        if key.startswith(requests.BEGIN):
            return
        yield key, record


class Leases:
    """The leases, as of the current transaction. Make a new object after a failed transaction."""

    def __init__(self, transaction: ReadTransaction | WriteTransaction) -> None:
        """Raises ValueError for records that are not leases."""
        self.ttl_seconds: dict[str, float] = {}
        """By node id. For any thread; while an entry is applied, changes may be seen that are not committed yet."""
        for key, record in records_in(transaction):
            node_id, seconds = _read(record)
            if key != _key(node_id):
                raise ValueError(f"a lease of the node {node_id!r} under another key")
            self.ttl_seconds[node_id] = seconds

    def __len__(self) -> int:
        return len(self.ttl_seconds)

    def keep(self, transaction: WriteTransaction, node_id: str, ttl: bytes) -> int:
        """Store the lease of a node. Returns the change of the digest's sum."""
        key, record = _key(node_id), ttl + node_id.encode()
        before = transaction.fetch(SESSIONS, key)
        if before == record:
            return 0
        transaction.store(SESSIONS, key, record)
        self.ttl_seconds[node_id] = _read(record)[1]
        return digest.difference(_FRAME, key, before, record)

    def drop(self, transaction: WriteTransaction, node_id: str) -> int:
        """Forget the lease of a node, if it has one. Returns the change of the digest's sum."""
        if self.ttl_seconds.pop(node_id, None) is None:
            return 0
        key = _key(node_id)
        before = transaction.fetch(SESSIONS, key)
        transaction.erase(SESSIONS, key)
        return digest.difference(_FRAME, key, before, None)


def _key(node_id: str) -> bytes:
    return BEGIN + blake2b(node_id.encode(), digest_size=_HASH_BYTES).digest()


def _read(record: bytes) -> tuple[str, float]:
    try:
        (milliseconds,) = _TTL.unpack_from(record)
    except struct_error:
        raise ValueError("not a lease") from None
    return record[_TTL.size :].decode(), milliseconds / 1e3
