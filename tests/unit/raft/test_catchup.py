"""A manager that lacks entries that the leader's log has dropped gets a snapshot, and no other manager waits for that.

Engines in one thread with a list as their state (tests/engine_harness.py). Not here: files and LMDB
(tests/unit/snapshots/test_keeper.py), random faults (tests/simulation).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine_harness import Cluster, Node
from tests.list_machine import Held, ListMachine
from warren_raft.errors import SnapshotInvalid
from warren_raft.raft import catchup
from warren_raft.raft.events import Arriving, Worked
from warren_raft.raft.membership import ADD, REMOVE
from warren_raft.raft.messages import REFUSED, SnapshotGet
from warren_raft.raft.replacement import Phase

SMALL = 2_000


def compacting(**options: int) -> Cluster:
    """Managers that take a snapshot after each few writes."""
    cluster = Cluster(snapshot_after_bytes=SMALL, **options)
    cluster.wait_ready()
    return cluster


def write_until_cut(cluster: Cluster, through: str, *ids: str) -> None:
    """Write until each of these managers has dropped the entries that its log had at the beginning."""
    ends = {id_: cluster.nodes[id_].log.last_index for id_ in ids}
    for number in range(200):
        cluster.write(through, f"{number} to cut the log {cluster.now} {'x' * 200}")
        if all(cluster.nodes[id_].log.base_index > ends[id_] for id_ in ids):
            return
    pytest.fail(f"never cut: {cluster.describe()}")


def lagging(cluster: Cluster) -> tuple[Node, str]:
    """A leader that has dropped the entries that an away follower lacks, and the follower, which is not back yet."""
    leader = cluster.wait_leader()
    away = cluster.followers()[0]
    cluster.crash(away)
    write_until_cut(cluster, leader.id, *(id_ for id_ in cluster.nodes))
    return leader, away


def test_a_follower_that_was_away_for_too_long_gets_a_snapshot() -> None:
    cluster = compacting()
    _, away = lagging(cluster)
    cluster.start(away)
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.check_writes()
    assert cluster.nodes[away].log.base_index > 1


def test_it_answers_every_heartbeat_while_it_fetches_and_writes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 512)
    cluster = compacting()
    leader, away = lagging(cluster)
    node = cluster.start(away)
    cluster.run_until(lambda: node.engine.fetching)
    node.works = False
    before, term = len(cluster.sent), leader.engine.term
    cluster.write(leader.id, *(f"meanwhile {number}" for number in range(20)))
    cluster.run(5)
    said = [s for s in cluster.sent[before:] if s.sender == away and s.message["type"] == "append_reply"]
    heard = [s for s in cluster.sent[before:] if s.receiver == away and s.message["type"] == "append_entries"]
    assert len(heard) > 30, "the leader's heartbeats come every tenth of a second"
    assert len(said) >= len(heard) - 1
    assert not any(s.message["entries"] for s in heard), "it was sent entries that it cannot use"
    assert leader.engine.term == term
    node.works = True
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.check_writes()


def test_a_chunk_that_is_still_arriving_is_not_asked_for_again() -> None:
    """On a thin link a chunk takes longer than a follower waits for a lost chunk. (Pins a bug: the chunk was asked for
    again and sent twice, and each copy took twice as long.) If no parts arrive any more, the follower asks again."""
    cluster = compacting()
    leader, away = lagging(cluster)
    node = cluster.start(away)
    cluster.thin.add((leader.id, away))
    cluster.run_until(lambda: node.engine.fetching)

    def asked() -> int:
        return len([s for s in cluster.sent if s.message["type"] == "snapshot_get"])

    end = cluster.now + 12
    while cluster.now < end:
        node.events.append(Arriving(leader.id, cluster.links[away, leader.id], 0))
        cluster.run(0.05)
    assert asked() == 1
    cluster.run(2 * catchup.ASK_AGAIN_SECONDS)
    assert asked() > 1
    cluster.heal()
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.check_writes()


def test_a_chunk_is_asked_for_again_in_the_end_whatever_else_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "ASK_AGAIN_LATEST_SECONDS", 5.0)
    cluster = compacting()
    leader, away = lagging(cluster)
    node = cluster.start(away)
    cluster.thin.add((leader.id, away))
    cluster.run_until(lambda: node.engine.fetching)
    cluster.wire[leader.id, away].clear()
    end = cluster.now + 6
    while cluster.now < end:
        node.events.append(Arriving(leader.id, cluster.links[away, leader.id], 0))
        cluster.run(0.05)
    assert len([s for s in cluster.sent if s.message["type"] == "snapshot_get"]) > 1


def test_a_chunk_that_arrives_while_the_state_is_replaced_is_fetched_again_at_once() -> None:
    """(Pins a bug: it is dropped then, and as long as parts of any large message arrived, it was missed for a minute.
    Writes that needed this manager waited.)"""
    cluster = compacting()
    write_until_cut(cluster, cluster.wait_leader().id, *cluster.nodes)  # its own snapshot is needed, too
    leader, away = lagging(cluster)
    node, state = cluster.start(away), cluster.states[away]
    cluster.thin.add((leader.id, away))
    node.engine.renewal_wanted = True
    node.works = False
    cluster.run_until(lambda: node.engine._replacement.phase is Phase.REBUILDING and node.engine.fetching)
    node.works = True
    cluster.run_until(lambda: node.engine._replacement.phase is Phase.PUBLISHING)
    node.works = False
    cluster.thin.clear()
    cluster.run_until(lambda: not cluster.wire[leader.id, away])
    assert node.engine._replacement.phase is Phase.PUBLISHING
    node.works = True
    end = cluster.now + 2 * catchup.OFFER_SECONDS
    while cluster.now < end:
        node.events.append(Arriving(leader.id, cluster.links[away, leader.id], 0))
        cluster.run(0.05)
    assert len(state.installed) == 2, "its own state in another file, and the leader's"
    cluster.check_writes()


def test_a_fetch_goes_on_where_a_broken_link_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 512)
    cluster = compacting()
    leader, away = lagging(cluster)
    node = cluster.start(away)
    cluster.run_until(lambda: node.engine.fetching and node.engine.fetching[0] >= 1024)
    node.works = False
    cluster.disconnect(leader.id, away)
    cluster.run(2)
    have = cluster.states[away].incoming[1]
    before = len(cluster.sent)
    node.works = True
    cluster.run_until(lambda: cluster.states[away].installed)
    asked = [s.message["offset"] for s in cluster.sent[before:] if s.message["type"] == "snapshot_get"]
    assert asked[0] >= have - 512 > 0
    cluster.check_writes()


def test_a_chunk_that_was_asked_for_over_a_link_that_broke_is_not_sent_over_the_next_one() -> None:
    """At the other end of the next link there may be another directory, which must not get the chunk. (Pins a bug: the
    chunk was sent to the manager that had the link when the worker had read it.)"""
    cluster = compacting()
    leader, away = lagging(cluster)
    leader.works = False
    node = cluster.start(away)
    cluster.run_until(lambda: node.engine.fetching and leader.work)
    cluster.disconnect(leader.id, away)
    cluster.hold((away, leader.id))
    cluster.run_until(lambda: away in leader.engine._roster.links)
    leader.works = True
    cluster.run_until(lambda: not leader.work)
    cluster.turn()
    assert [each for each in cluster.sent if each.message["type"] == "snapshot_chunk"] == []
    cluster.heal()
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.check_writes()


def test_a_fetch_goes_on_after_a_restart_of_the_fetching_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 512)
    cluster = compacting()
    _, away = lagging(cluster)
    node = cluster.start(away)
    cluster.run_until(lambda: node.engine.fetching and node.engine.fetching[0] >= 1024)
    cluster.restart(away)
    before = len(cluster.sent)
    cluster.run_until(lambda: cluster.states[away].installed)
    assert min(s.message["offset"] for s in cluster.sent[before:] if s.message["type"] == "snapshot_get") >= 1024
    cluster.check_writes()


def test_a_snapshot_that_arrived_damaged_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = compacting()
    _, away = lagging(cluster)
    node = cluster.start(away)
    state = cluster.states[away]
    cluster.run_until(lambda: node.engine.fetching)
    node.works = False
    cluster.run(1)
    node.works = True
    cluster.do_work(away)  # the last chunk is there; one bit of the written file rots
    state.received = bytes([state.received[0] ^ 1]) + state.received[1:]
    cluster.run_until(lambda: any("cannot replace the state" in alarm for alarm in node.alarm_texts))
    cluster.run_until(lambda: state.installed, seconds=60)
    assert node.alarm_texts == []
    cluster.check_writes()


@pytest.mark.parametrize("is_lagging", [True, False], ids=["it lags", "its state is wrong"])
def test_a_fetch_of_which_a_power_cut_took_bytes_begins_again_at_once(
    monkeypatch: pytest.MonkeyPatch, is_lagging: bool
) -> None:
    """(Pins a bug: the snapshot was refused for ten seconds, as if the leader had sent wrong bytes. A leader makes one
    offer to a manager with a wrong state, so that manager waited for half a minute more.)"""
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 512)
    cluster = compacting()
    if is_lagging:
        _, id_ = lagging(cluster)
        cluster.start(id_)
    else:
        id_ = with_rotten_snapshots(cluster)
    state = cluster.states[id_]
    cluster.run_until(lambda: (cluster.nodes[id_].engine.fetching or [0])[0] >= 2048, seconds=60)
    if is_lagging:
        cluster.restart(id_)
    else:
        cluster.disconnect(cluster.wait_leader().id, id_)
        cluster.run_until(lambda: not cluster.nodes[id_].engine.fetching)
    state.received = bytes(1024) + state.received[1024:]
    cluster.run_until(lambda: state.installed, seconds=catchup.RETRY_SECONDS)
    assert not any("cannot replace the state" in alarm for alarm in cluster.nodes[id_].alarm_texts)
    cluster.check_writes()


def test_a_manager_that_is_added_late_gets_a_snapshot_and_then_votes() -> None:
    cluster = compacting()
    leader = cluster.wait_leader()
    write_until_cut(cluster, leader.id, *cluster.nodes)
    cluster.start("m4", address="127.0.0.1:7100")
    cluster.change(leader.id, ADD, "m4", "127.0.0.1:7100")
    assert cluster.states["m4"].installed
    assert cluster.members("m4")["m4"], "it counts as a voter only now"
    cluster.check_writes()


def test_the_log_is_not_cut_beyond_the_older_of_two_snapshots() -> None:
    cluster = compacting()
    leader = cluster.wait_leader()
    for number in range(200):
        cluster.write(leader.id, f"{number} {'x' * 200}")
        for node in cluster.nodes.values():
            held = node.snapshots.held
            oldest = min((each.index for each in held), default=1)
            assert node.log.base_index <= (oldest if len(held) > 1 else 1)
    assert all(node.log.base_index > 1 for node in cluster.nodes.values())


def test_a_crash_between_the_logs_reset_and_the_new_state_loses_nothing() -> None:
    """The log begins where the snapshot ends, but the next start finds an older state."""
    cluster = compacting()
    _, away = lagging(cluster)
    node = cluster.start(away)
    before = node.log.base_index
    cluster.run_until(lambda: node.log.base_index > before and node.log.synced_index == node.log.base_index)
    assert not cluster.states[away].installed
    cluster.restart(away)
    cluster.check_writes()


def test_the_odd_one_out_rebuilds_its_state() -> None:
    """One manager's state changed on its disk. The digests in the health reports show which manager it is."""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    odd = cluster.followers()[0]
    cluster.run_until(cluster.converged)
    good = list(cluster.machines[odd].applied)
    cluster.machines[odd].applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: any(f"{odd} is in the minority" in text for text in cluster.nodes[odd].alarm_texts))
    cluster.run_until(lambda: "state-differs" in cluster.nodes[leader.id].alarm_names)
    cluster.run_until(lambda: cluster.states[odd].installed)
    assert cluster.machines[odd].applied[: len(good)] == good
    cluster.run_until(lambda: not any(node.alarm_texts for node in cluster.nodes.values()))
    cluster.check_writes()


