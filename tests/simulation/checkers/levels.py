"""Checks: the level of the command set is raised only while every member reads it, by the hello of its link; no manager
of the previous release gets an entry, or a state, that it does not read; once all members run the newest release, the
level is the newest. Not: a manager that gets the previous release between the proposal of a level and its entry. It
refuses that entry, and is not let in any more.
"""

from __future__ import annotations

from tests.simulation.workload import Workload
from tests.simulation.world import Failure, Process, World
from warren_raft.raft import entries
from warren_raft.raft.membership import FIRST_LEVEL, Change
from warren_raft.store import levels


class Levels:
    def __init__(self) -> None:
        self._looked: dict[int, int] = {}
        """Process -> the last entry of its log that was looked at."""

    def stepped(self, process: Process) -> None:
        if not process.world.upgrades.is_on:
            return
        if process.engine.level > process.engine._roster.level_max:
            raise Failure(f"{process.id} does not read its state, which is at level {process.engine.level}")
        log = process.opened.log
        first = max(min(self._looked.get(process.number, 0), log.last_index), log.base_index) + 1
        self._looked[process.number] = log.last_index
        for index in range(first, log.last_index + 1):
            entry, _, term = log.entries[index - log.base_index]
            content = entries.decode(entry)
            if isinstance(content, Change):
                if content.level > FIRST_LEVEL and process.engine.role == "leader" and process.engine.term == term:
                    self._check_raised(process, index, content.level)
                level = content.level
            else:
                level = max((command[1] for command in content), default=FIRST_LEVEL)
            if level > process.engine._roster.level_max:
                raise Failure(f"{process.id} does not read entry {index} of its log, which is of level {level}")

    def _check_raised(self, leader: Process, index: int, level: int) -> None:
        roster = leader.engine._roster
        for id_ in sorted(roster.members):
            if id_ == leader.id:
                continue
            link = roster.links.get(id_)
            read = FIRST_LEVEL if link is None else link.hello.level_max
            if read < level:
                raise Failure(f"{leader.id} raises the level to {level} at index {index}, and {id_} reads {read}")
        leader.world.checked["seen: level raised"] += 1

    def finish(self, world: World, _workload: Workload) -> None:
        members = world.members()
        if not world.upgrades.is_on or {process.id for process in members} != set(members[0].engine.members):
            return
        world.checked["seen: level compared at the end"] += 1
        for process in members:
            if process.engine.level != levels.NEWEST:
                raise Failure(f"{process.id} is at level {process.engine.level}, and all members read {levels.NEWEST}")
