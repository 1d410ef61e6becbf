"""Messages and the disk: no message leaves before the sync on which it depends.

Replies, votes and vote requests wait for the sync. A leader's append messages may leave before its own sync. Nothing is
applied beyond the synced log, one batch is on its way at a time, and a slow disk costs no heartbeat. The check is
independent: an entry is durable if the harness saw it written. The word of the engine does not count.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from tests.engine_harness import STEP_SECONDS, Cluster, Full, Message, Node, send_raw
from warren_raft.raft.changes import PENDING
from warren_raft.raft.keeping_up import Rounds
from warren_raft.raft.log.log import Log
from warren_raft.raft.membership import ADD
from warren_raft.raft.outbox import NOTICE_SECONDS

TIMEOUT_SECONDS = 1.0
IDS = ("m1", "m2", "m3", "m4", "m5")


def is_sign_of_life(message: Message) -> bool:
    """Whether a message is a sign of life. It may leave before the disk has returned, because it claims no entry, no
    term and no vote."""
    return (
        message["type"] == "append_reply"
        and message["next_index"] == 0
        and not message["success"]
        and not message["reset"]
    )


class Seam:
    """Checks every message when it leaves. `counts` has the number of checked messages of each kind."""

    def __init__(self, cluster: Cluster) -> None:
        self.counts = Counter[str]()
        self._numbers: dict[tuple[Log, str, int], int] = {}
        """(log of a manager, peer, term) -> the number of the last append message that left."""
        cluster.on_send = self.look

    def look(self, node: Node, peer: str, message: Message) -> None:
        kind = message["type"]
        check = getattr(self, f"_{kind}", None)
        if check is not None:
            self.counts["sign of life" if is_sign_of_life(message) else kind] += 1
            check(node, peer, message)

    def _append_entries(self, node: Node, peer: str, message: Message) -> None:
        """A leader's entries may still be on their way to its disk. Its term and its vote for itself may not. The
        numbers of the messages to one follower rise, so that an answer names one message."""
        key = node.log, peer, message["term"]
        assert message["sequence"] > self._numbers.get(key, 0)
        self._numbers[key] = message["sequence"]
        assert message["term"] < node.durable.term or (message["term"], node.id) == node.durable[:2]
        durable = node.durable.entries[-1][1]
        assert message["commit_index"] <= durable, "sent as committed, and not durable at the leader"

    @staticmethod
    def _append_reply(node: Node, _peer: str, message: Message) -> None:
        if is_sign_of_life(message):
            return
        term, _ = message["answers"]
        assert term <= node.durable.term, "answered in a term that a power cut would take back"
        if message["success"] and term == node.durable.term == node.log.current_term:
            claimed = message["next_index"] - node.log.base_index
            assert node.durable.entries[:claimed] == tuple(node.log.entries[:claimed])
            assert node.durable.entries[-1][1] >= message["next_index"] - 1

    @staticmethod
    def _request_vote(node: Node, _peer: str, message: Message) -> None:
        if message["term"] == node.durable.term:
            assert node.durable.vote == node.id
            assert node.durable.entries[-1][1:] >= (message["last_log_index"], message["last_log_term"])
        assert message["term"] <= node.durable.term

    @staticmethod
    def _response_vote(node: Node, peer: str, message: Message) -> None:
        assert message["term"] < node.durable.term or (message["term"], peer) == node.durable[:2]

    @staticmethod
    def _nack(node: Node, _peer: str, message: Message) -> None:
        assert message["term"] <= node.durable.term


def disturb(cluster: Cluster, random: Random) -> None:
    """Disturb a link, a manager or a disk in a random run. A majority stays alive."""
    act = random.random()
    id_, other = random.sample(sorted(cluster.nodes), 2)
    node = cluster.nodes[id_]
    if act < 0.02:
        cluster.restart(id_).disk_seconds = slowness(random)
    elif act < 0.05:
        cluster.part(id_, other)
    elif act < 0.08:
        cluster.hold((id_, other))
    elif act < 0.12:
        cluster.heal()
    elif act < 0.18:
        node.disk_seconds = slowness(random)
        if node.batches and node.disk_seconds is not None:
            node.write_at = cluster.now + node.disk_seconds
    elif act < 0.19:
        send_raw(node, other, {"type": "timeout_now", "term": node.engine.term})


def slowness(random: Random) -> float | None:
    """The seconds that a sync takes; None: until the test lets it return."""
    return random.choice([0.0, 0.0, 0.01, 0.05, 0.3, 2.0, None])


def run_randomly(seed: int) -> tuple[Cluster, Seam]:
    random = Random(seed)
    cluster = Cluster(IDS[: random.choice([1, 2, 3, 3, 3, 5])], seed=seed)
    seam = Seam(cluster)
    for id_ in cluster.nodes:
        cluster.nodes[id_].disk_seconds = random.choice([0.0, 0.01, 0.1])
        cluster.nodes[id_].waits_for_disk = random.random() < 0.4
    number = 0
    for _ in range(random.choice([60, 120, 240])):
        cluster.turn()
        if len(cluster.nodes) > 1:
            disturb(cluster, random)
        for id_ in sorted(cluster.nodes):
            if random.random() < 0.15:
                number += 1
                cluster.submit(id_, f"w{number}", seconds=random.choice([0.5, 5.0]))
    cluster.heal()
    for id_, node in cluster.nodes.items():
        node.disk_seconds = 0.0
        if node.batches and node.write_at is None:
            cluster.complete_sync(id_)
    cluster.run_until(lambda: not any(node.engine.pending_count or node.events for node in cluster.nodes.values()))
    cluster.write(min(cluster.nodes), "last")
    return cluster, seam


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_random_runs_keep_the_seam_and_every_acknowledged_write(block: int) -> None:
    """Slow and hanging disks, cuts, one-way links, and crashes that lose unsynced bytes. In each run, no message leaves
    before its sync, no term has two leaders, no second batch is on its way, and nothing is applied beyond the synced
    log (the harness). In the end every manager has every acknowledged write exactly once, in the same order."""
    counts = Counter[str]()
    for seed in range(block * 25, block * 25 + 25):
        cluster, seam = run_randomly(seed)
        cluster.check_writes()
        counts += seam.counts
    assert counts.keys() >= {"append_entries", "append_reply", "request_vote", "response_vote", "sign of life"}, counts


# A slow disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_disk_that_takes_two_seconds_costs_no_election(who: str) -> None:
    cluster = Cluster()
    Seam(cluster)
    leader = cluster.wait_ready()
    cluster.run(1)
    slow = leader.id if who == "leader" else cluster.followers()[0]
    cluster.nodes[slow].disk_seconds = 2.0
    term, before = leader.engine.term, len(cluster.sent)
    for number in range(10):
        cluster.submit(leader.id, f"w{number}")
        cluster.run(1)
    cluster.run_until(lambda: len(cluster.acknowledged) == 10)
    assert leader.engine.is_leader
    assert {node.engine.term for node in cluster.nodes.values()} == {term}
    assert not [s for s in cluster.sent[before:] if "vote" in s.message["type"]]
    cluster.check_writes()


def test_two_slow_followers_delay_writes_and_depose_nobody() -> None:
    """The signs of life keep the leader's quorum, but the leader acknowledges no write because of them."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    for id_ in cluster.followers():
        cluster.nodes[id_].disk_seconds = None
    cluster.submit(leader.id, "w", seconds=60)
    cluster.run(10 * TIMEOUT_SECONDS)
    assert leader.engine.is_leader
    assert "w" not in cluster.acknowledged
    assert any(is_sign_of_life(sent.message) for sent in cluster.sent)
    cluster.complete_sync(cluster.followers()[0])
    cluster.run_until(lambda: "w" in cluster.acknowledged, seconds=1)


