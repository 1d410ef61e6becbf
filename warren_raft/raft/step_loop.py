"""The asyncio loop of the raft thread: between two waits for the network it makes a step if one is due.

Lives here: the loop, and the bell by which other threads end its wait. Not here: a step itself, and when one is due
(driver.py). Invariant: `between` is called before each wait, and the loop waits no longer than `between` says.

Why not a callback of asyncio: a step that a message asks for would come one turn of the loop later, after another look
at all sockets; and a callback that another thread asks for costs it three system calls and an exception. A write of one
caller has four such turns. For the same reason the functions of `add_reader` are called here, and not by a turn of the
loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import selectors
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_Ts = TypeVarTuple("_Ts")


class Bell:
    """Ends the wait of a loop. It stays open as long as any thread may ring it: the number of a descriptor that is
    closed may soon be another file's."""

    def __init__(self) -> None:
        self.descriptor: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """For any thread, and in signal handlers."""
        os.eventfd_write(self.descriptor, 1)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class StepLoop(asyncio.SelectorEventLoop):
    """`between()` is called by the loop's thread before each wait, while nothing else runs there. It returns the time
    (by time.monotonic) at which it wants to be called again at the latest; infinite: when something happens. It may do
    everything that a callback may do."""

    def __init__(self, between: Callable[[], float], bell: Bell) -> None:
        self._between_waits = _Waiter(between, bell, self._failed)
        super().__init__(self._between_waits)

    def add_reader(self, fd: FileDescriptorLike, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        super().add_reader(fd, callback, *args)
        self._between_waits.readers[_number(fd)] = partial(callback, *args) if args else callback

    def remove_reader(self, fd: FileDescriptorLike) -> bool:
        self._between_waits.readers.pop(_number(fd), None)
        return super().remove_reader(fd)

    def _failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "a function of add_reader failed", "exception": error})

    # A call that `between` schedules here must not wait for an event of the network.

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        self._between_waits.has_news = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self._between_waits.has_news = True
        return super().call_at(when, callback, *args, context=context)


class _Waiter(selectors.EpollSelector):
    """Waits for the sockets of an asyncio loop, and calls `between` meanwhile."""

    def __init__(self, between: Callable[[], float], bell: Bell, failed: Callable[[Exception], None]) -> None:
        super().__init__()
        self._between = between
        self._failed = failed
        self._bell = bell
        self._bell_key = self.register(bell.descriptor, selectors.EVENT_READ)
        self.readers: dict[int, Callable[[], object]] = {}
        """The functions of `add_reader`, by descriptor. They are called here, before `between`."""
        self.has_news = False
        """Whether the loop has been given something to do since `between` was called last."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self.has_news = False
            until = min(self._between(), end)
            seconds = None if until == math.inf else max(0.0, until - time.monotonic())
            ready = super().select(0.0 if self.has_news else seconds)
            others = []
            for key, events in ready:
                if key is self._bell_key:
                    os.eventfd_read(key.fd)
                elif events == selectors.EVENT_READ and (read := self.readers.get(key.fd)) is not None:
                    try:
                        read()
                    except Exception as error:  # noqa: BLE001 - it goes to the loop's exception handler
                        self._failed(error)
                elif self.get_map().get(key.fd) is key:  # not removed by one of these functions
                    others.append((key, events))
            if others or self.has_news or time.monotonic() >= end:
                return others


def _number(fd: FileDescriptorLike) -> int:
    return fd if isinstance(fd, int) else fd.fileno()
