"""The members of a cluster, from the first start to the removal of the leader; and the rules for a wiped disk.

Stories with real engines on a virtual clock. The promises: no two directories ever hold different founding records; a
manager counts only under the incarnation that was added; there is one change at a time; asking again is always safe.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_harness import STEP_SECONDS, Cluster, Node, send_raw
from tests.fast import fast_first
from tests.hostile import Hostile
from warren_raft.errors import RefusedForSafety
from warren_raft.raft import core, guard
from warren_raft.raft.changes import (
    DONE,
    PENDING,
    REFUSED,
    WAIT,
)
from warren_raft.raft.effects import CloseLink
from warren_raft.raft.entries import CHANGE
from warren_raft.raft.events import LinkUp, NotReached, Received
from warren_raft.raft.guests import ASKED_SECONDS
from warren_raft.raft.membership import (
    ADD,
    FORM,
    MALFORMED,
    OTHER_CLUSTER,
    PROMOTE,
    REMOVE,
    REMOVED,
    UPDATE,
    Change,
    Founding,
    Hello,
    Member,
    Membership,
    apply_change,
)
from warren_raft.raft.trust import PeerStanding

JOINER = "127.0.0.1:7100"
"""Address of a manager that is not an initial member."""


def voters(cluster: Cluster, id_: str) -> list[str]:
    return sorted(member for member, votes in cluster.members(id_).items() if votes)


def join(cluster: Cluster, id_: str = "m4", address: str = JOINER) -> None:
    """Start a manager on a blank directory, and add it."""
    cluster.start(id_, address=address, members={**cluster.initial, id_: address})
    assert cluster.change(cluster.wait_leader().id, ADD, id_, address).state == DONE


def replace_disk(cluster: Cluster, id_: str) -> None:
    """The manager loses its directory, is removed, and is added again."""
    cluster.crash(id_)
    cluster.wipe(id_)
    cluster.start(id_)
    leader = cluster.wait_leader().id
    assert cluster.change(leader, REMOVE, id_).state == DONE
    assert cluster.change(leader, ADD, id_, cluster.addresses[id_]).state == DONE


def refusal_texts(cluster: Cluster, refused: str) -> list[str]:
    return [refusal.text for _, whom, refusal in cluster.refusals if whom == refused]


# The first start -----------------------------------------------------------------------------------------------------


def test_three_blank_managers_form_a_cluster_when_all_of_them_have_met() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    lists = [node.engine.membership for node in cluster.nodes.values()]
    assert lists[0] is not None
    assert lists[0].cluster_id
    assert lists[0] == lists[1] == lists[2]
    assert all(voters(cluster, id_) == ["m1", "m2", "m3"] for id_ in cluster.nodes)


def test_one_manager_alone_forms_a_cluster_of_one() -> None:
    cluster = Cluster(["m1"])
    cluster.wait_ready()
    cluster.write("m1", "w")
    assert voters(cluster, "m1") == ["m1"]


def test_the_founder_alone_loses_a_majority_that_it_was_given_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It leads in the term in which it was elected without asking other managers, and no later term began."""
    caplog.set_level(logging.INFO, "warren_raft.engine")
    cluster = Cluster(["m1"])
    cluster.wait_ready()
    join(cluster, "m2")
    cluster.run_until(lambda: voters(cluster, "m1") == ["m1", "m2"])
    cluster.isolate("m1")
    cluster.run_until(lambda: not cluster.nodes["m1"].engine.is_leader)
    (line,) = [text for text in caplog.messages if text.startswith("leader lost node=m1")]
    assert "no majority answered m1" in line


def test_nobody_campaigns_before_every_initial_member_was_met() -> None:
    """Two of three are a quorum, but the third may be a member of a cluster already, or its disk may be wiped later."""
    cluster = Cluster(start=False)
    cluster.start("m1")
    cluster.start("m2")
    cluster.run(30)
    assert [sent.message["type"] for sent in cluster.sent if "vote" in sent.message["type"]] == []
    assert all(node.log.is_blank for node in cluster.nodes.values())
    cluster.start("m3")
    cluster.wait_ready()


def test_a_blank_manager_whose_link_is_missing_holds_the_formation_back() -> None:
    """Each initial member has to meet all others: m1 and m3 have both met m2, but not each other."""
    cluster = Cluster()
    cluster.part("m1", "m3")
    cluster.run(10)
    assert all(node.log.is_blank for node in cluster.nodes.values())
    cluster.heal()
    cluster.wait_ready()


@pytest.mark.slow
def test_a_blank_manager_among_members_of_a_cluster_forms_nothing() -> None:
    """All members but one are away: the two blank managers must not begin a history of their own beside the
    members'."""
    cluster = Cluster()
    cluster.wait_ready()
    cluster.write("m1", "w")
    for id_ in ("m1", "m2"):
        cluster.crash(id_)
        cluster.wipe(id_)
        cluster.start(id_)
    cluster.run(30)
    assert all(cluster.nodes[id_].log.is_blank for id_ in ("m1", "m2"))
    assert cluster.leader is None
    assert any("data directory of m1 is not the one the cluster knows" in text for text in refusal_texts(cluster, "m1"))


@pytest.mark.parametrize("crashed", ["m1", "m2", "m3"])
def test_a_crash_at_any_moment_of_the_formation_changes_no_founder(crashed: str) -> None:
    """A manager that crashed before its founding record was durable gets it again, with the same directories."""
    for turns in range(1, 16):
        cluster = Cluster()
        for _ in range(turns):
            cluster.turn()
        cluster.restart(crashed)
        cluster.wait_ready()
        assert len({node.log.note for node in cluster.nodes.values()}) == 1
        cluster.write("m2", "w")
        cluster.check_writes()


