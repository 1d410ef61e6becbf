"""Checks: if nothing is wrong except that links carry few bytes a second (profile "thin links"), the first leader leads
to the end, in one term, and every write is acknowledged. Not: how soon; other runs.
"""

from __future__ import annotations

from tests.simulation.options import THIN_LINKS
from tests.simulation.workload import Workload
from tests.simulation.world import Failure, Process, World


class ThinLinks:
    def __init__(self) -> None:
        self._first: tuple[str, int] | None = None

    def stepped(self, process: Process) -> None:
        engine = process.engine
        if process.world.options.profile != THIN_LINKS or not engine.is_leader:
            return
        self._first = self._first or (process.id, engine.term)
        if self._first != (process.id, engine.term):
            raise Failure(f"links were thin, and leadership went from {self._first} to {process.id}, {engine.term}")

    def finish(self, world: World, workload: Workload) -> None:
        if world.options.profile == THIN_LINKS and workload.unanswered:
            raise Failure(f"links were thin, and {workload.unanswered} calls were not answered in time")
