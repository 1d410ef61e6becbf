"""ReplicatedStore: one manager of a cluster.

Lives here: its public face. Each method delegates to a part of the manager (parts.py); the reads and writes come from
store/. Not here: the effect of a command (fsm/), agreement on it (raft/).
Invariant: a write that returned is committed by a majority and applied to this manager's database.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

from warren_raft.alarms import Alarm
from warren_raft.config import Config, split_address
from warren_raft.errors import Closed, WarrenError
from warren_raft.leadership.callbacks import Callback
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.manager.parts import Parts
from warren_raft.manager.status import members_of, status_of
from warren_raft.results import MemberStatus, Status
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.store.command import Operation
from warren_raft.store.database import Database
from warren_raft.store.fence import Fence
from warren_raft.store_interface import Store
from warren_raft.support.handover import Begun, Landing
from warren_raft.support.waiting import Wait
from warren_raft.watching.hub import Hub

if TYPE_CHECKING:
    from warren_raft.admin.server import AdminServer
    from warren_raft.health.pages import Pages
    from warren_raft.health.server import PagesServer
    from warren_raft.metrics.meters import Meters


class ReplicatedStore(Store):
    """One manager: reads are local, writes are committed by a majority. Usable from any number of threads.

    Opening raises InUse (directory or port), RefusedForSafety (another node's directory, another user's, one that every
    user of the host may read or write, a network file system), Corrupted (with how to rejoin). After a fork, the store
    in the child is closed.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Final = config
        self._started_at: Final = time.time()
        self._opened_at: Final = time.monotonic()
        self._parts: Final = self._made_parts()
        self._life: Final = self._parts.life
        try:
            self._parts.open(
                self._admin_server if config.admin else None,
                None if config.metrics_listen is None else self._pages_server,
            )
        except BaseException:
            self._parts.close_soon()  # if only this thread was interrupted, opening goes on until then
            raise

    def _made_parts(self) -> Parts:
        """For tests: a subclass makes parts that use other files."""
        return Parts(self.config)

    def _admin_server(self, nameless_snapshot: Callable[[], int]) -> AdminServer:
        from warren_raft.admin.server import AdminServer
        from warren_raft.manager.self_report import self_report

        reports: dict[str, Callable[[], object]] = {
            "explain": self._parts.writes.slow.to_json,
            "self_report": partial(self_report, self._parts),
        }
        return AdminServer(self, self.config.directory, nameless_snapshot, self._pages(), reports)

    def _pages_server(self) -> PagesServer:
        from warren_raft.health.server import PagesServer

        assert self.config.metrics_listen is not None
        return PagesServer(self._pages(), *split_address(self.config.metrics_listen))

    def _pages(self) -> Pages:
        from warren_raft.health.pages import Pages

        return Pages(self)

    def _attached(self) -> Database:
        return self._life.require_database()

    def _feeds(self) -> Hub:
        return self._parts.hub

    # This manager and its cluster --------------------------------------------------------------------------------

    def _until_ready(self, timeout: float | None) -> Wait[bool]:
        return self._parts.readiness.until_ready(timeout)

    def _until_leader(self, timeout: float | None) -> Wait[str]:
        return self._parts.readiness.until_leader(timeout)

    def wait_failed(self, timeout: float | None = None) -> bool:
        return self._life.wait_failed(timeout)

    @property
    def failure(self) -> WarrenError | None:
        return self._life.failure

    @property
    def is_ready(self) -> bool:
        return self._parts.readiness.is_ready

    @property
    def waiting_for(self) -> str:
        return self._parts.readiness.waiting_for

    @property
    def waits(self) -> str:
        """The old name of `waiting_for`."""
        warnings.warn("ReplicatedStore.waits is waiting_for now", DeprecationWarning, stacklevel=2)
        return self.waiting_for

    @property
    def is_leader(self) -> bool:
        return self._parts.readiness.is_leader

    @property
    def leader(self) -> str | None:
        return self._parts.readiness.leader

    def on_leadership(self, callback: Callback) -> Callable[[], None]:
        if self._life.is_closed:
            raise Closed
        return self._parts.leadership.subscribe(callback)

    def leading(self, timeout: float | None = None) -> Leading:
        return self._parts.leadership.leading(self, timeout)

    def run_while_leading(self, function: Callable[[Lead], object]) -> Callable[[], None]:
        if self._life.is_closed:
            raise Closed
        return self._parts.leadership.run_while_leading(self, function)

    def _leader_contact_age_seconds(self) -> float:
        return self._parts.readiness.leader_contact_age_seconds

    def _staleness_seconds(self) -> float:
        return self._parts.readiness.staleness_seconds

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        return self._parts.alarms.active

    def status(self) -> Status:
        self._attached()
        parts = self._parts
        return status_of(
            parts.opened,
            parts.driver.engine,
            certificate=parts.certificate.status(),
            backup=parts.backup_status(),
            alarms=self.alarms,
            failure=self.failure,
            is_stuck=self._life.is_stuck,
            uptime_seconds=time.monotonic() - self._opened_at,
            foreign_read=parts.foreign_readers.oldest,
        )

    def _meters(self) -> Meters:
        """For metrics/."""
        from warren_raft.manager.meters import meters_of

        try:
            status = self.status()
        except Closed:
            status = None
        return meters_of(self._parts, self._reads, status, self._started_at)

    def reload_certificate(self) -> None:
        self._parts.certificate.wanted = True

    # Writing -----------------------------------------------------------------------------------------------------

    def _execute(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        return self._parts.calls.run(operations, timeout, request_key, fence)

    def _start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        return self._parts.calls.start(operations, timeout, request_key, fence)

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Begun[int]:
        return self._parts.calls.begin(operations, timeout, landing, request_key, fence)

    def _begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]:
        return self._parts.calls.begin_barrier(timeout, landing)

    @property
    def _default_timeout_seconds(self) -> float:
        return self.config.write_timeout_seconds

    def barrier(self, timeout: float | None = None) -> int:
        return self._parts.calls.barrier(timeout)

    # Heartbeats --------------------------------------------------------------------------------------------------

    def _take_beat(self, node_id: str, ttl_seconds: float) -> None:
        self._parts.heartbeats.beat(node_id, ttl_seconds)

    def _age_of_beat(self, node_id: str) -> float | None:
        return self._parts.heartbeats.age(node_id)

    # Members -----------------------------------------------------------------------------------------------------

    def members(self) -> tuple[MemberStatus, ...]:
        self._attached()
        parts = self._parts
        return members_of(parts.driver.engine, parts.opened.machine, self.config.node_id, self.alarms)

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        self._parts.membership.add(id, address, timeout)

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        return self._parts.membership.update(id, address, timeout)

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        self._parts.membership.remove(id, timeout)

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        return self._parts.membership.transfer(id, timeout)

    # Snapshots, and the end --------------------------------------------------------------------------------------

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
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
