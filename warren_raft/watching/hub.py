"""The thread that fills the feeds of a store. It exists only while there are watches.

While there are watches, the thread that changes the state rings after each change. Nothing else of a watch is on the
way of a write. Not here: the events (feeding.py), the program's side (store/watch.py).
Invariant: a change that was made before a ring is read after it. No caller waits for this thread, except `close`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final

from warren_raft.errors import Closed, InvariantViolation, WarrenError
from warren_raft.store.database import Database
from warren_raft.store.watch import Feed
from warren_raft.support import forking
from warren_raft.support.log_lines import log_event
from warren_raft.support.waiting import Bell
from warren_raft.watching.feeding import Feeding

logger = logging.getLogger("warren_raft.watching")

LOOK_SECONDS: Final = 1.0
"""How often the thread checks, without being woken, whether its store has failed."""
PAUSE_SECONDS: Final = 0.01
"""The pause after each reading. Under load one reading takes the changes of many commits: waking up for each of them
would cost the writers more than the events do."""
RETRY_SECONDS: Final = 0.02
"""The pause after the database was replaced while it was read."""


class Hub:
    """The `Feeds` of a store (store/watch.py), whose methods may be called in any thread and in signal handlers.

    `attached`, `problem`: see Feeding. `ring_by(ring)`: from now on call `ring` after each change of the state; with
    None: call nothing, there are no watches. `poll_seconds`, and `is_continued=False` (see Feeding): for a state that
    another process changes.
    """

    def __init__(
        self,
        attached: Callable[[], Database],
        problem: Callable[[], WarrenError | None] = lambda: None,
        *,
        ring_by: Callable[[Callable[[], None] | None], None] = lambda _ring: None,
        poll_seconds: float = LOOK_SECONDS,
        is_continued: bool = True,
    ) -> None:
        self._feeding: Final = Feeding(attached, problem, is_continued=is_continued)
        self._attached = attached
        self._ring_by = ring_by
        self._poll_seconds = poll_seconds
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._is_rung = False
        self._is_closed = False
        self._turn = threading.Lock()
        """Held by the thread that makes steps. Only threads of this class take it."""
        self._thread: threading.Thread | None = None
        """The thread that is to make steps; a thread that finds another one here ends."""
        forking.call_in_child(self, Hub._end_in_child)

    # ---- Feeds

    def add(self, feed: Feed) -> None:
        self._require_open()
        self._feeding.add(feed)
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._start()
        self.ring()
        if self._is_closed:  # since then: the thread may have looked for the last time
            feed.end(Closed())
            self._require_open()

    def forget(self, feed: Feed) -> None:
        self._feeding.forget(feed)
        self.ring()

    def ring(self) -> None:
        if not self._is_rung:
            self._is_rung = True
            self._wakes.put(None)

    def new_bell(self) -> Bell:
        return Bell()

    # ---- for the store

    def diverged(self, right: Database) -> None:
        """The states before this one were wrong. Call it before this one is attached."""
        self._feeding.diverged(right)

    @property
    def open_count(self) -> int:
        """The watches that are open."""
        return self._feeding.count_open()

    @property
    def lost_count(self) -> int:
        """How many watches ended with WatchLost."""
        return self._feeding.lost

    def close(self, seconds: float) -> None:
        """End all watches with Closed, and wait at most `seconds` for the thread, so that it reads no more."""
        self._is_closed = True
        self._wakes.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def _require_open(self) -> None:
        if self._is_closed:
            raise Closed

    def _end_in_child(self) -> None:
        """In a forked child: the thread does not exist there."""
        self._is_closed = True
        self._thread = None
        self._feeding.end(Closed(forking.PARENTS))

    # ---- the thread

    def _start(self) -> None:
        """If the caller is interrupted here, its feed is forgotten, and the next one finds no thread, or one that
        lives. If two threads are started at once, the one that was noted first ends."""
        thread = threading.Thread(target=self._run, name="warren-raft-watching", daemon=True)
        self._thread = thread
        thread.start()

    def _run(self) -> None:
        with self._turn:
            self._ring_by(self.ring)
            while self._thread is threading.current_thread():
                wait = self._step()
                if self._is_closed:
                    self._feeding.end(Closed())
                    break
                if self._feeding.is_idle:
                    break
                self._wait(wait)
            self._ring_by(None)
            self._retire()

    def _retire(self) -> None:
        """End this thread. A feed that came since the last look gets another one."""
        if self._thread is threading.current_thread():
            self._thread = None
            if not self._feeding.is_idle and not self._is_closed:
                self._start()

    def _wait(self, seconds: float) -> None:
        time.sleep(PAUSE_SECONDS)
        with suppress(Empty):
            if seconds > 0:
                self._wakes.get(timeout=min(seconds, self._poll_seconds))
            while True:
                self._wakes.get_nowait()

    def _step(self) -> float:
        """Returns the seconds until the next step."""
        self._is_rung = False
        try:
            return self._feeding.step(time.monotonic())
        except Closed as error:
            return self._was_closed(error)
        except WarrenError as error:  # the state is damaged, or cannot be read
            self._feeding.end(error)
        except Exception as error:  # noqa: BLE001  it is logged, and every watch gets an error
            log_event(logger, logging.ERROR, "watching failed", exc_info=error)
            self._feeding.end(InvariantViolation(f"the events of a watch could not be read: {error!r}"))
        return math.inf

    def _was_closed(self, error: Closed) -> float:
        """The store was closed, or the database was replaced while it was read."""
        try:
            database = self._attached()
        except WarrenError:
            self._feeding.end(error)
            return math.inf
        if database.is_closed:
            self._feeding.end(error)
        return RETRY_SECONDS