def with_a_wrong_state(*, rebuilds: bool) -> tuple[Cluster, Node, str, str]:
    """A cluster whose leader knows that one state is wrong: cluster, leader, the follower with it, the other one."""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    odd, right = cluster.followers()
    cluster.run_until(cluster.converged)
    cluster.nodes[odd].works = rebuilds
    cluster.machines[odd].applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: "state-differs" in leader.alarm_names)
    return cluster, leader, odd, right


def test_a_member_with_the_right_state_is_not_removed_while_another_state_is_wrong() -> None:
    """(Pins a report: the removal left one right and one wrong state, and no majority to tell which is which.)"""
    cluster, leader, odd, right = with_a_wrong_state(rebuilds=False)
    for asked in (leader.id, right):
        answer = cluster.ask(asked, REMOVE, right)
        assert answer.state == REFUSED
        assert answer.text == (
            f"removing {right} would leave 1 of 2 voting members with the right state: {odd} holds a wrong one, which "
            f"it rebuilds by itself; wait until the alarm state-differs is cleared, or remove {odd} instead"
        )
    cluster.change(leader.id, REMOVE, odd)
    assert sorted(cluster.members(leader.id)) == sorted([leader.id, right])
    cluster.check_writes()


def test_the_right_member_is_removed_once_the_wrong_state_was_rebuilt() -> None:
    cluster, leader, odd, right = with_a_wrong_state(rebuilds=True)
    assert cluster.ask(leader.id, REMOVE, right).state == REFUSED
    cluster.run_until(lambda: not any(node.alarm_texts for node in cluster.nodes.values()))
    cluster.change(leader.id, REMOVE, right)
    assert sorted(cluster.members(leader.id)) == sorted([leader.id, odd])


