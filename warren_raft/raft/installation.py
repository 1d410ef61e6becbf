"""Replacing the state: by one that was fetched, or by one that was rebuilt because ours turned out to be wrong.

Lives here: the conditions and the work of each step. A leader does not replace its state, because it hears no peer
meanwhile: it hands leadership over, or steps down. Not here: the phases (replacement.py), the source of a state
(catchup.py), and the parts that begin again with the new state (swapping.py). Invariant: if the process dies between
any two steps, the next start can go on; local readers never go back.
"""

from __future__ import annotations

import logging
from typing import Final

from warren_raft.disk.shortage import shortage_of
from warren_raft.errors import Corrupted, InvariantViolation, WarrenError
from warren_raft.raft import entries
from warren_raft.raft.blocked import clear_blocked, raise_blocked
from warren_raft.raft.catchup import Catchup
from warren_raft.raft.context import Context
from warren_raft.raft.effects import Then
from warren_raft.raft.log.log import Batch
from warren_raft.raft.log_writer import LogWriter
from warren_raft.raft.membership import Change, apply_change
from warren_raft.raft.replacement import Cause, Event, Phase
from warren_raft.raft.snapshots import Snapshots
from warren_raft.raft.state_machine import StateMachine, apply_membership, membership_of
from warren_raft.raft.swapping import Swap
from warren_raft.raft.way_back import way_back_in
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.engine")

REPLAYED_ENTRIES: Final = 64
"""Entries that are replayed in one turn; then links and timers get their turn."""
RETRY_SECONDS: Final = 1.0
"""The pause before the new state is made durable again, after a shortage (of space, say) was in the way."""
REBUILD_AGAIN_SECONDS: Final = 10.0
"""The least time between two attempts to rebuild the state without a new verdict."""
RELIEF_SECONDS: Final = 5.0
"""A leader with a wrong state offers leadership to others for this long; then it replaces its state itself."""
REBUILDS_MAX: Final = 2
"""Attempts to replace a wrong state in one process: from our own snapshot, then from the leader's."""
RESTORE: Final = "stop this manager, and restore it from a snapshot or a backup: warren-raft snapshot restore"
NEVER: Final = float("inf")


