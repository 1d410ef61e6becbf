"""Handlers of signals for the time of a command.

Not here: the handlers. Invariant: a signal that the process was started to ignore stays ignored. `nohup` starts a
program so with SIGHUP, and a script its background jobs with SIGINT.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Call these handlers, but for ignored signals. Afterwards the earlier handlers are in their places again."""
    previous = {number: signal.getsignal(number) for number in handlers}
    taken = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    try:
        for number in taken:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])
