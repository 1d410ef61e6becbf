"""Applying: committed entries go to the state machine in order, and their results to the callers that wait.

Lives here: how far entries are applied, and the pause while the state cannot be written. Not here: the effect of a
command (the state machine) or of a new list (peers.py). Invariant: an entry is applied only if it is committed and
durable here, and not if it is this manager's own removal, which waits until the others can do without it.
"""

from __future__ import annotations

import logging
from typing import Final

from warren_raft.disk.shortage import SPACE, Shortage, shortage_of
from warren_raft.errors import StorageFull
from warren_raft.raft.blocked import clear_blocked, raise_blocked
from warren_raft.raft.catchup import Catchup
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.core import Core
from warren_raft.raft.installation import Installation
from warren_raft.raft.leading import Leading
from warren_raft.raft.log_writer import LogWriter
from warren_raft.raft.membership import Change, apply_change
from warren_raft.raft.peers import Peers
from warren_raft.raft.replacement import Phase
from warren_raft.raft.settling import Settling
from warren_raft.raft.state_machine import apply_membership, membership_of
from warren_raft.raft.submit import Submitter
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.engine")

APPLY_ENTRIES: Final = 64
"""Entries applied at one go; then links and timers get their turn, so that a long catch-up costs no heartbeat."""
TOGETHER_BYTES: Final = 256 * 1024
"""Entries that are applied in one transaction have this size together, or a little more. One transaction of 16 small
entries takes less than half the time of 16. While the state cannot be written, each entry is tried by itself."""
RETRY_SECONDS: Final = 1.0
"""After a refusal by a full disk, applying is tried again at this interval."""


class Applying:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        context: Context,
        core: Core,
        submitter: Submitter,
        catchup: Catchup,
        installation: Installation,
        settling: Settling,
        writer: LogWriter,
        leading: Leading,
        peers: Peers,
    ) -> None:
        self._context = context
        self._log = context.log
        self._core = core
        self._submitter = submitter
        self._catchup = catchup
        self._installation = installation
        self._replacement = context.replacement
        self._settling = settling
        self._writer = writer
        self._leading = leading
        self._peers = peers
        self._again_at = LONG_AGO
        self.shortage: Shortage | None = None
        """Why the state cannot be written; None: it can."""

    def apply(self) -> bool:
        """Apply some of the entries that are committed and durable here. True: there is more to do at once. Raises
        WarrenError if this manager must stop."""
        if self._replacement.is_swapping:
            return False
        if self.shortage is None:
            try:
                return self._apply(self._limit)
            except StorageFull as error:
                return self._blocked(error)
        if self._context.now < self._again_at:
            return False
        try:
            self._settle()
            more = self._apply(self._limit)
        except StorageFull as error:
            return self._blocked(error)
        self.shortage = None
        if self._replacement.phase is not Phase.BLOCKED:
            clear_blocked(self._context.alarms, "state")
        return more

    @property
    def _limit(self) -> int:
        """The newest index that is known to be committed and is durable here."""
        return min(self._log.commit_index, self._log.synced_index)

    @property
    def is_due(self) -> bool:
        """Whether there are entries to apply."""
        return self._context.machine.applied_index < self._limit

    def _settle(self) -> None:
        """The commit of a change may have come through although its disk refused something."""
        machine = self._context.machine
        machine.settle()
        self._peers.adopt(membership_of(machine))
        if self._replacement.incoming is not None:
            self._replacement.incoming.settle()

    def _blocked(self, error: StorageFull) -> bool:
        self.shortage = shortage_of(error) or SPACE
        raise_blocked(self._context.alarms, "state", self.shortage, error)
        self._again_at = self._context.now + RETRY_SECONDS
        return False

    def _apply(self, limit: int) -> bool:
        machine, log = self._context.machine, self._log
        is_behind = can_propose = False
        if machine.applied_index < limit:
            first = machine.applied_index
            try:
                is_behind = self._apply_some(first, limit)
            finally:  # also if there is no space for the entries behind those that were applied
                if machine.applied_index > first:
                    self._leading.applied()
            if machine.applied_index > first:
                no_list = self._context.roster.membership is None
                can_propose = self._core.is_leader and (self._submitter.is_queueing or no_list)
        can_write = can_propose or self._submitter.has_released  # a small write that a large one of its thread held up
        is_replaying = self._replacement.incoming is not None and self._installation.replay(machine.applied_index)
        return is_replaying or is_behind or can_write or (self._writer.batch is None and log.has_pending)

    def _apply_some(self, first: int, limit: int) -> bool:
        """Apply entries behind `first`, up to `limit` at most. Whether there are more that may be applied."""
        log = self._log
        last = min(limit, first + APPLY_ENTRIES)
        together: list[tuple[int, list[bytes]]] = []
        size_bytes = 0
        for index in range(first + 1, last + 1):
            command, _, term = log.entries[index - log.base_index]
            content = self._context.decoded.take(command)
            if isinstance(content, Change):
                self._apply_together(together, size_bytes)
                size_bytes = 0
                if self._settling.holds_back(index, content):
                    return False
                self._apply_change(index, term, content)
                self._catchup.applied(len(command))
            else:
                together.append((term, content))
                size_bytes += len(command)
                if size_bytes >= TOGETHER_BYTES or self.shortage is not None:
                    self._apply_together(together, size_bytes)
                    size_bytes = 0
        self._apply_together(together, size_bytes)
        return last < limit

    def _apply_together(self, together: list[tuple[int, list[bytes]]], size_bytes: int) -> None:
        """Apply entries in a row, (term, commands) each, in one transaction of the state; empty the list."""
        if not together:
            return
        machine = self._context.machine
        first = machine.applied_index + 1
        for index, outcomes in enumerate(machine.apply_all(first, together), first):
            self._submitter.applied(outcomes, index)
        self._catchup.applied(size_bytes)
        together.clear()

    def _apply_change(self, index: int, term: int, change: Change) -> None:
        previous = self._context.roster.membership
        membership = apply_change(previous, change, index)
        if membership is not None and membership != previous:
            log_event(
                logger,
                logging.INFO,
                "members changed",
                node=self._context.node_id,
                change=change.verb,
                member=change.id or None,
                address=change.address or None,
                index=index,
                voters=",".join(sorted(membership.voters)),
            )
        machine = self._context.machine
        before = machine.level
        apply_membership(machine, index, term, membership, change)
        if machine.level != before:
            text = "commands of this level are used from now on; older releases are not let in any more"
            node, level = self._context.node_id, machine.level
            log_event(
                logger, logging.INFO, "level of the command set raised", text, node=node, state_level=level, index=index
            )
        self._peers.adopt(membership)
