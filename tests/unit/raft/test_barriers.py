"""A barrier passes when this manager has applied everything that was acknowledged anywhere before the call. It makes no
entry and waits for no disk (Raft thesis 6.4). Each test is a way in which such a read can be stale, or for ever late.

Several engines in one thread. Not here: the callers' threads (tests/unit/test_barrier_calls.py), random faults (the
simulation)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_harness import Cluster, Node, send_raw
from warren_raft.errors import Closed, Unavailable
from warren_raft.raft.barriers import Barrier
from warren_raft.raft.context import TICK_SECONDS
from warren_raft.raft.membership import ADD, REMOVE

JOINER = "127.0.0.1:7099"
QUESTIONS = ("read_index", "read_index_is", "confirm", "confirmed")


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.wait_ready()
    cluster.write("m1", "first")
    cluster.run_until(cluster.converged)
    return cluster


def sent(cluster: Cluster, *types: str) -> list[tuple[str, str, dict[str, Any]]]:
    return [(s.sender, s.receiver, s.message) for s in cluster.sent if s.message["type"] in (types or QUESTIONS)]


def both_ways(one: str, *others: str) -> list[tuple[str, str]]:
    return [pair for other in others for pair in ((one, other), (other, one))]


def test_it_makes_no_entry_and_waits_for_no_disk(cluster: Cluster) -> None:
    """Not even if every disk hangs. On the leader and on a follower."""
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    cluster.run(1.0)
    for node in cluster.nodes.values():
        node.disk_seconds = None
    before = {id_: (node.log.last_index, node.syncs) for id_, node in cluster.nodes.items()}
    barriers = [cluster.barrier(leader), cluster.barrier(follower)]
    cluster.run(0.2)
    assert all(barrier.is_passed for barrier in barriers)
    assert {id_: (node.log.last_index, node.syncs) for id_, node in cluster.nodes.items()} == before


def test_it_sees_a_write_that_another_manager_acknowledged(cluster: Cluster) -> None:
    """The follower has heard nothing of the write yet."""
    leader = cluster.wait_leader().id
    reader, other = cluster.followers()
    cluster.hold((leader, reader))
    cluster.write(other, "elsewhere")
    barrier = cluster.barrier(reader)
    cluster.run(0.3)
    assert not barrier.is_passed
    assert "elsewhere" not in cluster.nodes[reader].machine.applied
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)
    assert "elsewhere" in cluster.nodes[reader].machine.applied


def test_barriers_of_one_moment_cost_one_round(cluster: Cluster) -> None:
    """A thousand callers on each manager: one question of each follower, and two rounds at most."""
    leader = cluster.wait_leader().id
    barriers = [cluster.barrier(id_) for id_ in cluster.nodes for _ in range(1000)]
    cluster.sent.clear()
    cluster.run_until(lambda: all(barrier.is_passed for barrier in barriers))
    assert len(sent(cluster, "read_index")) == len(sent(cluster, "read_index_is")) == 2
    assert {sender for sender, _, _ in sent(cluster, "confirm")} == {leader}
    assert len(sent(cluster, "confirm")) <= 4


def test_a_deposed_leader_that_does_not_know_it_lets_no_barrier_pass(cluster: Cluster) -> None:
    """It is cut off, and the others go on without it. Its barrier waits, and passes when it has caught up."""
    old = cluster.wait_leader().id
    others = cluster.followers()
    cluster.hold(*both_ways(old, *others))
    cluster.run_until(lambda: any(cluster.nodes[id_].engine.is_leader for id_ in others))
    cluster.write(others[0], "of the new leader")
    barrier = cluster.barrier(old)
    cluster.run(0.5)
    assert not barrier.is_passed
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)
    assert "of the new leader" in cluster.nodes[old].machine.applied


def test_a_frozen_leader_does_not_count_answers_from_before_the_call(cluster: Cluster) -> None:
    """Voters answer a round, the leader is suspended, and another one is elected. The old leader wakes up with these
    answers and with a new caller: they let the old caller pass, not the new one."""
    old = cluster.nodes[cluster.wait_leader().id]
    others = cluster.followers()
    before = cluster.barrier(old.id)
    cluster.step(old.id)
    del cluster.nodes[old.id]  # suspended: its links stay, and messages to it wait
    cluster.hold(*((other, old.id) for other in others))
    cluster.run_until(lambda: any(cluster.nodes[id_].engine.is_leader for id_ in others))
    cluster.write(others[0], "meanwhile")
    cluster.nodes[old.id] = old
    after = cluster.barrier(old.id)
    for other in others:
        assert any(message["type"] == "confirmed" for message in cluster.on_wire(other, old.id))
        for _ in cluster.on_wire(other, old.id):
            if not before.is_passed:
                cluster.deliver(other, old.id, 1)
                cluster.step(old.id)
    assert before.is_passed
    assert not after.is_passed
    cluster.heal()
    cluster.run_until(lambda: after.is_passed)
    assert "meanwhile" in old.machine.applied


def test_a_frozen_follower_does_not_take_an_answer_from_before_the_call(cluster: Cluster) -> None:
    """The answer to an older question waits in the follower's socket while others write."""
    leader = cluster.wait_leader().id
    follower, other = cluster.followers()
    before = cluster.barrier(follower)
    cluster.hold((leader, follower))
    cluster.run_until(lambda: any(message["type"] == "read_index_is" for message in cluster.on_wire(leader, follower)))
    cluster.write(other, "meanwhile")
    after = cluster.barrier(follower)
    cluster.step(follower)
    for _ in cluster.on_wire(leader, follower):
        if not before.is_passed:
            cluster.deliver(leader, follower, 1)
            cluster.step(follower)
    assert before.is_passed
    assert not after.is_passed or "meanwhile" in cluster.nodes[follower].machine.applied
    cluster.heal()
    cluster.run_until(lambda: after.is_passed)
    assert "meanwhile" in cluster.nodes[follower].machine.applied


