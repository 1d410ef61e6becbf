"""The messages of terms, votes and leaders: each is judged by admission.py, and then reaches the core or elections.py.

Lives here: a message's way through the parts that decide about it. Not here: the claims that are accepted
(admission.py), when this manager campaigns (elections.py), and the effect of a new leader (leading.py). Invariant: the
core enters a later term, or gives a vote, only after admission.py has agreed.
"""

from __future__ import annotations

from warren_raft.raft.admission import Admission
from warren_raft.raft.context import Context
from warren_raft.raft.elections import Elections
from warren_raft.raft.guard import Guard
from warren_raft.raft.large import HeldEntries
from warren_raft.raft.leading import Leading
from warren_raft.raft.messages import (
    AppendEntries,
    HandOver,
    LargeEntry,
    LargeEntryCancel,
    LargeEntryDrop,
    LargeEntryHeld,
    LargeEntryRefused,
    Nack,
    PeerFault,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
)
from warren_raft.raft.reasons import LATER_TERM_OF_ONE, TRANSFER, Reason


class Votes:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        context: Context,
        guard: Guard,
        elections: Elections,
        admission: Admission,
        held: HeldEntries,
        leading: Leading,
    ) -> None:
        self._context = context
        self._log = context.log
        self._roster = context.roster
        self._outbox = context.outbox
        self._guard = guard
        self._core = guard.core
        self._elections = elections
        self._admission = admission
        self._held = held
        self._leading = leading

    # Of leaders --------------------------------------------------------------------------------------------------

    def on_append_entries(self, peer: str, message: AppendEntries) -> None:
        core, now = self._core, self._context.now
        if message.term > core.term and not self._admission.may_lead(peer, message.term, now):
            self._guard.stats["append message against a living leader ignored"] += 1
            return
        if message.term < core.term and self._admission.may_go_back(peer, now):
            core.go_back(message.term)
        self._forget_silent_leader(peer, message.term)
        if self._guard.receive_append(peer, message):
            self._leading.heard(peer, message.commit_index)

    def _forget_silent_leader(self, peer: str, term: int) -> None:
        """A peer that claimed this term and is silent was not elected, or no longer leads: it does not keep us from
        the one that does."""
        core = self._core
        if term != core.term or core.is_leader or core.leader in (None, peer):
            return
        if not self._elections.leader_is_alive(self._context.now, is_leader=False):
            core.step_down()

    def on_large_entry(self, peer: str, message: LargeEntry) -> None:
        if not self._admission.may_lead(peer, message.term, self._context.now):
            self._guard.is_led_by(peer, message.term)  # which tells a leader of an older term so
            self._outbox.send(peer, LargeEntryRefused(message.number))
            return
        if not self._held.has_room_for(message.entry):
            self._outbox.send(peer, LargeEntryRefused(message.number))
            return
        if not self._held.add(peer, message.number, message.entry):
            raise PeerFault("more large entries, sent ahead, than any leader sends")
        self._outbox.send(peer, LargeEntryHeld(message.number))

    def on_large_entry_drop(self, peer: str, message: LargeEntryDrop) -> None:
        self._held.drop(peer, message.number)

    def on_large_entry_cancel(self, peer: str, message: LargeEntryCancel) -> None:
        self._held.drop(peer, message.number)

    def on_hand_over(self, peer: str, message: HandOver) -> None:
        """Our leader names its successor, which may ask for our vote although the leader is alive."""
        if peer != self._core.leader or message.term != self._core.term:
            return
        asked = self._elections.handed_over(message.target, self._context.now)
        if asked is not None and self._roster.counts(asked[0]):
            self.on_request_vote(*asked)

    def on_timeout_now(self, peer: str, message: TimeoutNow) -> None:
        """Our leader hands leadership to us (Raft thesis 3.10)."""
        if peer == self._core.leader and message.term == self._core.term and self._leading.candidacy().may_campaign:
            why = Reason.heard(message.why) or Reason(TRANSFER, f"{peer} hands over")
            self._leading.campaign(why)

    # Of candidates -----------------------------------------------------------------------------------------------

    def on_pre_vote(self, peer: str, message: PreVote) -> None:
        if self._roster.may_vote:
            reply = self._elections.answer_pre_vote(peer, message, self._context.now, self._leading.candidacy())
            self._outbox.send_when_synced(peer, reply)

    def on_request_vote(self, peer: str, message: RequestVote) -> None:
        if not self._roster.may_vote:
            return
        self._leading.heard_candidate(peer, message)
        if not self._admission.may_get_vote(peer, message, self._context.now):
            self._guard.stats["vote request against a living leader ignored"] += 1
            return
        before = (self._log.current_term, self._log.voted_for)
        self._guard.receive_vote_request(peer, message)
        if self._log.voted_for == peer and before != (self._log.current_term, peer):
            self._elections.voted(peer, self._context.now)

    # Of voters ---------------------------------------------------------------------------------------------------

    def on_pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        is_expected = self._elections.expects(peer, message, self._leading.candidacy())
        if message.term > self._core.term and self._leading.leader is None and is_expected:
            self._core.observe_term(self._admission.bounded(message.term, self._context.now))
        if self._elections.receive_pre_vote_reply(peer, message, self._leading.candidacy()):
            self._leading.campaign()

    def on_nack(self, peer: str, message: Nack) -> None:
        """A member is in a later term than the one that we lead, and cannot follow us."""
        now = self._context.now
        core, term = self._core, self._admission.bounded(message.term, now)
        if not core.is_leader or term <= core.term:
            return
        if self._admission.must_yield(peer, term):
            core.observe_term(term)
        elif self._admission.may_yield(peer, now):
            core.observe_term(term)
            self._leading.follow(Reason(LATER_TERM_OF_ONE, f"{peer} is in a later term and could not follow"))
            self._elections.campaign_again(now)
        else:
            self._guard.stats["later term of a single member not taken up"] += 1
