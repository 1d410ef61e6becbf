"""PySyncObj's holes. Each is a story that happens twice: to the stock library, with its damage, and to our engines.

The schedules are as equal as the two allow. On stock the test asserts the damage, so that the test can fail. On ours it
asserts that nothing bad happens and that the cluster converges. docs/pysyncobj-holes.md tells each story in full, with
the rule that closes the hole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine_harness import Cluster, send_raw
from tests.list_machine import ListMachine, Outcome
from tests.stock_pysyncobj import SUCCESS, StockCluster, StockNode, make_newer_machine_class
from tests.unit.raft.worlds import OurWorld, StockWorld, World, acknowledges, is_reset
from warren_raft.errors import InvariantViolation
from warren_raft.raft import core, entries, proposing
from warren_raft.raft.changes import DONE, PENDING, WAIT
from warren_raft.raft.membership import ADD
from warren_raft.raft.submit import Proposal

THREE = ("m1", "m2", "m3")
FIVE = ("m1", "m2", "m3", "m4", "m5")

MakeWorld = Callable[..., World]


@pytest.fixture(params=["stock", "ours"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    """Makes the world of this run. Our engines send each write in an entry of its own, and as many entries at once as
    stock does, so that the schedules can be equal."""

    def make(ids: tuple[str, ...] = THREE, message_bytes: int = 65536) -> World:
        if request.param == "stock":
            return StockWorld(ids, message_bytes)
        monkeypatch.setattr(core, "MESSAGE_BYTES", message_bytes)
        monkeypatch.setattr(entries, "COMMANDS_PER_ENTRY", 1)
        monkeypatch.setattr(proposing, "ENTRIES_IN_FLIGHT", 1000)
        return OurWorld(ids)

    return make


def heal(world: World, *ids: str) -> None:
    """Connect all these managers, and run enough rounds for the cluster to converge if it can."""
    world.connect(*ids)
    world.rounds(12, *ids)


def lost(world: World, *ids: str) -> set[str]:
    """Acknowledged writes that at least one of these managers does not have in its state."""
    return {text for text in world.acknowledged for id_ in ids if text not in world.applied(id_)}


def entries_on_wire(world: World, a: str, b: str) -> list[int]:
    """Indexes of the entries that are on their way."""
    return [entry[1] for message in world.on_wire(a, b) for entry in message.get("entries", ())]


def assert_converged(world: World, *ids: str) -> None:
    assert lost(world, *ids) == set()
    assert all(world.applied(id_) == world.applied(ids[0]) for id_ in ids)
    assert all(world.last_index(id_) == world.last_index(ids[0]) for id_ in ids)


# 2: a follower truncates entries that match --------------------------------------------------------------------------


def test_2a_a_stale_reset_makes_the_leader_send_again_and_the_follower_cut_what_it_acknowledged(
    world: MakeWorld,
) -> None:
    """Two messages of a new leader do not match at m2, which was away. m2 answers each with a reset. The leader acts on
    the second reset when m2 has all entries already, and starts over in several messages. m2 truncates its log at the
    first of them, and with it the entries that it has acknowledged."""
    w = world(message_bytes=65536)
    w.disconnect_from_all("m2")
    for number in range(4):
        w.submit("m1", f"w{number}" + "x" * 30_000)
    w.rounds(4, "m1", "m3")
    w.restart("m1")
    w.connect("m1", "m2")
    w.connect("m1", "m3")
    w.elect("m1", "m3")  # a new leader supposes that all members have its entries
    w.tick("m1")
    while w.on_wire("m1", "m2"):
        w.deliver("m1", "m2", 1)  # one by one: our follower answers at once all messages that wait for one sync
    assert len([message for message in w.on_wire("m2", "m1") if is_reset(message)]) >= 2
    w.deliver_until("m2", "m1", is_reset)
    w.disconnect_from_all("m3")
    w.submit("m1", "new")
    w.tick("m1")
    w.tick("m1")
    w.deliver("m1", "m2")
    assert "new" in w.log_of("m2")
    w.deliver_until("m2", "m1", is_reset)  # the stale reset is before m2's acknowledgements on the wire
    w.tick("m1")
    again = entries_on_wire(w, "m1", "m2")
    w.deliver("m2", "m1")
    w.tick("m1")
    assert "new" in w.acknowledged
    if w.on_wire("m1", "m2"):
        w.deliver("m1", "m2", 1)
    w.crash("m1")
    w.connect("m2", "m3")
    w.elect_whoever_can("m3", "m2")
    w.rounds(6, "m2", "m3")
    if w.is_stock:
        assert again != []
        assert "new" in lost(w, "m2") & lost(w, "m3")
    else:
        assert again == []
        w.restart("m1")
        heal(w, *THREE)
        assert_converged(w, *THREE)


def test_2b_a_success_rewinds_the_leader_and_a_healthy_follower_loses_what_it_acknowledged(world: MakeWorld) -> None:
    """There is no fault before the leader dies. After the first of several acknowledgements the leader sends the
    entries behind it again, commits with the other acknowledgements, and dies when the first repeated message has
    arrived."""
    w = world()
    w.disconnect_from_all("m3")
    start = w.last_index("m1")
    for number in range(6):
        w.submit("m1", f"w{number}" + "y" * 40_000)
    w.tick("m1")
    w.tick("m1")
    w.deliver("m1", "m2")
    w.deliver_until("m2", "m1", acknowledges(start + 1))
    w.tick("m1")
    again = entries_on_wire(w, "m1", "m2")
    w.deliver("m2", "m1")
    w.tick("m1")
    assert len(w.acknowledged) == 6
    w.deliver("m1", "m2", 1)
    w.crash("m1")
    w.connect("m2", "m3")
    w.elect("m2", "m3")
    w.submit("m2", "after")
    w.rounds(6, "m2", "m3")
    if w.is_stock:
        assert again != [], "entries that are on their way already"
        assert lost(w, "m2", "m3") != set()
    else:
        assert again == []
        w.restart("m1")
        heal(w, *THREE)
        assert_converged(w, *THREE)


def test_2c_a_heartbeat_of_a_superseded_link_cuts_applied_entries_and_the_states_differ_for_ever(
    world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat was on its way when the connection was replaced, and arrives after four writes were applied. After
    the next election other entries are at their indexes. m2 never applies these, because it counts them as applied."""
    w = world()
    w.disconnect_from_all("m3")
    w.tick("m1")
    w.disconnect("m1", "m2", keep=True)
    w.connect("m1", "m2")
    for number in range(4):
        w.submit("m1", f"w{number}")
    w.rounds(4, "m1", "m2")
    assert len(w.acknowledged) == 4
    with caplog.at_level(logging.CRITICAL):
        w.deliver_late("m1", "m2", 1)
    w.crash("m1")
    w.connect("m2", "m3")
    w.elect("m2", "m3")
    for number in range(8):
        w.submit("m2", f"n{number}")
    w.rounds(6, "m2", "m3")
    if w.is_stock:
        assert "truncating already-applied log entries" in caplog.text
        assert w.log_of("m2") == w.log_of("m3")
        assert w.applied("m2") != w.applied("m3")
    else:
        assert isinstance(w, OurWorld)
        stats = w.cluster.nodes["m2"].engine.guard_stats
        assert stats["message of a superseded connection dropped"] == 1
        w.restart("m1")
        heal(w, *THREE)
        assert_converged(w, *THREE)


