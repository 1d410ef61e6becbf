"""A write's way from any manager to the leader's log, and its result back: deadlines, retries, order.

PySyncObj's forwarding loses callbacks with a connection and applies a retried command twice (docs/pysyncobj-holes.md,
hole 10), so we do not use it. Here the manager of the caller keeps each proposal until its own state machine has
applied it, and sends it again whenever the leader, the term or the link changed; the request id inside makes that
harmless. Not here: large commands, which have a way of their own (large.py) so that others can pass them, and the
contents of a command. Invariant: a proposal ends exactly once, with the applied result or with an error.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from warren_raft.errors import StorageFull, Unavailable
from warren_raft.raft.large import (
    LARGE_BYTES,
    Large,
    LargeEntries,
    LentCommands,
)
from warren_raft.raft.messages import Submit, SubmitRefused
from warren_raft.raft.outbox import Sender
from warren_raft.raft.thread_order import ThreadOrder
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.submit")

Key = tuple[int, int]

SUBMIT_BYTES: Final = 256 * 1024
"""The commands of one submit message together, unless the first command alone is larger."""
QUEUE_BYTES: Final = 128 * 1024 * 1024
"""Commands of all managers that wait at the leader; beyond it the sender is told to try again."""
SUBMIT_WINDOW_BYTES: Final = 1024 * 1024
"""Small commands on their way to the leader without an answer. Further commands wait here, where a command ends at its
deadline without being sent. In the link's queue they would fill a thin link until it is dropped."""
REFUSED_WAIT_SECONDS: Final = 0.05
"""A manager that was told "not the leader" waits this long before it asks again."""


class Outcome(Protocol):
    """The state machine's result for one command."""

    @property
    def session(self) -> int: ...
    @property
    def sequence(self) -> int: ...


class Fence(Protocol):
    """The fence of a command, as seen from its lead. The term of the lead is in the command."""

    @property
    def is_over(self) -> bool:
        """Whether the command must not come into a log any more. Never False again."""

    def refusal(self) -> Exception: ...


@dataclass(slots=True, eq=False)
class Proposal:
    """One command on its way. `done(proposal)` is called once, in the raft thread, with `outcome` or `error` set."""

    session: int
    sequence: int
    data: bytes
    deadline: float
    """By the raft thread's clock, in seconds."""
    done: Callable[[Proposal], None]
    outcome: Any = None
    error: Exception | None = None
    sent: bool = False
    """Whether the command may have reached a log: it left this process, or is in this manager's own log."""
    needs_space: bool = False
    """Whether the command creates or updates something: if no space is left, it fails with StorageFull."""
    thread: int = 0
    """The thread that made the command. The writes of a thread keep their order; 0: no order."""
    is_large: bool = False
    """Whether the command goes the way of large commands (large.py)."""
    is_held: bool = False
    """Whether the command waits for earlier commands of its thread (thread_order.py)."""
    fence: Fence | None = None
    link: int = -1
    """The link that a small command was sent on, so that it counts as under way there; -1: it was not sent."""
    tries: int = 0
    """How often the command was queued at this leader, or sent to another one."""
    sent_at: float = 0.0
    """When it was last sent to another manager; 0: never."""
    index: int = 0
    """The entry by which it was applied here; 0: it was not applied."""

    @property
    def is_pending(self) -> bool:
        """Whether the command has not ended."""
        return self.outcome is None and self.error is None


_is_pending: Final = attrgetter("is_pending")


class Route(NamedTuple):
    """The way that proposals go: to the leader of a term, over one link (0: this manager leads)."""

    leader: str
    term: int
    link: int