def test_no_number_is_used_again_after_a_restart(cluster: Cluster) -> None:
    """etcd-io/raft once matched the late answer to a question of the process before to a new question. Here the leader
    holds a question of a process that dies, and answers only after the next process has asked."""
    leader = cluster.wait_leader().id
    follower, other = cluster.followers()
    cluster.hold((other, leader), (follower, leader))
    asking = cluster.barrier(follower)
    cluster.step(follower)
    cluster.deliver(follower, leader)
    cluster.step(leader)
    first = sent(cluster, "read_index")[-1][2]["number"]
    cluster.crash(follower)
    cluster.start(follower)
    cluster.held.discard((follower, leader))
    barrier = cluster.barrier(follower)
    cluster.sent.clear()
    cluster.run_until(lambda: sent(cluster, "read_index"))
    assert sent(cluster, "read_index")[0][2]["number"] != first
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)
    assert first not in [message["number"] for _, _, message in sent(cluster, "read_index_is")]
    assert not asking.is_passed


def test_an_answer_counts_only_from_the_manager_that_was_asked_and_to_its_question(cluster: Cluster) -> None:
    leader = cluster.wait_leader()
    follower, other = cluster.followers()
    cluster.hold((leader.id, follower))
    barrier = cluster.barrier(follower)
    cluster.step(follower)
    number = sent(cluster, "read_index")[-1][2]["number"]
    for teller, answer in ((other, number), (leader.id, number - 1), (leader.id, number + 1)):
        cluster.heal()
        send_raw(cluster.nodes[teller], follower, {"type": "read_index_is", "number": answer, "index": 0})
        cluster.hold((leader.id, follower))
        cluster.step(teller)
        for message in cluster.on_wire(teller, follower):
            cluster.deliver(teller, follower, 1)
            if message["type"] == "read_index_is" and message["index"] == 0:
                break
        cluster.step(follower)
        assert not barrier.is_passed, (teller, answer)
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)


@pytest.mark.parametrize("change", [{"term": -1}, {"term": 1}, {"round": -1}, {"round": 1}])
def test_an_answer_of_another_term_or_round_does_not_count(cluster: Cluster, change: dict[str, int]) -> None:
    leader = cluster.wait_leader().id
    others = cluster.followers()
    cluster.hold(*((leader, other) for other in others))
    barrier = cluster.barrier(leader)
    cluster.step(leader)
    asked = sent(cluster, "confirm")[-1][2]
    answer = {**asked, "type": "confirmed", **{name: asked[name] + by for name, by in change.items()}}
    for other in others:
        send_raw(cluster.nodes[other], leader, answer)
        cluster.step(other)
        cluster.deliver(other, leader)
    cluster.step(leader)
    assert not barrier.is_passed
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)


