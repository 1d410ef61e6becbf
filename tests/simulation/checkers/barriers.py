"""Checks: when a barrier passes, its manager's state is at least as new as the state of each manager of the cluster was
when the barrier began. Writes are acknowledged only when they are applied, so this covers every acknowledged write.
Not: what a read after the barrier sees (linearizability.py).
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process


class Barriers:
    def __init__(self) -> None:
        self._floors: dict[tuple[int, int], tuple[int, str]] = {}
        """(process, number of a barrier) -> (the newest revision anywhere when it began, the manager that had it)."""

    def barrier_began(self, process: Process, number: int) -> None:
        managers = (each for each in process.world.processes.values() if each.audience is process.audience)
        newest = max((each.opened.machine.revision, each.id) for each in managers)
        self._floors[process.number, number] = newest

    def barrier_passed(self, process: Process, number: int) -> None:
        revision, (floor, owner) = process.opened.machine.revision, self._floors.pop((process.number, number))
        if revision < floor:
            raise Failure(f"{process.id}: a barrier passed at revision {revision}; {owner} had {floor} when it began")
