"""Decoded entities by key, so that an entity which has not changed is not decoded again.

Each database has its own cache, so a new generation begins with an empty one. The current record is always read from
LMDB.
Invariant: a cached entity is used only for the revision it was decoded at; a key and a revision name one content.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from warren_raft.store.tables import BY_NUMBER

HEAD_BYTES: Final = 10
"""The array's head and the longest CBOR integer. No two revisions share these bytes: no CBOR integer is a prefix of
another."""

CACHED_ENTITIES_MAX: Final = 20_000
"""Entities kept decoded. A decoded Container takes about 1.3 KB, so this is about 26 MB and covers an ordinary
cluster."""

CACHED_RECORD_BYTES_MAX: Final = 16 * 1024
"""Larger records are decoded at each read. They are few, they are mostly one long value that is cheap to decode, and
20,000 of them would not fit into memory."""


class DecodedCache:
    """For each kind number one table of key -> (head of the record, entity): `tables[number].get`.

    The first HEAD_BYTES of a record hold its revision. Comparing them is five times quicker than decoding the revision.
    There is no lock. Each step on a table is one step of the interpreter, so readers in any number of threads leave a
    valid table, and so does a reader in a signal handler that interrupts another reader. Each of them may add one
    entity beyond the bound, or with `add_all` one list; the next call of `add` removes them.
    """

    __slots__ = ("tables",)

    def __init__(self) -> None:
        self.tables: Final[list[dict[bytes, tuple[bytes, Any]]]] = [{} for _ in range(max(BY_NUMBER) + 1)]

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def add(self, number: int, key: bytes, head: bytes, entity: Any) -> None:
        """Remember an entity; its record begins with `head`. If the cache is full, forget the oldest entity of its
        kind."""
        table = self.tables[number]
        if key not in table:
            for _ in range(len(self) - CACHED_ENTITIES_MAX + 1):
                # From the same kind if that kind has any entity here, so that a long list of one kind does not displace
                # the others.
                _forget_oldest(table or max(self.tables, key=len))
        table[key] = (head, entity)

    def add_all(self, number: int, entries: dict[bytes, tuple[bytes, Any]]) -> None:
        """`add` for many entities, in their order: key -> (head, entity)."""
        if len(entries) <= CACHED_ENTITIES_MAX - len(self):
            self.tables[number].update(entries)
            return
        for key, (head, entity) in entries.items():
            self.add(number, key, head, entity)

    def forget(self, number: int, key: bytes) -> None:
        """Drop the entity of a key that has no record any more."""
        self.tables[number].pop(key, None)


def _forget_oldest(table: dict[bytes, tuple[bytes, Any]]) -> None:
    with suppress(RuntimeError, StopIteration):  # another thread changed or emptied the table in between
        table.pop(next(iter(table)), None)
