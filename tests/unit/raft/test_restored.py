"""Managers with restored directories: they form the one cluster that the restore named, or no cluster.

Stories with real engines on a virtual clock. The promises: only directories of the same origin form a cluster; each
other manager gets the reason in one sentence, and stops no manager that belongs to a cluster; and a power cut before
the cluster has formed loses nothing.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.engine_harness import RESTORED_INDEX, Cluster
from tests.fast import fast_first
from warren_raft.raft.changes import DONE, REFUSED
from warren_raft.raft.membership import (
    ADD,
    OTHER_CLUSTER,
    OTHER_ORIGIN,
    REMOVE,
    Founding,
    Member,
    Origin,
    read_note,
)

OLD = ["old-1", "old-2"]
"""The writes in the snapshot."""
JOINER = "127.0.0.1:7100"


def restored(*ids: str, seed: int = 1) -> Cluster:
    """Three members that do not run. The named ones are restored; without names, all of them."""
    cluster = Cluster(seed=seed, start=False)
    for id_ in ids or ("m1", "m2", "m3"):
        cluster.restore(id_, OLD)
    return cluster


def start_all(cluster: Cluster) -> None:
    for id_ in ("m1", "m2", "m3"):
        cluster.start(id_)


def is_formed(cluster: Cluster) -> bool:
    return any(node.engine.membership is not None for node in cluster.nodes.values())


def alarms(cluster: Cluster, id_: str) -> str:
    return "\n".join(cluster.nodes[id_].alarm_texts)


# Forming -------------------------------------------------------------------------------------------------------------


def test_three_restored_members_form_the_cluster_that_the_restore_named() -> None:
    cluster = restored()
    start_all(cluster)
    cluster.wait_ready()
    cluster.write("m2", "new")
    cluster.run_until(cluster.converged)
    for node in cluster.nodes.values():
        assert node.engine.membership is not None
        assert node.engine.membership.cluster_id == "restored"
        assert node.machine.applied == [*OLD, "new"]
        assert node.machine.indexes[0] == RESTORED_INDEX + 1
        assert node.engine.waits == ""


def test_the_formed_cluster_outlives_restarts_and_takes_a_blank_joiner() -> None:
    """Its log does not reach back to its start, so the joiner gets a snapshot."""
    cluster = restored()
    start_all(cluster)
    cluster.wait_ready()
    cluster.write("m1", "new")
    for id_ in ("m1", "m2", "m3"):
        cluster.restart(id_)
    cluster.wait_ready()
    cluster.start("m4", address=JOINER, members={**cluster.initial, "m4": JOINER})
    assert cluster.change(cluster.wait_leader().id, ADD, "m4", JOINER).state == DONE
    cluster.run_until(cluster.converged)
    assert cluster.nodes["m4"].snapshots.installed
    assert cluster.nodes["m4"].machine.applied == [*OLD, "new"]


def test_a_restored_member_whose_disk_is_lost_is_replaced_by_a_blank_one() -> None:
    cluster = restored()
    start_all(cluster)
    cluster.wait_ready()
    cluster.crash("m3")
    cluster.wipe("m3")
    cluster.start("m3")
    leader = cluster.wait_leader().id
    assert cluster.change(leader, REMOVE, "m3").state == DONE
    assert cluster.change(leader, ADD, "m3", cluster.addresses["m3"]).state == DONE
    cluster.run_until(cluster.converged)
    assert cluster.nodes["m3"].machine.applied == OLD


def test_one_member_restored_alone_is_a_cluster_of_one_whatever_is_configured() -> None:
    """`recover` makes such a directory: the list of the restore counts, not the configured list of three."""
    cluster = Cluster(start=False)
    cluster.restore("m1", OLD, members={"m1": cluster.addresses["m1"]})
    cluster.start("m1")
    cluster.wait_ready()
    cluster.start("m2")
    assert cluster.change("m1", ADD, "m2", cluster.addresses["m2"]).state == DONE
    cluster.run_until(cluster.converged)
    assert cluster.nodes["m2"].machine.applied == OLD


@pytest.mark.parametrize("crashed", ["m1", "m2", "m3"])
def test_a_power_cut_at_any_moment_of_the_formation_costs_nothing(crashed: str) -> None:
    for turns in range(1, 16):
        cluster = restored()
        start_all(cluster)
        for _ in range(turns):
            cluster.turn()
        cluster.restart(crashed)
        cluster.wait_ready()
        assert len({node.log.note for node in cluster.nodes.values()}) == 1
        cluster.write("m2", "w")
        cluster.check_writes()


def test_restored_and_started_and_cut_off_before_it_met_anybody() -> None:
    cluster = restored()
    for _ in range(3):
        cluster.start("m1")
        cluster.run(2)
        cluster.crash("m1")
    start_all(cluster)
    cluster.wait_ready()
    cluster.run_until(lambda: all(node.machine.applied == OLD for node in cluster.nodes.values()))


@pytest.mark.parametrize("seed", fast_first(range(20), 8))
def test_however_the_start_goes_nobody_records_other_founders_or_another_origin(seed: int) -> None:
    """While the cluster forms there are crashes and power cuts; directories are restored again, restored from another
    snapshot, or wiped."""
    random = Random(seed)
    cluster = restored(seed=seed)
    start_all(cluster)
    for _ in range(60):
        cluster.turn()
        act = random.random()
        id_, other = random.sample(sorted(cluster.nodes), 2)
        if act < 0.06:
            cluster.restart(id_)
        elif act < 0.14:
            cluster.crash(id_)
            if act < 0.09:
                cluster.wipe(id_)
            else:
                cluster.restore(id_, OLD, cluster_id="restored" if act < 0.12 else "another")
            cluster.start(id_)
        elif act < 0.20:
            cluster.part(id_, other)
        elif act < 0.34:
            cluster.heal()
        notes = [read_note(node.log.note) for node in cluster.nodes.values()]
        founders = [note for note in notes if isinstance(note, Founding)]
        assert all(each == founders[0] for each in founders)
        if not founders:
            cluster.leaders.clear()
            continue
        for node in cluster.nodes.values():
            if node.engine.membership is not None and founders[0].origin:
                assert node.engine.membership.cluster_id == founders[0].origin


# Not forming ---------------------------------------------------------------------------------------------------------


def test_one_of_three_waits_and_says_for_whom_and_what_is_to_be_done() -> None:
    cluster = restored("m1")
    cluster.start("m1")
    cluster.run(30)
    assert not is_formed(cluster)
    waits = cluster.nodes["m1"].engine.waits
    assert "m1 waits for m2, m3" in waits
    assert "restored from the same file with the same members (m1, m2, m3)" in waits


def test_an_ordinary_first_start_says_for_whom_it_waits_too() -> None:
    cluster = Cluster(start=False)
    cluster.start("m1")
    cluster.start("m2")
    cluster.run(2)
    assert cluster.nodes["m1"].engine.waits == "the cluster is not formed yet: m1 waits for m3"
    cluster.start("m3")
    cluster.wait_ready()
    assert cluster.nodes["m1"].engine.waits == ""


def test_a_blank_manager_among_restored_ones_is_named_and_nothing_forms() -> None:
    cluster = restored("m1", "m3")
    start_all(cluster)
    cluster.run(30)
    assert not is_formed(cluster)
    assert {refusal.code for _, _, refusal in cluster.refusals} == {OTHER_ORIGIN}
    sentence = "m2 was not restored, and m1 was: restore each member from the same file with the same members"
    assert sentence in alarms(cluster, "m1")
    assert sentence in alarms(cluster, "m2")
    assert cluster.stopped == {}
    cluster.crash("m2")
    cluster.restore("m2", OLD)
    cluster.start("m2")
    cluster.wait_ready()


@pytest.mark.slow
def test_a_restored_manager_among_blank_ones_is_named_and_nothing_forms() -> None:
    cluster = restored("m1")
    start_all(cluster)
    cluster.run(30)
    assert not is_formed(cluster)
    assert "m2 was not restored, and m1 was" in alarms(cluster, "m2")
    assert cluster.stopped == {}


@pytest.mark.slow
@pytest.mark.parametrize("other", ["a file", "a list"])
def test_restored_from_another_file_or_with_another_list_nothing_forms(other: str) -> None:
    """The restore makes the cluster id from the file and the list, so another file or list gives another id."""
    cluster = restored("m1", "m2")
    members = {**cluster.initial, "m4": JOINER} if other == "a list" else None
    cluster.restore("m3", OLD, cluster_id="another", members=members)
    start_all(cluster)
    cluster.run(30)
    assert not is_formed(cluster)
    assert "m1 and m3 were restored from different snapshots, or with different lists" in alarms(
        cluster, "m1"
    ) + alarms(cluster, "m3").replace("m3 and m1", "m1 and m3")
    assert cluster.stopped == {}


def test_the_list_of_the_restore_counts_and_not_the_configured_one() -> None:
    cluster = restored()
    two = {id_: cluster.addresses[id_] for id_ in ("m1", "m2")}
    for id_ in ("m1", "m2", "m3"):
        cluster.start(id_, members=two)
    cluster.wait_ready()
    assert all(sorted(cluster.members(id_)) == ["m1", "m2", "m3"] for id_ in cluster.nodes)


# The old cluster and the new one -------------------------------------------------------------------------------------


def test_a_member_of_the_old_cluster_and_a_restored_one_refuse_each_other_in_one_line() -> None:
    """m1 is restored while the others go on. They are not disturbed, and m1 waits until they are restored too."""
    cluster = Cluster()
    cluster.wait_ready()
    cluster.write("m2", "w")
    cluster.crash("m1")
    cluster.restore("m1", OLD)
    cluster.start("m1")
    cluster.run(10)
    assert {refusal.code for _, _, refusal in cluster.refusals} == {OTHER_CLUSTER}
    for id_ in ("m1", "m2"):
        lines = [line for line in cluster.nodes[id_].alarm_texts if "m1 was restored as cluster restored" in line]
        assert lines
        assert all("m2 belongs to cluster" in line or "m3 belongs to cluster" in line for line in lines)
    assert cluster.stopped == {}
    cluster.write("m2", "x")
    for id_ in ("m2", "m3"):
        cluster.crash(id_)
        cluster.restore(id_, OLD)
        cluster.start(id_)
    cluster.leaders.clear()  # of the old cluster
    cluster.wait_ready()
    assert all(node.machine.applied == OLD for node in cluster.nodes.values())


def test_an_old_member_that_comes_back_among_the_formed_new_ones_stops_with_one_line() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    for id_ in ("m1", "m2", "m3"):
        cluster.crash(id_)
    for id_ in ("m1", "m2"):
        cluster.restore(id_, OLD, members={k: cluster.initial[k] for k in ("m1", "m2")})
        cluster.start(id_)
    cluster.leaders.clear()  # of the old cluster
    cluster.wait_ready()
    cluster.start("m3")
    cluster.run(5)
    assert "m3" in cluster.stopped
    assert "belongs to cluster" in str(cluster.stopped["m3"])
    cluster.write("m1", "w")


def test_a_restored_directory_is_not_added_as_a_blank_one() -> None:
    """A cluster of the same origin does not add it either: a joiner must be blank, and gets the cluster's state."""
    for origin in ("restored", "another"):
        cluster = restored()
        start_all(cluster)
        cluster.wait_ready()
        cluster.addresses["m4"] = JOINER
        cluster.restore("m4", ["something else"], cluster_id=origin, members={**cluster.initial, "m4": JOINER})
        cluster.start("m4", address=JOINER)
        leader = cluster.wait_leader().id
        answer = cluster.ask(leader, ADD, "m4", JOINER)
        cluster.run(3)
        answer = cluster.ask(leader, ADD, "m4", JOINER)
        assert answer.state != DONE
        assert "m4" not in cluster.members(leader)
        if origin == "restored":
            assert (answer.state, "not empty" in answer.text) == (REFUSED, True)
        else:
            assert {refusal.code for _, _, refusal in cluster.refusals} == {OTHER_CLUSTER}


# Encodings -----------------------------------------------------------------------------------------------------------


def test_a_note_says_which_of_the_two_it_is() -> None:
    origin = Origin("cluster", {"m1": "127.0.0.1:1"})
    member = Member("m1", "127.0.0.1:1", "i1", voter=True)
    for note in (origin, Founding({"m1": member}), Founding({"m1": member}, "cluster")):
        assert read_note(note.encode()) == note
    assert read_note(b"") is None


@pytest.mark.parametrize(
    "data", [b"", b"\xa0", Origin("c", {"m": "a"}).encode(), b"\xa2gclusteraxhfoundersa1", b"\x01"]
)
def test_what_is_no_founding_record_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a founding record"):
        Founding.decode(data)
