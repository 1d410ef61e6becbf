"""Which of the log's segments are still needed, from which ones reading can begin, and the removal of the rest.

Lives here: the arithmetic over segments. Not here: what compaction does in memory (log_contents.py), the header that
names the oldest segment (log.py). Invariant: nothing is removed before a durable header does without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from .files import Files
from .log_format import SegmentHeader
from .log_segments import segment_path

REMOVAL_PAUSE_BATCHES = 1000  # after a failed removal: a directory that refuses is not asked again for each batch


@dataclass(slots=True)
class _Known:
    """A segment that reading needs. `start_index`: last index of the state its header begins with."""

    number: int
    start_index: int
    oldest: int
    can_begin: bool  # no truncation in it, or in a later one, went to its start or below
    end: int = 0  # bytes up to the end of its last batch; 0 while it is being written


class Chain:
    """The segments that reading needs, oldest first; the last one is being written.

    Reading can begin at a segment unless a truncation behind its start took back what its header begins with: from
    there on it says "index 90 of term 4", and the log came to say otherwise.
    """

    def __init__(self) -> None:
        self._segments: list[_Known] = []
        self._coming: _Known | None = None
        self.sealed_bytes = 0
        """Headers and batches of all segments but the last."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the segments. Any thread may ask."""
        return tuple([segment.number for segment in self._segments])

    def announce(self, header: SegmentHeader, lowest_truncation: int | None = None) -> None:
        """A segment will be made; its first batch truncates to `lowest_truncation`."""
        start = header.state.last_index
        can_begin = lowest_truncation is None or lowest_truncation > start
        self._coming = _Known(header.number, start, header.oldest_segment, can_begin)

    def begin(self, previous_end: int) -> list[int]:
        """The announced segment is durable, the one before it ends there. Returns what is needed no more."""
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
        """The announced segment was not made after all."""
        self._coming = None

    def truncated(self, index: int) -> None:
        """A record that truncates to `index` stands, or will, behind all that is known or announced."""
        for segment in self._segments:
            segment.can_begin = segment.can_begin and segment.start_index < index
        if self._coming is not None and self._coming.start_index >= index:
            self._coming.can_begin = False

    def oldest_for(self, index: int) -> int:
        """The segment to begin reading at when nothing at or below `index` is needed."""
        for segment in reversed(self._segments):
            if segment.can_begin and segment.start_index <= index:
                return segment.number
        return self._segments[0].number

    def has_gain(self, index: int) -> bool:
        """True if one more header would let a segment go that is sealed by now."""
        return self.oldest_for(index) > (self._coming or self._segments[-1]).oldest


class Removal:
    """The unlinking of segments, in another thread than the log's; the log looks at `left` when `running` is False."""

    def __init__(self, files: Files, paths: Sequence[str]) -> None:
        self._files = files
        self.left = list(paths)
        self.running = True

    def __call__(self) -> None:
        """Unlink them, oldest first. OSError passes through; what is gone already is no error."""
        try:
            while self.left:
                with contextlib.suppress(FileNotFoundError):  # a removal that failed half-way was faster
                    self._files.unlink(self.left[0])
                del self.left[0]
        finally:
            self.running = False


class Removals:
    """What waits for removal, and the one removal under way. In the log's thread."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._waiting: list[str] = []
        self._current: Removal | None = None
        self._from_batch = 0

    def add(self, numbers: Sequence[int]) -> None:
        """These segments are needed no more, and a durable header says so."""
        self._waiting += [segment_path(self._directory, number) for number in numbers]

    def next(self, batch: int) -> Removal | None:
        """The removal to run, if there is one and none is under way. `batch`: the number of the next batch."""
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
