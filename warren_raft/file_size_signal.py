"""SIGXFSZ, which ends a process that writes beyond its limit on file sizes (RLIMIT_FSIZE), unless it is held off.

Python ignores it from its start on; a program that embeds Python may not, or may set it back. Then a write that is too
large would end the program, where it should be an error (EFBIG). Invariant: the program's own choice is not changed:
the signal is held off for the length of a call, and in threads that are started meanwhile, for as long as they live.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SIGNAL: Final = frozenset({signal.SIGXFSZ})


@contextmanager
def held_off() -> Iterator[None]:
    """In this thread, and for ever in those that it starts: a thread begins with the mask of its maker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNAL)
    try:
        yield
    finally:
        if signal.SIGXFSZ not in before:
            signal.sigtimedwait(_SIGNAL, 0)  # one that waits would end the process now
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
