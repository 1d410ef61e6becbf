"""The promise: a store works in the directory that was named when it was opened, and in no other, even if the program
around it changes its current directory. It is the only store that works there, also when somebody removes the lock
file. If the directory is removed or replaced, the store reports it and acknowledges nothing more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import free_ports, wait_until
from warren_raft.admin import SOCKET_NAME
from warren_raft.admin.client import AdminClient
from warren_raft.config import Config
from warren_raft.disk import sharing
from warren_raft.disk.files import HeldDirectory, OsFiles
from warren_raft.disk.paths import absolute
from warren_raft.errors import (
    Closed,
    Corrupted,
    InUse,
    InvalidConfig,
    Unavailable,
)
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.local.store import LocalStore
from warren_raft.manager.store import ReplicatedStore
from warren_raft.model.entities import Node, Secret
from warren_raft.raft.log.log import Log
from warren_raft.store.ownership import DirectoryLock


def alone(directory: str, **options: Any) -> Config:
    """A cluster of one."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    return Config(data_dir=directory, node_id="m1", listen=address, members={"m1": address}, **options)


def contents(directory: Path) -> dict[str, str]:
    """Every file below a directory, with its hash; the inode for a socket. Without files that are filled or used as
    memory."""
    return {
        str(path.relative_to(directory)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path.stat().st_ino)
        )
        for path in directory.rglob("*")
        if not path.is_dir() and path.suffix not in (".mdb-lock", ".tmp")
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another deployment: the same relative names mean a directory of its own here."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    return directory


# -- chdir


@pytest.mark.slow
def test_a_manager_does_not_follow_a_change_of_the_current_directory(here: Path, elsewhere: Path) -> None:
    """(Pins a bug: the log went on in the other deployment's directory, over its log, and both were ruined.)"""
    os.chdir(elsewhere)
    with ReplicatedStore(alone("data/m1", admin=False)) as store:
        store.wait_ready(20)
        store.create_node(Node(id="other"))
    (elsewhere / "data/m1" / SOCKET_NAME).touch()  # its manager's; ours has a file of this name, too
    (elsewhere / "backups").mkdir()
    before = contents(elsewhere)
    os.chdir(here)
    store = ReplicatedStore(
        alone("data/m1", snapshot_after_bytes=1_000_000, backup_dir="backups", backup_every_seconds=0.05)
    )
    try:
        store.wait_ready(20)
        os.chdir(elsewhere)
        for number in range(40):  # some segments of the log, and snapshots
            store.create_secret(Secret(id=f"s{number % 20}", name=f"s{number % 20}", data=os.urandom(500_000)))
        wait_until(lambda: len(list((here / "data/m1/snapshots").glob("*.mdb"))) == 2, "two snapshots")
        wait_until(lambda: any((here / "backups").glob("warren-*.mdb")), "a backup")
        assert AdminClient(here / "data/m1").status()["node_id"] == "m1"
        assert store.status().alarms == ()
    finally:
        store.close()
    assert contents(elsewhere) == before
    assert not (here / "data/m1" / SOCKET_NAME).exists()
    with ReadOnlyStore(here / "data/m1") as reader:
        assert len(reader.list_secrets()) == 20
    with ReadOnlyStore("data/m1") as reader:
        assert [node.id for node in reader.list_nodes()] == ["other"]


def test_local_stores_readers_and_clients_do_not_follow_it_either(here: Path, elsewhere: Path) -> None:
    os.chdir(elsewhere)
    LocalStore("state").close()
    before = contents(elsewhere)
    os.chdir(here)
    client = AdminClient("state")
    with LocalStore("state") as store:
        store.create_node(Node(id="n1"))
        os.chdir(elsewhere)
        store.create_node(Node(id="n2"))
    os.chdir(here)
    with ReadOnlyStore("state") as reader:
        os.chdir(elsewhere)
        assert [node.id for node in reader.list_nodes()] == ["n1", "n2"]
    assert client.directory == str(here / "state")
    assert contents(elsewhere) == before


