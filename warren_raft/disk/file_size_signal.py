"""SIGXFSZ: the signal that ends a process which writes beyond its limit on file sizes (RLIMIT_FSIZE).

Python ignores the signal from its start. A program that embeds Python may not ignore it, or may change that. Then a too
large write would end the program instead of raising an error (EFBIG). Invariant: the program's own setting is not
changed. The signal is blocked for the duration of a call, and in threads that start meanwhile, for their whole life.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SIGNAL: Final = frozenset({signal.SIGXFSZ})


@contextmanager
def held_off() -> Iterator[None]:
    """Block it in this thread, and for ever in threads that it starts: a new thread has the signal mask of its
    maker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNAL)
    try:
        yield
    finally:
        if signal.SIGXFSZ not in before:
            signal.sigtimedwait(_SIGNAL, 0)  # a pending signal would end the process now
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
