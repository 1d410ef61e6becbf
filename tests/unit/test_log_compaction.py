"""Compaction, reset and creation of the log: which entries and segments go, which stay, and when.

The promise: memory changes at once. On disk, whole segments go, and no segment goes before a durable header does
without it. An open finds the same log, but its base may be lower. Faults are in test_log_sweep.py.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.log_recorder import DIRECTORY, Recorder, command, open_log, snapshot
from tests.memory_files import Crashed, MemoryFiles, keep_some
from warren_raft.disk.files import OsFiles
from warren_raft.errors import InvariantViolation, RefusedForSafety
from warren_raft.raft.log import format as form
from warren_raft.raft.log.compaction import REMOVAL_PAUSE_BATCHES
from warren_raft.raft.log.log import Batch, Log

FIRST, SECOND, THIRD = (f"{DIRECTORY}/{number:016d}.log" for number in (1, 2, 3))


def recorder(*sizes: int) -> Recorder:
    """A log with one batch for each size, all of it committed, in term 1."""
    record = Recorder(MemoryFiles("/data"))
    record.open()
    record.log.set_term(1, "a")
    for size in sizes:
        record.append(size, term=1)
        record.sync()
    record.log.set_commit(record.log.last_index)
    return record


def remove(log: Log) -> None:
    removal = log.removal()
    if removal is not None:
        removal()


# -- drop_prefix


def test_in_memory_the_prefix_is_gone_at_once_and_the_list_is_the_same() -> None:
    """The core and the guard use the list. Its first entry, with index and term, stands for all dropped entries."""
    record = recorder(10, 10, 10)
    entries = record.log.entries
    record.log.set_term(5, None)
    record.append(1, term=5)
    record.log.drop_prefix(3)
    assert record.log.entries is entries
    assert entries == [(b"\x01", 3, 1), (command(4, 10), 4, 1), (command(5, 1), 5, 5)]
    assert (record.log.base_index, record.log.base_term, record.log.entry_count) == (3, 1, 2)
    assert (record.log.current_term, record.log.last_index, record.log.commit_index) == (5, 5, 4)
    assert not record.log.holds(2, 1)
    assert record.log.holds(3, 1)
    assert not record.log.holds(3, 2)
    assert not record.log.holds(6, 5)
    record.log.drop_prefix(4)
    record.append(1, term=5)
    assert [entry[1:] for entry in entries] == [(4, 1), (5, 5), (6, 5)]


def test_only_what_is_committed_and_synced_is_dropped() -> None:
    """A snapshot of other entries would be one of entries that may never be committed."""
    record = recorder(10, 10)
    record.append(10)
    with pytest.raises(InvariantViolation, match="cannot drop up to 4: committed up to 3"):
        record.log.drop_prefix(4)
    record.log.set_commit(4)
    with pytest.raises(InvariantViolation, match="synced up to 3"):
        record.log.drop_prefix(4)
    record.sync()
    position = record.log.position
    record.log.drop_prefix(4)
    for index in (4, 3, 1):
        record.log.drop_prefix(index)
    assert record.log.entries == [(b"\x01", 4, 1)]
    assert (record.log.position, record.log.take_batch()) == (position, None)


def test_segments_go_only_after_a_durable_header_does_without_them() -> None:
    """If a segment were unlinked too early, a crash would leave a log without its beginning."""
    record = recorder(9000, 9000, 9000)
    assert record.files.paths() == [FIRST, SECOND, THIRD]
    record.log.drop_prefix(3)
    assert record.log.removal() is None
    record.append(1)
    record.take()
    record.write()
    assert record.log.removal() is None
    record.finish()
    removal = record.log.removal()
    assert removal is not None
    assert len(record.files.paths()) == 4, "the batch began a segment, so two could be removed"
    assert record.log.removal() is None
    removal()
    assert record.files.paths() == [THIRD, f"{DIRECTORY}/{4:016d}.log"]
    assert record.log.removal() is None
    before = snapshot(record.log)
    record.files.power_cut()
    assert snapshot(record.open()) == before


def test_no_segment_is_begun_without_a_batch_or_a_gain() -> None:
    """A compaction that frees nothing costs neither a sync nor a megabyte of zeros."""
    record = recorder(9000, 1)
    record.log.drop_prefix(3)
    assert record.log.take_batch() is None
    record.append(1)
    record.sync()
    assert record.files.paths() == [FIRST]


def test_one_compaction_begins_one_segment() -> None:
    """Terms and notes that are written while there is no new entry do not each begin a segment."""
    record = recorder(9000, 9000, 9000)
    record.log.drop_prefix(4)
    for term in range(2, 8):
        record.log.set_term(term, None)
        record.sync()
        remove(record.log)
    assert record.files.paths() == [f"{DIRECTORY}/{4:016d}.log"]


def test_a_compaction_while_a_segment_is_being_made_begins_no_other() -> None:
    """The segment on its way frees all that a second one could free."""
    record = recorder(9000, 9000, 10, 10)
    record.log.drop_prefix(3)
    record.append(1)
    record.take()
    record.log.drop_prefix(4)
    record.finish()
    for _ in range(3):
        record.append(1)
        record.sync()
        remove(record.log)
    assert record.files.paths() == [SECOND, THIRD]


def test_a_large_segment_goes_when_all_of_it_is_dropped() -> None:
    """No sealed segment can be freed, but the active one can. A new segment replaces it if it is large enough."""
    record = recorder(10)
    record.prepare()
    record.reset(50, 2)
    record.append(9000, 9000, term=2)
    record.sync()
    record.log.set_commit(52)
    path = record.files.paths()
    record.log.drop_prefix(52)
    record.append(1)
    record.sync()
    assert record.files.paths() != path
    remove(record.log)
    assert len(record.files.paths()) == 1
    assert record.log.size_bytes == 4096 + 1024
    before = snapshot(record.log)
    record.files.power_cut()
    assert snapshot(record.open()) == before


def test_a_truncation_while_a_segment_is_being_made_counts_for_it() -> None:
    """The header is on its way, and names an entry that the next batch truncates."""
    record = recorder(9000)
    record.append(10, term=1)
    record.sync()
    record.append(9000)
    record.take()
    record.log.truncate_from(3)
    record.append(20, 20, term=2)
    record.finish()
    record.sync()
    assert record.files.paths() == [FIRST, SECOND]
    record.log.set_commit(4)
    record.log.drop_prefix(3)
    record.append(1, term=2)
    record.sync()
    remove(record.log)
    rest = record.log.entries[1:]
    record.files.power_cut()
    record.open()
    assert record.log.holds(3, 2)
    assert record.log.entries[-len(rest) :] == rest


def test_the_size_shrinks_by_what_went() -> None:
    """`status` shows the size, and the next compaction depends on it. An open finds the same size."""
    record = recorder(9000, 9000, 9000)
    before = record.log.size_bytes
    record.log.drop_prefix(2)
    record.append(1)
    record.sync()
    in_second_and_third = before - 4096 - 512 - 9216 - 512
    assert record.log.size_bytes < before
    assert record.log.size_bytes == pytest.approx(in_second_and_third + 4096 + 1024, abs=512)
    remove(record.log)
    size = record.log.size_bytes
    record.files.kill()
    record.open()
    assert record.log.size_bytes == size + 4096


def test_after_an_open_some_dropped_entries_may_be_there_again() -> None:
    """Reading begins at the start of a segment, not inside one. The base is the one that was read."""
    record = recorder(9000, 10, 9000, 10, 10, 9000)
    record.log.drop_prefix(5)
    record.append(10)
    record.sync()
    remove(record.log)
    assert record.log.base_index == 5
    kept = record.log.entries[1:]
    record.files.power_cut()
    record.open()
    assert record.log.base_index == 3
    assert record.log.entries[-len(kept) :] == kept
    record.log.set_commit(7)
    record.log.drop_prefix(6)
    assert record.log.base_index == 6


def test_a_segment_whose_start_was_truncated_later_begins_nothing() -> None:
    """The header of the segment names an entry that the log truncated later. If reading began there, the log would have
    a wrong base. The truncation may be in the segment's first batch, in a later batch, or in a later segment."""
    for truncated_in in ("first batch", "later batch", "later segment"):
        record = recorder(9000, 1)
        record.append(10, term=1)
        record.sync()
        assert record.log.last_index == 4
        if truncated_in == "first batch":
            record.log.truncate_from(4)
            record.append(9000, term=2)
            record.sync()
        else:
            record.append(9000, term=1)
            record.sync()
            assert record.log.last_index == 5
            if truncated_in == "later segment":
                record.append(9000, term=1)
                record.sync()
            record.log.truncate_from(4)
            record.append(5, 5, term=2)
            record.sync()
        record.log.set_commit(record.log.last_index)
        record.log.drop_prefix(4)
        assert record.log.entries[0] == (b"\x01", 4, 2)
        record.append(1, term=2)
        record.sync()
        remove(record.log)
        rest = record.log.entries[1:]
        record.files.power_cut()
        record.open()
        assert record.log.holds(4, 2), truncated_in
        assert record.log.entries[-len(rest) :] == rest, truncated_in


