"""The promise: with a backup directory, there is a backup no older than one interval, unless nothing has changed. The
newest few stay, no other file is touched, and a failure is reported and tried again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.snapshot_support import add_node, small_state
from warren_raft.alarms import Alarms
from warren_raft.errors import Closed, StorageFull
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots import backups as module
from warren_raft.snapshots.backups import (
    POLL_SECONDS,
    RETRY_SECONDS,
    Backups,
)
from warren_raft.snapshots.file import SnapshotInfo, read_manifest, write
from warren_raft.snapshots.freshness import Position
from warren_raft.snapshots.saving import LEFTOVER_SECONDS
from warren_raft.snapshots.verification import verify
from warren_raft.store.database import Database

HOUR = 3600.0


class World:
    """A manager with a clock of the test's own."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.now = datetime(2026, 11, 22, 15, tzinfo=UTC)
        self.leads = True
        self.failure: BaseException | None = None
        self.taken = 0
        self.alarms = Alarms("n1")

    def position(self) -> Position | None:
        machine = StateMachine(self.database)
        return Position(machine.cluster_id, machine.revision, machine.digest.hex())

    def take(self, path: str) -> SnapshotInfo:
        self.taken += 1
        if self.failure is not None:
            raise self.failure
        return write(self.database, path, created_at=self.now, node_id="n1", quorum=True)

    def backups(self, keep: int = 3) -> Backups:
        return Backups(
            self.directory,
            every_seconds=HOUR,
            keep=keep,
            limit_seconds=2 * HOUR,
            position=self.position,
            leads=lambda: self.leads,
            take=self.take,
            alarms=self.alarms,
            now=lambda: self.now,
        )

    @property
    def alarm(self) -> str | None:
        """The text of the only alarm."""
        texts = [alarm.text for alarm in self.alarms.active]
        assert len(texts) <= 1
        return texts[0] if texts else None

    def change(self) -> None:
        add_node(self.database, f"node-{StateMachine(self.database).applied_index}")

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))


