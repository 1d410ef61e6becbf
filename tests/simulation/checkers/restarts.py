"""Checks: the durable contents of a directory are there when a manager starts on it again: term and vote, synced and
committed entries, the commit index of the last batch. A rebuilt state reaches its old applied index again. Not:
directories that were wiped or damaged on purpose.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.simulation.workload import Workload
from tests.simulation.world import Failure, Process, World
from warren_raft.raft.log.log import Batch


class _Held(NamedTuple):
    term: int
    vote: str | None
    commit_index: int


class Restarts:
    def __init__(self) -> None:
        self._taken: dict[int, tuple[Batch, _Held]] = {}
        """Process -> (the batch under way, the facts that will be durable with it)."""
        self._durable: dict[str, _Held] = {}
        self._committed: dict[str, int] = {}
        self._applied: dict[str, int] = {}

    def took(self, process: Process, batch: Batch) -> None:
        log = process.opened.log
        if process.number in self._taken and self._taken[process.number][0] is batch:
            return  # the same batch again, after no space was left: its contents stay, while the log has gone on
        self._taken[process.number] = batch, _Held(log.current_term, log.voted_for, log.commit_index)

    def wrote(self, process: Process, _batch: Batch) -> None:
        self._durable[process.opened.log.incarnation] = self._taken[process.number][1]

    def stepped(self, process: Process) -> None:
        log = process.opened.log
        self._committed[log.incarnation] = min(process.engine.commit_index, log.synced_index)
        applied = process.opened.machine.applied_index
        self._applied[log.incarnation] = max(applied, self._applied.get(log.incarnation, 0))

    def started(self, process: Process) -> None:
        log = process.opened.log
        held = self._durable.get(log.incarnation)
        if held is None:
            return
        if log.current_term < held.term or (log.current_term == held.term and held.vote not in (None, log.voted_for)):
            raise Failure(f"{process.id} forgot term and vote: had {held}, has {log.current_term}, {log.voted_for}")
        if log.commit_index < held.commit_index:
            raise Failure(f"{process.id} forgot commit index {held.commit_index}, has {log.commit_index}")
        committed = self._committed.get(log.incarnation, 0)
        if log.last_index < committed:
            raise Failure(f"{process.id} lost committed entries: had {committed}, its log ends at {log.last_index}")

    def finish(self, world: World, _workload: Workload) -> None:
        for process in world.members():
            before = self._applied.get(process.opened.log.incarnation, 0)
            if process.opened.machine.applied_index < before:
                raise Failure(f"{process.id} does not reach applied index {before} again")
