"""Log lines that say why leadership changed: one line a change, with the reason of the candidate or the old leader.

Lives here: reasons, and the state that was logged last. Not here: elections (elections.py), transfers (requests.py).
Invariant: no decision depends on a reason. A reason that came from a peer has a limited length, and is one line.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from warren_raft.raft.messages import RequestVote
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.engine")

TEXT_CHARACTERS: Final = 200


class Reason(NamedTuple):
    """A fixed word for programs, and a sentence for people."""

    word: str
    text: str

    def told(self) -> list[str]:
        """The form of the reason in a message to a peer."""
        return [self.word, self.text[:TEXT_CHARACTERS]]

    @classmethod
    def heard(cls, value: object) -> Reason | None:
        """The reason in a peer's message; None: the peer gave no reason, or its form is wrong."""
        if type(value) is not list or len(value) != 2 or not all(type(part) is str for part in value):
            return None
        word, text = (part[:TEXT_CHARACTERS] for part in value)
        return cls(word, text) if word.replace("-", "").isalnum() and word.isascii() else None


STARTED: Final = Reason("start", "no leader was heard since this manager started")
LATER_TERM: Final = Reason("term", "another manager began a later term")
LATER_TERM_OF_ONE: Final = "term-of-member"
LINK_LOST: Final = "link-lost"
TIMEOUT: Final = "timeout"
NO_QUORUM: Final = "no-quorum"
TRANSFER: Final = "transfer"
CLOSING: Final = "closing"
REMOVED: Final = "removed"
DISK_HUNG: Final = "disk-hung"
NO_SPACE: Final = "no-space"
BLOCKED: Final = "blocked"
STATE_WRONG: Final = "state-wrong"
STATE_RENEWED: Final = "state-renewed"
STATE_REPLACED: Final = Reason("state-replaced", "this manager replaced its state")


class LeaderLog:
    """The last candidates and their reasons, and the leader that was logged last.

    For the raft thread or a simulator only.
    """

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._candidates: dict[str, tuple[int, Reason]] = {}
        self._leader: str | None = None
        self._term = 0
        self.leaders = 0
        """How often a leader was known that was not the one before, or led in another term."""

    def campaigns(self, candidate: str, term: int, reason: Reason) -> None:
        """A manager, perhaps this one, asks for votes in a term."""
        self._candidates[candidate] = term, reason

    def heard_candidate(self, peer: str, request: RequestVote) -> None:
        reason = Reason.heard(request.why)
        if reason is not None:
            self.campaigns(peer, request.term, reason)

    def look(self, leader: str | None, term: int, why: Reason) -> None:
        """Log a change of leader or term. `why`: the reason that this manager itself knows for having no leader."""
        if leader == self._leader and (leader is None or term == self._term):
            return
        previous, is_later = self._leader, term > self._term
        self._leader, self._term = leader, term
        if leader is None:
            reason = (self._candidate_of(term) or LATER_TERM) if is_later else why
            self._log("leader lost", reason, leader=previous, term=term)
            return
        self.leaders += 1
        stood_in, stood_for = self._candidates.get(leader, (0, None))
        self._candidates = {id_: stands for id_, stands in self._candidates.items() if stands[0] > term}
        self._log("leader changed", stood_for if stood_in == term else None, leader=leader, term=term)

    def _candidate_of(self, term: int) -> Reason | None:
        for candidate, (stood_in, reason) in sorted(self._candidates.items()):
            if stood_in == term:
                return Reason(reason.word, f"{candidate} asks for votes, {reason.text}")
        return None

    def _log(self, what: str, reason: Reason | None, *, leader: str | None, term: int) -> None:
        word, text = reason or (None, "")
        log_event(logger, logging.INFO, what, text, node=self._node_id, leader=leader, term=term, reason=word)
