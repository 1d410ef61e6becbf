"""The parts of one manager's consensus, made in the order of their dependencies: each gets those above it.

Lives here: the list. Not here: what all parts share (context.py), and their order within a step (engine.py).
Invariant: dependencies lead up this list only, so no part reaches back, and none is attached later.
"""

from __future__ import annotations

from warren_raft.raft.admission import Admission
from warren_raft.raft.applying import Applying
from warren_raft.raft.barriers import Barriers
from warren_raft.raft.beats import NodeBeats
from warren_raft.raft.catchup import Catchup
from warren_raft.raft.changes import Changes
from warren_raft.raft.confirming import Confirming
from warren_raft.raft.context import Context
from warren_raft.raft.dialling import Dialling
from warren_raft.raft.dispatch import Dispatch
from warren_raft.raft.elections import Elections
from warren_raft.raft.entry_checks import EntryChecks
from warren_raft.raft.fitness import Fitness
from warren_raft.raft.forming import Forming
from warren_raft.raft.guard import Guard
from warren_raft.raft.health import Health
from warren_raft.raft.installation import Installation
from warren_raft.raft.large import HeldEntries
from warren_raft.raft.leading import Leading
from warren_raft.raft.log_writer import LogWriter
from warren_raft.raft.peers import Peers
from warren_raft.raft.proposing import Proposing
from warren_raft.raft.refusals import Refusals
from warren_raft.raft.requests import Requests
from warren_raft.raft.settling import Settling
from warren_raft.raft.snapshots import Snapshots
from warren_raft.raft.submit import Submitter
from warren_raft.raft.swapping import Swap
from warren_raft.raft.votes import Votes
from warren_raft.raft.watch import Watch


class Parts:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, snapshots: Snapshots) -> None:
        settings = context.settings
        # Of the context only
        self.elections = Elections(
            settings.node_id,
            timeout_seconds=settings.election_timeout_seconds,
            random=context.random,
            now=context.now,
            outbox=context.outbox,
            is_alone=context.is_alone,
        )
        self.submitter = Submitter(context.outbox, settings.large_bytes)
        self.held = HeldEntries(self.submitter.lent)
        self.refusals = Refusals(context)
        self.health = Health(context)
        self.watch = Watch(context)
        self.writer = LogWriter(context)
        checks = EntryChecks(context)
        # The core
        context.commit_what_is_applied()
        self.guard = Guard(context, large=self.submitter.large, held=self.held, checks=checks)
        # Barriers
        self.confirming = Confirming(context, self.guard.core)
        self.barriers = Barriers(context, self.guard.core, self.confirming)
        # What a leader proposes
        self.settling = Settling(context, self.guard)
        self.changes = Changes(context, self.guard, self.health)
        self.requests = Requests(context, self.guard, self.changes)
        self.proposing = Proposing(context, self.guard, self.submitter, checks, self.changes, self.requests)
        # Leaders and members
        self.admission = Admission(context, self.guard.core, self.elections, self.requests)
        self.leading = Leading(
            context,
            self.guard,
            self.elections,
            self.changes,
            self.requests,
            self.submitter,
            self.proposing,
            self.writer,
        )
        self.beats = NodeBeats(context, self.guard.core, self.elections, self.leading)
        self.dialling = Dialling(context)
        self.forming = Forming(context, self.guard.core, self.refusals)
        self.peers = Peers(
            context, self.guard, self.settling, self.elections, self.refusals, self.dialling, self.forming, self.leading
        )
        # The state
        swap = Swap(
            context,
            self.guard,
            snapshots=snapshots,
            settling=self.settling,
            submitter=self.submitter,
            leading=self.leading,
            peers=self.peers,
            health=self.health,
        )
        self.catchup = Catchup(context, snapshots, self.leading)
        self.installation = Installation(context, snapshots, self.catchup, self.writer, swap)
        self.applying = Applying(
            context,
            self.guard.core,
            self.submitter,
            self.catchup,
            self.installation,
            self.settling,
            self.writer,
            self.leading,
            self.peers,
        )
        self.fitness = Fitness(context, self.writer, self.applying, self.settling, self.health)
        # Messages
        votes = Votes(context, self.guard, self.elections, self.admission, self.held, self.leading)
        self.dispatch = Dispatch(
            context,
            self.guard,
            elections=self.elections,
            admission=self.admission,
            refusals=self.refusals,
            requests=self.requests,
            health=self.health,
            catchup=self.catchup,
            leading=self.leading,
            dialling=self.dialling,
            forming=self.forming,
            peers=self.peers,
            votes=votes,
            proposing=self.proposing,
            confirming=self.confirming,
            barriers=self.barriers,
            beats=self.beats,
        )