@pytest.mark.parametrize("repeated", ["a heartbeat", "the first entry"])
def test_2_a_repeated_message_of_the_present_link_cuts_nothing_either(world: MakeWorld, repeated: str) -> None:
    """The same without a reconnection. A slow message is delivered once more, behind later entries. m2 has acknowledged
    these entries, and the leader does not know that yet."""
    w = world()
    w.disconnect_from_all("m3")
    w.tick("m1")
    messages = w.on_wire("m1", "m2")
    for number in range(4):
        w.submit("m1", f"w{number}")
        w.tick("m1")
        w.tick("m1")
        messages += w.deliver("m1", "m2")
    wanted = 1 if repeated == "the first entry" else 0
    message = next(m for m in messages if m["type"] == "append_entries" and len(m["entries"]) == wanted)
    assert w.log_of("m2") == ["w0", "w1", "w2", "w3"]
    if isinstance(w, StockWorld):
        w.cluster.send("m1", "m2", message)
        w.deliver("m1", "m2")
        assert w.log_of("m2") == ["w0"][:wanted]
    else:
        assert isinstance(w, OurWorld)
        send_raw(w.cluster.nodes["m1"], "m2", message)
        w.tick("m1")
        w.deliver("m1", "m2")
        assert w.log_of("m2") == ["w0", "w1", "w2", "w3"]
        assert w.cluster.nodes["m2"].engine.guard_stats["truncation of matching entries avoided"] >= 1


# 3: replies carry no term --------------------------------------------------------------------------------------------


