"""Proposing: commands of callers and changes of members become entries of the leader's log.

Lives here: the way of a command to the leader, the messages about commands, and when an entry is proposed. Not here:
the callers (submit.py), the bytes of large commands (large.py), which change is next (changes.py). Invariant: a change
of members is alone in its entry, and an entry is proposed only while few are not applied yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from warren_raft.errors import InvariantViolation
from warren_raft.raft import entries
from warren_raft.raft.changes import Changes
from warren_raft.raft.context import Context
from warren_raft.raft.entry_checks import EntryChecks
from warren_raft.raft.guard import Guard
from warren_raft.raft.messages import (
    LargeEntryHeld,
    LargeEntryRefused,
    Submit,
    SubmitLarge,
    SubmitLargeCancel,
    SubmitLargeEnd,
    SubmitRefused,
)
from warren_raft.raft.requests import Requests
from warren_raft.raft.submit import Route, Submitter

ENTRIES_IN_FLIGHT: Final = 2
"""Entries proposed and not applied yet. While one is synced and replicated the next gathers callers: more would make
smaller groups and more syncs for the same commands. For the same reason the second one is not smaller than the one
before it."""


class Proposing:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        context: Context,
        guard: Guard,
        submitter: Submitter,
        checks: EntryChecks,
        changes: Changes,
        requests: Requests,
    ) -> None:
        self._context = context
        self._node_id = context.node_id
        self._log = context.log
        self._roster = context.roster
        self._stages = context.stages
        self._guard = guard
        self._core = guard.core
        self._submitter = submitter
        self._checks = checks
        self._changes = changes
        self._requests = requests
        self.change_is_due = False
        """Whether the next change of members is looked for before the next entry of commands."""
        self.senders: deque[tuple[int, frozenset[str]]] = deque()
        """(index of an entry, the followers that sent its commands), oldest first, until they are committed."""
        self._group = 0
        """The commands of the last entry of commands."""

    @property
    def takes_writes(self) -> bool:
        return self._core.is_leader and self._roster.membership is not None

    def leadership_changed(self) -> None:
        self.senders.clear()
        self._stages.forget()

    def take_committed_senders(self) -> Collection[str]:
        """The followers whose commands have been committed since the last call."""
        senders: set[str] = set()
        while self.senders and self.senders[0][0] <= self._log.commit_index:
            senders |= self.senders.popleft()[1]
        return senders

    # To the leader -----------------------------------------------------------------------------------------------

    def route(self) -> None:
        """Choose the way of commands again. It depends on the leader and its term, on the link to it, and on whether
        there is a cluster."""
        leader = self._core.leader
        route: Route | None = None
        if self.takes_writes:
            route = Route(self._node_id, self._core.term, 0)
        elif leader is not None and leader != self._node_id and leader in self._roster.links:
            route = Route(leader, self._core.term, self._roster.links[leader].number)
        self._submitter.set_route(route)

    def send(self) -> None:
        """Send the commands of our callers to the leader; a leader sends the bytes of large commands ahead."""
        submitter = self._submitter
        if submitter.is_waiting:
            submitter.flush(self._context.now)
        if self._core.is_leader and submitter.large.is_busy and self.takes_writes:
            self._send_ahead()

    def _send_ahead(self) -> None:
        """Large commands go to the other voters before they are in the log."""
        submitter, roster = self._submitter, self._roster
        if submitter.large.is_naming:
            submitter.large.appended(self._guard.match_index)
        if submitter.large.is_waiting:
            peers = [id_ for id_ in sorted(roster.voters) if id_ != self._node_id and roster.counts(id_)]
            submitter.large.send_ahead(self._context.now, self._core.term, peers)

    # Messages ----------------------------------------------------------------------------------------------------

    def on_submit(self, peer: str, message: Submit) -> None:
        self._checks.check_commands(peer, message.commands)
        self._submitter.receive(peer, message.commands, is_leader=self.takes_writes, now=self._context.now)

    def on_submit_refused(self, peer: str, _message: SubmitRefused) -> None:
        self._submitter.refused(peer, self._context.now)

    def on_submit_large(self, peer: str, message: SubmitLarge) -> None:
        self._checks.check_commands(peer, [message.command])
        self._submitter.large.receive(peer, message, self._context.now, is_leader=self.takes_writes)

    def on_submit_large_cancel(self, peer: str, message: SubmitLargeCancel) -> None:
        self._submitter.large.receive_cancel(peer, message.number)

    def on_submit_large_end(self, peer: str, message: SubmitLargeEnd) -> None:
        self._submitter.large_ended(peer, message.number, self._context.now, again=message.again)

    def on_large_entry_held(self, peer: str, message: LargeEntryHeld) -> None:
        self._submitter.large.held(peer, message.number)

    def on_large_entry_refused(self, peer: str, message: LargeEntryRefused) -> None:
        self._submitter.large.refused(peer, message.number)

    # Into the log ------------------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Propose the next entries if this manager leads and few are under way."""
        if not self._core.is_leader or self._requests.is_transferring:
            return
        under_way = self._log.last_index - self._context.machine.applied_index
        if under_way >= ENTRIES_IN_FLIGHT:
            return
        if self.change_is_due:
            self.change_is_due = False
            if self._propose_change():
                return
        if self._submitter.is_queueing and self.takes_writes:
            self._propose_large()
            if under_way and len(self._submitter.queue) < self._group:
                return  # more callers are on their way, because those of the last entry but one have their answers
            commands, senders = self._submitter.take(
                commands_max=entries.COMMANDS_PER_ENTRY, bytes_max=entries.ENTRY_BYTES
            )
            if commands:
                self._group = len(commands)
                entry = entries.encode_commands(commands)
                self._context.decoded.keep(entry, commands)
                self._append(entry)
                self._stages.made(self._log.last_index, self._context.now, senders, self._submitter.came_at)
                if senders:
                    self.senders.append((self._log.last_index, senders))

    def _propose_change(self) -> bool:
        cluster_id = ""
        if self._roster.membership is None:
            cluster_id = self._roster.origin or f"{self._context.random.getrandbits(128):032x}"
        machine = self._context.machine
        change = self._changes.next_change(machine.applied_index, machine.applied_term, cluster_id)
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
            senders = frozenset([large.sender] if large.sender else ())
            self._stages.made(self._log.last_index, self._context.now, senders)
            if senders:
                self.senders.append((self._log.last_index, senders))

    def _append(self, entry: bytes) -> None:
        before = self._log.last_index
        self._core.propose(entry)
        self._guard.after_tick()
        if self._log.last_index != before + 1:
            raise InvariantViolation("PySyncObj did not append the entry it was given")