def test_a_founding_record_is_told_to_nobody_before_it_is_durable() -> None:
    """A power cut would take the record from m1 and leave it with another manager, and m1 could then agree to another
    view. Only m1 hears all managers here, and its disk hangs."""
    cluster = Cluster()
    cluster.hold(("m3", "m2"), ("m2", "m3"))
    m1 = cluster.nodes["m1"]
    m1.disk_seconds = None
    cluster.run_until(lambda: m1.engine._roster.founding is not None)
    cluster.run(1)
    assert all(cluster.nodes[id_].log.is_blank for id_ in ("m2", "m3"))
    cluster.disconnect("m1", "m2")
    cluster.run(1)
    assert cluster.nodes["m2"].log.is_blank, "the hello of a new link does not contain the record either"
    m1.disk_seconds = 0.0
    cluster.complete_sync("m1")
    cluster.run_until(lambda: not any(cluster.nodes[id_].log.is_blank for id_ in ("m2", "m3")), seconds=1)
    cluster.heal()
    cluster.wait_ready()


def test_before_the_cluster_is_formed_a_manager_with_a_link_is_connected() -> None:
    """(Pins a bug: `status` said that m2 is not connected, and the log said "link up".)"""
    cluster = Cluster(start=False)
    m1 = cluster.start("m1").engine
    cluster.start("m2")
    cluster.run(2)
    assert m1.waits == "the cluster is not formed yet: m1 waits for m3"
    assert [m1.is_connected(id_) for id_ in ("m1", "m2", "m3")] == [True, True, False]
    assert not m1.has_quorum
    cluster.crash("m2")
    cluster.run(2)
    assert not m1.is_connected("m2")


def test_a_directory_wiped_before_anybody_recorded_it_is_just_another_blank_one() -> None:
    cluster = Cluster(start=False)
    cluster.start("m1")
    cluster.start("m2")
    cluster.run(2)
    cluster.crash("m2")
    cluster.wipe("m2")
    cluster.start("m2")
    cluster.start("m3")
    cluster.wait_ready()
    assert cluster.refusals == []


def test_a_directory_wiped_during_the_formation_is_refused_and_then_added_anew() -> None:
    """m1 has recorded the directory. The blank directory in its place is another; the refusal names the commands."""
    cluster = Cluster()
    cluster.run_until(lambda: any(node.engine._roster.founding for node in cluster.nodes.values()))
    witness = next(id_ for id_, node in cluster.nodes.items() if node.engine._roster.founding)
    victim = next(id_ for id_ in cluster.nodes if id_ != witness)
    cluster.run(2 * STEP_SECONDS)
    cluster.crash(victim)
    cluster.wipe(victim)
    cluster.start(victim)
    leader = cluster.wait_leader()
    cluster.run(3)
    assert any("members remove" in text for text in refusal_texts(cluster, victim))
    assert cluster.nodes[victim].log.is_blank
    assert cluster.change(leader.id, REMOVE, victim).state == DONE
    assert cluster.change(leader.id, ADD, victim, cluster.addresses[victim]).state == DONE
    cluster.wait_ready()
    assert all(voters(cluster, id_) == ["m1", "m2", "m3"] for id_ in cluster.nodes)


@pytest.mark.parametrize("seed", fast_first(range(40), 12))
def test_directories_never_record_different_founders_however_the_first_start_goes(seed: int) -> None:
    """Crashes, wipes, power cuts and slow links while the cluster forms. Directories that exist at the same moment hold
    the same founding record, and at most one leader is elected in a term (checked by the harness)."""
    random = Random(seed)
    cluster = Cluster(seed=seed)
    for _ in range(60):
        cluster.turn()
        act = random.random()
        id_, other = random.sample(sorted(cluster.nodes), 2)
        if act < 0.06:
            cluster.restart(id_)
        elif act < 0.10:
            cluster.crash(id_)
            cluster.wipe(id_)
            cluster.start(id_)
        elif act < 0.16:
            cluster.part(id_, other)
        elif act < 0.22:
            cluster.hold((id_, other))
        elif act < 0.34:
            cluster.heal()
        notes = {node.log.note for node in cluster.nodes.values() if node.log.note}
        assert len(notes) <= 1, [Founding.decode(note) for note in notes]
        if not notes:
            cluster.leaders.clear()  # all directories were wiped: this is another cluster


def test_different_initial_lists_form_nothing_and_say_so() -> None:
    """One operator meant three managers, the other four. Neither list may win by accident."""
    cluster = Cluster(start=False)
    four = {**cluster.initial, "m4": JOINER}
    cluster.start("m1")
    cluster.start("m2", members=four)
    cluster.start("m3")
    cluster.run(10)
    assert all(node.log.is_blank for node in cluster.nodes.values())
    assert any("m2 was started with other initial members" in alarm for alarm in cluster.nodes["m1"].alarm_texts)
    assert any("m1 was started with other initial members" in alarm for alarm in cluster.nodes["m2"].alarm_texts)
    cluster.crash("m2")
    cluster.start("m2")
    cluster.wait_ready()


def test_the_same_manager_under_two_addresses_is_a_different_list() -> None:
    """localhost at one manager, 127.0.0.1 at another: the founding record holds addresses, and two records must never
    differ. (Pins a bug: both were recorded, and the managers refused each other for ever.)"""
    cluster = Cluster(start=False)
    cluster.start("m1")
    cluster.start("m2", members={**cluster.initial, "m3": "localhost:7002"})
    cluster.start("m3")
    cluster.run(10)
    assert all(node.log.is_blank for node in cluster.nodes.values())
    assert any("m2 was started with other initial members" in alarm for alarm in cluster.nodes["m1"].alarm_texts)


def test_a_manager_restarted_with_a_shorter_list_follows_the_cluster_it_belongs_to() -> None:
    """m2 declared the list of three, died, and comes back with a shorter list after the others have recorded the first
    list. It does not take their record, which names a manager that its operator did not name, and never votes by its
    own list. The cluster that the others form lets it in."""
    cluster = Cluster()
    cluster.hold(("m1", "m2"), ("m3", "m2"))
    founders = cluster.nodes["m1"].engine._roster
    cluster.run_until(lambda: founders.founding is not None)
    assert cluster.nodes["m2"].log.is_blank
    cluster.restart("m3")
    cluster.crash("m2")
    cluster.start("m2", members={"m1": cluster.addresses["m1"], "m2": cluster.addresses["m2"]})
    cluster.heal()
    cluster.wait_ready()
    assert cluster.nodes["m2"].engine._roster.founding is None
    assert cluster.nodes["m2"].engine._core.voters == {"m1", "m2", "m3"}


