"""Callers on every manager: puts, conditions, deletes, batches, barriers with reads, plain local reads, retries; writes
with a fence, by callers that hold on to old terms; jobs, which several callers do under one request key.

Each simulated manager has one session, like a real one, and issues real commands. Only the work of the threads in
manager/calls.py (waiting, waking) is not here. Invariant: a value is written at most once, so a read value names its
writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.history import Call
from tests.simulation.world import Process, World
from warren_raft.errors import Unavailable
from warren_raft.fsm.answers import CONFLICT, LEADERSHIP_LOST, UNKNOWN_SESSION, Result
from warren_raft.model.entities import Service
from warren_raft.raft.barriers import Barrier
from warren_raft.raft.events import BarriersWanted, Submitted
from warren_raft.raft.submit import Proposal
from warren_raft.store import codec
from warren_raft.store.command import (
    NO_FENCE,
    VERSION,
    Command,
    Operation,
    Verb,
    encode,
)
from warren_raft.store.tables import SERVICE

CALM_TIMEOUT_SECONDS = 10.0
"""The timeout in the liveness phase: no caller gives up early."""


VALUES_MAX = 1_000_000
"""More values than the callers of one cluster write."""


FENCED, JOBS = 0.1, 0.06
"""Shares of the calls."""
NEWS = 0.3
"""Probability that a caller with a lead looks whether it is over."""
JOB_AGAIN = 0.6
JOBS_IN_REACH = 4
"""Only the newest jobs are attempted again, so that the attempts come close together, and also at the same time."""


@dataclass(slots=True)
class Job:
    """A write that is to be done once, by any caller. `key`: its request key, and the id of the service that it
    writes."""

    key: str
    values: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """The revisions that callers were told."""


def value_of(call: Call) -> str:
    """The value that a put or a conditional put writes."""
    return str(call.argument[1] if call.kind == "cas" else call.argument)


class Client:
    """The callers of one process. Its session ends with the process."""

    def __init__(self, workload: Workload, process: Process) -> None:
        self.workload = workload
        self.world = workload.world
        self.process = process
        self.random = self.world.random
        self.session = 0
        self.opening = False
        self.next_sequence = 1
        self.barriers = 0
        self.waiting: dict[int, Call | None] = {}
        self.seen: dict[str, int] = {}
        self.last_read_revision = 0
        self.lead = 0
        """The term in which this caller believes that its manager leads; 0: it does not. It may hold on to it for
        long after another manager leads, like a program that was paused."""
        self.name = f"{process.id}@{self.world.now:.3f}"
        self.fencing = Random(f"{self.world.options.seed} {self.name}")
        """Draws of its own for fenced writes and jobs."""
        self._again()

    def _again(self) -> None:
        self.world.after(self.random.expovariate(self.world.options.call_rate), self._turn)

    def _turn(self) -> None:
        if not self.process.alive or self.workload.ended:
            return
        if self.process.paused_until <= self.world.now and not self.workload.is_paused:
            if self.session:
                self._call()
            elif self.opening:
                self._read(f"key-{self.random.randrange(self.world.options.keys)}")  # a barrier needs no session
            elif self.process.engine.membership is not None:
                self._open_session()
        self._again()

    def _open_session(self) -> None:
        self.opening = True
        session = self.random.getrandbits(62) + 1

        def opened(result: Result | None) -> None:
            self.opening = False
            if result is not None and result.error is None:
                self.session = session

        self._submit(session, (Operation(Verb.OPEN_SESSION),), None, opened)

    # Calls -------------------------------------------------------------------------------------------------------

    def _call(self) -> None:
        key = f"key-{self.random.randrange(self.world.options.keys)}"
        draw = self.fencing.random()
        if draw < FENCED:
            return self._fenced(key)
        if draw < FENCED + JOBS:
            return self._job()
        kind = self.random.choices(["put", "cas", "delete", "batch", "read", "look"], [30, 25, 8, 7, 20, 10])[0]
        getattr(self, f"_{kind}")(key)
        return None

    def _put(self, key: str) -> None:
        value = self.workload.fresh_value()
        self._change("put", key, value, (self._put_operation(key, value),))

    def _fenced(self, key: str) -> None:
        """A put for the term in which this caller believes that its manager leads."""
        term = self.process.engine.leading_term
        if term != self.lead and self.fencing.random() < NEWS:
            self.lead = term or 0
        if not self.lead:
            return self._put(key)
        fence, value = self.lead, self.workload.fresh_value()
        call = self._begin("put", key, value)
        call.fence = fence
        is_old = term != fence

        def done(result: Result | None) -> None:
            self._end(call, result)
            if result is not None and result.error is None:
                self.world.faults["fenced write"] += 1
            elif result is not None and result.error is not None and result.error[0] == LEADERSHIP_LOST:
                call.result = "never"
                self.workload.never.add(id(call))
                self.world.faults["fenced write refused" if is_old else "fenced write overtaken by an election"] += 1

        self._submit(self.session, (self._put_operation(key, value),), call, done, fence=fence)
        return None

    def _job(self) -> None:
        """A write under a request key that any caller may make, also after another one made it, and died or heard no
        answer. Each attempt writes another value, so that the history tells which one was done."""
        jobs, value = self.workload.jobs, self.workload.fresh_value()
        if jobs and self.fencing.random() < JOB_AGAIN:
            job = jobs[-1 - self.fencing.randrange(min(len(jobs), JOBS_IN_REACH))]
            self.world.faults["job attempted again"] += 1
        else:
            job = Job(f"job-{value}")
            jobs.append(job)
        job.values.append(value)

        def done(result: Result | None) -> None:
            if result is not None and result.error is None:
                job.answers.append(result.revision)

        service = Service(id=job.key, image=value)
        operation = Operation(Verb.PUT, SERVICE.number, job.key, codec.encode(SERVICE, service))
        self._submit(self.session, (operation,), None, done, request_key=job.key)

    def _cas(self, key: str) -> None:
        value = self.workload.fresh_value()
        expected = self.seen.get(key, 0)
        operation = self._put_operation(key, value)._replace(if_revision=expected)
        self._change("cas", key, (expected, value), (operation,))

    def _delete(self, key: str) -> None:
        self._change("delete", key, None, (Operation(Verb.DELETE, SERVICE.number, key),))

    def _batch(self, key: str) -> None:
        """Two keys in one command: one call on each key, and one answer for both."""
        other = f"key-{self.random.randrange(self.world.options.keys)}"
        if other == key:
            return self._put(key)
        values = [self.workload.fresh_value(), self.workload.fresh_value()]
        operations = tuple(self._put_operation(k, v) for k, v in zip((key, other), values, strict=True))
        calls = [self._begin("put", k, v) for k, v in zip((key, other), values, strict=True)]

        def done(result: Result | None) -> None:
            for call in calls:
                self._end(call, result)

        self._submit(self.session, operations, calls[0], done)
        calls[1].request = calls[0].request
        return None

    def _read(self, key: str) -> None:
        """A barrier, then a local read: linearizable."""
        if self.version == 1:
            self._read_by_write(key)
            return
        call = self._begin("read", key, None)
        self.barriers += 1
        number = self.barriers

        def done(barrier: Barrier) -> None:
            del self.process.calls[0, number]  # of a barrier that ends twice there is none
            if barrier.error is not None:
                self._not_answered(call, barrier.error)
            elif self.process.alive:
                self.world.tell("barrier_passed", self.process, number)
                call.result = self._local(key)
                call.returned = self.world.now
                self.workload.passed(self.process, call)

        self.world.tell("barrier_began", self.process, number)
        barrier = self.process.calls[0, number] = Barrier(self._deadline(), done)
        self.process.take(BarriersWanted([barrier]))

    def _read_by_write(self, key: str) -> None:
        """The barrier of a cluster at level 1: a command without operations (manager/calls.py)."""
        if self.session == 0:
            return
        call = self._begin("read", key, None)

        def done(result: Result | None) -> None:
            if result is not None and result.error is None and self.process.alive:
                call.result = self._local(key)
                call.returned = self.world.now

        self._submit(self.session, (), call, done)

    def woke(self) -> None:
        """The process was suspended, and its first step has not come: a caller runs as soon as the raft thread does."""
        if self.process.alive and not self.workload.ended and not self.workload.is_paused:
            self._read(f"key-{self.random.randrange(self.world.options.keys)}")

    def _look(self, key: str) -> None:
        """A plain local read: as old as this manager's state, but never older than the last local read here."""
        revision = self.process.opened.machine.revision
        self.workload.looked(self.process, revision, key, self._local(key))

    def _local(self, key: str) -> tuple[int, Any]:
        with self.process.opened.database.read() as view:
            record = view.get(SERVICE, key)
        if record is None:
            return 0, None
        service = codec.decode(SERVICE, record)
        self.seen[key] = service.revision
        return service.revision, service.image

    def _put_operation(self, key: str, value: str) -> Operation:
        random, options = self.random, self.world.options
        is_large = random.random() < options.large_values
        env = ("x" * options.value_bytes,) if is_large else ()
        if is_large:
            self.world.faults["large value written"] += 1
        service = Service(id=key, image=value, name=f"name-{hash_free(value)}", env=env)
        entity = codec.encode(SERVICE, service)
        return Operation(Verb.PUT, SERVICE.number, key, entity)

    def _change(self, kind: str, key: str, argument: Any, operations: tuple[Operation, ...]) -> None:
        call = self._begin(kind, key, argument)
        self._submit(self.session, operations, call, lambda result: self._end(call, result))

    def _begin(self, kind: str, key: str, argument: Any) -> Call:
        call = Call(self.name, kind, key, argument, self.world.now)
        self.workload.calls.append(call)
        return call

    def _end(self, call: Call, result: Result | None) -> None:
        if result is None:
            return
        if result.error is None:
            call.result = result.revision
            self.seen[call.key] = result.revision if call.kind != "delete" else 0
        elif result.error[0] == CONFLICT:
            call.result = ("conflict", result.error[4])
            self.seen[call.key] = int(result.error[4])
        else:
            return
        call.returned = self.world.now
        self.workload.acknowledged += 1

    # Submitting --------------------------------------------------------------------------------------------------

    def _submit(
        self,
        session: int,
        operations: tuple[Operation, ...],
        call: Call | None,
        done: Callable[[Result | None], None],
        *,
        fence: int = NO_FENCE,
        request_key: str = "",
    ) -> None:
        version = self.version
        if version == 1 and (fence != NO_FENCE or request_key):
            self._not_answered(call, Unavailable("not all members can read it", maybe_applied=False))
            done(None)
            return
        sequence = self.next_sequence
        self.next_sequence += 1
        self.waiting[sequence] = call
        lowest = next(iter(self.waiting))
        data = encode(Command(session, sequence, lowest, operations, fence, request_key, version=version))
        if call is not None:
            call.request = (session, sequence)

        def ended(proposal: Proposal) -> None:
            self.waiting.pop(sequence, None)
            self.process.calls.pop((session, sequence), None)
            self.workload.answered(proposal)
            if proposal.error is not None:
                self._not_answered(call, proposal.error)
                done(None)
                return
            result: Result = proposal.outcome
            if result.error is not None and result.error[0] == UNKNOWN_SESSION and self.session == session:
                self.session = 0
            done(result)

        proposal = Proposal(session, sequence, data, self._deadline(), ended)
        self.process.calls[session, sequence] = proposal
        self.process.take(Submitted([proposal]))

    @property
    def version(self) -> int:
        """Of the commands that this process writes."""
        return self.process.engine.level if self.world.upgrades.is_on else VERSION

    def _deadline(self) -> float:
        seconds = CALM_TIMEOUT_SECONDS if self.world.is_calm else self.world.options.write_timeout
        return self.process.clock + seconds

    def _not_answered(self, call: Call | None, error: Exception) -> None:
        if call is not None and not getattr(error, "maybe_applied", False):
            call.result = "never"
            self.workload.never.add(id(call))
        self.workload.unanswered += 1


