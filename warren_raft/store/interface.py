"""The interface that every store has for its users: all reads, all writes, and `close`.

The reads are in reading.py, the writes in writing.py. Each store adds where its database is and how a command is done.
Invariant: a closed store answers no call, and a store in a forked child process answers no call.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

from warren_raft.errors import Closed
from warren_raft.store.reading import Reader, View
from warren_raft.store.writing import Batch, Writer

if TYPE_CHECKING:
    from warren_raft.store.database import Database

__all__ = ["Batch", "Reader", "Store", "View", "Writer"]


class Store(Reader, Writer):
    """A store of any kind. Thread-safe. Use it with `with`, or call `close()`.

    For authors of a subclass: set `_database` once it is open. Set it to the new database when the generation changes
    (one assignment; reads that have begun continue in the old database), and to None when the store closes. Or keep
    the database elsewhere, and define `_attached`.
    """

    _database: Database | None = None

    def _attached(self) -> Database:
        database = self._database
        if database is None:
            raise Closed
        return database

    def _latest_revision(self) -> int:
        with self._attached().read() as transaction:
            return transaction.revision

    @abstractmethod
    def close(self) -> None:
        """Stop all work and close the files. Idempotent, thread-safe; afterwards every call raises Closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
