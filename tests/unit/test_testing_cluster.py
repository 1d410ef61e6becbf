"""Promise: a Cluster in one process fails as managers on other hosts do: killed, frozen, cut off. Nothing of it is left
at the end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import warren_raft as wr
from warren_raft.testing import Cluster, ports
from warren_raft.testing import cluster as cluster_module

pytestmark = pytest.mark.slow

DEADLINE = 60.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(timeout_seconds=DEADLINE) as cluster:
        yield cluster


def put(store: wr.Store | wr.Lead, name: str) -> None:
    store.create_node(wr.Node(id=name), timeout=DEADLINE)


def names(store: wr.Store) -> list[str]:
    return [node.id for node in store.list_nodes()]


def is_unsynced(store: wr.ReplicatedStore) -> bool:
    """Whether there is the marker beside the state that a process leaves when it is killed."""
    return any(store.config.directory.glob("state/*.unsynced"))


def test_a_killed_leader_is_replaced_and_what_it_acknowledged_stays(cluster: Cluster) -> None:
    leader = cluster.leader
    id_ = leader.config.node_id
    put(leader, "a")
    cluster.kill(id_)
    assert id_ not in cluster.stores
    with pytest.raises(wr.Closed):
        leader.list_nodes()
    assert is_unsynced(leader)
    assert cluster.leader is not leader
    put(cluster.leader, "b")
    back = cluster.start(id_)
    back.wait_ready(DEADLINE)
    cluster.wait_applied()
    assert names(back) == ["a", "b"]


def test_a_paused_leader_believes_in_its_lead_until_it_goes_on(cluster: Cluster) -> None:
    leader = cluster.leader
    id_ = leader.config.node_id
    with leader.leading(DEADLINE) as lead, ThreadPoolExecutor(1) as pool:
        cluster.pause(id_)
        cluster.pause(id_)
        assert cluster.is_paused(id_)
        another = cluster.leader
        assert another is not leader
        put(another, "a")
        assert (leader.is_leader, lead.is_over) == (True, False)
        stale = pool.submit(put, lead, "b")
        assert not stale.done()
        cluster.resume(id_)
        with pytest.raises(wr.LeadershipLost):
            stale.result(DEADLINE)
        assert lead.wait_over(DEADLINE)
    cluster.wait_applied()
    assert names(leader) == ["a"]


def test_a_paused_manager_raises_no_alarm_and_closes() -> None:
    with Cluster(watchdog_alarm_seconds=0.2, watchdog_stop_seconds=0.4, timeout_seconds=DEADLINE) as cluster:
        (paused, _) = cluster.followers
        cluster.pause(paused.config.node_id)
        assert not paused.wait_failed(1.0)
        assert [alarm.name for alarm in paused.alarms if alarm.name == "raft-thread-stuck"] == []
        cluster.resume(paused.config.node_id)
        put(cluster.leader, "a")
        cluster.wait_applied()
        assert names(paused) == ["a"]
        cluster.pause(paused.config.node_id)
        paused.close()
        with pytest.raises(wr.Misuse, match="does not run"):
            cluster.resume(paused.config.node_id)


def test_a_paused_manager_can_be_killed(cluster: Cluster) -> None:
    put(cluster.leader, "a")
    id_ = cluster.leader.config.node_id
    cluster.pause(id_)
    cluster.kill(id_)
    cluster.start(id_).wait_ready(DEADLINE)
    put(cluster.stores[id_], "b")
    assert names(cluster.stores[id_]) == ["a", "b"]


def test_a_minority_writes_nothing_and_converges_when_the_network_is_whole(cluster: Cluster) -> None:
    old = cluster.leader
    put(old, "0")
    cluster.part(old.config.node_id)
    with pytest.raises(wr.Unavailable) as sent:
        old.create_node(wr.Node(id="a"), timeout=0.2)
    assert sent.value.maybe_applied
    new = cluster.leader
    assert new is not old
    put(new, "b")
    cluster.wait(lambda: old.leader is None, "a manager that knows no leader")
    with pytest.raises(wr.Unavailable) as waiting:
        old.create_node(wr.Node(id="c"), timeout=0.2)
    assert not waiting.value.maybe_applied
    with pytest.raises(wr.Unavailable):
        old.barrier(timeout=0.2)
    assert "b" not in names(old)
    cluster.heal()
    cluster.wait_applied()
    old.barrier(DEADLINE)
    assert names(old) == names(new)
    assert "b" in names(old)
    assert "c" not in names(old)


def test_a_part_that_lasts_ends_the_links_and_refuses_new_ones() -> None:
    with Cluster(5, timeout_seconds=DEADLINE) as cluster:
        put(cluster.leader, "a")
        cluster.part(["m1", "m2"], ["m3", "m4", "m5"])
        one, other = cluster.stores["m1"], cluster.stores["m3"]

        def linked(store: wr.ReplicatedStore) -> list[str]:
            return [member.id for member in store.members() if member.connected]

        cluster.wait(lambda: linked(one) == ["m1", "m2"] and linked(other) == ["m3", "m4", "m5"], "links that end")
        assert cluster.leader.config.node_id in ("m3", "m4", "m5")
        cluster.part("m1")  # in the place of the groups before
        put(cluster.stores["m2"], "b")
        cluster.heal()
        cluster.wait(lambda: linked(one) == list(cluster.ids), "links that come back")
        cluster.wait_applied()
        assert names(one) == ["a", "b"]


def test_a_manager_that_was_paused_when_the_network_was_cut_hears_nothing_across_it(cluster: Cluster) -> None:
    follower = cluster.followers[0]
    id_ = follower.config.node_id
    cluster.pause(id_)
    put(cluster.leader, "a")  # the entry waits in the socket of the paused manager
    cluster.part(id_)
    cluster.resume(id_)
    cluster.wait(lambda: follower.leader is None, "a manager that knows no leader")
    assert names(follower) == []
    cluster.heal()
    cluster.wait_applied()
    assert names(follower) == ["a"]


def test_a_killed_manager_starts_again_while_the_test_has_a_view_of_it(cluster: Cluster) -> None:
    leader = cluster.leader
    with leader.read() as view:
        cluster.kill(leader.config.node_id)
        cluster.start(leader.config.node_id).wait_ready(DEADLINE)
        with pytest.raises(wr.Closed, match="was killed"):
            view.list_nodes()


def test_a_stopped_leader_hands_over_and_is_sealed(cluster: Cluster) -> None:
    leader = cluster.leader
    id_ = leader.config.node_id
    with leader.leading(DEADLINE) as lead:
        term = lead.term
    cluster.stop(id_)
    assert not is_unsynced(leader)
    with cluster.leader.leading(DEADLINE) as next_lead:
        assert next_lead.term == term + 1
    with pytest.raises(wr.Misuse, match=f"{id_} does not run"):
        cluster.stop(id_)
    cluster.start(id_)
    with pytest.raises(wr.Misuse, match=f"{id_} runs already"):
        cluster.start(id_)


def test_a_leader_is_waited_for_and_without_a_majority_there_is_none() -> None:
    with Cluster(3, timeout_seconds=DEADLINE) as cluster:
        follower, other = cluster.followers
        cluster.kill(follower.config.node_id)
        cluster.pause(other.config.node_id)
        cluster._timeout_seconds = 0.1
        with pytest.raises(TimeoutError, match=r"waited 0.1 s for a leader; m1: .*does not run") as late:
            cluster.leader  # noqa: B018
        assert f"{other.config.node_id}: paused" in str(late.value)


def test_its_loops_go_on_at_the_next_leader(cluster: Cluster) -> None:
    """The program of docs/embedding.md on every manager: exactly one acts, also after the leader was frozen."""
    acted: list[str] = []

    def run(lead: wr.Lead) -> None:
        put(lead, f"term-{lead.term}")
        acted.append(str(lead.term))

    for store in cluster.stores.values():
        store.run_while_leading(run)
    cluster.wait(lambda: acted, "the first lead")
    cluster.kill(cluster.leader.config.node_id)
    cluster.wait(lambda: len(acted) == 2, "the second lead")
    assert names(cluster.leader) == [f"term-{term}" for term in acted]


def test_a_directory_stays_and_a_temporary_one_does_not(tmp_path: Path) -> None:
    with Cluster(1, directory=tmp_path / "c") as cluster:
        put(cluster.leader, "a")
        assert cluster.stores["m1"].config.directory == tmp_path / "c" / "m1"
    with Cluster(1, directory=tmp_path / "c") as cluster:
        assert names(cluster.leader) == ["a"]
    with Cluster(1) as cluster:
        place = cluster.stores["m1"].config.directory.parent
        assert place.exists()
        threads = threading.active_count()
    assert not place.exists()
    assert threading.active_count() < threads


def test_other_ports_are_tried_if_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = [*ports.free_ports(2), taken.getsockname()[1]]
        draws = [first]
        monkeypatch.setattr(
            cluster_module, "free_ports", lambda count: draws.pop() if draws else ports.free_ports(count)
        )
        with Cluster(timeout_seconds=DEADLINE) as cluster:
            assert draws == []
            put(cluster.leader, "a")
            cluster.wait_applied()
            assert [alarm for store in cluster.stores.values() for alarm in store.alarms] == []


def test_settings_are_those_of_config(tmp_path: Path) -> None:
    with Cluster(1, write_timeout_seconds=3.0, admin=True) as cluster:
        config = cluster.leader.config
        assert (config.write_timeout_seconds, config.admin, config.insecure_plaintext) == (3.0, True, True)
    with pytest.raises(wr.Misuse, match="data_dir, listen by itself"):
        Cluster(data_dir="x", listen="y")
    with pytest.raises(TypeError, match="no_such"):
        Cluster(no_such=1)
    for size in (0, 8):
        with pytest.raises(wr.Misuse, match="1 to 7 managers"):
            Cluster(size)


def test_links_may_be_tls() -> None:
    with Cluster(3, insecure_plaintext=False, timeout_seconds=DEADLINE) as cluster:
        assert cluster.leader.status().links == "tls"
        old = cluster.leader
        cluster.part(old.config.node_id)
        put(cluster.leader, "a")
        cluster.heal()
        cluster.wait_applied()
        assert names(old) == ["a"]


def test_names_that_are_wrong(cluster: Cluster) -> None:
    for call in (cluster.start, cluster.stop, cluster.kill, cluster.pause, cluster.resume, cluster.part):
        with pytest.raises(wr.Misuse, match="there is no manager 'm9' in this cluster: its ids are m1, m2, m3"):
            call("m9")
    with pytest.raises(wr.Misuse, match="in one group only"):
        cluster.part(["m1", "m2"], "m2")
