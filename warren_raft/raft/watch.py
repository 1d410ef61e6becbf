"""Conditions that become alarms only once they have lasted: a start in which the cluster does not form.

Lives here: since when each has lasted, and its alarm. Not here: alarms of single events (engine.py and what it calls).
Invariant: pure, time is passed in; a condition that ends before its time is up is never an alarm.
"""

from __future__ import annotations

from typing import Final

from warren_raft.alarms import AlarmName, Alarms, Severity

LOOK_SECONDS: Final = 0.5
"""Between two looks."""
NOT_FORMED_SECONDS: Final = 3.0
"""Managers that are started together meet within this time."""


class Watch:
    """Raft thread or simulator only."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._since: dict[tuple[AlarmName, str], float] = {}
        """When each condition that holds now began: (alarm's name, subject) -> time."""
        self._looked_at = -1e9

    def tick(self, now: float, *, waits: str) -> None:
        """`waits`: for whom the first start waits, a sentence; empty once the founders are recorded."""
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._judge(now, "cluster-not-formed", bool(waits), waits, after_seconds=NOT_FORMED_SECONDS)

    def _judge(
        self,
        now: float,
        name: AlarmName,
        is_so: bool,
        text: str,
        *,
        after_seconds: float,
        subject: str = "",
        severity: Severity = "warning",
    ) -> None:
        if not is_so:
            self._since.pop((name, subject), None)
            self._alarms.clear_alarm(name, subject)
            return
        lasted = now - self._since.setdefault((name, subject), now)
        if lasted >= after_seconds:
            self._alarms.raise_alarm(name, text, subject=subject, severity=severity, ago_seconds=lasted)
