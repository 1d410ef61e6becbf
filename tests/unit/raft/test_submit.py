"""A write from any manager ends exactly once: with the applied result, or with an error that says whether it was sent.

Stories on real engines with lost requests, lost leaders and lost answers (docs/pysyncobj-holes.md, hole 10).
"""

from __future__ import annotations

import errno
import logging

import cbor2
import pytest

from tests.engine_harness import STEP_SECONDS, Cluster, Outgoing
from tests.list_machine import Outcome
from warren_raft.errors import Closed, InvariantViolation, LeadershipLost, Unavailable
from warren_raft.raft import entries, submit
from warren_raft.raft.applying import APPLY_ENTRIES
from warren_raft.raft.effects import Send, WriteLog
from warren_raft.raft.events import Received, Refused, Submitted
from warren_raft.raft.large import LARGE_BYTES
from warren_raft.raft.links import wire
from warren_raft.raft.membership import REMOVE, REMOVED, Change
from warren_raft.raft.messages import COMMAND_BYTES_MAX
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.submit import Proposal, Route, Submitter
from warren_raft.store.fence import Fence

# Any manager takes writes --------------------------------------------------------------------------------------------


def test_a_write_through_any_manager_is_applied_on_all_and_answered_where_it_came_from() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    for id_ in cluster.nodes:
        cluster.write(id_, f"through {id_}")
    cluster.check_writes()
    assert sorted(cluster.acknowledged) == ["through m1", "through m2", "through m3"]


def test_writes_of_one_manager_keep_their_order() -> None:
    """Also over a change of leadership, in which all writes without an answer are sent again."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    for number in range(40):
        cluster.submit(origin, f"{number:02}")
        cluster.run(STEP_SECONDS)
        if number == 20:
            cluster.crash(leader.id)
    cluster.run_until(lambda: len(cluster.acknowledged) == 40)
    assert cluster.machines[origin].applied == [f"{number:02}" for number in range(40)]


def test_many_writes_become_few_entries() -> None:
    """Group commit: the waiting writes of all managers become one entry."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    before = leader.log.last_index
    for number in range(900):
        cluster.submit(sorted(cluster.nodes)[number % 3], f"w{number}")
    cluster.run_until(lambda: len(cluster.acknowledged) == 900)
    assert leader.log.last_index - before <= 6
    cluster.check_writes()


def test_a_write_before_there_is_a_leader_waits_for_one() -> None:
    cluster = Cluster()
    for id_ in cluster.nodes:
        cluster.submit(id_, f"through {id_}")
    cluster.run_until(lambda: len(cluster.acknowledged) == 3)
    cluster.check_writes()


# Lost links and leaders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_link_that_breaks_at_any_moment_costs_no_write_and_doubles_none(turns: int) -> None:
    """The request or the answer is lost with a connection, and the leader stays: stock's caller waits for ever (hole
    10)."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    cluster.submit(origin, "w")
    for _ in range(turns):
        cluster.turn()
    cluster.disconnect(origin, leader.id)
    cluster.run_until(lambda: "w" in cluster.acknowledged, seconds=1)
    cluster.check_writes()


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_leader_that_dies_at_any_moment_costs_no_write_and_doubles_none(turns: int) -> None:
    """The write may be committed or not, and known or not. It is sent again to the next leader, and its request id
    makes sure that it is applied once."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    cluster.submit(origin, "w")
    for _ in range(turns):
        cluster.turn()
    cluster.crash(leader.id)
    cluster.run_until(lambda: "w" in cluster.acknowledged)
    cluster.start(leader.id)
    cluster.check_writes()


def test_a_leader_that_is_deposed_keeps_its_own_writes_and_passes_them_on() -> None:
    cluster = Cluster()
    old = cluster.wait_ready()
    cluster.isolate(old.id)
    for number in range(5):
        cluster.submit(old.id, f"w{number}", seconds=60)
        cluster.run(0.1)
    cluster.run(3)
    assert not cluster.acknowledged
    cluster.heal()
    cluster.run_until(lambda: len(cluster.acknowledged) == 5)
    cluster.check_writes()


