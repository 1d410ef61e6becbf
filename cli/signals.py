"""Handlers of signals for the time of a command.

Not here: the handlers. Invariant: a signal that the process was started to ignore stays ignored, as `nohup` starts a
program with SIGHUP, and a script its background jobs with SIGINT. SIGTERM is the exception: without it only kill -9
would end the process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Call these handlers, but for ignored signals except SIGTERM. Afterwards the earlier handlers are in their places
    again."""
    previous = {number: signal.getsignal(number) for number in handlers}
    taken = [
        number for number, handler in previous.items() if number == signal.SIGTERM or handler is not signal.SIG_IGN
    ]
    try:
        for number in taken:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])
