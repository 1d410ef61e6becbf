"""Programs that are coroutine functions: an asyncio loop in the thread of a task, which waits by turns.

The loop is asyncio's own: only its wait for something to do is a wait for a turn, at the latest at the time of its next
timer by the simulated clock. Not here: `store.aio` (aio/), the way of a write (writes.py).
Invariant: between two turns no callback of a loop runs.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Never

from warren_raft.aio.leading import AsyncLeadFunction
from warren_raft.aio.store import AsyncStore
from warren_raft.errors import Misuse, WarrenError
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.support.handover import Landing
from warren_raft.testing.simulated.turns import Killed, Turns

if TYPE_CHECKING:
    from warren_raft.testing.simulated.log import Flight
    from warren_raft.testing.simulated.store import SimulatedStore

LAST_STEPS: Final = 1_000
"""How often the loop of a killed program runs yet, so that its coroutines can end."""


def run(turns: Turns, program: Callable[[Any], Any], store: object) -> None:
    """Run a program to its end, in the thread of a task."""
    with asyncio.Runner(loop_factory=partial(_made_loop, turns)) as runner:
        try:
            runner.run(program(store))
        except asyncio.CancelledError:
            raise Killed from None


def _made_loop(turns: Turns) -> asyncio.AbstractEventLoop:
    selector = _Selector(turns)
    loop = selector.loop = asyncio.SelectorEventLoop(selector)
    loop.set_exception_handler(lambda _loop, _context: None)  # of the tasks that a killed program leaves behind
    return loop


class _Selector(selectors.DefaultSelector):
    """Waits by turns. Callbacks of other threads come by a socket of the loop's own."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns
        self._steps_left = LAST_STEPS

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        turns = self._turns
        try:
            if timeout is not None and timeout <= 0:
                turns.pause()
            else:
                deadline = math.inf if timeout is None else turns.now + timeout
                turns.wait(lambda: super(_Selector, self).select(0), deadline)
        except Killed:
            self._end()
        return super().select(0)

    def _end(self) -> None:
        """The program was killed: its tasks end by CancelledError, and its store answers nothing any more."""
        self._steps_left -= 1
        if self._steps_left == LAST_STEPS - 1:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
        elif self._steps_left <= 0:
            raise Killed


class SimulatedCall:
    """A write or a barrier of a coroutine (`Begun`). It is made in a task of its own."""

    patience_until: Final = math.inf
    """It ends by its own deadline."""

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        self.flight: Flight | None = None
        self._value = 0
        self._error: WarrenError | None = None
        self.has_ended = False

    def make(self, call: Callable[[], int]) -> None:
        """In the task."""
        try:
            self._value = call()
        except WarrenError as error:
            self._error = error
        finally:
            self.has_ended = True
            self._landing.release()

    def result(self) -> int:
        if self._error is not None:
            raise self._error
        return self._value

    def give_up(self) -> None:
        """The coroutine was cancelled: a write that was not sent is dropped."""
        if self.flight is not None:
            self.flight.is_given_up = True

    def late(self) -> Exception:
        raise AssertionError("a simulated call ends by its own deadline")


class SimulatedAsyncStore(AsyncStore):
    """`store.aio` of a simulated store."""

    __slots__ = ("_simulated",)

    def __init__(self, store: SimulatedStore) -> None:
        super().__init__(store, store)
        self._simulated = store

    async def run_while_leading(self, function: AsyncLeadFunction) -> Never:
        await super().run_while_leading(self._simulated._leadership.guarded_coroutine(function))

    async def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        raise Misuse("snapshot() is not part of the simulation")

    async def close(self) -> None:
        """The program ends. Its manager starts again later."""
        self._store.close()
