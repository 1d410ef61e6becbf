"""One batch of the log on its way to the disk.

Lives here: the steps of one write. Not here: the contents of a batch and the meaning of its durability (log.py).
Invariant: after any failure the batch is in one place at most. It goes to a second segment only if no byte of the first
one is on the disk.
"""

from __future__ import annotations

from warren_raft.disk.shortage import shortage_of

from . import format as form
from .format import State
from .segments import Roll, Segment


class Batch:
    """All changes that were pending at one moment. They are durable after write()."""

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
        self.written: tuple[Segment, int] | None = None  # the segment and the end of the batch in it, once durable
        self._parts = parts
        self._target = target
        self._instead = instead
        self._is_reset = is_reset

    def write(self) -> None:
        """Write and sync the batch, in a new segment if one is due. Called in one thread at a time.

        Raises OSError. After a shortage (disk/shortage.py) the call may be repeated, with the same result. After EIO
        the contents of the disk are unknown: close the log and stop.
        """
        segment = self._segment()
        end = segment.end
        if not self._is_reset:  # for a reset, the header of the new segment has all of it
            image = form.encode_batch(self.number, self.commit_index, self._parts, segment.end, segment.salt)
            segment.file.write(segment.end, image)
            segment.file.sync()
            end += len(image)
        self.written = (segment, end)

    def _segment(self) -> Segment:
        """The segment for the batch, which is made if needed; `instead` if there is no space left for a new segment."""
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
        """Close the file of a new segment that the log does not know yet."""
        target = self._target
        (target if isinstance(target, Roll) else target.file).close()
