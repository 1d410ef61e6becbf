"""The raft thread: an asyncio loop that feeds the engine, carries out its effects, and owns links and workers.

Lives here: threads, queues and the loop; it decides nothing. Not here: consensus (engine.py), sockets
(links/transport.py), file formats (raft/log/log.py). Invariant: only this thread steps the engine, and the messages of
a step leave before entries are applied.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from random import Random
from typing import Final, Generic, Protocol, TypeVar

from warren_raft.certificates.credentials import Credentials
from warren_raft.errors import InvariantViolation, WarrenError
from warren_raft.raft.barriers import Barrier
from warren_raft.raft.context import LONG_AGO
from warren_raft.raft.effects import (
    Cancel,
    CloseLink,
    Dial,
    Effect,
    Send,
    Work,
    WriteLog,
)
from warren_raft.raft.engine import EXPIRE_SECONDS, Engine
from warren_raft.raft.events import (
    Arriving,
    BarriersWanted,
    Event,
    LinkDown,
    LinkUp,
    NotReached,
    Received,
    Refused,
    Submitted,
    Synced,
    Worked,
)
from warren_raft.raft.links.transport import Transport
from warren_raft.raft.links.wire import Message
from warren_raft.raft.log.log import Log
from warren_raft.raft.step_loop import Bell, StepLoop
from warren_raft.raft.submit import Proposal
from warren_raft.raft.sync_thread import SyncThread
from warren_raft.support.counting import Durations
from warren_raft.support.log_lines import log_event
from warren_raft.support.stamps import Stamps
from warren_raft.support.waiting import taken
from warren_raft.support.waking import PATIENCE_SECONDS
from warren_raft.support.workers import Workers

logger = logging.getLogger("warren_raft.driver")

START_SECONDS: Final = 30.0
WORKERS: Final = 4
"""Threads for jobs on snapshots: a chunk for a follower does not wait while a snapshot is verified."""
LOG_WORKERS: Final = 2
"""Threads for the log's segments, one to prepare and one to remove: they do not wait for jobs on snapshots."""
STOP_SECONDS: Final = 30.0
"""When we stop, we wait this long for a worker that is inside fdatasync."""


W = TypeVar("W")
"""A write of a caller, which only `Writes` looks into."""
Taken = TypeVar("Taken", contravariant=True)
"""The same, as the parameter of `Writes`."""


class Writes(Protocol[Taken]):
    """Makes proposals of the writes that callers submit. For the raft thread only, except for `end_all`."""

    @property
    def has_more(self) -> bool:
        """Whether `take` would return proposals, although no caller submitted a write since."""

    def take(self, writes: Iterable[Taken]) -> list[Proposal]:
        """The proposals to make now, of these writes and of the writes taken before."""

    def take_barriers(self) -> Sequence[Barrier]:
        """The barriers to ask for now. Call it after `take`, to which callers submit barriers too."""

    def expire(self, now: float, hindrance: Callable[[], tuple[str, bool]]) -> None:
        """End the writes that reached their deadline before they were proposed. `hindrance`: see Engine.hindrance."""

    def flush(self) -> bool:
        """The step is over: wake the callers of the writes that have ended. Whether `wake_late` has to be called."""

    def wake_late(self) -> bool:
        """Wake the callers that should be awake by now. Returns whether there are others, that are not awake yet."""

    def end_all(self, submitted: Iterable[Taken], reason: str) -> None:
        """End the writes in `submitted`, which were never taken, and all writes that were taken."""


