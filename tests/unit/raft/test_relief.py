"""A wrong state is replaced also at a leader, even if no manager can take over leadership or send another state.

Engines in one thread with a list as their state (tests/engine_harness.py). Not here: how a follower gets a state
(test_catchup.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine_harness import Cluster
from tests.list_machine import Held, ListMachine
from warren_raft.errors import Corrupted, SnapshotInvalid, StorageFull
from warren_raft.raft import catchup
from warren_raft.raft.installation import REBUILD_AGAIN_SECONDS, RELIEF_SECONDS
from warren_raft.raft.reasons import Reason
from warren_raft.raft.replacement import Event, Phase

SMALL = 2_000


def spoil_snapshots(cluster: Cluster, id_: str, times: int) -> None:
    """The next copies of this manager's state fail their verification."""
    state = cluster.states[id_]
    right = state.take
    left = [times]

    def take(*, quorum: bool) -> Callable[[], Held]:
        job = right(quorum=quorum)

        def spoiled() -> Held:
            if left[0]:
                left[0] -= 1
                raise SnapshotInvalid("taking.part", "a copy of the state does not prove itself")
            return job()

        return spoiled

    state.take = take  # type: ignore[method-assign]


def write_some(cluster: Cluster, count: int = 60) -> None:
    for number in range(count):
        cluster.write(cluster.wait_leader().id, f"{number} {cluster.now} {'x' * 100}")


def alone() -> Cluster:
    cluster = Cluster(["m1"], snapshot_after_bytes=SMALL)
    cluster.wait_ready()
    return cluster


def test_the_only_manager_uses_the_state_that_it_has_rebuilt() -> None:
    """(Pins a bug: a leader could not use a rebuilt state, and the only manager always leads. So it served a state that
    it knew to be wrong, took no snapshot, and its log grew for ever.)"""
    cluster = alone()
    spoil_snapshots(cluster, "m1", 1)
    write_some(cluster)
    state = cluster.states["m1"]
    cluster.run_until(lambda: state.installed)
    cluster.run(catchup.RETRY_SECONDS)
    write_some(cluster, 200)
    assert len(state.held) == 2
    assert cluster.nodes["m1"].log.base_index > 1
    cluster.check_writes()


def test_the_only_manager_is_back_at_once() -> None:
    """It does not have to wait for the vote or the leadership of another manager."""
    cluster = alone()
    spoil_snapshots(cluster, "m1", 1)
    for number in range(40):
        cluster.submit("m1", f"{number} {'x' * 100}")
    node = cluster.nodes["m1"]
    cluster.run_until(lambda: not node.engine.is_leader)
    since = cluster.now
    cluster.wait_leader()
    assert cluster.now - since < 0.2


def test_the_only_manager_stops_when_no_rebuilt_state_proves_itself() -> None:
    cluster = alone()
    spoil_snapshots(cluster, "m1", 3)
    for number in range(300):
        if "m1" not in cluster.nodes:
            break
        cluster.submit("m1", f"{number} {'x' * 100}", seconds=60)
        cluster.run(0.1)
    error = cluster.stopped["m1"]
    assert isinstance(error, Corrupted)
    assert "snapshot restore" in str(error), "the only manager cannot be removed and added again"
    assert len(cluster.states["m1"].installed) == 2


def test_the_only_manager_waits_for_room_to_rebuild_its_state() -> None:
    cluster = alone()
    spoil_snapshots(cluster, "m1", 1)
    state = cluster.states["m1"]
    right = state.rebuild
    full = True
    tried: list[float] = []

    def rebuild(log_holds: Callable[[int, int], bool]) -> Callable[[], ListMachine]:
        job = right(log_holds)

        def build() -> ListMachine:
            tried.append(cluster.now)
            if full:
                raise StorageFull("no room for another state")
            return job()

        return build

    state.rebuild = rebuild  # type: ignore[method-assign]
    write_some(cluster)
    cluster.run(2 * REBUILD_AGAIN_SECONDS)
    assert 2 <= len(tried) <= 4
    assert cluster.leader is not None, "it goes on with the wrong state until then"
    assert not state.installed
    full = False
    cluster.run_until(lambda: state.installed)
    cluster.check_writes()


