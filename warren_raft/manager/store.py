"""ReplicatedStore: one manager of a cluster.

Lives here: its public face. Each method delegates to a part of the manager (parts.py); the reads and writes come from
store/. Not here: the effect of a command (fsm/), agreement on it (raft/).
Invariant: a write that returned is committed by a majority and applied to this manager's database.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from warren_raft.aio.store import AsyncStore
from warren_raft.alarms import Alarm
from warren_raft.config import Config
from warren_raft.errors import Closed, WarrenError
from warren_raft.leadership.callbacks import Callback
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.manager.parts import Parts
from warren_raft.manager.status import members_of, status_of
from warren_raft.results import MemberStatus, Status
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.store.command import NO_FENCE, Operation
from warren_raft.store.database import Database
from warren_raft.store.interface import Store
from warren_raft.support.handover import Begun, Landing
from warren_raft.support.waiting import Wait
from warren_raft.watching.hub import Hub

if TYPE_CHECKING:
    from warren_raft.admin.server import AdminServer


class ReplicatedStore(Store):
    """One manager: reads are local, writes are committed by a majority. Usable from any number of threads.

    Opening raises InUse (directory or port), RefusedForSafety (another node's directory, another user's, one that every
    user of the host may read or write, a network file system), Corrupted (with how to rejoin). After a fork, the store
    in the child is closed.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Final = config
        self._parts: Final = self._made_parts()
        self._life: Final = self._parts.life
        try:
            self._parts.open(self._admin_server if config.admin else None)
        except BaseException:
            self._parts.close_soon()  # if only this thread was interrupted, opening goes on until then
            raise

    def _made_parts(self) -> Parts:
        """For tests: a subclass makes parts that use other files."""
        return Parts(self.config)

    def _admin_server(self, nameless_snapshot: Callable[[], int]) -> AdminServer:
        from warren_raft.admin.server import AdminServer

        return AdminServer(self, self.config.directory, nameless_snapshot)

    def _attached(self) -> Database:
        return self._life.require_database()

    def _feeds(self) -> Hub:
        return self._parts.hub

    # This manager and its cluster --------------------------------------------------------------------------------

    def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Wait until a leader is known and the log is applied up to the commit index at this manager's start.

        `timeout` in seconds, None: for ever. Raises Unavailable, or Closed if the manager stopped.
        """
        self._parts.readiness.wait_ready(timeout)

    def wait_leader(self, timeout: float | None = 10.0) -> str:
        """The id of the leader, as soon as one is known here. Raises Unavailable, Closed."""
        return self._parts.readiness.wait_leader(timeout)

    def _until_ready(self, timeout: float | None) -> Wait[bool]:
        return self._parts.readiness.until_ready(timeout)

    def _until_leader(self, timeout: float | None) -> Wait[str]:
        return self._parts.readiness.until_leader(timeout)

    def wait_failed(self, timeout: float | None = None) -> bool:
        """Wait until this manager has stopped by itself: True, and `failure` says why. False at the timeout or at
        `close`."""
        return self._life.wait_failed(timeout)

    @property
    def failure(self) -> WarrenError | None:
        """Why this manager stopped by itself; None if it has not. Reads go on, writes raise Closed."""
        return self._life.failure

    @property
    def is_ready(self) -> bool:
        """Whether a leader is known and the log is applied up to the commit index at this manager's start."""
        return self._parts.readiness.is_ready

    @property
    def waiting_for(self) -> str:
        """Before the cluster has formed: the members for which this manager waits, as a sentence; else empty."""
        return self._parts.readiness.waiting_for

    @property
    def waits(self) -> str:
        """The old name of `waiting_for`."""
        warnings.warn("ReplicatedStore.waits is waiting_for now", DeprecationWarning, stacklevel=2)
        return self.waiting_for

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and its state holds every acknowledged write. It may be deposed meanwhile."""
        return self._parts.readiness.is_leader

    @property
    def leader(self) -> str | None:
        """The id of the leader as far as this manager knows; None if it has heard from no leader for a while."""
        return self._parts.readiness.leader

    def on_leadership(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(is_leader, term)` with the present state, and then at each change, in order.

        Each callback has a thread of its own. It should return at once, because it gets the next change only after it
        has returned. It may use the store in any way, and close it too. Its exceptions are logged.

        Returns a function that ends the calls; a call that is just beginning may still be made. Raises Closed, and
        RefusedForSafety for more than 100 callbacks at a time. For a loop of a leader see `run_while_leading`.
        """
        if self._life.is_closed:
            raise Closed
        return self._parts.leadership.subscribe(callback)

    def leading(self, timeout: float | None = None) -> Leading:
        """Wait until this manager leads and has applied every acknowledged write: `with store.leading() as lead`.

        `timeout` in seconds, None: for ever. The block gets a `Lead`: all the writes of a store, which are carried out
        only while this manager leads in the same term, and raise LeadershipLost otherwise. So a manager that was paused
        while another one took over changes nothing. The end of the block does not give up leadership. The block raises
        Unavailable at the timeout, and Closed.
        """
        return self._parts.leadership.leading(self, timeout)

    def run_while_leading(self, function: Callable[[Lead], object]) -> Callable[[], None]:
        """Call `function(lead)` each time this manager leads, in a thread of its own. See `leading` for `lead`.

        The function works in a loop (`while not lead.wait_over(5): ...`), or once. LeadershipLost may leave it. Any
        other exception is logged, and while this manager leads the function is called again, after 1 s, then 2 s, and
        so on up to 30 s; after 1 s if it has run for longer than the last pause. After a return it is called again at
        the next leadership.

        Returns a function that ends the calls, and the present lead is over; a call that is just beginning may still be
        made, with a lead that is over. Raises Closed, and RefusedForSafety for more than 100 callbacks at a time.
        """
        if self._life.is_closed:
            raise Closed
        return self._parts.leadership.run_while_leading(self, function)

    def _leader_contact_age_seconds(self) -> float:
        return self._parts.readiness.leader_contact_age_seconds

    def _staleness_seconds(self) -> float:
        return self._parts.readiness.staleness_seconds

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The conditions that need an operator and last now, in the order in which they were raised; docs/alarms.md
        lists all names. For any thread, also after the end: a closed manager has no alarm but `manager-failed`."""
        return self._parts.alarms.active

    def status(self) -> Status:
        """This manager and its cluster now; `to_json()` has the form of `warren-raft status -o json`. Raises Closed."""
        self._attached()
        parts = self._parts
        return status_of(
            parts.opened,
            parts.driver.engine,
            certificate=parts.certificate.status(),
            alarms=self.alarms,
            failure=self.failure,
            is_stuck=self._life.is_stuck,
        )

    def reload_certificate(self) -> None:
        """Look for a newer certificate now: in the join file, and in data_dir/tls. Returns at once.

        A manager does this by itself every second. After this call it also logs that there is no newer one, or why a
        new one cannot be used (the alarm `certificate-not-taken`). From any thread, and in signal handlers.
        """
        self._parts.certificate.wanted = True

    # Writing -----------------------------------------------------------------------------------------------------

    def _execute(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = NO_FENCE
    ) -> int:
        return self._parts.calls.run(operations, timeout, request_key, fence)

    def _start(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = NO_FENCE
    ) -> Future[int]:
        return self._parts.calls.start(operations, timeout, request_key, fence)

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: int = NO_FENCE,
    ) -> Begun[int]:
        return self._parts.calls.begin(operations, timeout, landing, request_key, fence)

    def _begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]:
        return self._parts.calls.begin_barrier(timeout, landing)

    @property
    def _default_timeout_seconds(self) -> float:
        return self.config.write_timeout_seconds

    def barrier(self, timeout: float | None = None) -> int:
        """After it, every local read sees all writes that were acknowledged, anywhere, before the call (linearizable).
        It also waits for the writes that this thread has started before (`batch(wait=False)`).

        It writes nothing. The leader makes sure that it still leads, and this manager applies what the leader has
        committed. `timeout` in seconds, None: `Config.write_timeout_seconds`. Returns the revision of the state here.
        Raises Unavailable (no leader with a quorum answered, or this manager is behind; `maybe_applied` is False),
        Closed.
        """
        return self._parts.calls.barrier(timeout)

    # Heartbeats --------------------------------------------------------------------------------------------------

    def _take_beat(self, node_id: str, ttl_seconds: float) -> None:
        self._parts.heartbeats.beat(node_id, ttl_seconds)

    def _age_of_beat(self, node_id: str) -> float | None:
        return self._parts.heartbeats.age(node_id)

    @property
    def aio(self) -> AsyncStore:
        """This store for asyncio: `await store.aio.create_node(node)`. Nothing in it blocks the loop."""
        return AsyncStore(self, self)

    # Members -----------------------------------------------------------------------------------------------------

    def members(self) -> tuple[MemberStatus, ...]:
        """Each member of the cluster, as known to this manager, in the order of the ids. Raises Closed."""
        self._attached()
        parts = self._parts
        return members_of(parts.driver.engine, parts.opened.machine, self.config.node_id, self.alarms)

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Add a manager that runs on an empty directory. Returns when it has caught up and votes.

        Raises RefusedForSafety, Unavailable (it does not answer, or there is no quorum), InvalidEntity.
        """
        self._parts.membership.add(id, address, timeout)

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Give a member another address. Returns an empty string if its manager answers there. Otherwise returns a
        sentence with its present place and the advice; the new address counts nevertheless, so that a stopped manager
        can be moved.

        Raises RefusedForSafety, Unavailable, InvalidEntity.
        """
        return self._parts.membership.update(id, address, timeout)

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Remove a member; a leader hands leadership over first. Removing an id that is not a member does nothing.

        Returns when a majority of the remaining members has the removal on disk, so that no power cut takes it back.
        Until then the removed manager must go on running, because its vote may be needed; then it stops by itself.

        Raises RefusedForSafety if the quorum would be lost, Unavailable.
        """
        self._parts.membership.remove(id, timeout)

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Let another voting member lead (None: the most caught-up one). Returns the id of the new leader.

        Raises RefusedForSafety if the id is not a connected voting member, Unavailable: if its `maybe_applied` is True,
        leadership may still move.
        """
        return self._parts.membership.transfer(id, timeout)

    # Snapshots, and the end --------------------------------------------------------------------------------------

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """Save this manager's state as one file (mode 0600), verified and on disk. Returns its manifest.

        Needs no quorum; `quorum` of the result says whether there was one. On the leader, after `barrier()`, the file
        has every acknowledged write. Reads and writes go on meanwhile. Raises RefusedForSafety (a file of that name
        exists, or this manager has not been part of a cluster yet), StorageFull, OSError, SnapshotInvalid (the state is
        damaged), Closed. In these cases no file is left.
        """
        return self._parts.saving.snapshot(path)

    def __repr__(self) -> str:
        """For logs and debuggers. Any state, any thread; never raises."""
        state = "closed" if self._life.is_closed else "failed" if self.failure is not None else "open"
        return f"<ReplicatedStore {self.config.node_id} on {str(self.config.directory)!r}, {state}>"

    def close(self) -> None:
        """Hand leadership over, end waiting calls (Closed), sync the state. Idempotent; reads raise Closed afterwards.

        Call it from any thread, in signal handlers, in callbacks and in `atexit`. A thread of the store's own closes
        the store, so an exception that arrives here ends only the waiting.
        """
        self._parts.close()
