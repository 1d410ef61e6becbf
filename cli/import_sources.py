"""The records in the file that `warren-raft import` reads: JSON lines, or a Go Warren's database.

Not here: the form of a line, a record or a database (warren_raft/migrate/); storing them (data.py).
Invariant: all records of the file are given, or an error names the first bad one. Of two for one entity the last one
counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from warren_raft.errors import Corrupted, InvalidEntity
from warren_raft.migrate import database
from warren_raft.migrate.lines import operation_of
from warren_raft.store.command import Operation

from .common import BadFile, utf8_text
from .tables import say

MAX_LINE_BYTES: Final = 8 * 1024 * 1024  # an entity of 1 MiB, in base64 and with every character escaped
_OTHER_FORMS: Final = (
    (16, b"\xde\xc0\xef\xbe", "is a snapshot, or the state of a manager: use `warren-raft snapshot restore`"),
    (0, b"\x1f\x8b", "is compressed: decompress it with gunzip first"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed: decompress it with unzstd first"),
    (0, b"\xfd7zXZ\0", "is compressed: decompress it with unxz first"),
    (0, b"BZh", "is compressed: decompress it with bunzip2 first"),
    (0, b"PK\x03\x04", "is a zip archive: give the file that is in it"),
    (257, b"ustar", "is a tar archive: give the file that is in it"),
    (0, b"SQLite format 3\0", "is a database of SQLite, not of a Go Warren"),
)
"""Files that are given by mistake: the place of the bytes that tell them, these bytes, and the advice."""

_ONE_META: Final = "one of the two meta pages is damaged, so the last change that Warren made may be missing"


def operations(source: BinaryIO) -> list[Operation]:
    """The operation that stores each record. Raises BadFile, and Corrupted, InUse or OSError for a database: only
    Warren writes one, so a record that is not Warren's is damage."""
    found: dict[tuple[int, str], Operation] = {}
    for put in _from_database(source) if _is_database(source) else _from_lines(source):
        found[put.kind_number, put.id] = put
    if not found:
        raise BadFile(f"{source.name} holds no record")
    return list(found.values())


def _is_database(source: BinaryIO) -> bool:
    """Whether a file is a database: by its first bytes, or, if these are damaged, by its name."""
    if not source.seekable():
        return False
    head = source.read(database.HEAD_BYTES)
    source.seek(0)
    for place, magic, advice in _OTHER_FORMS:
        if head[place:].startswith(magic):
            raise BadFile(f"{source.name} {advice}")
    return database.is_database(head) or (source.name.endswith(".db") and b"\0" in head)


def _from_database(source: BinaryIO) -> list[Operation]:
    contents = database.read(f"/dev/fd/{source.fileno()}" if source.name == "<stdin>" else source.name)
    remedy = _ONE_META if contents.has_one_meta else ""
    try:
        found = contents.operations
    except InvalidEntity as error:
        where = ", ".join([source.name, *getattr(error, "__notes__", ())])
        raise Corrupted(where, _problem(error), remedy=remedy) from None
    if remedy:
        say(f"warning: {source.name}: {remedy}", err=True)
    return found


def _from_lines(source: BinaryIO) -> Iterator[Operation]:
    for number, line in _lines(source):
        try:
            yield operation_of(utf8_text(line, f"line {number} of {source.name}"))
        except InvalidEntity as error:
            raise BadFile(f"line {number} of {source.name}: {_problem(error)}") from None


def _problem(error: InvalidEntity) -> str:
    return str(error).removeprefix("record: ").removeprefix("record.")


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers, which begin at 1."""
    number = 0
    while line := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and database.is_database(line):
            raise BadFile(f"{source.name} is a database file of a Go Warren: name the file, it cannot come by a pipe")
        if len(line) > MAX_LINE_BYTES:
            raise BadFile(f"line {number} of {source.name} is longer than {MAX_LINE_BYTES} bytes")
        if line.strip():
            yield number, line