def test_a_leader_whose_disk_hangs_acknowledges_nothing_though_both_followers_have_it() -> None:
    """The leader's own copy counts in the core's quorum, so it has to be on disk."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    leader.disk_seconds = None
    cluster.submit(leader.id, "w", seconds=60)
    cluster.run(3 * TIMEOUT_SECONDS)
    assert all(node.log.last_index > leader.log.synced_index for node in cluster.nodes.values())
    assert "w" not in cluster.acknowledged
    assert leader.engine._core.commit_index <= leader.log.synced_index
    assert all(node.machine.applied == [] for node in cluster.nodes.values())
    cluster.complete_sync(leader.id)
    cluster.run_until(lambda: "w" in cluster.acknowledged, seconds=1)


def test_a_cluster_of_one_acknowledges_what_its_disk_has() -> None:
    """If one vote is a majority, PySyncObj commits at once. We apply after the sync."""
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_seconds = None
    cluster.submit("m1", "w")
    cluster.run(1)
    assert node.machine.applied == []
    cluster.crash("m1")
    cluster.start("m1")
    cluster.wait_ready()
    assert cluster.machines["m1"].applied == []


def test_writes_that_wait_for_a_sync_share_the_next_one() -> None:
    """Group commit: all writes that come while one batch is on its way to the disk become the next batch."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    leader.disk_seconds = 0.2
    cluster.submit(leader.id, "first")
    cluster.run(0.1)
    for number in range(200):
        cluster.submit(leader.id, f"w{number}")
    before = leader.syncs
    cluster.run_until(lambda: len(cluster.acknowledged) == 201)
    assert leader.syncs - before <= 4


