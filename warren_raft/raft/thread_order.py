"""Writes of one thread keep their order, although large commands and others go different ways.

Here: which write may set out, and which waits until those before it have ended. Not here: the ways (submit.py,
large.py). Invariant: of one thread, either large ones or others are on their way, and they set out in order.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What is looked at of a write."""

    thread: int
    """The thread that made it; 0: it is in no order with any."""
    is_large: bool
    is_held: bool
    """It has to wait; set here."""


W = TypeVar("W", bound=Ordered)


class _Thread(Generic[W]):
    """A thread that has writes on their way. Those behind them are held as soon as one is of the other kind."""

    __slots__ = ("held", "is_large", "under_way")

    def __init__(self, is_large: bool) -> None:
        self.is_large = is_large
        self.under_way = 0
        self.held: deque[W] = deque()


class ThreadOrder(Generic[W]):
    """Raft thread or simulator only."""

    def __init__(self) -> None:
        self._threads: dict[int, _Thread[W]] = {}

    def admit(self, write: W) -> bool:
        """Whether it may set out; else `ended` returns it when it may."""
        if not write.thread:
            return True
        thread = self._threads.get(write.thread)
        if thread is None:
            thread = self._threads[write.thread] = _Thread(write.is_large)
        elif thread.held or thread.is_large != write.is_large:
            write.is_held = True
            thread.held.append(write)
            return False
        thread.under_way += 1
        return True

    def ended(self, write: W) -> list[W]:
        """It has ended; those that may set out now, in order."""
        thread = self._threads.get(write.thread)
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
            del self._threads[write.thread]
            return []
        thread.is_large = released[0].is_large
        thread.under_way = len(released)
        return released

    def clear(self) -> None:
        self._threads.clear()
