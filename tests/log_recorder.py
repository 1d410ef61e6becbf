"""A log under test with its memory of what it must come back with: the state after every batch it ever took.

Used by the unit tests and the byte sweeps. It checks nothing itself; the promise it lets others check is: after
any crash the log is at `durable`, or at `taken` if a batch was on its way, and at nothing else.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from tests.memory_files import MemoryFiles
from warren_raft.raft.log import Batch, Entry, Log

DIRECTORY = "/data/log"


class Snapshot(NamedTuple):
    """All that a log says."""

    entries: tuple[Entry, ...]
    current_term: int
    voted_for: str | None
    commit_index: int
    note: bytes
    incarnation: str


def snapshot(log: Log) -> Snapshot:
    """What `log` says now."""
    return Snapshot(tuple(log.entries), log.current_term, log.voted_for, log.commit_index, log.note, log.incarnation)


def open_log(files: MemoryFiles, *, segment_bytes: int = 32768, start_segment_bytes: int = 16384) -> Log:
    """The log of node "a" on this disk, with small segments and the first incarnation named first."""
    return Log.open(
        DIRECTORY,
        files=files,
        node_id="a",
        new_incarnation=lambda: "first",
        segment_bytes=segment_bytes,
        start_segment_bytes=start_segment_bytes,
    )


class Place(NamedTuple):
    """Where a batch lies: the segment's path, and offsets in bytes."""

    path: str
    start: int
    end: int


class Recorder:
    """A log on a disk in memory. `durable` and `taken` are what it was at the last completed and last taken batch."""

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
        return self.log

    def take(self) -> Batch | None:
        """Take a batch, remembering the state it leads to."""
        batch = self.log.take_batch()
        if batch is not None:
            self.batch = batch
            self.taken = snapshot(self.log)
        return batch

    def write(self) -> None:
        """Write the batch taken, again if the disk was full."""
        assert self.batch is not None
        try:
            self.batch.write()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.batch.write()

    def finish(self) -> None:
        """Write the batch taken and complete it."""
        batch = self.batch
        assert batch is not None
        self.write()
        self.log.complete(batch)
        self.batch = None
        self.durable = self.taken
        self._remember(batch)

    def sync(self) -> None:
        """Make everything pending durable."""
        if self.take() is not None:
            self.finish()

    def prepare(self) -> None:
        """Prepare the next segment, if that is due; a full disk is nobody's loss."""
        preparation = self.log.preparation()
        if preparation is not None:
            try:
                preparation()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def append(self, *sizes: int, term: int | None = None) -> None:
        """Append entries of these sizes, each with content of its own."""
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
