"""An idle cluster loses power: nothing was written for a long time, perhaps after one last change of its members.

A fact that becomes durable only with the next write never becomes durable here. Afterwards as many members as may be
lost stay down for good. Not here: losing all managers (disaster.py). Invariant: nothing else fails meanwhile, so all
members run and have settled when the power goes.
"""

from __future__ import annotations

from tests.simulation.nemesis import Nemesis
from tests.simulation.workload import Workload
from tests.simulation.world import Failure, World

SETTLING_SECONDS = 60.0
"""The same time as in the liveness phase."""
LAST_CHANGE = 0.7
"""Probability that the last entry before the silence is a change of the members."""
EVERYBODY = 0.7
"""Probability that all managers lose power; otherwise some do, at least one."""
NOT_ALL_COME_BACK = 0.5
RESTART_MAX_SECONDS = 2.0


def strike(world: World, workload: Workload, nemesis: Nemesis) -> None:
    """Returns when the starts of the managers that come back are planned."""
    nemesis.heal(stay_down=False)
    workload.is_paused = True
    try:
        _settle(world, nemesis)
        if world.random.random() < LAST_CHANGE:
            nemesis.operators.change_once()
            _settle(world, nemesis)
        world.run_until(world.now + world.random.uniform(0.5, 1.0) * world.options.idle)
        _lose_power(world, nemesis)
    finally:
        workload.is_paused = False


def _settle(world: World, nemesis: Nemesis) -> None:
    """Wait until every change is answered or abandoned, every member votes, and no caller waits for an answer."""
    if not world.run_until(world.now + SETTLING_SECONDS, lambda: nemesis.operators.is_settled):
        raise Failure(f"the members have not settled within {SETTLING_SECONDS:g} s\n{world.describe()}")


def _lose_power(world: World, nemesis: Nemesis) -> None:
    random = world.random
    running = list(world.running())
    is_everybody = random.random() < EVERYBODY
    lost = running if is_everybody else random.sample(running, random.randrange(1, len(running) + 1))
    world.faults[f"idle, then a power cut of {'all managers' if is_everybody else 'some managers'}"] += 1
    for process in lost:
        world.note(f"fault: power cut {process.id}")
        world.end(process, power_cut=True)
    newest = world.audience.lists.newest
    assert newest is not None
    gone: set[str] = set()
    if random.random() < NOT_ALL_COME_BACK:
        gone = set(nemesis.leave_down(newest.voters))
    for id_ in sorted({process.id for process in lost} - gone):
        world.after(random.uniform(0.0, RESTART_MAX_SECONDS), lambda id_=id_: world.restart(id_))  # type: ignore[misc]
    world.run_until(world.now + RESTART_MAX_SECONDS)
