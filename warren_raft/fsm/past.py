"""One entity as of an earlier revision, from the state and the history of changes.

Not here: the form of the history (history.py), and printing (cli/). Invariant: the entity is the one that a reader of
that revision saw, or NotKept is raised: nothing is guessed.
"""

from __future__ import annotations

from typing import Any, TypeVar

from warren_raft.errors import Corrupted, NotFound, WarrenError
from warren_raft.fsm import history
from warren_raft.store import codec
from warren_raft.store.command import Operation, only_put_in
from warren_raft.store.reading import Reader
from warren_raft.store.tables import Kind
from warren_raft.store.transactions import Owner, ReadTransaction

E = TypeVar("E")


class NotKept(WarrenError):
    """The state as of a revision is not kept, or an entity in it is not.

    The history has every change after `oldest`, up to `newest`. `changed_at` is the revision of the entity's first
    change in it, if the entity may be older; None if `revision` is not from `oldest` to `newest`.
    """

    def __init__(
        self,
        kind: str,
        id: str,  # noqa: A002
        revision: int,
        oldest: int,
        newest: int,
        changed_at: int | None = None,
    ) -> None:
        super().__init__(kind, id, revision, oldest, newest, changed_at)
        self.kind = kind
        self.id = id
        self.revision = revision
        self.oldest = oldest
        self.newest = newest
        self.changed_at = changed_at

    def __str__(self) -> str:
        if self.changed_at is not None:
            return (
                f"{self.kind} {self.id!r} as of revision {self.revision} is not kept: the changes since revision "
                f"{self.oldest} are kept, and the first of this {self.kind} is at revision {self.changed_at}"
            )
        reason = "has not happened here yet" if self.revision > self.newest else "is not kept any more"
        return f"revision {self.revision} {reason}: name one from {self.oldest} to {self.newest}"


def get_at(reader: Reader, kind: Kind[E], id: str, revision: int) -> E:  # noqa: A002
    """`entity_at` in the present state of a store. Raises Closed too. Thread-safe."""

    def read(database: Owner, _txn: object) -> E | NotFound | NotKept:
        with ReadTransaction(database) as transaction:
            try:
                return entity_at(transaction, kind, id, revision)
            except (NotFound, NotKept) as error:
                return error.with_traceback(None)  # which would hold the transaction, and so the files

    found = reader._within(read)
    if isinstance(found, NotFound | NotKept):
        raise found
    return found


def entity_at(transaction: ReadTransaction, kind: Kind[E], id: str, revision: int) -> E:  # noqa: A002
    """The entity under `id` as it was after the change `revision`, with the revision of its own last change until then.

    In the worst case all of the history is read. Raises NotFound if there was none; NotKept; Corrupted.
    """
    oldest, newest = history.floor(transaction), transaction.revision
    if not oldest <= revision <= newest:
        raise NotKept(kind.name, id, revision, oldest, newest)
    record = transaction.get(kind, id)
    try:
        if record is not None and codec.record_revision(record) <= revision:
            return codec.decode(kind, record)  # it was not changed since
        last, changed_at = _around(transaction, kind, id, oldest, revision)
        if last is not None and last[1].entity is not None:
            return codec.decode_entity(kind, last[1].entity, last[0])
    except ValueError as error:  # of a record, a change or a command
        raise Corrupted(transaction.database.path, f"{kind.name} {id!r}: {error}") from None
    # The history of a store that has dropped nothing begins with the empty state.
    if last is not None or changed_at is None or oldest == 0:
        raise NotFound(kind.name, id)
    raise NotKept(kind.name, id, revision, oldest, newest, changed_at)


def _around(
    transaction: ReadTransaction,
    kind: Kind[Any],
    id: str,  # noqa: A002
    oldest: int,
    revision: int,
) -> tuple[tuple[int, Operation] | None, int | None]:
    """The last change of an entity up to `revision`, with its revision; if there is none, the revision of the first
    change behind it."""
    number, key = kind.number, id.encode()

    def is_of_another(body: bytes) -> bool:
        put = only_put_in(body)
        return put is not None and (put[0] != number or body[put[1] : put[2]] != key)

    last: tuple[int, Operation] | None = None
    for change in history.since(transaction, oldest, is_of_another):
        if change.revision > revision and last is not None:
            break
        for operation in change.operations:
            if operation.kind_number == number and operation.id == id:
                if change.revision > revision:
                    return None, change.revision
                last = change.revision, operation
    return last, None
