"""ReplicatedStore: one manager of a cluster. Ties store, state machine, consensus and the admin socket together.

Lives here: turning a write into a replicated command, waiting for its result, members and leadership, closing cleanly.
Not here: opening a data directory (opening.py), what a command does (fsm/), how it is agreed upon (raft/).
Invariant: a write that returned is committed by a majority and applied to this manager's database.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from random import SystemRandom
from typing import Any, ClassVar, Final, Literal, overload

from warren_raft import forking, timeouts
from warren_raft.alarms import Alarm, Alarms
from warren_raft.config import Config, check_address, check_node_id, split_address
from warren_raft.descriptors import RESERVE, limit
from warren_raft.errors import (
    Closed,
    InvariantViolation,
    RefusedForSafety,
    StorageFull,
    Unavailable,
    WarrenError,
)
from warren_raft.file_size_signal import held_off
from warren_raft.foreign_readers import RENEW_AGAIN_SECONDS, ForeignReaders
from warren_raft.fsm.answers import UNKNOWN_SESSION, Result, raise_for
from warren_raft.fsm.machine import StateMachine
from warren_raft.log_lines import log_event
from warren_raft.opening import OpenedDirectory
from warren_raft.raft.changes import DONE, PENDING, REFUSED, Answer
from warren_raft.raft.driver import Driver
from warren_raft.raft.engine import Engine, Removed
from warren_raft.raft.files import Files
from warren_raft.raft.membership import ADD, REMOVE, UPDATE
from warren_raft.raft.reports import Report
from warren_raft.raft.requests import NO_LEADER, ChangeWanted, TransferWanted
from warren_raft.raft.submit import Proposal
from warren_raft.shortage import shortage_of
from warren_raft.snapshots.backups import Backups, Position
from warren_raft.snapshots.saving import save, take_nameless
from warren_raft.space import Space
from warren_raft.status import members_of, status_of
from warren_raft.store.command import PUT, Command, Operation, Verb, encode
from warren_raft.store.generations import make_directory
from warren_raft.store.interface import Store

logger = logging.getLogger("warren_raft.manager")

GRACE_SECONDS: Final = 1.0
"""The raft thread ends a write at its deadline; a caller waits so much longer before it gives that thread up."""
ASK_AGAIN_SECONDS: Final = 0.1
"""Between two questions to the leader about the same membership change, unless something changed before."""
MOVED_SECONDS: Final = 2.0
"""A member that was given another address has so long to answer there before it is said that it does not."""
HAND_OVER_SECONDS: Final = 2.0
"""A closing leader waits at most so long for another to take over."""
NOTE_READY_SECONDS: Final = 0.05
"""Whether this manager got ready is looked at so often until it did. A manager that is killed soon after has not failed
to start; to be taken for that twice costs the next start a proof of the whole state."""
SESSION_WINDOW: Final = 16_384
"""Requests of this process between the oldest unanswered and the newest: what the session must remember."""


class _SwitchInterval:
    """`sys.setswitchinterval` while any store is open. At Python's 5 ms a busy thread of the embedding process turns a
    0.3 ms round into 15 ms (DESIGN 7). The last store to close puts the old value back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores = 0
        self._before = 0.0

    def acquire(self, seconds: float) -> None:
        with self._lock:
            if self._stores == 0:
                self._before = sys.getswitchinterval()
            self._stores += 1
            sys.setswitchinterval(seconds)

    def release(self) -> None:
        with self._lock:
            self._stores -= 1
            if self._stores == 0:
                sys.setswitchinterval(self._before)


_switch_interval = _SwitchInterval()