def test_a_state_that_cannot_be_rebuilt_stops_the_only_manager() -> None:
    cluster = alone()
    spoil_snapshots(cluster, "m1", 1)

    def rebuild(_log_holds: Callable[[int, int], bool]) -> Callable[[], ListMachine]:
        def build() -> ListMachine:
            raise Corrupted("the state", "there is no snapshot that the log goes on from")

        return build

    cluster.states["m1"].rebuild = rebuild  # type: ignore[method-assign]
    for number in range(60):
        if "m1" in cluster.nodes:
            cluster.submit("m1", f"{number} {'x' * 100}")
            cluster.run(0.1)
    assert "snapshot restore" in str(cluster.stopped["m1"])


def test_a_leader_that_nobody_relieves_steps_down_and_uses_its_rebuilt_state() -> None:
    """The others follow and cannot lead, here because they take their own states for wrong."""
    cluster = Cluster(snapshot_after_bytes=SMALL)
    leader = cluster.wait_ready()
    followers = cluster.followers()
    for id_ in followers:
        cluster.nodes[id_].engine._replacement.is_wrong = True
    spoil_snapshots(cluster, leader.id, 1)
    state = cluster.states[leader.id]
    since = cluster.now
    for number in range(60):
        cluster.submit(leader.id, f"{number} {'x' * 100}", seconds=60)
        cluster.run(0.02)
    cluster.run_until(lambda: state.installed)
    assert cluster.now - since > RELIEF_SECONDS
    for id_ in followers:
        cluster.nodes[id_].engine._replacement.is_wrong = False
    cluster.run_until(lambda: len(cluster.acknowledged) == 60)
    cluster.check_writes()


def test_a_leader_that_is_relieved_does_not_step_down_first() -> None:
    """The next leader has all entries, so there is no time without a leader."""
    cluster = Cluster(snapshot_after_bytes=SMALL)
    leader = cluster.wait_ready()
    spoil_snapshots(cluster, leader.id, 1)
    term = leader.engine.term
    write_some(cluster, 40)
    cluster.run_until(lambda: cluster.states[leader.id].installed)
    assert cluster.wait_leader().engine.term == term + 1


@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_leader_needs_no_state_that_it_fetched_before_it_led(is_wrong: bool) -> None:
    """A leader has all committed entries. As long as the fetched state waits, no snapshot is taken, and the log
    grows."""
    cluster = Cluster(snapshot_after_bytes=SMALL)
    leader = cluster.wait_ready()
    old = ListMachine()
    old.applied_index, old.applied_term = 2, 99  # an entry that our log does not have
    if is_wrong:
        leader.engine._replacement.go(Event.WRONG)
    leader.engine._installation.install(old)
    cluster.turn()
    assert leader.engine._replacement.phase is Phase.IN_USE
    write_some(cluster, 40)
    cluster.run_until(lambda: leader.snapshots.held)


def test_an_odd_one_leads_rather_than_nobody() -> None:
    """Its state is wrong, and it can get another state only from a leader. The leader has died, and the only other
    manager lacks entries. Its log is right, so it campaigns after a while, and hands over when the other manager has
    all entries."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    odd, behind = cluster.followers()
    cluster.isolate(behind)
    cluster.write(leader.id, "a")
    replacement = cluster.nodes[odd].engine._replacement
    replacement.go(Event.WRONG_AGAIN)
    cluster.crash(leader.id)
    cluster.heal()
    cluster.run_until(lambda: cluster.machines[behind].applied == ["a"], 40)
    cluster.run_until(lambda: cluster.leader is not None and cluster.leader.id == behind)
    cluster.run_until(lambda: not replacement.is_wrong)
    cluster.check_writes()


def test_the_last_one_left_does_not_wait_for_a_state_of_those_who_went() -> None:
    """It waits for the leader's state. The leader is removed, so it is the only manager now, without a leader."""
    cluster = Cluster(["m1", "m2"], snapshot_after_bytes=SMALL)
    leader = cluster.wait_ready()
    (stays,) = cluster.followers()
    cluster.write(leader.id, "a")
    assert cluster.change(stays, "remove", leader.id).state == "done"
    engine = cluster.nodes[stays].engine
    engine._leading.step_down(Reason("test", "a test"))
    engine._replacement.go(Event.WRONG_AGAIN)
    cluster.run_until(lambda: cluster.states[stays].installed, 3)
    assert not engine._replacement.is_wrong
    cluster.write(stays, "b")
    cluster.check_writes()


