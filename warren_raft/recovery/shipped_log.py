"""The files of a continuous backup: the committed entries of one cluster behind its snapshots, on another disk.

Lives here: their bytes and names, writing one, reading one. Not here: when entries are written (manager/shipping.py),
which files lead from a snapshot to a revision (replay.py). Invariant: an entry counts only if it is before a mark: the
index, the revision and the digest of the state after it. So a torn end is dropped, and every other fault is found.
"""

from __future__ import annotations

import json
import os
import re
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple
from zlib import crc32

from warren_raft.disk.files import File, Files
from warren_raft.errors import SnapshotInvalid
from warren_raft.raft.log import format as form
from warren_raft.raft.log.contents import Entry

FILE_BYTES: Final = 16 << 20
"""The next mark after so many bytes is the last one of a file: as long as a segment of the log."""
WRITE_BYTES: Final = 4 << 20
"""The most bytes that are in memory twice while they are written."""
HEADER_BYTES_MAX: Final = 64 << 10
FORMAT: Final = 1
MARK: Final = 16
"""A kind of record; the log of a manager (raft/log/format.py) has the kinds 1 to 4."""

_NAME: Final = re.compile(r"warren-(\d{16,20})-\d{8}T\d{6}Z-[A-Za-z0-9._-]+\.log\Z")
_FRAME: Final = struct.Struct("<8sIII")  # magic, format, length of the JSON, CRC of all before it and of the JSON
_MAGIC: Final = b"WARRENBL"
_RECORD_HEAD_BYTES: Final = len(form.record_head(form.ENTRY, 0, 0, b""))
_MARK: Final = struct.Struct("<Q32s")  # milliseconds since 1970, digest


@dataclass(frozen=True, slots=True)
class Mark:
    """The state after an entry."""

    index: int
    revision: int
    digest: bytes
    at: datetime
    """When it was written, by the clock of the manager: UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first bytes of a file."""

    cluster_id: str
    node_id: str
    """The manager that wrote it."""
    first_index: int
    previous_term: int
    """The term of the entry before the first one."""


class Group(NamedTuple):
    """The entries up to a mark, and the mark."""

    entries: list[Entry]
    mark: Mark


