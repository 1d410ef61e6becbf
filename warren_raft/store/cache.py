"""Decoded entities by key, so that an entity which has not changed is not decoded again.

One cache a database, so a new generation begins with an empty one. Which record is current is always read from LMDB.
Invariant: an entry is used only with the revision it was decoded at; a key and a revision name one content.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from warren_raft.store.tables import BY_NUMBER

HEAD_BYTES: Final = 10
"""The array's head and the longest CBOR integer. No two revisions have the same (no CBOR integer begins another)."""

CACHED_ENTITIES_MAX: Final = 20_000
"""Entities kept decoded. A Container takes about 2.5 KB decoded: some 50 MB, and the whole of an ordinary cluster."""

CACHED_RECORD_BYTES_MAX: Final = 16 * 1024
"""Larger records are decoded each time: few, mostly one long value that costs little to decode, and 20,000 of
them would not fit anywhere."""


class DecodedCache:
    """Tables of key -> (head of the record, entity), one a kind number: `tables[number].get`.

    The first HEAD_BYTES of a record hold its revision, and comparing them is five times quicker than decoding it.
    There is no lock: each step on a table is one of the interpreter's, so readers in any number of threads, in a signal
    handler that interrupts one of them too, leave a sound table. Each may add one beyond the bound, until the next one.
    """

    __slots__ = ("tables",)

    def __init__(self) -> None:
        self.tables: Final[list[dict[bytes, tuple[bytes, Any]]]] = [{} for _ in range(max(BY_NUMBER) + 1)]

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def add(self, number: int, key: bytes, head: bytes, entity: Any) -> None:
        """Remember an entity whose record begins with `head`; when full, forget the oldest of its kind."""
        table = self.tables[number]
        if key not in table:
            for _ in range(len(self) - CACHED_ENTITIES_MAX + 1):
                # From the same kind if it has any, so that a long list of one kind leaves the others alone.
                _forget_oldest(table or max(self.tables, key=len))
        table[key] = (head, entity)

    def forget(self, number: int, key: bytes) -> None:
        """Drop an entity that was found deleted."""
        self.tables[number].pop(key, None)


def _forget_oldest(table: dict[bytes, tuple[bytes, Any]]) -> None:
    with suppress(RuntimeError, StopIteration):  # another thread changed it in between, or emptied it
        table.pop(next(iter(table)), None)
