"""When a change of members is safe from any power cut, and this manager's own removal, which waits until then.

A list of members is *settled* if a majority of its voters has it on disk that the change is committed (DESIGN.md,
"Settled lists"). Lives here: counting these voters as the leader, and holding our own removal back. Not here: the other
steps that wait for a settled list: answers and the next change (changes.py), the links of a removed member (roster.py).
Invariant: a voter votes, and counts itself, until the remaining voters can do without it after any crash.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from warren_raft.raft.context import Context
from warren_raft.raft.guard import Guard
from warren_raft.raft.membership import REMOVE, Change, apply_change
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.settling")


class Settling:
    """Not thread-safe: for the raft thread or the simulator."""

    def __init__(self, context: Context, guard: Guard) -> None:
        self._log = context.log
        self._roster = context.roster
        self._core = guard.core
        self._guard = guard
        self._own_removal: tuple[int, Change] | None = None
        """(index, change) of the entry that removes this data directory. It is committed, and never applied here."""

    def restart(self) -> None:
        """Another state has replaced ours: our removal is found again when it is to be applied to the present state."""
        self._own_removal = None

    @property
    def is_leaving(self) -> bool:
        """Whether our own removal is committed, and we stay because the other voters may still need our vote."""
        return self._own_removal is not None

    def holds_back(self, index: int, change: Change) -> bool:
        """Whether the committed entry at `index` is our own removal. Then neither it nor a later entry is applied."""
        roster = self._roster
        is_own = (change.verb, change.id, change.incarnation) == (REMOVE, roster.node_id, self._log.incarnation)
        if not is_own or not roster.is_voter:
            return False
        after = apply_change(roster.membership, change, index)
        if after is None or after.incarnation(roster.node_id) == change.incarnation:
            return False  # the entry changes nothing
        if self._own_removal is None:
            text = "this manager stays and votes until the other voters can do without it"
            log_event(logger, logging.INFO, "removal committed", text, node=self._roster.node_id, index=index)
        self._own_removal = (index, change)
        return True

    def tick(self) -> None:
        """If this manager leads, find out whether the present list is settled."""
        membership = self._roster.membership
        if membership is None or self._roster.is_settled or not self._core.is_leader:
            return
        if self._is_kept(membership.index, membership.voters):
            self._roster.settled(membership.index)

    @property
    def may_leave(self) -> bool:
        """Whether the list without this manager is settled. If it never hears that, a peer that refuses it later says
        that it was removed."""
        if self._own_removal is None:
            return False
        index, change = self._own_removal
        after = apply_change(self._roster.membership, change, index)
        assert after is not None  # a list existed, because this manager was removed from it
        is_kept = self._core.is_leader and self._is_kept(index, after.voters)
        return is_kept or self._roster.settled_index >= index

    def _is_kept(self, index: int, voters: Iterable[str]) -> bool:
        """Whether a majority of these voters has a commit index of at least `index` on disk."""
        known = [
            self._log.synced_commit_index if voter == self._roster.node_id else self._guard.kept_index(voter)
            for voter in voters
        ]
        return sum(kept >= index for kept in known) * 2 > len(known)
