"""`store.aio`: a store as a program with an asyncio loop uses it.

Not here: the writes (writing.py), the lead (leading.py), reads, which are the store's own. Invariant: no method blocks
the loop, whatever the cluster does. The store knows no loop: any number of them may use it.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Never, Protocol, TypeVar

from warren_raft.aio.leading import AsyncLeadFunction, AsyncLeading, run_each_lead
from warren_raft.aio.waiting import done, waited
from warren_raft.aio.watch import AsyncWatch
from warren_raft.aio.writing import AsyncWriter
from warren_raft.errors import Unavailable
from warren_raft.leadership.lead import Leading
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.store.interface import BaseStore
from warren_raft.support.handover import Begun, Landing
from warren_raft.support.waiting import Wait

T = TypeVar("T")


class Calls(Protocol):
    """What a store offers for this module."""

    def leading(self, timeout: float | None) -> Leading: ...
    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo: ...
    def _begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]: ...
    def _until_ready(self, timeout: float | None) -> Wait[bool]: ...
    def _until_leader(self, timeout: float | None) -> Wait[str]: ...


class AsyncStore(AsyncWriter):
    """A store for asyncio, given by `store.aio`: every write, `modify`, `batch`, `barrier`, `wait_ready`,
    `wait_leader`, `leading`, `run_while_leading`, `watch`, `snapshot` and `close`, to be awaited. Reads are those of
    the store itself: they are local, take microseconds, and need no `await`.

    Nothing here blocks the loop: not without a leader, not with a full queue, not at the first write. Any number of
    loops may use it, each in its own thread. A loop that is closed meanwhile costs the store nothing. It needs asyncio
    (or uvloop), and does not run under trio.

    Writes: see `Writer` for their meaning and errors. A write begins when it is awaited, and errors come from `await`.
    The writes of one loop are carried out in the order in which they begin. If too many writes of this process wait
    (`Config.queue_limit` and 16,384 more, or 256 MiB), a write raises Unavailable (`maybe_applied=False`) at once.

    Cancellation does not take a write back. If it was sent, it may be carried out, now or a moment later. If it was not
    sent yet, it is dropped. A cancelled wait (`barrier`, `wait_ready`, `leading`, a watch) leaves nothing behind. A
    cancelled `snapshot` or `close` goes on in its thread.
    """

    __slots__ = ("_calls", "_store")

    def __init__(self, store: BaseStore, calls: Calls) -> None:
        """`calls` is the same store."""
        super().__init__(store)
        self._store = store
        self._calls = calls

    async def barrier(self, timeout: float | None = None) -> int:
        """After it, every local read sees all writes that were acknowledged before the call, anywhere. It does not wait
        for writes that are still being awaited. `timeout` in seconds, None: that of a write. Returns the revision.

        Raises Unavailable, Closed. See `ReplicatedStore.barrier`.
        """
        try:
            return await done(lambda landing: self._calls._begin_barrier(timeout, landing))
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=False, of_write=False) from None

    async def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Wait until a leader is known and the log is applied up to the commit index at this manager's start.

        `timeout` in seconds, None: for ever. Raises Unavailable, or Closed if the manager stopped.
        """
        await waited(self._calls._until_ready(timeout))

    async def wait_leader(self, timeout: float | None = 10.0) -> str:
        """The id of the leader, as soon as one is known here ("local" for a LocalStore). `timeout` in seconds, None:
        for ever. Raises Unavailable, Closed."""
        return await waited(self._calls._until_leader(timeout))

    def leading(self, timeout: float | None = None) -> AsyncLeading:
        """Wait until this manager leads and has applied every acknowledged write: `async with store.aio.leading() as
        lead`. The block gets an `AsyncLead`.

        `timeout` in seconds, None: for ever. The block raises Unavailable at the timeout, and Closed. See
        `ReplicatedStore.leading`.
        """
        return AsyncLeading(self._calls.leading(timeout))

    async def run_while_leading(self, function: AsyncLeadFunction) -> Never:
        """Call `await function(lead)` with each lead of this manager, until this coroutine is cancelled or the store is
        closed: `group.create_task(store.aio.run_while_leading(work))`.

        The function works in a loop (`while not await lead.wait_over(5): ...`), or once. When it is called again, and
        what happens to its errors, is as with the store's `run_while_leading`; a group of a TaskGroup counts as the
        errors in it. The function is not cancelled when its lead is over: its next write raises LeadershipLost.

        Cancelling this coroutine cancels the function, and ends the lead. Writes that were under way may be carried
        out, now or a moment later, and no later lead begins before that is known. Raises Closed when the store has been
        closed, or its manager has stopped.
        """
        await run_each_lead(partial(self._calls.leading, None), function)

    def watch(
        self,
        since: int | None = None,
        *,
        kinds: Collection[str] | None = None,
        service: str | None = None,
        node: str | None = None,
        ids: Collection[str] | None = None,
        bookmark_seconds: float | None = None,
    ) -> AsyncWatch:
        """The changes from now on, or behind the revision `since` (such as that of a view), as events in order:
        `async with store.aio.watch(kinds={"node"}) as events`, then `async for event in events`. See `AsyncWatch`.

        The watch begins with this call. The arguments and errors are those of the store's `watch`.
        """
        store = self._store
        return AsyncWatch(store._feeds(), store._wanted(since, kinds, service, node, ids, bookmark_seconds))

    async def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """Save the state as one file, in a thread of its own. See the store's `snapshot` for the result and errors. If
        it is cancelled, it goes on, and its file appears when it is done."""
        return await _in_thread(lambda: self._calls.snapshot(path), "warren-raft-aio-snapshot")

    async def close(self) -> None:
        """Close the store, in a thread of its own. See the store's `close`. If it is cancelled, closing goes on."""
        await _in_thread(self._store.close, "warren-raft-aio-close")

    def __repr__(self) -> str:
        """For logs and debuggers. Never raises."""
        return f"<AsyncStore of {self._store!r}>"


async def _in_thread(function: Callable[[], T], name: str) -> T:
    """The result of a function that blocks. asyncio's own threads end with the main thread, and there are few."""
    landing = Landing(asyncio.get_running_loop())
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:  # noqa: BLE001  it belongs to the coroutine
            failed.append(error)
        finally:
            landing.release()

    threading.Thread(target=run, name=name, daemon=True).start()
    await landing.wait(math.inf)
    if failed:
        raise failed.pop()
    return found.pop()
