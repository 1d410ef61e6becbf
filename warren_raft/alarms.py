"""Alarms: conditions that need an operator, each with a name, a subject, a severity, a text and its beginning.

Lives here: the registry in which every part of a manager raises and clears alarms, and their log lines. Not here: when
an alarm is raised; each part decides that. Invariant: an alarm is in the registry exactly while its condition lasts,
and its `since` never changes meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.alarms")

Severity = Literal["warning", "critical"]
AlarmName = Literal[
    "address-differs",
    "backup-command-failed",
    "backup-failed",
    "backup-log-failed",
    "backup-old",
    "backup-order",
    "certificate-expired",
    "certificate-expires",
    "certificate-not-taken",
    "clock-skew",
    "cluster-not-formed",
    "descriptors-low",
    "disk-low",
    "disk-slow",
    "housekeeping-failed",
    "initial-members-differ",
    "lock-file-removed",
    "log-blocked",
    "log-no-space",
    "manager-failed",
    "member-away",
    "member-behind",
    "member-not-let-in",
    "no-quorum",
    "over-quota",
    "peer-fault",
    "raft-thread-stuck",
    "reader-holds-pages",
    "refused-by-member",
    "snapshot-not-installed",
    "snapshot-not-taken",
    "snapshot-unreadable",
    "state-blocked",
    "state-differs",
    "state-no-space",
    "state-wrong",
]
"""Every name of an alarm. docs/alarms.md has the meaning of each, and the advice for it."""

REMIND_SECONDS: Final = 300.0
"""An alarm that lasts is logged again at this interval, so that the newest log file always has it."""
TEXT_CHARACTERS: Final = 500
"""A longer text is cut here: a part of it may come from a peer."""
SUBJECTS_MAX: Final = 70
"""The most alarms of one name at one moment: a few more than a cluster may have members. The bound protects against ids
that a peer invents; further alarms are not raised. The names are fixed, so no peer can block another alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One condition that needs an operator and lasts now. docs/alarms.md lists every name with its advice."""

    name: AlarmName
    """A fixed word, for example "log-no-space"."""
    subject: str
    """The thing that the alarm concerns, for example a node id; empty for this manager itself."""
    severity: Severity
    text: str
    """The event, the thing, and the next step or command. One line."""
    since: datetime
    """When the condition began: aware, UTC."""

    def to_json(self) -> dict[str, str]:
        """The form of `status -o json`: name, subject, severity, text, since (RFC 3339)."""
        return {
            "name": self.name,
            "subject": self.subject,
            "severity": self.severity,
            "text": self.text,
            "since": self.since.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


@dataclass(slots=True)
class _Raised:
    alarm: Alarm
    began_at: float
    """In the monotonic clock, like the next two."""
    reminded_at: float
    ends_at: float


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Alarms:
    """The alarms of one manager. All methods are thread-safe and return at once.

    `utc_now` and `monotonic` are parameters so that a simulation is the same in each run.
    """

    def __init__(
        self,
        node_id: str,
        *,
        utc_now: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node_id = node_id
        self._utc_now = utc_now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._raised: dict[tuple[AlarmName, str], _Raised] = {}
        self._has_ended = False

    @property
    def active(self) -> tuple[Alarm, ...]:
        """The alarms with a lasting condition, in the order in which they were raised."""
        return tuple(raised.alarm for raised in list(self._raised.values()))  # no lock: for signal handlers too

    def is_raised(self, name: AlarmName, subject: str = "") -> bool:
        """For people and tests. A manager's actions must not depend on it, because the number of alarms is bounded."""
        return (name, subject) in self._raised

    def raise_alarm(
        self,
        name: AlarmName,
        text: str,
        *,
        subject: str = "",
        severity: Severity = "warning",
        ago_seconds: float = 0.0,
        ends_after_seconds: float = float("inf"),
    ) -> None:
        """Raise the alarm, or give a raised alarm its newest text and severity.

        Only the first call is logged. `ago_seconds`: how long before now the condition began.
        `ends_after_seconds`: for a condition that is noticed by events; it ends after so many seconds without an event.
        """
        key = (name, subject)
        text = " ".join(text[: 2 * TEXT_CHARACTERS].split())[:TEXT_CHARACTERS]
        now = self._monotonic()
        with self._lock:
            raised = self._raised.get(key)
            if raised is not None:
                raised.ends_at = now + ends_after_seconds
                if raised.alarm.text != text or raised.alarm.severity != severity:
                    raised.alarm = replace(raised.alarm, text=text, severity=severity)
                return
            if self._has_ended and name != "manager-failed":
                return
            if sum(each == name for each, _ in self._raised) >= SUBJECTS_MAX:
                return
            since = self._utc_now() - timedelta(seconds=max(0.0, ago_seconds))
            alarm = Alarm(name=name, subject=subject, severity=severity, text=text, since=since)
            self._raised[key] = _Raised(alarm, now - max(0.0, ago_seconds), now, now + ends_after_seconds)
        self._log("alarm raised", alarm)

    def clear_alarm(self, name: AlarmName, subject: str = "") -> None:
        """The condition has ended. Does nothing if the alarm is not raised."""
        key = (name, subject)
        if key not in self._raised:
            return
        with self._lock:
            raised = self._raised.pop(key, None)
        if raised is not None:
            log_event(
                logger,
                logging.INFO,
                "alarm cleared",
                node=self._node_id,
                alarm=name,
                subject=subject or None,
                lasted_seconds=round(self._monotonic() - raised.began_at, 1),
            )

    def clear_others(self, name: AlarmName, subjects: Collection[str] = ()) -> None:
        """Clear every alarm of that name, except for the given subjects."""
        for alarm in self.active:
            if alarm.name == name and alarm.subject not in subjects:
                self.clear_alarm(name, alarm.subject)

    def stopped(self, why: str) -> None:
        """The manager stopped by itself and watches nothing any more: no alarm remains or is raised, but this one."""
        with self._lock:
            self._has_ended = True
        for alarm in self.active:
            if alarm.name != "manager-failed":
                self.clear_alarm(alarm.name, alarm.subject)
        self.raise_alarm("manager-failed", f"{self._node_id} stopped by itself: {why}", severity="critical")

    def end(self) -> None:
        """The manager is closed and watches nothing any more: no alarm remains or is raised, but `manager-failed`.

        Nothing is logged: a log handler that hangs must not keep a manager from closing, and the line "manager stopped"
        ends all alarms of a log.
        """
        with self._lock:
            self._has_ended = True
            for key in [key for key in self._raised if key[0] != "manager-failed"]:
                del self._raised[key]

    def tick(self) -> None:
        """Clear the alarms that have ended by time, and log every alarm that has lasted for another REMIND_SECONDS.

        A manager calls it every second.
        """
        now = self._monotonic()
        ended, due = [], []
        with self._lock:
            for key, raised in self._raised.items():
                if now >= raised.ends_at:
                    ended.append(key)
                elif now - raised.reminded_at >= REMIND_SECONDS:
                    raised.reminded_at = now
                    due.append(raised.alarm)
        for name, subject in ended:
            self.clear_alarm(name, subject)
        for alarm in due:
            self._log("alarm lasts", alarm)

    def _log(self, what: str, alarm: Alarm) -> None:
        log_event(
            logger,
            _level(alarm),
            what,
            alarm.text,
            node=self._node_id,
            alarm=alarm.name,
            subject=alarm.subject or None,
            severity=alarm.severity,
            since=alarm.since.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )


def _level(alarm: Alarm) -> int:
    if alarm.name == "manager-failed":
        return logging.CRITICAL
    return logging.ERROR if alarm.severity == "critical" else logging.WARNING
