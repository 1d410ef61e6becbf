"""The values of an engine that others read: the driver, `status`, callers that wait, the alarms of the data directory.

Lives here: properties that change nothing. Not here: the step (engine.py). Invariant: every property may be read from
any thread, at any moment of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from warren_raft.alarms import Alarm
from warren_raft.disk.shortage import Shortage
from warren_raft.raft.context import Context
from warren_raft.raft.leading import Role
from warren_raft.raft.levels import lagging, level_max_of
from warren_raft.raft.membership import Member, Membership
from warren_raft.raft.parts import Parts
from warren_raft.raft.reports import Heard, Report
from warren_raft.raft.submit import Submitter
from warren_raft.raft.trust import PeerStanding


class Readings:
    """The engine without its steps."""

    def __init__(self, context: Context, parts: Parts) -> None:
        self.alarms: Final = context.alarms
        self._context = context
        self._log = context.log
        self._roster = context.roster
        self._guard = parts.guard
        self._core = parts.guard.core
        self._submitter = parts.submitter
        self._health = parts.health
        self._catchup = parts.catchup
        self._forming = parts.forming
        self._elections = parts.elections
        self._leading = parts.leading
        self._fitness = parts.fitness
        self.beats: Final = parts.beats
        """The heartbeats of nodes. See there what any thread may use."""
        self.stages: Final = context.stages
        """For the raft thread only."""
        self.measured = Report()
        """Its version and its space; set from any thread by the code that measures this manager's disk. Told to the
        others."""

    # Consensus ---------------------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        return self._leading.role

    @property
    def is_leader(self) -> bool:
        """Leads, and has applied an entry of its own term: its local state holds every acknowledged write."""
        return self._leading.is_leader

    @property
    def leading_term(self) -> int | None:
        """The term in which this manager `is_leader`; None if it is not."""
        return self._leading.leading_term

    @property
    def leader(self) -> str | None:
        """The leader of the present term, if it is heard."""
        return self._leading.leader

    @property
    def leads_for_sure(self) -> bool:
        return self._leading.leads_for_sure

    @property
    def is_ready(self) -> bool:
        """Whether the state has reached the commit index of the first leader that was heard, and there is a cluster."""
        return self._leading.is_ready

    @property
    def has_quorum(self) -> bool:
        """Whether this manager can expect a write to commit."""
        return self._leading.has_quorum

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def commit_index(self) -> int:
        """The newest index that is known to be committed and is durable here."""
        return min(self._log.commit_index, self._log.synced_index)

    @property
    def applied_index(self) -> int:
        return self._context.machine.applied_index

    def leader_contact_age(self, now: float) -> float:
        """Seconds since the leader was last heard; 0 on the leader itself; infinite before the first time."""
        return self._leading.contact_age(now)

    def staleness(self, now: float) -> float:
        """Seconds for which the state here may have been old, as far as this manager can know without asking."""
        return self._leading.staleness(now)

    @property
    def view(self) -> tuple[object, ...]:
        """The values that a caller may wait for, or the values that they follow from; compared after each step."""
        core, leading = self._core, self._leading
        is_known = (core.leader, self._elections.leader, core.term, leading.is_stopped)
        return is_known, leading.leads_for_sure, leading.is_ready, self._roster.membership

    @property
    def leaders_known(self) -> int:
        """How often another leader, or the same one in another term, was known."""
        return self._leading.leaders_known

    @property
    def queued_count(self) -> int:
        """The commands of all managers that wait here to be proposed, while this manager leads. Large ones are not
        counted."""
        return len(self._submitter.queue)

    @property
    def guard_stats(self) -> Mapping[str, int]:
        return self._guard.stats

    @property
    def submitter(self) -> Submitter:
        """Raft thread only."""
        return self._submitter

    @property
    def pending_count(self) -> int:
        return self._submitter.pending_count

    # Members -----------------------------------------------------------------------------------------------------

    @property
    def membership(self) -> Membership | None:
        return self._roster.membership

    @property
    def members(self) -> Mapping[str, Member]:
        return self._roster.members

    @property
    def voters(self) -> Collection[str]:
        """Raft thread only."""
        return self._roster.voters

    @property
    def level(self) -> int:
        """The level of the command set, in the state here."""
        return self._context.machine.level

    def level_max_of(self, member: Member) -> int | None:
        """The highest level of the command set that a member reads; None: it has no link now."""
        return level_max_of(self._roster, member)

    def lagging(self, level: int) -> list[str]:
        """For people: the members for which the level is not raised to `level`, and why."""
        return lagging(self._roster, level)

    @property
    def waits(self) -> str:
        """For people: the members that the first start waits for; empty once there is a founding record."""
        return self._forming.waits

    def addresses_to_keep(self, before: Mapping[str, str]) -> dict[str, str]:
        """Addresses of members, by id, that the member list lacks and the next start needs. `before`: kept so far."""
        return self._roster.book.to_keep(before, self._roster.members)

    def is_connected(self, peer: str) -> bool:
        """For people: whether there is a link to the member. Before the cluster is formed such a link counts for no
        quorum."""
        return self._roster.connected(peer) or self._roster.standing(peer) is PeerStanding.FORMING

    def contact_age(self, member_id: str, now: float) -> float | None:
        """Seconds since the member was last heard; None: not since this manager started."""
        return self._roster.contact_age(member_id, now)

    def link_problem(self, member_id: str) -> str:
        """Why the last attempt to make a link with a member failed; empty: there is a link, or it is not known."""
        return self._roster.link_problem(member_id)

    # Health ------------------------------------------------------------------------------------------------------

    @property
    def low_space(self) -> bool:
        """Whether the disk has little space left. Set from any thread by the code that measures this manager's disk."""
        return self._fitness.low_space

    @low_space.setter
    def low_space(self, low: bool) -> None:
        self._fitness.low_space = low

    @property
    def lacks_space(self) -> bool:
        """Whether this manager is low on space, by measure or because its disk has just refused something."""
        return self._fitness.lacks_space

    @property
    def shortage(self) -> Shortage | None:
        """The shortage that this manager's log or state waits for; None if there is none."""
        return self._fitness.shortage

    @property
    def is_full(self) -> bool:
        """Whether creates and updates are refused because too many managers are low on space, as the leader says."""
        return self._fitness.is_full

    @property
    def hindrance(self) -> tuple[str, bool]:
        """Why a write that reaches its deadline now came to nothing, and whether a full disk is why."""
        return self._fitness.hindrance

    @property
    def low_members(self) -> list[str]:
        """The managers that are low on space, as far as this one has heard."""
        return self._fitness.low_members

    @property
    def compared_digests(self) -> Mapping[str, int]:
        """The newest index at which each peer's digest was ours; peers that were never compared are missing."""
        return dict(self._health.compared)

    @property
    def reports(self) -> Mapping[str, Heard]:
        """The last report of each other member."""
        return dict(self._health.reports)

    def use_wall_clock(self, clock: Callable[[], float]) -> None:
        """Compare this clock (seconds since 1970) with those of the other members. Call it before the first step."""
        self._health.clocks.now = clock

    def own_report(self, applied_index: int, alarms: Iterable[Alarm]) -> Report:
        """The report of this manager to the others."""
        told = tuple((alarm.name, alarm.subject, alarm.severity) for alarm in alarms)
        return replace(self.measured, applied_index=applied_index, fetching=self.fetching, alarms=told)

    @property
    def fetching(self) -> tuple[int, int] | None:
        """(bytes received, bytes in all) of a snapshot on its way to this manager."""
        fetch = self._catchup.fetch
        return None if fetch is None else (fetch.offset, fetch.size)
