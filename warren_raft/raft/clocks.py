"""Whether the clocks of the members agree: the leader compares the time in each report with its own clock.

Lives here: the alarm `clock-skew`. Not here: the reports (reports.py, health.py). Invariant: no decision depends on a
wall clock, and a delay on the way that does not last, of any length, raises no alarm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from warren_raft.alarms import Alarms

SKEW_SECONDS: Final = 5.0
"""Clocks that differ by more are an alarm. NTP keeps them within milliseconds, so this is a clock that nobody sets. A
new certificate may be refused as not valid yet by then, and the times in logs and names of backups mislead."""
LOOKS: Final = 10
"""A clock counts as behind if it was behind in so many looks, one a second: a report that was on its way for long, or
waited while this process was suspended, makes a clock look behind too. After so many looks without a report nothing
is known about a clock."""


class Clocks:
    """For the raft thread or a simulator only. `now` is the time in seconds since 1970; None: nothing is compared."""

    def __init__(self, node_id: str, alarms: Alarms) -> None:
        self._node_id = node_id
        self._alarms = alarms
        self.now: Callable[[], float] | None = None
        self._newest: dict[str, float] = {}
        """Peer -> how many seconds its clock was ahead, by its reports since the last look."""
        self._ahead: dict[str, deque[float]] = {}
        """Peer -> the same of the last looks with a report."""
        self._looks = 0
        self._heard_at: dict[str, int] = {}
        """Peer -> the number of the last look with a report."""

    def time_ms(self) -> int | None:
        """The time to report."""
        return None if self.now is None else max(0, int(self.now() * 1000))

    def receive(self, peer: str, time_ms: int | None) -> None:
        """A report of `peer` has arrived. `time_ms`: the time in it; None: its release reports none."""
        if self.now is None or time_ms is None:
            return
        ahead = time_ms / 1000 - self.now()
        # A delay makes a clock look behind, never ahead: the largest value had the shortest delay.
        self._newest[peer] = max(ahead, self._newest.get(peer, ahead))

    def forget(self, peer: str) -> None:
        """Nothing is known about the peer's clock, for example because the link is down."""
        self._newest.pop(peer, None)
        self._ahead.pop(peer, None)
        self._heard_at.pop(peer, None)

    def look(self, members: Collection[str], *, is_leader: bool) -> None:
        """Raise and clear the alarms. Call this once a second."""
        self._looks += 1
        for peer, ahead in self._newest.items():
            self._ahead.setdefault(peer, deque(maxlen=LOOKS)).append(ahead)
            self._heard_at[peer] = self._looks
        self._newest.clear()
        for peer, heard_at in list(self._heard_at.items()):
            if peer not in members or self._looks - heard_at >= LOOKS:
                self.forget(peer)
        skewed = {}
        if is_leader:
            for peer, looks in sorted(self._ahead.items()):
                if max(looks) > SKEW_SECONDS or (len(looks) == LOOKS and max(looks) < -SKEW_SECONDS):
                    skewed[peer] = max(looks)
        self._alarms.clear_others("clock-skew", skewed)
        for peer, seconds in skewed.items():
            word = "ahead of" if seconds > 0 else "behind"
            self._alarms.raise_alarm(
                "clock-skew",
                f"the clock of {peer} is {abs(seconds):.0f} s {word} that of {self._node_id}: type date -u on both "
                "hosts, and let NTP set the wrong clock (timedatectl, chronyc tracking). If the alarm names two or "
                f"more members, and all others, the clock of {self._node_id} is the wrong one",
                subject=peer,
            )
