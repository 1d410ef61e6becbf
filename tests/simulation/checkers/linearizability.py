"""Checks: for each key, one order of the calls that respects real time explains all answers (linearizable: Herlihy and
Wing 1990; the search is Wing and Gong's with Lowe's memory of visited states, as in Porcupine).

Not: order between keys (revisions.py), plain local reads (monotonic.py). A search that exceeds its budget is counted as
not decided, never as passed. A call without an answer may take effect at any later time, or never.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from tests.simulation.history import NEVER, Call

if TYPE_CHECKING:
    from tests.simulation.workload import Workload
    from tests.simulation.world import World

STATES_MAX = 100_000
"""Visited states of one key; a run's hardest key needs some hundreds."""


class Verdict(Enum):
    LINEARIZABLE = "linearizable"
    VIOLATED = "violated"
    NOT_DECIDED = "not decided"


@dataclass(slots=True, eq=False)
class _Step:
    """A call in the form for the search. `revision`: the one that a change made, or that a read or a conflict saw (0:
    there was no record)."""

    call: Call | None
    """None: a change without an answer, see _explain_the_unseen."""
    revision: int
    invoked: float
    returned: float
    expected: int | None = None
    """The revision that a successful conditional change found."""
    is_delete: bool = False
    position: int = 0
    """Its place in the order of return times, which is its bit in the search's masks."""


@dataclass(slots=True)
class _Problem:
    """The calls on one key. Revisions only grow, so changes with a known revision can come in one order only. The
    answer to a delete that found no record is the latest revision, so these deletes have a place in that order too. The
    search finds the places of the reads, the conflicts and the deletes of unknown outcome."""

    changes: list[_Step] = field(default_factory=list)
    looks: dict[int, list[_Step]] = field(default_factory=lambda: defaultdict(list))
    """Reads and conflicts by the revision that they saw."""
    erasers: list[float] = field(default_factory=list)
    """The start times of the deletes of unknown outcome, sorted. There is no other difference between them."""
    by_return: list[_Step] = field(default_factory=list)


def check_key(calls: Iterable[Call], states_max: int = STATES_MAX) -> tuple[Verdict, str]:
    """Whether the calls on one key are linearizable, and why not."""
    problem, reason = _pose(list(calls))
    if problem is None:
        return Verdict.VIOLATED, reason
    return _search(problem, states_max)


# The answers by themselves -------------------------------------------------------------------------------------------


def _pose(calls: Sequence[Call]) -> tuple[_Problem | None, str]:
    """The search problem; or None and the fault that shows without a search: a value with two revisions, or a value
    that no call wrote. If a read saw the value of a change of unknown outcome, the revision of that change is known. A
    change that no call saw can be left out: it only hides an earlier value, and the next change hides that as well."""
    problem = _Problem()
    writers = {_value(call): call for call in calls if call.kind in ("put", "cas")}
    seen: dict[str, int] = {}
    for call in calls:
        for value, revision in _sightings(call):
            if value not in writers:
                return None, f"{call} read a value that nobody wrote"
            if seen.setdefault(value, revision) != revision:
                return None, f"{value} was at revision {seen[value]} and, says {call}, at {revision}"
    unseen: list[Call] = []
    for call in calls:
        if isinstance(call.result, tuple) and call.kind == "cas" and call.result[1] == call.argument[0]:
            return None, f"{call} conflicts with the revision that it expected"
        _add(problem, call, seen, unseen)
    _explain_the_unseen(problem, unseen)
    problem.changes.sort(key=lambda step: (step.revision, step.is_delete, step.returned, step.invoked))
    problem.erasers.sort()
    for looks in problem.looks.values():
        looks.sort(key=lambda step: step.invoked)
    problem.by_return.sort(key=lambda step: (step.returned, step.invoked, step.revision))
    for position, step in enumerate(problem.by_return):
        step.position = position
    return problem, ""


def _value(call: Call) -> str:
    return str(call.argument[1] if call.kind == "cas" else call.argument)


def _sightings(call: Call) -> Iterable[tuple[str, int]]:
    """Each (value, revision) in the answer of this call."""
    if call.kind == "read" and isinstance(call.result, tuple) and call.result[0]:
        yield str(call.result[1]), call.result[0]
    elif call.kind in ("put", "cas") and isinstance(call.result, int):
        yield _value(call), call.result


def _add(problem: _Problem, call: Call, seen: dict[str, int], unseen: list[Call]) -> None:
    result, changes = call.result, call.kind in ("put", "cas", "delete")
    if not changes:
        if result is not None:
            _enter(problem, _Step(call, result[0], call.invoked, call.returned), looks=True)
    elif isinstance(result, tuple):
        _enter(problem, _Step(call, result[1], call.invoked, call.returned), looks=True)
    elif call.kind == "delete" and result is None:
        problem.erasers.append(call.invoked)
    elif call.kind != "delete" and result is None and _value(call) not in seen:
        unseen.append(call)
    else:
        revision = result if isinstance(result, int) else seen[_value(call)]
        expected = call.argument[0] if call.kind == "cas" else None
        step = _Step(call, revision, call.invoked, call.returned, expected, call.kind == "delete")
        _enter(problem, step, looks=False)


