"""The promise: a store works in the directory that was named when it was opened, and in no other one, whatever the
program around it does with its current directory.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import wait_until
from warren_raft.admin import SOCKET_NAME
from warren_raft.admin.client import AdminClient
from warren_raft.config import Config
from warren_raft.entities import Node, Secret
from warren_raft.errors import InvalidEntity
from warren_raft.local import LocalStore, ReadOnlyStore
from warren_raft.manager import ReplicatedStore
from warren_raft.paths import absolute
from warren_raft.raft.files import HeldDirectory
from warren_raft.raft.log import Log


def alone(directory: str, **options: Any) -> Config:
    """A cluster of one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    return Config(data_dir=directory, node_id="m1", listen=address, members={"m1": address}, **options)


def contents(directory: Path) -> dict[str, str]:
    """Every file below a directory, with its hash; of a socket the inode."""
    return {
        str(path.relative_to(directory)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path.stat().st_ino)
        )
        for path in directory.rglob("*")
        if not path.is_dir()
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
        assert store.status()["alarms"] == []
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


def test_a_config_made_before_a_change_of_the_current_directory_means_what_it_meant(
    here: Path, elsewhere: Path
) -> None:
    config = alone("data/m1", backup_dir="backups")
    os.chdir(elsewhere)
    assert config.data_dir == str(here / "data/m1")
    assert config.directory == here / "data/m1"
    assert config.backup_dir == str(here / "backups")


def test_a_relative_name_in_a_directory_that_is_gone_is_refused_by_its_field(here: Path) -> None:
    here.rmdir()
    with pytest.raises(InvalidEntity, match="current directory was removed") as caught:
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
