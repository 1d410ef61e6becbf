"""Heartbeats of nodes in a simulated cluster. The rules by which nodes become down or ready are the product's.

Not here: those rules (heartbeats/judging.py). Invariant: a change of status is written only while there is a leader.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from warren_raft.errors import Unavailable
from warren_raft.heartbeats.changes import Changes
from warren_raft.heartbeats.judging import Judge
from warren_raft.raft.beat_table import MARK_BITS, Beat, BeatTable
from warren_raft.store.command import NO_SESSION, Operation, encode_body, with_request_id
from warren_raft.testing.simulated.log import Flight
from warren_raft.testing.simulated.schedule import described_write

if TYPE_CHECKING:
    from warren_raft.testing.simulated.cluster import Manager, SimulatedCluster

LOOK_SECONDS: Final = (0.5, 1.0)
"""The pause between two looks of the leader at all nodes."""
UNHEARD_SECONDS: Final = 1.0
"""After how long without a leader a manager refuses a beat."""


class Beats:
    """The beats of all managers, as the leader knows them."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._table = BeatTable(cluster.random.getrandbits)
        self._judge = Judge()
        self._term = 0
        self._looks = False

    def take(self, manager: Manager, node_id: str, ttl_seconds: float) -> None:
        """A program brings a beat. Raises Unavailable."""
        cluster = self._cluster
        now, cut_off_at = cluster.turns.now, manager.cut_off_at
        self._table.known[node_id] = Beat(ttl_seconds, now, cluster.random.getrandbits(MARK_BITS) or 1)
        if not self._looks:
            self._looks = True
            cluster.after(LOOK_SECONDS, self._look)
        if cut_off_at is not None and now - cut_off_at > UNHEARD_SECONDS:
            raise Unavailable("simulated: no leader was heard", maybe_applied=False, of_write=False)

    def age(self, node_id: str) -> float | None:
        """Seconds since the last beat."""
        beat = self._table.known.get(node_id)
        return None if beat is None or not beat.mark else self._cluster.turns.now - beat.at

    def _look(self) -> None:
        """Write the changes that are due, as the leader does."""
        cluster, table = self._cluster, self._table
        cluster.after(LOOK_SECONDS, self._look)
        leader = cluster.leader
        if leader is None or not cluster.serves:
            return
        if cluster.log.term != self._term:
            self._term = cluster.log.term
            self._judge.begin()
        table.now = cluster.turns.now
        leases = dict(leader.machine.leases)
        for node_id, ttl_seconds in leases.items():
            table.begin_to_count(node_id, ttl_seconds)
        nodes = leader.nodes()
        known = table.known
        for node_id in known.keys() - {node.id for node in nodes}:
            del known[node_id]
        due = {node_id for node_id, beat in known.items() if table.now - beat.at > beat.ttl_seconds}
        utc_now = datetime.fromtimestamp(cluster.turns.time(), UTC)
        found = self._judge.look(nodes, table, leases, due, utc_now)
        for node_id in found.called_ready:
            known[node_id] = known[node_id]._replace(at=table.now)
        changes = [Changes(leader.id).operation(node) for node in found.changed]
        for operation in [*changes, *found.leased]:
            if operation is not None:
                self._write(leader, operation)

    def _write(self, leader: Manager, operation: Operation) -> None:
        cluster = self._cluster
        cluster.note(leader, f"heartbeats: {described_write((operation,))}")
        body = encode_body((operation,), self._term)
        cluster.log.commit(Flight(leader.id, "heartbeats", with_request_id(NO_SESSION, 0, 0, body)))
