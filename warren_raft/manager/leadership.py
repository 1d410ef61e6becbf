"""Callbacks for gained and lost leadership, each in a thread of its own. A callback that blocks, never returns or
raises SystemExit does not affect the others.

Not here: the election (raft/). Invariant: a callback gets the present state first, then each change, in order. A slow
callback gets the newest state, and it also hears that leadership was lost if it was lost and won again meanwhile.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Container
from functools import partial
from typing import Final, Protocol

from warren_raft.errors import RefusedForSafety
from warren_raft.support.log_lines import log_event
from warren_raft.support.waiting import Bell

logger = logging.getLogger("warren_raft.manager.leadership")

CALLBACKS_MAX: Final = 100
"""Each callback has a thread, until it is unsubscribed and has returned."""

Callback = Callable[[bool, int], object]


class Subscription:
    """One callback."""

    def __init__(self, callback: Callback) -> None:
        self.callback: Final = callback
        self.is_over = False
        self.thread: threading.Thread | None = None


class Caller(Protocol):
    """A thread that makes the calls that other threads ask for (support/own_thread.py)."""

    def call(self, function: Callable[[], None]) -> None: ...
    def post(self, function: Callable[[], object]) -> None: ...


class Leadership:
    """`leading_term()`: the term in which this manager leads, None if it does not lead; `term()`: the present term;
    `is_over()`: no more changes will come. The bell rings after each change of these. `own` is the thread that starts
    the threads of the callbacks."""

    def __init__(
        self,
        bell: Bell,
        *,
        leading_term: Callable[[], int | None],
        term: Callable[[], int],
        is_over: Callable[[], bool],
        own: Caller,
    ) -> None:
        self._bell = bell
        self._own = own
        self._leading_term = leading_term
        self._term = term
        self._is_over = is_over
        self._subscriptions: list[Subscription] = []

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Begin the calls. Returns the function that ends them. Any thread, and signal handlers.

        Raises RefusedForSafety beyond CALLBACKS_MAX, RuntimeError without a thread, Closed.
        """
        subscription = Subscription(callback)
        try:
            self._own.call(partial(self.start, subscription))
        except BaseException:
            self.stop(subscription)
            raise
        return partial(self.stop, subscription)

    def start(self, subscription: Subscription) -> None:
        """Begin the calls. One thread. Raises RefusedForSafety beyond CALLBACKS_MAX, RuntimeError without a thread."""
        self._subscriptions = [each for each in self._subscriptions if each.thread and each.thread.is_alive()]
        if len(self._subscriptions) >= CALLBACKS_MAX:
            raise RefusedForSafety(
                f"{CALLBACKS_MAX} leadership callbacks are registered: unsubscribe those that are not needed any more "
                "(on_leadership returns a function for that)"
            )
        subscription.thread = threading.Thread(
            target=self._run, args=(subscription,), name="warren-raft-leadership", daemon=True
        )
        subscription.thread.start()
        self._subscriptions.append(subscription)

    def stop(self, subscription: Subscription) -> None:
        """Begin no more calls of it. Any thread, and signal handlers; idempotent."""
        subscription.is_over = True
        self._own.post(self._bell.ring)

    def join(self, seconds: float, but: Container[threading.Thread]) -> None:
        """Wait at most `seconds` until every callback has heard of the end and returned. The threads in `but` are not
        awaited."""
        give_up_at = time.monotonic() + seconds
        for subscription in self._subscriptions:
            if subscription.thread is not None and subscription.thread not in but:
                subscription.thread.join(max(0.0, give_up_at - time.monotonic()))

    def _run(self, subscription: Subscription) -> None:
        led = self._leading_term()
        self._tell(subscription, led is not None, self._term() if led is None else led)
        while not subscription.is_over:
            is_over = self._is_over()
            now, term = self._leading_term(), self._term()
            if now != led:
                if led is not None:
                    self._tell(subscription, False, term)
                if now is not None:
                    self._tell(subscription, True, now)
                led = now
            elif is_over:
                return
            else:
                self._bell.wait_for(partial(self._is_news, subscription, led), math.inf)

    def _is_news(self, subscription: Subscription, led: int | None) -> bool:
        return subscription.is_over or self._is_over() or self._leading_term() != led

    def _tell(self, subscription: Subscription, is_leader: bool, term: int) -> None:
        if subscription.is_over:
            return
        try:
            subscription.callback(is_leader, term)
        except BaseException as error:  # noqa: BLE001  not even SystemExit ends this thread
            log_event(logger, logging.ERROR, "leadership callback failed", term=term, exc_info=error)
