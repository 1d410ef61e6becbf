"""How a caller's thread waits for one of ours: an exception may arrive in it between any two instructions (Ctrl-C, an
alarm for a time limit), and a signal handler may call the store again while it waits.

So a waiting thread holds no lock that anybody else takes: `threading.Condition`, `Event` and `Future` do, and are not
used between a caller and a manager's threads. Not here: what is waited for.
Invariant: whatever ends a wait, nobody else is kept waiting, and nobody's wake-up is lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from warren_raft.timeouts import wait_seconds

T = TypeVar("T")

_GONE: Final = object()


def taken(queue: deque[T]) -> list[T]:
    """All that is in the queue, taken out of it. Where two threads do this at once each thing goes to one of them."""
    found: list[T] = []
    with suppress(IndexError):
        while True:
            found.append(queue.popleft())
    return found


class Bell:
    """Wakes every thread that waits for a condition to come true. Thread-safe. A signal handler may wait too."""

    def __init__(self) -> None:
        self._sleepers: dict[threading.Lock, None] = {}
        """Each a lock that a waiting thread sleeps on. It is added in one step and taken out in one step, by the thread
        that then wakes the sleeper, or by the sleeper."""

    def ring(self) -> None:
        """Something may have come true. To be called after it did, by a thread of ours only: an exception in the middle
        would lose a wake-up."""
        for sleeper in list(self._sleepers):
            if self._sleepers.pop(sleeper, _GONE) is not _GONE:
                sleeper.release()

    def wait_for(self, condition: Callable[[], T], deadline: float) -> T:
        """What `condition` returns, as soon as that is true; at the deadline, what it returns then.

        The deadline is in the clock of `time.monotonic`. What `condition` raises ends the wait.
        """
        while not (value := condition()):
            sleeper = threading.Lock()
            sleeper.acquire()
            try:
                self._sleepers[sleeper] = None
                value = condition()  # once more: it may have come true before anybody could wake us
                left = deadline - time.monotonic()
                if value or left <= 0:
                    return value
                sleeper.acquire(timeout=wait_seconds(left))
            finally:
                self._sleepers.pop(sleeper, None)
        return value


class Reply(Generic[T]):
    """One answer, given by one of our threads to one that waits. Given once."""

    __slots__ = ("_error", "_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._value: Any = None
        self._error: BaseException | None = None

    def give(self, value: T) -> None:
        self._value = value
        self._lock.release()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Whether it was given, after that many seconds at most."""
        return self._lock.acquire(timeout=wait_seconds(seconds))

    def result(self) -> T:
        """The answer, or the error raised. Once, after `wait`: a kept error would keep its traceback, and that us."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        value, self._value = self._value, None
        return value  # type: ignore[no-any-return]
