"""The log's promises to the consensus above it: its contents, its durable part, and its contents after an open.

The promise over all of them: after any stop, the log has its contents of the last completed batch, or of the batch that
was on its way. Damage at every byte and faults at every operation are in test_log_sweep.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.log_recorder import DIRECTORY, Recorder, command, open_log, snapshot
from tests.memory_files import MemoryFiles, keep_all, keep_some
from warren_raft.disk.files import File, OsFiles
from warren_raft.errors import Corrupted, InvariantViolation, RefusedForSafety
from warren_raft.raft.log import format as form
from warren_raft.raft.log.contents import BLANK
from warren_raft.raft.log.format import SegmentHeader, State
from warren_raft.raft.log.log import PREPARATION_PAUSE_BATCHES, Log


def disk() -> MemoryFiles:
    return MemoryFiles("/data")


def recorder() -> Recorder:
    record = Recorder(disk())
    record.open()
    return record


def test_a_new_log_is_blank_and_stays_the_same_one() -> None:
    """A blank directory gets an incarnation once. Its manager's first vote depends on the log being blank."""
    record = recorder()
    log = record.log
    assert log.is_blank
    assert (log.node_id, log.incarnation) == ("a", "first")
    assert (log.base_index, log.base_term, log.last_index, log.last_term, log.commit_index) == (1, 0, 1, 0, 1)
    assert log.entries == [(b"\x01", 1, 0)]
    assert (log.current_term, log.voted_for, log.note, log.entry_count) == (0, None, b"", 0)
    record.files.power_cut()
    again = Log.open(DIRECTORY, files=record.files, node_id="a", new_incarnation=lambda: pytest.fail("asked again"))
    assert again.is_blank
    assert again.incarnation == "first"


@pytest.mark.parametrize("change", ["term", "entry", "note"])
def test_anything_written_ends_blankness_for_ever(change: str) -> None:
    """A manager that ever voted, appended or was a member must not pass for a blank manager."""
    record = recorder()
    if change == "term":
        record.log.set_term(1, None)
    elif change == "entry":
        record.append(0, term=1)
    else:
        record.log.set_note(b"member")
    record.sync()
    record.files.power_cut()
    assert not record.open().is_blank


def test_everything_comes_back_after_a_power_cut() -> None:
    """Entries in order, term, vote, note and the commit index of the newest batch are all durable once synced."""
    record = recorder()
    record.log.set_term(3, "b")
    record.log.set_note(b"\x00 opaque \xff")
    record.append(0, 1, 5000, 100, term=3)
    record.log.set_commit(3)
    record.sync()
    before = snapshot(record.log)
    record.files.power_cut()
    assert snapshot(record.open()) == before
    assert record.log.synced_index == record.log.last_index == 5


def test_the_commit_index_rides_with_a_batch_and_causes_none() -> None:
    """The commit index on disk is only a hint. To lose the newest one costs nothing, but a sync for it would cost."""
    record = recorder()
    record.append(10, 10, term=1)
    record.log.set_commit(2)
    record.sync()
    record.log.set_commit(3)
    assert record.log.commit_index == 3
    assert record.log.take_batch() is None
    record.files.power_cut()
    assert record.open().commit_index == 2


def test_the_commit_index_causes_a_batch_where_it_must_not_be_forgotten() -> None:
    """After a power cut, the members that a manager counts depend on the commit index."""
    record = recorder()
    record.append(10, 10, term=1)
    record.sync()
    record.log.set_commit(3)
    record.log.keep_commit()
    assert record.log.has_pending
    assert record.log.synced_commit_index == 1
    batch = record.take()
    assert batch is not None
    assert record.log.synced_commit_index == 1, "the batch is on its way"
    record.log.keep_commit()
    record.finish()
    assert record.log.synced_commit_index == 3
    record.log.keep_commit()
    assert record.log.take_batch() is None, "one batch is enough"
    record.files.power_cut()
    again = record.open()
    assert again.commit_index == again.synced_commit_index == 3


def test_a_commit_index_that_rose_while_a_batch_was_on_its_way_waits_for_the_next() -> None:
    record = recorder()
    record.append(10, 10, term=1)
    record.take()
    record.log.set_commit(2)
    record.log.keep_commit()
    record.finish()
    assert record.log.synced_commit_index == 1
    assert record.take() is not None
    record.finish()
    assert record.log.synced_commit_index == 2


