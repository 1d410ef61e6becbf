"""Many callers, one commit: everything that waits while a commit runs goes into the next one together.

The waiting callers do the work, one for all; a thread of its own serves futures. `commit` is passed in.
Invariant: one commit runs at a time, in the order of arrival, and every caller learns its own outcome.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from warren_raft.errors import Closed, InvariantViolation, Unavailable

Outcome = int | Exception
"""What became of a request: its answer, or the error its caller gets."""

MAX_WAITING: Final = 16_384
"""Requests that wait for a commit, and further callers wait to be let in: about a second of small writes."""

MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""The same, for large ones: this much of the process's memory. One request is always let in."""

MAX_GROUP_BYTES: Final = 16 * 1024 * 1024
"""What one commit takes together (at least one request): its dirty pages stay in memory until it ends."""


class GroupCommit:
    """Hands requests to `commit`, as many together as there are. All methods are thread-safe.

    `commit` gets encoded requests and returns an outcome for each, in order. What it raises instead is every
    request's outcome. It is never called by two threads at once, and never with a lock of this class held.
    """

    def __init__(self, commit: Callable[[Sequence[bytes]], Sequence[Outcome]]) -> None:
        self._commit = commit
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)  # there is room in the queue, or nobody leads
        self._queue: deque[_Request] = deque()
        self._queue_bytes = 0
        self._leader: _Request | _Background | None = None  # whose thread commits, or has been told to
        self._background = _Background(self._serve)
        self._closed = False

    def run(self, data: bytes, timeout: float) -> int:
        """Commit `data` and return its answer, within `timeout` seconds.

        Raises the outcome's error; Unavailable (`maybe_applied` if its commit runs) at the deadline; Closed.
        """
        request = _Request(data, timeout, None)
        try:
            self._enter(request)
            while request.outcome is None:
                if self._leader is request:
                    self._commit_group()
                else:
                    self._wait(request)
        except BaseException:
            self._abandon(request)  # an interrupt (Ctrl-C) must not leave everybody without a leader
            raise
        return request.result()

    def start(self, data: bytes, timeout: float) -> Future[int]:
        """Like `run`, at once; what `run` would return or raise is in the future. It cannot be cancelled.

        Waits only for room in the queue. Raises Unavailable if there is none in time, and Closed.
        """
        self._background.start()
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        self._enter(_Request(data, timeout, future))
        return future

    def close(self) -> None:
        """Refuse further requests; return when all that were let in are decided. Idempotent."""
        with self._mutex:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._leader is None)
        self._background.stop()

    def _enter(self, request: _Request) -> None:
        """Put `request` into the queue, as soon as there is room, and see to it that somebody leads."""
        with self._mutex:
            while not self._closed and not self._has_room(request):
                if not self._changed.wait(request.remaining_seconds()):
                    raise Unavailable("too many writes are waiting", maybe_applied=False)
            if self._closed:
                raise Closed
            self._queue.append(request)
            self._queue_bytes += len(request.data)
            if self._leader is None:
                self._hand_over()

    def _has_room(self, request: _Request) -> bool:
        if not self._queue:
            return True
        return len(self._queue) < MAX_WAITING and self._queue_bytes + len(request.data) <= MAX_WAITING_BYTES

    def _hand_over(self) -> None:
        """Choose who leads next: the first caller that waits, or the thread for futures. Mutex held."""
        self._leader = None
        if self._queue:
            heir = next((request for request in self._queue if request.future is None), None)
            self._leader = self._background if heir is None else heir
            self._leader.wake()
        self._changed.notify_all()

    def _wait(self, request: _Request) -> None:
        """Until its outcome is there or its thread has to lead. Raises Unavailable at the deadline."""
        if request.wait() or self._leader is request:
            return
        with self._mutex:
            if request in self._queue:
                self._leave(request)
                raise Unavailable("the writes before this one took too long", maybe_applied=False)
            if request.outcome is None:
                raise Unavailable("the commit takes too long", maybe_applied=True)

    def _abandon(self, request: _Request) -> None:
        with self._mutex:
            if request in self._queue:
                self._leave(request)
            if self._leader is request:
                self._hand_over()

    def _leave(self, request: _Request) -> None:
        self._queue.remove(request)
        self._queue_bytes -= len(request.data)
        self._changed.notify_all()

    def _commit_group(self) -> None:
        """Commit what waits; let the next one lead; only then tell everybody: a callback may write again."""
        with self._mutex:
            group = self._take_group()
        outcomes: Sequence[Outcome] = [_interrupted() for _ in group]
        try:
            outcomes = self._outcomes(group)
        finally:
            with self._mutex:
                self._hand_over()
            for request, outcome in zip(group, outcomes, strict=True):
                request.resolve(outcome)

    def _take_group(self) -> list[_Request]:
        """The first of the queue and what fits with it into one commit. Mutex held, queue not empty."""
        group: list[_Request] = []
        size_bytes = 0
        while self._queue and (not group or size_bytes + len(self._queue[0].data) <= MAX_GROUP_BYTES):
            group.append(self._queue.popleft())
            size_bytes += len(group[-1].data)
        self._queue_bytes -= size_bytes
        return group

    def _outcomes(self, group: Sequence[_Request]) -> Sequence[Outcome]:
        try:
            return self._commit([request.data for request in group])
        except Exception as error:  # noqa: BLE001  each caller raises it
            return [error] * len(group)

    def _serve(self) -> bool:
        """What the thread for futures does when it is woken. False: there is no more to come."""
        while self._leader is self._background:
            self._commit_group()
        return not self._closed


def _interrupted() -> Unavailable:
    return Unavailable("the thread that committed was interrupted", maybe_applied=True)


class _Request:
    """What one caller wants committed: its thread waits for it, or (`future`) nobody in particular."""

    __slots__ = ("_deadline", "_turn", "data", "future", "outcome")

    def __init__(self, data: bytes, timeout: float, future: Future[int] | None) -> None:
        self.data = data
        self.future = future
        self.outcome: Outcome | None = None
        self._deadline = time.monotonic() + timeout
        self._turn = threading.Lock()  # the cheapest thing a thread can wait for: no Condition, no Event
        self._turn.acquire()

    def remaining_seconds(self) -> float:
        return min(max(self._deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)

    def wait(self) -> bool:
        """Until somebody calls `wake`, at most to the deadline; whether somebody did."""
        return self._turn.acquire(timeout=self.remaining_seconds())

    def wake(self) -> None:
        if self._turn.locked():  # it is not when its thread went ahead by itself, at the deadline
            self._turn.release()

    def resolve(self, outcome: Outcome) -> None:
        self.outcome = outcome
        if self.future is None:
            self.wake()
        elif isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)

    def result(self) -> int:
        """The answer, or the error raised. Once only: a kept error would keep its traceback, and that us."""
        outcome, self.outcome = self.outcome, None
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome
        if outcome is None:
            raise InvariantViolation("a result was asked for before there was one")
        return outcome


class _Background:
    """The thread that leads when only futures wait. Started by the first of them."""

    def __init__(self, serve: Callable[[], bool]) -> None:
        self._serve = serve
        self._turns = threading.Semaphore(0)
        self._start_mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        with self._start_mutex:
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._run, name="warren-commit", daemon=True)
                thread.start()
                self._thread = thread

    def wake(self) -> None:
        self._turns.release()

    def stop(self) -> None:
        """Returns when the thread has ended (at once in that thread: a callback may close the store)."""
        self.wake()
        with self._start_mutex:
            self._stopped = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            self._turns.acquire()
            if not self._serve():
                return
