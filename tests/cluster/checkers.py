"""Judges a history of writes against the state of a manager at the end.

Checked: no acknowledged write is missing, altered or undone; no record is there that no caller wrote, or that a caller
was told was not written; no write is applied twice (counters); batches are whole; the order of revisions agrees with
real time; each writer read its own acknowledged writes; the answers about each shared record are linearizable, by the
simulation's checker. Each check gets all that it needs as arguments, and raises AssertionError.
Not checked: the time of a write, the contents of log and snapshot files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.cluster.history import History, Write
from tests.cluster.load import CONFLICT, NOTHING, OK, READ, UNKNOWN
from tests.simulation.checkers.linearizability import Verdict, check_key
from tests.simulation.history import NEVER, Call

SHOWN = 5


@dataclass(frozen=True)
class State:
    """The records of one manager: id -> (image, revision), and id -> (replicas, image, revision)."""

    manager: str
    containers: Mapping[str, tuple[str, int]]
    services: Mapping[str, tuple[int, str, int]]
    revision: int

    @classmethod
    def of(cls, manager: str, dump: Mapping[str, Any]) -> State:
        containers = {id_: (image, revision) for id_, image, revision in dump["containers"]}
        services = {id_: (replicas, image, revision) for id_, replicas, image, revision in dump["services"]}
        return cls(manager, containers, services, dump["revision"])


def check(history: History, state: State) -> None:
    """All checks below, for one manager."""
    check_remarks(history)
    check_creates(history, state)
    check_registers(history, state)
    check_pairs(history, state)
    check_nothing_else(history, state)
    check_counters(history, state)
    check_revisions(history, state)


def _require_none(problems: Iterable[object], what: str, state: State | None = None) -> None:
    found = [str(problem) for problem in problems]
    where = "" if state is None else f"{state.manager}: "
    assert not found, f"{where}{len(found)} {what}: " + "; ".join(found[:SHOWN])


def check_remarks(history: History) -> None:
    """Faults that a writer saw itself: its own write is missing, or an undocumented error was raised."""
    _require_none(history.remarks, "remarks of writers")


def check_creates(history: History, state: State) -> None:
    erased = {write.key: write for write in history.of("erase")}
    lost, altered, risen, imagined = [], [], [], []
    for write in history.of("create"):
        found = state.containers.get(write.key)
        erase = erased.get(write.key)
        if erase is None and write.outcome == OK:
            if found is None:
                lost.append(write)
            elif found != (write.value, write.answer):
                altered.append(f"{write} is {found}")
        if erase is not None and erase.outcome == OK and found is not None:
            risen.append(erase)
        if write.outcome == NOTHING and found is not None:
            imagined.append(write)
    _require_none(lost, "acknowledged creates are lost", state)
    _require_none(altered, "acknowledged creates are altered", state)
    _require_none(risen, "acknowledged deletes are undone", state)
    _require_none(imagined, "writes happened of which the caller was told that they had not", state)


def check_registers(history: History, state: State) -> None:
    """A register has its last acknowledged value, or a later value of a write without an answer."""
    writes: defaultdict[str, list[Write]] = defaultdict(list)
    for write in history.of("register"):
        writes[write.key].append(write)
    wrong = []
    for key, own in writes.items():
        last = max((number for number, write in enumerate(own) if write.is_ok), default=-1)
        allowed = {write.value for write in own[last + 1 :] if write.outcome == UNKNOWN}
        allowed |= {own[last].value} if last >= 0 else {None}
        found = state.containers.get(key)
        if (None if found is None else found[0]) not in allowed:
            wrong.append(f"{key} is {found}, and must be one of {sorted(map(str, allowed))[:SHOWN]}")
    _require_none(wrong, "registers went back", state)


def check_pairs(history: History, state: State) -> None:
    wrong = []
    for write in history.of("pair"):
        sides = [state.containers.get(f"{write.key}-{side}") for side in "ab"]
        whole = {OK: [(write.value, write.answer)], NOTHING: [None], UNKNOWN: [None, sides[0]]}[write.outcome]
        if sides[0] != sides[1] or sides[0] not in whole:
            wrong.append(f"{write} is {sides}")
    _require_none(wrong, "batches are not whole", state)


def check_nothing_else(history: History, state: State) -> None:
    """Some writer meant to write each record."""
    meant = defaultdict(set)
    for write in history.writes:
        if write.operation == "pair":
            for side in "ab":
                meant[f"{write.key}-{side}"].add(write.value)
        elif write.operation in ("create", "register", "slot put", "slot cas"):
            meant[write.key].add(write.value)
    strange = [f"{key} = {found[0]!r}" for key, found in state.containers.items() if found[0] not in meant[key]]
    _require_none(strange, "records that nobody wrote", state)


def check_counters(history: History, state: State) -> None:
    """A compare-and-set that the library retried must not count twice, and an acknowledged one must not be lost."""
    by_counter: defaultdict[str, list[Write]] = defaultdict(list)
    for write in history.of("increment"):
        by_counter[write.key].append(write)
    for key, writes in by_counter.items():
        _check_counter(key, writes, state)


def _check_counter(key: str, writes: list[Write], state: State) -> None:
    done = [write for write in writes if write.is_ok]
    unknown = [write for write in writes if write.outcome == UNKNOWN]
    value, token, _ = state.services.get(key, (0, "", 0))
    twice = [f"{key} = {number}" for number, count in Counter(write.value for write in done).items() if count > 1]
    _require_none(twice, "increments were acknowledged to two writers", state)
    counted = f"{len(done)} increments were acknowledged and {len(unknown)} may have happened"
    assert len(done) <= value <= len(done) + len(unknown), f"{state.manager}: {key} is {value}; {counted}"
    by_value: defaultdict[int, list[Write]] = defaultdict(list)
    for write in (*done, *unknown):
        by_value[write.value].append(write)
    _require_none((number for number in range(1, value + 1) if number not in by_value), f"values of {key} skipped")
    if value:
        assert token in {write.detail[0] for write in by_value[value]}, f"{key} = {value} has the token {token}"
    acknowledged = {write.value: write for write in done}
    broken = [
        f"{write} follows {acknowledged[write.value - 1]}"
        for write in done
        if write.value - 1 in acknowledged
        and write.detail[1:] != [acknowledged[write.value - 1].detail[0], acknowledged[write.value - 1].answer]
    ]
    _require_none(broken, "increments do not follow the one before", state)


def check_revisions(history: History, state: State) -> None:
    """Each command has a revision of its own. A write that was acknowledged before another one began has the smaller
    revision. Only a delete of a missing record changes nothing, and its answer is the latest revision."""
    done = sorted((write for write in history.writes if write.is_ok), key=lambda write: write.answer)
    changes = [write for write in done if write.operation != "slot delete"]
    equal = [f"{a} and {b}" for a, b in pairwise(changes) if a.answer == b.answer]
    _require_none(equal, "pairs of writes have the same revision")
    assert not done or done[-1].answer <= state.revision, f"{state.manager} is at {state.revision} after {done[-1]}"
    by_end = sorted(done, key=lambda write: write.ended)
    highest, position, reordered = 0, 0, []
    for write in sorted(done, key=lambda write: write.begun):
        while by_end[position].ended < write.begun:
            highest = max(highest, by_end[position].answer)
            position += 1
        if write.answer < highest or (write.answer == highest and write.operation != "slot delete"):
            reordered.append(f"{write} began after revision {highest} was acknowledged")
    _require_none(reordered, "writes are out of order")


KINDS = {
    "register": "put",
    "slot put": "put",
    "slot cas": "cas",
    "increment": "cas",
    "slot delete": "delete",
    "read": "read",
}
"""Operations on records that are written more than once, as the linearizability checker calls them."""


def check_linearizability(history: History) -> Counter[str]:
    """The number of records for each verdict on their histories; the verdict "violated" raises."""
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for write in history.writes:
        # A write that certainly did not happen is in no history, so a read of its value has no writer.
        if write.operation in KINDS and write.outcome != NOTHING:
            calls[write.key].append(_as_call(write))
    found: Counter[str] = Counter()
    violations = []
    for key, of_key in calls.items():
        verdict, reason = check_key(of_key)
        found[verdict.value] += 1
        if verdict is Verdict.VIOLATED:
            violations.append(f"{key}: {reason}")
            print(f"the calls on {key}:", *sorted(of_key, key=lambda call: call.invoked), sep="\n  ")
    _require_none(violations, "records whose history is not linearizable")
    return found


def _as_call(write: Write) -> Call:
    argument, result, returned = write.value, None, NEVER
    if write.operation == "increment":
        token, _, expected = write.detail
        argument = (expected, token)
    elif write.operation == "slot cas":
        argument = (write.detail, write.value)
    if write.outcome == OK:
        result = write.answer
    elif write.outcome == READ:
        result = tuple(write.answer)
    elif write.outcome == CONFLICT:
        result = ("conflict", write.answer)
    if result is not None:
        returned = write.ended
    # A caller that was told "perhaps" knows no end of its write: the write may take effect at any later time.
    return Call(write.writer, KINDS[write.operation], write.key, argument, write.begun, returned, result)
