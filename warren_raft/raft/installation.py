"""Replacing the state: by one that was fetched, or by one that was rebuilt because ours turned out to be wrong.

The new state is replayed up to our applied index, or else the log is reset to begin at its end. Then it becomes the
state that the next start opens, then the state in use. A leader does not replace its state, because it hears no peer
meanwhile: it hands leadership over, or steps down. Not here: the source of a state (catchup.py), and the core that is
rebuilt on it (engine.py). Invariant: if the process dies between any two of these steps, the next start can go on;
local readers never go back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, cast

from warren_raft.alarms import Alarms
from warren_raft.disk.shortage import shortage_of
from warren_raft.errors import Corrupted, InvariantViolation, WarrenError
from warren_raft.raft import entries
from warren_raft.raft.blocked import clear_blocked, raise_blocked
from warren_raft.raft.catchup import Catchup, Snapshots
from warren_raft.raft.effects import Job, Then
from warren_raft.raft.log.log import Batch, Log
from warren_raft.raft.membership import Change, apply_change
from warren_raft.raft.state_machine import StateMachine, apply_membership, membership_of
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
REJOIN: Final = "remove this manager from the cluster, empty its data directory, start it and add it again"
RESTORE: Final = "stop this manager, and restore it from a snapshot or a backup: warren-raft snapshot restore"
NEVER: Final = float("inf")


class Installation:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        node_id: str,
        *,
        log: Log,
        snapshots: Snapshots,
        catchup: Catchup,
        clock: Callable[[], float],
        work: Callable[[Job, Then], None],
        write_log: Callable[[Batch], None],
        alarms: Alarms,
        swap: Callable[[StateMachine, str], None],
        step_down: Callable[[], None],
        is_alone: Callable[[], bool],
    ) -> None:
        """`swap` makes a state the one in use; the old state is kept under the given word, or not at all if the word is
        empty. `is_alone`: there is no other voter."""
        self._node_id = node_id
        self._log = log
        self._snapshots = snapshots
        self._catchup = catchup
        self._clock = clock
        self._work = work
        self._write_log = write_log
        self._alarms = alarms
        self._swap = swap
        self._step_down = step_down
        self._is_alone = is_alone
        self.incoming: StateMachine | None = None
        """A state that will replace the present one."""
        self.is_swapping = False
        """True from the moment that the log is reset, or the new state is published, until the new state is in use."""
        self._reset_batch: Batch | None = None
        """The batch that resets the log for the incoming state, while it is written."""
        self._publish_again_at = NEVER
        self.waits_for_room = False
        """There is a shortage (of space, say) that keeps the new state from being published."""
        self._is_rebuilding = False
        self._rebuild_failed = False
        self._not_before = -NEVER
        self._unrelieved_since = NEVER
        """When this manager began to lead with a state that it wants to replace."""
        self._rebuilds = 0
        self.is_renewing = False
        """The state is right, and is made again in another file."""
        self.is_odd = False
        """Our state is wrong: this manager must not lead, and gets another state."""

    def tick(self, applied_index: int, *, leads: bool, log_is_idle: bool) -> None:
        """Go one step further. `applied_index`: that of the present state; `leads`: this manager leads."""
        if not leads or not (self.is_odd or self.wants_relief):
            self._unrelieved_since = NEVER
        elif self._unrelieved_since == NEVER:
            self._unrelieved_since = self._clock()
        self._help_itself()
        if self.incoming is None:
            return
        if self.is_swapping:
            if self._clock() >= self._publish_again_at:
                self._publish(self.incoming)
        elif leads:
            self._wait_as_leader(self.incoming, applied_index)
        else:
            self._advance(self.incoming, applied_index, log_is_idle=log_is_idle)

    @property
    def _is_on_its_own(self) -> bool:
        """Whether no other manager can lead in our place, or give us a state."""
        return self._is_alone() or self._clock() - self._unrelieved_since >= RELIEF_SECONDS

    def _wait_as_leader(self, incoming: StateMachine, applied_index: int) -> None:
        """Before the state is replaced, another manager is to lead (engine.py offers leadership). If none can, this
        leader steps down."""
        if not (self.is_odd or self.is_renewing) or not self._log_goes_on_from(incoming):
            self._drop(incoming)  # a leader holds all committed entries, and needs no other manager's state
        elif self._is_ready(incoming, applied_index) and self._is_on_its_own:
            self._step_down()

    @property
    def wants_relief(self) -> bool:
        """Whether another manager is to lead, so that a renewed state can replace the present one."""
        return self.is_renewing and self.incoming is not None

    def renew(self) -> None:
        """Rebuild the state in a new file, from our own snapshot and log, and use that. For a file that cannot be used
        for long any more, although its contents are right. A failure is logged, and changes nothing."""
        if self.incoming is None and not self.is_odd and not self.is_renewing and not self._catchup.is_served:
            self.is_renewing = True
            self._work(self._snapshots.rebuild(self._log.holds), self._renewed)

    def _renewed(self, machine: Any, error: Exception | None) -> None:
        self.is_renewing = error is None and self.incoming is None
        if error is None:
            self.install(machine)
        else:
            log_event(logger, logging.WARNING, "state not renewed", error, node=self._node_id)

    def install(self, machine: Any) -> None:
        """Replace the present state by that of `machine`, step by step."""
        if self.incoming is not None:
            self._snapshots.discard(machine)
        else:
            self.incoming = cast(StateMachine, machine)

    def abandon(self) -> None:
        """Discard the incoming state. Called before this process ends."""
        incoming, self.incoming = self.incoming, None
        if incoming is not None:
            self._snapshots.discard(incoming)

    # A state that is wrong -----------------------------------------------------------------------------------------

    def state_is_wrong(self) -> None:
        """Our state is wrong. Rebuild it from our own snapshot and log. If the result is wrong too, fetch the leader's
        snapshot. If the state is wrong a third time, an operator must look at this manager: raises Corrupted."""
        if self.is_odd:
            return
        self.is_odd = True
        self._rebuilds += 1
        if self._rebuilds > REBUILDS_MAX:
            if self._is_alone():
                detail = f"of {self._node_id} fails its verification, whenever it is rebuilt"
                raise Corrupted("the state", detail, remedy=RESTORE)
            raise Corrupted(
                "the state", f"of {self._node_id} differs from the majority's whenever it is rebuilt", remedy=REJOIN
            )
        self._alarms.raise_alarm(
            "state-wrong",
            f"the state of {self._node_id} is wrong; this manager does not lead, and rebuilds its state",
            severity="critical",
        )
        if self._rebuilds == REBUILDS_MAX and not self._is_alone():
            self._catchup.wanted = True
        else:
            self._rebuild()

    def _rebuild(self) -> None:
        self._catchup.wanted = self._rebuild_failed = False
        self._is_rebuilding = True
        self._not_before = self._clock() + REBUILD_AGAIN_SECONDS
        self._work(self._snapshots.rebuild(self._log.holds), self._rebuilt)

    def _rebuilt(self, machine: Any, error: Exception | None) -> None:
        self._is_rebuilding = False
        if error is None:
            self.install(machine)
            return
        may_pass = shortage_of(error) is not None or not isinstance(error, WarrenError)
        if self._is_alone() and not may_pass:
            raise Corrupted("the state", f"of {self._node_id} cannot be rebuilt: {error}", remedy=RESTORE) from error
        self._rebuild_failed = may_pass
        if may_pass:
            text = (
                f"the state of {self._node_id} is wrong, and cannot be rebuilt yet; this manager tries again every "
                f"{REBUILD_AGAIN_SECONDS:.0f} s"
            )
            self._alarms.raise_alarm("state-wrong", f"{text}: {error}", severity="critical")
        else:
            text = (
                f"the state of {self._node_id} is wrong, and cannot be rebuilt from its own snapshot and log; this "
                f"manager fetches the leader's snapshot: {error}"
            )
            self._alarms.raise_alarm("state-wrong", text, severity="critical")
            self._rebuilds = REBUILDS_MAX
            self._catchup.wanted = True

    def _help_itself(self) -> None:
        """Rebuild the state again, if the last attempt failed for a reason that may be over, or if there is no manager
        to fetch a state from."""
        is_idle = self.incoming is None and not self._is_rebuilding and not self._catchup.is_served
        has_nobody = self._catchup.wanted and self._is_on_its_own
        if self.is_odd and is_idle and (has_nobody or self._rebuild_failed) and self._clock() >= self._not_before:
            self._rebuild()

    # Step by step --------------------------------------------------------------------------------------------------

    def _log_goes_on_from(self, machine: StateMachine) -> bool:
        """Whether the log holds the last entry of this state, so that no entry of the log has to be dropped."""
        return self._log.holds(machine.applied_index, machine.applied_term)

    def _is_ready(self, incoming: StateMachine, applied_index: int) -> bool:
        """Whether the new state is not behind ours, and the log is durable up to its end. Otherwise the next start
        could find a log that ends below its state."""
        return applied_index <= incoming.applied_index <= self._log.synced_index

    def _drop(self, incoming: StateMachine) -> None:
        """Drop the incoming state: we caught up by other means."""
        self.incoming = None
        self.is_renewing = False
        self.is_odd = self.is_odd and self._catchup.wanted  # else the state is judged, and rebuilt, again
        if not self.is_odd:
            self._alarms.clear_alarm("state-wrong")
        self._catchup.not_installed()
        self._snapshots.discard(incoming)

    def _advance(self, incoming: StateMachine, applied_index: int, *, log_is_idle: bool) -> None:
        if self._log_goes_on_from(incoming):
            if self._is_ready(incoming, applied_index):
                self._publish(incoming)
        elif incoming.applied_index <= applied_index:
            self._drop(incoming)
        elif log_is_idle:
            self.is_swapping = True
            self._reset_batch = self._log.reset_batch(incoming.applied_index, incoming.applied_term)
            self._write_log(self._reset_batch)

    def replay(self, applied_index: int) -> bool:
        """Apply the next entries of the log to the incoming state. True: it was behind the present state."""
        incoming, log = self.incoming, self._log
        if incoming is None or not self._log_goes_on_from(incoming) or incoming.applied_index >= applied_index:
            return False
        last = min(applied_index, incoming.applied_index + REPLAYED_ENTRIES)
        membership = membership_of(incoming)
        for index in range(incoming.applied_index + 1, last + 1):
            command, _, term = log.entries[index - log.base_index]
            content = entries.decode(command)
            if isinstance(content, Change):
                membership = apply_change(membership, content, index)
                apply_membership(incoming, index, term, membership)
            else:
                incoming.apply(index, term, content)
        return True

    def log_written(self, batch: Batch) -> bool:
        """Whether the batch was the one that resets the log to begin at the end of the incoming state."""
        if batch is not self._reset_batch or self.incoming is None:
            return False
        self._reset_batch = None
        self._publish(self.incoming)
        return True

    def _publish(self, incoming: StateMachine) -> None:
        self.is_swapping = True

        def published(_result: Any, error: Exception | None) -> None:
            if self.incoming is not incoming:
                return
            if error is None:
                self.waits_for_room = False
                clear_blocked(self._alarms, "state")
                self._use(incoming)
            elif (shortage := shortage_of(error)) is not None:
                raise_blocked(self._alarms, "state", shortage, error)
                self.waits_for_room = True
                self._publish_again_at = self._clock() + RETRY_SECONDS
            else:
                raise InvariantViolation(f"the new state cannot be made durable: {error}") from error

        self._publish_again_at = NEVER
        self._work(self._snapshots.publish(incoming), published)

    def _use(self, incoming: StateMachine) -> None:
        why = "diverged" if self.is_odd else ""
        self.incoming = None
        self.is_swapping = self.is_odd = self.is_renewing = False
        self._alarms.clear_alarm("state-wrong")
        self._swap(incoming, why)
