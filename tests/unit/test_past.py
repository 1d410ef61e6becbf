"""Promise: within the kept history, an entity as of a revision is the one that a reader of that revision saw.

Where that is not known, an error says so, with the range that is kept. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fsm_harness import delete, one, put
from warren_raft.errors import NotFound
from warren_raft.fsm import history
from warren_raft.fsm.machine import StateMachine
from warren_raft.fsm.past import NotKept, entity_at
from warren_raft.local.store import LocalStore
from warren_raft.model.entities import Container, Node, Service
from warren_raft.store.command import DELETE_CASCADE, Operation
from warren_raft.store.database import Database
from warren_raft.store.tables import CA, CA_ID, CONTAINER, KINDS, NODE, SERVICE, Kind

IDS: Mapping[Kind[Any], tuple[str, ...]] = {
    NODE: ("n-1", "n-2"),
    SERVICE: ("s-1", "s-2"),
    CONTAINER: ("c-1", "c-2", "c-3"),
    CA: (CA_ID,),
}
State = dict[tuple[str, str], tuple[Any, int]]
"""By kind and id: the entity, and its revision (0 for the CA, whose bytes have none)."""


def operations() -> st.SearchStrategy[Operation]:
    value = st.sampled_from(("a", "b", ""))
    return st.one_of(
        st.builds(lambda id_, name: put(Node(id=id_, hostname=name)), st.sampled_from(IDS[NODE]), value),
        st.builds(lambda id_, name: put(Service(id=id_, name=name)), st.sampled_from(IDS[SERVICE]), value),
        st.builds(
            lambda id_, service, node: put(Container(id=id_, service_id=service, node_id=node)),
            st.sampled_from(IDS[CONTAINER]),
            st.sampled_from(IDS[SERVICE]),
            value,
        ),
        st.builds(lambda data: put(data.encode() or b"-"), value),
        st.sampled_from([delete(kind, id_) for kind, ids in IDS.items() for id_ in ids if kind is not CA]),
        st.builds(lambda id_: Operation(DELETE_CASCADE, SERVICE.number, id_), st.sampled_from(IDS[SERVICE])),
    )


def state_of(machine: StateMachine) -> State:
    """Everything that a reader sees now."""
    with machine.database.read() as transaction:
        return {
            (kind.name, id_): (entity, getattr(entity, "revision", 0))
            for kind, ids in IDS.items()
            for id_ in ids
            if (entity := entity_in_state(transaction, kind, id_)) is not None
        }


def entity_in_state(transaction: Any, kind: Kind[Any], id_: str) -> Any:
    from warren_raft.store import codec

    record = transaction.get(kind, id_)
    return None if record is None else codec.decode(kind, record)


def seen_at(machine: StateMachine, revision: int) -> tuple[State, set[tuple[str, str]]]:
    """The state as of a revision, and the entities that are not known of it."""
    found: State = {}
    unknown = set()
    with machine.database.read() as transaction:
        for kind, ids in IDS.items():
            for id_ in ids:
                try:
                    entity = entity_at(transaction, kind, id_, revision)
                    found[kind.name, id_] = entity, getattr(entity, "revision", 0)
                except NotFound:
                    pass
                except NotKept as error:
                    unknown.add((kind.name, id_, error.changed_at))
    assert all(changed_at is not None and changed_at > revision for *_, changed_at in unknown)
    return found, {(kind_name, id_) for kind_name, id_, _ in unknown}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    with Database.open(tmp_path, sync=False) as database:
        yield StateMachine(database)


COMMANDS = st.lists(st.lists(operations(), min_size=1, max_size=4), max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=COMMANDS)
def test_each_kept_revision_is_as_it_was(tmp_path_factory: pytest.TempPathFactory, commands: list[Any]) -> None:
    with Database.open(tmp_path_factory.mktemp("past"), sync=False) as database:
        machine = StateMachine(database)
        states = [state_of(machine)]
        for each in commands:
            one(machine, *each)
            if machine.revision == len(states):
                states.append(state_of(machine))
        for revision, state in enumerate(states):
            assert seen_at(machine, revision) == (state, set())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=COMMANDS, most=st.integers(1, 12))
def test_what_was_dropped_is_never_guessed(
    tmp_path_factory: pytest.TempPathFactory, commands: list[Any], most: int
) -> None:
    """Every entity that is found is right, and every other one is said to be unknown, not to be missing."""
    with pytest.MonkeyPatch.context() as patch, Database.open(tmp_path_factory.mktemp("past"), sync=False) as database:
        patch.setattr(history, "MAX_CHANGES", most)
        machine = StateMachine(database)
        states = [state_of(machine)]
        for each in commands:
            one(machine, *each)
            if machine.revision == len(states):
                states.append(state_of(machine))
        with database.read() as transaction:
            oldest = history.floor(transaction)
        for revision in range(oldest, len(states)):
            found, unknown = seen_at(machine, revision)
            known = {key: value for key, value in states[revision].items() if key not in unknown}
            assert found == known
        for revision in (*range(oldest), len(states)):
            with database.read() as transaction, pytest.raises(NotKept) as caught:
                entity_at(transaction, NODE, "n-1", revision)
            assert (caught.value.oldest, caught.value.newest) == (oldest, len(states) - 1)


def test_an_entity_that_was_deleted_and_made_again(machine: StateMachine) -> None:
    one(machine, put(Node(id="n-1", hostname="first")))
    one(machine, put(Node(id="n-1", hostname="second")), delete(NODE, "n-1"))
    one(machine, put(Node(id="n-1", hostname="third")))
    states = [seen_at(machine, revision)[0].get(("node", "n-1")) for revision in range(4)]
    assert states == [
        None,
        (Node(id="n-1", hostname="first"), 1),
        None,
        (Node(id="n-1", hostname="third"), 3),
    ]


def test_an_error_says_which_revisions_are_kept(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 2)
    for number in range(6):
        one(machine, put(Node(id="n-1", hostname=str(number))))
    with machine.database.read() as transaction:
        for revision, text in (
            (3, "revision 3 is not kept any more: name one from 4 to 6"),
            (7, "revision 7 has not happened here yet: name one from 4 to 6"),
            (4, "node 'n-1' as of revision 4 is not kept: the changes since revision 4 are kept, and the first of "
                "this node is at revision 5"),
        ):  # fmt: skip
            with pytest.raises(NotKept) as caught:
                entity_at(transaction, NODE, "n-1", revision)
            assert str(caught.value) == text


def test_every_kind_is_covered() -> None:
    """(The state machine treats the other kinds as it treats these: with one index, with two, without, and the CA.)"""
    assert set(IDS) <= set(KINDS)
    assert {bool(kind.indexes) for kind in IDS} == {True, False}


def test_it_does_not_keep_the_files_open(tmp_path: Path) -> None:
    from warren_raft.fsm.past import get_at

    with LocalStore(tmp_path / "s") as store:
        revision = store.create_node(Node(id="n-1"))
        kept = []
        for wrong in (0, revision + 1):
            with pytest.raises((NotFound, NotKept)) as caught:
                get_at(store, NODE, "n-1", wrong)
            kept.append(caught.value)
        assert get_at(store, NODE, "n-1", revision) == Node(id="n-1")
    with LocalStore(tmp_path / "s") as store:
        assert store.get_node("n-1").revision == revision
