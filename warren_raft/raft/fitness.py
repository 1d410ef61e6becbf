"""Whether this manager can do its work: shortages of its disk, low space in the cluster, reasons not to lead.

Lives here: the answers that other parts, callers and operators get, from the parts that know a fact. Not here: the
meaning of a shortage (disk/shortage.py), the alarms (blocked.py), handing leadership over (requests.py). Invariant:
this module changes no other part; it only looks.
"""

from __future__ import annotations

from typing import Final

from warren_raft.disk.shortage import SPACE, Shortage
from warren_raft.raft.applying import Applying
from warren_raft.raft.context import Context
from warren_raft.raft.health import Health
from warren_raft.raft.log_writer import LogWriter
from warren_raft.raft.reasons import BLOCKED, DISK_HUNG, NO_SPACE, REMOVED, STATE_RENEWED, STATE_WRONG, Reason
from warren_raft.raft.replacement import Phase
from warren_raft.raft.settling import Settling

NO_QUORUM: Final = "no leader with a quorum answered before the deadline: warren-raft status shows the reason"
NO_SPACE_HERE: Final = "no space left on this manager's disk until the deadline"
TOO_MANY_LOW: Final = "too many managers were low on space until the deadline"
"""Why a write that reached its deadline came to nothing, as far as its own manager can tell."""


class Fitness:
    """For the raft thread or a simulator; the properties may be read from any thread."""

    def __init__(
        self,
        context: Context,
        writer: LogWriter,
        applying: Applying,
        settling: Settling,
        health: Health,
    ) -> None:
        self._context = context
        self._writer = writer
        self._applying = applying
        self._replacement = context.replacement
        self._settling = settling
        self._health = health
        self.low_space = False
        """Set from any thread by the code that measures this manager's disk: the disk has little space left."""
        self.is_full = False
        """Whether creates and updates are refused because too many managers are low on space, as the leader says."""

    @property
    def shortage(self) -> Shortage | None:
        """The shortage that this manager's log or state waits for; None if there is none."""
        own = self._writer.shortage or self._applying.shortage
        return own or (SPACE if self._replacement.phase is Phase.BLOCKED else None)

    @property
    def lacks_space(self) -> bool:
        """Whether this manager is low on space, by measure or because its disk has just refused something."""
        return self.low_space or self.shortage is not None

    @property
    def low_members(self) -> list[str]:
        """The managers that are low on space, as far as this one has heard."""
        return self._health.low_members(low=self.lacks_space)

    def look(self, leader: str | None) -> None:
        """Bring `is_full` up to date."""
        self.is_full = self._health.is_full(leader, low=self.lacks_space)

    @property
    def hindrance(self) -> tuple[str, bool]:
        """Why a write that reaches its deadline now came to nothing, and whether a full disk is why."""
        own = self._writer.shortage or self._applying.shortage
        if own is not None:
            return NO_SPACE_HERE if own.is_space else f"{own.what}, until the deadline", True
        return TOO_MANY_LOW if self.is_full else NO_QUORUM, self.is_full

    @property
    def must_not_lead(self) -> Reason | None:
        """A leader that cannot write its log or its state can commit nothing, and one with a wrong state misleads. A
        removed leader stays only until the others can do without it."""
        hung_seconds = self._writer.hung_seconds
        if hung_seconds is not None:
            return Reason(DISK_HUNG, f"its disk has not returned for {hung_seconds:.0f} s")
        if self._writer.shortage is not None:
            return _reason_of(self._writer.shortage, "its log")
        if self._applying.shortage is not None:
            return _reason_of(self._applying.shortage, "its state")
        if self._replacement.is_wrong:
            return Reason(STATE_WRONG, "its state is wrong")
        if self._replacement.wants_relief:
            return Reason(STATE_RENEWED, "its state goes on in another file")
        if self._settling.is_leaving:
            return Reason(REMOVED, f"{self._context.node_id} was removed from the cluster")
        return None


def _reason_of(shortage: Shortage, thing: str) -> Reason:
    if shortage.is_space:
        return Reason(NO_SPACE, f"no space for {thing}")
    return Reason(BLOCKED, f"{thing} cannot be written: {shortage.what}")
