"""The log under damage at every byte, and under power cuts, kills and full disks at every file operation.

The promise: there is never a wrong entry, and no synced entry is lost. Damage is not mistaken for a crash: the log is
Corrupted, or the damage does no harm. After a crash the log opens with all that was synced. The few kinds of damage
that look exactly like a crash are named in docs/log-format.md. Here it is a tail of the newest segment turned to zeros.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.fast import fast_first
from tests.log_recorder import DIRECTORY, Recorder, Snapshot, open_log, snapshot
from tests.memory_files import PAGE, Crashed, MemoryFiles, keep_all, keep_none, keep_some
from warren_raft.errors import Corrupted
from warren_raft.raft.log.contents import BASE_COMMAND
from warren_raft.raft.log.format import SECTOR

CORRUPTED = "corrupted"
SIZES = {"segment_bytes": 16384, "start_segment_bytes": 12288}


def small_log() -> Recorder:
    """Three segments: a full one, one that was prepared, and one begun by a restart. Every kind of record, batches that
    share pages and batches that span pages; the last batch spans two pages."""
    record = Recorder(MemoryFiles("/data"), **SIZES)
    record.open()
    record.log.set_term(1, "a")
    record.sync()
    record.append(30, 60, term=1)
    record.sync()
    record.prepare()
    record.log.set_note(b"members")
    record.append(2500)
    record.sync()
    record.log.set_commit(3)
    record.append(5000, 1, 1)
    record.sync()
    record.log.truncate_from(6)
    record.log.set_term(4, None)
    record.append(10, term=4)
    record.sync()
    record.files.power_cut()
    record.open()
    record.log.set_commit(5)
    record.append(40, 50)
    record.sync()
    record.log.truncate_from(7)
    record.sync()
    record.append(700, 1200, term=4)
    record.log.set_term(4, "b")
    record.sync()
    assert len(record.files.paths()) == 3
    assert record.places[-1].start // PAGE < record.places[-1].end // PAGE
    return record


def compacted_log() -> Recorder:
    """The same log after a compaction. The first segment is not needed any more but still there, as after a crash
    before its removal. The fourth names the second as the oldest, which has entries below the compaction point."""
    record = small_log()
    record.log.set_commit(record.log.last_index)
    record.drop(5)
    record.append(300, term=4)
    record.sync()
    record.append(90, term=5)
    record.sync()
    assert record.log.removal() is not None
    assert len(record.files.paths()) == 4
    return record


def reset_log() -> Recorder:
    """A log that was reset behind a snapshot, with a vote that was pending, and later batches. The segments before the
    reset are not needed any more but still there."""
    record = small_log()
    record.log.set_term(6, "c")
    record.take_reset(90, 5)
    record.finish_reset()
    record.append(40, 1500, term=6)
    record.sync()
    record.append(10, term=6)
    record.sync()
    assert len(record.files.paths()) == 4
    return record


def committed_log() -> Recorder:
    """A log with a last batch that has no record. It was written for the commit index alone."""
    record = small_log()
    record.log.set_commit(7)
    record.log.keep_commit()
    record.sync()
    assert record.durable is not None
    assert record.durable.commit_index == 7
    return record


LOGS = {"small": small_log, "compacted": compacted_log, "reset": reset_log, "committed": committed_log}
every_log = pytest.mark.parametrize("kind", LOGS)


def needed(record: Recorder) -> list[str]:
    """The segments that an open reads."""
    copy = record.files.clone()
    open_log(copy, **SIZES)
    return [path for path in record.files.paths() if path in copy.paths()]


def outcome(files: MemoryFiles, record: Recorder | None = None) -> Snapshot | str:
    """The contents that an open of this disk finds, above the compaction point of `record`; or CORRUPTED."""
    try:
        found = snapshot(open_log(files, **SIZES))
    except Corrupted:
        return CORRUPTED
    return record.above(found) if record is not None else found


class Damaged(NamedTuple):
    record: Recorder
    path: str
    content: bytes
    outcome: Snapshot | str


_last: Damaged | None = None
"""Of two zeros in a row, the second cut leaves the same bytes as the first one. The same bytes are not opened twice: an
open reads nothing else."""


def damaged(record: Recorder, path: str, change: Callable[[bytearray], None]) -> Snapshot | str:
    """The outcome of an open after `change` to the bytes of one file of the log."""
    global _last
    changed = bytearray(record.files.content(path))
    change(changed)
    content = bytes(changed)
    if _last is None or _last.record is not record or (_last.path, _last.content) != (path, content):
        files = record.files.clone()
        files.set_content(path, content)
        _last = Damaged(record, path, content, outcome(files, record))
    return _last.outcome


def states(record: Recorder) -> list[Snapshot]:
    """The state after each batch, above the compaction point."""
    return [record.above(state) for state in record.states]


def flipped(offset: int, bit: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[offset] ^= 1 << bit

    return change


def zeroed(begin: int, end: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[begin:end] = bytes(len(content[begin:end]))

    return change


# -- damage at every byte


@pytest.mark.slow
@every_log
def test_one_flipped_bit_anywhere_is_found_or_does_no_harm(kind: str) -> None:
    """The disk returns one wrong bit. For every byte of every segment, an open finds the whole contents or Corrupted.
    In the last batch too, because its page is neither as written nor as before, and the trailer shows it. A segment
    that a compaction or a reset left behind is not read."""
    record = LOGS[kind]()
    full = states(record)[-1]
    seen: Counter[bool] = Counter()
    wanted = needed(record)
    for path in record.files.paths():
        step = 1 if path in wanted else PAGE // 16
        for offset in range(0, len(record.files.content(path)), step):
            result = damaged(record, path, flipped(offset, offset % 8))
            assert result in (full, CORRUPTED) if path in wanted else result == full, (path, offset)
            seen[result == CORRUPTED] += 1
    assert min(seen.values()) > 1000


@pytest.mark.slow
@every_log
def test_every_bit_of_the_last_head_and_trailer_counts(kind: str) -> None:
    """Damage to the last batch could pass for a torn write. No bit of its head and trailer may be lost silently."""
    record = LOGS[kind]()
    path, start, end = record.places[-1]
    sectors = (*range(start, start + SECTOR), *range(end - SECTOR, end))
    for offset, bit in itertools.product(sectors, range(8)):
        assert damaged(record, path, flipped(offset, bit)) == CORRUPTED, (offset, bit)


@pytest.mark.slow
@every_log
def test_a_tail_turned_to_zeros_is_the_prefix_before_it(kind: str) -> None:
    """A kill during a write leaves the newest segment as written up to some byte, and as before behind it. The batches
    that end before that byte are there, and no others. No log can tell this from damage of the same form."""
    record = LOGS[kind]()
    path = record.files.paths()[-1]
    content = record.files.content(path)
    in_newest = Counter(place.path for place in record.places)[path]
    expected_states = states(record)[-in_newest - 1 :]
    ends = [len(content[: place.end].rstrip(b"\0")) for place in record.places if place.path == path]
    for cut in range(PAGE, len(content)):
        expected = expected_states[sum(end <= cut for end in ends)]
        assert damaged(record, path, zeroed(cut, len(content))) == expected, cut
    for cut in range(PAGE):
        in_header = CORRUPTED if any(content[cut:PAGE]) else expected_states[0]
        assert damaged(record, path, zeroed(cut, len(content))) == in_header, cut


@pytest.mark.slow
@every_log
def test_a_sealed_segment_misses_nothing(kind: str) -> None:
    """The next segment knows the end of a sealed one. So zeros from any byte on are damage, if they change anything."""
    record = LOGS[kind]()
    full = states(record)[-1]
    for path in needed(record)[:-1]:
        content = record.files.content(path)
        end = max((place.end for place in record.places if place.path == path), default=PAGE)
        for cut in (*range(end), *range(end, len(content), 64)):
            expected = CORRUPTED if any(content[cut:end]) else full
            assert damaged(record, path, zeroed(cut, len(content))) == expected, (path, cut)


@pytest.mark.slow
@every_log
def test_a_file_cut_short_is_damage(kind: str) -> None:
    """A segment has its length before it has its name, so no crash shortens it. A cut at any byte is recognised. In a
    file that grows, it would pass for a torn write."""
    record = LOGS[kind]()
    full, wanted = states(record)[-1], needed(record)
    for path in record.files.paths():
        used = max((place.end for place in record.places if place.path == path), default=PAGE)
        size = len(record.files.content(path))
        cuts = range(0, size, PAGE // 16) if path not in wanted else (*range(used), *range(used, size, 64), size - 1)
        for cut in cuts:

            def shorten(content: bytearray, cut: int = cut) -> None:
                del content[cut:]

            is_damage = path == wanted[-1] or (path in wanted and cut < used)
            assert damaged(record, path, shorten) == (CORRUPTED if is_damage else full), (path, cut)


@every_log
@pytest.mark.parametrize("unit", [SECTOR, PAGE])
def test_a_page_or_sector_turned_to_zeros_costs_the_tail_at_most(unit: int, kind: str) -> None:
    """The disk acknowledged a write and lost it. In the newest segment this looks like a torn write if nothing valid
    follows. Anywhere else it is damage."""
    record = LOGS[kind]()
    known = states(record)
    newest = record.files.paths()[-1]
    for path in record.files.paths():
        for begin in range(0, len(record.files.content(path)), unit):
            result = damaged(record, path, zeroed(begin, begin + unit))
            if result in (CORRUPTED, known[-1]):
                continue
            assert path == newest
            assert result in known
            lost = record.places[known.index(result) + 1 - len(known)]
            assert lost.start < begin + unit, "lost a batch before the zeros"
            assert not any(record.files.content(path)[begin + unit : record.places[-1].end]) or (
                lost == record.places[-1]
            ), "lost a batch although other bytes follow"


@pytest.mark.slow
@every_log
def test_random_damage_never_gives_a_wrong_entry(kind: str) -> None:
    """Any bytes are written over any others. An open finds Corrupted, or contents that the log once had."""
    record = LOGS[kind]()
    known = states(record)
    newest = Counter(place.path for place in record.places)[record.files.paths()[-1]]
    source = random.Random(7)
    paths = record.files.paths()
    for _ in range(3000):
        path = source.choice(paths)
        size = len(record.files.content(path))
        begin = source.randrange(size)
        length = min(source.choice([1, 2, 8, 512, 4096]), size - begin)
        fill = source.choice([bytes(length), source.randbytes(length), b"\xff" * length])

        def overwrite(content: bytearray, begin: int = begin, fill: bytes = fill) -> None:
            content[begin : begin + len(fill)] = fill

        result = damaged(record, path, overwrite)
        assert result == CORRUPTED or result in known[-newest - 1 :], (path, begin, fill[:4])


@pytest.mark.parametrize("kind", fast_first(list(LOGS), 1))
def test_a_stretch_copied_from_elsewhere_in_the_log_is_damage(kind: str) -> None:
    """A misdirected write puts sound bytes at the wrong place. The checksums cover the segment and the offset."""
    record = LOGS[kind]()
    known = states(record)
    source = random.Random(8)
    paths = record.files.paths()
    for _ in range(2000):
        path, other = source.choice(paths), source.choice(paths)
        unit = source.choice([SECTOR, PAGE])
        content = record.files.content(other)
        begin = source.randrange(0, len(content), unit)
        data = content[begin : begin + unit]
        target = source.randrange(0, len(record.files.content(path)), unit)

        def misdirect(content: bytearray, target: int = target, data: bytes = data) -> None:
            content[target : target + len(data)] = data[: len(content) - target]

        result = damaged(record, path, misdirect)
        if result == known[-1] or result == CORRUPTED:
            continue
        assert path == paths[-1]
        assert not any(data[: len(data)]) or result in known[-4:]


# -- a batch that was not synced


def unsynced(before: list[int], sizes: list[int], segment_bytes: int = 65536) -> tuple[Recorder, str]:
    """A log with batches of the sizes `before`, and one more written but not synced when the machine stopped."""
    record = Recorder(MemoryFiles("/data"), segment_bytes=segment_bytes, start_segment_bytes=segment_bytes)
    record.open()
    for size in before:
        record.append(size, term=1)
        record.sync()
    record.append(*sizes, term=1)
    record.take()
    assert record.batch is not None
    record.files.crash(record.files.operations + 2)
    with pytest.raises(Crashed):
        record.batch.write()
    return record, record.files.paths()[0]


def subsets(pages: list[int], source: random.Random, limit: int) -> Iterator[set[int]]:
    """All subsets if they are few, else a random choice of them. The full subset and the empty one are always among
    them."""
    if 2 ** len(pages) <= limit:
        for size in range(len(pages) + 1):
            yield from map(set, itertools.combinations(pages, size))
        return
    yield set()
    yield set(pages)
    for index in range(limit):
        if index % 3 == 0:  # all pages except one or two: the trailer mostly survives
            yield set(pages) - set(source.sample(pages, source.choice([1, 2])))
        else:
            yield {page for page in pages if source.random() < source.choice([0.1, 0.5, 0.9])}


@pytest.mark.parametrize(
    ("before", "sizes"),
    [
        ([], [1]),
        ([1, 2, 3], [1]),
        ([1], [400]),
        ([1, 1], [3000]),
        ([10], [9000]),
        ([3000], [3000, 10, 3000]),
        ([100] * 3, [20_000]),
        ([], [30_000, 1]),
        ([1], [12_000]),
    ],
)
def test_no_subset_of_lost_pages_is_taken_for_damage(before: list[int], sizes: list[int]) -> None:
    """A power cut keeps any of the pages that were not synced, in any order. An open never finds Corrupted or a part of
    the batch, and always finds all batches that were synced."""
    record, path = unsynced(before, sizes)
    pages = sorted(record.files.unsynced_pages(path))
    seen = set()
    for kept in subsets(pages, random.Random(str((before, sizes))), 300):
        files = record.files.clone()
        files.power_cut(lambda _, page, kept=kept: page in kept)  # type: ignore[misc]
        found = snapshot(open_log(files))
        assert found == (record.taken if kept == set(pages) else record.durable), (pages, kept)
        seen.add(len(found.entries))
    assert len(seen) == 2


def test_no_subset_of_lost_pages_of_a_batch_with_a_long_trailer_is_taken_for_damage() -> None:
    """A batch of 120 pages or more has a trailer of several sectors, which can be in two pages. Half of the trailer may
    be lost while the body is whole."""
    split = False
    for before in range(1, 8):
        record, path = unsynced([1] * before, [600_000 + 700 * before], 1 << 20)
        pages = sorted(record.files.unsynced_pages(path))
        end = len(record.files.content(path).rstrip(b"\0"))
        split = split or end // PAGE != (end - 640) // PAGE
        for kept in [*subsets(pages, random.Random(before), 10), set(pages[:-1]), set(pages) - {pages[-2]}]:
            files = record.files.clone()
            files.power_cut(lambda _, page, kept=kept: page in kept)  # type: ignore[misc]
            found = snapshot(open_log(files))
            assert found == (record.taken if kept == set(pages) else record.durable)
    assert split


@pytest.mark.slow
@pytest.mark.parametrize(("before", "sizes"), [([], [1]), ([1, 600], [1500]), ([700], [3300])])
def test_a_kill_in_the_middle_of_a_write_leaves_the_prefix(before: list[int], sizes: list[int]) -> None:
    """Any number of bytes may be written when the process or the machine stops. Then pages may be lost too."""
    record, path = unsynced(before, sizes)
    source = random.Random(11)
    content = record.files.content(path)
    end = len(content.rstrip(b"\0"))
    start = record.places[-1].end if record.places else PAGE
    for cut in range(start, end + 1):
        files = record.files.clone()
        files.open(path).write(cut, bytes(end - cut))
        files.kill()
        assert outcome(files.clone()) == (record.taken if cut == end else record.durable), cut
        files.power_cut(keep_some(source))
        assert outcome(files) in ((record.taken, record.durable) if cut == end else (record.durable,)), cut


def test_damage_does_not_hide_behind_a_torn_batch() -> None:
    """A synced batch is damaged, and the next batch is torn. Any page of the torn batch proves that the damaged one was
    synced, even if neither head nor trailer of the torn batch survived."""
    record, path = unsynced([1, 5000], [30_000])
    _, start, end = record.places[-1]
    pages = sorted(record.files.unsynced_pages(path))
    for kept in subsets(pages, random.Random(5), 100):
        files = record.files.clone()
        files.power_cut(lambda _, page, kept=kept: page in kept)  # type: ignore[misc]
        torn = Recorder(files)
        later = any(files.content(path)[end:])
        for change in (flipped(start + 9, 0), flipped(start + 3000, 1), flipped(end - 510, 2), zeroed(8192, 8704)):
            assert damaged(torn, path, change) == CORRUPTED, kept
        proof = {pages[0], pages[-1]} & kept  # the head or the trailer of the torn batch
        expected = CORRUPTED if proof else record.states[0]
        assert damaged(torn, path, zeroed(start, end)) == expected, kept
        for part in (zeroed(start, 8192), zeroed(end - SECTOR, end)):
            assert damaged(torn, path, part) == (CORRUPTED if later else record.states[0]), kept


def test_pages_torn_inside_are_never_read_as_written() -> None:
    """A drive that tears within 4 KiB is outside the model. This may be called damage, but never gives wrong
    contents."""
    record, path = unsynced([1, 2], [9000])
    content = record.files.content(path)
    start, end = record.places[-1].end, len(content.rstrip(b"\0"))
    source = random.Random(12)
    seen: Counter[bool] = Counter()
    for _ in range(500):
        kept = bytearray(content)
        for sector in range(start, end, SECTOR):
            if source.random() < 0.3:
                kept[sector : sector + SECTOR] = bytes(SECTOR)
        files = record.files.clone()
        files.set_content(path, bytes(kept))
        result = outcome(files)
        assert result in (CORRUPTED, record.durable)
        seen[result == CORRUPTED] += 1
    assert seen[False] > 100


def test_what_a_failed_sync_left_in_the_page_cache_is_made_durable_or_lost_for_good() -> None:
    """After EIO from fdatasync, Linux may call pages clean that are not on the disk. The next process reads them from
    the cache, counts them and acknowledges them. A power cut must not take them back."""
    record = Recorder(MemoryFiles("/data"))
    record.open()
    record.append(3000, 3000, term=1)
    record.take()
    assert record.batch is not None
    record.files.fail(record.files.operations + 2, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        record.batch.write()
    assert not record.files.unsynced_pages(record.files.paths()[0])
    record.files.kill()
    assert record.open().synced_index == 3
    record.files.power_cut()
    assert record.open().last_index == 3


def test_a_torn_remnant_is_never_looked_at_again() -> None:
    """The first open after a power cut seals the log before the torn batch. The remnant stays behind the seal, also if
    another batch gets the same number, and even if the remnant became whole."""
    record, path = unsynced([1], [9000])
    whole = record.files.content(path)
    files = record.files
    files.power_cut(lambda _, page: page != 2)
    record.open()
    record.append(5, term=2)
    record.sync()
    before = snapshot(record.log)
    files.power_cut()
    assert snapshot(open_log(files.clone())) == before
    files.set_content(path, whole)
    assert snapshot(open_log(files)) == before


# -- faults at every file operation


def scenario(record: Recorder) -> None:
    """Each operation of the log on files: the first creation, batches, preparation, prepared segments and others, a
    batch larger than a segment, a restart after a clean stop, after a kill with a batch on its way, and without
    writes."""
    record.open()
    record.log.set_term(1, "a")
    record.append(200, term=1)
    record.sync()
    record.prepare()
    record.append(5000)
    record.sync()
    record.append(6000, 100)
    record.log.set_note(b"members")
    record.sync()
    record.log.set_commit(4)
    record.append(9000)
    record.sync()
    record.log.set_commit(5)
    record.log.keep_commit()
    record.sync()
    record.log.close()
    record.files.kill()
    record.open()
    record.log.truncate_from(6)
    record.append(40_000, term=2)
    record.sync()
    record.append(100)
    record.take()
    record.write()
    record.files.kill()
    record.open()
    record.append(1)
    record.sync()
    record.log.set_commit(7)
    record.log.keep_commit()
    record.take()
    record.write()
    record.files.kill()
    record.open()
    record.files.kill()
    record.open()
    record.log.set_term(9, None)
    record.sync()


def compaction(record: Recorder) -> None:
    """Each operation of compaction and reset on files: segments made for a compaction, prepared and not, with a removal
    and without; restarts between the steps; a reset with changes pending, and one of a log that was just compacted."""
    record.open()
    record.log.set_term(1, "a")
    for size in (6000, 5000, 100, 4000):
        record.append(size, term=1)
        record.sync()
    record.log.set_commit(4)
    record.drop(4)
    record.append(50)
    record.sync()
    record.remove()
    record.prepare()
    record.log.truncate_from(6)
    record.append(10, 10, term=2)
    record.sync()
    record.log.set_commit(7)
    record.drop(7)
    record.log.set_term(3, "b")
    record.sync()
    record.files.kill()
    record.open()
    record.append(9000, 10, term=3)
    record.sync()
    record.log.set_commit(record.log.last_index)
    record.drop(8)
    record.append(30)
    record.take()
    record.write()
    record.files.kill()
    record.open()
    record.append(10)
    record.log.set_term(6, "c")
    record.take_reset(90, 5)
    record.append(20, term=6)
    record.finish_reset()
    record.remove()
    record.sync()
    record.log.set_commit(91)
    record.drop(91)
    record.log.set_note(b"members")
    record.take_reset(95, 8)
    record.finish_reset()
    record.append(20, 7000, term=8)
    record.sync()
    record.files.kill()
    record.open()
    record.log.set_commit(97)
    record.drop(97)
    record.append(1)
    record.sync()
    record.remove()


SCENARIOS = {"growth": scenario, "compaction": compaction}
every_scenario = pytest.mark.parametrize("story", SCENARIOS)


def run(story: str, plan: Callable[[MemoryFiles], None]) -> Recorder:
    """Run the scenario with a planned fault. It ends where the process would end."""
    record = Recorder(MemoryFiles("/data"), **SIZES)
    plan(record.files)
    try:
        SCENARIOS[story](record)
    except Crashed:
        pass
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    record.files.clear_faults()
    return record


def operations(story: str) -> int:
    return run(story, lambda _: None).files.operations


STOPS: dict[str, Callable[[MemoryFiles, random.Random], None]] = {
    "the process dies": lambda files, _: files.kill(),
    "power cut, nothing unsynced survives": lambda files, _: files.power_cut(keep_none),
    "power cut, everything survives": lambda files, _: files.power_cut(
        keep_all, name_changes=files.unsynced_name_changes
    ),
    "power cut, some survives": lambda files, source: files.power_cut(
        keep_some(source), name_changes=source.randint(0, files.unsynced_name_changes)
    ),
}


def check_comes_back(record: Recorder, where: object) -> Snapshot:
    """The log opens with all durable contents, has the same contents at the next open, and works from there on."""
    allowed = [record.above(state) for state in (record.durable, record.taken) if state is not None]
    found = snapshot(record.open())
    if not allowed:
        assert found.entries == ((BASE_COMMAND, 1, 0),), where
        assert record.log.is_blank, where
    else:
        assert record.above(found) in allowed, where
    again = Recorder(record.files.clone(), **SIZES)
    again.files.power_cut()
    assert snapshot(again.open()) == found, where
    record.append(7, term=record.log.current_term + 1)
    record.sync()
    record.files.power_cut()
    assert snapshot(record.open()) == record.durable, where
    assert len(record.log.entries) == len(found.entries) + 1, where
    return found


@pytest.mark.slow
@every_scenario
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("done", [0.0, 0.97, 1.0])
def test_a_crash_at_any_file_operation_loses_nothing(stop: str, done: float, story: str) -> None:
    """A crash before, within and after each operation: the directory opens again with all that was synced. During the
    first creation the log is blank."""
    for number in range(1, operations(story) + 1):
        record = run(story, lambda files, number=number: files.crash(number, done=done))  # type: ignore[misc]
        STOPS[stop](record.files, random.Random(number))
        check_comes_back(record, (number, done, stop))


@pytest.mark.slow
@every_scenario
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("done", [0.0, 0.5])
def test_an_io_error_at_any_file_operation_loses_nothing(stop: str, done: float, story: str) -> None:
    """EIO stops the manager. The contents that it had called durable are there for the next process, with any state of
    the page cache."""
    for number in range(1, operations(story) + 1):
        record = run(story, lambda files, number=number: files.fail(number, errno.EIO, done=done))  # type: ignore[misc]
        STOPS[stop](record.files, random.Random(number))
        check_comes_back(record, (number, done, stop))


@pytest.mark.slow
@every_scenario
@pytest.mark.parametrize("done", [0.0, 0.5])
def test_a_full_disk_at_any_file_operation_is_got_over(done: float, story: str) -> None:
    """ENOSPC at the Nth operation, and one more try. The scenario ends as it does without the fault."""
    whole = run(story, lambda _: None)
    assert whole.durable is not None
    expected = whole.above(whole.durable)
    for number in range(1, operations(story) + 1):
        record = run(story, lambda files, number=number: files.fail(number, errno.ENOSPC, done=done))  # type: ignore[misc]
        assert record.durable is not None
        assert record.above(record.durable) == expected, number
        record.files.power_cut()
        assert record.above(check_comes_back(record, number)) == expected


@pytest.mark.slow
@every_scenario
def test_a_crash_while_coming_back_from_a_crash_loses_nothing(story: str) -> None:
    """A second crash at each operation of the open after a first crash."""
    source = random.Random(3)
    total = operations(story)
    for first in range(1, total + 1, 3):
        base = run(story, lambda files, first=first: files.crash(first, done=0.97))  # type: ignore[misc]
        STOPS[source.choice(list(STOPS))](base.files, source)
        for second in itertools.count(1):
            record = Recorder(base.files.clone(), **SIZES)
            record.inherit(base)
            record.files.crash(second, done=source.choice([0.0, 0.5, 1.0]))
            try:
                record.open()
                break
            except Crashed:
                record.inherit(base)
            STOPS[source.choice(list(STOPS))](record.files, source)
            check_comes_back(record, (first, second))


@every_scenario
def test_a_crash_leaves_no_unfinished_segment_behind_for_long(story: str) -> None:
    """After a crash at any operation, the next open leaves segments only, and each of them is needed."""
    for number in range(1, operations(story) + 1):
        record = run(story, lambda files, number=number: files.crash(number, done=0.97))  # type: ignore[misc]
        record.files.kill()
        record.open()
        assert all(path.endswith(".log") for path in record.files.paths()), number
        assert all(path.startswith(DIRECTORY) for path in record.files.paths())
