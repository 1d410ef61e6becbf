"""How a caller's thread waits for one of ours. An exception may arrive in the caller between any two instructions
(Ctrl-C, an alarm for a time limit), and a signal handler may call the store again while the caller waits.

So a waiting thread holds no lock that another thread takes. `threading.Condition`, `Event` and `Future` have such
locks, and are not used between a caller and a manager's threads. Not here: the reasons to wait.
Invariant: however a wait ends, no other thread is kept waiting, and no wake-up is lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from warren_raft.support.timeouts import wait_seconds

T = TypeVar("T")

_GONE: Final = object()


def taken(queue: deque[T]) -> list[T]:
    """Take everything out of the queue. If two threads do this at once, each item goes to one of them."""
    found: list[T] = []
    with suppress(IndexError):
        while True:
            found.append(queue.popleft())
    return found


class Bell:
    """Wakes every thread that waits for a condition to become true. Thread-safe. A signal handler may wait too."""

    def __init__(self) -> None:
        self._sleepers: dict[threading.Lock, None] = {}
        """Each is a lock on which a waiting thread sleeps. It is added in one step, and removed in one step by the
        thread that then wakes the sleeper, or by the sleeper."""

    def ring(self) -> None:
        """Wake the waiting threads. Call this after a condition may have become true, and only in a thread of ours: an
        exception in the middle would lose a wake-up."""
        for sleeper in list(self._sleepers):
            if self._sleepers.pop(sleeper, _GONE) is not _GONE:
                sleeper.release()

    def wait_for(self, condition: Callable[[], T], deadline: float) -> T:
        """The value of `condition` as soon as it is true; at the deadline, its value at that time.

        The deadline is in the clock of `time.monotonic`. An exception of `condition` ends the wait.
        """
        while not (value := condition()):
            sleeper = threading.Lock()
            sleeper.acquire()
            try:
                self._sleepers[sleeper] = None
                value = condition()  # once more: it may have become true before any thread could wake this one
                left = deadline - time.monotonic()
                if value or left <= 0:
                    return value
                sleeper.acquire(timeout=wait_seconds(left))
            finally:
                self._sleepers.pop(sleeper, None)
        return value


class Reply(Generic[T]):
    """One answer from a thread of ours to a waiting thread. Given once."""

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
        """Whether the answer was given, after `seconds` at most."""
        return self._lock.acquire(timeout=wait_seconds(seconds))

    def result(self) -> T:
        """The answer, or its error raised. Call once, after `wait`: a stored error would keep its traceback and this
        object."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        value, self._value = self._value, None
        return value  # type: ignore[no-any-return]