def test_what_an_open_learns_of_truncations_counts_as_well() -> None:
    """The same, with a restart between the truncation and the compaction."""
    record = recorder(9000, 1)
    record.append(10, term=1)
    record.sync()
    record.append(9000, term=1)
    record.sync()
    record.log.truncate_from(4)
    record.append(5, 5, term=2)
    record.sync()
    record.files.power_cut()
    record.open()
    record.log.set_commit(5)
    record.log.drop_prefix(4)
    record.append(1, term=2)
    record.sync()
    remove(record.log)
    assert record.files.paths()[0] == FIRST
    record.files.power_cut()
    assert record.open().holds(4, 2)


def test_a_full_disk_does_not_stop_writes_for_the_sake_of_compaction() -> None:
    """The new segment would only free space. If there is no space left for it, the batch goes to the old segment, where
    it fits."""
    record = recorder(9000, 7000, 1)
    record.log.drop_prefix(3)
    record.files.limit_bytes = record.files.used_bytes + 1000
    record.append(1)
    batch = record.take()
    assert batch is not None
    batch.write()
    record.log.complete(batch)
    assert record.log.synced_index == 5
    assert record.log.removal() is None
    before = snapshot(record.log)
    copy = Recorder(record.files.clone())
    copy.files.limit_bytes = None
    copy.files.power_cut()
    assert copy.open().entries[-2:] == list(before.entries[-2:])
    record.files.limit_bytes = None
    record.log.set_commit(5)
    record.log.drop_prefix(4)
    record.append(1)
    record.sync()
    remove(record.log)
    assert FIRST not in record.files.paths()


