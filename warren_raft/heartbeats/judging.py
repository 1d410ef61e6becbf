"""Which nodes change between ready and down, by their beats.

Lives here: the rules. Not here: which nodes are due (raft/beats.py), writing the changes (manager/heartbeats.py,
local/heartbeats.py). Pure: nodes, beats and times are passed in.
Invariant: only the status "ready" becomes "down", and only a node that is down, or has no status yet, becomes "ready".
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from warren_raft.fsm.leases import ttl_bytes
from warren_raft.model.entities import Node, NodeStatus
from warren_raft.raft.beat_table import BeatTable
from warren_raft.store.command import LEASE, Operation
from warren_raft.store.tables import NODE

NOT_READY: Final = frozenset(("", NodeStatus.DOWN, NodeStatus.UNKNOWN))
"""The statuses of which a beat makes "ready". A draining node stays as it is, and so does a status of a program's own
making."""


LEASES_MAX: Final = 1024
"""Leases in one command."""


class Judgement(NamedTuple):
    """The result of one look at all nodes."""

    watched: dict[str, float | None]
    """The nodes that are ready and beat, with the ttl of their lease if they have one, for NodeBeats.watched."""
    changed: list[Node]
    """The nodes as they have to be stored, if they still have the revision that each of them names."""
    leased: list[Operation]
    """The leases that have to be stored, as one command: of nodes that beat for the first time, or with another ttl."""
    called_ready: list[str]
    """Nodes that a program has made ready since the last look. That counts as a beat: they get their ttl."""


class Judge:
    """Looks at all nodes again and again. One thread. `begin` before the first look of each leadership."""

    def __init__(self) -> None:
        self._ready: frozenset[str] | None = None
        """The nodes that were ready, or were made so by this judge, at the last look; None: there was none."""

    def begin(self) -> None:
        self._ready = None

    def look(
        self,
        nodes: Iterable[Node],
        table: BeatTable,
        leases: Mapping[str, float],
        due: Container[str],
        utc_now: datetime,
    ) -> Judgement:
        """`leases`: the ttl of each node that is known to beat (fsm/leases.py)."""
        leased: list[Operation] = []
        watched: dict[str, float | None] = {}
        changed: list[Node] = []
        ready: set[str] = set()
        get, now = table.known.get, table.now
        for node in nodes:
            status, beat = node.status, get(node.id)
            if status == NodeStatus.READY:
                ready.add(node.id)
            lease = leases.get(node.id)
            if status == NodeStatus.READY and (beat is not None or lease is not None):
                watched[node.id] = lease
            if beat is None:
                continue
            age = now - beat.at
            if beat.mark and beat.ttl_seconds != lease and len(leased) < LEASES_MAX:
                leased.append(Operation(LEASE, NODE.number, node.id, ttl_bytes(beat.ttl_seconds)))
            if status == NodeStatus.READY:
                is_new = self._ready is not None and node.id not in self._ready
                if node.id in due and age > beat.ttl_seconds and not is_new:
                    changed.append(_changed(node, NodeStatus.DOWN, beat.mark, age, utc_now))
            elif status in NOT_READY and beat.mark and age < beat.ttl_seconds:
                ready.add(node.id)
                changed.append(_changed(node, NodeStatus.READY, beat.mark, age, utc_now))
        before, self._ready = self._ready, frozenset(ready)
        called = [] if before is None else [id_ for id_ in watched if id_ not in before and id_ in table.known]
        return Judgement(watched, changed, leased, called)


def _changed(node: Node, status: NodeStatus, mark: int, age_seconds: float, utc_now: datetime) -> Node:
    """The node with another status and, if it is known, the time of its last beat."""
    heard = utc_now - timedelta(seconds=age_seconds) if mark else node.last_heartbeat
    return replace(node, status=status, last_heartbeat=heard)
