"""A state machine that is a list, and its snapshots, which are bytes. For tests of consensus.

The list and the snapshots count as durable: they survive the engine. Not here: LMDB, files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import cbor2

from warren_raft.errors import Corrupted, InvariantViolation, SnapshotInvalid
from warren_raft.raft.log.log import Log

UNREADABLE = -1
"""The sequence of a command that stops every manager that applies it, like a command of an unknown version."""


@dataclass(frozen=True)
class Outcome:
    session: int
    sequence: int
    value: Any


class ListMachine:
    """Each command is CBOR [session, sequence, text]."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.indexes: list[int] = []
        self.applied_index = 1
        self.applied_term = 0
        self.membership: bytes | None = None
        self.level = 1
        self.answered: set[tuple[int, int]] = set()
        self.digests: dict[int, bytes] = {}
        self.limit: Callable[[], int] = lambda: 1 << 60

    def _advance(self, index: int, term: int) -> None:
        assert index == self.applied_index + 1
        assert index <= self.limit(), "applied beyond the synced log"
        self.applied_index, self.applied_term = index, term
        self.indexes.append(index)

    def apply(self, index: int, term: int, commands: Sequence[bytes]) -> list[Outcome]:
        self._advance(index, term)
        outcomes = [self._apply_one(command) for command in commands]
        self._note_digest()
        return outcomes

    def apply_all(self, index: int, entries: Sequence[tuple[int, Sequence[bytes]]]) -> list[list[Outcome]]:
        before = {name: copy(value) for name, value in vars(self).items()}
        try:
            return [self.apply(index + n, *entry) for n, entry in enumerate(entries)]
        except BaseException:
            vars(self).update(before)
            raise

    def _apply_one(self, command: bytes) -> Outcome:
        session, sequence, text = cbor2.loads(command)
        if sequence == UNREADABLE:
            raise InvariantViolation("a command of another version")
        if (session, sequence) not in self.answered:
            self.answered.add((session, sequence))
            self.applied.append(text)
        return Outcome(session, sequence, len(self.applied))

    def settle(self) -> None:
        return None

    def problem_of(self, command: bytes, sender: str) -> str:
        """Why a command may not be written. If the sender is known, its session has its id. Session 7 belongs to all
        managers."""
        try:
            session, sequence, text = cbor2.loads(command)
        except (cbor2.CBORError, TypeError, ValueError):
            return "not a command"
        if type(sequence) is not int or type(text) is not str or sequence == UNREADABLE:
            return "a command of another version"
        return "" if session == 7 or not sender or session == sender else f"{sender} writes under another's session"

    def apply_membership(self, index: int, term: int, cluster_id: str, membership: bytes, level: int = 1) -> None:
        self._advance(index, term)
        self.membership = membership
        self.level = max(self.level, level)
        self._note_digest()

    def _note_digest(self) -> None:
        whole = repr((self.applied, self.membership, sorted(self.answered, key=repr))).encode()
        self.digests[self.applied_index] = hashlib.blake2b(whole, digest_size=32).digest()

    def digest_at(self, index: int) -> bytes | None:
        return self.digests.get(index)

    def dump(self) -> bytes:
        answered = sorted(self.answered, key=repr)
        position = [self.applied_index, self.applied_term]
        return bytes(cbor2.dumps([*position, self.applied, answered, self.membership, self.level]))

    def load(self, data: bytes) -> None:
        self.applied_index, self.applied_term, self.applied, answered, self.membership, self.level = cbor2.loads(data)
        self.answered = {(session, sequence) for session, sequence in answered}
        self._note_digest()


@dataclass(frozen=True)
class Held:
    """A snapshot."""

    data: bytes
    index: int
    term: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def file_bytes(self) -> int:
        return len(self.data)


