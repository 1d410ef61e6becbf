"""Carrying out the commands of one log entry in a write transaction: conditions, changes, revisions, digest.

Committing the transaction, and publishing the new state, is done in machine.py.
Invariant: a command is carried out once, and wholly or not at all. A wrong command gets an answer, and raises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from warren_raft.errors import Corrupted
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
from warren_raft.fsm.history import History
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
from warren_raft.store.tables import CA_ID, KINDS, Kind
from warren_raft.store.transactions import (
    APPLIED_INDEX,
    APPLIED_TERM,
    CLUSTER_ID,
    DIGEST,
    MEMBERSHIP,
    META,
    META_KEYS,
    POSITION_CHECK,
    REVISION,
    SESSIONS,
    ReadTransaction,
    Space,
    WriteTransaction,
)

FIRST_INDEX: Final = 1
"""The index of the empty entry that every log begins with. A new database has already applied it."""


class _Target(NamedTuple):
    """A kind, and the first bytes of its records' hashes in the digest."""

    kind: Kind[Any]
    frame: bytes


_TARGETS: Final = {kind.number: _Target(kind, digest.framed(kind.bucket)) for kind in KINDS}
_OF_SESSIONS: Final = frozenset((OPEN_SESSION, CLOSE_SESSION))
_SPACE_FRAMES: Final[dict[Space, bytes]] = {space: digest.framed(space) for space in (META, SESSIONS)}


class Committed(NamedTuple):
    """The position, digest and members in the database, all as of the same commit."""

    applied_index: int
    applied_term: int
    revision: int
    digest: bytes
    membership: bytes | None
    cluster_id: str | None


def read_committed(transaction: ReadTransaction) -> Committed:
    """The state that the last entry left in the database. Raises Corrupted for a cluster id that is not a text."""
    cluster_id = transaction.fetch(META, CLUSTER_ID)
    return Committed(
        applied_index=transaction.integer(APPLIED_INDEX, FIRST_INDEX),
        applied_term=transaction.integer(APPLIED_TERM),
        revision=transaction.revision,
        digest=transaction.fetch(META, DIGEST) or digest.EMPTY,
        membership=transaction.fetch(META, MEMBERSHIP),
        cluster_id=None if cluster_id is None else _text_in(cluster_id, transaction),
    )


def _text_in(value: bytes, transaction: ReadTransaction) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Corrupted(transaction.database.path, f"has a cluster id that is not a text: {error}") from None


def store_position(transaction: WriteTransaction, position: Committed) -> None:
    """Write the position of the state, and a check of it: after a flipped bit the log would continue at a wrong
    entry."""
    transaction.store_integer(APPLIED_INDEX, position.applied_index)
    transaction.store_integer(APPLIED_TERM, position.applied_term)
    transaction.store_integer(REVISION, position.revision)
    transaction.store(META, DIGEST, position.digest)
    transaction.store(META, POSITION_CHECK, _check_of(position))


def position_problem(transaction: ReadTransaction) -> str | None:
    """The fault of `meta`; None if it has no fault. The digest proves the records, so they are not checked here."""
    unknown = transaction.meta_keys() - set(META_KEYS)
    if unknown:
        return f"has an unknown key {min(unknown)!r} in its meta data"
    check = transaction.fetch(META, POSITION_CHECK)
    if check is not None and check != _check_of(read_committed(transaction)):
        return "its index, term, revision and digest do not fit their check"
    return None


def _check_of(position: Committed) -> bytes:
    numbers = (position.applied_index, position.applied_term, position.revision)
    return blake2b(b"%d %d %d " % numbers + position.digest, digest_size=8).digest()


