"""Certificates in the member list: the trust domain, managers added by their certificates, refused certificates.

Real engines on a virtual clock; their links carry an identity as under TLS (the handshake is in
unit/test_transport.py).
"""

from __future__ import annotations

from dataclasses import replace

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine_harness import Cluster
from tests.hostile import Hostile
from warren_raft.certificates.identity import Identity
from warren_raft.errors import RefusedForSafety
from warren_raft.raft.changes import DONE, PENDING
from warren_raft.raft.events import Refused
from warren_raft.raft.membership import (
    ADD,
    CERTIFICATES_KEPT,
    CERTIFY,
    FORM,
    OTHER_CERTIFICATE,
    OTHER_CLUSTER,
    OTHER_TRUST_DOMAIN,
    PROMOTE,
    REMOVE,
    REMOVED,
    REMOVED_CERTIFICATE,
    REMOVED_CERTIFICATES_KEPT,
    UPDATE,
    Certificate,
    Change,
    Hello,
    Member,
    Membership,
    apply_change,
)
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.refusals import LEAVING_SECONDS, OTHERS_NAMED, REFUSAL_SECONDS, STRANGERS

JOINER = "127.0.0.1:7100"


def formed() -> Cluster:
    """A cluster under TLS; its member list has all certificates."""
    cluster = Cluster(trust_domain="home")
    cluster.wait_ready()
    cluster.run_until(lambda: all(known(cluster, id_) for id_ in cluster.nodes))
    return cluster


def test_a_cluster_of_join_files_that_does_not_form_names_forget() -> None:
    """(Pins a fault: the CA puts a removed manager into each later join file, and a new cluster waited for it.)"""
    cluster = Cluster(start=False, trust_domain="home")
    m1 = cluster.start("m1").engine
    cluster.run(1)
    assert m1.waits.endswith("waits for m2, m3; if one of them was removed: issue the join files with --forget ID")
    cluster.start("m2")
    cluster.run(2)
    assert m1.waits.endswith("waits for m3; if m3 was removed: issue the join files with --forget m3")


def test_a_manager_that_is_to_be_added_and_does_not_answer_may_lack_a_certificate() -> None:
    """(Pins a fault of a drill: the operator had started it without --join, and was told to start it.)"""
    cluster = formed()
    answer = cluster.ask(cluster.wait_leader().id, "add", "m4", JOINER)
    assert answer.text == (
        f"m4 does not answer at {JOINER}; if it has no certificate of this cluster, type on the CA's host: warren-raft "
        f"cert issue m4={JOINER} --ca DIR; then start m4 there, on an empty data directory, with --join m4.join"
    )


def membership(cluster: Cluster) -> Membership:
    found = cluster.wait_leader().engine.membership
    assert found is not None
    return found


def known(cluster: Cluster, id_: str) -> list[str]:
    """The serials that the list has for a member."""
    member = membership(cluster).members.get(id_)
    return [] if member is None else [certificate.serial for certificate in member.certificates]


def removed(cluster: Cluster) -> set[str]:
    return {certificate.serial for certificate in membership(cluster).removed_certificates}


def serial(cluster: Cluster, id_: str) -> str:
    identity = cluster.certificate(id_)
    assert identity is not None
    return identity.serial


def is_voter(cluster: Cluster, id_: str) -> bool:
    return cluster.members(cluster.wait_leader().id).get(id_, False)


# A removed manager that comes back ---------------------------------------------------------------------------------


def not_let_in(cluster: Cluster, id_: str) -> dict[str, str]:
    """The subjects and texts of the alarm."""
    active = cluster.nodes[id_].engine.alarms.active
    return {alarm.subject: alarm.text for alarm in active if alarm.name == "member-not-let-in"}


