"""The housekeeping thread of a manager lives as long as the manager."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.busy_machine import in_time
from tests.cluster.disks import Disk, StoreOnDisk
from tests.cluster.harness import free_ports, wait_until
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.data_dir.remembered import Memory
from warren_raft.disk.paths import moved
from warren_raft.errors import Unavailable
from warren_raft.manager import slow_disk
from warren_raft.manager.disk_space import Space
from warren_raft.manager.store import ReplicatedStore
from warren_raft.model.entities import Node
from warren_raft.raft.driver import Driver
from warren_raft.snapshots import backups
from warren_raft.snapshots.keeper import Keeper
from warren_raft.store.database import Database
from warren_raft.store.foreign_readers import ForeignReaders
from warren_raft.store.generations import StateDirectory


def alone(directory: Path, others: Mapping[str, str] = MappingProxyType({}), **options: Any) -> Config:
    """The settings for a cluster of one, or for a cluster with its `others` away."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    return Config(data_dir=directory, node_id="m1", listen=address, members={"m1": address, **others}, **options)


def test_a_membership_change_that_nobody_was_asked_for_was_not_made(tmp_path: Path) -> None:
    """Operators decide by that whether to look before they try again."""
    config = alone(tmp_path, {"m2": "127.0.0.1:1"})
    with ReplicatedStore(config) as store, pytest.raises(Unavailable) as caught:
        store.remove_member("m2", timeout=0.2)
    with in_time():  # the raft thread has to answer before the deadline
        assert str(caught.value) == "there is no leader: warren-raft status shows the reason; nothing was changed"


@pytest.mark.slow
def test_a_closed_manager_has_no_alarms(tmp_path: Path) -> None:
    """(Pins a bug: `cluster-not-formed` stayed for ever, although nothing watched any more.)"""
    with ReplicatedStore(alone(tmp_path, {"m2": "127.0.0.1:1"})) as store:
        wait_until(lambda: store.alarms, "an alarm")
    assert store.alarms == ()


def test_a_backup_directory_that_hangs_does_not_keep_a_manager_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of the backup directory does not answer; the manager's own disk works."""
    hangs, server_is_back = threading.Event(), threading.Event()

    def hang(_directory: str) -> None:
        hangs.set()
        server_is_back.wait(120)

    monkeypatch.setattr(backups, "_require_writable", hang)
    store = ReplicatedStore(alone(tmp_path / "m1", backup_dir=tmp_path / "backups"))
    assert hangs.wait(60)
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    server_is_back.set()


@pytest.mark.slow
def test_a_backup_directory_that_hangs_is_an_alarm_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the backups hangs, so another thread has to say that no backup is made."""
    server_is_back = threading.Event()
    monkeypatch.setattr(backups, "_require_writable", lambda _directory: server_is_back.wait(120))
    config = alone(tmp_path / "m1", backup_dir=tmp_path / "b", backup_every_seconds=0.1, backup_alarm_seconds=0.1)
    try:
        with ReplicatedStore(config) as store:
            wait_until(lambda: any(alarm.name == "backup-old" for alarm in store.alarms), "the alarm")
            backup = store.status().backup
            assert backup is not None
            assert backup.saved_at is None
            assert backup.unsaved_seconds is not None
            assert backup.unsaved_seconds > 0
            server_is_back.set()
            wait_until(lambda: store.alarms == (), "the end of the alarm")
    finally:
        server_is_back.set()


@pytest.mark.slow
def test_a_disk_that_hangs_in_a_checkpoint_too_is_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a fault: the thread that looks for a hanging sync of the log writes the state back to the same disk, so it
    hung there, and there was no alarm `disk-slow`, and none of the other alarms that need no disk.)"""
    hangs, works = threading.Event(), threading.Event()

    def hang(_database: Database) -> None:
        hangs.set()
        assert works.wait(120)

    monkeypatch.setattr(slow_disk, "HANGS_SECONDS", 1.0)
    began: list[float] = []
    monkeypatch.setattr(Driver, "syncing_since", lambda _driver: began[0] if began else None)
    config = alone(
        tmp_path / "m1",
        checkpoint_interval_seconds=0.05,
        backup_dir=tmp_path / "none" / "b",
        backup_every_seconds=1,
        backup_alarm_seconds=1,
    )
    store = ReplicatedStore(config)
    try:
        monkeypatch.setattr(Database, "checkpoint", hang)
        store.create_node(Node(id="n1"))  # something to write back
        assert hangs.wait(60)
        began.append(time.monotonic())
        wait_until(lambda: {"disk-slow", "backup-old"} <= {alarm.name for alarm in store.alarms}, "the alarms")
    finally:
        works.set()
        store.close()


