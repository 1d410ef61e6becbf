"""No node is called down too early, whichever manager took its beats, and no dead node is put off for ever.

Engines in one thread with a list as their state (tests/engine_harness.py). Not here: nodes as entities, and writing
their status (unit/test_judging.py), random faults (the simulation's matter).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.engine_harness import Cluster
from warren_raft.raft.beat_table import GAP_SECONDS, INBOX_MAX, NODES_MAX, BeatTable
from warren_raft.raft.beats import AWAY_TIMEOUTS, MARGIN_SECONDS, SHARE_SECONDS, NodeBeats
from warren_raft.raft.changes import DONE
from warren_raft.raft.membership import REMOVE
from warren_raft.raft.messages import BEATS_MAX, Beats, PeerFault, decode, encode
from warren_raft.raft.requests import TransferWanted

TTL = 5.0


def table_at(now: float) -> BeatTable:
    marks = iter(range(1, 1_000_000))
    table = BeatTable(lambda _bits: next(marks))
    table.look(now)
    return table


# The table ------------------------------------------------------------------------------------------------------------


def test_time_in_which_the_manager_did_not_run_makes_no_beat_older() -> None:
    """A process that was suspended for a minute took no beats meanwhile, and its clock says that a minute has passed. A
    clock that leaps looks the same."""
    table = table_at(50.0)
    table.take("n", TTL, 50.1)
    table.look(50.2)
    table.look(110.2)
    assert table.age_of("n", 0.0) == pytest.approx(0.1 + GAP_SECONDS)
    table.look(50.0)  # nor does a clock that goes back
    assert table.age_of("n", 0.0) == pytest.approx(0.1 + GAP_SECONDS)


def test_a_beat_that_waited_while_the_clock_leapt_is_as_young_as_the_last_look() -> None:
    table = table_at(50.0)
    table.take("n", TTL, 50.0)
    table.look(50.0 + 3600.0)
    assert table.age_of("n", 0.0) == pytest.approx(GAP_SECONDS)


def test_the_newest_beat_counts_wherever_it_came() -> None:
    table = table_at(0.0)
    for now in range(1, 100):
        table.look(now / 10)
    assert table.merge("n", TTL, 2.0, 7)
    assert not table.merge("n", TTL, 3.0, 8)
    assert table.age_of("n", 0.0) == pytest.approx(2.0)
    assert table.merge("n", 9.0, 1.0, 9)
    assert table.known["n"][:3] == (9.0, pytest.approx(table.now - 1.0), 9)


def test_a_beat_that_is_told_again_seems_no_younger() -> None:
    """(Otherwise a dead node would live a little longer with each leader that is told of its last beat.)"""
    table = table_at(0.0)
    for now in range(1, 100):
        table.look(now / 10)
    table.merge("n", TTL, 2.0, 7)
    assert not table.merge("n", TTL, 1.5, 7)
    assert table.age_of("n", 0.0) == pytest.approx(2.0)
    assert not table.merge("n", TTL, 2.25, 7)  # it was less long on its way
    assert table.age_of("n", 0.0) == pytest.approx(2.25)


def running_table() -> BeatTable:
    table = table_at(0.0)
    for now in range(1, 100):
        table.look(now / 10)
    return table


def test_a_beat_that_was_late_on_its_way_hides_no_newer_one() -> None:
    """(Pins a fault: an old beat seemed to be the last one, because its message was late. The newer beat was forgotten,
    and then the age of the old one became known. So a node was called down before its ttl was over.)"""
    table = running_table()
    table.merge("n", TTL, 0.2, 7)
    assert table.merge("n", TTL, 0.1, 8)  # a second late
    assert table.merge("n", TTL, 1.1, 8)
    assert table.age_of("n", 0.0) == pytest.approx(0.2)
    assert not table.merge("n", TTL, 1.2, 7)  # how old that one is at the most, is known no more
    assert table.age_of("n", 0.0) == pytest.approx(0.2)


def test_a_beat_that_came_here_is_told_although_there_seems_to_be_a_newer_one() -> None:
    table = running_table()
    table.take("n", TTL, 9.9)
    assert table.look(10.0) == ["n"]
    table.merge("n", TTL, 0.0, 8)  # a second late
    newest, own = table.to_tell("n")
    assert (newest.mark, table.now - own.at) == (8, pytest.approx(0.1))
    assert table.merge("n", TTL, 1.0, 8)
    assert table.age_of("n", 0.0) == pytest.approx(0.1)
    assert not table.merge("n", TTL, 2.0, own.mark)  # nobody knows the age of a beat better than its manager
    assert table.age_of("n", 0.0) == pytest.approx(0.1)


def test_two_threads_that_bring_beats_out_of_order_make_no_beat_older() -> None:
    table = running_table()
    table.take("n", TTL, 10.05)
    table.take("n", TTL, 9.91)
    table.look(10.1)
    assert table.age_of("n", 0.0) == pytest.approx(0.05)


def test_an_old_beat_that_came_here_is_not_told_for_ever() -> None:
    table = running_table()
    table.take("n", 1.0, 9.9)
    table.look(9.95)
    table.merge("n", 1.0, 0.0, 8)
    assert len(table.to_tell("n")) == 2
    for now in range(100, 112):
        table.look(now / 10)
    assert [beat.mark for beat in table.to_tell("n")] == [8]


def test_a_beat_is_known_as_soon_as_it_was_taken() -> None:
    """(Pins a fault: until the next look, a program that had just brought a node's beat was told that none is known, or
    the age of the beat before.)"""
    table = running_table()
    table.take("n", TTL, 9.95)
    assert table.age_of("n", 9.97) == pytest.approx(0.02)
    table.look(10.0)
    assert table.age_of("n", 0.0) == pytest.approx(0.05)
    for now in range(101, 120):
        table.look(now / 10)
    assert table.age_of("n", 0.0) == pytest.approx(1.95)
    table.take("n", TTL, 11.95)
    assert table.age_of("n", 11.95) == 0.0


def test_a_beat_that_is_looked_at_while_it_is_taken_is_not_young_for_ever() -> None:
    """(Pins a fault: an exception of a signal handler within `take` made a node seem alive until its next beat.)"""
    table = running_table()

    class Looked(deque[tuple[str, float, float]]):
        def append(self, beat: tuple[str, float, float], /) -> None:
            super().append(beat)
            table.look(10.0)

    table.inbox = Looked()
    table.take("n", TTL, 9.95)
    for now in range(101, 120):
        table.look(now / 10)
    assert table.age_of("n", 11.9) == pytest.approx(1.95)


def test_beats_that_came_out_of_order_or_were_dropped_are_not_young_for_ever() -> None:
    table = running_table()
    for n in range(INBOX_MAX + 1):
        table.take(f"n{n}", TTL, 9.9)
    table.look(10.0)
    assert table.age_of("n0", 0.0) is None  # its beat was dropped
    table.take("n1", TTL, 9.0)  # brought by a thread that was slow: it came before the other one
    for now in range(101, 120):
        table.look(now / 10)
    assert table.age_of("n1", 0.0) == pytest.approx(1.9)


def test_counting_begins_without_a_beat_and_is_no_age() -> None:
    table = table_at(0.0)
    table.begin_to_count("n", TTL)
    assert table.age_of("n", 0.0) is None
    table.merge("n", TTL, 0.0, 3)
    table.begin_to_count("n", TTL)
    assert table.known["n"].mark == 3


def test_a_hostile_manager_cannot_fill_the_memory_with_nodes() -> None:
    table = table_at(0.0)
    for n in range(NODES_MAX + 1):
        table.merge(f"made-up-{n}", TTL, 0.0, 1)
    assert len(table.known) == NODES_MAX
    table.gone = [f"made-up-{n}" for n in range(NODES_MAX)]
    table.look(0.1)
    assert not table.known


# Several managers -----------------------------------------------------------------------------------------------------


def cluster_of(count: int = 3) -> Cluster:
    cluster = Cluster([f"m{n}" for n in range(1, count + 1)])
    cluster.wait_ready()
    cluster.run(1.5)
    return cluster


def beats_of(cluster: Cluster, id_: str) -> NodeBeats:
    return cluster.nodes[id_].engine.beats


def beat(cluster: Cluster, id_: str, node: str = "n", ttl: float = TTL) -> bool:
    return beats_of(cluster, id_).take(node, ttl, cluster.now)


def watch(cluster: Cluster, *nodes: str) -> None:
    """As the judge of each manager does it."""
    for each in cluster.nodes.values():
        each.engine.beats.watched = dict.fromkeys(nodes)


def is_due(cluster: Cluster, node: str = "n") -> bool:
    leader = cluster.leader
    return leader is not None and node in leader.engine.beats.verdict.due


@contextmanager
def never_due(cluster: Cluster, node: str = "n") -> Iterator[None]:
    """No leader calls this node due until the end of the block."""
    step = cluster.step

    def checked(id_: str) -> None:
        step(id_)
        assert not any(node in each.engine.beats.verdict.due for each in cluster.nodes.values())

    cluster.step = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        cluster.step = step  # type: ignore[method-assign]


def test_every_manager_knows_the_age_of_a_beat_that_any_manager_took() -> None:
    cluster = cluster_of()
    begin = cluster.now
    assert beat(cluster, cluster.followers()[0])
    cluster.run(SHARE_SECONDS + 0.6)
    for id_ in cluster.nodes:
        assert beats_of(cluster, id_).table.age_of("n", 0.0) == pytest.approx(cluster.now - begin, abs=0.3), id_


@pytest.mark.parametrize("taker", [0, 1, 2])
def test_a_node_is_due_soon_after_its_ttl_and_never_before(taker: int) -> None:
    cluster = cluster_of()
    watch(cluster, "n")
    id_ = sorted(cluster.nodes)[taker]
    with never_due(cluster):
        for _ in range(10):
            beat(cluster, id_)
            cluster.run(0.4 * TTL)
        cluster.run(0.6 * TTL - 0.02)
    cluster.run_until(lambda: is_due(cluster), seconds=MARGIN_SECONDS + 0.4)


def test_beats_make_no_entry_and_no_sync() -> None:
    cluster = cluster_of()
    watch(cluster, "n")
    before = {id_: (node.log.last_index, node.syncs) for id_, node in cluster.nodes.items()}
    for _ in range(40):
        for id_ in cluster.nodes:
            beat(cluster, id_)
        cluster.run(0.25)
    assert {id_: (node.log.last_index, node.syncs) for id_, node in cluster.nodes.items()} == before


def test_a_beat_that_is_still_on_its_way_counts() -> None:
    """The last word of a follower has not arrived: the leader has to ask before it calls a node down."""
    cluster = cluster_of()
    watch(cluster, "n")
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    beat(cluster, leader)
    cluster.run(TTL - 0.3)
    begin = cluster.now
    beat(cluster, follower)
    cluster.hold((follower, leader))
    with never_due(cluster):
        cluster.run(0.9)
        cluster.heal()
        cluster.run(begin + TTL - cluster.now)
    cluster.run_until(lambda: is_due(cluster), seconds=2.0)


def test_a_manager_that_is_away_may_have_taken_a_beat() -> None:
    """It answers beats for a moment after it was cut off. So it has to be away for long before nodes are called down
    without it."""
    cluster = cluster_of()
    watch(cluster, "n")
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    beat(cluster, leader)
    cluster.run(1.0)
    cut = cluster.now
    cluster.isolate(follower)
    last = cut
    while beat(cluster, follower):
        last = cluster.now
        cluster.run(0.1)
    assert 0.5 < last - cut < AWAY_TIMEOUTS - 0.5
    with never_due(cluster):
        cluster.run(last + TTL - cluster.now)
    cluster.run_until(lambda: is_due(cluster), seconds=AWAY_TIMEOUTS + SHARE_SECONDS + 1.0)


def test_beats_without_a_leader_are_not_answered_but_are_told_to_the_next_one() -> None:
    cluster = cluster_of()
    watch(cluster, "n")
    beat(cluster, "m1")
    cluster.run(1.0)
    for id_ in ("m2", "m3"):
        cluster.isolate(id_)
    cluster.run(3 * TTL)
    assert not beat(cluster, "m1")
    cluster.heal()
    with never_due(cluster):
        cluster.wait_ready()
        cluster.run(2.0)
    assert all(beats_of(cluster, id_).table.age_of("n", 0.0) for id_ in cluster.nodes)


def test_the_next_leader_knows_the_beats_that_the_last_one_took() -> None:
    cluster = cluster_of()
    watch(cluster, "n")
    leader = cluster.wait_leader().id
    begin = cluster.now
    beat(cluster, leader)
    cluster.run(SHARE_SECONDS + 0.2)
    cluster.crash(leader)
    with never_due(cluster):
        cluster.run_until(lambda: cluster.leader is not None)
        cluster.run(begin + TTL - cluster.now)
    cluster.run_until(lambda: is_due(cluster), seconds=AWAY_TIMEOUTS + TTL + 1.0)
    assert cluster.now - begin < 2 * SHARE_SECONDS + AWAY_TIMEOUTS + TTL + 1.0


def test_changes_of_leaders_do_not_put_a_dead_node_off() -> None:
    cluster = cluster_of()
    watch(cluster, "n")
    begin = cluster.now
    beat(cluster, "m1", ttl=12.0)
    with never_due(cluster):
        for _ in range(5):
            cluster.run(2.0)
            cluster.nodes[cluster.wait_leader().id].events.append(TransferWanted(None, lambda _answer: None))
            cluster.run(0.3)
    assert cluster.run_until(lambda: is_due(cluster), seconds=begin + 12.0 + 1.0 - cluster.now)
    assert cluster.wait_leader().engine.term >= 5


def test_a_leader_whose_clock_leaps_calls_no_node_down() -> None:
    cluster = cluster_of()
    watch(cluster, "n")
    leader = cluster.wait_leader()
    beat(cluster, cluster.followers()[0])
    cluster.run(1.0)
    with never_due(cluster):
        engine = leader.engine
        before = engine.beats.table.age_of("n", 0.0)
        assert before == pytest.approx(1.0, abs=0.2)  # its clock is that of its last step
        engine.step(cluster.now + 3600.0)  # its clock goes back afterwards, for the sake of the others
        assert engine.beats.table.age_of("n", 0.0) == pytest.approx(before + GAP_SECONDS, abs=0.1)


def test_beats_of_many_nodes_fit_into_messages() -> None:
    cluster = cluster_of()
    count = 2 * BEATS_MAX + 10
    for n in range(count):
        beat(cluster, cluster.followers()[0], f"node-{n}")
    cluster.run(SHARE_SECONDS + 0.6)
    assert {len(beats_of(cluster, id_).table.known) for id_ in cluster.nodes} == {count}


def test_beats_of_another_size_than_their_nodes_drop_the_link() -> None:
    cluster = cluster_of()
    wrong = Beats(term=1, nodes=["n", "o"], beats=bytes(12), managers=[], seen=b"")
    with pytest.raises(PeerFault, match="2 nodes and 12 bytes"):
        beats_of(cluster, "m1").on_beats("m2", wrong)
    with pytest.raises(PeerFault, match="1 managers and 0 bytes"):
        beats_of(cluster, "m1").on_beats("m2", replace(wrong, beats=bytes(24), managers=["m3"]))
    for nodes in (["n" * 512], [""], ["n"] * (BEATS_MAX + 1), [7], "n"):
        with pytest.raises(PeerFault):
            decode({**encode(wrong), "nodes": nodes})


def test_two_managers_do_not_keep_a_dead_third_one_young() -> None:
    """(Pins a bug of a draft: each told the other when the third one was last connected, and added a moment.)"""
    cluster = cluster_of()
    dead = cluster.followers()[0]
    cluster.crash(dead)
    died = cluster.now
    for _ in range(60):
        for id_ in cluster.nodes:
            beat(cluster, id_)
        cluster.run(0.5)
    for id_ in cluster.nodes:
        beats = beats_of(cluster, id_)
        assert beats._managers[dead].last_seen < beats.table.now - (cluster.now - died) + 3.0


def test_a_removed_manager_that_waits_to_be_added_puts_no_dead_node_off() -> None:
    """(Pins a fault: a manager that is no member is not asked. While it was connected on an empty directory, it counted
    all the same as one that may know of later beats, so no node was ever down.)"""
    cluster = cluster_of()
    leader, removed = cluster.wait_leader().id, cluster.followers()[0]
    assert cluster.change(leader, REMOVE, removed).state == DONE
    cluster.crash(removed)
    cluster.wipe(removed)
    cluster.start(removed)
    cluster.run_until(lambda: (leader, removed) in cluster.links)
    cluster.run(AWAY_TIMEOUTS + SHARE_SECONDS)
    watch(cluster, "n")
    beat(cluster, leader)
    with never_due(cluster):
        cluster.run(TTL)
    cluster.run_until(lambda: is_due(cluster), seconds=2.0)
    assert (leader, removed) in cluster.links


def test_a_manager_that_came_back_is_asked_again() -> None:
    """(Pins a bug: a question that was lost with its link made the manager count as away for ever, so beats that it
    answered later did not count.)"""
    cluster = cluster_of()
    watch(cluster, "n", "late")
    leader, follower = cluster.wait_leader().id, cluster.followers()[0]
    beat(cluster, leader, "late")
    beat(cluster, leader, ttl=30.0)
    cluster.hold((leader, follower), (follower, leader))
    asked = cluster.wait_leader().engine.beats._managers[follower]
    cluster.run_until(lambda: asked.asked_at is not None, seconds=TTL + 1.0)
    cluster.isolate(follower)
    cluster.run(20.0)
    cluster.heal()
    cluster.run(1.0)
    assert cluster.wait_leader().id == leader
    begin = cluster.now
    assert beat(cluster, follower, ttl=30.0)
    cluster.hold((follower, leader))  # its answers are slow
    with never_due(cluster):
        cluster.run(0.8)
    assert asked.seen_at == pytest.approx(cluster.wait_leader().engine.beats.table.now, abs=0.3)
    assert cluster.now - begin < 30.0


def test_a_leader_that_stepped_down_forgets_its_questions() -> None:
    """(Pins a bug: a question without an answer made the manager seem away, also to the leader after the next one.)"""
    cluster = cluster_of()
    watch(cluster, "n")
    leader, follower = cluster.wait_leader(), cluster.followers()[0]
    beat(cluster, leader.id)
    cluster.hold((leader.id, follower))
    manager = leader.engine.beats._managers[follower]
    cluster.run_until(lambda: manager.asked_at is not None, seconds=TTL + 1.0)
    leader.events.append(
        TransferWanted(next(id_ for id_ in cluster.followers() if id_ != follower), lambda _answer: None)
    )
    cluster.run_until(lambda: not leader.engine.is_leader, seconds=5.0)
    cluster.heal()
    cluster.run(12.0)
    assert manager.seen_at == pytest.approx(leader.engine.beats.table.now, abs=0.3)


def test_a_leader_without_any_beat_finds_the_nodes_that_have_leases() -> None:
    """(Pins a bug: a leader that knew of no beat did not begin to judge, so no lease was found after a restart of all
    managers, as long as no node beat.)"""
    cluster = cluster_of()
    leader = cluster.wait_leader()
    assert leader.engine.beats.verdict.term == leader.engine.term
    begin = cluster.now
    for each in cluster.nodes.values():
        each.engine.beats.watched = {"n": TTL}
    with never_due(cluster):
        cluster.run(TTL - 0.1)
    cluster.run_until(lambda: is_due(cluster), seconds=1.0)
    assert leader.engine.beats.table.age_of("n", 0.0) is None
    assert cluster.now - begin < TTL + 1.0


def test_nothing_is_sent_where_nothing_beats() -> None:
    cluster = cluster_of()
    cluster.sent.clear()
    cluster.run(3.0)
    assert not {sent.message["type"] for sent in cluster.sent} & {"beats", "beats_wanted"}
