"""The terms, votes and leaders that a peer claims: which of these claims this manager accepts.

No peer is trusted to be correct, not even a member: a faulty or hostile peer may cost a bounded disturbance, but never
leadership that works. Lives here: when this manager hears a manager that is ahead, which peer it may follow or vote
for, and when a leader steps down. Not here: which standing may send a message (trust.py, messages.py), and the effects
of messages (guard.py, elections.py). Pure: time is passed in. Invariant: while this manager hears a leader, it follows
and votes for no other manager, unless that leader hands over.
"""

from __future__ import annotations

from typing import Final

from warren_raft.raft.context import Context
from warren_raft.raft.core import Core
from warren_raft.raft.elections import Elections
from warren_raft.raft.messages import RequestVote
from warren_raft.raft.requests import Requests

TERMS_MAX: Final = 1 << 20
"""The claims of peers raise this manager's term by at most this much in YIELD_TIMEOUTS. Without a limit, a peer that
claims later and later terms could raise the term of one manager within a second so far that the others would need days
to reach it; until then that manager could follow and elect no other. Elections end for good at 2^62, after some million
years of claims."""
CANDIDATE_TERMS: Final = TERMS_MAX // 16
"""A candidate is heard if its term is at most this far beyond our limit. It went up to its own limit for the sake of a
manager in a later term, and its limit rose a little earlier than ours."""
LAG_TIMEOUTS: Final = 3.0
"""After this many election timeouts without a leader, a manager hears a peer that claims to be ahead. If the managers
that it knows can elect a leader, they have done so by then."""
YIELD_TIMEOUTS: Final = 30.0
"""A leader that its majority follows takes up a later term that one member claims only once in this many election
timeouts, because each time costs an election."""
VOTE_PAUSE: Final = 0.25
"""Part of an election timeout. Further vote requests of the same peer within it are not heard. A correct candidate that
failed waits for longer before it tries again."""


class Admission:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, core: Core, elections: Elections, requests: Requests) -> None:
        self._log = context.log
        self._roster = context.roster
        self._timeout = context.settings.election_timeout_seconds
        self._core = core
        self._elections = elections
        self._requests = requests
        self._limit: tuple[int, float] | None = None
        """(latest term, when that was the limit); it rises with time (`_latest`)."""
        self._nacks: dict[str, int] = {}
        """Peer -> the later term that it claims, while we lead in `_nacks_of_term`."""
        self._nacks_of_term = 0
        self._yielded_at: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        """Peer -> when we last heard its request for our vote."""

    def forget(self, peer: str) -> None:
        """The link of a peer is down. The limits of a member stay, or each new link would be a new allowance; members
        are few."""
        self._nacks.pop(peer, None)
        if peer not in self._roster.members:
            self._asked_at.pop(peer, None)
            self._yielded_at.pop(peer, None)

    # Terms ---------------------------------------------------------------------------------------------------------

    def _latest(self, now: float) -> int:
        """The latest term that this manager enters because a peer claims it."""
        full = self._core.term + TERMS_MAX
        start, since = self._limit or (full, now)
        latest = start + int((now - since) * TERMS_MAX / (YIELD_TIMEOUTS * self._timeout))
        if self._limit is None or latest > full:
            self._limit, latest = (full, now), full
        return latest

    # Those ahead -------------------------------------------------------------------------------------------------

    def hears(self, peer: str, now: float, led_at: float) -> bool:
        """Whether we hear a peer that claims to be ahead of us. `led_at`: when a leader was last known."""
        if self._core.leader == peer == self._elections.leader:
            return True
        roster = self._roster
        if roster.membership is None and roster.founding is None:
            expected = roster.configured.keys() - {roster.node_id}
            if not expected or peer in expected:
                return True  # we wait to be added by a manager that the operator named
        return now - led_at > LAG_TIMEOUTS * self._timeout

    # Leaders -----------------------------------------------------------------------------------------------------

    def may_lead(self, peer: str, term: int, now: float) -> bool:
        """Whether we may follow a peer that claims to lead `term`."""
        core, elections = self._core, self._elections
        if term <= core.term:
            return term == core.term and core.leader in (None, peer)
        is_expected = peer in (elections.leader, elections.successor(now), self._requests.successor)
        if not is_expected and elections.leader_is_alive(now, is_leader=core.is_leader):
            return False
        if self._log.is_untouched:
            return True  # our term may go back later (may_go_back)
        latest = self._latest(now)
        if term > latest:
            core.observe_term(latest)
            return False
        return True

    def may_go_back(self, peer: str, now: float) -> bool:
        """Whether this manager enters an earlier term, which a peer claims to lead. It may if it has promised nothing
        yet. Otherwise a later term, which any peer may have claimed, would keep a new manager from the leader."""
        is_free = self._core.leader == peer or not self._elections.leader_is_alive(now, is_leader=False)
        return self._log.is_untouched and is_free

    # Votes -------------------------------------------------------------------------------------------------------

    def may_get_vote(self, peer: str, message: RequestVote, now: float) -> bool:
        """Whether we hear a request for our vote. We hear a candidate that our leader hands over to at once."""
        core, elections = self._core, self._elections
        term = message.term
        if term > self._latest(now) + CANDIDATE_TERMS:
            return False
        is_asked = message.transfer and peer in (elections.successor(now), self._requests.successor)
        if is_asked:
            return True
        if peer == elections.leader:
            return True  # it asks for votes, so it does not lead any more
        if elections.leader_is_alive(now, is_leader=core.is_leader):
            if message.transfer:
                elections.park(peer, message, now)  # our leader's message that it hands over may come later
            return False
        if term > core.term:
            if now - self._asked_at.get(peer, -1e9) < VOTE_PAUSE * self._timeout:
                return False
            self._asked_at[peer] = now
        return True

    def bounded(self, term: int, now: float) -> int:
        """The term from which this manager campaigns, if a voter claims to be in a later term."""
        return min(term, self._latest(now))

    # A leader that hears of a later term ---------------------------------------------------------------------------

    def must_yield(self, peer: str, term: int) -> bool:
        """Whether so many voters claim a later term that this leader has no majority any more."""
        core = self._core
        if self._nacks_of_term != core.term:
            self._nacks_of_term = core.term
            self._nacks.clear()
        self._nacks[peer] = term
        voters = self._roster.voters
        return len(self._nacks.keys() & voters) * 2 >= len(voters)

    def may_yield(self, peer: str, now: float) -> bool:
        """Whether this leader takes up the later term of one member and is elected again. Otherwise that member could
        not follow it."""
        if now - self._yielded_at.get(peer, -1e9) < YIELD_TIMEOUTS * self._timeout:
            return False
        self._yielded_at[peer] = now
        return True
