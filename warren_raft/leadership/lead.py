"""The lead: one leadership of this manager, in one term, with writes that are carried out in this term only.

Not here: the decision about such a write (fsm/entry.py, by the term of the log entry that carries it), the election
(raft/), loops (loops.py).
Invariant: a write of a lead is sent with the lead's term as its fence. A lead that is over is never in force again. A
lead begins with a state that has everything that earlier leads of this store have done, and ever will do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, Protocol, TypeVar

from warren_raft.errors import Misuse, StorageFull, Unavailable, WarrenError
from warren_raft.store.command import Operation
from warren_raft.store.fence import Fence
from warren_raft.store.tables import Kind
from warren_raft.store.writing import Writer
from warren_raft.support import timeouts
from warren_raft.support.handover import Around, Begun, Landing
from warren_raft.support.waiting import Bell, Wait

E = TypeVar("E")

UNKNOWN_END: Final = "the end of one of its writes is not known, and the next lead begins when it is"
HAS_ENDED: Final = "its block or its function has ended"
UNSUBSCRIBED: Final = "its function was unsubscribed"

EMPTY_SECONDS_MIN: Final = 1.0
EMPTY_SECONDS_MAX: Final = 5.0
"""The time of one attempt of the empty command."""
AGAIN_SECONDS: Final = 0.1
"""The pause before an empty command that was not taken is sent again."""


class Standing(Protocol):
    """What a store knows of its own leadership. For any thread."""

    @property
    def bell(self) -> Bell:
        """Rings after each change of the others."""

    def leading_term(self) -> int | None:
        """The term in which this manager leads, with a state that has every acknowledged write; None: it does not
        lead."""

    def term(self) -> int:
        """The present term."""

    def is_over(self) -> bool:
        """Whether the store has ended: no more changes will come."""

    def require(self) -> None:
        """Raises Closed if the store has ended."""


class Lead(Writer):
    """This manager's leadership in one term, given by `store.leading()` and `store.run_while_leading()`.

    It has all write methods of the store, `modify` and `batch`. A write is carried out only if the log entry that
    carries it was proposed by the leader of this `term`, which is this manager. So a manager that was paused while
    another one took over cannot act on what it knew before: the write raises LeadershipLost, and nothing is changed.
    Reads are those of the store. Thread-safe.

    A lead is over when this manager does not lead in `term` any more, at the end of its `with` block, when an exception
    leaves its function, and when the end of one of its writes is not known: after Unavailable with
    `maybe_applied=True`, and after a write that was interrupted or cancelled. The next lead of the same term begins
    when the state here has all that such writes have done, and none of them can be carried out any more. So a loop that
    reads at the beginning of each pass, and waits for its writes before the next pass, does nothing twice.
    """

    def __init__(
        self,
        store: Writer,
        standing: Standing,
        term: int,
        is_dropped: Callable[[], bool] = lambda: False,
        ring: Callable[[], object] = lambda: None,
    ) -> None:
        """`is_dropped`: whether its function was unsubscribed. `ring` lets the bell ring, from any thread."""
        self.term: int = term
        """The term in which this manager leads or led."""
        self._store = store
        self._standing = standing
        self._is_dropped = is_dropped
        self._ring = ring
        self._fence = Fence(term)

    @property
    def is_over(self) -> bool:
        """Whether this lead is known to be over. It may be False for a moment after another manager took over; the
        writes of this lead are refused all the same."""
        if not self._fence.is_over:
            if self._is_dropped():
                self._fence.end(UNSUBSCRIBED)
            elif self._standing.leading_term() != self.term:
                self._fence.end()
        return self._fence.is_over

    def wait_over(self, timeout: float | None = None) -> bool:
        """Wait until this lead is over, `timeout` seconds at most (None: for ever). Returns `is_over`, so that a loop
        that works every five seconds is `while not lead.wait_over(5)`."""
        return self._bell.wait_for(lambda: self.is_over, timeouts.deadline(timeout))

    @property
    def _bell(self) -> Bell:
        """Rings when this lead may be over."""
        return self._standing.bell

    def _end(self, reason: str) -> None:
        """End it, although this manager may still lead. Any thread; idempotent."""
        self._fence.end(reason)
        self._ring()

    def _note(self, error: BaseException) -> None:
        """A write has ended by this error. The lead is over if that leaves open whether the write is carried out."""
        is_known = isinstance(error, WarrenError) and not (isinstance(error, Unavailable) and error.maybe_applied)
        if not is_known:
            self._end(UNKNOWN_END)

    def _require(self) -> None:
        self._standing.require()
        if self.is_over:
            raise self._fence.refusal()

    def _execute(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        self._require()
        try:
            return self._store._execute(operations, timeout, request_key=request_key, fence=self._fence)
        except BaseException as error:
            self._note(error)
            raise

    def _start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        """The future that is returned gets its result after `_note`: a pass that waits for it must not find a lead that
        is still in force."""
        self._require()
        try:
            started = self._store._start(operations, timeout, request_key=request_key, fence=self._fence)
        except BaseException as error:  # interrupted, the write may be on its way
            self._note(error)
            raise
        noted: Future[int] = Future()
        noted.set_running_or_notify_cancel()
        started.add_done_callback(partial(self._pass_on, noted))
        return noted

    def _pass_on(self, noted: Future[int], started: Future[int]) -> None:
        error = started.exception()
        if error is None:
            noted.set_result(started.result())
        else:
            self._note(error)
            noted.set_exception(error)

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Begun[int]:
        self._require()
        try:
            begun = self._store._begin(operations, timeout, landing, request_key=request_key, fence=self._fence)
        except BaseException as error:  # as in _start
            self._note(error)
            raise
        return _Noted(begun, self)

    def _latest_revision(self) -> int:
        return self._store._latest_revision()

    def _get(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        return self._store._get(kind, id)

    @property
    def _default_timeout_seconds(self) -> float:
        return self._store._default_timeout_seconds

    def __repr__(self) -> str:
        """For logs and debuggers. Never raises."""
        return f"<Lead of {self._store!r} in term {self.term}{', over' if self._fence.is_over else ''}>"


class _Noted(Around[int]):
    """A write of a coroutine (`Begun`), whose end the lead notes."""

    def __init__(self, begun: Begun[int], lead: Lead) -> None:
        super().__init__(begun)
        self._lead = lead

    def result(self) -> int:
        try:
            return super().result()
        except BaseException as error:
            self._lead._note(error)
            raise

    def give_up(self) -> None:
        self._lead._end(UNKNOWN_END)
        super().give_up()

    def late(self) -> Exception:
        error = super().late()
        self._lead._note(error)
        return error


class Leads:
    """The leads of a store. `ring` lets the bell of the standing ring, from any thread."""

    def __init__(self, standing: Standing, ring: Callable[[], object] = lambda: None) -> None:
        self.standing: Final = standing
        self._ring = ring
        self._given: dict[int, object] = {}
        """The terms of the leads that were given; only the newest ones are kept."""

    def is_first(self, term: int) -> bool:
        """Whether this store has given no lead of this term before. Then the state has everything: a leader has applied
        all that was in its log when its term began, and writes of earlier terms are refused by their fences."""
        mine = object()
        is_first = self._given.setdefault(term, mine) is mine  # in one step: it may be asked by several threads
        if is_first:
            for older in [each for each in list(self._given) if each < term]:
                self._given.pop(older, None)
        return is_first

    def lead(self, store: Writer, term: int, is_dropped: Callable[[], bool]) -> Lead:
        return Lead(store, self.standing, term, is_dropped, self._ring)


class Unsubscribed(Exception):
    """The function of a wait for leadership was unsubscribed."""


class Leading(AbstractContextManager[Lead]):
    """The wait for a leadership: `with store.leading() as lead`. For one `with` block, at whose end the lead is over.

    **The next lead of a term** begins behind an empty command. It is proposed here, by the leader of the term, after
    the old lead was over, and the leader proposes no write of a lead that is over (raft/submit.py). So in the log each
    write of the old lead is in front of the empty command, or nowhere. When the command has been applied here, so has
    each of these writes. In another term the fence refuses them. If the command passed through the log of another
    leader, this manager does not lead in the term any more, and the wait goes on.
    """

    def __init__(
        self, store: Writer, leads: Leads, timeout: float | None, is_dropped: Callable[[], bool] = lambda: False
    ) -> None:
        """`is_dropped`: whether to end the wait by Unsubscribed, and the lead."""
        self.standing: Final = leads.standing
        self.store: Final = store
        self._leads = leads
        self._timeout = timeouts.checked(timeout)
        self._deadline = math.inf
        self._is_dropped = is_dropped
        self._was_used = False
        self._lead: Lead | None = None

    def __enter__(self) -> Lead:
        """Raises Unavailable at the timeout, Closed."""
        while True:
            term = self.until_leading().wait()
            if self.begins_at_once(term):
                return self.begun(term)
            try:
                self.store._execute((), self.seconds_left)
            except (Unavailable, StorageFull):
                self.standing.bell.wait_for(*self.pause(term))
            else:
                if self.still_leads(term):
                    return self.begun(term)

    def until_leading(self) -> Wait[int]:
        """The wait for the term of a leadership. The time runs from the first call on."""
        if self._lead is not None:
            raise Misuse("a wait for leadership is used once; ask the store for another: store.leading()")
        if not self._was_used:
            self._was_used = True
            self._deadline = timeouts.deadline(self._timeout)
        return self._until(self.standing.leading_term, self._deadline)

    def begins_at_once(self, term: int) -> bool:
        """Whether no empty command is needed."""
        return self._leads.is_first(term)

    @property
    def seconds_left(self) -> float:
        """For the empty command. Never so few that it cannot be carried out, and never so many that a loop that was
        unsubscribed hangs in it."""
        return min(max(EMPTY_SECONDS_MIN, self._deadline - time.monotonic()), EMPTY_SECONDS_MAX)

    def still_leads(self, term: int) -> bool:
        """After the empty command."""
        return self.standing.leading_term() == term

    def pause(self, term: int) -> tuple[Callable[[], bool], float]:
        """The condition and the deadline of the pause after an empty command that was not carried out. Raises
        Unavailable if no time is left."""
        if time.monotonic() >= self._deadline:
            raise self._late()
        return lambda: not self.still_leads(term), min(time.monotonic() + AGAIN_SECONDS, self._deadline)

    def _until(self, condition: Callable[[], E | None], deadline: float) -> Wait[E]:
        def looked() -> E | None:
            self.standing.require()
            if self._is_dropped():
                raise Unsubscribed
            return condition()

        return Wait(self.standing.bell, looked, deadline, self._late)

    def _late(self) -> Unavailable:
        seconds = math.inf if self._timeout is None else self._timeout
        return Unavailable(
            f"this manager did not get to lead within {round(seconds, 3):g} s", maybe_applied=False, of_write=False
        )

    def begun(self, term: int) -> Lead:
        """The lead of a term that was waited for."""
        self._lead = self._leads.lead(self.store, term, self._is_dropped)
        return self._lead

    def end(self) -> None:
        """The end of the block. Leadership stays where it is."""
        if self._lead is not None:
            self._lead._end(HAS_ENDED)

    def __exit__(self, *_exception: object) -> None:
        """Leadership stays where it is, and the lead is over."""
        self.end()
