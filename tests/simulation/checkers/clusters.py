"""Checks: there is one cluster id, the same on every manager, for the whole run; after a restore it is the id that the
restore gave. Not: which managers belong to the cluster (speech.py).
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process


class OneCluster:
    def __init__(self) -> None:
        self.cluster_id: str | None = None

    def restored(self, cluster_id: str) -> None:
        self.cluster_id = cluster_id

    def stepped(self, process: Process) -> None:
        found = process.engine.membership.cluster_id if process.engine.membership is not None else None
        if found is None:
            return
        self.cluster_id = self.cluster_id or found
        if found != self.cluster_id:
            raise Failure(f"{process.id} is of another cluster than the others")