def test_a_leader_with_the_wrong_state_removes_no_member_with_the_right_one() -> None:
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    cluster.run_until(cluster.converged)
    right = cluster.followers()[0]
    health, changes = leader.engine._health, leader.engine._changes
    health._disputes = dict.fromkeys(cluster.followers(), leader.id)  # in the moment before it hands over
    found = changes.request(REMOVE, right, "", leader.engine.applied_index, leader.id)
    assert (found.state, f"{leader.id} holds a wrong one" in found.text) == (REFUSED, True)


def test_one_of_two_members_with_different_states_can_be_removed() -> None:
    """Nothing tells which of the two states is right, so the operator decides."""
    cluster = compacting()
    leader = cluster.wait_leader()
    gone, other = cluster.followers()
    cluster.change(leader.id, REMOVE, gone)
    cluster.write(leader.id, "a", "b")
    cluster.run_until(cluster.converged)
    cluster.machines[other].applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: "state-differs" in leader.alarm_names)
    cluster.change(leader.id, REMOVE, other)
    assert sorted(cluster.members(leader.id)) == [leader.id]


def test_a_dead_member_is_removed_although_the_two_others_differ() -> None:
    """(Pins a report: no majority tells which state is right, so a wait for that would never end.)"""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    dead, other = cluster.followers()
    cluster.run_until(cluster.converged)
    cluster.crash(dead)
    cluster.machines[other].applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: "state-differs" in leader.alarm_names)
    cluster.change(leader.id, REMOVE, dead)
    assert sorted(cluster.members(leader.id)) == sorted([leader.id, other])


