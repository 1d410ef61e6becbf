"""How often a store was read and written, how long that took, and how often it failed: plain numbers, for metrics/.

Lives here: the counters of one store. Not here: the reads (reading.py) and the writes (manager/session.py,
local/group_commit.py) that count. Invariant: counting takes no lock, and every read and write is counted once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, Literal, NamedTuple

from warren_raft.store.command import DELETE, DELETE_CASCADE, LEASE, PUT, REQUIRE, Operation
from warren_raft.store.tables import BY_NUMBER
from warren_raft.support.counting import QUICK_BOUNDS, Durations

ReadOp = Literal["get", "find", "list"]
READ_OPS: Final[tuple[ReadOp, ...]] = ("get", "find", "list")
"""By id; by a name, a service, a node or a host; all of a kind."""

TIMED_EVERY: Final = 64
"""One read in so many is timed: reading the clock twice would take a tenth of the time of a `get`."""
TIMED_MASK: Final = TIMED_EVERY - 1

ANY_KIND: Final = "any"
"""In the place of a kind: a write of several kinds, or of none."""

_VERBS: Final[dict[int, str]] = {
    PUT: "put",
    DELETE: "delete",
    DELETE_CASCADE: "delete_cascade",
    LEASE: "lease",
    REQUIRE: "require",
}


class Counted(NamedTuple):
    """One operation on one kind: how often it was done, the durations of those that were timed, and the errors by
    class."""

    op: str
    kind: str
    done: int
    durations: Durations
    errors: dict[str, int]


class ReadCounts:
    """The reads of one store. Any thread counts; any thread looks at `all`."""

    __slots__ = ("_rounds", "durations", "failures", "finds", "gets", "lists")

    def __init__(self) -> None:
        size = max(BY_NUMBER) + 1
        self.gets: Final = [-TIMED_EVERY] * size
        """By the number of the kind: below 0 by the reads until one is timed, because a test for 0 is the quickest."""
        self._rounds = [0] * size
        """How often the reads up to a timed one were taken from `gets`."""
        self.finds: Final = [0] * size
        """By the number of the kind: the reads, also those that failed."""
        self.lists: Final = [0] * size
        self.durations: Final[dict[ReadOp, list[Durations]]] = {
            op: [Durations(QUICK_BOUNDS) for _ in range(size)] for op in READ_OPS
        }
        self.failures: Final[defaultdict[tuple[str, int, str], int]] = defaultdict(int)
        """By operation, number of the kind and class of the error."""

    def begin_timed(self, number: int) -> None:
        """`gets` of a kind has reached 0. The read that is timed now will be counted again."""
        count = self.gets[number]
        rounds = count // TIMED_EVERY + 1  # more than 1 if other threads have read meanwhile
        self.gets[number] = count - rounds * TIMED_EVERY - 1
        self._rounds[number] += rounds

    def _all_gets(self) -> list[int]:
        both = zip(self.gets, self._rounds, strict=True)
        return [count + (rounds + 1) * TIMED_EVERY for count, rounds in both]

    def all(self) -> Iterator[Counted]:
        """Every operation that was called."""
        failures = self.failures.copy()
        for op, calls_of in zip(READ_OPS, (self._all_gets(), self.finds, self.lists), strict=True):
            for number, kind in BY_NUMBER.items():
                errors = {reason: count for (at, of, reason), count in failures.items() if (at, of) == (op, number)}
                calls = calls_of[number]
                if calls:
                    done = max(0, calls - sum(errors.values()))
                    yield Counted(op, kind.name, done, self.durations[op][number], errors)


class Series:
    """The writes of one operation and kind."""

    __slots__ = ("durations", "failures", "kind", "op")

    def __init__(self, op: str, kind: str) -> None:
        self.op: Final = op
        self.kind: Final = kind
        self.durations: Final = Durations()
        self.failures: Final[defaultdict[str, int]] = defaultdict(int)
        """By the class of the error."""

    def ended(self, seconds: float) -> None:
        """A write was done."""
        self.durations.note(seconds)

    def failed(self, reason: str) -> None:
        self.failures[reason] += 1


class WriteCounts:
    """The writes of one store, each a command."""

    def __init__(self) -> None:
        names = {number: kind.name for number, kind in BY_NUMBER.items()}
        self._of_one: Final = [
            [Series(_VERBS.get(verb, ""), names.get(number, "")) for number in range(max(BY_NUMBER) + 1)]
            for verb in range(max(_VERBS) + 1)
        ]
        """By the verb and the number of the kind."""
        self._of_several: Final = {name: Series("batch", name) for name in (*_kind_names(), ANY_KIND)}

    def of(self, operations: Sequence[Operation]) -> Series:
        """Where a write of these operations is counted."""
        if len(operations) == 1:
            operation = operations[0]
            return self._of_one[operation.verb][operation.kind_number]
        numbers = {operation.kind_number for operation in operations}
        return self._of_several[BY_NUMBER[numbers.pop()].name if len(numbers) == 1 else ANY_KIND]

    def all(self) -> Iterator[Counted]:
        """Every operation that was called."""
        for series in (*chain(*self._of_one), *self._of_several.values()):
            errors = dict(series.failures.copy())
            done = series.durations.cumulated()[-1]
            if done or errors:
                yield Counted(series.op, series.kind, done, series.durations, errors)


def _kind_names() -> list[str]:
    return [kind.name for kind in BY_NUMBER.values()]