def test_a_truncation_is_durable_like_everything_else() -> None:
    """A conflicting tail that was truncated and synced never comes back. The entries that replaced it do."""
    record = recorder()
    record.append(10, 20, 30, term=1)
    record.sync()
    record.log.truncate_from(3)
    record.log.append(b"other", 3, 2)
    record.sync()
    record.files.power_cut()
    assert record.open().entries == [(b"\x01", 1, 0), (command(2, 10), 2, 1), (b"other", 3, 2)]


def test_truncating_behind_the_end_changes_nothing() -> None:
    """The core asks for such a truncation when it has nothing to drop."""
    record = recorder()
    record.append(1, term=1)
    position = record.log.position
    record.log.truncate_from(3)
    assert record.log.position == position
    assert record.log.last_index == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.append(b"", 4, 1),
        lambda log: log.append(b"", 6, 2),
        lambda log: log.append(b"", 5, 1),
        lambda log: log.truncate_from(3),
        lambda log: log.truncate_from(1),
        lambda log: log.set_term(1, None),
        lambda log: log.set_term(2, "c"),
        lambda log: log.set_term(2, None),
        lambda log: log.set_commit(2),
        lambda log: log.set_commit(5),
        lambda log: log.set_note(bytes(form.MAX_NOTE_BYTES + 1)),
    ],
)
def test_an_unlawful_change_is_refused_and_changes_nothing(change: Callable[[Log], None]) -> None:
    """A gap, an earlier term, a committed entry dropped, a second vote: each would break Raft's safety."""
    record = recorder()
    record.log.set_term(2, "b")
    record.append(1, 1, term=1)
    record.append(1, term=2)
    record.log.set_commit(3)
    before, position = snapshot(record.log), record.log.position
    with pytest.raises(InvariantViolation):
        change(record.log)
    assert (snapshot(record.log), record.log.position) == (before, position)


@pytest.mark.parametrize(("index", "term"), [(5.0, 2), (5, 2.0), (5, 1 << 70)])
def test_an_entry_that_cannot_be_written_changes_nothing_in_memory(index: int, term: int) -> None:
    record = recorder()
    record.log.set_term(2, "b")
    record.append(1, 1, term=1)
    record.append(1, term=2)
    before, position = snapshot(record.log), record.log.position
    with pytest.raises(struct.error):
        record.log.append(b"", index, term)
    assert (snapshot(record.log), record.log.position, record.log.last_index) == (before, position, 4)


def test_a_term_goes_back_while_nothing_but_terms_was_ever_written() -> None:
    """Any peer that claims to lead brings a new manager to a later term. The manager has promised nothing there."""
    record = recorder()
    record.log.set_term(1 << 60, None)
    record.sync()
    reopened = open_log(record.files)
    assert reopened.is_untouched
    reopened.set_term(3, None)
    batch = reopened.take_batch()
    assert batch is not None
    batch.write()
    reopened.complete(batch)
    assert open_log(record.files).current_term == 3


@pytest.mark.parametrize(
    "promise",
    [
        lambda log: log.append(b"x", 2, 5),
        lambda log: (log.append(b"x", 2, 5), log.truncate_from(2)),
        lambda log: (log.set_term(5, "b"), log.set_term(6, None)),
        lambda log: log.set_note(b"n"),
    ],
)
def test_a_term_does_not_go_back_after_an_entry_a_vote_or_a_note(promise: Callable[[Log], None]) -> None:
    record = recorder()
    record.log.set_term(5, None)
    promise(record.log)
    record.sync()
    for log in (record.log, open_log(record.files)):
        assert not log.is_untouched
        with pytest.raises(InvariantViolation):
            log.set_term(4, None)


def test_a_vote_in_an_earlier_term_is_refused() -> None:
    record = recorder()
    record.log.set_term(5, None)
    with pytest.raises(InvariantViolation):
        record.log.set_term(4, "b")


