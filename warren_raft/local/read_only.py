"""ReadOnlyStore: reads a data directory that another process may write to, or none.

It needs no manager and talks to none. Not here: the rules for reading (store/reading.py), generations
(store/generations.py). Invariant: nothing in the directory is changed but LMDB's reader table.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from warren_raft.disk.paths import refuse_file
from warren_raft.errors import Closed
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.interface import Reader, View
from warren_raft.support import forking
from warren_raft.support.process_end import close_at_exit
from warren_raft.watching.hub import Hub

if TYPE_CHECKING:
    from warren_raft.metrics.meters import Meters

POLL_SECONDS: Final = 0.1
"""How often the state is looked at for watches: the process that changes it cannot tell. It takes some 20 µs."""
JOIN_SECONDS: Final = 1.0
"""How long `close` waits for the thread of the watches to end its read."""
END_VIEWS_SECONDS: Final = 30.0
"""How often a process that only reads checks for views that were open for too long."""


class _Views:
    """A thread that ends views of this process that were open for too long. The manager cannot end them: it would reuse
    pages that are still being read."""

    def __init__(self) -> None:
        self._is_running = False

    def end_old_ones(self) -> None:
        """Start the thread, which runs until the process ends."""
        if not self._is_running:
            threading.Thread(target=self._run, name="warren-raft-views", daemon=True).start()
            self._is_running = True  # after the start: an exception in between means a second thread, not no thread

    def forget_in_child(self) -> None:
        self._is_running = False

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(END_VIEWS_SECONDS):
            Database.end_old_reads_of_all()


_views: Final = _Views()
os.register_at_fork(after_in_child=_views.forget_in_child)


class _Opened(NamedTuple):
    """A database with the identity of its file. They are stored together, so that an exception from a signal handler
    cannot leave one without the other."""

    database: Database
    file: tuple[int, int] | None

    @classmethod
    def of(cls, database: Database) -> Self:
        return cls(database, _identity(database.path))


class ReadOnlyStore(Reader):
    """The reads of a data directory, beside its manager or without one. Thread-safe. Use it with `with`, or call
    `close()`.

    A read sees everything that the manager has applied when the read begins. If the manager changes to another
    generation of its database (after it replaced its state), the next read uses that generation; an open view does not
    change.

    Raises, at construction or at a later read:
        RefusedForSafety: there is no state yet; there is a file in the place of the directory; the files belong to
            another user (the message has the command to type); a network file system.
        Corrupted: the files are damaged, or the machine went down before they were synced (StateUntrusted):
            the manager rebuilds them when it starts.
        InUse: a store of this process has the directory open; 256 read transactions are open in other processes; the
            manager's lock file beside the database was removed (the message has the remedy); a signal handler
            interrupted the opening of a database in its own thread (try again).
        Closed: after `close`, and in a forked child, which may open a store of its own.
    """

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self._started_at = time.time()
        self._state = StateDirectory(data_dir)
        refuse_file(self._state.data_dir)
        self._change = threading.Lock()
        self._hubs: dict[str, Hub] = {}
        """At most one, made for the first watch: it refers to this store, so a store without it is freed at once."""
        self._follower = 0
        self._pointer = _pointer_identity(self._state)
        self._is_closed = False
        self._opened: _Opened | None = _Opened.of(Database.open_read_only(self._state))

    def read(self, *, max_staleness_seconds: float | None = None) -> View:
        """One snapshot for many reads: `with store.read() as view`.

        A view that is open for longer than an hour is ended within half a minute, as in every store.
        """
        _views.end_old_ones()
        return super().read(max_staleness_seconds=max_staleness_seconds)

    @property
    def _database(self) -> Database | None:
        opened = self._opened
        return None if opened is None else opened.database

    def _attached(self) -> Database:
        opened = self._opened
        if opened is None:
            raise Closed
        if _pointer_identity(self._state) != self._pointer:
            return self._follow()
        return opened.database

    def _feeds(self) -> Hub:
        close_at_exit(self)
        return self._hubs.get("") or self._hubs.setdefault(
            "", Hub(self._attached, poll_seconds=POLL_SECONDS, is_continued=False)
        )

    def _follow(self) -> Database:
        """Open the generation that the pointer names now, and close the previous one."""
        database = self._database
        if database is not None and database.is_parents:
            raise Closed(forking.PARENTS)  # before the lock, which a thread of the parent may have held
        thread = threading.get_ident()  # before the lock: a signal handler may interrupt the call that takes the lock
        if self._follower == thread and self._change.locked():
            # A signal handler reads in the middle of this: it gets the previous state.
            if database is None:
                raise Closed
            return database
        with self._change:
            self._follower = thread
            before = self._opened
            if before is None:
                raise Closed
            database = before.database
            pointer = _pointer_identity(self._state)
            generation = self._state.current()
            # Compare the file too: in a directory that was restored or emptied, the numbers begin again.
            is_another = generation != database.generation
            if is_another or _identity(self._state.file_of(database.generation)) not in (None, before.file):
                database = self._replace(before)
            self._pointer = pointer
            return database

    def _replace(self, before: _Opened) -> Database:
        """Use the current generation from now on. Call it with `_change` taken."""
        database = Database.open_read_only(self._state)
        try:
            self._opened = _Opened.of(database)
        finally:  # an exception from a signal handler leaves one of the two open at most, the one in use
            for each in (database, before.database):
                if each is not self._database:
                    each.close()
        if self._is_closed:  # another thread has closed the store meanwhile
            self._opened = None
            database.close()
            raise Closed
        return database

    def _meters(self) -> Meters:
        """For metrics/."""
        from warren_raft.metrics.meters import Meters, state_meters

        try:
            state = state_meters(self._attached(), None)
        except Closed:
            state = None
        return Meters(started_at=self._started_at, reads=self._reads, state=state)

    def __repr__(self) -> str:
        """For logs and debuggers. Any state, any thread; never raises."""
        return f"<ReadOnlyStore {self._state.data_dir!r}, {'closed' if self._database is None else 'open'}>"

    def close(self) -> None:
        """Close the files, at once or when the last open view ends. Idempotent."""
        self._is_closed = True  # first: a read that opens another generation now looks at it afterwards
        database, self._opened = self._database, None
        for hub in list(self._hubs.values()):
            hub.close(JOIN_SECONDS)
        if database is not None:
            database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, PermissionError):  # opening will report the fault
        return None
    return status.st_dev, status.st_ino


def _pointer_identity(state: StateDirectory) -> tuple[int, int, int] | None:
    """A value that changes with every replacement of the pointer file; it costs 1 µs. None if there is no pointer."""
    try:
        status = os.stat(state.pointer)
    except (FileNotFoundError, PermissionError):  # opening will report the fault
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
