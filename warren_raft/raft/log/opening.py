"""Opening a log: read all of it, judge its torn end, make the last batch durable, begin a new segment.

Lives here: the way from a directory to a state. Not here: the bytes (format.py), changes (log.py).
Invariant: the contents that are returned are durable, are a prefix of the changes that were written, and lack no change
that was ever synced. If this is not certain, Corrupted is raised.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...disk.files import File, Files
from ...errors import Corrupted, RefusedForSafety
from ..way_back import way_back_unknown
from . import format as form
from .compaction import Chain
from .contents import BLANK, Contents
from .format import BatchView, SegmentHeader, State
from .segments import (
    TEMPORARY_SUFFIX,
    Roll,
    Segment,
    segment_path,
)

PART_OF_LOG: Final = "this manager must not vote with a part of its log"
REMEDY: Final = f"{PART_OF_LOG}: {way_back_unknown('ID')}"

_SEGMENT_NAME = re.compile(r"(\d{16})\.log")


@dataclass(slots=True)
class Recovered:
    """The contents of an opened log, all of them durable, and the segment for the next batch."""

    node_id: str
    incarnation: str
    contents: Contents
    active: Segment
    chain: Chain
    next_batch: int


@dataclass(frozen=True, slots=True)
class Looked:
    """The contents of a log that was only looked at. They need not all be durable."""

    node_id: str
    incarnation: str
    contents: Contents
    size_bytes: int
    """The bytes of headers and batches, as `Log.size_bytes`."""


@dataclass(slots=True)
class _Found:
    """A segment on the disk. `end`: the end of its last sound batch, known after the segment was read."""

    path: str
    file: File
    header: SegmentHeader
    header_bytes: int
    salt: int
    end: int = 0


@dataclass(slots=True)
class _Tail:
    """The end of the newest segment: its last batch and the offset of that batch. `unused`: no batch was ever
    written."""

    next_batch: int
    last_offset: int
    last_bytes: bytes
    unused: bool


class Opening:
    """One opening of a directory. Raises OSError; then the opening can be tried again from the start."""

    def __init__(self, files: Files, directory: str, node_id: str, start_segment_bytes: int) -> None:
        self._files = files
        self._directory = directory
        self._node_id = node_id
        self._start_bytes = start_segment_bytes
        self._chain = Chain()

    def run(self, new_incarnation: Callable[[], str]) -> Recovered:
        """Read the log, or begin a blank log if there is none. Raises Corrupted, RefusedForSafety, OSError."""
        numbers = self._segment_numbers()
        return self._reopen(numbers) if numbers else self._create(new_incarnation(), BLANK)

    def create(self, incarnation: str, start: State) -> Recovered:
        """Begin a log at `start`. RefusedForSafety if there is a log already."""
        if self._segment_numbers():
            raise RefusedForSafety(f"{self._directory} holds a log already: use another directory for the new log")
        return self._create(incarnation, start)

    def look(self) -> Looked | None:
        """Read the log and change nothing; None if there is no log. Raises as `run`."""
        try:
            numbers = _numbers_in(self._files.list_directory(self._directory))
        except FileNotFoundError:
            return None
        if not numbers:
            return None
        found: list[_Found] = []
        try:
            self._find_all(numbers, found)
            contents, _ = self._read(found)
            header = found[-1].header
            return Looked(header.node_id, header.incarnation, contents, sum(segment.end for segment in found))
        finally:
            for segment in found:
                segment.file.close()

    def _segment_numbers(self) -> list[int]:
        """The numbers of the segments, in order. Makes the directory if needed, and removes unfinished segments."""
        try:
            names = self._files.list_directory(self._directory)
        except FileNotFoundError:
            self._files.make_directory(self._directory)
            return []
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX):
                self._files.unlink(posixpath.join(self._directory, name))
        return _numbers_in(names)

    def _create(self, incarnation: str, start: State) -> Recovered:
        """Make the first segment. The directory's own name is made durable before it, because a process that died may
        have made the directory without a sync."""
        self._files.sync_directory(posixpath.dirname(self._directory) or ".")
        header = SegmentHeader(1, self._start_bytes, 1, 0, 1, self._node_id, incarnation, start)
        contents = Contents(start, self._chain.truncated)
        return Recovered(self._node_id, incarnation, contents, self._begin(header), self._chain, 1)

    def _reopen(self, numbers: list[int]) -> Recovered:
        found: list[_Found] = []
        try:
            self._find_all(numbers, found)
            return self._recover(numbers, found)
        finally:
            for segment in found:
                segment.file.close()

    def _recover(self, numbers: list[int], found: list[_Found]) -> Recovered:
        contents, tail = self._read(found)
        newest = found[-1]
        if tail.unused:
            active = self._adopt(found.pop())
        else:
            self._rewrite(newest, tail)
            active = self._seal(newest, tail, contents)
        self._tidy(numbers, found)
        header = newest.header
        return Recovered(
            header.node_id,
            header.incarnation,
            contents,
            active,
            self._chain,
            tail.next_batch,
        )

    # -- finding the segments

    def _find_all(self, numbers: list[int], found: list[_Found]) -> None:
        """Open the segments that the newest one needs, in order."""
        newest = self._find(numbers[-1])
        found.append(newest)
        _check_owner(self._directory, newest.header, self._node_id)
        for number in range(numbers[-1] - 1, newest.header.oldest_segment - 1, -1):
            if number not in numbers:
                raise _corrupted(segment_path(self._directory, number), "this segment is missing")
            found.insert(0, self._find(number))
            if found[0].header.incarnation != newest.header.incarnation:
                raise _corrupted(found[0].path, "this segment belongs to another log")

    def _find(self, number: int) -> _Found:
        path = segment_path(self._directory, number)
        file = self._files.open(path)
        try:
            return _read_header(path, file, number)
        except BaseException:
            file.close()
            raise

    # -- reading

    def _read(self, found: list[_Found]) -> tuple[Contents, _Tail]:
        contents = Contents(found[0].header.state, self._chain.truncated)
        next_batch = found[0].header.first_batch
        for segment, successor in itertools.pairwise(found):
            self._read_sealed(segment, successor.header, contents, next_batch)
            next_batch = successor.header.first_batch
        return contents, self._read_newest(found[-1], contents, next_batch)

    def _read_sealed(self, segment: _Found, successor: SegmentHeader, contents: Contents, next_batch: int) -> None:
        """Read a segment up to its end, which the header of the next one has. Every byte up to there must be sound."""
        self._start(segment, contents, next_batch)
        data = segment.file.read(0, successor.previous_end)
        next_batch, _ = _replay_batches(segment, data, contents, next_batch)
        if segment.end != successor.previous_end or next_batch != successor.first_batch:
            raise _corrupted(segment.path, f"batch {next_batch} is damaged at offset {segment.end}")

    def _read_newest(self, segment: _Found, contents: Contents, next_batch: int) -> _Tail:
        """Read the newest segment. A crash may have torn its end: sound batches, then zeros or a torn batch."""
        self._start(segment, contents, next_batch)
        capacity = segment.header.capacity
        data = segment.file.read(0, capacity)
        if len(data) < capacity:
            raise _corrupted(segment.path, f"it was cut to {len(data)} of {capacity} bytes, which no crash does")
        next_batch, last = _replay_batches(segment, data, contents, next_batch)
        reason = form.damage(data, segment.end, next_batch, segment.salt)
        if reason is not None:
            raise _corrupted(segment.path, reason)
        if last is None:
            return _Tail(next_batch, 0, b"", form.is_zero(data, segment.end))
        return _Tail(next_batch, last.start, data[last.start : last.end], False)

    def _start(self, segment: _Found, contents: Contents, next_batch: int) -> None:
        _check_start(segment, contents, next_batch)
        self._chain.announce(segment.header)
        self._chain.begin(segment.header.previous_end)

    # -- making the contents durable, and a segment for the next batch

    def _rewrite(self, newest: _Found, tail: _Tail) -> None:
        """Make the last batch durable. A process that died may have left it in the page cache only.

        Only the last batch needs this, because each batch is synced before the next one is written. It is written
        again, because after a failed sync the kernel may take pages for clean that never reached the disk.
        """
        if tail.last_bytes:
            newest.file.write(tail.last_offset, tail.last_bytes)
            newest.file.sync()

    def _adopt(self, newest: _Found) -> Segment:
        """Use an unused segment, so that restarts that write nothing do not each leave a segment."""
        self._files.sync_directory(self._directory)
        return Segment(newest.file, newest.header.number, newest.header.capacity, newest.salt, newest.header_bytes)

    def _seal(self, newest: _Found, tail: _Tail, contents: Contents) -> Segment:
        """Make a new segment. Its header says for ever where the old segment ends, so a torn batch behind that end is
        never read."""
        header = SegmentHeader(
            number=newest.header.number + 1,
            capacity=self._start_bytes,
            oldest_segment=newest.header.oldest_segment,
            previous_end=newest.end,
            first_batch=tail.next_batch,
            node_id=newest.header.node_id,
            incarnation=newest.header.incarnation,
            state=contents.state(),
        )
        return self._begin(header)

    def _begin(self, header: SegmentHeader) -> Segment:
        roll = Roll(self._files, self._directory, header.with_room(0))
        try:
            segment = roll.run()
        except BaseException:
            roll.close()
            raise
        self._chain.announce(header)
        self._chain.begin(header.previous_end)
        return segment

    def _tidy(self, numbers: list[int], sealed: list[_Found]) -> None:
        """Give back the space of unused ends of sealed segments, and of segments before the oldest needed one."""
        for segment in sealed:
            if segment.file.size() > segment.end:
                segment.file.truncate(segment.end)
        oldest = sealed[0].header.number if sealed else numbers[-1]
        for number in numbers:
            if number < oldest:
                self._files.unlink(segment_path(self._directory, number))


def owner_of(files: Files, directory: str) -> str | None:
    """The node id for which the log in `directory` was made; None if there is no log. Raises as an opening does."""
    header = newest_header(files, directory)
    return None if header is None else header.node_id


def require_owner(files: Files, directory: str, node_id: str) -> None:
    """Raises RefusedForSafety if the log in `directory` is another manager's. Otherwise raises as an opening does."""
    header = newest_header(files, directory)
    if header is not None:
        _check_owner(directory, header, node_id)


