"""The level of the command set among the members: who reads which level, and when a leader raises it.

Lives here: two questions about the links. Not here: the level of the state (fsm/), which commands need which level
(store/levels.py). Invariant: the level is raised only to one that every member, learners included, reads by the hello
of its present link, over which it has answered (changes.py).
"""

from __future__ import annotations

from contextlib import suppress

from warren_raft.errors import InvariantViolation
from warren_raft.raft import entries
from warren_raft.raft.log.log import Log
from warren_raft.raft.membership import FIRST_LEVEL, RAISE, Change, Member
from warren_raft.raft.roster import Roster


def level_max_of(roster: Roster, member: Member) -> int | None:
    """The highest level that a member reads; None: it has no link now, so its release is not known. Before a restart it
    may have run another release, so an older hello does not count. For any thread."""
    if member.id == roster.node_id:
        return roster.level_max
    link = roster.links.get(member.id)
    return None if link is None or link.hello.incarnation != member.incarnation else link.hello.level_max


def read_by_all(roster: Roster) -> int:
    """The highest level that all members read; the first level if a member has no link."""
    known = [level_max_of(roster, member) or FIRST_LEVEL for member in roster.members.values()]
    return min(known, default=FIRST_LEVEL)


def raising(roster: Roster, level: int) -> Change | None:
    """The change that raises the level of the cluster from `level`; None: not every member reads a higher one."""
    found = read_by_all(roster)
    return Change(RAISE, level=found) if found > level else None


def level_in(log: Log, applied_index: int) -> int:
    """The highest level to which an entry behind `applied_index` raises the cluster; the first level if none does."""
    highest = FIRST_LEVEL
    for entry, _, _ in log.entries[max(applied_index - log.base_index, 0) + 1 :]:
        if entry[:2] == entries.CHANGE:
            with suppress(
                InvariantViolation
            ):  # an entry that cannot be read stops the manager when it is to be applied
                change = entries.decode(entry)
                highest = max(highest, change.level if isinstance(change, Change) else FIRST_LEVEL)
    return highest


def lagging(roster: Roster, level: int) -> list[str]:
    """For people: the members for which the level is not raised to `level`, and why. For any thread."""
    told = []
    for id_, member in sorted(roster.members.items()):
        known = level_max_of(roster, member)
        if known is None:
            told.append(f"{id_} is not connected")
        elif known < level:
            told.append(f"{id_} reads up to level {known}")
    return told