class ShippedFile:
    """A new file that one thread writes. A file is never continued after a fault or by another process."""

    def __init__(self, directory: str, header: Header, *, now: datetime, files: Files) -> None:
        """Make the file. Raises FileExistsError, OSError."""
        name = f"warren-{header.first_index:016d}-{now:%Y%m%dT%H%M%SZ}-{header.node_id}.log"
        self.path: Final = os.path.join(directory, name)
        self.size = 0
        self.has_mark = False
        """Whether a mark is durable, so that some entries count."""
        self._file: File = files.make_file(self.path, private=True)
        try:
            self._write([_encoded_header(header)])
            self._file.sync()
            files.sync_directory(directory)
        except BaseException:
            self._file.close()
            with suppress(OSError):
                files.unlink(self.path)
            raise

    def append(self, entries: Sequence[Entry], mark: Mark) -> None:
        """Write the entries and the mark behind them. They are durable when it returns. After an error (OSError) only
        `close` may follow."""
        parts: list[bytes] = []
        size = 0
        for command, index, term in entries:
            parts += (form.record_head(form.ENTRY, index, term, command), command)
            size += len(command)
            if size >= WRITE_BYTES:
                self._write(parts)
                parts, size = [], 0
        data = _MARK.pack(int(mark.at.timestamp() * 1000), mark.digest)
        self._write([*parts, form.record_head(MARK, mark.index, mark.revision, data), data])
        self._file.sync()
        self.has_mark = True

    def _write(self, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        self._file.write(self.size, data)
        self.size += len(data)

    def close(self) -> None:
        self._file.close()


def _encoded_header(header: Header) -> bytes:
    text = json.dumps(asdict(header)).encode()
    frame = _FRAME.pack(_MAGIC, FORMAT, len(text), 0)
    return _FRAME.pack(_MAGIC, FORMAT, len(text), crc32(text, crc32(frame))) + text


# ---------------------------------------------------------------------------------------------- reading


def names_in(names: Sequence[str]) -> list[str]:
    """The names of such files, by their first index."""
    found = [match for match in map(_NAME.match, names) if match]
    return [match.string for match in sorted(found, key=lambda match: (int(match[1]), match.string))]


def first_index_in(name: str) -> int:
    """The index of the first entry, as the file's name has it."""
    match = _NAME.match(os.path.basename(name))
    assert match is not None
    return int(match[1])


class Contents:
    """A file that was read into memory. `problem`: the damage behind the last group; "" if there is none.
    `newest_index`: the index of the last mark, also of one behind the damage; None: there is no mark."""

    def __init__(self, path: str) -> None:
        """Raises SnapshotInvalid (the header is damaged or of a newer format), OSError."""
        self.path: Final = path
        with open(path, "rb") as file:
            self._data = file.read()
        self.header, self._start = self._read_header()
        self.problem = ""
        self.newest_index: int | None = None
        self.groups: Final = list(self._read_groups())
        if not self.problem and self.last is not None:
            self.newest_index = self.last.index

    @property
    def last(self) -> Mark | None:
        """The last mark; None: there is none, so no entry of the file counts."""
        return self.groups[-1].mark if self.groups else None

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, which may be the one before the first; None: it is not in the file."""
        if index == self.header.first_index - 1:
            return self.header.previous_term
        entry = self.entry_at(index)
        return None if entry is None else entry[2]

    def entry_at(self, index: int) -> Entry | None:
        """The entry at `index`; None: it is not in the file, or no mark is behind it."""
        at = bisect_left(self.groups, index, key=lambda group: group.mark.index)
        if at == len(self.groups) or index < self.header.first_index:
            return None
        entries = self.groups[at].entries
        return entries[index - entries[0][1]]

    def _read_header(self) -> tuple[Header, int]:
        data = self._data
        if len(data) < _FRAME.size:
            raise SnapshotInvalid(self.path, "is empty" if not data else "is cut off in its header")
        try:
            magic, version, length, crc = _FRAME.unpack_from(data)
            text = data[_FRAME.size : _FRAME.size + length]
            frame = _FRAME.pack(magic, version, length, 0)
            if magic != _MAGIC or length > HEADER_BYTES_MAX or crc32(text, crc32(frame)) != crc:
                raise SnapshotInvalid(self.path, "is not a file of a continuous backup, or its header is damaged")
            if version != FORMAT:
                raise SnapshotInvalid(self.path, f"has the format {version}; this program knows format {FORMAT}")
            header = Header(**json.loads(text))
            if [*map(type, asdict(header).values())] != [str, str, int, int]:
                raise ValueError("its header has values of wrong types")
            return header, _FRAME.size + length
        except (struct.error, ValueError, TypeError, RecursionError) as error:
            raise SnapshotInvalid(self.path, f"is not a file of a continuous backup: {error}") from None

    def _read_groups(self) -> Iterator[Group]:
        data, entries = self._data, list[Entry]()
        expected, term = self.header.first_index, self.header.previous_term
        position = self._start
        try:
            for kind, first, second, content in form.records(data, self._start, len(data)):
                if kind == form.ENTRY:
                    if first != expected or second < term:
                        raise form.Damaged(
                            f"entry {first} of term {second} follows entry {expected - 1} of term {term}"
                        )
                    entries.append((content, first, second))
                    expected, term = first + 1, second
                elif kind == MARK and len(content) == _MARK.size and first == expected - 1 and entries:
                    milliseconds, digest = _MARK.unpack(content)
                    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
                    yield Group(entries, Mark(first, second, digest, at))
                    entries = []
                else:
                    raise form.Damaged(f"a record has the unknown kind {kind}, or is in a wrong place")
                position += _RECORD_HEAD_BYTES + len(content)
        except (form.Damaged, ValueError, OverflowError, OSError) as error:
            # A crash tears only the bytes behind the last synced mark. If a whole mark follows, they were synced.
            self.newest_index = _last_mark_index(data, position + 1)
            if self.newest_index is not None:
                self.problem = f"is damaged at byte {position}: {error}"


def newest_index_in(path: str) -> int | None:
    """The index of the last mark in a file with a damaged header, or of a newer format; None: no mark is found. Raises
    OSError."""
    with open(path, "rb") as file:
        return _last_mark_index(file.read(), 0)


def _last_mark_index(data: bytes, start: int) -> int | None:
    """The index of the last whole mark that begins at `start` or behind it; None: there is none."""
    size = _RECORD_HEAD_BYTES + _MARK.size
    wanted = _MARK.size.to_bytes(4, "little") + bytes([MARK])  # the length of its data, its kind
    end = len(data)
    while (at := data.rfind(wanted, start, end)) >= 0:
        begin = at - 4  # the CRC
        with suppress(form.Damaged):
            found = list(form.records(data, begin, begin + size)) if begin >= start else []
            if [record[0] for record in found] == [MARK]:
                return found[0][1]
        end = at + len(wanted) - 1
    return None
