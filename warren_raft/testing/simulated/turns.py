"""Threads of which only one runs at a time, chosen by the caller of `run`, with a clock that only the caller moves.

Lives here: the turns, and the values of Python's own clocks and random numbers within these threads. Not here: the
choice of the next thread (cluster.py). Invariant: between two turns every thread waits, so the same choices give the
same run.
"""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from warren_raft.errors import InvalidEntity, InvariantViolation, Misuse
from warren_raft.support.waiting import Bell

T = TypeVar("T")

STUCK_SECONDS: Final = 30.0
"""How long a turn may take, in real time. A program that waits for anything but its store never ends its turn."""

MONOTONIC_BASE_SECONDS: Final = 1_000.0
TIME_BASE_SECONDS: Final = 1_767_225_600.0  # 2026-01-01
"""The values of `time.monotonic()` and `time.time()` at the beginning of a simulation."""


MISTAKES: Final = (Misuse, InvalidEntity, InvariantViolation)
"""Errors of this package that no fault of a cluster causes. A program that ends by one of them is wrong."""


class Killed(BaseException):
    """Ends the thread of a program whose manager was killed. A program should not catch it."""


class Stuck(Exception):
    """A thread did not end its turn. The message is where it is."""


class Task:
    """One thread of a program. It begins at its first turn."""

    def __init__(self, turns: Turns, function: Callable[[], object]) -> None:
        self._turns = turns
        self._function = function
        self.go: Final = threading.Lock()
        self.go.acquire()
        self.condition: Callable[[], object] | None = None
        """The condition for which the thread waits; None: it waits for its turn only."""
        self.deadline = math.inf
        self.waits = 0
        """How often it has waited for a condition."""
        self.is_killed = False
        self.has_ended = False
        self.error: BaseException | None = None
        """The exception that has left the function."""
        self.thread: Final = threading.Thread(target=self._run, name="warren-raft-simulated", daemon=True)
        self.thread.start()

    @property
    def is_runnable(self) -> bool:
        """Whether it would go on at its turn."""
        return not self.has_ended and (
            self.condition is None or self._turns.now >= self.deadline or bool(self._turns.evaluated(self.condition))
        )

    @property
    def waits_for_ever(self) -> bool:
        """Whether it waits without a deadline."""
        return self.condition is not None and self.deadline == math.inf

    def _run(self) -> None:
        self.go.acquire()
        _turns_of[threading.get_ident()] = self._turns
        try:
            if not self.is_killed:
                self._function()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  the simulation decides about it
            self.error = error
        finally:
            del _turns_of[threading.get_ident()]
            self.has_ended = True
            self._turns.back.release()


class Turns:
    """`run` and `kill` for the thread that makes the choices; the rest for the threads of the tasks too."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self.random_bytes: Final = random_bytes
        self.now = 0.0
        """The clock, in seconds."""
        self.back: Final = threading.Lock()
        self.back.acquire()
        self._current: Task | None = None
        self._is_evaluating = False

    def run(self, task: Task) -> None:
        """The next turn of a task. Raises Stuck."""
        self._current = task
        task.go.release()
        if not self.back.acquire(timeout=STUCK_SECONDS):
            raise Stuck(_place_of(task.thread))
        self._current = None
        if task.has_ended:
            task.thread.join()

    def kill(self, task: Task) -> None:
        """End a task: Killed is raised where it waits. Raises Stuck."""
        task.is_killed = True
        while not task.has_ended:
            self.run(task)

    @property
    def task(self) -> Task | None:
        """The task whose thread calls this; None in any other thread, and while a condition is evaluated."""
        task = self._current
        if task is None or self._is_evaluating or task.thread is not threading.current_thread():
            return None
        return task

    def evaluated(self, condition: Callable[[], T]) -> T:
        """The value of a condition. It takes no turns."""
        before, self._is_evaluating = self._is_evaluating, True
        try:
            return condition()
        finally:
            self._is_evaluating = before

    def pause(self) -> None:
        """Wait for the next turn. Raises Killed."""
        self.wait(None)

    def wait(self, condition: Callable[[], object] | None, deadline: float = math.inf) -> None:
        """Wait for a turn at which the condition is true, or the clock is at the deadline. Raises Killed."""
        task = self.task
        if task is None:
            return
        if not task.is_killed:
            task.condition, task.deadline = condition, deadline
            task.waits += condition is not None
            self.back.release()
            task.go.acquire()
            task.condition, task.deadline = None, math.inf
        if task.is_killed:
            raise Killed

    def monotonic(self) -> float:
        """The clock as `time.monotonic` gives it to the tasks."""
        return MONOTONIC_BASE_SECONDS + self.now

    def time(self) -> float:
        """The clock as `time.time` gives it to the tasks."""
        return TIME_BASE_SECONDS + self.now

    def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved on."""
        self.wait(lambda: False, self.now + seconds)


class TurnsBell(Bell):
    """A bell whose waiting threads are tasks. A ring wakes coroutines only: the conditions of tasks are evaluated for
    every turn."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def wait_for(self, condition: Callable[[], T], deadline: float) -> T:
        turns = self._turns
        ends_at = deadline - MONOTONIC_BASE_SECONDS
        value = turns.evaluated(condition)
        if value or ends_at <= turns.now:
            turns.pause()  # a loop around this call must not go on for ever without a turn
            value = turns.evaluated(condition)
        while not value and ends_at > turns.now:
            turns.wait(condition, ends_at)
            value = turns.evaluated(condition)
        return value


def _place_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "the thread has ended"


# Python's clocks and random numbers within the tasks ------------------------------------------------------------------

_turns_of: Final[dict[int, Turns]] = {}
"""By the number of a task's thread."""

_at_a_time: Final = threading.Lock()
"""One simulation at a time in a process: random.seed is the process's own."""


def _clock(real: Callable[[], T], simulated: Callable[[Turns], T]) -> Callable[[], T]:
    def clock() -> T:
        turns = _turns_of.get(threading.get_ident())
        return real() if turns is None else simulated(turns)

    return clock


def _with_argument(real: Callable[[Any], T], simulated: Callable[[Turns, Any], T]) -> Callable[[Any], T]:
    def function(argument: Any, /) -> T:
        turns = _turns_of.get(threading.get_ident())
        return real(argument) if turns is None else simulated(turns, argument)

    return function


@contextmanager
def simulated_time() -> Iterator[None]:
    """In the threads of tasks `time.time`, `time.monotonic`, their forms in nanoseconds and `time.sleep` use the clock
    of the turns, and `os.urandom`, from which `uuid.uuid4` is made, its random bytes. Other threads see no difference.
    Only the state of `random` is that of the whole process; it is put back at the end."""
    stand_ins: list[tuple[Any, str, Any]] = [
        (time, "time", _clock(time.time, Turns.time)),
        (time, "time_ns", _clock(time.time_ns, lambda turns: round(turns.time() * 1e6) * 1000)),
        (time, "monotonic", _clock(time.monotonic, Turns.monotonic)),
        (time, "monotonic_ns", _clock(time.monotonic_ns, lambda turns: round(turns.monotonic() * 1e9))),
        (time, "sleep", _with_argument(time.sleep, Turns.sleep)),
        (os, "urandom", _with_argument(os.urandom, lambda turns, size: turns.random_bytes(size))),
    ]
    with _at_a_time:
        originals = [(module, name, getattr(module, name)) for module, name, _ in stand_ins]
        state = random.getstate()
        try:
            for module, name, stand_in in stand_ins:
                setattr(module, name, stand_in)
            yield
        finally:
            for module, name, original in originals:
                setattr(module, name, original)
            random.setstate(state)
