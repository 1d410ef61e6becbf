"""When to campaign, and when to let others: pre-vote, stickiness, leadership transfer.

PySyncObj's own timer is off: it has neither pre-vote nor stickiness, so one node that cannot hear deposes a healthy
leader for ever (hole 6). Here a campaign starts only after a quorum said, without changing any term, that it would vote
(Raft thesis 9.6). Not here: counting real votes (the core, behind guard.py). Time and randomness are passed in.
Invariant: no vote is asked for, and none given, while a leader is known to be alive, unless that leader asks for it.
A candidate gets its time once; one that asks again and again, and never leads, holds nobody up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from warren_raft.raft.leadership import LINK_LOST, STARTED, TIMEOUT, Reason
from warren_raft.raft.messages import Message, PreVote, PreVoteReply, RequestVote

LINK_LOST_MIN_SECONDS: Final = 0.03
LINK_LOST_MAX_SECONDS: Final = 0.25
"""After the link to the leader broke (its process died, or the network did) a follower asks for pre-votes within this
range instead of waiting for the election timeout. A pre-vote disturbs nobody when the leader is in fact alive."""
START_FRACTION: Final = 0.3
"""Of a drawn timeout: how soon a manager that has just started asks for pre-votes."""
FOUNDED_MAX_SECONDS: Final = 0.15
"""The founding members ask within this range: all of them are there, and no leader can be."""
RETRY_FRACTION: Final = 0.5
"""A pre-vote round that got no quorum is repeated after this part of a timeout."""
GRANTED_SECONDS: Final = 0.1
"""Whoever got our pre-vote is given so long to campaign before we ask ourselves: two candidates split the vote. Shorter
than any manager's pause between two rounds, so one that asks for ever and cannot win delays nobody for long."""
PATIENCE_TIMEOUTS: Final = 5.0
"""Whoever got our vote, or our pre-vote, and did not lead within so many timeouts is not waited for again meanwhile."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What an election is decided on, taken from core and log by the engine."""

    term: int
    last_index: int
    last_term: int
    voters: frozenset[str]
    may_campaign: bool
    """A voter under its own incarnation, every membership change at or below commit applied, disk in order."""
    is_durable: bool
    """All that was written to the log is synced: our own last term and vote, too."""
    is_leader: bool


