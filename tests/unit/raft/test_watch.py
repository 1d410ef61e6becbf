"""A lost quorum, a member that is away and one that is behind are alarms once they have lasted, and end with it."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import pytest

from tests.engine_harness import EPOCH, Cluster, Full, Node
from tests.list_machine import ListMachine
from warren_raft.alarms import Alarm
from warren_raft.raft.changes import WAIT
from warren_raft.raft.events import NotReached, Received, Refused
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.watch import AWAY_SECONDS, BEHIND_SECONDS, NO_QUORUM_SECONDS


def alarm(node: Node, name: str, subject: str = "") -> Alarm | None:
    found = [each for each in node.engine.alarms.active if (each.name, each.subject) == (name, subject)]
    return found[0] if found else None


def clock(cluster: Cluster) -> datetime:
    return EPOCH + timedelta(seconds=cluster.now)


def raised(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [line for line in caplog.messages if line.startswith("alarm raised") and f"alarm={name} " in line]


def started(make_machine: type[ListMachine] = ListMachine) -> tuple[Cluster, str, list[str]]:
    cluster = Cluster(make_machine=make_machine)
    leader = cluster.wait_ready().id
    cluster.write(leader, "a")
    cluster.run(2 * AWAY_SECONDS)
    assert not any(node.alarm_texts for node in cluster.nodes.values()), "of a cluster that is well"
    return cluster, leader, cluster.followers()


# No quorum -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["leader", "follower"])
def test_a_lost_quorum_is_one_alarm_since_it_was_lost(left: str, caplog: pytest.LogCaptureFixture) -> None:
    cluster, leader, followers = started()
    stays = leader if left == "leader" else followers[0]
    lost = [id_ for id_ in ("m1", "m2", "m3") if id_ != stays]
    lost_at = clock(cluster)
    for id_ in lost:
        cluster.crash(id_)
    node = cluster.nodes[stays]
    cluster.run_until(lambda: alarm(node, "no-quorum"))
    cluster.run(2 * AWAY_SECONDS)
    found = alarm(node, "no-quorum")
    assert found is not None
    assert found.severity == "critical"
    assert timedelta() <= found.since - lost_at <= timedelta(seconds=NO_QUORUM_SECONDS)
    assert f"1 of 3 voting members are connected with {stays}; start {lost[0]}, {lost[1]}" in found.text
    assert len(raised(caplog, "no-quorum")) == 1
    for id_ in lost:
        away = alarm(node, "member-away", id_)
        assert away is not None
        assert ("members remove" in away.text, "recovery.md" in away.text) == (False, True), "no member can be removed"
    cluster.start(lost[0])
    cluster.run_until(lambda: node.engine.leader)
    cluster.run(1)
    away = alarm(node, "member-away", lost[1])
    assert away is not None
    assert f"warren-raft members remove {lost[1]}" in away.text
    assert alarm(node, "no-quorum") is None
    assert alarm(node, "member-away", lost[0]) is None
    assert alarm(node, "member-away", lost[1]) is not None


@pytest.mark.slow
def test_a_change_of_leader_and_a_restart_are_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    cluster, leader, _ = started()
    caplog.set_level(logging.INFO)
    cluster.crash(leader)
    cluster.run_until(lambda: cluster.leader is not None)
    cluster.start(leader)
    cluster.run(2 * AWAY_SECONDS)
    assert not any("alarm raised" in line for line in caplog.messages)


@pytest.mark.slow
def test_managers_that_are_connected_and_elect_nobody_say_so() -> None:
    cluster, _, _ = started()
    for node in cluster.nodes.values():
        node.works = False
        node.disk_seconds = None  # no vote becomes durable
    node = cluster.nodes["m1"]
    cluster.isolate("m1")
    cluster.run(2 * NO_QUORUM_SECONDS)
    cluster.heal()
    cluster.run_until(lambda: "no leader is elected, although 3 of 3" in "".join(node.alarm_texts), seconds=60)


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_manager_that_has_no_link_with_the_leader_names_it(is_refused: bool) -> None:
    """(Pins a fault: the text said that no leader is elected, and sent the operator to the disks.)"""
    cluster, leader, (one, _) = started()
    node = cluster.nodes[one]
    cluster.part(one, leader)
    for _ in range(3 * int(NO_QUORUM_SECONDS)):
        if is_refused:
            node.events.append(Refused(leader, Refusal("certificate", "it has expired")))
        cluster.run(1)
    found = alarm(node, "no-quorum")
    assert found is not None
    heard = f"no leader is heard, although 2 of 3 voting members are connected with {one}; {leader} may lead: "
    assert heard in found.text
    if is_refused:
        assert found.text == f"no write can be acknowledged: {heard}{leader} refuses this manager: it has expired"
    else:
        assert (
            "if so, the log says why there is no link, under 'link not made'; if not, look at the disks" in found.text
        )


def test_a_member_whose_certificate_is_refused_is_named_with_the_reason_and_the_commands() -> None:
    """(Pins a report: a follower that refused the expired certificate of the leader said so in its log only.)"""
    cluster, leader, (one, _) = started()
    node = cluster.nodes[one]
    cluster.part(one, leader)
    text = "the certificate has expired: it is valid from A to B, and the clock of the manager that checked it says C"
    for _ in range(2 * int(AWAY_SECONDS)):
        node.events.append(NotReached(leader, f"we refuse it: {text}", Refusal("expired", text)))
        cluster.run(1)
    assert node.engine.link_problem(leader) == f"we refuse it: {text}"
    found = alarm(node, "member-not-let-in", leader)
    assert found is not None
    assert found.text.startswith(f"{leader} is not let in: {text}; if both clocks are right, type on the CA's host: ")
    assert f"warren-raft cert renew {leader}.join" in found.text
    lost = alarm(node, "no-quorum")
    assert lost is not None
    assert text in lost.text
    assert alarm(node, "member-away", leader) is None
    cluster.heal()
    cluster.run_until(lambda: node.engine.is_connected(leader))
    assert node.engine.link_problem(leader) == ""
    cluster.run(1)
    assert alarm(node, "member-not-let-in", leader) is None


def test_a_member_that_is_away_is_named_with_the_reason_of_the_last_attempt() -> None:
    cluster, leader, (away, _) = started()
    node = cluster.nodes[leader]
    cluster.crash(away)
    for _ in range(2 * int(AWAY_SECONDS)):
        node.events.append(NotReached(away, "nothing listens there"))
        cluster.run(1)
    found = alarm(node, "member-away", away)
    assert found is not None
    assert f" s ago (nothing listens there); start {away}, or look at the network" in found.text
    assert node.engine.link_problem(away) == "nothing listens there"
    node.events.append(NotReached("m9", "nothing listens there"))
    cluster.run(1)
    assert node.engine.link_problem("m9") == "", "it is no member"
    cluster.change(leader, "remove", away)
    cluster.run(1)
    assert node.engine.link_problem(away) == ""


# Away ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_member_that_is_away_is_an_alarm_of_every_other_one_until_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, _, (away, _) = started()
    gone_at = clock(cluster)
    cluster.crash(away)
    others = list(cluster.nodes.values())
    cluster.run(AWAY_SECONDS - 2)
    assert not any(node.alarm_texts for node in others)
    cluster.run(4)
    for node in others:
        found = alarm(node, "member-away", away)
        assert found is not None
        assert found.since - gone_at <= timedelta(seconds=1)
        assert f"no link with {away} at {cluster.addresses[away]}, it was last heard 1" in found.text
        assert f"members remove {away}" in found.text
    cluster.start(away)
    cluster.run(2)
    assert not any(node.alarm_texts for node in others)
    assert len(raised(caplog, "member-away")) == len(others)


@pytest.mark.slow
def test_a_member_that_was_never_heard_since_the_start_is_away() -> None:
    cluster, _, (one, two) = started()
    cluster.crash(two)
    node = cluster.restart(one)
    found = cluster.run_until(lambda: alarm(node, "member-away", two))
    assert "it was not heard since this manager started" in found.text


@pytest.mark.slow
def test_the_alarm_of_a_member_ends_when_it_is_removed() -> None:
    cluster, leader, (away, _) = started()
    cluster.crash(away)
    node = cluster.nodes[leader]
    cluster.run_until(lambda: alarm(node, "member-away", away))
    cluster.change(leader, "remove", away)
    cluster.run(2)
    assert not any(node.alarm_texts for node in cluster.nodes.values())


# Behind --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_member_that_applies_nothing_is_behind_for_itself_and_for_others() -> None:
    cluster, leader, (slow, other) = started(Full)
    machine = cluster.nodes[slow].machine
    assert isinstance(machine, Full)
    machine.full = True
    behind_since = clock(cluster)
    cluster.write(leader, "b", "c")
    cluster.run(BEHIND_SECONDS - 2)
    assert not any(alarm(node, "member-behind", slow) for node in cluster.nodes.values())
    cluster.run(8)
    for id_ in (leader, slow, other):
        found = alarm(cluster.nodes[id_], "member-behind", slow)
        assert found is not None, id_
        assert found.since - behind_since <= timedelta(seconds=5)
        assert f"{slow} is behind: it has applied up to index" in found.text
    machine.full = False
    cluster.run(5)
    assert not any(node.alarm_texts for node in cluster.nodes.values())


@pytest.mark.slow
def test_a_member_that_follows_a_stream_of_writes_is_not_behind() -> None:
    cluster, leader, _ = started()
    for number in range(200):
        cluster.write(leader, f"w{number}")
        cluster.run(0.1)
        assert not any(node.alarm_texts for node in cluster.nodes.values())


# Refused -------------------------------------------------------------------------------------------------------------


def test_a_refusal_is_over_once_the_manager_was_added_again() -> None:
    """It stayed for ever."""
    cluster, leader, (wiped, _) = started()
    cluster.crash(wiped)
    cluster.wipe(wiped)
    node = cluster.start(wiped)
    cluster.run_until(lambda: alarm(node, "refused-by-member", leader))
    # (Pins a report: its status said that it waits for the others, which reads as if they were down.)
    others = ", ".join(sorted(cluster.nodes.keys() - {wiped}))
    refused = f"{others} refuse {wiped}: the data directory of {wiped} is not the one the cluster knows"
    cluster.run_until(lambda: node.engine.waits.startswith(refused))
    cluster.change(leader, "remove", wiped)
    cluster.run_until(lambda: "refuse" not in node.engine.waits)
    assert node.engine.waits.startswith(f"joining: {wiped} waits until the cluster of ")
    cluster.change(leader, "add", wiped, cluster.addresses[wiped])
    cluster.run(2)
    assert not any(node.alarm_texts for node in cluster.nodes.values())


def test_a_fault_is_over_once_the_manager_was_removed() -> None:
    """(Pins a fault: the alarm stayed for 5 minutes, also after the manager was added with a new directory.)"""
    cluster, leader, (faulty, other) = started()
    node = cluster.nodes[leader]
    for id_ in (faulty, other):
        node.engine.step(cluster.now, [Received(id_, cluster.links[leader, id_], {"type": "append_reply", "term": -1})])
    cluster.run(1)
    assert [alarm(node, "peer-fault", id_) is not None for id_ in (faulty, other)] == [True, True]
    cluster.change(leader, "remove", faulty)
    cluster.run(1)
    assert [alarm(node, "peer-fault", id_) is not None for id_ in (faulty, other)] == [False, True]


def test_a_fault_is_over_once_the_member_runs_on_another_directory() -> None:
    """(Pins a report: an older copy was put back, and then the manager was started on an empty directory. The alarm
    about the older copy stayed beside the one with the next command.)"""
    cluster, leader, (faulty, _) = started()
    node = cluster.nodes[leader]
    wrong = {"type": "append_reply", "term": -1}
    node.engine.step(cluster.now, [Received(faulty, cluster.links[leader, faulty], wrong)])
    cluster.run(1)
    assert alarm(node, "peer-fault", faulty) is not None
    cluster.crash(faulty)
    cluster.wipe(faulty)
    cluster.start(faulty)
    cluster.run(2)
    assert cluster.nodes[leader].alarm_names == ["member-not-let-in"]


@pytest.mark.slow
def test_others_say_that_a_wiped_member_is_not_let_in_and_not_that_it_is_away() -> None:
    """It runs: "start it, or look at the network" was wrong, and nobody but the wiped one said why."""
    cluster, leader, (wiped, other) = started()
    cluster.crash(wiped)
    cluster.wipe(wiped)
    cluster.start(wiped)
    cluster.run(3 * AWAY_SECONDS)
    for node in (cluster.nodes[leader], cluster.nodes[other]):
        assert node.alarm_names == ["member-not-let-in"]
        assert f"members remove {wiped}; warren-raft members add {wiped}=" in node.alarm_texts[0]
    answer = cluster.ask(other, "add", wiped, cluster.addresses[wiped])
    assert answer.state == WAIT
    assert f"the manager that answers as {wiped} has another data directory; type on another manager: " in answer.text
    cluster.crash(wiped)
    cluster.run_until(lambda: alarm(cluster.nodes[leader], "member-away", wiped), seconds=60)
    assert cluster.nodes[leader].alarm_names == ["member-away"]
    assert "not connected; start it;" in cluster.ask(other, "add", wiped, cluster.addresses[wiped]).text


def test_a_stranger_with_the_id_of_a_member_that_works_is_no_alarm_about_it() -> None:
    cluster, leader, (member, _) = started()
    engine = cluster.nodes[leader].engine
    hello = cluster.nodes[member].engine.hello() | {"incarnation": "another", "blank": True, "membership_index": 0}
    refusal = engine.judge(hello, cluster.certificate(member))
    assert refusal is not None
    assert "is not the one the cluster knows" in refusal.text
    assert cluster.nodes[leader].alarm_names == []
