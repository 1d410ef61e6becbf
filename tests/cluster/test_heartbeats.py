"""The promise: on real processes, a node that beats stays ready while the leader is killed or suspended, and a node
that stops is down in time, by whichever manager leads.

Not here: draws of faults (the simulation), the rules (unit/test_judging.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from tests.busy_machine import in_time
from tests.cluster.harness import Cluster, ManagerDied, ManagerError

TTL = 3.0
BETWEEN_SECONDS = 0.5
AGAIN_SECONDS = 0.1
"""Between two rounds while no manager answers: an election takes one to two seconds, and a second of them goes by while
a suspended manager does not answer."""
ANSWER_SECONDS = 1.0
AWAY_SECONDS = 3.0 + 1.0
"""For so long the managers wait for one that is away, which may have taken beats: three election timeouts, and a second
in which it may have been connected to another manager."""


class Node:
    """A program on a node: it beats at one manager, and goes to the next one if that one does not answer."""

    def __init__(self, cluster: Cluster, id_: str) -> None:
        self.id = id_
        self.last = 0.0
        """When its last answered beat was sent."""
        self.gap = 0.0
        """The longest time from the sending of an answered beat to the answer of the next one."""
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        managers = ["m1", "m2", "m3"]
        pause = BETWEEN_SECONDS
        while not self._stop.wait(pause):
            pause = AGAIN_SECONDS
            for _ in managers:
                begin = time.monotonic()
                if self._beat(managers[0]):
                    self.gap = max(self.gap, time.monotonic() - (self.last or begin))
                    self.last = begin
                    pause = BETWEEN_SECONDS
                    break
                managers.append(managers.pop(0))

    def _beat(self, manager: str) -> bool:
        process = self._cluster.processes.get(manager)
        if process is None:
            return False
        try:
            process.ask("heartbeat", node_id=self.id, ttl_seconds=TTL).result(ANSWER_SECONDS)
        except (TimeoutError, ManagerDied, ManagerError):
            return False
        return True

    def die(self) -> float:
        """Stop to beat. Returns the time of the last answered beat."""
        self._stop.set()
        self._thread.join()
        return self.last


@contextlib.contextmanager
def nodes_of(cluster: Cluster, *ids: str) -> Iterator[list[Node]]:
    """Nodes that beat; each is ready."""
    leader = cluster.wait_leader()
    for id_ in ids:
        cluster.call(leader, "put_node", id=id_, status="ready")
    cluster.wait_converged()
    nodes = [Node(cluster, id_) for id_ in ids]
    try:
        cluster.wait(lambda: all(node.last for node in nodes), "the first beats")
        for id_ in ids:
            cluster.wait(lambda id_=id_: all(cluster.call_all("has_lease", node_id=id_).values()), "its lease")  # type: ignore[misc]
        yield nodes
    finally:
        for node in nodes:
            node.die()


def status_of(cluster: Cluster, node: Node) -> str:
    status: str = cluster.call(cluster.alive[0], "get_node", id=node.id)[0]
    return status


def wait_down(cluster: Cluster, node: Node) -> float:
    """Wait until the node is down. Returns the seconds since its last beat."""
    cluster.wait(lambda: status_of(cluster, node) == "down", f"{node.id} to be down", seconds=40)
    return time.monotonic() - node.last


def changes(cluster: Cluster, node: Node) -> int:
    """The revision of the node: it tells whether it was ever changed."""
    revision: int = cluster.call(cluster.alive[0], "get_node", id=node.id)[1]
    return revision


def check_stays(cluster: Cluster, node: Node, revision: int) -> None:
    """The node has been ready all the time, if each of its beats was answered within the ttl of the one before."""
    with in_time():
        assert node.gap < TTL, f"the beats of {node.id} were not answered for {node.gap:.2f} s"
    assert (status_of(cluster, node), changes(cluster, node)) == ("ready", revision)


def test_a_node_that_stops_is_down_in_time_and_a_beating_one_costs_no_write(cluster: Cluster) -> None:
    with nodes_of(cluster, "dies", "beats") as (dies, beats):
        revision = changes(cluster, beats)
        batches = {id_: cluster.call(id_, "log_batches") for id_ in cluster.alive}
        cluster.wait(lambda: time.monotonic() > dies.last + 0.9 * BETWEEN_SECONDS, "a moment", seconds=10)
        begin = time.monotonic()
        cluster.wait(lambda: time.monotonic() > begin + 2 * TTL, "two ttls", seconds=20)
        assert {id_: cluster.call(id_, "log_batches") for id_ in cluster.alive} == batches
        last = dies.die()
        took = wait_down(cluster, dies)
        assert took >= TTL, f"{took:.3f} s after {last}"
        with in_time():
            assert took <= TTL + 1.0
        check_stays(cluster, beats, revision)
        for id_ in cluster.alive:
            age = cluster.call(id_, "last_heartbeat_age", node_id=dies.id)
            assert age > TTL, id_
        cluster.call(cluster.followers()[0], "heartbeat", node_id=dies.id, ttl_seconds=60)
        cluster.wait(lambda: status_of(cluster, dies) == "ready", "the node to be ready again", seconds=10)


def test_the_leader_is_killed_and_nodes_that_beat_stay_ready(cluster: Cluster) -> None:
    with nodes_of(cluster, "dies", "beats", "beats too") as (dies, *others):
        revisions = {node.id: changes(cluster, node) for node in others}
        leader = cluster.wait_leader()
        last = dies.die()
        cluster.kill(leader)
        killed = time.monotonic()
        took = wait_down(cluster, dies)
        assert took >= TTL, f"{took:.3f} s after {last}"
        with in_time():
            assert time.monotonic() - killed <= TTL + AWAY_SECONDS + 1.0
        for node in others:
            check_stays(cluster, node, revisions[node.id])


def test_the_leader_is_suspended_and_nodes_that_beat_stay_ready(cluster: Cluster) -> None:
    """When it runs again it has old ages in its memory, and its clock has gone on."""
    with nodes_of(cluster, "beats", "beats too") as nodes:
        revisions = {node.id: changes(cluster, node) for node in nodes}
        for seconds in (0.7, 2 * TTL):
            leader = cluster.wait_leader()
            cluster.pause(leader)
            end = time.monotonic() + seconds
            cluster.wait(lambda end=end: time.monotonic() > end, "the pause", seconds=30)  # type: ignore[misc]
            cluster.resume(leader)
            end = time.monotonic() + TTL
            cluster.wait(lambda end=end: time.monotonic() > end, "a ttl", seconds=30)  # type: ignore[misc]
        cluster.wait_converged()
        for node in nodes:
            check_stays(cluster, node, revisions[node.id])


def test_a_beat_of_no_node_is_refused_by_any_manager(cluster: Cluster) -> None:
    for id_ in cluster.alive:
        with pytest.raises(ManagerError) as raised:
            cluster.call(id_, "heartbeat", node_id="nobody", ttl_seconds=TTL)
        assert raised.value.kind == "NotFound"


def test_a_node_that_died_with_all_managers_is_found(cluster: Cluster) -> None:
    """All managers are killed, no memory of beats is left, and no other node beats. The lease in their state tells
    which nodes beat."""
    with nodes_of(cluster, "dies") as (dies,):
        cluster.call(cluster.alive[0], "put_node", id="never", status="ready")
        dies.die()
        cluster.kill(*cluster.alive)
        started = time.monotonic()
        cluster.start("m1", "m2", "m3")
        wait_down(cluster, dies)
        assert time.monotonic() - started >= TTL  # it counts from the first leader on
        assert cluster.call(cluster.alive[0], "get_node", id="never")[0] == "ready"
