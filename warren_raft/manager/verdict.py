"""The first line of a status: whether the cluster is well, as one manager sees it, or its problems.

Pure: the line is computed only from a manager's status (status.py). Not here: the conditions of alarms (alarms.py).
Invariant: "healthy" means that no alarm is raised here or reported by another member, every voting member is connected,
and this manager is ready.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from warren_raft.results import (
    MemberStatus,
    State,
    Status,
    Verdict,
)

SHOWN: Final = 4
"""How many problems the line names; the others are counted."""
LOG_NOT_WRITTEN: Final = ("log-no-space", "log-blocked")
"""Alarms of a voting member that acknowledges no entries, although it is connected."""
NOT_COUNTED_ON: Final = (*LOG_NOT_WRITTEN, "state-no-space", "state-blocked", "member-behind")
"""Alarms of a voting member that cannot replace another member, although it is connected: it does not acknowledge, or
it cannot lead, because it has not applied all that is committed."""

ADD_A_THIRD: Final = " (add a third manager)"
"""Two voting members are both needed for a majority."""


def verdict_of(status: Status) -> Verdict:
    """The verdict on a status. The verdict that the status already holds has no effect."""
    state = _state(status)
    tolerates = max(0, _fit(status, NOT_COUNTED_ON) - _majority(status)) if _has_quorum(status) else 0
    if status.failure is not None:
        text = f"{status.node_id} stopped: {status.failure}"
    elif status.waits:
        text = status.waits
    else:
        text = "; ".join(filter(None, (_summary(status, tolerates), _problems(status), _configured_only(status))))
    warning = _both_needed(status) if state != "no quorum" and status.failure is None else ""
    return Verdict(state=state, text=text, tolerates_failures=tolerates, warning=warning)


def _state(status: Status) -> State:
    if status.failure is not None:
        return "degraded"
    if not _has_quorum(status):
        return "no quorum"
    return "degraded" if _away(status) or _troubles(status) else "healthy"


def _voters(status: Status) -> list[MemberStatus]:
    return [member for member in status.members if member.voter]


def _away(status: Status) -> list[str]:
    return [member.id for member in status.members if not member.connected]


def _majority(status: Status) -> int:
    return len(_voters(status)) // 2 + 1


def _fit(status: Status, unfit_by: Collection[str]) -> int:
    """How many voting members are connected and have none of these alarms."""
    unfit = {subject or member for member, name, subject in _alarms(status) if name in unfit_by}
    return sum(member.connected and member.id not in unfit for member in _voters(status))


def _has_quorum(status: Status) -> bool:
    """Whether a write can be acknowledged: a leader with a majority is not enough if its disks are full."""
    return status.has_quorum and _fit(status, LOG_NOT_WRITTEN) >= _majority(status)


def _alarms(status: Status) -> list[tuple[str, str, str]]:
    """(member that raised it, name, subject): this manager's own alarms, then the alarms that others reported."""
    own = [(status.node_id, alarm.name, alarm.subject) for alarm in status.alarms]
    others = [
        (member.id, alarm.name, alarm.subject)
        for member in status.members
        if member.id != status.node_id and member.connected
        for alarm in member.alarms or ()
    ]
    return own + others


def _summary(status: Status, tolerates: int) -> str:
    voters = _voters(status)
    leads = f"{status.leader} leads term {status.term}" if status.leader else "no leader is known"
    connected = f"{sum(member.connected for member in voters)} of {len(voters)} connected"
    if not _has_quorum(status):
        return f"{leads}, {connected}"
    advice = ADD_A_THIRD if len(voters) == 2 else ""
    return f"{leads}, {connected}, tolerates {tolerates} failure{'' if tolerates == 1 else 's'}{advice}"


def _both_needed(status: Status) -> str:
    """The warning for two voting members; empty for another number."""
    if len(_voters(status)) != 2:
        return ""
    learners = ", ".join(member.id for member in status.members if not member.voter)
    advice = "add a third manager with `warren-raft members add ID=HOST:PORT`"
    if learners:
        advice = f"{learners} does not vote before it has caught up"
    return f"both voting members are needed for a majority: if one is lost, no write is acknowledged; {advice}"


def _problems(status: Status) -> str:
    away = _away(status)
    troubles = _troubles(status)
    more = [f"{len(troubles) - SHOWN} more"] if len(troubles) > SHOWN else []
    named = [f"not connected: {', '.join(away)}"] if away else []
    return "; ".join(named + troubles[:SHOWN] + more)


def _configured_only(status: Status) -> str:
    """It is no fault: somebody removed the manager, or has not added it yet."""
    ids = status.configured_only
    if not ids:
        return ""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    named = ", ".join(ids[:SHOWN])
    return f"configured, but no member: {named}{more}"


def _troubles(status: Status) -> list[str]:
    """All problems except members that are not connected."""
    troubles = [] if status.ready else [f"{status.node_id} is not ready"]
    if status.full:
        troubles.append("creates and updates are refused: the cluster is low on space")
    away = _away(status)
    told: set[tuple[str, str]] = set()
    for member, name, subject in _alarms(status):
        about = subject or member
        is_said = (
            (name, about) in told
            or (name == "member-away" and about in away)
            or (name == "no-quorum" and not status.has_quorum)
        )
        told.add((name, about))
        if not is_said:
            troubles.append(f"{name} {about}" if member in (status.node_id, about) else f"{name} {about} on {member}")
    return troubles
