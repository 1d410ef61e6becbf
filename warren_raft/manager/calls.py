"""A write as its caller sees it: checked, handed to the raft thread, waited for, given up.

Everything here runs in the caller's thread, which shares no lock with the raft thread. Not here: the write in the raft
thread (session.py), its effect (fsm/). Invariant: a caller waits at most GRACE_SECONDS beyond its deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from warren_raft.errors import Closed, StorageFull, Unavailable
from warren_raft.manager.barrier_calls import GRACE_SECONDS, BarrierCall
from warren_raft.manager.disk_space import Space
from warren_raft.manager.lifetime import Lifetime
from warren_raft.manager.session import QUEUE_FULL, BarrierWrite, Call, Write, Writes
from warren_raft.raft.driver import Driver
from warren_raft.raft.engine import Engine
from warren_raft.store import levels
from warren_raft.store.command import NO_FENCE, PUT, Operation, encode_body, encode_operations
from warren_raft.store.fence import Fence
from warren_raft.store.request_memory import RequestMemory
from warren_raft.support import timeouts
from warren_raft.support.handover import Begun, Landing


def why_not_raised(engine: Engine) -> str:
    """Why a feature of a higher level cannot be used yet, as the rest of a sentence."""
    behind = ", ".join(engine.lagging(levels.WITH_ALL)) or "the leader raises it when it has heard all members"
    return (
        f"needs level {levels.WITH_ALL} of the command set, and the cluster is at level {engine.level} until every "
        f"member runs a release that reads it: {behind} (docs/upgrade.md)"
    )


def is_below(engine: Engine, level: int) -> bool:
    """Whether the cluster uses a lower level. Before there is a cluster nothing is sent, and the level of a new cluster
    is mostly the newest: callers wait for it with commands of the newest version (`too_new`)."""
    return engine.level < level and engine.membership is not None


def needs_entry(engine: Engine) -> bool:
    """Whether a barrier passes through the log as a command without operations: a leader of an older release does not
    know its questions. A manager that knows no cluster yet may be added to one that has such a leader."""
    return engine.level < levels.BEATS


def too_new(engine: Engine) -> str:
    """Why no command of the newest version may be sent; "": it may."""
    return "" if engine.level >= levels.WITH_ALL else f"the write {why_not_raised(engine)}"


class WriteCalls:
    """For any thread, and for signal handlers."""

    def __init__(
        self,
        node_id: str,
        write_timeout_seconds: float,
        *,
        life: Lifetime,
        driver: Driver[Call],
        writes: Writes,
        space: Space,
        request_memory: RequestMemory,
        revision: Callable[[], int],
    ) -> None:
        self._node_id = node_id
        self._timeout_seconds = write_timeout_seconds
        self._life = life
        self._driver = driver
        self._engine = driver.engine
        self._writes = writes
        self._slow = writes.slow
        self._space = space
        self._request_memory = request_memory
        self._revision = revision

    def run(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        """Carry out the operations. Returns the revision."""
        stamps = self._driver.stamps
        if stamps is not None:
            stamps.add("called", threading.get_ident())
        write = self._made(operations, timeout, request_key, fence)
        write.prepare_wait()
        if stamps is not None:
            stamps.add("submitted", write.thread)
        try:
            self._submit(write)
            ended = write.wait(write.deadline + GRACE_SECONDS - time.monotonic())
        except BaseException:
            write.give_up()
            raise
        if stamps is not None:
            stamps.add("answered", write.thread)
        if not ended:
            raise write.late()
        self._slow.woken(write)
        return write.result()

    def start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        """Begin to carry out the operations. The future gets the revision."""
        write = self._made(operations, timeout, request_key, fence)
        write.future = Future()
        write.future.set_running_or_notify_cancel()
        self._submit_without_waiting(write)
        return write.future

    def begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Write:
        """Begin to carry out the operations for a coroutine."""
        write = self._made(operations, timeout, request_key, fence)
        write.landing = landing
        self._submit_without_waiting(write)
        return write

    def _submit_without_waiting(self, write: Write) -> None:
        if self._writes.is_full(len(write.data), self._driver.submitted):
            if write.series is not None:
                write.series.failed(Unavailable.__name__)
            raise Unavailable(QUEUE_FULL, maybe_applied=False)
        self._submit(write)

    def barrier(self, timeout: float | None) -> int:
        """Wait until this manager has applied all that was acknowledged before, and all that this thread has written.
        Returns the revision. Raises Unavailable, Closed."""
        is_default = timeout is None  # nearly always
        deadline = time.monotonic() + self._timeout_seconds if is_default else timeouts.deadline(timeout)
        self._life.require()
        if needs_entry(self._engine):
            return self._barrier_by_write(timeout)
        barrier = BarrierCall(deadline, self._writes.barriers.ended, thread=threading.get_ident())
        barrier.prepare_wait()
        try:
            self._submit(barrier)
            ended = barrier.wait(deadline + GRACE_SECONDS - time.monotonic())
        except BaseException:
            barrier.give_up()
            raise
        if not ended:
            raise barrier.late()
        if barrier.error is not None:
            raise barrier.error.with_traceback(None)
        return self._revision()

    def _barrier_by_write(self, timeout: float | None) -> int:
        """The revision after a command without operations, which has passed through the log."""
        try:
            return self.run((), timeout)
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=False, of_write=False) from None

    def begin_barrier(self, timeout: float | None, landing: Landing) -> Begun[int]:
        """The same for a coroutine: it has awaited its own writes."""
        deadline = timeouts.deadline(timeout, self._timeout_seconds)
        self._life.require()
        if needs_entry(self._engine):
            write = self._made((), timeout, "", None, BarrierWrite)
            write.landing = landing
            self._submit_without_waiting(write)
            return write
        barrier = BarrierCall(deadline, self._writes.barriers.ended, caller=landing, revision=self._revision)
        self._submit(barrier)
        return barrier

    def _made(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        request_key: str,
        fence: Fence | None,
        of: type[Write] = Write,
    ) -> Write:
        deadline = timeouts.deadline(timeout, self._timeout_seconds)
        self._life.require()
        term = NO_FENCE if fence is None else fence.term
        series = self._writes.counts.of(operations)
        verbs = [operation.verb for operation in operations]
        needs_space = PUT in verbs
        if is_below(self._engine, levels.WITH_ALL):
            feature = levels.beyond_first(verbs, term, request_key)
            if feature:
                series.failed(Unavailable.__name__)
                raise Unavailable(f"{feature} {why_not_raised(self._engine)}", maybe_applied=False)
            data = encode_operations(operations)
        else:
            forget_below = self._request_memory.forget_below() if request_key else 0
            data = encode_body(operations, term, request_key, forget_below)
        if needs_space and self._engine.is_full:
            series.failed(StorageFull.__name__)
            raise StorageFull(self._why_full())
        return of(
            0,
            0,
            data,
            deadline,
            self._writes.done,
            needs_space=needs_space,
            fence=fence,
            thread=threading.get_ident(),
            series=series,
            begun=time.monotonic(),
        )

    def _submit(self, call: Call) -> None:
        if not self._driver.submit(call):
            self._life.require()
            raise Closed

    def _why_full(self) -> str:
        low = self._engine.low_members
        own = self._space.shortages if self._node_id in low else ()
        shortage = self._engine.shortage
        if shortage is not None and not shortage.is_space:
            own = (*own, f"{self._node_id}: {shortage.what}; {shortage.remedy}")
        others = [id_ for id_ in low if not own or id_ != self._node_id]
        told = [*own]
        if others:
            told.append(f"low on space: {', '.join(others)}, see {'its' if len(others) == 1 else 'their'} status")
        detail = "; ".join(told) or f"the leader {self._engine.leader} reports it"
        return f"too few managers have enough space for creates and updates; reads and deletes go on: {detail}"
