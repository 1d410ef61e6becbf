"""A log under test, with a record of the contents that it must have after a crash: those after each batch.

Used by the unit tests and the byte sweeps. It checks nothing itself. With it a test can check this promise: after any
crash the log has the contents of `durable`, or of `taken` if a batch was on its way. `above` is for a log that was
compacted, where an open may find more entries than memory had.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from tests.memory_files import MemoryFiles
from warren_raft.raft.log.contents import BASE_COMMAND
from warren_raft.raft.log.log import Batch, Entry, Log

DIRECTORY = "/data/log"


class Snapshot(NamedTuple):
    """All contents of a log."""

    entries: tuple[Entry, ...]
    current_term: int
    voted_for: str | None
    commit_index: int
    note: bytes
    incarnation: str


def snapshot(log: Log) -> Snapshot:
    """The present contents of `log`."""
    return Snapshot(tuple(log.entries), log.current_term, log.voted_for, log.commit_index, log.note, log.incarnation)


def open_log(files: MemoryFiles, *, segment_bytes: int = 32768, start_segment_bytes: int = 16384) -> Log:
    """The log of the manager "a" on this disk, with small segments and the incarnation "first"."""
    return Log.open(
        DIRECTORY,
        files=files,
        node_id="a",
        new_incarnation=lambda: "first",
        segment_bytes=segment_bytes,
        start_segment_bytes=start_segment_bytes,
    )


class Place(NamedTuple):
    """The place of a batch: the segment's path, and offsets in bytes."""

    path: str
    start: int
    end: int


class Recorder:
    """A log on a disk in memory. `durable` and `taken` are its contents at the last completed and last taken batch."""

    def __init__(self, files: MemoryFiles, *, segment_bytes: int = 32768, start_segment_bytes: int = 16384) -> None:
        self.files = files
        self._segment_bytes = segment_bytes
        self._start_segment_bytes = start_segment_bytes
        self.places: list[Place] = []
        self.states: list[Snapshot] = []
        self.durable: Snapshot | None = None
        self.taken: Snapshot | None = None
        self.batch: Batch | None = None
        self.log: Log
        self.dropped = 0
        """The index of the last drop_prefix or completed reset. An open may find entries up to this index, or not."""
        self.past: dict[int, Entry] = {1: (BASE_COMMAND, 1, 0)}
        """Index -> the latest entry that a batch took at it. Up to `dropped` this is the final entry."""

    def inherit(self, other: Recorder) -> None:
        """Take over the record of another process that used this disk."""
        self.durable, self.taken = other.durable, other.taken
        self.dropped, self.past = other.dropped, dict(other.past)

    def open(self) -> Log:
        """Open the log, again if the disk was full."""
        sizes = {"segment_bytes": self._segment_bytes, "start_segment_bytes": self._start_segment_bytes}
        try:
            self.log = open_log(self.files, **sizes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.log = open_log(self.files, **sizes)
        self.batch = None
        self.durable = self.taken = snapshot(self.log)
        if self.log.base_index > self.dropped:  # a reset that was on its way
            self.past[self.log.base_index] = self.log.entries[0]
        return self.log

    def take(self) -> Batch | None:
        """Take a batch, and remember the contents to which it leads."""
        batch = self.log.take_batch()
        if batch is not None:
            self.batch = batch
            self.taken = snapshot(self.log)
            self.past.update({entry[1]: entry for entry in self.log.entries[1:]})
        return batch

    def take_reset(self, index: int, term: int) -> Batch:
        """Replace the log, as a batch."""
        self.batch = self.log.reset_batch(index, term)
        self.taken = snapshot(self.log)
        return self.batch

    def drop(self, index: int) -> None:
        """Compact the log."""
        self.log.drop_prefix(index)
        self.dropped = max(self.dropped, index)

    def above(self, state: Snapshot) -> Snapshot:
        """`state` without its entries up to the compaction point. These must be the ones that were written."""
        base = state.entries[0][1]
        at = min(self.dropped, state.entries[-1][1])
        if base >= at:
            return state
        term = state.entries[at - base][2]
        assert state.entries[0][2] == self.past[base][2], "a wrong base"
        below = [self.past[index] for index in range(base + 1, at + 1)]
        assert list(state.entries[1 : at - base + 1]) == below, "a wrong entry below the compaction point"
        kept = ((BASE_COMMAND, at, term), *state.entries[at - base + 1 :])
        return state._replace(entries=kept, commit_index=max(at, state.commit_index))

    def write(self) -> None:
        """Write the batch that was taken. Write it again if the disk was full."""
        assert self.batch is not None
        try:
            self.batch.write()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.batch.write()

    def finish(self) -> None:
        """Write the batch that was taken, and complete it."""
        batch = self.batch
        assert batch is not None
        self.write()
        self.log.complete(batch)
        self.batch = None
        self.durable = self.taken
        self._remember(batch)

    def finish_reset(self) -> None:
        """Write the reset that was taken, and complete it."""
        batch = self.batch
        assert batch is not None
        self.write()
        self.log.complete(batch)
        self.batch = None
        self.durable = self.taken
        assert self.durable is not None
        self.dropped = self.log.base_index
        self.past[self.dropped] = self.durable.entries[0]
        self.places.clear()
        self.states = [self.durable]

    def reset(self, index: int, term: int) -> None:
        """Replace the log durably, and remove the old segments."""
        self.take_reset(index, term)
        self.finish_reset()
        self.remove()

    def sync(self) -> None:
        """Make all pending changes durable."""
        if self.take() is not None:
            self.finish()

    def prepare(self) -> None:
        """Prepare the next segment if that is due. A full disk does no harm."""
        preparation = self.log.preparation()
        if preparation is not None:
            try:
                preparation()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def remove(self) -> None:
        """Remove the segments that are not needed any more. One that cannot be removed does no harm."""
        removal = self.log.removal()
        if removal is not None:
            try:
                removal()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def append(self, *sizes: int, term: int | None = None) -> None:
        """Append entries of these sizes, each with other content."""
        for size in sizes:
            index = self.log.last_index + 1
            self.log.append(command(index, size), index, self.log.last_term if term is None else term)

    def _remember(self, batch: Batch) -> None:
        assert self.durable is not None
        assert batch.written is not None
        segment, end = batch.written
        path = f"{DIRECTORY}/{segment.number:016d}.log"
        previous = self.places[-1] if self.places and self.places[-1].path == path else None
        start = previous.end if previous else 4096
        self.places.append(Place(path, start, end))
        self.states.append(self.durable)


def command(index: int, size: int) -> bytes:
    """`size` bytes without a zero in them, different for each index."""
    return bytes((index * 37 + i * 11) % 255 + 1 for i in range(min(size, 997))).ljust(size, b"\x5a")
