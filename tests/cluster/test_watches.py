"""The promise: a program that watches sees every change once and in order, although it moves over the managers of a
cluster whose leaders are killed. It goes on from the revision that the last watch told it.
"""

from __future__ import annotations

import random
from typing import Any

from tests.cluster.harness import Cluster, ManagerDied

KILLS = 3
BETWEEN_KILLS = 60
"""Writes that are acknowledged between two kills."""


class Program:
    """It watches a little on one manager, then on another."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.draw = random.Random(11)
        self.since = 0
        self.seen: list[list[Any]] = []
        self.moves = 0
        self.broken = 0

    def look(self, id_: str, most: int, seconds: float) -> None:
        """A watch on this manager that ends by itself, or with the manager. Then what it gave is lost, too."""
        try:
            events, since = self.cluster.ask(id_, "follow", since=self.since, most=most, seconds=seconds).result(60)
        except ManagerDied:
            self.broken += 1
            return
        self.moves += 1
        self.seen += events
        self.since = since

    def wander(self, until_acknowledged: int) -> None:
        while self.cluster.acknowledged() < until_acknowledged:
            self.look(self.draw.choice(self.cluster.alive), self.draw.choice([1, 10, 1000]), 0.2)


def test_a_watch_that_moves_while_leaders_are_killed(cluster: Cluster) -> None:
    cluster.start_load(threads=2)
    program = Program(cluster)
    for _ in range(KILLS):
        program.wander(cluster.acknowledged() + BETWEEN_KILLS)
        leader = cluster.wait_leader()
        watching = cluster.ask(leader, "follow", since=program.since, most=1 << 30, seconds=60.0)
        cluster.kill(leader)
        assert isinstance(watching.exception(60), ManagerDied)
        program.wander(cluster.acknowledged() + BETWEEN_KILLS // 2)
        cluster.start(leader)
        cluster.start_load(leader, threads=2)
    cluster.stop_load()
    cluster.wait_converged()
    revision = cluster.call("m1", "dump")["revision"]
    while program.since < revision:
        program.look(program.draw.choice(cluster.alive), 1000, 0.3)
    assert program.moves > 10
    at_once, end = cluster.call("m1", "follow", since=0, most=1 << 30, seconds=5.0)
    assert end == revision
    places = [(event[0], event[1]) for event in program.seen]
    assert places == sorted(set(places))
    assert program.seen == at_once
    assert state_after(program.seen) == state_of(cluster.call("m2", "dump"))


def state_after(events: list[list[Any]]) -> dict[tuple[str, str], tuple[str, int]]:
    """The containers and services that the events lead to: (kind, id) -> (image, revision)."""
    state: dict[tuple[str, str], tuple[str, int]] = {}
    for revision, _, operation, kind, id_, image in events:
        if operation == "delete":
            del state[kind, id_]
        else:
            state[kind, id_] = (image, revision)
    return state


def state_of(dump: dict[str, Any]) -> dict[tuple[str, str], tuple[str, int]]:
    containers = {("container", id_): (image, revision) for id_, image, revision in dump["containers"]}
    services = {("service", id_): (image, revision) for id_, _, image, revision in dump["services"]}
    return {**containers, **services}
