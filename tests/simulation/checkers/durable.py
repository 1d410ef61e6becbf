"""Checks: the entries that a log calls synced are on its disk: the newest of them is in the last batch that was
written, with the same term. Not: that the disk keeps it (Restarts).

It uses the batches only: each contains the entries that its log had when the batch was taken.
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process
from warren_raft.raft.log.log import Batch, Log

Terms = tuple[int, list[int]]
"""The index of a log's base, and the terms of it and of all entries behind it."""


class DurableLogs:
    def __init__(self) -> None:
        self._taken: dict[int, tuple[Batch, Terms]] = {}
        self._written: dict[int, Terms] = {}
        """Process -> the entries on its disk."""

    def started(self, process: Process) -> None:
        self._written[process.number] = _terms(process.opened.log)

    def took(self, process: Process, batch: Batch) -> None:
        if process.number not in self._taken or self._taken[process.number][0] is not batch:
            self._taken[process.number] = batch, _terms(process.opened.log)

    def wrote(self, process: Process, _batch: Batch) -> None:
        self._written[process.number] = self._taken[process.number][1]

    def stepped(self, process: Process) -> None:
        log = process.opened.log
        base, terms = self._written[process.number]
        index = log.synced_index
        if index < max(base, log.base_index):
            return  # the log was replaced or compacted; compaction drops only synced entries
        term = log.entries[index - log.base_index][2]
        if index - base >= len(terms) or terms[index - base] != term:
            raise Failure(f"{process.id} calls index {index} of term {term} synced; it is not on its disk")


def _terms(log: Log) -> Terms:
    return log.base_index, [term for _, _, term in log.entries]
