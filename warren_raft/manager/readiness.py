"""Whether this manager is ready or leads, and which leader it knows. Callers wait here for a change of that.

Not here: the election (raft/), the callbacks (leadership/). Invariant: a manager that has stopped, is closed, or has
a raft thread that is stuck neither leads nor knows a leader.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from warren_raft.errors import Unavailable
from warren_raft.manager.lifetime import Lifetime
from warren_raft.raft.engine import Engine
from warren_raft.support import timeouts
from warren_raft.support.waiting import Bell, Wait

T = TypeVar("T")


class Readiness:
    """For any thread. No lock of another thread is taken."""

    def __init__(self, node_id: str, life: Lifetime, engine: Engine) -> None:
        self._node_id = node_id
        self._life = life
        self._engine = engine

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready and self._is_known

    @property
    def is_leader(self) -> bool:
        return self._engine.is_leader and self._is_known

    @property
    def leader(self) -> str | None:
        return self._engine.leader if self._is_known else None

    # For leadership/ ---------------------------------------------------------------------------------------------

    @property
    def bell(self) -> Bell:
        return self._life.changed

    def leading_term(self) -> int | None:
        """The term in which this manager leads; None if it does not lead."""
        return self._engine.leading_term if self._is_known else None

    def term(self) -> int:
        return self._engine.term

    def is_over(self) -> bool:
        return not self._life.is_alive

    def require(self) -> None:
        """Raises Closed if this manager has ended."""
        self._life.require()

    # -------------------------------------------------------------------------------------------------------------

    @property
    def waiting_for(self) -> str:
        return self._engine.waits

    @property
    def leader_contact_age_seconds(self) -> float:
        return self._engine.leader_contact_age(time.monotonic())

    @property
    def staleness_seconds(self) -> float:
        return self._engine.staleness(time.monotonic())

    @property
    def _is_known(self) -> bool:
        """Whether the raft thread's information about the cluster is valid."""
        return self._life.is_alive and not self._life.is_stuck

    def wait_ready(self, timeout: float | None) -> None:
        """Raises Unavailable, Closed."""
        self.until_ready(timeout).wait()

    def wait_leader(self, timeout: float | None) -> str:
        """The id of the leader, as soon as one is known here. Raises Unavailable, Closed."""
        return self.until_leader(timeout).wait()

    def until_ready(self, timeout: float | None) -> Wait[bool]:
        """The wait raises Unavailable, Closed."""
        return self._until(lambda: self._engine.is_ready, timeout, f"{self._node_id} did not get ready")

    def until_leader(self, timeout: float | None) -> Wait[str]:
        """The wait for the id of the leader. It raises Unavailable, Closed."""
        return self._until(lambda: self.leader, timeout, "no leader was elected")

    def _until(self, condition: Callable[[], T | None], timeout: float | None, what: str) -> Wait[T]:
        def looked() -> T | None:
            self._life.require()
            return condition()

        def late() -> Unavailable:
            assert timeout is not None  # a wait without a limit ends only with its condition
            waits = f": {self.waiting_for}" if self.waiting_for else ""
            return Unavailable(f"{what} within {round(timeout, 3):g} s{waits}", maybe_applied=False, of_write=False)

        return Wait(self._life.changed, looked, timeouts.deadline(timeout), late)
