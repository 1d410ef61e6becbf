"""When this manager campaigns, and when it lets others campaign: pre-vote, stickiness, leadership transfer.

PySyncObj's own timer is off: it has neither pre-vote nor stickiness, so one manager that cannot hear deposes a healthy
leader for ever (docs/pysyncobj-holes.md, hole 6). Here a campaign starts only after a quorum said, without changing any
term, that it would vote (Raft thesis 9.6). Time and randomness are passed in. Not here: counting real votes (the core,
behind guard.py). Invariant: while a leader is known to be alive, this manager asks for no vote and gives no vote,
unless that leader asks for it. A candidate gets its time once: if it asks again and again and never leads, it delays no
other manager.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from warren_raft.raft.messages import (
    PreVote,
    PreVoteReply,
    RequestVote,
)
from warren_raft.raft.outbox import Outbox
from warren_raft.raft.reasons import (
    LINK_LOST,
    STARTED,
    TIMEOUT,
    Reason,
)

LINK_LOST_MIN_SECONDS: Final = 0.03
LINK_LOST_MAX_SECONDS: Final = 0.25
"""After the link to the leader broke (its process died, or the network failed) a follower asks for pre-votes within
this range, and does not wait for the election timeout. If the leader is in fact alive, a pre-vote does no harm."""
START_FRACTION: Final = 0.3
"""A manager that has just started asks for pre-votes after this part of a drawn timeout."""
FOUNDED_MAX_SECONDS: Final = 0.15
"""The initial members ask within this time after the founding record: all are connected, and there is no leader yet."""
RETRY_FRACTION: Final = 0.5
"""A pre-vote round that got no quorum is repeated after this part of a drawn timeout."""
GRANTED_SECONDS: Final = 0.1
"""A peer that got our pre-vote has this time to campaign before we ask ourselves, because two candidates split the
vote. It is shorter than a manager's pause between two rounds, so a peer that asks for ever and cannot win does not
delay other managers for long."""
PATIENCE_TIMEOUTS: Final = 5.0
"""We wait for a peer that got our vote or our pre-vote. If it does not become the leader, we do not wait for it again
until this many timeouts have passed."""


@dataclass(frozen=True, slots=True)
class Candidacy:
    """The facts that decide an election. The engine takes them from the core and the log."""

    term: int
    last_index: int
    last_term: int
    voters: frozenset[str]
    may_campaign: bool
    """This manager is a voter under its own incarnation, has applied every entry up to the commit index, and can write
    its log. Its state is right, or no leader was known for so long that a wrong state does not count (leading.py)."""
    is_durable: bool
    """Everything that was written to the log is synced, also our own last term and vote."""
    is_leader: bool


class Elections:
    """Timer and pre-vote of one manager. Not thread-safe; for the raft thread or a simulator only."""

    def __init__(
        self, node_id: str, *, timeout_seconds: float, random: Random, now: float, outbox: Outbox, is_alone: bool
    ) -> None:
        """`is_alone`: this manager is the only voter, so it need not wait for a leader that it might hear."""
        self._node_id = node_id
        self._timeout = timeout_seconds
        self._random = random
        self._outbox = outbox
        self._round = 0
        self._granted: set[str] = set()
        self._asking = False
        self.leader: str | None = None
        """The leader that we heard, until the link to it breaks or its time is up. Never this manager."""
        self.leader_contact = -1e9
        """When a message of the present leader last arrived."""
        self.last_contact = -1e9
        """When a leader was last heard. It is not forgotten with the leader: the age of the state is counted from it.
        No election depends on it. Our own lead does not count: a leader that was suspended was deposed at an unknown
        time."""
        self._successor: tuple[str, float] = ("", -1e9)
        """The manager that our leader hands over to, and when the leader last said so."""
        self._parked: tuple[str, RequestVote, float] | None = None
        """A vote request of a candidate that says that our leader hands over to it. Our leader has not said so yet."""
        self._waited_for: dict[tuple[str, str], float] = {}
        """(peer, "vote" or "pre-vote") -> when we last waited for it. Cleared when the peer leads."""
        self.why = STARTED
        """Why there is no leader to follow. A campaign gives it as its reason."""
        # No leader is known yet. If there is one, a pre-vote does it no harm.
        self.deadline = now if is_alone else now + START_FRACTION * self._draw()

    def _draw(self) -> float:
        """Between one and two timeouts (Raft 5.2): so wide a range that usually one manager is a candidate alone."""
        return self._timeout * (1.0 + self._random.random())

    def heard_leader(self, leader: str, now: float) -> None:
        if self._waited_for:
            self._waited_for = {of: at for of, at in self._waited_for.items() if of[0] != leader}
        self.leader_contact = self.last_contact = now
        self.leader = leader
        self._asking = False
        self.deadline = now + self._draw()

    def link_down(self, peer: str, now: float) -> None:
        if self._parked is not None and self._parked[0] == peer:
            self._parked = None  # the request came over that link; its answer must not go over the next link
        if peer == self.leader:
            self.why = Reason(LINK_LOST, f"the link to {peer} broke")
            self.leader = None
            self.leader_contact = -1e9
            span = LINK_LOST_MAX_SECONDS - LINK_LOST_MIN_SECONDS
            soon = now + LINK_LOST_MIN_SECONDS + span * self._random.random()
            self.deadline = min(self.deadline, soon)

    def founded(self, now: float, *, is_alone: bool) -> None:
        """The initial members have met: there is no leader to wait for, and no other candidate if this manager
        `is_alone`."""
        self.deadline = now if is_alone else min(self.deadline, now + FOUNDED_MAX_SECONDS * self._random.random())

    def became_leader(self) -> None:
        """We lead now. Forget the leader before us: when we do not lead any more, we must not wait for it."""
        self.leader = None
        self.leader_contact = -1e9
        self._asking = False

    def stepped_down(self, now: float, why: Reason, *, is_alone: bool = False) -> None:
        """We led and do not any more: wait a full timeout before asking. We may have heard our successor already. The
        only voter (`is_alone`) does not wait."""
        self.why = why
        self.deadline = now if is_alone else now + self._draw()

    def leader_is_alive(self, now: float, *, is_leader: bool) -> bool:
        """Whether this manager leads, or heard a leader within the shortest election timeout: then it gives no vote."""
        return is_leader or (self.leader is not None and now - self.leader_contact < self._timeout)

    def voted(self, peer: str, now: float) -> None:
        """We gave our vote to a peer: it gets time to win (Raft 5.2: granting a vote restarts the timer)."""
        self._asking = False
        if self._is_waited_for(peer, "vote", now):
            self.deadline = now + self._draw()

    def _is_waited_for(self, peer: str, what: str, now: float) -> bool:
        """Whether we wait for the peer now: we did not since it last led, or PATIENCE_TIMEOUTS have passed since."""
        waited_at = self._waited_for.get((peer, what), -1e9)
        if now - waited_at < PATIENCE_TIMEOUTS * self._timeout:
            return False
        self._waited_for[peer, what] = now
        return True

    def campaign_again(self, now: float) -> None:
        """We led until just now, and our majority still follows us."""
        self.deadline = now

    # Handing over ------------------------------------------------------------------------------------------------

    def handed_over(self, target: str, now: float) -> tuple[str, RequestVote] | None:
        """Our leader hands over to `target`. Returns the vote request that `target` sent within the last timeout."""
        self._successor = (target, now)
        parked, self._parked = self._parked, None
        if parked is None or parked[0] != target or now - parked[2] > self._timeout:
            return None
        return parked[:2]

    def successor(self, now: float) -> str | None:
        """The manager that our leader hands over to, if the leader said so within the last timeout."""
        target, said_at = self._successor
        return target if now - said_at <= self._timeout else None

    def park(self, peer: str, message: RequestVote, now: float) -> None:
        self._parked = (peer, message, now)

    # Pre-vote ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, candidacy: Candidacy) -> bool:
        """Ask for pre-votes when it is time. True: campaign now (only if we alone are the quorum)."""
        if candidacy.is_leader or now < self.deadline:
            return False
        if self.leader is not None:
            self.why = Reason(TIMEOUT, f"{self.leader} was not heard for {now - self.leader_contact:.1f} s")
            self.leader = None
        if not candidacy.is_durable:
            # Our last vote request, or our vote, waits for the disk and has not left yet. Another campaign would take
            # it back before any peer could answer. With syncs as long as our timeout, no leader was ever elected.
            return False
        if not candidacy.may_campaign and candidacy.voters == {self._node_id}:
            return False  # it campaigns as soon as it may
        self.deadline = now + self._draw() * RETRY_FRACTION
        if not candidacy.may_campaign:
            return False
        self._round += 1
        self._granted = {self._node_id}
        self._asking = True
        request = PreVote(
            round=self._round,
            term=candidacy.term,
            last_log_index=candidacy.last_index,
            last_log_term=candidacy.last_term,
        )
        for peer in sorted(candidacy.voters - {self._node_id}):
            self._outbox.send(peer, request)
        return self._won(candidacy)

    def answer_pre_vote(self, peer: str, message: PreVote, now: float, candidacy: Candidacy) -> PreVoteReply:
        """Say whether we would vote for the peer. That changes no term: a peer may ask for ever without harm. If our
        own leader asks, it does not lead any more.

        The answer must leave only after our log is synced. A manager that cannot make a vote durable now must not
        promise one; and a candidate must not be made to begin again while our vote for it waits for our disk.
        """
        log_is_new_enough = (message.last_log_term, message.last_log_index) >= (
            candidacy.last_term,
            candidacy.last_index,
        )
        granted = (
            log_is_new_enough
            and message.term >= candidacy.term
            and (peer == self.leader or not self.leader_is_alive(now, is_leader=candidacy.is_leader))
        )
        if granted and self._is_waited_for(peer, "pre-vote", now):
            self.deadline = max(self.deadline, now + GRANTED_SECONDS)
        return PreVoteReply(round=message.round, granted=granted, term=candidacy.term)

    def expects(self, peer: str, message: PreVoteReply, candidacy: Candidacy) -> bool:
        """Whether the reply is of a voter, and to our present round."""
        return self._asking and message.round == self._round and peer in candidacy.voters

    def receive_pre_vote_reply(self, peer: str, message: PreVoteReply, candidacy: Candidacy) -> bool:
        """True: a quorum would vote for us, campaign now."""
        if not self.expects(peer, message, candidacy):
            return False
        if message.granted:
            self._granted.add(peer)
        return candidacy.may_campaign and not candidacy.is_leader and self._won(candidacy)

    def _won(self, candidacy: Candidacy) -> bool:
        won = len(self._granted & candidacy.voters) * 2 > len(candidacy.voters)
        if won:
            self._asking = False
        return won
