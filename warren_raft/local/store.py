"""LocalStore: a store in one process, without Raft.

Not here: the effect of a command (fsm/), writes that share a sync (group_commit.py), reads (store/reading.py), a reader
beside another process (read_only.py). Invariant: a write that was acknowledged is on disk.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from warren_raft.alarms import Alarm, Alarms
from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.paths import absolute
from warren_raft.errors import (
    Closed,
    Corrupted,
    InUse,
    InvariantViolation,
    RefusedForSafety,
    StorageFull,
    Unavailable,
    WarrenError,
)
from warren_raft.fsm.answers import Result, raise_for
from warren_raft.fsm.machine import StateMachine
from warren_raft.leadership.callbacks import Callback, Leadership
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.local.group_commit import GroupCommit, Outcome
from warren_raft.local.heartbeats import LocalHeartbeats
from warren_raft.local.status import LEADING_TERM, LOCAL_ID, members_of, status_of
from warren_raft.results import MemberStatus, Status
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.snapshots.verification import prove_state
from warren_raft.store import levels
from warren_raft.store.command import (
    NO_FENCE,
    NO_SESSION,
    PUT,
    Operation,
    encode_body,
    with_request_id,
)
from warren_raft.store.counts import WriteCounts
from warren_raft.store.database import QUOTA_BYTES, Database, StorageFailed
from warren_raft.store.fence import Fence
from warren_raft.store.foreign_readers import RENEW_AGAIN_SECONDS, ForeignReaders
from warren_raft.store.generations import StateDirectory
from warren_raft.store.ownership import LOCK_FILE_REMOVED, Anchors, DirectoryLock
from warren_raft.store.request_memory import RequestMemory
from warren_raft.store_interface import Store
from warren_raft.support import forking, timeouts
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.handover import Begun, Landing, Passed
from warren_raft.support.log_lines import log_event
from warren_raft.support.own_thread import OwnThread
from warren_raft.support.process_end import close_at_exit
from warren_raft.support.waiting import Bell, Wait
from warren_raft.watching.hub import Hub

if TYPE_CHECKING:
    from warren_raft.metrics.meters import Meters

logger = logging.getLogger("warren_raft.local.store")

T = TypeVar("T")

FREE_BYTES_RESERVE: Final = 16 * 1024 * 1024
"""With fewer free bytes on the disk, creates and updates are refused: deletes need space too."""

JOIN_SECONDS: Final = 1.0
"""How long a closing store waits for callbacks of futures, and for the end of its thread."""

MEASURE_EVERY_BYTES: Final = 64 * 1024 * 1024
"""How much is written between two measurements of the state (20 µs each). The limit of the state is gigabytes."""

ALONE: Final = "a LocalStore is one process without a cluster: open the directory of a manager with ReplicatedStore"

LOOK_SECONDS: Final = 1.0
"""How often a store that writes checks whether its directory is still in its place."""


class LocalStore(Store):
    """A store in one process, without Raft: the same operations with the same meaning. Thread-safe.

    A write returns when it is on disk. Writes of several threads, and batches with `wait=False`, share one sync.
    `data_dir` is a directory; it is made, with mode 0700, if it does not exist. `path` is its old name.
    `request_memory_seconds`: see Config.

    Raises, at construction:
        InUse: this or another process has the directory open.
        RefusedForSafety: a manager's directory; a directory that holds only other files; another user's files; files
            that every user of the host may read or write; a network file system; a newer format.
        FileNotFoundError: `data_dir` is empty.
        Corrupted: the files are damaged.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        write_timeout_seconds: float = 10.0,
        request_memory_seconds: float = 3600.0,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if path is not None:
            warnings.warn("the directory of a LocalStore is data_dir, not path", DeprecationWarning, stacklevel=2)
        directory = data_dir if data_dir is not None else path
        if directory is None or (data_dir is not None and path is not None):
            raise TypeError("LocalStore() takes one directory: data_dir")
        self._directory: Final = absolute(directory)
        self._write_timeout_seconds: Final = timeouts.seconds(write_timeout_seconds, math.inf)
        self._request_memory: Final = RequestMemory(
            timeouts.seconds(request_memory_seconds, math.inf), lambda: self._machine.applied_index
        )
        self._look_at = self._renew_at = 0.0
        self._alarms: Final = Alarms(LOCAL_ID)
        self._foreign_readers: Final = ForeignReaders(self._alarms)
        self._failure: WarrenError | None = None
        self._close_error: BaseException | None = None
        self._why_closed: tuple[str, ...] = ()
        self._ended = False
        """Whether closing is over."""
        self._is_closing = False
        self._term = LEADING_TERM
        """warren_raft.testing makes it larger, so that leads are over."""
        self._closers: Final[dict[threading.Thread, None]] = {}
        """The threads that wait for the end."""
        self._changed = Bell()
        self._deliveries = Deliveries("warren-local-futures")
        self._writes: Final = WriteCounts()
        self._started_at: Final = time.time()
        self._opened_at: Final = time.monotonic()
        self._own = OwnThread("warren-local", self._between)
        self._commits: Final = GroupCommit(self._commit, self._own, self._deliveries, lambda: self._term)
        self._hub: Final = Hub(self._attached, lambda: self._failure, ring_by=self._ring_by)
        self._ring: Callable[[], None] | None = None
        """To be called after each change: there are watches."""
        self._leadership: Final = Leadership(_Standing(self), self._own)
        self._heartbeats: Final = LocalHeartbeats(
            self.list_nodes, lambda: self._machine.leases, self._wake, self._write_now
        )
        self._lock: DirectoryLock
        self._anchors: Anchors
        self._machine: StateMachine
        self._room: _Room
        try:
            self._own.start()
            self._own.call(partial(self._open, self._directory))
        except BaseException:
            self._own.post(self._close_now)  # if only this thread was interrupted, opening goes on until then
            raise

    def _open(self, path: str) -> None:
        with ExitStack() as held:
            RESERVE.open()
            held.callback(RESERVE.close)
            self._lock = DirectoryLock(path)
            held.callback(self._lock.release)
            self._anchors = held.enter_context(closing(Anchors()))
            database = Database.open(StateDirectory(path, anchors=self._anchors), sync=True, prove=prove_state)
            held.callback(database.close)
            self._machine = StateMachine(database)
            _refuse_replica(self._machine, path)
            held.pop_all()
        self._room = _Room(database)
        self._database = database
        forking.call_in_child(self, LocalStore._end_in_child)
        close_at_exit(self)

    def _leader_contact_age_seconds(self) -> float:
        return 0.0

    def _feeds(self) -> Hub:
        return self._hub

    def _ring_by(self, ring: Callable[[], None] | None) -> None:
        self._ring = ring

    def barrier(self, timeout: float | None = None) -> int:
        """As of a manager: returns at once, because every write that was acknowledged can be read here. If writes are
        under way, it returns when they are done, and so are those that this thread has started (`batch(wait=False)`).

        `timeout` in seconds, None: that of a write. Returns the revision. Raises Unavailable, Closed.
        """
        timeouts.checked(timeout)
        if self._commits.is_idle:
            self._attached()
            return self._machine.revision
        try:
            return self._execute((), timeout)
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=False, of_write=False) from None

    def _begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]:
        timeouts.checked(timeout)
        if not self._commits.is_idle:
            return self._begin((), timeout, landing)
        self._attached()
        landing.release()
        return Passed(self._machine.revision)

    def _until_ready(self, timeout: float | None) -> Wait[bool]:
        return self._open_already(True, timeout)

    def _until_leader(self, timeout: float | None) -> Wait[str]:
        return self._open_already(LOCAL_ID, timeout)

    def _open_already(self, value: T, timeout: float | None) -> Wait[T]:
        """A wait that ends at once. It raises Closed."""

        def looked() -> T:
            self._require_open()
            return value

        return Wait(self._changed, looked, timeouts.deadline(timeout), Closed)

    # As of a manager -----------------------------------------------------------------------------------------------

    def wait_failed(self, timeout: float | None = None) -> bool:
        """Wait until this store has stopped by itself: True, and `failure` says why. False at the timeout or at
        `close`. `timeout` in seconds, None: for ever."""
        self._changed.wait_for(lambda: self._failure is not None or self._has_ended, timeouts.deadline(timeout))
        return self._failure is not None

    @property
    def failure(self) -> WarrenError | None:
        """Why this store writes nothing any more, such as a disk that fails; None if it has not failed. Reads go on,
        and each write raises this error."""
        return self._failure

    @property
    def is_ready(self) -> bool:
        """Whether the store is open and has not failed."""
        return self._leads

    @property
    def waiting_for(self) -> str:
        """Always empty: there are no members to wait for."""
        return ""

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The conditions that need an operator and last now: `reader-holds-pages`, which is looked for while the store
        writes, and `manager-failed`, for a store that has failed (docs/alarms.md)."""
        return self._alarms.active

    def status(self) -> Status:
        """The status of a manager, for this store: the id is "local", and there are no log and no snapshots of its own.
        Raises Closed."""
        self._attached()
        pending, alarms = self._commits.waiting, self._alarms.active
        return status_of(
            self._machine,
            self._term,
            pending_writes=pending,
            alarms=alarms,
            failure=self._failure,
            uptime_seconds=time.monotonic() - self._opened_at,
            foreign_read=self._foreign_readers.oldest,
        )

    def reload_certificate(self) -> None:
        """Does nothing: this store has no links, and so no certificate."""

    def members(self) -> tuple[MemberStatus, ...]:
        """This store alone, with the id "local" and without an address. Raises Closed."""
        self._attached()
        return members_of(self._machine, self._failure)

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Raises RefusedForSafety: this store has no cluster."""
        self._refuse(timeout)

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Raises RefusedForSafety: this store has no cluster."""
        self._refuse(timeout)

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Raises RefusedForSafety for this store itself ("local"). Removing another id does nothing, as on a
        manager."""
        if id == LOCAL_ID:
            self._refuse(timeout)
        self._require_call(timeout)

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Returns "local" if this id is asked for, because it leads. Raises RefusedForSafety otherwise: there is no
        other member."""
        if id != LOCAL_ID:
            self._refuse(timeout)
        self._require_call(timeout)
        return LOCAL_ID

    def _refuse(self, timeout: float | None) -> NoReturn:
        self._require_call(timeout)
        raise RefusedForSafety(ALONE)

    def _require_call(self, timeout: float | None) -> None:
        timeouts.checked(timeout)
        self._require_open()

    # Leadership --------------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """True while the store is open and has not failed: it leads, in term 1."""
        return self._leads

    @property
    def leader(self) -> str | None:
        """ "local" while the store is open and has not failed."""
        return LOCAL_ID if self._leads else None

    def on_leadership(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(True, 1)` once, and `callback(False, 1)` when the store closes, in a thread of its own. See
        `ReplicatedStore.on_leadership`."""
        self._require_open()
        return self._leadership.subscribe(callback)

    def leading(self, timeout: float | None = None) -> Leading:
        """`with store.leading() as lead` begins at once: this store leads until it closes. See
        `ReplicatedStore.leading`."""
        return self._leadership.leading(self, timeout)

    def run_while_leading(self, function: Callable[[Lead], object]) -> Callable[[], None]:
        """Call `function(lead)` once, in a thread of its own; `lead` is over when the store closes. See
        `ReplicatedStore.run_while_leading`."""
        self._require_open()
        return self._leadership.run_while_leading(self, function)

    @property
    def _has_ended(self) -> bool:
        return self._is_closing or self._ended

    @property
    def _leads(self) -> bool:
        return not self._has_ended and self._failure is None

    def _require_open(self) -> None:
        """Raises Closed, and the failure of a store that has failed."""
        if self._has_ended or self._attached().is_parents:
            raise Closed(*self._why_closed)
        self._require_sound()

    def _require_sound(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # otherwise the error would collect a traceback for each call

    # Writing -----------------------------------------------------------------------------------------------------

    @property
    def _default_timeout_seconds(self) -> float:
        return self._write_timeout_seconds

    def _execute(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        """Nobody else ever leads, so of the fence only the end of the lead counts."""
        seconds = timeouts.seconds(timeout, self._write_timeout_seconds)
        command = self._command(operations, request_key)
        return self._commits.run(command, seconds, self._writes.of(operations), fence)

    def _start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        seconds = timeouts.seconds(timeout, self._write_timeout_seconds)
        command = self._command(operations, request_key)
        return self._commits.start(command, seconds, self._writes.of(operations), fence)

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Begun[int]:
        seconds = timeouts.seconds(timeout, self._write_timeout_seconds)
        command = self._command(operations, request_key)
        return self._commits.begin(command, seconds, landing, self._writes.of(operations), fence)

    def _command(self, operations: tuple[Operation, ...], request_key: str) -> bytes:
        """The command of these operations. Raises the errors that a store has before it sends anything."""
        if self._attached().is_parents:
            raise Closed(forking.PARENTS)
        self._require_sound()
        if any(operation.verb == PUT for operation in operations):
            self._require_room(operations)
        forget_below = self._request_memory.forget_below() if request_key else 0
        return with_request_id(NO_SESSION, 0, 0, encode_body(operations, NO_FENCE, request_key, forget_below))

    def _require_room(self, operations: tuple[Operation, ...]) -> None:
        try:
            self._room.require()
        except StorageFull:
            self._writes.of(operations).failed(StorageFull.__name__)
            raise

    def _commit(self, requests: Sequence[bytes]) -> Sequence[Outcome]:
        """Apply the requests of a group as one entry: one transaction, one sync."""
        self._room.note_written(sum(map(len, requests)))
        outcomes = self._tried(requests)
        if len(requests) > 1 and isinstance(outcomes[0], StorageFull):
            # A request that is too large for the disk must not fail the requests beside it, least of all deletes.
            outcomes = [self._tried([request])[0] for request in requests]
        return outcomes

    def _tried(self, requests: Sequence[bytes]) -> Sequence[Outcome]:
        if self._failure is not None:
            return [self._failure] * len(requests)
        try:
            return self._applied(requests)
        except (StorageFull, StorageFailed, Corrupted, InUse, InvariantViolation) as error:
            _drop_tracebacks(error)
            if not isinstance(error, StorageFull):
                self._failure = error  # the file, or this program, cannot be relied on: no further write
                self._alarms.stopped(str(error))
                self._changed.ring()
            return [error] * len(requests)

    def _applied(self, requests: Sequence[bytes]) -> Sequence[Outcome]:
        self._look()
        machine = self._machine
        machine.settle()
        # Nobody else has to read the commands of this store, so it uses all of them from its first write on.
        results = machine.apply(machine.applied_index + 1, 0, requests, levels.NEWEST)
        ring = self._ring
        if ring is not None:
            ring()
        machine.database.require_file()
        return [_outcome(result) for result in results]

    def _look(self) -> None:
        """Check that this is still the directory that was opened, every LOOK_SECONDS. Raises Corrupted, InUse."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        self._anchors.require()
        self._machine.database.reader_check()
        self._machine.database.end_old_reads()
        if self._foreign_readers.look(self._machine.database) and now >= self._renew_at:
            self._renew_at = now + RENEW_AGAIN_SECONDS
            self._renew()
        try:
            if self._lock.restore_file():
                log_event(logger, logging.WARNING, "lock file removed", LOCK_FILE_REMOVED, path=self._lock.path)
        except OSError as error:  # the lock of the directory itself still holds
            log_event(logger, logging.WARNING, "removed lock file not made again", error, path=self._lock.path)

    def _renew(self) -> None:
        """Continue in a copy, because a process keeps pages of this file, which would grow by every change from now on.
        That process reads on in the old file, which gets no name and takes no further space."""
        before = self._machine.database
        try:
            database = before.renewed()
        except (StorageFull, OSError) as error:
            log_event(logger, logging.WARNING, "state not copied", f"it grows: {error}", path=before.path)
            return
        database.commits.take_over(before.commits)
        self._machine = StateMachine(database)
        self._room = _Room(database)
        self._database = database
        log_event(logger, logging.WARNING, "state copied", "another process reads the old file", path=database.path)
        before.close()
        before.remove()

    # Heartbeats --------------------------------------------------------------------------------------------------

    def _take_beat(self, node_id: str, ttl_seconds: float) -> None:
        self._heartbeats.take(node_id, ttl_seconds)

    def _age_of_beat(self, node_id: str) -> float | None:
        self._attached()
        return self._heartbeats.age(node_id)

    def _between(self) -> float | None:
        """In the own thread, between its jobs. Returns the seconds until the next call; None: after the next job."""
        waits = [self._deliveries.look(), None if self._database is None else self._heartbeats.look()]
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _wake(self) -> None:
        self._own.post(lambda: None)

    def _write_now(self, *operations: Operation) -> int:
        """In the own thread, which commits. Raises what a write raises."""
        (outcome,) = self._commit([self._command(operations, "")])
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)
        return outcome

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """Save the present state as one file (mode 0600), verified and on disk. Returns its manifest.

        Other threads read and write meanwhile. Raises RefusedForSafety (a file of that name exists), StorageFull,
        OSError, SnapshotInvalid (the state is damaged). In these cases no file is left.
        """
        from warren_raft.snapshots.saving import save

        database = self._attached()
        return save(database, path, created_at=datetime.now(UTC), node_id="", quorum=True)

    def _meters(self) -> Meters:
        """For metrics/."""
        from warren_raft.metrics.meters import Meters, state_meters

        database, machine = self._database, self._machine
        try:
            state = None if database is None else state_meters(machine.database, machine.tally)
        except Closed:
            state = None
        return Meters(
            started_at=self._started_at,
            reads=self._reads,
            state=state,
            writes=self._writes,
            commits=machine.database.commits,
            watches=self._hub.open_count,
            watches_lost=self._hub.lost_count,
            alarms=self._alarms.active,
        )

    def __repr__(self) -> str:
        """For logs and debuggers. Any state, any thread; never raises."""
        return f"<LocalStore {self._directory!r}, {'closed' if self._ended else 'open'}>"

    def close(self) -> None:
        """Wait for the running writes, then close the files. Idempotent; afterwards every call raises Closed.

        Call it from any thread, in signal handlers, in callbacks and in `atexit`. A thread of the store's own closes
        the store, so an exception that arrives here ends only the waiting.
        """
        if self._ended:
            return
        thread = threading.current_thread()
        self._closers[thread] = None
        try:
            self._own.post(self._close_now)
            self._commits.refuse()
            self._changed.wait_for(lambda: self._ended, math.inf)
        finally:
            self._closers.pop(thread, None)
        self._own.join(JOIN_SECONDS)
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def _close_now(self) -> None:
        """Close the store, in this store's own thread."""
        if self._ended:
            return
        try:
            self._is_closing = True
            self._changed.ring()
            self._commits.close()
            self._hub.close(JOIN_SECONDS)
            self._deliveries.finish(JOIN_SECONDS)
            self._leadership.join(JOIN_SECONDS, but=self._closers)
            database, self._database = self._database, None
            if database is not None:
                self._close_files(database)
        except BaseException as error:  # noqa: BLE001  for the caller of close()
            self._close_error = error
        finally:
            self._ended = True
            self._alarms.end()
            self._changed.ring()
            self._own.stop()

    def _close_files(self, database: Database) -> None:
        try:
            self._anchors.require()
            database.close_sealed()
        except Corrupted as error:
            log_event(logger, logging.CRITICAL, "state not closed", error)
            database.abandon()  # another directory may have its place now, which must not be changed
        finally:
            self._anchors.close()
            self._lock.release()
            RESERVE.close()

    def _end_in_child(self) -> None:
        self._ended = True
        self._why_closed = (forking.PARENTS,)


class _Standing:
    """The leadership of a LocalStore: it leads in term 1 until it closes or fails. For any thread."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.bell: Final = store._changed

    def leading_term(self) -> int | None:
        return self._store._term if self._store._leads else None

    def term(self) -> int:
        return self._store._term

    def is_over(self) -> bool:
        return not self._store._leads

    def require(self) -> None:
        self._store._require_open()


def _refuse_replica(machine: StateMachine, path: str) -> None:
    """A manager's state must change only by its log: a write of this store would make it diverge from the others."""
    if machine.cluster_id is not None or machine.applied_term != 0:
        raise RefusedForSafety(f"{path} is a manager's directory: open it with ReplicatedStore, or ReadOnlyStore")


def _drop_tracebacks(error: BaseException) -> None:
    """Tracebacks hold the transaction, which holds the files: the directory could not be opened again while one is
    kept."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _outcome(result: Result) -> Outcome:
    try:
        return raise_for(result)
    except WarrenError as error:
        return error


class _Room:
    """Whether there is enough space for creates and updates: on the disk, and below the quota of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._directory = os.path.dirname(database.path)
        self._unmeasured_bytes = MEASURE_EVERY_BYTES
        self._is_over_quota = False

    def note_written(self, size_bytes: int) -> None:
        self._unmeasured_bytes += size_bytes

    def require(self) -> None:
        """Raises StorageFull. The condition clears by itself: while there is too little space, every call measures
        again."""
        if self._is_over_quota or self._unmeasured_bytes >= MEASURE_EVERY_BYTES:
            self._unmeasured_bytes = 0
            with self._database.read() as transaction:
                self._is_over_quota = transaction.used_bytes(history=False) > QUOTA_BYTES
        if self._is_over_quota:
            raise StorageFull(f"{self._database.path} has reached its limit of {QUOTA_BYTES} bytes")
        if self._database.free_bytes() < FREE_BYTES_RESERVE:
            raise StorageFull(f"{self._directory}: less than {FREE_BYTES_RESERVE} bytes are free on this disk")
