"""A write's way from any manager to the leader's log, and its result back: deadlines, retries, order.

PySyncObj's forwarding loses callbacks with a connection and applies a retried command twice (hole 10), so nothing of it
is used. Here the origin keeps each proposal until its own state machine has applied it, and sends it again whenever
leader, term or link changed; the request id inside makes that harmless. Not here: what a command is.
Invariant: a proposal ends exactly once, with the result that was applied or with an error.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from warren_raft.errors import StorageFull, Unavailable
from warren_raft.log_lines import log_event

logger = logging.getLogger("warren_raft.submit")

Message = dict[str, Any]
Key = tuple[int, int]

SUBMIT_BYTES: Final = 256 * 1024
"""Commands of one submit message together, unless the first alone is larger."""
COMMAND_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of one command. A frame has 64 KiB more, for what an entry and its message add: a longer one could be submitted, and
then stop each manager that has to send the entry on."""
QUEUE_BYTES: Final = 128 * 1024 * 1024
"""Commands of all managers waiting at the leader; beyond it the sender is told to come back."""
REFUSED_WAIT_SECONDS: Final = 0.05
"""A manager that was told "not the leader" waits so long before it asks again."""


class Outcome(Protocol):
    """What the state machine says of one command."""

    @property
    def session(self) -> int: ...
    @property
    def sequence(self) -> int: ...


@dataclass(slots=True, eq=False)
class Proposal:
    """One command on its way. `done(proposal)` is called once, in the raft thread, with `outcome` or `error` set."""

    session: int
    sequence: int
    data: bytes
    deadline: float
    """In the raft thread's clock, seconds."""
    done: Callable[[Proposal], None]
    outcome: Any = None
    error: Exception | None = None
    sent: bool = False
    """Whether it may have reached a log: it left this process, or this process's own log has it."""
    needs_room: bool = False
    """Whether it creates or updates something: it fails with StorageFull where a full disk was in its way."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where proposals go: the leader of a term, over one link (0: we lead ourselves)."""

    leader: str
    term: int
    link: int


