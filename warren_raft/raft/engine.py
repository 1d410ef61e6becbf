"""Consensus as a stepper: (now, events) -> effects, then apply(). No thread, socket, file or clock of its own.

Lives here: the order of the parts within a step, and the parts that run once in a tick. Not here: any decision; the
parts (parts.py). Driven by driver.py, and by a simulator in tests. Invariant: nothing that speaks for the log leaves,
and nothing is applied, before the sync that covers it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from random import Random
from typing import Any, Final

from warren_raft.alarms import Alarms
from warren_raft.certificates.identity import Identity
from warren_raft.errors import Closed, InvariantViolation, Unavailable, WarrenError
from warren_raft.raft.context import LONG_AGO, TICK_SECONDS, make_context
from warren_raft.raft.effects import Effect
from warren_raft.raft.events import (
    Arriving,
    BarriersWanted,
    Event,
    LinkDown,
    LinkUp,
    NotReached,
    Received,
    Refused,
    Submitted,
    Synced,
    Worked,
)
from warren_raft.raft.log.log import Log
from warren_raft.raft.membership import Hello
from warren_raft.raft.messages import AppendEntries, AppendReply
from warren_raft.raft.outbox import NOTICE_SECONDS
from warren_raft.raft.parts import Parts
from warren_raft.raft.readings import Readings
from warren_raft.raft.reasons import STATE_WRONG, Reason
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.replacement import Phase
from warren_raft.raft.requests import ChangeWanted, TransferWanted
from warren_raft.raft.settings import Settings
from warren_raft.raft.snapshots import Snapshots
from warren_raft.raft.state_machine import StateMachine
from warren_raft.raft.submit import Proposal
from warren_raft.raft.watch import Situation
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.engine")

EXPIRE_SECONDS: Final = 0.05
"""Deadlines of writes and requests are looked at this often."""
CALM_SECONDS: Final = 0.25
"""While nothing is under way, a manager looks at least so often. The space of its disk, for example, is measured by
another thread."""
EARLY_SECONDS: Final = 0.1
"""Such a look comes so much earlier if there is a step anyway. So a heartbeat takes it along."""
SOON_SECONDS: Final = 0.001
"""A look that was asked for during a step comes so much later."""


class Engine(Readings):
    """One manager's consensus. One thread (or the simulator) steps it; its readings may be read from any thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        log: Log,
        machine: StateMachine,
        snapshots: Snapshots,
        alarms: Alarms,
        random: Random,
        now: float,
    ) -> None:
        if machine.applied_index > log.last_index:
            raise InvariantViolation(
                f"the log ends at index {log.last_index}, below the applied index {machine.applied_index}"
            )
        context = make_context(settings, log=log, machine=machine, alarms=alarms, random=random, now=now)
        parts = Parts(context, snapshots)
        super().__init__(context, parts)
        self._node_id = settings.node_id
        self._outbox = context.outbox
        self._replacement = context.replacement
        self._held = parts.held
        self._settling = parts.settling
        self._confirming = parts.confirming
        self._barriers = parts.barriers
        self._changes = parts.changes
        self._requests = parts.requests
        self._admission = parts.admission
        self._refusals = parts.refusals
        self._watch = parts.watch
        self._writer = parts.writer
        self._proposing = parts.proposing
        self._dialling = parts.dialling
        self._peers = parts.peers
        self._installation = parts.installation
        self._applying = parts.applying
        self._dispatch = parts.dispatch
        self._expire_at = LONG_AGO
        self.rests = False
        """Whether nothing is under way, as the last look found, and no event came since but heartbeats and answers."""
        self._waited_for: Collection[str] | None = None
        """See Outbox.flush."""
        self.renewal_wanted = False
        """Set from any thread: the state is right, and has to move to another file."""
        self.failure: WarrenError | None = None
        """Set when this manager must stop: an invariant broke, or it was removed."""
        self._catchup.count_log(machine.applied_index)

    # For the transport, called between steps ---------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        return self._roster.hello().to_message()

    def judge(self, hello: Mapping[str, object], identity: Identity | None = None) -> Refusal | None:
        """Why a peer is not let in; None: it is. `identity`: of its certificate; None: the link is plaintext."""
        refusal = self._roster.judge(hello, identity, level=self._context.machine.level)
        if refusal is not None:
            self._refusals.judged(str(hello.get("node_id")), refusal, identity, self._context.now)
        return refusal

    def renewed(self, identity: Identity) -> None:
        """This manager shows another certificate from now on. Raft thread only."""
        self._roster.identity = identity

    # One step ----------------------------------------------------------------------------------------------------

    def step(self, now: float, events: Iterable[Event] = ()) -> list[Effect]:
        """Take the events in, decide, and return the effects. No message or call makes it raise."""
        context = self._context
        context.now = max(context.now, now)
        events = list(events)
        if self.rests and not all(map(_is_sign_of_life, events)):
            self._stir()
        for event in events:  # first: should anything else stop this manager, these writes end with the others
            if type(event) is Submitted:
                self._submitter.submit(event.proposals)
            elif type(event) is BarriersWanted:
                self._barriers.add(event.barriers)
        try:
            for event in events:
                if type(event) is Received:
                    self._dispatch.receive(event.peer, event.link, event.message)
                else:
                    self._handle(event)
            if self.failure is None:
                self._decide()
        except WarrenError as error:
            self._fail(error)
        return self._collect()

    def _handle(self, event: Event) -> None:
        match event:
            case Synced(batch, error):
                if self._writer.written(batch, error) and not self._installation.log_written(batch):
                    self._outbox.synced(self._context.now)
                    self._context.stages.synced(self._log.synced_index, self._context.now)
                    self._guard.synced()
                return
            case Submitted() | Received() | BarriersWanted():
                return  # `step` has taken it
            case Arriving(peer, number, term):
                self._dispatch.arriving(peer, number, term)
            case LinkUp(peer, number, hello, identity):
                self._peers.link_up(peer, number, Hello.from_message(hello), identity)
            case LinkDown(peer, number):
                self._link_down(peer, number)
            case Refused(peer, refusal, identity):
                self._refusals.heard(
                    peer,
                    refusal,
                    identity,
                    applied_index=self._context.machine.applied_index,
                    is_leaving=self._settling.is_leaving,
                )
            case NotReached(peer, why, refusal):
                self._roster.guests.not_reached(peer, why)
                self._refusals.not_reached(peer, why, refusal)
            case ChangeWanted() | TransferWanted():
                self._requests.ask(event)
            case Worked(work, result, error):
                if error is not None and not isinstance(error, WarrenError | OSError):
                    log_event(logger, logging.ERROR, "job on snapshots failed", node=self._node_id, exc_info=error)
                    error = WarrenError(f"it failed: {error!r}")
                work.then(result, error)
        self._context.look_soon()

    def _link_down(self, peer: str, number: int) -> None:
        if not self._peers.link_down(peer, number):
            return
        self._catchup.link_down(peer)
        self._health.link_down(peer)
        self._submitter.link_down(peer)
        self._confirming.link_down(peer)
        self._held.link_down(peer)
        self._elections.link_down(peer, self._context.now)
        self._admission.forget(peer)

    def _decide(self) -> None:
        """Each part runs if its input may have changed: a write needs few of them. All run once in a tick."""
        context = self._context
        looks = context.now >= context.look_at - (EARLY_SECONDS if self.rests else 0.0) or self._is_restless
        if looks:
            context.look_at = context.now + TICK_SECONDS
            self._look_around()
        if not self._replacement.is_swapping:
            self._go_on(looks=looks)
        if context.now >= self._expire_at:
            self._expire()
        if looks or context.look_at > context.now + TICK_SECONDS:
            self._plan_look()

    def _plan_look(self) -> None:
        """The next look is due in a tick, or later while nothing is under way."""
        context = self._context
        in_a_tick = context.now + TICK_SECONDS
        if context.look_at == in_a_tick:  # this step looked
            self.rests = self._is_calm
            if self.rests:
                context.look_at = context.now + CALM_SECONDS
        elif context.look_at > in_a_tick and self._is_busy:
            self._stir()

    def _stir(self) -> None:
        """Something is under way again: look in a tick at the latest."""
        self.rests = False
        self._context.look_at = min(self._context.look_at, self._context.now + TICK_SECONDS)

    @property
    def _is_busy(self) -> bool:
        """Whether a write, a barrier or a batch of the log is under way."""
        submitter, log = self._submitter, self._log
        return (
            submitter.pending_count > 0
            or self._barriers.is_waiting
            or self._confirming.is_busy
            or submitter.is_queueing
            or self._writer.batch is not None
            or log.has_pending
            or self._context.machine.applied_index < log.last_index
        )

    @property
    def _is_calm(self) -> bool:
        """Whether nothing is under way that goes on by itself: this manager serves with all others, has applied its
        whole log, and waits for events. Anything that is not named here has a timer of a second or more."""
        roster = self._roster
        return (
            self.is_ready
            and self.leader is not None
            and not self._is_busy
            and not self._is_restless
            and self._replacement.phase is Phase.IN_USE
            and not self._requests.is_waiting
            and not self._catchup.is_busy
            and not roster.guests.addresses
            and self._fitness.shortage is None
            and self._fitness.must_not_lead is None
            and all(member.voter and roster.connected(member.id) for member in roster.members.values())
            and (not self._core.is_leader or all(map(self._has_all, roster.members)))
        )

    def _has_all(self, member_id: str) -> bool:
        return member_id == self._node_id or self._guard.match_index(member_id) == self._log.last_index

    def _go_on(self, *, looks: bool) -> None:
        """Elections, the core's tick, changes of leadership, and the next entries. `looks`: this is the look of a tick,
        or something has happened that belongs to no write."""
        context, core, leading = self._context, self._core, self._leading
        if context.now >= self._elections.deadline and not core.is_leader:
            leading.ask_for_votes()
        # To a follower a tick does nothing that cannot wait.
        if looks or (core.is_leader and (core.needs_tick or context.now > core.heartbeat_at)):
            core.tick()
            self._guard.after_tick()
        if looks or core.has_moved or self._elections.leader != leading.followed:
            leading.follow()
            self._proposing.route()
        if self._barriers.is_waiting or self._confirming.is_busy:
            self._barriers.go_on(context.now)
            self._confirming.go_on(context.now)
            self._barriers.hear_own()
        if looks:
            self._look_at_members()
        self._proposing.send()
        if core.is_leader:
            self._proposing.propose()
            if self._guard.untold_since is not None or self._proposing.senders:
                self._tell_commit()
        if looks:
            self._requests.tick(must_go=self._fitness.must_not_lead)
            leading.check_ready()

    def _tell_commit(self) -> None:
        """A new commit index waits a little for entries to ride on, but not if a follower has a caller of a write that
        is committed now."""
        proposing, guard = self._proposing, self._guard
        waited_for = proposing.take_committed_senders() if proposing.senders else ()
        if guard.untold_since is None:
            return
        is_due = self._context.now - guard.untold_since >= NOTICE_SECONDS
        if is_due or waited_for:
            guard.tell_commit()
            self._waited_for = None if is_due else waited_for

    @property
    def _is_restless(self) -> bool:
        """Whether something is under way that may go one step further with each message and each sync."""
        is_settled, requests = self._roster.is_settled, self._requests
        return not is_settled or self._replacement.incoming is not None or requests.is_transferring

    def _expire(self) -> None:
        """End the writes and requests that have reached their deadlines."""
        now = self._context.now
        self._expire_at = now + EXPIRE_SECONDS
        self._fitness.look(self.leader)
        reason, full = self._fitness.hindrance
        self._submitter.expire(now, reason, full=full)
        self._barriers.expire(now)
        self._requests.expire()

    def _collect(self) -> list[Effect]:
        """The messages that may leave now, then the next log batch; after a failure, no more dialling."""
        outbox, now = self._outbox, self._context.now
        waited_for, self._waited_for = self._waited_for, None
        if outbox.flush(now, waited_for):
            outbox.send_alive(now, self._guard.alive)
        if self.failure is not None:
            self._dialling.stop()
        elif self._log.has_pending or self._writer.shortage is not None:
            self._writer.start()
        return outbox.take()

    @property
    def step_at(self) -> float:
        """The time by which the next step has to be made, although nothing happens."""
        now = self._context.now
        step_at = self._context.look_at
        if self.rests and self._core.is_leader:  # otherwise it looks often enough
            step_at = min(step_at, self._core.heartbeat_at + SOON_SECONDS)
        if self._outbox.notices or self._guard.untold_since is not None:
            step_at = min(step_at, now + NOTICE_SECONDS)
        # A deadline that has passed was looked at in this step. If no election may begin, an event ends the reason.
        if not self._core.is_leader and (self._elections.deadline > now or self._core.has_moved):
            step_at = min(step_at, self._elections.deadline)
        return max(step_at, now + SOON_SECONDS)

    @property
    def holds_notices(self) -> bool:
        """Whether a step is wanted within NOTICE_SECONDS."""
        return bool(self._outbox.notices) or self._guard.untold_since is not None

    @property
    def has_to_apply(self) -> bool:
        """Whether callers of this leader wait for entries that may be applied now, or barriers for such entries."""
        return (self._core.is_leader and self._applying.is_due) or self._barriers.is_due

    def apply(self) -> bool:
        """Apply the entries that are committed and durable here, some at a time. True: there is more to do at once."""
        if self.failure is not None:
            return False
        try:
            more = self._applying.apply()
        except WarrenError as error:
            self._fail(error)
            return False
        self._barriers.applied()
        return more

    # Once a tick, and after an event that is not part of a write ---------------------------------------------------

    def _look_around(self) -> None:
        """The matters that no write waits for."""
        self._dialling.tick()
        self.beats.tick()
        if not self._replacement.is_swapping:
            self._compare_states()
        if self._watch.is_due(self._context.now):
            self._watch.look(self._context.now, self._situation())
        self._look_at_snapshots()
        if not self._replacement.is_swapping:
            self._peers.form()

    def _look_at_members(self) -> None:
        self._changes.tick()
        self._refusals.check_foreign(is_ready=self.is_ready)
        self._peers.settle()
        self._proposing.change_is_due = True

    def _situation(self) -> Situation:
        return Situation(
            waits=self.waits,
            has_quorum=self.has_quorum,
            leader=self.leader,
            applied_index=self._context.machine.applied_index,
            fetching=self.fetching,
            reports=self._health.reports,
        )

    def _compare_states(self) -> None:
        """With the other managers, now and then. They are told of this manager, too."""
        machine = self._context.machine
        if not self._health.is_due(self._context.now):
            return
        is_diverged = self._health.tick(
            self._context.now,
            machine,
            self.own_report(machine.applied_index, self.alarms.active),
            low=self.lacks_space,
            is_leader=self._core.is_leader,
            commit=self._committed_entry(),
            settled=self._roster.settled_index,
        )
        if is_diverged:
            self._installation.condemn()

    def _committed_entry(self) -> tuple[int, int] | None:
        """(index, term) of the newest entry that is known to be committed and is durable here."""
        index, base = self.commit_index, self._log.base_index
        return (index, self._log.entries[index - base][2]) if index >= base else None

    def _look_at_snapshots(self) -> None:
        applied_index = self._context.machine.applied_index
        self._installation.take_news()
        if not self._replacement.is_swapping:
            if self.renewal_wanted:
                self.renewal_wanted = False
                self._installation.renew()
            self._catchup.tick(
                self._context.now,
                self._guard,
                applied_index=applied_index,
                leader=None if self._core.is_leader else self.leader,
                may_take=not self._replacement.is_wrong and self._replacement.incoming is None,
            )
        if self._installation.tick(applied_index, leads=self._core.is_leader):
            self._leading.step_down(self._fitness.must_not_lead or Reason(STATE_WRONG, "its state is wrong"))

    # The end -----------------------------------------------------------------------------------------------------

    def _fail(self, error: WarrenError) -> None:
        if self.failure is None:
            self.failure = error
            self._leading.is_stopped = True
            self._submitter.fail_all(lambda proposal: _closed(proposal, str(error)))
            self._barriers.fail_all(str(error))

    def close(self) -> None:
        """Every write still waiting ends now, and nobody is told any more that this manager leads or follows."""
        self._leading.is_stopped = True
        self._installation.abandon()
        self._submitter.fail_all(lambda proposal: _closed(proposal, "the store is closed"))
        self._barriers.fail_all("the store is closed")


def _is_sign_of_life(event: Event) -> bool:
    """Whether it is a heartbeat, or a follower's answer."""
    if type(event) is not Received:
        return False
    message = event.message
    return message["type"] == AppendReply.NAME or (message["type"] == AppendEntries.NAME and not message.get("entries"))


def _closed(proposal: Proposal, reason: str) -> Exception:
    return Unavailable(reason, maybe_applied=True) if proposal.sent else Closed(reason)
