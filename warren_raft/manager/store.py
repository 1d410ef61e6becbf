"""ReplicatedStore: one manager of a cluster. It connects store, state machine, consensus and the admin socket.

Lives here: turning a write into a replicated command, waiting for its result, members and leadership, closing cleanly.
Not here: opening a data directory (data_dir/opening.py), the effect of a command (fsm/), agreement on it (raft/).
Invariant: a write that returned is committed by a majority and applied to this manager's database.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from random import SystemRandom
from typing import Any, ClassVar, Final, Literal, TypeVar, overload

from warren_raft.alarms import Alarm, Alarms
from warren_raft.certificates.own import OwnCertificate
from warren_raft.config import (
    Config,
    check_address,
    check_node_id,
    split_address,
)
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.descriptors import RESERVE, limit
from warren_raft.disk.durable import make_directory
from warren_raft.disk.files import Files
from warren_raft.disk.shortage import shortage_of
from warren_raft.errors import (
    Closed,
    RefusedForSafety,
    StorageFull,
    Unavailable,
    WarrenError,
)
from warren_raft.fsm.machine import StateMachine
from warren_raft.manager.disk_space import Space
from warren_raft.manager.leadership import Callback, Leadership, Subscription
from warren_raft.manager.session import QUEUE_FULL, Write, Writes
from warren_raft.manager.status import members_of, status_of
from warren_raft.manager.watchdog import Watchdog
from warren_raft.raft.changes import Answer
from warren_raft.raft.driver import Driver
from warren_raft.raft.engine import Engine
from warren_raft.raft.links.addresses import try_to_bind
from warren_raft.raft.membership import ADD, REMOVE, UPDATE
from warren_raft.raft.messages import DONE, PENDING, REFUSED
from warren_raft.raft.refusals import Removed
from warren_raft.raft.reports import Report
from warren_raft.raft.requests import NO_LEADER, ChangeWanted, TransferWanted
from warren_raft.results import MemberStatus, Status
from warren_raft.snapshots.backups import Backups, Position
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.snapshots.saving import save, take_nameless
from warren_raft.store.command import PUT, Operation, encode_operations
from warren_raft.store.foreign_readers import RENEW_AGAIN_SECONDS, ForeignReaders
from warren_raft.store.interface import Store
from warren_raft.support import forking, timeouts
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.log_lines import log_event
from warren_raft.support.own_thread import OwnThread
from warren_raft.support.process_end import close_at_exit
from warren_raft.support.waiting import Bell

logger = logging.getLogger("warren_raft.manager.store")

T = TypeVar("T")

GRACE_SECONDS: Final = 1.0
"""The raft thread ends a write at its deadline. A caller waits this much longer before it gives up on that thread."""
ASK_AGAIN_SECONDS: Final = 0.1
"""The time between two questions to the leader about the same change of members, unless something changes earlier."""
MOVED_SECONDS: Final = 2.0
"""How long a member with a new address may take to answer there, before the result says that it does not answer."""
HANGS_SECONDS: Final = 30.0
"""A thread for which a closing manager has waited this long may be in a system call that never returns."""
HAND_OVER_SECONDS: Final = 2.0
"""How long a closing leader waits for another manager to take over."""
NOTE_READY_SECONDS: Final = 0.05
"""How often a starting manager checks whether it became ready. A manager that is killed soon after its start has not
failed to start. Counting it as a failed start twice would cost the next start a proof of the whole state."""


class _SwitchInterval:
    """`sys.setswitchinterval` while any store is open. With Python's 5 ms, a busy thread of the embedding process turns
    a round of 0.3 ms into 15 ms. The last store to close restores the old value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: set[object] = set()
        self._before = 0.0

    def acquire(self, store: object, seconds: float) -> None:
        with self._lock:
            if not self._stores:
                self._before = sys.getswitchinterval()
            self._stores.add(store)
            sys.setswitchinterval(seconds)

    def release(self, store: object) -> None:
        """Does nothing for a store that does not hold it."""
        with self._lock:
            if store in self._stores:
                self._stores.remove(store)
                if not self._stores:
                    sys.setswitchinterval(self._before)


_switch_interval = _SwitchInterval()


