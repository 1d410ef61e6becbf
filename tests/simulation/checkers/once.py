"""Checks, by the history of changes on each manager: each request took effect at most once; an answered request took
effect exactly once, at the revision in its answer; no change took effect that no caller asked for. Not: their order in
real time (revisions.py).
"""

from __future__ import annotations

from tests.simulation.history import NEVER
from tests.simulation.workload import Workload, value_of
from tests.simulation.world import Failure, World
from warren_raft.fsm import history
from warren_raft.store import codec
from warren_raft.store.tables import SERVICE


class ExactlyOnce:
    def finish(self, world: World, workload: Workload) -> None:
        expected = {
            value_of(call): call.result
            for call in workload.calls
            if call.kind in ("put", "cas") and call.returned < NEVER and isinstance(call.result, int)
            if call.result > workload.base_revision
        }
        asked = {value_of(call) for call in workload.calls if call.kind in ("put", "cas")}
        asked |= {value for job in workload.jobs for value in job.values}
        for process in world.members():
            found: dict[str, int] = {}
            with process.opened.database.read() as transaction:
                for revision, operations, _ in history.since(transaction, workload.base_revision):
                    for operation in operations:
                        entity = operation.entity
                        if entity is None or operation.kind_number != SERVICE.number:
                            continue
                        value = codec.decode(SERVICE, codec.make_record(revision, entity)).image
                        if value in found:
                            raise Failure(f"{process.id}: {value} took effect at {found[value]} and at {revision}")
                        if value not in asked:
                            raise Failure(f"{process.id}: {value} took effect at {revision}, and nobody asked for it")
                        found[value] = revision
            for value, revision in expected.items():
                if found.get(value) != revision:
                    raise Failure(
                        f"{process.id}: {value} took effect at {found.get(value)}, its caller was told {revision}"
                    )
