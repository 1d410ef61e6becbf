"""What a peer's message may do to this manager beyond the table of trust.py: terms, votes, leaders that it claims.

No peer is trusted to be sound, a member neither: one that is broken or hostile costs a bounded disturbance, and never
leadership that works. Lives here: when a manager that is ahead of us is heard, who may be followed, who may be voted
for, and whose word makes a leader stand down. Not here: what the messages then do (guard.py, elections.py). Pure: time
is passed in. Invariant: while a leader is heard nobody else is followed or voted for, unless that leader hands over.
"""

from __future__ import annotations

from typing import Final

from warren_raft.raft.core import Core
from warren_raft.raft.elections import Elections
from warren_raft.raft.log import Log
from warren_raft.raft.messages import RequestVote
from warren_raft.raft.requests import Requests
from warren_raft.raft.roster import Roster

TERMS_MAX: Final = 1 << 20
"""The term rises by so much at most in YIELD_TIMEOUTS, on the word of others. Otherwise a peer that claims later
and later terms could raise the term of one manager in a second so far that the others would need days to reach it; till
then that manager could follow and elect nobody. Elections end for good at 2^62, after some million years of claims."""
CANDIDATE_TERMS: Final = TERMS_MAX // 16
"""A candidate is heard so many terms beyond that. It went as far as it may itself, for the sake of a manager in a later
term, and its limit rose a little earlier than ours."""
LAG_TIMEOUTS: Final = 3.0
"""Election timeouts without a leader after which a manager hears one that says to be ahead of it. Where a leader can be
elected among those it knows, one is by then."""
YIELD_TIMEOUTS: Final = 30.0
"""A leader that its majority follows takes up a later term, on the word of the same member, so often: each time is an
election."""
VOTE_PAUSE: Final = 0.25
"""Of an election timeout: later requests for votes of the same peer within it are not heard. A candidate that failed
waits for longer before it tries again."""


class Admission:
    """Raft thread or simulator only."""

    def __init__(
        self, log: Log, roster: Roster, elections: Elections, requests: Requests, *, timeout_seconds: float
    ) -> None:
        self._log = log
        self._roster = roster
        self._elections = elections
        self._requests = requests
        self._timeout = timeout_seconds
        self._core: Core
        self._limit: tuple[int, float] | None = None
        """(latest term, when that was so); it rises with time (`_latest`)."""
        self._nacks: dict[str, int] = {}
        """Of the term that we lead: who says to be in a later one, and in which."""
        self._nacks_of_term = 0
        self._yielded_at: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        """Who asked for our vote, and when it was last heard."""

    def attach(self, core: Core) -> None:
        self._core = core

    def forget(self, peer: str) -> None:
        """Its link is down. What limits it stays, or a new link would be a new allowance; ids of members are few."""
        self._nacks.pop(peer, None)
        if peer not in self._roster.members:
            self._asked_at.pop(peer, None)
            self._yielded_at.pop(peer, None)

    # Terms ---------------------------------------------------------------------------------------------------------

    def _latest(self, now: float) -> int:
        """The latest term that this manager enters on the word of others."""
        full = self._core.term + TERMS_MAX
        start, since = self._limit or (full, now)
        latest = start + int((now - since) * TERMS_MAX / (YIELD_TIMEOUTS * self._timeout))
        if self._limit is None or latest > full:
            self._limit, latest = (full, now), full
        return latest

    # Those ahead -------------------------------------------------------------------------------------------------

    def hears(self, peer: str, now: float, led_at: float) -> bool:
        """Whether a peer that says to be ahead of us is heard. `led_at`: when a leader was last known."""
        if self._core.leader == peer == self._elections.leader:
            return True
        roster = self._roster
        if roster.membership is None and roster.founding is None:
            expected = roster.configured.keys() - {roster.node_id}
            if not expected or peer in expected:
                return True  # we wait to be added, by those whom the operator named
        return now - led_at > LAG_TIMEOUTS * self._timeout

    # Leaders -----------------------------------------------------------------------------------------------------

    def may_lead(self, peer: str, term: int, now: float) -> bool:
        """Whether we may follow a peer that says to lead `term`."""
        core, elections = self._core, self._elections
        if term <= core.term:
            return term == core.term and core.leader in (None, peer)
        is_expected = peer in (elections.leader, elections.successor(now), self._requests.successor)
        if not is_expected and elections.leader_is_alive(now, is_leader=core.is_leader):
            return False
        if self._log.is_untouched:
            return True  # its term may go back, too
        latest = self._latest(now)
        if term > latest:
            core.observe_term(latest)
            return False
        return True

    def may_go_back(self, peer: str, now: float) -> bool:
        """Whether this manager enters an earlier term, which a peer says to lead. It has promised nothing yet: else a
        later term, which anybody may have claimed, would keep a new manager from following the leader."""
        is_free = self._core.leader == peer or not self._elections.leader_is_alive(now, is_leader=False)
        return self._log.is_untouched and is_free

    # Votes -------------------------------------------------------------------------------------------------------

    def may_get_vote(self, peer: str, message: RequestVote, now: float) -> bool:
        """Whether a request for our vote is heard. One that its leader hands over to is heard at once."""
        core, elections = self._core, self._elections
        term = message.term
        if term > self._latest(now) + CANDIDATE_TERMS:
            return False
        is_asked = message.transfer and peer in (elections.successor(now), self._requests.successor)
        if is_asked:
            return True
        if peer == elections.leader:
            return True  # so it leads no more
        if elections.leader_is_alive(now, is_leader=core.is_leader):
            if message.transfer:
                elections.park(peer, message, now)  # the word of our leader may come after it
            return False
        if term > core.term:
            if now - self._asked_at.get(peer, -1e9) < VOTE_PAUSE * self._timeout:
                return False
            self._asked_at[peer] = now
        return True

    def bounded(self, term: int, now: float) -> int:
        """The term to stand for election from, when a voter says that it is in a later one."""
        return min(term, self._latest(now))

    # A leader that is told of a later term -------------------------------------------------------------------------

    def must_yield(self, peer: str, term: int) -> bool:
        """Whether so many members are in a later term that this leader has no majority any more."""
        core = self._core
        if self._nacks_of_term != core.term:
            self._nacks_of_term = core.term
            self._nacks.clear()
        self._nacks[peer] = term
        voters = self._roster.voters
        return len(self._nacks.keys() & voters) * 2 >= len(voters)

    def may_yield(self, peer: str, now: float) -> bool:
        """Whether this leader takes up the later term of one member, which cannot follow it otherwise, and is elected
        again."""
        if now - self._yielded_at.get(peer, -1e9) < YIELD_TIMEOUTS * self._timeout:
            return False
        self._yielded_at[peer] = now
        return True