class ReplicatedStore(Store):
    """One manager: reads are local, writes are committed by a majority. Usable from any number of threads.

    Opening raises InUse (directory or port), RefusedForSafety (another node's directory, another user's, one that every
    user of the host may read or write, a network file system), Corrupted (with how to rejoin). After a fork, the store
    in the child is closed.

    `files`: all file operations of the log go through this object, for tests and for disks that need special care
    (disk/files.py has its contract). None: the files of the operating system.
    """

    _open_stores: ClassVar[weakref.WeakSet[ReplicatedStore]] = weakref.WeakSet()

    def __init__(self, config: Config, *, files: Files | None = None) -> None:
        super().__init__()
        self.config: Final = config
        self._closed = False
        """No further call is accepted. Set when closing begins."""
        self._why_closed: tuple[str, ...] = ()
        self._ended = False
        """Whether closing is over."""
        self.failure: WarrenError | None = None
        """Why this manager stopped by itself; None if it has not. Reads go on, writes raise Closed."""
        self._close_error: BaseException | None = None
        self._closers: dict[threading.Thread, None] = {}
        self._changed = Bell()
        self._deliveries = Deliveries(f"warren-raft-futures {config.node_id}")
        self._writes = Writes(config.node_id, config.queue_limit, self._deliveries)
        self._stop_housekeeping = threading.Event()
        self._alarms = Alarms(config.node_id)
        self._certificate = OwnCertificate(config, self._alarms)
        self._foreign_readers = ForeignReaders(self._alarms)
        self._renew_at = 0.0
        self._space = Space(
            str(config.directory),
            reserve_bytes=config.disk_reserve_bytes,
            quota_bytes=config.quota_bytes,
            alarms=self._alarms,
        )
        self._opened: OpenedDirectory
        self._driver: Driver
        self._watchdog: Watchdog | None = None
        self._admin: Any = None
        self._backups: threading.Thread | None = None
        self._housekeeper: threading.Thread | None = None
        self._is_noted = False
        """Whether it is on disk that this start got ready. This and the next two are the housekeeper's."""
        self._written_back = -1
        """The applied index at the last checkpoint."""
        self._write_back_at = time.monotonic() + config.checkpoint_interval_seconds
        self._own = OwnThread(f"warren-raft-own {config.node_id}", self._look_after)
        self._leadership = Leadership(
            self._changed,
            leading_term=lambda: self._engine.term if self.is_leader else None,
            term=lambda: self._engine.term,
            is_over=lambda: not self._is_alive,
            post=self._own.post,
        )
        try:
            self._own.start()
            self._own.call(partial(self._open, files))
        except BaseException:
            self._own.post(self._close_now)  # if only this thread was interrupted, opening goes on until then
            raise

    def _open(self, files: Files | None) -> None:
        config = self.config
        self._version = version("warren-raft")
        with ExitStack() as undo:
            RESERVE.open()
            undo.callback(RESERVE.close)
            listen = split_address(config.listen, field="listen")
            self._opened = opened = OpenedDirectory(
                config,
                files=files,
                random=SystemRandom(),
                alarms=self._alarms,
                certificate=self._certificate,
                before_making=partial(try_to_bind, *listen),  # the directory would keep the id of this start
            )
            opened.keeper.on_swap = self._swapped
            undo.callback(opened.abandon)
            self._database = opened.database
            credentials = self._certificate.credentials
            identity = None if credentials is None else credentials.identity
            self._driver = Driver(
                listen=listen,
                node_id=config.node_id,
                log=opened.log,
                credentials=credentials,
                writes=self._writes,
                make_engine=partial(opened.make_engine, identity=identity),
                on_change=self._changed.ring,
                on_failure=self._on_failure,
            )
            undo.callback(self._stop_threads)
            self._start(self._driver)
            undo.pop_all()
        ReplicatedStore._open_stores.add(self)
        close_at_exit(self)

    def _start(self, driver: Driver) -> None:
        config = self.config
        self._measure()
        if config.switch_interval_seconds is not None:
            _switch_interval.acquire(self, config.switch_interval_seconds)
        self._say_starting()
        driver.start()
        self._remember()
        self._admin = self._start_admin()
        self._housekeeper = threading.Thread(target=self._keep_house, name="warren-raft-housekeeping", daemon=True)
        self._housekeeper.start()
        self._backups = self._start_backups()
        self._watchdog = Watchdog(
            config.node_id,
            driver.thread,
            lambda: (driver.steps, self._opened.machine.applied_index),
            self._alarms,
            alarm_seconds=config.watchdog_alarm_seconds,
            stop_seconds=config.watchdog_stop_seconds,
        )

    def _say_starting(self) -> None:
        machine = self._opened.machine
        log_event(
            logger,
            logging.INFO,
            "manager starting",
            node=self.config.node_id,
            version=self._version,
            directory=self.config.directory,
            listen=self.config.listen,
            cluster=machine.cluster_id or "none",
            term=self._engine.term,
            last_index=self._opened.log.last_index,
            applied_index=machine.applied_index,
            links="plaintext" if self._certificate.credentials is None else "tls",
        )
        if self.config.insecure_plaintext:
            text = (
                f"everybody with access to {self.config.listen} can read everything and act as a member; give every "
                "manager a certificate (warren-raft cert issue) and start it without insecure_plaintext"
            )
            log_event(logger, logging.WARNING, "links are plaintext", text, node=self.config.node_id)

    def _start_admin(self) -> Any:
        if not self.config.admin:
            return None
        from warren_raft.admin.server import AdminServer

        server = AdminServer(self, self.config.directory)
        server.start()
        return server

    def _start_backups(self) -> threading.Thread | None:
        config = self.config
        if config.backup_dir is None:
            return None
        backups = Backups(
            config.backup_dir,
            every_seconds=config.backup_every_seconds,
            keep=config.backup_keep,
            position=self._backup_position,
            take=self.snapshot,
            alarms=self._alarms,
        )
        stop = (self._stop_housekeeping,)
        thread = threading.Thread(target=backups.run, args=stop, name="warren-raft-backups", daemon=True)
        thread.start()
        return thread

    @property
    def _engine(self) -> Engine:
        return self._driver.engine

    # Waiting for the cluster -------------------------------------------------------------------------------------

    def _wait_for(self, condition: Callable[[], T], timeout: float | None, what: str) -> T:
        def looked() -> T:
            self._check_alive()
            return condition()

        value = self._changed.wait_for(looked, timeouts.deadline(timeout))
        if not value:
            assert timeout is not None  # a wait without a limit ends only with its condition
            waits = f": {self.waiting_for}" if self.waiting_for else ""
            raise Unavailable(f"{what} within {round(timeout, 3):g} s{waits}", maybe_applied=False, of_write=False)
        return value

    def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Wait until a leader is known and the log is applied up to the commit index at this manager's start.

        `timeout` in seconds, None: for ever. Raises Unavailable, or Closed if the manager stopped.
        """
        self._wait_for(lambda: self._engine.is_ready, timeout, f"{self.config.node_id} did not get ready")

    def wait_leader(self, timeout: float | None = 10.0) -> str:
        """The id of the leader, as soon as one is known here. Raises Unavailable, Closed."""
        leader = self._wait_for(lambda: self.leader, timeout, "no leader was elected")
        assert leader is not None  # and not ""
        return leader

    def wait_failed(self, timeout: float | None = None) -> bool:
        """Wait until this manager has stopped by itself: True, and `failure` says why. False at the timeout or at
        `close`."""
        self._changed.wait_for(lambda: not self._is_alive, timeouts.deadline(timeout))
        return self.failure is not None

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready and self._is_alive and not self._is_stuck

    @property
    def waiting_for(self) -> str:
        """Before the cluster has formed: the members for which this manager waits, as a sentence; else empty."""
        return self._engine.waits

    @property
    def waits(self) -> str:
        """The old name of `waiting_for`."""
        warnings.warn("ReplicatedStore.waits is waiting_for now", DeprecationWarning, stacklevel=2)
        return self.waiting_for

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and its state holds every acknowledged write. It may be deposed meanwhile."""
        return self._engine.is_leader and self._is_alive and not self._is_stuck

    @property
    def leader(self) -> str | None:
        """The id of the leader as far as this manager knows; None if it has heard from no leader for a while."""
        return self._engine.leader if self._is_alive and not self._is_stuck else None

    def on_leadership(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(is_leader, term)` with the present state, and then at each change, in order.

        Each callback has a thread of its own. It should return at once, because it gets the next change only after it
        has returned. It may use the store in any way, and close it too. Its exceptions are logged.

        Returns a function that ends the calls: no call begins after that. Raises Closed, and RefusedForSafety for more
        than 100 callbacks at a time.
        """
        if self._closed:
            raise Closed
        subscription = Subscription(callback)
        try:
            self._own.call(partial(self._leadership.start, subscription))
        except BaseException:
            self._leadership.stop(subscription)
            raise
        return partial(self._leadership.stop, subscription)

    def _leader_contact_age_seconds(self) -> float:
        return self._engine.leader_contact_age(time.monotonic())

    # Writing -----------------------------------------------------------------------------------------------------

    @property
    def _is_alive(self) -> bool:
        return not self._closed and self.failure is None

    @property
    def _is_stuck(self) -> bool:
        return self._watchdog is not None and self._watchdog.is_stuck

    def _check_alive(self) -> None:
        if self._closed:
            raise Closed(*self._why_closed)
        if self.failure is not None:
            raise Closed(f"this manager stopped: {self.failure}")

    @overload
    def _execute(self, operations: tuple[Operation, ...], timeout: float | None, wait: Literal[True]) -> int: ...
    @overload
    def _execute(
        self, operations: tuple[Operation, ...], timeout: float | None, wait: Literal[False]
    ) -> Future[int]: ...
    def _execute(self, operations: tuple[Operation, ...], timeout: float | None, wait: bool) -> int | Future[int]:
        deadline = self._deadline(timeout)
        self._check_alive()
        needs_room = PUT in [operation.verb for operation in operations]
        if needs_room and self._engine.is_full:
            raise StorageFull(self._why_full())
        data = encode_operations(operations)
        thread = threading.get_ident()
        write = Write(0, 0, data, deadline, self._writes.done, needs_room=needs_room, thread=thread)
        return self._sent_and_waited_for(write) if wait else self._sent(write)

    def _why_full(self) -> str:
        who = self._engine.low_members
        own = self._space.shortages if self.config.node_id in who else ()
        shortage = self._engine.shortage
        if shortage is not None and not shortage.is_space:
            own = (*own, f"{self.config.node_id}: {shortage.what}; {shortage.remedy}")
        others = [id_ for id_ in who if not own or id_ != self.config.node_id]
        told = [*own]
        if others:
            told.append(f"low on space: {', '.join(others)}, see {'its' if len(others) == 1 else 'their'} status")
        detail = "; ".join(told) or f"the leader {self._engine.leader} reports it"
        return f"too few managers have enough space for creates and updates; reads and deletes go on: {detail}"

    def _sent_and_waited_for(self, write: Write) -> int:
        write.prepare_wait()
        if not self._driver.submit(write):
            self._check_alive()
            raise Closed
        try:
            ended = write.wait(write.deadline + GRACE_SECONDS - time.monotonic())
        except BaseException:
            write.give_up()
            raise
        if not ended:
            raise Unavailable("the raft thread does not answer", maybe_applied=True)
        return write.result()

    def _sent(self, write: Write) -> Future[int]:
        write.future = Future()
        write.future.set_running_or_notify_cancel()
        if self._writes.is_full(len(write.data), self._driver.submitted):
            raise Unavailable(QUEUE_FULL, maybe_applied=False)
        if not self._driver.submit(write):
            self._check_alive()
            raise Closed
        return write.future

    def barrier(self, timeout: float | None = None) -> int:
        """An empty command: after it, every local read sees all writes that were acknowledged before (linearizable).

        Returns the revision. Raises Unavailable, Closed.
        """
        try:
            return self._execute((), timeout, True)
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=False, of_write=False) from None

    # Members -----------------------------------------------------------------------------------------------------

    def members(self) -> tuple[MemberStatus, ...]:
        """Each member of the cluster, as known to this manager, in the order of the ids. Raises Closed."""
        self._attached()
        return members_of(self._engine, self._opened.machine, self.config.node_id, self.alarms)

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Add a manager that runs on an empty directory. Returns when it has caught up and votes.

        Raises RefusedForSafety, Unavailable (it does not answer, or there is no quorum), InvalidEntity.
        """
        check_node_id(id, field="id")
        check_address(address, field="address")
        self._certificate.require_reach(id, address)
        self._change_members(ADD, id, address, timeout)

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Give a member another address. Returns an empty string if its manager answers there. Otherwise returns a
        sentence with its present place and the advice; the new address counts nevertheless, so that a stopped manager
        can be moved.

        Raises RefusedForSafety, Unavailable, InvalidEntity.
        """
        check_node_id(id, field="id")
        check_address(address, field="address")
        self._certificate.require_reach(id, address)
        return self._change_members(UPDATE, id, address, timeout)

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Remove a member; a leader hands leadership over first. Removing an id that is not a member does nothing.

        Returns when a majority of the remaining members has the removal on disk, so that no power cut takes it back.
        Until then the removed manager must go on running, because its vote may be needed; then it stops by itself.

        Raises RefusedForSafety if the quorum would be lost, Unavailable.
        """
        check_node_id(id, field="id")
        self._change_members(REMOVE, id, "", timeout)

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Let another voting member lead (None: the most caught-up one). Returns the id of the new leader.

        Raises RefusedForSafety if the id is not a connected voting member, Unavailable.
        """
        return self._transfer(id, self._deadline(timeout))

    def _transfer(self, id: str | None, deadline: float, *, is_closing: bool = False) -> str:  # noqa: A002
        before = self.wait_leader(max(0.0, deadline - time.monotonic()))

        def moved() -> bool:
            leader = self._engine.leader
            return leader == id if id is not None else leader not in (None, before)

        self._ask_until(lambda _answer: moved(), lambda answer: TransferWanted(id, answer, is_closing), deadline)
        return self._engine.leader or self.wait_leader(max(0.0, deadline - time.monotonic()))

    def _deadline(self, timeout: float | None) -> float:
        return timeouts.deadline(timeout, self.config.write_timeout_seconds)

    def _change_members(self, verb: str, member_id: str, address: str, timeout: float | None) -> str:
        """The leader's remark on a change that it made; mostly empty."""
        deadline = self._deadline(timeout)
        said = ""
        known = self._engine.members.get(member_id)
        incarnation = "" if known is None else known.incarnation
        patient_until = time.monotonic() + min(MOVED_SECONDS, (deadline - time.monotonic()) / 2)

        def is_so(answer: Answer | None) -> bool:
            nonlocal said
            if answer is None or answer.state != DONE:
                return False
            said = answer.text
            return not said or time.monotonic() >= patient_until

        def question(answer: Callable[[Answer], None]) -> ChangeWanted:
            return ChangeWanted(verb, member_id, address, answer, incarnation if verb == REMOVE else "")

        try:
            self._ask_until(is_so, question, deadline)
            # A leader that was replaced and does not know it yet may report a change as done that the newest list
            # lacks. A leader that is asked after a barrier has every change that was done before the barrier.
            self._pass_barrier(deadline)
            self._ask_until(is_so, question, deadline)
        except Closed:
            # A manager that removes itself has stopped by the time the removal is done.
            if not (verb == REMOVE and member_id == self.config.node_id and isinstance(self.failure, Removed)):
                raise
        return said

    def _pass_barrier(self, deadline: float) -> None:
        try:
            self.barrier(max(0.0, deadline - time.monotonic()))
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=True) from None

    def _ask_until(
        self,
        is_so: Callable[[Answer | None], bool],
        question: Callable[[Callable[[Answer], None]], ChangeWanted | TransferWanted],
        deadline: float,
    ) -> None:
        """Ask the leader repeatedly until the condition holds. Asking for a change again is harmless. Asking for a
        transfer that has already happened would start another transfer, so the condition is checked before each
        question."""
        said = NO_LEADER
        is_first, may_be_so = True, False
        answer: Answer | None = None
        while not is_so(answer):
            if not is_first and time.monotonic() >= deadline:
                raise Unavailable(said, maybe_applied=may_be_so)
            answer, is_first = self._ask(question, deadline), False
            may_be_so = may_be_so or answer is None or answer.state == PENDING
            if answer is not None:
                if answer.state == REFUSED:
                    raise RefusedForSafety(answer.text)
                said = answer.text or said
            if is_so(answer):
                return
            self._check_alive()
            again_at = min(deadline, time.monotonic() + ASK_AGAIN_SECONDS)
            self._changed.wait_for(partial(self._is_other, self._engine.view), again_at)

    def _is_other(self, view: object) -> bool:
        """Whether something has changed since that view, or this manager has ended."""
        return not self._is_alive or self._engine.view != view

    def _ask(
        self,
        question: Callable[[Callable[[Answer], None]], ChangeWanted | TransferWanted],
        deadline: float,
    ) -> Answer | None:
        self._check_alive()
        answers: list[Answer] = []

        def answered(answer: Answer) -> None:
            answers.append(answer)
            self._changed.ring()

        self._driver.post(question(answered))

        def is_answered() -> bool:
            if not answers:
                self._check_alive()  # after the end of the raft thread, no question is answered any more
            return bool(answers)

        self._changed.wait_for(is_answered, deadline)
        return answers[0] if answers else None

    # Snapshots ---------------------------------------------------------------------------------------------------

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """Save this manager's state as one file (mode 0600), verified and on disk. Returns its manifest.

        Needs no quorum; `quorum` of the result says whether there was one. On the leader, after `barrier()`, the file
        has every acknowledged write. Reads and writes go on meanwhile. Raises RefusedForSafety (a file of that name
        exists, or this manager has not been part of a cluster yet), StorageFull, OSError, SnapshotInvalid (the state is
        damaged), Closed. In these cases no file is left.
        """
        database = self._attached()
        if self._opened.machine.cluster_id is None:
            raise RefusedForSafety(
                f"{self.config.node_id} has not been part of a cluster yet, so there is nothing to save: use the data "
                "directory of a manager that is a member"
            )
        quorum = self._engine.has_quorum and self._is_alive
        return save(
            database,
            path,
            created_at=datetime.now(UTC),
            node_id=self.config.node_id,
            quorum=quorum,
            cancel=self._stop_housekeeping,
        )

    def nameless_snapshot(self) -> int:
        """Like `snapshot`, for the admin socket: the descriptor of a file without a name, which the caller closes."""
        directory = str(self.config.directory / "snapshots")
        make_directory(directory)
        with self._attached().read() as transaction:
            self._opened.keeper.require_room(transaction.used_bytes())
        return take_nameless(directory, self.snapshot)

    def _backup_position(self) -> Position | None:
        if not self.is_leader:
            return None
        committed = self._opened.machine.committed
        if committed.cluster_id is None:  # it leads, and the cluster forms with its first entries
            return None
        return Position(committed.cluster_id, committed.revision, committed.digest.hex())

    # Status ------------------------------------------------------------------------------------------------------

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The conditions that need an operator and last now, in the order in which they were raised; docs/alarms.md
        lists all names. For any thread, also after the end."""
        return self._alarms.active

    def status(self) -> Status:
        """This manager and its cluster now; `to_json()` has the form of `warren-raft status -o json`. Raises Closed."""
        self._attached()
        return status_of(
            self._opened,
            self._engine,
            certificate=self._certificate.status(),
            alarms=self.alarms,
            failure=self.failure,
            is_stuck=self._is_stuck,
        )

    def reload_certificate(self) -> None:
        """Look for a newer certificate now: in the join file, and in data_dir/tls. Returns at once.

        A manager does this by itself every second. After this call it also logs that there is no newer one, or why a
        new one cannot be used (the alarm `certificate-not-taken`). From any thread, and in signal handlers.
        """
        self._certificate.wanted = True

    def _swapped(self, machine: StateMachine) -> None:
        """In the raft thread, after the state was replaced. Reads that have begun go on in the old state."""
        self._database = machine.database

    # Threads of this object --------------------------------------------------------------------------------------

    def _on_failure(self, error: WarrenError) -> None:
        if self.failure is None:
            self.failure = error
        self._changed.ring()
        self._alarms.stopped(str(error))

    def _look_after(self) -> float | None:
        """Called again and again in this store's own thread: is the raft thread alive, does a callback block the
        others?"""
        watchdog = self._watchdog
        if watchdog is None:
            return self._deliveries.look()
        if not self._is_alive:
            return self._deliveries.look() or watchdog.look_seconds  # writes are being ended, and their futures told
        was_stuck = watchdog.is_stuck
        problem = watchdog.look()
        if problem is not None:
            self.failure = problem
            self._driver.end_writes(f"this manager stopped: {problem}")
            self._driver.request_stop()  # if it goes on some day, its links would make peers take it for alive
            watchdog.say(self._alarms.stopped, str(problem))
        if watchdog.is_stuck != was_stuck or problem is not None:
            self._changed.ring()
        return min(watchdog.look_seconds, self._deliveries.look() or watchdog.look_seconds)

    def _keep_house(self) -> None:
        """Housekeeping: measuring space, checkpoints of the state, stale reader slots, views that were left open. Each
        chore is tried even if another one failed."""
        pause = min(1.0, self.config.checkpoint_interval_seconds)
        chores = (
            self._look_at_descriptors,
            self._look_at_directory,
            self._look_at_certificate,
            self._note_ready,
            self._tidy,
            self._look_at_foreign_readers,
            self._measure,
            self._remember,
            self._write_back,
        )
        while not self._stop_housekeeping.wait(pause if self._is_noted else min(pause, NOTE_READY_SECONDS)):
            self._alarms.tick()
            for chore in chores:
                try:
                    chore()
                except Exception as error:  # noqa: BLE001 - the thread must go on checking the disk
                    if isinstance(error, WarrenError) and shortage_of(error) is None:
                        self._on_failure(error)
                        self._driver.end_writes(f"this manager stopped: {error}")
                        self._driver.stop()
                        return
                    self._house_neglected(error)

    def _look_at_directory(self) -> None:
        self._opened.look()

    def _tidy(self) -> None:
        self._opened.keeper.tidy()

    def _note_ready(self) -> None:
        if not self._is_noted and self._engine.is_ready:
            self._opened.state.forget_starts()
            self._is_noted = True

    def _write_back(self) -> None:
        """Sync the state and free readers, once in each checkpoint interval."""
        if time.monotonic() < self._write_back_at:
            return
        self._write_back_at = time.monotonic() + self.config.checkpoint_interval_seconds
        self._opened.database.reader_check()
        self._opened.database.end_old_reads()
        index = self._opened.machine.applied_index
        if index != self._written_back:
            self._opened.database.checkpoint()
            self._written_back = index

    def _house_neglected(self, error: Exception) -> None:
        """The error may last for days: log one traceback, and raise an alarm that ends when the error has not come
        again."""
        if not self._alarms.is_raised("housekeeping-failed"):
            node = self.config.node_id
            log_event(logger, logging.ERROR, "housekeeping failed", "it goes on", node=node, exc_info=error)
        text = (
            f"{self.config.node_id} cannot measure its disk, or write its state back: {type(error).__name__}: {error}"
        )
        lasts_seconds = 2 * max(1.0, self.config.checkpoint_interval_seconds)
        self._alarms.raise_alarm("housekeeping-failed", text, ends_after_seconds=lasts_seconds)

    def _look_at_descriptors(self) -> None:
        if RESERVE.refill():
            self._alarms.clear_alarm("descriptors-low")
            return
        text = (
            f"the program of {self.config.node_id} has used up its file descriptors (at most {limit()}): it can take "
            "no connections, and has a few in reserve for the log and for snapshots; find the leak "
            f"(as root: ls -l /proc/{os.getpid()}/fd), or raise the limit (ulimit -n, LimitNOFILE=)"
        )
        self._alarms.raise_alarm("descriptors-low", text)

    def _look_at_certificate(self) -> None:
        new = self._certificate.look()
        if new is not None:
            self._driver.set_credentials(new)

    def _look_at_foreign_readers(self) -> None:
        """A reader that never ends its view would let the state file grow for ever: then the state moves to another
        file."""
        now = time.monotonic()
        if self._foreign_readers.look(self._opened.database) and now >= self._renew_at:
            self._renew_at = now + RENEW_AGAIN_SECONDS
            self._engine.renewal_wanted = True

    def _remember(self) -> None:
        """Write how this manager was started, and the addresses of the others, for a start from its directory alone."""
        memory = self._opened.memory
        memory.keep(self._engine.addresses_to_keep(memory.said))

    def _measure(self) -> None:
        """Give the values to consensus, which sends them to the others. See raft/health.py for how often."""
        self._engine.low_space = self._space.look(self._opened.database)
        self._engine.measured = Report(
            version=self._version, disk_free_bytes=self._space.free_bytes, database_bytes=self._space.used_bytes
        )

    # The end -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """For logs and debuggers. Any state, any thread; never raises."""
        state = "closed" if self._closed else "failed" if self.failure is not None else "open"
        return f"<ReplicatedStore {self.config.node_id} on {str(self.config.directory)!r}, {state}>"

    def close(self) -> None:
        """Hand leadership over, end waiting calls (Closed), sync the state. Idempotent; reads raise Closed afterwards.

        Call it from any thread, in signal handlers, in callbacks and in `atexit`. A thread of the store's own closes
        the store, so an exception that arrives here ends only the waiting.
        """
        if self._ended:
            return
        thread = threading.current_thread()
        self._closers[thread] = None
        try:
            self._own.post(self._close_now)
            self._changed.wait_for(lambda: self._ended, math.inf)
        finally:
            self._closers.pop(thread, None)
        self._own.join(GRACE_SECONDS)
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def _close_now(self) -> None:
        """Close the store, in this store's own thread."""
        if self._ended:
            return
        try:
            if self._watchdog is not None:
                began = time.monotonic()
                self._hand_over()
                self._closed = True
                self._changed.ring()
                self._stop_threads()
                self._remember()
                self._database = None
                self._close_directory()
                self._say_stopped(time.monotonic() - began)
        except BaseException as error:  # noqa: BLE001  for the caller of close()
            self._close_error = error
        finally:
            if self._watchdog is not None:
                self._watchdog.close(GRACE_SECONDS)
            self._closed = self._ended = True
            self._database = None
            self._changed.ring()
            self._own.stop()

    def _stop_threads(self) -> None:
        """Stop every thread that was started, also if some were not started."""
        if self._admin is not None:
            self._admin.stop()
        self._stop_housekeeping.set()
        self._opened.keeper.closing.set()
        if self._housekeeper is not None:
            self._housekeeper.join(HANGS_SECONDS)
        if self._backups is not None:
            self._backups.join(GRACE_SECONDS)  # the backup directory's disk may hang
        self._driver.stop(*((GRACE_SECONDS,) if self._is_stuck else ()))
        self._driver.end_writes("the store is closed")
        self._deliveries.finish(GRACE_SECONDS)
        self._leadership.join(GRACE_SECONDS, but=self._closers)
        _switch_interval.release(self)

    def _close_directory(self) -> None:
        threads = (self._driver.thread, self._housekeeper)
        hanging = [thread.name for thread in threads if thread is not None and thread.is_alive()]
        if not hanging:
            try:
                self._opened.close(failed=self.failure is not None)
            finally:
                RESERVE.close()
            return
        # The thread may be in the middle of a transaction, and go on. No process may open the directory before it ends.
        self._say(
            logging.CRITICAL,
            "thread hangs",
            "the data directory stays in use until this process ends",
            thread=", ".join(hanging),
        )

    def _say(self, level: int, what: str, text: object, **keys: str | float) -> None:
        """Log near the end: another thread does it, because a log handler with a full pipe may never return."""
        assert self._watchdog is not None  # everything was started
        self._watchdog.say(
            lambda: log_event(logger, level, what, text, node=self.config.node_id, exc_info=None, **keys)
        )

    def _say_stopped(self, took_seconds: float) -> None:
        self._say(
            logging.INFO,
            "manager stopped",
            self.failure or "",
            reason="closed" if self.failure is None else "failed",
            term=self._engine.term,
            applied_index=self._opened.machine.applied_index,
            took_seconds=took_seconds,
        )

    def _hand_over(self) -> None:
        """Hand leadership over, so that no caller has to wait for an election."""
        if self.is_leader and len(self._engine.members) > 1:
            try:
                self._transfer(None, self._deadline(HAND_OVER_SECONDS), is_closing=True)
            except (RefusedForSafety, Unavailable, Closed) as error:
                log_event(logger, logging.WARNING, "leadership not handed over", error, node=self.config.node_id)

    @classmethod
    def _close_all_in_child(cls) -> None:
        for store in list(cls._open_stores):
            store._closed = store._ended = True
            store._why_closed = (forking.PARENTS,)


os.register_at_fork(after_in_child=ReplicatedStore._close_all_in_child)
