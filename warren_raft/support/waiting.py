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
from typing import Any, Final, Generic, Protocol, TypeVar

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


class Waiting(Protocol):
    """A thread or a coroutine that waits."""

    def release(self) -> None:
        """Wake it. Does not wait, and does not raise."""


class Bell:
    """Wakes every thread and coroutine that waits for a condition to become true. Thread-safe. A signal handler may
    wait too."""

    def __init__(self) -> None:
        self._sleepers: dict[Waiting, None] = {}
        """Each is the lock on which a waiting thread sleeps, or the like. It is added in one step, and removed in one
        step by the thread that then wakes the sleeper, or by the sleeper."""

    def add(self, waiting: Waiting) -> None:
        """Release it once, at the next ring. The condition must be evaluated again after this call."""
        self._sleepers[waiting] = None

    def remove(self, waiting: Waiting) -> None:
        """It waits no more. Idempotent."""
        self._sleepers.pop(waiting, None)

    def ring(self) -> None:
        """Wake all that wait. Call this after a condition may have become true, and only in a thread of ours: an
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
                self.add(sleeper)
                value = condition()  # once more: it may have become true before any thread could wake this one
                left = deadline - time.monotonic()
                if value or left <= 0:
                    return value
                sleeper.acquire(timeout=wait_seconds(left))
            finally:
                self.remove(sleeper)
        return value


class Wait(Generic[T]):
    """A wait for a condition, by a thread (`wait`) or by a coroutine (aio/waiting.py).

    `late()`: the error at the deadline, if the condition is not true then.
    """

    def __init__(
        self, bell: Bell, condition: Callable[[], T | None], deadline: float, late: Callable[[], Exception]
    ) -> None:
        self.bell: Final = bell
        self.condition: Final = condition
        self.deadline: Final = deadline
        self._late = late

    def wait(self) -> T:
        """The value of the condition, once it is true. Raises the error of `late`, and those of the condition."""
        return self.judged(self.bell.wait_for(self.condition, self.deadline))

    def judged(self, value: T | None) -> T:
        """The value with which a wait ended."""
        if not value:
            raise self._late()
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
