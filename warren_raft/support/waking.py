"""Waking many threads that wait, without a fight for the interpreter: each thread that wakes up wakes the next one.

A thread that is ready to run Python code asks for the interpreter at every switch interval. If 200 threads are woken at
once, they ask 400,000 times a second, and slow down the thread that has it. So the threads of a group form CHAINS
chains: the first thread of each is woken from outside, and each thread wakes the next one of its chain when its own
wait ends, for any reason. An exception may arrive in a thread at that very moment, so `look` wakes the whole group if
its chains take longer than PATIENCE_SECONDS. Not here: the result that a thread waits for.
Invariant: every sleeper of a group is woken, by the sleeper before it or at the latest by `look`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from warren_raft.support.timeouts import wait_seconds

CHAINS: Final = 3
"""So many threads of a group are on their way at the same time: while one of them runs, the others get ready."""
PATIENCE_SECONDS: Final = 0.02
"""A group that is not awake by then is woken as a whole. A chain stands still if a thread was interrupted while it woke
the next one, or runs a signal handler, and it is slow if another thread keeps the interpreter busy."""


class Sleeper:
    """One wait of one thread."""

    __slots__ = ("_lock", "_next", "has_left")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the cheapest object that a thread can wait for
        self._lock.acquire()
        self._next: Sleeper | None = None
        """The sleeper to wake next. Set before this sleeper is woken."""
        self.has_left = False
        """Whether the thread waits no longer, and wakes the next one itself if there was one by then."""

    def sleep(self, seconds: float) -> bool:
        """Wait until `wake`, `seconds` at most. Returns whether `wake` came."""
        try:
            return self._lock.acquire(timeout=wait_seconds(seconds))
        finally:
            self.leave()

    def leave(self) -> None:
        """The thread waits no longer: wake the next one. Call it in that thread, once or more often."""
        self.has_left = True  # first: a thread that calls `wake` from now on wakes the next one too
        following = self._next
        if following is not None:
            following.wake()
            self._next = None

    def wake(self) -> None:
        """Wake the thread. If it waits no longer, wake the next one. Any thread, any number of times."""
        sleeper: Sleeper | None = self
        while sleeper is not None:
            sleeper.release()
            following = sleeper._next  # read before `has_left`: a sleeper that leaves after that wakes it itself
            sleeper = following if sleeper.has_left else None

    def release(self) -> None:
        """Wake this thread only. Any thread, any number of times."""
        try:
            self._lock.release()
        except RuntimeError:  # it was released before, and has not run since
            return


class Waking:
    """Wakes groups of sleepers. For one thread, except for `wake_all`."""

    def __init__(self) -> None:
        self._groups: deque[tuple[float, Sequence[Sleeper]]] = deque()
        """The groups with chains that have not reached their ends, and since when."""

    def wake(self, sleepers: Sequence[Sleeper]) -> bool:
        """Wake them all: the first one of each chain now, the others one after the other. Whether there are others,
        that `look` has to be called for."""
        if len(sleepers) > CHAINS:
            for sleeper, following in zip(sleepers, sleepers[CHAINS:], strict=False):
                sleeper._next = following
            self._groups.append((time.monotonic(), sleepers))
        for sleeper in sleepers[:CHAINS]:
            sleeper.wake()
        return bool(self._groups)

    def look(self) -> bool:
        """Wake the groups that take too long. True: there are others that are not awake yet, so call this again after
        PATIENCE_SECONDS."""
        groups = self._groups
        while groups:
            since, sleepers = groups[0]
            if not all(sleeper.has_left for sleeper in sleepers):
                if time.monotonic() - since < PATIENCE_SECONDS:
                    return True
                _release(sleepers)
            groups.popleft()
        return False

    def wake_all(self) -> None:
        """Wake every sleeper now. Any thread."""
        for _, sleepers in list(self._groups):
            _release(sleepers)


def _release(sleepers: Sequence[Sleeper]) -> None:
    for sleeper in sleepers:
        if not sleeper.has_left:
            sleeper.release()
