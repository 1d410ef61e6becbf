"""Promise: a command is carried out once and always gets the same answer, however often and with whichever others it
arrives.

The rules are those of the Raft thesis (6.3) and of RIFL. Everything that is remembered for this is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fsm_harness import apply, command, contents, delete, put
from warren_raft.fsm import sessions as sessions_module
from warren_raft.fsm.answers import (
    BAD_ENTITY,
    BAD_SESSION,
    CONFLICT,
    MALFORMED,
    STALE,
    TOO_MANY_OUTSTANDING,
    UNKNOWN_SESSION,
    Result,
)
from warren_raft.fsm.machine import StateMachine, recompute_digest
from warren_raft.fsm.sessions import MAX_OUTSTANDING, Session
from warren_raft.model.entities import Node
from warren_raft.store import codec
from warren_raft.store.command import (
    CLOSE_SESSION,
    OPEN_SESSION,
    PUT,
    Operation,
)
from warren_raft.store.database import Database
from warren_raft.store.tables import NODE
from warren_raft.store.transactions import SESSIONS

S = 2**62 + 11


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    with Database.open(tmp_path, sync=False) as database:
        machine = StateMachine(database)
        open_session(machine, S)
        yield machine


def open_session(machine: StateMachine, session: int, sequence: int = 0, lowest: int = 0) -> Result:
    return apply(machine, command(Operation(OPEN_SESSION), session=session, sequence=sequence, lowest=lowest))[0]


def close_session(machine: StateMachine, session: int, sequence: int = 0) -> Result:
    return apply(machine, command(Operation(CLOSE_SESSION), session=session, sequence=sequence))[0]


def say(machine: StateMachine, sequence: int, *operations: Operation, lowest: int = 0, session: int = S) -> Result:
    return apply(machine, command(*operations, session=session, sequence=sequence, lowest=lowest))[0]


def node(name: str) -> Operation:
    return put(Node(id="n", hostname=name))


def hostname(machine: StateMachine) -> str | None:
    with machine.database.read() as transaction:
        record = transaction.get(NODE, "n")
        return None if record is None else codec.decode(NODE, record).hostname


def session_records(machine: StateMachine) -> dict[int, Session]:
    with machine.database.read() as transaction:
        assert recompute_digest(transaction) == machine.digest
        return {int.from_bytes(key, "big"): Session.decode(r) for key, r in transaction.scan(SESSIONS)}


# ---------------------------------------------------------------------------------------- once


def test_a_command_that_comes_again_gets_the_same_answer_and_changes_nothing(machine: StateMachine) -> None:
    """Its sender saw no answer: the leader died, or the connection did, after the command was committed."""
    first = say(machine, 1, node("a"))
    second = say(machine, 2, node("b"))
    assert (first.revision, second.revision) == (1, 2)
    for _ in range(3):
        assert say(machine, 1, node("a")) == first
    assert machine.revision == 2
    assert hostname(machine) == "b"
    assert say(machine, 3, node("c")).revision == 3


def test_it_is_found_in_the_same_entry_too(machine: StateMachine) -> None:
    data = command(node("a"), session=S, sequence=1)
    results = apply(machine, data, data, command(node("b"), session=S, sequence=2), data)
    assert [result.revision for result in results] == [1, 1, 2, 1]
    assert machine.revision == 2


def test_it_is_found_after_a_restart(machine: StateMachine) -> None:
    first = say(machine, 1, node("a"), lowest=1)
    machine = StateMachine(machine.database)
    assert say(machine, 1, node("a"), lowest=1) == first
    assert machine.revision == 1


@pytest.mark.parametrize(
    ("operations", "error"),
    [
        ([put(Node(id="n"), 7)], (CONFLICT, NODE.number, "n", 7, 0)),
        ([Operation(PUT, NODE.number, "n", b"junk")], (MALFORMED, BAD_ENTITY)),
    ],
)
def test_a_refusal_is_an_answer_like_any_other(
    machine: StateMachine, operations: list[Operation], error: tuple[Any, ...]
) -> None:
    """Carried out again later, when the condition holds, a write that was reported as refused would happen."""
    first = say(machine, 1, *operations)
    assert first.error == error
    for number in range(7):
        apply(machine, command(node(f"other {number}")))
    machine = StateMachine(machine.database)
    assert say(machine, 1, *operations) == first
    assert machine.revision == 7


def test_a_barrier_and_a_deletion_of_nothing_are_remembered_too(machine: StateMachine) -> None:
    barrier, deletion = say(machine, 1), say(machine, 2, delete(NODE, "n"))
    apply(machine, command(node("a")))
    assert say(machine, 1) == barrier
    assert say(machine, 2, delete(NODE, "n")) == deletion
    assert hostname(machine) is not None


def test_without_a_session_nothing_is_remembered(machine: StateMachine) -> None:
    data = command(node("a"), version=1)
    assert [result.revision for result in apply(machine, data, data)] == [1, 2]
    assert list(session_records(machine)) == [S]


def test_two_sessions_count_for_themselves(machine: StateMachine) -> None:
    open_session(machine, 5)
    assert say(machine, 1, node("a")).revision == 1
    assert say(machine, 1, node("b"), session=5).revision == 2
    assert say(machine, 1, node("a")).revision == 1


# ---------------------------------------------------------------------------------------- commands and waiting senders


def test_answers_that_nobody_waits_for_are_dropped(machine: StateMachine) -> None:
    for sequence in range(1, 11):
        say(machine, sequence, node(str(sequence)), lowest=max(1, sequence - 2))
    session = session_records(machine)[S]
    assert list(session.answers) == [8, 9, 10]
    assert session.lowest == 8


def test_refusals_are_dropped_like_answers_and_a_restart_changes_no_byte(machine: StateMachine) -> None:
    for sequence in range(1, 7):
        say(machine, sequence, put(Node(id="n", hostname=str(sequence)), None if sequence % 2 else 77), lowest=1)
    session = session_records(machine)[S]
    assert (list(session.answers.values()), list(session.refusals)) == ([1, 2, 3], [2, 4, 6])
    assert session.encode() == session.record
    say(machine, 7, node("a"), lowest=4)
    session = session_records(machine)[S]
    assert (list(session.answers), list(session.refusals)) == ([5, 7], [4, 6])
    say(machine, 2**64 - 1, put(Node(id="n"), 77), lowest=2**64 - 1)
    session = session_records(machine)[S]
    assert (session.answers, list(session.refusals)) == ({}, [2**64 - 1])


def test_a_command_below_the_lowest_awaited_sequence_is_stale(machine: StateMachine) -> None:
    """Its sender gave up. If it were carried out now, it would surprise the senders of later writes."""
    say(machine, 5, node("a"), lowest=5)
    for sequence, lowest in [(4, 0), (1, 1), (0, 0)]:
        result = say(machine, sequence, node("late"), lowest=lowest)
        assert (result.error, result.revision) == ((STALE,), 1)
    assert machine.revision == 1
    assert session_records(machine)[S].lowest == 5


def test_lowest_never_goes_back(machine: StateMachine) -> None:
    say(machine, 9, node("a"), lowest=9)
    say(machine, 10, node("b"), lowest=2)
    assert session_records(machine)[S].lowest == 9
    assert say(machine, 8, node("late")).error == (STALE,)


def test_a_leap_of_lowest_costs_no_loop(machine: StateMachine) -> None:
    say(machine, 1, node("a"), lowest=1)
    say(machine, 2**64 - 1, node("b"), lowest=2**64 - 1)
    session = session_records(machine)[S]
    assert (session.lowest, list(session.answers)) == (2**64 - 1, [2**64 - 1])


def test_answers_come_in_any_order(machine: StateMachine) -> None:
    """After a change of leader, an earlier sequence may be carried out after a later one."""
    assert [say(machine, sequence, node(str(sequence)), lowest=1).revision for sequence in (3, 1, 2)] == [1, 2, 3]
    assert [say(machine, sequence, node(str(sequence)), lowest=1).revision for sequence in (1, 2, 3)] == [2, 3, 1]


def test_a_sender_too_far_above_its_lowest_awaited_sequence_is_refused(machine: StateMachine) -> None:
    assert say(machine, 1 + MAX_OUTSTANDING, node("a"), lowest=1).error == (TOO_MANY_OUTSTANDING,)
    assert machine.revision == 0
    assert say(machine, MAX_OUTSTANDING, node("b"), lowest=1).revision == 1
    assert say(machine, 1 + MAX_OUTSTANDING, node("c"), lowest=2).revision == 2


# ---------------------------------------------------------------------------------------- opening and closing


def test_a_command_of_no_known_session_is_not_carried_out(machine: StateMachine) -> None:
    before = contents(machine.database)[SESSIONS]
    result = say(machine, 1, node("a"), session=12345)
    assert (result.session, result.sequence, result.revision, result.error) == (12345, 1, 0, (UNKNOWN_SESSION,))
    assert hostname(machine) is None
    assert contents(machine.database)[SESSIONS] == before


def test_opening_again_changes_nothing_that_was_answered(machine: StateMachine) -> None:
    first = say(machine, 1, node("a"), lowest=1)
    assert open_session(machine, S).error is None
    assert say(machine, 1, node("a"), lowest=1) == first
    assert machine.revision == 1


def test_a_closed_session_is_not_opened_by_a_late_copy_of_its_first_command(machine: StateMachine) -> None:
    """The copies of both its opening and its first write arrive after it was closed: the write is not done again."""
    say(machine, 1, node("a"))
    say(machine, 2, put(Node(id="n"), 77))
    assert close_session(machine, S, 3).error is None
    assert open_session(machine, S).error == (UNKNOWN_SESSION,)
    assert say(machine, 1, node("a")).error == (UNKNOWN_SESSION,)
    assert machine.revision == 1
    assert close_session(machine, S, 2).error is None
    machine = StateMachine(machine.database)
    assert open_session(machine, S).error == (UNKNOWN_SESSION,)
    session = session_records(machine)[S]
    assert (session.is_closed, session.answers, session.refusals) == (True, {}, {})


def test_closing_a_session_that_was_never_opened_is_answered(machine: StateMachine) -> None:
    assert close_session(machine, 99).error == (UNKNOWN_SESSION,)
    assert list(session_records(machine)) == [S]


@pytest.mark.parametrize("verb", [OPEN_SESSION, CLOSE_SESSION])
def test_there_is_no_session_of_number_0(machine: StateMachine, verb: int) -> None:
    assert apply(machine, command(Operation(verb)))[0].error == (MALFORMED, BAD_SESSION)
    assert list(session_records(machine)) == [S]


def test_the_session_least_recently_used_is_evicted(machine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MAX_SESSIONS", 3)
    open_session(machine, 10)
    open_session(machine, 20)
    say(machine, 1, node("a"))  # S is in use
    open_session(machine, 30)
    assert sorted(session_records(machine)) == [20, 30, S]
    assert say(machine, 1, node("b"), session=10).error == (UNKNOWN_SESSION,)
    assert say(machine, 1, node("a")).revision == 1
    assert machine.revision == 1


def test_of_sessions_used_in_the_same_entry_the_smallest_number_goes(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_SESSIONS", 4)
    opening = [command(Operation(OPEN_SESSION), session=number) for number in (7, 3, 5, 9, 1, 2)]
    apply(machine, *opening)
    assert sorted(session_records(machine)) == [2, 5, 7, 9]  # S went first; then 3 for 1; then 1 for 2
    assert StateMachine(machine.database).committed == machine.committed


def test_a_session_evicted_and_opened_again_within_an_entry_starts_empty(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_SESSIONS", 1)
    say(machine, 1, node("a"))
    opening = [command(Operation(OPEN_SESSION), session=number) for number in (7, S, 7, S)]
    apply(machine, *opening)
    assert {number: session.answers for number, session in session_records(machine).items()} == {S: {}}


def test_a_session_is_written_once_an_entry_however_much_it_says(
    machine: StateMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    real = Session.encode
    monkeypatch.setattr(Session, "encode", lambda self: encoded.append(self) or real(self))
    apply(machine, *(command(node("x"), session=S, sequence=n, lowest=1) for n in range(1, 65)))
    assert len(encoded) == 1
    assert list(session_records(machine)[S].answers) == list(range(1, 65))


# ---------------------------------------------------------------------------------------- all together


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_repeated_lost_and_reordered_each_command_happens_at_most_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A sender with a few commands under way, a network that repeats and reorders them, managers that restart."""
    with Database.open(tmp_path_factory.mktemp("once"), sync=False) as database:
        machine = StateMachine(database)
        open_session(machine, S)
        answers: dict[int, Result] = {}
        finished: set[int] = set()
        under_way: list[tuple[int, bytes]] = []
        done = 0
        for sequence in range(1, data.draw(st.integers(2, 14))):
            waiting = [n for n in range(1, sequence) if n not in finished]
            lowest = min([*waiting, sequence])
            operation = put(Node(id=f"n-{sequence}"), 0 if data.draw(st.booleans()) else None)
            under_way.append((sequence, command(operation, session=S, sequence=sequence, lowest=lowest)))
            copies = data.draw(st.lists(st.sampled_from(under_way), max_size=6))
            for (number, _), result in zip(copies, apply(machine, *(copy for _, copy in copies)), strict=True):
                if result.error == (STALE,):
                    assert number in finished
                    continue
                assert answers.setdefault(number, result) == result
                done = max(done, result.revision)
            heard = data.draw(st.lists(st.sampled_from(sorted(answers)), max_size=3)) if answers else []
            finished.update(heard)
            if data.draw(st.booleans()):
                machine = StateMachine(database)
        assert machine.revision == done == len([a for a in answers.values() if a.error is None])
        session_records(machine)
