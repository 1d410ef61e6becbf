"""The promise: of a manager's own snapshots the newest two stay, and the snapshots in use stay as long as necessary.

Jobs run here one after the other. Events between them are in tests/unit/test_killed_installs.py and the simulation.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.snapshot_support import add_node, small_state, snapshot_of
from warren_raft.disk.files import OsFiles
from warren_raft.errors import Corrupted, SnapshotInvalid, StorageFull
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.keeper import Keeper
from warren_raft.snapshots.verification import verify
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory


def opened(directory: Path, database: Database) -> Keeper:
    keeper = Keeper(
        StateDirectory(directory),
        node_id="n1",
        reserve_bytes=0,
        verify=lambda path, records, _cancel: verify(path, records=records),
    )
    keeper.machine = StateMachine(database)
    keeper.open()
    return keeper


def test_old_ones_go_and_those_in_use_stay(tmp_path: Path) -> None:
    """A follower that fetches the oldest snapshot must still find it. After the fetch, the snapshot goes with the
    next."""
    directory = SnapshotDirectory(tmp_path)
    with small_state(tmp_path, containers=5) as database:
        keeper = opened(tmp_path, database)

        def kept(number: int, pinned: set[str]) -> list[int]:
            add_node(database, f"node-{number}")
            keeper.took(keeper.take(quorum=True)(), pinned)
            keeper.tidy()
            assert [held.snapshot for held in keeper.held] == directory.list()
            return [held.index for held in keeper.held]

        first, *_ = kept(0, set())
        fetched = {keeper.held[0].sha256}
        for number in range(1, 4):
            indexes = kept(number, fetched)
        assert (len(indexes), indexes[-1]) == (3, first), "the newest two, and the one in use"
        assert kept(4, set())[1:] == indexes[:1], "no longer in use"


def test_a_snapshot_that_was_removed_since_it_was_proved_is_not_held_and_the_older_one_is_used(tmp_path: Path) -> None:
    """(Pins a bug: the state was rebuilt from the missing file again and again, for ever.)"""
    with small_state(tmp_path, containers=5) as database:
        keeper = opened(tmp_path, database)
        for number in range(2):
            add_node(database, f"node-{number}")
            keeper.took(keeper.take(quorum=True)(), set())
        newest, older = keeper.held
        os.unlink(newest.snapshot.path)
        rebuilt = keeper.rebuild(lambda _index, _term: True)()
        assert rebuilt.applied_index == older.index
        keeper.discard(rebuilt)
        assert keeper.held == [older]
        with pytest.raises(FileNotFoundError):
            keeper.read(newest.sha256, 0, 10)()


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_snapshot_that_was_damaged_since_it_was_proved_is_not_sent_for_ever(tmp_path: Path) -> None:
    """(Pins a bug: followers fetched it again and again, and refused it each time, until another was taken.)"""
    with small_state(tmp_path, containers=5) as database:
        keeper = opened(tmp_path, database)
        keeper.took(keeper.take(quorum=True)(), set())
        (held,) = keeper.held
        assert len(keeper.read(held.sha256, 0, 4096)()) == 4096
        flip(held.snapshot.path, 3 * 4096 + 100)
        keeper.read(held.sha256, 4096, 4096)()
        keeper.read(held.sha256, 0, 4096)()
        with pytest.raises(SnapshotInvalid):
            keeper.read(held.sha256, 0, 4096, again=True)()
        assert keeper.held == [], "so the leader takes another one"


def test_a_state_is_not_rebuilt_from_a_snapshot_that_was_damaged_since_it_was_proved(tmp_path: Path) -> None:
    with small_state(tmp_path, containers=5) as database:
        keeper = opened(tmp_path, database)
        for number in range(2):
            add_node(database, f"node-{number}")
            keeper.took(keeper.take(quorum=True)(), set())
        newest, older = keeper.held
        flip(newest.snapshot.path, 3 * 4096 + 100)
        rebuilt = keeper.rebuild(lambda _index, _term: True)()
        assert rebuilt.applied_index == older.index
        keeper.discard(rebuilt)


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_fetch_gives_way_on_a_full_disk_and_waits_for_anything_else_that_is_lacking(tmp_path: Path) -> None:
    """On a full disk the log needs the space more than half a snapshot does. During any other shortage, fetching the
    first half again would be of no use."""

    def opened(reserve_bytes: int) -> Keeper:
        keeper = Keeper(StateDirectory(tmp_path), node_id="n1", reserve_bytes=reserve_bytes)
        keeper.open()
        return keeper

    opened(0).receive("a hash", 0, b"x" * 5_000, 10_000)()
    keeper = opened(0)
    with files_no_larger_than(5_000), pytest.raises(StorageFull):
        keeper.receive("a hash", 5_000, b"x" * 5_000, 10_000)()
    assert keeper.incoming == ("a hash", 5_000), "a file may not become larger just now: the present part stays"

    keeper = opened(1 << 60)
    with pytest.raises(StorageFull):
        keeper.receive("a hash", 5_000, b"x" * 5_000, 10_000)()
    assert keeper.incoming == ("", 0)
    assert os.listdir(tmp_path / "snapshots") == []


def test_a_disk_that_lacks_one_byte_does_not_read_as_one_with_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: "has 11.0 GiB left: 10.0 GiB are needed, and 1.0 GiB stay free".)"""
    keeper = Keeper(StateDirectory(tmp_path), node_id="n1", reserve_bytes=2**30)
    monkeypatch.setattr(OsFiles, "free_bytes", lambda _files, _place: 11 * 2**30 - 1)
    keeper.require_room(10 * 2**30 - 1)
    with pytest.raises(StorageFull) as caught:
        keeper.require_room(10 * 2**30)
    assert str(caught.value) == (
        f"{tmp_path} has 11811160063 B left, and 11811160064 B are needed: "
        "10.0 GiB to write, and 1.0 GiB that stay free"
    )


