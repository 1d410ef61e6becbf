"""Checks: after the last fault, when all managers have converged, leader and term stay as they are. Not: how soon
managers converge.
"""

from __future__ import annotations

from tests.simulation.world import Failure, World


class Calm:
    """simulation/run.py calls it before and after a quiet time, because the world has to go on in between."""

    def __init__(self) -> None:
        self._before: tuple[str, int] | None = None

    def quiet_begins(self, world: World) -> None:
        self._before = self._leadership(world)

    def quiet_ends(self, world: World) -> None:
        after = self._leadership(world)
        if after != self._before:
            raise Failure(f"nothing was wrong, and leadership went from {self._before} to {after}")

    @staticmethod
    def _leadership(world: World) -> tuple[str, int] | None:
        return None if world.leader is None else (world.leader.id, world.leader.engine.term)
