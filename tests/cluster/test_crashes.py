"""The promise: no acknowledged write is ever lost, doubled or reordered when managers crash, stop or hang.

Writers on every manager note their calls and answers (load.py). At the end the state of each manager must agree with
them, at the same index and with the same digest (checkers.py).
"""

from __future__ import annotations

import time

from tests.busy_machine import in_time
from tests.cluster.harness import Cluster

ELECTION_TIMEOUT_SECONDS = 1.0  # Config's default
LONGER_THAN_AN_ELECTION = 2.5 * ELECTION_TIMEOUT_SECONDS  # a timeout is drawn between one and two


def wait_out(cluster: Cluster, seconds: float, what: str) -> None:
    """Wait for this time: for a fault that must last longer than a timeout of the product."""
    end = time.monotonic() + seconds
    cluster.wait(lambda: time.monotonic() >= end, what)


def test_the_leader_killed_under_load_loses_nothing(cluster: Cluster) -> None:
    """kill -9 of the leader while writers run on every manager, also on the leader. Writes go on through the others,
    and when it is back all three have the same state, at the same index."""
    cluster.start_load(threads=3)
    cluster.wait_acknowledged(300)
    leader = cluster.wait_leader()
    cluster.kill(leader)
    for survivor in cluster.alive:
        cluster.wait_acknowledged(100, survivor)
    cluster.start(leader)
    cluster.start_load(leader)
    cluster.wait_acknowledged(50, leader)
    cluster.stop_load()
    history = cluster.check()
    assert {write.manager for write in history.writes if write.is_ok} == {"m1", "m2", "m3"}


def test_leaders_killed_again_and_again_count_each_increment_once(cluster: Cluster) -> None:
    """A writer's manager lives on while the leader that got the write dies. So the library sends the write again, to
    the next leader, which may have it already. Counters that are incremented by compare-and-set show whether a write
    was applied twice: the retry would see a conflict with itself."""
    for _ in range(3):
        leader = cluster.wait_leader()
        followers = [id_ for id_ in cluster.alive if id_ != leader]
        cluster.start_load(*followers, threads=3)
        for follower in followers:
            cluster.wait_acknowledged(60, follower)
        cluster.kill(leader)
        for follower in followers:
            cluster.wait_acknowledged(60, follower)
        cluster.start(leader)
    cluster.stop_load()
    history = cluster.check()
    # The library retried: no answer had to be "perhaps done" or "not done".
    told = {write.outcome for write in history.of("increment") if write.ended < float("inf")}
    with in_time():
        assert told <= {"ok", "conflict"}, told


def test_all_managers_killed_at_once_come_back_with_everything(cluster: Cluster) -> None:
    """No manager survives that could have an acknowledged write in its memory: the logs alone must have all of them."""
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(300)
    cluster.kill("m1", "m2", "m3")
    cluster.start("m1", "m2", "m3")
    before = cluster.check().acknowledged()
    cluster.start_load(threads=1)
    cluster.wait_acknowledged(60)
    cluster.kill("m1", "m2", "m3")  # a second time: replayed logs must replay again
    cluster.start("m1", "m2", "m3")
    assert cluster.check().acknowledged() >= before + 60


def test_a_follower_stopped_for_longer_than_an_election_catches_up(cluster: Cluster) -> None:
    """SIGSTOP of a follower: the others go on without it. After SIGCONT it does not depose the leader, and has the same
    state as they."""
    leader = cluster.wait_leader()
    follower = cluster.followers()[0]
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(100)
    cluster.pause(follower)
    wait_out(cluster, LONGER_THAN_AN_ELECTION, "a pause longer than any election timeout")
    cluster.wait_acknowledged(100, leader)
    term = cluster.status(leader)["term"]
    cluster.resume(follower)
    cluster.wait_acknowledged(50, follower)
    cluster.stop_load()
    cluster.check()
    cluster.assert_no_election(leader, term)


def test_a_leader_stopped_and_continued_steps_down(cluster: Cluster) -> None:
    """SIGSTOP of the leader: another manager is elected and takes writes. After SIGCONT the old leader still believes
    for a moment that it leads. Its messages of that moment must not count, and its callers' writes under way are
    applied once or not at all."""
    leader = cluster.wait_leader()
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(100)
    cluster.pause(leader)
    survivors = cluster.alive
    for survivor in survivors:
        cluster.wait_acknowledged(100, survivor)
    cluster.wait_leader()
    cluster.resume(leader)
    cluster.wait(lambda: cluster.status(leader)["leader"] in survivors, "the old leader to follow")
    with in_time():  # else it may have been elected again
        assert not cluster.status(leader)["is_leader"]
    cluster.wait_acknowledged(50, leader)
    cluster.stop_load()
    cluster.check()
    leadership = cluster.call(leader, "leadership")
    with in_time():
        assert [leads for leads, _ in leadership] == [True, False], leadership


def test_a_clean_stop_of_the_leader_under_load_costs_no_election(cluster: Cluster) -> None:
    """SIGTERM: leadership is handed over before the process ends, so writers on the others hardly notice. The writers
    in it get the answer "done" or "not done" for each write."""
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(200)
    leader = cluster.wait_leader()
    survivors = [id_ for id_ in cluster.alive if id_ != leader]
    begin = time.monotonic()
    cluster.stop(leader)
    for survivor in survivors:
        cluster.wait_acknowledged(100, survivor)
    pause = cluster.history.read().longest_pause(begin, time.monotonic(), *survivors)
    with in_time():
        assert pause < ELECTION_TIMEOUT_SECONDS, f"writes stopped for {pause:.2f} s"
        assert "leadership not handed over" not in cluster.log_of(leader).read_text()
    cluster.start(leader)
    cluster.stop_load()
    history = cluster.check()
    own = [name for name in history.ended if name.startswith(f"{leader}-")]
    assert own, "the writers of the stopped manager said nothing"
    assert {history.ended[name] for name in own} <= {"closed", "stopped"}
    assert all(write.ended < float("inf") for write in history.writes if write.writer in own), "a call never ended"


def test_faults_one_after_the_other(cluster: Cluster) -> None:
    """Several faults while the load never stops: kills, pauses and hand-overs of the present leader."""
    cluster.start_load(threads=2)
    for fault in ("kill", "transfer", "pause", "stop", "transfer", "kill"):
        cluster.wait_acknowledged(60)
        leader = cluster.wait_leader()
        if fault == "transfer":
            cluster.call(leader, "transfer_leadership")
        elif fault == "pause":
            cluster.pause(leader)
            for survivor in cluster.alive:
                cluster.wait_acknowledged(30, survivor)
            cluster.resume(leader)
        else:
            getattr(cluster, fault)(leader)
            cluster.wait_acknowledged(60)
            cluster.start(leader)
            cluster.start_load(leader)
    cluster.wait_acknowledged(60)
    cluster.stop_load()
    cluster.check()