class Submitter:
    """The proposals of this manager and, while it leads, the queue of all. Raft thread or simulator only."""

    def __init__(self, send: Callable[[str, Message], None]) -> None:
        self._send = send
        self._pending: dict[Key, Proposal] = {}
        self._waiting: deque[Proposal] = deque()
        self._route: Route | None = None
        self._not_before = -1e9
        self.queue: deque[tuple[str, bytes, Proposal | None]] = deque()
        """Commands that the leader has not proposed yet, in the order they came, each with the manager that sent it
        ("" for our own callers', with the proposal)."""
        self._queue_bytes = 0

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    def submit(self, proposals: Iterable[Proposal]) -> None:
        for proposal in proposals:
            self._pending[proposal.session, proposal.sequence] = proposal
            self._waiting.append(proposal)

    def set_route(self, route: Route | None) -> None:
        """Everything unanswered goes (again) to a leader that is new to us, in the old order."""
        if route == self._route:
            return
        if self._route is not None and self._route.link == 0:
            self.clear_queue()
        self._route = route
        self._not_before = -1e9
        self._waiting = deque(self._pending.values())

    def clear_queue(self) -> None:
        self.queue.clear()
        self._queue_bytes = 0

    def flush(self, now: float) -> None:
        """Hand what waits to the leader: our own queue, or messages to another manager."""
        route = self._route
        if route is None or not self._waiting or now < self._not_before:
            return
        if route.link == 0:
            while self._waiting and self._queue_bytes <= QUEUE_BYTES:
                proposal = self._waiting.popleft()
                if self._is_pending(proposal):
                    self._enqueue("", proposal.data, proposal)
            return
        while self._waiting:
            commands = self._next_message()
            if commands:
                self._send(route.leader, {"type": "submit", "commands": commands})

    def _next_message(self) -> list[bytes]:
        commands: list[bytes] = []
        size = 0
        while self._waiting:
            proposal = self._waiting[0]
            if commands and size + len(proposal.data) > SUBMIT_BYTES:
                break
            self._waiting.popleft()
            if self._is_pending(proposal):
                proposal.sent = True
                commands.append(proposal.data)
                size += len(proposal.data)
        return commands

    def _is_pending(self, proposal: Proposal) -> bool:
        return self._pending.get((proposal.session, proposal.sequence)) is proposal

    # At the leader -----------------------------------------------------------------------------------------------

    def receive(self, peer: str, commands: list[bytes], *, is_leader: bool) -> None:
        if not is_leader or self._queue_bytes > QUEUE_BYTES:
            self._send(peer, {"type": "submit_refused"})
            return
        for command in commands:
            self._enqueue(peer, command)

    def _enqueue(self, origin: str, command: bytes, proposal: Proposal | None = None) -> None:
        self.queue.append((origin, command, proposal))
        self._queue_bytes += len(command)

    def take(self, *, commands_max: int, bytes_max: int) -> tuple[list[bytes], frozenset[str]]:
        """Everything that waits becomes one entry (group commit), within bounds; at least one command if any waits.

        Also the other managers whose callers wait for it. What nobody waits for any more is passed over.
        """
        taken: list[bytes] = []
        origins: set[str] = set()
        size = 0
        queue = self.queue
        while queue and len(taken) < commands_max:
            if taken and size + len(queue[0][1]) > bytes_max:
                break
            origin, command, proposal = queue.popleft()
            self._queue_bytes -= len(command)
            if proposal is None:
                origins.add(origin)
            elif self._is_pending(proposal):
                proposal.sent = True
            else:
                continue
            taken.append(command)
            size += len(command)
        return taken, frozenset(origins)

    # Back at the origin ------------------------------------------------------------------------------------------

    def refused(self, peer: str, now: float) -> None:
        """The manager we took for the leader does not lead (any more), or is overloaded."""
        if self._route is not None and self._route.leader == peer and self._route.link != 0:
            self._not_before = now + REFUSED_WAIT_SECONDS
            self._waiting = deque(self._pending.values())

    def applied(self, outcomes: Iterable[Outcome]) -> None:
        pending = self._pending
        for outcome in outcomes:
            proposal = pending.pop((outcome.session, outcome.sequence), None)
            if proposal is not None:
                proposal.outcome = outcome
                _end(proposal)

    def expire(self, now: float, reason: str, *, full: bool = False) -> None:
        """End what has reached its deadline; `reason` says why nothing became of it. `full`: a full disk is why."""
        late = [key for key, proposal in self._pending.items() if proposal.deadline <= now]
        for key in late:
            proposal = self._pending.pop(key)
            if full and proposal.needs_room and not proposal.sent:
                proposal.error = StorageFull(reason)
            else:
                proposal.error = Unavailable(reason, maybe_applied=proposal.sent)
            _end(proposal)
        if late:
            self._drop_ended()
        if len(self._waiting) > 2 * len(self._pending):
            # What ended while there was no leader would be kept until there is one.
            self._waiting = deque(filter(self._is_pending, self._waiting))

    def fail_all(self, error: Callable[[Proposal], Exception]) -> None:
        pending, self._pending = self._pending, {}
        self._waiting.clear()
        for proposal in pending.values():
            proposal.error = error(proposal)
            _end(proposal)

    def _drop_ended(self) -> None:
        """A leader whose disk is full takes nothing from its queue, and callers come and give up."""
        if len(self.queue) > 2 * len(self._pending):
            kept = [item for item in self.queue if item[2] is None or self._is_pending(item[2])]
            self.queue = deque(kept)
            self._queue_bytes = sum(len(item[1]) for item in kept)


def _end(proposal: Proposal) -> None:
    """Tell whoever waits. Its own error is its own: stock applies a command twice when its callback raises (hole 5)."""
    try:
        proposal.done(proposal)
    except Exception as error:  # noqa: BLE001 - it is logged
        keys = {"session": proposal.session, "sequence": proposal.sequence}
        log_event(logger, logging.ERROR, "callback of a write failed", exc_info=error, **keys)
