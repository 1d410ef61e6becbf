"""The promise: managers agree whether there is enough space. A manager that had no space left goes on by itself.
Nothing that waits for space grows without bound.

Engines in one thread (tests/engine_harness.py). Not here: measuring a disk (tests/unit/test_space.py), real full disks
(tests/cluster/test_full_disk.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_harness import Cluster, Outgoing
from tests.list_machine import ListSnapshots
from warren_raft.disk.shortage import storage_full
from warren_raft.errors import StorageFull, Unavailable
from warren_raft.raft import submit
from warren_raft.raft.replacement import Phase
from warren_raft.raft.submit import Proposal, Route, Submitter

FULL = OSError(errno.ENOSPC, "No space left on device")


def put(cluster: Cluster, id_: str, text: str, seconds: float) -> None:
    """A write that needs space."""
    proposal = cluster.submit(id_, text, seconds)
    proposal.needs_space = True


# Which managers are low on space -------------------------------------------------------------------------------------


def test_a_majority_low_on_space_is_known_to_everybody_and_one_alone_is_no_matter() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    engines = {id_: node.engine for id_, node in cluster.nodes.items()}
    engines["m1"].low_space = True
    cluster.run(3)
    assert not any(engine.is_full for engine in engines.values())
    engines["m2"].low_space = True
    cluster.run(3)
    assert all(engine.is_full for engine in engines.values())
    assert {id_: engine.low_members for id_, engine in engines.items()} == {key: ["m1", "m2"] for key in engines}
    engines["m1"].low_space = False
    cluster.run(3)
    assert not any(engine.is_full for engine in engines.values())


def test_disks_that_refuse_count_as_low_and_where_nobody_can_lead_that_is_known_too() -> None:
    """The measured free space may be enough (if the file system has a quota), or be measured too late."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    full = [leader.id, cluster.followers()[0]]
    for id_ in full:
        cluster.nodes[id_].disk_error = FULL
    cluster.submit(leader.id, "w", seconds=60)
    cluster.run(10)
    assert all(node.engine.is_full for node in cluster.nodes.values())
    assert cluster.nodes[full[1]].engine.low_members == sorted(full)
    for id_ in full:
        cluster.nodes[id_].disk_error = None
    cluster.run_until(lambda: "w" in cluster.acknowledged)
    cluster.run(3)
    assert not any(node.engine.is_full for node in cluster.nodes.values())
    cluster.check_writes()


# Alarms --------------------------------------------------------------------------------------------------------------


def test_the_alarm_of_a_full_disk_is_one_and_ends_with_it() -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = FULL
    cluster.submit("m1", "w", seconds=60)
    cluster.run(10)
    assert len(node.alarm_texts) == 1
    assert node.log.directory in node.alarm_texts[0]
    node.disk_error = None
    cluster.run_until(lambda: "w" in cluster.acknowledged)
    assert node.alarm_texts == []


LACKS = {
    errno.EMFILE: "this process has no file descriptor left",
    errno.ENFILE: "this machine has no file descriptor left",
    errno.ENOMEM: "there is no memory left",
    errno.EFBIG: "a file would become larger than this process, or its file system, allows",
}


@pytest.mark.parametrize("code", LACKS)
def test_whatever_else_the_log_lacks_is_waited_for_and_said_by_its_name(code: int) -> None:
    """(Pins a bug: descriptors that ran out for a moment stopped the manager for good.)"""
    cluster = Cluster()
    leader = cluster.wait_ready()
    leader.disk_error = OSError(code, "as the system says it")
    cluster.submit(leader.id, "waits", seconds=60)
    put(cluster, leader.id, "late", 1)
    cluster.run_until(lambda: cluster.wait_leader().id != leader.id)
    cluster.run(5)
    assert leader.alarm_names == ["log-blocked"]
    assert leader.alarm_texts[0].startswith(f"{leader.log.directory}: the log cannot be written: {LACKS[code]}; ")
    assert "as the system says it" in leader.alarm_texts[0]
    assert leader.engine.failure is None
    leader.disk_error = None
    cluster.run_until(lambda: "waits" in cluster.acknowledged)
    cluster.run(3)
    assert leader.alarm_names == []
    cluster.write(leader.id, "after")
    cluster.check_writes()