def test_a_follower_that_lost_its_link_sends_no_answer_meant_for_the_old_one() -> None:
    """The answer waited for the disk, and its link has ended. On the new link it would be out of order."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    follower = cluster.followers()[0]
    node = cluster.nodes[follower]
    node.disk_seconds = None
    cluster.submit(leader.id, "w")
    cluster.run(0.3)
    cluster.part(leader.id, follower)
    cluster.run(0.1)
    cluster.heal()
    before = len(cluster.sent)
    cluster.run_until(lambda: (leader.id, follower) in cluster.links)
    cluster.run(0.3)
    cluster.complete_sync(follower)
    cluster.run(0.3)
    since = cluster.sent[before:]
    appends = [s.message for s in since if s.receiver == follower and s.message["type"] == "append_entries"]
    first = min(message["sequence"] for message in appends)
    answers = [s.message for s in since if s.sender == follower and s.message["type"] == "append_reply"]
    assert any(message["success"] for message in answers)
    assert [message for message in answers if message["answers"][1] < first] == []
    node.disk_seconds = 0.0
    cluster.run(0.3)
    if node.batches:
        cluster.complete_sync(follower)
    cluster.check_writes()


def test_what_is_answered_in_the_step_in_which_its_link_breaks_is_not_said_on_the_next_one() -> None:
    """A question, the end of its link and the next link may all come in one step. (Pins a bug: the answer was kept, and
    left on the next link.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    follower = cluster.followers()[0]
    cluster.run(0.5)
    cluster.hold((leader.id, follower), (follower, leader.id))
    cluster.submit(leader.id, "w")
    cluster.run(0.1)
    asked = {m["sequence"] for m in cluster.deliver(leader.id, follower) if m["type"] == "append_entries"}
    assert asked
    before = len(cluster.sent)
    cluster.disconnect(leader.id, follower)
    cluster.connect(leader.id, follower)
    cluster.step(follower)
    cluster.heal()
    cluster.run(1.0)
    answers = [s.message for s in cluster.sent[before:] if s.sender == follower and s.message["type"] == "append_reply"]
    assert answers
    assert [message for message in answers if message["answers"][1] in asked] == []
    cluster.check_writes()


def test_a_leader_that_commits_in_the_step_in_which_it_steps_down_tells_its_log() -> None:
    """The leader applies the entries that it has committed. (Pins a bug: its log, on which a start depends, did not get
    the commit index. A leader that hears no quorum steps down in the tick that counts its own disk.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.run(0.5)
    leader.disk_seconds = None
    cluster.submit(leader.id, "w")
    cluster.run(0.3)
    cluster.isolate(leader.id)
    cluster.now += 10 * TIMEOUT_SECONDS
    cluster.complete_sync(leader.id)
    before = leader.machine.applied_index
    cluster.step(leader.id)
    assert leader.engine.role == "follower"
    assert leader.machine.applied_index == before + 1
    assert leader.log.commit_index == leader.machine.applied_index


def test_a_single_voter_tells_its_learners_of_no_commit_that_its_disk_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one vote is a majority, PySyncObj commits at once. A learner would apply entries that a power cut takes
    back."""
    monkeypatch.setattr(Rounds, "keeps_up", lambda _self, _learner: False)  # the learner stays a learner
    cluster = Cluster(["m1"])
    Seam(cluster)
    leader = cluster.wait_ready()
    cluster.start("m4", address="127.0.0.1:7100")
    cluster.run_until(lambda: "m4" in leader.engine._roster.links)
    cluster.ask("m1", ADD, "m4", "127.0.0.1:7100")
    cluster.run(1)
    leader.disk_seconds = None
    cluster.submit("m1", "w")
    cluster.run(1)
    assert cluster.nodes["m4"].log.last_index == leader.log.last_index > leader.log.synced_index
    assert cluster.nodes["m4"].machine.applied == []


def test_a_single_voter_leads_nobody_in_a_term_that_it_could_forget() -> None:
    """A single voter needs only its own vote, so it leads before that vote is durable. (Pins a bug: the learner got
    entries of the new term at once. After a crash the same term began again, with other entries at the same
    indexes.)"""
    cluster = Cluster(["m1"])
    Seam(cluster)
    cluster.wait_ready()
    cluster.write("m1", "w")
    cluster.start("m4", address="127.0.0.1:7100")
    cluster.run_until(lambda: "m4" in cluster.nodes["m1"].engine._roster.links)
    cluster.hold(("m4", "m1"))
    assert cluster.ask("m1", ADD, "m4", "127.0.0.1:7100").state == PENDING
    cluster.run(1)
    cluster.restart("m1").disk_seconds = None
    before = len(cluster.sent)
    cluster.run(3)
    assert cluster.nodes["m1"].engine.role == "leader"
    said = [sent.message["type"] for sent in cluster.sent[before:] if sent.sender == "m1"]
    assert set(said) <= {"health"}
    cluster.complete_sync("m1")
    cluster.run(STEP_SECONDS)
    assert [sent.message["type"] for sent in cluster.sent[before:] if sent.sender == "m1"] != []


def test_a_leader_whose_disk_hangs_for_good_hands_leadership_to_one_whose_does_not() -> None:
    """A disk may hang for two seconds. After five, the others need not wait for a disk that may never return."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin, _ = cluster.followers()
    leader.disk_seconds = None
    cluster.submit(origin, "w", seconds=20)
    cluster.run(4)
    assert leader.engine.is_leader
    cluster.run_until(lambda: "w" in cluster.acknowledged, seconds=4)
    assert cluster.wait_leader() is not leader
    leader.disk_seconds = 0.0
    cluster.complete_sync(leader.id)
    cluster.check_writes()


# A full disk ---------------------------------------------------------------------------------------------------------


def test_a_manager_without_room_for_its_log_acknowledges_nothing_and_resumes_by_itself() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    full = cluster.nodes[cluster.followers()[0]]
    full.disk_error = OSError(28, "No space left on device")
    cluster.write(leader.id, "on two of three")
    cluster.run(5)
    assert full.engine.shortage
    assert full.log.synced_index < full.log.last_index
    assert any("no space left for the log" in alarm for alarm in full.alarm_texts)
    before = len(cluster.sent)
    cluster.crash(leader.id)
    cluster.run(5)
    assert "request_vote" not in [s.message["type"] for s in cluster.sent[before:] if s.sender == full.id]
    full.disk_error = None
    cluster.start(leader.id)
    cluster.write(full.id, "after")
    cluster.check_writes()
    assert not full.engine.shortage


def test_answers_that_wait_for_room_do_not_pile_up() -> None:
    """(Pins a bug: each heartbeat left another answer that waited, ten a second while the disk was full.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    full = cluster.nodes[cluster.followers()[0]]
    full.disk_error = OSError(28, "No space left on device")
    cluster.write(leader.id, "w")
    cluster.run(2)
    waiting = len(full.engine._outbox._gated)
    cluster.run(20)
    assert len(full.engine._outbox._gated) == waiting
    full.disk_error = None
    cluster.check_writes()
    assert not full.engine._outbox._gated


def test_a_leader_without_room_for_its_log_hands_leadership_to_one_that_has() -> None:
    """The leader can commit nothing, because its own copy counts. The others can. (Pins a bug: it went on leading, and
    no caller could write until an operator freed space on that one machine.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin, _ = cluster.followers()
    leader.disk_error = OSError(28, "No space left on device")
    cluster.submit(origin, "w", seconds=10)
    cluster.run_until(lambda: "w" in cluster.acknowledged, seconds=3)
    assert cluster.wait_leader() is not leader
    cluster.run(5)
    assert leader.engine.shortage
    assert not leader.engine.is_leader
    leader.disk_error = None
    cluster.check_writes()


def test_a_leader_whose_state_has_no_room_hands_leadership_over_too() -> None:
    """A leader accepts no new entries while it cannot apply the last ones."""
    cluster = Cluster(make_machine=Full)
    leader = cluster.wait_ready()
    origin, _ = cluster.followers()
    assert isinstance(leader.machine, Full)
    leader.machine.full = True
    for number in range(5):
        cluster.submit(origin, f"w{number}", seconds=10)
        cluster.run(0.1)
    cluster.run_until(lambda: len(cluster.acknowledged) == 5, seconds=4)
    assert cluster.wait_leader() is not leader
    leader.machine.full = False
    cluster.check_writes()


def test_a_leader_without_room_tries_each_of_the_others() -> None:
    """The first successor that the leader names cannot lead either, for the same reason, and does not say so."""
    cluster = Cluster(make_machine=Full)
    leader = cluster.wait_ready()
    origin, best = cluster.followers()
    for id_ in (best, leader.id):
        machine = cluster.machines[id_]
        assert isinstance(machine, Full)
        machine.full = True
        cluster.write(origin, f"{id_} is full")
        cluster.run(0.3)
    for number in range(5):
        cluster.submit(origin, f"w{number}", seconds=20)
        cluster.run(0.1)
    cluster.run_until(lambda: len(cluster.acknowledged) == 7, seconds=6)
    assert cluster.wait_leader().id == origin


def test_managers_that_are_all_without_room_do_not_pass_leadership_round() -> None:
    """A manager that cannot write or apply does not campaign. The leader stays, and acknowledges no write until there
    is space again."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    for node in cluster.nodes.values():
        node.disk_error = OSError(28, "No space left on device")
    cluster.submit("m1", "w", seconds=60)
    cluster.run(10)
    assert len(cluster.leaders) == 1
    assert "w" not in cluster.acknowledged
    for node in cluster.nodes.values():
        node.disk_error = None
    cluster.run_until(lambda: "w" in cluster.acknowledged, seconds=5)
    assert leader.engine.role == "leader" or cluster.leader is not None
    cluster.check_writes()


def test_an_input_output_error_of_the_log_stops_the_manager() -> None:
    """After EIO the kernel may call pages clean that never reached the disk. So no message may leave any more."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    broken = cluster.followers()[0]
    cluster.nodes[broken].disk_error = OSError(5, "Input/output error")
    cluster.write(leader.id, "w")
    cluster.run_until(lambda: broken in cluster.stopped, seconds=3)
    assert str(cluster.stopped[broken]) == "the log cannot be written: [Errno 5] Input/output error"
    cluster.start(broken)
    cluster.check_writes()


def test_what_is_applied_is_committed_in_the_log_though_leadership_was_lost_before_its_sync() -> None:
    """A leader that is the only voter counts an entry as committed before its disk has it. If it does not lead any more
    when the disk returns, it applies the entry all the same. The log must then have the entry as committed."""
    cluster = Cluster(["m1"])
    leader = cluster.wait_ready()
    cluster.run(1.0)
    leader.disk_seconds = None
    before = leader.log.last_index
    cluster.submit(leader.id, "one")
    cluster.run_until(lambda: leader.engine._core.commit_index > before)
    assert leader.machine.applied_index == before
    leader.engine._core.step_down()
    for _ in range(3):
        cluster.step(leader.id)
    cluster.complete_sync(leader.id)
    cluster.step(leader.id)
    assert not leader.engine.is_leader
    assert leader.log.commit_index >= leader.machine.applied_index == before + 1


# The append messages of a leader --------------------------------------------------------------------------------------


def appends(cluster: Cluster, since: int) -> list[Any]:
    """The append messages sent since that many messages, without the heartbeats that bring nothing new."""
    return [each for each in cluster.sent[since:] if each.message["type"] == "append_entries"]


def test_followers_get_the_same_entries_in_one_message_under_one_number() -> None:
    """It is made and encoded once. A follower that lacks more gets a message of its own."""
    cluster = Cluster(IDS)
    leader = cluster.wait_ready()
    cluster.run(0.3)
    begin = len(cluster.sent)
    cluster.submit(leader.id, "one")
    cluster.step(leader.id)
    sent = [each.message for each in appends(cluster, begin) if each.message["entries"]]
    assert len(sent) == 4
    assert all(message is sent[0] for message in sent)


def test_a_commit_index_leaves_soon_without_entries_to_ride_on() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    for id_ in cluster.nodes:
        cluster.nodes[id_].disk_seconds = 0.0
    cluster.run(0.3)
    cluster.write(leader.id, "one")
    begin, committed = len(cluster.sent), leader.engine.commit_index
    told = [each.message for each in appends(cluster, 0) if each.message["commit_index"] == committed]
    while not told:
        assert leader.engine.holds_notices
        cluster.now += 2 * NOTICE_SECONDS
        cluster.step(leader.id)
        told = [each.message for each in appends(cluster, begin)]
        assert len(told) in (0, 2)
    assert not leader.engine.holds_notices
    assert {message["commit_index"] for message in told} == {committed}


def test_a_follower_with_a_caller_is_told_at_once_that_its_write_is_committed() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    asked, other = cluster.followers()
    cluster.run(0.3)
    cluster.submit(asked, "one")
    cluster.step(asked)
    cluster.deliver(asked, leader.id)
    cluster.step(leader.id)
    cluster.complete_sync(leader.id)
    for id_ in (asked, other):
        cluster.deliver(leader.id, id_)
        cluster.step(id_)
        cluster.complete_sync(id_)
        cluster.step(id_)
    cluster.deliver(other, leader.id)
    begin = len(cluster.sent)
    cluster.step(leader.id)
    assert [each.receiver for each in appends(cluster, begin)] == [asked]
    cluster.now += 2 * NOTICE_SECONDS
    cluster.step(leader.id)
    assert [each.receiver for each in appends(cluster, begin)] == [asked, other]


def test_a_leader_without_followers_waits_for_nobody_to_be_told() -> None:
    cluster = Cluster(("m1",))
    leader = cluster.wait_ready()
    cluster.write(leader.id, "one")
    cluster.run(0.1)
    assert not leader.engine.holds_notices


def test_a_leader_that_is_deposed_tells_nobody() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    cluster.write(leader.id, "one")
    cluster.isolate(leader.id)
    cluster.run(3.0)
    assert leader.engine.role == "follower"
    assert not leader.engine.holds_notices
