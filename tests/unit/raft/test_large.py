"""Large commands: their bytes go ahead of the log, beside all other messages, and once to each manager that needs them.

Stories on real engines. In a `thin` direction the messages in the lane BULK do not arrive yet, and all other messages
pass them, as on a link of little bandwidth. A command above LARGE bytes is large here.
"""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from tests.engine_harness import STEP_SECONDS, Cluster, Message, Node, Outgoing
from tests.fast import fast_first
from tests.list_machine import Outcome
from warren_raft.errors import Unavailable
from warren_raft.raft import large as large_module
from warren_raft.raft.effects import Cancel, CloseLink
from warren_raft.raft.events import Received, Submitted
from warren_raft.raft.large import HELD_BYTES_MAX, UNDER_WAY
from warren_raft.raft.messages import SubmitLarge
from warren_raft.raft.submit import (
    REFUSED_WAIT_SECONDS,
    Proposal,
    Route,
    Submitter,
)

LARGE = 200
FIVE = ("m1", "m2", "m3", "m4", "m5")


def text(name: str, size: int = 1000) -> str:
    return name + "." * size


def make(ids: tuple[str, ...] = FIVE[:3], **more: Any) -> tuple[Cluster, Node, list[str]]:
    """A ready cluster, its leader, and the others."""
    cluster = Cluster(ids, large_bytes=LARGE, **more)
    return cluster, cluster.wait_ready(), cluster.followers()


def thin_to_others(cluster: Cluster, sender: str, *others: str) -> None:
    cluster.thin.update((sender, other) for other in others)


def sent(cluster: Cluster, kind: str, sender: str = "", receiver: str = "") -> list[Message]:
    return [
        each.message
        for each in cluster.sent
        if each.message["type"] == kind and sender in ("", each.sender) and receiver in ("", each.receiver)
    ]


def bytes_in_appends(cluster: Cluster, receiver: str) -> int:
    """The bytes of large entries that went to a manager in append messages."""
    found = 0
    for message in sent(cluster, "append_entries", receiver=receiver):
        found += sum(len(item[0]) for item in message["entries"] if type(item[0]) is bytes and len(item[0]) > LARGE)
    return found


def assert_nothing_is_left(cluster: Cluster) -> None:
    """No manager holds bytes of large commands any more."""

    def is_clean() -> bool:
        return all(
            node.held_bytes == 0
            and not any(node.engine._submitter.lent._lent.values())
            and not node.engine._submitter.lent._cancelled
            and not node.engine._submitter.large._queue
            and not node.engine._submitter.large._proposed
            and node.engine._submitter.large._queue_bytes == 0
            and not any(node.engine._submitter.large._ahead_bytes.values())
            for node in cluster.nodes.values()
        )

    cluster.run_until(is_clean, seconds=15)


# Beside other messages -----------------------------------------------------------------------------------------------


def test_small_writes_do_not_wait_for_a_large_one() -> None:
    """The bytes of the large write are on their way for five seconds. In the log before the small writes, it would
    delay them as long."""
    cluster, leader, others = make()
    thin_to_others(cluster, leader.id, *others)
    cluster.submit(leader.id, text("large"), seconds=60)
    for id_ in cluster.nodes:
        begin = cluster.now
        cluster.write(id_, *(f"{id_} {number}" for number in range(10)))
        assert cluster.now - begin < 0.5
    assert text("large") not in cluster.acknowledged
    cluster.heal()
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.check_writes()
    assert all(bytes_in_appends(cluster, other) == 0 for other in others)
    assert [len(sent(cluster, "large_entry", receiver=other)) for other in others] == [1, 1]
    assert_nothing_is_left(cluster)


def test_a_majority_that_holds_it_is_enough_and_who_is_about_to_is_not_sent_it_again() -> None:
    cluster, leader, (slow, quick) = make()
    thin_to_others(cluster, leader.id, slow)
    cluster.write(leader.id, text("large"))
    cluster.write(leader.id, "small")
    cluster.run(3.0)
    assert cluster.machines[quick].applied == [text("large"), "small"]
    assert cluster.machines[slow].applied == []
    assert bytes_in_appends(cluster, slow) == 0
    assert len(sent(cluster, "large_entry", receiver=slow)) == 1
    assert cluster.nodes[slow].engine.leader == leader.id, "it hears the leader meanwhile"
    cluster.heal()
    cluster.check_writes()
    assert bytes_in_appends(cluster, slow) == 0
    assert_nothing_is_left(cluster)


