"""The life of a manager: open, stopped by itself, or closed; and the bell that rings after each change of a manager.

Every part of a manager, and every waiting caller, looks here. Not here: opening and closing (parts.py), the cluster's
state (readiness.py). Invariant: a manager that has stopped or is closed is never alive again, and the first failure is
the one that is kept.
"""

from __future__ import annotations

import threading
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.errors import Closed, WarrenError
from warren_raft.store.database import Database
from warren_raft.support import forking, timeouts
from warren_raft.support.waiting import Bell


class Lifetime:
    """Written by the threads of the store, read by any thread without a lock."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self.changed: Final = Bell()
        """Rings after each change of this manager or its cluster."""
        self.stopping: Final = threading.Event()
        """Set when background work must end."""
        self.database: Database | None = None
        """The state that reads use; None before the opening and after the closing."""
        self.is_closed = False
        """No further call is accepted. Set when closing begins."""
        self.is_ended = False
        """Whether closing is over."""
        self.is_stuck = False
        """The raft thread does not run, so its last information about the cluster is no longer valid."""
        self.failure: WarrenError | None = None
        """Why this manager stopped by itself; None if it has not."""
        self._why_closed: tuple[str, ...] = ()

    @property
    def is_alive(self) -> bool:
        return not self.is_closed and self.failure is None

    def require(self) -> None:
        """Raises Closed if this manager is not alive."""
        if self.is_closed:
            raise Closed(*self._why_closed)
        if self.failure is not None:
            raise Closed(f"this manager stopped: {self.failure}")

    def require_database(self) -> Database:
        """The state that reads use. Raises Closed."""
        database = self.database
        if database is None:
            raise Closed
        return database

    def fail(self, error: WarrenError) -> None:
        """This manager stops by itself."""
        if self.failure is None:
            self.failure = error
        self.changed.ring()
        self._alarms.stopped(str(error))

    def wait_failed(self, timeout: float | None) -> bool:
        """Wait until this manager is not alive any more. Returns whether it stopped by itself."""
        self.changed.wait_for(lambda: not self.is_alive, timeouts.deadline(timeout))
        return self.failure is not None

    def end_in_child(self) -> None:
        """In a forked child: the store belongs to the parent."""
        self.is_closed = self.is_ended = True
        self._why_closed = (forking.PARENTS,)
