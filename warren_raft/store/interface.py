"""The part of a store that is about its entities: all reads, all writes, heartbeats, and `close`.

The reads are in reading.py, the writes in writing.py. Each store adds where its database is and how a command is done.
Invariant: a closed store answers no call, and a store in a forked child process answers no call.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

from warren_raft.errors import Closed
from warren_raft.store.reading import Reader, View
from warren_raft.store.writing import Batch, Writer
from warren_raft.support import timeouts

if TYPE_CHECKING:
    from warren_raft.store.database import Database

__all__ = ["BaseStore", "Batch", "Reader", "View", "Writer"]


class BaseStore(Reader, Writer):
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

    def heartbeat(self, node_id: str, ttl_seconds: float = 15.0) -> None:
        """A node has sent a sign of life. If none follows for `ttl_seconds` (1 s to a day), the node becomes "down" by
        itself; with the next one it is "ready" again.

        Returns at once, on any manager, without a log entry: only the change of the node's status is written. A node
        that is draining stays as it is, and so does a node that never beats. Beats that a manager has answered count
        as long as its process runs: a node never becomes down earlier. Thread-safe.

        Raises NotFound if there is no such node here; InvalidEntity for another ttl; Closed; and Unavailable if this
        manager has not heard a leader for an election timeout. It keeps the beat then and tells the next leader, but
        a node should beat at another manager too.
        """
        seconds = timeouts.ttl(ttl_seconds)
        self.get_node(node_id)
        self._take_beat(node_id, seconds)

    def last_heartbeat_age(self, node_id: str) -> float | None:
        """Seconds since the last heartbeat of a node; None if this manager knows of none. The manager that took it
        knows it at once, to 0.25 s; any other manager to a second and a half. Raises Closed."""
        return self._age_of_beat(node_id)

    @abstractmethod
    def _take_beat(self, node_id: str, ttl_seconds: float) -> None:
        """Take the beat of a node that exists."""

    @abstractmethod
    def _age_of_beat(self, node_id: str) -> float | None:
        """Seconds since the last beat that is known here. Raises Closed."""

    @abstractmethod
    def close(self) -> None:
        """Stop all work and close the files. Idempotent, thread-safe; afterwards every call raises Closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
