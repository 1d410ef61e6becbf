"""Promise: a leader that was frozen while another one took over changes nothing by what it decided before.

Tried without it: a leader was frozen for 5 s, another one created three containers, the old one woke and created three
more, in six of six runs, without an error.
"""

from __future__ import annotations

import pytest

from tests.cluster.harness import Cluster, ManagerError

WANTED = 3


def is_stopped(cluster: Cluster, id_: str) -> bool:
    process = cluster.processes[id_]
    with open(f"/proc/{process.pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def containers(cluster: Cluster, id_: str) -> list[str]:
    cluster.call(id_, "barrier", timeout=30.0)
    return [key for key, _, _ in cluster.call(id_, "dump")["containers"]]


def freeze_between_look_and_write(cluster: Cluster) -> None:
    """A container is deleted. The leader decides to create another one, and is frozen before it does."""
    old, other = cluster.wait_leader(), cluster.followers()[0]
    cluster.wait(lambda: len(containers(cluster, old)) == WANTED, "the containers")
    leads = len(cluster.call(old, "ended_leads"))
    cluster.call(old, "freeze_at_next_decision")
    cluster.call(other, "delete", key=containers(cluster, other)[0])
    cluster.wait(lambda: is_stopped(cluster, old), "the leader to be frozen")
    cluster.processes[old].is_paused = True
    new = cluster.wait_leader(not_=(old,))
    cluster.wait(lambda: len(containers(cluster, new)) == WANTED, "the new leader's work")
    cluster.resume(old)
    cluster.wait(lambda: len(cluster.call(old, "ended_leads")) > leads, "the old loop to end")
    cluster.wait(lambda: cluster.status(old)["leader"], "the old leader to know the new one")
    assert len(containers(cluster, old)) == WANTED
    assert cluster.call(old, "ended_leads")[-1][1] in ("LeadershipLost", "over")


def test_a_frozen_leader_changes_nothing_when_it_wakes(cluster: Cluster) -> None:
    """The loop of every manager is the same program, as an embedder would write it."""
    for id_ in cluster.alive:
        cluster.call(id_, "reconcile", wanted=WANTED)
    for _ in range(3):
        freeze_between_look_and_write(cluster)
    assert {cluster.call(id_, "most_at_once") for id_ in cluster.alive} == {WANTED}


def test_a_pass_after_a_late_write_knows_it(cluster: Cluster) -> None:
    """The disks of both followers hang. The first write of the loop is in the leader's log when its caller gives up,
    and is committed when the disks go on. Tried without the wait for its end: six containers."""
    leader, followers = cluster.wait_leader(), cluster.followers()
    cluster.call(leader, "put_node", id="n", status="ready")  # opens the session of its process
    cluster.wait_converged()
    term = cluster.status(leader)["term"]
    before = cluster.call(leader, "last_index")
    cluster.call_all("delay_next_sync", *followers, seconds=60.0)
    cluster.call(leader, "reconcile", wanted=WANTED, write_seconds=0.2)
    cluster.wait(lambda: cluster.call(leader, "late_passes") > 0, "the first pass to give up")
    cluster.wait(lambda: cluster.call(leader, "last_index") >= before + 2, "the next entry of the loop")
    cluster.call_all("release_disk", *followers)
    cluster.wait(lambda: len(containers(cluster, leader)) >= WANTED, "the containers")
    cluster.wait_converged()
    assert cluster.call(leader, "most_at_once") == WANTED
    cluster.assert_no_election(leader, term)


def test_a_decision_of_a_frozen_leader_is_refused_with_its_term(cluster: Cluster) -> None:
    """As seen by a program that holds on to its lead: the write waits in the process while it is frozen."""
    old = cluster.wait_leader()
    term = cluster.call(old, "lead")
    assert cluster.call(old, "create_as_lead", keys=["first"]) > 0
    cluster.pause(old)
    stale = cluster.ask(old, "create_as_lead", keys=["a", "b", "c"])
    new = cluster.wait_leader(not_=(old,))
    assert cluster.call(new, "lead") > term
    assert cluster.call(new, "create_as_lead", keys=["d"]) > 0
    cluster.resume(old)
    with pytest.raises(ManagerError) as lost:
        stale.result(60)
    assert (lost.value.kind, lost.value.data["term"]) == ("LeadershipLost", term)
    assert containers(cluster, old) == ["d", "first"]
    with pytest.raises(ManagerError, match=f"no longer leads in term {term}"):
        cluster.call(old, "create_as_lead", keys=["e"])


def test_a_job_that_is_done_again_after_its_caller_died_is_done_once(cluster: Cluster) -> None:
    """The caller dies with its manager after the write was committed. Another one takes the job over."""
    leader = cluster.wait_leader()
    first = cluster.call(leader, "put", key="c", value="one", request_id="job-17")
    cluster.kill(leader)
    new = cluster.wait_leader()
    assert cluster.call(new, "put", key="c", value="two", request_id="job-17") == first
    assert cluster.call(new, "get", key="c") == ["one", first]
    cluster.start(leader)
    assert cluster.call(leader, "put", key="c", value="three", request_id="job-17") == first
    assert cluster.call(leader, "put", key="c", value="four", request_id="job-18") > first