def test_members_say_that_a_removed_manager_knocks_until_it_stops_knocking() -> None:
    """(Pins a report: the status was "healthy", although a manager that the operator started was refused.)"""
    cluster = formed()
    leader, (removed, other) = cluster.wait_leader().id, cluster.followers()
    cluster.crash(removed)
    cluster.change(leader, "remove", removed)
    cluster.run(1)
    cluster.part(leader, removed)  # the word of the other one alone does not stop it
    cluster.start(removed)
    text = cluster.run_until(lambda: not_let_in(cluster, other).get(removed))
    assert text.startswith(f"{removed} is not let in: {removed} was removed from the cluster; its data directory ")
    assert f"type on the CA's host: warren-raft cert issue {removed} --ca DIR; then move" in text
    cluster.crash(removed)
    cluster.run(REFUSAL_SECONDS + 1)
    assert not_let_in(cluster, other) == {}


def test_the_old_certificate_of_a_removed_manager_is_an_alarm_until_it_has_a_new_one() -> None:
    cluster = formed()
    leader, (removed, _) = cluster.wait_leader().id, cluster.followers()
    cluster.crash(removed)
    cluster.change(leader, "remove", removed)
    cluster.wipe(removed)
    cluster.start(removed)
    text = cluster.run_until(lambda: not_let_in(cluster, leader).get(removed))
    assert "was used by a member that was removed" in text
    cluster.crash(removed)
    cluster.issue(removed)
    cluster.start(removed)
    cluster.run_until(lambda: is_voter(cluster, removed))
    assert not_let_in(cluster, leader) == {}


def test_a_member_that_is_removed_while_it_runs_raises_no_alarm_as_it_stops() -> None:
    cluster = formed()
    leader, (removed, other) = cluster.wait_leader().id, cluster.followers()
    cluster.change(leader, "remove", removed)
    while removed not in cluster.stopped:
        cluster.turn()
        assert not_let_in(cluster, leader) == not_let_in(cluster, other) == {}


@pytest.mark.parametrize("is_known", [True, False])
def test_only_a_certificate_of_the_cluster_makes_a_removed_manager_an_alarm(is_known: bool) -> None:
    """A few ids are named, and all others share one alarm, so that every member can have its own."""
    cluster = formed()
    leader, (removed, _) = cluster.wait_leader(), cluster.followers()
    incarnation = cluster.nodes[removed].log.incarnation
    cluster.change(leader.id, "remove", removed)
    cluster.run(LEAVING_SECONDS + 1)
    for number in range(200):
        hello = Hello(
            f"x{number}",
            f"10.0.0.1:{number + 1}",
            incarnation,
            blank=False,
            cluster_id=None,
            membership_index=0,
            founding=b"",
        )
        identity = Identity("home", f"x{number}", f"{number:x}", 1e12) if is_known else None
        refusal = leader.engine.judge(hello.to_message(), identity)
        assert refusal is not None
        assert refusal.code == REMOVED
    subjects = {f"x{number}" for number in range(OTHERS_NAMED)} | {STRANGERS} if is_known else set()
    assert not_let_in(cluster, leader.id).keys() == subjects


# The list ---------------------------------------------------------------------------------------------------------


def test_the_list_has_the_trust_domain_and_the_certificate_of_every_member() -> None:
    cluster = formed()
    assert membership(cluster).trust_domain == "home"
    assert {id_: known(cluster, id_) for id_ in cluster.nodes} == {id_: [serial(cluster, id_)] for id_ in cluster.nodes}
    index = cluster.wait_leader().log.last_index
    cluster.run(3)
    assert cluster.wait_leader().log.last_index == index, "nothing is written after that"


def test_a_cluster_that_was_formed_in_plaintext_takes_over_the_trust_domain() -> None:
    """The first change that a leader under TLS makes brings it; that change adds the leader's own certificate."""
    cluster = Cluster()
    cluster.wait_ready()
    assert membership(cluster).trust_domain == ""
    for id_ in list(cluster.nodes):
        cluster.crash(id_)
    cluster.trust_domain = "home"
    for id_ in cluster.initial:
        cluster.start(id_)
    cluster.run_until(lambda: cluster.leader and membership(cluster).trust_domain == "home")
    cluster.run_until(lambda: all(known(cluster, id_) for id_ in cluster.nodes))


