"""Which segments of the log are still needed, from which of them reading can begin, and the removal of the others.

Lives here: the arithmetic over segments. Not here: compaction in memory (contents.py), the header that names the
oldest segment (log.py). Invariant: no segment is removed before a durable header does without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...disk.files import Files
from .format import SegmentHeader
from .segments import segment_path

REMOVAL_PAUSE_BATCHES = 1000  # after a failed removal, so that a removal that fails is not tried with each batch


@dataclass(slots=True)
class _Known:
    """A segment that reading needs. `start_index`: the last index in the state of its header."""

    number: int
    start_index: int
    oldest: int
    can_begin: bool  # no truncation in this segment or a later one went to its start_index or below
    end: int = 0  # bytes up to the end of the last batch; 0 while the segment is being written


class Chain:
    """The segments that reading needs, the oldest first. The last one is being written.

    Reading can begin at a segment unless a later truncation dropped the entry with which its header begins. Example:
    the header says "index 90 of term 4", but the log now has an entry of another term at index 90.
    """

    def __init__(self) -> None:
        self._segments: list[_Known] = []
        self._coming: _Known | None = None
        self.sealed_bytes = 0
        """The bytes of headers and batches in all segments but the last."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the segments. Any thread may ask."""
        return tuple([segment.number for segment in self._segments])

    def announce(self, header: SegmentHeader, lowest_truncation: int | None = None) -> None:
        """A segment will be made. `lowest_truncation`: the lowest index that its first batch truncates from."""
        start = header.state.last_index
        can_begin = lowest_truncation is None or lowest_truncation > start
        self._coming = _Known(header.number, start, header.oldest_segment, can_begin)

    def begin(self, previous_end: int) -> list[int]:
        """The announced segment is durable, and the one before it ends at `previous_end`. Returns the numbers of the
        segments that are not needed any more."""
        coming, self._coming = self._coming, None
        assert coming is not None
        if self._segments:
            self._segments[-1].end = previous_end
            self.sealed_bytes += previous_end
        self._segments.append(coming)
        removable = []
        while self._segments[0].number < coming.oldest:
            segment = self._segments.pop(0)
            self.sealed_bytes -= segment.end
            removable.append(segment.number)
        return removable

    def withdraw(self) -> None:
        """The announced segment was not made."""
        self._coming = None

    def truncated(self, index: int) -> None:
        """A record that truncates from `index` is written, or will be, behind all known and announced segments."""
        for segment in self._segments:
            segment.can_begin = segment.can_begin and segment.start_index < index
        if self._coming is not None and self._coming.start_index >= index:
            self._coming.can_begin = False

    def oldest_for(self, index: int) -> int:
        """The segment at which reading can begin if no entry at or below `index` is needed."""
        for segment in reversed(self._segments):
            if segment.can_begin and segment.start_index <= index:
                return segment.number
        return self._segments[0].number

    def has_gain(self, index: int) -> bool:
        """True if a new segment, with its header, would make a sealed segment removable."""
        return self.oldest_for(index) > (self._coming or self._segments[-1]).oldest


class Removal:
    """Unlinks segments in a worker thread. The log's thread reads `left` only when `running` is False."""

    def __init__(self, files: Files, paths: Sequence[str]) -> None:
        self._files = files
        self.left = list(paths)
        self.running = True

    def __call__(self) -> None:
        """Unlink the segments, the oldest first. Raises OSError. A segment that does not exist is left out."""
        try:
            while self.left:
                with contextlib.suppress(FileNotFoundError):  # an earlier removal that failed may have unlinked it
                    self._files.unlink(self.left[0])
                del self.left[0]
        finally:
            self.running = False


class Removals:
    """The segments that wait for removal, and the removal that runs. For the log's thread."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._waiting: list[str] = []
        self._current: Removal | None = None
        self._from_batch = 0

    def add(self, numbers: Sequence[int]) -> None:
        """Add segments that are not needed any more, by a durable header."""
        self._waiting += [segment_path(self._directory, number) for number in numbers]

    def next(self, batch: int) -> Removal | None:
        """The removal to run next. None if no segment waits, or while a removal runs. `batch`: the number of the next
        batch."""
        current = self._current
        if current is not None and current.running:
            return None
        if current is not None and current.left:
            self._waiting[:0] = current.left
            self._from_batch = batch + REMOVAL_PAUSE_BATCHES
        self._current = None
        if self._waiting and batch >= self._from_batch:
            self._current = Removal(self._files, self._waiting)
            self._waiting = []
        return self._current