def hash_free(value: str) -> str:
    """A name that several values share, so that the index by name is used."""
    return str(sum(value.encode()) % 5)


class Workload:
    """All callers of a run, their calls and their answers."""

    def __init__(self, world: World, after: Workload | None = None) -> None:
        """`after`: the workload of the cluster before this one; its values must not be written again."""
        self.world = world
        self.calls: list[Call] = []
        self.jobs: list[Job] = []
        self.base_revision = 0
        """The revision after which the history of changes begins."""
        self.never: set[int] = set()
        self.clients: dict[str, Client] = {}
        self.acknowledged = 0
        self.unanswered = 0
        self.ended = False
        self.is_paused = False
        """No caller makes a call for a while."""
        self._values: int = 0 if after is None else after._values + VALUES_MAX
        self._answered: set[tuple[int, int]] = set()
        world.observers.append(self)

    def begin_with(self, found: Iterable[Service], revision: int) -> None:
        """Take over the records of the beginning, as if callers had just put them."""
        self.base_revision = revision
        now = self.world.now
        self.calls += [Call("restored", "put", s.id, s.image, now, now, s.revision) for s in found]

    def fresh_value(self) -> str:
        self._values += 1
        return f"v{self._values}"

    def started(self, process: Process) -> None:
        self.clients[process.id] = Client(self, process)

    def woke(self, process: Process) -> None:
        if process.id in self.clients and self.clients[process.id].process is process:
            self.clients[process.id].woke()

    def passed(self, process: Process, call: Call) -> None:
        """Count the barriers that passed, by the circumstances that bugs of barriers need."""
        checked, role = self.world.checked, process.engine.role
        checked[f"seen: barrier passed on a {role}"] += 1
        if process.woke_at is not None and call.invoked == process.woke_at:
            checked[f"seen: barrier of the moment of waking passed on a {role}"] += 1

    def answered(self, proposal: Proposal) -> None:
        key = (proposal.session, proposal.sequence)
        if key in self._answered:
            raise AssertionError(f"request {key} was answered twice")
        self._answered.add(key)

    def looked(self, process: Process, revision: int, key: str, found: tuple[int, Any]) -> None:
        self.world.tell("local_read", process, revision, key, found)

    def history(self) -> list[Call]:
        """Every call that may have taken effect."""
        return [call for call in self.calls if id(call) not in self.never]