def test_positions_count_changes_and_follow_completed_batches_only() -> None:
    """A message waits until synced_position reaches the position at which it was made. So synced_position must never
    run ahead."""
    record = recorder()
    log = record.log
    log.set_term(1, "a")
    log.set_term(1, "a")
    record.append(1, 1)
    log.set_note(b"n")
    log.set_note(b"n")
    assert (log.position, log.synced_position, log.synced_index) == (4, 0, 1)
    batch = record.take()
    assert batch is not None
    record.append(1)
    assert log.take_batch() is None
    batch.write()
    assert (log.position, log.synced_position, log.synced_index) == (5, 0, 1)
    log.complete(batch)
    assert (log.position, log.synced_position, log.synced_index) == (5, 4, 3)
    record.sync()
    assert (log.position, log.synced_position, log.synced_index) == (5, 5, 4)


def test_synced_index_never_covers_what_a_truncation_replaced_meanwhile() -> None:
    """A batch on its way has entries that are truncated and replaced before it completes. The new entries at the same
    indexes are not durable, and an acknowledgement for them would lose them."""
    record = recorder()
    record.append(1, 1, 1, term=1)
    batch = record.take()
    assert batch is not None
    record.log.truncate_from(3)
    record.append(1, 1, 1, term=2)
    batch.write()
    record.log.complete(batch)
    assert record.log.synced_index == 2
    record.sync()
    assert record.log.synced_index == 5
    record.log.truncate_from(4)
    assert record.log.synced_index == 3


def test_a_batch_is_completed_once_and_only_when_written() -> None:
    """Replies leave when a batch is completed."""
    record = recorder()
    record.append(1, term=1)
    batch = record.take()
    assert batch is not None
    with pytest.raises(InvariantViolation):
        record.log.complete(batch)
    batch.write()
    record.log.complete(batch)
    with pytest.raises(InvariantViolation):
        record.log.complete(batch)


def test_a_batch_costs_one_write_and_one_sync() -> None:
    """The sync is the price of a write to the cluster. There is one sync for all changes that wait, and those of new
    segments are rare."""
    record = recorder()
    record.files.history = []
    for _ in range(5):
        record.append(100, 200, term=1)
        record.sync()
    assert record.files.history == [("write", f"{DIRECTORY}/{1:016d}.log"), ("sync", f"{DIRECTORY}/{1:016d}.log")] * 5


def test_batches_beyond_a_segment_go_on_in_the_next() -> None:
    """A log has no maximum length. Segments follow each other, prepared or made when they are needed, and any batch
    fits."""
    record = recorder()
    for round_number in range(40):
        record.append(1000, 3000, term=1)
        record.sync()
        if round_number % 3 == 0:
            record.prepare()
    record.append(100_000)
    record.sync()
    record.append(1)
    record.sync()
    before = snapshot(record.log)
    assert len(record.files.paths()) > 5
    record.files.power_cut()
    assert snapshot(record.open()) == before


def test_a_prepared_segment_makes_a_roll_cheap() -> None:
    """The zeros were written ahead. A new segment costs only a header, a name, and the batch."""
    record = recorder()
    record.append(9000, term=1)
    record.sync()
    record.prepare()
    assert record.log.preparation() is None
    record.append(9000)
    record.files.history = []
    record.sync()
    assert [name for name, _ in record.files.history] == ["write", "sync", "rename", "sync_directory", "write", "sync"]


def test_a_blank_log_prepares_nothing() -> None:
    """A manager that writes nothing does not need 16 MiB."""
    record = recorder()
    assert record.log.preparation() is None
    record.append(1, term=1)
    record.sync()
    preparation = record.log.preparation()
    assert preparation is not None
    assert record.log.preparation() is None


def test_a_full_disk_during_preparation_is_no_loss() -> None:
    """The space is given back, small segments are made when they are needed, and the disk is not filled again at
    once."""
    record = recorder()
    record.append(9000, term=1)
    record.sync()
    record.files.limit_bytes = record.files.used_bytes + 20_000
    preparation = record.log.preparation()
    assert preparation is not None
    with pytest.raises(OSError, match="No space"):
        preparation()
    assert record.files.paths() == [f"{DIRECTORY}/{1:016d}.log"]
    assert record.log.preparation() is None
    record.append(9000)
    record.sync()
    assert record.log.synced_index == 3
    record.files.limit_bytes = None
    for _ in range(PREPARATION_PAUSE_BATCHES - 1):
        assert record.log.preparation() is None
        record.append(1)
        record.sync()
    preparation = record.log.preparation()
    assert preparation is not None
    preparation()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG])
