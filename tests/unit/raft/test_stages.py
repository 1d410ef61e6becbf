"""The promise: a leader knows when each of its entries was made, durable and acknowledged, and by which follower.

A follower whose disk is slow tells how long its disk took. A quick reply has the bytes that it always had, so that an
older release reads it as quickly as before, and an old reply is read.
"""

from __future__ import annotations

from tests.engine_harness import Cluster
from warren_raft.raft.messages import AppendReply, decode, encode
from warren_raft.raft.stages import NOT_YET, SLOW_SYNC_SECONDS, EntryTimes, Reply, Stages

VOTERS = frozenset({"m1", "m2", "m3", "m4", "m5"})


def entry_with(*peers: str) -> EntryTimes:
    entry = EntryTimes(7, 1.0, ())
    entry.replies = [Reply(peer, 2.0 + number, 0.0) for number, peer in enumerate(peers)]
    return entry


def test_the_decisive_reply_completes_a_majority_of_the_voters() -> None:
    found = entry_with("learner", "m2", "m3", "m4").decisive(VOTERS, "m1")
    assert found is not None
    assert found.peer == "m3"
    assert entry_with("learner", "m2").decisive(VOTERS, "m1") is None
    assert entry_with().decisive(frozenset({"m1"}), "m1") is None, "a leader alone waits for nobody"
    found = entry_with("m2", "m3").decisive(frozenset({"m2", "m3"}), "m1")  # a leader that is being removed
    assert found is not None
    assert found.peer == "m3"


def test_the_times_of_an_entry_are_those_of_its_events() -> None:
    stages = Stages()
    stages.slow_seconds = 3.0
    stages.made(5, 1.0, ())
    stages.made(6, 1.5, {"m2"})
    stages.acknowledged("m2", 4, 5, 2.0, 0.0)
    stages.synced(5, 2.5)
    stages.acknowledged("m2", 5, 6, 3.0, 0.7)
    stages.acknowledged("m3", 4, 6, 3.5, 0.0)
    oldest = stages.oldest
    assert oldest is not None
    assert (oldest.index, oldest.synced_at) == (5, 2.5)
    stages.applied(5, 3.6, 3.7)
    first = stages.of(5)
    assert first is not None
    assert first.replies == [Reply("m2", 2.0, 0.0), Reply("m3", 3.5, 0.0)]
    assert (first.made_at, first.synced_at, first.applied_at) == (1.0, 2.5, 3.7)
    stages.synced(6, 4.0)
    stages.applied(6, 4.4, 4.6)
    second = stages.of(6)
    assert second is not None
    assert second.replies == [Reply("m2", 3.0, 0.7), Reply("m3", 3.5, 0.0)]
    assert stages.of(5) is None, "only those of the last run are kept"
    assert [entry.index for entry in stages.slow] == [6]
    stages.made(7, 5.0, {"m2"}, 2.0)
    stages.applied(7, 5.0, 5.1)
    assert [entry.index for entry in stages.slow] == [6, 7], "its command came here three seconds before"


def test_a_leader_that_leads_no_more_forgets_its_entries() -> None:
    stages = Stages()
    stages.made(5, 1.0, ())
    stages.forget()
    stages.applied(5, 2.0, 2.1)
    assert stages.of(5) is None
    assert stages.oldest is None
    assert (stages.apply_began, stages.apply_ended) == (2.0, 2.1)


def test_memory_is_bounded() -> None:
    stages = Stages()
    for index in range(1, 10_000):
        stages.made(index, 1.0, ())
    stages.applied(9_999, 2.0, 2.1)
    assert sum(stages.of(index) is not None for index in range(10_000)) < 1_000


def test_a_follower_tells_how_long_its_disk_took_only_if_it_was_slow() -> None:
    it = Cluster(["m1", "m2", "m3"])
    leader = it.wait_ready()
    slow, quick = it.followers()
    it.write(leader.id, "before")
    it.run_until(it.converged)
    it.sent.clear()
    it.nodes[slow].disk_seconds = 0.8
    it.write(leader.id, "slow")
    it.run_until(it.converged)
    replies = [each for each in it.sent if each.message["type"] == AppendReply.NAME]
    told = [each for each in replies if "sync_ms" in each.message]
    assert {each.sender for each in told} == {slow}
    assert {each.message["sync_ms"] >= 1000 * SLOW_SYNC_SECONDS for each in told} == {True}
    assert 800 <= max(each.message["sync_ms"] for each in told) < 1700
    assert any(each.sender == quick for each in replies)


def test_a_quick_reply_is_the_same_on_the_wire_as_before() -> None:
    reply = AppendReply(answers=[3, 5], next_index=10, success=True, reset=False, hint=False, kept=8)
    wire = encode(reply)
    assert list(wire) == ["answers", "next_index", "success", "reset", "hint", "kept", "type"]
    assert AppendReply.quickly(wire) == reply
    slow = AppendReply(answers=[3, 5], next_index=10, success=True, reset=False, hint=False, kept=8, sync_ms=900)
    assert AppendReply.quickly(encode(slow)) is None
    assert decode(encode(slow)) == slow


def test_nothing_is_known_of_an_entry_that_was_just_made() -> None:
    entry = EntryTimes(1, 0.0, ())
    assert (entry.synced_at, entry.applied_at, entry.replies) == (NOT_YET, NOT_YET, [])
