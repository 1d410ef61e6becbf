"""Stores without Raft: ReadOnlyStore, another process's view of a manager's data on this host.

What is read, and whether it may be read, is decided in store/. Nothing here talks to a manager.
Invariant: a ReadOnlyStore changes nothing but LMDB's reader table, and only as the owner of the files.
"""

from __future__ import annotations

import os
import threading
from typing import Self

from warren_raft.errors import Closed
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.interface import Reader


class ReadOnlyStore(Reader):
    """The reads of a data directory, beside its manager or without one. Thread-safe. For `with`, or `close()` it.

    A read sees what the manager has applied when it begins. Where the manager changes to another generation of
    its database (after an installed snapshot), the next read follows it; a view stays where it is.

    Raises, at construction or at a later read:
        RefusedForSafety: there is no state yet; the files are another user's (the message has the line to
            type); a network file system.
        Corrupted: the files are damaged, or the machine went down before they were synced (StateUntrusted):
            the manager rebuilds them when it starts.
        InUse: a store of this process has the directory open.
        Closed: after `close`, and in a forked child.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self._state = StateDirectory(data_dir)
        self._change = threading.Lock()
        self._pointer = _pointer_identity(self._state)
        self._database: Database | None = Database.open_read_only(self._state)

    def _attached(self) -> Database:
        database = self._database
        if database is None:
            raise Closed
        if _pointer_identity(self._state) != self._pointer:
            return self._follow()
        return database

    def _follow(self) -> Database:
        """Open the generation that the pointer names now, and let the one before go."""
        with self._change:
            before = self._database
            if before is None:
                raise Closed
            before.begin().abort()  # raises Closed in a forked child, which must not open anything
            pointer = _pointer_identity(self._state)
            if self._state.current() != before.generation:
                self._database = Database.open_read_only(self._state)
                before.close()
            self._pointer = pointer
            return self._database or before

    def close(self) -> None:
        """Close the files, at once or when the last open view ends. Idempotent."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _pointer_identity(state: StateDirectory) -> tuple[int, int, int] | None:
    """Changes with every replacement of the pointer file, and costs 1 µs. None where there is none."""
    try:
        status = os.stat(state.pointer)
    except (FileNotFoundError, PermissionError):  # opening will say what is wrong
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
