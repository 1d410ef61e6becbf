"""Functions that run while a manager leads: when one is called again, and how its errors are told.

Not here: the threads (callbacks.py) and coroutines (aio/leading.py) that call them, the lead (lead.py).
Invariant: each call gets a lead of its own. An error that a fault of the cluster explains has no traceback in the log.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from warren_raft.errors import LeadershipLost, StorageFull, Unavailable, WatchLost
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.leadership.loops")

AGAIN_SECONDS: Final = 1.0
AGAIN_SECONDS_MAX: Final = 30.0
"""After how long a function that raised is called again, while its manager leads: each time twice as long, and from the
beginning if it has run for longer than the last pause."""

CLOSING_SECONDS: Final = 1.0
"""How long after a Closed it must be known that the store has ended. The store refuses writes a moment before."""

TROUBLE: Final = (Unavailable, StorageFull, WatchLost)
"""Errors that a fault of the cluster explains, and not one of the function."""


class Attempts:
    """The calls of one function."""

    def __init__(self) -> None:
        self._term = 0
        self._began_at = 0.0
        self._paused_seconds = math.inf
        self._again_seconds = AGAIN_SECONDS

    def begin(self, term: int) -> None:
        """It is called now, with a lead of this term."""
        if term != self._term:
            self._term, self._paused_seconds, self._again_seconds = term, math.inf, AGAIN_SECONDS
        self._began_at = time.monotonic()

    def failed(self, error: BaseException) -> float:
        """Tell of the error that ended the call. Returns the seconds until the next call in the same term."""
        if is_all_of(error, (LeadershipLost,)):
            pass
        elif is_all_of(error, (LeadershipLost, *TROUBLE)):
            log_event(logger, logging.WARNING, "function of a leader begins again", str(error), term=self._term)
        else:
            log_event(logger, logging.ERROR, "function of a leader failed", term=self._term, exc_info=error)
        if time.monotonic() - self._began_at > self._paused_seconds:
            self._again_seconds = AGAIN_SECONDS
        self._paused_seconds = self._again_seconds
        self._again_seconds = min(2 * self._again_seconds, AGAIN_SECONDS_MAX)
        return self._paused_seconds


def is_all_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether it is one of these, or the group of a TaskGroup that has no others."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_all_of(each, kinds) for each in error.exceptions)
    return isinstance(error, kinds)