def test_a_change_of_the_current_directory_does_not_change_a_config(here: Path, elsewhere: Path) -> None:
    config = alone("data/m1", backup_dir="backups")
    os.chdir(elsewhere)
    assert config.data_dir == str(here / "data/m1")
    assert config.directory == here / "data/m1"
    assert config.backup_dir == str(here / "backups")


def test_a_relative_name_in_a_directory_that_is_gone_is_refused_by_its_field(here: Path) -> None:
    here.rmdir()
    with pytest.raises(InvalidConfig, match="current directory was removed") as caught:
        alone("data/m1")
    assert caught.value.field == "data_dir"
    with pytest.raises(FileNotFoundError, match="current directory was removed"):
        LocalStore("state")


def test_the_parent_of_a_symbolic_link_is_where_the_file_system_says(tmp_path: Path) -> None:
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "data")
    assert absolute(tmp_path / "link" / ".." / "m1") == str(tmp_path / "disk" / "m1")
    assert absolute(tmp_path / "link" / "m1") == str(tmp_path / "link" / "m1")
    assert absolute(tmp_path / "link" / ".." / "x" / ".." / "m1") == str(tmp_path / "disk" / "m1")


# -- a path that leads elsewhere


def test_a_log_goes_on_in_its_own_directory_when_another_one_takes_its_name(tmp_path: Path) -> None:
    """Segments are made, named and removed in the directory that was opened; the other deployment's stay."""
    place, moved = tmp_path / "log", tmp_path / "moved"
    place.mkdir()
    files = HeldDirectory(str(place))
    log = Log.open(
        str(place),
        files=files,
        node_id="a",
        new_incarnation=lambda: "first",
        segment_bytes=64 * 1024,
        start_segment_bytes=64 * 1024,
    )
    place.rename(moved)
    place.mkdir()
    for number in range(1, 9):
        (place / f"{number:016d}.log").write_bytes(b"another log")
        (place / f"prepared-{number}.tmp").write_bytes(b"being filled")
    before = contents(place)
    for index in range(2, 42):
        log.append(bytes(8000), index, 1)
        batch = log.take_batch()
        assert batch is not None
        batch.write()
        log.complete(batch)
        if (preparation := log.preparation()) is not None:
            preparation()
        log.set_commit(index)
        log.drop_prefix(index - 1)
        if (removal := log.removal()) is not None:
            removal()
    log.close()
    assert contents(place) == before
    names = files.list_directory(str(place))
    assert sorted(names) == sorted(path.name for path in moved.iterdir())
    assert 1 <= len([name for name in names if name.endswith(".log")]) <= 3
    with pytest.raises(FileNotFoundError, match=str(place / "missing.log")):
        files.open(str(place / "missing.log"))
    files.close()


# -- the directory goes away


