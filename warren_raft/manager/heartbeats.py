"""Heartbeats of nodes at a manager: the calls of its callers, and the thread that writes "down" and "ready" as leader.

Not here: the beats of all managers and which nodes are due (raft/beats.py), the rules (heartbeats/judging.py).
Invariant: only a change of a node's status is written, by the leader, and only if it is proposed in the term in which
it was decided.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Final

from warren_raft.errors import Closed, StorageFull, Unavailable
from warren_raft.heartbeats.changes import Changes
from warren_raft.heartbeats.judging import Judge, Judgement
from warren_raft.manager.calls import WriteCalls, is_below, why_not_raised
from warren_raft.manager.lifetime import Lifetime
from warren_raft.model.entities import Node, NodeStatus
from warren_raft.raft.beats import Verdict
from warren_raft.raft.engine import Engine
from warren_raft.store import levels, lookup
from warren_raft.store.fence import Fence
from warren_raft.store.tables import NODE
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.manager.heartbeats")

LOOK_SECONDS: Final = 0.2
FORGET_SECONDS: Final = 5.0
"""How often a follower forgets the beats of nodes that do not exist any more."""
AGAIN_SECONDS: Final = 5.0
"""The pause after an error."""
WRITE_SECONDS: Final = 5.0
"""A change that is not done after this is decided again."""
CHANGES_MAX: Final = 256
"""Changes on their way at a time."""


class Heartbeats:
    """`beat` and `age` for any thread; `run` is the thread of this part."""

    def __init__(
        self,
        node_id: str,
        life: Lifetime,
        engine: Engine,
        calls: WriteCalls,
        *,
        leases: Callable[[], Mapping[str, float]],
    ) -> None:
        """`leases()`: those of the state in use."""
        self._node_id = node_id
        self._leases = leases
        self._leasing: Future[int] | None = None
        """The command of leases that is on its way."""
        self._life = life
        self._engine = engine
        self._beats = engine.beats
        self._calls = calls
        self._judge: Final = Judge()
        self._changes: Final = Changes(node_id)
        self._under_way: dict[str, Future[int]] = {}
        self._forget_at = 0.0
        self.taken = 0
        """Beats of this manager's callers."""

    def beat(self, node_id: str, ttl_seconds: float) -> None:
        """Take the beat of a node that exists. Raises Unavailable if no leader was heard for a while, or if a member
        runs a release without heartbeats, and Closed."""
        self._life.require()
        if is_below(self._engine, levels.BEATS):
            reason = f"the heartbeat of {node_id} {why_not_raised(self._engine)}"
            raise Unavailable(reason, maybe_applied=False, of_write=False)
        self.taken += 1
        if not self._beats.take(node_id, ttl_seconds, time.monotonic()):
            reason = f"{self._node_id} hears no leader; it keeps the beat of {node_id} and will tell the next leader"
            raise Unavailable(f"{reason}; send the beat to another manager too", maybe_applied=True, of_write=False)

    def age(self, node_id: str) -> float | None:
        """Seconds since the last beat that is known here. Raises Closed."""
        self._life.require()
        return self._beats.table.age_of(node_id, time.monotonic())

    # The thread --------------------------------------------------------------------------------------------------

    def run(self, stopping: threading.Event) -> None:
        pause = LOOK_SECONDS
        while not stopping.wait(pause):
            pause = LOOK_SECONDS
            try:
                if self._engine.level >= levels.BEATS and (self._beats.table.known or self._leases()):
                    self._look()
            except Closed:  # or another state has just replaced the one that was read
                if not self._life.is_alive:
                    return
            except Exception as error:  # noqa: BLE001  a damaged record, for example; nodes must not be left alone then
                log_event(logger, logging.ERROR, "heartbeats not judged", error, node=self._node_id, exc_info=error)
                pause = AGAIN_SECONDS

    def _look(self) -> None:
        verdict = self._beats.verdict
        if verdict.term == 0:
            self._judge.begin()
            if time.monotonic() >= self._forget_at:
                self._nodes()
            return
        nodes = self._nodes()
        found = self._judge.look(nodes, self._beats.table, self._leases(), verdict.due, datetime.now(UTC))
        for node_id in found.called_ready:  # first: a node that is watched must not be due by its old beat
            beat = self._beats.table.known.get(node_id)
            if beat is not None:
                self._beats.take(node_id, beat.ttl_seconds, time.monotonic())
        self._beats.watched = found.watched
        try:
            self._write(found, verdict)
        except (StorageFull, Unavailable):
            return  # no space, which is an alarm, or a full queue: the next look decides again

    def _nodes(self) -> list[Node]:
        """All nodes. The beats of others are forgotten."""
        known = list(self._beats.table.known)  # before the nodes are read: a new node may beat at any moment
        database = self._life.database
        if database is None:
            raise Closed
        with database.begin() as txn:
            nodes = lookup.everything(database, txn, NODE)
        self._beats.table.gone = set(known).difference(node.id for node in nodes)
        self._forget_at = time.monotonic() + FORGET_SECONDS
        return nodes

    def _write(self, found: Judgement, verdict: Verdict) -> None:
        if found.leased and (self._leasing is None or self._leasing.done()):
            self._leasing = self._calls.start(tuple(found.leased), WRITE_SECONDS, fence=Fence(verdict.term))
        for node_id in [node_id for node_id, future in self._under_way.items() if future.done()]:
            self._ended(node_id, self._under_way.pop(node_id))
        for node in found.changed:
            if node.id in self._under_way:
                continue
            if len(self._under_way) >= CHANGES_MAX:
                return
            operation = self._changes.operation(node)
            if operation is None:
                continue
            self._under_way[node.id] = self._calls.start((operation,), WRITE_SECONDS, fence=Fence(verdict.term))
            age = self._beats.table.age_of(node.id, time.monotonic())
            what = "node is down" if node.status == NodeStatus.DOWN else "node is ready"
            level = logging.WARNING if node.status == NodeStatus.DOWN else logging.INFO
            log_event(logger, level, what, node=self._node_id, subject=node.id, age_seconds=age, term=verdict.term)

    def _ended(self, node_id: str, future: Future[int]) -> None:
        """A change that was refused is decided again: the node, or the leader, has changed meanwhile."""
        error = future.exception()
        if error is not None:
            log_event(
                logger, logging.DEBUG, "change of a node refused", str(error), node=self._node_id, subject=node_id
            )
