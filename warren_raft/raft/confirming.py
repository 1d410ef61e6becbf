"""Rounds in which a leader finds out whether it still leads: it asks the voters whether they still follow it.

A leader that was deposed and does not know it yet has an old commit index. If a majority of the voters still follows
the leader after a question came, no later leader had committed anything before the question (Raft thesis 6.4). One
round runs at a time, and serves all questions that came before it. Not here: the callers (barriers.py).
Invariant: a question is answered with the commit index of a round that began after the question came, in which a
majority of the voters of the list in force answered in the term of this leader, and the list did not change meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from warren_raft.raft.context import Context
from warren_raft.raft.core import Core
from warren_raft.raft.membership import Membership
from warren_raft.raft.messages import Confirm, Confirmed, ReadIndex, ReadIndexIs

CONFIRM_AGAIN_SECONDS: Final = 0.1
"""Voters that have not answered are asked again after this time: the message may be lost with its link."""


@dataclass(slots=True)
class _Round:
    number: int
    """Never used again by this process. No other process leads the same term, so (term, number) names one round."""
    term: int
    membership: Membership | None
    index: int
    """The commit index when the round began."""
    questions: Mapping[str, int]
    """Manager -> its newest question that this round answers."""
    sent_at: float
    confirmed: set[str] = field(default_factory=set)


class Confirming:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, core: Core) -> None:
        self._context = context
        self._node_id = context.node_id
        self._log = context.log
        self._outbox = context.outbox
        self._roster = context.roster
        self._core = core
        self._waiting: dict[str, int] = {}
        """Manager -> its newest question, for the next round. The answer to a question answers the older ones too."""
        self._round: _Round | None = None
        self._rounds = 0
        self._own: tuple[int, int] | None = None

    @property
    def is_busy(self) -> bool:
        return self._round is not None or bool(self._waiting)

    @property
    def _may_answer(self) -> bool:
        """Whether this manager leads, and has applied an entry of its term: its commit index covers all that earlier
        leaders have committed."""
        return self._core.is_leader and self._context.machine.applied_term == self._core.term

    # Questions ---------------------------------------------------------------------------------------------------

    def ask(self, asker: str, number: int) -> None:
        """A manager, perhaps this one, asks for a commit index. Its numbers only grow."""
        self._waiting[asker] = max(number, self._waiting.get(asker, 0))

    def on_read_index(self, peer: str, message: ReadIndex) -> None:
        if self._core.is_leader:
            self.ask(peer, message.number)  # otherwise it asks again when it knows another leader

    def take_own(self) -> tuple[int, int] | None:
        """(number, index): the newest answer to this manager's own questions since the last call."""
        own, self._own = self._own, None
        return own

    def link_down(self, peer: str) -> None:
        """The next process of this manager gets no answers to the questions of the one before."""
        self._waiting.pop(peer, None)
        if self._round is not None:
            left = {asker: number for asker, number in self._round.questions.items() if asker != peer}
            self._round.questions = left

    # Rounds ------------------------------------------------------------------------------------------------------

    def go_on(self, now: float) -> None:
        """Begin the next round if there are questions. Ask again where no answer came."""
        if not self._core.is_leader:
            self._waiting.clear()
            self._round = None
            return
        if self._round is not None and not self._is_valid(self._round):
            questions, self._round = self._round.questions, None
            for asker, number in questions.items():
                self.ask(asker, number)
        if self._round is None:
            if self._waiting and self._may_answer:
                self._begin(now)
        elif now - self._round.sent_at >= CONFIRM_AGAIN_SECONDS:
            self._send(self._round, now)

    def _is_valid(self, found: _Round) -> bool:
        """Whether this manager still leads the term of the round, and counts by the same list."""
        is_of_term = self._may_answer and found.term == self._core.term
        return is_of_term and found.membership is self._roster.membership

    def _begin(self, now: float) -> None:
        self._rounds += 1
        questions, self._waiting = self._waiting, {}
        membership, term = self._roster.membership, self._core.term
        self._round = _Round(self._rounds, term, membership, self._log.commit_index, questions, now)
        self._round.confirmed.add(self._node_id)
        self._send(self._round, now)
        self._count(self._round)

    def _send(self, found: _Round, now: float) -> None:
        found.sent_at = now
        message = Confirm(term=found.term, round=found.number)
        for voter in sorted(self._roster.voters - found.confirmed):
            if self._roster.counts(voter):
                self._outbox.send(voter, message)

    def on_confirm(self, peer: str, message: Confirm) -> None:
        """The leader that this manager follows asks whether it does."""
        if peer == self._core.leader and message.term == self._core.term:
            self._outbox.send(peer, Confirmed(term=message.term, round=message.round))

    def on_confirmed(self, peer: str, message: Confirmed) -> None:
        found = self._round
        if found is None or (message.term, message.round) != (found.term, found.number) or not self._is_valid(found):
            return
        found.confirmed.add(peer)
        self._count(found)

    def _count(self, found: _Round) -> None:
        """End the round if a majority has answered."""
        voters = self._roster.voters
        if len(found.confirmed & voters) * 2 <= len(voters):
            return
        self._round = None
        for asker, number in sorted(found.questions.items()):
            if asker == self._node_id:
                self._own = (number, found.index)
            else:
                self._outbox.send(asker, ReadIndexIs(number=number, index=found.index))
