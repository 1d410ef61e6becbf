"""Checks: each entry that a leader counts as acknowledged was acknowledged to it in this term, and is in the follower's
synced log, with the same term, while both are in the leader's term. Not: followers that went on to a later term; their
logs may have been truncated since.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.world import Failure, Process


class LeadersBeliefs:
    def __init__(self) -> None:
        self._acknowledged: dict[tuple[int, int, str], int] = {}
        """(process, term, follower) -> the highest index that the follower acknowledged to the process."""

    def delivered(self, process: Process, peer: str, message: dict[str, Any]) -> None:
        if message["type"] == "append_reply" and message["success"]:
            key = (process.number, message["answers"][0], peer)
            self._acknowledged[key] = max(message["next_index"] - 1, self._acknowledged.get(key, 0))

    def stepped(self, process: Process) -> None:
        engine = process.engine
        if engine.role != "leader":
            return
        for peer in engine.members:
            if peer != process.id:
                self._check(process, peer, engine._guard.match_index(peer))

    def _check(self, leader: Process, peer: str, index: int) -> None:
        term = leader.engine.term
        told = self._acknowledged.get((leader.number, term, peer), 0)
        if index > told:
            raise Failure(f"{leader.id} counts index {index} of {peer}, which acknowledged {told} in term {term}")
        follower = leader.world.processes.get(peer)
        if follower is None or follower.engine.term != term:
            return
        ours, theirs = leader.opened.log, follower.opened.log
        if index <= max(ours.base_index, theirs.base_index):
            return
        if index > theirs.synced_index:
            raise Failure(f"{leader.id} counts index {index} of {peer}; that log is synced to {theirs.synced_index}")
        if theirs.entries[index - theirs.base_index][2] != ours.entries[index - ours.base_index][2]:
            raise Failure(f"{leader.id} counts index {index} of {peer}, which has another entry there")