# ---- a right state that has to go on in another file


def test_the_only_manager_goes_on_in_another_file() -> None:
    cluster = alone()
    write_some(cluster)
    state = cluster.states["m1"]
    before = len(state.installed)
    cluster.nodes["m1"].engine.renewal_wanted = True
    cluster.run_until(lambda: len(state.installed) > before)
    write_some(cluster)
    assert len(state.installed) == before + 1
    assert not cluster.nodes["m1"].engine.alarms.active
    cluster.nodes["m1"].engine.renewal_wanted = True
    cluster.run_until(lambda: len(state.installed) == before + 2)  # and again, as often as necessary
    write_some(cluster)
    cluster.check_writes()


def test_a_leader_is_relieved_before_it_goes_on_in_another_file() -> None:
    cluster = Cluster(["m1", "m2", "m3"], snapshot_after_bytes=SMALL)
    cluster.wait_ready()
    write_some(cluster)
    leader = cluster.wait_leader()
    term = leader.engine.term
    state = cluster.states[leader.id]
    before, since = len(state.installed), cluster.now
    leader.engine.renewal_wanted = True
    cluster.run_until(lambda: len(state.installed) > before)
    assert cluster.now - since < RELIEF_SECONDS
    assert cluster.wait_leader().id != leader.id
    assert cluster.wait_leader().engine.term == term + 1
    write_some(cluster)
    cluster.check_writes()


def test_a_leader_that_nobody_relieves_goes_on_in_another_file() -> None:
    """The others follow and cannot lead, because they take their own states for wrong."""
    cluster = Cluster(snapshot_after_bytes=SMALL)
    leader = cluster.wait_ready()
    write_some(cluster)
    for id_ in cluster.followers():
        cluster.nodes[id_].engine._replacement.is_wrong = True
    state = cluster.states[leader.id]
    before, since = len(state.installed), cluster.now
    leader.engine.renewal_wanted = True
    cluster.run_until(lambda: len(state.installed) > before)
    assert cluster.now - since > RELIEF_SECONDS
    for id_ in cluster.nodes:
        cluster.nodes[id_].engine._replacement.is_wrong = False
    write_some(cluster)
    cluster.check_writes()


def test_a_follower_goes_on_in_another_file_and_nobody_notices() -> None:
    cluster = Cluster(["m1", "m2", "m3"], snapshot_after_bytes=SMALL)
    cluster.wait_ready()
    write_some(cluster)
    leader = cluster.wait_leader()
    follower = next(node for node in cluster.nodes.values() if node.id != leader.id)
    term = leader.engine.term
    state = cluster.states[follower.id]
    before = len(state.installed)
    follower.engine.renewal_wanted = True
    cluster.run_until(lambda: len(state.installed) > before)
    assert (cluster.wait_leader().id, leader.engine.term) == (leader.id, term)
    write_some(cluster)
    cluster.check_writes()


def test_a_state_that_cannot_be_made_once_more_stays_and_goes_on() -> None:
    cluster = alone()
    write_some(cluster)
    state = cluster.states["m1"]
    before = len(state.installed)

    def rebuild(_log_holds: Callable[[int, int], bool]) -> Callable[[], ListMachine]:
        def job() -> ListMachine:
            raise StorageFull("no space left")

        return job

    right = state.rebuild
    state.rebuild = rebuild  # type: ignore[method-assign]
    cluster.nodes["m1"].engine.renewal_wanted = True
    write_some(cluster)
    assert len(state.installed) == before
    assert not cluster.nodes["m1"].engine.alarms.active
    state.rebuild = right  # type: ignore[method-assign]
    cluster.nodes["m1"].engine.renewal_wanted = True
    cluster.run_until(lambda: len(state.installed) > before)
    cluster.check_writes()
