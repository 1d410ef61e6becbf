"""The promise of `read(max_staleness_seconds=…)`: it raises where this manager has not heard the leader for so long, or
has not applied for so long what the leader said. Several engines in one thread; and each kind of store."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports
from tests.engine_harness import Cluster
from tests.list_machine import ListMachine
from warren_raft.errors import StorageFull
from warren_raft.raft.leading import UNAPPLIED_SECONDS

DEADLINE = 60.0


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.wait_ready()
    cluster.write("m1", "first")
    cluster.run_until(cluster.converged)
    cluster.run(1.0)
    return cluster


def staleness(cluster: Cluster, id_: str) -> float:
    return cluster.nodes[id_].engine.staleness(cluster.now)


def test_while_all_is_well_no_state_is_older_than_a_heartbeat(cluster: Cluster) -> None:
    """Without writes, and under load."""
    for number in range(300):
        if number > 150:
            cluster.submit(sorted(cluster.nodes)[number % 3], f"x{number}")
        cluster.turn()
        assert max(staleness(cluster, id_) for id_ in cluster.nodes) < 0.5


def test_a_follower_that_is_cut_off_grows_stale(cluster: Cluster) -> None:
    follower = cluster.followers()[0]
    cluster.hold(*((id_, follower) for id_ in cluster.nodes if id_ != follower))
    cluster.run(0.8)
    assert 0.7 < staleness(cluster, follower) < 1.4
    cluster.heal()
    cluster.run_until(lambda: staleness(cluster, follower) < 0.3)


def test_a_leader_that_is_cut_off_grows_stale(cluster: Cluster) -> None:
    """Although it is in contact with the leader, itself."""
    leader = cluster.wait_leader()
    cluster.hold(*((id_, leader.id) for id_ in cluster.followers()))
    cluster.run(0.8)
    assert leader.engine.role == "leader"
    assert leader.engine.leader_contact_age(cluster.now) == 0.0
    assert 0.7 < staleness(cluster, leader.id) < 1.4


def contact_age(cluster: Cluster, id_: str) -> float:
    return cluster.nodes[id_].engine.leader_contact_age(cluster.now)


def test_a_follower_whose_link_broke_knows_when_it_heard_its_leader(cluster: Cluster) -> None:
    """(Pins a fault: with the link the time was forgotten, and the state seemed to be of any age at once.)"""
    follower = cluster.followers()[0]
    cluster.isolate(follower)
    cluster.turn()
    assert contact_age(cluster, follower) < 0.5
    assert staleness(cluster, follower) < 0.5
    cluster.run(3.0)
    assert 3.0 <= contact_age(cluster, follower) < 3.5
    assert 3.0 <= staleness(cluster, follower) < 3.5
    cluster.heal()
    cluster.run_until(lambda: staleness(cluster, follower) < 0.3)
    assert contact_age(cluster, follower) < 0.3


def test_a_leader_that_was_deposed_is_as_old_as_its_last_leader_until_it_hears_the_next(cluster: Cluster) -> None:
    """It followed no leader before it led."""
    leader = cluster.wait_leader()
    cluster.isolate(leader.id)
    cluster.run(4.0)
    assert leader.engine.role != "leader"
    assert contact_age(cluster, leader.id) == staleness(cluster, leader.id) == math.inf
    cluster.heal()
    cluster.run_until(lambda: staleness(cluster, leader.id) < 0.3)


def test_a_leader_that_was_suspended_and_deposed_does_not_seem_young(cluster: Cluster) -> None:
    """(Pins a fault: messages of voters that followed the next leader already counted as contact, so the age was 0 for
    a moment, although the state lacked a write of 30 seconds before.)"""
    old = cluster.wait_leader()
    step = cluster.step
    cluster.step = lambda id_: None if id_ == old.id else step(id_)  # type: ignore[method-assign]
    others = [node for id_, node in cluster.nodes.items() if id_ != old.id]
    new = cluster.run_until(lambda: next((node for node in others if node.engine.is_leader), None))
    cluster.write(new.id, "later")
    cluster.run(30.0)
    cluster.step = step  # type: ignore[method-assign]
    lacking = 0
    while cluster.machines[old.id].applied[-1] != "later":
        cluster.turn()
        if cluster.machines[old.id].applied[-1] != "later" and old.engine.role != "leader":
            lacking += 1
            assert staleness(cluster, old.id) > 29.0
    assert lacking


@pytest.mark.parametrize("has_unapplied", [False, True])
def test_writes_of_the_time_without_contact_count_from_its_beginning(cluster: Cluster, has_unapplied: bool) -> None:
    """(Pins a fault: when the link was made again, the age of the missing entries began with that moment.)"""
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    if has_unapplied:
        cluster.nodes[follower].disk_seconds = None
        cluster.write(leader, "w0")
        cluster.run(0.5)
    cluster.isolate(follower)
    cluster.run(1.0)
    cluster.write(leader, "w1")
    cluster.run(20.0)
    cluster.nodes[follower].disk_seconds = None
    cluster.heal()
    cluster.run(1.0)
    assert contact_age(cluster, follower) < 0.5
    assert staleness(cluster, follower) > 20.0
    if has_unapplied:
        cluster.complete_sync(follower)
        cluster.run_until(lambda: cluster.machines[follower].applied[-1] == "w0")
        assert staleness(cluster, follower) > 20.0
    cluster.nodes[follower].disk_seconds = 0.0
    cluster.complete_sync(follower)
    cluster.run_until(lambda: staleness(cluster, follower) < 0.5)


def test_a_new_leader_was_in_contact_with_the_old_one(cluster: Cluster) -> None:
    """While it has not applied an entry of its own term, its state is as old as that contact."""
    cluster.crash(cluster.wait_leader().id)
    begin = cluster.now
    heir = cluster.run_until(
        lambda: next((node for node in cluster.nodes.values() if node.engine.role == "leader"), None)
    )
    assert contact_age(cluster, heir.id) == 0.0
    assert staleness(cluster, heir.id) < cluster.now - begin + 0.5


def test_a_follower_that_does_not_apply_what_it_hears_grows_stale(cluster: Cluster) -> None:
    """Its disk hangs, so it applies nothing. It hears its leader all the time."""
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    cluster.nodes[follower].disk_seconds = None
    cluster.write(leader, "not on the follower's disk")
    cluster.run(2.0)
    assert cluster.nodes[follower].engine.leader_contact_age(cluster.now) < 0.5
    assert 1.8 < staleness(cluster, follower) < 3.0
    cluster.complete_sync(follower)
    cluster.nodes[follower].disk_seconds = 0.0
    cluster.run_until(lambda: staleness(cluster, follower) < 0.5)


def test_the_age_counts_from_the_oldest_entry_that_is_missing(cluster: Cluster) -> None:
    """The leader commits on while the disk hangs. Then a part of it is durable: the rest is as old as it is."""
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    cluster.nodes[follower].disk_seconds = None
    cluster.write(leader, "w0")
    cluster.run(0.5)
    cluster.write(leader, "w1")
    told_at = cluster.now
    cluster.run(9.0)
    assert 9.0 < staleness(cluster, follower) < 10.5
    cluster.complete_sync(follower)
    cluster.run(0.15)
    assert cluster.machines[follower].applied[-1] == "w0"
    age = cluster.now - told_at
    assert age - 0.2 < staleness(cluster, follower) < age + 0.2
    cluster.complete_sync(follower)
    cluster.nodes[follower].disk_seconds = 0.0
    cluster.run_until(lambda: staleness(cluster, follower) < 0.5)


def test_many_commits_that_are_not_applied_are_remembered_in_few_pairs(cluster: Cluster) -> None:
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    cluster.nodes[follower].disk_seconds = None
    begun = cluster.now
    for number in range(100):
        cluster.write(leader, f"w{number}")
        cluster.turn()
    pairs = cluster.nodes[follower].engine._leading._unapplied
    assert 1 < len(pairs) <= (cluster.now - begun) / UNAPPLIED_SECONDS + 1
    assert list(pairs) == sorted(pairs)


class Narrow(ListMachine):
    """A machine that has space for the entries up to `last`."""

    last = sys.maxsize

    def _advance(self, index: int, term: int) -> None:
        if index > self.last:
            raise StorageFull("no space left")
        super()._advance(index, term)


def test_entries_that_were_applied_before_the_space_ended_count() -> None:
    cluster = Cluster(make_machine=Narrow)
    leader = cluster.wait_ready().id
    cluster.run(1.0)
    follower = cluster.followers()[0]
    machine = cluster.machines[follower]
    assert isinstance(machine, Narrow)
    machine.last = machine.applied_index
    cluster.write(leader, "w0")
    cluster.run(3.0)
    cluster.write(leader, "w1")
    told_at = cluster.now
    cluster.run(0.5)
    assert staleness(cluster, follower) > 3.0
    machine.last += 1
    cluster.run_until(lambda: machine.applied[-1:] == ["w0"])
    assert staleness(cluster, follower) < cluster.now - told_at + 0.5


def test_before_a_leader_was_heard_the_age_is_not_known() -> None:
    cluster = Cluster()
    assert staleness(cluster, "m1") == math.inf


# The stores ----------------------------------------------------------------------------------------------------------


def test_a_manager_without_a_leader_raises(tmp_path: Path) -> None:
    members = {f"m{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}
    config = wr.Config(node_id="m1", data_dir=tmp_path, listen=members["m1"], members=members, admin=False)
    with wr.ReplicatedStore(config) as store:
        with pytest.raises(wr.Unavailable, match=r"no leader was heard \(max_staleness_seconds=5\)") as caught:
            store.read(max_staleness_seconds=5).__enter__()
        assert (caught.value.maybe_applied, caught.value.of_write) == (False, False)
        with store.read() as view:
            assert view.revision == 0
    with pytest.raises(wr.Closed):
        store.read(max_staleness_seconds=5).__enter__()


def test_a_leader_and_a_local_store_read(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = wr.Config(node_id="m1", data_dir=tmp_path / "m1", listen=address, members={"m1": address}, admin=False)
    with wr.ReplicatedStore(config) as leader, wr.LocalStore(tmp_path / "local") as local:
        leader.wait_ready(DEADLINE)
        leader.barrier(DEADLINE)
        for store in (leader, local):
            store.create_node(wr.Node(id="n"))
            with store.read(max_staleness_seconds=0) as view:
                assert view.get_node("n").id == "n"
            for wrong in (-1, math.nan, True, "5"):
                given: Any = wrong
                with pytest.raises(wr.InvalidEntity, match="max_staleness_seconds"):
                    store.read(max_staleness_seconds=given)


def test_a_read_only_store_does_not_know(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path):
        pass
    with wr.ReadOnlyStore(tmp_path) as store, pytest.raises(wr.Unavailable, match="not known"):
        store.read(max_staleness_seconds=math.inf).__enter__()
