"""The promise: members come, go and move while writes go on, and no directory counts as a member that it is not.

A wiped directory under a known id is dangerous: it would acknowledge and vote in the name of the lost directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.busy_machine import in_time
from tests.cluster.harness import Cluster, ManagerError, free_ports

CHANGE_SECONDS = 30.0


def member_ids(cluster: Cluster, id_: str) -> list[str]:
    return [member["id"] for member in cluster.status(id_)["members"]]


def add(cluster: Cluster, id_: str, *, through: str) -> None:
    cluster.call(through, "add_member", id=id_, address=cluster.addresses[id_], timeout=CHANGE_SECONDS)


def test_a_fourth_member_starts_empty_and_gets_everything(cluster: Cluster) -> None:
    """It is added through a follower, under load. It has all earlier writes, counts in the quorum, and takes writes."""
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(200)
    cluster.add_blank("m4")
    add(cluster, "m4", through=cluster.followers()[0])
    cluster.wait_ready("m4")
    cluster.start_load("m4")
    cluster.wait_acknowledged(50, "m4")
    cluster.stop_load()
    cluster.check()
    for id_, status in cluster.statuses().items():
        assert [(member["id"], member["voter"]) for member in status["members"]] == [
            ("m1", True),
            ("m2", True),
            ("m3", True),
            ("m4", True),
        ], id_


def test_a_new_member_counts_in_the_quorum(cluster: Cluster) -> None:
    """Three of four members are needed: with the fourth and two others writes go on; with two alone they stop."""
    cluster.add_blank("m4")
    add(cluster, "m4", through="m1")
    leader = cluster.wait_leader()
    first, second = [id_ for id_ in ("m1", "m2", "m3") if id_ != leader]
    cluster.kill(first)
    cluster.call(leader, "put", key="with three of four", value="x", timeout=20.0)
    cluster.kill(second)
    with pytest.raises(ManagerError, match="Unavailable"):
        cluster.call(leader, "put", key="with two of four", value="x", timeout=1.0)
    cluster.start(first)
    cluster.call("m4", "put", key="with three again", value="x", timeout=20.0)


def test_a_removed_follower_stops_and_the_others_go_on(cluster: Cluster) -> None:
    leader, (gone, stays) = cluster.wait_leader(), cluster.followers()
    cluster.allowed_in_logs += ["was removed from the cluster"]
    cluster.start_load(leader, stays)
    cluster.wait_acknowledged(50)
    cluster.call(stays, "remove_member", id=gone, timeout=CHANGE_SECONDS)
    failure = cluster.wait(lambda: cluster.status(gone)["failure"], f"{gone} to stop")
    assert f"{gone} was removed from the cluster" in failure
    cluster.wait_acknowledged(50, leader)
    cluster.wait_acknowledged(50, stays)
    cluster.stop_load(leader, stays)
    cluster.check(leader, stays)
    assert member_ids(cluster, leader) == sorted([leader, stays])
    with pytest.raises(ManagerError, match=r"Closed.*was removed"):
        cluster.call(gone, "put", key="from a removed one", value="x")


def test_a_removed_leader_hands_over_first(cluster: Cluster) -> None:
    """Through a follower, under load: leadership is handed over, then the leader is removed; writers get no error."""
    leader, others = cluster.wait_leader(), cluster.followers()
    cluster.allowed_in_logs += ["was removed from the cluster"]
    cluster.start_load(*others)
    cluster.wait_acknowledged(50)
    cluster.call(others[0], "remove_member", id=leader, timeout=CHANGE_SECONDS)
    failure = cluster.wait(lambda: cluster.status(leader)["failure"], f"{leader} to stop")
    assert "was removed" in failure
    assert not cluster.status(leader)["is_leader"]
    cluster.wait_acknowledged(50)
    cluster.stop_load(*others)
    history = cluster.check(*others)
    with in_time():
        assert {write.outcome for write in history.writes} <= {"ok", "conflict", "read"}


def test_a_removed_member_hears_so_when_it_starts_again(cluster: Cluster) -> None:
    """It was down when it was removed, so it does not know. At its next start it must not take part."""
    leader, (gone, stays) = cluster.wait_leader(), cluster.followers()
    cluster.allowed_in_logs += ["was removed from the cluster"]
    cluster.kill(gone)
    cluster.call(stays, "remove_member", id=gone, timeout=CHANGE_SECONDS)
    cluster.start(gone, ready=False)
    failure = cluster.wait(lambda: cluster.status(gone)["failure"], f"{gone} to stop")
    assert f"{gone} was removed from the cluster" in failure
    assert member_ids(cluster, leader) == sorted([leader, stays])


def test_a_member_moves_to_another_address(cluster: Cluster) -> None:
    """It is stopped, gets another address through another manager, and starts there: the others find it."""
    follower = cluster.followers()[0]
    other = next(id_ for id_ in cluster.alive if id_ != follower)
    cluster.start_load(other)
    cluster.wait_acknowledged(50)
    cluster.stop(follower)
    address = cluster.addresses[follower] = f"127.0.0.1:{free_ports(1)[0]}"
    cluster.call(other, "update_member", id=follower, address=address, timeout=CHANGE_SECONDS)
    cluster.start(follower)
    cluster.start_load(follower)
    cluster.wait_acknowledged(50, follower)
    cluster.stop_load()
    cluster.check()
    for id_, status in cluster.statuses().items():
        assert {member["id"]: member["address"] for member in status["members"]} == cluster.addresses, id_


def test_a_removal_that_would_lose_the_quorum_is_refused(cluster: Cluster) -> None:
    """One of three is down. If one of the two others were removed, one of two would be left."""
    leader, (dead, alive) = cluster.wait_leader(), cluster.followers()
    cluster.kill(dead)
    cluster.wait(
        lambda: not next(m for m in cluster.status(leader)["members"] if m["id"] == dead)["connected"],
        f"{leader} to notice",
    )
    with pytest.raises(ManagerError, match=r"RefusedForSafety.*would lose the quorum"):
        cluster.call(leader, "remove_member", id=alive, timeout=CHANGE_SECONDS)
    assert len(member_ids(cluster, leader)) == 3


def test_a_wiped_directory_is_refused_until_it_is_removed_and_added(cluster: Cluster) -> None:
    """One line tells it the steps. It does not vote or acknowledge: if it is the only other manager, there is no
    quorum. After it was removed and added again it gets all entries through the log."""
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(150)
    cluster.stop_load()
    leader, (wiped, other) = cluster.wait_leader(), cluster.followers()
    cluster.kill(wiped)
    shutil.rmtree(cluster.data_dir(wiped))
    cluster.start(wiped, ready=False)

    def told() -> str:
        return next((a["text"] for a in cluster.status(wiped)["alarms"] if a["name"] == "refused-by-member"), "")

    alarm = cluster.wait(told, f"{wiped} to be told")
    assert f"the data directory of {wiped} is not the one the cluster knows" in alarm
    assert f"members remove {wiped}" in alarm
    assert "\n" not in alarm
    with pytest.raises(ManagerError, match="Unavailable"):
        cluster.call(wiped, "wait_ready", timeout=0.5)

    cluster.kill(other)
    with pytest.raises(ManagerError, match="Unavailable"):
        cluster.call(leader, "put", key="acknowledged by a wiped one", value="x", timeout=2.5)
    assert cluster.status(wiped)["applied_index"] == 1, "it got a log that it must not have"
    cluster.start(other, ready=False)
    cluster.wait_ready(leader, other)

    cluster.call(leader, "remove_member", id=wiped, timeout=CHANGE_SECONDS)
    add(cluster, wiped, through=other)
    cluster.wait_ready(wiped)
    cluster.start_load(wiped)
    cluster.wait_acknowledged(30, wiped)
    cluster.stop_load(wiped)
    cluster.wait_converged()
    assert cluster.call(wiped, "dump") == cluster.call(leader, "dump")


def test_the_directory_of_another_member_or_cluster_is_refused(
    make_cluster: Callable[..., Cluster], cluster: Cluster
) -> None:
    """A swapped directory: m1's data under m2's name, and a whole cluster's data beside another cluster's member."""
    cluster.stop("m1", "m2", "m3")
    data = cluster.data_dir("m1")
    refused = cluster.launch_refused("m2", data_dir=str(data))
    assert refused.kind == "RefusedForSafety", refused
    assert "m1" in refused.text
    assert "m2" in refused.text

    other = make_cluster()
    other.stop("m3")
    shutil.rmtree(other.data_dir("m3"))
    shutil.copytree(cluster.data_dir("m3"), other.data_dir("m3"))
    other.start("m3", ready=False)
    other.allowed_in_logs += ["m3 stopped by itself: the data directory of m3 belongs to cluster"]
    failure = other.wait(lambda: other.status("m3")["failure"], "the stranger to stop")
    assert "the data directory of m3 belongs to cluster" in failure
    assert "\n" not in failure
    other.call("m1", "put", key="without the stranger", value="x", timeout=20.0)
    assert other.status("m3")["leader"] is None
