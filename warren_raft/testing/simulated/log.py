"""The log of a simulated cluster: committed entries, and commands on their way into it.

The product's state machine (fsm/) carries out the commands. Not here: the sending of commands (writes.py), and the
choice of leaders (cluster.py). Invariant: entries are committed in the order of the log. Nothing of a term is committed
after the leader of a later term has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from warren_raft.fsm.machine import Result, StateMachine
from warren_raft.store.fence import Fence


class Flight:
    """A command on its way. `name`: as in the schedule."""

    def __init__(self, manager: str, name: str, command: bytes, fence: Fence | None = None) -> None:
        self.manager: Final = manager
        self.name: Final = name
        self.command: Final = command
        self.fence: Final = fence
        self.term = 0
        """The term of the entry in which it was proposed; 0: it was not proposed, or that entry was truncated."""
        self.was_proposed = False
        self.has_ended = False
        """Its caller has got a result or an error."""
        self.is_given_up = False
        """Its caller, a coroutine, was cancelled."""
        self.is_in_log = False
        """Whether the leader of that term has it in its log: then it is committed before any entry behind it."""
        self.index = 0
        """Of its entry, once that is committed."""


class SimulatedLog:
    """`machine`: the state as of the last committed entry. `committed(flight, result)` is called after each entry with
    a command."""

    def __init__(self, machine: StateMachine, random: Random, committed: Callable[[Flight, Result], None]) -> None:
        self.machine: Final = machine
        self._random = random
        self._committed = committed
        self._first = machine.applied_index + 1
        self._entries: list[tuple[int, tuple[bytes, ...]]] = []
        """The term and the commands of each."""
        self._results: dict[int, Result] = {}
        self._flights: list[Flight] = []
        """Proposed, and not committed."""
        self.term = 0

    @property
    def last_index(self) -> int:
        return self.machine.applied_index

    def between(self, after: int, up_to: int) -> Sequence[tuple[int, tuple[bytes, ...]]]:
        """The entries behind the index `after`, up to `up_to`."""
        return self._entries[after + 1 - self._first : up_to + 1 - self._first]

    def result_at(self, index: int) -> Result:
        """The result of the command in an entry."""
        return self._results[index]

    def begin_term(self) -> None:
        """The leader of the next term begins. It has some of the entries that were not committed."""
        flights, self._flights = self._flights, []
        proposed = [
            each for each in flights if each.term == self.term and (each.is_in_log or self._random.random() < 0.5)
        ]
        survive = self._random.randint(0, len(proposed))  # the next leader has no entry without those before it
        for flight in proposed[:survive]:
            self._commit(flight)
        for flight in flights:
            if not flight.index:
                flight.term = 0
        self.term += 1
        self._append(self.term, ())

    def propose(self, flight: Flight, term: int, *, in_log: bool = False) -> None:
        """A leader of this term gets the command, or might. `in_log`: it has the command in its log."""
        flight.term, flight.was_proposed, flight.is_in_log = term, True, in_log
        if flight not in self._flights:
            self._flights.append(flight)

    def is_pending(self, flight: Flight) -> bool:
        """Whether it may be committed yet without being sent again."""
        return flight in self._flights and flight.term == self.term

    def commit(self, flight: Flight) -> None:
        """The leader commits the command, behind all that it has in its log."""
        self.propose(flight, self.term, in_log=True)
        flights, self._flights = self._flights, []
        for each in flights:
            if each.is_in_log and each.term == self.term:
                self._commit(each)
            else:
                each.term = 0  # it never came into this log

    def _commit(self, flight: Flight) -> None:
        (result,) = self._append(flight.term, (flight.command,))
        flight.index = self.last_index
        self._results[flight.index] = result
        self._committed(flight, result)

    def _append(self, term: int, commands: tuple[bytes, ...]) -> list[Result]:
        self._entries.append((term, commands))
        return self.machine.apply(self.last_index + 1, term, commands)