def test_a_leader_that_is_the_odd_one_out_gives_up_leadership_first() -> None:
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    leader.machine.applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: cluster.states[leader.id].installed)
    assert cluster.wait_leader().id != leader.id
    cluster.check_writes()


def test_who_led_before_its_state_was_replaced_judges_requests_anew_when_it_leads_again() -> None:
    """A request, or a proposed change, of the time before must not count."""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    changes = leader.engine._changes
    leader.engine._leading._was_leader = False  # it lost leadership in the step in which its state is replaced
    changes._proposed_at, changes._wanted_at = 7, cluster.now
    changes._wanted = object()  # type: ignore[assignment]
    leader.engine._leading.state_replaced()
    assert (changes._wanted, changes._proposed, changes._proposed_at) == (None, None, 0)


def rotten(held: Held) -> Held:
    """A snapshot like one of a state that was wrong already."""
    machine = ListMachine()
    machine.load(held.data)
    machine.applied[0] = "rotten"
    return replace(held, data=machine.dump())


def test_who_is_rotten_in_its_snapshots_too_gets_the_leaders_state() -> None:
    cluster = compacting()
    leader = cluster.wait_leader()
    odd = cluster.followers()[0]
    for number in range(40):
        cluster.write(leader.id, f"{number} {'x' * 200}")
    state = cluster.states[odd]
    cluster.run_until(cluster.converged)
    state.machine.applied[0] = "rotten"
    state.held = [rotten(held) for held in state.held]
    cluster.write(leader.id, "one more")
    cluster.run_until(lambda: state.machine.applied and state.machine.applied[0] != "rotten", seconds=60)
    cluster.check_writes()
    assert any(s.message["type"] == "snapshot_wanted" for s in cluster.sent)
    assert not any(b"rotten" in held.data for held in state.held)