def _enter(problem: _Problem, step: _Step, *, looks: bool) -> None:
    problem.by_return.append(step)
    if looks:
        problem.looks[step.revision].append(step)
    else:
        problem.changes.append(step)


def _explain_the_unseen(problem: _Problem, unseen: Sequence[Call]) -> None:
    """A conflict, or a condition that held, may name a revision that no other answer names: a change of unknown outcome
    made it. This function does not search for the change, or for the revision that the change found. So one call may
    explain two revisions, and this accepts a little more than it should."""
    known = {step.revision for step in problem.changes if not step.is_delete}
    told: dict[int, float] = {}
    for step in [*problem.by_return]:
        revision = step.expected if step.expected is not None else step.revision
        if step in problem.looks.get(revision, ()) or step.expected is not None:
            told[revision] = min(step.returned, told.get(revision, NEVER))
    for revision, latest in told.items():
        makers = [call.invoked for call in unseen if call.invoked <= latest]
        if revision and revision not in known and makers:
            _enter(problem, _Step(None, revision, min(makers), NEVER), looks=False)


# The search ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """`done`: the steps that are linearized, as bits. `next_change`: the number of linearized changes. `present`: the
    revision of the record, 0: there is no record. `floor`: the highest revision so far. `erased`: the number of deletes
    of unknown outcome that took effect."""

    done: int
    next_change: int
    present: int
    floor: int
    erased: int


def _search(problem: _Problem, states_max: int) -> tuple[Verdict, str]:
    required = 0
    for step in problem.by_return:
        if step.returned < NEVER:
            required |= 1 << step.position
    first = _State(0, 0, 0, 0, 0)
    stack, visited = [first], {first}
    furthest = first
    while stack:
        state = _look_around(problem, stack.pop())
        if required & ~state.done == 0:
            return Verdict.LINEARIZABLE, ""
        if state.done.bit_count() > furthest.done.bit_count():
            furthest = state
        for following in _following(problem, state):
            if following not in visited:
                if len(visited) >= states_max:
                    return Verdict.NOT_DECIDED, f"{states_max} states were not enough"
                visited.add(following)
                stack.append(following)
    return Verdict.VIOLATED, _explain(problem, furthest)


def _deadline(problem: _Problem, done: int) -> float:
    """The earliest return of a step that is not linearized: no step that began later may come before that step."""
    position = (~done & (done + 1)).bit_length() - 1
    return problem.by_return[position].returned if position < len(problem.by_return) else NEVER


def _look_around(problem: _Problem, state: _State) -> _State:
    """Put all calls that change nothing and fit into this state here. That excludes no other solution."""
    done, looks = state.done, problem.looks.get(state.present, ())
    again = bool(looks)
    while again:
        again = False
        deadline = _deadline(problem, done)
        for look in looks:
            bit = 1 << look.position
            if not done & bit and look.invoked <= deadline:
                done |= bit
                again = True
    return state if done == state.done else _State(done, state.next_change, state.present, state.floor, state.erased)


def _following(problem: _Problem, state: _State) -> Iterable[_State]:
    deadline = _deadline(problem, state.done)
    if state.present and state.erased < len(problem.erasers) and problem.erasers[state.erased] <= deadline:
        yield _State(state.done, state.next_change, 0, state.floor, state.erased + 1)
    group = _next_group(problem, state)
    for step in group:
        if step.invoked <= deadline and _fits(step, state):
            done = state.done | 1 << step.position
            count = state.next_change + (len(group) == 1)
            present = 0 if step.is_delete else step.revision
            yield _State(done, count, present, max(state.floor, step.revision), state.erased)


def _next_group(problem: _Problem, state: _State) -> list[_Step]:
    """The changes with the lowest revision that is not done. If there are several, they are deletes with the same
    answer."""
    changes, first = problem.changes, state.next_change
    while first < len(changes) and state.done >> changes[first].position & 1:
        first += 1
    if first == len(changes):
        return []
    group = [changes[first]]
    for step in changes[first + 1 :]:
        if step.revision != group[0].revision or not group[0].is_delete:
            break
        if not state.done >> step.position & 1:
            group.append(step)
    return group


def _fits(step: _Step, state: _State) -> bool:
    if step.is_delete:
        # The answer to a delete that finds no record is the latest revision. A change of another key may have made it.
        return step.revision > state.floor if state.present else step.revision >= state.floor
    if step.expected is not None and step.expected != state.present:
        return False
    return step.revision > state.floor


def _explain(problem: _Problem, state: _State) -> str:
    left = [step for step in problem.by_return if not state.done >> step.position & 1 and step.returned < NEVER]
    return f"with revision {state.present} there, none of these can come next: " + "; ".join(
        str(step.call) for step in left[:4]
    )


# In a run ------------------------------------------------------------------------------------------------------------


class Linearizability:
    """Checks each key by itself at the end of a run."""

    def finish(self, world: World, workload: Workload) -> None:
        by_key: dict[str, list[Call]] = defaultdict(list)
        for call in workload.history():
            by_key[call.key].append(call)
        for key, calls in sorted(by_key.items()):
            verdict, reason = check_key(calls)
            world.checked[f"linearizability: keys {verdict.value}"] += 1
            if verdict is Verdict.VIOLATED:
                from tests.simulation.world import Failure

                raise Failure(f"{key} is not linearizable: {reason}")
