"""`sys.setswitchinterval` while stores are open: how long a busy thread of the program may keep the others waiting.

With Python's 5 ms, a busy thread turns a round of 0.3 ms into 15 ms. Not here: the value (config.py).
Invariant: when the last store has closed, the interval has its old value.
"""

from __future__ import annotations

import sys
import threading
from typing import Final


class SwitchInterval:
    """All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: set[object] = set()
        self._before = 0.0

    def acquire(self, holder: object, seconds: float) -> None:
        with self._lock:
            if not self._holders:
                self._before = sys.getswitchinterval()
            self._holders.add(holder)
            sys.setswitchinterval(seconds)

    def release(self, holder: object) -> None:
        """Does nothing for a holder that does not hold it."""
        with self._lock:
            if holder in self._holders:
                self._holders.remove(holder)
                if not self._holders:
                    sys.setswitchinterval(self._before)


SWITCH_INTERVAL: Final = SwitchInterval()
"""The one of this process."""