class Elections:
    """Timer and pre-vote of one manager. Not thread-safe; raft thread or simulator only."""

    def __init__(
        self, node_id: str, *, timeout_seconds: float, random: Random, now: float, send: Callable[[str, Message], None]
    ) -> None:
        self._node_id = node_id
        self._timeout = timeout_seconds
        self._random = random
        self._send = send
        self._round = 0
        self._granted: set[str] = set()
        self._asking = False
        self.leader: str | None = None
        """Whom we heard lead, until the link to it broke or its time was up. Never ourselves."""
        self.leader_contact = -1e9
        """When a message of the present leader last arrived."""
        self._successor: tuple[str, float] = ("", -1e9)
        """To whom our leader hands over, and when it said so last."""
        self._parked: tuple[str, RequestVote, float] | None = None
        """A request for our vote of a candidate that says to be asked by our leader, which has not said so yet."""
        self._waited_for: dict[tuple[str, str], float] = {}
        """(peer, for what) -> when it was last given time, since it led last."""
        self.why = STARTED
        """Why there is nobody to follow: what a campaign gives as its reason."""
        # Nobody is known to lead yet, and a pre-vote disturbs nobody who does.
        self.deadline = now + START_FRACTION * self._draw()

    def _draw(self) -> float:
        """Between one and two timeouts (Raft 5.2): long enough apart that one candidate usually comes alone."""
        return self._timeout * (1.0 + self._random.random())

    def heard_leader(self, leader: str, now: float) -> None:
        if self._waited_for:
            self._waited_for = {of: at for of, at in self._waited_for.items() if of[0] != leader}
        self.leader_contact = now
        self.leader = leader
        self._asking = False
        self.deadline = now + self._draw()

    def link_down(self, peer: str, now: float) -> None:
        if self._parked is not None and self._parked[0] == peer:
            self._parked = None  # it was asked on that link, and would be answered on the next one
        if peer == self.leader:
            self.why = Reason(LINK_LOST, f"the link to {peer} broke")
            self.leader = None
            self.leader_contact = -1e9
            span = LINK_LOST_MAX_SECONDS - LINK_LOST_MIN_SECONDS
            soon = now + LINK_LOST_MIN_SECONDS + span * self._random.random()
            self.deadline = min(self.deadline, soon)

    def founded(self, now: float) -> None:
        """The founding members have met: there is no leader to wait for."""
        self.deadline = min(self.deadline, now + FOUNDED_MAX_SECONDS * self._random.random())

    def became_leader(self) -> None:
        """Whoever led before us is nobody to wait for once we lead no longer."""
        self.leader = None
        self.leader_contact = -1e9
        self._asking = False

    def stepped_down(self, now: float, why: Reason, *, is_alone: bool = False) -> None:
        """We led and do not any more: wait a full timeout before asking. Our successor may have been heard already. The
        only voter (`is_alone`) has nobody to wait for."""
        self.why = why
        self.deadline = now if is_alone else now + self._draw()

    def leader_is_alive(self, now: float, *, is_leader: bool) -> bool:
        """Whether a vote would stand against a leader that was heard within the shortest election timeout."""
        return is_leader or (self.leader is not None and now - self.leader_contact < self._timeout)

    def voted(self, peer: str, now: float) -> None:
        """We gave our vote: whoever has it gets its time (Raft 5.2: granting a vote restarts the timer)."""
        self._asking = False
        if self._is_waited_for(peer, "vote", now):
            self.deadline = now + self._draw()

    def _is_waited_for(self, peer: str, what: str, now: float) -> bool:
        """Whether it has not had its time since it led last, or that was long ago."""
        waited_at = self._waited_for.get((peer, what), -1e9)
        if now - waited_at < PATIENCE_TIMEOUTS * self._timeout:
            return False
        self._waited_for[peer, what] = now
        return True

    def stand_again(self, now: float) -> None:
        """We led until just now, and our majority follows us still."""
        self.deadline = now

    # Handing over ------------------------------------------------------------------------------------------------

    def handed_over(self, target: str, now: float) -> tuple[str, RequestVote] | None:
        """Our leader hands over to `target`. Returns what that one asked already, in the last timeout."""
        self._successor = (target, now)
        parked, self._parked = self._parked, None
        if parked is None or parked[0] != target or now - parked[2] > self._timeout:
            return None
        return parked[:2]

    def successor(self, now: float) -> str | None:
        """To whom our leader said, within the last timeout, that it hands over."""
        target, said_at = self._successor
        return target if now - said_at <= self._timeout else None

    def park(self, peer: str, message: RequestVote, now: float) -> None:
        self._parked = (peer, message, now)

    # Pre-vote ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, standing: Standing) -> bool:
        """Ask for pre-votes when it is time. True: campaign now (only where we alone are the quorum)."""
        if standing.is_leader or now < self.deadline:
            return False
        if self.leader is not None:
            self.why = Reason(TIMEOUT, f"{self.leader} was not heard for {now - self.leader_contact:.1f} s")
            self.leader = None
        if not standing.is_durable:
            # Our last candidacy, or our vote, has not left yet: to campaign again would take it back before anybody
            # could answer. Where a sync takes as long as our patience nobody was ever elected.
            return False
        self.deadline = now + self._draw() * RETRY_FRACTION
        if not standing.may_campaign:
            return False
        self._round += 1
        self._granted = {self._node_id}
        self._asking = True
        request = PreVote(
            round=self._round,
            term=standing.term,
            last_log_index=standing.last_index,
            last_log_term=standing.last_term,
        )
        for peer in sorted(standing.voters - {self._node_id}):
            self._send(peer, request)
        return self._won(standing)

    def answer_pre_vote(self, peer: str, message: PreVote, now: float, standing: Standing) -> PreVoteReply:
        """Would we vote for it? Changes nothing: it may ask for ever without harm. Our own leader that asks leads no
        more.

        The answer is to leave when our log is synced: who cannot make a vote durable now must not promise one, and a
        candidate whose vote waits for our disk must not be made to begin anew.
        """
        log_is_new_enough = (message.last_log_term, message.last_log_index) >= (
            standing.last_term,
            standing.last_index,
        )
        granted = (
            log_is_new_enough
            and message.term >= standing.term
            and (peer == self.leader or not self.leader_is_alive(now, is_leader=standing.is_leader))
        )
        if granted and self._is_waited_for(peer, "pre-vote", now):
            self.deadline = max(self.deadline, now + GRANTED_SECONDS)
        return PreVoteReply(round=message.round, granted=granted, term=standing.term)

    def expects(self, peer: str, message: PreVoteReply, standing: Standing) -> bool:
        """Whether it answers what we ask now."""
        return self._asking and message.round == self._round and peer in standing.voters

    def receive_pre_vote_reply(self, peer: str, message: PreVoteReply, standing: Standing) -> bool:
        """True: a quorum would vote for us, campaign now."""
        if not self.expects(peer, message, standing):
            return False
        if message.granted:
            self._granted.add(peer)
        return standing.may_campaign and not standing.is_leader and self._won(standing)

    def _won(self, standing: Standing) -> bool:
        won = len(self._granted & standing.voters) * 2 > len(standing.voters)
        if won:
            self._asking = False
        return won
