"""The fence of a write: it is carried out in log entries of one term only, and not after its lead is over.

Not here: the comparison of the terms (fsm/entry.py), the lead (leadership/lead.py), and the leader's look at the fence
of a write that is not in its log yet (raft/submit.py, local/group_commit.py). Invariant: a lead that is over stays so.
"""

from __future__ import annotations

from typing import Final

from warren_raft.errors import LeadershipLost


class Fence:
    """That of all writes of one lead. For any thread, and for signal handlers."""

    __slots__ = ("is_over", "reason", "term")

    def __init__(self, term: int) -> None:
        self.term: Final = term
        self.is_over = False
        """Whether the lead is over: a write that is not in the log yet does not come into it any more."""
        self.reason = ""
        """Why it is over although this manager may still lead in this term; "": it does not lead in it any more."""

    def end(self, reason: str = "") -> None:
        """The lead is over. The first reason counts."""
        if not self.is_over:
            self.reason = reason
            self.is_over = True

    def refusal(self) -> LeadershipLost:
        """The error of a write behind the end of the lead."""
        return LeadershipLost(self.term, self.reason)
