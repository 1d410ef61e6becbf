"""Checks: at most one manager leads a term, over the whole run. Not: that leaders are useful, or that there is one."""

from __future__ import annotations

from tests.simulation.world import Failure, Process


class OneLeaderATerm:
    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}

    def stepped(self, process: Process) -> None:
        engine = process.engine
        if engine.role == "leader" and self.leaders.setdefault(engine.term, process.id) != process.id:
            raise Failure(f"{process.id} and {self.leaders[engine.term]} both lead term {engine.term}")