def test_3_acknowledgements_of_an_earlier_term_count_for_entries_the_follower_never_had(world: MakeWorld) -> None:
    """m5's answers to m1 are slow. m1 is deposed, the end of its log is overwritten, and it is elected again, without
    m5. It has new writes at the same indexes when the old answers arrive. m1 believes that m5 has these writes, and
    takes two copies of five for a majority."""
    w = world(FIVE)
    for other in ("m2", "m3", "m4"):
        w.disconnect("m1", other)
    for number in range(6):
        w.submit("m1", f"old{number}")
    w.tick("m1")
    w.tick("m1")
    w.deliver("m1", "m5")
    assert len(w.log_of("m5")) == 6
    for other in ("m2", "m3", "m4"):
        w.disconnect("m5", other)
    w.elect("m2", "m3", "m4")
    w.rounds(2, "m2", "m3", "m4")
    w.connect("m1", "m2", "m3", "m4")
    w.rounds(12, "m1", "m2", "m3", "m4")
    assert w.log_of("m1") == []
    w.elect("m1", "m2", "m3", "m4")
    w.rounds(2, "m1", "m2", "m3", "m4")
    for one in ("m1", "m2"):
        for other in ("m3", "m4"):
            w.disconnect(one, other)
    new: list[str] = []
    while w.last_index("m1") < w.last_index("m5"):
        new.append(f"NEW{len(new)}")
        w.submit("m1", new[-1])
        w.tick("m1")
    w.tick("m1")
    w.flow("m1", "m2")
    assert [id_ for id_ in FIVE if new[0] in w.log_of(id_)] == ["m1", "m2"]
    assert w.acknowledged == set()
    assert w.deliver("m5", "m1") != []
    w.tick("m1")
    told = w.acknowledged
    w.crash("m1")
    w.crash("m2")
    w.connect("m3", "m4", "m5")
    w.elect_whoever_can("m3", "m4", "m5")
    w.rounds(10, "m3", "m4", "m5")
    if w.is_stock:
        assert told == set(new)
        assert lost(w, "m3", "m4", "m5") == set(new)
    else:
        assert told == set()
        w.submit("m3", "goes on")
        for id_ in ("m1", "m2"):
            w.restart(id_)
        heal(w, *FIVE)
        assert_converged(w, *FIVE)


# 5: errors while applying --------------------------------------------------------------------------------------------


class Careful(ListMachine):
    """A machine that keeps the contract: a wrong command gives an error as its result, never an exception."""

    def _apply_one(self, command: bytes) -> Outcome:
        outcome = super()._apply_one(command)
        if self.applied and self.applied[-1] == "bad":
            self.applied.pop()
            return Outcome(outcome.session, outcome.sequence, "refused: bad")
        return outcome


class Broken(ListMachine):
    """A machine with a bug that shows with one command."""

    def _apply_one(self, command: bytes) -> Outcome:
        outcome = super()._apply_one(command)
        if self.applied[-1:] == ["bad"]:
            raise InvariantViolation("a bug in the state machine")
        return outcome


def test_5a_stock_a_command_that_raises_stops_every_leader_there_will_be() -> None:
    """The command's callback is gone, and the entry is tried again in each tick. The tick ends there, before the
    heartbeats. The next leader meets the same entry."""
    cluster = StockCluster()
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.nodes["m1"].fail("bad", callback=cluster.answer_to("bad"))
    cluster.submit("m1", "later")
    cluster.rounds(10)
    sent = len(cluster.wire["m1", "m2"])
    for _ in range(5):
        cluster.tick("m1")
    assert len(cluster.wire["m1", "m2"]) == sent, "no heartbeat is sent any more"
    cluster.isolate("m1")
    cluster.nodes["m2"]._SyncObj__raftElectionDeadline = 0
    for _ in range(10):
        cluster.rounds(1, "m2", "m3")
    cluster.submit("m2", "new")
    for _ in range(10):
        cluster.rounds(1, "m2", "m3")
    assert cluster.answers == {}
    assert all(failure.where == "tick" for failure in cluster.failures)
    assert len(cluster.failures) > 20


def test_5a_ours_a_command_that_fails_is_an_answer_and_everybody_goes_on() -> None:
    cluster = Cluster(make_machine=Careful)
    leader = cluster.wait_ready()
    for text in ("ok", "bad", "later"):
        cluster.submit(leader.id, text)
    cluster.run_until(lambda: len(cluster.acknowledged) == 3)
    assert cluster.acknowledged["bad"].value == "refused: bad"
    cluster.run_until(cluster.converged)
    assert all(machine.applied == ["ok", "later"] for machine in cluster.machines.values())
    assert len(cluster.leaders) == 1


