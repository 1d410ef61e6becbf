"""The replacement of the state as a state machine: its phases, its events, and the table of its arrows.

Lives here: how far a replacement is, and why there is one; this is kept nowhere else. Not here: the conditions for an
event, and the work that an arrow begins (installation.py). Invariant: only an arrow of ARROWS leads from one phase to
another, and each arrow is announced before anything of it is done.

A replacement begins in one of three ways. Our log ends before the leader's log begins: the leader's snapshot is
fetched (catchup.py). Our state is wrong: a worker rebuilds it from our own snapshot and log, or the leader's snapshot
is fetched. Our state is right, but its file cannot be used for long any more: a worker makes it again in another file.
From REPLAYING on, the way is the same for all, and for followers, leaders and the only voter.

| phase | event | next phase | what is done |
|---|---|---|---|
| IN_USE | WRONG | REBUILDING | A worker rebuilds the state. |
| IN_USE | WRONG_AGAIN | WANTED | The leader is asked for a snapshot. |
| IN_USE | RENEW | REBUILDING | A worker makes the state again. |
| IN_USE | FETCHED | REPLAYING | |
| REBUILDING | WRONG | REBUILDING | The renewal under way is the rebuild. |
| REBUILDING | WRONG_AGAIN | WANTED | The renewal under way is given up, and the leader is asked for a snapshot. |
| REBUILDING | REBUILT | REPLAYING | |
| REBUILDING | FETCHED | REPLAYING | The rebuild under way is given up. |
| REBUILDING | SHORTAGE | DELAYED | |
| REBUILDING | IMPOSSIBLE | WANTED | The leader is asked for a snapshot. |
| REBUILDING | NOT_RENEWED | IN_USE | |
| DELAYED | AGAIN | REBUILDING | A worker rebuilds the state. |
| DELAYED | FETCHED | REPLAYING | |
| WANTED | AGAIN | REBUILDING | There is no manager to fetch a state from: a worker rebuilds it. |
| WANTED | FETCHED | REPLAYING | |
| REPLAYING | WRONG | REPLAYING | |
| REPLAYING | WRONG_AGAIN | REPLAYING | |
| REPLAYING | UNRELIEVED | REPLAYING | This leader steps down. |
| REPLAYING | NOT_NEEDED | IN_USE | The new state is discarded. |
| REPLAYING | STILL_WRONG | WANTED | The new state is discarded, and the leader is asked for a snapshot. |
| REPLAYING | LOG_TOO_SHORT | RESETTING | The log is written again, to begin at the end of the new state. |
| REPLAYING | REPLAYED | PUBLISHING | A worker publishes the new state. |
| RESETTING | LOG_RESET | PUBLISHING | A worker publishes the new state. |
| PUBLISHING | SHORTAGE | BLOCKED | |
| PUBLISHING | PUBLISHED | IN_USE | Readers and the core go on with the new state. |
| BLOCKED | AGAIN | BLOCKED | A worker publishes the new state. |
| BLOCKED | SHORTAGE | BLOCKED | |
| BLOCKED | PUBLISHED | IN_USE | Readers and the core go on with the new state. |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from warren_raft.errors import InvariantViolation
from warren_raft.raft.state_machine import StateMachine


class Phase(Enum):
    """How far the replacement is. Each says what the next start finds if the process dies in that phase."""

    IN_USE = "in use"
    """There is no replacement. The next start opens the state in use."""
    REBUILDING = "rebuilding"
    """A worker makes a state from our own snapshot and log. The next start opens the state in use; a wrong state that
    does not prove itself is rebuilt then."""
    DELAYED = "delayed"
    """The state could not be rebuilt, for a reason that may pass. The next start: as in REBUILDING."""
    WANTED = "wanted"
    """The leader's snapshot is wanted, although our log may reach to it. The next start: as in REBUILDING."""
    REPLAYING = "replaying"
    """The new state is there. The entries up to our applied index are applied to it, and a leader waits until another
    manager leads. The next start: as in REBUILDING; the new state's file is removed."""
    RESETTING = "resetting"
    """The log is written again, to begin at the end of the new state. The next start finds the old log and state; or
    the new log and a state before its begin, and rebuilds the state from the snapshot that was fetched."""
    PUBLISHING = "publishing"
    """A worker makes the new state the one that the next start opens. The next start opens the new state, or the old
    one as in RESETTING."""
    BLOCKED = "blocked"
    """A shortage, of space say, keeps the new state from being published. The next start: as in PUBLISHING."""


