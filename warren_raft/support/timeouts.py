"""The meaning of `timeout` and `ttl_seconds`, the same in every store, and the longest time that a thread can wait.

Lives here: checking the argument, and computing the deadline. Not here: the action of a method at its deadline.
Invariant: a wrong timeout is refused before anything is sent, and no wait overflows after a write was applied.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Final

from warren_raft.errors import InvalidEntity

TTL_MIN_SECONDS: Final = 1.0
TTL_MAX_SECONDS: Final = 86_400.0


def checked(timeout: float | None, name: str = "timeout") -> float | None:
    """The timeout as a float: seconds from 0 on, `math.inf` for ever. None stays None and means the method's default.

    Raises InvalidEntity (a ValueError) for anything else: below 0, NaN, True and False, text. `name`: of the argument.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise _wrong(timeout, name)
    try:
        number = float(timeout)
    except OverflowError:  # a whole number above 1.8e308
        number = math.inf if timeout > 0 else -1.0
    if not number >= 0:  # NaN compares false with everything
        raise _wrong(timeout, name)
    return number


def seconds(timeout: float | None, default_seconds: float) -> float:
    """The timeout as a float, with the method's default for None."""
    given = checked(timeout)
    return default_seconds if given is None else given


def deadline(timeout: float | None, default_seconds: float = math.inf) -> float:
    """When a call with this timeout ends, in the clock of `time.monotonic`. Raises InvalidEntity, see `checked`."""
    return time.monotonic() + seconds(timeout, default_seconds)


def wait_seconds(seconds: float) -> float:
    """The timeout for a lock, an event or a condition: not below 0, and not more than Python can wait."""
    return min(max(seconds, 0.0), threading.TIMEOUT_MAX)


def ttl(ttl_seconds: float) -> float:
    """The ttl of a heartbeat, in whole milliseconds. Raises InvalidEntity unless it is a number from 1 s to a day."""
    is_number = isinstance(ttl_seconds, int | float) and not isinstance(ttl_seconds, bool)
    if not is_number or not TTL_MIN_SECONDS <= ttl_seconds <= TTL_MAX_SECONDS:
        limits = f"from {TTL_MIN_SECONDS:g} to {TTL_MAX_SECONDS:g}"
        reason = f"must be a number of seconds {limits}, not {ttl_seconds!r:.80}"
        raise InvalidEntity("heartbeat", reason, field="ttl_seconds")
    return round(ttl_seconds * 1e3) / 1e3


def _wrong(timeout: object, name: str) -> InvalidEntity:
    return InvalidEntity(name, f"must be a number of seconds from 0 on (math.inf: for ever), not {timeout!r:.80}")
