"""Barriers between their callers and consensus: which of them may be asked for now, and their number.

Used in the raft thread, except where a method says otherwise. A barrier waits here for the writes that its own thread
has started before it (`batch(wait=False)`). Not here: the way of a barrier to the leader and back (raft/barriers.py).
Invariant: every barrier ends exactly once, and at most BARRIERS_MAX wait at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

from warren_raft.errors import Closed, Unavailable
from warren_raft.raft.barriers import Barrier
from warren_raft.support.handover import Landing
from warren_raft.support.waking import Sleeper

BARRIERS_MAX: Final = 16_384
"""As many as there may be writes on their way. Barriers that wait together cost one question to the leader, so only
their memory has to be bounded."""
TOO_MANY: Final = f"{BARRIERS_MAX:,} barriers wait already"
OWN_WRITES: Final = "the writes that this thread had started before were not done by the deadline"

GRACE_SECONDS: Final = 1.0
"""The raft thread ends a call at its deadline. A caller waits this much longer before it gives up on that thread."""
NO_ANSWER: Final = "the raft thread does not answer"

Caller = Sleeper | Landing
"""The wait of a thread, or of a coroutine."""


@dataclass(slots=True, eq=False)
class BarrierCall(Barrier):
    """A barrier and its caller, which waits: a thread, or a coroutine."""

    thread: int = 0
    """The caller's thread."""
    caller: Caller | None = None
    """The wait of its caller."""
    revision: Callable[[], int] = int
    """The revision of the state here."""
    data: ClassVar[bytes] = b""
    """It takes no place in the queue of writes."""

    def prepare_wait(self) -> None:
        """Before the barrier is submitted."""
        self.caller = Sleeper()

    def wait(self, seconds: float) -> bool:
        """Whether the barrier has ended, after `seconds` at most."""
        assert isinstance(self.caller, Sleeper)
        return self.caller.sleep(seconds) or self.has_ended

    @property
    def has_ended(self) -> bool:
        return self.is_passed or self.error is not None

    @property
    def patience_until(self) -> float:
        """Until when its caller waits for the raft thread."""
        return self.deadline + GRACE_SECONDS

    def late(self) -> Unavailable:
        """The error of a caller that has waited until `patience_until`."""
        return Unavailable(NO_ANSWER, maybe_applied=False, of_write=False)

    def result(self) -> int:
        """The revision, or the error raised. Call it after the end."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.revision()

    def give_up(self) -> None:
        """Its caller was interrupted: the raft thread ends the barrier soon."""
        self.deadline = -math.inf
        if isinstance(self.caller, Sleeper):
            self.caller.leave()


class BarrierCalls:
    """The barriers of a manager that have not ended."""

    def __init__(self, wake: Callable[[Sleeper], None], land: Callable[[Landing], None]) -> None:
        """`wake`, `land`: called for each caller whose barrier has ended, in the raft thread."""
        self._wake = wake
        self._land = land
        self._waiting: dict[Barrier, Caller] = {}
        """The barriers that have not ended, each with its caller's wait. The thread that takes a barrier out of it ends
        the barrier."""
        self._new: list[BarrierCall] = []
        self._held: list[BarrierCall] = []
        """They wait for writes of their own threads."""
        self._started: Counter[int] = Counter()
        """Thread -> the writes with a future that it has started and that have not ended."""

    def add(self, barrier: BarrierCall) -> None:
        assert barrier.caller is not None
        self._waiting[barrier] = barrier.caller
        if len(self._waiting) > BARRIERS_MAX:
            barrier.end(Unavailable(TOO_MANY, maybe_applied=False, of_write=False))
        elif self._started and self._started[barrier.thread]:
            self._held.append(barrier)
        else:
            self._new.append(barrier)

    def take(self) -> list[BarrierCall]:
        """The barriers to ask the leader for now."""
        new, self._new = self._new, []
        return new

    @property
    def has_more(self) -> bool:
        """Whether `take` would return some."""
        return bool(self._new)

    # Writes of the same thread -----------------------------------------------------------------------------------

    def write_started(self, thread: int) -> None:
        self._started[thread] += 1

    def write_ended(self, thread: int) -> None:
        if self._started[thread] > 1:
            self._started[thread] -= 1
            return
        del self._started[thread]
        if self._held:
            self._new += [barrier for barrier in self._held if barrier.thread == thread]
            self._held = [barrier for barrier in self._held if barrier.thread != thread]

    # Ending ------------------------------------------------------------------------------------------------------

    def ended(self, barrier: Barrier) -> None:
        """`Barrier.done` of every barrier."""
        caller = self._waiting.pop(barrier, None)
        if type(caller) is Sleeper:
            self._wake(caller)
        elif type(caller) is Landing:
            self._land(caller)

    def expire(self, now: float) -> None:
        """End the barriers that reached their deadlines while they waited for writes of their own threads. Call it
        every few hundredths of a second."""
        if not self._held:
            return
        late = [barrier for barrier in self._held if barrier.deadline <= now]
        self._held = [barrier for barrier in self._held if barrier.deadline > now]
        for barrier in late:
            barrier.end(Unavailable(OWN_WRITES, maybe_applied=False, of_write=False))

    def end_all(self, submitted: Iterable[BarrierCall], reason: str) -> list[Caller]:
        """This manager has ended: end the barriers that were not taken, and every one that was. Returns the callers to
        wake. For any thread, also when the raft thread is stuck."""
        callers: list[Caller] = []
        for call in submitted:
            call.error = Closed(reason)
            if call.caller is not None:
                callers.append(call.caller)
        for barrier in list(self._waiting):
            caller = self._waiting.pop(barrier, None)
            if caller is not None:
                barrier.error = Closed(reason)
                callers.append(caller)
        return callers
