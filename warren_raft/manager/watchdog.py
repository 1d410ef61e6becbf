"""Whether the raft thread is alive: it wakes when it is asked to, or applies. If it does neither for seconds, it is
stuck.

Lives here: counting, and reporting it with the thread's stack. Not here: the consequences (parts.py).
Invariant: only time during which this process ran is counted. So a process that was suspended (SIGSTOP, the lid of a
laptop, a debugger) raises no alarm when it goes on.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.errors import InvariantViolation
from warren_raft.support.log_lines import log_event
from warren_raft.support.workers import Workers

logger = logging.getLogger("warren_raft.manager.watchdog")

LOOKS: Final = 10
"""The number of checks within the time after which the alarm is raised."""
LOOK_SECONDS_MAX: Final = 1.0
LATE: Final = 2.0
"""A check that comes later than this many intervals after the previous one counts as if it had come at that time: this
process, or this thread, did not run meanwhile."""
ALARM: Final = "raft-thread-stuck"


class Watchdog:
    """`look` belongs to one thread, which must never wait for anything that the raft thread may hold. So another thread
    writes the log lines: the raft thread may be stuck in a log handler with a full pipe.

    `progress()` returns another value than the last call if the thread has done anything meanwhile.
    """

    def __init__(
        self,
        node_id: str,
        thread: threading.Thread,
        progress: Callable[[], object],
        alarms: Alarms,
        *,
        alarm_seconds: float,
        stop_seconds: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node_id = node_id
        self._thread = thread
        self._progress = progress
        self._alarms = alarms
        self._alarm_seconds = alarm_seconds
        self._stop_seconds = stop_seconds
        self._clock = clock
        self._speaker = Workers(1, f"warren-raft-watchdog {node_id}")
        self._seen = progress()
        self._looked_at = clock()
        self._stuck_seconds = 0.0
        self.look_seconds: Final = min(alarm_seconds / LOOKS, LOOK_SECONDS_MAX)
        self.is_stuck = False
        """Whether the raft thread is stuck: its last information about leadership is no longer valid."""

    def look(self) -> InvariantViolation | None:
        """Call this every `look_seconds`. Returns the reason why this manager must stop, if it must."""
        now, seen = self._clock(), self._progress()
        elapsed, self._looked_at = min(now - self._looked_at, LATE * self.look_seconds), now
        if not self._thread.is_alive():
            self.is_stuck = True
            return InvariantViolation("the raft thread has ended")
        if seen != self._seen:
            self._seen, self._stuck_seconds = seen, 0.0
            if self.is_stuck:
                self.is_stuck = False
                self.say(self._alarms.clear_alarm, ALARM)
            return None
        self._stuck_seconds += elapsed
        if self._stuck_seconds >= self._alarm_seconds and not self.is_stuck:
            self.is_stuck = True
            self.say(self._raise_alarm, self._stuck_seconds)
        if self._stop_seconds is None or self._stuck_seconds < self._stop_seconds:
            return None
        self.say(self._log_stack, logging.CRITICAL, "raft thread stuck, this manager stops")
        return InvariantViolation(
            f"the raft thread has done nothing for {self._stuck_seconds:.0f} s; the log has its stack"
        )

    def close(self, seconds: float = 0.0) -> None:
        """Write nothing more. Wait at most `seconds` for the rest."""
        self._speaker.shutdown(seconds=seconds)

    def say(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # no thread can be started: then nothing is logged, but everything else is done
            self._speaker.submit(function, *arguments)

    def _raise_alarm(self, seconds: float) -> None:
        ends = "" if self._stop_seconds is None else f"; after {self._stop_seconds:g} s this manager stops"
        text = f"the raft thread of {self._node_id} has done nothing for {seconds:.1f} s, so it leads no longer{ends}"
        self._alarms.raise_alarm(ALARM, text, severity="critical", ago_seconds=seconds)
        self._log_stack(logging.WARNING, "raft thread stuck")

    def _log_stack(self, level: int, what: str) -> None:
        frame = sys._current_frames().get(self._thread.ident or 0)
        calls = [] if frame is None else traceback.extract_stack(frame)
        stack = " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls)
        log_event(logger, level, what, f"it is in {stack or 'nothing: it has ended'}", node=self._node_id)
