"""The promise: a caller reads its own writes on the manager where it wrote them, and after a barrier all writes that
were acknowledged anywhere. Without a barrier its reads may be old, but never go back."""

from __future__ import annotations

import random

from tests.cluster.harness import Cluster

ROUNDS = 60
FREEZES = 4
CALLERS = 8


def test_a_barrier_shows_what_was_acknowledged_elsewhere(cluster: Cluster) -> None:
    """One register is written through one manager, and read after a barrier on another, again and again, while others
    write too and leadership changes. Each read sees the write before it; otherwise it is not linearizable."""
    cluster.start_load(threads=1)
    draw = random.Random(7)
    for number in range(ROUNDS):
        writer, reader = draw.sample(["m1", "m2", "m3"], 2)
        if number in (ROUNDS // 3, 2 * ROUNDS // 3):
            moving = cluster.ask(cluster.wait_leader(), "transfer_leadership")
        revision = cluster.call(writer, "put", key="register", value=str(number), timeout=30.0)
        assert cluster.call(reader, "barrier_and_get", key="register") == [str(number), revision]
        if number in (ROUNDS // 3, 2 * ROUNDS // 3):
            moving.result(30)
    cluster.stop_load()
    cluster.wait_converged()


def test_barriers_of_all_managers_agree_with_real_time(cluster: Cluster) -> None:
    """A barrier's revision is at least the revision of each write that any manager acknowledged before it began."""
    cluster.start_load(threads=2)
    highest = 0
    for number in range(ROUNDS):
        id_ = ("m1", "m2", "m3")[number % 3]
        revision = cluster.call(id_, "barrier", timeout=30.0)
        assert revision >= highest, f"{id_} is at {revision} after {highest} was known"
        highest = max(revision, cluster.call(("m2", "m3", "m1")[number % 3], "put", key="x", value=str(number)))
    cluster.stop_load()
    cluster.wait_converged()


def test_barriers_on_a_frozen_leader_that_wakes_are_never_stale(cluster: Cluster) -> None:
    """The leader is suspended, and another one takes writes. Callers of the old leader run as soon as it wakes: it
    believes that it still leads, and finds answers to its last round in its sockets. Each of them sees the newest
    write."""
    for number in range(FREEZES):
        leader = cluster.wait_leader()
        earlier = [cluster.ask(leader, "barrier", timeout=60.0) for _ in range(CALLERS)]  # rounds are under way
        cluster.pause(leader)
        writer = next(id_ for id_ in cluster.alive if id_ != leader)
        revision = cluster.call(writer, "put", key="register", value=str(number), timeout=60.0)
        waking = [cluster.ask(leader, "barrier_and_get", key="register") for _ in range(CALLERS)]
        cluster.resume(leader)
        for reading in waking:
            assert reading.result(60) == [str(number), revision]
        for barrier in earlier:
            barrier.result(60)
    cluster.wait_converged()


def test_every_manager_takes_writes_and_reads_them_back(cluster: Cluster) -> None:
    """Through leader and followers: the entity is read by id and by its indexes, at the returned revision."""
    for id_ in ("m1", "m2", "m3"):
        for number in range(20):
            key = f"{id_}-{number}"
            seen = cluster.call(id_, "put_and_read_back", key=key, value=f"of {key}")
            assert seen["by_id"] == seen["by_service"] == [f"of {key}", seen["revision"]]
    cluster.wait_converged()


def test_reads_of_one_manager_never_go_back(cluster: Cluster) -> None:
    """Local reads may be stale, on a follower and across changes of leader, but they never go back."""
    cluster.start_load(threads=1)
    watching = {id_: cluster.ask(id_, "watch_revisions") for id_ in cluster.alive}
    for _ in range(2):
        cluster.wait_acknowledged(60)
        cluster.call(cluster.wait_leader(), "transfer_leadership")
    cluster.wait_acknowledged(60)
    cluster.call_all("stop_watching")
    for id_, future in watching.items():
        seen = future.result(30)
        assert seen["reads"] > 10, id_
        assert seen["went_back"] == [], id_
        assert seen["revisions"] > 10, id_
    cluster.stop_load()
    cluster.wait_converged()