class Entry:
    """One entry that is being applied, in a transaction that the caller commits after `finish`, or aborts."""

    __slots__ = (
        "_committed",
        "_decoded",
        "_digest_total",
        "_history",
        "_index",
        "_revision",
        "_sessions",
        "_transaction",
    )

    def __init__(
        self,
        transaction: WriteTransaction,
        index: int,
        committed: Committed,
        sessions: Sessions,
        history: History,
        decoded: dict[bytes, Command],
    ) -> None:
        """`decoded`: commands that were decoded before. `perform` takes its command out of it."""
        self._transaction = transaction
        self._index = index
        self._committed = committed
        self._sessions = sessions
        self._history = history
        self._decoded = decoded
        self._revision = committed.revision
        self._digest_total = int.from_bytes(committed.digest, "big")

    def finish(self, term: int) -> Committed:
        """Call once, after the last command: write everything that is written once an entry. Returns the state to
        commit."""
        self._sessions.store_changes(self._set_session)
        self._history.drop_oldest(self._transaction)
        after = self._committed._replace(
            applied_index=self._index,
            applied_term=term,
            revision=self._revision,
            digest=digest.to_bytes(self._digest_total),
        )
        store_position(self._transaction, after)
        return after

    # ---- commands

    def perform(self, data: bytes) -> Result:
        """Carry out one command, unless it was carried out before. Raises only UnknownCommandVersion."""
        try:
            command = self._decoded.pop(data, None) or decode(data)
        except MalformedCommand as error:
            return Result(NO_SESSION, 0, self._revision, (MALFORMED, str(error)))
        revision, error_ = self._answer(command, data)
        return Result(command.session, command.sequence, revision, error_)

    def _answer(self, command: Command, data: bytes) -> Answer:
        operations = command.operations
        verb = operations[0].verb if operations else PUT
        if verb in _OF_SESSIONS:
            return self._revision, self._open_or_close(command, verb)
        if command.session == NO_SESSION:
            return self._carry_out(operations, data)
        answer = self._sessions.recall(command, self._index, self._revision)
        if answer is None:
            answer = self._carry_out(operations, data)
            self._sessions.remember(command, *answer)
        return answer

    def _open_or_close(self, command: Command, verb: int) -> Error | None:
        if command.session == NO_SESSION:
            return MALFORMED, BAD_SESSION
        if verb == OPEN_SESSION:
            return self._sessions.open(command, self._index)
        return self._sessions.close(command, self._index)

    # ---- changes

    def _carry_out(self, operations: Sequence[Operation], data: bytes) -> Answer:
        """Check every possible objection first, and change something only then: afterwards only the disk can fail."""
        records: list[bytes | None] = []
        conditional = False
        for operation in operations:
            target = _TARGETS.get(operation.kind_number)
            if target is None:
                return self._revision, (MALFORMED, BAD_KIND)
            record = None
            if operation.entity is not None:
                if not _is_entity(target.kind, operation.id, operation.entity):
                    return self._revision, (MALFORMED, BAD_ENTITY)
                record = codec.make_record(self._revision + 1, operation.entity)
            records.append(record)
            conditional = conditional or operation.if_revision is not None
        conflict = self._conflict(operations) if conditional else None
        if conflict is not None:
            return self._revision, conflict
        changed = [o for o, record in zip(operations, records, strict=True) if self._execute(o, record)]
        if changed:
            self._revision += 1
            body = encoded_operations(data) if len(changed) == len(operations) else encode_operations(changed)
            self._history.append(self._transaction, self._revision, body)
        return self._revision, None

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

    def _execute(self, operation: Operation, record: bytes | None) -> bool:
        """Store the record, or delete the entity if `record` is None. Returns whether that changed anything."""
        kind, frame = _TARGETS[operation.kind_number]
        if record is None:
            before = self._transaction.delete(kind, operation.id)
            if before is None:
                return False
        else:
            before = self._transaction.put(kind, operation.id, record)
        self._digest_total += digest.difference(frame, operation.id.encode(), before, record)
        return True

    # ---- the other records that the digest covers

    def set_members(self, cluster_id: str, membership: bytes) -> None:
        """Store the cluster's id and its members."""
        before = self._committed
        old_id = None if before.cluster_id is None else before.cluster_id.encode()
        self._set(META, CLUSTER_ID, old_id, cluster_id.encode())
        self._set(META, MEMBERSHIP, before.membership, membership)
        self._committed = before._replace(cluster_id=cluster_id, membership=membership)

    def _set_session(self, key: bytes, before: bytes | None, after: bytes | None) -> None:
        self._set(SESSIONS, key, before, after)

    def _set(self, space: Space, key: bytes, before: bytes | None, after: bytes | None) -> None:
        if after is None:
            self._transaction.erase(space, key)
        else:
            self._transaction.store(space, key, after)
        self._digest_total += digest.difference(_SPACE_FRAMES[space], key, before, after)


def _is_entity(kind: Kind[Any], id: str, entity: bytes) -> bool:  # noqa: A002
    """Whether the bytes begin as an entity of this id, judged only by rules that every release has in common.

    The bytes after the id were checked where the command was made. They are not checked here: a newer release may
    accept bytes that this one refuses, and a newer cbor2 may read bytes that this one cannot. All must come to the same
    result.
    """
    return is_entity_of(id, entity) if kind.entity is not None else id == CA_ID and is_byte_string(entity)
