"""Exactly-once: the answers to each session's commands, so that a command that comes twice is carried out once.

The rule is that of the Raft thesis (6.3) and of RIFL. The transaction is begun and committed by machine.py.
Invariant: an answered command that may still be sent again finds its answer; everything is bounded.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from typing import Final, TypeVar

import cbor2

from warren_raft.fsm import digest
from warren_raft.fsm.answers import (
    STALE,
    TOO_MANY_OUTSTANDING,
    UNKNOWN_SESSION,
    Error,
)
from warren_raft.store.command import Command
from warren_raft.store.encoding import byte_string, unsigned
from warren_raft.store.transactions import SESSIONS, WriteTransaction
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

_ARRAY_OF_5: Final = b"\x85"
_EMPTY_ARRAY: Final = b"\x80"
_FALSE: Final = b"\xf4"
_TRUE: Final = b"\xf5"
_FRAME: Final = digest.framed(SESSIONS)


class Session:
    """One sender: which of its commands were answered, and how.

    By sequence, in the order of the log: `answers` has the revisions of the commands that were carried out, `refusals`
    the answers to the other commands. Answers below `lowest` are dropped by `encode`, once an entry. Until then nobody
    looks for them, because a command below `lowest` is stale.
    """

    __slots__ = ("_dropped_below", "answers", "is_closed", "lowest", "record", "refusals", "summand", "used_index")

    def __init__(self, used_index: int, lowest: int, is_closed: bool = False) -> None:
        self.used_index = used_index
        self.lowest = lowest
        self.is_closed = is_closed
        self.answers: dict[int, int] = {}
        self.refusals: dict[int, Answer] = {}
        self.record: bytes | None = None  # as it is stored; None: not stored yet
        self.summand = 0
        """The part of the digest's sum that comes from the stored record; 0 if it is not stored yet."""
        self._dropped_below = lowest

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
        before, lowest = self._dropped_below, self.lowest
        if lowest > before:
            self._dropped_below = lowest
            self.answers = _without(self.answers, before, lowest)
            if self.refusals:
                self.refusals = _without(self.refusals, before, lowest)
        packed = array("Q", [*self.answers, *self.answers.values()])
        if sys.byteorder == "little":
            packed.byteswap()
        return b"".join(
            (
                _ARRAY_OF_5,
                unsigned(self.used_index),
                unsigned(lowest),
                _TRUE if self.is_closed else _FALSE,
                byte_string(packed.tobytes()),
                self._encoded_refusals() if self.refusals else _EMPTY_ARRAY,
            )
        )

    def _encoded_refusals(self) -> bytes:
        refusals = self.refusals.items()
        return cbor2.dumps([[sequence, revision, *(error or ())] for sequence, (revision, error) in refusals])


class Sessions:
    """Every session, as of the current transaction. Make a new object after a failed transaction."""

    def __init__(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ValueError for records that are not sessions."""
        self._sessions: dict[int, Session] = {}
        for key, record in records:
            session = self._sessions[_number_in(key)] = Session.decode(record)
            session.summand = digest.hash_of(digest.keyed(_FRAME, key), record)
        self._used: set[int] = set()
        self._evicted: dict[int, Session] = {}

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
        number, sequence, lowest, _, _, _, _, _ = command
        session = self._sessions.get(number)
        if session is None or session.is_closed:
            return revision, (UNKNOWN_SESSION,)
        self._used.add(number)  # the same as `_use`: every command passes here
        session.used_index = index
        if lowest > session.lowest:
            session.lowest = lowest
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

    def remember(self, number: int, sequence: int, answer: Answer) -> None:
        """Note the answer of a command that `recall` let through."""
        revision, error = answer
        if error is None:
            self._sessions[number].answers[sequence] = revision
        else:
            self._sessions[number].refusals[sequence] = answer

    def store_changes(self, transaction: WriteTransaction) -> int:
        """Store each record that this entry changed. Call once an entry, at its end. Returns the change of the digest's
        sum."""
        change = 0
        for number, session in self._evicted.items():
            if session.record is not None:
                transaction.erase(SESSIONS, _key(number))
                change -= session.summand
        for number in self._used:
            used = self._sessions.get(number)
            if used is not None:
                key = _key(number)
                record = used.encode()
                transaction.store(SESSIONS, key, record)
                summand = digest.hash_of(digest.keyed(_FRAME, key), record)
                change += summand - used.summand
                used.record, used.summand = record, summand
        self._evicted.clear()
        self._used.clear()
        return change

    def _use(self, command: Command, session: Session, index: int) -> None:
        session.used_index = index
        session.lowest = max(session.lowest, command.lowest)
        self._used.add(command.session)

    def _evict(self) -> None:
        """Forget the least recently used session; among equals, the one with the smallest number."""
        number = min(self._sessions, key=lambda number: (self._sessions[number].used_index, number))
        self._evicted.setdefault(number, self._sessions.pop(number))


def _without(answers: dict[int, T], first: int, stop: int) -> dict[int, T]:
    """The answers without those from `first` to before `stop`. O(1) for each answer ever dropped, at any distance."""
    if stop - first > len(answers):
        return {sequence: answer for sequence, answer in answers.items() if sequence >= stop}
    for sequence in range(first, stop):
        answers.pop(sequence, None)
    return answers


def _refusal_in(row: object) -> tuple[int, Answer]:
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