def test_a_voter_confirms_only_the_leader_that_it_follows(cluster: Cluster) -> None:
    leader = cluster.wait_leader()
    claimer, voter = cluster.followers()
    for peer, term in ((claimer, leader.engine.term), (leader.id, leader.engine.term - 1)):
        cluster.sent.clear()
        send_raw(cluster.nodes[peer], voter, {"type": "confirm", "term": term, "round": 99})
        cluster.run(0.1)
        assert not [message for _, _, message in sent(cluster, "confirmed") if message["round"] == 99]


def test_a_new_leader_waits_until_it_has_applied_an_entry_of_its_term(cluster: Cluster) -> None:
    """Before that it does not know which entries of earlier leaders are committed."""
    old = cluster.wait_leader()
    others = cluster.followers()
    index = old.log.last_index + 1
    cluster.submit(old.id, "committed without their knowledge")
    cluster.run_until(lambda: all(cluster.nodes[id_].log.last_index == index for id_ in others))
    cluster.hold(*((old.id, other) for other in others))
    cluster.run_until(lambda: "committed without their knowledge" in cluster.acknowledged)
    cluster.isolate(old.id)
    node = cluster.run_until(
        lambda: next((cluster.nodes[id_] for id_ in others if cluster.nodes[id_].engine.role == "leader"), None)
    )
    node.disk_seconds = node.write_at = None  # its own entry is not durable
    barrier = cluster.barrier(node.id)
    cluster.run(0.3)
    assert node.engine.role == "leader"
    assert not barrier.is_passed
    assert "committed without their knowledge" not in node.machine.applied
    cluster.complete_sync(node.id)
    node.disk_seconds = 0.0
    cluster.run_until(lambda: barrier.is_passed)
    assert "committed without their knowledge" in node.machine.applied


def test_a_lone_voter_answers_by_itself() -> None:
    """In the same step, and its disk may hang."""
    cluster = Cluster(("m1",))
    node = cluster.wait_leader()
    cluster.write("m1", "mine")
    node.disk_seconds = None
    barrier = cluster.barrier("m1")
    cluster.step("m1")
    assert barrier.is_passed


def leader_round(leader: Node) -> dict[str, Any]:
    """The fields of an answer to the round that runs."""
    found = leader.engine._confirming._round
    assert found is not None
    return {"term": found.term, "round": found.number}


def test_learners_do_not_count(cluster: Cluster) -> None:
    """Three voters and a learner: with two voters away, leader and learner are no majority."""
    leader = cluster.wait_leader()
    voters = cluster.followers()
    cluster.start("m4", address=JOINER)
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    cluster.hold(("m4", leader.id))  # it never keeps up, so it is not promoted
    cluster.ask(leader.id, ADD, "m4", JOINER)
    cluster.run_until(lambda: cluster.members(leader.id).get("m4") is False)
    for voter in voters:
        cluster.part(leader.id, voter)
    cluster.held.clear()
    barrier = cluster.barrier(leader.id)
    cluster.sent.clear()
    cluster.run(0.4)
    assert leader.engine.role == "leader"
    assert not barrier.is_passed
    assert not [to for _, to, _ in sent(cluster, "confirm") if to == "m4"]
    send_raw(cluster.nodes["m4"], leader.id, {**leader_round(leader), "type": "confirmed"})
    cluster.run(0.1)
    assert not barrier.is_passed
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)