@pytest.mark.parametrize("operation", range(8))
def test_a_new_segment_that_lacked_something_is_made_when_it_is_there(code: int, operation: int) -> None:
    """The shortage may come at any operation of a new segment. The same batch goes to the old segment, or is written
    again."""
    record = recorder()
    record.append(900_000, term=1)
    record.sync()
    record.append(900_000)
    batch = record.take()
    assert batch is not None
    record.files.fail(record.files.operations + operation + 1, code)
    with contextlib.suppress(OSError):
        batch.write()
    if batch.written is None:
        batch.write()
    record.log.complete(batch)
    record.files.power_cut()
    assert record.open().last_index == 3


def test_a_batch_that_found_the_disk_full_is_written_again() -> None:
    """A full disk takes a part of a write first. The batch is written again when there is space, and is the same."""
    record = recorder()
    record.append(5000, term=1)
    batch = record.take()
    assert batch is not None
    record.files.fail(record.files.operations + 1, errno.ENOSPC, done=0.4)
    with pytest.raises(OSError, match="No space"):
        batch.write()
    record.append(70)
    batch.write()
    record.log.complete(batch)
    assert record.log.synced_index == 2
    record.files.power_cut()
    assert record.open().last_index == 2


def test_restarts_that_write_nothing_leave_nothing() -> None:
    """A manager that its supervisor starts again and again must not fill the disk with empty segments."""
    record = recorder()
    for _ in range(20):
        record.files.kill()
        record.open()
    assert len(record.files.paths()) == 1
    record.append(1, term=1)
    record.sync()
    for _ in range(20):
        record.files.kill()
        record.open()
    assert len(record.files.paths()) == 2


def test_a_sealed_segment_gives_its_unused_room_back() -> None:
    """A restart costs only the bytes that were written since the last one, not a whole segment."""
    record = recorder()
    for _ in range(10):
        record.append(1, term=1)
        record.sync()
        record.files.kill()
        record.open()
    sizes = [len(record.files.content(path)) for path in record.files.paths()]
    assert sizes == [4096 + 1024] * 10 + [16384]
    assert record.log.size_bytes == 10 * 5120 + 4096


def test_another_nodes_directory_is_refused() -> None:
    """If two managers had the same log, one of them would have two votes."""
    record = recorder()
    with pytest.raises(RefusedForSafety, match="'a', not of 'b'"):
        Log.open(DIRECTORY, files=record.files, node_id="b", new_incarnation=lambda: "x")


def test_an_unknown_format_version_is_named() -> None:
    """A log of a later release is not damaged. The operator is told which release to run."""
    record = recorder()
    path = record.files.paths()[0]
    content = bytearray(record.files.content(path))
    content[8] = 2
    crc = crc32(bytes(content[20:4096]), crc32(bytes(content[:16]) + bytes(4)))
    content[16:20] = crc.to_bytes(4, "little")
    record.files.set_content(path, bytes(content))
    with pytest.raises(RefusedForSafety, match="log format 2; this program knows format 1"):
        open_log(record.files)


def test_damage_names_the_file_and_the_way_back() -> None:
    """An operator at night reads one message. It names the file, and the commands to add this manager again."""
    record = recorder()
    path = record.files.paths()[0]
    record.files.set_content(path, b"garbage")
    with pytest.raises(Corrupted) as caught:
        open_log(record.files)
    assert caught.value.path == path
    assert "warren-raft members remove ID" in caught.value.remedy


def test_a_missing_segment_is_damage() -> None:
    """If somebody removes files to get space, the rest does not pass for a shorter log."""
    record = recorder()
    for _ in range(3):
        record.append(1, term=1)
        record.sync()
        record.files.kill()
        record.open()
    for path in record.files.paths()[:-1]:
        files = record.files.clone()
        files.unlink(path)
        with pytest.raises(Corrupted, match="missing"):
            open_log(files)
    files = record.files.clone()
    files.unlink(files.paths()[-1])
    with pytest.raises(Corrupted, match="no crash"):
        open_log(files)