def test_a_removal_that_fails_is_tried_again_later() -> None:
    """A directory that cannot be changed costs space. It does not stop the manager, and causes no error for each
    batch."""
    record = recorder(9000, 9000, 9000)
    record.log.drop_prefix(4)
    record.append(1)
    record.sync()
    removal = record.log.removal()
    assert removal is not None
    record.files.fail(record.files.operations + 2, errno.EACCES)
    with pytest.raises(OSError, match="denied"):
        removal()
    assert record.files.paths()[:2] == [SECOND, THIRD]
    for _ in range(REMOVAL_PAUSE_BATCHES):
        assert record.log.removal() is None
        record.append(1)
        record.sync()
    removal = record.log.removal()
    assert removal is not None
    record.files.unlink(SECOND)
    removal()
    assert SECOND not in record.files.paths()
    assert THIRD not in record.files.paths()


def test_files_and_bytes_stay_bounded_over_thousands_of_batches() -> None:
    """The purpose of compaction: the directory of a manager that runs for ever does not grow."""
    record = Recorder(MemoryFiles("/data"))
    record.open()
    most_files = most_bytes = most_size = 0
    for number in range(4000):
        record.append(100, term=1)
        record.sync()
        record.log.set_commit(record.log.last_index)
        record.prepare()
        if number % 50 == 49:
            record.log.drop_prefix(record.log.last_index - 10)
        remove(record.log)
        if number % 1000 == 999:
            record.files.kill()
            record.open()
        most_files = max(most_files, len(record.files.paths()))
        most_bytes = max(most_bytes, record.files.used_bytes)
        most_size = max(most_size, record.log.size_bytes)
    assert most_files <= 8
    assert most_bytes <= 8 * 32768
    assert most_size <= 5 * 32768
    assert record.log.last_index == 4001