def test_a_write_that_waited_in_vain_says_what_was_lacking() -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = OSError(errno.EMFILE, "Too many open files")
    cluster.submit("m1", "w", seconds=1)
    cluster.run(2)
    error = cluster.failed["w"]
    assert isinstance(error, Unavailable)
    assert error.reason == "this process has no file descriptor left, until the deadline"


def test_one_alarm_at_a_time_says_why_the_log_waits() -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = FULL
    cluster.submit("m1", "w", seconds=60)
    cluster.run(3)
    assert node.alarm_names == ["log-no-space"]
    node.disk_error = OSError(errno.EMFILE, "Too many open files")
    cluster.run(3)
    assert node.alarm_names == ["log-blocked"]


@pytest.mark.parametrize("code", LACKS)
def test_whatever_else_the_state_lacks_is_waited_for_and_said_by_its_name(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()

    def apply(*_: Any) -> Any:
        raise storage_full("1.mdb: the state cannot be written", code)

    monkeypatch.setattr(node.machine, "apply", apply)
    cluster.submit("m1", "w", seconds=60)
    cluster.run(10)
    assert node.alarm_names == ["state-blocked"]
    assert node.alarm_texts[0].startswith(f"the state cannot be written: {LACKS[code]}; ")
    monkeypatch.undo()
    cluster.run_until(lambda: "w" in cluster.acknowledged)
    assert node.alarm_names == []


def with_a_follower_that_needs_a_snapshot() -> tuple[Cluster, str]:
    """A cluster and the id of a follower that does not run; the others have compacted their logs meanwhile."""
    cluster = Cluster(snapshot_after_bytes=2000)
    leader = cluster.wait_ready()
    away = cluster.followers()[0]
    cluster.crash(away)
    while leader.log.base_index < 10:
        cluster.write(leader.id, f"{cluster.now} {'x' * 200}")
    return cluster, away


@pytest.mark.slow
@pytest.mark.parametrize("job", ["receive", "open_incoming", "publish"])
def test_a_snapshot_is_fetched_and_used_once_there_are_descriptors_again(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, away = with_a_follower_that_needs_a_snapshot()
    refused = refusing(job, monkeypatch, OSError(errno.EMFILE, "Too many open files"))
    node = cluster.start(away)
    cluster.run(60)
    assert refused[0] > 2
    assert node.engine.failure is None
    assert not cluster.states[away].installed
    refused[0] = -1
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.run_until(lambda: node.alarm_texts == [])
    cluster.check_writes()


def test_a_state_that_is_wrong_is_rebuilt_from_our_own_snapshot_once_there_are_descriptors_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(Pins a bug: after EMFILE, our own snapshot was taken for a damaged one.)"""
    cluster = Cluster(snapshot_after_bytes=2000)
    leader = cluster.wait_ready()
    for number in range(40):
        cluster.write(leader.id, f"{number} {'x' * 200}")
    odd = cluster.followers()[0]
    cluster.run_until(cluster.converged)
    refused = refusing("rebuild", monkeypatch, OSError(errno.EMFILE, "Too many open files"))
    cluster.machines[odd].applied[0] = "rotten"
    cluster.write(leader.id, "c")
    cluster.run_until(lambda: refused[0] > 1)
    node = cluster.nodes[odd]
    assert any("cannot be rebuilt yet" in text and "Too many open files" in text for text in node.alarm_texts)
    assert node.engine._replacement.phase is Phase.DELAYED
    refused[0] = -1
    cluster.run_until(lambda: cluster.states[odd].installed)
    cluster.run_until(lambda: node.alarm_texts == [])
    cluster.check_writes()


def test_a_state_without_room_is_one_alarm_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    figures = iter(range(1000))

    def apply(*_: Any) -> Any:
        raise StorageFull(f"{next(figures)} bytes are free")

    monkeypatch.setattr(node.machine, "apply", apply)
    cluster.submit("m1", "w", seconds=60)
    cluster.run(10)
    assert len(node.alarm_texts) == 1
    assert node.engine.is_full
    monkeypatch.undo()
    cluster.run_until(lambda: "w" in cluster.acknowledged)
    assert node.alarm_texts == []
    cluster.run_until(lambda: not node.engine.is_full, 0.3)


def test_a_membership_change_that_came_through_although_the_disk_said_it_was_full_is_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commit of the change raises StorageFull and is on disk all the same. A manager that went on with the list
    before it would apply the next change to that list, and its state would diverge."""
    cluster = Cluster()
    leader = cluster.wait_ready().id
    follower = cluster.nodes[cluster.followers()[0]]
    real = follower.machine.apply_membership

    def apply(*arguments: Any) -> None:
        monkeypatch.undo()
        real(*arguments)
        raise StorageFull("no space left")

    monkeypatch.setattr(follower.machine, "apply_membership", apply)
    cluster.start("m4", members={**cluster.initial, "m4": "127.0.0.1:7999"}, address="127.0.0.1:7999")
    cluster.change(leader, "add", "m4", "127.0.0.1:7999")
    cluster.write(leader, "w")
    cluster.check_writes()
    assert cluster.members(follower.id) == cluster.members(leader) == dict.fromkeys(["m1", "m2", "m3", "m4"], True)
    assert follower.machine.membership == cluster.nodes[leader].machine.membership


def refusing(job: str, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[int]:
    """Each job of this kind finds no space left, or fails with `error`, until [0] is set to -1."""
    refused = [0]
    real: Callable[..., Any] = getattr(ListSnapshots, job)

    def make(self: ListSnapshots, *arguments: Any, **named: Any) -> Callable[[], Any]:
        def run() -> Any:
            if refused[0] < 0:
                return real(self, *arguments, **named)()
            refused[0] += 1
            raise error or StorageFull(f"{refused[0]} bytes are free")

        return run

    monkeypatch.setattr(ListSnapshots, job, make)
    return refused


def test_a_snapshot_without_room_is_tried_again_and_is_one_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(["m1"], snapshot_after_bytes=1000)
    node = cluster.wait_ready()
    refused = refusing("take", monkeypatch)
    for number in range(20):
        cluster.write("m1", f"{number}{'x' * 100}")
    cluster.run(60)
    assert refused[0] > 2
    assert len(node.alarm_texts) == 1
    monkeypatch.setattr(ListSnapshots, "state_bytes", lambda _: 1 << 60)  # it would not begin now, but it is still due
    refused[0] = -1
    cluster.run_until(lambda: cluster.states["m1"].held)
    assert node.alarm_texts == []
    cluster.check_writes()


@pytest.mark.slow
@pytest.mark.parametrize("job", ["receive", "open_incoming", "publish"])
def test_a_fetched_snapshot_without_room_is_tried_again_and_is_one_alarm(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, away = with_a_follower_that_needs_a_snapshot()
    refused = refusing(job, monkeypatch)
    node = cluster.start(away)
    cluster.run(60)
    assert refused[0] > 2
    cause = "state-no-space" if job == "publish" else "snapshot-not-installed"
    assert sorted(node.alarm_names) == sorted([cause, "member-behind"]), node.alarm_texts
    assert not cluster.states[away].installed
    cluster.write(cluster.wait_leader().id, "the others go on")
    refused[0] = -1
    cluster.run_until(lambda: cluster.states[away].installed)
    cluster.check_writes()
    cluster.run(2)
    assert node.alarm_texts == []


# Writes that meet a full disk ----------------------------------------------------------------------------------------


def test_a_create_that_was_never_proposed_ends_with_storage_full_and_others_with_unavailable() -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = FULL
    for number in range(5):  # these are in the log already, and fill the space for entries on their way
        cluster.submit("m1", f"before {number}", seconds=60)
        cluster.run(0.1)
    assert node.engine.shortage
    put(cluster, "m1", "create", 1)
    cluster.submit("m1", "delete", seconds=1)
    cluster.run(2)
    assert isinstance(cluster.failed["create"], StorageFull)
    delete = cluster.failed["delete"]
    assert isinstance(delete, Unavailable)
    assert not delete.maybe_applied
    node.disk_error = None
    cluster.run_until(lambda: len(cluster.acknowledged) == 5)
    cluster.check_writes()
    assert sorted(node.machine.applied) == [f"before {number}" for number in range(5)]


def test_a_create_in_the_log_may_have_been_applied_whatever_the_disk_says() -> None:
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = FULL
    put(cluster, "m1", "create", 1)
    cluster.run(2)
    error = cluster.failed["create"]
    assert isinstance(error, Unavailable)
    assert error.maybe_applied
    node.disk_error = None
    cluster.run_until(lambda: node.machine.applied == ["create"])


# The leader's queue --------------------------------------------------------------------------------------------------


def test_a_leaders_own_queue_keeps_nothing_that_nobody_waits_for() -> None:
    """(Pins a bug: the disk of a leader was full. Each write that timed out stayed in its queue, and was applied in the
    end, long after its caller had been told that it was not.)"""
    cluster = Cluster(["m1"])
    node = cluster.wait_ready()
    node.disk_error = FULL
    for number in range(500):
        cluster.submit("m1", f"w{number}", seconds=0.2)
        cluster.run(0.02)
    assert len(node.engine._submitter.queue) < 50
    cluster.run(1)
    surely_not = {text for text, error in cluster.failed.items() if not getattr(error, "maybe_applied", True)}
    assert len(surely_not) > 400
    node.disk_error = None
    cluster.write("m1", "after")
    cluster.check_writes()
    assert not surely_not & set(node.machine.applied)


def test_a_leaders_own_queue_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that do not fit wait at the managers that sent them, in their order."""
    monkeypatch.setattr(submit, "QUEUE_BYTES", 200)
    submitter = Submitter(Outgoing())
    made = [Proposal(1, n, bytes([n]) * 10, 60.0, lambda _: None) for n in range(100)]
    submitter.submit(made)
    submitter.set_route(Route("m1", 1, 0))
    taken: list[bytes] = []
    while len(taken) < len(made):
        submitter.flush(0.0)
        assert 0 < submitter._queue_bytes <= 210
        taken += submitter.take(commands_max=7, bytes_max=1000)[0]
    assert taken == [proposal.data for proposal in made]


def test_what_has_ended_is_passed_over_and_is_not_said_to_be_sent() -> None:
    ended: list[Proposal] = []
    submitter = Submitter(Outgoing())
    made = [Proposal(1, n, bytes([n]) * 10, float(n), ended.append) for n in (1, 2, 3)]
    submitter.submit(made)
    submitter.set_route(Route("m1", 1, 0))
    submitter.flush(0.0)
    submitter.expire(1.0, "late")
    commands, _ = submitter.take(commands_max=1, bytes_max=100)
    assert commands == [made[1].data]
    assert [proposal.sent for proposal in made] == [False, True, False]
    submitter.take(commands_max=9, bytes_max=100)
    assert submitter._queue_bytes == 0


def test_entries_that_wait_are_applied_together_and_one_by_one_while_the_state_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An entry that does not fit must not hold up an earlier one that does."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    node = cluster.nodes[cluster.followers()[0]]
    tried: list[int] = []
    machine_apply_all = node.machine.apply_all

    def apply_all(index: int, entries: Any) -> Any:
        tried.extend([len(entries)] if entries else [])
        if space < index:
            raise storage_full("1.mdb: no space left", errno.ENOSPC)
        return machine_apply_all(index, entries)

    monkeypatch.setattr(node.machine, "apply_all", apply_all)
    space = 2**60
    with monkeypatch.context() as patch:
        patch.setattr(node.engine._applying, "apply", lambda: False)
        for number in range(5):
            cluster.write(leader.id, f"first {number}")
        cluster.run(1)
        assert tried == []
    cluster.run_until(lambda: node.machine.applied_index == leader.machine.applied_index)
    assert max(tried) > 1
    space = 0
    for number in range(5):
        cluster.write(leader.id, f"second {number}")
    cluster.run(3)
    tried.clear()
    space = node.machine.applied_index + 2
    cluster.run(2)
    assert node.machine.applied_index == space
    assert set(tried) == {1}
    space = 2**60
    cluster.run_until(cluster.converged)
    cluster.check_writes()
