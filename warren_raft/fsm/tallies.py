"""How many entities of a kind have which values in some fields: nodes by role and status, containers by state.

The fields are in store/tables.py. A tally is derived from the records: it is not stored, and not in the digest.
Not here: publishing a tally after the commit (machine.py). Invariant: a tally is what a full count of the state gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from warren_raft.store import codec
from warren_raft.store.leading import text_of, texts_of_both
from warren_raft.store.tables import KINDS, Kind
from warren_raft.store.transactions import ReadTransaction

Labels = tuple[str, ...]
"""A value for each tallied field of the kind."""
Tally = Mapping[tuple[int, Labels], int]
"""Number of the kind and values -> how many. Nobody changes it. Counts are above 0."""

UNSET: Final = "none"
"""In the place of an empty value."""
OTHER: Final = "other"
"""In the place of a value that is not usual: a program may store any text, and each would be a time series."""


class _Reader:
    """Takes the labels of one kind from records. Never raises, with any bytes."""

    __slots__ = ("_fields", "_labels", "position")

    def __init__(self, kind: Kind[Any]) -> None:
        self._fields: Final = [
            (codec.field_position(kind, name), {b"": UNSET, **{value.encode(): str(value) for value in values}})
            for name, values in kind.tallied
        ]
        self.position: Final = self._fields[0][0] if len(self._fields) == 1 else -1
        """Of the only field; -1: there are several."""
        self._labels: Final = {text: (label,) for text, label in self._fields[0][1].items()}

    def labels(self, record: bytes) -> Labels:
        return tuple([usual.get(text_of(record, position), OTHER) for position, usual in self._fields])

    def labels_of(self, text: bytes) -> Labels:
        """For the text of the only field."""
        return self._labels.get(text, _OTHER)


_OTHER: Final = (OTHER,)
_READERS: Final = {kind.number: _Reader(kind) for kind in KINDS if kind.tallied}


class TallyChanges:
    """The changes of a tally by one transaction."""

    __slots__ = ("_changes",)

    def __init__(self) -> None:
        self._changes: defaultdict[tuple[int, Labels], int] = defaultdict(int)

    def note(self, kind_number: int, record: bytes | None, entity: bytes | None, before: bytes | None) -> None:
        """An entity was put, with its new record, or removed (None). `before`: its record until then. Kinds without a
        tally may come too."""
        reader = _READERS.get(kind_number)
        if reader is None:
            return
        if entity is not None and before is not None and reader.position >= 0:
            both = texts_of_both(entity, before, reader.position)  # nearly all updates
            if both is not None:
                if both[0] != both[1]:
                    self._changes[kind_number, reader.labels_of(both[0])] += 1
                    self._changes[kind_number, reader.labels_of(both[1])] -= 1
                return
        if record is not None:
            self._changes[kind_number, reader.labels(record)] += 1
        if before is not None:
            self._changes[kind_number, reader.labels(before)] -= 1

    def applied_to(self, tally: Tally) -> Tally:
        """The tally after the transaction."""
        if not self._changes:
            return tally
        found = dict(tally)
        for key, change in self._changes.items():
            count = found.pop(key, 0) + change
            if count:
                found[key] = count
        return found


def tally_of(transaction: ReadTransaction) -> Tally:
    """The tally of a state: reads every node and container."""
    counts: defaultdict[tuple[int, Labels], int] = defaultdict(int)
    for kind in KINDS:
        if kind.tallied:
            labels = _READERS[kind.number].labels
            for _, record in transaction.items(kind):
                counts[kind.number, labels(record)] += 1
    return dict(counts)