def test_a_founder_that_was_away_ever_since_follows_a_leader_that_it_has_never_met() -> None:
    """It knows the founding record only; the other managers have later lists. (Pins a bug: it took the leader's new
    directory for a wiped initial member, and dropped all messages of the leader.)"""
    cluster = Cluster()
    cluster.run_until(lambda: all(node.log.note and not node.batches for node in cluster.nodes.values()))
    cluster.isolate("m3")
    leader = cluster.run_until(lambda: cluster.leader)
    for id_, address in (("m4", "127.0.0.1:7100"), ("m5", "127.0.0.1:7101")):
        cluster.start(id_, address=address)
        cluster.part("m3", id_)
        assert cluster.change(leader.id, ADD, id_, address).state == DONE
    victim = next(id_ for id_ in ("m1", "m2") if id_ != leader.id)
    replace_disk(cluster, victim)
    cluster.run_until(lambda: cluster.nodes[victim].engine.is_ready)
    cluster.change(leader.id, "transfer", victim)
    assert cluster.nodes["m3"].machine.applied_index == 1
    cluster.cut.discard(frozenset(("m3", victim)))
    cluster.run_until(lambda: "m5" in cluster.members("m3"))
    cluster.heal()
    cluster.write("m3", "w")
    cluster.check_writes()


@pytest.mark.slow
def test_a_manager_that_knows_of_no_other_founds_no_cluster_unless_it_is_told_to() -> None:
    """(Pins a bug: a joiner with an empty list became a second cluster at once. It took writes, and could not be
    added.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    alone = cluster.start("m4", address=JOINER, members={"m4": JOINER}, bootstrap=False)
    cluster.run(10)
    assert alone.log.is_blank
    assert alone.engine.waits == (
        "m4 knows no other member and begins no cluster: to add it to a cluster, type on a member: warren-raft "
        f"members add m4={JOINER}; or start it with --bootstrap as a cluster of one"
    )
    assert alone.alarm_names == ["cluster-not-formed"]
    assert cluster.change(leader.id, ADD, "m4", JOINER).state == DONE
    cluster.run_until(lambda: alone.engine.is_ready and not alone.alarm_names)
    cluster.write("m4", "w")


def test_told_to_it_begins_a_cluster_of_one_and_goes_on_with_it() -> None:
    cluster = Cluster(("m1",), start=False)
    cluster.start("m1", bootstrap=True)
    cluster.write("m1", "w")
    cluster.crash("m1")
    cluster.start("m1", bootstrap=False)
    cluster.write("m1", "again")


def test_a_restored_directory_of_one_member_needs_not_be_told() -> None:
    cluster = Cluster(("m1",), start=False)
    cluster.restore("m1", ["old"])
    cluster.start("m1", bootstrap=False)
    cluster.write("m1", "w")


# Adding --------------------------------------------------------------------------------------------------------------


def test_a_member_that_starts_empty_catches_up_through_the_log_and_then_votes() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.write("m2", *(f"w{number}" for number in range(30)))
    join(cluster)
    cluster.run_until(cluster.converged)
    assert all(voters(cluster, id_) == ["m1", "m2", "m3", "m4"] for id_ in cluster.nodes)
    cluster.write("m4", "through the new one")
    cluster.isolate(leader.id)
    cluster.run_until(lambda: any(n.engine.is_leader and n.id != leader.id for n in cluster.nodes.values()))
    cluster.heal()
    cluster.check_writes()


def test_a_member_that_is_not_started_is_not_added() -> None:
    """Stock counts the member at once; after a second such member the cluster has no quorum and no way back (hole
    7c)."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    answer = cluster.ask(leader.id, ADD, "m4", JOINER)
    assert answer.state == WAIT
    assert answer.text == f"m4 does not answer at {JOINER}; start m4 there, on an empty data directory"
    cluster.run_until(lambda: leader.dialed.get("m4") == (JOINER,))
    assert voters(cluster, leader.id) == ["m1", "m2", "m3"]
    leader.events.append(NotReached("m4", "m5 answers there"))
    cluster.turn()
    answer = cluster.ask(leader.id, ADD, "m4", JOINER)
    assert (
        answer.text == f"m4 does not answer at {JOINER}: m5 answers there; start m4 there, on an empty data directory"
    )
    other = "127.0.0.1:7111"
    answer = cluster.ask(leader.id, ADD, "m4", other)
    assert answer.text == f"m4 does not answer at {other}; start m4 there, on an empty data directory", (
        "nothing is known about the other address"
    )


def test_a_manager_that_nobody_asks_to_add_any_more_is_not_dialled_for_ever() -> None:
    """(Pins a bug: a manager of another cluster refused for ever, and the alarm about it stayed until the leader
    changed.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.ask(leader.id, ADD, "m4", JOINER)
    cluster.run_until(lambda: leader.dialed.get("m4") == (JOINER,))
    cluster.run(ASKED_SECONDS - 1)
    cluster.ask(leader.id, ADD, "m4", JOINER)
    cluster.run(ASKED_SECONDS - 1)
    assert leader.dialed.get("m4") == (JOINER,)
    cluster.run(2)
    assert "m4" not in leader.dialed
    assert cluster.leader is leader
    join(cluster)


def test_a_learner_counts_in_no_quorum() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    one, two = cluster.followers()
    cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    cluster.hold(("m4", leader.id))
    cluster.ask(leader.id, ADD, "m4", JOINER)
    cluster.run(1)
    assert cluster.members(leader.id)["m4"] is False
    cluster.isolate(two)
    cluster.write(leader.id, "two of three are a quorum")
    cluster.isolate(one)
    cluster.submit(leader.id, "no quorum with a learner", seconds=3)
    cluster.run(4)
    assert "no quorum with a learner" in cluster.failed


def test_a_learner_is_promoted_only_when_it_has_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it gets the log. An earlier promotion could cost the quorum, because it could not acknowledge yet."""
    monkeypatch.setattr(core, "MESSAGE_BYTES", 200)
    monkeypatch.setattr(guard, "WINDOW_BYTES", 400)
    cluster = Cluster()
    leader = cluster.wait_ready()
    for number in range(150):
        cluster.submit(leader.id, f"x{number}")
        cluster.run(STEP_SECONDS * 3)
    cluster.run_until(lambda: len(cluster.acknowledged) == 150)
    learner = cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    cluster.ask(leader.id, ADD, "m4", JOINER)
    cluster.run_until(lambda: cluster.members(leader.id).get("m4") is False)
    before = leader.log.last_index
    held = []
    while leader.log.last_index == before:
        held.append(learner.log.last_index)
        cluster.turn()
    assert held[0] < 80
    assert held[-1] == before
    cluster.run_until(lambda: cluster.members("m4").get("m4"))
    cluster.check_writes()


