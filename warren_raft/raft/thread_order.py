"""Writes of one thread keep their order, although large and small commands take different ways to the log.

Lives here: which write may start, and which waits for the thread's earlier writes to end. Not here: the two ways
(submit.py, large.py). Invariant: either large or small writes of a thread are on their way, and they start in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class Ordered(Protocol):
    """The attributes of a write that decide its order."""

    thread: int
    """The thread that made the write. 0: the write has no order."""
    is_large: bool
    is_held: bool
    """The write has to wait for earlier writes. Set by ThreadOrder."""


W = TypeVar("W", bound=Ordered)


class _Thread(Generic[W]):
    """A thread that has large writes on their way, or writes that wait. The first write of the other kind waits, and so
    do all writes after it."""

    __slots__ = ("held", "is_large", "under_way")

    def __init__(self, is_large: bool, under_way: int) -> None:
        self.is_large = is_large
        self.under_way = under_way
        self.held: deque[W] = deque()


class ThreadOrder(Generic[W]):
    """Holds a write back while writes of the other kind by the same thread are on their way.

    Most threads send small writes only, and cost nothing here: they are counted when one of them sends a large write.
    Not thread-safe: for the raft thread or the simulator.
    """

    def __init__(self) -> None:
        self.threads: dict[int, _Thread[W]] = {}
        """The threads with an order to keep. While there are none, `ended` has nothing to do."""

    def admit(self, write: W, pending: Iterable[W]) -> bool:
        """Whether the write may start now. If not, a later call of `ended` returns it.

        `pending`: all writes that have not ended, in any order.
        """
        if not write.thread:
            return True
        thread = self.threads.get(write.thread)
        if thread is None:
            if not write.is_large:
                return True
            small = sum(each.thread == write.thread and not each.is_large for each in pending)
            thread = self.threads[write.thread] = _Thread(not small, small)
        if thread.held or thread.is_large != write.is_large:
            write.is_held = True
            thread.held.append(write)
            return False
        thread.under_way += 1
        return True

    def ended(self, write: W) -> list[W]:
        """Note the end of a write. Returns the writes that may start now, in order."""
        thread = self.threads.get(write.thread)
        if thread is None:
            return []
        if write.is_held:
            thread.held.remove(write)
            return []
        thread.under_way -= 1
        if thread.under_way:
            return []
        released: list[W] = []
        while thread.held and (not released or thread.held[0].is_large == released[0].is_large):
            released.append(thread.held.popleft())
            released[-1].is_held = False
        if not released:
            del self.threads[write.thread]
            return []
        thread.is_large = released[0].is_large
        thread.under_way = len(released)
        return released

    def clear(self) -> None:
        self.threads.clear()