@pytest.fixture
def world(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    short = tmp_path_factory.mktemp("b")  # an alarm that names three files has room for short paths only
    with small_state(tmp_path / "data", containers=3) as database:
        yield World(database, short / "backups")


def test_the_first_look_makes_one_named_by_time_and_index(world: World) -> None:
    index = StateMachine(world.database).applied_index
    assert world.backups().look() == HOUR
    (name,) = world.names()
    assert name == f"warren-20261122T150000Z-{index:016}.mdb"
    assert verify(world.directory / name).created_at == world.now
    assert (world.directory / name).stat().st_mode & 0o777 == 0o600
    assert world.directory.stat().st_mode & 0o777 == 0o700


def test_the_next_one_is_due_an_interval_after_the_last_whoever_made_that(world: World) -> None:
    world.backups().look()
    world.change()
    world.now += timedelta(minutes=20)
    after_a_restart = world.backups()
    assert after_a_restart.look() == 40 * 60
    world.now += timedelta(minutes=39, seconds=59)
    assert after_a_restart.look() == 1
    assert world.taken == 1
    world.now += timedelta(seconds=1)
    assert after_a_restart.look() == HOUR
    assert world.taken == 2


def test_of_a_state_that_did_not_change_one_is_enough(world: World) -> None:
    backups = world.backups()
    backups.look()
    world.now += timedelta(hours=5)
    assert backups.look() == HOUR
    assert world.taken == 1
    world.change()
    backups.look()
    assert world.taken == 2


def test_a_clock_that_was_set_back_does_not_end_the_backups(world: World) -> None:
    backups = world.backups()
    backups.look()
    world.change()
    world.now -= timedelta(days=365)
    assert backups.look() == HOUR
    assert world.taken == 2


def index_in(world: World, name: str) -> int:
    return read_manifest(world.directory / name).index


def test_after_a_clock_that_was_ahead_new_backups_stay_and_the_old_ones_go(world: World) -> None:
    """(Pins a bug: sorted by the times in their names, every later backup was removed as soon as it was saved.)"""
    backups, right_time = world.backups(keep=3), world.now

    def save() -> str:
        before = set(world.names()) if world.directory.exists() else set()
        world.change()
        world.now += timedelta(hours=1)
        assert backups.look() == HOUR
        (name,) = set(world.names()) - before
        return name

    world.now += timedelta(days=365)
    ahead = [save() for _ in range(3)]
    assert world.alarm is None
    world.now = right_time
    right = [save()]
    assert world.names() == sorted([*ahead[1:], *right])
    assert world.alarm is not None
    assert world.alarm.startswith(f"{world.directory / ahead[-1]} sorts last, and ends at index ")
    assert f"Restore {world.directory / right[0]}," in world.alarm
    right += [save(), save()]
    assert world.names() == right
    assert world.alarm is None
    assert sorted(right, key=lambda name: index_in(world, name)) == right


def test_the_backup_just_saved_stays_even_behind_newer_ones(world: World, tmp_path: Path) -> None:
    """The machines of a cluster were set back to an old image; its backups were not."""
    with small_state(tmp_path / "later", containers=3) as later:
        for number in range(3):
            add_node(later, f"later-{number}")
            path = world.directory / f"warren-2026112{number}T000000Z-{StateMachine(later).applied_index:016}.mdb"
            world.directory.mkdir(exist_ok=True)
            write(later, path, created_at=world.now - timedelta(days=2 - number), node_id="n1", quorum=True)
    before = set(world.names())
    assert world.backups(keep=2).look() == HOUR
    (saved,) = set(world.names()) - before
    assert len(world.names()) == 3
    assert world.alarm is not None
    assert world.alarm.startswith(f"{world.directory / saved} sorts last")


def test_only_the_leader_tells_of_the_order(world: World) -> None:
    backups = world.backups()
    world.now += timedelta(days=1)
    backups.look()
    world.change()
    world.now -= timedelta(hours=2)
    backups.look()
    assert world.alarm is not None
    world.leads = False
    backups.look()
    assert world.alarm is None


def test_only_the_leader_saves(world: World) -> None:
    backups = world.backups()
    world.leads = False
    assert backups.look() == POLL_SECONDS
    assert not world.directory.exists()
    world.leads = True
    backups.look()
    assert len(world.names()) == 1


def make(world: World, count: int, keep: int) -> list[str]:
    """Names, the oldest first."""
    backups = world.backups(keep)
    made = []
    for _ in range(count):
        world.change()
        world.now += timedelta(hours=1)
        backups.look()
        made.append(max(world.names()))
    return made


def test_the_newest_stay(world: World) -> None:
    made = make(world, 5, keep=3)
    assert world.names() == made[2:]
    assert len({read_manifest(world.directory / name).index for name in made[2:]}) == 3


def test_backups_between_the_regular_ones_do_not_shorten_the_history(world: World) -> None:
    """(Pins a fault: every interruption of the continuous backup removed an hour of the history.)"""
    backups = world.backups(keep=3)

    def save(minutes: int, *, wanted: bool) -> str:
        before = set(world.names()) if world.directory.exists() else set()
        world.change()
        world.now += timedelta(minutes=minutes)
        backups.wanted = wanted
        backups.look()
        (name,) = set(world.names()) - before
        return name

    regular, wanted = [save(60, wanted=False)], []
    for _ in range(2):
        wanted.append(save(1, wanted=True))
        regular.append(save(60, wanted=False))
    assert world.names() == sorted([*regular, *wanted])
    assert backups.oldest_index == index_in(world, regular[0])
    regular.append(save(60, wanted=False))
    assert world.names() == sorted([*regular[1:], *wanted[1:]])
    assert backups.oldest_index == index_in(world, regular[1])


@pytest.mark.parametrize("minutes", [1, 50])
def test_wanted_backups_alone_are_not_kept_for_ever(world: World, minutes: int) -> None:
    """(Pins a fault: with interruptions all day, every backup of the day was kept.)"""
    backups = world.backups(keep=3)
    for _ in range(30):
        world.change()
        world.now += timedelta(minutes=minutes)
        backups.wanted = True
        backups.look()
    assert 3 <= len(world.names()) <= 6


def test_nothing_else_is_ever_removed(world: World, tmp_path: Path) -> None:
    (first,) = make(world, 1, keep=1)
    content = (world.directory / first).read_bytes()
    others = {
        "notes.txt": b"notes",
        "backup.mdb": content,  # saved by hand
        "warren-monthly.mdb": content,
        "warren-20200101T000000Z-0000000000000001.mdb.old": content,
        "warren-20200101T000000Z-0000000000000002.mdb": content[:-1],  # damaged: for somebody to look at
    }
    for name, data in others.items():
        (world.directory / name).write_bytes(data)
    another_cluster = "warren-20200101T000000Z-0000000000000001.mdb"
    with small_state(tmp_path / "another") as database:
        with database.write() as transaction:
            transaction.store("meta", b"cluster_id", b"another cluster")
        write(database, world.directory / another_cluster, created_at=world.now, node_id="n1", quorum=True)
    make(world, 1, keep=1)
    assert first not in world.names()
    last = f"warren-20261122T170000Z-{StateMachine(world.database).applied_index:016}.mdb"
    assert set(world.names()) == {*others, another_cluster, last}


def test_another_clusters_backup_does_not_count_as_ours(world: World, tmp_path: Path) -> None:
    world.backups().look()
    with world.database.write() as transaction:
        transaction.store("meta", b"cluster_id", b"another cluster")
    world.backups().look()
    assert world.taken == 2


# ---- how old the newest backup is


def test_changes_that_are_in_no_backup_for_too_long_are_an_alarm_of_the_leader(world: World) -> None:
    backups = world.backups()
    backups.look()
    world.now += timedelta(hours=5)
    backups.watch()
    assert backups.freshness.unsaved_seconds == 0, "nothing has changed, so the old backup is enough"
    world.change()
    world.now += timedelta(hours=2)
    backups.watch()
    assert world.alarm is None
    world.now += timedelta(seconds=1)
    backups.watch()
    assert backups.freshness.unsaved_seconds == 2 * HOUR + 1
    assert world.alarm is not None
    assert world.alarm.startswith(f"the newest backup is of 2026-11-22T15:00:00Z in {world.directory}, and changes ")
    assert "limit of 2:00:00 are in no backup: no attempt has failed, so the disk may hang (ls " in world.alarm
    world.leads = False
    backups.watch()
    assert world.alarm is None
    assert backups.freshness.unsaved_seconds is None
    world.leads = True
    backups.watch()
    assert world.alarm is None, "a new leader has a minute to save a backup"
    world.now += timedelta(minutes=1)
    backups.watch()
    assert world.alarm is not None
    backups.look()
    backups.watch()
    assert world.alarm is None
    assert backups.freshness.unsaved_seconds == 0


def test_without_any_backup_the_age_counts_from_the_first_look(world: World) -> None:
    backups = world.backups()
    world.failure = OSError(errno.EIO, "Input/output error")
    backups.look()
    backups.watch()
    world.now += timedelta(hours=3)
    backups.watch()
    (alarm,) = [alarm for alarm in world.alarms.active if alarm.name == "backup-old"]
    assert alarm.text.startswith(f"there is no backup in {world.directory}, and changes that are older than the limit ")
    assert alarm.text.endswith("failed at 2026-11-22T15:00:00Z: [Errno 5] Input/output error")


def test_the_status_has_the_newest_backup_by_content_and_the_last_failure(world: World) -> None:
    backups = world.backups()
    none = backups.freshness.status()
    assert (none.saved_at, none.age_seconds, none.index, none.failure) == (None, None, None, "")
    first = world.now
    backups.look()
    world.change()
    world.now += timedelta(hours=1)
    world.failure = StorageFull("no space left")
    backups.look()
    backups.watch()
    status = backups.freshness.status()
    manifest = read_manifest(world.directory / world.names()[0])
    assert (status.index, status.revision, status.size_bytes) == (
        manifest.index,
        manifest.revision,
        manifest.size_bytes,
    )
    assert (status.saved_at, status.age_seconds, status.unsaved_seconds) == (first, HOUR, HOUR)
    assert (status.failed_at, status.failure) == (world.now, "no space left")
    assert status.to_json()["saved_at"] == "2026-11-22T15:00:00Z"


def test_a_follower_finds_the_newest_backup_of_its_cluster_once_a_minute(world: World, tmp_path: Path) -> None:
    made = make(world, 2, keep=3)
    with small_state(tmp_path / "another") as database:
        with database.write() as transaction:
            transaction.store("meta", b"cluster_id", b"another cluster")
        another = world.directory / "warren-20200101T000000Z-9999999999999999.mdb"
        write(database, another, created_at=world.now, node_id="n1", quorum=True)
    world.leads = False
    follower = world.backups()
    follower.look()
    newest = follower.freshness.newest
    assert newest is not None
    assert newest == read_manifest(world.directory / made[-1])
    world.leads = True
    make(world, 1, keep=3)
    world.leads = False
    follower.look()
    assert follower.freshness.newest != newest


# ---- failures


@pytest.mark.parametrize(
    "failure",
    [StorageFull("no space left"), OSError(errno.EIO, "Input/output error"), ZeroDivisionError("a mistake of ours")],
)
def test_a_failure_is_told_and_tried_again(world: World, failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    backups = world.backups()
    world.failure = failure
    assert backups.look() == RETRY_SECONDS
    assert world.alarm is not None
    assert str(world.directory) in world.alarm
    assert "2026-11-22T15:00:00Z" in world.alarm
    assert str(failure) in world.alarm
    assert str(failure) in caplog.text
    world.failure = None
    assert backups.look() == HOUR
    assert world.alarm is None
    assert len(world.names()) == 1


def test_without_a_registry_of_alarms_the_backups_tell_their_own(world: World) -> None:
    backups = Backups(
        world.directory,
        every_seconds=HOUR,
        keep=3,
        limit_seconds=2 * HOUR,
        position=world.position,
        leads=lambda: True,
        take=world.take,
        now=lambda: world.now,
    )
    world.failure = OSError(errno.EIO, "Input/output error")
    backups.look()
    assert backups.alarm is not None
    assert "failed at 2026-11-22T15:00:00Z: [Errno 5] Input/output error" in backups.alarm
    world.failure = None
    backups.look()
    assert backups.alarm is None
    assert world.alarms.active == ()


def test_before_the_new_one_is_there_no_old_one_goes(world: World) -> None:
    made = make(world, 3, keep=3)
    world.failure = StorageFull("no space left")
    make(world, 3, keep=1)
    assert world.names() == made


def test_a_disk_that_is_not_mounted_is_told_and_not_written_to_elsewhere(world: World, tmp_path: Path) -> None:
    world.directory = tmp_path / "mnt" / "backups"
    backups = world.backups()
    backups.look()
    assert world.alarm is not None
    assert "there is no directory" in world.alarm
    assert not (tmp_path / "mnt").exists()


@pytest.mark.parametrize("what", ["no parent", "a file", "not writable"])
def test_a_follower_too_reports_that_no_backup_could_be_saved_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Otherwise only the next leader would notice, because it is the first to try to save a backup."""
    world.leads = False
    if what == "no parent":
        world.directory = tmp_path / "mnt" / "backups"
    elif what == "a file":
        world.directory.touch()
    else:
        world.directory.mkdir()
        monkeypatch.setattr(os, "access", lambda *_arguments: False)  # root may write everywhere
    backups = world.backups()
    assert backups.look() == POLL_SECONDS
    assert world.alarm is not None
    assert world.alarm.startswith(f"no backup can be saved to {world.directory}: ")
    if what == "no parent":  # (pins a bug: "[Errno 2] No such file or directory", which did not say what to do)
        assert world.alarm.endswith(f": there is no directory {tmp_path / 'mnt'}: mount its disk, or make it")
    assert world.alarm in caplog.text
    monkeypatch.undo()
    if what == "no parent":
        world.directory.parent.mkdir()
    elif what == "a file":
        world.directory.unlink()
    backups.look()
    assert world.alarm is not None, "a disk is not asked every second"
    world.now += timedelta(seconds=RETRY_SECONDS)
    backups.look()
    assert world.alarm is None
    assert world.taken == 0


def test_the_directory_is_looked_at_as_soon_as_the_manager_starts(world: World, tmp_path: Path) -> None:
    world.directory = tmp_path / "mnt" / "backups"
    world.leads = False
    backups = world.backups()
    ended = threading.Event()
    ended.set()
    backups.run(ended)
    assert world.alarm is not None


def test_a_manager_that_no_longer_leads_has_no_alarm(world: World) -> None:
    backups = world.backups()
    world.failure = StorageFull("no space left")
    backups.look()
    world.leads = False
    backups.look()
    assert world.alarm is None


def test_a_manager_that_closes_is_no_failure(world: World) -> None:
    backups = world.backups()
    world.failure = Closed()
    assert backups.look() == POLL_SECONDS
    assert world.alarm is None


def test_the_part_of_a_dead_manager_is_removed_when_it_is_certainly_dead(world: World) -> None:
    make(world, 1, keep=3)
    old, young = "warren-20200101T000000Z.part", "warren-20261122T150000Z.part.0123abcd.part"
    for name in (old, young, "other.part"):
        (world.directory / name).touch()
        os.utime(world.directory / name, times=(0, world.now.timestamp() - (10 if name == young else 10 * 86_400)))
    make(world, 1, keep=3)
    assert old not in world.names()
    assert {young, "other.part"} <= set(world.names())
    world.now += timedelta(seconds=LEFTOVER_SECONDS)
    make(world, 1, keep=3)
    assert young not in world.names()


def test_the_thread_ends_when_it_is_told_to(world: World) -> None:
    stop = threading.Event()
    backups = world.backups()
    looked: list[int] = []

    def look() -> float:
        looked.append(1)
        stop.set()
        return 1e6

    backups.look = look  # type: ignore[method-assign]
    thread = threading.Thread(target=backups.run, args=(stop,))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert looked == [1]


def test_a_backup_that_could_not_be_read_just_now_still_needs_its_entries(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: the continuous backup removed the entries behind a file that a network disk did not give once.)"""
    backups = world.backups()
    backups.look()
    (oldest,) = world.names()
    world.change()
    world.now += timedelta(hours=1)

    def read(path: str) -> SnapshotInfo:
        if os.path.basename(path) == oldest:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_manifest(path)

    monkeypatch.setattr(module, "read_manifest", read)
    backups.look()
    assert len(world.names()) == 2
    assert backups.oldest_index == module.backup_index_in(oldest)