def test_a_manager_that_took_another_for_the_leader_is_told_and_asks_again() -> None:
    """The answer is a refusal. The other manager does not queue the writes; they stay at the manager that sent them."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    one, two = cluster.followers()
    cluster.nodes[one].engine._submitter.set_route(Route(two, leader.engine.term, 1))
    cluster.nodes[two].engine._submitter.receive(one, [b"x"], is_leader=False)
    assert not cluster.nodes[two].engine._submitter.queue
    cluster.write(one, "w")
    cluster.check_writes()


def test_an_overloaded_leader_refuses_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader's queue is bounded in bytes. The sender keeps its writes, and in the end they arrive once."""
    monkeypatch.setattr(submit, "QUEUE_BYTES", 200)
    monkeypatch.setattr(submit, "SUBMIT_BYTES", 100)
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    leader.disk_seconds = 0.3
    for number in range(100):
        cluster.submit(origin, f"w{number}", seconds=60)
    cluster.run_until(lambda: len(cluster.acknowledged) == 100)
    assert "submit_refused" in [sent.message["type"] for sent in cluster.sent]
    cluster.check_writes()


# Deadlines -----------------------------------------------------------------------------------------------------------


def test_a_write_that_never_left_is_known_not_to_be_applied() -> None:
    cluster = Cluster(start=False)
    cluster.start("m1")
    cluster.submit("m1", "w", seconds=1)
    cluster.run(1.2)
    error = cluster.failed["w"]
    assert isinstance(error, Unavailable)
    assert error.maybe_applied is False


def test_a_write_that_left_may_have_been_applied() -> None:
    """Here it was applied, so the error must not say that it was not."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    cluster.hold((leader.id, origin))
    cluster.submit(origin, "w", seconds=0.5)
    cluster.run(0.7)
    error = cluster.failed["w"]
    assert isinstance(error, Unavailable)
    assert error.maybe_applied is True
    cluster.heal()
    cluster.check_writes()
    assert leader.machine.applied == ["w"]


def test_without_a_quorum_a_write_fails_at_its_deadline_and_not_before() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.isolate(leader.id)
    cluster.submit(leader.id, "w", seconds=2)
    cluster.run(1.9)
    assert "w" not in cluster.failed
    cluster.run(0.2)
    assert "w" in cluster.failed


def test_closing_ends_every_write_that_waits() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.isolate(leader.id)
    cluster.submit(leader.id, "in its log")
    cluster.run(0.1)
    leader.engine.close()
    error = cluster.failed["in its log"]
    assert isinstance(error, Unavailable)
    assert error.maybe_applied
    alone = Cluster(start=False)
    node = alone.start("m1")
    alone.submit("m1", "never sent")
    alone.run(0.1)
    node.engine.close()
    assert isinstance(alone.failed["never sent"], Closed)


# Callers and state machines that misbehave ---------------------------------------------------------------------------


def test_a_callback_that_raises_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Stock applies the command a second time, on that manager only (hole 5b)."""
    cluster = Cluster()
    leader = cluster.wait_ready()

    def bug(_proposal: Proposal) -> None:
        raise RuntimeError("a bug of the caller's")

    with caplog.at_level(logging.ERROR):
        cluster.submit(leader.id, "raises", done=bug)
        cluster.submit(leader.id, "waits behind it")
        cluster.run_until(lambda: "waits behind it" in cluster.acknowledged)
    assert "a bug of the caller's" in caplog.text
    cluster.check_writes()
    assert leader.machine.applied == ["raises", "waits behind it"]
    cluster.isolate(leader.id)
    cluster.submit(leader.id, "times out", seconds=0.2, done=bug)
    cluster.submit(leader.id, "is closed", done=bug)
    cluster.run(1)
    leader.engine.close()
    assert leader.engine.failure is None


def test_apply_takes_turns_so_that_a_long_catch_up_costs_no_heartbeat() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    follower = cluster.nodes[cluster.followers()[0]]
    cluster.isolate(follower.id)
    for number in range(3 * APPLY_ENTRIES):
        cluster.submit(leader.id, f"w{number}")
        cluster.run(3 * STEP_SECONDS)
    cluster.run_until(lambda: len(cluster.acknowledged) == 3 * APPLY_ENTRIES)
    cluster.heal()
    largest, before = 0, follower.machine.applied_index
    while not cluster.converged():
        cluster.turn()
        largest = max(largest, follower.machine.applied_index - before)
        before = follower.machine.applied_index
    assert APPLY_ENTRIES <= largest <= 2 * APPLY_ENTRIES


def test_an_entry_of_a_later_version_stops_the_manager_and_is_not_skipped() -> None:
    """The other managers may be able to apply the entry."""
    with pytest.raises(InvariantViolation, match="unknown kind"):
        entries.decode(b"\x00\x09?")
    for damaged in (b"\x00\x01\xff", b"\x00\x01\xa0", b"\x00\x02\x80", b"\x00\x02\xff", b"\x00\x02\x86\x01\x02"):
        with pytest.raises(InvariantViolation, match="does not decode"):
            entries.decode(damaged)
    assert entries.decode(b"\x01") == []
    assert entries.decode(entries.encode_commands([b"a", b""])) == [b"a", b""]
    change = Change(REMOVE, id="m1", incarnation="i")
    assert entries.decode(entries.encode_change(change)) == change


