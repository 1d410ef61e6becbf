"""The digest of the whole state: a sum of one hash for each record, so that a change costs two hashes and no scan.

The digest covers every entity (the CA too), the sessions, the members and the cluster id. It does not cover the
position in the log (index, term, revision, format) and the history, because managers may keep histories of different
length.
Invariant: two states have the same digest exactly when they hold the same records, written in any order.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from warren_raft.store.transactions import ReadTransaction, WriteTransaction

SIZE_BYTES: Final = 32
MODULUS: Final = 1 << (8 * SIZE_BYTES)


def framed(name: str) -> bytes:
    """The first bytes of the hash of each record in the sub-database `name`. Made once, because every write needs
    them."""
    data = name.encode()
    return len(data).to_bytes(1, "big") + data


def keyed(frame: bytes, key: bytes) -> bytes:
    """The first bytes of the hash of the record of `key`. Name and key carry their lengths, so no two records begin
    alike."""
    return frame + len(key).to_bytes(2, "big") + key


def hash_of(start: bytes, record: bytes) -> int:
    """The summand of one record; `start` is made by `keyed`."""
    return int.from_bytes(blake2b(start + record, digest_size=SIZE_BYTES).digest(), "big")


def difference(frame: bytes, key: bytes, before: bytes | None, after: bytes | None) -> int:
    """The change of the sum when the record of `key` is replaced. None: no record before, or none after."""
    start = frame + len(key).to_bytes(2, "big") + key
    total = 0
    if after is not None:
        total = int.from_bytes(blake2b(start + after, digest_size=SIZE_BYTES).digest(), "big")
    if before is not None:
        total -= int.from_bytes(blake2b(start + before, digest_size=SIZE_BYTES).digest(), "big")
    return total


def to_bytes(total: int) -> bytes:
    """The digest: the sum modulo 2^256."""
    return (total % MODULUS).to_bytes(SIZE_BYTES, "big")


def recompute(transaction: ReadTransaction | WriteTransaction) -> bytes:
    """The digest computed from every record: about 2 µs a record. For verification."""
    items = transaction.digest_items()
    return to_bytes(sum(hash_of(keyed(framed(name), key), record) for name, key, record in items))