class Driver(Generic[W]):
    """Runs one engine. start() and stop() once each; submit() and post() from any thread, and in signal handlers."""

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        node_id: str,
        log: Log,
        credentials: Credentials | None,
        writes: Writes[W],
        make_engine: Callable[[float], Engine],
        on_change: Callable[[], None],
        on_failure: Callable[[WarrenError], None],
        make_transport: Callable[..., Transport] = Transport,
    ) -> None:
        """`make_transport` makes the links, of the arguments of Transport. warren_raft.testing makes others."""
        self._listen = listen
        self._node_id = node_id
        self._log = log
        self._credentials = credentials
        self._writes = writes
        self._on_change = on_change
        self._on_failure = on_failure
        self._make_transport = make_transport
        self.stamps: Stamps | None = None
        """Set, from any thread: the points that a write passes are stamped. None: they are not, at no cost."""
        self.on_applied: Callable[[], None] | None = None
        """Set, from any thread: called in the raft thread after entries were applied."""
        self._seen: object = None
        self._engine = make_engine(time.monotonic())
        self._bell = Bell()
        self._loop = StepLoop(self._between, self._bell)
        self._transport: Transport | None = None
        self._events: list[Event] = []
        self._submitted: deque[W] = deque()
        self._woken = False
        """A caller has rung the bell for a step that has not begun, so no other caller needs to."""
        self._is_running = False
        """Whether steps may be made: the links are open."""
        self._step_at = LONG_AGO
        """When the next step is due although nothing happens; LONG_AGO: at once."""
        self.applies: Final = Durations()
        """The runs of entries that were applied in one step."""
        self.steps = 0
        """Steps so far."""
        self._turns = 0
        """How often the loop has been about to wait."""
        self._wake_due = False
        self._has_more = False
        """Whether the last step left writes that may be proposed in the next one."""
        self._expire_at = LONG_AGO
        self._finished = False
        self._preparing = self._removing = False
        self._workers = Workers(WORKERS, f"warren-raft-worker {node_id}")
        self._log_workers = Workers(LOG_WORKERS, f"warren-raft-log {node_id}")
        self._sync_ended = asyncio.Event()
        self._started = threading.Event()
        self._start_error: BaseException | None = None
        self._stop_requested = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"warren-raft {node_id}", daemon=True)
        self._sync_thread = SyncThread(
            node_id,
            ring=self._bell.ring,
            call=self.call,
            broken=self._not_written,
            ended=self._sync_ended.set,
        )

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def thread(self) -> threading.Thread:
        return self._thread

    @property
    def syncs(self) -> Durations:
        """The batches of the log that were written, each with its sync."""
        return self._sync_thread.syncs

    def syncing_since(self) -> float | None:
        """When the batch that is being written to the log now began, on the monotonic clock; None: there is none."""
        return self._sync_thread.writing_since

    @property
    def submitted(self) -> Collection[W]:
        """Writes that the raft thread has not taken yet. They change at any time: copy them before iterating."""
        return self._submitted

    def start(self) -> None:
        """Returns when the port is bound. Raises InUse if another program has the port."""
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise InvariantViolation("the raft thread did not start")
        if self._start_error is not None:
            self._thread.join()
            raise self._start_error

    def stop(self, seconds: float = 2 * STOP_SECONDS) -> None:
        """End all waiting writes, close the links, and wait for the last batch of the log. Idempotent.

        Returns after `seconds` at the latest. If `thread.is_alive()` then, the raft thread hangs.
        """
        if self._thread.is_alive():
            self.request_stop()
            self._thread.join(seconds)

    def request_stop(self) -> None:
        """Like `stop`, without waiting: the raft thread ends as soon as it can."""
        self.call(self._stop_requested.set)

    def end_writes(self, reason: str) -> None:
        """End all writes, and accept no more. For threads of this package, also while the raft thread hangs."""
        self._finished = True
        self._writes.end_all(taken(self._submitted), reason)

    # From any thread ---------------------------------------------------------------------------------------------

    def submit(self, write: W) -> bool:
        """Hand a write to the raft thread. False: this manager has ended, and the write will never be ended here."""
        self._submitted.append(write)
        if self._finished:
            try:
                self._submitted.remove(write)
            except ValueError:  # `end_writes` has taken it
                return True
            return False
        try:
            if not self._woken:
                self._woken = True
                self._bell.ring()
        except BaseException:  # between the two lines: the other callers count on the bell
            self._bell.ring()
            raise
        return True

    def post(self, event: Event) -> None:
        """Pass an event from outside to the engine. It is dropped if the raft thread has ended."""
        self.call(self._take, event)

    def pulse(self) -> int:
        """A number that has changed at the next call if the raft thread lives. The thread wakes up for it."""
        self._bell.ring()
        return self._turns

    def set_credentials(self, credentials: Credentials) -> None:
        """Use another certificate for links; see Transport. For a manager that was started with a certificate."""

        def use() -> None:
            self._engine.renewed(credentials.identity)
            if self._transport is not None:
                self._transport.set_credentials(credentials)

        self.call(use)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the raft thread call a function, in the order of the calls, unless the thread has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed
            log_event(logger, logging.DEBUG, "call after the end", node=self._node_id, call=function.__name__)

    # In the raft thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        main = self._loop.create_task(self._main())
        try:
            self._loop.run_until_complete(main)
        except BaseException as error:  # noqa: BLE001 - SystemExit also ends an event loop
            self._broke(main, error)
        finally:
            self._loop.close()
            self.end_writes("the store is closed")

    def _broke(self, main: asyncio.Task[None], error: BaseException) -> None:
        """The raft thread broke. Stop this manager and close its links, so that no caller and no peer counts on it."""
        log_event(logger, logging.CRITICAL, "raft thread broke", node=self._node_id, exc_info=error)
        if not self._started.is_set():
            self._start_error = error
            self._started.set()
            return
        self._fail(InvariantViolation(f"the raft thread broke: {error!r}"))
        if not main.done():
            self._stop_requested.set()
            self._loop.run_until_complete(main)  # it shuts down, as after any failure

    def _background_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A callback or task of the loop failed. An error of the network costs a link. Any other error is a bug, and
        stops this manager: a manager that silently does not dial any more would be worse."""
        error = context.get("exception")
        loop.default_exception_handler(context)
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._fail(InvariantViolation(f"a background task of the raft thread failed: {error!r}"))

    async def _main(self) -> None:
        self._loop.set_exception_handler(self._background_failed)
        self._transport = transport = self._make_transport(
            listen=self._listen,
            node_id=self._node_id,
            hello=self._engine.hello,
            judge=self._engine.judge,
            on_link_up=lambda peer, link, hello, identity: self._take(LinkUp(peer, link, hello, identity)),
            on_link_down=lambda peer, link, *_: self._take(LinkDown(peer, link)),
            on_message=self._received,
            on_arriving=lambda peer, link, term: self._take(Arriving(peer, link, term)),
            on_refused=lambda peer, refusal, identity: self._take(Refused(peer, refusal, identity)),
            on_not_reached=lambda peer, why, refusal: self._take(NotReached(peer, why, refusal)),
            random=Random(),  # noqa: S311 - spreads redials; nothing secret
            credentials=self._credentials,
            flushes_itself=False,
        )
        try:
            await transport.start()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in start()
            self._start_error = error
            self._started.set()
            return
        self._sync_thread.start()
        self._workers.start()
        self._log_workers.start()
        self._is_running = True
        self._started.set()
        await self._stop_requested.wait()
        await self._shut_down()

    async def _shut_down(self) -> None:
        self._finished = True
        try:
            try:
                self._engine.close()
            finally:
                self.end_writes("the store is closed")
                assert self._transport is not None
                await self._transport.close()
        finally:
            await self._stop_threads()

    async def _stop_threads(self) -> None:
        self._sync_thread.stop()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._sync_ended.wait()
        except TimeoutError:
            log_event(
                logger, logging.WARNING, "log still being written", node=self._node_id, waited_seconds=STOP_SECONDS
            )
        for workers in (self._log_workers, self._workers):
            workers.shutdown(wait=self._sync_ended.is_set(), cancel_futures=True)

    def _received(self, peer: str, link: int, message: Message) -> None:
        if self.stamps is not None:
            self.stamps.add("arrived")
        self._take(Received(peer, link, message))

    def _take(self, event: Event) -> None:
        """The step comes when all sockets have been read that have something to read."""
        self._events.append(event)

    def _between(self) -> float:
        """Called by the loop before it waits: make the step that is due. Returns the time of the next one."""
        self._turns += 1
        if self._transport is None:
            return math.inf
        if self._is_running and not self._finished:
            now = time.monotonic()
            if self._sync_thread.has_results:
                self._events += self._sync_thread.take()
            if self._events or self._woken or now >= self._step_at:
                self._step(now)
        if self._transport.unflushed:
            self._transport.flush()
        return self._step_at if self._is_running and not self._finished else math.inf

    def _step(self, now: float) -> None:
        self._woken = False
        self.steps += 1
        events, self._events = self._events, []
        try:
            if self._submitted or self._has_more:
                self._take_submitted(events)
            self._step_engine(now, events)
            synced = self._sync_thread.wait(may_wait=not self._engine.has_to_apply)
            if synced is not None:
                self._step_engine(time.monotonic(), [synced])
            more = self._apply()
            if self.stamps is not None:
                self.stamps.add("applied", self._engine.applied_index)
            if now >= self._expire_at:
                self._expire_at = now + EXPIRE_SECONDS
                self._writes.expire(now, lambda: self._engine.hindrance)
            if self._writes.flush() and not self._wake_due:
                self._wake_late()
            self._has_more = self._writes.has_more
        except Exception as error:  # noqa: BLE001 - it is logged
            log_event(logger, logging.ERROR, "raft thread failed", node=self._node_id, exc_info=error)
            self._fail(InvariantViolation(f"the raft thread failed: {error!r}"))
            return
        seen = self._engine.view
        if seen != self._seen:
            self._seen = seen
            self._on_change()
        if self._engine.failure is not None:
            self._fail(self._engine.failure)
        self._step_at = LONG_AGO if more or self._has_more else self._engine.step_at

    def _apply(self) -> bool:
        before, began = self._engine.applied_index, time.monotonic()
        more = self._engine.apply()
        if self._engine.applied_index != before:
            ended = time.monotonic()
            self.applies.note(ended - began)
            self._engine.stages.applied(self._engine.applied_index, began, ended)
            on_applied = self.on_applied  # once: another thread may set it to None
            if on_applied is not None:
                on_applied()
        return more

    def _step_engine(self, now: float, events: list[Event]) -> None:
        transport, stamps = self._transport, self.stamps
        assert transport is not None
        if stamps is not None:
            stamps.add("step")
        effects = self._engine.step(now, events)
        if stamps is not None:
            stamps.add("stepped", self._log.last_index)
        for effect in effects:
            self._perform(transport, effect)
        if stamps is not None:
            stamps.add("handed")
        if transport.unflushed:
            transport.flush()
        if stamps is not None:
            stamps.add("sent")
        for event in events:
            if isinstance(event, Synced):
                self._remove()
                break

    def _take_submitted(self, events: list[Event]) -> None:
        proposals = self._writes.take(taken(self._submitted))
        if proposals:
            events.append(Submitted(proposals))
        barriers = self._writes.take_barriers()
        if barriers:
            events.append(BarriersWanted(barriers))

    def _wake_late(self) -> None:
        self._wake_due = self._writes.wake_late()
        if self._wake_due:
            self._loop.call_later(PATIENCE_SECONDS, self._wake_late)

    def _fail(self, error: WarrenError) -> None:
        if not self._finished:
            self._finished = True
            try:
                self._engine.close()
            finally:
                self._on_failure(error)
                self.end_writes(f"this manager stopped: {error}")
                self._stop_requested.set()

    def _perform(self, transport: Transport, effect: Effect) -> None:
        match effect:
            case Send(link, message):
                transport.send(link, message)
            case Cancel(link, number):
                transport.cancel(link, number)
            case WriteLog(batch):
                self._sync_thread.write(batch, self.stamps)
                self._prepare()
            case Work():
                self._workers.submit(self._work, effect)
            case Dial(peers):
                transport.set_peers(peers)
            case CloseLink(link, reason):
                transport.close_link(link, reason)

    # Workers -----------------------------------------------------------------------------------------------------

    def _not_written(self, problem: Exception) -> None:
        self._fail(InvariantViolation(f"the log's batch was not written: {problem!r}"))

    def _work(self, work: Work) -> None:
        try:
            done = Worked(work, work.job())
        except Exception as problem:  # noqa: BLE001 - the engine distinguishes "no space left" from a bug
            done = Worked(work, None, problem)
        self.call(self._take, done)

    def _remove(self) -> None:
        """Unlink the segments of the log that a snapshot covers."""
        if self._removing or self._finished:
            return
        work = self._log.removal()
        if work is not None:
            self._removing = True
            self._loop.run_in_executor(self._log_workers, work).add_done_callback(self._removed)

    def _removed(self, future: asyncio.Future[None]) -> None:
        self._removing = False
        error = future.exception()
        if isinstance(error, OSError):
            log_event(logger, logging.WARNING, "old log segments not removed", error, node=self._node_id)
        elif error is not None:
            raise error

    def _prepare(self) -> None:
        """Make the log's next segment ahead, so that a batch never waits for it."""
        if self._preparing or self._finished or not self._log.wants_preparation or self._engine.lacks_space:
            return  # low on space: a segment is made when it is needed, and is small
        work = self._log.preparation()
        if work is not None:
            self._preparing = True
            future = self._loop.run_in_executor(self._log_workers, work)
            future.add_done_callback(self._prepared)

    def _prepared(self, future: asyncio.Future[None]) -> None:
        self._preparing = False
        error = future.exception()
        if isinstance(error, OSError):
            log_event(logger, logging.WARNING, "next log segment not prepared", error, node=self._node_id)
        elif error is not None:
            raise error
