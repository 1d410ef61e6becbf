"""Writes on their way from callers to consensus: their request ids, the session of this process, and their number.

A caller's thread makes a Write, appends it to a queue and waits for a lock that no other thread waits for. The rest is
done here, in the raft thread. So an exception that arrives in the caller, or a signal handler that writes in the middle
of a write, finds no counter half changed and no lock taken. Not here: the way of a write to the leader
(raft/submit.py).
Invariant: every write ends exactly once, and the writes of one thread are sent in the order in which it made them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import Final

from warren_raft.errors import Closed, Unavailable
from warren_raft.fsm.answers import UNKNOWN_SESSION, Result, class_name_of, raise_for
from warren_raft.manager.barrier_calls import GRACE_SECONDS, NO_ANSWER, BarrierCall, BarrierCalls
from warren_raft.manager.slow_writes import SlowWrite, SlowWrites
from warren_raft.raft.submit import Proposal, expired
from warren_raft.store.command import (
    OPEN_SESSION,
    REQUEST_ID_BYTES,
    Operation,
    encode_operations,
    in_version_1,
    new_session,
    with_request_id,
)
from warren_raft.store.counts import Series, WriteCounts
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.handover import Landing, hand_over
from warren_raft.support.waiting import taken
from warren_raft.support.waking import Sleeper, Waking

SESSION_WINDOW: Final = 16_384
"""The most requests of this process between the oldest unanswered and the newest: the session must remember them."""
HELD_MAX: Final = 16_384
"""The most writes with a future that are held because `queue_limit` writes are outstanding."""
OUTSTANDING_BYTES: Final = 256 * 1024 * 1024
"""The limit for the memory of outstanding writes. Beyond it, no write with a future is accepted: a loop of
`batch(wait=False)` would fill the memory of this process while there is no leader. A small write is accepted if this
many writes of its size would stay below the limit: counting the size of the others would cost more than the write."""
QUEUE_FULL: Final = "the queue of waiting writes is full"

_OPENING: Final = encode_operations((Operation(OPEN_SESSION),))
"""In version 1, which every release reads."""
_GONE: Final = object()


@dataclass(slots=True, eq=False)
class Write(Proposal):
    """One command of a caller. `data` is its encoded body, until it has a request id."""

    future: Future[int] | None = None
    """The future of a write, if its caller does not wait."""
    sleeper: Sleeper | None = None
    """The wait of its caller, if its caller waits."""
    landing: Landing | None = None
    """The wait of its caller, if its caller is a coroutine."""
    series: Series | None = None
    """Where it is counted; None: nowhere."""
    begun: float = 0.0
    """When its caller made it, by time.monotonic()."""
    ended_at: float = 0.0
    """When it ended."""
    trace: SlowWrite | None = None
    """Its stages, if they are kept. Set before its caller is woken."""

    def prepare_wait(self) -> None:
        """Before the write is submitted, if its caller waits."""
        self.sleeper = Sleeper()

    def wait(self, seconds: float) -> bool:
        """Whether the write has ended, after `seconds` at most."""
        assert self.sleeper is not None
        return self.sleeper.sleep(seconds) or self.has_ended

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None or self.error is not None

    @property
    def patience_until(self) -> float:
        """Until when its caller waits for the raft thread."""
        return self.deadline + GRACE_SECONDS

    def give_up(self) -> None:
        """Its caller was interrupted: the raft thread ends the write soon, if it is not done before."""
        self.deadline = -math.inf
        if self.sleeper is not None:
            self.sleeper.leave()

    def late(self) -> Unavailable:
        """The error of a caller that has waited until `patience_until`."""
        return Unavailable(NO_ANSWER, maybe_applied=True)

    def result(self) -> int:
        """The revision, or the error raised. Call it after the write has ended."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        result: Result = self.outcome
        return raise_for(result)

    @property
    def failed_with(self) -> str | None:
        """The class of the error with which it has ended; None: it was done."""
        if self.error is not None:
            return type(self.error).__name__
        result: Result | None = self.outcome
        return None if result is None or result.error is None else class_name_of(result.error)

    def count(self, now: float) -> None:
        """It has ended."""
        self.ended_at = now
        if self.series is None:
            return
        if self.error is not None:
            self.series.failed(type(self.error).__name__)
            return
        result: Result = self.outcome
        if result.error is None:
            self.series.ended(now - self.begun)
        else:
            self.series.failed(class_name_of(result.error))

    def settle(self) -> None:
        """Give the result to the future."""
        assert self.future is not None
        try:
            revision = self.result()
        except Exception as error:  # noqa: BLE001  any error is the answer
            self.future.set_exception(error)
        else:
            self.future.set_result(revision)