def test_an_error_in_housekeeping_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a bug: one EMFILE while the start was noted, and the state was never written back again.)"""
    config = alone(tmp_path, checkpoint_interval_seconds=0.05)
    failed, checkpointed = threading.Event(), threading.Event()
    noted, checkpoint = StateDirectory.forget_starts, Database.checkpoint
    errors = [OSError(errno.EMFILE, "Too many open files")]

    def forget_starts(state: StateDirectory) -> None:
        if errors:
            failed.set()
            raise errors.pop()
        noted(state)

    def observed(database: Database) -> None:
        checkpoint(database)
        if failed.is_set():
            checkpointed.set()

    monkeypatch.setattr(StateDirectory, "forget_starts", forget_starts)
    monkeypatch.setattr(Database, "checkpoint", observed)
    with ReplicatedStore(config) as store:
        assert failed.wait(60)
        store.create_node(Node(id="n1"))  # something to write back
        assert checkpointed.wait(60)
        assert store.failure is None


def test_a_chore_that_fails_for_good_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a bug: after one file could not be removed, the disk was never measured and the state never synced
    again.)"""
    config = alone(tmp_path, checkpoint_interval_seconds=0.05)
    done: list[str] = []

    def failing(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with ReplicatedStore(config) as store:
        store.wait_ready()
        for kind, name in ((OpenedDirectory, "look"), (Keeper, "tidy"), (ForeignReaders, "look")):
            monkeypatch.setattr(kind, name, failing)
        for kind, name in ((Space, "look"), (Memory, "keep"), (Database, "reader_check"), (Database, "checkpoint")):
            what = getattr(kind, name)

            def observed(*given: Any, what: Any = what, name: str = f"{kind.__name__}.{name}") -> Any:
                done.append(name)
                return what(*given)

            monkeypatch.setattr(kind, name, observed)
        store.create_node(Node(id="n1"))  # something to write back
        wait_until(lambda: len(set(done)) == 4, "all the rest to be done")
        assert [alarm.name for alarm in store.alarms] == ["housekeeping-failed"]
        monkeypatch.undo()


@pytest.mark.slow
def test_an_error_that_lasts_is_one_traceback_and_an_alarm_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """(Pins a bug: a traceback each second, for as long as it lasted, and no alarm.)"""
    config = alone(tmp_path, checkpoint_interval_seconds=0.05)
    failures, enough, look = [0], threading.Event(), Space.look

    def failing(space: Space, database: Database) -> bool:
        failures[0] += 1
        if failures[0] > 5:
            enough.set()
        raise OSError(errno.EIO, "Input/output error")

    with ReplicatedStore(config) as store:
        store.wait_ready()
        monkeypatch.setattr(Space, "look", failing)
        assert enough.wait(60)
        (alarm,) = store.alarms
        assert alarm.name == "housekeeping-failed"
        assert "Input/output error" in alarm.text
        monkeypatch.setattr(Space, "look", look)
        deadline = time.monotonic() + 60
        while store.alarms:
            assert time.monotonic() < deadline, store.alarms
            threading.Event().wait(0.02)
    assert sum("housekeeping failed" in message for message in caplog.messages) == 1


def test_a_write_that_waits_when_housekeeping_stops_the_manager_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a bug: it was told that the store is closed.)"""
    disk = Disk()
    with StoreOnDisk(alone(tmp_path / "m1"), disk) as store:
        store.wait_ready(60)
        store.create_node(Node(id="first"))

        def fail(_opened: OpenedDirectory) -> None:
            raise moved(str(tmp_path / "m1"))

        disk.delay_next_sync(120)
        with store.batch(wait=False) as batch:
            batch.create_node(Node(id="second"))
        wait_until(lambda: disk.counts()["delays_begun"] == 1, "the sync that hangs")
        monkeypatch.setattr(OpenedDirectory, "look", fail)
        with pytest.raises(Unavailable, match=r"this manager stopped: .*was removed, moved or replaced"):
            batch.future.result(60)
        disk.release()