class _Waiter:
    """The cheapest thing a thread can wait on: a lock that the raft thread releases."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self, _proposal: Proposal) -> None:
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        return self._lock.acquire(timeout=timeouts.wait_seconds(seconds))


class _Requests:
    """Request ids of this process: one session, sequences in order, and the lowest that still waits. Thread-safe."""

    def __init__(self, queue_limit: int) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._limit = min(queue_limit, SESSION_WINDOW)
        self._next = 1
        self._lowest = 1
        self._finished: set[int] = set()

    def begin(self, deadline: float) -> tuple[int, int]:
        """(sequence, lowest unanswered). Blocks while the queue is full; Unavailable at the deadline."""
        with self._condition:
            while self._next - self._lowest >= SESSION_WINDOW or self.waiting >= self._limit:
                left = timeouts.wait_seconds(deadline - time.monotonic())
                if not self._condition.wait(left) and time.monotonic() >= deadline:
                    raise Unavailable("the queue of waiting writes is full", maybe_applied=False)
            sequence = self._next
            self._next += 1
            return sequence, self._lowest

    def end(self, sequence: int) -> None:
        with self._condition:
            was_full = self._next - self._lowest >= SESSION_WINDOW or self.waiting >= self._limit
            self._finished.add(sequence)
            while self._lowest in self._finished:
                self._finished.remove(self._lowest)
                self._lowest += 1
            if was_full:
                self._condition.notify_all()

    @property
    def waiting(self) -> int:
        return self._next - self._lowest - len(self._finished)


class ReplicatedStore(Store):
    """One manager: reads are local, writes are agreed upon by a majority. Usable from any number of threads.

    Opening raises InUse (directory or port), RefusedForSafety (another node's directory, another user's, a network
    file system), Corrupted (with how to rejoin). A fork leaves the child with a closed store.

    `files`: what the log does to its disk goes through it, for tests and for disks that need special care
    (raft/files.py says what it must promise). None: the operating system's.
    """

    _open_stores: ClassVar[weakref.WeakSet[ReplicatedStore]] = weakref.WeakSet()

    def __init__(self, config: Config, *, files: Files | None = None) -> None:
        super().__init__()
        self.config: Final = config
        self._closed = False
        self._why_closed: tuple[str, ...] = ()
        self._closing = threading.Lock()
        self.failure: WarrenError | None = None
        """Why this manager stopped by itself; None while it has not. Reads go on, writes raise Closed."""
        self._failed = threading.Event()
        self._changed = threading.Condition()
        self._requests = _Requests(config.queue_limit)
        self._session = 0
        self._session_lock = threading.Lock()
        self._stop_housekeeping = threading.Event()
        self._backups: Backups | None = None
        self._alarms = Alarms(config.node_id)
        self._foreign_readers = ForeignReaders(self._alarms)
        self._renew_at = 0.0
        self._version = version("warren-raft")
        self._space = Space(
            str(config.directory),
            reserve_bytes=config.disk_reserve_bytes,
            quota_bytes=config.quota_bytes,
            alarms=self._alarms,
        )
        self._leadership_callbacks: list[Callable[[bool, int], object]] = []
        RESERVE.open()
        try:
            with held_off():  # also in the threads that begin here
                self._open(files)
        except BaseException:
            RESERVE.close()
            raise
        ReplicatedStore._open_stores.add(self)

    def _open(self, files: Files | None) -> None:
        self._opened = OpenedDirectory(self.config, files=files, random=SystemRandom(), alarms=self._alarms)
        self._opened.keeper.on_swap = self._swapped
        try:
            self._start()
        except BaseException:
            self._opened.abandon()
            raise

    def _start(self) -> None:
        opened, config = self._opened, self.config
        self._database = opened.database
        self._driver = Driver(
            listen=split_address(config.listen, field="listen"),
            node_id=config.node_id,
            log=opened.log,
            make_engine=opened.make_engine,
            on_change=self._on_change,
            on_failure=self._on_failure,
        )
        self._measure()
        self._housekeeper = threading.Thread(target=self._keep_house, name="warren-raft-housekeeping", daemon=True)
        self._notifier = threading.Thread(target=self._notify, name="warren-raft-leadership", daemon=True)
        if config.switch_interval_seconds is not None:
            _switch_interval.acquire(config.switch_interval_seconds)
        try:
            self._say_starting()
            self._driver.start()
            self._remember()
            self._admin = self._start_admin()
        except BaseException:
            self._driver.stop()
            if config.switch_interval_seconds is not None:
                _switch_interval.release()
            raise
        self._housekeeper.start()
        self._backups = self._start_backups()
        self._notifier.start()

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
        )

    def _start_admin(self) -> Any:
        if not self.config.admin:
            return None
        from warren_raft.admin.server import AdminServer

        server = AdminServer(self, self.config.directory)
        server.start()
        return server

    def _start_backups(self) -> Backups | None:
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
        self._backup_thread = threading.Thread(target=backups.run, args=stop, name="warren-raft-backups", daemon=True)
        self._backup_thread.start()
        return backups

    @property
    def _engine(self) -> Engine:
        return self._driver.engine

    # Waiting for the cluster -------------------------------------------------------------------------------------

    def _wait_for(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        self._check_may_wait()
        deadline = timeouts.deadline(timeout)
        with self._changed:
            while True:
                self._check_alive()
                if condition():
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    waits = f": {self.waits}" if self.waits else ""
                    raise Unavailable(f"{what} within {timeout:g} s{waits}", maybe_applied=False, of_write=False)
                self._changed.wait(timeouts.wait_seconds(left))

    def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Until a leader is known and the log is applied up to its commit index at our start.

        `timeout` in seconds, None: for ever. Raises Unavailable, or Closed when the manager stopped.
        """
        self._wait_for(lambda: self._engine.is_ready, timeout, f"{self.config.node_id} did not get ready")

    def wait_leader(self, timeout: float | None = 10.0) -> str:
        """The id of the leader, as soon as one is known here. Raises Unavailable, Closed."""
        self._wait_for(lambda: self._engine.leader is not None, timeout, "no leader was elected")
        leader = self._engine.leader
        return leader if leader is not None else self.wait_leader(timeout)

    def wait_failed(self, timeout: float | None = None) -> bool:
        """Until this manager stopped by itself (`failure` says why); False at the timeout."""
        return self._failed.wait(timeouts.wait_seconds(timeouts.deadline(timeout) - time.monotonic()))

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready and self._is_alive

    @property
    def waits(self) -> str:
        """Before the cluster has formed: for whom this manager waits, as a sentence; else empty."""
        return self._engine.waits

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and its local state holds every acknowledged write. It may be deposed already."""
        return self._engine.is_leader and self._is_alive

    @property
    def leader(self) -> str | None:
        """The id of the leader as far as this manager knows; None when it has heard of none for a while."""
        return self._engine.leader if self._is_alive else None

    def on_leadership(self, callback: Callable[[bool, int], object]) -> None:
        """Call `callback(is_leader, term)` at each change from now on, in order, in one thread of its own.

        It may write to the store, and close it. What it raises is logged.
        """
        self._leadership_callbacks.append(callback)

    def _leader_contact_age_seconds(self) -> float:
        return self._engine.leader_contact_age(time.monotonic())

    # Writing -----------------------------------------------------------------------------------------------------

    @property
    def _is_alive(self) -> bool:
        return not self._closed and self.failure is None

    def _check_may_wait(self) -> None:
        """Callbacks of a future run in the raft thread; there a call that waits would stop this manager's heart."""
        if self._driver.is_current_thread:
            raise InvariantViolation(
                "a call that waits, in the callback of a future: use batch(wait=False) there, or another thread"
            )

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
        if wait or not self._session:
            self._check_may_wait()
        needs_room = any(operation.verb == PUT for operation in operations)
        if needs_room and self._engine.is_full:
            raise StorageFull(self._why_full())
        session = self._session or self._open_session(deadline)
        sequence, lowest = self._requests.begin(deadline)
        data = encode(Command(session, sequence, lowest, operations))
        thread = threading.get_ident()
        if wait:
            return self._submit_and_wait(
                Proposal(session, sequence, data, deadline, _ignore, needs_room=needs_room, thread=thread)
            )
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        done = partial(self._resolve, future)
        self._driver.submit(Proposal(session, sequence, data, deadline, done, needs_room=needs_room, thread=thread))
        return future

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
        detail = "; ".join(told) or f"{self._engine.leader} says so"
        return f"too few managers have room for creates and updates, while reads and deletes go on: {detail}"

    def _submit_and_wait(self, proposal: Proposal) -> int:
        waiter = _Waiter()
        proposal.done = waiter.wake
        self._driver.submit(proposal)
        try:
            answered = waiter.wait(proposal.deadline + GRACE_SECONDS - time.monotonic())
        finally:  # also when Ctrl-C ends the waiting: else the window of requests would never move on
            self._requests.end(proposal.sequence)
        if not answered:
            raise Unavailable("the raft thread does not answer", maybe_applied=True)
        return self._result_of(proposal)

    def _resolve(self, future: Future[int], proposal: Proposal) -> None:
        self._requests.end(proposal.sequence)
        try:
            future.set_result(self._result_of(proposal))
        except WarrenError as error:
            future.set_exception(error)

    def _result_of(self, proposal: Proposal) -> int:
        if proposal.error is not None:
            raise proposal.error
        result: Result = proposal.outcome
        evicted = result.error is not None and result.error[0] == UNKNOWN_SESSION
        if evicted and self._session == proposal.session:
            # The next write opens another. No lock: this may be the raft thread, which whoever is opening a session
            # waits for with the lock held.
            self._session = 0
        return raise_for(result)

    def _open_session(self, deadline: float) -> int:
        """Exactly-once needs a session of this process in the replicated state (Raft thesis 6.3)."""
        if not self._session_lock.acquire(timeout=timeouts.wait_seconds(deadline - time.monotonic())):
            raise Unavailable("no quorum, or no leader, until the deadline", maybe_applied=False)
        try:
            if self._session == 0:
                session = SystemRandom().randrange(1, 1 << 63)
                sequence, lowest = self._requests.begin(deadline)
                opening = Operation(Verb.OPEN_SESSION)
                data = encode(Command(session, sequence, lowest, (opening,)))
                self._submit_and_wait(Proposal(session, sequence, data, deadline, _ignore))
                self._session = session
            return self._session
        finally:
            self._session_lock.release()

    def barrier(self, timeout: float | None = None) -> int:
        """An empty command: when it returns, every local read is linearizable with what was acknowledged before.

        Returns the revision. Raises Unavailable, Closed.
        """
        try:
            return self._execute((), timeout, True)
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=False, of_write=False) from None

    # Members -----------------------------------------------------------------------------------------------------

    def members(self) -> list[dict[str, Any]]:
        """Each member: id, address, connected (from here), voter, leader."""
        return members_of(self._engine)

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Add a manager that runs on an empty directory; returns when it has caught up and votes.

        Raises RefusedForSafety, Unavailable (it does not answer, or there is no quorum), InvalidEntity.
        """
        check_node_id(id, field="id")
        check_address(address, field="address")
        self._change_members(ADD, id, address, timeout)

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        """Give a member another address. Returns an empty string when its manager answers there, else a sentence that
        says where it is and what to do: the address counts all the same, so that a manager that is down can be moved.

        Raises RefusedForSafety, Unavailable, InvalidEntity.
        """
        check_node_id(id, field="id")
        check_address(address, field="address")
        return self._change_members(UPDATE, id, address, timeout)

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        """Remove a member; a leader hands leadership over first. Removing who is no member does nothing.

        Returns when a majority of the members that stay has it on disk, so that no power cut takes it back. Until then
        a manager that is removed has to go on running, as its vote may be needed; then it stops by itself.

        Raises RefusedForSafety when the quorum would be lost, Unavailable.
        """
        check_node_id(id, field="id")
        self._change_members(REMOVE, id, "", timeout)

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        """Let another voting member lead (None: the most caught-up one); returns the id of the new leader.

        Raises RefusedForSafety when it is no voting member or not connected, Unavailable.
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
        """What the leader has to say to a change that it made; mostly nothing."""
        deadline = self._deadline(timeout)
        said = ""
        patient_until = time.monotonic() + min(MOVED_SECONDS, (deadline - time.monotonic()) / 2)

        def is_so(answer: Answer | None) -> bool:
            nonlocal said
            # What shows here may be older than an earlier change that the leader has made already (a removal
            # before this addition): it counts only once the leader says so too.
            if answer is None or answer.state != DONE:
                return False
            said = answer.text
            if said and time.monotonic() < patient_until:
                return False
            member = self._engine.members.get(member_id)
            if verb == REMOVE:
                return member is None
            return member is not None and member.address == address and (member.voter or verb == UPDATE)

        def question(answer: Callable[[Answer], None]) -> ChangeWanted:
            return ChangeWanted(verb, member_id, address, answer)

        try:
            self._ask_until(is_so, question, deadline)
        except Closed:
            # Who removes itself has stopped by the time that it is done.
            if not (verb == REMOVE and member_id == self.config.node_id and isinstance(self.failure, Removed)):
                raise
        return said

    def _ask_until(
        self,
        is_so: Callable[[Answer | None], bool],
        question: Callable[[Callable[[Answer], None]], ChangeWanted | TransferWanted],
        deadline: float,
    ) -> None:
        """Ask the leader again and again until it is so. To ask for a change again is harmless; to ask for a transfer
        that has happened would start another one, so it is looked at before each question."""
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
            with self._changed:
                self._check_alive()
                self._changed.wait(max(0.0, min(deadline - time.monotonic(), ASK_AGAIN_SECONDS)))

    def _ask(
        self,
        question: Callable[[Callable[[Answer], None]], ChangeWanted | TransferWanted],
        deadline: float,
    ) -> Answer | None:
        self._check_may_wait()
        self._check_alive()
        answers: list[Answer] = []

        def answered(answer: Answer) -> None:
            answers.append(answer)
            self._on_change()

        self._driver.post(question(answered))
        with self._changed:
            while not answers and (left := deadline - time.monotonic()) > 0:
                self._check_alive()  # a question is not answered any more once the raft thread has ended
                self._changed.wait(timeouts.wait_seconds(left))
        return answers[0] if answers else None

    # Snapshots ---------------------------------------------------------------------------------------------------

    def snapshot(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Save this manager's state as one file (mode 0600), verified and on disk. Returns its manifest.

        Needs no quorum; `quorum` of the result says whether there was one. On the leader, after `barrier()`, it has
        every acknowledged write. Reads and writes go on meanwhile. Raises RefusedForSafety (there is a file of that
        name, or this manager has not been part of a cluster yet), StorageFull, OSError, SnapshotInvalid (the state is
        damaged), Closed. Nothing is left then.
        """
        self._check_may_wait()
        database = self._attached()
        if self._opened.machine.cluster_id is None:
            raise RefusedForSafety(
                f"{self.config.node_id} has not been part of a cluster yet: there is nothing to save; ask a manager "
                "that has"
            )
        quorum = self._engine.has_quorum and self._is_alive
        return save(
            database,
            path,
            created_at=datetime.now(UTC),
            node_id=self.config.node_id,
            quorum=quorum,
            cancel=self._stop_housekeeping,
        ).to_json()

    def nameless_snapshot(self) -> int:
        """The same for the admin socket: a descriptor of a file without a name, which the caller closes."""
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
        lists them all. For any thread; also after the end."""
        return self._alarms.active

    def status(self) -> dict[str, Any]:
        """What an operator asks first; the keys are those of the command line's `status`."""
        self._attached()
        return status_of(self._opened, self._engine, alarms=self.alarms, failure=self.failure)

    def _swapped(self, machine: StateMachine) -> None:
        """In the raft thread: a snapshot was installed. Reads that have begun go on in the state that they began in."""
        self._database = machine.database

    # Threads of this object --------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_failure(self, error: WarrenError) -> None:
        self._alarms.stopped(str(error))
        self.failure = error
        self._failed.set()
        self._on_change()

    def _notify(self) -> None:
        """Tell the callbacks of each change of leadership; one that was lost and won again meanwhile is two."""
        led: int | None = None
        while True:
            with self._changed:
                while self._leading_term == led and self._is_alive:
                    self._changed.wait()
                now, term = self._leading_term, self._engine.term
            if now == led:
                return
            if led is not None:
                self._call_back(False, term)
            if now is not None:
                self._call_back(True, now)
            led = now

    @property
    def _leading_term(self) -> int | None:
        """The term that this manager leads in; None while it does not."""
        return self._engine.term if self.is_leader else None

    def _call_back(self, is_leader: bool, term: int) -> None:
        for callback in list(self._leadership_callbacks):
            try:
                callback(is_leader, term)
            except Exception as error:  # noqa: BLE001 - it is logged
                node = self.config.node_id
                log_event(logger, logging.ERROR, "leadership callback failed", node=node, term=term, exc_info=error)

    def _keep_house(self) -> None:
        """Measuring of space, checkpoints of the state, stale reader slots, views that were left open."""
        synced_index = -1
        noted = False
        next_checkpoint = time.monotonic() + self.config.checkpoint_interval_seconds
        pause = min(1.0, self.config.checkpoint_interval_seconds)
        while not self._stop_housekeeping.wait(pause if noted else min(pause, NOTE_READY_SECONDS)):
            self._alarms.tick()
            try:
                self._look_at_descriptors()
                self._opened.look()
                if not noted and self._engine.is_ready:
                    self._opened.state.forget_starts()
                    noted = True
                self._opened.keeper.tidy()
                self._look_at_foreign_readers()
                self._measure()
                self._remember()
                if time.monotonic() < next_checkpoint:
                    continue
                next_checkpoint = time.monotonic() + self.config.checkpoint_interval_seconds
                self._opened.database.reader_check()
                self._opened.database.end_old_reads()
                index = self._opened.machine.applied_index
                if index != synced_index:
                    self._opened.database.checkpoint()
                    synced_index = index
            except Exception as error:  # noqa: BLE001 - who gave up here would never look at the disk again
                if isinstance(error, WarrenError) and shortage_of(error) is None:
                    self._on_failure(error)
                    self._driver.stop()
                    return
                self._house_neglected(error)

    def _house_neglected(self, error: Exception) -> None:
        """It may last for days, and is one traceback in the log; over when it did not come again for a while."""
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
            "no connections, and has a few in reserve for the log and for snapshots; find what leaks them "
            f"(ls -l /proc/{os.getpid()}/fd), or raise the limit (ulimit -n, LimitNOFILE=)"
        )
        self._alarms.raise_alarm("descriptors-low", text)

    def _look_at_foreign_readers(self) -> None:
        """One that never ends its view would make the state grow for ever: then the state goes on in another file."""
        now = time.monotonic()
        if self._foreign_readers.look(self._opened.database) and now >= self._renew_at:
            self._renew_at = now + RENEW_AGAIN_SECONDS
            self._engine.renewal_wanted = True

    def _remember(self) -> None:
        """How this manager was started, and where the others are: for a start from its directory alone."""
        memory = self._opened.memory
        memory.keep(self._engine.addresses_to_keep(memory.said))

    def _measure(self) -> None:
        """Consensus tells the others. It is told nothing more often than it tells them, see raft/health.py."""
        self._engine.low_space = self._space.look(self._opened.database)
        self._engine.measured = Report(
            version=self._version, disk_free_bytes=self._space.free_bytes, database_bytes=self._space.used_bytes
        )

    # The end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Hand leadership over, end what waits (Closed), sync the state. Idempotent; reads raise Closed afterwards.

        In the callback of a future it only begins that, in another thread.
        """
        if self._driver.is_current_thread:
            threading.Thread(target=self.close, name="warren-raft-closing").start()
            return
        with self._closing:
            if self._closed:
                return
            began = time.monotonic()
            self._hand_over()
            self._closed = True
            self._on_change()
            if self._admin is not None:
                self._admin.stop()
            self._stop_housekeeping.set()
            self._opened.keeper.closing.set()
            self._housekeeper.join()
            if self._backups is not None:
                self._backup_thread.join(GRACE_SECONDS)  # the backup directory's disk may hang
            self._driver.stop()
            self._remember()
            if self._notifier is not threading.current_thread():
                self._notifier.join(GRACE_SECONDS)
            if self.config.switch_interval_seconds is not None:
                _switch_interval.release()
            self._database = None
            try:
                with held_off():
                    self._opened.close(failed=self.failure is not None)
            finally:
                RESERVE.close()
            self._say_stopped(time.monotonic() - began)

    def _say_stopped(self, took_seconds: float) -> None:
        log_event(
            logger,
            logging.INFO,
            "manager stopped",
            self.failure or "",
            node=self.config.node_id,
            reason="closed" if self.failure is None else "failed",
            term=self._engine.term,
            applied_index=self._opened.machine.applied_index,
            took_seconds=took_seconds,
        )

    def _hand_over(self) -> None:
        """So that no caller has to wait for an election."""
        if self.failure is None and self._engine.is_leader and len(self._engine.members) > 1:
            try:
                self._transfer(None, self._deadline(HAND_OVER_SECONDS), is_closing=True)
            except (RefusedForSafety, Unavailable, Closed) as error:
                log_event(logger, logging.WARNING, "leadership not handed over", error, node=self.config.node_id)

    @classmethod
    def _close_all_in_child(cls) -> None:
        for store in list(cls._open_stores):
            store._closed = True
            store._why_closed = (forking.PARENTS,)


os.register_at_fork(after_in_child=ReplicatedStore._close_all_in_child)


def _ignore(_proposal: Proposal) -> None:
    return None
