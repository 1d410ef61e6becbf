"""Futures get their results here, so their callbacks are run here: user code, which may be slow, wait or never return.

In a thread of its own, so that it costs neither leadership nor a commit. One that stays in a callback is replaced: a
callback may wait for another write, even for another future. A future whose own lock was left locked (an exception
arrived inside `result()`) is to us a callback that never returns.
Invariant: each future is resolved once, in order as long as no callback takes longer than PATIENCE_SECONDS.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

from warren_raft.log_lines import log_event

logger = logging.getLogger("warren_raft.deliveries")

PATIENCE_SECONDS: Final = 0.25
"""A delivery that takes longer has another thread take over the ones behind it."""
LOOK_SECONDS: Final = 0.1
STUCK_MAX: Final = 64
"""Callbacks that have not returned, each with a thread. With one more nothing is delivered until one returns."""

Delivery = Callable[[], object]


class _Turn:
    """One thread's time as the one that delivers."""

    def __init__(self) -> None:
        self.thread: threading.Thread
        self.since: float | None = None
        """When its present delivery began."""


class Deliveries:
    """`put` is for any thread of ours; `look` and `finish` are one thread's, and say what they need of the clock."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: SimpleQueue[Delivery | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._turn: _Turn | None = None
        self._stuck: list[threading.Thread] = []

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """Have these called, in this order. At once, and here, where not even a first thread can be had."""
        if not deliveries:
            return
        for delivery in deliveries:
            self._waiting.put(delivery)
        with self._lock:
            if self._turn is None:
                self._start_turn()
            has_thread = self._turn is not None
        while not has_thread and not self._waiting.empty():
            self._deliver(_Turn())

    def look(self) -> float | None:
        """Replace a thread that stays in a delivery. Returns when to look again, in seconds; None: after a `put`."""
        if self._turn is None:
            return None
        with self._lock:
            turn = self._turn
            if turn is None or (turn.since is None and self._waiting.empty()):
                return None
            if turn.since is not None and time.monotonic() - turn.since > PATIENCE_SECONDS:
                self._stuck = [thread for thread in self._stuck if thread.is_alive()]
                if len(self._stuck) < STUCK_MAX:
                    self._stuck.append(turn.thread)
                    self._start_turn()
            return LOOK_SECONDS

    def finish(self, seconds: float) -> None:
        """Deliver what is left; threads that are in a callback are waited for at most so long. Nothing is put after."""
        self._waiting.put(None)
        give_up_at = time.monotonic() + seconds
        while (turn := self._turn) is not None and turn.thread.is_alive() and time.monotonic() < give_up_at:
            turn.thread.join(LOOK_SECONDS)
            self.look()

    def _start_turn(self) -> None:
        """Lock held. Where no thread can be had (a limit, or Python is about to end) the present one goes on."""
        before, turn = self._turn, _Turn()
        turn.thread = threading.Thread(target=self._run, args=(turn,), name=self._name, daemon=True)
        self._turn = turn
        try:
            turn.thread.start()
        except RuntimeError as error:
            self._turn = before
            log_event(logger, logging.WARNING, "thread not started", error, thread=self._name)

    def _run(self, turn: _Turn) -> None:
        while self._deliver(turn):
            pass

    def _deliver(self, turn: _Turn) -> bool:
        """Wait for the next one, and call it. False: there will be none, or another thread has the next turn."""
        delivery = self._waiting.get()
        if delivery is None:
            return False
        turn.since = time.monotonic()
        try:
            delivery()
        except BaseException as error:  # noqa: BLE001  SystemExit too: the others have their callbacks coming
            log_event(logger, logging.ERROR, "callback of a future failed", thread=self._name, exc_info=error)
        with self._lock:
            turn.since = None
            return self._turn is turn