def test_a_fetched_part_that_somebody_removed_is_fetched_again(tmp_path: Path) -> None:
    """(Pins a bug: the manager asked for the rest of the file, which it had not, until it was started again.)"""
    keeper = Keeper(StateDirectory(tmp_path), node_id="n1", reserve_bytes=0)
    keeper.open()
    for next_step in (keeper.receive("a hash", 5_000, b"x" * 5_000, 10_000), keeper.open_incoming("a hash", None)):
        keeper.receive("a hash", 0, b"x" * 5_000, 10_000)()
        os.unlink(tmp_path / "snapshots" / "incoming.part")
        with pytest.raises(FileNotFoundError):
            next_step()
        assert keeper.incoming == ("", 0)


def test_a_snapshot_of_another_cluster_is_refused_and_any_is_taken_by_a_manager_without_one(tmp_path: Path) -> None:
    """A manager that lost its directory has no cluster yet: the snapshot gives it the cluster id."""
    (tmp_path / "sender").mkdir()
    with small_state(tmp_path / "sender", containers=5) as database:
        sha256 = snapshot_of(database, tmp_path / "sent").sha256
    data = (tmp_path / "sent").read_bytes()

    def fetched(directory: Path) -> Keeper:
        state = StateDirectory(directory)
        state.create()
        keeper = Keeper(
            state,
            node_id="n2",
            reserve_bytes=0,
            verify=lambda path, records, _cancel: verify(path, records=records),
        )
        keeper.open()
        keeper.receive(sha256, 0, data, len(data))()
        return keeper

    with pytest.raises(SnapshotInvalid, match="is of cluster cluster-1, this manager of cluster-2"):
        fetched(tmp_path / "m2").open_incoming(sha256, "cluster-2")()
    for name, cluster_id in (("m3", "cluster-1"), ("m4", None)):
        _, machine = fetched(tmp_path / name).open_incoming(sha256, cluster_id)()
        assert machine.cluster_id == "cluster-1"
        machine.database.close()


def test_a_state_that_cannot_be_rebuilt_names_the_next_command(tmp_path: Path) -> None:
    """(Pins a fault: the message was another one than that of a manager without a usable log, and had no command.)"""
    with small_state(tmp_path, containers=5) as database, pytest.raises(Corrupted) as caught:
        opened(tmp_path, database).rebuild(lambda _index, _term: False)()
    assert "none of its snapshots can be used: " in str(caught.value)
    assert "type on another manager: warren-raft members remove n1; that command prints the next steps" in str(
        caught.value
    )
    assert "warren-raft snapshot restore" in str(caught.value)
