"""The way of a write, from the call of a program to its result or error, with the chances to go wrong on it.

Not here: the check of its arguments (the product's), its effect (fsm/), its place in the log (log.py).
Invariant: a write that returned is committed, and applied on its manager. `maybe_applied=False` is said only of a
command that never comes into the log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from warren_raft.errors import Unavailable, WarrenError
from warren_raft.fsm.answers import raise_for
from warren_raft.store.command import NO_FENCE, NO_SESSION, Operation, encode_body, with_request_id
from warren_raft.store.fence import Fence
from warren_raft.testing.simulated.log import Flight
from warren_raft.testing.simulated.schedule import described_write

if TYPE_CHECKING:
    from warren_raft.testing.simulated.cluster import Manager, SimulatedCluster

NOT_SENT: Final = 0.03
LOST_ANSWER: Final = 0.12
"""The chances of a write that its caller gets Unavailable, with `maybe_applied` False or True."""

LATER_SECONDS: Final = 15.0
"""How long after its deadline a write may yet be committed."""

LATE: Final = "simulated: the write was not done at the deadline"


class Writes:
    """The writes of all programs."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._count = 0

    def flight(
        self, manager: Manager, operations: Sequence[Operation], request_key: str, fence: Fence | None
    ) -> Flight:
        """The command of a write, which a program begins now."""
        cluster = self._cluster
        self._count += not cluster.is_setting_up
        term = NO_FENCE if fence is None else fence.term
        command = with_request_id(NO_SESSION, 0, 0, encode_body(operations, term, request_key))
        flight = Flight(manager.id, f"write {self._count}", command, fence)
        if not cluster.is_setting_up:
            leader = f" as leader of term {term}" if term else ""
            cluster.note(manager, f"{flight.name}{leader}: {described_write(operations)}")
        return flight

    def carry_out(self, manager: Manager, flight: Flight, deadline: float, behind: Flight | None = None) -> int:
        """Returns the revision, or raises the store's error. It is sent after `behind`."""
        cluster = self._cluster
        if cluster.is_setting_up:
            cluster.log.commit(flight)
            return raise_for(cluster.log.result_at(flight.index))
        try:
            revision = self._written(manager, flight, deadline, behind)
        except WarrenError as error:
            name = type(error).__name__
            if isinstance(error, Unavailable):
                name += f"(maybe_applied={error.maybe_applied})"
            cluster.met[name] += 1
            cluster.note(manager, f"{flight.name} raises {name}")
            raise
        finally:
            flight.has_ended = True
        cluster.met["writes"] += 1
        cluster.note(manager, f"{flight.name} returns {revision}")
        return revision

    def _written(self, manager: Manager, flight: Flight, deadline: float, behind: Flight | None) -> int:
        cluster = self._cluster
        cluster.pause_at_write()  # the caller has made the command, and it is not sent yet
        is_next = behind is None or cluster.waited(lambda: behind.was_proposed or behind.has_ended, deadline)
        if not is_next or flight.is_given_up:
            raise Unavailable(LATE, maybe_applied=False)
        if manager.leads_in is not None and not manager.is_connected:
            cluster.log.propose(flight, manager.leads_in)  # in a log that no majority has
        if not cluster.waited(lambda: flight.index or cluster.reaches_leader(manager), deadline):
            raise Unavailable(LATE, maybe_applied=flight.was_proposed)
        if flight.fence is not None and flight.fence.is_over and not flight.was_proposed:
            raise flight.fence.refusal()
        if not flight.index:
            self._send(flight, deadline)
        cluster.pause_at_write()  # it is committed, and the caller has not heard of it yet
        if not cluster.waited(lambda: manager.is_connected, deadline):
            raise Unavailable(LATE, maybe_applied=True)
        cluster.apply(manager, flight.index)
        return raise_for(cluster.log.result_at(flight.index))

    def _send(self, flight: Flight, deadline: float) -> None:
        """The leader commits it, at once or later, or the caller does not hear of it until its deadline."""
        cluster = self._cluster
        drawn = 1.0 if cluster.is_calm else cluster.random.random()
        if deadline == math.inf:
            if drawn < LOST_ANSWER:
                self._delay(flight)
        elif drawn < NOT_SENT and not flight.was_proposed:
            cluster.waited(lambda: False, deadline)
            raise Unavailable(LATE, maybe_applied=False)
        elif drawn < LOST_ANSWER:
            self._lose_answer(flight, deadline)
        if not flight.index:
            cluster.log.commit(flight)

    def _delay(self, flight: Flight) -> None:
        """The caller waits for as long as it takes."""
        cluster, log = self._cluster, self._cluster.log
        log.propose(flight, log.term, in_log=True)
        cluster.after((0.0, LATER_SECONDS), lambda: cluster.settle(flight))
        cluster.waited(lambda: flight.index or (cluster.serves and not log.is_pending(flight)), math.inf)

    def _lose_answer(self, flight: Flight, deadline: float) -> None:
        """Committed at once, later, or never."""
        cluster, log = self._cluster, self._cluster.log
        fate = cluster.random.choice(("now", "later", "later", "never"))
        if fate == "now":
            log.commit(flight)
        else:
            log.propose(flight, log.term, in_log=fate == "later")
        if fate == "later":
            cluster.after((0.0, deadline - cluster.turns.now + LATER_SECONDS), lambda: cluster.settle(flight))
        cluster.waited(lambda: False, deadline)
        raise Unavailable(LATE, maybe_applied=True)
