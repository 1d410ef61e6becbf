"""Checks: a correct manager never finds a message of a correct manager impossible (a link dropped for a PeerFault).
Not: refused hellos, disks without space, and other alarms that faults rightly cause.
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process
from warren_raft.raft.refusals import STRANGERS


class NoAccusations:
    def stepped(self, process: Process) -> None:
        for alarm in process.engine.alarms.active:
            if alarm.name == "peer-fault" and alarm.subject != STRANGERS and alarm.subject not in process.world.accused:
                raise Failure(f"{process.id}: {alarm.text}")
