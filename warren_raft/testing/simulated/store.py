"""The store that a program under simulation gets: every call is a turn, at which other threads may run, or its manager
fails.

Lives here: the calls. The reads, the checks of writes, the lead, batches and watches are the product's own. Not here:
the ways of a write, of managers and of entries (cluster.py, writes.py).
Invariant: a program whose manager was killed gets nothing more from its store.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Concatenate, Final, NoReturn, ParamSpec, TypeVar

from warren_raft.aio.leading import AsyncLead, AsyncLeadFunction
from warren_raft.aio.store import AsyncStore
from warren_raft.alarms import Alarm
from warren_raft.errors import Closed, LeadershipLost, Misuse, Unavailable, WarrenError
from warren_raft.leadership.callbacks import Callback, Leadership, LeadFunction, Subscription
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.results import MemberStatus, Status
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.store import lookup
from warren_raft.store.command import Operation
from warren_raft.store.database import Database
from warren_raft.store.fence import Fence
from warren_raft.store.tables import Kind
from warren_raft.store.watch import Feed
from warren_raft.store_interface import Store
from warren_raft.support import timeouts
from warren_raft.support.handover import Begun, Landing
from warren_raft.support.waiting import Bell, Wait
from warren_raft.testing.simulated.coroutines import SimulatedAsyncStore, SimulatedCall
from warren_raft.testing.simulated.schedule import described_read
from warren_raft.testing.simulated.turns import MISTAKES, Killed

if TYPE_CHECKING:
    import lmdb

    from warren_raft.store.transactions import Owner
    from warren_raft.testing.simulated.cluster import Manager, Process, SimulatedCluster
    from warren_raft.testing.simulated.log import Flight

    Txn = lmdb.Transaction[bytes]

E = TypeVar("E")
R = TypeVar("R")
P = ParamSpec("P")

WRITE_TIMEOUT_SECONDS: Final = 10.0
"""As in a new Config."""

OTHER_THREAD: Final = (
    "a simulated store is used in the thread of its program only: give simulate() a function for each thread, or use "
    "run_while_leading"
)


class SimulatedStore(Store):
    """One manager of a simulated cluster, for the program that `simulate` runs on it."""

    def __init__(self, cluster: SimulatedCluster, manager: Manager, process: Process) -> None:
        super().__init__()
        self._cluster = cluster
        self._manager = manager
        self._process = process
        self._standing = _Standing(self)
        self._leadership = _Leadership(self)
        self._hub = _Feeds(self)
        self._last_begun: Flight | None = None
        """The write of a coroutine that was begun last: the next one is sent after it."""

    def _turn(self) -> None:
        """Others may run now. Raises Killed, Closed, Misuse."""
        self._require_thread()
        self._cluster.turns.pause()
        self._require_open()

    def _require_thread(self) -> None:
        cluster = self._cluster
        if self._process.is_killed:
            raise Killed
        if cluster.turns.task is None and not cluster.is_setting_up:
            raise Misuse(OTHER_THREAD)
        self._require_open()

    def _require_open(self) -> None:
        if self._process.is_closed:
            raise Closed

    # Reads ----------------------------------------------------------------------------------------------------------

    def _attached(self) -> Database:
        self._require_open()
        return self._manager.machine.database

    def _get(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        return self._within(lookup.by_id, kind, id)

    def _within(self, read: Callable[Concatenate[Owner, Txn, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        self._turn()
        if not self._cluster.is_setting_up:
            revision = self._manager.machine.revision
            self._cluster.note(self._manager, f"reads {described_read(read, args)} at revision {revision}")
        return super()._within(read, *args, **kwargs)

    def _leader_contact_age_seconds(self) -> float:
        cut_off_at = self._manager.cut_off_at
        return 0.0 if cut_off_at is None else self._cluster.turns.now - cut_off_at

    def _staleness_seconds(self) -> float:
        since = self._manager.behind_since
        behind = 0.0 if since is None else self._cluster.turns.now - since
        return max(behind, self._leader_contact_age_seconds())

    def _feeds(self) -> _Feeds:
        self._require_open()
        return self._hub

    # Writes ---------------------------------------------------------------------------------------------------------

    @property
    def _default_timeout_seconds(self) -> float:
        return WRITE_TIMEOUT_SECONDS

    def _execute(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        deadline = self._deadline(timeout)
        self._require_thread()
        writes = self._cluster.writes
        return writes.carry_out(self._manager, writes.flight(self._manager, operations, request_key, fence), deadline)

    def _deadline(self, timeout: float | None) -> float:
        """By the clock of the turns."""
        return self._cluster.turns.now + timeouts.seconds(timeout, WRITE_TIMEOUT_SECONDS)

    def _start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        """It is carried out now: nothing else could run while the program waits for a future."""
        future: Future[int] = Future()
        try:
            future.set_result(self._execute(operations, timeout, request_key=request_key, fence=fence))
        except WarrenError as error:
            future.set_exception(error)
        return future

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Begun[int]:
        deadline = self._deadline(timeout)
        self._require_thread()
        call = SimulatedCall(landing)
        flight = self._cluster.writes.flight(self._manager, operations, request_key, fence)
        call.flight, behind, self._last_begun = flight, self._last_begun, flight
        carry_out = partial(self._cluster.writes.carry_out, self._manager, flight, deadline, behind)
        self._cluster.begin_task(self._process, partial(call.make, carry_out))
        return call

    def _begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]:
        timeouts.checked(timeout)
        self._require_thread()
        call = SimulatedCall(landing)
        self._cluster.begin_task(self._process, partial(call.make, partial(self.barrier, timeout)))
        return call

    def barrier(self, timeout: float | None = None) -> int:
        deadline = self._deadline(timeout)
        self._turn()
        if not self._cluster.waited(lambda: self._cluster.reaches_leader(self._manager), deadline):
            raise Unavailable("simulated: no leader answered", maybe_applied=False, of_write=False)
        self._cluster.apply(self._manager, self._cluster.log.last_index)
        return self._manager.machine.revision

    # Heartbeats -----------------------------------------------------------------------------------------------------

    def _take_beat(self, node_id: str, ttl_seconds: float) -> None:
        self._cluster.beats.take(self._manager, node_id, ttl_seconds)

    def _age_of_beat(self, node_id: str) -> float | None:
        self._turn()
        return self._cluster.beats.age(node_id)

    # Leadership -----------------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        self._turn()
        return self._manager.leads_in is not None

    @property
    def leader(self) -> str | None:
        self._turn()
        return self._manager.leader

    def on_leadership(self, callback: Callback) -> Callable[[], None]:
        self._turn()
        return self._leadership.subscribe(self._leadership.guarded_callback(callback))

    def leading(self, timeout: float | None = None) -> Leading:
        return self._leadership.leading(self, timeout)

    def run_while_leading(self, function: Callable[[Lead], object]) -> Callable[[], None]:
        self._turn()
        return self._leadership.run_while_leading(self, self._leadership.guarded(function))

    # A manager ------------------------------------------------------------------------------------------------------

    def _until_ready(self, timeout: float | None) -> Wait[bool]:
        return self._until(lambda: self._manager.leader is not None, timeout)

    def _until_leader(self, timeout: float | None) -> Wait[str]:
        return self._until(lambda: self._manager.leader, timeout)

    def _until(self, condition: Callable[[], R | None], timeout: float | None) -> Wait[R]:
        def looked() -> R | None:
            self._require_open()
            return condition()

        def late() -> Unavailable:
            return Unavailable("simulated: no leader is known", maybe_applied=False, of_write=False)

        return Wait(self._cluster.bell, looked, timeouts.deadline(timeout), late)

    @property
    def is_ready(self) -> bool:
        self._turn()
        return self._manager.leader is not None

    def wait_failed(self, timeout: float | None = None) -> bool:
        self._cluster.bell.wait_for(lambda: self._process.is_closed, timeouts.deadline(timeout))
        return False

    @property
    def aio(self) -> AsyncStore:
        return SimulatedAsyncStore(self)

    failure = None
    waiting_for = ""
    alarms: tuple[Alarm, ...] = ()

    def reload_certificate(self) -> None:
        """There is none."""

    def close(self) -> None:
        """The program ends. Its manager starts again later."""
        self._process.is_closed = True
        self._cluster.bell.ring()

    def __repr__(self) -> str:
        """For logs and debuggers. Any state, any thread; never raises."""
        return f"<SimulatedStore {self._manager.id}>"

    # Not simulated --------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        _refuse("status()")

    def members(self) -> tuple[MemberStatus, ...]:
        _refuse("members()")

    def add_member(self, id: str, address: str, *, timeout: float | None = None) -> None:  # noqa: A002
        _refuse("add_member()")

    def update_member(self, id: str, address: str, *, timeout: float | None = None) -> str:  # noqa: A002
        _refuse("update_member()")

    def remove_member(self, id: str, *, timeout: float | None = None) -> None:  # noqa: A002
        _refuse("remove_member()")

    def transfer_leadership(self, id: str | None = None, *, timeout: float | None = None) -> str:  # noqa: A002
        _refuse("transfer_leadership()")

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        _refuse("snapshot()")


def _refuse(what: str) -> NoReturn:
    raise Misuse(f"{what} is not part of the simulation; use a LocalStore or a Cluster of warren_raft.testing for it")


class _Standing:
    """A simulated manager's knowledge of its leadership."""

    def __init__(self, store: SimulatedStore) -> None:
        self._store = store
        self.bell: Final[Bell] = store._cluster.bell

    def leading_term(self) -> int | None:
        turns = self._store._cluster.turns
        if turns.task is not None:  # a program asks, and not a condition for which it waits
            turns.pause()
        return None if self.is_over() else self._store._manager.leads_in

    def term(self) -> int:
        return self._store._manager.term

    def is_over(self) -> bool:
        return self._store._process.is_closed

    def require(self) -> None:
        self._store._require_open()


