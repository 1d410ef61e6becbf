"""Checks: a correct manager never finds a message of a correct manager impossible (a link dropped for a PeerFault).
Not: refused hellos, disks without space, and other alarms that faults rightly cause.
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process
from warren_raft.raft.refusals import STRANGERS

LEVEL_REFUSED = "it raises the level of the command set"
"""A manager got the previous release between the proposal of a level and its entry."""


class NoAccusations:
    def stepped(self, process: Process) -> None:
        for alarm in process.engine.alarms.active:
            if LEVEL_REFUSED in alarm.text and process.world.upgrades.is_on:
                continue
            if alarm.name == "peer-fault" and alarm.subject != STRANGERS and alarm.subject not in process.world.accused:
                raise Failure(f"{process.id}: {alarm.text}")
