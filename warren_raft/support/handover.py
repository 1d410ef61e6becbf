"""Results on their way from our threads to coroutines: one call to an event loop for all results of a step.

`call_soon_threadsafe` takes the lock of no loop, but a system call, so a thread that ends many writes makes it once.
Not here: asyncio is not loaded, since a loop is there only if the program has one (aio/), and the calls that end here.
Invariant: a thread that hands over never waits and never raises, whatever the program has done with its loop. A
coroutine goes on once, in its own loop.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from warren_raft.errors import InvariantViolation
from warren_raft.support.log_lines import log_event
from warren_raft.support.timeouts import wait_seconds
from warren_raft.support.waiting import taken

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("warren_raft.support.handover")

T_co = TypeVar("T_co", covariant=True)


class Handover:
    """The results on their way to one loop. It lives as long as a landing needs it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._landings: deque[Landing] = deque()
        self._is_rung = False
        """Whether the loop will look. A loop that is busy is not called again."""

    def put(self, landings: Iterable[Landing]) -> None:
        """Let these coroutines go on, in this order. Any thread."""
        self._landings.extend(landings)
        if self._is_rung:
            return
        self._is_rung = True
        try:
            self.loop.call_soon_threadsafe(self._land_all)
        except RuntimeError:  # the loop is closed: its coroutines never go on
            self._landings.clear()
        except Exception as error:  # noqa: BLE001  the loop is the program's own
            self._is_rung = False
            log_event(logger, logging.ERROR, "event loop not called", exc_info=error)

    def _land_all(self) -> None:
        """In the loop's thread."""
        self._is_rung = False  # first: what comes from now on needs another call
        for landing in taken(self._landings):
            landing.land(True)


_handovers: Final[weakref.WeakValueDictionary[int, Handover]] = weakref.WeakValueDictionary()
"""By the id of the loop. A handover refers to its loop, so no other loop gets that id while it is here."""


class Landing:
    """The wait of one coroutine for one of our threads. Make it in the coroutine."""

    __slots__ = ("__weakref__", "_future", "handover")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        handover = _handovers.get(id(loop))
        if handover is None:
            handover = _handovers[id(loop)] = Handover(loop)
        self.handover: Final = handover
        self._future: asyncio.Future[bool] = loop.create_future()

    def release(self) -> None:
        """End the wait. Any thread, any number of times."""
        self.handover.put((self,))

    def land(self, is_released: bool) -> None:
        """In the loop's thread."""
        if not self._future.done():
            self._future.set_result(is_released)

    async def wait(self, seconds: float) -> bool:
        """Whether `release` was called, after `seconds` at most. Once."""
        if seconds == math.inf:
            return await self._future
        timer = self.handover.loop.call_later(wait_seconds(seconds), self.land, False)
        try:
            return await self._future
        finally:
            timer.cancel()


def hand_over(landings: Sequence[Landing]) -> None:
    """Release all of them, with one call to each loop."""
    by_loop: dict[Handover, list[Landing]] = {}
    for landing in landings:
        by_loop.setdefault(landing.handover, []).append(landing)
    for handover, some in by_loop.items():
        handover.put(some)


class Begun(Protocol[T_co]):
    """A call of a coroutine that was handed to one of our threads, which releases its landing at the end."""

    @property
    def patience_until(self) -> float:
        """Until when the coroutine waits, in the clock of `time.monotonic`."""

    @property
    def has_ended(self) -> bool: ...

    def result(self) -> T_co:
        """Its result, or its error raised. Call it after the end."""

    def give_up(self) -> None:
        """The coroutine was cancelled. A write that has not been sent is dropped."""

    def late(self) -> Exception:
        """The error of a coroutine that has waited long enough."""


class Around(Generic[T_co]):
    """Another call, to which a subclass adds something at its end."""

    def __init__(self, begun: Begun[T_co]) -> None:
        self._begun: Final = begun

    @property
    def patience_until(self) -> float:
        return self._begun.patience_until

    @property
    def has_ended(self) -> bool:
        return self._begun.has_ended

    def result(self) -> T_co:
        return self._begun.result()

    def give_up(self) -> None:
        self._begun.give_up()

    def late(self) -> Exception:
        return self._begun.late()


class Passed(Generic[T_co]):
    """A call that had nothing to wait for."""

    patience_until: Final = math.inf
    has_ended: Final = True

    def __init__(self, value: T_co) -> None:
        self._value = value

    def result(self) -> T_co:
        return self._value

    def give_up(self) -> None: ...

    def late(self) -> Exception:
        raise InvariantViolation("a call that has ended is not late")


async def result_of(begun: Begun[T_co], landing: Landing) -> T_co:
    """The result of the call, or its error raised."""
    try:
        ended = await landing.wait(begun.patience_until - time.monotonic())
    except BaseException:  # cancelled, or the loop was dropped
        begun.give_up()
        raise
    if not ended and not begun.has_ended:
        raise begun.late()
    return begun.result()