def with_rotten_snapshots(cluster: Cluster) -> str:
    """Make the state and the snapshots of a follower wrong; its log stays right."""
    leader = cluster.wait_leader()
    odd = cluster.followers()[0]
    for number in range(40):
        cluster.write(leader.id, f"{number} {'x' * 200}")
    cluster.run_until(cluster.converged)
    state = cluster.states[odd]
    state.machine.applied[0] = "rotten"
    state.held = [rotten(held) for held in state.held]
    cluster.write(leader.id, "one more")
    return odd


def test_a_snapshot_is_kept_for_a_manager_with_a_wrong_state_until_it_has_fetched_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its log has all entries of the snapshot. (Pins a bug: so the leader took it for a manager that has the snapshot,
    and dropped the snapshot as soon as it had taken two others. Under load the manager began to fetch again and again,
    and its state was never replaced.)"""
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 256)
    cluster = compacting()
    odd = with_rotten_snapshots(cluster)
    leader, node, state = cluster.wait_leader(), cluster.nodes[odd], cluster.states[odd]
    cluster.run_until(lambda: node.engine.fetching and node.engine.fetching[0] >= 1024, seconds=60)
    fetched = leader.snapshots.held[0]
    node.works = False
    for number in range(200):
        cluster.write(leader.id, f"{number} while its disk is slow {'x' * 200}")
        if sum(held.index > fetched.index for held in leader.snapshots.held) == 2:
            break
    before = len(cluster.sent)
    node.works = True
    cluster.run_until(lambda: state.machine.applied[0] != "rotten")
    assert not [s for s in cluster.sent[before:] if s.message["type"] == "snapshot_gone"]
    cluster.run(catchup.PINNED_SECONDS + catchup.OFFER_SECONDS)
    assert not leader.engine._catchup.is_busy
    cluster.check_writes()


def test_a_manager_with_a_wrong_state_fetches_on_after_its_link_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a bug: the leader heard it once in half a minute only, and then began with another snapshot.)"""
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 256)
    cluster = compacting()
    odd = with_rotten_snapshots(cluster)
    leader, node, state = cluster.wait_leader(), cluster.nodes[odd], cluster.states[odd]
    cluster.run_until(lambda: node.engine.fetching and node.engine.fetching[0] >= 1024, seconds=60)
    cluster.disconnect(leader.id, odd)
    cluster.run_until(lambda: not node.engine.fetching)
    since, before = cluster.now, len(cluster.sent)
    cluster.run_until(lambda: state.machine.applied[0] != "rotten", seconds=60)
    assert cluster.now - since < catchup.RETRY_SECONDS + 5
    assert min(s.message["offset"] for s in cluster.sent[before:] if s.message["type"] == "snapshot_get") >= 1024
    cluster.check_writes()


def test_a_follower_that_was_once_offered_a_snapshot_in_vain_keeps_no_snapshot_after_its_next_fetch() -> None:
    """It said that its state is wrong, and was mended by other means. (Pins a fault: the leader went on to take it for
    a follower whose log shows nothing, and kept the snapshot of its next fetch, and the log, for a minute.)"""
    cluster = compacting()
    leader, away = cluster.wait_leader(), cluster.followers()[0]
    write_until_cut(cluster, leader.id, leader.id)
    leader.engine._catchup.on_snapshot_wanted(away, 1)
    cluster.run_until(lambda: any(s.message["type"] == "snapshot_offer" for s in cluster.sent))
    cluster.crash(away)
    write_until_cut(cluster, leader.id, *cluster.nodes)
    cluster.start(away)
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.run_until(lambda: not leader.engine._catchup._pins, 3.0)


