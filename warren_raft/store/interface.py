"""What a store is to its users: all reads, all writes, and a life that ends with `close`.

The reads are in reading.py, the writes in writing.py; a store adds where its database is and how a command is done.
Invariant: a closed store answers nothing, and neither does one in a forked child.
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
    """A store of any kind. Thread-safe. For `with`, or `close()` it.

    For those who write one: set `_database` once it is open, to another when the generation changes (one
    assignment; reads that have begun go on in the old one), and to None when the store closes.
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
        """End what is going on and close the files. Idempotent, thread-safe; afterwards every call raises Closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
