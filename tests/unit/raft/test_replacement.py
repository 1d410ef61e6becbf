"""Each arrow of the table in raft/replacement.py, from the event that takes it to the work that it begins. Nothing else
leads from one phase to another.

The real Installation on a list as its state; log, workers and catchup are played by hand. Not here: a whole engine
(test_relief.py, test_catchup.py), and the death of the process at an arrow (the simulation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.list_machine import ListMachine
from warren_raft.alarms import Alarms
from warren_raft.errors import Corrupted, InvariantViolation, StorageFull
from warren_raft.raft import replacement as module
from warren_raft.raft.effects import Job, Then
from warren_raft.raft.installation import (
    REBUILD_AGAIN_SECONDS,
    RELIEF_SECONDS,
    RETRY_SECONDS,
    Installation,
)
from warren_raft.raft.replacement import ARROWS, Arrow, Cause, Event, Phase, Replacement

APPLIED = 10
TERM = 1
DESIGN = Path(module.__file__).with_name("DESIGN.md")


def state(index: int = APPLIED, term: int = TERM) -> ListMachine:
    machine = ListMachine()
    machine.applied_index, machine.applied_term = index, term
    return machine


class Bench:
    """An Installation for which this object is the context and all other parts. `done` lists the work that began."""

    def __init__(self, *, alone: bool = False) -> None:
        self.node_id = "m1"
        self.now = 1000.0
        self.is_alone = alone
        self.batch = None  # no batch of the log is on its way
        self.is_served = False
        self.synced_index = APPLIED
        self.done: list[str] = []
        self.arrows: list[Arrow] = []
        self.jobs: list[tuple[str, Then]] = []
        self.alarms = Alarms("m1")
        self.replacement = Replacement()
        self.replacement.on_arrow = self._announced
        self.log = self.outbox = self.roster = self
        self.membership = None
        this = cast(Any, self)
        self.installation = Installation(this, this, this, this, this)

    def _announced(self, arrow: Arrow) -> None:
        assert self.replacement.phase is arrow.phase, "it is announced before it is taken"
        self.arrows.append(arrow)
        self.done.clear()

    # The calls to the other parts

    def work(self, job: Job, then: Then) -> None:
        self.jobs.append((cast(str, job), then))

    def write(self, batch: object) -> None:
        assert batch is self.reset

    def use(self, _machine: object, why: str) -> None:
        self.done.append(f"swap {why}".strip())

    def holds(self, index: int, term: int) -> bool:
        return index <= APPLIED and term == TERM

    def reset_batch(self, index: int, _term: int) -> object:
        self.done.append(f"reset to {index}")
        self.reset = object()
        return self.reset

    def rebuild(self, _log_holds: object) -> Job:
        return self._job("rebuild")

    def publish(self, _machine: object) -> Job:
        return self._job("publish")

    def _job(self, name: str) -> Job:
        self.done.append(name)
        return cast(Job, name)

    def discard(self, _machine: object) -> None:
        self.done.append("discard")

    def not_installed(self) -> None:
        self.done.append("forget")

    def installed(self, _index: int, *, own_are_wrong: bool) -> None:
        self.done.append("drop our snapshots" if own_are_wrong else "keep our snapshots")

    # The events

    def condemn(self) -> None:
        self.installation.condemn()

    def renew(self) -> None:
        self.installation.renew()

    def fetch(self, machine: ListMachine | None = None) -> None:
        self.installation.install(machine or state())

    def fetch_later(self) -> None:
        """A state of which our log does not hold the last entry."""
        self.fetch(state(APPLIED + 5, TERM + 1))

    def fetch_earlier(self) -> None:
        self.fetch(state(APPLIED - 5, TERM + 1))

    def end(self, result: object = None, error: Exception | None = None) -> None:
        """The oldest job of a worker ends."""
        _, then = self.jobs.pop(0)
        then(result, error)

    def rebuilt(self) -> None:
        assert self.jobs[0][0] == "rebuild"
        self.end(state())

    def published(self) -> None:
        assert self.jobs[0][0] == "publish"
        self.end()

    def short(self) -> None:
        self.end(error=StorageFull("no space left"))

    def impossible(self) -> None:
        self.end(error=Corrupted("the state", "has no snapshot"))

    def tick(self) -> None:
        assert not self.installation.tick(APPLIED, leads=False)

    def lead(self) -> None:
        if self.installation.tick(APPLIED, leads=True):
            self.done.append("step down")

    def written(self) -> None:
        assert self.installation.log_written(cast(Any, self.reset))

    def wait(self) -> None:
        self.now += max(REBUILD_AGAIN_SECONDS, RELIEF_SECONDS, RETRY_SECONDS)

    def replaced(self) -> None:
        """The state is wrong, and is replaced by one from our own snapshot."""
        for step in (self.condemn, self.rebuilt, self.tick, self.published):
            step()


def bench(steps: Sequence[str], *, alone: bool = False) -> Bench:
    made = Bench(alone=alone)
    for step in steps:
        getattr(made, step)()
    return made


P, E = Phase, Event
WAYS: dict[tuple[Phase, Event], tuple[str, list[str]]] = {
    (P.IN_USE, E.WRONG): ("condemn", ["rebuild"]),
    (P.IN_USE, E.WRONG_AGAIN): ("replaced condemn", []),
    (P.IN_USE, E.RENEW): ("renew", ["rebuild"]),
    (P.IN_USE, E.FETCHED): ("fetch", []),
    (P.REBUILDING, E.WRONG): ("renew condemn", []),
    (P.REBUILDING, E.WRONG_AGAIN): ("replaced renew condemn", []),
    (P.REBUILDING, E.REBUILT): ("condemn rebuilt", []),
    (P.REBUILDING, E.FETCHED): ("condemn fetch", []),
    (P.REBUILDING, E.SHORTAGE): ("condemn short", []),
    (P.REBUILDING, E.IMPOSSIBLE): ("condemn impossible", []),
    (P.REBUILDING, E.NOT_RENEWED): ("renew short", []),
    (P.DELAYED, E.AGAIN): ("condemn short wait tick", ["rebuild"]),
    (P.DELAYED, E.FETCHED): ("condemn short fetch", []),
    (P.WANTED, E.AGAIN): ("condemn impossible lead wait lead", ["rebuild"]),
    (P.WANTED, E.FETCHED): ("condemn impossible fetch", []),
    (P.REPLAYING, E.WRONG): ("fetch condemn", []),
    (P.REPLAYING, E.WRONG_AGAIN): ("replaced fetch condemn", []),
    (P.REPLAYING, E.UNRELIEVED): ("condemn rebuilt lead wait lead", ["step down"]),
    (P.REPLAYING, E.NOT_NEEDED): ("fetch_earlier tick", ["forget", "discard"]),
    (P.REPLAYING, E.STILL_WRONG): ("replaced condemn fetch_earlier tick", ["forget", "discard"]),
    (P.REPLAYING, E.LOG_TOO_SHORT): ("fetch_later tick", [f"reset to {APPLIED + 5}"]),
    (P.REPLAYING, E.REPLAYED): ("fetch tick", ["publish"]),
    (P.RESETTING, E.LOG_RESET): ("fetch_later tick written", ["publish"]),
    (P.PUBLISHING, E.SHORTAGE): ("fetch tick short", []),
    (P.PUBLISHING, E.PUBLISHED): ("fetch tick published", ["swap", "keep our snapshots"]),
    (P.BLOCKED, E.AGAIN): ("fetch tick short wait tick", ["publish"]),
    (P.BLOCKED, E.SHORTAGE): ("fetch tick short wait tick short", []),
    (P.BLOCKED, E.PUBLISHED): ("fetch tick short wait tick published", ["swap", "keep our snapshots"]),
}
"""Arrow -> the steps that take it last, and the work that it begins."""


def named(way: tuple[Phase, Event]) -> str:
    return f"{way[0].name}-{way[1].name}"


@pytest.mark.parametrize("way", ARROWS, ids=named)
def test_each_arrow_is_taken_and_begins_its_work(way: tuple[Phase, Event]) -> None:
    steps, work = WAYS[way]
    made = bench(steps.split())
    arrow = made.arrows[-1]
    assert (arrow.phase, arrow.event) == way
    assert made.replacement.phase is arrow.to
    assert made.done == work


def shortest(phase: Phase) -> list[Arrow]:
    """A way from IN_USE to this phase."""
    ways: dict[Phase, list[Arrow]] = {Phase.IN_USE: []}
    for _ in Phase:
        for arrow in ARROWS.values():
            if arrow.phase in ways:
                ways.setdefault(arrow.to, [*ways[arrow.phase], arrow])
    return ways[phase]


@pytest.mark.parametrize("way", [(p, e) for p in Phase for e in Event if (p, e) not in ARROWS], ids=named)
def test_no_other_arrow_is_taken(way: tuple[Phase, Event]) -> None:
    replacement = Replacement()
    phase, event = way
    for arrow in shortest(phase):
        replacement.go(arrow.event, state() if arrow.event in (E.FETCHED, E.REBUILT) else None)
    before = vars(replacement).copy()
    announced: list[Arrow] = []
    replacement.on_arrow = announced.append
    with pytest.raises(InvariantViolation, match=re.escape(repr(event.value))):
        replacement.go(event, state() if event in (E.FETCHED, E.REBUILT) else None)
    assert vars(replacement) == {**before, "on_arrow": announced.append}
    assert announced == []


def test_a_new_state_comes_with_its_event_and_with_no_other() -> None:
    for event, machine in ((E.FETCHED, None), (E.WRONG, state())):
        replacement = Replacement()
        with pytest.raises(InvariantViolation, match="a new state"):
            replacement.go(event, machine)
        assert replacement.phase is Phase.IN_USE


def test_phase_cause_and_what_others_read_go_together() -> None:
    for arrow in ARROWS.values():
        assert (arrow.to is P.IN_USE) is (arrow.cause is Cause.NONE), arrow
    for steps, _ in WAYS.values():
        replacement = bench(steps.split()).replacement
        assert (replacement.phase is P.IN_USE) is (replacement.cause is Cause.NONE)
        assert replacement.is_wrong is (replacement.cause in (Cause.WRONG, Cause.WRONG_AGAIN))
        assert replacement.is_swapping is (replacement.phase in (P.RESETTING, P.PUBLISHING, P.BLOCKED))
        has_new_state = replacement.is_swapping or replacement.phase is P.REPLAYING
        assert (replacement.incoming is not None) is has_new_state


@pytest.mark.parametrize("text", [module.__doc__, DESIGN.read_text()], ids=["docstring", "DESIGN.md"])
def test_the_table_for_people_is_the_table(text: str) -> None:
    rows = re.findall(r"^\| (?:`)?([A-Z_]+)`? \| `?([A-Z_]+)`? \| `?([A-Z_]+)`? \|", text, re.MULTILINE)
    assert rows == [(arrow.phase.name, arrow.event.name, arrow.to.name) for arrow in ARROWS.values()]


# ---- the same for all causes and all managers


def test_the_only_manager_steps_down_at_once_and_uses_its_state() -> None:
    made = bench(["condemn", "rebuilt", "lead"], alone=True)
    assert made.done == ["step down"]
    made.tick()
    made.published()
    assert made.done == ["swap diverged", "keep our snapshots"]


def test_the_snapshots_of_a_state_that_was_wrong_again_are_dropped() -> None:
    made = bench(["replaced", "condemn", "fetch", "tick", "published"])
    assert made.done == ["swap diverged", "drop our snapshots"]
    assert made.replacement.phase is Phase.IN_USE


def test_a_leader_drops_a_state_that_it_fetched_before_it_led() -> None:
    made = bench(["fetch", "lead"])
    assert made.replacement.phase is Phase.IN_USE
    assert made.done == ["forget", "discard"]


def test_a_state_that_comes_second_is_discarded() -> None:
    for steps in ("condemn rebuilt fetch", "condemn fetch rebuilt", "fetch tick fetch", "renew fetch rebuilt"):
        made = bench(steps.split())
        assert made.done[-1] == "discard", steps
        assert made.replacement.incoming is not None


def test_a_fetched_state_that_comes_second_leaves_room_for_the_next_fetch() -> None:
    """(Pins a bug: its snapshot was kept as one about to be used, and every further offer was ignored.)"""
    assert bench(["condemn", "rebuilt", "fetch"]).done == ["forget", "discard"]
    assert bench(["condemn", "fetch", "rebuilt"]).done == ["discard"], "the fetched state is the one to be used"


def test_a_renewal_that_a_fetch_overtakes_is_a_fetch() -> None:
    """(Pins a bug: the state that replaced ours was taken for one in another file, so a leader offered its leadership
    to others for it, and did not discard it.)"""
    made = bench(["renew", "fetch"])
    assert (made.replacement.cause, made.replacement.wants_relief) == (Cause.BEHIND, False)
    made.lead()
    assert made.replacement.phase is Phase.IN_USE
    assert made.done == ["forget", "discard"]
    assert bench(["condemn", "fetch"]).replacement.cause is Cause.WRONG, "a rebuild that a fetch overtakes stays one"


def test_a_rebuild_that_was_given_up_counts_for_nothing() -> None:
    """Neither its failure nor its result, also while a later rebuild is under way."""
    made = bench(["replaced", "renew", "condemn"])
    made.impossible()
    assert made.replacement.phase is Phase.WANTED
    made = bench(["renew", "fetch", "tick"])
    made.jobs.append(made.jobs.pop(0))
    made.published()
    made.condemn()
    made.rebuilt()
    assert made.done[-1] == "discard"
    assert made.replacement.phase is Phase.REBUILDING
    made.rebuilt()
    assert made.replacement.phase is Phase.REPLAYING


def test_a_state_that_is_swapped_is_not_judged() -> None:
    """The verdict is about a state that is about to go. (Pins a bug: it was kept, and struck the new state.)"""
    made = bench(["fetch", "tick", "condemn", "published"])
    assert made.replacement.phase is Phase.IN_USE
    made.condemn()
    assert made.arrows[-1].event is Event.WRONG, "the first verdict"


def test_a_shortage_of_long_ago_does_not_hurry_the_next_rebuild() -> None:
    """(Pins a bug: the state was rebuilt from our own snapshots, although these had led to a wrong state.)"""
    made = bench(["condemn", "short", "fetch", "tick", "published", "condemn", "wait", "tick"])
    assert made.replacement.phase is Phase.WANTED
    assert made.jobs == []


def test_a_renewed_state_is_not_used_if_our_own_snapshots_are_wrong() -> None:
    """(Pins a bug: it was used, and this manager fetched the leader's state all the same, also when all was well.)"""
    made = bench(["replaced", "renew", "rebuilt", "condemn"])
    assert made.replacement.phase is Phase.WANTED
    assert made.replacement.incoming is None
    made.fetch()
    made.tick()
    made.published()
    assert made.replacement.phase is Phase.IN_USE


def test_a_third_verdict_ends_this_manager() -> None:
    made = bench(["replaced", "condemn", "fetch", "tick", "published"])
    with pytest.raises(
        Corrupted, match=r"majority.*; move .* type on another manager: warren-raft members remove m1; that"
    ):
        made.condemn()


def test_an_announced_arrow_that_ends_the_process_leaves_the_new_state_to_be_discarded() -> None:
    made = Bench()

    def die(_arrow: Arrow) -> None:
        raise KeyboardInterrupt

    made.replacement.on_arrow = die
    with pytest.raises(KeyboardInterrupt):
        made.fetch()
    assert made.replacement.phase is Phase.IN_USE
    made.installation.abandon()
    assert made.done == ["discard"]
