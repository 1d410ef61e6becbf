"""The promise: of a manager's own snapshots the newest two stay, and for as long as somebody needs them, those in use.

Jobs run here one after the other; what comes between them is in tests/unit/test_killed_installs.py and the simulation.
"""

from __future__ import annotations

from pathlib import Path

from tests.snapshot_support import add_node, small_state
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.keeper import Keeper
from warren_raft.snapshots.verification import verify
from warren_raft.store.generations import StateDirectory


def test_old_ones_go_and_those_in_use_stay(tmp_path: Path) -> None:
    """A follower that fetches the oldest is not to find it gone; once it has it, it goes with the next."""
    directory = SnapshotDirectory(tmp_path)
    with small_state(tmp_path, containers=5) as database:
        keeper = Keeper(
            StateDirectory(tmp_path),
            node_id="n1",
            reserve_bytes=0,
            verify=lambda path, records, _cancel: verify(path, records=records),
        )
        keeper.machine = StateMachine(database)
        keeper.open()

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