def test_a_segment_of_another_log_is_damage() -> None:
    """A careless copy mixes segments of two incarnations. They are not a log."""
    one, other = recorder(), Recorder(disk())
    other.log = Log.open(
        DIRECTORY, files=other.files, node_id="a", new_incarnation=lambda: "other", start_segment_bytes=16384
    )
    for record in (one, other):
        record.append(1, term=1)
        record.sync()
        record.files.kill()
        record.open()
    path = one.files.paths()[0]
    one.files.set_content(path, other.files.content(path))
    with pytest.raises(Corrupted):
        open_log(one.files)


def test_a_segment_under_another_name_is_damage() -> None:
    """The number in the header counts, not the name of the file."""
    record = recorder()
    record.files.rename(f"{DIRECTORY}/{1:016d}.log", f"{DIRECTORY}/{2:016d}.log")
    with pytest.raises(Corrupted, match="it is segment 1 under the name of 2"):
        open_log(record.files)


def test_segments_of_two_futures_of_one_log_are_damage() -> None:
    """A directory is copied with its machine, and both copies go on under one incarnation. Later their segments are
    mixed. The numbers and lengths agree. But the header of the second segment does not fit the end of the first."""
    record = recorder()
    record.log.set_term(1, None)
    record.sync()
    futures = []
    for term in (2, 3):
        other = Recorder(record.files.clone())
        other.open()
        other.append(10, term=term)
        other.sync()
        other.files.kill()
        other.open()
        futures.append(other.files)
    path = f"{DIRECTORY}/{2:016d}.log"
    assert len(futures[0].content(path)) == len(futures[1].content(path))
    futures[0].set_content(path, futures[1].content(path))
    with pytest.raises(Corrupted, match="contradicts"):
        open_log(futures[0])


def test_a_batch_that_claims_more_than_its_segment_is_damage() -> None:
    """No writer begins a batch that does not fit the segment."""
    start = form.encode_header(SegmentHeader(1, 8192, 1, 0, 1, "a", "b", BLANK))
    salt = form.header_salt(start)
    segment = (start + form.encode_batch(1, 1, [bytes(6000)], len(start), salt))[:8192]
    assert form.read_batch(segment, 4096, 1, salt) is None
    assert form.damage(segment, 4096, 1, salt) == "batch 1 claims more bytes than its segment has"


def test_reading_can_start_at_any_segment_whose_header_says_so() -> None:
    """Compaction drops whole segments. A header has the state to which the dropped segments led, and names the oldest
    segment that is needed. The next open removes the segments before it. All dropped entries were committed."""
    files = MemoryFiles("/data", DIRECTORY)
    files.set_content(f"{DIRECTORY}/{6:016d}.log", b"left over by a crash between header and unlink")
    state = State(90, 4, 6, "b", 80, b"members")
    header = SegmentHeader(7, 16384, 7, 9999, 500, "a", "first", state)
    entry = form.record_head(form.ENTRY, 91, 6, b"x") + b"x"
    start = form.encode_header(header)
    batch = form.encode_batch(500, 85, [entry], len(start), form.header_salt(start))
    files.set_content(f"{DIRECTORY}/{7:016d}.log", (start + batch).ljust(16384, b"\0"))
    after = SegmentHeader(8, 16384, 7, 4096 + len(batch), 501, "a", "first", State(91, 6, 6, "b", 85, b"members"))
    files.set_content(f"{DIRECTORY}/{8:016d}.log", form.encode_header(after).ljust(16384, b"\0"))
    record = Recorder(files)
    log = record.open()
    assert (log.base_index, log.base_term, log.last_index, log.current_term, log.voted_for) == (90, 4, 91, 6, "b")
    assert (log.commit_index, log.note, log.is_blank) == (90, b"members", False)
    assert files.paths() == [f"{DIRECTORY}/{7:016d}.log", f"{DIRECTORY}/{8:016d}.log"]
    record.append(5, 20_000)
    record.sync()
    with pytest.raises(InvariantViolation):
        log.truncate_from(90)
    before = snapshot(log)
    files.power_cut()
    assert snapshot(record.open()) == before
    assert before.entries[:2] == ((b"\x01", 90, 4), (b"x", 91, 6))


