"""The schedule of a run: one line for each event, for a person in search of the mistake.

Not here: the events. Invariant: a line says the turn, the simulated time and the manager, and holds no content of an
entity, which may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from warren_raft.store import lookup
from warren_raft.store.command import DELETE, DELETE_CASCADE, LEASE, PUT, REQUIRE, Operation
from warren_raft.store.tables import BY_NUMBER

SHOWN: Final = 8
"""The most operations of a command that are written out."""

_VERBS: Final[dict[int, str]] = {
    PUT: "put",
    DELETE: "delete",
    REQUIRE: "require",
    DELETE_CASCADE: "delete, with its containers,",
    LEASE: "heartbeats of",
}
_READS: Final[dict[Callable[..., Any], str]] = {
    lookup.everything: "all {0.plural}",
    lookup.by_id: "{0.name} {1}",
    lookup.first_by_index: "the {0.name} named {2}",
    lookup.by_index: "the {0.plural} of {2}",
    lookup.by_host: "the {0.plural} for {2}",
}


class Schedule:
    """The lines, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.turn = 0
        self.now = 0.0

    def note(self, manager_id: str, event: str) -> None:
        """Add a line about this manager."""
        self.lines.append(f"{self.turn:5} {self.now:9.3f} s  {manager_id}  {event}")


def described_write(operations: Sequence[Operation]) -> str:
    """The operations of a command."""
    texts = [_described(each) for each in operations[:SHOWN]]
    more = len(operations) - len(texts)
    return (", ".join(texts) or "an empty command") + (f" and {more} more" if more else "")


def _described(operation: Operation) -> str:
    kind = BY_NUMBER[operation.kind_number].name
    text = f"{_VERBS.get(operation.verb, '?')} {kind} {operation.id}"
    return text if operation.if_revision is None else f"{text} at revision {operation.if_revision}"


def described_read(read: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """A read of a store."""
    return _READS.get(read, "the state").format(*args)