def test_a_snapshot_is_kept_for_a_follower_that_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that it had were lost. (Pins a fault: it counted as one that asks for no new chunk until it had come as
    far as before. A large snapshot was dropped before that.) It may begin again a few times only."""
    monkeypatch.setattr(catchup, "CHUNK_BYTES", 256)
    monkeypatch.setattr(catchup, "PINNED_SECONDS", 3.0)
    cluster = compacting()
    leader, away = lagging(cluster)
    for beginning in range(catchup.BEGINNINGS_MAX + 1):
        node = cluster.start(away)
        node.works = beginning == 0
        if beginning == 0:
            cluster.run_until(lambda: fetched(cluster, away) >= 2048)
        else:
            cluster.run_until(lambda: fetched(cluster, away) == 0)
            for _ in range(3):
                cluster.run_until(lambda: cluster.nodes[away].work)
                cluster.run(2.0)
                is_kept = away in leader.engine._catchup._pins
                assert is_kept is (beginning < catchup.BEGINNINGS_MAX)
                cluster.do_work(away)
        cluster.crash(away)
        cluster.states[away].drop_incoming()


def fetched(cluster: Cluster, id_: str) -> int:
    """The bytes of a snapshot that a manager has fetched; -1: it fetches none."""
    found = cluster.nodes[id_].engine.fetching
    return -1 if found is None else found[0]


def test_a_snapshot_is_verified_again_only_for_a_follower_that_begins_again() -> None:
    """(Pins a cost: it was verified once more for each further follower.)"""
    cluster = compacting()
    leader, (one, two) = cluster.wait_leader(), cluster.followers()
    write_until_cut(cluster, leader.id, leader.id)
    serving, held = leader.engine._catchup, leader.snapshots.held[0]
    for follower, verified in ((one, 0), (two, 0), (one, 1)):
        serving._offered[follower] = cluster.now
        serving.on_snapshot_get(follower, SnapshotGet(sha256=held.sha256, offset=0))
        assert leader.snapshots.verified_again == verified
        cluster.run(0.1)


def test_a_log_batch_that_ends_while_a_state_is_published_does_not_publish_it_again() -> None:
    """(Pins a bug: the state in use was retired as if it were the old state, and its file was removed.)"""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    cluster.run_until(cluster.converged)
    odd = cluster.followers()[0]
    node, state = cluster.nodes[odd], cluster.states[odd]
    state.machine.applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: node.engine._replacement.incoming is not None)
    node.works, node.disk_seconds = False, None
    cluster.submit(leader.id, "while its disk is slow")
    cluster.run_until(lambda: node.batches or node.engine._replacement.is_swapping)
    cluster.run_until(lambda: node.engine._replacement.is_swapping)
    while node.batches:
        cluster.complete_sync(odd)
        cluster.turn()
    node.works, node.disk_seconds = True, 0.0
    cluster.run_until(lambda: state.installed)
    cluster.check_writes()
    assert len(state.installed) == 1


@pytest.mark.slow
def test_a_long_publication_under_load_leaves_nobody_behind() -> None:
    """(Pins a bug: messages of this time were dropped on a link that stayed up. So the leader's window for that
    follower stayed full, and the leader sent it nothing any more, not even heartbeats.)"""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    cluster.run_until(cluster.converged)
    odd = cluster.followers()[0]
    node, state = cluster.nodes[odd], cluster.states[odd]
    state.machine.applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: node.engine._replacement.is_swapping)
    node.works = False
    links = dict(cluster.links)
    for number in range(60):
        cluster.write(leader.id, f"{number} {'x' * 100_000}")
    node.works = True
    cluster.run_until(lambda: node.log.last_index == leader.log.last_index, seconds=60)
    assert {pair: cluster.links[pair] for pair in links} == links, "a new connection would have mended it"
    cluster.check_writes()


def test_a_state_whose_snapshot_does_not_prove_itself_is_rebuilt() -> None:
    """A record has rotted, but the incremental digest still equals that of the other managers. The copy shows it."""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a")
    bad = cluster.followers()[0]
    state = cluster.states[bad]

    def rotten_copy() -> Held:
        del state.take  # type: ignore[method-assign]
        raise SnapshotInvalid("taking.part", "its records have another digest")

    state.take = lambda *, quorum: rotten_copy  # type: ignore[method-assign,assignment]
    for number in range(40):
        cluster.write(leader.id, f"{number} {'x' * 200}")
    cluster.run_until(lambda: state.installed)
    cluster.check_writes()


def test_a_verdict_on_the_old_state_does_not_strike_the_state_that_replaces_it() -> None:
    """A copy of the old state fails its verification while the new state is published. (Pins a bug: the new state was
    taken for wrong, and was replaced too.)"""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    cluster.run_until(cluster.converged)
    odd = cluster.followers()[0]
    node, state = cluster.nodes[odd], cluster.states[odd]
    node.engine._catchup._take()
    cluster.step(odd)
    taking = node.work.pop()
    state.machine.applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: node.engine._replacement.is_swapping)
    node.works = False
    node.events.append(Worked(taking, None, SnapshotInvalid("taking.part", "its records have another digest")))
    cluster.step(odd)
    node.works = True
    cluster.run_until(lambda: state.installed)
    cluster.run(5)
    assert len(state.installed) == 1
    cluster.check_writes()


def test_a_snapshot_that_was_under_way_when_the_state_was_replaced_is_not_held() -> None:
    """It may be a snapshot of the wrong state."""
    cluster = compacting()
    leader = cluster.wait_leader()
    cluster.write(leader.id, "a", "b")
    cluster.run_until(cluster.converged)
    odd = cluster.followers()[0]
    node, state = cluster.nodes[odd], cluster.states[odd]
    node.engine._catchup._take()
    cluster.step(odd)
    taking = node.work.pop()
    wrong = rotten(taking.job())
    state.machine.applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: state.installed)
    node.events.append(Worked(taking, wrong))
    cluster.run(1)
    assert wrong not in state.held
    cluster.check_writes()


def test_a_leader_whose_snapshot_is_too_old_for_who_needs_it_takes_another() -> None:
    """(Pins a bug: the same file was fetched for ever.)"""
    cluster = compacting()
    leader = cluster.wait_leader()
    for number in range(40):
        cluster.write(leader.id, f"{number} {'x' * 200}")
    cluster.run_until(cluster.converged)
    newest = leader.snapshots.held[0].index
    odd = cluster.followers()[0]
    leader.engine._catchup.on_snapshot_wanted(odd, newest + 1)
    cluster.run_until(lambda: leader.snapshots.held[0].index > newest)


def test_a_job_that_fails_in_no_way_that_was_foreseen_is_an_alarm() -> None:
    """Too many readers, or no more threads: a snapshot can wait, and the manager goes on."""
    cluster = compacting()
    leader = cluster.wait_leader()
    state = cluster.states[leader.id]

    def job() -> Held:
        del state.take  # type: ignore[method-assign]
        raise RuntimeError("can't start new thread")

    state.take = lambda *, quorum: job  # type: ignore[method-assign,assignment]
    for number in range(60):
        cluster.write(leader.id, f"{number} {'x' * 200}")
    assert leader.engine.failure is None
    cluster.run_until(lambda: state.held, seconds=30)


def test_two_managers_that_disagree_raise_an_alarm_and_judge_nobody() -> None:
    """Without a majority for one state there is no verdict."""
    cluster = Cluster(["m1", "m2"])
    leader = cluster.wait_ready()
    cluster.write(leader.id, "a")
    other = cluster.followers()[0]
    cluster.run_until(cluster.converged)
    cluster.machines[other].applied[0] = "rotten"
    cluster.write(leader.id, "b")
    cluster.run(5)
    assert not cluster.states[other].installed
    assert all(any("not known" in alarm for alarm in node.alarm_texts) for node in cluster.nodes.values())
