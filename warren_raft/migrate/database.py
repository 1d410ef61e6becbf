"""A Go Warren's own database, `warren.db`: its records as operations, and a new file from entities.

Not here: the form of the file (bolt.py, bolt_writer.py) and of a record (records.py).
Invariant: a record comes in as it would from a line of JSON, and all of them, or none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Final, NamedTuple

from warren_raft.errors import InvalidEntity
from warren_raft.migrate import bolt_writer
from warren_raft.migrate.bolt import MAGIC, MAGIC_OFFSET, PAGE_SIZES, BoltFile, Record
from warren_raft.migrate.lines import operation_of_stored
from warren_raft.migrate.records import OLD_CONTAINERS, format_stored
from warren_raft.model.entities import Entity
from warren_raft.store.command import Operation
from warren_raft.store.tables import KINDS, Kind

_MAGIC: Final = MAGIC.to_bytes(4, "little")
HEAD_BYTES: Final = PAGE_SIZES[-1] + MAGIC_OFFSET + len(_MAGIC)
"""The first bytes of a file that `is_database` needs."""


def is_database(head: bytes) -> bool:
    """Whether a file with these first bytes (HEAD_BYTES, or all) is a bbolt database: one of its meta pages says so."""
    return any(head[offset + MAGIC_OFFSET :].startswith(_MAGIC) for offset in (0, *PAGE_SIZES))


class Contents(NamedTuple):
    """The records of a database."""

    records: list[Record]
    has_one_meta: bool
    """Whether one of the file's two meta pages is damaged. Then its last transaction may be missing."""

    @property
    def operations(self) -> list[Operation]:
        """The operation that stores each record. Of two for one entity the last one counts. Raises InvalidEntity for a
        record that is not Warren's; a note of the error names it."""
        return [_operation(record) for record in self.records]


def read(path: str | os.PathLike[str]) -> Contents:
    """All records of a database. Raises Corrupted, InUse (Warren runs), and OSError."""
    with BoltFile(path) as file:
        records = file.records()
        has_one_meta = file.has_one_meta
    records.sort(key=lambda record: record.buckets[:1] != (OLD_CONTAINERS.encode(),))  # the newer name counts
    return Contents(records, has_one_meta)


def _operation(record: Record) -> Operation:
    names = [name.decode(errors="replace") for name in record.buckets]
    if len(names) != 1:
        raise InvalidEntity("record", f"{'/'.join(names)!r:.60} is a bucket in a bucket; Warren has none")
    try:
        return operation_of_stored(names[0], record.key, record.value)
    except InvalidEntity as error:
        error.add_note(f"record {record.key!r:.60} of bucket {names[0]!r:.60}")
        raise


def write(file: IO[bytes], entities: Callable[[Kind[Any]], Iterable[tuple[str, Entity | bytes]]]) -> int:
    """Write a database with every bucket of Warren. `entities` gives the entities of a kind with their ids, in the
    order of the ids. Returns the number of records. The file must be empty and able to seek; it is not synced."""
    written = 0

    def records(kind: Kind[Any]) -> Iterator[tuple[bytes, bytes]]:
        nonlocal written
        for key, entity in entities(kind):
            yield key.encode(), format_stored(kind.name, entity)
            written += 1

    bolt_writer.write(file, {kind.bucket: records(kind) for kind in KINDS})
    return written
