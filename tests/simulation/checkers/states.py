"""Checks: the same applied index has the same digest and revision on every manager, for the whole run. At the end every
digest equals the one recomputed from the records, every secondary index equals a rebuilt index, and the counts of nodes
and containers are those of the records. A state that the run made wrong on purpose is replaced by then. Not: whether
the state is as the callers intended.
"""

from __future__ import annotations

from tests.simulation.workload import Workload
from tests.simulation.world import Failure, Process, World
from warren_raft.fsm.machine import recompute_digest
from warren_raft.fsm.tallies import tally_of


class States:
    def __init__(self) -> None:
        self.digests: dict[int, tuple[bytes, int]] = {}

    def stepped(self, process: Process) -> None:
        if process.state_is_wrong:
            return
        committed = process.opened.machine.committed
        found = (committed.digest, committed.revision)
        if self.digests.setdefault(committed.applied_index, found) != found:
            raise Failure(f"{process.id}: another digest or revision at applied index {committed.applied_index}")

    def finish(self, world: World, _workload: Workload) -> None:
        for process in world.members():
            with process.opened.database.read() as view:
                if recompute_digest(view) != process.opened.machine.digest:
                    raise Failure(f"{process.id}: the digest is not that of the records")
                if tally_of(view) != process.opened.machine.tally:
                    raise Failure(f"{process.id}: the counts of nodes and containers are not those of the records")
                problems = view.verify_indexes()
            if problems:
                raise Failure(f"{process.id}: {problems[0]}")
