"""Checks: every call ends by its deadline, with an answer or an error, as long as its manager runs. After the last
fault, if a manager knows its leader, a call that waited while a snapshot replaced the manager's state gets an answer
before its deadline. Time is not counted in which so many voters are away, fetch a snapshot or have no room for one,
that the others are no quorum. Not: which answer (the other checkers).
"""

from __future__ import annotations

from tests.simulation.world import Failure, Process, World

LATE_SECONDS = 0.5
"""Deadlines are looked at now and then, and in a step."""
ANSWERED_SECONDS = 3.0
"""The time for an answer under one leader: a few round trips, and the slowest disk."""
WAYS = 3
"""The call, and the calls that it waits behind, may have begun before the calm: so many of the slowest messages more
are allowed. All bytes that are on their way on thin links when the calm begins arrive first."""


class CallsEnd:
    def __init__(self) -> None:
        self._waiting: dict[int, tuple[set[tuple[int, int]], float, object]] = {}
        """Process -> (calls that waited when its state was last replaced, the time since then, the leader then)."""
        self._look_again: dict[int, float] = {}

    def step_ended(self, process: Process) -> None:
        now = process.clock
        if now < self._look_again.get(process.number, 0.0):
            return
        self._look_again[process.number] = now + LATE_SECONDS
        for key, proposal in process.calls.items():
            if proposal.deadline < now - LATE_SECONDS:
                raise Failure(f"{process.id}: call {key} has not ended, {now - proposal.deadline:.1f} s too late")
        if process.number in self._waiting:
            self._look_at_waiting(process, set(process.calls))

    def swapped(self, process: Process) -> None:
        self._waiting[process.number] = set(process.calls), process.world.now, None

    def _look_at_waiting(self, process: Process, calls: set[tuple[int, int]]) -> None:
        waiting, since, leader = self._waiting[process.number]
        waiting = waiting & calls
        found = (process.engine.leader, process.engine.term, process.world.is_calm)
        is_fetching = process.engine.fetching is not None  # a snapshot may have any number of chunks
        if found != leader or is_fetching or not _have_quorum(process.world):
            since = max(process.world.now, process.world.network.latest_arrival)
        self._waiting[process.number] = waiting, since, found
        if not waiting:
            del self._waiting[process.number]
        patience = ANSWERED_SECONDS + WAYS * process.world.network.slowest_seconds
        if waiting and found[0] is not None and found[2] and process.world.now - since > patience:
            raise Failure(f"{process.id}: calls {sorted(waiting)} are not answered since its state was replaced")


def _have_quorum(world: World) -> bool:
    """Whether the voters that can take entries are a majority."""
    newest = world.audience.lists.newest
    voters = frozenset[str]() if newest is None else newest.voters
    able = [id_ for id_ in voters if id_ in world.processes and _takes_entries(world.processes[id_])]
    return newest is None or len(able) * 2 > len(voters)


def _takes_entries(process: Process) -> bool:
    engine = process.engine
    lacks_room = any(alarm.name == "snapshot-not-installed" for alarm in engine.alarms.active)
    is_let_in = engine.membership is not None  # not so after its directory was wiped
    return is_let_in and engine.fetching is None and not lacks_room