class Cause(Enum):
    """The reason for the replacement."""

    NONE = "none"
    """There is no replacement."""
    BEHIND = "behind"
    """Our log ends before the leader's log begins."""
    RENEWAL = "renewal"
    """Our state is right, and moves to another file."""
    WRONG = "wrong"
    """Our state is wrong. Our own snapshots are taken for right."""
    WRONG_AGAIN = "wrong again"
    """Our state is wrong, and our own snapshots do not lead to a right one."""


class Event(Enum):
    WRONG = "wrong"
    """Our state turns out to be wrong. Our own snapshots are taken for right."""
    WRONG_AGAIN = "wrong again"
    """Our state turns out to be wrong, and was rebuilt from our own snapshots before."""
    RENEW = "renew"
    FETCHED = "fetched"
    """A state was made from a snapshot of the leader."""
    REBUILT = "rebuilt"
    """A state was made from our own snapshot and log."""
    SHORTAGE = "shortage"
    """A worker failed for a reason that may pass."""
    IMPOSSIBLE = "impossible"
    """A wrong state cannot be rebuilt from our own snapshot and log."""
    NOT_RENEWED = "not renewed"
    """A right state could not be made again."""
    AGAIN = "again"
    """It is time for the next attempt."""
    UNRELIEVED = "unrelieved"
    """The new state is ready, and no other manager leads in place of this leader."""
    NOT_NEEDED = "not needed"
    """We hold later entries than the new state, or lead, and our state is right or will be judged again."""
    STILL_WRONG = "still wrong"
    """The same, and our state can be replaced by a leader's state only."""
    LOG_TOO_SHORT = "log too short"
    """The log does not hold the last entry of the new state."""
    REPLAYED = "replayed"
    """The new state has reached our applied index, the log is durable up to its end, and this manager does not lead."""
    LOG_RESET = "log reset"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Arrow:
    """One row of the table. `cause`: the cause from then on; None: it stays. A state that is wrong stays wrong: BEHIND
    takes the place of RENEWAL only."""

    phase: Phase
    event: Event
    to: Phase
    cause: Cause | None = None

    def __str__(self) -> str:
        return f"{self.phase.value}, {self.event.value} -> {self.to.value}"


_LIST: Final = (
    Arrow(Phase.IN_USE, Event.WRONG, Phase.REBUILDING, Cause.WRONG),
    Arrow(Phase.IN_USE, Event.WRONG_AGAIN, Phase.WANTED, Cause.WRONG_AGAIN),
    Arrow(Phase.IN_USE, Event.RENEW, Phase.REBUILDING, Cause.RENEWAL),
    Arrow(Phase.IN_USE, Event.FETCHED, Phase.REPLAYING, Cause.BEHIND),
    Arrow(Phase.REBUILDING, Event.WRONG, Phase.REBUILDING, Cause.WRONG),
    Arrow(Phase.REBUILDING, Event.WRONG_AGAIN, Phase.WANTED, Cause.WRONG_AGAIN),
    Arrow(Phase.REBUILDING, Event.REBUILT, Phase.REPLAYING),
    Arrow(Phase.REBUILDING, Event.FETCHED, Phase.REPLAYING, Cause.BEHIND),
    Arrow(Phase.REBUILDING, Event.SHORTAGE, Phase.DELAYED),
    Arrow(Phase.REBUILDING, Event.IMPOSSIBLE, Phase.WANTED, Cause.WRONG_AGAIN),
    Arrow(Phase.REBUILDING, Event.NOT_RENEWED, Phase.IN_USE, Cause.NONE),
    Arrow(Phase.DELAYED, Event.AGAIN, Phase.REBUILDING),
    Arrow(Phase.DELAYED, Event.FETCHED, Phase.REPLAYING),
    Arrow(Phase.WANTED, Event.AGAIN, Phase.REBUILDING, Cause.WRONG),
    Arrow(Phase.WANTED, Event.FETCHED, Phase.REPLAYING),
    Arrow(Phase.REPLAYING, Event.WRONG, Phase.REPLAYING, Cause.WRONG),
    Arrow(Phase.REPLAYING, Event.WRONG_AGAIN, Phase.REPLAYING, Cause.WRONG_AGAIN),
    Arrow(Phase.REPLAYING, Event.UNRELIEVED, Phase.REPLAYING),
    Arrow(Phase.REPLAYING, Event.NOT_NEEDED, Phase.IN_USE, Cause.NONE),
    Arrow(Phase.REPLAYING, Event.STILL_WRONG, Phase.WANTED),
    Arrow(Phase.REPLAYING, Event.LOG_TOO_SHORT, Phase.RESETTING),
    Arrow(Phase.REPLAYING, Event.REPLAYED, Phase.PUBLISHING),
    Arrow(Phase.RESETTING, Event.LOG_RESET, Phase.PUBLISHING),
    Arrow(Phase.PUBLISHING, Event.SHORTAGE, Phase.BLOCKED),
    Arrow(Phase.PUBLISHING, Event.PUBLISHED, Phase.IN_USE, Cause.NONE),
    Arrow(Phase.BLOCKED, Event.AGAIN, Phase.BLOCKED),
    Arrow(Phase.BLOCKED, Event.SHORTAGE, Phase.BLOCKED),
    Arrow(Phase.BLOCKED, Event.PUBLISHED, Phase.IN_USE, Cause.NONE),
)
ARROWS: Final[Mapping[tuple[Phase, Event], Arrow]] = {(arrow.phase, arrow.event): arrow for arrow in _LIST}