class Installation:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, snapshots: Snapshots, catchup: Catchup, writer: LogWriter, swap: Swap) -> None:
        self._context = context
        self._node_id = context.node_id
        self._replacement = context.replacement
        self._log = context.log
        self._outbox = context.outbox
        self._alarms = context.alarms
        self._snapshots = snapshots
        self._catchup = catchup
        self._writer = writer
        self._swap = swap
        self._rebuilding: Then | None = None
        """The newest rebuild. In REBUILDING its result counts; any other result is discarded."""
        self._rebuild_not_before = -NEVER
        self._verdicts = 0
        """How often the state turned out to be wrong in this process."""
        self._reset_batch: Batch | None = None
        """The batch that resets the log for the new state."""
        self._publish_at = NEVER
        """When the new state is published again; NEVER while a worker publishes it."""
        self._unrelieved_since = NEVER
        """When this manager began to lead with a state that it wants to replace."""

    def take_news(self) -> None:
        """Take a state that was fetched, and the verdict of a snapshot on our state."""
        fetched, self._catchup.fetched = self._catchup.fetched, None
        if fetched is not None:
            self.install(fetched)
        is_wrong, self._catchup.state_is_wrong = self._catchup.state_is_wrong, False
        if is_wrong:
            self.condemn()

    def tick(self, applied_index: int, *, leads: bool) -> bool:
        """Go one step further. `applied_index`: that of the present state; `leads`: this manager leads. True: this
        leader has to step down, so that it can replace its state."""
        replacement = self._replacement
        if not leads or not (replacement.is_wrong or replacement.wants_relief):
            self._unrelieved_since = NEVER
        elif self._unrelieved_since == NEVER:
            self._unrelieved_since = self._context.now
        match replacement.phase:
            case Phase.DELAYED | Phase.WANTED:
                self._rebuild_again()
            case Phase.REPLAYING if leads:
                return self._is_to_step_down(self._new_state, applied_index)
            case Phase.REPLAYING:
                self._advance(self._new_state, applied_index)
            case Phase.BLOCKED if self._context.now >= self._publish_at:
                replacement.go(Event.AGAIN)
                self._publish(self._new_state)
        return False

    @property
    def _new_state(self) -> StateMachine:
        incoming = self._replacement.incoming
        if incoming is None:
            raise InvariantViolation(f"there is no new state in the phase {self._replacement.phase.value!r}")
        return incoming

    @property
    def _is_on_its_own(self) -> bool:
        """Whether no other manager can lead in our place, or give us a state."""
        return self._context.is_alone or self._context.now - self._unrelieved_since >= RELIEF_SECONDS

    # A new state is wanted -------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Rebuild the state in a new file, from our own snapshot and log, and use that. For a file that cannot be used
        for long any more, although its contents are right. A failure is logged, and changes nothing."""
        if self._replacement.phase is Phase.IN_USE and not self._catchup.is_served:
            self._replacement.go(Event.RENEW)
            self._rebuild()

    def condemn(self) -> None:
        """Our state is wrong. Rebuild it from our own snapshot and log. If the result is wrong too, fetch the leader's
        snapshot. If the state is wrong a third time, an operator must look at this manager: raises Corrupted.

        While the state is swapped, nothing is done: the state that is wrong is about to go.
        """
        replacement = self._replacement
        if replacement.is_wrong or replacement.is_swapping:
            return
        self._verdicts += 1
        if self._verdicts > REBUILDS_MAX:
            raise self._given_up()
        if self._verdicts == REBUILDS_MAX and not self._context.is_alone:
            if replacement.wants_relief:
                self._drop()  # it was made from our own snapshot, like the state that is wrong again
            replacement.go(Event.WRONG_AGAIN)
        else:
            is_idle = replacement.phase is Phase.IN_USE
            replacement.go(Event.WRONG)
            if is_idle:
                self._rebuild()
        self._alarms.raise_alarm(
            "state-wrong",
            f"the state of {self._node_id} is wrong; this manager does not lead while another member can, and rebuilds "
            "its state",
            severity="critical",
        )

    def _given_up(self) -> Corrupted:
        if self._context.is_alone:
            detail = f"of {self._node_id} fails its verification, whenever it is rebuilt"
            return Corrupted("the state", detail, remedy=RESTORE)
        detail = f"of {self._node_id} differs from the majority's whenever it is rebuilt"
        return Corrupted("the state", detail, remedy=way_back_in(self._context.roster.membership, self._node_id))

    def _rebuild_again(self) -> None:
        """If the last attempt failed for a reason that may be over, or if there is no manager to fetch a state from."""
        is_delayed = self._replacement.phase is Phase.DELAYED
        may_begin = not self._catchup.is_served and self._context.now >= self._rebuild_not_before
        if may_begin and (is_delayed or self._is_on_its_own):
            self._replacement.go(Event.AGAIN)
            self._rebuild()

    def _rebuild(self) -> None:
        self._rebuild_not_before = self._context.now + REBUILD_AGAIN_SECONDS

        def rebuilt(machine: StateMachine, error: Exception | None) -> None:
            is_awaited = self._replacement.phase is Phase.REBUILDING and self._rebuilding is rebuilt
            if error is None and is_awaited:
                self._replacement.go(Event.REBUILT, machine)
            elif error is None:
                self._snapshots.discard(machine)
            elif is_awaited:
                self._not_rebuilt(error)

        self._rebuilding = rebuilt
        self._outbox.work(self._snapshots.rebuild(self._log.holds), rebuilt)

    def _not_rebuilt(self, error: Exception) -> None:
        if not self._replacement.is_wrong:
            self._replacement.go(Event.NOT_RENEWED)
            log_event(logger, logging.WARNING, "state not renewed", error, node=self._node_id)
            return
        may_pass = shortage_of(error) is not None or not isinstance(error, WarrenError)
        if self._context.is_alone and not may_pass:
            raise Corrupted("the state", f"of {self._node_id} cannot be rebuilt: {error}", remedy=RESTORE) from error
        if may_pass:
            self._replacement.go(Event.SHORTAGE)
            text = (
                f"the state of {self._node_id} is wrong, and cannot be rebuilt yet; this manager tries again every "
                f"{REBUILD_AGAIN_SECONDS:.0f} s"
            )
        else:
            self._verdicts = REBUILDS_MAX
            self._replacement.go(Event.IMPOSSIBLE)
            text = (
                f"the state of {self._node_id} is wrong, and cannot be rebuilt from its own snapshot and log; this "
                f"manager fetches the leader's snapshot"
            )
        self._alarms.raise_alarm("state-wrong", f"{text}: {error}", severity="critical")

    def install(self, machine: StateMachine) -> None:
        """Replace the present state by that of `machine`, which was made from a leader's snapshot, step by step."""
        if self._replacement.incoming is not None:
            self._catchup.not_installed()
            self._snapshots.discard(machine)
            return
        self._replacement.go(Event.FETCHED, machine)

    def abandon(self) -> None:
        """Discard the new state. Called before this process ends."""
        incoming, self._replacement.incoming = self._replacement.incoming, None
        if incoming is not None:
            self._snapshots.discard(incoming)

    # The new state is there ------------------------------------------------------------------------------------------

    def _log_goes_on_from(self, machine: StateMachine) -> bool:
        """Whether the log holds the last entry of this state, so that no entry of the log has to be dropped."""
        return self._log.holds(machine.applied_index, machine.applied_term)

    def _is_ready(self, incoming: StateMachine, applied_index: int) -> bool:
        """Whether the new state is not behind ours, and the log is durable up to its end. Otherwise the next start
        could find a log that ends below its state."""
        return applied_index <= incoming.applied_index <= self._log.synced_index

    def _is_to_step_down(self, incoming: StateMachine, applied_index: int) -> bool:
        """Before the state is replaced, another manager is to lead (fitness.py has the reason to offer leadership). If
        none can, this leader steps down."""
        if self._replacement.cause is Cause.BEHIND or not self._log_goes_on_from(incoming):
            self._drop()  # a leader holds all committed entries, and needs no other manager's state
        elif self._is_ready(incoming, applied_index) and self._is_on_its_own:
            self._replacement.go(Event.UNRELIEVED)
            return True
        return False

    def _drop(self) -> None:
        """Drop the new state: we caught up by other means."""
        incoming = self._new_state
        if self._replacement.cause is Cause.WRONG_AGAIN:
            self._replacement.go(Event.STILL_WRONG)
        else:
            self._replacement.go(Event.NOT_NEEDED)
            self._alarms.clear_alarm("state-wrong")
        self._catchup.not_installed()
        self._snapshots.discard(incoming)

    def _advance(self, incoming: StateMachine, applied_index: int) -> None:
        if self._log_goes_on_from(incoming):
            if self._is_ready(incoming, applied_index):
                self._replacement.go(Event.REPLAYED)
                self._publish(incoming)
        elif incoming.applied_index <= applied_index:
            self._drop()
        elif self._writer.batch is None:
            self._replacement.go(Event.LOG_TOO_SHORT)
            self._reset_batch = self._log.reset_batch(incoming.applied_index, incoming.applied_term)
            self._writer.write(self._reset_batch)

    def replay(self, applied_index: int) -> bool:
        """Apply the next entries of the log to the new state. True: it was behind the present state."""
        incoming, log = self._replacement.incoming, self._log
        if incoming is None or not self._log_goes_on_from(incoming) or incoming.applied_index >= applied_index:
            return False
        last = min(applied_index, incoming.applied_index + REPLAYED_ENTRIES)
        membership = membership_of(incoming)
        for index in range(incoming.applied_index + 1, last + 1):
            command, _, term = log.entries[index - log.base_index]
            content = entries.decode(command)
            if isinstance(content, Change):
                membership = apply_change(membership, content, index)
                apply_membership(incoming, index, term, membership, content)
            else:
                incoming.apply(index, term, content)
        return True

    def log_written(self, batch: Batch) -> bool:
        """Whether the batch was the one that resets the log to begin at the end of the new state."""
        if batch is not self._reset_batch:
            return False
        self._reset_batch = None
        self._replacement.go(Event.LOG_RESET)
        self._publish(self._new_state)
        return True

    def _publish(self, incoming: StateMachine) -> None:
        def published(_result: object, error: Exception | None) -> None:
            if self._replacement.incoming is not incoming:
                return  # this process is about to end
            if error is None:
                clear_blocked(self._alarms, "state")
                self._use(incoming)
            elif (shortage := shortage_of(error)) is not None:
                self._replacement.go(Event.SHORTAGE)
                raise_blocked(self._alarms, "state", shortage, error)
                self._publish_at = self._context.now + RETRY_SECONDS
            else:
                raise InvariantViolation(f"the new state cannot be made durable: {error}") from error

        self._publish_at = NEVER
        self._outbox.work(self._snapshots.publish(incoming), published)

    def _use(self, incoming: StateMachine) -> None:
        cause = self._replacement.cause
        self._replacement.go(Event.PUBLISHED)
        self._alarms.clear_alarm("state-wrong")
        self._swap.use(incoming, "diverged" if cause in (Cause.WRONG, Cause.WRONG_AGAIN) else "")
        self._catchup.installed(incoming.applied_index, own_are_wrong=cause is Cause.WRONG_AGAIN)