# The submitter alone -------------------------------------------------------------------------------------------------


class Recorded:
    """A submitter, with its sent messages and its ended proposals."""

    def __init__(self) -> None:
        self._sent = Outgoing()
        self.ended: list[Proposal] = []
        self.submitter = Submitter(self._sent)

    @property
    def sent(self) -> list[tuple[str, list[bytes]]]:
        return [(peer, getattr(message, "commands", [])) for peer, message in self._sent.messages]

    def proposed(self, size: int) -> list[bytes]:
        """The commands that a leader puts into its log now."""
        commands, _ = self.submitter.take(commands_max=10, bytes_max=size)
        while (large := self.submitter.next_large("m1", frozenset(["m1"]))) is not None:
            self.submitter.large_proposed(large, 1 + len(commands))
            commands.append(large.command)
        return commands

    def propose(self, *sequences: int, size: int = 10, deadline: float = 10.0) -> list[Proposal]:
        made = [Proposal(1, n, bytes([n]) * size, deadline, self.ended.append) for n in sequences]
        self.submitter.submit(made)
        return made


def test_a_route_that_stays_the_same_sends_nothing_twice() -> None:
    it = Recorded()
    it.propose(1, 2)
    for _ in range(3):
        it.submitter.set_route(Route("m2", 1, 7))
        it.submitter.flush(0.0)
    assert it.sent == [("m2", [b"\x01" * 10, b"\x02" * 10])]


@pytest.mark.parametrize("route", [Route("m2", 1, 8), Route("m2", 2, 7), Route("m3", 1, 7)])
def test_another_link_term_or_leader_gets_everything_unanswered_again(route: Route) -> None:
    it = Recorded()
    it.propose(1, 2, 3)
    it.submitter.set_route(Route("m2", 1, 7))
    it.submitter.flush(0.0)
    it.submitter.applied([Outcome(1, 2, None)], 1)
    it.submitter.set_route(route)
    it.submitter.flush(0.0)
    assert it.sent[1:] == [(route.leader, [b"\x01" * 10, b"\x03" * 10])]


def test_a_message_holds_a_bounded_number_of_bytes_unless_one_command_alone_is_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit, "SUBMIT_BYTES", 25)
    it = Recorded()
    it.propose(1, 2, 3)
    it.propose(4, size=100)
    it.submitter.set_route(Route("m2", 1, 7))
    it.submitter.flush(0.0)
    assert [[len(command) for command in commands] for _, commands in it.sent] == [[10, 10], [10], [100]]


