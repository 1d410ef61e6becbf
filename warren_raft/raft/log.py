"""The durable log: entries, truncations, term and vote, the membership layer's note; synced in batches.

Lives here: changes, batches, and what is durable. Not here: what changes are lawful (log_contents.py), opening
(log_opening.py), segments (log_segments.py), bytes (log_format.py), when to sync (the driver).
Invariant: what synced_position covers is there after any crash; nothing else is claimed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from ..errors import InvariantViolation
from . import log_format as form
from .files import Files
from .log_contents import BASE_INDEX, Entry
from .log_format import SegmentHeader, State
from .log_opening import Opening, Recovered
from .log_segments import TEMPORARY_SUFFIX, Preparation, Roll, Segment

SEGMENT_BYTES = 16 * 1024 * 1024  # prepared ahead: large enough that a roll is rare
START_SEGMENT_BYTES = 1024 * 1024  # made while somebody waits: milliseconds to write
PREPARATION_PAUSE_BATCHES = 1000  # after a failed preparation: a nearly full disk is not filled again for each batch

__all__ = ["SEGMENT_BYTES", "START_SEGMENT_BYTES", "Batch", "Entry", "Log"]


class Batch:
    """Everything that was pending at one moment; durable after write()."""

    def __init__(self, number: int, parts: list[bytes], state: State, position: int, target: Segment | Roll) -> None:
        self.number = number
        self.position = position
        self.durable_index = state.last_index  # a later truncation lowers it, in the log's thread
        self.written: tuple[Segment, int] | None = None  # where it lies and where it ends, once durable
        self._commit_index = state.commit_index
        self._parts = parts
        self._target = target

    def write(self) -> None:
        """One write and one fdatasync, and before them a new segment if the old one is full. One thread.

        OSError passes through. After ENOSPC it may be called again, with the same result; after EIO nobody
        knows what the disk holds: close the log and stop.
        """
        if isinstance(self._target, Roll):
            self._target = self._target.run()
        segment = self._target
        image = form.encode_batch(self.number, self._commit_index, self._parts, segment.end, segment.salt)
        segment.file.write(segment.end, image)
        segment.file.sync()
        self.written = (segment, segment.end + len(image))

    def close(self) -> None:
        """Give back what it holds of a segment that the log does not know yet."""
        target = self._target
        (target if isinstance(target, Roll) else target.file).close()


class Log:
    """A manager's log. Everything but Batch.write and the preparation belongs to one thread.

    `entries[0]` is the base: the empty entry that every log starts with, or what compaction left of the
    ones before. The list is the log's own and stays the same object: read it, do not change it.
    """

    def __init__(
        self,
        files: Files,
        directory: str,
        recovered: Recovered,
        segment_bytes: int,
        start_segment_bytes: int,
    ) -> None:
        self.node_id = recovered.node_id
        self.incarnation = recovered.incarnation
        self.entries = recovered.contents.entries
        self._contents = recovered.contents
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._start_segment_bytes = start_segment_bytes
        self._sealed_bytes = recovered.sealed_bytes
        self._oldest_segment = recovered.oldest_segment
        self._active = recovered.active
        self._taken = recovered.contents.state()
        self._next_batch = recovered.next_batch
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._in_flight: Batch | None = None
        self._preparation: Preparation | None = None
        self._preparations = 0
        self._prepare_from_batch = 2  # a blank log may stay blank: a learner that is never added, a test
        self._position = 0
        self._synced_position = 0
        self._synced_index = self.last_index

    @classmethod
    def open(
        cls,
        directory: str,
        *,
        files: Files,
        node_id: str,
        new_incarnation: Callable[[], str],
        segment_bytes: int = SEGMENT_BYTES,
        start_segment_bytes: int = START_SEGMENT_BYTES,
    ) -> Log:
        """The log in `directory`, all of it durable; a blank one with a new incarnation if there is none.

        The caller holds the directory: nothing here keeps a second process out. Raises Corrupted (damage that
        no crash leaves), RefusedForSafety (another node's directory, another format version), OSError.
        """
        directory = posixpath.normpath(directory)
        form.encode_name(node_id)

        def incarnation() -> str:
            name = new_incarnation()
            form.encode_name(name)
            return name

        recovered = Opening(files, directory, node_id, start_segment_bytes).run(incarnation)
        return cls(files, directory, recovered, segment_bytes, start_segment_bytes)

    # -- what it holds

    @property
    def base_index(self) -> int:
        """Index of entries[0]."""
        return self._contents.base_index

    @property
    def base_term(self) -> int:
        """Term of entries[0]."""
        return self._contents.base_term

    @property
    def last_index(self) -> int:
        """Index of the newest entry."""
        return self.entries[-1][1]

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        return self.entries[-1][2]

    @property
    def current_term(self) -> int:
        """The newest term this node has entered; 0 at first."""
        return self._contents.current_term

    @property
    def voted_for(self) -> str | None:
        """Whom this node voted for in the current term."""
        return self._contents.voted_for

    @property
    def commit_index(self) -> int:
        """The newest commit index told; after an open, the newest one in a durable batch."""
        return self._contents.commit_index

    @property
    def note(self) -> bytes:
        """The newest note; b"" at first."""
        return self._contents.note

    @property
    def is_blank(self) -> bool:
        """True while nothing was ever written: no term, no entry, no note."""
        holds = self._contents
        return holds.current_term == 0 and self.last_index == BASE_INDEX and not holds.note

    @property
    def entry_count(self) -> int:
        """Entries behind the base."""
        return len(self.entries) - 1

    @property
    def size_bytes(self) -> int:
        """Bytes of headers and batches in all segments; the zeros still to be used are not counted."""
        return self._sealed_bytes + self._active.end

    # -- changes

    def append(self, command: bytes, index: int, term: int) -> None:
        """Add the next entry. InvariantViolation unless index is last_index + 1 and term at least last_term."""
        if len(command) > form.MAX_COMMAND_BYTES:
            raise InvariantViolation(f"a command of {len(command)} bytes is beyond any message")
        self._contents.append(command, index, term)
        self._record(form.ENTRY, index, term, command)

    def truncate_from(self, index: int) -> None:
        """Drop the entry at `index` and all behind it; nothing if there is none.

        InvariantViolation at or below the commit index or the base.
        """
        last_index = self.last_index
        self._contents.truncate_from(index)
        if index > last_index:
            return
        self._synced_index = min(self._synced_index, index - 1)
        if self._in_flight is not None:
            self._in_flight.durable_index = min(self._in_flight.durable_index, index - 1)
        self._record(form.TRUNCATE, index, 0, b"")

    def set_term(self, term: int, voted_for: str | None) -> None:
        """Enter a term, or vote in it. InvariantViolation for a lower term or a second vote in one term."""
        before = (self.current_term, self.voted_for)
        vote = b"" if voted_for is None else form.encode_name(voted_for)
        self._contents.set_term(term, voted_for)
        if (term, voted_for) != before:
            self._record(form.TERM, term, voted_for is not None, vote)

    def set_commit(self, index: int) -> None:
        """Remember the commit index: it rides with the next batch and causes none.

        InvariantViolation if it goes back, or beyond the last entry.
        """
        self._contents.set_commit(index)

    def set_note(self, note: bytes) -> None:
        """Keep the membership layer's blob, at most MAX_NOTE_BYTES; the latest wins."""
        if len(note) > form.MAX_NOTE_BYTES:
            raise InvariantViolation(f"a note of {len(note)} bytes; at most {form.MAX_NOTE_BYTES} are kept")
        if note != self.note:
            self._contents.note = note
            self._record(form.NOTE, 0, 0, note)

    def _record(self, kind: int, first: int, second: int, data: bytes) -> None:
        head = form.record_head(kind, first, second, data)
        self._pending += (head, data)
        self._pending_bytes += len(head) + len(data)
        self._position += 1

    # -- making it durable

    @property
    def position(self) -> int:
        """Changes so far in this process, the commit index left out."""
        return self._position

    @property
    def synced_position(self) -> int:
        """The newest change that a completed batch covers."""
        return self._synced_position

    @property
    def synced_index(self) -> int:
        """The highest index that is durable and still in the log."""
        return self._synced_index

    def take_batch(self) -> Batch | None:
        """Everything pending as one batch; None if nothing is, or while a batch is not completed."""
        if not self._pending or self._in_flight is not None:
            return None
        before, self._taken = self._taken, self._contents.state()
        target = self._target(before)
        batch = Batch(self._next_batch, self._pending, self._taken, self._position, target)
        self._pending, self._pending_bytes = [], 0
        self._next_batch += 1
        self._in_flight = batch
        return batch

    def complete(self, batch: Batch) -> None:
        """Count `batch` as durable, once its write() has returned."""
        if batch is not self._in_flight or batch.written is None:
            raise InvariantViolation(f"batch {batch.number} is not in flight, or not written")
        segment, end = batch.written
        if segment is not self._active:
            self._sealed_bytes += self._active.end
            self._active.file.close()
            self._active = segment
        segment.end = end
        self._in_flight = None
        self._synced_position = batch.position
        self._synced_index = batch.durable_index

    def preparation(self) -> Callable[[], None] | None:
        """What fills the next segment with zeros, for a worker thread; None if there is no need.

        Ask after each batch: it is cheap. Call what it returns: until that has ended, there is no other. When
        it raised OSError, there is none for the next PREPARATION_PAUSE_BATCHES, and rolls help themselves.
        """
        current = self._preparation
        if current is not None and current.file is None and not current.running:
            self._preparation = current = None
            self._prepare_from_batch = self._next_batch + PREPARATION_PAUSE_BATCHES
        if current is not None or self._next_batch < self._prepare_from_batch:
            return None
        self._preparations += 1
        path = posixpath.join(self._directory, f"prepared-{self._preparations}{TEMPORARY_SUFFIX}")
        self._preparation = Preparation(self._files, path, self._segment_bytes)
        return self._preparation

    def close(self) -> None:
        """Give the descriptors back; what is pending is dropped. No write() or preparation may be running."""
        self._active.file.close()
        if self._in_flight is not None:
            self._in_flight.close()
        if self._preparation is not None and self._preparation.file is not None:
            self._preparation.file.close()

    def _target(self, before: State) -> Segment | Roll:
        """Where the pending batch goes: the active segment, or a new one that begins with the state `before`."""
        body_length = form.HEAD_BYTES + self._pending_bytes
        if form.batch_span(self._active.end, body_length)[1] <= self._active.capacity:
            return self._active
        header = SegmentHeader(
            number=self._active.number + 1,
            capacity=self._start_segment_bytes,
            oldest_segment=self._oldest_segment,
            previous_end=self._active.end,
            first_batch=self._next_batch,
            node_id=self.node_id,
            incarnation=self.incarnation,
            state=before,
        ).with_room(body_length)
        prepared = self._take_prepared(header.capacity)
        if prepared is not None:
            header = header.with_capacity(prepared.capacity)
        return Roll(self._files, self._directory, header, prepared)

    def _take_prepared(self, needed: int) -> Preparation | None:
        """The prepared segment, if it is ready and has `needed` bytes."""
        prepared = self._preparation
        if prepared is None or prepared.running or prepared.file is None or prepared.capacity < needed:
            return None
        self._preparation = None
        return prepared
