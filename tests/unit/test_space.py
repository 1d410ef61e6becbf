"""The promise: before a disk or the database is full, only creates and updates are refused, with the reason. The
refusal ends by itself when there is enough space again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports
from warren_raft import config as config_module
from warren_raft.alarms import Alarms
from warren_raft.disk.files import OsFiles
from warren_raft.errors import InvalidConfig, StorageFull
from warren_raft.manager.disk_space import Space
from warren_raft.store.database import MAP_SIZE_BYTES, QUOTA_BYTES, Database

MIB = 1024 * 1024
WAIT_SECONDS = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT_SECONDS / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"waited for {what}")


# Measuring -----------------------------------------------------------------------------------------------------------


def test_a_disk_is_low_below_its_reserve_and_has_room_clearly_above(tmp_path: Path) -> None:
    free = [100 * MIB]
    space = Space(str(tmp_path), reserve_bytes=100 * MIB, quota_bytes=MIB, alarms=Alarms("m1"), free=lambda _: free[0])
    with Database.open(tmp_path, sync=False) as database:
        said = []
        for free[0] in (100 * MIB, 100 * MIB - 1, 124 * MIB, 125 * MIB, 124 * MIB, 99 * MIB):
            said.append(space.look(database))
            assert space.is_low == said[-1] == bool(space.shortages)
    assert said == [False, True, True, False, False, True]
    assert str(tmp_path) in space.shortages[0]
    assert "99.0 MiB" in space.shortages[0]


def test_a_reserve_of_nothing_is_never_touched(tmp_path: Path) -> None:
    space = Space(str(tmp_path), reserve_bytes=0, quota_bytes=MIB, alarms=Alarms("m1"), free=lambda _: 0)
    with Database.open(tmp_path, sync=False) as database:
        assert not space.look(database)


class Sized:
    """A database with a size that the test sets."""

    used = 0

    def read(self) -> Sized:
        return self

    def __enter__(self) -> Sized:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def used_bytes(self, *, history: bool) -> int:
        assert not history
        return self.used


def test_a_database_is_low_above_its_quota_and_has_room_clearly_below(tmp_path: Path) -> None:
    space = Space(str(tmp_path), reserve_bytes=0, quota_bytes=100 * MIB, alarms=Alarms("m1"))
    database, said = Sized(), []
    for database.used in (100 * MIB, 100 * MIB + 1, 96 * MIB, 95 * MIB, 96 * MIB):
        said.append(space.look(cast(Database, database)))
        assert space.is_low == said[-1] == bool(space.shortages)
        assert all("has reached its quota" in alarm and str(tmp_path) in alarm for alarm in space.shortages)
    assert said == [False, True, True, False, False]


def test_the_quota_is_at_most_half_the_map() -> None:
    assert config_module.MAX_QUOTA_BYTES == QUOTA_BYTES == MAP_SIZE_BYTES // 2
    settings = {"node_id": "m1", "data_dir": "d", "listen": "127.0.0.1:1", "members": {"m1": "127.0.0.1:1"}}
    for wrong in (0, -1, QUOTA_BYTES + 1, 1.5, True):
        with pytest.raises(InvalidConfig, match="quota_bytes"):
            wr.Config.from_mapping({**settings, "quota_bytes": wrong})


# A manager -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free bytes on the disk of every manager."""
    left = [10_000 * MIB]
    monkeypatch.setattr(OsFiles, "free_bytes", lambda _files, _place: left[0])
    return left


@pytest.fixture
def store(tmp_path: Path, free: list[int]) -> Iterator[wr.ReplicatedStore]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = wr.Config(
        data_dir=tmp_path,
        node_id="m1",
        listen=address,
        members={"m1": address},
        checkpoint_interval_seconds=0.05,
        disk_reserve_bytes=100 * MIB,
        quota_bytes=600_000,
        admin=False,
    )
    with wr.ReplicatedStore(config) as opened:
        opened.wait_ready()
        yield opened


def test_without_room_creates_are_refused_at_once_and_deletes_are_not(
    store: wr.ReplicatedStore, free: list[int], tmp_path: Path
) -> None:
    for id_ in "abc":
        store.create_node(wr.Node(id=id_))
    before = store.status()
    assert not before.full
    assert before.alarms == ()
    free[0] = 99 * MIB
    wait_until(lambda: store.status().full, "the manager to be full")
    assert str(tmp_path) in store.alarms[0].text
    with pytest.raises(StorageFull, match=r"the disk of .* is low on space: 99\.0 MiB are free"):
        store.create_node(wr.Node(id="d"))
    with pytest.raises(StorageFull):
        store.update_node(wr.Node(id="a", hostname="x"))
    with pytest.raises(StorageFull), store.batch() as batch:  # noqa: PT012
        batch.delete_node("a")
        batch.create_node(wr.Node(id="d"))
    with store.batch(wait=False) as outstanding:
        outstanding.delete_node("a")
        outstanding.create_node(wr.Node(id="d"))
    with pytest.raises(StorageFull):
        outstanding.future.result(30)
    assert store.status().applied_index == before.applied_index, "something was sent"
    store.delete_node("a")
    store.barrier()
    assert [node.id for node in store.list_nodes()] == ["b", "c"]
    free[0] = 200 * MIB
    wait_until(lambda: not store.status().full, "the manager to have room")
    assert store.alarms == ()
    store.create_node(wr.Node(id="d"))


def test_beyond_the_quota_deletes_make_room(store: wr.ReplicatedStore) -> None:
    created = 0
    with pytest.raises(StorageFull, match="quota") as raised:  # noqa: PT012
        for created in range(100_000):
            store.create_node(wr.Node(id=f"n{created}", hostname="x" * 1000))
    assert "\n" not in str(raised.value)
    assert len(store.list_nodes()) == created
    for number in range(created // 2):
        store.delete_node(f"n{number}")
    wait_until(lambda: not store.status().full, "deletes to make room")
    store.create_node(wr.Node(id="again"))
