"""The promise: a snapshot comes through the admin socket whole, or the caller is told that it did not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_admin import FakeManager, running
from warren_raft import errors
from warren_raft.admin import sending
from warren_raft.admin.client import AdminClient, NotRunning, SnapshotCut


class SnapshotManager(FakeManager):
    """Sends `content`, once `gate` is open, or raises `outcome`."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.file.write_bytes(os.urandom(3_000_000))

    def nameless_snapshot(self) -> int:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.outcome is not None:
            raise self.outcome
        return os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def manager(tmp_path: Path) -> SnapshotManager:
    return SnapshotManager(tmp_path / "file")


@pytest.fixture
def client(manager: SnapshotManager, tmp_path: Path) -> Iterator[AdminClient]:
    (tmp_path / "m1").mkdir()
    with running(manager, tmp_path / "m1") as client:
        yield client


def fetched(client: AdminClient) -> bytes:
    with client.snapshot() as (size, chunks):
        data = b"".join(chunks)
    assert len(data) == size
    return data


def test_all_of_it_comes(client: AdminClient, manager: SnapshotManager) -> None:
    assert fetched(client) == manager.file.read_bytes()


def test_no_descriptor_is_left_behind(manager: SnapshotManager, tmp_path: Path) -> None:
    (tmp_path / "m1").mkdir()
    with running(manager, tmp_path / "m1") as client:
        fetched(client)  # modules that are loaded once are loaded now
    before = set(os.listdir("/proc/self/fd"))
    with running(manager, tmp_path / "m1") as client:
        for _ in range(5):
            fetched(client)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "error",
    [errors.StorageFull("no room"), errors.SnapshotInvalid("/s", "is torn"), errors.Closed("the store is closed")],
)
def test_an_error_of_the_manager_arrives_as_it_is(
    client: AdminClient, manager: SnapshotManager, error: errors.WarrenError
) -> None:
    manager.outcome = error
    with pytest.raises(type(error)) as caught:
        fetched(client)
    assert str(caught.value) == str(error)


def test_without_a_manager_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        fetched(AdminClient(tmp_path))


def test_a_manager_that_goes_away_half_way_is_noticed(manager: SnapshotManager, tmp_path: Path) -> None:
    """Shown by a file that becomes shorter than was announced: the connection ends before all of it came."""
    (tmp_path / "m1").mkdir()
    with running(manager, tmp_path / "m1") as client, client.snapshot() as (size, chunks):
        received = len(next(chunks))
        os.truncate(manager.file, 1_000_000)
        with pytest.raises(SnapshotCut, match="no snapshot was saved"):
            received += sum(map(len, chunks))
        assert received < size


@pytest.mark.slow
def test_a_manager_that_closes_before_it_begins_is_noticed(manager: SnapshotManager, tmp_path: Path) -> None:
    (tmp_path / "m1").mkdir()
    manager.gate = threading.Event()
    caught: list[BaseException] = []

    def fetch() -> None:
        try:
            fetched(AdminClient(tmp_path / "m1"))
        except errors.WarrenError as error:
            caught.append(error)

    with running(manager, tmp_path / "m1"):
        thread = threading.Thread(target=fetch)
        thread.start()
        assert manager.entered.wait(30)
    thread.join()
    manager.outcome = errors.Closed()
    manager.gate.set()
    assert [type(error) for error in caught] == [SnapshotCut]


def test_only_so_many_at_a_time(client: AdminClient, manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds disk space; and the next one is served once one has ended."""
    monkeypatch.setattr(sending, "MAX_SENDERS", 1)
    manager.gate = threading.Event()
    results: list[bytes] = []
    first = threading.Thread(target=lambda: results.append(fetched(client)))
    first.start()
    try:
        assert manager.entered.wait(30)
        with pytest.raises(errors.InUse, match="is sending 1 snapshots already"):
            fetched(client)
    finally:
        manager.gate.set()
        first.join()
    assert [len(data) for data in results] == [3_000_000]
    assert len(fetched(client)) == 3_000_000


def test_a_receiver_that_stands_still_is_given_up(
    client: AdminClient, manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "STALL_SECONDS", 0.05)
    manager.file.write_bytes(bytes(50_000_000))  # more than sockets hold
    ended = threading.Event()
    leave = sending.Senders.__exit__
    monkeypatch.setattr(sending.Senders, "__exit__", lambda self, *_e: (leave(self), ended.set())[0])
    with client.snapshot() as (_size, chunks):
        next(chunks)
        assert ended.wait(30)
        with pytest.raises(SnapshotCut):
            sum(map(len, chunks))
