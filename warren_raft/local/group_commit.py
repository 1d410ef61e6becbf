"""Many callers, one commit: all requests that wait while a commit runs go into the next commit together.

The store's own thread commits. A caller's thread only puts its request into a queue and waits for a lock that no other
thread waits for. So an exception that arrives there, or a signal handler that writes, blocks no other thread.
Invariant: one commit runs at a time, in the order of arrival, and every caller gets the result of its own request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from warren_raft.errors import Closed, InvariantViolation, Unavailable
from warren_raft.store.counts import Series
from warren_raft.store.fence import Fence
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.handover import Landing, hand_over
from warren_raft.support.log_lines import log_event
from warren_raft.support.own_thread import OwnThread
from warren_raft.support.timeouts import wait_seconds

logger = logging.getLogger("warren_raft.local.group_commit")

Outcome = int | Exception
"""The result of a request: its answer, or the error for its caller."""

UNNAMED: Final = Series("", "")
"""Where requests are counted that nobody wants to be counted."""

MAX_WAITING: Final = 16_384
"""The most waiting requests; beyond it, a request with a future is refused. About a second of small writes."""

MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""The limit for the bytes of waiting requests. A request with a future that exceeds it is refused, but a single request
is always accepted. A small one is accepted if this many requests of its size would stay below the limit."""

MAX_GROUP_BYTES: Final = 16 * 1024 * 1024
"""The limit for the bytes of one commit (at least one request): its dirty pages stay in memory until the commit
ends."""