def test_a_renewed_certificate_comes_into_the_list_beside_the_one_before() -> None:
    cluster = formed()
    leader = cluster.wait_leader().id
    before = {id_: serial(cluster, id_) for id_ in cluster.nodes}
    for id_ in list(cluster.nodes):
        cluster.nodes[id_].engine.renewed(cluster.issue(id_))
        for other in cluster.nodes.keys() - {id_}:
            cluster.disconnect(id_, other)
        cluster.run(0.5)
    for id_ in cluster.nodes:
        cluster.run_until(lambda id_=id_: known(cluster, id_) == [serial(cluster, id_), before[id_]])
    victim = next(id_ for id_ in cluster.nodes if id_ != cluster.wait_leader().id)
    assert cluster.change(leader, REMOVE, victim).state == DONE
    assert removed(cluster) == {serial(cluster, victim), before[victim]}


# Added managers ---------------------------------------------------------------------------------------------------


def test_a_blank_manager_with_a_certificate_is_added_and_becomes_a_voter() -> None:
    cluster = formed()
    cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: is_voter(cluster, "m4"))
    assert known(cluster, "m4") == [serial(cluster, "m4")]
    assert membership(cluster).members["m4"].address == JOINER
    cluster.write("m4", "w")
    cluster.check_writes()


def test_in_plaintext_a_blank_manager_waits_for_an_operator() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    cluster.start("m4", address=JOINER)
    cluster.run(5)
    assert cluster.members("m1").keys() == {"m1", "m2", "m3"}


@pytest.mark.parametrize("claim", [{"blank": False}, {"origin": "another"}, {"address": "nowhere"}, {"address": "m1"}])
def test_a_guest_that_cannot_be_a_member_is_not_added(claim: dict[str, object]) -> None:
    cluster = formed()
    if claim == {"address": "m1"}:
        claim = {"address": cluster.addresses["m1"]}
    guest = Hostile.stranger(cluster, **claim)
    refusal = guest.connect(cluster.wait_leader().id)
    assert (refusal is not None) is (claim == {"blank": False} or "origin" in claim)
    cluster.run(3)
    assert cluster.members("m1").keys() == {"m1", "m2", "m3"}


# Refused managers -------------------------------------------------------------------------------------------------


def test_the_certificate_of_a_removed_member_lets_nobody_in_again() -> None:
    """Its host may be stolen, together with its key. With another certificate the same id gets in."""
    cluster = formed()
    leader, victim = cluster.wait_leader().id, cluster.followers()[0]
    stolen = cluster.certificate(victim)
    cluster.crash(victim)
    assert cluster.change(leader, REMOVE, victim).state == DONE
    assert removed(cluster) == {serial(cluster, victim)}
    cluster.wipe(victim)
    cluster.start(victim)
    cluster.run(3)
    assert victim not in cluster.members(leader)
    codes = {refusal.code for refuser, refused, refusal in cluster.refusals if refused == victim}
    assert codes == {REMOVED_CERTIFICATE}
    assert victim in cluster.nodes, "this refusal does not stop it"
    guest = Hostile(cluster, "x", {**Hostile.stranger(cluster).hello}, replace(stolen, node_id="x"))
    assert guest.connect(leader).code == REMOVED_CERTIFICATE
    cluster.crash(victim)
    cluster.issue(victim)
    cluster.start(victim)
    cluster.run_until(lambda: is_voter(cluster, victim))


@pytest.mark.parametrize("code", [REMOVED, OTHER_CLUSTER])
def test_the_word_of_a_removed_certificate_stops_nobody(code: str) -> None:
    """A thief has the certificate, and one member is hostile. (Pins a bug: together they counted as a majority of the
    other voters.)"""
    cluster = formed()
    victim, hostile, replaced = "m1", "m2", "m3"
    stolen = cluster.certificate(replaced)
    cluster.crash(replaced)
    assert cluster.change(victim, REMOVE, replaced).state == DONE
    cluster.wipe(replaced)
    cluster.issue(replaced)
    cluster.start(replaced)
    cluster.run_until(lambda: is_voter(cluster, replaced) and cluster.converged())
    cluster.isolate(victim)
    node = cluster.restart(victim)
    claim = Hostile.stranger(cluster, replaced, cluster_id="another", blank=False)
    claim.identity = stolen
    said = [Refused(hostile, Refusal(code, "a claim"), cluster.certificate(hostile))]
    said.append(Refused(replaced, Refusal(code, "a claim"), stolen))
    node.events += said
    cluster.run(0.2)
    assert claim.connect(victim).code == OTHER_CLUSTER
    cluster.run(0.2)
    assert victim in cluster.nodes
    node.events.append(replace(said[1], identity=cluster.certificate(replaced)))
    cluster.run(0.2)
    assert victim in cluster.stopped


