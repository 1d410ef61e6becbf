"""Dispatch: from the bytes' map that a link delivers to the method that takes the message, if its sender may send it.

The table of messages (messages.py) says which standings may send a message. `_handlers` has the method for each class.
Not here: the effect of a message. Invariant: no handler sees a message of an older link, of a sender whose standing
does not allow it, or (unless it touches neither log nor state) while the state is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from warren_raft.raft.admission import Admission
from warren_raft.raft.barriers import Barriers
from warren_raft.raft.beats import NodeBeats
from warren_raft.raft.catchup import Catchup
from warren_raft.raft.confirming import Confirming
from warren_raft.raft.context import Context
from warren_raft.raft.dialling import Dialling
from warren_raft.raft.elections import Elections
from warren_raft.raft.forming import Forming
from warren_raft.raft.guard import Guard
from warren_raft.raft.health import Health
from warren_raft.raft.leading import Leading
from warren_raft.raft.messages import (
    Addresses,
    AppendEntries,
    AppendReply,
    Beats,
    BeatsWanted,
    ChangeAnswer,
    Confirm,
    Confirmed,
    FoundingRecord,
    FoundingView,
    HandOver,
    HealthReport,
    LargeEntry,
    LargeEntryCancel,
    LargeEntryDrop,
    LargeEntryHeld,
    LargeEntryRefused,
    Message,
    Nack,
    PeerFault,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexIs,
    RequestChange,
    RequestVote,
    SnapshotChunk,
    SnapshotGet,
    SnapshotGone,
    SnapshotOffer,
    SnapshotWanted,
    Submit,
    SubmitLarge,
    SubmitLargeCancel,
    SubmitLargeEnd,
    SubmitRefused,
    TimeoutNow,
    Vote,
    decode,
)
from warren_raft.raft.peers import Peers
from warren_raft.raft.proposing import Proposing
from warren_raft.raft.refusals import Refusals
from warren_raft.raft.requests import Requests
from warren_raft.raft.trust import PeerStanding
from warren_raft.raft.votes import Votes

WRITE_TYPES: Final = frozenset({AppendEntries, AppendReply, Submit, ReadIndex, ReadIndexIs, Confirm, Confirmed})
"""Messages of which each write or barrier needs some. Everything else that a step looks at waits for no such message.
"""
ALSO_WHILE_SWAPPING: Final = frozenset(
    {
        *(FoundingView, FoundingRecord, HealthReport, Addresses, Beats, BeatsWanted),
        *(SubmitLarge, SubmitLargeCancel, SubmitLargeEnd),
        *(LargeEntry, LargeEntryHeld, LargeEntryDrop, LargeEntryCancel, LargeEntryRefused),
    }
)
"""Messages that touch neither log nor state, and are taken also while the state is replaced."""

Handler = Callable[[str, Any], None]


class Dispatch:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        context: Context,
        guard: Guard,
        *,
        elections: Elections,
        admission: Admission,
        refusals: Refusals,
        requests: Requests,
        health: Health,
        catchup: Catchup,
        leading: Leading,
        dialling: Dialling,
        forming: Forming,
        peers: Peers,
        votes: Votes,
        proposing: Proposing,
        confirming: Confirming,
        barriers: Barriers,
        beats: NodeBeats,
    ) -> None:
        self._context = context
        self._roster = context.roster
        self._outbox = context.outbox
        self._guard = guard
        self._core = guard.core
        self._elections = elections
        self._admission = admission
        self._refusals = refusals
        self._requests = requests
        self._health = health
        self._catchup = catchup
        self._replacement = context.replacement
        self._leading = leading
        self._peers = peers
        self.handlers: Final[Mapping[type[Message], Handler]] = {
            # One write
            AppendEntries: votes.on_append_entries,
            AppendReply: guard.receive_reply,
            Submit: proposing.on_submit,
            SubmitRefused: proposing.on_submit_refused,
            # One barrier
            ReadIndex: confirming.on_read_index,
            Confirm: confirming.on_confirm,
            Confirmed: confirming.on_confirmed,
            ReadIndexIs: barriers.on_read_index_is,
            # Large commands
            SubmitLarge: proposing.on_submit_large,
            SubmitLargeCancel: proposing.on_submit_large_cancel,
            SubmitLargeEnd: proposing.on_submit_large_end,
            LargeEntry: votes.on_large_entry,
            LargeEntryCancel: votes.on_large_entry_cancel,
            LargeEntryDrop: votes.on_large_entry_drop,
            LargeEntryHeld: proposing.on_large_entry_held,
            LargeEntryRefused: proposing.on_large_entry_refused,
            # Elections
            PreVote: votes.on_pre_vote,
            PreVoteReply: votes.on_pre_vote_reply,
            RequestVote: votes.on_request_vote,
            Vote: guard.receive_vote,
            Nack: votes.on_nack,
            HandOver: votes.on_hand_over,
            TimeoutNow: votes.on_timeout_now,
            # Members
            FoundingView: forming.on_founding_view,
            FoundingRecord: forming.on_founding,
            Addresses: dialling.on_addresses,
            HealthReport: self._on_health,
            RequestChange: self._on_change,
            ChangeAnswer: requests.receive_answer,
            # Heartbeats of nodes
            Beats: beats.on_beats,
            BeatsWanted: beats.on_beats_wanted,
            # Snapshots
            SnapshotOffer: self._on_snapshot_offer,
            SnapshotGet: catchup.on_snapshot_get,
            SnapshotChunk: catchup.on_snapshot_chunk,
            SnapshotGone: catchup.on_snapshot_gone,
            SnapshotWanted: self._on_snapshot_wanted,
        }

    def receive(self, peer: str, number: int, wire: Mapping[str, object]) -> None:
        """A message came over the link of this number."""
        link = self._roster.links.get(peer)
        if link is None or link.number != number:
            self._guard.stats["message of a superseded connection dropped"] += 1
            return
        link.heard_at = self._context.now
        try:
            message = decode(wire)
            if message is not None:
                self._dispatch(peer, message)
            elif self._roster.standing(peer) in (PeerStanding.FORMING, PeerStanding.GUEST):
                self._close_to_non_member(peer)
            else:
                self._guard.stats["unknown message dropped"] += 1  # a later version's
        except PeerFault as fault:
            self._refusals.drop(peer, f"{peer} sent an impossible message, so its link is dropped: {fault}")

    def arriving(self, peer: str, number: int, term: int) -> None:
        """Parts of a large message count as signs of life, both ways: over a thin link its end may be far away."""
        link = self._roster.links.get(peer)
        if link is None or link.number != number or not self._hears(peer) or self._replacement.is_swapping:
            return
        self._catchup.arriving(peer, self._context.now)
        if term and self._guard.is_led_by(peer, term):
            self._elections.heard_leader(peer, self._context.now)
            alive = self._guard.alive()
            if alive is not None and alive[0] == peer:
                self._outbox.send(*alive)

    # Which messages are taken --------------------------------------------------------------------------------------

    def _dispatch(self, peer: str, message: Message) -> None:
        kind = type(message)
        if kind not in WRITE_TYPES:
            self._context.look_soon()
        standing = self._roster.standing(peer)
        assert standing is not None  # there is a link
        if standing not in kind.SENT_BY:
            self._turn_away(peer, standing)
        elif standing is PeerStanding.AHEAD and not self._hears_ahead(peer):
            self._guard.stats["message of a peer that is ahead not heard"] += 1
            if isinstance(message, LargeEntry):
                self._outbox.send(peer, LargeEntryRefused(message.number))
        elif self._replacement.is_swapping and kind not in ALSO_WHILE_SWAPPING:
            self._guard.stats["message while the state is replaced dropped"] += 1
        else:
            self.handlers[kind](peer, message)

    def _hears(self, peer: str) -> bool:
        """Whether the peer of a link is listened to at all."""
        if self._roster.standing(peer) is PeerStanding.AHEAD:
            return self._hears_ahead(peer)
        return self._roster.counts(peer)

    def _hears_ahead(self, peer: str) -> bool:
        return self._admission.hears(peer, self._context.now, self._leading.led_at)

    def _turn_away(self, peer: str, standing: PeerStanding) -> None:
        """A message came that a peer of this standing may not send."""
        if standing in (PeerStanding.FORMING, PeerStanding.GUEST):
            self._close_to_non_member(peer)
        else:
            self._guard.stats[f"message of a peer that is {standing.value} dropped"] += 1

    def _close_to_non_member(self, peer: str) -> None:
        """Its hello is as old as the link. It may have become a member since: the hello of a new link says so."""
        self._guard.stats["message of a non-member dropped"] += 1
        self._outbox.close_link(peer, f"{peer} was not a member when it sent its hello")

    # Messages that concern several parts, or only some roles -----------------------------------------------------

    def _on_health(self, peer: str, message: HealthReport) -> None:
        self._health.receive(peer, message, self._context.now)
        if not self._replacement.is_swapping:
            self._peers.hear_of_lists(message)

    def _on_change(self, peer: str, message: RequestChange) -> None:
        self._outbox.send(peer, self._requests.answer(peer, message))

    def _on_snapshot_offer(self, peer: str, message: SnapshotOffer) -> None:
        if peer == self._core.leader:
            self._catchup.on_snapshot_offer(peer, message)

    def _on_snapshot_wanted(self, peer: str, message: SnapshotWanted) -> None:
        if self._core.is_leader:
            self._catchup.on_snapshot_wanted(peer, message.index)