def test_a_minority_that_holds_it_is_not_enough() -> None:
    cluster, leader, others = make(FIVE)
    thin_to_others(cluster, leader.id, *others[1:])
    cluster.submit(leader.id, text("large"), seconds=60)
    before = leader.log.last_index
    cluster.run(2.0)
    assert leader.log.last_index == before
    cluster.thin.discard((leader.id, others[1]))
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.heal()
    cluster.check_writes()


def test_one_manager_alone_has_nobody_to_send_it_to() -> None:
    cluster, leader, _ = make(("m1",))
    cluster.write(leader.id, text("large"), "small")
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_a_follower_that_sent_it_is_not_sent_it_back() -> None:
    """The follower and the leader are a majority of three. So the bytes of a large write through a follower travel
    once, not twice."""
    cluster, leader, (origin, other) = make()
    thin_to_others(cluster, leader.id, other)
    cluster.write(origin, text("large"))
    assert sent(cluster, "large_entry", receiver=origin) == []
    assert bytes_in_appends(cluster, origin) == 0
    assert cluster.machines[origin].applied == [text("large")]
    cluster.heal()
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_small_writes_of_a_follower_pass_the_large_one_that_it_sends() -> None:
    cluster, leader, (origin, _) = make()
    thin_to_others(cluster, origin, leader.id)
    cluster.submit(origin, text("large"), seconds=60)
    begin = cluster.now
    cluster.write(origin, *(f"{number}" for number in range(10)))
    assert cluster.now - begin < 0.5
    cluster.heal()
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.check_writes()


def test_large_writes_of_one_manager_keep_their_order() -> None:
    cluster, _, (origin, _) = make()
    names = [text(f"large {number}") for number in range(12)]
    for name in names:
        cluster.submit(origin, name, seconds=60)
    cluster.run_until(lambda: len(cluster.acknowledged) == 12)
    assert cluster.machines[origin].applied == names


def submit_in_order(cluster: Cluster, id_: str, *names: str) -> list[Proposal]:
    """Submit writes like one thread that does not wait for them."""
    made = []
    for sequence, name in enumerate(names, 500):
        data = cbor2.dumps([9, sequence, name])
        made.append(Proposal(9, sequence, data, cluster.now + 60, lambda _: None, thread=7))
    cluster.nodes[id_].events.append(Submitted(made))
    return made


@pytest.mark.parametrize("through", ["leader", "follower"])
def test_what_a_thread_writes_after_a_large_one_does_not_pass_it(through: str) -> None:
    cluster, leader, others = make()
    id_ = leader.id if through == "leader" else others[0]
    cluster.thin.update((a, b) for a in cluster.nodes for b in cluster.nodes)
    made = submit_in_order(cluster, id_, text("large"), "behind", "and behind")
    cluster.write(id_, "of another thread")
    assert not any(proposal.outcome for proposal in made)
    cluster.heal()
    cluster.run_until(lambda: all(proposal.outcome for proposal in made))
    cluster.run_until(cluster.converged)
    assert not cluster.nodes[id_].engine._submitter._order.threads
    assert cluster.machines[id_].applied == ["of another thread", text("large"), "behind", "and behind"]


