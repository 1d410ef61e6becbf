"""Heartbeats of nodes at a LocalStore, which is its own leader.

Not here: the ages (raft/beat_table.py), the rules (heartbeats/judging.py). Invariant: only a change of a node's status
is written, and a node becomes down only when no beat of it came for its ttl.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from random import SystemRandom
from typing import Final

from warren_raft.errors import RevisionConflict, StorageFull, WarrenError
from warren_raft.heartbeats.changes import Changes
from warren_raft.heartbeats.judging import Judge
from warren_raft.model.entities import Node
from warren_raft.raft.beat_table import GAP_SECONDS, BeatTable
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.local.heartbeats")

LOOK_SECONDS: Final = 0.2
assert LOOK_SECONDS < GAP_SECONDS


class LocalHeartbeats:
    """`take` and `age` for any thread; `look` in the store's own thread.

    `wake()` has that thread call `look` soon; `write(*operations)` carries out a command, in that thread.
    """

    def __init__(
        self,
        nodes: Callable[[], list[Node]],
        leases: Callable[[], Mapping[str, float]],
        wake: Callable[[], None],
        write: Callable[..., object],
    ) -> None:
        self._nodes = nodes
        self._leases = leases
        self._wake = wake
        self._write = write
        self._table: Final = BeatTable(SystemRandom().getrandbits)
        self._judge: Final = Judge()
        self._changes: Final = Changes("local")

    def take(self, node_id: str, ttl_seconds: float) -> None:
        self._table.take(node_id, ttl_seconds, time.monotonic())
        if not self._table.known:
            self._wake()

    def age(self, node_id: str) -> float | None:
        return self._table.age_of(node_id, time.monotonic())

    def look(self) -> float | None:
        """Write the changes that are due. Returns the seconds until the next call; None: after a `wake`."""
        table = self._table
        table.look(time.monotonic())
        leases = self._leases()
        for node_id, ttl_seconds in leases.items():
            table.begin_to_count(node_id, ttl_seconds)
        if not table.known:
            return None
        known = dict(table.known)
        nodes = self._nodes()
        table.gone = known.keys() - {node.id for node in nodes}
        due = {node_id for node_id, beat in known.items() if table.now - beat.at > beat.ttl_seconds}
        found = self._judge.look(nodes, table, leases, due, datetime.now(UTC))
        for node_id in found.called_ready:
            self.take(node_id, known[node_id].ttl_seconds)
        operations = [self._changes.operation(node) for node in found.changed]
        commands = [[operation] for operation in operations if operation is not None]
        for command in [*commands, found.leased] if found.leased else commands:
            try:
                self._write(*command)
            except (RevisionConflict, StorageFull):
                continue  # it is decided again
            except WarrenError as error:
                log_event(logger, logging.ERROR, "heartbeats not judged", error, node="local")
                return None
        return LOOK_SECONDS
