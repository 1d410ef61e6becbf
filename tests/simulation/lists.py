"""All member lists that one cluster has had, computed from the changes that its managers committed.

An observer of the world, for the operators of a run (operators.py) and for checkers. Not here: whether managers follow
the lists (checkers/answered.py). Invariant: `all` is in the order of the log, one list for each change in force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warren_raft.raft import entries
from warren_raft.raft.membership import Change, Membership, apply_change

if TYPE_CHECKING:
    from tests.simulation.world import Process


class MemberLists:
    def __init__(self) -> None:
        self.all: list[Membership] = []
        self._looked = 0
        """The highest index of an entry that was looked at."""

    @property
    def newest(self) -> Membership | None:
        return self.all[-1] if self.all else None

    def stepped(self, process: Process) -> None:
        log = process.opened.log
        if self._looked < log.base_index:
            if self.all:
                return  # this manager's log begins later than the entries still missing; another manager has them
            self._looked = log.base_index
        last = min(process.engine.commit_index, log.last_index)
        while self._looked < last:
            self._looked += 1
            self._take_in(log.entries[self._looked - log.base_index][0], self._looked)

    def _take_in(self, entry: bytes, index: int) -> None:
        content = entries.decode(entry)
        if isinstance(content, Change):
            before = self.newest
            after = apply_change(before, content, index)
            if after is not None and after is not before:
                self.all.append(after)
