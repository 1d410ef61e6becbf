"""The promise: a call ends by its deadline and says whether the write may have happened; no call waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.busy_machine import in_time
from tests.cluster.harness import Cluster, ManagerError

TIMEOUT_SECONDS = 1.5
SLACK_SECONDS = 2.0  # on a busy machine


def refused(cluster: Cluster, id_: str, key: str) -> ManagerError:
    """Make a write that must end with Unavailable, in time. Returns the error."""
    begin = time.monotonic()
    with pytest.raises(ManagerError, match="Unavailable") as raised:
        cluster.call(id_, "put", key=key, value="x", timeout=TIMEOUT_SECONDS)
    took = time.monotonic() - begin
    assert took >= TIMEOUT_SECONDS - 0.1
    with in_time():
        assert took < TIMEOUT_SECONDS + SLACK_SECONDS
    return raised.value


def test_without_a_quorum_writes_end_by_their_deadline_and_work_again_later(cluster: Cluster) -> None:
    """The leader loses both followers. A write that is in its log may still happen; a write that found no leader did
    not happen; reads go on. When one follower is back, writes work again by themselves."""
    leader, followers = cluster.wait_leader(), cluster.followers()
    cluster.call(leader, "put", key="before", value="x")
    cluster.kill(*followers)
    with in_time():  # it still leads when it gets the write
        assert refused(cluster, leader, "in the log").data["maybe_applied"] is True
    cluster.wait(lambda: cluster.status(leader)["leader"] is None, "the leader to step down")
    assert not cluster.status(leader)["has_quorum"]
    assert refused(cluster, leader, "nowhere").data["maybe_applied"] is False
    assert cluster.call(leader, "get", key="before")[0] == "x"
    with pytest.raises(ManagerError, match="Unavailable"):
        cluster.call(leader, "barrier", timeout=0.5)
    cluster.start(followers[0])
    cluster.call(followers[0], "put", key="after", value="x", timeout=20.0)
    cluster.start(followers[1])
    cluster.wait_converged()
    for id_ in cluster.alive:
        keys = [container[0] for container in cluster.call(id_, "dump")["containers"]]
        assert set(keys) - {"in the log"} == {"before", "after"}, keys


def test_the_first_writes_of_a_process_keep_their_deadlines_too(make_cluster: Callable[..., Cluster]) -> None:
    """Before its first write a manager opens a session, which is a write of its own. Without a quorum that waits until
    its caller's deadline. Another caller with an earlier deadline must not have to wait for it."""
    cluster = make_cluster(start=False)
    cluster.start("m1", ready=False)
    patient = cluster.ask("m1", "put", key="patient", value="x", timeout=40.0)
    assert refused(cluster, "m1", "hasty").data["maybe_applied"] is False
    assert not patient.done()
    cluster.start("m2", "m3")
    assert patient.result(40) > 0


def test_a_write_waits_for_a_leader_within_its_deadline(cluster: Cluster) -> None:
    """A write that begins while there is no leader is kept, and done as soon as there is a leader."""
    leader, (first, second) = cluster.wait_leader(), cluster.followers()
    cluster.kill(leader, second)
    cluster.wait(lambda: cluster.status(first)["leader"] is None, "the leader to be missed")
    waiting = cluster.ask(first, "put", key="patient", value="x", timeout=40.0)
    cluster.start(second)
    assert waiting.result(40) > 0
    assert cluster.call(first, "get", key="patient")[0] == "x"


def given_up(cluster: Cluster) -> int:
    """The number of writes that reached their deadline: "perhaps done" if they were proposed, else "not done"."""
    return sum(write.outcome in ("unknown", "nothing") for write in cluster.history.read().writes)


def test_writes_that_nobody_answers_are_told_so_truthfully(cluster: Cluster) -> None:
    """Writers with a short deadline while the quorum comes and goes. Each answer (done, perhaps, not done) is true at
    the end, and a write that was given up is not applied after the next write of the same writer."""
    leader, (first, second) = cluster.wait_leader(), cluster.followers()
    cluster.start_load(threads=3, timeout=0.4)
    cluster.wait_acknowledged(100)
    for _ in range(2):
        cluster.pause(first)
        cluster.pause(second)
        before = given_up(cluster)
        cluster.wait(lambda before=before: given_up(cluster) > before + 5, "writers to give up")
        cluster.resume(first)
        cluster.resume(second)
        cluster.wait_acknowledged(100, leader)
    cluster.stop_load()
    history = cluster.check()
    outcomes = {write.outcome for write in history.writes}
    assert {"ok", "unknown"} <= outcomes, outcomes