def test_5a_ours_a_broken_state_machine_stops_the_manager_with_a_line_instead_of_trying_for_ever() -> None:
    """An unexpected failure stops the manager visibly, and no entry behind it is applied."""
    cluster = Cluster()
    for id_ in ("m2", "m3"):
        cluster.crash(id_)
        cluster.wipe(id_)
    cluster.machines["m2"] = Broken()
    for id_ in ("m2", "m3"):
        cluster.start(id_)
    cluster.wait_ready()
    if cluster.wait_leader().id == "m2":
        cluster.ask("m2", "transfer", "m1")
        cluster.run_until(lambda: cluster.nodes["m1"].engine.is_leader)
    cluster.write("m3", "ok", "bad", "later")
    cluster.run_until(lambda: "m2" in cluster.stopped)
    assert str(cluster.stopped["m2"]) == "a bug in the state machine"
    assert "later" not in cluster.machines["m2"].applied
    cluster.write("m1", "without it")


def test_5b_stock_a_callback_that_raises_applies_the_command_twice_on_that_manager() -> None:
    cluster = StockCluster(("m1", "m2"))
    cluster.connect("m1", "m2")
    cluster.elect("m1")
    calls = []

    def bug(*_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug of the caller's")

    cluster.nodes["m1"].put("x", callback=bug)
    cluster.submit("m1", "y")
    cluster.rounds(8)
    assert cluster.applied("m1") == ["x", "x", "y"]
    assert cluster.applied("m2") == ["x", "y"]


def test_5b_ours_a_callback_that_raises_applies_nothing_twice() -> None:
    cluster = Cluster(("m1", "m2"))
    leader = cluster.wait_ready()

    def bug(_: Proposal) -> None:
        raise RuntimeError("a bug of the caller's")

    cluster.submit(leader.id, "x", done=bug)
    cluster.submit(leader.id, "y")
    cluster.run_until(lambda: "y" in cluster.acknowledged)
    cluster.run_until(cluster.converged)
    assert all(machine.applied == ["x", "y"] for machine in cluster.machines.values())


def test_5c_stock_an_unsupported_version_on_one_manager_applies_what_follows_twice_there() -> None:
    """The entry that switches to the version is skipped without counting, so each later index is off by one."""
    cluster = StockCluster(("m1", "m2"), start=False)
    newer = make_newer_machine_class(cluster.module)
    cluster.start("m1", machine_class=newer)
    cluster.start("m2")
    cluster.connect("m1", "m2")
    cluster.elect("m1")
    cluster.rounds(4)
    cluster.nodes["m1"].setCodeVersion(1)
    for number in range(3):
        cluster.submit("m1", f"p{number}")
    cluster.rounds(6)
    assert cluster.applied("m1") == ["p0", "p1", "p2"]
    assert len(cluster.applied("m2")) > 3


class Older(ListMachine):
    """A machine of an older release. It does not know the command "bad", and must not guess."""

    def _apply_one(self, command: bytes) -> Outcome:
        if command.endswith(b"bad"):
            raise InvariantViolation("a command of a version that this release does not know")
        return super()._apply_one(command)

    def apply(self, index: int, term: int, commands: list[bytes]) -> list[Outcome]:  # type: ignore[override]
        """Apply an entry in one transaction. If it fails, nothing of it is left, not even its index."""
        before = (self.applied_index, self.applied_term, list(self.indexes))
        try:
            return super().apply(index, term, commands)
        except InvariantViolation:
            self.applied_index, self.applied_term, self.indexes = before
            raise


def test_5c_ours_an_unsupported_command_stops_that_manager_until_it_has_the_version() -> None:
    """The other members go on. After an upgrade, the manager catches up and has an equal state."""
    cluster = Cluster(start=False)
    cluster.machines["m2"] = Older()
    for id_ in THREE:
        cluster.start(id_)
    cluster.wait_ready()
    cluster.write("m1", "p0", "bad", "p1")
    cluster.run_until(lambda: "m2" in cluster.stopped)
    assert "p1" not in cluster.machines["m2"].applied
    upgraded, older = ListMachine(), cluster.machines["m2"]
    vars(upgraded).update(vars(older))
    cluster.machines["m2"] = upgraded
    cluster.start("m2")
    cluster.check_writes()
    assert upgraded.applied == ["p0", "bad", "p1"]


# 6: elections --------------------------------------------------------------------------------------------------------


def test_6a_stock_a_manager_that_lost_what_was_sent_to_it_deposes_a_healthy_leader_when_it_hears_again() -> None:
    """The manager campaigned without success meanwhile. Its higher term makes it deaf to the leader. The leader is not
    told. The manager campaigns again and wins."""
    cluster = StockCluster()
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    for _ in range(5):
        cluster.nodes["m3"]._SyncObj__raftElectionDeadline = 0
        cluster.tick("m3")
        for queue in cluster.wire.values():
            queue.clear()
    cluster.tick("m1")
    cluster.flow()
    assert cluster.nodes["m3"].raftCurrentTerm > cluster.nodes["m1"].raftCurrentTerm
    assert cluster.nodes["m3"]._getLeader() is None
    cluster.nodes["m3"]._SyncObj__raftElectionDeadline = 0
    cluster.tick("m3")
    cluster.flow()
    assert not cluster.nodes["m1"]._isLeader()


def test_6a_ours_a_manager_that_hears_again_follows_the_leader_there_is() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    deaf, other = cluster.followers()
    cluster.hold((leader.id, deaf), (other, deaf), (deaf, leader.id), (deaf, other))
    cluster.run(10)
    for pair in cluster.wire:
        if deaf in pair:
            cluster.wire[pair].clear()
    cluster.heal()
    cluster.run_until(lambda: cluster.nodes[deaf].engine.leader == leader.id, seconds=1)
    assert {node.engine.term for node in cluster.nodes.values()} == {leader.engine.term}
    cluster.write(deaf, "w")
    cluster.check_writes()


def test_6b_stock_an_isolated_leader_leads_for_half_a_minute_and_shows_what_is_stale() -> None:
    cluster = StockCluster()
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    cluster.isolate("m1")
    cluster.elect("m2", "m3")
    cluster.submit("m2", "new")
    cluster.rounds(4, "m2", "m3")
    assert "new" in cluster.acknowledged
    cluster.submit("m1", "stale write")
    since = cluster.now
    while cluster.nodes["m1"]._isLeader() and cluster.now - since < 60:
        cluster.tick("m1", seconds=0.5)
    assert cluster.now - since > 25
    assert not cluster.nodes["m1"].hasQuorum
    assert cluster.applied("m1") == []


def test_6b_ours_an_isolated_leader_knows_it_within_two_election_timeouts() -> None:
    cluster = Cluster()
    old = cluster.wait_ready()
    new = cluster.followers()[0]
    cluster.isolate(old.id)
    cluster.submit(old.id, "stale write", seconds=60)
    since = cluster.now
    cluster.run_until(lambda: old.engine.role != "leader")
    assert cluster.now - since < 2.0
    cluster.write(new, "new")
    assert "stale write" not in cluster.acknowledged
    cluster.heal()
    cluster.run_until(lambda: "stale write" in cluster.acknowledged)
    cluster.check_writes()


def test_6c_stock_a_manager_that_cannot_hear_deposes_the_leader_for_ever() -> None:
    cluster = StockCluster()
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    cluster.disconnect("m2", "m3")
    deposed = 0
    for _ in range(20):
        cluster.nodes["m3"]._SyncObj__raftElectionDeadline = 0
        cluster.tick("m3")
        cluster.wire["m1", "m3"].clear()
        led = cluster.nodes["m1"]._isLeader()
        cluster.deliver("m3", "m1")
        deposed += led and not cluster.nodes["m1"]._isLeader()
        cluster.wire["m1", "m3"].clear()
        if not cluster.nodes["m1"]._isLeader():
            cluster.elect("m1", "m2")
    assert deposed >= 10


@pytest.mark.slow
def test_6c_ours_a_manager_that_cannot_hear_deposes_nobody() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    deaf, other = cluster.followers()
    cluster.part(deaf, other)
    cluster.hold((leader.id, deaf))
    cluster.run(30)
    assert leader.engine.is_leader
    assert len(cluster.leaders) == 1
    cluster.heal()
    cluster.write(deaf, "w")
    cluster.check_writes()


# 7: membership -------------------------------------------------------------------------------------------------------


def test_7a_stock_two_changes_through_an_isolated_leader_make_two_clusters_that_both_commit() -> None:
    cluster = StockCluster(dynamicMembershipChange=True)
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    cluster.isolate("m1")
    for new in ("m4", "m5"):
        cluster.nodes["m1"].addNodeToCluster(StockNode(new))
    cluster.tick("m1")
    assert cluster.members("m1") == ["m1", "m2", "m3", "m4", "m5"]
    for new in ("m4", "m5"):
        cluster.start(new, members=FIVE)
    cluster.connect("m1", "m4", "m5")
    cluster.submit("m1", "LEFT")
    cluster.rounds(8, "m1", "m4", "m5")
    cluster.elect("m2", "m3")
    cluster.submit("m2", "RIGHT")
    cluster.rounds(6, "m2", "m3")
    assert cluster.acknowledged == {"LEFT", "RIGHT"}
    assert (cluster.applied("m1"), cluster.applied("m2")) == (["LEFT"], ["RIGHT"])


def test_7a_ours_two_changes_through_an_isolated_leader_leave_no_trace() -> None:
    cluster = Cluster()
    cluster.wait_ready()
    if cluster.wait_leader().id != "m1":
        cluster.ask("m1", "transfer", "m1")
        cluster.run_until(lambda: cluster.nodes["m1"].engine.is_leader)
    for number, new in enumerate(("m4", "m5")):
        cluster.start(new, address=f"127.0.0.1:710{number}")
        for other in ("m2", "m3"):
            cluster.part(new, other)
    cluster.run_until(lambda: {("m4", "m1"), ("m5", "m1")} <= cluster.links.keys())
    for other in ("m2", "m3"):
        cluster.part("m1", other)
    asked = [cluster.ask("m1", ADD, new, f"127.0.0.1:710{number}") for number, new in enumerate(("m4", "m5"))]
    assert [answer.state for answer in asked] == [PENDING, WAIT]
    cluster.submit("m1", "LEFT", seconds=60)
    cluster.run_until(lambda: any(cluster.nodes[id_].engine.is_leader for id_ in ("m2", "m3")))
    cluster.write("m2", "RIGHT")
    cluster.run(5)
    assert "LEFT" not in cluster.acknowledged
    assert all(cluster.nodes[id_].engine.membership is None for id_ in ("m4", "m5"))
    cluster.heal()
    cluster.run_until(lambda: "LEFT" in cluster.acknowledged)
    for number, new in enumerate(("m4", "m5")):
        assert cluster.change("m2", ADD, new, f"127.0.0.1:710{number}").state == DONE
    cluster.check_writes()


def test_7b_stock_a_restart_forgets_the_members_in_the_log_and_one_index_is_committed_twice() -> None:
    cluster = StockCluster(dynamicMembershipChange=True)
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    for new, known in (("m4", THREE), ("m5", (*THREE, "m4"))):
        cluster.nodes["m1"].addNodeToCluster(StockNode(new))
        cluster.start(new, members=known)
        cluster.connect("m1", new)
        cluster.rounds(6)
    for id_ in ("m2", "m3"):
        cluster.crash(id_)
        cluster.journals[id_].commit = cluster.journals[id_].stored_commit = 1  # written once a second: not yet
        cluster.start(id_, members=THREE)
    assert cluster.members("m2") == ["m1", "m2", "m3"]
    cluster.submit("m1", "LEFT")
    cluster.rounds(6, "m1", "m4", "m5")
    cluster.connect("m2", "m3")
    cluster.elect("m2", "m3")
    cluster.submit("m2", "RIGHT")
    cluster.rounds(6, "m2", "m3")
    at = [cluster.log_of(id_)[4] for id_ in ("m1", "m2")]
    assert min(cluster.commit_index("m1"), cluster.commit_index("m2")) >= 5
    assert at[0] != at[1]
    assert "LEFT" in cluster.acknowledged


@pytest.mark.slow
@pytest.mark.parametrize("turns", range(1, 30, 4))
def test_7b_ours_a_restart_at_any_moment_of_a_change_counts_by_the_list_that_holds(turns: int) -> None:
    """m4 and m5 are added. At some moment m2 and m3 are killed. They start again, cut off from the other managers. At
    any such moment, at most one of the two sides ever commits, and no acknowledged write is lost."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    for number, new in enumerate(("m4", "m5")):
        cluster.start(new, address=f"127.0.0.1:710{number}")
    cluster.run_until(lambda: {"m4", "m5"} <= leader.engine._roster.links.keys())
    assert cluster.change(leader.id, ADD, "m4", "127.0.0.1:7100").state == DONE
    cluster.ask(leader.id, ADD, "m5", "127.0.0.1:7101")
    for _ in range(turns):
        cluster.turn()
    killed = cluster.followers()
    killed = [id_ for id_ in killed if id_ in THREE]
    side = [id_ for id_ in (*THREE, "m4", "m5") if id_ not in killed]
    for id_ in killed:
        cluster.crash(id_)
        cluster.start(id_)
    for one in killed:
        for other in side:
            cluster.part(one, other)
    cluster.submit(leader.id, "LEFT", seconds=60)
    cluster.submit(killed[0], "RIGHT", seconds=60)
    cluster.run(10)
    assert len(cluster.acknowledged) <= 1, "both sides have committed"
    cluster.heal()
    cluster.run_until(lambda: len(cluster.acknowledged) == 2)
    assert cluster.change(leader.id, ADD, "m5", "127.0.0.1:7101").state == DONE
    cluster.check_writes()


def test_7c_stock_members_that_are_not_up_count_at_once_and_cannot_be_taken_back() -> None:
    cluster = StockCluster(("m1", "m2"), dynamicMembershipChange=True)
    cluster.connect("m1", "m2")
    cluster.elect("m1")
    cluster.rounds(4)
    for new in ("m3", "m4"):
        cluster.nodes["m1"].addNodeToCluster(StockNode(new), callback=cluster.answer_to(f"add {new}"))
        cluster.rounds(4)
    assert cluster.answers == {"add m3": [SUCCESS]}
    cluster.nodes["m1"].removeNodeFromCluster(StockNode("m4"), callback=cluster.answer_to("remove m4"))
    cluster.submit("m1", "w")
    cluster.rounds(20)
    assert cluster.answers.keys() == {"add m3", "add m4"}, "neither the removal nor the write ever ends"


def test_7c_ours_members_that_are_not_up_are_waited_for_and_count_in_nothing() -> None:
    cluster = Cluster(("m1", "m2"))
    leader = cluster.wait_ready()
    for number, new in enumerate(("m3", "m4")):
        for _ in range(5):
            answer = cluster.ask(leader.id, ADD, new, f"127.0.0.1:710{number}")
            assert answer.state == WAIT
            assert "does not answer" in answer.text
    cluster.write("m2", "w")
    cluster.check_writes()
    assert set(cluster.members("m1")) == {"m1", "m2"}


# 10: forwarding ------------------------------------------------------------------------------------------------------


def test_10_stock_a_request_or_an_answer_that_is_lost_leaves_its_caller_waiting_for_ever() -> None:
    cluster = StockCluster()
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    cluster.submit("m2", "lost request")
    cluster.tick("m2")
    cluster.disconnect("m1", "m2")
    cluster.connect(*THREE)
    cluster.submit("m2", "lost answer")
    cluster.tick("m2")
    cluster.flow("m2", "m1")
    cluster.tick("m1")
    cluster.disconnect("m1", "m2")
    cluster.connect(*THREE)
    for _ in range(400):
        cluster.tick(seconds=1.0)
        cluster.flow()
    assert cluster.nodes["m1"]._isLeader(), "the leader never changed"
    assert cluster.answers == {}
    assert cluster.applied("m1") == ["lost answer"], "the write with the lost answer is applied"


def test_10_ours_a_lost_request_or_answer_is_asked_for_again_over_the_next_link() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin = cluster.followers()[0]
    cluster.hold((origin, leader.id))
    cluster.submit(origin, "lost request")
    cluster.run(0.1)
    cluster.disconnect(origin, leader.id)
    cluster.heal()
    cluster.hold((leader.id, origin))
    cluster.submit(origin, "lost answer")
    cluster.run_until(lambda: "lost answer" in leader.machine.applied)
    assert "lost answer" not in cluster.acknowledged
    cluster.disconnect(origin, leader.id)
    cluster.heal()
    cluster.run_until(lambda: cluster.acknowledged.keys() == {"lost request", "lost answer"}, seconds=2)
    assert leader.engine.is_leader
    cluster.check_writes()


def test_10_stock_a_caller_that_was_told_the_leader_changed_and_tries_again_is_applied_twice() -> None:
    cluster = StockCluster()
    cluster.connect(*THREE)
    cluster.elect("m1")
    cluster.rounds(4)
    cluster.nodes["m2"].put("dup", callback=cluster.answer_to("first"))
    cluster.tick("m2")
    cluster.flow("m2", "m1")
    cluster.tick("m1")
    cluster.tick("m1")
    cluster.deliver("m1", "m3")
    cluster.deliver("m3", "m1")
    cluster.crash("m1")
    cluster.connect("m2", "m3")
    cluster.elect("m3", "m2")
    cluster.rounds(4, "m2", "m3")
    assert cluster.answers["first"] == ["LEADER_CHANGED"]
    cluster.nodes["m2"].put("dup", callback=cluster.answer_to("second"))
    cluster.rounds(6, "m2", "m3")
    assert cluster.applied("m2") == ["dup", "dup"]


def test_10_ours_a_write_that_is_sent_again_is_applied_once() -> None:
    """The manager that was asked keeps the write and sends it to the next leader by itself. The request id makes that
    harmless."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    origin, other = cluster.followers()
    cluster.hold((leader.id, origin))
    cluster.submit(origin, "dup")
    cluster.run_until(lambda: cluster.nodes[other].log.last_index == leader.log.last_index > 3)
    cluster.crash(leader.id)
    cluster.run_until(lambda: "dup" in cluster.acknowledged)
    cluster.start(leader.id)
    cluster.check_writes()
    texts = [entries.decode(entry[0]) for entry in cluster.nodes[origin].log.entries]
    assert sum(b"dup" in command for content in texts if isinstance(content, list) for command in content) == 2


# 11b: conflicts longer than a message --------------------------------------------------------------------------------


def test_11b_a_deposed_leader_with_a_long_tail_never_comes_back(world: MakeWorld) -> None:
    """Stock goes back one index with each heartbeat. If the entries to overwrite are longer than one message, several
    messages of each burst do not match, and the last answer sends the leader forward again, for ever. Our leader is
    told where the conflict begins."""
    w = world(message_bytes=2000)
    w.disconnect_from_all("m1")
    for number in range(90):
        w.submit("m1", f"stale{number}")
    w.tick("m1")
    w.elect("m2", "m3")
    for number in range(60):
        w.submit("m2", f"real{number}-" + "x" * 100)
    w.rounds(5, "m2", "m3")
    w.elect("m3", "m2")
    w.rounds(2, "m3", "m2")
    w.connect(*THREE)
    needed = 0
    while w.log_of("m1") != w.log_of("m3") and needed < 200:
        w.rounds(1, *THREE)
        needed += 1
    if w.is_stock:
        assert needed == 200, "twenty seconds of heartbeats"
    else:
        assert needed <= 3
        assert isinstance(w, OurWorld)
        resets = [sent for sent in w.cluster.sent if sent.sender == "m1" and is_reset(sent.message)]
        assert len(resets) <= 10, "one step back for each term, not for each entry"
        assert w.acknowledged == {f"real{number}-" + "x" * 100 for number in range(60)}
        w.rounds(3, *THREE)
        assert_converged(w, *THREE)
        assert not [text for text in w.applied("m1") if text.startswith("stale") and text not in w.acknowledged]


# The page ------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "pysyncobj-holes.md").read_text()
HERE = Path(__file__).read_text()


@pytest.mark.parametrize(
    "hole", ["2a", "2b", "2c", "3", "5a", "5b", "5c", "6a", "6b", "6c", "7a", "7b", "7c", "10", "11b"]
)
def test_each_hole_has_its_story_on_the_page_and_its_tests_here(hole: str) -> None:
    assert re.search(rf"^(## |\*\*){hole}\b", PAGE, re.MULTILINE), "no story"
    tests = re.findall(rf"^def test_{hole}_(\w+?)_", HERE, re.MULTILINE)
    both = re.search(rf"^def test_{hole}_\w+\(\s*world: MakeWorld", HERE, re.MULTILINE)
    assert both or {"stock", "ours"} <= set(tests)


def test_the_page_names_what_there_is() -> None:
    """Each test module, source file and private name on the page exists."""
    for module in set(re.findall(r"`(test_\w+)`", PAGE)):
        assert list((ROOT / "tests" / "unit").rglob(f"{module}.py")), module
    raft = ROOT / "warren_raft" / "raft"
    sources = {str(path.relative_to(raft)): path.read_text() for path in raft.rglob("*.py")}
    for name in set(re.findall(r"`(?:raft/)?((?:log/|links/)?\w+\.py)`", PAGE)):
        assert name in sources, name
    everything = "\n".join(sources.values())
    for name in set(re.findall(r"`(_?[A-Za-z_]+)`", PAGE)) - {"accept", "hasQuorum", "timeout_now", "warren_raft"}:
        assert name.startswith("test_") or name in everything, name