@pytest.mark.parametrize("through", ["leader", "follower"])
def test_a_small_write_behind_a_large_one_does_not_wait_for_the_next_tick(
    through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: the engine did not ask for a step when the large one ended, and the small one lost 20 ms.)"""
    cluster, leader, others = make()
    node = leader if through == "leader" else cluster.nodes[others[0]]
    made = submit_in_order(cluster, node.id, text("large"), "behind")
    wanted: list[bool] = []
    apply = node.engine.apply

    def watched() -> bool:
        had_ended = made[0].outcome is not None
        more = apply()
        if made[0].outcome is not None and not had_ended:
            wanted.append(more)
        return more

    monkeypatch.setattr(node.engine, "apply", watched)
    cluster.run_until(lambda: made[1].outcome is not None)
    assert wanted == [True]


@pytest.mark.parametrize("through", ["leader", "follower"])
def test_one_thread_keeps_its_order_whatever_it_mixes(through: str) -> None:
    """This holds for small writes before a large one as well: the large write must not pass them while they are
    gathered."""
    cluster, leader, others = make()
    id_ = leader.id if through == "leader" else others[0]
    leader.disk_seconds = 0.1
    kinds = "sslsllssssslslslls"
    names = [text(f"{n} large") if kind == "l" else f"{n} small" for n, kind in enumerate(kinds)]
    submit_in_order(cluster, id_, *names)
    cluster.run_until(lambda: len(cluster.machines[id_].applied) == len(names))
    assert cluster.machines[id_].applied == names
    assert not cluster.nodes[id_].engine._submitter._order.threads


@pytest.mark.parametrize("turns", [5, 20, 40])
def test_one_thread_keeps_its_order_over_a_change_of_leader(turns: int) -> None:
    """A write that waits behind others is not sent to the next leader before them."""
    cluster, leader, others = make()
    id_ = others[0]
    leader.disk_seconds = 0.05
    names = [text(f"{n} large") if n % 3 == 1 else f"{n} small" for n in range(18)]
    submit_in_order(cluster, id_, *names)
    for _ in range(turns):
        cluster.turn()
    cluster.crash(leader.id)
    cluster.run_until(lambda: len(cluster.machines[id_].applied) == len(names))
    assert cluster.machines[id_].applied == names


def test_large_writes_keep_their_order_when_a_leader_gives_one_back_and_the_next_is_on_its_way() -> None:
    """The leader had the first write, was deposed, and leads again when the second arrives, over the same link."""
    cluster, leader, (origin, two, *rest) = make(FIVE)
    thin_to_others(cluster, leader.id, *rest, two)
    cluster.submit(origin, text("first"), seconds=60)
    cluster.run(0.2)
    assert leader.engine.submitter.large.is_waiting
    cluster.thin.update((origin, other) for other in FIVE)
    cluster.submit(origin, text("second"), seconds=60)
    for target in (two, leader.id):
        cluster.ask(origin, "transfer", target)
        cluster.run_until(lambda target=target: cluster.nodes[target].engine.is_leader)
        cluster.run(0.2)
    cluster.heal()
    cluster.run_until(lambda: len(cluster.acknowledged) == 2)
    assert leader.machine.applied == [text("first"), text("second")]


def test_many_small_writes_behind_a_large_one_are_gathered_as_ever() -> None:
    cluster, leader, _ = make()
    submit_in_order(cluster, leader.id, text("large"), *(f"{n}" for n in range(500)))
    before = leader.log.last_index
    cluster.run_until(lambda: len(cluster.machines[leader.id].applied) == 501)
    assert leader.log.last_index - before <= 3


def test_what_waits_for_its_threads_large_write_ends_at_its_own_deadline() -> None:
    cluster, leader, others = make()
    thin_to_others(cluster, leader.id, *others)
    ended: list[Proposal] = []
    made = [
        Proposal(9, n, cbor2.dumps([9, n, name]), cluster.now + seconds, ended.append, thread=7)
        for n, (name, seconds) in enumerate([(text("large"), 60.0), ("held", 1.0), ("later", 60.0)], 500)
    ]
    leader.events.append(Submitted(made))
    cluster.run(2.0)
    assert [proposal.sequence for proposal in ended] == [501]
    assert isinstance(ended[0].error, Unavailable)
    assert not ended[0].error.maybe_applied
    cluster.heal()
    cluster.run_until(lambda: len(ended) == 3)
    assert leader.machine.applied == [text("large"), "later"]


def test_a_caller_that_waits_for_ever_may_send_a_large_command() -> None:
    cluster, _, (origin, _) = make()
    cluster.submit(origin, text("large"), seconds=float("inf"))
    cluster.run_until(lambda: text("large") in cluster.acknowledged)


def test_large_writes_that_follow_each_other_leave_room_for_small_ones() -> None:
    """They are gathered as well, although each is an entry of its own: several entries share one sync."""
    cluster, leader, _ = make()
    leader.disk_seconds = 0.02
    names = [text(f"large {number}") for number in range(200)]
    for name in names:
        cluster.submit(leader.id, name, seconds=60)
    cluster.run(0.1)
    syncs, begin = leader.syncs, cluster.now
    cluster.write(leader.id, *(f"small {number}" for number in range(20)))
    assert cluster.now - begin < 0.5
    cluster.run_until(lambda: len(cluster.acknowledged) == 220)
    assert leader.syncs - syncs < 100
    assert [name for name in leader.machine.applied if name.startswith("large")] == names


# Deadlines -----------------------------------------------------------------------------------------------------------


def cancelled(cluster: Cluster, node: Node) -> list[int]:
    """The numbers of the messages that this manager cancels within the next second."""
    found = []
    perform = cluster._perform

    def watch(who: Node, effect: Any) -> None:
        if who is node and isinstance(effect, Cancel):
            found.append(effect.number)
        perform(who, effect)

    cluster._perform = watch  # type: ignore[method-assign]
    cluster.run(1.0)
    cluster._perform = perform  # type: ignore[method-assign]
    return found


def test_what_the_links_are_too_thin_for_was_not_applied_and_leaves_nothing_behind() -> None:
    """4 MiB at 64 KiB/s take a minute, and the caller waits for ten seconds. The write never gets into a log, so no
    other write waits for it, and its parts that have not left are cancelled."""
    cluster, leader, others = make()
    thin_to_others(cluster, leader.id, *others)
    before = leader.log.last_index
    cluster.submit(leader.id, text("large"), seconds=2.0)
    cluster.run(1.5)
    (number,) = {message["number"] for message in sent(cluster, "large_entry")}
    assert cancelled(cluster, leader) == [number, number]
    error = cluster.failed[text("large")]
    assert isinstance(error, Unavailable)
    assert not error.maybe_applied
    assert "bytes did not get to a majority of the managers by the deadline" in str(error), "there is a quorum"
    assert leader.log.last_index == before
    cluster.heal()  # the parts that had left arrive, and are dropped
    cluster.write(leader.id, "after")
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_a_large_write_through_a_follower_ends_at_its_deadline_at_the_leader_too() -> None:
    cluster, leader, (origin, other) = make(FIVE[:3])
    thin_to_others(cluster, leader.id, origin, other)
    cluster.isolate(origin)
    cluster.heal()
    cluster.run(1.0)
    thin_to_others(cluster, origin, leader.id)
    cluster.submit(origin, text("large"), seconds=2.0)
    cluster.submit(origin, text("large too"), seconds=2.2)
    cluster.run(1.5)
    assert len(cancelled(cluster, cluster.nodes[origin])) == 2, "each of them once"
    assert "bytes did not get to a majority" in str(cluster.failed[text("large")])
    cluster.heal()
    cluster.write(origin, "after")
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_the_leader_does_not_propose_what_its_sender_does_not_wait_for_any_more() -> None:
    """Five managers: leader and sender are not a majority, and no other manager gets the command in time."""
    cluster, leader, (origin, *others) = make(FIVE)
    thin_to_others(cluster, leader.id, *others)
    before = leader.log.last_index
    cluster.submit(origin, text("large"), seconds=2.0)
    cluster.run(1.0)
    assert leader.engine._submitter.large.is_waiting
    cluster.run(2.0)
    assert not leader.engine._submitter.large.is_waiting
    cluster.heal()
    cluster.run(1.0)
    assert leader.log.last_index == before
    assert_nothing_is_left(cluster)


# Lost leaders and links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(1, 9))
@pytest.mark.parametrize("through", ["leader", "follower"])
def test_a_link_that_breaks_at_any_moment_costs_no_large_write_and_doubles_none(turns: int, through: str) -> None:
    cluster, leader, (one, other) = make()
    cluster.submit(leader.id if through == "leader" else one, text("large"))
    cluster.submit(leader.id if through == "leader" else one, text("large too"))
    for _ in range(turns):
        cluster.turn()
    cluster.disconnect(one, leader.id)
    if turns % 2:
        cluster.disconnect(other, leader.id)
    cluster.run_until(lambda: len(cluster.acknowledged) == 2, seconds=5)
    cluster.check_writes()
    assert_nothing_is_left(cluster)


@pytest.mark.parametrize("turns", fast_first(range(1, 9), 4))
@pytest.mark.parametrize("through", ["leader", "follower"])
def test_a_leader_that_is_cut_off_at_any_moment_costs_no_large_write(turns: int, through: str) -> None:
    """A deposed leader drops all large commands that it has. A command that came through a follower goes to the next
    leader."""
    cluster, leader, (one, _) = make()
    cluster.submit(leader.id if through == "leader" else one, text("large"), seconds=60)
    for _ in range(turns):
        cluster.turn()
    cluster.isolate(leader.id)
    cluster.run(4.0)
    cluster.heal()
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.check_writes()
    assert_nothing_is_left(cluster)


@pytest.mark.parametrize("turns", range(1, 9))
def test_a_leader_that_dies_at_any_moment_costs_no_large_write(turns: int) -> None:
    cluster, leader, (one, _) = make()
    cluster.submit(one, text("large"), seconds=60)
    for _ in range(turns):
        cluster.turn()
    cluster.restart(leader.id)
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_leadership_that_moves_while_it_travels_takes_nothing_with_it() -> None:
    """The links stay. No manager is asked to hold, or to send, a command that it holds already; no command is lost."""
    cluster, leader, others = make()
    thin_to_others(cluster, leader.id, *others)
    cluster.submit(others[0], text("large"), seconds=60)
    cluster.submit(leader.id, text("own"), seconds=60)
    cluster.run(0.3)
    cluster.ask(leader.id, "transfer", others[1])
    cluster.run_until(lambda: cluster.nodes[others[1]].engine.is_leader)
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.heal()
    cluster.run_until(lambda: text("own") in cluster.acknowledged)
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_a_leader_that_leads_again_is_not_sent_what_is_still_on_its_way_to_it() -> None:
    """It leads in another term, over the same link. The bytes took minutes to get that far."""
    cluster, leader, (origin, other) = make()
    thin_to_others(cluster, origin, leader.id, other)
    cluster.submit(origin, text("large"), seconds=60)
    cluster.run(0.5)
    for target in (other, leader.id, other, leader.id):
        cluster.ask(origin, "transfer", target)
        cluster.run_until(lambda target=target: cluster.nodes[target].engine.is_leader)
        cluster.run(0.5)
    assert [len(sent(cluster, "submit_large", origin, to)) for to in (leader.id, other)] == [1, 1]
    cluster.heal()
    cluster.run_until(lambda: text("large") in cluster.acknowledged)
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_a_large_write_that_a_snapshot_covers_is_asked_for_again_and_answered() -> None:
    """The leader's state, which contains the write, replaces the sender's state while the link stays up. So the write
    is never applied at the sender. (Pins a bug: it counted as sent, and its caller waited until the deadline.)"""
    sent = Outgoing()
    ended: list[Proposal] = []
    submitter = Submitter(sent, LARGE)
    leader = Route("m2", 1, 5)
    submitter.set_route(leader)
    submitter.submit([Proposal(7, 1, b"." * 2 * LARGE, 60.0, ended.append)])
    submitter.flush(1.0)
    submitter.state_replaced()
    submitter.set_route(leader)
    submitter.flush(2.0)
    first, again = (message.number for _, message in sent.messages if isinstance(message, SubmitLarge))
    assert set(submitter.lent.of("m2")) == {first, again}, "the leader may name either"
    submitter.large_ended("m2", first, 2.0, again=False)
    submitter.applied([Outcome(7, 1, "as it was")], 1)
    assert [proposal.outcome.value for proposal in ended] == ["as it was"]
    submitter.large_ended("m2", again, 2.0, again=False)
    assert not submitter.lent.of("m2")


def test_nobody_waits_any_more_for_either_copy_of_what_was_asked_for_twice() -> None:
    sent = Outgoing()
    submitter = Submitter(sent, LARGE)
    leader = Route("m2", 1, 5)
    submitter.set_route(leader)
    submitter.submit([Proposal(7, 1, b"." * 2 * LARGE, 60.0, lambda _proposal: None)])
    submitter.flush(1.0)
    submitter.state_replaced()
    submitter.set_route(leader)
    submitter.flush(2.0)
    submitter.expire(61.0, "late")
    assert len({number for _, number in sent.cancelled}) == 2


A_LARGE_ONE = cbor2.dumps([7, 1000, "x" * 1000])


def test_a_manager_that_does_not_lead_sends_a_large_command_back() -> None:
    cluster, leader, (one, two) = make()
    message = {"type": "submit_large", "number": 77, "heard": 0, "command": A_LARGE_ONE, "milliseconds": 5000}
    cluster.nodes[two].events.append(Received(one, cluster.links[two, one], message))
    cluster.turn()
    assert sent(cluster, "submit_large_end", two, one) == [{"type": "submit_large_end", "number": 77, "again": True}]
    assert leader.engine.is_leader


def test_what_follows_a_command_that_was_given_back_is_given_back_too() -> None:
    """It would be proposed before the earlier command. The sender's messages name the newest command that it knows was
    given back."""
    cluster, leader, (one, _) = make()
    link = cluster.links[leader.id, one]

    def say(number: int, heard: int) -> None:
        message = {"type": "submit_large", "number": number, "heard": heard, "command": A_LARGE_ONE, "milliseconds": 50}
        leader.events.append(Received(one, link, message))

    leader.engine.submitter.large._end(one, 5, again=True)
    for number, heard in ((6, 0), (7, 4), (8, 7)):
        say(number, heard)
    leader.engine.step(cluster.now, leader.events)
    leader.events.clear()
    assert [large.sender_number for large in leader.engine.submitter.large._all()] == [8]


def test_what_was_given_back_is_not_sent_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_module, "QUEUE_BYTES", 0)
    cluster, leader, (origin, _) = make()
    cluster.submit(origin, text("large"), seconds=60)
    cluster.run(1.0)
    assert 5 < len(sent(cluster, "submit_large", origin, leader.id)) <= 1.0 / REFUSED_WAIT_SECONDS + 1


def test_a_leader_whose_queue_is_full_sends_large_commands_back_and_they_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(large_module, "QUEUE_BYTES", 2500)
    cluster, leader, others = make()
    leader.disk_seconds = 0.2
    names = [text(f"{id_} {number}") for id_ in others for number in range(6)]
    for name in names:
        cluster.submit(name[:2], name, seconds=60)
    cluster.run_until(lambda: len(cluster.acknowledged) == 12)
    assert any(message["again"] for message in sent(cluster, "submit_large_end"))
    for id_ in others:
        mine = [name for name in cluster.machines[id_].applied if name.startswith(id_)]
        assert mine == [name for name in names if name.startswith(id_)], "in the order in which they were made"
    cluster.check_writes()
    assert_nothing_is_left(cluster)


# Bounds --------------------------------------------------------------------------------------------------------------


def test_what_travels_ahead_is_bounded_for_each_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty large writes, and one follower's link carries none of them. The bytes that wait for this follower are
    bounded."""
    monkeypatch.setattr(large_module, "AHEAD_BYTES", 3000)
    cluster, leader, (slow, _) = make()
    thin_to_others(cluster, leader.id, slow)
    names = [text(f"large {number}") for number in range(20)]
    for name in names:
        cluster.submit(leader.id, name, seconds=60)
    most = 0
    while len(cluster.acknowledged) < 20:
        cluster.turn()
        most = max(
            most, sum(len(message["entry"]) for message in cluster.on_wire(leader.id, slow) if "entry" in message)
        )
    assert 0 < most <= 3000
    assert cluster.machines[leader.id].applied == names
    cluster.heal()
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def test_a_follower_lends_the_leader_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_module, "AHEAD_BYTES", 3000)
    cluster, leader, (origin, _) = make()
    thin_to_others(cluster, origin, leader.id)
    for number in range(10):
        cluster.submit(origin, text(f"large {number}"), seconds=60)
    cluster.run(1.0)
    assert len(sent(cluster, "submit_large")) == 2
    cluster.heal()
    cluster.run_until(lambda: len(cluster.acknowledged) == 10)
    cluster.check_writes()
    assert_nothing_is_left(cluster)


