"""Notices a slow disk: most of the last syncs of the log took long, or one of them does not end.

Lives here: the alarm `disk-slow`. Not here: the syncs and their times (raft/sync_thread.py), a disk with an error
(raft/blocked.py). Invariant: one slow sync alone raises no alarm, unless it lasts for HANGS_SECONDS.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.support.counting import SLOW_BOUNDS, Durations

SLOW_SECONDS: Final = SLOW_BOUNDS[11]
"""A sync is slow if it takes longer, in seconds. 256 ms is some hundred times as long as a sync of a good disk."""
WINDOW_SECONDS: Final = 60.0
"""The alarm looks at the syncs of the last minute. A manager without writes has none, and no alarm."""
SLOW_SYNCS: Final = 3
"""The fewest slow syncs for an alarm. At least half of all syncs must be slow, too."""
HANGS_SECONDS: Final = 5.0
"""A sync that lasts longer raises the alarm by itself."""
LOOK_SECONDS_MAX: Final = 2.0
"""Looks come once a second. More time than this between two of them was not a disk's."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """The syncs since the manager started, at one moment."""

    at: float
    syncs: int
    slow: int
    seconds: float


class SlowDisk:
    """`syncing_since`: when the running sync began, on the clock `now`; None: no sync is running."""

    def __init__(
        self,
        directory: str,
        syncs: Durations,
        syncing_since: Callable[[], float | None],
        alarms: Alarms,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._syncs = syncs
        self._syncing_since = syncing_since
        self._alarms = alarms
        self._now = now
        self._seen: deque[_Counts] = deque([self._counts()])
        self._lasting: tuple[float | None, float] = (None, 0.0)
        """The beginning of the sync that was running at the last look, and how long it has been seen to run. Time in
        which this process was suspended does not count."""

    def look(self) -> None:
        """Raise or clear the alarm. To be called about once a second."""
        before, newest = self._seen[-1].at, self._counts()
        self._seen.append(newest)
        while len(self._seen) > 1 and self._seen[1].at <= newest.at - WINDOW_SECONDS:
            self._seen.popleft()
        fault = self._hanging(before, newest.at) or self._slow(self._seen[0], newest)
        if not fault:
            self._alarms.clear_alarm("disk-slow")
            return
        text = (
            f"the disk of {self._directory} is slow: {fault}. Find the program that uses the disk "
            "(iostat -x 1, iotop), or move the data directory to a disk of its own"
        )
        self._alarms.raise_alarm("disk-slow", text)

    def _counts(self) -> _Counts:
        fewer = self._syncs.cumulated()
        slow = fewer[-1] - fewer[self._syncs.bounds.index(SLOW_SECONDS)]
        return _Counts(self._now(), fewer[-1], slow, self._syncs.sum_seconds)

    def _hanging(self, before: float, now: float) -> str:
        since, lasting = self._syncing_since(), 0.0
        if since is not None:
            known = self._lasting[1] if self._lasting[0] == since else 0.0
            lasting = known + min(now - max(since, before), LOOK_SECONDS_MAX)
        self._lasting = since, lasting
        return f"a sync of the log began {lasting:.0f} s ago and has not ended" if lasting >= HANGS_SECONDS else ""

    def _slow(self, before: _Counts, after: _Counts) -> str:
        syncs, slow = after.syncs - before.syncs, after.slow - before.slow
        if slow < SLOW_SYNCS or 2 * slow < syncs:
            return ""
        mean_ms = 1000 * (after.seconds - before.seconds) / syncs
        return (
            f"{slow} of the last {syncs} syncs of the log took longer than {1000 * SLOW_SECONDS:.0f} ms, all of them "
            f"{mean_ms:.0f} ms on average"
        )