def test_a_removal_that_is_asked_for_again_spares_the_manager_that_was_added_since() -> None:
    """It waits on a blank directory with another certificate, and is added as soon as the old directory is removed. The
    removal is asked for until it is done. (Pins a bug: the new directory was removed, too.)"""
    cluster = formed()
    leader, victim = cluster.wait_leader().id, cluster.followers()[0]

    def incarnation() -> str | None:
        member = cluster.nodes[leader].engine.members.get(victim)
        return None if member is None else member.incarnation

    before = incarnation() or ""
    cluster.crash(victim)
    cluster.wipe(victim)
    cluster.issue(victim)
    cluster.start(victim)
    assert cluster.ask(leader, REMOVE, victim, incarnation=before).state == PENDING
    cluster.run_until(lambda: cluster.nodes[victim].log.incarnation == incarnation() and is_voter(cluster, victim))
    after = incarnation()
    assert after != before
    while (answer := cluster.ask(leader, REMOVE, victim, incarnation=before)).state != DONE:
        assert "is made" in answer.text
    cluster.run(2)
    assert incarnation() == after


def test_a_link_that_is_up_ends_when_its_certificate_is_removed() -> None:
    """The link belongs to a guest that shows a removed member's certificate, under the same id."""
    cluster = formed()
    leader, victim = cluster.wait_leader().id, cluster.followers()[0]
    assert cluster.change(leader, REMOVE, victim).state == DONE
    cluster.run_until(lambda: (leader, victim) not in cluster.links)
    cluster.run_until(lambda: victim in cluster.stopped)


@pytest.mark.parametrize("blank", [True, False])
def test_a_certificate_of_another_id_or_of_another_trust_domain_lets_nobody_in(blank: bool) -> None:
    cluster = formed()
    leader, victim = cluster.wait_leader().id, cluster.followers()[0]
    hello = Hostile.stranger(cluster, "x").hello if blank else cluster.nodes[victim].engine.hello()
    own = cluster.certificate("m1")
    other_id = Hostile(cluster, hello["node_id"], hello, replace(own, node_id="y"))
    assert other_id.connect(leader).code == OTHER_CERTIFICATE
    other_domain = Hostile(cluster, hello["node_id"], hello, Identity("away", hello["node_id"], "1", 1.0))
    refusal = other_domain.connect(leader)
    assert refusal.code == OTHER_TRUST_DOMAIN
    assert "trust domain away, this cluster's is home" in refusal.text


def test_a_manager_whose_own_certificate_is_of_another_trust_domain_does_not_start() -> None:
    cluster = formed()
    victim = cluster.followers()[0]
    cluster.crash(victim)
    cluster.certificates[victim] = replace(cluster.certificates[victim], trust_domain="away")
    with pytest.raises(RefusedForSafety, match=f"is of the trust domain away, .*home.*cert issue {victim}"):
        cluster.start(victim)


# Encodings --------------------------------------------------------------------------------------------------------

LIST = Membership("c", 9, {"m1": Member("m1", "a:1", "i", voter=True)}, ("gone",))
OLD_LIST = cbor2.dumps(["c", 9, [["m1", "a:1", "i", True]], ["gone"]])
"""A list in the form of releases that had no certificates."""
OLD_CHANGE = cbor2.dumps([ADD, "m4", "a:4", "i4", "", []])
CERTIFICATE = Certificate("ab12", 1_800_000_000)


