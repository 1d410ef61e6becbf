"""Rolling upgrades, and the way back: managers of two releases in one cluster, each restarted now and then with the
other release (`upgrade_rate` of options.py).

The release before reads the command set up to level 1 (tests/previous_release.py), so the simulation gives its managers
neither newer messages nor the newest level. Not here: what callers may write (workload.py), the promises
(checkers/levels.py). Invariant: the draws are of a source of their own, and without upgrades nothing is drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from tests.previous_release import LEVEL_MAX, UNKNOWN_MESSAGES
from warren_raft.errors import RefusedForSafety, WarrenError
from warren_raft.store import levels

if TYPE_CHECKING:
    from tests.simulation.world import Directory, World

BEGINS_AS_PREVIOUS = (0.3, 0.8)
GOES_BACK = (0.1, 0.4)
"""Probability that a restart is to the previous release. In some runs the level is raised early, in others late."""
DOWN_SECONDS = 0.3
UNREADABLE = f"reads up to level {LEVEL_MAX}"


class Upgrades:
    def __init__(self, world: World) -> None:
        self._world = world
        self._random = Random(f"upgrades {world.options.seed}")
        self._begins_as_previous = self._random.choice(BEGINS_AS_PREVIOUS)
        self._goes_back = self._random.choice(GOES_BACK)
        self._previous: set[Directory] = set()
        """The directories whose managers start with the previous release."""
        self._met: set[Directory] = set()
        options = world.options
        others = options.disaster or options.hostile_rate or options.beat_nodes or options.watchers
        self.is_on = options.upgrade_rate > 0 and not others

    def begin(self, until: float) -> None:
        """Restart managers with another release until that time. Without upgrades this draws nothing."""
        self._until = until
        if self.is_on:
            self._world.after(self._random.expovariate(self._world.options.upgrade_rate), self._turn)

    def is_previous(self, directory: Directory) -> bool:
        return directory in self._previous

    @contextlib.contextmanager
    def release_of(self, directory: Directory) -> Iterator[None]:
        """A directory is opened, its engine made, and its jobs are done by the release of its manager."""
        if self.is_on and directory not in self._met and not self._world.is_calm:
            self._met.add(directory)
            if self._random.random() < self._begins_as_previous:
                self._previous.add(directory)
        if not self.is_previous(directory):
            yield
            return
        newest = levels.NEWEST
        levels.NEWEST = LEVEL_MAX  # type: ignore[misc]
        try:
            yield
        finally:
            levels.NEWEST = newest  # type: ignore[misc]

    def ignores(self, directory: Directory, message: Mapping[str, Any]) -> bool:
        """Whether the release of the manager does not know a message."""
        return self.is_previous(directory) and message["type"] in UNKNOWN_MESSAGES

    def refused(self, directory: Directory, error: WarrenError) -> bool:
        """Whether the previous release rightly refused a directory; then its manager is upgraded and starts again."""
        if not (self.is_previous(directory) and isinstance(error, RefusedForSafety) and UNREADABLE in str(error)):
            return False
        self._world.faults["previous release refused the data"] += 1
        self._previous.discard(directory)
        self._world.after(DOWN_SECONDS, lambda: self._world.restart(directory.id))
        return True

    def _turn(self) -> None:
        world, random = self._world, self._random
        if world.is_calm or world.now >= self._until:
            return
        running = sorted(world.running(), key=lambda process: process.id)
        if running:
            process = random.choice(running)
            goes_back, power_cut = random.random() < self._goes_back, random.random() < world.options.power_cut
            world.faults["went back to the previous release" if goes_back else "upgraded"] += 1
            world.faults["power cut before another release"] += power_cut
            (self._previous.add if goes_back else self._previous.discard)(process.directory)
            end = "a power cut" if power_cut else "kill -9"
            world.note(f"{process.id} gets the {'previous' if goes_back else 'newest'} release after {end}")
            world.end(process, power_cut=power_cut)
            world.after(random.uniform(0.0, DOWN_SECONDS), lambda: world.restart(process.id))
        world.after(random.expovariate(world.options.upgrade_rate), self._turn)

    def end(self) -> None:
        """All managers get the newest release. Those that run with the previous one are restarted."""
        self._previous, before = set(), self._previous
        for process in sorted(self._world.running(), key=lambda process: process.id):
            if process.directory in before:
                self._world.end(process, power_cut=False)
