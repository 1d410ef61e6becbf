"""No core dumps of this process: its memory holds secrets, the keys of the cluster and the clients' data.

Not here: the decision for a program that embeds a store, which the program makes itself (SECURITY.md says how).
Invariant: nothing else of the process changes. A program that it starts by exec has core dumps again.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def forbid_core_dumps() -> bool:
    """`prctl(PR_SET_DUMPABLE, 0)`: no core dump, and no debugger and no access to /proc/PID/mem, fd or environ for
    other processes except root's. A forked child inherits it. Any thread. Returns False if a sandbox forbids it."""
    zero = ctypes.c_ulong(0)
    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, zero, zero, zero, zero) == 0)
