"""A store without a log: a command is carried out on the database at once, without sync, sessions or history.

For tests of the store's own part: reads, checks of writes, the cache. The effects of commands are tested with fsm/.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from warren_raft.store import codec
from warren_raft.store.command import PUT, Operation
from warren_raft.store.database import Database
from warren_raft.store.interface import BaseStore
from warren_raft.store.tables import BY_NUMBER, Kind
from warren_raft.support.handover import Begun, Landing, Passed
from warren_raft.watching.hub import Hub


def put_all(database: Database, *entities: tuple[Kind[Any], Any]) -> int:
    """Store (kind, entity) pairs in one transaction. Returns the revision they all get."""
    with database.write() as transaction:
        revision = transaction.revision + 1
        for kind, entity in entities:
            record = codec.make_record(revision, codec.encode(kind, entity))
            transaction.put(kind, "ca" if kind.entity is None else entity.id, record)
        transaction.move(transaction.position._replace(revision=revision))
    return revision


class DirectStore(BaseStore):
    """On a database that the test opens and closes."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self.commands: list[tuple[Operation, ...]] = []

    def attach(self, database: Database) -> None:
        """Change the generation, as a store does."""
        self._database = database

    def _feeds(self) -> Hub:
        raise NotImplementedError("this store keeps no history")

    _default_timeout_seconds = 10.0

    def _execute(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = 0
    ) -> int:
        self.commands.append(operations)
        with self._attached().write() as transaction:
            revision = transaction.revision + 1
            for operation in operations:
                kind = BY_NUMBER[operation.kind_number]
                if operation.verb == PUT and operation.entity is not None:
                    transaction.put(kind, operation.id, codec.make_record(revision, operation.entity))
                else:
                    transaction.delete(kind, operation.id)
            transaction.move(transaction.position._replace(revision=revision))
        return revision

    def _start(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = 0
    ) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(self._execute(operations, timeout))
        return future

    def _take_beat(self, node_id: str, ttl_seconds: float) -> None:
        raise NotImplementedError("this store has no thread that would look after beats")

    def _age_of_beat(self, node_id: str) -> float | None:
        return None

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: int = 0,
    ) -> Begun[int]:
        landing.release()
        return Passed(self._execute(operations, timeout))

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
