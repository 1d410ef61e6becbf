"""Checks: at each index that any manager ever counted as committed there is one entry, the same everywhere, for ever.
No manager applies an entry beyond its synced log, or beyond the commit index in its log. Not: the entries' effects.
"""

from __future__ import annotations

import zlib

from tests.simulation.world import Failure, Process


class CommittedLogs:
    def __init__(self) -> None:
        self.committed: dict[int, tuple[int, int]] = {}
        """index -> (term, checksum of the entry)."""
        self._looked: dict[int, int] = {}

    def started(self, process: Process) -> None:
        self._looked[process.number] = process.opened.log.base_index

    def stepped(self, process: Process) -> None:
        log = process.opened.log
        applied = process.opened.machine.applied_index
        if applied > log.synced_index:
            raise Failure(f"{process.id} applied {applied} with a log synced to {log.synced_index}")
        if min(applied, log.last_index) > log.commit_index:
            raise Failure(f"{process.id} applied {applied}, and its log says that {log.commit_index} is committed")
        first = max(self._looked.get(process.number, 0), log.base_index)
        last = max(process.engine.commit_index, log.commit_index)
        for index in range(first + 1, min(last, log.last_index) + 1):
            command, _, term = log.entries[index - log.base_index]
            entry = (term, zlib.crc32(command))
            if self.committed.setdefault(index, entry) != entry:
                raise Failure(f"{process.id} has another committed entry at index {index} than somebody had before")
        self._looked[process.number] = max(first, last)