def remove(*names: str) -> Callable[[Path], None]:
    """The part of a data directory that an operator removes by mistake."""

    def act(directory: Path) -> None:
        for name in names:
            found = list(directory.glob(name))
            assert found, name
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def move(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def replace_by_another(directory: Path) -> None:
    """By the directory of another deployment, with the same names in it."""
    move(directory)
    (directory.parent / "other").rename(directory)


def mount_over(directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

GOES_AWAY = {
    "everything": remove("*"),
    "log": remove("log"),
    "state": remove("state"),
    "snapshots": remove("snapshots"),
    "an older segment": remove("log/0000000000000001.log"),
    "the database file": remove("state/1.mdb"),
    "the pointer": remove("state/current"),
    "the marker": remove("state/1.mdb.unsynced"),
    "moved": move,
    "replaced": replace_by_another,
    "mounted over": mount_over,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=needs_root if name == "mounted over" else ()) for name in GOES_AWAY]
)
def test_a_manager_without_its_directory_stops_and_leaves_the_new_one_alone(what: str, tmp_path: Path) -> None:
    """(Pins a bug: it went on, and acknowledged writes into files that had no name any more.)"""
    with ReplicatedStore(alone(str(tmp_path / "other"))) as other:
        other.wait_ready(20)
        other.create_node(Node(id="other"))
    (tmp_path / "other" / SOCKET_NAME).touch()
    (tmp_path / "other" / "state" / "1.mdb.unsynced").touch()
    others = contents(tmp_path / "other")
    directory = tmp_path / "m1"
    with ReplicatedStore(alone(str(directory), admin=False)) as store:  # so that the log has two segments
        store.wait_ready(20)
        store.create_secret(Secret(id="large", name="large", data=bytes(900_000)))
        store.create_node(Node(id="n1"))
    store = ReplicatedStore(alone(str(directory)))
    try:
        store.wait_ready(20)
        store.create_node(Node(id="n2"))
        GOES_AWAY[what](directory)
        assert store.wait_failed(20)
        assert isinstance(store.failure, Corrupted)
        assert store.failure.path.startswith(str(directory))
        assert "was removed, moved or replaced" in str(store.failure)
        before = contents(directory) if directory.exists() else {}
        with pytest.raises(Closed):
            store.create_node(Node(id="n3"))
        assert store.status().failure == str(store.failure)
        assert [node.id for node in store.list_nodes()] == ["n1", "n2"]
        if what == "replaced":
            assert before == others
        store.close()
        if what == "an older segment":
            return  # all else is in its place, and is closed
        left = contents(directory) if directory.exists() else {}
        left.pop(SOCKET_NAME, None)
        assert left == {name: before[name] for name in before if name != SOCKET_NAME}
        assert (directory / SOCKET_NAME).exists() == (what == "replaced")
    finally:
        store.close()
        if what == "mounted over":
            subprocess.run(["umount", str(directory)], check=True)


def test_no_write_is_acknowledged_into_a_removed_log(tmp_path: Path) -> None:
    """Not even between two looks at the directory: each sync looks whether the file still has a name."""
    with ReplicatedStore(alone(str(tmp_path / "m1"))) as store:
        store.wait_ready(20)
        store.create_node(Node(id="n1"))
        for segment in (tmp_path / "m1" / "log").glob("*.log"):
            segment.unlink()
        with pytest.raises((Unavailable, Closed), match="was removed, moved or replaced"):
            store.create_node(Node(id="n2"))
        assert store.wait_failed(20)
        assert isinstance(store.failure, Corrupted)


@pytest.mark.parametrize("what", ["state", "the database file", "the pointer", "moved", "replaced"])
def test_a_local_store_without_its_directory_acknowledges_nothing_more(what: str, tmp_path: Path) -> None:
    with LocalStore(tmp_path / "other") as other:
        other.create_node(Node(id="other"))
    others = contents(tmp_path / "other")
    directory = tmp_path / "m1"
    store = LocalStore(directory)
    store.create_node(Node(id="n1"))
    store._look_at = 0.0  # the next look at the directory is due
    GOES_AWAY[what](directory)
    for _ in range(2):
        with pytest.raises(Corrupted, match="was removed, moved or replaced"):
            store.create_node(Node(id="n2"))
    assert [node.id for node in store.list_nodes()] == ["n1"]
    store.close()
    if what == "replaced":
        assert contents(directory) == others
        with LocalStore(directory) as other:
            assert [node.id for node in other.list_nodes()] == ["other"]
    if what in ("moved", "replaced"):
        with LocalStore(tmp_path / "moved") as moved:
            assert [node.id for node in moved.list_nodes()] == ["n1"]


def test_a_local_store_acknowledges_nothing_into_a_removed_file_between_two_looks(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "m1") as store:
        store.create_node(Node(id="n1"))
        store._look_at = float("inf")
        remove("state/1.mdb")(tmp_path / "m1")
        with pytest.raises(Corrupted, match="was removed"):
            store.create_node(Node(id="n2"))


def test_a_prepared_segment_that_a_tidy_up_removes_is_made_again(tmp_path: Path) -> None:
    """(Pins a bug: the roll failed, and the manager stopped.) There is nothing in it but zeros."""
    place = tmp_path / "log"
    place.mkdir()
    files = HeldDirectory(str(place))
    log = Log.open(str(place), files=files, node_id="a", new_incarnation=lambda: "first", start_segment_bytes=64 * 1024)
    for index in range(2, 40):
        log.append(bytes(8000), index, 1)
        batch = log.take_batch()
        assert batch is not None
        batch.write()
        log.complete(batch)
        if (preparation := log.preparation()) is not None:
            preparation()
            remove("prepared-*.tmp")(place)
    log.close()
    files.close()
    again = Log.open(str(place), files=OsFiles(), node_id="a", new_incarnation=lambda: "second")
    assert (again.last_index, again.incarnation) == (39, "first")
    again.close()


