"""The promise: a cluster, or a store, uses a command only when everyone who has to read it can; and a release that does
not read the level of some data refuses the data before it changes anything.

An older release is one whose newest level is 1: tests/previous_release.py. Upgrades of real processes are in
tests/cluster/test_upgrade.py, those with faults in tests/simulation/upgrades.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import warren_raft as wr
from tests import previous_release
from tests.cluster.harness import wait_until
from tests.fsm_harness import put
from tests.unit.test_describing import append
from tests.unit.test_opening import STARTS, config, opened
from tests.unit.test_writes import Sent
from warren_raft.fsm.machine import StateMachine, recompute_digest
from warren_raft.maintenance import recover
from warren_raft.manager.barrier_calls import BarrierCall
from warren_raft.manager.calls import WriteCalls
from warren_raft.manager.session import BarrierWrite, Write
from warren_raft.raft import levels as of_members
from warren_raft.raft.membership import FORM, OLDER_RELEASE, RAISE, Change, Hello, Member, Membership, judge
from warren_raft.raft.roster import Roster
from warren_raft.recovery.restore import restore
from warren_raft.snapshots.file import write
from warren_raft.store import levels
from warren_raft.store.command import (
    DELETE,
    OPEN_SESSION,
    REQUIRE,
    Command,
    Operation,
    decode,
    encode,
    encode_body,
    encode_operations,
    in_version_1,
    with_request_id,
)
from warren_raft.store.database import Database


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    with Database.open(tmp_path, sync=False) as database:
        yield StateMachine(database)


def digest_of(machine: StateMachine) -> bytes:
    with machine.database.read() as transaction:
        return recompute_digest(transaction)


# ---- the level of a state


def test_the_level_is_part_of_the_state_and_never_falls(machine: StateMachine) -> None:
    assert machine.level == levels.FIRST
    before = machine.digest
    machine.apply(2, 1, [], 2)
    assert machine.level == 2
    assert machine.digest not in (before, bytes(32))
    machine.apply_membership(3, 1, "c", b"members", 1)
    machine.apply(4, 1, [], 1)
    assert machine.level == 2
    assert machine.digest == digest_of(machine)
    assert StateMachine(machine.database).committed == machine.committed


def test_a_state_without_a_level_has_the_digest_that_it_always_had(machine: StateMachine) -> None:
    machine.apply(2, 1, [])
    machine.apply_membership(3, 1, "c", b"members")
    with machine.database.read() as transaction:
        assert [key for space, key, _ in transaction.digest_items() if space == "meta"] == [
            b"cluster_id",
            b"membership",
        ]


def test_a_level_of_a_newer_release_stops_the_manager_and_changes_nothing(machine: StateMachine) -> None:
    before = machine.committed
    with pytest.raises(
        wr.RefusedForSafety, match="log entry 2 uses level 3 of the command set, and this release reads"
    ):
        machine.apply(2, 1, [], levels.NEWEST + 1)
    machine.settle()
    assert machine.committed == before
    machine.apply(2, 1, [], levels.NEWEST)


# ---- commands of each level


@pytest.mark.parametrize("operations", [(), (Operation(OPEN_SESSION),), (put(wr.Node(id="n1")),)])
def test_commands_of_both_versions_are_encoded_from_their_bodies(operations: tuple[Operation, ...]) -> None:
    first = with_request_id(5, 3, 2, encode_operations(operations))
    assert first == encode(Command(5, 3, 2, operations, version=1))
    assert decode(first) == Command(5, 3, 2, operations, version=1)
    assert decode(with_request_id(5, 3, 2, encode_body(operations, 7))) == Command(5, 3, 2, operations, 7)
    with previous_release.made():
        assert decode(first).version == 1
        with pytest.raises(wr.WarrenError, match=r"a command of version 2; this program reads 1 to 1: upgrade it"):
            decode(with_request_id(5, 3, 2, encode_body(operations)))


def test_a_command_that_needs_no_more_has_a_form_in_version_1() -> None:
    plain = (put(wr.Node(id="n1")), Operation(DELETE, 1, "n2", None, 7))
    for operations in (plain, ()):
        assert in_version_1(encode_body(operations)) == encode_operations(operations)
        assert in_version_1(encode_operations(operations)) == encode_operations(operations)
    assert in_version_1(encode_body(plain, 7)) is None
    assert in_version_1(encode_body(plain, request_key="r")) is None
    assert in_version_1(encode_body((Operation(REQUIRE, 1, "n2", None, 7),))) is None


def test_writes_of_a_program_that_began_before_the_cluster_are_sent_in_its_version() -> None:
    sent = Sent()
    plain, newer = sent.write("plain"), sent.write("newer")
    newer.data = encode_body([Operation(DELETE, 1, "newer")], 7)
    assert sent.take(plain, newer) == ["open"]
    sent.writes.too_new = lambda: "the write needs level 2"
    sent.end("open")
    assert sent.take() == ["plain"]
    assert decode(sent.proposals[0].data).version == 1
    assert isinstance(newer.error, wr.Unavailable)
    assert not newer.error.maybe_applied
    sent.writes.too_new = str
    assert sent.take(sent.write("later")) == ["later"]
    assert decode(sent.proposals[-1].data).version == 2
    for name in ("plain", "later"):
        sent.end(name)
    assert sent.writes._outstanding_bytes == 0


def test_a_barrier_that_is_a_command_fails_as_a_barrier() -> None:
    barrier = BarrierWrite(0, 0, b"", 0.0, lambda _: None)
    barrier.error = wr.Unavailable("no leader", maybe_applied=True)
    with pytest.raises(wr.Unavailable) as raised:
        barrier.result()
    for error in (barrier.late(), raised.value):
        assert not error.of_write
        assert not error.maybe_applied


class Submitted(Exception):
    """A call was submitted."""


def barriers_of(level: int, *, in_cluster: bool) -> list[object]:
    """The calls that the barriers of a thread and of a coroutine make, at a manager whose state has that level."""
    calls: list[object] = []

    def submit(call: object) -> bool:
        calls.append(call)
        raise Submitted

    engine = SimpleNamespace(level=level, membership="a list" if in_cluster else None, is_full=False)
    driver: Any = SimpleNamespace(engine=engine, submit=submit, submitted=[], stamps=None)
    life: Any = SimpleNamespace(require=lambda: None)
    unused: Any = None
    writes = Sent().writes
    made = WriteCalls(
        "m1", 5.0, life=life, driver=driver, writes=writes, space=unused, request_memory=unused, revision=int
    )
    for ask in (lambda: made.barrier(None), lambda: made.begin_barrier(None, cast(Any, None))):
        with pytest.raises(Submitted):
            ask()
    return calls


@pytest.mark.parametrize("in_cluster", [True, False])
def test_a_barrier_at_level_1_passes_through_the_log(in_cluster: bool) -> None:
    """(Pins a fault: a manager that was not yet added to a cluster of the older release asked its leader, which does
    not know the question. The barrier waited until its deadline.)"""
    for call in barriers_of(1, in_cluster=in_cluster):
        assert isinstance(call, Write)
        assert call.data == (encode_operations(()) if in_cluster else encode_body(()))
        assert in_version_1(call.data) == encode_operations(())
    assert all(isinstance(call, BarrierCall) for call in barriers_of(2, in_cluster=in_cluster))


# ---- the members


def test_the_level_is_raised_to_what_every_member_reads_by_its_present_link() -> None:
    def roster(**read: int | None) -> Roster:
        members = {id_: Member(id_, "a:1", f"of {id_}", voter=id_ != "m3") for id_ in ("m1", *read)}
        links = {
            id_: SimpleNamespace(hello=SimpleNamespace(incarnation=f"of {id_}", level_max=level))
            for id_, level in read.items()
            if level is not None
        }
        return cast(Roster, SimpleNamespace(node_id="m1", level_max=2, members=members, links=links))

    assert of_members.raising(roster(), 1) == Change(RAISE, level=2)
    assert of_members.raising(roster(m2=2, m3=2), 1) == Change(RAISE, level=2)
    assert of_members.raising(roster(m2=3, m3=3), 1) == Change(RAISE, level=2)
    assert of_members.raising(roster(m2=2, m3=2), 2) is None
    assert of_members.raising(roster(m2=2, m3=1), 1) is None  # a learner has to read it, too
    assert of_members.raising(roster(m2=2, m3=None), 1) is None
    of_another_directory = roster(m2=2, m3=2)
    of_another_directory.links["m3"].hello = cast(Any, SimpleNamespace(incarnation="wiped", level_max=2))
    assert of_members.raising(of_another_directory, 1) is None
    assert of_members.lagging(roster(m2=1, m3=None), 2) == ["m2 reads up to level 1", "m3 is not connected"]


def test_a_change_carries_its_level_and_others_keep_their_bytes() -> None:
    founders = (Member("m1", "a:1", "i", voter=True),)
    for change in (
        Change(RAISE, level=2),
        Change(RAISE, level=3, trust_domain="d"),
        Change(FORM, cluster_id="c", members=founders, level=2),
    ):
        assert Change.decode(change.encode()) == change
    formed = Change(FORM, cluster_id="c", members=founders)
    assert b"form" in formed.encode()
    assert len(formed.encode()) < len(Change(FORM, cluster_id="c", members=founders, level=2).encode())


def test_a_manager_of_an_older_release_is_not_let_in_once_the_level_is_raised() -> None:
    mine = Hello("m1", "a:1", "i1", blank=False, cluster_id="c", membership_index=3, founding=b"", level_max=2)
    said = {**mine.to_message(), "node_id": "m2", "incarnation": "i2"}
    del said["level_max"]  # as the releases before it say hello
    theirs = Hello.from_message(said)
    assert theirs.level_max == 1
    listed = Membership("c", 3, {id_: Member(id_, "a:1", f"i{id_[1]}", voter=True) for id_ in ("m1", "m2")})
    assert judge(mine, theirs, membership=listed, configured={}, level=1) is None
    refusal = judge(mine, theirs, membership=listed, configured={}, level=2)
    assert refusal is not None
    assert refusal.code == OLDER_RELEASE
    assert refusal.text == (
        "m2 runs a release that reads the command set up to level 1, and this cluster uses level 2: install the "
        "release of the other members on the host of m2, then start it again"
    )
    with pytest.raises(ValueError, match="another type"):
        Hello.from_message({**said, "level_max": "2"})


# ---- one manager, of one release after the other


def refused_features(store: wr.ReplicatedStore) -> dict[str, Callable[[], object]]:
    def require() -> None:
        with store.batch() as batch:
            batch.require("node", "n1", 1)

    def fenced() -> None:
        with store.leading(timeout=10) as lead:
            lead.create_node(wr.Node(id="n2"))

    async def awaited() -> None:
        await store.aio.create_node(wr.Node(id="n2"), request_id="r")

    return {
        "`request_id`": lambda: store.create_node(wr.Node(id="n2"), request_id="r"),
        "`request_id` ": lambda: asyncio.run(awaited()),
        "`require`": require,
        "`cascade=True`": lambda: store.delete_service("s1", cascade=True),
        "a fenced write": fenced,
        "the heartbeat of n1": lambda: store.heartbeat("n1", 5.0),
    }


def test_a_feature_of_a_higher_level_is_refused_until_the_level_is_raised(tmp_path: Path) -> None:
    with previous_release.made(), wr.ReplicatedStore(config(tmp_path)) as store:
        store.wait_ready(10)
        revision = store.create_node(wr.Node(id="n1"))
        for feature, use in refused_features(store).items():
            with pytest.raises(
                wr.Unavailable, match=r"needs level 2 of the command set.* m1 reads up to level 1"
            ) as error:
                use()
            assert feature.strip() in str(error.value)
            assert not error.value.maybe_applied
        assert store.barrier() == revision
        assert asyncio.run(store.aio.barrier()) == revision
        assert store.status().level == 1
        assert [member.level_max for member in store.members()] == [1]
    with wr.ReplicatedStore(config(tmp_path)) as store:
        store.wait_ready(10)
        store.barrier()
        wait_until(lambda: store.status().level == 2, "level 2")
        for use in refused_features(store).values():
            use()
        assert store.barrier() == store.status().revision


def test_a_release_that_does_not_read_the_level_refuses_the_data_and_changes_nothing(tmp_path: Path) -> None:
    with wr.ReplicatedStore(config(tmp_path / "m1")) as store:
        store.wait_ready(10)
        store.create_node(wr.Node(id="n1"))
        store.snapshot(tmp_path / "saved")
        store.wait_ready(10)
    with wr.LocalStore(tmp_path / "local") as local:
        local.create_node(wr.Node(id="n1"))
        assert local.status().level == levels.NEWEST
    before = (tmp_path / "m1" / "state" / "1.mdb").read_bytes()
    members = {"m1": "127.0.0.1:7"}
    with previous_release.made():
        attempts: list[Callable[[], object]] = [
            *([lambda: opened(tmp_path / "m1")] * STARTS),
            lambda: wr.ReplicatedStore(config(tmp_path / "m1")),
            lambda: wr.ReadOnlyStore(tmp_path / "m1").list_nodes(),
            lambda: wr.LocalStore(tmp_path / "local"),
            lambda: restore(tmp_path / "saved", tmp_path / "new", node_id="m1", members=members),
            lambda: recover(tmp_path / "m1"),
        ]
        for attempt in attempts:
            with pytest.raises(wr.RefusedForSafety, match="uses level 2 of the command set, and this release reads up"):
                attempt()
    assert (tmp_path / "m1" / "state" / "1.mdb").read_bytes() == before
    assert not (tmp_path / "new").exists()
    with wr.ReplicatedStore(config(tmp_path / "m1")) as store:
        store.wait_ready(10)
        assert store.get_node("n1").id == "n1"


def test_a_local_store_of_the_release_before_opens_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first write raises the level. (Pins a fault: opening raised the level, and failed without space.)"""

    def full(*_: object, **__: object) -> None:
        raise wr.StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(levels, "NEWEST", levels.FIRST)
        with wr.LocalStore(tmp_path) as store:
            store.create_node(wr.Node(id="n1"))
    with monkeypatch.context() as patch:
        patch.setattr(StateMachine, "_apply", full)
        with wr.LocalStore(tmp_path) as store:
            assert store.get_node("n1").id == "n1"
            with pytest.raises(wr.StorageFull):
                store.delete_node("n1")
            assert store.status().level == levels.FIRST
    with wr.LocalStore(tmp_path) as store:
        assert store.delete_node("n1") == 2
        assert store.status().level == levels.NEWEST


def test_a_log_that_goes_on_at_a_level_of_a_newer_release_is_refused_at_the_start(tmp_path: Path) -> None:
    opened(tmp_path).close(failed=False)
    append(tmp_path, Change(RAISE, level=levels.NEWEST + 1), committed=False)
    with pytest.raises(wr.RefusedForSafety, match=r"log uses level 3 of the command set, and this release reads up to"):
        opened(tmp_path)
    with pytest.raises(wr.RefusedForSafety, match="uses level 3"):  # the first refusal gave the directory back
        opened(tmp_path)


def test_restored_data_keep_their_level(tmp_path: Path) -> None:
    with Database.open(tmp_path / "old", sync=False) as database:
        machine = StateMachine(database)
        machine.apply(2, 1, [], levels.NEWEST)
        write(database, tmp_path / "saved", created_at=datetime.now(UTC), node_id="m1", quorum=True)
    restore(tmp_path / "saved", tmp_path / "new", node_id="m1", members={"m1": "127.0.0.1:7"})
    directory = opened(tmp_path / "new")
    assert directory.machine.level == levels.NEWEST
    assert directory.machine.digest == digest_of(directory.machine)
    directory.release()
