"""The lead: one leadership of this manager, in one term, with writes that are carried out in this term only.

Not here: the decision about such a write (fsm/entry.py, by the term of the log entry that carries it), the election
(raft/), threads (callbacks.py).
Invariant: a write of a lead is sent with the lead's term as its fence. A lead that is over is never in force again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from warren_raft.errors import LeadershipLost, Misuse, Unavailable
from warren_raft.store.command import NO_FENCE, Operation
from warren_raft.store.tables import Kind
from warren_raft.store.writing import Writer
from warren_raft.support import timeouts
from warren_raft.support.handover import Begun, Landing
from warren_raft.support.waiting import Bell, Wait

E = TypeVar("E")


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
    """

    def __init__(
        self, store: Writer, standing: Standing, term: int, is_dropped: Callable[[], bool] = lambda: False
    ) -> None:
        """`is_dropped`: whether this lead was ended although the manager leads."""
        self.term: int = term
        """The term in which this manager leads or led."""
        self._store = store
        self._standing = standing
        self._is_dropped = is_dropped
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether this manager is known not to lead in this term any more. It may be False for a moment after another
        manager took over; the writes of this lead are refused all the same."""
        if not self._is_over and (self._is_dropped() or self._standing.leading_term() != self.term):
            self._is_over = True
        return self._is_over

    def wait_over(self, timeout: float | None = None) -> bool:
        """Wait until this lead is over, `timeout` seconds at most (None: for ever). Returns `is_over`, so that a loop
        that works every five seconds is `while not lead.wait_over(5)`."""
        return self._bell.wait_for(lambda: self.is_over, timeouts.deadline(timeout))

    @property
    def _bell(self) -> Bell:
        """Rings when this lead may be over."""
        return self._standing.bell

    def _require(self) -> None:
        self._standing.require()
        if self.is_over:
            raise LeadershipLost(self.term)

    def _execute(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = NO_FENCE
    ) -> int:
        self._require()
        return self._store._execute(operations, timeout, request_key=request_key, fence=fence or self.term)

    def _start(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = NO_FENCE
    ) -> Future[int]:
        self._require()
        return self._store._start(operations, timeout, request_key=request_key, fence=fence or self.term)

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: int = NO_FENCE,
    ) -> Begun[int]:
        self._require()
        return self._store._begin(operations, timeout, landing, request_key=request_key, fence=fence or self.term)

    def _latest_revision(self) -> int:
        return self._store._latest_revision()

    def _get(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        return self._store._get(kind, id)

    @property
    def _default_timeout_seconds(self) -> float:
        return self._store._default_timeout_seconds

    def __repr__(self) -> str:
        """For logs and debuggers. Never raises."""
        return f"<Lead of {self._store!r} in term {self.term}{', over' if self._is_over else ''}>"


class Leading(AbstractContextManager[Lead]):
    """The wait for a leadership: `with store.leading() as lead`. For one `with` block."""

    def __init__(self, store: Writer, standing: Standing, timeout: float | None) -> None:
        self._store = store
        self._standing = standing
        self._timeout = timeouts.checked(timeout)
        self._was_used = False

    def __enter__(self) -> Lead:
        """Raises Unavailable at the timeout, Closed."""
        return self.lead(self.until_leading().wait())

    def until_leading(self) -> Wait[int]:
        """The wait for the term of a leadership; it begins now. Once."""
        if self._was_used:
            raise Misuse("a wait for leadership is used once; ask the store for another: store.leading()")
        self._was_used = True
        standing, timeout = self._standing, self._timeout

        def looked() -> int | None:
            standing.require()
            return standing.leading_term()

        def late() -> Unavailable:
            seconds = math.inf if timeout is None else timeout
            return Unavailable(
                f"this manager did not get to lead within {round(seconds, 3):g} s", maybe_applied=False, of_write=False
            )

        return Wait(standing.bell, looked, timeouts.deadline(timeout), late)

    def lead(self, term: int) -> Lead:
        """The lead of a term that was waited for."""
        return Lead(self._store, self._standing, term)

    def __exit__(self, *_exception: object) -> None:
        """Leadership stays where it is."""
