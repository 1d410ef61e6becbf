"""The promise: only the log counts. A state that is gone, or may have lost pages, is rebuilt from it. Other processes
read the state beside the manager, also when its files are replaced."""

from __future__ import annotations

import shutil
import time

import pytest

import warren_raft as wr
from tests.busy_machine import in_time
from tests.cluster.harness import Cluster


def load(cluster: Cluster, count: int, *ids: str) -> None:
    cluster.start_load(*ids)
    cluster.wait_acknowledged(count)
    cluster.stop_load(*ids)


def test_a_state_that_may_have_lost_pages_is_rebuilt_from_the_log(cluster: Cluster) -> None:
    """The manager was killed, and the marker names another boot: no program may read the file, not even the manager. It
    is set aside, and the log makes the same state again, with the same digest."""
    load(cluster, 200)
    victim = cluster.wait_leader()
    index, digest = cluster.wait_converged()
    before = cluster.generation(victim)
    cluster.kill(victim)
    cluster.forge_marker(victim)
    with pytest.raises(wr.Corrupted, match="rebuild"), wr.ReadOnlyStore(cluster.data_dir(victim)):
        pass
    cluster.start(victim)
    assert cluster.generation(victim) > before
    assert list(cluster.state_of(victim).glob("*.aside-untrusted"))
    cluster.check()
    assert cluster.wait_converged()[0] > index
    load(cluster, 50)
    cluster.check()
    assert digest != cluster.wait_converged()[1]


def test_all_states_lost_at_once_come_back_from_the_logs(cluster: Cluster) -> None:
    """A power cut of all three machines: every state is untrusted or gone, and the three logs rebuild it."""
    load(cluster, 200)
    cluster.wait_converged()
    cluster.kill("m1", "m2", "m3")
    cluster.forge_marker("m1")
    shutil.rmtree(cluster.state_of("m2"))
    (cluster.state_of("m3") / "current").write_text("not a number\n")
    cluster.start("m1", "m2", "m3")
    cluster.check()


def test_without_a_quorum_a_rebuilt_state_is_what_was_committed(cluster: Cluster) -> None:
    """The manager that lost its state is alone: it may serve the writes that it knows to be committed, no others."""
    load(cluster, 100)
    cluster.wait_converged()
    cluster.stop("m1", "m2", "m3")
    shutil.rmtree(cluster.state_of("m2"))
    cluster.start("m2", ready=False)
    status = cluster.status("m2")
    assert not status["has_quorum"]
    assert status["applied_index"] <= status["commit_index"]
    cluster.start("m1", "m3")
    cluster.check()


def test_a_log_that_ends_below_the_state_is_refused(cluster: Cluster) -> None:
    """The log was put back from an older copy, and the state was not. If the manager voted and acknowledged with this
    log, acknowledged writes could be lost. Each start is refused: the third one must not blame the state, rebuild it
    from the old log, and so destroy the evidence."""
    victim = cluster.followers()[0]
    load(cluster, 30)
    cluster.wait_converged()
    cluster.stop(victim)
    shutil.copytree(cluster.data_dir(victim) / "log", cluster.directory / "old-log")
    cluster.start(victim)
    load(cluster, 30)
    cluster.wait_converged()
    cluster.stop(victim)
    shutil.rmtree(cluster.data_dir(victim) / "log")
    shutil.copytree(cluster.directory / "old-log", cluster.data_dir(victim) / "log")
    for _ in range(4):
        refused = cluster.launch_refused(victim)
        assert refused.kind == "Corrupted", refused
        assert "below the applied index" in refused.text
        assert "\n" not in refused.text


def test_a_directory_has_one_manager_at_a_time(cluster: Cluster) -> None:
    """A second manager process on the directory of a running manager gets an error, and disturbs nothing."""
    running = cluster.processes.pop("m1")
    try:
        refused = cluster.launch_refused("m1")
    finally:
        cluster.processes["m1"] = running
    assert refused.kind == "InUse", refused
    assert str(cluster.data_dir("m1")) in refused.text
    load(cluster, 30)
    cluster.check()


def test_a_port_that_is_taken_is_said_and_harms_nothing(cluster: Cluster) -> None:
    """Three starts in a row use a port that another manager has, and each says so. The next start, with the right port,
    finds everything unchanged, on the same generation: such a failed start does not count against the state."""
    load(cluster, 30)
    before = cluster.generation("m1")
    cluster.stop("m1")
    address = cluster.addresses["m1"]
    cluster.addresses["m1"] = cluster.addresses["m2"]
    for _ in range(3):
        refused = cluster.launch_refused("m1", members={"m1": cluster.addresses["m2"]})
        assert refused.kind == "InUse", refused
        assert cluster.addresses["m2"] in refused.text
    cluster.addresses["m1"] = address
    cluster.start("m1")
    assert cluster.generation("m1") == before
    cluster.check()


def test_starts_without_a_quorum_do_not_cost_the_state(cluster: Cluster) -> None:
    """An operator starts one of three managers again and again, and stops it. It never gets ready, because the others
    are down. That is no reason to distrust its state: local reads must not go back."""
    load(cluster, 50)
    index, _ = cluster.wait_converged()
    before = cluster.generation("m1")
    cluster.stop("m1", "m2", "m3")
    for _ in range(4):
        cluster.start("m1", ready=False)
        assert cluster.status("m1")["applied_index"] >= index
        cluster.stop("m1")
    assert cluster.generation("m1") == before


def test_kills_soon_after_a_start_do_not_cost_the_state(cluster: Cluster) -> None:
    """kill -9 as soon as the manager has noted that it got ready, which it does at once. None of these starts counts as
    failed."""
    before = cluster.generation("m1")
    for _ in range(3):
        begin = time.monotonic()
        cluster.wait(lambda: not (cluster.state_of("m1") / "starts").exists(), "the start to be noted")
        took = time.monotonic() - begin
        with in_time():
            assert took < 0.6, "the housekeeping of a second is too late for that"
        cluster.kill("m1")
        cluster.start("m1")
    assert cluster.generation("m1") == before


def test_another_process_reads_while_the_manager_writes_and_follows_it(cluster: Cluster) -> None:
    """A ReadOnlyStore in this process, on the leader's directory, sees a write as soon as the manager has acknowledged
    it, goes on reading while the manager is down, and uses the rebuilt generation when the manager is back."""
    leader = cluster.wait_leader()
    with wr.ReadOnlyStore(cluster.data_dir(leader)) as reader:
        cluster.start_load()
        for number in range(30):
            revision = cluster.call(leader, "put", key=f"seen-{number}", value=f"value {number}")
            seen = reader.get_container(f"seen-{number}")
            assert (seen.image, seen.revision) == (f"value {number}", revision)
        cluster.stop_load()
        cluster.kill(leader)
        assert reader.get_container("seen-29").image == "value 29"
        assert len(reader.list_containers()) > 30
        cluster.forge_marker(leader)
        cluster.start(leader)
        cluster.wait_converged()
        revision = cluster.call(leader, "put", key="seen-29", value="in the new generation")
        assert reader.get_container("seen-29").revision == revision
        assert [c.id for c in reader.list_containers()] == [c[0] for c in cluster.call(leader, "dump")["containers"]]