class _AtOnce:
    """Calls functions in the thread that asks for them."""

    def call(self, function: Callable[[], None]) -> None:
        function()

    def post(self, function: Callable[[], object]) -> None:
        function()


class _Leadership(Leadership):
    """The product's callbacks and loops, each in a task."""

    def __init__(self, store: SimulatedStore) -> None:
        super().__init__(store._standing, _AtOnce())
        self._store = store

    def start(self, subscription: Subscription) -> None:
        store = self._store
        store._cluster.begin_task(store._process, partial(subscription.run, subscription))

    def guarded(self, function: LeadFunction) -> LeadFunction:
        """The function, called again after an error of the store, as a manager does. Any other error is a mistake in
        the program."""

        def run(lead: Lead) -> None:
            self._note_begin(lead.term)
            try:
                function(lead)
            except Exception as error:
                raise self._judged(error, lead.term) from error

        return self._caught(run)

    def guarded_coroutine(self, function: AsyncLeadFunction) -> AsyncLeadFunction:
        """The same for a coroutine function."""

        async def run(lead: AsyncLead) -> None:
            self._note_begin(lead.term)
            try:
                await function(lead)
            except Exception as error:
                judged = self._judged(error, lead.term)
                if isinstance(judged, LeadershipLost):
                    raise judged from error
                self._store._cluster.fail(judged)

        return run

    def _note_begin(self, term: int) -> None:
        self._store._cluster.note(self._store._manager, f"runs its function as leader of term {term}")

    def _judged(self, error: Exception, term: int) -> Exception:
        """The error that leaves a function. An error of the store is in the schedule, and not in the log: it leaves as
        LeadershipLost, after which the function is called again just so."""
        if isinstance(error, LeadershipLost) or not _is_of_store(error):
            return error
        self._store._cluster.note(self._store._manager, f"its function ended by {type(error).__name__}: {error}")
        return LeadershipLost(term)

    def guarded_callback(self, callback: Callback) -> Callback:
        return self._caught(callback)

    def _caught(self, function: Callable[P, object]) -> Callable[P, None]:
        """Nothing but LeadershipLost leaves it: the product would log it. A killed task ends at its next turn."""

        def caught(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except LeadershipLost:
                raise
            except Killed:
                return
            except Exception as error:  # noqa: BLE001  the simulation reports it
                self._store._cluster.fail(error)

        return caught


def _is_of_store(error: BaseException) -> bool:
    """Whether a fault of the cluster may cause it. A TaskGroup makes a group of the errors of its tasks."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_store, error.exceptions))
    return isinstance(error, WarrenError) and not isinstance(error, MISTAKES)


class _Feeds:
    """Fills the watches of a process, without a thread."""

    def __init__(self, store: SimulatedStore) -> None:
        self._store = store

    def add(self, feed: Feed) -> None:
        self._store._process.feeding.add(feed)
        self.ring()

    def forget(self, feed: Feed) -> None:
        self._store._process.feeding.forget(feed)

    def ring(self) -> None:
        self._store._cluster.feed(self._store._process)

    def new_bell(self) -> Bell:
        return self._store._cluster.bell
