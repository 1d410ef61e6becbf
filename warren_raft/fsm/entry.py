"""Carrying out the commands of log entries in a write transaction: conditions, changes, revisions, digest.

Committing the transaction, and publishing the new state, is done in machine.py.
Invariant: a command is carried out once, and wholly or not at all. A wrong command gets an answer, and raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from warren_raft.errors import Corrupted, InvariantViolation
from warren_raft.fsm import digest
from warren_raft.fsm.answers import (
    BAD_ENTITY,
    BAD_KIND,
    BAD_SESSION,
    CONFLICT,
    LEADERSHIP_LOST,
    MALFORMED,
    Error,
    Result,
)
from warren_raft.fsm.history import History, with_before
from warren_raft.fsm.leases import Leases
from warren_raft.fsm.requests import Requests
from warren_raft.fsm.sessions import Answer, Sessions
from warren_raft.fsm.tallies import TallyChanges
from warren_raft.store import codec, levels
from warren_raft.store.command import (
    CLOSE_SESSION,
    DELETE,
    DELETE_CASCADE,
    LEASE,
    NO_FENCE,
    NO_SESSION,
    OPEN_SESSION,
    PUT,
    REQUIRE,
    Command,
    MalformedCommand,
    Operation,
    decode,
    encode_operations,
    encoded_operations,
)
from warren_raft.store.leading import is_byte_string, is_entity_of
from warren_raft.store.position import Position
from warren_raft.store.tables import CA_ID, CONTAINER, CONTAINER_BY_SERVICE, KINDS, NODE, SERVICE, Kind
from warren_raft.store.transactions import (
    CLUSTER_ID,
    LEVEL,
    MEMBERSHIP,
    META,
    META_KEYS,
    KeysBefore,
    ReadTransaction,
    WriteTransaction,
)


class _Target(NamedTuple):
    """A kind, the first bytes of its records' hashes in the digest, and whether bytes are an entity of an id.

    `is_entity` judges only by rules that every release has in common. The bytes after the id were checked where the
    command was made. They are not checked here: a newer release may accept bytes that this one refuses, and a newer
    cbor2 may read bytes that this one cannot. All must come to the same result.
    """

    kind: Kind[Any]
    frame: bytes
    is_entity: Callable[[str, bytes], bool]


def _is_ca(id: str, entity: bytes) -> bool:  # noqa: A002
    return id == CA_ID and is_byte_string(entity)


_TARGETS: Final = {
    kind.number: _Target(kind, digest.framed(kind.bucket), _is_ca if kind.entity is None else is_entity_of)
    for kind in KINDS
}
_OF_SESSIONS: Final = frozenset((OPEN_SESSION, CLOSE_SESSION))
_new: Final = tuple.__new__
"""Makes a NamedTuple in a quarter of the time that its class takes."""
_META_FRAME: Final = digest.framed(META)


class Committed(NamedTuple):
    """The position, digest and members in the database, all as of the same commit."""

    applied_index: int
    applied_term: int
    revision: int
    digest: bytes
    membership: bytes | None
    cluster_id: str | None
    level: int
    """Of the command set (store/levels.py)."""

    @property
    def position(self) -> Position:
        """The part that is one record."""
        return Position(*self[:4])


class Made(NamedTuple):
    """A revision, and what made it. (Nothing is decided by it: a restored state does not have it.)"""

    revision: int
    entry_index: int
    session: int
    """Of the command."""


def read_committed(transaction: ReadTransaction) -> Committed:
    """The state that the last entry left in the database. Raises Corrupted for a cluster id that is not a text."""
    cluster_id = transaction.fetch(META, CLUSTER_ID)
    return Committed(
        *transaction.position,
        membership=transaction.fetch(META, MEMBERSHIP),
        cluster_id=None if cluster_id is None else _text_in(cluster_id, transaction),
        level=levels.number_of(transaction.fetch(META, LEVEL)),
    )


def _text_in(value: bytes, transaction: ReadTransaction) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Corrupted(transaction.database.path, f"has a cluster id that is not a text: {error}") from None


def position_problem(transaction: ReadTransaction) -> str | None:
    """The fault of `meta`; None if it has no fault. The digest proves the records, so they are not checked here."""
    unknown = transaction.meta_keys() - set(META_KEYS)
    if unknown:
        return f"has an unknown key {min(unknown)!r} in its meta data"
    return None if transaction.has_sound_position else "its index, term, revision and digest do not fit their check"


class Entries:
    """Entries that are being applied, in one transaction that the caller commits after `finish`, or aborts."""

    __slots__ = (
        "_before",
        "_decoded",
        "_digest_total",
        "_history",
        "_index",
        "_leases",
        "_level",
        "_members",
        "_requests",
        "_revision",
        "_sessions",
        "_term",
        "_transaction",
        "digests",
        "made",
        "tally_changes",
    )

    def __init__(
        self,
        transaction: WriteTransaction,
        before: Committed,
        sessions: Sessions,
        requests: Requests,
        leases: Leases,
        history: History,
        decoded: dict[bytes, Command],
    ) -> None:
        """`decoded`: commands that were decoded before. Each is taken out of it when it is carried out."""
        self._transaction = transaction
        self._before = before
        self._sessions = sessions
        self._requests = requests
        self._leases = leases
        self._history = history
        self._decoded = decoded
        self._index = before.applied_index
        self._term = before.applied_term
        self._revision = before.revision
        self._digest_total = int.from_bytes(before.digest, "big")
        self._members = before.membership, before.cluster_id
        self._level = before.level
        self.digests: list[tuple[int, bytes]] = []
        """The digest after each of the entries."""
        self.made: list[Made] = []
        """The revisions of the entries, in a row."""
        self.tally_changes: Final = TallyChanges()

    def apply(
        self,
        index: int,
        term: int,
        commands: Sequence[bytes],
        members: tuple[str, bytes] | None = None,
        level: int = levels.FIRST,
    ) -> list[Result]:
        """Carry out the commands of an entry, or store the cluster's id and its members, and raise the level. One
        result for each command.

        Raises UnknownCommandVersion, InvariantViolation (not the next index), and the errors of the disk.
        """
        if index != self._index + 1:
            raise InvariantViolation(f"entry {index} was to be applied after entry {self._index}")
        self._index, self._term = index, term
        if members is not None:
            self._set_members(*members)
        if level > self._level:
            self._raise_level(level)
        results = [self._perform(command) for command in commands]
        self._digest_total += self._sessions.store_changes(self._transaction)
        self.digests.append((index, digest.to_bytes(self._digest_total)))
        return results

    def finish(self) -> Committed:
        """Call once, after the last entry: write everything that is written once a transaction. Returns the state to
        commit."""
        transaction = self._transaction
        self._history.finish(transaction)
        position = Position(self._index, self._term, self._revision, self.digests[-1][1])
        if transaction.move(position) != self._before.applied_index:
            raise InvariantViolation(f"{transaction.database.path} was changed by another writer")
        return Committed(*position, *self._members, self._level)

    # ---- commands

    def _perform(self, data: bytes) -> Result:
        """Carry out one command, unless it was carried out before. Raises only UnknownCommandVersion."""
        try:
            command = self._decoded.pop(data, None) or decode(data)
        except MalformedCommand as error:
            return Result(NO_SESSION, 0, self._revision, (MALFORMED, str(error)))
        session, sequence, _, operations, _, request_key, _, _ = command
        if operations and operations[0].verb in _OF_SESSIONS:
            return Result(session, sequence, self._revision, self._open_or_close(command, operations[0].verb))
        answer = None if session == NO_SESSION else self._sessions.recall(command, self._index, self._revision)
        if answer is None:
            answer = self._once(command, data) if request_key else self._carry_out(command, data)
            if session != NO_SESSION:
                self._sessions.remember(session, sequence, answer)
        return _new(Result, (session, sequence, *answer))

    def _once(self, command: Command, data: bytes) -> Answer:
        """Carry out a command with a request key, unless a command with this key was carried out before."""
        done_at = self._requests.recall(self._transaction, command.request_key)
        if done_at is not None:
            return done_at, None
        answer = self._carry_out(command, data)
        revision, error = answer
        if error is None:
            self._digest_total += self._requests.remember(
                self._transaction, command.request_key, self._index, revision, command.forget_below
            )
        return answer

    def _open_or_close(self, command: Command, verb: int) -> Error | None:
        if command.session == NO_SESSION:
            return MALFORMED, BAD_SESSION
        if verb == OPEN_SESSION:
            return self._sessions.open(command, self._index)
        return self._sessions.close(command, self._index)

    # ---- changes

    def _carry_out(self, command: Command, data: bytes) -> Answer:
        """Check every possible objection first, and change something only then: afterwards only the disk can fail."""
        session, _, _, operations, fence, _, _, version = command
        if fence != NO_FENCE and fence != self._term:
            return self._revision, (LEADERSHIP_LOST, fence)
        if operations and operations[0].verb == LEASE:
            return self._revision, self._keep_leases(operations)
        steps: Iterable[Operation] = operations
        conditional = False
        for verb, kind_number, id_, entity, if_revision in operations:
            target = _TARGETS.get(kind_number)
            if target is None:
                return self._revision, (MALFORMED, BAD_KIND)
            if entity is not None:
                if not target.is_entity(id_, entity):
                    return self._revision, (MALFORMED, BAD_ENTITY)
            elif verb != DELETE:
                steps = self._steps_of(operations)
                if verb == DELETE_CASCADE and target.kind is not SERVICE:
                    return self._revision, (MALFORMED, BAD_KIND)
            if if_revision is not None:
                conditional = True
        conflict = self._conflict(operations, in_turn=version == 1) if conditional else None
        if conflict is not None:
            return self._revision, conflict
        revision = self._revision + 1
        changed, before, same_at = self._change(steps, codec.record_head(revision), keeps_same=version > 1)
        if not changed:
            return same_at or self._revision, None
        self._revision = revision
        is_all = steps is operations and len(changed) == len(operations)
        body = encoded_operations(data) if is_all else encode_operations(changed)
        if before is not None:
            body = with_before(body, changed, before)
        self._history.append(self._transaction, revision, body)
        self.made.append(_new(Made, (revision, self._index, session)))
        return revision, None

    def _keep_leases(self, operations: Sequence[Operation]) -> Error | None:
        """A command of leases changes no entity, so it takes no revision. A node that is not stored gets none."""
        if any(verb != LEASE or kind_number != NODE.number for verb, kind_number, _, _, _ in operations):
            return MALFORMED, BAD_KIND
        for _, _, id_, ttl, _ in operations:
            assert ttl is not None  # see store/command.py
            if self._transaction.get(NODE, id_) is not None:
                self._digest_total += self._leases.keep(self._transaction, id_, ttl)
        return None

    def _steps_of(self, operations: Sequence[Operation]) -> Iterator[Operation]:
        """The puts and deletes of which a command consists. A cascade takes the containers that its service has when
        the turn comes to it."""
        for operation in operations:
            if operation.verb == DELETE_CASCADE:
                for id_ in self._transaction.ids_in_index(CONTAINER_BY_SERVICE.name, operation.id.encode()):
                    yield Operation(DELETE, CONTAINER.number, id_.decode())
                yield operation._replace(verb=DELETE)
            elif operation.verb != REQUIRE:
                yield operation

    def _change(
        self, operations: Iterable[Operation], head: bytes, *, keeps_same: bool
    ) -> tuple[list[Operation], dict[int, KeysBefore] | None, int]:
        """Put and delete entities; `head` begins each record. `keeps_same`: an entity that is stored in the same bytes
        keeps its record.

        Returns the operations that changed something; by their place in this list the keys that they removed or
        changed; and the newest revision of the records that were kept, 0 if there are none.
        """
        transaction = self._transaction
        changed: list[Operation] = []
        lost: dict[int, KeysBefore] | None = None
        same_at = 0
        for operation in operations:
            _, kind_number, id_, entity, _ = operation
            key = id_.encode()
            if entity is not None:
                record = head + entity
                before = transaction.put_key(kind_number, key, record)
                if keeps_same and before is not None and before.endswith(entity) and codec.holds(before, entity):
                    transaction.put_key(kind_number, key, before)
                    same_at = max(same_at, codec.record_revision(before))
                    continue
            else:
                record = None
                before = transaction.delete_key(kind_number, key)
                if before is None:
                    continue
                if kind_number == NODE.number:
                    self._digest_total += self._leases.drop(transaction, id_)
            self._digest_total += digest.difference(_TARGETS[kind_number].frame, key, before, record)
            self.tally_changes.note(kind_number, record, entity, before)
            if transaction.keys_before is not None:
                if lost is None:
                    lost = {}
                lost[len(changed)] = transaction.keys_before
                transaction.keys_before = None
            changed.append(operation)
        return changed, lost, same_at

    def _conflict(self, operations: Sequence[Operation], *, in_turn: bool) -> Error | None:
        """The first condition that does not hold before the command. `in_turn`: each condition sees the effect of the
        operations before it (version 1)."""
        planned: dict[tuple[int, str], int] = {}
        for verb, kind_number, id_, _, expected in operations:
            if expected is not None:
                actual = planned.get((kind_number, id_))
                if actual is None:
                    actual = self._stored_revision(kind_number, id_)
                if actual != expected:
                    return CONFLICT, kind_number, id_, expected, actual
            if in_turn:
                planned[kind_number, id_] = self._revision + 1 if verb == PUT else 0
        return None

    def _stored_revision(self, kind_number: int, id: str) -> int:  # noqa: A002
        record = self._transaction.get(_TARGETS[kind_number].kind, id)
        return 0 if record is None else codec.record_revision(record)

    # ---- the other records that the digest covers

    def _set_members(self, cluster_id: str, membership: bytes) -> None:
        members_before, id_before = self._members
        self._set(CLUSTER_ID, None if id_before is None else id_before.encode(), cluster_id.encode())
        self._set(MEMBERSHIP, members_before, membership)
        self._members = membership, cluster_id

    def _raise_level(self, level: int) -> None:
        """The level never falls. Raises RefusedForSafety for a level that this release does not read: it would not
        read the commands behind this entry either."""
        levels.require_readable(level, f"log entry {self._index}")
        before = None if self._level == levels.FIRST else levels.record_of(self._level)
        self._set(LEVEL, before, levels.record_of(level))
        self._level = level

    def _set(self, key: bytes, before: bytes | None, after: bytes) -> None:
        self._transaction.store(META, key, after)
        self._digest_total += digest.difference(_META_FRAME, key, before, after)
