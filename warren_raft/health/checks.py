"""Whether a manager is alive, and whether it is ready: six named checks of its status.

Lives here: the rules. Not here: their text over HTTP (pages.py), the verdict on the cluster for people
(manager/verdict.py). Invariant: each check is decided by the status alone, and life does not depend on the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from warren_raft.alarms import Alarm
from warren_raft.errors import WarrenError
from warren_raft.results import Status
from warren_raft.support.wording import in_units

STUCK: Final = "raft-thread-stuck"
"""The alarm of a raft thread that does nothing."""
_CANNOT_WRITE: Final = frozenset({"log-blocked", "log-no-space", "state-blocked", "state-no-space"})


def life_problem(failure: WarrenError | None, alarms: Sequence[Alarm]) -> str:
    """Why a manager is not alive: it stopped by itself, or its raft thread does nothing; "" if it is alive.

    It does not depend on the cluster: if managers were restarted because the quorum is lost, everything would be worse.
    """
    if failure is not None:
        return f"this manager stopped: {failure}"
    return "the raft thread does nothing" if any(alarm.name == STUCK for alarm in alarms) else ""


def _store(status: Status) -> str:
    if status.failure is not None:
        return f"this manager stopped: {status.failure}"
    for alarm in status.alarms:
        if alarm.name == STUCK or alarm.name in _CANNOT_WRITE:
            return f"the alarm {alarm.name} is raised"
    return ""


def _leader(status: Status) -> str:
    if status.leader is None:
        return status.waits or "no leader is known"
    return "" if status.has_quorum else "there is no quorum"


def _sync(status: Status) -> str:
    if status.fetching is not None:
        return f"a snapshot is being fetched, {in_units(status.fetching.bytes)} of {in_units(status.fetching.of)}"
    return "" if status.ready else "the log is not applied yet up to the commit index of the first leader"


def _digest(status: Status) -> str:
    is_wrong = any(alarm.name == "state-wrong" for alarm in status.alarms)
    return "the state has diverged or is damaged, and is being rebuilt" if is_wrong else ""


def _space(status: Status) -> str:
    return "too many managers are low on space: creates and updates are refused" if status.full else ""


def _links(status: Status) -> str:
    voters = [member for member in status.members if member.voter]
    reached = sum(member.connected or member.id == status.node_id for member in voters)
    if not voters or reached * 2 > len(voters):
        return ""
    return f"{reached} of {len(voters)} voting members are reached, this manager included"


CHECKS: Final[Mapping[str, Callable[[Status], str]]] = {
    "store": _store,
    "leader": _leader,
    "sync": _sync,
    "digest": _digest,
    "space": _space,
    "links": _links,
}
"""Name -> the reason why the check fails for a status; "" if it does not."""