# -- reset


def test_a_reset_is_a_new_log_behind_the_snapshot() -> None:
    """The snapshot covers all entries, so they go. Term and vote are promises to other managers, so they stay."""
    record = recorder(10, 9000, 9000)
    record.log.set_note(b"members")
    record.log.set_term(7, "b")
    entries = record.log.entries
    record.reset(100, 6)
    assert record.log.entries is entries
    assert entries == [(b"\x01", 100, 6)]
    assert (record.log.base_index, record.log.base_term, record.log.last_index, record.log.last_term) == (
        100,
        6,
        100,
        6,
    )
    assert (record.log.current_term, record.log.voted_for, record.log.note) == (7, "b", b"members")
    assert (record.log.commit_index, record.log.synced_index) == (100, 100)
    assert record.log.synced_position == record.log.position
    assert len(record.files.paths()) == 1
    assert record.log.size_bytes == 4096
    before = snapshot(record.log)
    record.files.power_cut()
    assert snapshot(record.open()) == before
    record.append(10, term=7)
    record.sync()
    record.files.power_cut()
    assert record.open().entries == [(b"\x01", 100, 6), (command(101, 10), 101, 7)]


def test_a_snapshot_of_a_later_term_enters_it_without_a_vote() -> None:
    """The vote was given in the earlier term. In the new term there is no vote."""
    record = recorder(10)
    record.reset(50, 4)
    record.files.power_cut()
    assert (record.open().current_term, record.log.voted_for, record.log.last_term) == (4, None, 4)


def test_a_reset_speaks_for_nothing_before_it_is_durable() -> None:
    """Memory has the new log at once, but its position is not synced. A crash leaves the whole old log."""
    record = recorder(10, 10)
    record.append(10)
    record.log.set_term(2, "b")
    durable = record.durable
    batch = record.log.reset_batch(90, 2)
    assert record.log.last_index == 90
    assert record.log.synced_position < record.log.position
    assert record.log.synced_index < 90
    assert record.log.take_batch() is None
    with pytest.raises(InvariantViolation, match="on its way"):
        record.log.reset_batch(91, 2)
    copy = Recorder(record.files.clone())
    assert snapshot(copy.open()) == durable
    record.append(20, term=2)
    batch.write()
    assert record.log.synced_index < 90
    record.log.complete(batch)
    assert (record.log.synced_position, record.log.synced_index) == (record.log.position - 1, 90)
    record.sync()
    record.files.power_cut()
    record.open()
    assert record.log.entries == [(b"\x01", 90, 2), (command(91, 20), 91, 2)]
    assert (record.log.current_term, record.log.voted_for) == (2, "b")


def test_a_term_and_a_note_that_were_pending_are_durable_with_the_reset() -> None:
    """A vote that waits for its sync leaves after the sync of the reset. So the reset must have it."""
    record = recorder(10)
    record.log.set_term(9, "c")
    record.log.set_note(b"later")
    position = record.log.position
    record.reset(40, 3)
    assert record.log.synced_position > position
    record.files.power_cut()
    record.open()
    assert (record.log.current_term, record.log.voted_for, record.log.note) == (9, "c", b"later")


def test_truncations_that_a_reset_supersedes_do_not_count_against_it() -> None:
    """The segment of a reset begins behind the snapshot, so reading can begin there after any earlier truncation."""
    record = recorder(10)
    record.append(10, 10)
    record.sync()
    record.log.truncate_from(3)
    record.reset(40, 3)
    record.append(9000, 9000, term=3)
    record.sync()
    record.append(9000)
    record.sync()
    record.log.set_commit(43)
    record.log.drop_prefix(42)
    record.append(1)
    record.sync()
    remove(record.log)
    rest = record.log.entries[1:]
    record.files.power_cut()
    assert record.open().entries[-len(rest) :] == rest


