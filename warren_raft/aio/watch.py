"""A watch for coroutines: `async with store.aio.watch(...) as events`, then `async for event in events`.

Not here: the events and their queue (store/watch.py), and the thread that fills it, one for all watches of a store
(watching/hub.py). Invariant: that of `Watch`. A coroutine that takes events lets the other tasks of its loop run.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Self

from warren_raft.aio.waiting import wait_for
from warren_raft.store.events import Event
from warren_raft.store.watch import EventQueue
from warren_raft.support import timeouts


class AsyncWatch(EventQueue):
    """The events of a watch, in order: `async for`, or `await take()`. Use it with `async with`, or call `close()`.

    One task iterates; any task or thread may close it, which ends the iteration. A cancelled task loses no event: those
    that were not given come next. A watch that nobody refers to any more is closed by itself. The errors are those of
    `Watch`: WatchLost, Closed, Corrupted.
    """

    async def take(self, timeout: float | None = None) -> list[Event]:
        """All events that are there, at least those of one revision, and whole revisions only. Waits for the first.

        `timeout` in seconds, None: for ever. Returns an empty list at the timeout. Raises the errors of the class, and
        Closed if the watch was closed.
        """
        deadline = timeouts.deadline(timeout)
        await asyncio.sleep(0)
        while not self._rest or self._feed.is_closed:
            if not await wait_for(self._bell, self._feed.has_news, deadline):
                return []
            self._fill()  # perhaps nothing: the news is an item that was kept before an exception
        found, rest = list(self._rest), deque[Event]()
        self._given, self._rest = found[-1].revision, rest
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._rest or self._feed.is_closed:
            await asyncio.sleep(0)  # there may be events without end
            await wait_for(self._bell, self._feed.has_news, math.inf)
            if self._feed.is_closed:
                raise StopAsyncIteration
            self._fill(1)
        event, self._given = self._first()
        del self._rest[0]
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()
