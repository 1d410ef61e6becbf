"""Checks: no manager stops by itself without one of these reasons: EIO at its log (not: no space left), its removal,
injected damage, or a start among members of another cluster. Not: whether it stopped soon enough.
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process
from warren_raft.errors import RefusedForSafety, WarrenError


class UnexpectedFailures:
    def failed(self, process: Process, error: WarrenError) -> None:
        expected = "the log cannot be written: [Errno 5]" in str(error) or (
            isinstance(error, RefusedForSafety)
            and (
                "removed from the cluster" in str(error)
                or (process.world.two_clusters and "belongs to cluster" in str(error))
            )
        )
        if not expected:
            raise Failure(f"{process.id} stopped: {error!r}")