@pytest.mark.parametrize(("index", "term"), [(3, 1), (4, 1), (3, 9), (2, 1), (5, 1)])
def test_a_reset_that_takes_back_is_refused(index: int, term: int) -> None:
    """Committed entries stay. A log that has the last entry of the snapshot has all of the snapshot, and more."""
    record = recorder(10, 10, 10)
    record.append(10)
    record.sync()
    assert (record.log.commit_index, record.log.last_index) == (4, 5)
    before, position = snapshot(record.log), record.log.position
    with pytest.raises(InvariantViolation, match="cannot reset"):
        record.reset(index, term)
    assert (snapshot(record.log), record.log.position) == (before, position)
    record.reset(5, 2)
    assert record.log.entries == [(b"\x01", 5, 2)]


def test_a_reset_is_written_again_when_the_disk_was_full() -> None:
    """There is no other segment for a reset. It waits for space like any batch."""
    record = recorder(10)
    record.files.limit_bytes = record.files.used_bytes + 1000
    batch = record.log.reset_batch(70, 2)
    with pytest.raises(OSError, match="No space"):
        batch.write()
    record.files.limit_bytes = None
    batch.write()
    record.log.complete(batch)
    record.files.power_cut()
    assert record.open().entries == [(b"\x01", 70, 2)]


# -- creation


def create(files: MemoryFiles, **values: object) -> Log:
    arguments = {"node_id": "a", "incarnation": "restored", "index": 2, "start_segment_bytes": 16384, **values}
    return Log.create_at(DIRECTORY, files=files, **arguments)  # type: ignore[arg-type]


def test_a_log_can_begin_behind_a_restored_state() -> None:
    """The managers of a restored cluster start from a state file and an origin, not from a blank log."""
    record = Recorder(MemoryFiles("/data"))
    log = create(record.files, note=b"origin")
    assert (log.base_index, log.base_term, log.last_index, log.commit_index) == (2, 0, 2, 2)
    assert (log.current_term, log.voted_for, log.note, log.incarnation) == (0, None, b"origin", "restored")
    assert (log.is_blank, log.has_only_base) == (False, True)
    before = snapshot(log)
    record.files.power_cut()
    assert snapshot(record.open()) == before
    record.append(10, term=1)
    record.sync()
    assert not record.log.has_only_base
    record.files.power_cut()
    assert record.open().entries == [(b"\x01", 2, 0), (command(3, 10), 3, 1)]


def test_a_log_created_without_a_note_or_a_term_is_blank() -> None:
    """`is_blank` says whether anything was written. Which manager may take part in a first election is decided by the
    membership layer."""
    assert create(MemoryFiles("/data")).is_blank
    later = create(MemoryFiles("/data"), index=9, term=4)
    assert (later.is_blank, later.has_only_base, later.current_term, later.base_term) == (False, True, 4, 4)


def test_nothing_is_created_over_a_log() -> None:
    """Neither over a used log nor over a blank one, because other managers may already know its incarnation."""
    record = recorder(10)
    before = snapshot(record.log)
    with pytest.raises(RefusedForSafety, match="holds a log already"):
        create(record.files)
    record.files.kill()
    assert snapshot(record.open()).entries == before.entries


@pytest.mark.parametrize("values", [{"index": 0}, {"term": -1}, {"note": bytes(form.MAX_NOTE_BYTES + 1)}])
def test_a_log_with_an_impossible_start_is_not_created(values: dict[str, object]) -> None:
    """Every log starts at index 1 or later, and a header has space for a bounded note and bounded names."""
    with pytest.raises(InvariantViolation):
        create(MemoryFiles("/data"), **values)


@pytest.mark.parametrize("stop", ["kill", "power_cut"])
def test_a_crash_during_creation_leaves_no_log_or_a_whole_one(stop: str) -> None:
    """A second try creates the log, or finds it."""
    for operation in range(1, 12):
        files = MemoryFiles("/data")
        files.crash(operation, done=0.97)
        with contextlib.suppress(Crashed):
            create(files, note=b"origin")
        files.clear_faults()
        getattr(files, stop)()
        record = Recorder(files)
        try:
            create(files, note=b"origin")
        except RefusedForSafety:
            files.kill()
        files.kill()
        assert (record.open().base_index, record.log.note) == (2, b"origin"), operation