# -- the lock


def test_no_second_process_gets_in_when_the_lock_file_is_removed(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    (tmp_path / "lock").unlink()
    with pytest.raises(InUse, match=r"perhaps somebody removed the lock file.*fuser -v"):
        DirectoryLock(tmp_path)
    (tmp_path / "lock").unlink()
    assert lock.restore_file()
    assert not lock.restore_file()
    with pytest.raises(InUse, match="is in use by another store of this process: close it first"):
        DirectoryLock(tmp_path)
    lock.release()
    DirectoryLock(tmp_path).release()


def test_a_lock_file_that_was_replaced_is_locked_or_the_store_must_stop(tmp_path: Path) -> None:
    """A store of an older release looks at the file alone: where it has locked the new one, two work in one place."""
    lock = DirectoryLock(tmp_path)
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").touch()
    assert lock.restore_file()
    (tmp_path / "lock").unlink()
    with (tmp_path / "lock").open("w") as older:
        fcntl.flock(older, fcntl.LOCK_EX)
        with pytest.raises(InUse):
            lock.restore_file()
    assert lock.restore_file()
    lock.release()


def test_a_directory_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """systemd-tmpfiles locks each directory that it looks through."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(0.2, os.close, [descriptor])
    timer.start()
    DirectoryLock(tmp_path).release()
    timer.join()


def test_a_lock_on_a_file_that_was_removed_meanwhile_keeps_nobody_out_and_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            (tmp_path / "lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = DirectoryLock(tmp_path)
    assert not lock.restore_file()
    lock.release()


def test_a_manager_makes_its_lock_file_and_its_socket_again_and_says_so(tmp_path: Path) -> None:
    directory = tmp_path / "m1"
    with ReplicatedStore(alone(str(directory))) as store:
        store.wait_ready(20)
        (directory / "lock").unlink()
        (directory / SOCKET_NAME).unlink()
        wait_until(lambda: (directory / "lock").exists(), "the lock file")
        wait_until(lambda: (directory / SOCKET_NAME).exists(), "the socket")
        alarms = AdminClient(directory).status()["alarms"]
        assert [alarm["name"] for alarm in alarms] == ["lock-file-removed"]
        assert str(directory) in alarms[0]["text"]
        with pytest.raises(InUse):
            LocalStore(directory)
        store.create_node(Node(id="n1"))


def test_a_local_store_makes_its_lock_file_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LocalStore(tmp_path) as store:
        (tmp_path / "lock").unlink()
        store._look_at = 0.0
        store.create_node(Node(id="n1"))
        assert (tmp_path / "lock").exists()
        assert "exclude this directory from clean-ups" in caplog.text
        with pytest.raises(InUse):
            LocalStore(tmp_path)


def test_a_manager_says_that_the_lock_file_of_its_readers_was_removed(tmp_path: Path) -> None:
    """It goes on, as nobody can read beside it now; only a new start makes that file again."""
    directory = tmp_path / "m1"
    with ReplicatedStore(alone(str(directory))) as store:
        store.wait_ready(20)
        (directory / "state" / "1.mdb-lock").unlink()
        wait_until(lambda: store.alarms, "the alarm")
        (alarm,) = store.alarms
        assert (alarm.name, alarm.subject) == ("lock-file-removed", str(directory / "state" / "1.mdb-lock"))
        assert store.failure is None
        store.create_node(Node(id="n"))


def test_a_lock_file_that_cannot_be_made_is_named_with_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a bug: "lock: Read-only file system".)"""

    def refuse(path: str, flags: int, *, directory: int | None = None) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(sharing, "open_new", refuse)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        DirectoryLock(tmp_path)
    assert caught.value.filename == str(tmp_path / "lock")