def test_what_has_no_certificates_is_written_as_before_there_were_any() -> None:
    change = Change(ADD, id="m4", address="a:4", incarnation="i4")
    assert (LIST.encode(), change.encode()) == (OLD_LIST, OLD_CHANGE)
    assert (Membership.decode(OLD_LIST), Change.decode(OLD_CHANGE)) == (LIST, change)


def test_certificates_survive_encoding() -> None:
    member = Member("m2", "a:2", "j", voter=False, certificates=(CERTIFICATE, Certificate("cd", 7)))
    full = replace(
        LIST, members={**LIST.members, "m2": member}, trust_domain="home", removed_certificates=(CERTIFICATE,)
    )
    assert Membership.decode(full.encode()) == full
    for verb in (CERTIFY, REMOVE):
        change = Change(verb, id="m2", incarnation="j", trust_domain="home", certificate=CERTIFICATE)
        assert Change.decode(change.encode()) == change
    form = Change(FORM, cluster_id="c", members=(member,), trust_domain="home")
    assert Change.decode(form.encode()) == form


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "c",
        ["c", 9, []],
        ["c", 9, [], []],
        ["", 9, [["m1", "a:1", "i", True]], []],
        ["c", -1, [["m1", "a:1", "i", True]], []],
        ["c", 9, [["m1", "a:1", "i", 1]], []],
        ["c", 9, [["m1", "a:1", "i", True], ["m1", "a:2", "j", True]], []],
        ["c", 9, [["m1", "a:1", "i", True, [["s", "t"]]]], []],
        ["c", 9, [["m1", "a:1", "i", True]], [7]],
        ["c", 9, [["m1", "a:1", "i", True]], [], ["home"]],
        ["c", 9, [["m1", "a:1", "i", True]], [], ["home", [["s", -1]]]],
        ["c", 9, [["m1", "a:1", "i", True]], [], ["home", []], 1],
    ],
)
def test_bytes_that_are_no_list_of_members_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a list of members"):
        Membership.decode(cbor2.dumps(value))


CERTIFICATES = st.none() | st.builds(Certificate, st.sampled_from("abcdefgh"), st.integers(0, 3))
CHANGES = st.builds(
    Change,
    verb=st.sampled_from([ADD, PROMOTE, UPDATE, REMOVE, CERTIFY]),
    id=st.sampled_from(["m1", "m2", "m3"]),
    address=st.just("a:9"),
    incarnation=st.sampled_from(["i", "j"]),
    trust_domain=st.sampled_from(["", "home", "away"]),
    certificate=CERTIFICATES,
).filter(lambda change: change.verb != CERTIFY or change.certificate is not None)


@given(st.lists(CHANGES, max_size=30))
def test_any_sequence_of_changes_forgets_no_certificate_of_a_removed_member(changes: list[Change]) -> None:
    """The list also keeps its first trust domain."""
    current, seen = LIST, {LIST.trust_domain}
    for index, change in enumerate(changes, start=10):
        after = apply_change(current, change, index)
        assert after is not None
        assert Membership.decode(after.encode()) == after
        assert set(current.removed_certificates) <= set(after.removed_certificates)
        gone = [current.members[id_] for id_ in current.members.keys() - after.members.keys()]
        assert {each for member in gone for each in member.certificates} <= set(after.removed_certificates)
        assert all(len(member.certificates) <= CERTIFICATES_KEPT for member in after.members.values())
        assert current.trust_domain in ("", after.trust_domain)
        seen.add(after.trust_domain)
        current = after
    assert len(seen) <= 2


def test_of_too_many_removed_certificates_those_that_end_first_are_forgotten() -> None:
    many = tuple(Certificate(f"{n:x}", n) for n in range(REMOVED_CERTIFICATES_KEPT, 0, -1))
    two = {id_: Member(id_, "a:1", "i", voter=True) for id_ in ("m1", "m2")}
    full = Membership("c", 9, two, removed_certificates=many)
    after = apply_change(full, Change(REMOVE, id="m2", incarnation="i", certificate=CERTIFICATE), 10)
    assert after is not None
    assert after.removed_certificates == (CERTIFICATE, *many[:-1])
    assert Membership.decode(after.encode()) == after
