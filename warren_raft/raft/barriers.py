"""Barriers of this manager's callers: the leader is asked for its commit index, and the index is waited for.

Lives here: from a caller's barrier to its end, on any manager. Not here: how a leader makes sure that it leads
(confirming.py), the waiting threads (manager/barrier_calls.py). No entry and no sync: raft/DESIGN.md, "Barriers".
Invariant: a barrier ends well only when this manager has applied an index that a leader gave in answer to a question
that was asked after the barrier was made. No two questions have the same number, not even after a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from warren_raft.errors import Closed, Unavailable
from warren_raft.raft.confirming import Confirming
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.core import Core
from warren_raft.raft.fitness import NO_QUORUM
from warren_raft.raft.messages import ReadIndex, ReadIndexIs
from warren_raft.raft.submit import Route

ASK_AGAIN_SECONDS: Final = 0.1
"""The leader is asked again after this time: it may have dropped the question because it did not lead yet."""
FIRST_NUMBER_BITS: Final = 61
"""A process begins with a number that it draws. With numbers from 1 on, a late answer to a question of the process
before would be taken for the answer to a new one, and its index would be too old (etcd-io/raft had this bug)."""


@dataclass(slots=True, eq=False)
class Barrier:
    """A call that waits until this manager has applied everything that was acknowledged before the call.

    `done(barrier)` is called once, in the raft thread, with `is_passed` or `error` set.
    """

    deadline: float
    """By the raft thread's clock, in seconds."""
    done: Callable[[Barrier], None]
    number: int = 0
    """Of the first question that was asked for it; 0: none was."""
    is_passed: bool = False
    error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self.error, self.is_passed = error, error is None
        self.done(self)


class Barriers:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, core: Core, confirming: Confirming) -> None:
        self._context = context
        self._node_id = context.node_id
        self._log = context.log
        self._outbox = context.outbox
        self._roster = context.roster
        self._core = core
        self._confirming = confirming
        self._new: list[Barrier] = []
        """No question was asked for them yet."""
        self._asked: deque[Barrier] = deque()
        """They wait for an answer, in the order of their numbers."""
        self._known: list[tuple[int, int, list[Barrier]]] = []
        """A heap: (index to be applied, count of the answers before, the barriers that wait for it)."""
        self._answers = 0
        self._number = 0
        """Of the newest question."""
        self._route: Route | None = None
        """The manager that was asked last, in its term, over which link (0: this manager)."""
        self._asked_at = LONG_AGO

    @property
    def is_waiting(self) -> bool:
        return bool(self._new or self._asked or self._known)

    @property
    def is_due(self) -> bool:
        """Whether a barrier may pass as soon as entries are applied that may be applied now."""
        return bool(self._known) and self._known[0][0] <= min(self._log.commit_index, self._log.synced_index)

    def add(self, barriers: Iterable[Barrier]) -> None:
        self._new += barriers

    # The index -----------------------------------------------------------------------------------------------------

    def go_on(self, now: float) -> None:
        """Ask the leader if there are new barriers, if it is another one, or if it has not answered for long."""
        if not self._new and not self._asked:
            return
        route = self._route_now()
        is_late = now - self._asked_at >= ASK_AGAIN_SECONDS
        if route is None or (route == self._route and not self._new and not is_late):
            return
        self._route, self._asked_at = route, now
        self._number = self._number + 1 if self._number else self._context.random.getrandbits(FIRST_NUMBER_BITS) + 1
        for barrier in self._new:
            barrier.number = self._number
        self._asked += self._new
        self._new = []
        if route.link == 0:
            self._confirming.ask(self._node_id, self._number)
        else:
            self._outbox.send(route.leader, ReadIndex(number=self._number))

    def _route_now(self) -> Route | None:
        leader, links = self._core.leader, self._roster.links
        if self._core.is_leader:
            return Route(self._node_id, self._core.term, 0)
        if leader is None or leader not in links or leader == self._node_id:
            return None
        return Route(leader, self._core.term, links[leader].number)

    def on_read_index_is(self, peer: str, message: ReadIndexIs) -> None:
        """Only the manager that was asked last is believed, and only over the link on which it was asked."""
        route, link = self._route, self._roster.links[peer].number
        if route is not None and (route.leader, route.link) == (peer, link) and message.number <= self._number:
            self._answered(message.number, message.index)

    def hear_own(self) -> None:
        """Take the answer of this manager, if it leads."""
        own = self._confirming.take_own()
        if own is not None:
            self._answered(*own)

    def _answered(self, number: int, index: int) -> None:
        """A question was answered, and with it all questions before it."""
        asked, answered = self._asked, []
        while asked and asked[0].number <= number:
            answered.append(asked.popleft())
        if answered:
            heappush(self._known, (index, self._answers, answered))
            self._answers += 1

    # The end -------------------------------------------------------------------------------------------------------

    def applied(self) -> None:
        """End the barriers whose index is applied."""
        applied_index = self._context.machine.applied_index
        while self._known and self._known[0][0] <= applied_index:
            for barrier in heappop(self._known)[2]:
                barrier.is_passed = True
                barrier.done(barrier)

    def expire(self, now: float) -> None:
        """End the barriers that have reached their deadlines."""
        if not self.is_waiting:
            return
        late = [barrier for barrier in (*self._new, *self._asked) if barrier.deadline <= now]
        if late:
            self._new = [barrier for barrier in self._new if barrier.deadline > now]
            self._asked = deque(barrier for barrier in self._asked if barrier.deadline > now)
            for barrier in late:
                barrier.end(_unavailable(NO_QUORUM))
        for index, _, barriers in self._known:
            late = [barrier for barrier in barriers if barrier.deadline <= now]
            if late:
                barriers[:] = [barrier for barrier in barriers if barrier.deadline > now]
                reason = f"{self._node_id} had not applied the log up to index {index} before the deadline"
                for barrier in late:
                    barrier.end(_unavailable(reason))
        if not all(barriers for _, _, barriers in self._known):
            self._known = sorted(item for item in self._known if item[2])  # a sorted list is a heap

    def fail_all(self, reason: str) -> None:
        """This manager ends."""
        waiting = [*self._new, *self._asked, *(barrier for _, _, barriers in self._known for barrier in barriers)]
        self._new, self._known = [], []
        self._asked.clear()
        for barrier in waiting:
            barrier.end(Closed(reason))


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(reason, maybe_applied=False, of_write=False)