# -- against a plain list


@dataclass
class Model:
    """The contents that the log must have, with every entry kept for ever. `base`: the index up to which entries are
    dropped in memory."""

    commands: dict[int, bytes] = field(default_factory=lambda: {1: b"\x01"})
    terms: dict[int, int] = field(default_factory=lambda: {1: 0})
    base: int = 1
    last: int = 1
    term: int = 0
    vote: str | None = None
    commit: int = 1
    note: bytes = b""

    def copy(self) -> Model:
        return replace(self, commands=dict(self.commands), terms=dict(self.terms))

    def entries(self, base: int) -> list[tuple[bytes, int, int]]:
        rest = [(self.commands[index], index, self.terms[index]) for index in range(base + 1, self.last + 1)]
        return [(b"\x01", base, self.terms[base]), *rest]

    def matches(self, log: Log, base: int) -> bool:
        """Whether the log equals this model with its base at `base`."""
        return (
            base in self.terms
            and log.entries == self.entries(base)
            and (log.base_index, log.base_term) == (base, self.terms[base])
            and (log.current_term, log.voted_for, log.note) == (self.term, self.vote, self.note)
            and log.commit_index == max(base, self.commit)
        )


class Walk:
    """A random sequence of operations on a log, and on the model beside it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.files = MemoryFiles("/data")
        self.log = open_log(self.files, start_segment_bytes=8192)
        self.model = Model()
        self.durable = self.taken = self.model.copy()
        self.batch: Batch | None = None
        self.dropped = 1
        self.seen: Counter[str] = Counter()

    def step(self) -> None:
        steps = {
            self.append: 8,
            self.truncate: 2,
            self.enter_term: 1,
            self.keep_note: 1,
            self.commit: 6,
            self.keep_commit: 1,
            self.drop: 2,
            self.reset: 0.6,
            self.take: 6,
            self.finish: 8,
            self.help: 4,
            self.stop: 1,
        }
        self.random.choices(list(steps), list(steps.values()))[0]()
        assert self.model.matches(self.log, self.model.base)
        assert self.durable.commit <= self.log.synced_commit_index <= max(self.durable.commit, self.durable.base)

    def append(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            model, size = self.model, self.random.choice([0, 10, 500, 3000, 9000])
            model.last += 1
            model.commands[model.last] = self.random.randbytes(size)
            model.terms[model.last] = max(model.term, model.terms[model.last - 1])
            self.log.append(model.commands[model.last], model.last, model.terms[model.last])

    def truncate(self) -> None:
        model = self.model
        if model.last > model.commit:
            index = self.random.randint(model.commit + 1, model.last)
            model.last = index - 1
            self.log.truncate_from(index)

    def enter_term(self) -> None:
        self.model.term += 1
        self.model.vote = self.random.choice([None, "a", "b"])
        self.log.set_term(self.model.term, self.model.vote)

    def keep_note(self) -> None:
        self.model.note = self.random.randbytes(self.random.choice([3, 5000]))
        self.log.set_note(self.model.note)

    def commit(self) -> None:
        self.model.commit = self.random.randint(self.model.commit, self.model.last)
        self.log.set_commit(self.model.commit)

    def keep_commit(self) -> None:
        self.log.keep_commit()
        is_covered = self.model.commit <= (self.durable if self.batch is None else self.taken).commit
        assert is_covered or self.log.has_pending
        self.seen["commit"] += not is_covered

    def drop(self) -> None:
        highest = min(self.log.commit_index, self.log.synced_index)
        if highest > self.model.base:
            self.model.base = self.dropped = self.random.choice(
                [highest, self.random.randint(self.model.base, highest)]
            )
            self.log.drop_prefix(self.model.base)

    def reset(self) -> None:
        model = self.model
        index, term = model.commit + self.random.randint(1, 30), model.term + self.random.randint(-1, 1)
        if self.batch is not None or self.log.holds(index, term) or term < model.terms[model.base]:
            return
        self.seen["reset"] += 1
        self.model = Model({}, {index: term}, index, index, model.term, model.vote, index, model.note)
        if term > model.term:
            self.model.term, self.model.vote = term, None
        self.batch = self.log.reset_batch(index, term)
        self.taken = self.model.copy()

    def take(self) -> None:
        if self.batch is None:
            self.batch = self.log.take_batch()
            if self.batch is not None:
                self.taken = self.model.copy()

    def finish(self) -> None:
        if self.batch is not None:
            chance = self.random.random()
            if chance < 0.2:
                self.files.fail(self.files.operations + self.random.randint(1, 4), errno.ENOSPC, done=chance * 4)
            with contextlib.suppress(OSError):
                self.batch.write()
            self.files.clear_faults()
            if self.batch.written is None:
                self.batch.write()
            self.log.complete(self.batch)
            self.batch, self.durable = None, self.taken

    def help(self) -> None:
        for work in (self.log.preparation(), self.log.removal()):
            if work is not None:
                self.seen["removal" if work is not self.log._preparation else "preparation"] += 1
                work()

    def stop(self) -> None:
        self.seen["stop"] += 1
        allowed = [self.durable]
        if self.batch is not None:
            allowed = [self.durable, self.taken] if self.batch.written is None else [self.taken]
            if self.random.random() < 0.7 and self.batch.written is None:
                self.files.crash(self.files.operations + self.random.randint(1, 6), done=self.random.random())
                with contextlib.suppress(Crashed):
                    self.batch.write()
                self.files.clear_faults()
        if self.random.random() < 0.5:
            self.files.kill()
        else:
            names = self.random.randint(0, self.files.unsynced_name_changes)
            self.files.power_cut(keep_some(self.random), name_changes=names)
        self.log = open_log(self.files, start_segment_bytes=8192)
        base = self.log.base_index
        found = [model for model in allowed if model.matches(self.log, base)]
        assert found, "neither the durable contents nor those on their way"
        assert base <= max(self.dropped, *(model.base for model in found)), (
            "more was dropped than drop_prefix asked for"
        )
        self.seen["lower base"] += base < found[-1].base
        self.model = found[-1].copy()
        self.model.base, self.model.commit = base, max(base, self.model.commit)
        self.durable = self.taken = self.model.copy()
        self.batch = None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_any_history_is_the_same_as_on_a_plain_list(seed: int) -> None:
    """Random appends, truncations, terms, compactions, resets, full disks, crashes and restarts. In memory the log
    always equals the list. Each open finds the durable contents or those on their way, from a base that was dropped."""
    seen: Counter[str] = Counter()
    for number in range(100):
        walk = Walk(seed * 1000 + number)
        for _ in range(200):
            walk.step()
        seen += walk.seen
    assert min(seen[name] for name in ("removal", "reset", "stop", "lower base", "commit")) > 40, seen


# -- on a real disk


def test_on_a_real_disk_compaction_frees_room_and_keeps_descriptors(tmp_path: Path) -> None:
    """Files are removed, descriptors are closed, and the kept entries are there at the next open."""

    def open_real() -> Log:
        return Log.open(
            str(tmp_path / "log"),
            files=OsFiles(),
            node_id="a",
            new_incarnation=lambda: "first",
            segment_bytes=32768,
            start_segment_bytes=16384,
        )

    def finish(log: Log, batch: Batch | None) -> None:
        assert batch is not None
        batch.write()
        log.complete(batch)
        for work in (log.preparation(), log.removal()):
            if work is not None:
                work()

    log = open_real()
    for index in range(2, 202):
        log.append(command(index, 900), index, 1)
        finish(log, log.take_batch())
        log.set_commit(index)
        if index % 20 == 0:
            log.drop_prefix(index - 3)
    assert len(list((tmp_path / "log").glob("*.log"))) <= 4
    finish(log, log.reset_batch(1000, 5))
    assert len(list((tmp_path / "log").glob("*.log"))) == 1
    before = snapshot(log)
    log.close()
    again = open_real()
    assert snapshot(again) == before
    again.close()
