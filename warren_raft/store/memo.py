"""The latest list of each kind, and the keys that this process has changed lately, so that a list is corrected in place
of being read again.

Not here: reading and decoding records, and the decision which of the two is done (lookup.py).
Invariant: a list is used for a commit only if every key that differs between the two is looked up again.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

CHANGED_KEYS_MAX: Final = 1024
"""Changed keys that are remembered for each kind, at most. (512 at least: the older half is forgotten at once.)"""


class Listed(NamedTuple):
    """Every entity of a kind, in the order of the keys, as of the LMDB transaction `moment`. Nobody changes the
    lists."""

    moment: int
    keys: list[bytes]
    entities: list[Any]


class ChangedKeys:
    """The keys of one kind that were written or deleted lately, each with the number of the LMDB transaction.

    The one writer notes a key before it commits, so a reader that sees a commit finds the commit's keys here. Keys of a
    transaction that was not committed do no harm: a reader looks them up, and finds the same records. Readers in any
    thread take no lock: `_floor` is raised before notes are forgotten, and is read after the notes were copied.
    """

    __slots__ = ("_floor", "_newest", "_notes")

    def __init__(self) -> None:
        self._newest = 0
        self._floor = 0
        """Keys that were changed in this transaction or before may have been forgotten."""
        self._notes: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        """The older and the newer notes."""

    def note(self, key: bytes, transaction: int) -> None:
        """For the writer, before the change: `transaction` changes the record of this key."""
        self._newest = transaction
        newer = self._notes[1]
        newer[key] = transaction
        if len(newer) >= CHANGED_KEYS_MAX // 2:
            self._floor = max(self._notes[0].values(), default=self._floor)  # before the notes are gone
            self._notes = (newer, {})

    def since(self, moment: int) -> list[bytes] | None:
        """The keys that were changed after this transaction. None: some of them have been forgotten."""
        if self._newest <= moment:
            return []
        older, newer = self._notes
        notes = older | newer  # a copy, in one step of the interpreter
        if self._floor > moment:
            return None
        return [key for key, transaction in notes.items() if transaction > moment]