def closed(cluster: Cluster, node: Node, peer: str, *messages: Message) -> list[str]:
    events = [Received(peer, cluster.links[node.id, peer], message) for message in messages]
    return [effect.reason for effect in node.engine.step(cluster.now, events) if isinstance(effect, CloseLink)]


def test_a_peer_that_sends_ahead_without_end_loses_its_link_and_what_it_sent() -> None:
    cluster, leader, (follower, _) = make()
    node = cluster.nodes[follower]
    entry = bytes(HELD_BYTES_MAX // 4)
    message = {"type": "large_entry", "number": 1, "term": node.engine.term, "entry": entry}
    reasons = [closed(cluster, node, leader.id, {**message, "number": number}) for number in range(1, 6)]
    assert [len(each) for each in reasons] == [0, 0, 0, 0, 1]
    assert "more large entries" in reasons[-1][0]


@pytest.mark.parametrize("name", [5, -5, UNDER_WAY, 1 << 70])
def test_an_append_message_that_names_what_nobody_holds_costs_its_link(name: int) -> None:
    cluster, leader, (follower, _) = make()
    node = cluster.nodes[follower]
    last = node.log.last_index
    message = {
        "type": "append_entries",
        "term": node.engine.term,
        "commit_index": node.log.commit_index,
        "previous_index": last,
        "previous_term": node.log.last_term,
        "entries": [[name, last + 1, node.engine.term]],
        "sequence": 1000,
    }
    (reason,) = closed(cluster, node, leader.id, message)
    assert "names the entry" in reason
    assert node.log.last_index == last


def test_what_is_held_counts_for_nothing_before_it_is_appended() -> None:
    """Held bytes are in no log and on no disk, and are dropped with their link."""
    cluster, leader, (follower, _) = make()
    node = cluster.nodes[follower]
    last, syncs = node.log.last_index, node.syncs
    message = {"type": "large_entry", "number": 9, "term": node.engine.term, "entry": b"\x00\x01\x80" + bytes(1000)}
    assert closed(cluster, node, leader.id, message) == []
    cluster.turn()
    assert (node.log.last_index, node.syncs) == (last, syncs)
    assert node.engine._held.get(leader.id, 9) is not None
    cluster.disconnect(leader.id, follower)
    cluster.run(2 * STEP_SECONDS)
    assert node.engine._held.get(leader.id, 9) is None


def test_peers_that_claim_to_lead_do_not_push_out_what_others_sent() -> None:
    """Each was told that its entry is held, and names it when it leads. (Pins a fault: the follower then called the
    message of the leader impossible, raised an alarm and dropped the link, also while it did not know the leader.)"""
    cluster, leader, (follower, other) = make()
    node = cluster.nodes[follower]
    held = node.engine._held
    ahead = {"type": "large_entry", "number": 9, "term": node.engine.term, "entry": b"\x00\x01\x80" + bytes(1000)}
    assert closed(cluster, node, leader.id, ahead) == []
    for claimant in (other, "m9", other):
        assert held.add(claimant, 7, b"claimed")
    assert held.get(leader.id, 9) is not None
    assert held.get(other, 7) == held.get("m9", 7) == b"claimed"


def test_more_than_two_leaders_send_ahead_is_refused() -> None:
    """The append message to a peer that refuses has the bytes, so nothing waits for room."""
    cluster, leader, (follower, _) = make()
    node = cluster.nodes[follower]
    held = node.engine._held
    quarter = bytes(HELD_BYTES_MAX // 4)
    for number in range(1, 5):
        assert held.add("m8", number, quarter)
        assert held.add("m9", number, quarter)
    message = {"type": "large_entry", "number": 9, "term": node.engine.term, "entry": b"\x00\x01\x80"}
    node.events.append(Received(leader.id, cluster.links[follower, leader.id], message))
    cluster.turn()
    assert held.get(leader.id, 9) is None
    assert sent(cluster, "large_entry_refused", follower, leader.id) != []
    held.drop("m8", 1)
    assert closed(cluster, node, leader.id, message) == []
    assert held.get(leader.id, 9) is not None


def test_a_leader_of_an_older_term_that_sends_ahead_is_told_so() -> None:
    cluster, leader, (follower, _) = make()
    node = cluster.nodes[follower]
    message = {"type": "large_entry", "number": 9, "term": node.engine.term - 1, "entry": bytes(1000)}
    node.events.append(Received(leader.id, cluster.links[follower, leader.id], message))
    cluster.turn()
    assert sent(cluster, "nack", follower, leader.id) != []
