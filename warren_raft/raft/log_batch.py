"""One batch of the log on its way to the disk.

Lives here: the order of one write. Not here: what goes into it and what its durability means (log.py).
Invariant: the batch is in one place, whatever failed: where it was first tried, or where nothing else was left behind.
"""

from __future__ import annotations

from warren_raft.shortage import shortage_of

from . import log_format as form
from .log_format import State
from .log_segments import Roll, Segment


class Batch:
    """Everything that was pending at one moment; durable after write()."""

    def __init__(
        self,
        number: int,
        parts: list[bytes],
        state: State,
        position: int,
        target: Segment | Roll,
        instead: Segment | None = None,
        *,
        is_reset: bool = False,
    ) -> None:
        self.number = number
        self.position = position
        self.durable_index = state.last_index  # a later truncation lowers it, in the log's thread
        self.commit_index = state.commit_index
        self.written: tuple[Segment, int] | None = None  # where it lies and where it ends, once durable
        self._parts = parts
        self._target = target
        self._instead = instead
        self._is_reset = is_reset

    def write(self) -> None:
        """One write and one fdatasync, and before them a new segment if one is due. One thread.

        OSError passes through. After one that is a shortage (shortage.py) it may be called again, with the same
        result; after EIO nobody knows what the disk holds: close the log and stop.
        """
        segment = self._segment()
        end = segment.end
        if not self._is_reset:  # the header of a reset's segment says everything
            image = form.encode_batch(self.number, self.commit_index, self._parts, segment.end, segment.salt)
            segment.file.write(segment.end, image)
            segment.file.sync()
            end += len(image)
        self.written = (segment, end)

    def _segment(self) -> Segment:
        """The segment it goes to, made if need be; `instead` if the disk has no room for a new one."""
        target = self._target
        if isinstance(target, Roll):
            try:
                segment = target.run()
            except OSError as error:
                if shortage_of(error) is None or self._instead is None or target.is_filled:
                    raise
                segment = self._instead
            self._target = segment
            return segment
        return target

    def close(self) -> None:
        """Give back what it holds of a segment that the log does not know yet."""
        target = self._target
        (target if isinstance(target, Roll) else target.file).close()