def test_a_member_that_lost_its_directory_is_not_called_added() -> None:
    """The member is in the list, and the manager in its place is refused. `add` alone does not help, and must not say
    that it did."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    lost = cluster.followers()[0]
    cluster.crash(lost)
    cluster.wipe(lost)
    cluster.start(lost)
    cluster.run(2)
    answer = cluster.ask(leader.id, ADD, lost, cluster.addresses[lost])
    assert answer.state == WAIT
    assert f"members remove {lost}; warren-raft members add {lost}={cluster.addresses[lost]}" in answer.text


def test_a_guest_answers_no_vote_request() -> None:
    """A blank directory votes for no candidate: it may be in the place of a member's lost disk."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    guest = cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    before = len(cluster.sent)
    for kind in ("pre_vote", "request_vote"):
        message = {"type": kind, "round": 1, "term": 50, "last_log_index": 99, "last_log_term": 49, "transfer": True}
        send_raw(leader, "m4", message)
    cluster.run(1)
    assert [sent.message for sent in cluster.sent[before:] if sent.sender == "m4"] == []
    assert guest.log.is_blank


def test_a_directory_that_is_no_member_counts_for_nobody_though_its_link_is_up() -> None:
    """Its link came up while it was a member, or before it becomes one. The list decides for each message (hole 7,
    wiped disks)."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    other, silent = cluster.followers()
    cluster.hold((other, leader.id), (silent, leader.id))
    cluster.submit(leader.id, "w")
    cluster.run(0.1)
    hello = {**cluster.nodes[other].engine.hello(), "incarnation": "another", "membership_index": 0}
    cluster.disconnect(other, leader.id)
    cluster.part(other, leader.id)
    cluster.links[leader.id, other] = 999
    leader.events.append(LinkUp(other, 999, hello))
    answer = {
        "next_index": leader.log.last_index + 1,
        "success": True,
        "reset": False,
        "answers": [leader.engine.term, 99],
    }
    leader.events.append(Received(other, 999, {"type": "append_reply", **answer}))
    cluster.step(leader.id)
    assert "w" not in cluster.acknowledged
    assert leader.engine.guard_stats["message of a non-member dropped"] == 1
    assert (leader.id, other) not in cluster.links


def test_an_answer_of_one_that_says_to_be_ahead_is_dropped_and_stops_nobody() -> None:
    """The peer may know a later list, but no list that we know has it. (Pins a bug: the core failed on a missing key,
    and the manager stopped.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    hello = {**leader.engine.hello(), "node_id": "x", "incarnation": "another", "membership_index": 1_000_000}
    assert leader.engine.judge(hello) is None
    cluster.links[leader.id, "x"] = 999
    leader.events.append(LinkUp("x", 999, hello))
    answer = {"next_index": 3, "success": True, "reset": False, "answers": [leader.engine.term, 1]}
    leader.events.append(Received("x", 999, {"type": "append_reply", **answer}))
    cluster.step(leader.id)
    assert leader.engine.guard_stats["message of a peer that is ahead dropped"] == 1
    cluster.write(leader.id, "w")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1:7001", "127.0.0.1:7001 is the address of m2"),
        ("127.0.0.1", "is not an address"),
        ("", "is not an address"),
        ("127.0.0.1:99999", "a port is a number"),
        ("host:port", "is not an address"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address: str, text: str) -> None:
    """(Pins a bug: the leader tried to dial it, which stopped the leader.)"""
    cluster = Cluster()
    cluster.wait_ready()
    follower, _ = cluster.followers()
    answer = cluster.ask(follower, ADD, "m4", address)
    assert answer.state == REFUSED
    assert text in answer.text
    answer = cluster.ask(follower, UPDATE, follower, address)
    assert answer.state == (DONE if address == cluster.addresses[follower] else REFUSED)


@pytest.mark.parametrize("member_id", ["", "m" * 600, "m\n4"])
def test_an_id_that_cannot_be_is_refused(member_id: str) -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    answer = cluster.ask(leader.id, ADD, member_id, JOINER)
    assert answer.state == REFUSED


def test_a_manager_that_joins_while_the_level_is_raised_is_not_added_with_an_older_release() -> None:
    """Its link is as old as the level before, so the link alone does not keep it out."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.start("m4", address=JOINER, members={**cluster.initial, "m4": JOINER})
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    for node in cluster.nodes.values():
        node.machine.level = 2
    answer = cluster.ask(leader.id, ADD, "m4", JOINER)
    assert answer.state == REFUSED
    assert answer.text.startswith("m4 runs a release that reads the command set up to level 1, and this cluster uses")
    assert "m4" not in cluster.members(leader.id)


def test_a_directory_that_is_not_empty_is_not_added() -> None:
    """The directory belongs to another cluster: its entries would be taken for ours."""
    other = Cluster(["m4"])
    other.wait_ready()
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.disks["m4"], cluster.machines["m4"] = other.disks["m4"], other.machines["m4"]
    cluster.start("m4", address=JOINER)
    for _ in range(20):
        assert cluster.ask(leader.id, ADD, "m4", JOINER).state == WAIT
        cluster.run(0.1)
    assert any("belongs to cluster" in refusal.text for _, _, refusal in cluster.refusals)
    text = cluster.ask(leader.id, ADD, "m4", JOINER).text
    assert text.startswith(f"m4 answers at {JOINER} and cannot be added: m")
    assert "belongs to cluster" in text
    assert "m4" not in cluster.members(leader.id)


def test_asking_again_is_harmless() -> None:
    """Ten equal requests make one change, and each answer "done" is true."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    before = leader.log.last_index
    for id_ in sorted(cluster.nodes) * 3:
        cluster.ask(id_, ADD, "m4", JOINER)
    assert cluster.change(leader.id, ADD, "m4", JOINER).state == DONE
    cluster.run(1)
    assert leader.log.last_index == before + 2, "one entry to add, one to promote"


# Updating and removing -----------------------------------------------------------------------------------------------


def test_a_change_that_is_asked_for_under_load_comes_before_the_writes_that_wait() -> None:
    """The leader looks at changes once a tick. At each tick two entries may be under way, so that no entry may be
    proposed. The next entry has to be the change all the same."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    follower = cluster.followers()[0]
    for node in cluster.nodes.values():
        node.disk_seconds = None
    for text in ("one", "two", "three"):
        cluster.submit(leader.id, text)
        cluster.step(leader.id)
    assert leader.log.last_index == leader.machine.applied_index + 2
    assert cluster.ask(leader.id, "update", follower, "127.0.0.1:7200").state == PENDING
    cluster.run(5 * STEP_SECONDS)
    under_way = leader.log.last_index
    assert under_way == leader.machine.applied_index + 2
    while leader.log.last_index == under_way:
        for node in cluster.nodes.values():
            if node.batches:
                cluster.complete_sync(node.id)
            cluster.step(node.id)
        for pair in cluster.links:
            cluster.deliver(*pair)
    assert leader.log.entries[under_way + 1 - leader.log.base_index][0][:2] == CHANGE


def test_a_member_moves_to_another_address() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    moved, _ = cluster.followers()
    cluster.crash(moved)
    cluster.start(moved, address="127.0.0.1:7555")
    leader = cluster.wait_leader()
    assert cluster.change(leader.id, UPDATE, moved, "127.0.0.1:7555").state == DONE
    cluster.run_until(cluster.converged)
    for node in cluster.nodes.values():
        assert node.engine.members[moved].address == "127.0.0.1:7555"
    cluster.write(moved, "from the new place")
    cluster.check_writes()


def test_a_removed_follower_learns_it_and_stops_with_one_line() -> None:
    """Stock lets it campaign for ever (hole 7)."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    removed, other = cluster.followers()
    assert cluster.change(leader.id, REMOVE, removed).state == DONE
    cluster.run_until(lambda: removed in cluster.stopped, seconds=5)
    assert str(cluster.stopped[removed]) == (
        f"{removed} was removed from the cluster and stops; its data directory cannot be used again. To bring it back: "
        f"move the data directory of {removed} aside, start {removed} on an empty one, then type on another manager: "
        f"warren-raft members add {removed}={cluster.addresses[removed]}"
    )
    assert isinstance(cluster.stopped[removed], RefusedForSafety)
    cluster.write(other, "without it")
    assert cluster.members(leader.id) == {leader.id: True, other: True}
    if cluster.machines[removed].applied_index == leader.machine.applied_index:
        with pytest.raises(RefusedForSafety, match="was removed"):
            cluster.start(removed)
    else:
        cluster.start(removed)
        cluster.run_until(lambda: removed not in cluster.nodes, seconds=5)
        assert [refusal.code for _, whom, refusal in cluster.refusals if whom == removed][-1] == REMOVED


def test_a_member_that_was_away_when_it_was_removed_learns_it_on_its_return() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    removed, _ = cluster.followers()
    cluster.crash(removed)
    assert cluster.change(leader.id, REMOVE, removed).state == DONE
    cluster.start(removed)
    cluster.run_until(lambda: removed in cluster.stopped, seconds=5)


def test_the_leader_hands_over_before_it_is_removed() -> None:
    """Stock refuses the removal of a leader (hole 7)."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    other, _ = cluster.followers()
    assert cluster.change(other, REMOVE, leader.id).state == DONE
    cluster.run_until(lambda: leader.id in cluster.stopped, seconds=5)
    assert leader.id not in cluster.members(other)
    cluster.write(other, "after")
    cluster.check_writes()


def test_removing_down_to_one_and_adding_again() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    for id_ in cluster.followers():
        assert cluster.change(leader.id, REMOVE, id_).state == DONE
        cluster.run_until(lambda id_=id_: id_ in cluster.stopped)  # type: ignore[misc]
    cluster.write(leader.id, "alone")
    answer = cluster.change(leader.id, REMOVE, leader.id)
    assert (answer.state, answer.text) == (REFUSED, f"{leader.id} is the only voting member")
    for id_ in ("m4", "m5"):
        join(cluster, id_, f"127.0.0.1:71{id_[1]}0")
    cluster.write("m5", "three again")
    cluster.check_writes()


def test_a_removal_that_would_lose_the_quorum_is_refused() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    dead, alive = cluster.followers()
    cluster.crash(dead)
    cluster.run(STEP_SECONDS)
    answer = cluster.ask(leader.id, REMOVE, alive)
    assert answer.state == REFUSED
    assert answer.text == f"removing {alive} would lose the quorum: 1 of 2 others are connected"
    assert cluster.change(leader.id, REMOVE, dead).state == DONE


def test_a_removal_waits_if_the_rest_needs_a_voter_that_lacks_a_snapshot() -> None:
    """(Pins a fault: the removal was made. The voter that was left had no room for the snapshot on its disk, so nothing
    was committed any more, and no other change could be made.)"""
    cluster = Cluster(snapshot_after_bytes=2_000)
    leader = cluster.wait_ready()
    behind, removed = cluster.followers()
    cluster.crash(behind)
    end = leader.log.last_index
    while leader.log.base_index <= end:
        cluster.write(leader.id, f"{cluster.now} {'x' * 200}")
    node = cluster.start(behind)
    node.works = False
    cluster.run_until(lambda: node.engine.fetching)
    for _ in range(20):
        answer = cluster.ask(leader.id, REMOVE, removed)
        assert answer.state == WAIT
        assert answer.text == f"removing {removed} would lose the quorum until a snapshot has reached {behind}"
        cluster.run(0.1)
    cluster.write(leader.id, "it still votes")
    node.works = True
    assert cluster.change(leader.id, REMOVE, removed).state == DONE
    cluster.write(leader.id, "two are left")


def test_of_two_changes_at_once_one_waits() -> None:
    """Stock's own check is dead code: both changes count at once, and two halves of the cluster both commit (hole
    7a)."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    for id_, port in (("m4", 7100), ("m5", 7101)):
        cluster.start(id_, address=f"127.0.0.1:{port}")
    cluster.run_until(lambda: {"m4", "m5"} <= leader.engine._roster.links.keys())
    cluster.hold(*((leader.id, other) for other in cluster.followers()))
    first = leader.engine._changes.request(ADD, "m4", "127.0.0.1:7100", leader.machine.applied_index, leader.id)
    second = leader.engine._changes.request(ADD, "m5", "127.0.0.1:7101", leader.machine.applied_index, leader.id)
    assert (first.state, second.state) == (PENDING, WAIT)
    assert second.text == "another change of members is under way"
    cluster.heal()
    cluster.run_until(lambda: cluster.members(leader.id).get("m4"))
    assert "m5" not in cluster.members(leader.id)
    assert cluster.change(leader.id, ADD, "m5", "127.0.0.1:7101").state == DONE
    cluster.run_until(cluster.converged)