def test_what_the_leader_has_not_answered_is_bounded_and_the_rest_waits_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a thin link megabytes in the link's queue would delay all messages, and at 64 MiB the link would be dropped.
    A write that waits here ends at its deadline, and is known not to have been applied."""
    monkeypatch.setattr(submit, "SUBMIT_WINDOW_BYTES", 50)
    monkeypatch.setattr(submit, "SUBMIT_BYTES", 25)
    it = Recorded()
    it.propose(*range(1, 21), deadline=5.0)
    it.submitter.set_route(Route("m2", 1, 7))
    it.submitter.flush(0.0)
    it.submitter.flush(0.0)
    assert sum(len(commands) for _, commands in it.sent) == 6
    it.submitter.applied([Outcome(1, n, None) for n in (1, 2, 3)], 1)
    it.submitter.flush(0.0)
    assert sum(len(commands) for _, commands in it.sent) == 8
    it.submitter.expire(5.0, "no quorum")
    assert [proposal.sequence for proposal in it.ended if proposal.error and not proposal.error.maybe_applied] == [
        *range(9, 21)
    ]
    it.propose(30)
    it.submitter.flush(6.0)
    assert it.sent[-1] == ("m2", [b"\x1e" * 10]), "an ended write is not under way any more"


def test_an_outcome_of_somebody_elses_write_is_passed_over() -> None:
    it = Recorded()
    it.submitter.applied([Outcome(9, 9, None)], 1)
    assert it.ended == []


def test_a_late_outcome_ends_nothing_a_second_time() -> None:
    it = Recorded()
    it.propose(1, deadline=1.0)
    it.submitter.expire(1.0, "no quorum")
    it.submitter.applied([Outcome(1, 1, None)], 1)
    assert [proposal.error is not None for proposal in it.ended] == [True]


def test_a_leaders_queue_is_dropped_with_its_leadership() -> None:
    """The managers that sent the writes send them again to the next leader. If this manager kept them, it would propose
    them out of order in a later term."""
    it = Recorded()
    it.submitter.set_route(Route("m1", 1, 0))
    it.submitter.receive("m2", [b"x"], is_leader=True)
    it.submitter.set_route(None)
    assert not it.submitter.queue
    commands, _ = it.submitter.take(commands_max=10, bytes_max=100)
    assert commands == []


@pytest.mark.parametrize("size", [10, LARGE_BYTES + 1], ids=["small", "large"])
def test_a_leader_proposes_no_write_of_a_lead_that_is_over(size: int) -> None:
    """The next lead of the term begins with a command behind those of the old one. If a write came into the log behind
    it, the first pass of the next lead would not know of it. Large commands take another way than that command."""
    it, over, lasting = Recorded(), Fence(4), Fence(4)
    it.submitter.set_route(Route("m1", 4, 0))
    writes = it.propose(1, 2, 3, size=size)
    for write, fence in zip(writes, (over, lasting, None), strict=True):
        write.fence = fence
    it.submitter.flush(0.0)
    over.end("the test")
    assert [commands[0] for commands in it.proposed(4 * size)] == [2, 3]
    (ended,) = it.ended
    assert ended is writes[0]
    assert isinstance(ended.error, LeadershipLost)
    assert (ended.error.term, ended.error.reason) == (4, "the test")
    assert it.submitter.pending_count == 2


def test_a_write_that_may_be_in_the_log_is_not_said_to_be_refused_when_its_lead_is_over() -> None:
    """It was proposed. Then another state replaced the one here, so it is sent again, to get its answer."""
    it, fence = Recorded(), Fence(4)
    route = Route("m1", 4, 0)
    it.submitter.set_route(route)
    (write,) = it.propose(1)
    write.fence = fence
    it.submitter.flush(0.0)
    assert len(it.proposed(100)) == 1
    fence.end()
    it.submitter.state_replaced()
    it.submitter.set_route(route)
    it.submitter.flush(0.0)
    assert len(it.proposed(100)) == 1
    assert it.ended == []
    it.submitter.applied([Outcome(1, 1, None)], 1)
    assert write.error is None


def test_a_submitted_event_is_taken_even_when_the_disk_has_no_room() -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = OSError(errno.ENOSPC, "No space left on device")
    data = cbor2.dumps([7, 1, "w"])
    ended: list[Proposal] = []
    node.events.append(Submitted([Proposal(7, 1, data, cluster.now + 1, ended.append)]))
    cluster.run(1.5)
    assert isinstance(ended[0].error, Unavailable)
    assert ended[0].error.maybe_applied


def test_writes_of_a_thread_that_end_together_ask_for_no_more_steps() -> None:
    """(Pins a bug: the small write was released and ended at once, and the raft thread made steps without a pause.)"""
    cluster = Cluster(large_bytes=1000)
    node = cluster.wait_ready()
    for id_ in cluster.nodes:
        cluster.isolate(id_)
    cluster.run_until(lambda: not node.engine.is_leader and node.engine.leader is None)
    ended: list[Proposal] = []
    sizes = {101: 5000, 102: 10}
    proposals = [
        Proposal(7, sequence, cbor2.dumps([7, sequence, "x" * size]), cluster.now + 1.0, ended.append, thread=5)
        for sequence, size in sizes.items()
    ]
    node.events.append(Submitted(proposals))
    cluster.run_until(lambda: len(ended) == 2)
    cluster.run(0.1)
    assert not node.engine.apply()


def test_writes_that_ended_without_a_leader_are_not_kept_until_there_is_one() -> None:
    """(Pins a bug: a manager without a quorum kept each write that ever timed out, hour after hour.)"""
    it = Recorded()
    it.propose(1, deadline=1000.0)
    for number in range(100):
        it.propose(2 + number, deadline=float(number))
        it.submitter.expire(number, "no quorum")
    assert len(it.submitter._waiting) <= 2
    it.submitter.set_route(Route("m1", 1, 7))
    it.submitter.flush(100.0)
    assert it.sent == [("m1", [b"\x01" * 10])]


def test_a_write_that_comes_with_what_stops_the_manager_ends() -> None:
    """(Pins a bug: the write was never looked at, and its future never ended.)"""
    cluster = Cluster()
    cluster.wait_ready()
    origin = cluster.followers()[0]
    others = cluster.nodes.keys() - {origin}
    cluster.nodes[origin].events += [Refused(other, Refusal(REMOVED, "removed")) for other in sorted(others)]
    cluster.submit(origin, "w")
    cluster.step(origin)
    assert origin in cluster.stopped
    assert isinstance(cluster.failed["w"], Closed)


def test_a_command_too_long_for_an_append_message_is_not_proposed() -> None:
    """(Pins a bug: the command fitted a submit message, and stopped each leader that had to append it.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    before = leader.log.last_index
    for size in (COMMAND_BYTES_MAX + 1, COMMAND_BYTES_MAX):
        overhead = len(cbor2.dumps([7, 1, "x" * size])) - size
        message = {"type": "submit", "commands": [cbor2.dumps([7, 1, "x" * (size - overhead)])]}
        wire.encode(message)  # it can be sent
        leader.events.append(Received(origin, cluster.links[leader.id, origin], message))
        refused = size > COMMAND_BYTES_MAX
        for effect in leader.engine.step(cluster.now, leader.events):
            if isinstance(effect, Send):
                wire.encode(effect.message)
            assert not refused or not isinstance(effect, WriteLog)
        leader.events.clear()
        assert leader.log.last_index == before + (not refused)


def test_a_write_that_a_full_disk_held_up_says_so() -> None:
    """ "No quorum" would send an operator to the network, while the disk of the manager itself has no space left."""
    cluster = Cluster(("m1",))
    cluster.wait_ready()
    node = cluster.nodes["m1"]
    node.disk_error = OSError(errno.ENOSPC, "No space left on device")
    cluster.submit("m1", "late", seconds=1.0)
    cluster.run_until(lambda: "late" in cluster.failed)
    assert "no space left" in str(cluster.failed["late"])
    node.disk_error = None
    cluster.write("m1", "in time")


def test_the_second_entry_under_way_is_not_smaller_than_the_first() -> None:
    """The callers of an entry come back one after the other. An entry of the first few would cost as much as one of
    all."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.run(1.0)
    log = leader.engine._log

    def write(*texts: str) -> int:
        """Returns the number of entries that are made of these and earlier writes."""
        before = log.last_index
        for text in texts:
            cluster.submit(leader.id, text)
        cluster.step(leader.id)
        return int(log.last_index - before)

    cluster.hold(*((follower, leader.id) for follower in cluster.followers()))
    assert write("a", "b", "c", "d") == 1
    assert write("e", "f") == 0
    assert write("g") == 0
    assert write("h", "i") == 1
    assert write("j", "k", "l", "m", "n", "o") == 0, "two are under way"
    cluster.heal()
    cluster.run_until(lambda: "o" in cluster.acknowledged, 1.0)

    cluster.hold(*((follower, leader.id) for follower in cluster.followers()))
    assert write("p", "q", "r") == 1
    assert write("s") == 0
    cluster.heal()
    cluster.run_until(lambda: "s" in cluster.acknowledged, 1.0)
    assert cluster.failed == {}


def test_an_entry_is_decoded_once_and_only_its_own_content_is_taken_for_it() -> None:
    decoded = entries.Decoded()
    made = [entries.encode_commands([b"a", b"%d" % number]) for number in range(entries.KEPT_ENTRIES + 2)]
    contents = [entries.decode(entry) for entry in made]
    for entry in made:
        assert entries.problem_of(entry, lambda _: "", decoded) == ""
    assert len(decoded._kept) == entries.KEPT_ENTRIES, "what is kept is bounded"
    assert [decoded.take(entry) for entry in made] == contents
    assert len(decoded._kept) == 0, "an entry is applied once"
    assert [decoded.take(entry) for entry in made] == contents
    decoded.keep(made[0], [b"another content"])
    same_bytes = bytes(bytearray(made[0]))
    assert decoded.take(same_bytes) == contents[0]
    assert decoded.take(made[0]) == [b"another content"]
    assert entries.problem_of(made[0], lambda _: "refused", decoded) == "refused"
    assert entries.problem_of(b"\x00\x01?", lambda _: "", decoded) != ""
    assert len(decoded._kept) == 0
    with pytest.raises(InvariantViolation):
        decoded.take(b"\x00\x09?")


def test_the_time_at_which_the_oldest_command_of_another_manager_came() -> None:
    it = Recorded()
    it.submitter.receive("m2", [b"x"], is_leader=True, now=5.0)
    it.submitter.receive("m3", [b"y"], is_leader=True, now=6.0)
    assert it.submitter.take(commands_max=10, bytes_max=100) == ([b"x", b"y"], {"m2", "m3"})
    assert it.submitter.came_at == 5.0
    it.submitter.take(commands_max=10, bytes_max=100)
    assert it.submitter.came_at == 0.0
