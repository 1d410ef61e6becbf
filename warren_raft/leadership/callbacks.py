"""Callbacks for gained and lost leadership, and functions that run while a manager leads, each in a thread of its own.
One that blocks, never returns or raises SystemExit does not affect the others.

Not here: the election (raft/), the fenced writes (lead.py). Invariant: a callback gets the present state first, then
each change, in order. A slow callback gets the newest state, and it also hears that leadership was lost if it was lost
and won again meanwhile.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Container
from functools import partial
from typing import Final, Protocol

from warren_raft.errors import Closed, RefusedForSafety
from warren_raft.leadership.lead import Lead, Leading, Leads, Standing, Unsubscribed
from warren_raft.leadership.loops import CLOSING_SECONDS, Attempts, is_all_of
from warren_raft.store.writing import Writer
from warren_raft.support import timeouts
from warren_raft.support.log_lines import log_event
from warren_raft.support.waiting import Bell

logger = logging.getLogger("warren_raft.leadership.callbacks")

CALLBACKS_MAX: Final = 100
"""Each callback has a thread, until it is unsubscribed and has returned."""

Callback = Callable[[bool, int], object]
LeadFunction = Callable[[Lead], object]


class Subscription:
    """One callback, or one function that runs while this manager leads."""

    def __init__(self, run: Callable[[Subscription], None]) -> None:
        self.run: Final = run
        self.is_over = False
        self.thread: threading.Thread | None = None


class Caller(Protocol):
    """A thread that makes the calls that other threads ask for (support/own_thread.py)."""

    def call(self, function: Callable[[], None]) -> None: ...
    def post(self, function: Callable[[], object]) -> None: ...


class Leadership:
    """All that a store offers about its leadership. `own` is the thread that starts the threads of the callbacks."""

    def __init__(self, standing: Standing, own: Caller) -> None:
        self._standing: Final = standing
        self._bell: Final[Bell] = standing.bell
        self._own = own
        self._leads: Final = Leads(standing, partial(own.post, self._bell.ring))
        self._subscriptions: list[Subscription] = []

    def leading(self, store: Writer, timeout: float | None) -> Leading:
        """Raises InvalidEntity for a wrong timeout."""
        return Leading(store, self._leads, timeout)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Begin the calls. Returns the function that ends them. Any thread, and signal handlers.

        Raises RefusedForSafety beyond CALLBACKS_MAX, RuntimeError without a thread, Closed.
        """
        return self._begin(partial(self._tell_changes, callback))

    def run_while_leading(self, store: Writer, function: LeadFunction) -> Callable[[], None]:
        """The same for a function that is called with each lead."""
        return self._begin(partial(self._run_each_lead, store, function))

    def _begin(self, run: Callable[[Subscription], None]) -> Callable[[], None]:
        subscription = Subscription(run)
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
                "(on_leadership and run_while_leading return a function for that)"
            )
        subscription.thread = threading.Thread(
            target=subscription.run, args=(subscription,), name="warren-raft-leadership", daemon=True
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

    # In the thread of a callback ----------------------------------------------------------------------------------

    def _tell_changes(self, callback: Callback, subscription: Subscription) -> None:
        standing = self._standing
        led = standing.leading_term()
        self._tell(callback, subscription, led is not None, standing.term() if led is None else led)
        while not subscription.is_over:
            is_over = standing.is_over()
            now, term = standing.leading_term(), standing.term()
            if now != led:
                if led is not None:
                    self._tell(callback, subscription, False, term)
                if now is not None:
                    self._tell(callback, subscription, True, now)
                led = now
            elif is_over:
                return
            else:
                self._bell.wait_for(partial(self._is_news, subscription, led), math.inf)

    def _is_news(self, subscription: Subscription, led: int | None) -> bool:
        return subscription.is_over or self._standing.is_over() or self._standing.leading_term() != led

    def _tell(self, callback: Callback, subscription: Subscription, is_leader: bool, term: int) -> None:
        if subscription.is_over:
            return
        try:
            callback(is_leader, term)
        except BaseException as error:  # noqa: BLE001  not even SystemExit ends this thread
            if not self._is_end(error, self._standing.is_over):
                log_event(logger, logging.ERROR, "leadership callback failed", term=term, exc_info=error)

    def _run_each_lead(self, store: Writer, function: LeadFunction, subscription: Subscription) -> None:
        standing, attempts = self._standing, Attempts()

        def is_ended() -> bool:
            return subscription.is_over or standing.is_over()

        while not is_ended():
            failed: BaseException | None = None
            term = standing.leading_term()
            try:
                with Leading(store, self._leads, None, lambda: subscription.is_over) as lead:
                    term = lead.term
                    attempts.begin(term)
                    failed = _error_of(function, lead)
                    if failed is None:
                        lead.wait_over()  # it has done its work
            except Unsubscribed:
                return
            except Exception as error:  # noqa: BLE001  the lead did not begin: closed, or the disk of a LocalStore failed
                failed = error
            if failed is not None and not self._is_end(failed, is_ended):
                pause = timeouts.deadline(attempts.failed(failed))
                self._bell.wait_for(partial(self._is_next, is_ended, term), pause)

    def _is_next(self, is_ended: Callable[[], bool], term: int | None) -> bool:
        return is_ended() or self._standing.leading_term() != term

    def _is_end(self, error: BaseException, is_ended: Callable[[], bool]) -> bool:
        """Whether this is the regular end of a call that waited, or was about to write, while the store closed."""
        return is_all_of(error, (Closed,)) and self._bell.wait_for(is_ended, timeouts.deadline(CLOSING_SECONDS))


def _error_of(function: LeadFunction, lead: Lead) -> BaseException | None:
    try:
        function(lead)
    except BaseException as error:  # noqa: BLE001  not even SystemExit ends this thread
        return error
    return None