def _check_owner(directory: str, header: SegmentHeader, node_id: str) -> None:
    if header.node_id != node_id:
        text = f"{directory} is the log of {header.node_id!r}, not of {node_id!r}"
        raise RefusedForSafety(f"{text}: give each manager a data directory of its own")


def newest_header(files: Files, directory: str) -> SegmentHeader | None:
    """The header of the newest segment: the owner of the log, and its state when that segment was begun. None if there
    is no log."""
    try:
        numbers = _numbers_in(files.list_directory(directory))
    except FileNotFoundError:
        return None
    if not numbers:
        return None
    path = segment_path(directory, numbers[-1])
    file = files.open(path)
    try:
        return _read_header(path, file, numbers[-1]).header
    finally:
        file.close()


def look(files: Files, directory: str) -> Looked | None:
    """The contents of the log in `directory`, of any manager; None if there is no log. Nothing is changed.

    The caller makes sure that no manager writes to the log. Raises Corrupted, RefusedForSafety (a later format),
    OSError.
    """
    header = newest_header(files, directory)
    return None if header is None else Opening(files, directory, header.node_id, 0).look()


def _numbers_in(names: list[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_SEGMENT_NAME.fullmatch, names) if match)


def _read_header(path: str, file: File, number: int) -> _Found:
    try:
        start = file.read(0, form.PAGE)
        size = form.header_size(start)
        start += file.read(form.PAGE, size - form.PAGE)
        header = form.decode_header(start)
    except form.Damaged as error:
        raise _corrupted(path, str(error)) from None
    except form.UnknownVersion as error:
        raise RefusedForSafety(f"{path} has {error}: use the release that wrote it, or a later one") from None
    if header.number != number:
        raise _corrupted(path, f"it is segment {header.number} under the name of {number}")
    return _Found(path, file, header, size, form.header_salt(start))


def _check_start(segment: _Found, contents: Contents, next_batch: int) -> None:
    """A header has to repeat the state to which the segments before it lead."""
    if not contents.is_at(segment.header.state) or segment.header.first_batch != next_batch:
        raise _corrupted(segment.path, "its header contradicts the segments before it")


def _replay_batches(segment: _Found, data: bytes, contents: Contents, next_batch: int) -> tuple[int, BatchView | None]:
    """Take over all sound batches, and set `segment.end`. Returns (number of the next batch, the last sound batch)."""
    segment.end, last = segment.header_bytes, None
    while (batch := form.read_batch(data, segment.end, next_batch, segment.salt)) is not None:
        try:
            contents.replay(batch, data)
        except form.Damaged as error:
            raise _corrupted(segment.path, str(error)) from None
        next_batch, segment.end, last = next_batch + 1, batch.end, batch
    return next_batch, last


def _corrupted(path: str, detail: str) -> Corrupted:
    return Corrupted(path, detail, remedy=REMEDY)
