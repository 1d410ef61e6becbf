"""Consensus as a stepper: (now, events) -> effects, then apply(). No thread, socket, file or clock of its own.

Lives here: the order of the parts within a step. The decisions are in guard.py, elections.py, roster.py, changes.py,
requests.py, submit.py, health.py, catchup.py and installation.py. Driven by driver.py, and by a simulator in tests.
Invariant: nothing that speaks for the log leaves, and nothing is applied, before the sync that covers it.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Final

from warren_raft.alarms import Alarm, Alarms
from warren_raft.certificates.identity import Identity
from warren_raft.disk.paths import moved
from warren_raft.disk.shortage import SPACE, Shortage, shortage_of
from warren_raft.errors import (
    Closed,
    InvariantViolation,
    RefusedForSafety,
    StorageFull,
    Unavailable,
    WarrenError,
)
from warren_raft.raft import entries
from warren_raft.raft.admission import Admission
from warren_raft.raft.blocked import clear_blocked, raise_blocked
from warren_raft.raft.catchup import TAKEN_AFTER_BYTES, Catchup, Snapshots
from warren_raft.raft.changes import Changes
from warren_raft.raft.core import Core
from warren_raft.raft.effects import (
    CloseLink,
    Dial,
    Effect,
    Job,
    Then,
    Work,
    WriteLog,
)
from warren_raft.raft.elections import Elections, Standing
from warren_raft.raft.events import (
    Arriving,
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
from warren_raft.raft.guard import Guard
from warren_raft.raft.health import Health
from warren_raft.raft.installation import Installation
from warren_raft.raft.large import LARGE_BYTES, HeldEntries
from warren_raft.raft.leadership import (
    BLOCKED,
    DISK_HUNG,
    LATER_TERM,
    LATER_TERM_OF_ONE,
    STATE_RENEWED,
    STATE_REPLACED,
    STATE_WRONG,
    TRANSFER,
    Leadership,
    Reason,
)
from warren_raft.raft.leadership import NO_QUORUM as MINORITY
from warren_raft.raft.leadership import NO_SPACE as FULL_DISK
from warren_raft.raft.leadership import REMOVED as LEAVING
from warren_raft.raft.log.log import Batch, Log
from warren_raft.raft.membership import (
    FORM,
    Change,
    Hello,
    Member,
    Membership,
    apply_change,
)
from warren_raft.raft.messages import (
    BY_NAME,
    Addresses,
    AppendEntries,
    AppendReply,
    ChangeAnswer,
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
from warren_raft.raft.outbox import Outbox
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.refusals import Refusals, removed
from warren_raft.raft.replacement import Phase, Replacement
from warren_raft.raft.reports import Heard, Report
from warren_raft.raft.requests import ChangeWanted, Requests, TransferWanted
from warren_raft.raft.roster import Roster
from warren_raft.raft.settling import Settling
from warren_raft.raft.state_machine import StateMachine, apply_membership, membership_of
from warren_raft.raft.submit import Proposal, Route, Submitter
from warren_raft.raft.trust import PeerStanding
from warren_raft.raft.watch import Situation, Watch
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.engine")

TICK_SECONDS: Final = 0.02
"""The driver steps at least so often; every timer here is a multiple of it or far longer."""
ENTRIES_IN_FLIGHT: Final = 2
"""Entries proposed and not applied yet. While one is synced and replicated the next gathers callers: more would make
smaller groups and more syncs for the same commands."""
APPLY_ENTRIES: Final = 64
"""Entries applied at one go; then links and timers get their turn, so that a long catch-up costs no heartbeat."""
CHECK_QUORUM_TIMEOUTS: Final = 1.5
"""A leader that no majority has answered for so many election timeouts steps down."""
RETRY_SECONDS: Final = 1.0
"""After a refusal by a full disk, the log's batch, or applying, is tried again at this interval."""
HUNG_DISK_SECONDS: Final = 5.0
"""A leader whose disk has not returned for this long offers leadership to others. A shorter delay is a hiccup."""
ODD_WAITS_TIMEOUTS: Final = 5
"""Election timeouts without a leader after which a manager campaigns although its state is not the majority's: the one
that could lead in its place may have died."""
EXPIRE_SECONDS: Final = 0.05
LONG_AGO: Final = -1e9
NO_QUORUM: Final = "no quorum, or no leader, until the deadline: warren-raft status shows the reason"
NO_SPACE: Final = "no space left on this manager's disk until the deadline"
NO_ROOM: Final = "too many managers were low on space until the deadline"
"""Why a write that reached its deadline came to nothing, as far as its own manager can tell."""


WRITE_TYPES: Final = frozenset({AppendEntries, AppendReply, Submit})
"""Messages of which each write needs some. Everything else that a step looks at waits for no such message."""
ALSO_WHILE_SWAPPING: Final = frozenset(
    {
        *(FoundingView, FoundingRecord, HealthReport, Addresses),
        *(SubmitLarge, SubmitLargeCancel, SubmitLargeEnd),
        *(LargeEntry, LargeEntryHeld, LargeEntryDrop, LargeEntryCancel, LargeEntryRefused),
    }
)
"""Messages that touch neither log nor state, and are taken also while the state is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    node_id: str
    address: str
    members: Mapping[str, str]
    """Initial members, id -> address; used on an empty directory only."""
    heartbeat_seconds: float = 0.1
    election_timeout_seconds: float = 1.0
    snapshot_after_bytes: int = TAKEN_AFTER_BYTES
    """A snapshot is taken when the log since the last one is larger than this, and than the state."""
    large_bytes: int = LARGE_BYTES
    """A command above this travels ahead of the log (large.py)."""
    bootstrap: bool = True
    """Whether a list of members that names this manager alone makes a cluster of one."""
    hints: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Further addresses at which to dial members, by id, learnt before this start. `members` are hints too."""
    identity: Identity | None = None
    """Of this manager's own certificate; None: its links are plaintext."""


