"""The promise: the counts of nodes by role and status, and of containers by state, are those of a full count.

They are kept while entries are applied, so they have to be right after any commands, after a commit that failed, after
a start, and in a state that came from a snapshot.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.fsm_harness import apply, command, delete, put
from tests.snapshot_support import NOON
from warren_raft.errors import StorageFull
from warren_raft.fsm.machine import StateMachine
from warren_raft.fsm.tallies import OTHER, UNSET, TallyChanges, tally_of
from warren_raft.model.entities import Container, ContainerState, Node, NodeResources, NodeRole, NodeStatus, Service
from warren_raft.snapshots.file import extract, write
from warren_raft.store import codec
from warren_raft.store.command import Operation, Verb
from warren_raft.store.database import Database, WriteTransaction
from warren_raft.store.generations import StateDirectory
from warren_raft.store.tables import CONTAINER, NODE, SERVICE


def full_count(machine: StateMachine) -> object:
    with machine.database.read() as transaction:
        return tally_of(transaction)


def some_node(random: Random) -> Node:
    return Node(
        id=f"n-{random.randrange(12)}",
        role=random.choice(["", *NodeRole]),
        status=random.choice(["", *NodeStatus]),
        labels={f"label-{n}": "x" * n for n in range(random.randrange(3))},
        resources=random.choice([None, NodeResources()]),
        hostname="h" * random.choice([0, 23, 24, 300]),
    )


def some_container(random: Random) -> Container:
    return Container(
        id=f"c-{random.randrange(30)}",
        service_id=f"s-{random.randrange(3)}",
        container_id="a" * random.choice([0, 64, 300]),
        actual_state=random.choice(["", *ContainerState]),
    )


def some_operation(random: Random) -> Operation:
    draw = random.random()
    if draw < 0.35:
        return put(some_node(random))
    if draw < 0.7:
        return put(some_container(random))
    if draw < 0.8:
        return delete(NODE, f"n-{random.randrange(12)}")
    if draw < 0.9:
        return delete(CONTAINER, f"c-{random.randrange(30)}")
    if draw < 0.95:
        return put(Service(id=f"s-{random.randrange(3)}"))
    return Operation(Verb.DELETE_CASCADE, SERVICE.number, f"s-{random.randrange(3)}")


def test_after_any_commands_and_after_a_start(tmp_path: Path) -> None:
    random = Random(13)
    with Database.open(tmp_path, sync=False) as database:
        machine = StateMachine(database)
        assert machine.tally == {}
        for _ in range(150):
            commands = [
                command(*(some_operation(random) for _ in range(random.randrange(1, 4))))
                for _ in range(random.randrange(1, 4))
            ]
            apply(machine, *commands)
            assert machine.tally == full_count(machine)
        assert len(machine.tally) > 8
        assert StateMachine(database).tally == machine.tally


def test_a_commit_that_failed_is_not_counted_and_one_that_came_through_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Database.open(tmp_path, sync=False) as database:
        machine = StateMachine(database)
        apply(machine, command(put(Node(id="n-1", status="ready"))))
        before = machine.tally
        leave = WriteTransaction.__exit__

        def refuse(transaction: WriteTransaction, *_: object) -> None:
            leave(transaction, StorageFull, StorageFull(), None)
            raise StorageFull

        def commit_and_raise(transaction: WriteTransaction, *_: object) -> None:
            leave(transaction, None, None, None)
            raise StorageFull

        monkeypatch.setattr(WriteTransaction, "__exit__", refuse)
        with pytest.raises(StorageFull):
            apply(machine, command(put(Node(id="n-2"))))
        machine.settle()
        assert machine.tally == before == full_count(machine)
        monkeypatch.setattr(WriteTransaction, "__exit__", commit_and_raise)
        with pytest.raises(StorageFull):
            apply(machine, command(put(Node(id="n-2"))))
        monkeypatch.undo()
        machine.settle()
        assert machine.tally == full_count(machine) != before


def test_in_a_state_from_a_snapshot_and_after_the_log_behind_it(tmp_path: Path) -> None:
    random = Random(7)
    state = StateDirectory(tmp_path / "other")
    with Database.open(tmp_path / "first", sync=False) as database:
        machine = StateMachine(database)
        apply(machine, *(command(some_operation(random)) for _ in range(60)))
        write(database, tmp_path / "snapshot", created_at=NOON, node_id="n1", quorum=True)
        state.create()
        extract(str(tmp_path / "snapshot"), state.file_of(1))
        with Database.open_generation(state, 1, sync=False) as copy:
            installed = StateMachine(copy)
            assert installed.tally == machine.tally
            behind = [command(some_operation(random)) for _ in range(30)]
            apply(machine, *behind)
            apply(installed, *behind)
            assert installed.tally == machine.tally == full_count(installed)


def test_an_unusual_value_is_other_and_no_value_is_none() -> None:
    """A later release may have more states. Each text would be a time series of its own."""
    container = codec.encode(CONTAINER, Container(id="c-1", actual_state="running"))
    changes = TallyChanges()
    for entity in (container, container.replace(b"grunning", b"gmelting"), container.replace(b"grunning", b"\x60")):
        changes.note(CONTAINER.number, codec.make_record(3, entity), entity, None)
    counts = changes.applied_to({})
    assert counts == {(3, ("running",)): 1, (3, (OTHER,)): 1, (3, (UNSET,)): 1}


@pytest.mark.parametrize("kind", [NODE, CONTAINER])
def test_damaged_bytes_are_counted_somewhere_and_raise_nothing(kind: object) -> None:
    entity = codec.encode(CONTAINER, replace(some_container(Random(1)), id="c-1"))
    good = codec.make_record(7, entity)
    random = Random(2)
    for _ in range(3_000):
        damaged = bytearray(good)
        for _ in range(random.randrange(1, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        bad = bytes(damaged[: random.randrange(1, len(damaged) + 1)])
        changes = TallyChanges()
        changes.note(CONTAINER.number, bad, bad[2:], good)
        changes.note(CONTAINER.number, good, entity, bad)
        changes.note(NODE.number, bad, bad[2:], None)
        changes.note(NODE.number, None, None, bad)
        assert all(changes.applied_to({}).values())
