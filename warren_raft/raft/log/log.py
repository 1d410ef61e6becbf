"""The durable log: entries, truncations, term and vote, the membership layer's note; synced in batches.

Lives here: changes, and up to where they are durable. Not here: which changes are lawful (contents.py), the write
(batch.py), opening (opening.py), which segments are needed (compaction.py), making them (segments.py),
bytes (format.py), when to sync (the driver).
Invariant: all changes up to synced_position survive any crash. The log claims no more than that.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from ...disk.files import Files
from ...errors import InvariantViolation
from . import format as form
from .batch import Batch
from .compaction import Removals
from .contents import BASE_INDEX, Entry
from .format import SegmentHeader, State
from .opening import Opening, Recovered
from .segments import (
    TEMPORARY_SUFFIX,
    Preparation,
    Roll,
    Segment,
    segment_path,
)

SEGMENT_BYTES = 16 * 1024 * 1024  # made ahead in a worker thread: so large that a new segment is rarely needed
START_SEGMENT_BYTES = 1024 * 1024  # made while a caller waits: written in milliseconds
COPY_RACES_MAX = 3  # a compaction between two reads of another thread; there are seconds between two compactions
PREPARATION_PAUSE_BATCHES = 1000  # after a failed preparation: a nearly full disk is not filled again for each batch

__all__ = ["SEGMENT_BYTES", "START_SEGMENT_BYTES", "Batch", "Entry", "Log"]


class Log:
    """A manager's log. Belongs to one thread, except Batch.write, the preparation and the removal.

    `entries[0]` is the base: the empty entry with which every log starts, or the entry that stands for all that
    compaction dropped. The list belongs to the log and stays the same object. Read it, and do not change it. The same
    holds for the attributes, which are not properties because they are read so often.
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
        self.base_index = recovered.contents.base_index
        """The index of entries[0]."""
        self.last_index = recovered.contents.entries[-1][1]
        """The index of the newest entry."""
        self.has_pending = False
        """Whether a change waits for a batch."""
        self.commit_index = recovered.contents.commit_index
        """The commit index of the last set_commit(); after an open, that of the newest durable batch."""
        self._contents = recovered.contents
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._start_segment_bytes = start_segment_bytes
        self._chain = recovered.chain
        self._removals = Removals(files, directory)
        self._dropped_index = 0  # of the last drop_prefix in this process: the next header need not reach further back
        self._roll_is_due = False
        self._pending_truncation: int | None = None  # the lowest index of a pending truncation
        self._active = recovered.active
        self._taken = recovered.contents.state()
        self._next_batch = recovered.next_batch
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._in_flight: Batch | None = None
        self._preparation: Preparation | None = None
        self._preparations = 0
        self._prepare_from_batch = 2  # not before: a blank log may stay blank (a joiner that is never added, a test)
        self.position = 0
        """The number of changes in this process. Changes of the commit index do not count."""
        self.synced_position = 0
        """The position of the newest change that a completed batch covers."""
        self.synced_index = self.last_index
        """The highest index that is durable and still in the log."""
        self.synced_commit_index = self.commit_index
        """After any crash from now on, the log opens with this commit index or a higher one."""

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
        """Open the log in `directory`. All of it is durable then. If there is no log, make a blank log with a new
        incarnation.

        The caller holds the lock of the directory, because nothing here keeps a second process out. Raises Corrupted
        (damage that no crash leaves), RefusedForSafety (the directory of another manager, another format version),
        OSError.
        """
        directory = posixpath.normpath(directory)
        form.encode_name(node_id)

        def incarnation() -> str:
            name = new_incarnation()
            form.encode_name(name)
            return name

        recovered = Opening(files, directory, node_id, start_segment_bytes).run(incarnation)
        return cls(files, directory, recovered, segment_bytes, start_segment_bytes)

    @classmethod
    def create_at(
        cls,
        directory: str,
        *,
        files: Files,
        node_id: str,
        incarnation: str,
        index: int,
        term: int = 0,
        note: bytes = b"",
        segment_bytes: int = SEGMENT_BYTES,
        start_segment_bytes: int = START_SEGMENT_BYTES,
    ) -> Log:
        """Make a new, durable log that begins behind the entry (index, term). That entry is committed and covered by a
        snapshot; it is not in the log.

        A crash leaves no log, or this log. Raises RefusedForSafety if the directory has a log of any contents, and
        OSError, after which the call may be repeated. The caller holds the lock of the directory, as for open().
        """
        directory = posixpath.normpath(directory)
        form.encode_name(node_id)
        form.encode_name(incarnation)
        _check_note(note)
        if index < BASE_INDEX or term < 0:
            raise InvariantViolation(f"a log cannot begin behind index {index} of term {term}")
        start = State(index, term, term, None, index, note)
        recovered = Opening(files, directory, node_id, start_segment_bytes).create(incarnation, start)
        return cls(files, directory, recovered, segment_bytes, start_segment_bytes)

    # -- contents

    @property
    def directory(self) -> str:
        """The directory of the log."""
        return self._directory

    @property
    def base_term(self) -> int:
        """The term of entries[0]."""
        return self._contents.base_term

    @property
    def last_term(self) -> int:
        """The term of the newest entry."""
        return self.entries[-1][2]

    @property
    def current_term(self) -> int:
        """The newest term that this manager has entered; 0 at first."""
        return self._contents.current_term

    @property
    def voted_for(self) -> str | None:
        """The candidate for which this manager voted in the current term; None if it has not voted."""
        return self._contents.voted_for

    @property
    def note(self) -> bytes:
        """The newest note; b"" at first."""
        return self._contents.note

    @property
    def is_blank(self) -> bool:
        """True while nothing was ever written to the log: no term, no entry, no note."""
        return self.has_only_base and self.current_term == 0 and self.base_term == 0 and not self.note

    @property
    def is_untouched(self) -> bool:
        """True while only terms were ever written to the log: no entry, no vote, no note. Then the term may go back."""
        return self._contents.is_untouched

    @property
    def has_only_base(self) -> bool:
        """True while no entry follows the base. There may be a term and a note."""
        return self.last_index == self.base_index

    def holds(self, index: int, term: int) -> bool:
        """True if the entry at `index`, which may be the base, is in memory and has this term."""
        return self._contents.holds(index, term)

    @property
    def entry_count(self) -> int:
        """The number of entries behind the base."""
        return len(self.entries) - 1

    @property
    def size_bytes(self) -> int:
        """The bytes of headers and batches in the segments that are needed. Any thread may ask.

        The unused zeros at the end of a segment do not count. Neither do segments that wait for removal().
        """
        return self._chain.sealed_bytes + self._active.end

    @property
    def segment_paths(self) -> tuple[str, ...]:
        """The files that the next open needs. Any thread may ask."""
        return tuple(segment_path(self._directory, number) for number in self._chain.numbers)

    def copy(self, first: int, last: int) -> list[Entry] | None:
        """The entries from `first` to `last`; None if memory does not have all of them (any more). Any thread may ask,
        for entries that are committed: no truncation reaches them."""
        for _ in range(COPY_RACES_MAX):
            base = self.entries[0][1]
            if first <= base:
                return None
            found = self.entries[first - base : last - base + 1]
            if len(found) == last - first + 1 and found[0][1] == first:
                return found
        return None

    def term_of(self, index: int) -> int | None:
        """The term of the entry at `index`, which may be the base; None if memory does not have it. Any thread may
        ask."""
        for _ in range(COPY_RACES_MAX):
            position = index - self.entries[0][1]
            found = self.entries[position : position + 1] if position >= 0 else []
            if found and found[0][1] == index:
                return found[0][2]
        return None

    # -- changes

    def append(self, command: bytes, index: int, term: int) -> None:
        """Add the next entry. InvariantViolation unless index is last_index + 1 and term at least last_term."""
        if len(command) > form.MAX_COMMAND_BYTES:
            raise InvariantViolation(f"a command has {len(command)} bytes, over the limit of {form.MAX_COMMAND_BYTES}")
        head = form.record_head(form.ENTRY, index, term, command)  # first: if it fails, memory is as on the disk
        self._contents.append(command, index, term)
        self.last_index = index
        self._record(head, command)

    def truncate_from(self, index: int) -> None:
        """Drop the entry at `index` and all entries behind it. Does nothing if there is no entry at `index`.

        InvariantViolation if `index` is at or below the commit index or the base.
        """
        last_index = self.last_index
        self._contents.truncate_from(index)
        if index > last_index:
            return
        self.last_index = index - 1
        self.synced_index = min(self.synced_index, index - 1)
        self._pending_truncation = min(index, self._pending_truncation or index)
        if self._in_flight is not None:
            self._in_flight.durable_index = min(self._in_flight.durable_index, index - 1)
        self._record(form.record_head(form.TRUNCATE, index, 0, b""), b"")

    def set_term(self, term: int, voted_for: str | None) -> None:
        """Enter a term, or vote in it. InvariantViolation for a second vote in one term, and for a lower term unless
        the log is untouched."""
        before = (self.current_term, self.voted_for)
        vote = b"" if voted_for is None else form.encode_name(voted_for)
        head = form.record_head(form.TERM, term, voted_for is not None, vote)
        self._contents.set_term(term, voted_for)
        if (term, voted_for) != before:
            self._record(head, vote)

    def set_commit(self, index: int) -> None:
        """Remember the commit index. The next batch carries it; it causes no batch unless keep_commit() is called.

        InvariantViolation if the commit index would go back, or beyond the last entry.
        """
        self._contents.set_commit(index)
        self.commit_index = index

    def keep_commit(self) -> None:
        """Make the present commit index durable with the next batch. If nothing else is pending, there is a batch for
        the commit index alone. Does nothing if the commit index is durable, or in a batch on its way."""
        on_its_way = self.synced_commit_index if self._in_flight is None else self._in_flight.commit_index
        if on_its_way < self.commit_index:
            self.has_pending = True

    def set_note(self, note: bytes) -> None:
        """Keep the membership layer's note, of at most MAX_NOTE_BYTES bytes. It replaces the note before it."""
        _check_note(note)
        if note != self.note:
            self._contents.note = note
            self._record(form.record_head(form.NOTE, 0, 0, note), note)

    def drop_prefix(self, index: int) -> None:
        """Forget the entries up to `index`, because a verified snapshot covers them. Does nothing if the base is at
        `index` or beyond.

        In memory the entries go at once, and entries[0] stands for the entry at `index`. On disk, whole segments go
        when the header of a later segment does without them and removal() has run. So the next batch begins a new
        segment if that makes a segment removable. An open may find some of the entries again. InvariantViolation if
        `index` is above the commit index or the synced index.
        """
        if index <= self.base_index:
            return
        if index > min(self.commit_index, self.synced_index):
            raise InvariantViolation(
                f"cannot drop up to {index}: committed up to {self.commit_index}, synced up to {self.synced_index}"
            )
        self._contents.drop_prefix(index)
        self.base_index = index
        self._dropped_index = index
        is_all_dropped = self._taken.last_index <= index and self._active.end >= self._start_segment_bytes
        if is_all_dropped or self._chain.has_gain(index):
            self._roll_is_due = True

    def _record(self, head: bytes, data: bytes) -> None:
        self._pending += (head, data)
        self._pending_bytes += len(head) + len(data)
        self.has_pending = True
        self.position += 1

    # -- making it durable

    def take_batch(self) -> Batch | None:
        """All pending changes as one batch. None if no change is pending, or while a batch is not completed."""
        if not self.has_pending or self._in_flight is not None:
            return None
        before, self._taken = self._taken, self._contents.state()
        target, instead = self._target(before)
        batch = Batch(self._next_batch, self._pending, self._taken, self.position, target, instead)
        self._next_batch += 1
        return self._send(batch)

    def reset_batch(self, index: int, term: int) -> Batch:
        """Replace the log by the base (index, term), where a snapshot ends. Returns a batch to write and complete.

        Memory changes at once: `entries` is the base alone, and `commit_index` is `index`. The note stays. Term and
        vote stay too, unless `term` is higher: then it is entered without a vote. Pending changes are part of the
        batch or superseded by it, and durable with it. The reset is a change like others: messages that depend on it
        wait until its position is synced, and until then synced_index stays below `index`. A crash leaves the whole old
        log or the whole new log. InvariantViolation if `index` is at or below the commit index, if the log
        holds(index, term), or while a batch is not completed.
        """
        if self._in_flight is not None:
            raise InvariantViolation("cannot reset the log while a batch is on its way")
        self._contents.reset(index, term)
        self.base_index = self.commit_index = self.last_index = index
        self.position += 1
        self.synced_index = min(self.synced_index, index - 1)
        self._taken = self._contents.state()
        self._dropped_index = index
        self._pending_truncation = None
        target = self._roll(self._taken, self._active.number + 1, 0)
        return self._send(Batch(self._next_batch, [], self._taken, self.position, target, is_reset=True))

    def complete(self, batch: Batch) -> None:
        """Count `batch` as durable. Call this after its write() has returned."""
        if batch is not self._in_flight or batch.written is None:
            raise InvariantViolation(f"batch {batch.number} is not on its way, or is not written")
        segment, end = batch.written
        if segment is self._active:
            self._chain.withdraw()
        else:
            self._removals.add(self._chain.begin(self._active.end))
            self._active.file.close()
            self._active = segment
        segment.end = end
        self._in_flight = None
        self.synced_position = batch.position
        self.synced_index = batch.durable_index
        self.synced_commit_index = batch.commit_index

    @property
    def wants_preparation(self) -> bool:
        """Whether `preparation` may return a function."""
        current = self._preparation
        if current is None:
            return self._next_batch >= self._prepare_from_batch
        return current.file is None and not current.running  # it has failed

    def preparation(self) -> Callable[[], None] | None:
        """A function for a worker thread, which fills the next segment with zeros; None if there is no need.

        Ask after each batch; asking is cheap. Call the function that is returned. Until it has ended, None is returned.
        If it raised OSError, None is returned for the next PREPARATION_PAUSE_BATCHES batches, and a new segment is
        filled when it is needed.
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

    def removal(self) -> Callable[[], None] | None:
        """A function for a worker thread, which unlinks the segments that are not needed any more; None if there are
        none.

        Ask after each completed batch; asking is cheap. Call the function that is returned. Until it has ended, None is
        returned. If it raised OSError, None is returned for the next REMOVAL_PAUSE_BATCHES batches. The next open
        removes the segments that are left.
        """
        return self._removals.next(self._next_batch)

    def close(self) -> None:
        """Close the descriptors. Pending changes are dropped. No write(), preparation or removal may run meanwhile."""
        self._active.file.close()
        if self._in_flight is not None:
            self._in_flight.close()
        if self._preparation is not None and self._preparation.file is not None:
            self._preparation.file.close()

    def _send(self, batch: Batch) -> Batch:
        self._pending, self._pending_bytes = [], 0
        self.has_pending = False
        self._pending_truncation = None
        self._in_flight = batch
        return batch

    def _target(self, before: State) -> tuple[Segment | Roll, Segment | None]:
        """The segment for the pending batch: the active segment, or a new one that begins with the state `before`. And
        a second choice if there is no space left for a new segment.

        The second choice is the active segment, if it has enough space and the new segment is made for compaction only.
        """
        body_length = form.HEAD_BYTES + self._pending_bytes
        has_room = form.batch_span(self._active.end, body_length)[1] <= self._active.capacity
        if has_room and not self._roll_is_due:
            return self._active, None
        oldest = self._chain.oldest_for(self._dropped_index)
        if before.last_index <= self._dropped_index:  # no truncation reaches a dropped entry: the new segment is enough
            oldest = self._active.number + 1
        return self._roll(before, oldest, body_length), self._active if has_room else None

    def _roll(self, start: State, oldest_segment: int, body_length: int) -> Roll:
        """A new segment that begins with `start` and has enough space for a batch."""
        self._roll_is_due = False
        header = SegmentHeader(
            number=self._active.number + 1,
            capacity=self._start_segment_bytes,
            oldest_segment=oldest_segment,
            previous_end=self._active.end,
            first_batch=self._next_batch,
            node_id=self.node_id,
            incarnation=self.incarnation,
            state=start,
        ).with_room(body_length)
        prepared = self._take_prepared(header.capacity)
        if prepared is not None:
            header = header.with_capacity(prepared.capacity)
        self._chain.announce(header, self._pending_truncation)
        return Roll(self._files, self._directory, header, prepared)

    def _take_prepared(self, needed: int) -> Preparation | None:
        """The prepared segment, if it is ready and has `needed` bytes."""
        prepared = self._preparation
        if prepared is None or prepared.running or prepared.file is None or prepared.capacity < needed:
            return None
        self._preparation = None
        return prepared


def _check_note(note: bytes) -> None:
    if len(note) > form.MAX_NOTE_BYTES:
        raise InvariantViolation(f"a note has {len(note)} bytes, over the limit of {form.MAX_NOTE_BYTES}")