_BRINGING: Final = frozenset({Event.FETCHED, Event.REBUILT})
_WITH_NEW_STATE: Final = frozenset({Phase.REPLAYING, Phase.RESETTING, Phase.PUBLISHING, Phase.BLOCKED})
_SWAPPING: Final = frozenset({Phase.RESETTING, Phase.PUBLISHING, Phase.BLOCKED})


class Replacement:
    """The present phase. Installation alone moves it; others read it. For the raft thread or a simulator only; the
    attributes may be read from any thread."""

    def __init__(self) -> None:
        self.phase = Phase.IN_USE
        self.cause = Cause.NONE
        self.incoming: StateMachine | None = None
        """The new state, from REPLAYING until it is in use or discarded."""
        self.is_swapping = False
        """The log or the published state is about to differ from the state in use. The core is not stepped then. True
        in RESETTING, PUBLISHING and BLOCKED; an attribute, because each step asks several times."""
        self.is_wrong = False
        """Our state is wrong, so this manager must not lead. True for the causes WRONG and WRONG_AGAIN."""
        self.on_arrow: Callable[[Arrow], None] = lambda _arrow: None
        """Called before each arrow. A simulation ends the process there."""

    @property
    def wants_relief(self) -> bool:
        """Whether another manager is to lead, so that a state in another file can replace the right one in use."""
        return self.cause is Cause.RENEWAL and self.incoming is not None

    def go(self, event: Event, incoming: StateMachine | None = None) -> None:
        """Take the arrow for this event. `incoming`: the new state, which FETCHED and REBUILT bring. Raises
        InvariantViolation if there is no such arrow."""
        arrow = ARROWS.get((self.phase, event))
        if arrow is None:
            raise InvariantViolation(
                f"the replacement of the state is in the phase {self.phase.value!r}, in which the event "
                f"{event.value!r} cannot happen"
            )
        if (incoming is None) is (event in _BRINGING):
            lack = "without" if incoming is None else "with"
            raise InvariantViolation(f"the event {event.value!r} came {lack} a new state")
        if incoming is not None:
            self.incoming = incoming
        self.on_arrow(arrow)
        self.phase = arrow.to
        if arrow.cause is not None and not (self.is_wrong and arrow.cause is Cause.BEHIND):
            self.cause = arrow.cause
        self.is_swapping = self.phase in _SWAPPING
        self.is_wrong = self.cause in (Cause.WRONG, Cause.WRONG_AGAIN)
        if self.phase not in _WITH_NEW_STATE:
            self.incoming = None