def test_a_round_begins_again_when_the_list_changes_meanwhile() -> None:
    """One voter has answered a leader of three. The other is removed, and then one answer of two is no majority: but
    the answer was to a round of the list before."""
    cluster = Cluster(("m1", "m2", "m3", "m4"))
    leader = cluster.wait_ready().id
    gone, *kept = cluster.followers()
    cluster.run(1.0)
    removal = cluster.change(leader, REMOVE, gone)
    assert removal.state == "done"
    confirming = cluster.nodes[leader].engine._confirming
    cluster.hold(*((other, leader) for other in kept))
    barrier = cluster.barrier(leader)
    cluster.step(leader)
    first = confirming._round
    assert first is not None
    cluster.nodes[leader].engine._roster.membership = cluster.nodes[leader].engine.membership  # the same object
    cluster.step(leader)
    assert confirming._round is first
    first.membership = None  # as if the list had been another one when the round began
    cluster.step(leader)
    assert confirming._round is not None
    assert confirming._round.number > first.number
    cluster.heal()
    cluster.run_until(lambda: barrier.is_passed)


def test_barriers_go_on_through_a_transfer_of_leadership(cluster: Cluster) -> None:
    barriers: list[Barrier] = []
    for _ in range(4):
        leader, target = cluster.wait_leader().id, cluster.followers()[0]
        cluster.ask(leader, "transfer", target)
        for _ in range(20):
            barriers += [cluster.barrier(id_) for id_ in cluster.nodes]
            cluster.turn()
        cluster.run_until(lambda target=target: cluster.nodes[target].engine.is_leader)
    cluster.run_until(lambda: all(barrier.is_passed for barrier in barriers))


def test_without_a_quorum_a_barrier_ends_at_its_deadline(cluster: Cluster) -> None:
    """It says that nothing was written, whatever happened to its messages."""
    leader = cluster.wait_leader().id
    cluster.isolate(leader)
    barrier = cluster.barrier(leader, seconds=0.5)
    cluster.run_until(lambda: barrier.error is not None, seconds=0.5 + 5 * TICK_SECONDS)
    assert isinstance(barrier.error, Unavailable)
    assert not barrier.error.maybe_applied
    assert "no leader with a quorum" in str(barrier.error)


def test_a_manager_that_cannot_apply_says_so_at_the_deadline(cluster: Cluster) -> None:
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    cluster.nodes[follower].disk_seconds = None
    cluster.write(leader, "not on the follower's disk")
    barrier = cluster.barrier(follower, seconds=0.5)
    cluster.run_until(lambda: barrier.error is not None, seconds=0.7)
    assert isinstance(barrier.error, Unavailable)
    assert "had not applied the log up to index" in str(barrier.error)
    cluster.nodes[follower].disk_seconds = 0.0


def test_the_end_of_a_manager_ends_its_barriers(cluster: Cluster) -> None:
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    cluster.hold(*both_ways(leader, follower))
    barrier = cluster.barrier(follower)
    cluster.step(follower)
    cluster.nodes[follower].engine.close()
    assert isinstance(barrier.error, Closed)


def test_lost_questions_and_rounds_are_asked_again(cluster: Cluster) -> None:
    """The links break while a question, a round and its answers are on their way."""
    leader = cluster.wait_leader().id
    followers = cluster.followers()
    barriers = [cluster.barrier(id_) for id_ in cluster.nodes]
    for id_ in cluster.nodes:
        cluster.step(id_)
    for follower in followers:
        cluster.disconnect(leader, follower)
    cluster.run_until(lambda: all(barrier.is_passed for barrier in barriers), seconds=3.0)


def test_questions_and_rounds_that_a_manager_dropped_are_asked_again(cluster: Cluster) -> None:
    """The links hold. The leader did not lead yet, or a voter's state was being replaced."""
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    barriers = [cluster.barrier(id_) for id_ in (leader, follower)]
    for id_ in (leader, follower):
        cluster.step(id_)
    for pair in both_ways(leader, *cluster.followers()):
        dropped = [each for each in cluster.on_wire(*pair) if each["type"] in QUESTIONS]
        assert dropped or pair[1] == leader
        cluster.wire[pair].clear()
    cluster.run_until(lambda: all(barrier.is_passed for barrier in barriers), seconds=1.0)


def test_a_barrier_waits_for_no_tick(cluster: Cluster) -> None:
    """Messages of barriers are handled in the step in which they come: three hops from a follower, and a hop back."""
    follower = cluster.followers()[0]
    cluster.run(2.0)
    began = cluster.now
    barrier = cluster.barrier(follower)
    cluster.run_until(lambda: barrier.is_passed)
    assert cluster.now - began <= 0.06  # steps of 0.01 s
