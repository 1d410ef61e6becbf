"""Which manager leads, as far as this manager knows, and its own leadership: campaigns, stepping down, readiness.

Lives here: the changes of leadership, in one place, and the parts that have to follow them. Not here: when to campaign
(elections.py), the messages of elections (votes.py), the reasons to hand leadership over (fitness.py). Invariant: a
manager that says it leads has applied an entry of its own term, so its state holds every acknowledged write.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal

from warren_raft.raft.changes import Changes
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.elections import Candidacy, Elections
from warren_raft.raft.guard import CHECK_QUORUM_TIMEOUTS, Guard
from warren_raft.raft.log_writer import LogWriter
from warren_raft.raft.messages import RequestVote
from warren_raft.raft.proposing import Proposing
from warren_raft.raft.reasons import LATER_TERM, STATE_REPLACED, LeaderLog, Reason
from warren_raft.raft.reasons import NO_QUORUM as MINORITY
from warren_raft.raft.requests import Requests
from warren_raft.raft.submit import Submitter

Role = Literal["follower", "candidate", "leader"]
_ROLES: Final[tuple[Role, ...]] = ("follower", "candidate", "leader")
"""By the core's states."""

WRONG_WAITS_TIMEOUTS: Final = 5
"""Election timeouts without a leader after which a manager campaigns although its state is not the majority's: the one
that could lead in its place may have died."""

UNAPPLIED_SECONDS: Final = 0.05
"""Commit indexes that the leader gave within this time are remembered as one, with the time of the first. The age of a
state may be too high by so much, never too low."""


def _age(at: float, now: float) -> float:
    return math.inf if at <= LONG_AGO else max(0.0, now - at)


