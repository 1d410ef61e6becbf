"""The context of one manager's consensus: the objects that all its parts share. The engine makes it before the parts.

Lives here: the settings, the log, the outbox, the members, the alarms, the state in use and the time of the step. Not
here: decisions. A part gets the context and the parts that it depends on when it is made, and never the engine.
Invariant: `now` changes at the start of a step only, and `machine` only when another state has replaced ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.raft.entries import Decoded
from warren_raft.raft.log.log import Log
from warren_raft.raft.outbox import Outbox
from warren_raft.raft.replacement import Replacement
from warren_raft.raft.roster import Roster
from warren_raft.raft.settings import Settings
from warren_raft.raft.stages import Stages
from warren_raft.raft.state_machine import StateMachine, membership_of

TICK_SECONDS: Final = 0.02
"""While anything is under way, the driver steps at least so often. Every timer of a part is a multiple of it or far
longer."""
LONG_AGO: Final = -1e9


@dataclass(slots=True, kw_only=True)
class Context:
    """For the raft thread or a simulator only."""

    settings: Settings
    node_id: str
    log: Log
    outbox: Outbox
    roster: Roster
    alarms: Alarms
    random: Random
    machine: StateMachine
    """The state in use."""
    replacement: Replacement
    """How far a replacement of that state is."""
    now: float
    """The time of the present step, by the clock of the driver or the simulator; it never goes back."""
    decoded: Decoded = field(default_factory=Decoded)
    stages: Stages = field(default_factory=Stages)
    look_at: float = LONG_AGO
    """When this manager looks next at the matters that no write waits for. LONG_AGO: in the next step."""

    def look_soon(self) -> None:
        """Something has changed that a matter depends on which no write waits for: look in the next step."""
        self.look_at = LONG_AGO

    def commit_what_is_applied(self) -> None:
        """The commit index rides with the batches of the log, and may have come too late for the state's last
        entries."""
        log, applied_index = self.log, self.machine.applied_index
        if log.commit_index < applied_index <= log.last_index:
            log.set_commit(applied_index)

    @property
    def is_alone(self) -> bool:
        """Whether there is no other voter."""
        return self.roster.voters == {self.node_id}


def make_context(
    settings: Settings, *, log: Log, machine: StateMachine, alarms: Alarms, random: Random, now: float
) -> Context:
    """The context at the start: the members are those that the state, the log and the settings name."""
    outbox = Outbox(log)
    roster = Roster(
        settings.node_id,
        settings.address,
        settings.members,
        log,
        membership_of(machine),
        hints=settings.hints,
        identity=settings.identity,
        level_max=settings.level_max,
    )
    return Context(
        settings=settings,
        node_id=settings.node_id,
        log=log,
        outbox=outbox,
        roster=roster,
        alarms=alarms,
        random=random,
        machine=machine,
        replacement=Replacement(),
        now=now,
    )
