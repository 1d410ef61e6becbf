"""Exactly-once: the answers to each session's commands, so that a command that comes twice is carried out once.

The rule is that of the Raft thesis (6.3) and of RIFL. No transaction is used here: machine.py stores the changes.
Invariant: an answered command that may still be sent again finds its answer; everything is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import cbor2

from warren_raft.fsm.answers import (
    STALE,
    TOO_MANY_OUTSTANDING,
    UNKNOWN_SESSION,
    Error,
)
from warren_raft.store.command import Command
from warren_raft.support import strict_cbor
from warren_raft.support.strict_cbor import MAX_RECORD_ITEMS

MAX_SESSIONS: Final = 1_000
"""A manager process opens one session at each start; the least recently used session is evicted first. There are far
fewer than a thousand restarts while a command is on its way. A starting manager reads a thousand records in
milliseconds."""

MAX_OUTSTANDING: Final = 16_384
"""How far a sequence may be above the lowest sequence that its sender waits for, and so how many answers a session
keeps. More than the default queue (10,000), and small enough (0.3 MB) for a record that each entry writes again."""

_NUMBER_BYTES: Final = 8

T = TypeVar("T")

Answer = tuple[int, Error | None]
"""(revision, error)"""

StoreRecord = Callable[[bytes, bytes | None, bytes | None], None]
"""Called with (key, old record, new record); None if there was no record before, or is no record after."""


class Session:
    """One sender: which of its commands were answered, and how.

    By sequence, in the order of the log: `answers` has the revisions of the commands that were carried out, `refusals`
    the answers to the other commands.
    """

    __slots__ = ("answers", "is_closed", "lowest", "record", "refusals", "used_index")

    def __init__(self, used_index: int, lowest: int, is_closed: bool = False) -> None:
        self.used_index = used_index
        self.lowest = lowest
        self.is_closed = is_closed
        self.answers: dict[int, int] = {}
        self.refusals: dict[int, Answer] = {}
        self.record: bytes | None = None  # as it is stored; None: not stored yet

    @classmethod
    def decode(cls, record: bytes) -> Session:
        """The session in a record of the database. Raises ValueError."""
        try:
            used_index, lowest, is_closed, packed, refusals = strict_cbor.decode(record, max_items=MAX_RECORD_ITEMS)
            if not (_is_number(used_index) and _is_number(lowest) and type(is_closed) is bool):
                raise ValueError("a field of another type")
            session = cls(used_index, lowest, is_closed)
            count = len(packed) // (2 * _NUMBER_BYTES)
            numbers = struct.unpack(f">{2 * count}Q", packed)
            session.answers = dict(zip(numbers[:count], numbers[count:], strict=True))
            session.refusals = dict(map(_refusal_in, refusals))
        except (TypeError, ValueError, struct.error) as error:
            raise ValueError(f"not a session: {error}") from None
        session.record = record
        return session

    def encode(self) -> bytes:
        """CBOR: [index of last use, lowest, closed, answers, [[sequence, revision, *error], ...]].

        The answers are packed, because there are hundreds in each entry: all sequences, then all their revisions,
        8 bytes each.
        """
        form = f">{len(self.answers)}Q"
        packed = struct.pack(form, *self.answers) + struct.pack(form, *self.answers.values())
        refusals = [[sequence, revision, *(error or ())] for sequence, (revision, error) in self.refusals.items()]
        return cbor2.dumps([self.used_index, self.lowest, self.is_closed, packed, refusals])

    def raise_lowest(self, lowest: int) -> None:
        """The sender no longer waits for answers below `lowest`. O(1) for each answer ever dropped."""
        before = self.lowest
        if lowest <= before:
            return
        self.lowest = lowest
        self.answers = _without(self.answers, before, lowest)
        if self.refusals:
            self.refusals = _without(self.refusals, before, lowest)


class Sessions:
    """Every session, as of the current transaction. Make a new object after a failed transaction."""

    def __init__(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ValueError for records that are not sessions."""
        self._sessions = {_number_in(key): Session.decode(record) for key, record in records}
        self._used: set[int] = set()
        self._evicted: dict[int, bytes | None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, command: Command, index: int) -> Error | None:
        """Open the command's session. If it is already open, only note that it is in use.

        A closed session stays closed: this command is a late copy of the one that once opened it.
        """
        session = self._sessions.get(command.session)
        if session is None:
            if len(self._sessions) >= MAX_SESSIONS:
                self._evict()
            session = self._sessions[command.session] = Session(index, command.lowest)
        self._use(command, session, index)
        return (UNKNOWN_SESSION,) if session.is_closed else None

    def close(self, command: Command, index: int) -> Error | None:
        """Close the session: none of its commands is carried out any more. Its record remains until it is evicted."""
        session = self._sessions.get(command.session)
        if session is None:
            return (UNKNOWN_SESSION,)
        self._use(command, session, index)
        session.is_closed = True
        session.answers.clear()
        session.refusals.clear()
        return None

    def recall(self, command: Command, index: int, revision: int) -> Answer | None:
        """The answer to this command if it had one, or why it must not be carried out. None: carry it out.

        `revision` is the latest one; a refusal carries it.
        """
        session = self._sessions.get(command.session)
        if session is None or session.is_closed:
            return revision, (UNKNOWN_SESSION,)
        self._use(command, session, index)
        sequence = command.sequence
        if sequence < session.lowest:
            return revision, (STALE,)
        done_at = session.answers.get(sequence)
        if done_at is not None:
            return done_at, None
        if sequence in session.refusals:
            return session.refusals[sequence]
        if sequence - session.lowest >= MAX_OUTSTANDING:
            return revision, (TOO_MANY_OUTSTANDING,)
        return None

    def remember(self, command: Command, revision: int, error: Error | None) -> None:
        """Note the answer of a command that `recall` let through."""
        session = self._sessions[command.session]
        if error is None:
            session.answers[command.sequence] = revision
        else:
            session.refusals[command.sequence] = revision, error

    def store_changes(self, store: StoreRecord) -> None:
        """Hand over each record that this entry changed. Call once an entry, at its end."""
        for number, record in self._evicted.items():
            if record is not None:
                store(_key(number), record, None)
        for number in self._used:
            session = self._sessions.get(number)
            if session is not None:
                before, session.record = session.record, session.encode()
                store(_key(number), before, session.record)
        self._evicted.clear()
        self._used.clear()

    def _use(self, command: Command, session: Session, index: int) -> None:
        session.used_index = index
        if command.lowest > session.lowest:
            session.raise_lowest(command.lowest)
        self._used.add(command.session)

    def _evict(self) -> None:
        """Forget the least recently used session; among equals, the one with the smallest number."""
        number = min(self._sessions, key=lambda number: (self._sessions[number].used_index, number))
        self._evicted.setdefault(number, self._sessions.pop(number).record)


def _without(answers: dict[int, T], first: int, stop: int) -> dict[int, T]:
    """The answers without those from `first` to before `stop`. O(1) for each answer ever dropped, at any distance."""
    if stop - first > len(answers):
        return {sequence: answer for sequence, answer in answers.items() if sequence >= stop}
    for sequence in range(first, stop):
        answers.pop(sequence, None)
    return answers


def _refusal_in(row: Any) -> tuple[int, Answer]:
    """(sequence, answer) of a row that `Session.encode` made. Raises ValueError."""
    if type(row) is not list or len(row) < 3 or not _is_number(row[0]) or not _is_number(row[1]):
        raise ValueError("a refusal of another type")
    error = tuple(row[2:])
    if type(error[0]) is not str or not all(type(part) in (str, int) for part in error):
        raise ValueError("a refusal of another type")
    return row[0], (row[1], error)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 8 * _NUMBER_BYTES


def _key(session: int) -> bytes:
    return session.to_bytes(_NUMBER_BYTES, "big")


def _number_in(key: bytes) -> int:
    if len(key) != _NUMBER_BYTES:
        raise ValueError(f"a session under a key of {len(key)} bytes")
    return int.from_bytes(key, "big")
