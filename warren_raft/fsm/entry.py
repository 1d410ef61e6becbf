"""Carrying out the commands of log entries in a write transaction: conditions, changes, revisions, digest.

Committing the transaction, and publishing the new state, is done in machine.py.
Invariant: a command is carried out once, and wholly or not at all. A wrong command gets an answer, and raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from warren_raft.errors import Corrupted, InvariantViolation
from warren_raft.fsm import digest
from warren_raft.fsm.answers import (
    BAD_ENTITY,
    BAD_KIND,
    BAD_SESSION,
    CONFLICT,
    MALFORMED,
    Error,
    Result,
)
from warren_raft.fsm.history import History, with_before
from warren_raft.fsm.sessions import Answer, Sessions
from warren_raft.store import codec
from warren_raft.store.command import (
    CLOSE_SESSION,
    NO_SESSION,
    OPEN_SESSION,
    PUT,
    Command,
    MalformedCommand,
    Operation,
    decode,
    encode_operations,
    encoded_operations,
)
from warren_raft.store.leading import is_byte_string, is_entity_of
from warren_raft.store.position import Position
from warren_raft.store.tables import CA_ID, KINDS, Kind
from warren_raft.store.transactions import (
    CLUSTER_ID,
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

    @property
    def position(self) -> Position:
        """The part that is one record."""
        return Position(*self[:4])


def read_committed(transaction: ReadTransaction) -> Committed:
    """The state that the last entry left in the database. Raises Corrupted for a cluster id that is not a text."""
    cluster_id = transaction.fetch(META, CLUSTER_ID)
    return Committed(
        *transaction.position,
        membership=transaction.fetch(META, MEMBERSHIP),
        cluster_id=None if cluster_id is None else _text_in(cluster_id, transaction),
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
        "_members",
        "_revision",
        "_sessions",
        "_term",
        "_transaction",
        "digests",
    )

    def __init__(
        self,
        transaction: WriteTransaction,
        before: Committed,
        sessions: Sessions,
        history: History,
        decoded: dict[bytes, Command],
    ) -> None:
        """`decoded`: commands that were decoded before. Each is taken out of it when it is carried out."""
        self._transaction = transaction
        self._before = before
        self._sessions = sessions
        self._history = history
        self._decoded = decoded
        self._index = before.applied_index
        self._term = before.applied_term
        self._revision = before.revision
        self._digest_total = int.from_bytes(before.digest, "big")
        self._members = before.membership, before.cluster_id
        self.digests: list[tuple[int, bytes]] = []
        """The digest after each of the entries."""

    def apply(
        self, index: int, term: int, commands: Sequence[bytes], members: tuple[str, bytes] | None = None
    ) -> list[Result]:
        """Carry out the commands of an entry, or store the cluster's id and its members. One result for each command.

        Raises UnknownCommandVersion, InvariantViolation (not the next index), and the errors of the disk.
        """
        if index != self._index + 1:
            raise InvariantViolation(f"entry {index} was to be applied after entry {self._index}")
        self._index, self._term = index, term
        if members is not None:
            self._set_members(*members)
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
        return Committed(*position, *self._members)

    # ---- commands

    def _perform(self, data: bytes) -> Result:
        """Carry out one command, unless it was carried out before. Raises only UnknownCommandVersion."""
        try:
            command = self._decoded.pop(data, None) or decode(data)
        except MalformedCommand as error:
            return Result(NO_SESSION, 0, self._revision, (MALFORMED, str(error)))
        session, sequence, _, operations = command
        if operations and operations[0].verb in _OF_SESSIONS:
            return Result(session, sequence, self._revision, self._open_or_close(command, operations[0].verb))
        if session == NO_SESSION:
            answer = self._carry_out(operations, data)
        else:
            recalled = self._sessions.recall(command, self._index, self._revision)
            if recalled is None:
                answer = self._carry_out(operations, data)
                self._sessions.remember(session, sequence, answer)
            else:
                answer = recalled
        return _new(Result, (session, sequence, *answer))

    def _open_or_close(self, command: Command, verb: int) -> Error | None:
        if command.session == NO_SESSION:
            return MALFORMED, BAD_SESSION
        if verb == OPEN_SESSION:
            return self._sessions.open(command, self._index)
        return self._sessions.close(command, self._index)

    # ---- changes

    def _carry_out(self, operations: Sequence[Operation], data: bytes) -> Answer:
        """Check every possible objection first, and change something only then: afterwards only the disk can fail."""
        conditional = False
        for _, kind_number, id_, entity, if_revision in operations:
            target = _TARGETS.get(kind_number)
            if target is None:
                return self._revision, (MALFORMED, BAD_KIND)
            if entity is not None and not target.is_entity(id_, entity):
                return self._revision, (MALFORMED, BAD_ENTITY)
            if if_revision is not None:
                conditional = True
        conflict = self._conflict(operations) if conditional else None
        if conflict is not None:
            return self._revision, conflict
        revision = self._revision + 1
        changed, before = self._change(operations, codec.record_head(revision))
        if changed:
            self._revision = revision
            body = encoded_operations(data) if len(changed) == len(operations) else encode_operations(changed)
            if before is not None:
                body = with_before(body, changed, before)
            self._history.append(self._transaction, revision, body)
        return self._revision, None

    def _change(
        self, operations: Sequence[Operation], head: bytes
    ) -> tuple[list[Operation], dict[int, KeysBefore] | None]:
        """Put and delete entities; `head` begins each record. Returns the operations that changed something, and by
        their place in this list the keys that they removed or changed."""
        transaction = self._transaction
        changed: list[Operation] = []
        lost: dict[int, KeysBefore] | None = None
        for operation in operations:
            _, kind_number, id_, entity, _ = operation
            key = id_.encode()
            if entity is not None:
                record = head + entity
                before = transaction.put_key(kind_number, key, record)
            else:
                record = None
                before = transaction.delete_key(kind_number, key)
                if before is None:
                    continue
            self._digest_total += digest.difference(_TARGETS[kind_number].frame, key, before, record)
            if transaction.keys_before is not None:
                if lost is None:
                    lost = {}
                lost[len(changed)] = transaction.keys_before
                transaction.keys_before = None
            changed.append(operation)
        return changed, lost

    def _conflict(self, operations: Sequence[Operation]) -> Error | None:
        """The first condition that does not hold. Later operations see the effect of earlier ones of the same
        command."""
        planned: dict[tuple[int, str], int] = {}
        for verb, kind_number, id_, _, expected in operations:
            if expected is not None:
                actual = planned.get((kind_number, id_))
                if actual is None:
                    actual = self._stored_revision(kind_number, id_)
                if actual != expected:
                    return CONFLICT, kind_number, id_, expected, actual
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

    def _set(self, key: bytes, before: bytes | None, after: bytes) -> None:
        self._transaction.store(META, key, after)
        self._digest_total += digest.difference(_META_FRAME, key, before, after)
