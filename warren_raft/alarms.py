"""Alarms: conditions that need an operator, each with a name, a subject, a severity, a text and the time it began.

Lives here: the registry that every part of a manager raises alarms in and clears them from, and their lines in the log.
Not here: when an alarm is raised; each part decides that. Invariant: an alarm is in the registry exactly while its
condition lasts, and its `since` never changes meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

logger = logging.getLogger("warren_raft.alarms")

Severity = Literal["warning", "critical"]

REMIND_SECONDS: Final = 300.0
"""An alarm that lasts is logged again at this interval, so that the newest log file always has it."""
TEXT_CHARACTERS: Final = 500
"""A text is cut here: a part of it may come from a peer."""
ALARMS_MAX: Final = 100
"""Alarms at one moment; a bound against names that a peer makes up. The next one is logged but not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One condition that needs an operator. `name` is a fixed word (docs list them all)."""

    name: str
    subject: str
    """The thing the alarm is about, for instance a node id; empty when it is this manager itself."""
    severity: Severity
    text: str
    """What happened, to which thing, and what to do or type next."""
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
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._reminded_at: dict[tuple[str, str], float] = {}

    @property
    def active(self) -> tuple[Alarm, ...]:
        """The alarms whose condition lasts now, the oldest first."""
        with self._lock:
            return tuple(self._alarms.values())

    def is_raised(self, name: str, subject: str = "") -> bool:
        return (name, subject) in self._alarms

    def raise_alarm(self, name: str, text: str, *, subject: str = "", severity: Severity = "warning") -> None:
        """Raise the alarm, or give the one that is raised already its newest text and severity.

        Only the first call is logged.
        """
        key = (name, subject)
        text = text[:TEXT_CHARACTERS]
        with self._lock:
            present = self._alarms.get(key)
            if present is not None:
                if present.text != text or present.severity != severity:
                    self._alarms[key] = replace(present, text=text, severity=severity)
                return
            alarm = Alarm(name=name, subject=subject, severity=severity, text=text, since=self._utc_now())
            if len(self._alarms) < ALARMS_MAX:
                self._alarms[key] = alarm
                self._reminded_at[key] = self._monotonic()
        self._log("raised", alarm)

    def clear_alarm(self, name: str, subject: str = "") -> None:
        """The condition is over. Does nothing when the alarm is not raised."""
        key = (name, subject)
        if key not in self._alarms:
            return
        with self._lock:
            alarm = self._alarms.pop(key, None)
            self._reminded_at.pop(key, None)
        if alarm is not None:
            lasted = (self._utc_now() - alarm.since).total_seconds()
            logger.info(
                "alarm cleared node=%s alarm=%s%s lasted_seconds=%.1f",
                self._node_id,
                name,
                f" subject={subject}" if subject else "",
                max(0.0, lasted),
            )

    def clear_others(self, name: str, subjects: frozenset[str] | set[str]) -> None:
        """Clear every alarm of that name whose subject is not among `subjects`."""
        for alarm in self.active:
            if alarm.name == name and alarm.subject not in subjects:
                self.clear_alarm(name, alarm.subject)

    def remind(self) -> None:
        """Log every alarm that has lasted for another REMIND_SECONDS. Housekeeping calls it every second or so."""
        now = self._monotonic()
        due = []
        with self._lock:
            for key, alarm in self._alarms.items():
                if now - self._reminded_at[key] >= REMIND_SECONDS:
                    self._reminded_at[key] = now
                    due.append(alarm)
        for alarm in due:
            self._log("lasts", alarm)

    def _log(self, event: str, alarm: Alarm) -> None:
        logger.log(
            logging.CRITICAL if alarm.severity == "critical" else logging.WARNING,
            "alarm %s node=%s alarm=%s%s severity=%s since=%s: %s",
            event,
            self._node_id,
            alarm.name,
            f" subject={alarm.subject}" if alarm.subject else "",
            alarm.severity,
            alarm.since.isoformat(timespec="seconds").replace("+00:00", "Z"),
            alarm.text,
        )