class ListSnapshots:
    """A manager's state, its snapshots, and the snapshot that it fetches. `machine` is the state in use."""

    def __init__(self, make_machine: Callable[[], ListMachine]) -> None:
        self.make_machine = make_machine
        self.machine = make_machine()
        self.held: list[Held] = []
        self.incoming: tuple[str, int] = ("", 0)
        self.received = b""
        self.adopted: Held | None = None
        """The snapshot that has arrived whole. A start finds it, also if the state was not replaced yet."""
        self.installed: list[int] = []
        """The index of each state that replaced another."""
        self.published: ListMachine = self.machine
        self.verified_again = 0
        """How often a snapshot was verified because a follower had fetched it in vain."""
        self.is_trusted = True
        """False after a power cut: the state is not read, and the next start rebuilds it."""

    @classmethod
    def restored(cls, make_machine: Callable[[], ListMachine], applied: Sequence[str], index: int) -> ListSnapshots:
        """The state of a new cluster and a snapshot of it, as `snapshot restore` leaves them."""
        snapshots = cls(make_machine)
        machine = snapshots.machine
        machine.load(cbor2.dumps([index, 0, list(applied), [], None, machine.level]))
        snapshots.held = [Held(machine.dump(), index, 0)]
        return snapshots

    def open(self, log: Log) -> None:
        """At a manager's start: open the published state, or rebuild it if the log does not go on from it."""
        self.machine = self.published
        if self.adopted is not None and self.adopted not in self.held:
            self.took(self.adopted, set())
        if not self.is_trusted or self.machine.applied_index < log.base_index:
            self.is_trusted = True
            self.machine = self.published = self.rebuild(log.holds)()
        self._limit(self.machine, log)
        self._log = log

    def _limit(self, machine: ListMachine, log: Log) -> None:
        machine.limit = lambda: log.synced_index

    def state_bytes(self) -> int:
        return self.held[0].file_bytes if self.held else 0

    def take(self, *, quorum: bool) -> Callable[[], Held]:
        machine = self.machine
        return lambda: Held(machine.dump(), machine.applied_index, machine.applied_term)

    def took(self, snapshot: Held, pinned: set[str]) -> None:
        held = sorted([snapshot, *self.held], key=lambda each: -each.index)
        self.held = held[:2] + [each for each in held[2:] if each.sha256 in pinned]

    def _find(self, sha: str) -> Held:
        return next(each for each in self.held if each.sha256 == sha)

    def read(self, sha256: str, offset: int, size: int, *, again: bool = False) -> Callable[[], bytes]:
        self.verified_again += again
        return lambda: self._find(sha256).data[offset : offset + size]

    def receive(self, sha256: str, offset: int, data: bytes, size: int) -> Callable[[], None]:
        def job() -> None:
            self.received = self.received[:offset] + data
            self.incoming = (sha256, len(self.received))

        return job

    def open_incoming(self, sha256: str, cluster_id: str | None) -> Callable[[], tuple[Held, ListMachine]]:
        def job() -> tuple[Held, ListMachine]:
            if hashlib.sha256(self.received).hexdigest() != sha256:
                raise SnapshotInvalid("incoming", "has another hash")
            machine = self.make_machine()
            machine.load(self.received)
            held = Held(self.received, machine.applied_index, machine.applied_term)
            self._limit(machine, self._log)
            self.adopted = held
            return held, machine

        return job

    def rebuild(self, log_holds: Callable[[int, int], bool]) -> Callable[[], ListMachine]:
        def job() -> ListMachine:
            machine = self.make_machine()
            usable = [each for each in self.held if log_holds(each.index, each.term)]
            if usable:
                machine.load(usable[0].data)
            elif not log_holds(1, 0):
                raise Corrupted("state", "no snapshot")
            return machine

        return job

    def publish(self, machine: ListMachine) -> Callable[[], None]:
        def job() -> None:
            self.published = machine

        return job

    def swap(self, machine: ListMachine, why: str) -> None:
        self.machine = machine
        self.installed.append(machine.applied_index)

    def discard(self, machine: ListMachine) -> None:
        return None

    def drop(self, snapshot: Held) -> None:
        self.held = [each for each in self.held if each != snapshot]

    def drop_held(self, but: Held) -> None:
        self.held = []

    def drop_incoming(self) -> None:
        self.incoming, self.received = ("", 0), b""