class Submitter:
    """The proposals of this manager and, while it leads, the queue of all managers.

    For the raft thread or a simulator only.
    """

    def __init__(self, outbox: Sender, large_bytes: int = LARGE_BYTES) -> None:
        self._outbox = outbox
        self.large_bytes = large_bytes
        """A command above this size is large."""
        self.large = LargeEntries(outbox)
        """The large commands of all managers, while this manager leads."""
        self.lent: LentCommands[Proposal] = LentCommands(outbox, self.large)
        self._order: ThreadOrder[Proposal] = ThreadOrder()
        self._has_released = False
        self._pending: dict[Key, Proposal] = {}
        self._waiting: deque[Proposal] = deque()
        self._waiting_large: deque[Proposal] = deque()
        self._route: Route | None = None
        self._sent_bytes = 0
        """Bytes of the small commands that were sent on the present route and have no answer yet."""
        self._not_before = self._large_not_before = -1e9
        self.queue: deque[tuple[str, bytes, Proposal | None, float]] = deque()
        """Commands that the leader has not proposed yet, in the order in which they came, each with the manager that
        sent it and the time at which it came. For a command of our own callers that manager is "", the proposal comes
        with it, and the time is 0."""
        self.came_at = 0.0
        """When the oldest command of other managers came that the last `take` returned; 0: there was none."""
        self._queue_bytes = 0

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    @property
    def is_queueing(self) -> bool:
        """Whether there may be commands to propose."""
        return bool(self.queue) or self.large.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether `flush` may have commands to send."""
        return bool(self._waiting or self._waiting_large)

    @property
    def has_released(self) -> bool:
        """Whether writes that were held were released since the last `flush`."""
        return self._has_released and self.is_waiting

    def submit(self, proposals: Iterable[Proposal]) -> None:
        pending, order = self._pending, self._order
        for proposal in proposals:
            pending[proposal.session, proposal.sequence] = proposal
            if len(proposal.data) > self.large_bytes:
                proposal.is_large = True
            elif not order.threads:  # nearly always
                self._waiting.append(proposal)
                continue
            if order.admit(proposal, pending.values()):
                self._line_up(proposal)

    def _line_up(self, proposal: Proposal) -> None:
        (self._waiting_large if proposal.is_large else self._waiting).append(proposal)

    def set_route(self, route: Route | None) -> None:
        """Send all proposals without an answer over the new route, in their old order: to another leader, or to the
        same one over a new link or in a new term."""
        if route == self._route:
            return
        if self._route is not None and self._route.link == 0:
            self.clear_queue()
        self._route = route
        self._not_before = self._large_not_before = -1e9
        self._line_up_small()
        self._line_up_large()

    def state_replaced(self) -> None:
        """Another state has replaced ours. The commands that it contains are never applied here, so a caller that waits
        for one would get no answer. So send all proposals without an answer again; each gets its first result."""
        self.lent.overtake()
        self.set_route(None)

    def _line_up_small(self) -> None:
        self._sent_bytes = 0
        self._waiting.clear()
        for proposal in self._pending.values():
            if not proposal.is_large and not proposal.is_held:
                proposal.link = -1
                self._waiting.append(proposal)

    def _line_up_large(self) -> None:
        """All large commands, except those that the leader has or is getting over the present link."""
        lent = [] if self._route is None else self.lent.awaited(self._route.leader)
        under_way = {(proposal.session, proposal.sequence) for proposal in lent}
        pending = ((key, each) for key, each in self._pending.items() if each.is_large and not each.is_held)
        self._waiting_large = deque(each for key, each in pending if key not in under_way)

    def clear_queue(self) -> None:
        self.queue.clear()
        self._queue_bytes = 0
        self.large.clear()

    def flush(self, now: float) -> None:
        """Hand the waiting commands to the leader: put them into our own queue, or send messages to another manager."""
        route = self._route
        self._has_released = False
        if route is None:
            return
        if route.link == 0:
            self._queue_own()
            return
        while self._waiting and self._sent_bytes < SUBMIT_WINDOW_BYTES and now >= self._not_before:
            commands = self._next_message(now)
            if commands:
                self._outbox.send(route.leader, Submit(commands))
        while self._waiting_large and now >= self._large_not_before:
            if not self.lent.has_room_for(route.leader, self._waiting_large[0]):
                break
            proposal = self._waiting_large.popleft()
            if proposal.is_pending:
                proposal.tries += 1
                proposal.sent_at = now
                self.lent.send(route.leader, proposal, now)

    def _queue_own(self) -> None:
        waiting, queue = self._waiting, self.queue
        while waiting and self._queue_bytes <= QUEUE_BYTES:
            proposal = waiting.popleft()
            if proposal.is_pending:
                proposal.tries += 1
                queue.append(("", proposal.data, proposal, 0.0))
                self._queue_bytes += len(proposal.data)
        while self._waiting_large and self.large.has_room:
            proposal = self._waiting_large.popleft()
            if proposal.is_pending:
                proposal.tries += 1
                self.large.add(Large(proposal.data, proposal.deadline, waiter=proposal))

    def _next_message(self, now: float) -> list[bytes]:
        commands: list[bytes] = []
        size = 0
        while self._waiting:
            proposal = self._waiting[0]
            if commands and size + len(proposal.data) > SUBMIT_BYTES:
                break
            self._waiting.popleft()
            if proposal.is_pending:
                proposal.sent = True
                proposal.tries += 1
                proposal.sent_at = now
                proposal.link = self._route.link if self._route is not None else -1
                commands.append(proposal.data)
                size += len(proposal.data)
        self._sent_bytes += size
        return commands

    # At the leader -----------------------------------------------------------------------------------------------

    def receive(self, peer: str, commands: list[bytes], *, is_leader: bool, now: float = 0.0) -> None:
        if not is_leader or self._queue_bytes > QUEUE_BYTES:
            self._outbox.send(peer, SubmitRefused())
            return
        for command in commands:
            self.queue.append((peer, command, None, now))
            self._queue_bytes += len(command)

    def take(self, *, commands_max: int, bytes_max: int) -> tuple[list[bytes], frozenset[str]]:
        """Take the waiting commands for one entry (group commit), within bounds; at least one if any waits.

        Returns the commands, and the other managers that sent some of them. Commands of our own callers that do
        not wait any more, or whose lead is over, are left out.
        """
        taken: list[bytes] = []
        senders: set[str] = set()
        size = 0
        queue = self.queue
        self.came_at = 0.0
        while queue and len(taken) < commands_max:
            if taken and size + len(queue[0][1]) > bytes_max:
                break
            sender, command, proposal, came_at = queue.popleft()
            self._queue_bytes -= len(command)
            if proposal is None:
                senders.add(sender)
                self.came_at = self.came_at or came_at
            elif not proposal.is_pending or self._is_refused(proposal):
                continue
            else:
                proposal.sent = True
            taken.append(command)
            size += len(command)
        return taken, frozenset(senders)

    def next_large(self, node_id: str, voters: frozenset[str]) -> Large | None:
        """The large command that is to become an entry now, alone: a majority holds its bytes."""
        while (large := self.large.next_ready(node_id, voters)) is not None:
            waiter: Proposal | None = large.waiter
            if waiter is None or (waiter.is_pending and not self._is_refused(waiter)):
                return large
            self.large.drop_next()
        return None

    def _is_refused(self, proposal: Proposal) -> bool:
        """End a command whose lead is over, unless an earlier copy may be in a log: the program's next lead begins with
        a command behind all of the old one (leadership/lead.py). Only the leader of its term could carry it out, and
        that is this manager, so it is enough to look at its own commands, right before they are proposed."""
        fence = proposal.fence
        if fence is None or not fence.is_over or proposal.sent:
            return False
        del self._pending[proposal.session, proposal.sequence]
        proposal.error = fence.refusal()
        self._answered(proposal)
        _end(proposal)
        return True

    def large_proposed(self, large: Large, index: int) -> None:
        if large.waiter is not None:
            large.waiter.sent = True
        self.large.proposed(index)

    # Back at the sender ------------------------------------------------------------------------------------------

    def refused(self, peer: str, now: float) -> None:
        """The manager that we took for the leader does not lead (any more), or its queue is full."""
        if self._route is not None and self._route.leader == peer and self._route.link != 0:
            self._not_before = now + REFUSED_WAIT_SECONDS
            self._line_up_small()

    def large_ended(self, peer: str, number: int, now: float, *, again: bool) -> None:
        """A manager does not need the large command any more that we sent to it. `again`: it was not proposed, because
        that manager does not lead or its queue is full."""
        self.lent.ended(peer, number, again=again)
        if again and self._route is not None and self._route.leader == peer:
            self._large_not_before = now + REFUSED_WAIT_SECONDS
            self._line_up_large()

    def link_down(self, peer: str) -> None:
        self.lent.link_down(peer)
        self.large.link_down(peer)

    def applied(self, outcomes: Iterable[Outcome], index: int) -> None:
        """The entry at an index was applied, with these outcomes of its commands."""
        pending = self._pending
        for outcome in outcomes:
            proposal = pending.pop((outcome.session, outcome.sequence), None)
            if proposal is not None:
                proposal.outcome = outcome
                proposal.index = index
                self._answered(proposal)
                _end(proposal)

    def _answered(self, proposal: Proposal) -> None:
        """The proposal is not pending any more."""
        if proposal.link >= 0 and self._route is not None and proposal.link == self._route.link:
            self._sent_bytes -= len(proposal.data)
        if self._order.threads and proposal.thread:
            for released in self._order.ended(proposal):
                self._line_up(released)
                self._has_released = True

    def expire(self, now: float, reason: str, *, full: bool = False) -> None:
        """End the proposals that have reached their deadline; `reason` says why they got no result. `full`: the reason
        is that no space is left."""
        late = [key for key, proposal in self._pending.items() if proposal.deadline <= now]
        for key in late:
            proposal = self._pending.pop(key)
            proposal.error = expired(proposal, self._too_slow(proposal) or reason, full=full)
            self._answered(proposal)
            _end(proposal)
        if late:
            self._drop_ended()
            self.lent.cancel(_is_pending)
        if len(self._waiting) > 2 * len(self._pending):
            # Otherwise proposals that end while there is no leader would be kept until there is a leader.
            self._waiting = deque(filter(_is_pending, self._waiting))
        if len(self._waiting_large) > 2 * len(self._pending):
            self._waiting_large = deque(filter(_is_pending, self._waiting_large))

    def _too_slow(self, proposal: Proposal) -> str:
        """Why a large command is late, if its bytes are still on their way; "": they are not."""
        route = self._route
        if not proposal.is_large or proposal.is_held or route is None:
            return ""
        lent = self.lent.of(route.leader).values()
        if proposal.sent if route.link == 0 else all(each is not proposal for each in lent):
            return ""
        return f"its {len(proposal.data):,} bytes did not get to a majority of the managers by the deadline"

    def fail_all(self, error: Callable[[Proposal], Exception]) -> None:
        pending, self._pending = self._pending, {}
        self._waiting.clear()
        self._waiting_large.clear()
        self._order.clear()
        for proposal in pending.values():
            proposal.error = error(proposal)
            _end(proposal)

    def _drop_ended(self) -> None:
        """Remove ended proposals from the queue: while no space is left the leader takes nothing from it, and more
        callers come and give up."""
        if len(self.queue) > 2 * len(self._pending):
            kept = [item for item in self.queue if item[2] is None or item[2].is_pending]
            self.queue = deque(kept)
            self._queue_bytes = sum(len(item[1]) for item in kept)


def expired(proposal: Proposal, reason: str, *, full: bool) -> Exception:
    """The error for a proposal that reached its deadline, see Submitter.expire."""
    if full and proposal.needs_space and not proposal.sent:
        return StorageFull(reason)
    return Unavailable(reason, maybe_applied=proposal.sent)


def _end(proposal: Proposal) -> None:
    """Call the caller's callback. An error in it is only logged: stock PySyncObj applies a command twice if its
    callback raises (docs/pysyncobj-holes.md, hole 5)."""
    try:
        proposal.done(proposal)
    except Exception as error:  # noqa: BLE001 - it is logged
        keys = {"session": proposal.session, "sequence": proposal.sequence}
        log_event(logger, logging.ERROR, "callback of a write failed", exc_info=error, **keys)