def test_a_change_waits_while_the_one_before_is_on_its_way() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    one, two = cluster.followers()
    cluster.hold((one, leader.id), (two, leader.id))
    assert cluster.ask(leader.id, UPDATE, one, "127.0.0.1:7555").state == PENDING
    cluster.turn()
    before = leader.log.last_index
    for _ in range(5):
        assert cluster.ask(leader.id, UPDATE, one, "127.0.0.1:7555").state == WAIT
        assert cluster.ask(leader.id, UPDATE, two, "127.0.0.1:7556").state == WAIT
    assert leader.log.last_index == before
    cluster.heal()
    cluster.run_until(lambda: leader.engine.members[one].address == "127.0.0.1:7555")
    cluster.run(1)
    assert leader.log.last_index == before, "no second entry for a change that was asked for twice"


def test_a_change_by_an_isolated_leader_leaves_no_trace() -> None:
    cluster = Cluster()
    old = cluster.wait_ready()
    one, two = cluster.followers()
    cluster.isolate(old.id)
    cluster.ask(old.id, UPDATE, one, "127.0.0.1:7555")
    cluster.run(2 * STEP_SECONDS)
    assert old.log.last_index > cluster.nodes[one].log.last_index
    assert old.engine.members[one].address != "127.0.0.1:7555", "in its log only"
    cluster.run_until(lambda: any(cluster.nodes[id_].engine.is_leader for id_ in (one, two)))
    cluster.write(one, "from the majority")
    cluster.heal()
    cluster.check_writes()
    assert all(node.engine.members[one].address != "127.0.0.1:7555" for node in cluster.nodes.values())


