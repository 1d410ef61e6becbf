"""No core dumps of this process: its memory holds secrets, the keys of the cluster and what clients have stored.

Not here: deciding for a program that embeds a store, which is its own affair (SECURITY.md says how).
Invariant: nothing else of the process changes; what an exec starts has dumps again.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> bool:
    """`prctl(PR_SET_DUMPABLE, 0)`: no core dump, and no debugger and no /proc/PID/mem, fd or environ for other
    processes, but those of root. A child that is forked inherits it. Any thread; False where a sandbox forbids it."""
    zero = ctypes.c_ulong(0)
    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero) == 0)