class Engine:
    """One manager's consensus. One thread (or the simulator) steps it; its properties may be read from any thread."""

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
        self._settings = settings
        self.alarms: Final = alarms
        self._node_id = settings.node_id
        self._log = log
        self._machine = machine
        self._snapshots = snapshots
        self._random = random
        self._now = now
        self._check_log_reaches_state()
        self._outbox = Outbox(log)
        self._roster = Roster(
            settings.node_id,
            settings.address,
            settings.members,
            log,
            membership_of(machine),
            send=self._outbox.send,
            send_when_synced=self._outbox.send_when_synced,
            hints=settings.hints,
            bootstrap=settings.bootstrap,
            on_founding=self._before_founding,
            identity=settings.identity,
        )
        self._check_not_removed()
        self._check_trust_domain()
        self._elections = Elections(
            settings.node_id,
            timeout_seconds=settings.election_timeout_seconds,
            random=random,
            now=now,
            send=self._outbox.send,
        )
        self._submitter = Submitter(self._outbox.send, self._outbox.cancel, settings.large_bytes)
        self._held = HeldEntries()
        self._requests = Requests(
            settings.node_id,
            self._roster,
            log,
            answer_seconds=settings.election_timeout_seconds,
            send=self._outbox.send,
        )
        self._admission = Admission(
            log, self._roster, self._elections, self._requests, timeout_seconds=settings.election_timeout_seconds
        )
        self._health = Health(settings.node_id, self._roster, send=self._outbox.send, alarms=alarms)
        self._refusals = Refusals(settings.node_id, self._roster, log, self._outbox, alarms)
        self._watch = Watch(settings.node_id, self._roster, alarms)
        self._replacement = Replacement()
        self._catchup = Catchup(
            log=log,
            roster=self._roster,
            snapshots=snapshots,
            send=self._outbox.send,
            work=self._start_work,
            alarms=alarms,
            replacement=self._replacement,
            install=lambda machine: self._installation.install(machine),
            condemn=lambda: self._installation.condemn(),
            has_quorum=lambda: self.has_quorum,
            taken_after_bytes=settings.snapshot_after_bytes,
        )
        self._installation = Installation(
            settings.node_id,
            self._replacement,
            log=log,
            snapshots=snapshots,
            catchup=self._catchup,
            clock=lambda: self._now,
            work=self._start_work,
            write_log=self._write_log,
            alarms=alarms,
            swap=self._swap,
            step_down=self._step_down,
            is_alone=lambda: self._roster.voters == {self._node_id},
        )
        self._handlers = self._handlers_by_class()
        self._batch: Batch | None = None
        self._batch_since = now
        self._retry_sync_at = LONG_AGO
        self._apply_again_at = LONG_AGO
        self._expire_at = LONG_AGO
        """Members that are of another cluster, by the word of the holder of their certificate, or of the manager at an
        address that was dialled; they have had no new link since."""
        self._leadership = Leadership(settings.node_id)
        self._led_term = 0
        self._led_at = now
        """When a leader was last known."""
        self._dialed: dict[str, tuple[str, ...]] | None = None
        self._look_at = LONG_AGO
        """When this manager looks next at the matters that no write waits for. LONG_AGO: in the next step."""
        self._change_is_due = False
        self._founded = self._roster.founding is not None
        self._ready_index: int | None = None
        self.is_ready = False
        self.disk_full = False
        """Whether the log cannot be written, for want of space or of something else (`_shortage`)."""
        self._shortage = SPACE
        self.low_space = False
        """Set from any thread by the code that measures this manager's disk: the disk has little room left."""
        self.renewal_wanted = False
        """Set from any thread: the state is right, and has to move to another file."""
        self.measured = Report()
        """Its version and room, set by the same; told to the others."""
        self._stopped = False
        self.failure: WarrenError | None = None
        """Set when this manager must stop: an invariant broke, or it was removed."""
        self.is_full = False
        """Whether creates and updates are refused because too many managers are low on space, as the leader says."""
        self._assemble()
        self._catchup.count_log(machine.applied_index)

    def _assemble(self) -> None:
        """Make the core, and the parts that hold it, for the present log and state: at the start, and after another
        state has replaced ours."""
        settings = self._settings
        if self._log.commit_index < self._machine.applied_index <= self._log.last_index:
            self._log.set_commit(self._machine.applied_index)  # it rides with the batches, and may have come too late
        self._keep_list()
        self._outbox.clear()
        self._guard = Guard(
            self._log,
            self._outbox,
            heard_leader=self._heard_leader,
            large=self._submitter.large,
            held=self._held_entry,
            problem_of=self._problem_of_entry,
        )
        self._core = Core(
            node_id=settings.node_id,
            voters=self._roster.voters,
            log=self._log,
            applied_index=self._machine.applied_index,
            heartbeat_seconds=settings.heartbeat_seconds,
            check_quorum_seconds=CHECK_QUORUM_TIMEOUTS * settings.election_timeout_seconds,
            clock=lambda: self._now,
            send=self._guard.outgoing,
        )
        self._guard.core = self._core
        self._admission.attach(self._core)
        self._settling = Settling(self._core, self._log, self._guard, self._roster)
        self._changes = Changes(
            self._core,
            self._log,
            self._guard,
            self._roster,
            clock=lambda: self._now,
            recent_seconds=settings.election_timeout_seconds,
        )
        self._requests.attach(self._core, self._guard, self._changes)
        self._origins: deque[tuple[int, frozenset[str]]] = deque()
        self._was_leader = False
        self._leads_for_sure = False
        for peer in sorted(self._roster.links):
            self._connect(peer)

    def _check_log_reaches_state(self) -> None:
        if self._machine.applied_index > self._log.last_index:
            raise InvariantViolation(
                f"the log ends at index {self._log.last_index}, below the applied index {self._machine.applied_index}"
            )

    def _check_not_removed(self) -> None:
        """By incarnation: a manager that was added again reads in the log the removal of its predecessor."""
        if self._roster.was_removed:
            raise removed(self._node_id)

    def _check_trust_domain(self) -> None:
        membership, own = self._roster.membership, self._roster.trust_domain
        if membership is not None and own and membership.trust_domain not in ("", own):
            raise RefusedForSafety(
                f"the certificate of {self._node_id} is of the trust domain {own}, and its cluster's is "
                f"{membership.trust_domain}; give it one of that cluster: warren-raft cert issue {self._node_id}"
            )

    # Read by others ----------------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        return "follower" if self._stopped else ("follower", "candidate", "leader")[self._core.state]

    @property
    def is_leader(self) -> bool:
        """Leads, and has applied an entry of its own term: its local state holds every acknowledged write."""
        # Asked of the core too: other threads look in the middle of a step, when a new leader has just been heard.
        return self._leads_for_sure and self._core.is_leader and not self._stopped

    @property
    def leader(self) -> str | None:
        """The leader of the present term, if it is heard: the core remembers a leader that died until another one
        is elected, and a caller that waits for a leader or a quorum must not be told of that one."""
        leader = self._core.leader
        is_heard = leader in (self._node_id, self._elections.leader) and not self._stopped
        return leader if is_heard else None

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def commit_index(self) -> int:
        return min(self._core.commit_index, self._log.synced_index)

    @property
    def membership(self) -> Membership | None:
        return self._roster.membership

    @property
    def members(self) -> Mapping[str, Member]:
        return self._roster.members

    def addresses_to_keep(self, before: Mapping[str, str]) -> dict[str, str]:
        """Addresses of members, by id, that the member list lacks and the next start needs. `before`: kept so far."""
        return self._roster.book.to_keep(before, self._roster.members)

    @property
    def waits(self) -> str:
        """For people: the members that the first start waits for; empty once the founders are recorded."""
        return self._roster.waits

    def is_connected(self, peer: str) -> bool:
        return self._roster.connected(peer)

    @property
    def has_quorum(self) -> bool:
        """Whether this manager can expect a write to commit: it leads, or hears a leader; while its state is replaced,
        whether a majority is connected."""
        if self._stopped:
            return False
        if self._core.is_leader or self._replacement.is_swapping:  # nobody is heard while the state is replaced
            voters = self._roster.voters
            return sum(self._roster.connected(voter) for voter in voters) * 2 > len(voters)
        return self.leader is not None and self.leader_contact_age(self._now) < 2 * (
            self._settings.election_timeout_seconds
        )

    @property
    def view(self) -> tuple[object, ...]:
        """The values that a caller may wait for; compared after each step."""
        return self.leader, self._core.term, self._leads_for_sure, self.is_ready, self._roster.membership

    def leader_contact_age(self, now: float) -> float:
        """Seconds since the leader was last heard; 0 on the leader itself; infinite before the first time."""
        if self._core.is_leader:
            return 0.0
        contact = self._elections.leader_contact
        return float("inf") if contact <= LONG_AGO else max(0.0, now - contact)

    @property
    def submitter(self) -> Submitter:
        """Raft thread only."""
        return self._submitter

    @property
    def guard_stats(self) -> Mapping[str, int]:
        return self._guard.stats

    @property
    def lacks_space(self) -> bool:
        """Whether this manager is low on space, by measure or because its disk has just refused something."""
        return self.low_space or self.shortage is not None

    @property
    def shortage(self) -> Shortage | None:
        """The shortage that this manager's log or state waits for; None if there is none."""
        state_waits = self._apply_again_at > LONG_AGO or self._replacement.phase is Phase.BLOCKED
        return self._shortage if self.disk_full or state_waits else None

    @property
    def low_members(self) -> list[str]:
        """The managers that are low on space, as far as this one has heard."""
        return self._health.low_members(low=self.lacks_space)

    @property
    def compared_digests(self) -> Mapping[str, int]:
        """The newest index at which each peer's digest was ours; peers that were never compared are missing."""
        return dict(self._health.compared)

    @property
    def reports(self) -> Mapping[str, Heard]:
        """The last report of each other member."""
        return dict(self._health.reports)

    def own_report(self, applied_index: int, alarms: Iterable[Alarm]) -> Report:
        """The report of this manager to the others."""
        told = tuple((alarm.name, alarm.subject, alarm.severity) for alarm in alarms)
        return replace(self.measured, applied_index=applied_index, fetching=self.fetching, alarms=told)

    def contact_age(self, member_id: str, now: float) -> float | None:
        """Seconds since the member was last heard; None: not since this manager started."""
        return self._roster.contact_age(member_id, now)

    @property
    def fetching(self) -> tuple[int, int] | None:
        """(bytes received, bytes in all) of a snapshot on its way to this manager."""
        fetch = self._catchup.fetch
        return None if fetch is None else (fetch.offset, fetch.size)

    @property
    def pending_count(self) -> int:
        return self._submitter.pending_count

    def renewed(self, identity: Identity) -> None:
        """This manager shows another certificate from now on. Raft thread only."""
        self._roster.identity = identity

    # For the transport, called between steps ---------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        return self._roster.hello().to_message()

    def judge(self, hello: Mapping[str, Any], identity: Identity | None = None) -> Refusal | None:
        """Why a peer is not let in; None: it is. `identity`: of its certificate; None: the link is plaintext."""
        refusal = self._roster.judge(hello, identity)
        if refusal is not None:
            self._refusals.judged(str(hello.get("node_id")), refusal, identity, self._now)
        return refusal

    # One step ----------------------------------------------------------------------------------------------------

    def step(self, now: float, events: Iterable[Event] = ()) -> list[Effect]:
        """Take the events in, decide, and return the effects. No message or call makes it raise."""
        self._now = max(self._now, now)
        events = list(events)
        for event in events:  # first: should anything else stop this manager, these writes end with the others
            if isinstance(event, Submitted):
                self._submitter.submit(event.proposals)
        try:
            for event in events:
                self._handle(event)
            if self.failure is None:
                self._decide()
        except WarrenError as error:
            self._fail(error)
        return self._collect()

    def _handle(self, event: Event) -> None:
        match event:
            case Received(peer, number, message):
                self._receive(peer, number, message)
                return
            case Synced(batch, error):
                self._log_written(batch, error)
                return
            case Submitted():
                return  # `step` has taken it
            case Arriving(peer, number, term):
                self._arriving(peer, number, term)
            case LinkUp(peer, number, hello, identity):
                self._link_up(peer, number, Hello.from_message(hello), identity)
            case LinkDown(peer, number):
                if self._roster.link_down(peer, number):
                    self._link_down(peer)
            case Refused(peer, refusal, identity):
                self._refusals.heard(
                    peer,
                    refusal,
                    identity,
                    applied_index=self._machine.applied_index,
                    is_leaving=self._settling.is_leaving,
                )
            case NotReached(peer, why):
                self._roster.guests.not_reached(peer, why)
            case ChangeWanted() | TransferWanted():
                self._requests.ask(self._now, event, self._machine.applied_index)
            case Worked(work, result, error):
                if error is not None and not isinstance(error, WarrenError | OSError):
                    log_event(logger, logging.ERROR, "job on snapshots failed", node=self._node_id, exc_info=error)
                    error = WarrenError(f"it failed: {error!r}")
                work.then(result, error)
        self._look_at = LONG_AGO

    def _decide(self) -> None:
        looks = self._now >= self._look_at or self._is_restless
        if looks:
            self._look_at = self._now + TICK_SECONDS
            self._look_around()
        if self._replacement.is_swapping:
            self._expire()
            return
        core = self._core
        is_due = not core.is_leader and self._now >= self._elections.deadline
        if is_due and self._elections.tick(self._now, self._standing()):
            self._campaign()
        if core.is_leader or looks:  # to a follower a tick does nothing that cannot wait
            core.tick()
        self._guard.after_tick()  # also for a follower: it may have led when the disk got its present batch
        self._follow_leadership()
        if looks:
            self._changes.tick()
            self._refusals.check_foreign(is_ready=self.is_ready)
            if not self._roster.is_settled or self._settling.is_leaving:
                self._settle()
            self._change_is_due = True
        self._route()
        self._propose()
        if looks:
            self._requests.tick(self._now, must_go=self._must_not_lead)
            self._check_ready()
        self._expire()

    @property
    def _is_restless(self) -> bool:
        """Whether something is under way that may go one step further with each message and each sync."""
        roster, replacement = self._roster, self._replacement
        return not roster.is_settled or replacement.incoming is not None or self._requests.is_transferring

    def _look_around(self) -> None:
        """The matters that no write waits for: once a tick, and after an event that is not part of a write."""
        self._dial()
        self._refusals.follow_addresses()
        if not self._replacement.is_swapping:
            self._compare_states()
        if self._watch.is_due(self._now):
            situation = Situation(
                waits=self.waits,
                has_quorum=self.has_quorum,
                leader=self.leader,
                applied_index=self._machine.applied_index,
                fetching=self.fetching,
                reports=self._health.reports,
            )
            self._watch.look(self._now, situation)
        self._tick_snapshots()
        if not self._replacement.is_swapping:
            self._first_start()

    @property
    def _must_not_lead(self) -> Reason | None:
        """A leader that cannot write its log or its state can commit nothing, and one with a wrong state misleads. A
        removed leader stays only until the others can do without it."""
        if self._batch is not None and self._now - self._batch_since > HUNG_DISK_SECONDS:
            return Reason(DISK_HUNG, f"its disk has not returned for {self._now - self._batch_since:.0f} s")
        if self.disk_full:
            return self._reason_of_shortage("its log")
        if self._apply_again_at > LONG_AGO:
            return self._reason_of_shortage("its state")
        if self._replacement.is_wrong:
            return Reason(STATE_WRONG, "its state is wrong")
        if self._replacement.wants_relief:
            return Reason(STATE_RENEWED, "its state goes on in another file")
        if self._settling.is_leaving:
            return Reason(LEAVING, f"{self._node_id} was removed from the cluster")
        return None

    def _reason_of_shortage(self, thing: str) -> Reason:
        if self._shortage.is_space:
            return Reason(FULL_DISK, f"no space for {thing}")
        return Reason(BLOCKED, f"{thing} cannot be written: {self._shortage.what}")

    def _expire(self) -> None:
        if self._now >= self._expire_at:
            self._expire_at = self._now + EXPIRE_SECONDS
            self.is_full = self._health.is_full(self.leader, low=self.lacks_space)
            reason, full = self.hindrance
            self._submitter.expire(self._now, reason, full=full)
            self._requests.expire()

    @property
    def hindrance(self) -> tuple[str, bool]:
        """Why a write that reaches its deadline now came to nothing, and whether a full disk is why."""
        own = self.disk_full or self._apply_again_at > LONG_AGO
        own_reason = NO_SPACE if self._shortage.is_space else f"{self._shortage.what}, until the deadline"
        return own_reason if own else NO_ROOM if self.is_full else NO_QUORUM, own or self.is_full

    def _collect(self) -> list[Effect]:
        """The messages that may leave now, then the next log batch; after a failure, no more dialling."""
        outbox = self._outbox
        outbox.flush(self._now, self._committed_origins() if self._origins else ())
        if outbox.holds_for_disk:
            outbox.send_alive(self._now, self._guard.alive)
        if self.failure is None:
            self._start_sync()
        else:
            self._dial()
        return outbox.take()

    def _dial(self) -> None:
        peers = {} if self.failure is not None else self._roster.peers_to_dial(self._now)
        if peers != self._dialed:
            self._dialed = peers
            self._outbox.add(Dial(peers))

    def _committed_origins(self) -> set[str]:
        """The followers whose commands have been committed since the last step."""
        origins: set[str] = set()
        while self._origins and self._origins[0][0] <= self._core.commit_index:
            origins |= self._origins.popleft()[1]
        return origins

    @property
    def holds_notices(self) -> bool:
        """Whether a step is wanted within NOTICE_SECONDS."""
        return self._outbox.holds_notices

    # The log -----------------------------------------------------------------------------------------------------

    def _start_sync(self) -> None:
        if self._batch is None:
            batch = self._log.take_batch()
            if batch is not None:
                self._write_log(batch)
        elif self.disk_full and self._now >= self._retry_sync_at:
            self._retry_sync_at = float("inf")
            self._outbox.add(WriteLog(self._batch))

    def _write_log(self, batch: Batch) -> None:
        self._batch = batch
        self._batch_since = self._now
        self._outbox.add(WriteLog(batch))

    def _log_written(self, batch: Batch, error: OSError | None) -> None:
        if error is not None:
            self._look_at = LONG_AGO
            if error.errno == errno.ESTALE:
                raise moved(self._log.directory) from error
            shortage = shortage_of(error)
            if shortage is None:
                raise InvariantViolation(f"the log cannot be written: {error}") from error
            raise_blocked(self.alarms, "log", shortage, error, place=self._log.directory)
            self._shortage = shortage
            self.disk_full = True
            self._retry_sync_at = self._now + RETRY_SECONDS
            return
        if self.disk_full:
            self.disk_full = False
            clear_blocked(self.alarms, "log")
        self._batch = None
        self._log.complete(batch)
        if self._installation.log_written(batch):
            return  # the messages that wait speak for a log that is gone
        self._outbox.synced()
        self._guard.synced()

    # Links -------------------------------------------------------------------------------------------------------

    def _link_up(self, peer: str, number: int, hello: Hello, identity: Identity | None) -> None:
        if self._roster.is_foreign(hello):  # it was let in, and this manager has come to know its cluster since
            self._outbox.add(CloseLink(number, f"{peer} belongs to another cluster"))
            return
        self._refusals.link_up(peer)
        self._outbox.link_up(peer, number)
        try:
            self._roster.link_up(peer, number, hello, identity, self._now)
        except ValueError as error:
            self._refusals.drop(peer, f"{peer} has an impossible hello, so its link is dropped: {error}")
        self._connect(peer)

    def _connect(self, peer: str) -> None:
        self._connect_core(peer)
        self._guard.link_up(peer)

    def _connect_core(self, peer: str) -> None:
        """A voter is the directory that the list names; another one under its id is nobody to the core."""
        if peer in self._core.voters:
            connect = self._core.connected if self._roster.counts(peer) else self._core.disconnected
            connect(peer)
        elif self._roster.is_fed(peer):
            self._core.learner_connected(peer)

    def _link_down(self, peer: str) -> None:
        self._outbox.link_down(peer)
        if peer in self._core.voters:
            self._core.disconnected(peer)
        else:
            self._core.learner_disconnected(peer)
        self._guard.link_down(peer)
        if peer not in self._roster.members:
            self._guard.forget(peer)  # the next link under this id may be of another data directory
        self._catchup.link_down(peer)
        self._health.link_down(peer)
        self._submitter.link_down(peer)
        self._held.link_down(peer)
        self._elections.link_down(peer, self._now)
        self._admission.forget(peer)

    def _committed_entry(self) -> tuple[int, int] | None:
        """(index, term) of the newest entry that is known to be committed and is durable here."""
        index, base = self.commit_index, self._log.base_index
        return (index, self._log.entries[index - base][2]) if index >= base else None

    # Messages ----------------------------------------------------------------------------------------------------

    def _receive(self, peer: str, number: int, wire: Mapping[str, Any]) -> None:
        link = self._roster.links.get(peer)
        if link is None or link.number != number:
            self._guard.stats["message of a superseded connection dropped"] += 1
            return
        link.heard_at = self._now
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

    def _arriving(self, peer: str, number: int, term: int) -> None:
        """Parts of a large message count as signs of life, both ways: over a thin link its end may be far away."""
        link = self._roster.links.get(peer)
        if link is None or link.number != number or not self._hears(peer) or self._replacement.is_swapping:
            return
        self._catchup.arriving(peer, self._now)
        if term and self._guard.is_led_by(peer, term):
            self._elections.heard_leader(peer, self._now)
            alive = self._guard.alive()
            if alive is not None and alive[0] == peer:
                self._outbox.send(*alive)

    def _hears(self, peer: str) -> bool:
        """Whether the peer of a link is listened to at all."""
        if self._roster.standing(peer) is PeerStanding.AHEAD:
            return self._admission.hears(peer, self._now, self._led_at)
        return self._roster.counts(peer)

    def _turn_away(self, peer: str, standing: PeerStanding) -> None:
        """A message came that a peer of this standing may not send (messages.py)."""
        if standing in (PeerStanding.FORMING, PeerStanding.GUEST):
            self._close_to_non_member(peer)
        else:
            self._guard.stats[f"message of a peer that is {standing.value} dropped"] += 1

    def _close_to_non_member(self, peer: str) -> None:
        """Its hello is as old as the link, and it may have become a member since: a new link says so."""
        self._guard.stats["message of a non-member dropped"] += 1
        self._outbox.close_link(peer, f"{peer} is no member by its hello")

    def _dispatch(self, peer: str, message: Message) -> None:
        kind = type(message)
        if kind not in WRITE_TYPES:
            self._look_at = LONG_AGO
        standing = self._roster.standing(peer)
        assert standing is not None  # there is a link
        if standing not in kind.SENT_BY:
            self._turn_away(peer, standing)
        elif standing is PeerStanding.AHEAD and not self._admission.hears(peer, self._now, self._led_at):
            self._guard.stats["message of a peer that is ahead not heard"] += 1
            if isinstance(message, LargeEntry):
                self._outbox.send(peer, LargeEntryRefused(message.number))
        elif self._replacement.is_swapping and kind not in ALSO_WHILE_SWAPPING:
            self._guard.stats["message while the state is replaced dropped"] += 1
        else:
            self._handlers[kind](peer, message)

    def _handlers_by_class(self) -> dict[type[Message], Callable[[str, Any], None]]:
        """The method that takes each message."""
        return {cls: getattr(self, f"_on_{name}") for name, cls in BY_NAME.items()}

    # Each message, under its name on the wire

    def _on_founding_view(self, peer: str, message: FoundingView) -> None:
        complaint = self._roster.receive_view(peer, message.view, message.configured)
        if complaint is None:
            self.alarms.clear_alarm("initial-members-differ", peer)
        else:
            self.alarms.raise_alarm("initial-members-differ", complaint, subject=self._refusals.subject(peer))

    def _on_founding(self, peer: str, message: FoundingRecord) -> None:
        try:
            self._roster.receive_founding(peer, message.founding)
        except ValueError as error:
            raise PeerFault(str(error)) from error

    def _on_addresses(self, peer: str, message: Addresses) -> None:
        self._roster.receive_addresses(peer, message.said)

    def _on_health(self, peer: str, message: HealthReport) -> None:
        self._health.receive(peer, message, self._now)
        if not self._replacement.is_swapping:
            self._hear_of_lists(message)

    def _on_append_entries(self, peer: str, message: AppendEntries) -> None:
        if message.term > self._core.term and not self._admission.may_lead(peer, message.term, self._now):
            self._guard.stats["append message against a living leader ignored"] += 1
            return
        if message.term < self._core.term and self._admission.may_go_back(peer, self._now):
            self._core.go_back(message.term)
        self._forget_silent_leader(peer, message.term)
        self._guard.receive_append(peer, message)

    def _on_append_reply(self, peer: str, message: AppendReply) -> None:
        self._guard.receive_reply(peer, message)

    def _on_submit(self, peer: str, message: Submit) -> None:
        self._check_commands(peer, message.commands)
        self._submitter.receive(peer, message.commands, is_leader=self._takes_writes)

    def _on_submit_refused(self, peer: str, _message: SubmitRefused) -> None:
        self._submitter.refused(peer, self._now)

    def _on_submit_large(self, peer: str, message: SubmitLarge) -> None:
        self._check_commands(peer, [message.command])
        self._submitter.large.receive(peer, message, self._now, is_leader=self._takes_writes)

    def _on_submit_large_cancel(self, peer: str, message: SubmitLargeCancel) -> None:
        self._submitter.large.receive_cancel(peer, message.number)

    def _on_submit_large_end(self, peer: str, message: SubmitLargeEnd) -> None:
        self._submitter.large_ended(peer, message.number, self._now, again=message.again)

    def _on_large_entry(self, peer: str, message: LargeEntry) -> None:
        if not self._admission.may_lead(peer, message.term, self._now):
            self._guard.is_led_by(peer, message.term)  # which tells a leader of an older term so
            self._outbox.send(peer, LargeEntryRefused(message.number))
            return
        if not self._held.add(peer, message.number, message.entry):
            raise PeerFault("more large entries, sent ahead, than any leader sends")
        self._outbox.send(peer, LargeEntryHeld(message.number))

    def _on_large_entry_held(self, peer: str, message: LargeEntryHeld) -> None:
        self._submitter.large.held(peer, message.number)

    def _on_large_entry_refused(self, peer: str, message: LargeEntryRefused) -> None:
        self._submitter.large.refused(peer, message.number)

    def _on_large_entry_drop(self, peer: str, message: LargeEntryDrop) -> None:
        self._held.drop(peer, message.number)

    def _on_large_entry_cancel(self, peer: str, message: LargeEntryCancel) -> None:
        self._held.drop(peer, message.number)

    def _on_pre_vote(self, peer: str, message: PreVote) -> None:
        if self._roster.may_vote:
            reply = self._elections.answer_pre_vote(peer, message, self._now, self._standing())
            self._outbox.send_when_synced(peer, reply)

    def _on_response_vote(self, peer: str, message: Vote) -> None:
        self._guard.receive_vote(peer, message)

    def _on_change(self, peer: str, message: RequestChange) -> None:
        self._outbox.send(peer, self._requests.answer(peer, message, self._machine.applied_index))

    def _on_change_answer(self, peer: str, message: ChangeAnswer) -> None:
        self._requests.receive_answer(peer, message)

    def _on_snapshot_offer(self, peer: str, message: SnapshotOffer) -> None:
        if peer == self._core.leader:
            self._catchup.offered(peer, message)

    def _on_snapshot_get(self, peer: str, message: SnapshotGet) -> None:
        self._catchup.asked(peer, message)

    def _on_snapshot_chunk(self, peer: str, message: SnapshotChunk) -> None:
        self._catchup.received(peer, message)

    def _on_snapshot_gone(self, peer: str, message: SnapshotGone) -> None:
        self._catchup.gone(peer, message)

    def _on_snapshot_wanted(self, peer: str, message: SnapshotWanted) -> None:
        if self._core.is_leader:
            self._catchup.asked_for_snapshot(peer, message.index)

    def _held_entry(self, peer: str, name: int) -> bytes | None:
        """The entry that a leader names: one that it sent ahead or, by a negative number, a command of ours."""
        if name > 0:
            return self._held.get(peer, name)
        command = self._submitter.lent.of(peer).get(-name)
        return None if command is None else entries.encode_commands([command.data])

    def _forget_silent_leader(self, peer: str, term: object) -> None:
        """A peer that claimed this term and is silent was not elected, or no longer leads: it does not keep us from
        the one that does."""
        core = self._core
        if term != core.term or core.is_leader or core.leader in (None, peer):
            return
        if not self._elections.leader_is_alive(self._now, is_leader=False):
            core.step_down()

    def _check_commands(self, peer: str, commands: Sequence[bytes]) -> None:
        """Raises PeerFault for a command that may not be put into a log: a correct manager does not send it."""
        identity = self._roster.links[peer].identity
        sender = "" if identity is None else identity.node_id
        for command in commands:
            problem = self._machine.problem_of(command, sender)
            if problem:
                raise PeerFault(f"a command that no manager takes: {problem}")

    def _problem_of_entry(self, entry: bytes) -> str:
        """Why an entry of a leader is not appended."""
        problem = entries.problem_of(entry, partial(self._machine.problem_of, sender=""))
        if not problem and entry[:2] == entries.CHANGE:
            change = entries.decode(entry)
            assert isinstance(change, Change)
            return self._problem_of_change(change)
        return problem

    def _problem_of_change(self, change: Change) -> str:
        """The cluster is formed by the members that the founders' record names, and nobody else."""
        founding = self._roster.founding
        if change.verb != FORM or self._roster.membership is not None or founding is None:
            return ""
        formed = {(m.id, m.address, m.incarnation, m.voter) for m in change.members}
        founders = {(m.id, m.address, m.incarnation, m.voter) for m in founding.members.values()}
        return "" if formed == founders else "a cluster of other members than those that have met"

    # Elections ---------------------------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        applied_all = self._machine.applied_index >= self._log.commit_index
        # A state that is wrong makes no vote and no entry wrong: better that leader than none for good.
        may_mislead = self._now - self._led_at > ODD_WAITS_TIMEOUTS * self._settings.election_timeout_seconds
        is_fit = not self._replacement.is_wrong or may_mislead
        return Standing(
            term=self._core.term,
            last_index=self._log.last_index,
            last_term=self._log.last_term,
            voters=self._roster.voters,
            may_campaign=self._roster.is_voter and applied_all and not self.disk_full and is_fit,
            is_durable=self._log.synced_position >= self._log.position,
            is_leader=self._core.is_leader,
        )

    def _heard_leader(self, peer: str, commit_index: int) -> None:
        self._elections.heard_leader(peer, self._now)
        if self._ready_index is None:
            self._ready_index = commit_index

    def _on_pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        is_expected = self._elections.expects(peer, message, self._standing())
        if message.term > self._core.term and self.leader is None and is_expected:
            self._core.observe_term(self._admission.bounded(message.term, self._now))
        if self._elections.receive_pre_vote_reply(peer, message, self._standing()):
            self._campaign()

    def _on_request_vote(self, peer: str, message: RequestVote) -> None:
        if not self._roster.may_vote:
            return
        self._leadership.heard_candidate(peer, message)
        if not self._admission.may_get_vote(peer, message, self._now):
            self._guard.stats["vote request against a living leader ignored"] += 1
            return
        before = (self._log.current_term, self._log.voted_for)
        self._guard.receive_vote_request(peer, message)
        if self._log.voted_for == peer and before != (self._log.current_term, peer):
            self._elections.voted(peer, self._now)

    def _on_hand_over(self, peer: str, message: HandOver) -> None:
        """Our leader names its successor, which may ask for our vote although the leader is alive."""
        if peer != self._core.leader or message.term != self._core.term:
            return
        asked = self._elections.handed_over(message.target, self._now)
        if asked is not None and self._roster.counts(asked[0]):
            self._on_request_vote(*asked)

    def _on_nack(self, peer: str, message: Nack) -> None:
        """A member is in a later term than the one that we lead, and cannot follow us."""
        core, term = self._core, self._admission.bounded(message.term, self._now)
        if not core.is_leader or term <= core.term:
            return
        if self._admission.must_yield(peer, term):
            core.observe_term(term)
        elif self._admission.may_yield(peer, self._now):
            core.observe_term(term)
            self._follow_leadership(Reason(LATER_TERM_OF_ONE, f"{peer} is in a later term and could not follow"))
            self._elections.stand_again(self._now)
        else:
            self._guard.stats["later term of a single member not taken up"] += 1

    def _campaign(self, transfer: Reason | None = None) -> None:
        """`transfer`: why our leader hands leadership to us."""
        why = transfer or self._elections.why
        self._guard.transferring = transfer is not None
        self._guard.why = why.told()
        self._core.campaign()
        self._leadership.stands(self._node_id, self._core.term, why)
        self._guard.after_tick()

    def _on_timeout_now(self, peer: str, message: TimeoutNow) -> None:
        """Our leader hands leadership to us (Raft thesis 3.10)."""
        if peer == self._core.leader and message.term == self._core.term and self._standing().may_campaign:
            why = Reason.heard(message.why) or Reason(TRANSFER, f"{peer} hands over")
            self._campaign(why)

    def _step_down(self) -> None:
        """Nobody could relieve this leader: it goes all the same."""
        why = self._must_not_lead or Reason(STATE_WRONG, "its state is wrong")
        self._core.step_down()
        self._follow_leadership(Reason(why.word, f"{why.text}, and no other manager took over"))

    @property
    def _takes_writes(self) -> bool:
        return self._core.is_leader and self._roster.membership is not None

    def _follow_leadership(self, why: Reason | None = None) -> None:
        """`why` this leader has stepped down; None: it is seen from the term."""
        leads = self._core.is_leader
        if leads != self._was_leader:
            self._was_leader = leads
            self._look_at = LONG_AGO
            self._changes.reset()
            self._requests.leadership_changed()
            self._origins.clear()
            if leads:
                self._elections.became_leader()
            else:
                self._elections.stepped_down(self._now, why or self._why_stepped_down())
                self._submitter.clear_queue()
        if self._leads_for_sure and not leads:
            self._leads_for_sure = False
        if leads:
            self._led_term = self._core.term
        leader = self.leader
        if leader is not None:
            self._led_at = self._now
        self._leadership.look(leader, self._core.term, self._elections.why)

    def _why_stepped_down(self) -> Reason:
        if self._core.term > self._led_term:
            return LATER_TERM
        seconds = CHECK_QUORUM_TIMEOUTS * self._settings.election_timeout_seconds
        return Reason(MINORITY, f"no majority answered {self._node_id} for {seconds:.1f} s")

    # Writes ------------------------------------------------------------------------------------------------------

    def _route(self) -> None:
        leader, submitter = self._core.leader, self._submitter
        route: Route | None = None
        takes_writes = self._takes_writes
        if takes_writes:
            route = Route(self._node_id, self._core.term, 0)
        elif leader is not None and leader != self._node_id and leader in self._roster.links:
            route = Route(leader, self._core.term, self._roster.links[leader].number)
        submitter.set_route(route)
        if submitter.is_waiting:
            submitter.flush(self._now)
        if takes_writes and submitter.large.is_busy:
            self._send_ahead()

    def _send_ahead(self) -> None:
        """Large commands go to the other voters before they are in the log."""
        submitter, roster = self._submitter, self._roster
        if submitter.large.is_naming:
            submitter.large.appended(self._guard.match_index)
        if submitter.large.is_waiting:
            peers = [id_ for id_ in sorted(roster.voters) if id_ != self._node_id and roster.counts(id_)]
            submitter.large.send_ahead(self._now, self._core.term, peers)

    def _propose(self) -> None:
        if not self._core.is_leader or self._requests.is_transferring:
            return
        if self._log.last_index - self._machine.applied_index >= ENTRIES_IN_FLIGHT:
            return
        if self._change_is_due:
            self._change_is_due = False
            if self._propose_change():
                return
        if self._submitter.is_queueing and self._takes_writes:
            self._propose_large()
            commands, origins = self._submitter.take(
                commands_max=entries.COMMANDS_PER_ENTRY, bytes_max=entries.ENTRY_BYTES
            )
            if commands:
                self._append(entries.encode_commands(commands))
                if origins:
                    self._origins.append((self._log.last_index, origins))

    def _propose_change(self) -> bool:
        cluster_id = ""
        if self._roster.membership is None:
            cluster_id = self._roster.origin or f"{self._random.getrandbits(128):032x}"
        change = self._changes.next_change(self._machine.applied_index, self._machine.applied_term, cluster_id)
        if change is not None:
            self._append(entries.encode_change(change))
            self._changes.proposed(self._log.last_index, change)
        return change is not None

    def _propose_large(self) -> None:
        """Those that a majority holds, each an entry of its own; as many at once as an entry holds of others."""
        size = 0
        while size < entries.ENTRY_BYTES:
            large = self._submitter.next_large(self._node_id, self._roster.voters)
            if large is None:
                return
            self._submitter.large_proposed(large, self._log.last_index + 1)
            self._append(large.entry)
            size += len(large.entry)
            if large.origin:
                self._origins.append((self._log.last_index, frozenset([large.origin])))

    def _append(self, entry: bytes) -> None:
        before = self._log.last_index
        self._core.propose(entry)
        self._core.tick()
        self._guard.after_tick()
        if self._log.last_index != before + 1:
            raise InvariantViolation("PySyncObj did not append the entry it was given")

    # Applying ----------------------------------------------------------------------------------------------------

    def apply(self) -> bool:
        """Apply the entries that are committed and durable here, some at a time. True: there is more to do at once."""
        if self.failure is not None:
            return False
        if self._now < self._apply_again_at or self._replacement.is_swapping:
            return False
        was_blocked = self._apply_again_at > LONG_AGO
        try:
            if was_blocked:
                self._machine.settle()
                self._adopt_membership(membership_of(self._machine))  # the commit of a change may have come through
                if self._replacement.incoming is not None:
                    self._replacement.incoming.settle()
            more = self._apply()
            self._apply_again_at = LONG_AGO
            if was_blocked and self._replacement.phase is not Phase.BLOCKED:
                clear_blocked(self.alarms, "state")
            return more
        except StorageFull as error:
            self._shortage = shortage_of(error) or self._shortage
            raise_blocked(self.alarms, "state", self._shortage, error)
            self._apply_again_at = self._now + RETRY_SECONDS
            return False
        except WarrenError as error:
            self._fail(error)
            return False

    def _apply(self) -> bool:
        machine, log = self._machine, self._log
        # Not the core's commit index alone: a one-member cluster's runs ahead of its disk.
        limit = min(self._core.commit_index, log.synced_index)
        first = machine.applied_index
        last = min(limit, first + APPLY_ENTRIES)
        for index in range(first + 1, last + 1):
            command, _, term = log.entries[index - log.base_index]
            content = entries.decode(command)
            if isinstance(content, Change):
                if self._settling.holds_back(index, content):
                    last = limit = index - 1
                    break
                self._apply_change(index, term, content)
            else:
                self._submitter.applied(machine.apply(index, term, content))
            self._catchup.applied(len(command))
        can_write = self._submitter.has_released  # a small write that a large one of its thread held up
        if last > first:
            self._after_apply()
            can_propose = self._core.is_leader and (self._submitter.is_queueing or self._roster.membership is None)
            can_write = can_write or can_propose
        is_replaying = self._replacement.incoming is not None and self._installation.replay(machine.applied_index)
        return is_replaying or last < limit or can_write or (self._batch is None and log.has_pending)

    def _after_apply(self) -> None:
        machine = self._machine
        if self._core.is_leader and machine.applied_term == self._core.term:
            if self._ready_index is None:
                self._ready_index = machine.applied_index
            self._leads_for_sure = True
        if not self.is_ready:
            self._check_ready()

    def _check_ready(self) -> None:
        if not self.is_ready and self._ready_index is not None and self._roster.membership is not None:
            self.is_ready = self._machine.applied_index >= self._ready_index

    def _apply_change(self, index: int, term: int, change: Change) -> None:
        previous = self._roster.membership
        membership = apply_change(previous, change, index)
        if membership is not None and membership != previous:
            log_event(
                logger,
                logging.INFO,
                "members changed",
                node=self._node_id,
                change=change.verb,
                member=change.id or None,
                address=change.address or None,
                index=index,
                voters=",".join(sorted(membership.voters)),
            )
        apply_membership(self._machine, index, term, membership)
        self._adopt_membership(membership)

    def _adopt_membership(self, membership: Membership | None) -> None:
        """The list that the state holds is the one in force."""
        self._look_at = LONG_AGO
        if membership is None:
            return
        for member in self._roster.members.values():
            if membership.incarnation(member.id) != member.incarnation:
                self._guard.forget(member.id)
        is_first = self._roster.membership is None
        self._roster.apply(membership)
        if is_first:
            self._meet_non_members_again()
        self._follow_membership()
        self._keep_list()

    def _follow_membership(self) -> None:
        """Bring the core's members and our links into line with the applied list."""
        roster = self._roster
        self._check_not_removed()
        self._follow_voters()
        for peer in sorted(roster.links):
            self._connect_core(peer)
        self._dismiss_removed()

    def _meet_non_members_again(self) -> None:
        """This manager belongs to a cluster from now on. Links that it made before, with managers of other clusters or
        of none, were judged by an older knowledge on both sides, and are made again."""
        for peer in self._roster.links_of_non_members:
            reason = f"{peer} is no member of the cluster that {self._node_id} belongs to now"
            self._outbox.close_link(peer, reason)

    def _keep_list(self) -> None:
        """The list of members must be known after any crash, and the state does not survive a power cut: the
        commit index that covers the newest change is made durable, by a batch of its own if need be."""
        membership = self._roster.membership
        if membership is None or self._roster.is_settled:
            return
        if self._log.synced_commit_index < membership.index <= self._log.commit_index:
            self._log.keep_commit()

    def _settle(self) -> None:
        was_settled = self._roster.settled_index
        self._settling.tick()
        if self._settling.may_leave:
            raise removed(self._node_id)
        if self._roster.settled_index != was_settled:
            self._dismiss_removed()

    def _hear_of_lists(self, message: HealthReport) -> None:
        """The commit index and the settled list of a peer, also where no manager can lead."""
        commit, settled = message.commit, message.settled
        if commit is not None and self.leader is None:  # a leader says so itself
            self._learn_of_change(*commit)
        membership = self._roster.membership
        if settled is not None and membership is not None:
            self._roster.settled(min(settled, membership.index))
            self._dismiss_removed()

    def _learn_of_change(self, index: int, term: int) -> None:
        """A member says that the entry (index, term) is committed. It is believed as far as somebody may be needed for
        it: up to the newest change of members in our log."""
        log = self._log
        if not log.holds(index, term):
            return
        for position in range(index - log.base_index, log.commit_index - log.base_index, -1):
            entry, at, its_term = log.entries[position]
            if entry[:2] == entries.CHANGE:
                self._guard.learn_commit(at, its_term)
                return

    def _dismiss_removed(self) -> None:
        """A removed manager whose vote is no longer needed is told so when it comes back."""
        for peer in self._roster.removed_links:
            self._core.learner_disconnected(peer)
            self._guard.forget(peer)
            self._outbox.close_link(peer, f"{peer} was removed from the cluster")

    def _follow_voters(self) -> None:
        roster, core = self._roster, self._core
        voters = roster.voters
        for peer in sorted(core.voters - voters - {self._node_id}):
            core.disconnected(peer)
            core.remove_voter(peer)
        for peer in sorted(voters - core.voters):
            core.learner_disconnected(peer)
            core.add_voter(peer)

    # Another state in the place of ours ----------------------------------------------------------------------------

    def _start_work(self, job: Job, then: Then) -> None:
        self._outbox.add(Work(job, then))

    def _tick_snapshots(self) -> None:
        machine = self._machine
        if not self._replacement.is_swapping:
            if self.renewal_wanted:
                self.renewal_wanted = False
                self._installation.renew()
            self._catchup.tick(
                self._now,
                self._guard,
                applied_index=machine.applied_index,
                leader=None if self._core.is_leader else self.leader,
                may_take=not self._replacement.is_wrong and self._replacement.incoming is None,
            )
        self._installation.tick(
            machine.applied_index,
            leads=self._core.is_leader,
            log_is_idle=self._batch is None,
        )

    def _compare_states(self) -> None:
        """With the other managers, now and then. They are told of this manager, too."""
        if not self._health.is_due(self._now):
            return
        is_odd = self._health.tick(
            self._now,
            self._machine,
            self.own_report(self._machine.applied_index, self.alarms.active),
            low=self.lacks_space,
            is_leader=self._core.is_leader,
            commit=self._committed_entry(),
            settled=self._roster.settled_index,
        )
        if is_odd:
            self._installation.condemn()

    def _swap(self, incoming: StateMachine, why: str) -> None:
        self._machine = incoming
        is_first = self._roster.membership is None
        self._roster.replace(membership_of(incoming))
        if is_first and self._roster.membership is not None:
            self._meet_non_members_again()
        self._check_not_removed()
        is_alone = self._roster.voters == {self._node_id}
        self._elections.stepped_down(self._now, STATE_REPLACED, is_alone=is_alone)
        self._submitter.state_replaced()
        self._assemble()
        self._snapshots.swap(incoming, why)
        self._health.state_changed()
        self._check_ready()

    # The first start ---------------------------------------------------------------------------------------------

    def _first_start(self) -> None:
        """The founders are recorded here, or another manager has recorded them and told us, by a message or a hello."""
        self._roster.found()
        if self._founded or self._roster.founding is None:
            return
        self._founded = True
        self.alarms.clear_others("initial-members-differ")
        # Our own configuration may have changed since the founders met; the core has to count by their record.
        self._follow_voters()
        for peer in sorted(self._roster.links):
            self._connect_core(peer)
        self._elections.founded(self._now)

    def _before_founding(self) -> None:
        """The founders elect the first leader in terms of their own: earlier claims count for nothing."""
        if self._log.is_untouched and self._core.term > 0:
            self._core.go_back(0)

    # The end -----------------------------------------------------------------------------------------------------

    def _fail(self, error: WarrenError) -> None:
        if self.failure is None:
            self.failure = error
            self._stopped = True
            self._submitter.fail_all(lambda proposal: _closed(proposal, str(error)))

    def close(self) -> None:
        """Every write still waiting ends now, and nobody is told any more that this manager leads or follows."""
        self._stopped = True
        self._installation.abandon()
        self._submitter.fail_all(lambda proposal: _closed(proposal, "the store is closed"))


def _closed(proposal: Proposal, reason: str) -> Exception:
    return Unavailable(reason, maybe_applied=True) if proposal.sent else Closed(reason)
