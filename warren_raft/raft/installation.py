"""Another state in the place of ours: one that was fetched, or was rebuilt because ours turned out to be wrong.

It is replayed to where ours is, or the log is begun anew where it ends; then it is made the one that the next start
opens; then it is used. Not here: where it comes from (catchup.py), and the core that is built anew on it (engine.py).
A leader does not change its state, as that takes a while in which it hears nobody: it is relieved, or steps down.
Invariant: dying between any two of these leaves what the next start can go on from; local readers never go back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, cast

from warren_raft.alarms import Alarms
from warren_raft.errors import Corrupted, InvariantViolation, WarrenError
from warren_raft.log_lines import log_event
from warren_raft.raft import entries
from warren_raft.raft.blocked import clear_blocked, raise_blocked
from warren_raft.raft.catchup import Catchup, Snapshots
from warren_raft.raft.effects import Job, Then
from warren_raft.raft.log import Batch, Log
from warren_raft.raft.membership import Change, apply_change
from warren_raft.raft.state_machine import StateMachine, apply_membership, membership_of
from warren_raft.shortage import shortage_of

logger = logging.getLogger("warren_raft.engine")

REPLAYED_ENTRIES: Final = 64
"""At one go; then links and timers get their turn."""
RETRY_SECONDS: Final = 1.0
"""A state that found no room, or nothing else that it needed, is made durable again so often."""
REBUILD_AGAIN_SECONDS: Final = 10.0
"""Between two attempts to rebuild the state that follow no new verdict."""
RELIEF_SECONDS: Final = 5.0
"""A leader whose state is wrong offers leadership to others for so long, then it helps itself."""
REBUILDS_MAX: Final = 2
"""Of a state that differs from the majority's, in one process: from our own snapshot, then from the leader's."""
REJOIN: Final = "remove this manager from the cluster, empty its data directory, start it and add it again"
RESTORE: Final = "stop this manager, and restore it from a snapshot or a backup: warren-raft snapshot restore"
NEVER: Final = float("inf")


class Installation:
    """Raft thread or simulator only."""

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
        """`swap` makes a state the one in use; the other one is kept under a word, or not if that is empty. `is_alone`:
        there is no other voter."""
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
        """A state that will take the place of the present one."""
        self.is_swapping = False
        """From where the log is reset, or the new state made the one that the next start opens, until it is in use."""
        self._reset_batch: Batch | None = None
        """The batch that begins the log anew for the incoming state, while it is written."""
        self._publish_again_at = NEVER
        self.waits_for_room = False
        """The disk has no room for the new state."""
        self._is_rebuilding = False
        self._rebuild_failed = False
        self._not_before = -NEVER
        self._unrelieved_since = NEVER
        """When this manager began to lead with a state that is wrong."""
        self._rebuilds = 0
        self.is_renewing = False
        """The state is right, and made once more, in another file."""
        self.is_odd = False
        """A majority holds another state than ours: this manager must not lead, and is given another state."""

    def tick(self, applied_index: int, *, leads: bool, log_is_idle: bool) -> None:
        """One step further. `applied_index` is the present state's; `leads`: this manager leads."""
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
        """Whether there is nobody who could lead in our place, or give us a state."""
        return self._is_alone() or self._clock() - self._unrelieved_since >= RELIEF_SECONDS

    def _wait_as_leader(self, incoming: StateMachine, applied_index: int) -> None:
        """Somebody else is to lead before the state is changed (engine.py offers it); if nobody can, nobody does."""
        if not (self.is_odd or self.is_renewing) or not self._log_goes_on_from(incoming):
            self._drop(incoming)  # who leads holds all that is committed, and needs no other's state
        elif self._is_ready(incoming, applied_index) and self._is_on_its_own:
            self._step_down()

    @property
    def wants_relief(self) -> bool:
        """Whether another manager is to lead, so that a renewed state can take the place of this one."""
        return self.is_renewing and self.incoming is not None

    def renew(self) -> None:
        """Make the state once more, from our own snapshot and log, and go on in that. For a file that cannot be gone on
        with, although what it holds is right. Where it fails it is told, and nothing changes."""
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
        """It is to take the place of the present state."""
        if self.incoming is not None:
            self._snapshots.discard(machine)
        else:
            self.incoming = cast(StateMachine, machine)

    def abandon(self) -> None:
        """Before the end of this process."""
        incoming, self.incoming = self.incoming, None
        if incoming is not None:
            self._snapshots.discard(incoming)

    # A state that is wrong -----------------------------------------------------------------------------------------

    def state_is_wrong(self) -> None:
        """Our state is not the majority's. First from our own snapshot and log; if that comes out wrong too, from the
        leader's; a third time there is something in this manager that must be looked at: raises Corrupted."""
        if self.is_odd:
            return
        self.is_odd = True
        self._rebuilds += 1
        if self._rebuilds > REBUILDS_MAX:
            if self._is_alone():
                detail = f"of {self._node_id} does not prove itself, whenever it is rebuilt"
                raise Corrupted("the state", detail, remedy=RESTORE)
            raise Corrupted(
                "the state", f"of {self._node_id} differs from the majority's whenever it is rebuilt", remedy=REJOIN
            )
        self._alarms.raise_alarm(
            "state-wrong",
            f"the state of {self._node_id} is wrong; it does not lead, and rebuilds the state",
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
                f"the state is wrong, and cannot be rebuilt yet; it is tried again every {REBUILD_AGAIN_SECONDS:.0f} s"
            )
            self._alarms.raise_alarm("state-wrong", f"{text}: {error}", severity="critical")
        else:
            text = f"the state is wrong, and can be rebuilt only from the leader's snapshot, not from our own: {error}"
            self._alarms.raise_alarm("state-wrong", text, severity="critical")
            self._rebuilds = REBUILDS_MAX
            self._catchup.wanted = True

    def _help_itself(self) -> None:
        """Rebuild the state once more: what was in the way may be gone; or nobody is left to fetch one from."""
        is_idle = self.incoming is None and not self._is_rebuilding and not self._catchup.is_served
        has_nobody = self._catchup.wanted and self._is_on_its_own
        if self.is_odd and is_idle and (has_nobody or self._rebuild_failed) and self._clock() >= self._not_before:
            self._rebuild()

    # Step by step --------------------------------------------------------------------------------------------------

    def _log_goes_on_from(self, machine: StateMachine) -> bool:
        """So that nothing of it is to be dropped."""
        return self._log.holds(machine.applied_index, machine.applied_term)

    def _is_ready(self, incoming: StateMachine, applied_index: int) -> bool:
        """Not before the log up to there is durable: the next start would find a log that ends below its state."""
        return applied_index <= incoming.applied_index <= self._log.synced_index

    def _drop(self, incoming: StateMachine) -> None:
        """We caught up by other means."""
        self.incoming = None
        self.is_renewing = False
        self.is_odd = self.is_odd and self._catchup.wanted  # else it is judged, and rebuilt, again
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
        """Bring a state that came from a snapshot closer to where the present one is; True if it is not there yet."""
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
        """Whether it was the one that begins the log where the incoming state ends."""
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
