"""The promise: a disk that takes two seconds for one sync costs time, but no election and no write."""

from __future__ import annotations

import time

import pytest

from tests.busy_machine import in_time
from tests.cluster.harness import Cluster

SYNC_SECONDS = 2.0  # twice the election timeout, and above the time in which a leader checks its quorum
HUNG_SECONDS = 110.0  # longer than any wait in this file


def wait_delays(cluster: Cluster, ids: list[str], which: str) -> None:
    """Wait until the slow sync of each of these managers has begun, or ended."""

    def all_have() -> bool:
        return all(counts[which] == 1 for counts in cluster.call_all("disk_counts", *ids).values())

    cluster.wait(all_have, f"{which} on {ids}")


@pytest.mark.parametrize("whose", ["leader", "follower", "both followers", "all"])
def test_a_slow_sync_costs_no_election(cluster: Cluster, whose: str) -> None:
    """Load runs on all managers; one sync of some logs takes two seconds. Heartbeats and signs of life do not wait for
    it: the same leader leads in the same term before, during and after it."""
    leader, followers = cluster.wait_leader(), cluster.followers()
    slow = {"leader": [leader], "follower": followers[:1], "both followers": followers, "all": [leader, *followers]}
    cluster.start_load(threads=2)
    cluster.wait_acknowledged(100)
    before = cluster.status(leader)
    cluster.call_all("delay_next_sync", *slow[whose], seconds=HUNG_SECONDS if whose == "follower" else SYNC_SECONDS)
    wait_delays(cluster, slow[whose], "delays_begun")
    if whose == "follower":
        begun = time.monotonic()
        for id_ in cluster.alive:
            if id_ not in slow[whose]:  # the two others are a quorum, and do not wait for the slow one
                cluster.wait_acknowledged(50, id_)
        cluster.wait(lambda: time.monotonic() - begun >= SYNC_SECONDS, "the sync to be as slow as all the others")
        cluster.call(followers[0], "release_disk")
    wait_delays(cluster, slow[whose], "delays_ended")
    for id_ in cluster.alive:
        cluster.wait_acknowledged(50, id_)
    cluster.stop_load()
    cluster.assert_no_election(leader, before["term"])
    with in_time():
        assert cluster.call(leader, "leadership") == [[True, before["term"]]]
    history = cluster.check()
    with in_time():
        assert {write.outcome for write in history.writes} <= {"ok", "conflict", "read"}


def test_a_follower_whose_disk_hangs_does_not_acknowledge(cluster: Cluster) -> None:
    """Its sync does not return, so it must not count. After the other follower has died there is no quorum, although
    this follower hears every entry. As soon as its disk answers, the waiting write is done."""
    leader, (slow, dead) = cluster.wait_leader(), cluster.followers()
    cluster.wait_converged()
    cluster.call(slow, "delay_next_sync", seconds=60.0)
    waiting = cluster.ask(leader, "put", key="before", value="x", timeout=30.0)
    cluster.wait(lambda: cluster.call(slow, "disk_counts")["delays_begun"] == 1, "the sync to hang")
    assert waiting.result(20) > 0  # leader and the other follower
    cluster.kill(dead)
    waiting = cluster.ask(leader, "put", key="must wait", value="x", timeout=30.0)
    cluster.wait(lambda: cluster.status(leader)["pending_writes"] == 1, "the write to wait")
    before = cluster.status(leader)
    cluster.wait(lambda: cluster.status(slow)["log_entries"] == before["log_entries"], f"{slow} to hear of it")
    cluster.wait(lambda: "disk-slow" in {each["name"] for each in cluster.status(slow)["alarms"]}, "the alarm")
    assert not waiting.done(), "acknowledged with one disk of three"
    cluster.call(slow, "release_disk")
    assert waiting.result(20) > 0
    cluster.start(dead)
    cluster.wait_converged()
    cluster.assert_no_election(leader, before["term"])
