"""Futures get their results here, so their callbacks run here: code of the user that may be slow, wait or never return.

The callbacks run in a thread of their own, so that they cost neither leadership nor a commit. A thread that stays in a
callback is replaced, because a callback may wait for another write, or even for another future. If a future's own lock
was left locked (an exception arrived inside `result()`), the future counts as a callback that never returns.
Invariant: each future is resolved once, and in order as long as no callback takes longer than PATIENCE_SECONDS.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.support.deliveries")

PATIENCE_SECONDS: Final = 0.25
"""If a delivery takes longer, another thread takes over the following ones."""
LOOK_SECONDS: Final = 0.1
STUCK_MAX: Final = 64
"""Callbacks that have not returned, each with a thread. With one more, nothing is delivered until one returns."""

Delivery = Callable[[], object]


class _Turn:
    """The time in which one thread delivers."""

    def __init__(self) -> None:
        self.thread: threading.Thread
        self.since: float | None = None
        """When its present delivery began."""


class Deliveries:
    """`put` is for any thread of ours. `look` and `finish` belong to one thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: deque[Delivery] = deque()
        """The calls to make, in order. The thread that takes one out of it makes it."""
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        """One True after each group of calls: a wake for each call would make the thread fight for the interpreter with
        the raft thread. False: the end."""
        self._lock = threading.Lock()
        self._turn: _Turn | None = None
        self._stuck: list[threading.Thread] = []

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """Request these calls, in this order. If not even a first thread can be started, they are made here, at
        once."""
        if not deliveries:
            return
        self._due.extend(deliveries)
        self._wakes.put(True)
        if self._turn is None:
            with self._lock:
                if self._turn is None:
                    self._start_turn()
        while self._turn is None and self._due:
            self._deliver(_Turn())

    def look(self) -> float | None:
        """Replace a thread that stays in a delivery. Returns the seconds until the next call; None: after a `put`."""
        if self._turn is None:
            return None
        with self._lock:
            turn = self._turn
            if turn is None or (turn.since is None and not self._due):
                return None
            if turn.since is not None and time.monotonic() - turn.since > PATIENCE_SECONDS:
                self._stuck = [thread for thread in self._stuck if thread.is_alive()]
                if len(self._stuck) < STUCK_MAX:
                    self._stuck.append(turn.thread)
                    self._start_turn()
            return LOOK_SECONDS

    def finish(self, seconds: float) -> None:
        """Deliver the rest; wait at most `seconds` for threads that are in a callback. No `put` may follow."""
        self._wakes.put(False)
        give_up_at = time.monotonic() + seconds
        while (turn := self._turn) is not None and turn.thread.is_alive() and time.monotonic() < give_up_at:
            turn.thread.join(LOOK_SECONDS)
            self.look()

    def _start_turn(self) -> None:
        """Call this with the lock held. If no thread can be started (a limit, or Python is ending), the present one
        goes on."""
        before, turn = self._turn, _Turn()
        turn.thread = threading.Thread(target=self._run, args=(turn,), name=self._name, daemon=True)
        self._turn = turn
        try:
            turn.thread.start()
        except RuntimeError as error:
            self._turn = before
            log_event(logger, logging.WARNING, "thread not started", error, thread=self._name)

    def _run(self, turn: _Turn) -> None:
        while self._turn is turn:
            if self._deliver(turn):
                continue
            goes_on = self._wakes.get()
            if self._turn is not turn:
                self._wakes.put(goes_on)  # it was for the thread that has the turn now
            elif not goes_on:
                return

    def _deliver(self, turn: _Turn) -> bool:
        """Make the next call. Returns False if there is none."""
        try:
            delivery = self._due.popleft()
        except IndexError:
            return False
        turn.since = time.monotonic()
        try:
            delivery()
        except BaseException as error:  # noqa: BLE001  SystemExit too: the other deliveries must follow
            log_event(logger, logging.ERROR, "callback of a future failed", thread=self._name, exc_info=error)
        turn.since = None
        return True
