"""How long request keys are remembered, without a clock in the replicated state: the index below which a key is old.

A manager notes how far its state was applied at some times of its own clock. It tells the index that it noted long
enough ago with each command that has a request key, and the state machine forgets keys below it (fsm/requests.py).
Invariant: a key of an entry below that index was carried out at least `seconds` before the command was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_NOTES: Final = 16
"""Notes within `seconds`, so a key is remembered for at most a sixteenth longer while there are commands with keys."""


class RequestMemory:
    """For any thread, and for signal handlers: notes are replaced in one step. If two threads note something at once,
    one of the notes is lost, and keys are remembered a little longer."""

    def __init__(
        self, seconds: float, applied_index: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` in seconds; it never goes back."""
        self._seconds = seconds
        self._applied_index = applied_index
        self._clock = clock
        self._notes: tuple[tuple[float, int], ...] = ()
        """(time, index): at this time the entries up to this index were applied. The oldest first."""

    def forget_below(self) -> int:
        """The index for a command that is made now. 0 forgets nothing, as after a start."""
        index = self._applied_index()
        now = self._clock()  # after the index: what was applied then is at least as old
        notes = self._notes
        if not notes or now - notes[-1][0] >= self._seconds / _NOTES:
            notes = (*notes, (now, index))
        old = sum(at <= now - self._seconds for at, _ in notes)
        self._notes = notes[max(0, old - 1) :]
        return notes[old - 1][1] + 1 if old else 0
