"""Promise: a fenced command takes effect only in an entry of its term, and a command with a request key takes effect
once, whoever sends it again. Conditions come before the first write, and a command that changes nothing is no change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fsm_harness import apply, command, contents, delete, one, put
from warren_raft.errors import LeadershipLost
from warren_raft.fsm import requests
from warren_raft.fsm.answers import BAD_KIND, CONFLICT, LEADERSHIP_LOST, MALFORMED, Result, raise_for
from warren_raft.fsm.history import since
from warren_raft.fsm.machine import StateMachine, recompute_digest
from warren_raft.fsm.requests import sessions_in
from warren_raft.model.entities import Container, Node, Service
from warren_raft.snapshots.records import Unreadable, check_sessions
from warren_raft.store import codec
from warren_raft.store.command import DELETE, DELETE_CASCADE, OPEN_SESSION, PUT, REQUIRE, Operation
from warren_raft.store.database import Database
from warren_raft.store.request_memory import RequestMemory
from warren_raft.store.tables import CONTAINER, NODE, SERVICE, Kind
from warren_raft.store.transactions import HISTORY, SESSIONS


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    with Database.open(tmp_path, sync=False) as database:
        yield StateMachine(database)
        with database.read() as transaction:
            check_sessions(transaction)
            assert transaction.verify_indexes() == []


def revision_of(machine: StateMachine, kind: Kind[Any], id_: str) -> int:
    with machine.database.read() as transaction:
        record = transaction.get(kind, id_)
        return 0 if record is None else codec.record_revision(record)


def sound(machine: StateMachine) -> StateMachine:
    """The same after a restart."""
    with machine.database.read() as transaction:
        assert recompute_digest(transaction) == machine.digest
    return StateMachine(machine.database)


def require(kind: Kind[Any], id_: str, revision: int) -> Operation:
    return Operation(REQUIRE, kind.number, id_, None, revision)


def cascade(id_: str, if_revision: int | None = None) -> Operation:
    return Operation(DELETE_CASCADE, SERVICE.number, id_, None, if_revision)


def node(number: int, name: str = "") -> Operation:
    return put(Node(id=f"n-{number}", hostname=name))


# ---------------------------------------------------------------------------------------- fences


def test_a_fenced_command_takes_effect_in_an_entry_of_its_term_only(machine: StateMachine) -> None:
    assert one(machine, node(1), term=5, fence=5).revision == 1
    for fence in (4, 6, 2**64 - 1):
        assert one(machine, node(2), term=5, fence=fence) == (0, 0, 1, (LEADERSHIP_LOST, fence))
    assert revision_of(machine, NODE, "n-2") == 0
    assert one(machine, node(2), term=6).revision == 2  # without a fence
    sound(machine)


def test_the_term_is_that_of_the_entry_also_where_several_are_applied_at_once(machine: StateMachine) -> None:
    """A manager that catches up applies entries of several terms in one transaction, long after those terms."""
    entries = [(term, [command(node(term, str(fence)), fence=fence) for fence in (3, 4)]) for term in (3, 4)]
    results = machine.apply_all(machine.applied_index + 1, entries)
    assert [[result.error for result in each] for each in results] == [
        [None, (LEADERSHIP_LOST, 4)],
        [(LEADERSHIP_LOST, 3), None],
    ]


def test_a_lost_leadership_is_told_before_any_condition_and_remembered(machine: StateMachine) -> None:
    apply(machine, command(Operation(OPEN_SESSION), session=5))
    late = command(put(Node(id="n"), 7), session=5, sequence=1, fence=3)
    first = apply(machine, late, term=4)[0]
    assert first.error == (LEADERSHIP_LOST, 3)
    assert apply(machine, late, term=3)[0] == first, "a copy in another entry gets the same answer"
    with pytest.raises(LeadershipLost) as lost:
        raise_for(first)
    assert lost.value.term == 3
    machine = sound(machine)
    assert apply(machine, late, term=3)[0] == first


def test_a_fenced_barrier_tells_whether_the_leadership_lasts(machine: StateMachine) -> None:
    assert one(machine, term=5, fence=5).error is None
    assert one(machine, term=6, fence=5).error == (LEADERSHIP_LOST, 5)


# ---------------------------------------------------------------------------------------- conditions


def test_a_required_revision_changes_nothing_itself(machine: StateMachine) -> None:
    one(machine, node(1))
    assert one(machine, require(NODE, "n-1", 1), node(2)).revision == 2
    assert one(machine, require(NODE, "n-3", 0)).revision == 2, "no revision is taken"
    assert one(machine, node(3), require(NODE, "n-1", 7)).error == (CONFLICT, NODE.number, "n-1", 7, 1)
    assert revision_of(machine, NODE, "n-1") == 1
    assert revision_of(machine, NODE, "n-3") == 0
    with machine.database.read() as transaction:
        assert [change.operations for change in since(transaction, 0)] == [(node(1),), (node(2),)]


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ((delete(NODE, "n-1"), put(Node(id="n-1", hostname="x"), 1)), None),
        ((delete(NODE, "n-1"), put(Node(id="n-1", hostname="x"), 0)), (CONFLICT, 1, "n-1", 0, 1)),
        ((node(2), put(Node(id="n-2", hostname="x"), 0)), None),
        ((node(2), require(NODE, "n-2", 2)), (CONFLICT, 1, "n-2", 2, 0)),
        ((put(Node(id="n-1", hostname="x"), 1), put(Node(id="n-1", hostname="y"), 1)), None),
        ((put(Node(id="n-1", hostname="x"), 3), put(Node(id="n-1", hostname="y"), 4)), (CONFLICT, 1, "n-1", 3, 1)),
        ((cascade("s", 7), require(NODE, "n-1", 9)), (CONFLICT, 2, "s", 7, 0)),
    ],
)
def test_all_conditions_are_evaluated_before_the_first_write(
    machine: StateMachine, batch: Sequence[Operation], error: tuple[Any, ...] | None
) -> None:
    one(machine, node(1))
    assert one(machine, *batch).error == error
    assert machine.revision == (2 if error is None else 1)
    sound(machine)


# ---------------------------------------------------------------------------------------- nothing changed


def test_an_equal_entity_is_no_change_and_the_answer_is_its_revision(machine: StateMachine) -> None:
    one(machine, node(1, "a"))
    one(machine, node(2, "b"))
    before = contents(machine.database)
    assert one(machine, node(1, "a")).revision == 1
    assert one(machine, node(2, "b"), node(1, "a")).revision == 2, "the newest of several"
    assert one(machine, put(Node(id="n-1", hostname="a"), 1)).revision == 1
    assert one(machine, put(Node(id="n-1", hostname="a"), 2)).error == (CONFLICT, NODE.number, "n-1", 2, 1)
    assert one(machine, delete(NODE, "none"), node(1, "a")).revision == 1
    assert one(machine, delete(NODE, "none")).revision == 2
    after = contents(machine.database)
    assert {name: after[name] for name in after if name != "meta"} == {
        name: before[name] for name in before if name != "meta"
    }
    assert machine.revision == 2
    sound(machine)


def test_of_a_batch_only_the_changes_are_events(machine: StateMachine) -> None:
    one(machine, node(1, "a"), node(2, "b"))
    assert one(machine, node(1, "a"), node(2, "c"), delete(NODE, "none"), node(1, "a")).revision == 2
    assert (revision_of(machine, NODE, "n-1"), revision_of(machine, NODE, "n-2")) == (1, 2)
    with machine.database.read() as transaction:
        assert [change.operations for change in since(transaction, 1)] == [(node(2, "c"),)]
    sound(machine)


@pytest.mark.parametrize("size", [0, 900, 1_100, 5_000, 300_000])
def test_a_large_entity_is_compared_too(machine: StateMachine, size: int) -> None:
    """Records above a page are written in another way if they are written twice in one transaction."""
    large = put(Service(id="s", name="web", env=("x" * size,)))
    other = put(Service(id="s", name="db", env=("y" * size,)))
    one(machine, large)
    assert one(machine, large, large).revision == 1
    assert one(machine, other, other, large, large).revision == 2
    assert one(machine, large).revision == 2
    with machine.database.read() as transaction:
        (change,) = since(transaction, 1)
        assert change.operations == (other, large)
        assert transaction.size(HISTORY) == 2
    sound(machine)


def test_an_entity_that_another_one_ends_with_is_not_equal_to_it(machine: StateMachine) -> None:
    """The comparison must look at the whole entity. No writer makes such bytes, but a peer can send them."""
    tail = codec.encode(NODE, Node(id="n"))
    long = Operation(PUT, NODE.number, "n", b"\x82\x61n\x58" + bytes((len(tail),)) + tail)
    assert one(machine, long).revision == 1
    assert one(machine, Operation(PUT, NODE.number, "n", tail)).revision == 2
    sound(machine)


# ---------------------------------------------------------------------------------------- cascades


def container(number: int, service: str) -> Operation:
    return put(Container(id=f"c-{number}", service_id=service, node_id="n"))


def test_a_cascade_takes_the_containers_of_the_service_along(machine: StateMachine) -> None:
    one(machine, put(Service(id="s", name="web")), put(Service(id="t", name="db")))
    one(machine, *(container(number, "s") for number in (3, 1, 2)), container(9, "t"))
    assert one(machine, cascade("s")).revision == 3
    with machine.database.read() as transaction:
        assert [key for key, _ in transaction.items(CONTAINER)] == [b"c-9"]
        assert [key for key, _ in transaction.items(SERVICE)] == [b"t"]
        (change,) = since(transaction, 2)
    assert [(each.verb, each.kind_number, each.id) for each in change.operations] == [
        *((DELETE, CONTAINER.number, f"c-{number}") for number in (1, 2, 3)),
        (DELETE, SERVICE.number, "s"),
    ]
    assert change.before == (*[("s", "n")] * 3, ("web",))
    sound(machine)


def test_a_cascade_sees_the_writes_before_it_in_its_batch(machine: StateMachine) -> None:
    one(machine, put(Service(id="s", name="web")), container(1, "s"), container(2, "s"))
    assert one(machine, container(1, "t"), container(3, "s"), cascade("s"), container(4, "s")).revision == 2
    with machine.database.read() as transaction:
        assert [key for key, _ in transaction.items(CONTAINER)] == [b"c-1", b"c-4"]
    sound(machine)


def test_a_cascade_without_a_service_removes_its_containers_and_else_changes_nothing(machine: StateMachine) -> None:
    one(machine, container(1, "s"))
    assert one(machine, cascade("t")).revision == 1
    assert one(machine, cascade("s")).revision == 2
    assert revision_of(machine, CONTAINER, "c-1") == 0
    assert one(machine, cascade("s")).revision == 2


def test_a_cascade_of_another_kind_is_refused(machine: StateMachine) -> None:
    one(machine, node(1))
    assert one(machine, Operation(DELETE_CASCADE, NODE.number, "n-1")).error == (MALFORMED, BAD_KIND)
    assert one(machine, Operation(REQUIRE, 23, "n-1", None, 1)).error == (MALFORMED, BAD_KIND)
    assert revision_of(machine, NODE, "n-1") == 1


# ---------------------------------------------------------------------------------------- request keys


def keyed(machine: StateMachine, key: str, *operations: Operation, **more: Any) -> Result:
    return one(machine, *operations, request_key=key, **more)


def keys(machine: StateMachine) -> list[str]:
    with machine.database.read() as transaction:
        check_sessions(transaction)
        found = [key[2:].decode() for key, _ in transaction.scan(SESSIONS, b"\xffk") if key.startswith(b"\xffk")]
        assert transaction.size(SESSIONS) == len(list(sessions_in(transaction))) + 2 * len(found)
    assert len(found) == len(machine._requests) == len(sound(machine)._requests)
    return found


def test_a_command_with_a_known_key_is_not_carried_out_again(machine: StateMachine) -> None:
    """Its first sender crashed before it heard the answer. Another process makes the write again, in a session of its
    own, and with other bytes: it does not remember the time that it wrote into the entity."""
    first = keyed(machine, "job-17", node(1, "a"))
    one(machine, node(1, "b"))
    machine = sound(machine)
    assert keyed(machine, "job-17", node(1, "c")) == first
    assert keyed(machine, "job-18", node(2)).revision == 3
    assert machine.revision == 3
    assert keys(machine) == ["job-17", "job-18"]


def test_it_is_found_in_the_same_entry_and_the_same_transaction(machine: StateMachine) -> None:
    datas = [command(node(number), request_key="job") for number in (1, 2)]
    assert [result.revision for result in apply(machine, *datas)] == [1, 1]
    entries = [(1, [command(node(number), request_key="other")]) for number in (3, 4)]
    assert [each[0].revision for each in machine.apply_all(machine.applied_index + 1, entries)] == [2, 2]
    assert keys(machine) == ["job", "other"]


def test_a_refusal_leaves_its_key_free(machine: StateMachine) -> None:
    """Nothing was changed. The next leader must be able to do the job that an old one was refused."""
    assert keyed(machine, "job", node(1), term=4, fence=3).error == (LEADERSHIP_LOST, 3)
    assert keyed(machine, "job", put(Node(id="n-1"), 5)).error == (CONFLICT, NODE.number, "n-1", 5, 0)
    assert keys(machine) == []
    assert keyed(machine, "job", node(1), term=4, fence=4).revision == 1
    assert keyed(machine, "job", node(1), term=5, fence=4).revision == 1, "it is done already"
    assert keys(machine) == ["job"]


def test_a_command_that_changed_nothing_keeps_its_key_too(machine: StateMachine) -> None:
    assert keyed(machine, "job", delete(NODE, "n-1")).revision == 0
    one(machine, node(1))
    assert keyed(machine, "job", delete(NODE, "n-1")).revision == 0
    assert revision_of(machine, NODE, "n-1") == 1


def test_keys_outlast_every_session(machine: StateMachine) -> None:
    apply(machine, command(Operation(OPEN_SESSION), session=5))
    write = command(node(1), session=5, sequence=1, request_key="job")
    first = apply(machine, write)[0]
    assert apply(machine, write)[0] == first
    apply(machine, command(Operation(OPEN_SESSION), session=6))
    again = apply(machine, command(node(1, "x"), session=6, sequence=1, request_key="job"))[0]
    assert (again.revision, again.error) == (1, None)
    assert machine.revision == 1
    assert keys(machine) == ["job"]


def test_old_keys_are_forgotten_and_no_newer_ones(machine: StateMachine) -> None:
    first_index = machine.applied_index + 1
    for number in range(5):
        keyed(machine, f"job-{number}", node(number))
    keyed(machine, "job-5", node(5), forget_below=first_index + 3)
    assert keys(machine) == ["job-3", "job-4", "job-5"]
    keyed(machine, "job-6", node(6), forget_below=2**64 - 1)
    assert keys(machine) == ["job-6"], "a wrong sender cannot forget the key that it brings"


def test_a_long_backlog_is_forgotten_step_by_step(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_FORGOTTEN_PER_COMMAND", 3)
    apply(machine, *(command(node(number), request_key=f"a-{number}") for number in range(8)))
    below = machine.applied_index + 1
    found = []
    for number in range(4):
        keyed(machine, f"b-{number}", node(number), forget_below=below)
        found.append(len(keys(machine)))
    assert found == [6, 4, 3, 4]


def test_the_number_of_keys_is_bounded(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_REQUESTS", 5)
    for number in range(12):
        keyed(machine, f"{number:02}", node(number))
    assert keys(machine) == ["07", "08", "09", "10", "11"]


@pytest.mark.parametrize(
    ("key", "record"),
    [
        (b"\xffkjob", b"short"),
        (b"\xffkjob", bytes(20)),
        (b"\xffkother", bytes(20)),
        (b"\xffk", bytes(20)),
        (b"\xffo" + bytes(12), b"other"),
        (b"\xffo" + bytes(11), b"job"),
        (b"\xffx", b""),
    ],
)
def test_a_damaged_record_of_a_key_is_found_by_the_check(tmp_path: Path, key: bytes, record: bytes) -> None:
    with Database.open(tmp_path, sync=False) as database:
        keyed(StateMachine(database), "job", node(1))
        with database.read() as transaction:
            check_sessions(transaction)
        with database.write() as transaction:
            transaction.store(SESSIONS, key, record)
        with database.read() as transaction, pytest.raises(Unreadable, match="sessions cannot be read"):
            check_sessions(transaction)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 3), st.booleans()), max_size=14))
def test_with_keys_and_fences_at_random_the_state_is_that_of_a_plain_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int, bool]]
) -> None:
    """`steps`: (key, fence, term, whether the manager restarts before it)."""
    with Database.open(tmp_path_factory.mktemp("keys"), sync=False) as database:
        machine = StateMachine(database)
        done: dict[int, int] = {}
        for number, (key, fence, term, restarts) in enumerate(steps):
            if restarts:
                machine = sound(machine)
            revision = machine.revision
            result = keyed(machine, f"key-{key}" if key else "", node(number), fence=fence, term=term)
            if key and key in done:
                assert (result.revision, result.error, machine.revision) == (done[key], None, revision)
            elif fence not in (0, term):
                assert (result.error, machine.revision) == ((LEADERSHIP_LOST, fence), revision)
            else:
                assert result.revision == machine.revision == revision + 1
                done[key] = result.revision
        sound(machine)


# ---------------------------------------------------------------------------------------- how long


def test_a_key_is_remembered_for_its_time_by_the_managers_own_clock() -> None:
    now, applied = [1000.0], [7]
    memory = RequestMemory(160.0, lambda: applied[0], lambda: now[0])
    assert memory.forget_below() == 0
    now[0], applied[0] = 1159.0, 50
    assert memory.forget_below() == 0
    now[0] = 1160.0
    assert memory.forget_below() == 8, "entries up to 7 were applied 160 seconds ago"
    now[0] = 1318.9
    assert memory.forget_below() == 8
    now[0] = 1319.0
    assert memory.forget_below() == 51


def test_the_notes_are_few_however_often_a_key_is_sent() -> None:
    now = [0.0]
    memory = RequestMemory(100.0, lambda: int(now[0] * 10), lambda: now[0])
    for step in range(5_000):
        now[0] = step / 10
        below = memory.forget_below()
        assert below <= max(0, step - 1000) + 1
        assert below >= step - 1000 - 70
        assert len(memory._notes) <= 18
