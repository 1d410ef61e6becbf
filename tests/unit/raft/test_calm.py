"""A manager with nothing to do makes few steps, and misses nothing by it.

Each manager steps only when an event came or when its own time is up, as the driver has it (the other tests step all
managers every 10 ms).
"""

from __future__ import annotations

import errno
from collections import Counter
from itertools import pairwise

import pytest

from tests.engine_harness import HEARTBEAT_SECONDS, Cluster, Node
from warren_raft.raft.context import TICK_SECONDS

TIMEOUT_SECONDS = 1.0


def calm_cluster() -> Cluster:
    cluster = Cluster()
    cluster.wait_ready()
    run(cluster, 3.0)
    return cluster


def run(cluster: Cluster, seconds: float) -> Counter[str]:
    """Let time pass. Returns the number of steps of each manager."""
    steps = Counter[str]()
    end = cluster.now + seconds
    while cluster.now < end:
        for pair in list(cluster.wire):
            if pair not in cluster.held:
                cluster.deliver(*pair)
        due = [id_ for id_, node in cluster.nodes.items() if node.events or node.engine.step_at <= cluster.now]
        for id_ in due:
            cluster.step(id_)
            steps[id_] += 1
            if cluster.nodes[id_].batches:
                cluster.complete_sync(id_)
            if cluster.nodes[id_].work:
                cluster.do_work(id_)
        if not due:
            cluster.now = min(end, *(node.engine.step_at for node in cluster.nodes.values()))
    return steps


def test_a_manager_that_cannot_begin_an_election_makes_no_more_steps_than_ticks() -> None:
    """(Pins a bug: it made 1,000 steps a second while its disk was full and it knew no leader.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    full = cluster.followers()[0]
    cluster.nodes[full].disk_error = OSError(errno.ENOSPC, "no space left")
    cluster.submit(leader.id, "a")
    run(cluster, 0.3)
    cluster.isolate(full)
    run(cluster, 5.0)
    assert cluster.nodes[full].engine.leader is None
    assert run(cluster, 2.0)[full] <= 1.5 * 2.0 / TICK_SECONDS


def wait(node: Node, cluster: Cluster) -> float:
    """The time until the next step of a manager, in seconds."""
    return node.engine.step_at - cluster.now


def test_it_makes_few_steps_and_every_heartbeat_comes() -> None:
    cluster = calm_cluster()
    leader = cluster.wait_leader()
    term, begin = leader.engine.term, len(cluster.sent)
    steps = run(cluster, 10.0)
    assert (cluster.wait_leader().id, leader.engine.term) == (leader.id, term)
    assert max(steps.values()) <= 10 * 35, "a leader: a step for each heartbeat, and for each answer"
    assert all(steps[id_] <= 10 * 15 for id_ in cluster.followers()), "a step for each heartbeat, and for reports"
    for id_ in cluster.followers():
        times = [
            each.now
            for each in cluster.sent[begin:]
            if each.receiver == id_ and each.message["type"] == "append_entries"
        ]
        assert len(times) >= 10 / (HEARTBEAT_SECONDS + TICK_SECONDS)
        assert max(after - before for before, after in pairwise(times)) < 1.3 * HEARTBEAT_SECONDS


def test_a_leader_in_calm_notices_that_no_majority_answers() -> None:
    cluster = calm_cluster()
    leader = cluster.wait_leader()
    for follower in cluster.followers():
        cluster.hold((follower, leader.id))
    begin = cluster.now
    while leader.engine.role == "leader":
        run(cluster, 0.02)
        assert cluster.now - begin < 1.5 * TIMEOUT_SECONDS + 2 * HEARTBEAT_SECONDS


def test_a_write_ends_the_calm_and_is_followed_by_calm() -> None:
    cluster = calm_cluster()
    leader = cluster.wait_leader()
    cluster.submit(leader.id, "one")
    cluster.step(leader.id)
    assert wait(leader, cluster) <= TICK_SECONDS
    run(cluster, 0.5)
    assert "one" in cluster.acknowledged
    steps = run(cluster, 1.0)
    assert all(steps[id_] <= 20 for id_ in cluster.followers())


def test_a_dead_leader_is_replaced_as_soon_as_ever() -> None:
    """The followers sleep until their own time for an election, and no longer."""
    cluster = calm_cluster()
    dead = cluster.wait_leader()
    for other in cluster.followers():
        cluster.hold((dead.id, other))
    begin = cluster.now
    while not any(node.engine.is_leader for node in cluster.nodes.values() if node is not dead):
        run(cluster, 0.05)
        assert cluster.now - begin < 6 * TIMEOUT_SECONDS


@pytest.mark.parametrize("event", ["link", "request"])
def test_nothing_else_is_calm(event: str) -> None:
    cluster = calm_cluster()
    leader = cluster.wait_leader()
    follower = cluster.followers()[0]
    if event == "link":
        cluster.part(leader.id, follower)
    else:
        cluster.ask(leader.id, "add", "m9", "127.0.0.1:7999")
    run(cluster, 0.3)
    assert wait(leader, cluster) <= TICK_SECONDS
