"""The promise: all that the limits allow works in a real cluster: the largest commands, many callers, a long absence,
and any number of members from one upwards."""

from __future__ import annotations

from collections.abc import Callable

from tests.busy_machine import in_time
from tests.cluster.harness import Cluster

CHANGE_SECONDS = 30.0


def test_the_largest_commands_from_every_manager_at_once(cluster: Cluster) -> None:
    """Entities of 1 MiB in batches of 4 MiB, by several callers on each manager. No batch is dropped because of its
    size, no heartbeat is late because of it, and all batches are replayed after a kill."""
    leader, term = cluster.wait_leader(), cluster.status("m1")["term"]
    asked = {id_: cluster.ask(id_, "put_large", callers=3, rounds=2) for id_ in cluster.alive}
    for id_, future in asked.items():
        assert future.result(60) == 6, id_
    cluster.assert_no_election(leader, term)
    cluster.kill("m1", "m2", "m3")
    cluster.start("m1", "m2", "m3")
    cluster.wait_converged()
    assert cluster.status("m2")["counts"]["volumes"] == 3 * 6 * 3


def test_more_callers_than_the_queue_takes(make_cluster: Callable[..., Cluster]) -> None:
    """Each manager has a queue of four and twelve writers: they wait for each other, and every write is done."""
    cluster = make_cluster(queue_limit=4)
    cluster.start_load(threads=12)
    for id_ in ("m1", "m2", "m3"):
        cluster.wait_acknowledged(150, id_)
    cluster.stop_load()
    history = cluster.check()
    with in_time():
        assert {write.outcome for write in history.writes} <= {"ok", "conflict", "read"}


def test_a_long_absence_is_made_up_for_while_others_write(cluster: Cluster) -> None:
    """A follower is away for thousands of writes. It gets them in bounded messages while new writes go on, and the
    leader does not change."""
    leader, (away, stays) = cluster.wait_leader(), cluster.followers()
    cluster.kill(away)
    cluster.call_all("start_load", leader, stays, threads=8)
    cluster.wait_acknowledged(3000)
    term = cluster.status(leader)["term"]
    cluster.start(away)
    cluster.wait(
        lambda: cluster.status(away)["applied_index"] >= cluster.status(leader)["applied_index"] - 50,
        f"{away} to catch up under load",
    )
    cluster.stop_load()
    cluster.check()
    cluster.assert_no_election(leader, term)


def test_a_cluster_grows_from_one_and_shrinks_to_one(make_cluster: Callable[..., Cluster]) -> None:
    """One manager, then two, then three; then the first leader is removed, then the next; the last manager has all
    writes."""
    cluster = make_cluster(("m1",))
    cluster.start_load("m1")
    for id_ in ("m2", "m3"):
        cluster.add_blank(id_)
        cluster.call("m1", "add_member", id=id_, address=cluster.addresses[id_], timeout=CHANGE_SECONDS)
        cluster.wait_ready(id_)
        cluster.start_load(id_)
        cluster.wait_acknowledged(30, id_)
    cluster.allowed_in_logs += ["was removed from the cluster"]
    cluster.stop_load()
    cluster.check()
    for gone, asked in (("m1", "m1"), ("m2", "m3")):
        cluster.call(asked, "remove_member", id=gone, timeout=CHANGE_SECONDS)
        cluster.wait(lambda gone=gone: cluster.status(gone)["failure"], f"{gone} to stop")
        cluster.call("m3", "put", key=f"without {gone}", value="x", timeout=20.0)
    members = cluster.status("m3")["members"]
    assert [(member["id"], member["voter"], member["leader"]) for member in members] == [("m3", True, True)]
    acknowledged = sum(write.is_ok and write.operation == "pair" for write in cluster.history.read().writes)
    held = [container[0] for container in cluster.call("m3", "dump")["containers"]]
    assert len([key for key in held if key.endswith("-a")]) == acknowledged
