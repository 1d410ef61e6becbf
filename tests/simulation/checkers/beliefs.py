"""Checks: what a leader counts as acknowledged is in the follower's synced log, with the same term, while both are in
the leader's term. Not: followers that went on to a later term, whose log may have been cut since.
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process


class LeadersBeliefs:
    def stepped(self, process: Process) -> None:
        engine = process.engine
        if engine.role != "leader":
            return
        log = process.opened.log
        for peer in engine.members:
            follower = process.world.processes.get(peer)
            if follower is None or follower is process or follower.engine.term != engine.term:
                continue
            index = engine._guard.match_index(peer)
            theirs = follower.opened.log
            if index <= max(log.base_index, theirs.base_index):
                continue
            if (
                index > theirs.synced_index
                or theirs.entries[index - theirs.base_index][2] != log.entries[index - log.base_index][2]
            ):
                raise Failure(
                    f"{process.id} counts index {index} of {peer}, whose log is synced to {theirs.synced_index}"
                )
