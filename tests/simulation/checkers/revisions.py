"""Checks: revisions respect real time over all keys. If one answered change ended before another one began, the later
change has the higher revision; for a delete that found no record, at least the same revision. Two changes share a
revision only as parts of one batch. Not: values (linearizability.py), calls without an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import NEVER
from tests.simulation.world import Failure

if TYPE_CHECKING:
    from tests.simulation.workload import Workload
    from tests.simulation.world import World


class RevisionsInRealTime:
    def finish(self, _world: World, workload: Workload) -> None:
        answered = [call for call in workload.history() if call.returned < NEVER and isinstance(call.result, int)]
        ends = sorted(answered, key=lambda call: call.returned)
        highest, ended = 0, 0
        for call in sorted(answered, key=lambda call: call.invoked):
            while ends[ended].returned < call.invoked:
                highest = max(highest, ends[ended].result)
                ended += 1
            if call.result < highest or (call.result == highest and call.kind != "delete" and highest):
                raise Failure(f"{call} began after a change with revision {highest} had ended")