class Leading:
    """For the raft thread or a simulator only; the properties may be read from any thread."""

    def __init__(
        self,
        context: Context,
        guard: Guard,
        elections: Elections,
        changes: Changes,
        requests: Requests,
        submitter: Submitter,
        proposing: Proposing,
        writer: LogWriter,
    ) -> None:
        self._context = context
        self._node_id = context.node_id
        self._log = context.log
        self._roster = context.roster
        self._guard = guard
        self._core = guard.core
        self._elections = elections
        self._changes = changes
        self._requests = requests
        self._submitter = submitter
        self._proposing = proposing
        self._writer = writer
        self._replacement = context.replacement
        self._timeout_seconds = context.settings.election_timeout_seconds
        self._log_lines = LeaderLog(context.node_id)
        self._was_leader = False
        self._led_term = 0
        """The newest term that this manager led."""
        self.leads_for_sure = False
        """Whether this manager leads, and has applied an entry of its own term."""
        self._sure_term = 0
        """The term in which that was last so."""
        self.led_at = context.now
        """When a leader was last known, to a tick."""
        self.followed: str | None = None
        """The leader that elections.py knew when `follow` last ran."""
        self._unapplied: deque[tuple[int, float]] = deque()
        """(a commit index that the leader gave and that is not applied here, when it first gave one above the index of
        the pair before); both grow from pair to pair."""
        self._ready_index: int | None = None
        self.is_ready = False
        """Whether the state has reached the commit index of the first leader that was heard, and there is a cluster."""
        self.is_stopped = False
        """This manager has ended: nobody is told any more that it leads or follows."""

    # Read by others ----------------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        return "follower" if self.is_stopped else _ROLES[self._core.state]

    @property
    def is_leader(self) -> bool:
        """Leads, and has applied an entry of its own term: its local state holds every acknowledged write."""
        # Asked of the core too: other threads look in the middle of a step, when a new leader has just been heard.
        return self.leads_for_sure and self._core.is_leader and not self.is_stopped

    @property
    def leading_term(self) -> int | None:
        """The term in which this manager `is_leader`; None if it is not.

        The term is asked last. A term never comes again, so all that was asked before was true in this term.
        """
        term = self._sure_term
        return term if self.is_leader and self._core.term == term else None

    @property
    def leader(self) -> str | None:
        """The leader of the present term, if it is heard: the core remembers a leader that died until another one
        is elected, and a caller that waits for a leader or a quorum must not be told of that one."""
        leader = self._core.leader
        is_heard = leader in (self._node_id, self._elections.leader) and not self.is_stopped
        return leader if is_heard else None

    @property
    def has_quorum(self) -> bool:
        """Whether this manager can expect a write to commit: it leads, or hears a leader; while its state is replaced,
        whether a majority is connected."""
        if self.is_stopped:
            return False
        if self._core.is_leader or self._replacement.is_swapping:  # nobody is heard while the state is replaced
            voters = self._roster.voters
            return sum(self._roster.connected(voter) for voter in voters) * 2 > len(voters)
        return self.leader is not None and self.contact_age(self._context.now) < 2 * self._timeout_seconds

    @property
    def leaders_known(self) -> int:
        """How often another leader, or the same one in another term, was known."""
        return self._log_lines.leaders

    def contact_age(self, now: float) -> float:
        """Seconds since the leader was last heard; 0 on the leader itself; infinite before the first time."""
        if self._core.is_leader:
            return 0.0
        return _age(self._elections.last_contact, now)

    def staleness(self, now: float) -> float:
        """Seconds since this manager last had applied all that the leader it heard had committed. On the leader: since
        a majority was heard."""
        if self._core.is_leader and self.leads_for_sure:
            return self._majority_age(now)
        contact = self._elections.last_contact
        try:  # other threads ask too, and the raft thread may take the last pair meanwhile
            return _age(min(contact, self._unapplied[0][1]), now)
        except IndexError:
            return _age(contact, now)

    def _majority_age(self, now: float) -> float:
        """Seconds since a majority of the voters was last heard."""
        ages = (self._roster.contact_age(voter, now) for voter in self._roster.voters)
        known = sorted(math.inf if age is None else age for age in ages)
        return known[len(known) // 2] if known else math.inf

    # Elections ---------------------------------------------------------------------------------------------------

    def candidacy(self) -> Candidacy:
        """The facts that decide an election."""
        applied_all = self._context.machine.applied_index >= self._log.commit_index
        # A state that is wrong makes no vote and no entry wrong: better that leader than none for good.
        may_mislead = self._context.now - self.led_at > WRONG_WAITS_TIMEOUTS * self._timeout_seconds
        is_fit = not self._replacement.is_wrong or may_mislead
        can_write = self._writer.shortage is None
        return Candidacy(
            term=self._core.term,
            last_index=self._log.last_index,
            last_term=self._log.last_term,
            voters=self._roster.voters,
            may_campaign=self._roster.is_voter and applied_all and can_write and is_fit,
            is_durable=self._log.synced_position >= self._log.position,
            is_leader=self._core.is_leader,
        )

    def ask_for_votes(self) -> None:
        """The time of elections.py is up, and this manager does not lead."""
        if self._elections.tick(self._context.now, self.candidacy()):
            self.campaign()

    def campaign(self, transfer: Reason | None = None) -> None:
        """`transfer`: why our leader hands leadership to us."""
        why = transfer or self._elections.why
        self._guard.transferring = transfer is not None
        self._guard.why = why.told()
        self._core.campaign()
        self._log_lines.campaigns(self._node_id, self._core.term, why)
        self._guard.after_tick()

    # Changes of leadership ---------------------------------------------------------------------------------------

    def heard(self, peer: str, commit_index: int) -> None:
        """An append message of a leader that we follow has come."""
        before = self._elections.last_contact
        self._elections.heard_leader(peer, self._context.now)
        if commit_index > self._context.machine.applied_index:
            self._note_unapplied(commit_index, before)
        if self._ready_index is None:
            self._ready_index = commit_index

    def _note_unapplied(self, commit_index: int, before: float) -> None:
        """`before`: the last contact before this one. The leader may have committed the entries at any moment since
        then."""
        told = self._unapplied
        if not told:
            told.append((commit_index, before))
        elif commit_index > told[-1][0]:
            since = told[-1][1]
            if before - since < UNAPPLIED_SECONDS:
                told[-1] = (commit_index, since)
            else:
                told.append((commit_index, before))

    def heard_candidate(self, peer: str, request: RequestVote) -> None:
        self._log_lines.heard_candidate(peer, request)

    def step_down(self, why: Reason) -> None:
        """Nobody could relieve this leader: it goes all the same."""
        self._core.step_down()
        self.follow(Reason(why.word, f"{why.text}, and no other manager took over"))

    def follow(self, why: Reason | None = None) -> None:
        """Follow a change of term, role or leader: each part learns that this manager leads, or does not lead any more.
        Called once a tick, and when there is a change. `why` this leader has stepped down; None: it is seen from the
        term."""
        self._core.has_moved = False
        leads = self._core.is_leader
        if leads != self._was_leader:
            self._was_leader = leads
            self._context.look_soon()
            self._begin_again()
            if leads:
                self._elections.became_leader()
            else:
                self._elections.stepped_down(self._context.now, why or self._why_stepped_down())
                self._submitter.clear_queue()
        if leads:
            self._led_term = self._core.term
        elif self.leads_for_sure:
            self.leads_for_sure = False
        leader = self.leader
        if leader is not None:
            self.led_at = self._context.now
        self._log_lines.look(leader, self._core.term, self._elections.why)
        self.followed = self._elections.leader

    def _why_stepped_down(self) -> Reason:
        if self._core.term > self._led_term:
            return LATER_TERM
        seconds = CHECK_QUORUM_TIMEOUTS * self._timeout_seconds
        return Reason(MINORITY, f"no majority answered {self._node_id} for {seconds:.1f} s")

    def state_replaced(self) -> None:
        """Another state has replaced ours, and a follower's core goes on with it."""
        self._elections.stepped_down(self._context.now, STATE_REPLACED, is_alone=self._context.is_alone)
        self._was_leader = self.leads_for_sure = False
        self._look_at_lag()
        self._begin_again()

    def _begin_again(self) -> None:
        """Forget everything that belongs to one leadership of this manager."""
        self._changes.reset()
        self._requests.leadership_changed()
        self._proposing.leadership_changed()

    # How far the state is ----------------------------------------------------------------------------------------

    def applied(self) -> None:
        """Entries were applied."""
        self._look_at_lag()
        machine = self._context.machine
        if self._core.is_leader and machine.applied_term == self._core.term:
            if self._ready_index is None:
                self._ready_index = machine.applied_index
            self._sure_term = self._core.term
            self.leads_for_sure = True
        if not self.is_ready:
            self.check_ready()

    def _look_at_lag(self) -> None:
        told, applied = self._unapplied, self._context.machine.applied_index
        while told and applied >= told[0][0]:
            told.popleft()

    def check_ready(self) -> None:
        if not self.is_ready and self._ready_index is not None and self._roster.membership is not None:
            self.is_ready = self._context.machine.applied_index >= self._ready_index