@dataclass(slots=True, eq=False)
class BarrierWrite(Write):
    """A command without operations, in the place of a coroutine's barrier while the cluster is at level 1."""

    def late(self) -> Unavailable:
        return Unavailable(NO_ANSWER, maybe_applied=False, of_write=False)

    def result(self) -> int:
        try:
            return Write.result(self)
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=False, of_write=False) from None


Call = Write | BarrierCall
"""A call of a caller that the raft thread ends."""


class Writes:
    """Used in the raft thread only, except for methods that say otherwise."""

    def __init__(self, node_id: str, queue_limit: int, deliveries: Deliveries) -> None:
        self._new_session: Final = partial(new_session, node_id, SystemRandom().getrandbits)
        self._limit: Final = min(queue_limit, SESSION_WINDOW)
        self._deliveries = deliveries
        self._outstanding: dict[Write, None] = {}
        """The writes that have not ended. The thread that takes a write out of it ends the write."""
        self._outstanding_bytes = 0
        """Their memory in bytes, without their request ids. Not maintained after the end."""
        self._held: deque[Write] = deque()
        """The writes without a request id: there is no session, or the queue is full."""
        self._settled: deque[Callable[[], object]] = deque()
        """The futures to resolve, of writes that have ended."""
        self._asleep: deque[Sleeper] = deque()
        """The callers to wake, of writes that have ended."""
        self._landed: deque[Landing] = deque()
        """The same for coroutines."""
        self._uncounted: deque[Write] = deque()
        """Writes that have ended since the last `flush`."""
        self.counts: Final = WriteCounts()
        self.slow: Final = SlowWrites(node_id)
        self._waking: Final = Waking()
        self.barriers: Final = BarrierCalls(self._asleep.append, self._landed.append)
        self.too_new: Callable[[], str] = str
        """Why no command of the newest version may be sent now; "": it may. A write that was made before there was a
        cluster does not know the level."""
        self._session = 0
        self._opening: Proposal | None = None
        self._next = 1
        self._lowest = 1
        self._ended: set[int] = set()

    def is_full(self, size_bytes: int, submitted: Collection[Call]) -> bool:
        """Whether the queue has no place for one more write of that size with a future. `submitted`: the writes on
        their way here. For any thread, so the answer may be slightly out of date."""
        count = len(self._outstanding) + len(submitted)
        if count >= self._limit + HELD_MAX:
            return True
        if count * size_bytes <= OUTSTANDING_BYTES:
            return False
        return self._outstanding_bytes + sum(len(write.data) for write in list(submitted)) >= OUTSTANDING_BYTES

    # Coming in ---------------------------------------------------------------------------------------------------

    def take(self, calls: Iterable[Call]) -> list[Proposal]:
        """Take the writes that callers submitted. Returns the proposals to send now. Barriers go to `barriers`."""
        for write in calls:
            if isinstance(write, BarrierCall):
                self.barriers.add(write)
                continue
            if write.future is not None:
                self.barriers.write_started(write.thread)
            self._outstanding[write] = None
            self._outstanding_bytes += len(write.data)
            self._held.append(write)
        proposals: list[Proposal] = []
        if self._held and self._session == 0:
            if self._opening is None:
                self._opening = self._identified(Proposal(self._new_session(), 0, _OPENING, math.inf, self._opened))
                proposals.append(self._opening)
            return proposals
        held, outstanding = self._held, self._outstanding
        room = self._room if held else 0
        too_new = self.too_new() if held else ""
        while held and room > 0:
            write = held.popleft()
            if write in outstanding:
                if too_new and not self._is_lowered(write):
                    write.error = Unavailable(too_new, maybe_applied=False)
                    self._end(write)
                    continue
                write.session = self._session
                proposals.append(self._identified(write))
                room -= 1
        return proposals

    def _is_lowered(self, write: Write) -> bool:
        """Whether the write is, or can be changed to, a command of version 1."""
        body = in_version_1(write.data)
        if body is None:
            return False
        self._outstanding_bytes -= len(write.data) - len(body)
        write.data = body
        return True

    def take_barriers(self) -> list[BarrierCall]:
        """The barriers to ask the leader for now."""
        return self.barriers.take()

    @property
    def has_more(self) -> bool:
        """Whether `take` would have something to propose without new writes, or a barrier may go on."""
        if self._held and (self._room > 0 if self._session else self._opening is None):
            return True
        return self.barriers.has_more

    @property
    def _room(self) -> int:
        """How many more writes may be on their way."""
        out = self._next - self._lowest
        return min(SESSION_WINDOW - out, self._limit - out + len(self._ended))

    def _identified(self, proposal: Proposal) -> Proposal:
        proposal.sequence = self._next
        self._next += 1
        proposal.data = with_request_id(proposal.session, proposal.sequence, self._lowest, proposal.data)
        return proposal

    # Ending ------------------------------------------------------------------------------------------------------

    def done(self, proposal: Proposal) -> None:
        """`Proposal.done` of every write."""
        assert isinstance(proposal, Write)
        self._end_sequence(proposal.sequence)
        if self._session == proposal.session and self._is_unknown(proposal):
            self._session = 0  # evicted: the next write opens another session
        self._end(proposal)

    def _opened(self, opening: Proposal) -> None:
        self._end_sequence(opening.sequence)
        self._opening = None
        if opening.error is None and not self._is_unknown(opening):
            self._session = opening.session

    @staticmethod
    def _is_unknown(proposal: Proposal) -> bool:
        result: Result | None = proposal.outcome
        return result is not None and result.error is not None and result.error[0] == UNKNOWN_SESSION

    def _end_sequence(self, sequence: int) -> None:
        if sequence == self._lowest and not self._ended:  # nearly always
            self._lowest += 1
            return
        self._ended.add(sequence)
        while self._lowest in self._ended:
            self._ended.remove(self._lowest)
            self._lowest += 1

    def _end(self, write: Write) -> None:
        if self._outstanding.pop(write, _GONE) is _GONE:
            return  # `end_all` has ended it already
        self._outstanding_bytes -= len(write.data) - (REQUEST_ID_BYTES if write.sequence else 0)
        if write.sleeper is not None:
            self._asleep.append(write.sleeper)
        elif write.future is not None:
            self._settled.append(write.settle)
            self.barriers.write_ended(write.thread)
        elif write.landing is not None:
            self._landed.append(write.landing)
        self._uncounted.append(write)

    def expire(self, now: float, hindrance: Callable[[], tuple[str, bool]]) -> None:
        """End the writes that reached their deadline before they got a request id. `hindrance`: see Engine. Call it
        every few hundredths of a second."""
        self.barriers.expire(now)
        if not self._held:
            return
        late = [write for write in self._held if write.deadline <= now]
        if late:
            self._held = deque(write for write in self._held if write.deadline > now)
            reason, full = hindrance()
            for write in late:
                write.error = expired(write, QUEUE_FULL if self._session else reason, full=full and not self._session)
                self._end(write)

    def flush(self) -> bool:
        """Wake the callers, and resolve the futures, of the writes that have ended since the last call. Whether there
        are callers that `wake_late` has to look at."""
        if self._uncounted:
            self._count_ended(taken(self._uncounted))
        if self.slow.entries:
            self.slow.note_entries()
        if self._landed:
            hand_over(taken(self._landed))
        if self._settled:
            self._deliveries.put(taken(self._settled))
        if self._asleep:
            return self._waking.wake(taken(self._asleep))
        return False

    def _count_ended(self, ended: Sequence[Write]) -> None:
        slowest, now, slow = ended[0], time.monotonic(), self.slow
        for write in ended:
            write.count(now)
            if write.begun < slowest.begun:
                slowest = write
        if now - slowest.begun >= slow.floor_seconds or now >= slow.sample_at:
            slow.note(ended, slowest, now)

    @staticmethod
    def _count(ended: Iterable[Write]) -> None:
        now = time.monotonic()
        for write in ended:
            write.count(now)

    def wake_late(self) -> bool:
        """Wake the callers that should be awake by now. Returns whether there are others, that are not awake yet."""
        return self._waking.look()

    def end_all(self, submitted: Iterable[Call], reason: str) -> None:
        """This manager has ended: end the writes that were not taken, and every one that was. For any thread, also when
        the raft thread is stuck."""
        ended = []
        barriers = []
        for call in submitted:
            if isinstance(call, BarrierCall):
                barriers.append(call)
                continue
            call.error = Closed(reason)
            ended.append(call)
        for write in list(self._outstanding):
            if self._outstanding.pop(write, _GONE) is not _GONE:
                write.error = Unavailable(reason, maybe_applied=True) if write.sequence else Closed(reason)
                ended.append(write)
        self._count(taken(self._uncounted) + ended)
        callers = self.barriers.end_all(barriers, reason)
        sleepers = [caller for caller in callers if isinstance(caller, Sleeper)] + taken(self._asleep)
        sleepers += [write.sleeper for write in ended if write.sleeper is not None]
        for sleeper in sleepers:
            sleeper.release()
        self._waking.wake_all()
        landings = [caller for caller in callers if isinstance(caller, Landing)] + taken(self._landed)
        hand_over(landings + [write.landing for write in ended if write.landing is not None])
        self._deliveries.put(taken(self._settled) + [write.settle for write in ended if write.future is not None])