def test_a_large_note_and_long_names_fit_a_header() -> None:
    """The header repeats the note and the vote. It grows by whole pages, and the first batch follows it."""
    record = Recorder(disk(), start_segment_bytes=4096)
    record.open()
    record.log.set_note(os.urandom(form.MAX_NOTE_BYTES))
    record.log.set_term(1, "v" * form.MAX_NAME_BYTES)
    record.sync()
    for _ in range(3):
        record.append(10_000, term=1)
        record.sync()
        before = snapshot(record.log)
        record.files.power_cut()
        assert snapshot(record.open()) == before


def test_headers_survive_their_own_encoding() -> None:
    """Each field of a header is tried with its extreme values."""
    for voted_for, note in [(None, b""), ("ü", b"\xff" * 5000), ("x", bytes(form.MAX_NOTE_BYTES))]:
        state = State(2**63, 2**62, 2**61, voted_for, 2**60, note)
        header = SegmentHeader(9, 2**40, 3, 2**39, 2**38, "nöde", "incarnation", state)
        data = form.encode_header(header)
        assert form.header_size(data) == len(data) <= form.MAX_HEADER_BYTES
        assert form.decode_header(data) == header
    assert form.decode_header(form.encode_header(SegmentHeader(1, 1, 1, 0, 1, "a", "b", BLANK))).state == BLANK


# -- on a real disk


class CountingFiles(OsFiles):
    """The real disk, with a count of the operations on it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def open(self, path: str, *, create: bool = False) -> File:  # type: ignore[override]
        return cast("File", CountingFile(super().open(path, create=create), self.counts))


class CountingFile:
    def __init__(self, file: File, counts: Counter[str]) -> None:
        self._file = file
        self._counts = counts

    def __getattr__(self, name: str) -> object:
        self._counts[name] += 1
        return getattr(self._file, name)


def open_real(path: Path, files: OsFiles) -> Log:
    return Log.open(str(path / "log"), files=files, node_id="a", new_incarnation=lambda: "first")


def test_on_a_real_disk_a_batch_is_one_write_and_one_fdatasync(tmp_path: Path) -> None:
    """The same count on a real disk. The batch is there at the next open."""
    files = CountingFiles()
    log = open_real(tmp_path, files)
    files.counts.clear()
    for index in range(2, 12):
        log.append(command(index, 300), index, 1)
        batch = log.take_batch()
        assert batch is not None
        worker = threading.Thread(target=batch.write)
        worker.start()
        worker.join()
        log.complete(batch)
    assert files.counts == {"write": 10, "sync": 10}
    before = snapshot(log)
    log.close()
    again = open_real(tmp_path, OsFiles())
    assert snapshot(again) == before
    again.close()


def test_nobody_else_may_read_the_log(tmp_path: Path) -> None:
    """The log has every secret that was ever written."""
    old = os.umask(0)
    try:
        log = open_real(tmp_path, OsFiles())
        log.append(b"secret", 2, 1)
        batch = log.take_batch()
        assert batch is not None
        batch.write()
        log.complete(batch)
        preparation = log.preparation()
        assert preparation is not None
        preparation()
        log.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "log").iterdir()}
    assert len(modes) == 2
    assert set(modes.values()) == {0o600}


def test_closing_gives_every_descriptor_back(tmp_path: Path) -> None:
    """Also the descriptors of a batch that never completed and of a prepared segment. A failed open keeps none."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    log = open_real(tmp_path, OsFiles())
    log.append(bytes(800_000), 2, 1)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    log.complete(batch)
    preparation = log.preparation()
    assert preparation is not None
    preparation()
    log.append(bytes(800_000), 3, 1)
    batch = log.take_batch()
    assert batch is not None
    batch.write()
    preparation = log.preparation()
    assert preparation is not None
    preparation()
    log.close()
    assert descriptors() == before
    with pytest.raises(RefusedForSafety):
        Log.open(str(tmp_path / "log"), files=OsFiles(), node_id="b", new_incarnation=lambda: "x")
    assert descriptors() == before


def test_a_write_goes_on_where_the_system_stopped_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pwrite may write fewer bytes than it was given. Half a batch must not count as written."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:1000], at))
    file = OsFiles().open(str(tmp_path / "file"), create=True)
    data = random.Random(1).randbytes(5500)
    file.write(700, data)
    assert file.read(700, 10_000) == data
    assert file.size() == 6200
    file.close()


