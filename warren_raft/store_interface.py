"""Store: what a manager of a cluster and a LocalStore have in common, which is everything but their opening.

A program that is typed with it runs with both, so that its tests need no cluster. Not here: how a store does it
(manager/, local/). Invariant: every public method of ReplicatedStore is here, and LocalStore has it.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable

from warren_raft.aio.store import AsyncStore
from warren_raft.alarms import Alarm
from warren_raft.errors import WarrenError
from warren_raft.leadership.callbacks import Callback
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.results import MemberStatus, Status
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.store.interface import BaseStore
from warren_raft.support.handover import Begun, Landing
from warren_raft.support.waiting import Wait


class Store(BaseStore):
    """A store that a program writes to: one manager of a cluster (`ReplicatedStore`), or a `LocalStore`, which leads,
    is ready and has no other members. Thread-safe. Use it with `with`, or call `close()`.
    """

    @property
    def aio(self) -> AsyncStore:
        """This store for asyncio: `await store.aio.create_node(node)`. Nothing in it blocks the loop."""
        return AsyncStore(self, self)

    # This manager and its cluster --------------------------------------------------------------------------------

    def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Wait until a leader is known and the log is applied up to the commit index at this manager's start.

        `timeout` in seconds, None: for ever. Raises Unavailable, or Closed if the manager stopped.
        """
        self._until_ready(timeout).wait()

    def wait_leader(self, timeout: float | None = 10.0) -> str:
        """The id of the leader, as soon as one is known here ("local" for a LocalStore). `timeout` in seconds, None:
        for ever. Raises Unavailable, Closed."""
        return self._until_leader(timeout).wait()

    @abstractmethod
    def wait_failed(self, timeout: float | None = None) -> bool:
        """Wait until this manager has stopped by itself: True, and `failure` says why. False at the timeout or at
        `close`. `timeout` in seconds, None: for ever."""

    @property
    @abstractmethod
    def failure(self) -> WarrenError | None:
        """Why this manager stopped by itself; None if it has not. Reads go on, writes raise Closed."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether a leader is known and the log is applied up to the commit index at this manager's start."""

    @property
    @abstractmethod
    def waiting_for(self) -> str:
        """Before the cluster has formed: the members for which this manager waits, as a sentence; else empty."""

    @property
    @abstractmethod
    def alarms(self) -> tuple[Alarm, ...]:
        """The conditions that need an operator and last now, in the order in which they were raised; docs/alarms.md
        lists all names. For any thread, also after the end: a closed manager has no alarm but `manager-failed`."""

    @abstractmethod
    def status(self) -> Status:
        """This manager and its cluster now; `to_json()` has the form of `warren-raft status -o json`. Raises Closed."""

    @abstractmethod
    def reload_certificate(self) -> None:
        """Look for a newer certificate now: in the join file, and in data_dir/tls. Returns at once.

        A manager does this by itself every second. After this call it also logs that there is no newer one, or why a
        new one cannot be used (the alarm `certificate-not-taken`). From any thread, and in signal handlers.
        """

    # Leadership --------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def is_leader(self) -> bool:
        """Whether this manager leads and its state holds every acknowledged write. It may be deposed meanwhile."""

    @property
    @abstractmethod
    def leader(self) -> str | None:
        """The id of the leader as far as this manager knows; None if it has heard from no leader for a while."""

    @abstractmethod
    def on_leadership(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(is_leader, term)` with the present state, and then at each change, in order.

        Each callback has a thread of its own. It should return at once, because it gets the next change only after it
        has returned. It may use the store in any way, and close it too. Its exceptions are logged, except
        Closed when the store has been closed.

        Returns a function that ends the calls; a call that is just beginning may still be made. Raises Closed, and
        RefusedForSafety for more than 100 callbacks at a time. For a loop of a leader see `run_while_leading`.
        """

    @abstractmethod
    def leading(self, timeout: float | None = None) -> Leading:
        """Wait until this manager leads and has applied every acknowledged write: `with store.leading() as lead`.

        `timeout` in seconds, None: for ever. The block gets a `Lead`: all the writes of a store, which are carried out
        only while this manager leads in the same term, and raise LeadershipLost otherwise. So a manager that was paused
        while another one took over changes nothing. At the end of the block the lead is over, and this manager goes on
        leading. The block raises Unavailable at the timeout, and Closed.
        """

    @abstractmethod
    def run_while_leading(self, function: Callable[[Lead], object]) -> Callable[[], None]:
        """Call `function(lead)` with each lead of this manager, in a thread of its own. See `leading` for `lead`.

        The function works in a loop (`while not lead.wait_over(5): ...`), or once. Each pass of the loop reads, writes
        by its lead, and waits for its writes: then it knows what all passes before it did, because a lead is over when
        the end of a write is not known, and the next one waits for that end (see `Lead`).

        An exception that leaves the function ends the lead, and while this manager leads the function is called again
        with the next one, after 1 s, then 2 s, and so on up to 30 s; after 1 s if it has run for longer than the last
        pause. Unavailable, StorageFull and WatchLost are one line in the log, and LeadershipLost and Closed (when the
        store has been closed) none; any other exception is an error with its traceback. After a return the function is
        called again when its lead is over.

        Returns a function that ends the calls, and the present lead is over; a call that is just beginning may still be
        made, with a lead that is over. Raises Closed, and RefusedForSafety for more than 100 callbacks at a time.
        """

    # Consistency -------------------------------------------------------------------------------------------------

    @abstractmethod
    def barrier(self, timeout: float | None = None) -> int:
        """After it, every local read sees all writes that were acknowledged, anywhere, before the call (linearizable).
        It also waits for the writes that this thread has started before (`batch(wait=False)`).

        It writes nothing. The leader makes sure that it still leads, and this manager applies what the leader has
        committed. `timeout` in seconds, None: that of a write. Returns the revision of the state here. Raises
        Unavailable (no leader with a quorum answered, or this manager is behind; `maybe_applied` is False), Closed.
        """

    # Members -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def members(self) -> tuple[MemberStatus, ...]:
        """Each member of the cluster, as known to this manager, in the order of the ids. Raises Closed."""

    @abstractmethod
    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Add a manager that runs on an empty directory. Returns when it has caught up and votes.

        `timeout` in seconds, None: that of a write. Raises RefusedForSafety, Unavailable (it does not answer, or there
        is no quorum), InvalidEntity, Closed.
        """

    @abstractmethod
    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Give a member another address. Returns an empty string if its manager answers there. Otherwise returns a
        sentence with its present place and the advice; the new address counts nevertheless, so that a stopped manager
        can be moved.

        `timeout` in seconds, None: that of a write. Raises RefusedForSafety, Unavailable, InvalidEntity, Closed.
        """

    @abstractmethod
    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Remove a member; a leader hands leadership over first. Removing an id that is not a member does nothing.

        Returns when a majority of the remaining members has the removal on disk, so that no power cut takes it back.
        Until then the removed manager must go on running, because its vote may be needed; then it stops by itself.

        `timeout` in seconds, None: that of a write. Raises RefusedForSafety if the quorum would be lost, or if the
        state of another member is wrong and too few members with the right state would stay; Unavailable, Closed.
        """

    @abstractmethod
    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Let another voting member lead (None: the most caught-up one). Returns the id of the new leader.

        `timeout` in seconds, None: that of a write. Raises RefusedForSafety if the id is not a connected voting member,
        Closed, and Unavailable: if its `maybe_applied` is True, leadership may still move.
        """

    # Snapshots ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """Save this manager's state as one file (mode 0600), verified and on disk. Returns its manifest.

        Needs no quorum; `quorum` of the result says whether there was one. On the leader, after `barrier()`, the file
        has every acknowledged write. Reads and writes go on meanwhile. Raises RefusedForSafety (a file of that name
        exists, or this manager has not been part of a cluster yet), StorageFull, OSError, SnapshotInvalid (the state is
        damaged), Closed. In these cases no file is left.
        """

    # For `aio` ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]:
        """As `barrier`, for a coroutine that waits at `landing`."""

    @abstractmethod
    def _until_ready(self, timeout: float | None) -> Wait[bool]:
        """The wait of `wait_ready`."""

    @abstractmethod
    def _until_leader(self, timeout: float | None) -> Wait[str]:
        """The wait of `wait_leader`."""
