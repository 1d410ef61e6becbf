"""Conditions that become alarms only after they have lasted: no quorum, a member away or behind, no cluster formed.

Lives here: the time since which each condition lasts, and its alarm. Pure; time is passed in. Not here: alarms of
single events (the parts that see the event). Invariant: a condition that ends before its time raises no
alarm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from warren_raft.alarms import AlarmName, Severity
from warren_raft.raft.context import Context
from warren_raft.raft.membership import Member
from warren_raft.raft.reports import Heard

LOOK_SECONDS: Final = 0.5
"""Time between two looks at the conditions."""
NOT_FORMED_SECONDS: Final = 3.0
"""Managers that are started together meet within this time."""
NO_QUORUM_SECONDS: Final = 5.0
"""An election takes one or two seconds, a restart as long."""
AWAY_SECONDS: Final = 10.0
"""A restart takes less time."""
BEHIND_SECONDS: Final = 10.0
BEHIND_BY_SECONDS: Final = 2.0
"""A member is behind if it lacks an entry that another member had applied this long ago."""
RECOVERY: Final = "the page 'When managers are lost, or move' (recovery.md) says how to use warren-raft recover"
REFUSALS: Final[tuple[AlarmName, ...]] = ("refused-by-member", "member-not-let-in")
TEXT_IDS: Final = 5
"""A text names at most this many ids; if there are more, it gives their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The facts that this manager sees now."""

    waits: str
    """A sentence about the managers that the first start waits for; empty after the founding record is made."""
    has_quorum: bool
    leader: str | None
    applied_index: int
    fetching: tuple[int, int] | None
    reports: Mapping[str, Heard]


class Watch:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context) -> None:
        self._node_id = context.node_id
        self._roster = context.roster
        self._alarms = context.alarms
        self._since: dict[tuple[AlarmName, str], float] = {}
        """(alarm's name, subject) of a condition that holds now -> when it began."""
        self._looked_at = -1e9
        self._newest: deque[tuple[float, int]] = deque()
        """For each look of the last seconds: its time, and the newest index that any member had applied."""

    def is_due(self, now: float) -> bool:
        return now - self._looked_at >= LOOK_SECONDS

    def look(self, now: float, situation: Situation) -> None:
        self._looked_at = now
        self._judge(now, "cluster-not-formed", situation.waits, after_seconds=NOT_FORMED_SECONDS)
        if self._roster.membership is None:
            return
        self._judge(
            now,
            "no-quorum",
            "" if situation.has_quorum else self._no_quorum(situation.leader),
            after_seconds=NO_QUORUM_SECONDS,
            severity="critical",
        )
        self._look_at_members(now, situation)

    # Members -------------------------------------------------------------------------------------------------------

    def _look_at_members(self, now: float, situation: Situation) -> None:
        known = {peer: heard for peer, heard in situation.reports.items() if peer in self._roster.members}
        newest = max([situation.applied_index, *(heard.report.applied_index for heard in known.values())])
        self._newest.append((now, newest))
        while len(self._newest) > 1 and self._newest[1][0] <= now - AWAY_SECONDS:
            self._newest.popleft()
        for member in self._roster.members.values():
            if member.id == self._node_id:
                behind = self._behind(member.id, now, situation.applied_index, situation.fetching)
            else:
                away = self._away(member, now, has_quorum=situation.has_quorum)
                self._judge(now, "member-away", away, after_seconds=AWAY_SECONDS, subject=member.id)
                heard = known.get(member.id) if self._roster.counts(member.id) else None
                behind = "" if heard is None else self._peer_behind(member.id, heard)
            self._judge(now, "member-behind", behind, after_seconds=BEHIND_SECONDS, subject=member.id)
        for name in ("member-away", "member-behind"):
            self._forget_others(name)

    def _away(self, member: Member, now: float, *, has_quorum: bool) -> str:
        """The alarm's text if the member is away. Empty while it refuses us or we refuse it: that has an alarm of its
        own."""
        if self._roster.counts(member.id) or any(self._alarms.is_raised(name, member.id) for name in REFUSALS):
            return ""
        age = self._roster.contact_age(member.id, now)
        heard = "it was not heard since this manager started" if age is None else f"it was last heard {age:.0f} s ago"
        is_lost = f"if it is lost for good, type: warren-raft members remove {member.id}"
        if not has_quorum:  # no member can be removed
            is_lost = f"if a majority is lost for good, {RECOVERY}"
        why = self._roster.link_problem(member.id)
        return (
            f"{self._node_id} has no link with {member.id} at {member.address}, {heard}{f' ({why})' if why else ''}; "
            f"start {member.id}, or look at the network between the two; {is_lost}"
        )

    def _peer_behind(self, peer: str, heard: Heard) -> str:
        return self._behind(peer, heard.at, heard.report.applied_index, heard.report.fetching)

    def _behind(self, member_id: str, at: float, applied_index: int, fetching: tuple[int, int] | None) -> str:
        """The alarm's text if the member is behind, else empty. `applied_index`: its applied index at the time `at`."""
        long_ago = [index for seen_at, index in self._newest if seen_at <= at - BEHIND_BY_SECONDS]
        if not long_ago or applied_index >= long_ago[-1]:
            return ""
        text = f"{member_id} is behind: it has applied up to index {applied_index}, others up to {self._newest[-1][1]}"
        if fetching is not None:
            return f"{text}; it fetches a snapshot, and has {fetching[0]} of {fetching[1]} bytes"
        return f"{text}; it catches up by itself; if it does not, look at its disk, its load and its own alarms"

    def _no_quorum(self, leader: str | None) -> str:
        roster = self._roster
        away = sorted(id_ for id_ in roster.voters if not roster.connected(id_))
        count = len(roster.voters)
        seen = f"{count - len(away)} of {count} voting members are connected with {self._node_id}"
        if (count - len(away)) * 2 > count:
            disks = "look at the disks and alarms of all managers"
            who = "no leader is elected" if leader is None else f"{leader} was not heard for a while"
            if not away or leader in roster.voters - set(away):
                return f"no write can be acknowledged: {who}, although {seen}; {disks}"
            refusals = [each.text for each in self._alarms.active if each.name in REFUSALS and each.subject in away]
            problems = [f"no link with {id_}: {why}" for id_ in away if (why := roster.link_problem(id_))]
            unknown = f"if so, the log says why there is no link, under 'link not made'; if not, {disks}"
            return (
                f"no write can be acknowledged: no leader is heard, although {seen}; {_ids(away)} may lead: "
                f"{'; '.join((refusals or problems)[:TEXT_IDS]) or unknown}"
            )
        return f"no write can be acknowledged: {seen}; start {_ids(away)}; if they are lost for good, {RECOVERY}"

    # Time ----------------------------------------------------------------------------------------------------------

    def _judge(
        self,
        now: float,
        name: AlarmName,
        text: str,
        *,
        after_seconds: float,
        subject: str = "",
        severity: Severity = "warning",
    ) -> None:
        """Raise the alarm if the condition has lasted for `after_seconds`. An empty `text`: the condition is over."""
        if not text:
            self._since.pop((name, subject), None)
            self._alarms.clear_alarm(name, subject)
            return
        lasted = now - self._since.setdefault((name, subject), now)
        if lasted >= after_seconds:
            self._alarms.raise_alarm(name, text, subject=subject, severity=severity, ago_seconds=lasted)

    def _forget_others(self, name: AlarmName) -> None:
        """Clear the alarms of ids that are not members any more."""
        members = self._roster.members
        self._alarms.clear_others(name, members)
        for known in [known for known in self._since if known[0] == name and known[1] not in members]:
            del self._since[known]


def _ids(ids: list[str]) -> str:
    return ", ".join(ids) if len(ids) <= TEXT_IDS else f"the {len(ids)} others"