@pytest.mark.parametrize("restarted", fast_first(["m3", "m4", "m1", "m2"], 1))
def test_a_restart_at_any_moment_keeps_the_applied_list(restarted: str) -> None:
    """Stock forgets changes that are in the log and not applied yet, or counts them before they are committed (hole
    7b)."""
    for turns in range(1, 26, 2):
        cluster = Cluster()
        leader = cluster.wait_ready()
        cluster.start("m4", address=JOINER)
        cluster.run_until(lambda: "m4" in leader.engine._roster.links)  # noqa: B023
        cluster.ask(leader.id, ADD, "m4", JOINER)
        for _ in range(turns):
            cluster.turn()
        known = cluster.members(restarted)
        cluster.restart(restarted)
        assert cluster.members(restarted) == known
        assert cluster.change(cluster.wait_leader().id, ADD, "m4", JOINER).state == DONE
        cluster.write("m4", "w")
        cluster.check_writes()
        assert all(voters(cluster, id_) == ["m1", "m2", "m3", "m4"] for id_ in cluster.nodes)


def test_an_operator_is_told_that_a_member_was_added_and_does_not_vote_yet() -> None:
    """Its disk hangs, so it does not catch up. (Pins a bug: this was told like a change that was begun only.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    begun = cluster.ask(leader.id, UPDATE, cluster.followers()[0], "127.0.0.1:7200")
    assert (begun.state, begun.is_made) == (PENDING, False)
    assert cluster.change(leader.id, UPDATE, cluster.followers()[0], "127.0.0.1:7200").state == DONE
    cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    cluster.nodes["m4"].disk_seconds = None
    cluster.ask(leader.id, ADD, "m4", JOINER)
    cluster.run_until(lambda: "m4" in leader.engine.members)
    added = cluster.ask(cluster.followers()[0], ADD, "m4", JOINER)
    assert (added.state, added.is_made) == (PENDING, True)
    assert added.text == "m4 was added, and votes when it has caught up"


# Wiped disks ---------------------------------------------------------------------------------------------------------


def test_a_wiped_member_is_refused_with_what_to_type_then_removed_and_added_again() -> None:
    """Under one leader, and without a restart of another manager. (Pins a bug: the leader remembered the entries that
    the lost disk had acknowledged, and accused the new directory of having lost them.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.write("m1", *(f"w{number}" for number in range(10)))
    victim, other = cluster.followers()
    cluster.crash(victim)
    cluster.wipe(victim)
    cluster.start(victim)
    cluster.run(5)
    assert cluster.nodes[victim].log.is_blank
    text = refusal_texts(cluster, victim)[0]
    assert f"the data directory of {victim} is not the one the cluster knows (wiped or replaced)" in text
    assert f"warren-raft members remove {victim}; warren-raft members add {victim}=" in text
    assert cluster.change(other, REMOVE, victim).state == DONE
    assert cluster.change(other, ADD, victim, cluster.addresses[victim]).state == DONE
    assert leader.engine.is_leader
    cluster.write(victim, "from the new disk")
    cluster.check_writes()
    assert all("cannot be" not in alarm for node in cluster.nodes.values() for alarm in node.alarm_texts)


def test_a_wiped_disk_cannot_lose_what_was_acknowledged() -> None:
    """Without incarnations: w is on m1 and m2, m3 lacks it; m2's disk is wiped; m2 and m3 are a majority without w."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    wiped, behind = cluster.followers()
    cluster.part(leader.id, behind)
    cluster.write(leader.id, "w")
    cluster.crash(leader.id)
    cluster.crash(wiped)
    cluster.wipe(wiped)
    cluster.start(wiped)
    cluster.run(20)
    assert cluster.leader is None, "a wiped disk voted"
    cluster.start(leader.id)
    cluster.heal()
    cluster.wait_leader()
    cluster.run_until(lambda: cluster.machines[behind].applied == ["w"])


def test_a_lagging_member_with_an_old_list_meets_a_readded_one() -> None:
    """A member was away while another member's disk was replaced. It knows the old incarnation only. The new directory
    has a later list, so it must get a link; the old directory must never get one again."""
    cluster = Cluster(["m1", "m2", "m3", "m4", "m5"])
    leader = cluster.wait_ready()
    lagging, victim, *_ = cluster.followers()
    cluster.isolate(lagging)
    cluster.crash(victim)
    cluster.wipe(victim)
    cluster.start(victim)
    assert cluster.change(leader.id, REMOVE, victim).state == DONE
    assert cluster.change(leader.id, ADD, victim, cluster.addresses[victim]).state == DONE
    cluster.run_until(lambda: cluster.nodes[victim].engine.is_ready)
    cluster.cut.discard(frozenset((lagging, victim)))
    cluster.run(3)
    assert (lagging, victim) in cluster.links
    cluster.change(leader.id, "transfer", victim)
    cluster.run_until(
        lambda: cluster.nodes[victim].machine.applied_index == cluster.nodes[lagging].machine.applied_index
    )
    cluster.heal()
    cluster.write(lagging, "w")
    cluster.check_writes()


def test_a_new_member_that_leads_gets_through_to_one_that_met_it_as_a_guest() -> None:
    """The link was made while the new member was blank, and the lagging member learns of the new member only over this
    link. (Pins a bug: the hello of that link counted for ever, and the lagging member dropped all messages of its
    leader.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    lagging, other = cluster.followers()
    cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: (lagging, "m4") in cluster.links)
    cluster.part(lagging, leader.id)
    cluster.part(lagging, other)
    assert cluster.change(leader.id, ADD, "m4", JOINER).state == DONE
    assert "m4" not in cluster.members(lagging)
    cluster.change(leader.id, "transfer", "m4")
    new = cluster.nodes["m4"]
    cluster.run_until(lambda: new.engine.is_leader)
    cluster.write("m4", "through the new one")
    cluster.run_until(lambda: "through the new one" in cluster.machines[lagging].applied, seconds=10)


# The list as a value -------------------------------------------------------------------------------------------------


IDS = st.sampled_from(["m1", "m2", "m3", "m4"])
FORMED = (Member("m1", "a:1", "i1", voter=True), Member("m2", "b:2", "i1", voter=True))
CHANGES = st.builds(
    Change,
    verb=st.sampled_from([FORM, ADD, PROMOTE, UPDATE, REMOVE]),
    id=IDS,
    address=st.sampled_from(["a:1", "b:2"]),
    incarnation=st.sampled_from(["i1", "i2"]),
    cluster_id=st.just("c"),
    members=st.just(FORMED),
).map(lambda change: change if change.verb == FORM else replace(change, members=()))


@given(st.lists(CHANGES, max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_sequence_of_changes_moves_at_most_one_voter_at_a_time(changes: list[Change]) -> None:
    """Raft thesis 4.1: so the majorities of two consecutive lists overlap. A list is never empty, and survives
    encoding."""
    membership: Membership | None = None
    for index, change in enumerate(changes, start=2):
        after = apply_change(membership, change, index)
        if membership is not None:
            assert after is not None
            assert len(after.voters ^ membership.voters) <= 1
            assert after.members
            assert Membership.decode(after.encode()) == after
        membership = after
        assert Change.decode(change.encode()) == change


def test_a_change_meant_for_one_directory_never_hits_its_successor() -> None:
    """If the removal of the wiped m2 is proposed twice, it must not remove the m2 that was added in between."""
    members = {id_: Member(id_, f"{id_}:1", "old", voter=True) for id_ in ("m1", "m2", "m3")}
    before = Membership("c", 2, members)
    remove = Change(REMOVE, id="m2", incarnation="old")
    removed = apply_change(before, remove, 3)
    added = apply_change(removed, Change(ADD, id="m2", address="m2:1", incarnation="new"), 4)
    assert apply_change(added, remove, 5) == added
    update = Change(UPDATE, id="m2", address="x:1", incarnation="old")
    assert apply_change(added, update, 5) == added


@pytest.mark.parametrize("verb", [FORM, PROMOTE, UPDATE, REMOVE])
def test_a_change_that_comes_after_its_member_was_removed_changes_nothing(verb: str) -> None:
    """Otherwise a promotion that was proposed before the removal would bring the member back."""
    members = {id_: Member(id_, f"{id_}:1", "old", voter=True) for id_ in ("m1", "m2", "m3")}
    removed = apply_change(Membership("c", 2, members), Change(REMOVE, id="m2", incarnation="old"), 3)
    late = Change(verb, id="m2", address="m2:2", incarnation="old", cluster_id="c", members=tuple(members.values()))
    assert apply_change(removed, late, 4) == removed


def test_a_hello_that_makes_no_sense_is_refused_and_harms_nobody() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    engine = cluster.nodes["m1"].engine
    refusal = engine.judge({**cluster.nodes["m2"].engine.hello(), "membership_index": "1"})
    assert refusal is not None
    assert refusal.code == MALFORMED
    assert engine.failure is None


HELLO = Hello(
    node_id="m1", address="a:1", incarnation="i", blank=True, cluster_id=None, membership_index=0, founding=b""
)


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": ""},
        {"node_id": 7},
        {"address": "x" * 300},
        {"incarnation": None},
        {"blank": 1},
        {"cluster_id": b"c"},
        {"membership_index": "1"},
        {"membership_index": -1},
        {"membership_index": 1 << 63},
        {"membership_index": True},
        {"founding": "f"},
        {"founding": b"\xff"},
        {"founding": b"\x80"},
        {"founding": b"\x81\x83\x01\x02"},
    ],
)
def test_a_hello_with_a_field_that_cannot_be_is_malformed(change: dict[str, object]) -> None:
    """A peer's message never stops a manager, and certainly not before the peer has a link."""
    with pytest.raises(ValueError, match=r"hello|founding"):
        Hello.from_message({**HELLO.to_message(), **change})


def test_a_hello_travels_unchanged() -> None:
    founding = Founding({"m1": Member("m1", "a:1", "i", voter=True)})
    for hello in (HELLO, replace(HELLO, founding=founding.encode(), cluster_id="c", membership_index=9)):
        assert Hello.from_message(hello.to_message()) == hello


def guest_of_two_clusters(**options: int) -> tuple[Cluster, Node, Hostile]:
    """A cluster, its leader, and a leader of another cluster; m4, which is blank, has links with both leaders."""
    cluster = Cluster(**options)
    leader = cluster.wait_ready()
    cluster.start("m4", address=JOINER, members={**cluster.initial, "m4": JOINER})
    foreign = Hostile.stranger(cluster, "b1", blank=False, cluster_id="another", membership_index=1 << 40)
    assert foreign.connect("m4") is None
    cluster.run_until(lambda: cluster.nodes["m4"].engine._roster.links.keys() == {"m1", "m2", "m3", "b1"})
    return cluster, leader, foreign


@pytest.mark.parametrize("by_snapshot", [False, True], ids=["log", "snapshot"])
def test_a_guest_of_two_clusters_that_one_of_them_adds_leaves_the_other(by_snapshot: bool) -> None:
    """(Pins a bug: the link with the other cluster stayed up, because m4 had no list to judge it by when the link was
    made. As the other cluster's list had a higher index, its leader was heard as a manager that is ahead.)"""
    cluster, leader, foreign = guest_of_two_clusters(**({"snapshot_after_bytes": 1000} if by_snapshot else {}))
    while by_snapshot and leader.log.base_index == 1:
        cluster.write(leader.id, f"{cluster.now}{'x' * 200}")
    assert cluster.change(leader.id, ADD, "m4", JOINER).state == DONE
    assert bool(cluster.states["m4"].installed) is by_snapshot
    assert ("m4", "b1") not in cluster.links
    refusal = foreign.connect("m4")
    assert refusal is not None
    assert refusal.code == OTHER_CLUSTER
    assert cluster.nodes["m4"].engine._roster.links.keys() == {"m1", "m2", "m3"}


def test_a_link_with_another_cluster_that_was_judged_before_this_one_was_known_does_not_come_up() -> None:
    cluster, leader, foreign = guest_of_two_clusters()
    cluster.disconnect("m4", "b1")
    assert cluster.nodes["m4"].engine.judge(foreign.hello) is None
    assert cluster.change(leader.id, ADD, "m4", JOINER).state == DONE
    node = cluster.nodes["m4"]
    effects = node.engine.step(cluster.now, [LinkUp("b1", 999, foreign.hello)])
    assert CloseLink(999, "b1 belongs to another cluster") in effects
    assert "b1" not in node.engine._roster.links


def test_a_manager_of_another_cluster_is_not_ahead_however_late_its_list_is() -> None:
    cluster, leader, _ = guest_of_two_clusters()
    roster = cluster.nodes["m4"].engine._roster
    assert roster.standing("b1") is PeerStanding.AHEAD
    roster.apply(leader.engine._roster.membership)
    assert roster.standing("b1") is PeerStanding.GUEST


def test_two_guests_meet_again_when_one_of_them_is_added() -> None:
    """Both were blank when the link was made. The one that becomes a member, and is asked to add the other, has to see
    the other's present hello."""
    cluster = Cluster(["m1"])
    cluster.wait_ready()
    for id_, address in (("m2", JOINER), ("m3", "127.0.0.1:7101")):
        cluster.start(id_, address=address, members={"m1": "127.0.0.1:7000", "m2": JOINER, "m3": "127.0.0.1:7101"})
    cluster.run_until(lambda: ("m2", "m3") in cluster.links)
    assert cluster.change("m1", ADD, "m2", JOINER).state == DONE
    cluster.run_until(lambda: "m2" in cluster.nodes["m3"].engine._roster.links)
    cluster.run_until(lambda: cluster.nodes["m3"].engine._roster.links["m2"].hello.cluster_id is not None)
    cluster.run_until(lambda: "m3" in cluster.nodes["m2"].engine._roster.links)


def test_a_directory_of_another_cluster_stops_with_a_clear_line() -> None:
    """A manager was moved with its old disk: its peers are of another cluster, and waiting would not help."""
    other = Cluster(seed=2)
    other.wait_ready()
    cluster = Cluster(seed=1)
    cluster.wait_ready()
    cluster.crash("m3")
    cluster.disks["m3"], cluster.machines["m3"] = other.disks["m3"], other.machines["m3"]
    other.crash("m3")
    cluster.start("m3")
    cluster.run_until(lambda: "m3" in cluster.stopped)
    assert "belongs to cluster" in str(cluster.stopped["m3"])
    assert cluster.wait_leader().id in ("m1", "m2")
    assert {"m1", "m2"} <= cluster.nodes.keys(), "one manager of another cluster stops no manager"


def test_the_level_is_not_raised_while_a_member_that_reads_it_is_silent() -> None:
    """A link stands for seconds after its other end has died. (Pins a fault: the level was raised over such a link, and
    the member that came back with the older release could not take the log any more.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    one, silent = (id_ for id_ in cluster.nodes if id_ != leader.id)
    for node in cluster.nodes.values():
        node.engine._roster.level_max = 2
    cluster.disconnect(leader.id, one)
    cluster.disconnect(leader.id, silent)
    cluster.run_until(lambda: {(leader.id, one), (leader.id, silent)} <= cluster.links.keys())
    cluster.hold((silent, leader.id))
    cluster.run(3.0)
    assert (leader.id, silent) in cluster.links
    assert leader.engine.is_leader
    assert leader.machine.level == 1
    cluster.heal()
    cluster.run_until(lambda: all(node.machine.level == 2 for node in cluster.nodes.values()))