# -- against a model


class LogMachine(RuleBasedStateMachine):
    """Any sequence of changes, batches, new segments, kills and power cuts, checked against the states that the log may
    have."""

    @initialize(start=st.sampled_from([8192, 16384]), size=st.sampled_from([16384, 65536]))
    def begin(self, start: int, size: int) -> None:
        self.record = Recorder(disk(), segment_bytes=size, start_segment_bytes=start)
        self.record.open()
        self.written = False

    @property
    def log(self) -> Log:
        return self.record.log

    @rule(sizes=st.lists(st.sampled_from([0, 1, 100, 450, 3000, 9000, 40_000]), min_size=1, max_size=4))
    def append(self, sizes: list[int]) -> None:
        self.record.append(*sizes, term=max(self.log.last_term, self.log.current_term))

    @precondition(lambda self: self.log.last_index > self.log.commit_index)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        lowest = max(self.log.base_index, self.log.commit_index) + 1
        self.log.truncate_from(data.draw(st.integers(lowest, self.log.last_index)))

    @rule(step=st.integers(0, 2), vote=st.sampled_from([None, "a", "b"]))
    def enter_term(self, step: int, vote: str | None) -> None:
        if step == 0 and self.log.voted_for is not None:
            vote = self.log.voted_for
        self.log.set_term(self.log.current_term + step, vote)

    @rule(note=st.binary(max_size=3) | st.just(bytes(5000)))
    def keep_note(self, note: bytes) -> None:
        self.log.set_note(note)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.log.set_commit(data.draw(st.integers(self.log.commit_index, self.log.last_index)))

    @rule()
    def keep_commit(self) -> None:
        self.log.keep_commit()

    @rule()
    def prepare(self) -> None:
        self.record.prepare()

    @precondition(lambda self: self.record.batch is None)
    @rule()
    def take(self) -> None:
        self.record.take()
        self.written = False

    @precondition(lambda self: self.record.batch is not None)
    @rule()
    def finish(self) -> None:
        self.record.finish()
        assert self.log.synced_index <= self.log.last_index

    @precondition(lambda self: self.record.batch is not None)
    @rule()
    def write_without_completing(self) -> None:
        batch = self.record.batch
        assert batch is not None
        batch.write()
        self.written = True

    @precondition(lambda self: self.record.batch is not None)
    @rule(operation=st.integers(1, 6), done=st.floats(0, 1), error=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def fail_in_the_batch(self, operation: int, done: float, error: int) -> None:
        batch = self.record.batch
        assert batch is not None
        self.record.files.fail(self.record.files.operations + operation, error, done=done * 0.99)
        try:
            batch.write()
            self.written = True
        except OSError:
            if error == errno.EIO and not self.written:
                self.come_back(self.record.files.kill)
        self.record.files.clear_faults()

    @rule()
    def kill(self) -> None:
        self.come_back(self.record.files.kill)

    @rule(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    def cut_power(self, seed: int, share: float) -> None:
        source = random.Random(seed)
        names = source.randint(0, self.record.files.unsynced_name_changes)
        self.come_back(lambda: self.record.files.power_cut(keep_some(source, share), name_changes=names))

    def come_back(self, stop: Callable[[], None]) -> None:
        durable, taken = self.record.durable, self.record.taken
        stop()
        found = snapshot(self.record.open())
        assert found in ((taken,) if self.written else (durable, taken))
        self.written = False
        self.record.files.power_cut(keep_all)
        assert snapshot(self.record.open()) == found, "the contents that an open returned are durable"

    @invariant()
    def entries_are_in_order(self) -> None:
        if hasattr(self, "record"):
            log = self.log
            assert [entry[1] for entry in log.entries] == list(range(log.base_index, log.last_index + 1))
            assert log.synced_position <= log.position
            assert log.synced_index <= log.last_index


@pytest.mark.slow
class TestLogAgainstAModel(LogMachine.TestCase):  # type: ignore[misc]
    settings = settings(
        max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


class TestLogAgainstAModelBriefly(LogMachine.TestCase):  # type: ignore[misc]
    settings = settings(TestLogAgainstAModel.settings, max_examples=20)
