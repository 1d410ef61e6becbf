"""Checks: within a process the term, the known commit index, the applied index, and the revision that a local read
shows never go back. Not: across a rebuild of the state after lost pages, and not the term of a manager that has
promised nothing (Log.is_untouched).
"""

from __future__ import annotations

from typing import Any

from tests.simulation.world import Failure, Process


class Monotonic:
    def __init__(self) -> None:
        self._last: dict[int, tuple[int, int, int, int]] = {}
        self._read: dict[int, int] = {}

    def stepped(self, process: Process) -> None:
        machine, log = process.opened.machine, process.opened.log
        now = (process.engine.term, log.commit_index, machine.applied_index, machine.revision)
        before = self._last.get(process.number, now)
        for name, a, b in zip(("term", "commit index", "applied index", "revision"), before, now, strict=True):
            if b < a and not (name == "term" and log.is_untouched):
                raise Failure(f"{process.id}: {name} went back from {a} to {b}")
        self._last[process.number] = now

    def local_read(self, process: Process, revision: int, _key: str, _found: tuple[int, Any]) -> None:
        if revision < self._read.get(process.number, 0):
            raise Failure(f"{process.id}: a local read saw revision {revision} after {self._read[process.number]}")
        self._read[process.number] = revision
