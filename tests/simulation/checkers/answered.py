"""Checks: a change of members that was answered is never forgotten. When its operator gets the answer "done", the list
that the change made is in force by the committed log, and a majority of that list's voters has on its disk that the
change is committed. So after a power cut each majority of them contains a manager that counts by this list. At the end
every manager has the newest list. Not: whether managers come back at all (the liveness phase, simulation/blackout.py);
changes without an answer; and disks after an answer of a hostile leader, because an operator has to trust the leader
(DESIGN.md, "Trust").
"""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.hostile import FORGED
from tests.simulation.workload import Workload
from tests.simulation.world import Failure, Process, World
from warren_raft.raft.changes import Answer
from warren_raft.raft.log.log import Batch
from warren_raft.raft.membership import (
    ADD,
    REMOVE,
    UPDATE,
    Membership,
)


class AnsweredChanges:
    def __init__(self) -> None:
        self._taken: dict[int, tuple[Batch, int]] = {}
        """Process -> (the batch under way, the commit index in it)."""
        self._durable: dict[str, int] = {}
        """Incarnation -> the newest commit index that a power cut leaves."""

    def started(self, process: Process) -> None:
        """A batch that ended with an error may be on the disk all the same; the start finds it, and syncs the log."""
        self._durable[process.opened.log.incarnation] = process.opened.log.synced_commit_index

    def took(self, process: Process, batch: Batch) -> None:
        if process.number not in self._taken or self._taken[process.number][0] is not batch:
            self._taken[process.number] = batch, process.opened.log.commit_index

    def wrote(self, process: Process, _batch: Batch) -> None:
        self._durable[process.opened.log.incarnation] = self._taken[process.number][1]

    def change_done(self, process: Process, step: tuple[str, str, str], answer: Answer) -> None:
        lists = process.audience.lists.all
        found = _in_force_since(lists, _effect(*step))
        if found is None:
            raise Failure(f"{step} was answered as done, and no committed list says so")
        if found is lists[0]:
            return  # the first list, which the founding record keeps as well
        if answer.text == FORGED:
            process.world.checked["seen: a hostile leader said that a change is done"] += 1
            return
        knowing = [m.id for m in found.members.values() if m.voter and self._knows(m.incarnation, found.index)]
        if len(knowing) * 2 <= len(found.voters):
            raise Failure(
                f"{step} at index {found.index} was answered as done; that it is committed is on the disks of "
                f"{knowing} only, of the voters {sorted(found.voters)}"
            )

    def _knows(self, incarnation: str, index: int) -> bool:
        return self._durable.get(incarnation, 0) >= index

    def finish(self, world: World, _workload: Workload) -> None:
        newest = world.audience.lists.newest
        for process in world.members():
            if process.engine.membership != newest:
                raise Failure(f"{process.id} ends with the members {process.engine.membership}, not with {newest}")


def _effect(verb: str, member_id: str, address: str) -> Callable[[Membership], bool]:
    def holds(membership: Membership) -> bool:
        member = membership.members.get(member_id)
        if verb == REMOVE:
            return member is None
        assert verb in (ADD, UPDATE)
        return member is not None and member.address == address and (member.voter or verb == UPDATE)

    return holds


def _in_force_since(lists: list[Membership], holds: Callable[[Membership], bool]) -> Membership | None:
    """The list from which on `holds` has been true until now (or until it last was)."""
    found = None
    for earlier in reversed(lists):
        if holds(earlier):
            found = earlier
        elif found is not None:
            break
    return found