class GroupCommit:
    """Hands requests to `commit`, as many together as there are. All methods are thread-safe, and may be called by
    signal handlers.

    `commit` gets encoded requests and returns an outcome for each, in order. If it raises, the error is the outcome of
    every request. It is called in `thread`, and so never twice at the same time.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[bytes]], Sequence[Outcome]],
        thread: OwnThread,
        deliveries: Deliveries,
        term: Callable[[], int],
    ) -> None:
        self._commit = commit
        self._term = term
        self._thread = thread
        self._deliveries = deliveries
        self._queue: deque[Request] = deque()
        self._closed = False
        self._is_committing = False

    @property
    def is_idle(self) -> bool:
        """Whether every request that this thread has made is decided."""
        return not self._queue and not self._is_committing  # in this order: see _commit_group

    @property
    def waiting(self) -> int:
        """How many requests wait for their commit to begin."""
        return len(self._queue)

    def run(self, data: bytes, timeout: float, series: Series = UNNAMED, fence: Fence | None = None) -> int:
        """Commit `data` and return its answer, within `timeout` seconds.

        Raises the outcome's error; Unavailable (`maybe_applied` if its commit runs) at the deadline; LeadershipLost if
        the lead of its fence is over when its commit begins; Closed.
        """
        request = Request(data, timeout, None, series=series, fence=fence)
        try:
            self._enter(request)
            ended = request.wait()
        except BaseException:  # an interrupt (Ctrl-C): if its commit has not begun, it must not begin any more
            self._leave(request)
            raise
        if not ended and self._leave(request):
            series.failed(Unavailable.__name__)
            raise _too_late()
        if not request.has_ended:
            raise _takes_too_long()
        return request.result()

    def start(self, data: bytes, timeout: float, series: Series = UNNAMED, fence: Fence | None = None) -> Future[int]:
        """Like `run`, but returns at once. The future gets the result or error of `run` later. It cannot be cancelled.
        Raises Unavailable if the queue is full, and Closed."""
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        self._enter_without_waiting(Request(data, timeout, future, series=series, fence=fence))
        return future

    def begin(
        self, data: bytes, timeout: float, landing: Landing, series: Series = UNNAMED, fence: Fence | None = None
    ) -> Request:
        """Like `start`, for a coroutine."""
        request = Request(data, timeout, None, landing, series=series, fence=fence)
        self._enter_without_waiting(request)
        return request

    def _enter_without_waiting(self, request: Request) -> None:
        if self._is_full(len(request.data)):
            request.series.failed(Unavailable.__name__)
            raise Unavailable("too many writes are waiting", maybe_applied=False)
        self._enter(request)

    def refuse(self) -> None:
        """Accept no further requests: they raise Closed."""
        self._closed = True

    def close(self) -> None:
        """Refuse further requests; return when all accepted requests are decided. Call in `thread`. Idempotent."""
        self.refuse()
        while self._queue:
            self._commit_group()

    def _enter(self, request: Request) -> None:
        if self._is_closed():
            raise Closed
        self._queue.append(request)
        self._thread.post(self._commit_group)
        if self._is_closed() and self._leave(request):  # closed since then: `close` may not check the queue again
            raise Closed

    def _is_closed(self) -> bool:
        return self._closed

    def _is_full(self, size_bytes: int) -> bool:
        """Whether the queue has no place for one more request of that size with a future."""
        waiting = len(self._queue)
        if waiting >= MAX_WAITING:
            return True
        if waiting * size_bytes <= MAX_WAITING_BYTES:  # a small one: summing the others would take longer than it
            return False
        return size_bytes + sum(len(request.data) for request in list(self._queue)) > MAX_WAITING_BYTES

    def _leave(self, request: Request) -> bool:
        """Take the request back. Returns whether that was possible: its commit had not begun, and will not begin."""
        if not request.claim():
            return False
        with suppress(ValueError):
            self._queue.remove(request)
        return True

    # In the thread -----------------------------------------------------------------------------------------------

    def _commit_group(self) -> None:
        """Commit the waiting requests. There may be none left: this was posted once a request, and some go together."""
        self._is_committing = True  # before the queue is empty
        try:
            self._commit_next()
        finally:
            self._is_committing = False

    def _commit_next(self) -> None:
        group = self._take_group()
        if not group:
            return
        for request, outcome in zip(group, self._outcomes(group), strict=True):
            request.outcome = outcome
        self._tell(group)

    def _tell(self, group: Sequence[Request]) -> None:
        """The requests are decided."""
        now = time.monotonic()
        for request in group:
            request.count(now)
        for request in group:
            if request.has_thread:
                request.wake()
        hand_over([request.landing for request in group if request.landing is not None])
        self._deliveries.put([request.settle for request in group if request.future is not None])

    def _take_group(self) -> list[Request]:
        """The first request of the queue and the following ones that fit with it into one commit."""
        group: list[Request] = []
        size_bytes = 0
        queue = self._queue
        while queue and (not group or size_bytes + len(queue[0].data) <= MAX_GROUP_BYTES):
            request = queue.popleft()
            if not request.claim():
                continue
            if not request.has_thread and request.remaining_seconds() == 0:
                request.outcome = _too_late()
                self._tell([request])
                continue
            if request.fence is not None and (request.fence.is_over or request.fence.term != self._term()):
                request.outcome = request.fence.refusal()
                self._tell([request])
                continue
            group.append(request)
            size_bytes += len(request.data)
        if queue:
            self._thread.post(self._commit_group)  # the calls that were posted for these may be used up
        return group

    def _outcomes(self, group: Sequence[Request]) -> Sequence[Outcome]:
        try:
            return self._commit([request.data for request in group])
        except Exception as error:  # noqa: BLE001  each caller raises it
            return [error] * len(group)
        except BaseException as error:  # noqa: BLE001  each caller gets an error
            log_event(logger, logging.ERROR, "commit broken off", exc_info=error)
            return [Unavailable("the commit was broken off", maybe_applied=True) for _ in group]


def _too_late() -> Unavailable:
    return Unavailable("the writes before this one took too long", maybe_applied=False)


def _takes_too_long() -> Unavailable:
    return Unavailable("the commit takes too long", maybe_applied=True)


class Request:
    """One caller's bytes to commit. The caller's thread waits for the result, or gets it by `future`, or a coroutine
    waits at `landing`."""

    __slots__ = (
        "_claimed",
        "_turn",
        "begun",
        "data",
        "fence",
        "future",
        "landing",
        "outcome",
        "patience_until",
        "series",
    )

    def __init__(
        self,
        data: bytes,
        timeout: float,
        future: Future[int] | None,
        landing: Landing | None = None,
        *,
        series: Series = UNNAMED,
        fence: Fence | None = None,
    ) -> None:
        self.data = data
        self.fence = fence
        self.future = future
        self.landing = landing
        self.outcome: Outcome | None = None
        self.series = series
        self.begun = time.monotonic()
        self.patience_until = self.begun + timeout
        self._turn = threading.Lock()  # the cheapest object that a thread can wait for: no Condition, no Event
        self._turn.acquire()
        self._claimed = threading.Lock()

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None

    @property
    def has_thread(self) -> bool:
        """Whether a thread waits, which gives up by itself at the deadline."""
        return self.future is None and self.landing is None

    def claim(self) -> bool:
        """Take the request: either the thread that commits it, or its caller that gives up. Returns True once."""
        return self._claimed.acquire(blocking=False)

    def remaining_seconds(self) -> float:
        return wait_seconds(self.patience_until - time.monotonic())

    def wait(self) -> bool:
        """Wait until `wake`, at most to the deadline. Returns whether `wake` came."""
        return self._turn.acquire(timeout=self.remaining_seconds())

    def wake(self) -> None:
        self._turn.release()

    def give_up(self) -> None:
        """Its coroutine was cancelled: if its commit has not begun, it does not begin any more."""
        self.claim()

    def late(self) -> Unavailable:
        """The error of a coroutine that has waited until `patience_until`."""
        return _too_late() if self.claim() else _takes_too_long()

    def count(self, now: float) -> None:
        """It has an outcome."""
        if isinstance(self.outcome, Exception):
            self.series.failed(type(self.outcome).__name__)
        else:
            self.series.ended(now - self.begun)

    def settle(self) -> None:
        """Give the result to the future."""
        assert self.future is not None
        outcome = self.outcome
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(self.result())

    def result(self) -> int:
        """The answer, or the error raised. Call once: a stored error would keep its traceback and this object."""
        outcome, self.outcome = self.outcome, None
        if isinstance(outcome, Exception):
            try:
                raise outcome.with_traceback(None)  # it may be the outcome of others too
            finally:
                del outcome
        if outcome is None:
            raise InvariantViolation("a result was requested before there was one")
        return outcome
