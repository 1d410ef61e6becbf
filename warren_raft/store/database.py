"""One generation of the state as an LMDB environment: transactions, secondary indexes, checkpoints.

The choice of the generation, and whether it may be read, is made in generations.py. Entities are bytes here.
Invariant: an index and its records change in one transaction, and no environment is closed under a reader.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar

import lmdb

from warren_raft.disk import sharing
from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.files import OS_FILES, File, Files
from warren_raft.disk.paths import absolute, missing_data, moved
from warren_raft.disk.privacy import refuse_link
from warren_raft.errors import (
    Closed,
    Corrupted,
    InUse,
    InvariantViolation,
    RefusedForSafety,
    StorageFull,
    WarrenError,
)
from warren_raft.store import codec, levels
from warren_raft.store.cache import DecodedCache
from warren_raft.store.environments import (
    MAP_SIZE_BYTES,
    closing_on_failure,
    open_alone,
    open_foreign,
    open_owned,
)
from warren_raft.store.generations import StateDirectory, StateUntrusted
from warren_raft.store.leading import leading_items
from warren_raft.store.lmdb_errors import StorageFailed, code_of, translated
from warren_raft.store.reader_slots import (
    ForeignRead,
    Holder,
    OwnersTable,
    ReadersTable,
    UnknownReaders,
)
from warren_raft.store.tables import BY_NUMBER, INDEXES, KINDS
from warren_raft.store.transactions import (
    CLUSTER_ID,
    EXPIRED,
    FORKED,
    FORMAT,
    FORMAT_VERSION,
    HISTORY,
    LEVEL,
    MEMBERSHIP,
    META,
    SESSIONS,
    SPACES,
    VIEW_AGE_MAX_SECONDS,
    ReadTransaction,
    Table,
    Transaction,
    WriteTransaction,
    key_of,
)
from warren_raft.support import forking
from warren_raft.support.counting import Durations
from warren_raft.support.log_lines import log_event

if TYPE_CHECKING:
    from warren_raft.store.transactions import Handle

logger = logging.getLogger("warren_raft.store")

T = TypeVar("T")

__all__ = [
    "CLUSTER_ID",
    "FORMAT_VERSION",
    "HISTORY",
    "LEVEL",
    "MEMBERSHIP",
    "META",
    "SESSIONS",
    "SPACES",
    "Database",
    "ReadTransaction",
    "StateUntrusted",
    "StorageFailed",
    "WriteTransaction",
    "key_of",
]

QUOTA_BYTES: Final = MAP_SIZE_BYTES // 2
"""The leader refuses creates and updates beyond this many used bytes. The other half is for deletes, for copy-on-write,
and for pages that open views keep."""

_GENERATION_RACES_MAX: Final = 10  # how often a generation may be replaced between reading its pointer and opening it


def _refuse_closed(*_args: object, **_kwargs: object) -> NoReturn:
    raise Closed


def _refuse_forked(*_args: object, **_kwargs: object) -> NoReturn:
    raise Closed(forking.PARENTS)


class Database:
    """One open generation. All methods may be called from any thread; at most one writer at a time.

    Made by `open`, `create`, `open_generation` (the one process that owns the directory), `open_read_only` (any process
    of the same user) and `open_file` (a snapshot that nobody writes).

    Closing does not end reads that have begun: each transaction keeps its environment alive, and the files are closed
    when the last transaction has ended. In a forked child every use raises Closed.
    """

    _open_databases: ClassVar[weakref.WeakSet[Database]] = weakref.WeakSet()
    _inherited: ClassVar[list[Any]] = []  # kept alive in a forked child: freeing them would touch the parent's locks

    def __init__(
        self,
        environment: lmdb.Environment,
        *,
        state: StateDirectory | None,
        generation: int,
        sync: bool,
        clock: Callable[[], float],
        marker: File | None = None,
        owners_table: OwnersTable | None = None,
        readers_table: ReadersTable | None = None,
    ) -> None:
        self.path: Final = environment.path()
        self.generation: Final = generation
        self.number: Final = next(_numbers)
        self.clock: Final = clock
        self.decoded: Final = DecodedCache()
        self.commits: Final = Durations()
        self.begin: Callable[..., lmdb.Transaction[Any] | ForeignRead]
        self.begin = environment.begin if readers_table is None else readers_table.begin
        """`begin(handle, None, False, buffers)`: a raw read transaction, for `with`, or for one `get` at once: it ends
        when nobody refers to it. Raises Closed after close."""
        self._owners_table: Final = owners_table
        self._environment: lmdb.Environment | None = environment
        self._file: Final = _File(self.path)
        self._state = state
        self._files: Final[Files] = OS_FILES if state is None else state.files
        self._read_only = environment.flags()["readonly"]
        self._unsynced = not sync and not self._read_only
        self._marker = marker
        """The marker of unsynced commits, if it has one. Its lock tells readers that this process is alive."""
        if marker is not None:  # nobody closes a database that another one has replaced: reads may go on in it
            weakref.finalize(self, marker.close).atexit = False
        self._failed = False
        self._write_lock = threading.Lock()
        self._writer: WriteTransaction | None = None
        self._writer_thread = 0
        self._reads: set[weakref.ref[ReadTransaction]] = set()
        """The open ones. Each step on this set is one step of the interpreter. Readers take no lock, so a signal
        handler may read within a read, and an exception in a reader leaves no lock behind."""
        self.tables: list[Table] = []
        self.index_handles: dict[str, Handle] = {}
        self.space_handles: dict[str, Handle] = {}
        self.all_handles: tuple[Handle, ...] = ()

    # ---- opening

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str] | StateDirectory,
        *,
        sync: bool,
        prove: Callable[[str], None] | None = None,
        is_suspect: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> Database:
        """Open the current generation of a data directory. In a directory without a generation, make the first.

        `sync`: each commit is on disk when it returns. Without it, see `checkpoint` and `close`: after a crash of the
        machine the next open raises StateUntrusted. `prove(path)` raises Corrupted for a damaged file. It is called for
        a file that was not closed, and so has no seal, and for any file if `is_suspect`. The caller holds the
        directory's lock.
        """
        state = directory if isinstance(directory, StateDirectory) else StateDirectory(directory)
        state.create()
        generation = state.current()
        if generation is None:
            generation = cls._adopted(state, prove)
        state.remove_stale()
        if generation is not None:
            state.require_trusted(generation)
            state.hold(state.pointer)
            is_sealed = state.is_sealed(generation)
            if prove is not None and (is_suspect or not is_sealed):
                prove(state.file_of(generation))
            return cls.open_generation(state, generation, sync=sync, clock=clock)
        database = cls.create(state, sync=sync, clock=clock)
        database.publish()
        return database

    @classmethod
    def _adopted(cls, state: StateDirectory, prove: Callable[[str], None] | None) -> int | None:
        """The only generation of a directory without a pointer, after it was proved. None: there is no generation.

        A manager that began with an empty state there would remove every file in the directory.
        """
        generation = state.only_generation()
        if generation is None:
            return None
        state.require_trusted(generation)
        path = state.file_of(generation)
        if prove is not None:
            prove(path)
        state.publish(generation)
        log_event(logger, logging.WARNING, "pointer to the state was missing", "the only state is used", path=path)
        return generation

    @classmethod
    def create(cls, state: StateDirectory, *, sync: bool, clock: Callable[[], float] = time.monotonic) -> Database:
        """Make an empty generation. It is not in use until `publish`."""
        state.create()
        generation = state.next_generation()
        # LMDB takes an empty file for a new one; the marker needs its inode.
        state.files.make_file(state.file_of(generation)).close()
        return cls._open_for_writing(state, generation, sync, clock, is_new=True)

    @classmethod
    def open_generation(
        cls, state: StateDirectory, generation: int, *, sync: bool, clock: Callable[[], float] = time.monotonic
    ) -> Database:
        """Open a generation for reading and writing: the current one, or a copy that was put in its place.

        Raises StateUntrusted (do not read it, rebuild it), Corrupted, RefusedForSafety (a newer format), InUse (open in
        this process).
        """
        return cls._open_for_writing(state, generation, sync, clock, is_new=False)

    @classmethod
    def _open_for_writing(
        cls, state: StateDirectory, generation: int, sync: bool, clock: Callable[[], float], *, is_new: bool
    ) -> Database:
        state.require_trusted(generation)
        was_unsynced = state.is_unsynced(generation)
        marker = None if sync else state.mark_unsynced(generation)
        path = state.file_of(generation)
        try:
            state.break_seal(generation)
            sharing.correct_mode(path)  # it may have been copied here under any umask
            state.hold(path)
            environment, table = _opened_by_owner(state, generation, sync)
            database = cls(
                environment,
                state=state,
                generation=generation,
                sync=sync,
                clock=clock,
                marker=marker,
                owners_table=table,
            )
            with closing_on_failure(environment, path):
                database.reader_check()
                database._prepare(environment, is_new)
                if sync and was_unsynced:
                    environment.sync(True)
                    state.clear_mark(generation)
        except BaseException:
            if marker is not None:
                marker.close()
            state.let_go(path)
            raise
        cls._open_databases.add(database)
        return database

    @classmethod
    def open_read_only(
        cls,
        directory: str | os.PathLike[str] | StateDirectory,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> Database:
        """Open the current generation for reading, whether its manager runs or not.

        Raises StateUntrusted (the manager will rebuild it), RefusedForSafety (there is no state yet, files of another
        user, a network file system), Corrupted, InUse (open in this process).
        """
        state = directory if isinstance(directory, StateDirectory) else StateDirectory(directory)
        for _ in range(_GENERATION_RACES_MAX):
            generation = _readable_generation(state)
            try:
                state.require_trusted(generation, reading=True)
                state.is_sealed(generation)
                return cls._open_for_reading(state, generation, clock)
            except FileNotFoundError:
                continue  # replaced by a new generation just now
            except StateUntrusted:
                if state.current() == generation:
                    raise
        raise InUse(state.path, "changes its current database too quickly to be read")

    @classmethod
    def _open_for_reading(cls, state: StateDirectory, generation: int, clock: Callable[[], float]) -> Database:
        path = state.file_of(generation)
        sharing.require_rights(path, data_dir=state.data_dir)
        environment, table = open_foreign(path)
        try:
            database = cls(environment, state=state, generation=generation, sync=True, clock=clock, readers_table=table)
            return database._checked_for_reading(environment)
        except BaseException:
            if table is not None:
                table.close()
            raise

    @classmethod
    def open_file(cls, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.monotonic) -> Database:
        """Open a file that nobody writes, for example a snapshot, without leaving a lock file beside it."""
        environment = open_alone(absolute(path))
        database = cls(environment, state=None, generation=0, sync=True, clock=clock)
        return database._checked_for_reading(environment)

    def _checked_for_reading(self, environment: lmdb.Environment) -> Database:
        with (
            closing_on_failure(environment, self.path),
            self.begin(),
        ):  # LMDB's own transactions see the same commit as this one
            self._check_format(environment)
            self._open_handles(environment, None)
        Database._open_databases.add(self)
        return self

    def _prepare(self, environment: lmdb.Environment, is_new: bool) -> None:
        """Check the format and make missing sub-databases: all of them in a new file, a new index in an old file."""
        with environment.begin() as reader:
            missing = [index.name for index in INDEXES if reader.get(index.name.encode()) is None]
        if not is_new:
            self._check_format(environment)
        with environment.begin(write=True) as txn:
            self._open_handles(environment, txn)
            if is_new:
                txn.put(FORMAT_VERSION, FORMAT.to_bytes(8, "big"), db=self.space_handles[META])
            else:
                self._build_indexes(txn, missing)

    def _check_format(self, environment: lmdb.Environment) -> None:
        try:
            meta = environment.open_db(META.encode(), create=False)
        except lmdb.NotFoundError:
            raise Corrupted(self.path, "is not a database of this program") from None
        with self.begin(meta) as txn:
            version, level = txn.get(FORMAT_VERSION), txn.get(LEVEL)
        if version is None:
            raise Corrupted(self.path, "has no format version")
        number = int.from_bytes(version, "big")
        if number > FORMAT:
            raise RefusedForSafety(
                f"{self.path} has format {number}, and this program reads up to {FORMAT}: use a newer release"
            )
        levels.require_readable(levels.number_of(level), self.path)

    def _open_handles(self, environment: lmdb.Environment, txn: lmdb.Transaction[bytes] | None) -> None:
        """Open every sub-database. Make the missing ones in `txn`; without `txn` raise RefusedForSafety for them."""

        def handle_of(name: str, dupsort: bool = False) -> Handle:
            try:
                return environment.open_db(name.encode(), txn, dupsort=dupsort, create=txn is not None)
            except lmdb.NotFoundError:
                raise RefusedForSafety(
                    f"{self.path} was written by an older release and lacks {name}: start its manager once"
                ) from None

        self.space_handles = {name: handle_of(name) for name in SPACES}
        self.index_handles = {index.name: handle_of(index.name, True) for index in INDEXES}
        self.tables = [_NO_TABLE] * (max(BY_NUMBER) + 1)
        for kind in KINDS:
            indexes = tuple((self.index_handles[i.name], keys_of) for i, keys_of in codec.index_keys(kind))
            self.tables[kind.number] = Table(handle_of(kind.bucket), indexes, codec.indexed_width(kind))
        tables = [self.tables[kind.number].handle for kind in KINDS]
        self.all_handles = (*self.space_handles.values(), *self.index_handles.values(), *tables)

    def _build_indexes(self, txn: lmdb.Transaction[bytes], names: list[str]) -> None:
        for kind in KINDS:
            for index, keys_of in codec.index_keys(kind):
                if index.name in names:
                    for id_, record in txn.cursor(self.tables[kind.number].handle):
                        for key in keys_of(leading_items(record, codec.indexed_width(kind))):
                            txn.put(key, id_, db=self.index_handles[index.name])

    # ---- transactions

    def read(self, *, expires: bool = False) -> ReadTransaction:
        """One snapshot: `with database.read() as transaction`."""
        return ReadTransaction(self, expires=expires)

    def write(self) -> WriteTransaction:
        """The next writer: `with database.write() as transaction`. Waits for the previous one."""
        return WriteTransaction(self)

    def begin_write(self, transaction: WriteTransaction) -> lmdb.Transaction[bytes]:
        """For WriteTransaction: wait for the previous writer, then begin."""
        if self._writer_thread == threading.get_ident():
            raise InvariantViolation("a write transaction within a write transaction")
        self._write_lock.acquire()
        environment = self._environment
        try:
            if environment is None:
                self.begin()  # raises Closed, with the reason
            elif self._read_only:
                raise InvariantViolation(f"{self.path} is open for reading only")
            else:
                txn = environment.begin(write=True)
                self._writer, self._writer_thread = transaction, threading.get_ident()
                return txn
        except lmdb.Error as error:
            self._write_lock.release()
            raise translated(error, self.path) from error
        except BaseException:
            self._write_lock.release()
            raise
        raise InvariantViolation("unreachable: a closed database began a transaction")

    def write_failed(self, error: lmdb.Error) -> WarrenError:
        """For WriteTransaction, before `end_write`: the error to raise for its failure."""
        failure = translated(error, self.path)
        if isinstance(failure, StorageFull):
            self._give_back_space(self._open_environment())
        return failure

    def _give_back_space(self, environment: lmdb.Environment) -> None:
        """Cut off the pages of a transaction that failed: others need the space too, above all the log.

        LMDB never shrinks a file. The pages after the last page of the newest commit are in no use: no snapshot has
        more pages. The file is truncated by path, because closing a descriptor of it would drop LMDB's locks.
        """
        used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if os.path.samestat(os.stat(self.path), self._file.status()) and self._file.status().st_size > used:
            os.truncate(self.path, used)

    def end_write(self) -> None:
        """For WriteTransaction: let the next writer in."""
        self._writer, self._writer_thread = None, 0
        self._write_lock.release()

    # ---- open reads

    def register(self, transaction: ReadTransaction) -> None:
        """For ReadTransaction: the transaction has begun."""
        self._reads.add(weakref.ref(transaction, self._reads.discard))

    def unregister(self, transaction: ReadTransaction) -> None:
        """For ReadTransaction: the transaction has ended."""
        self._reads.discard(weakref.ref(transaction))

    def _open_reads(self) -> list[ReadTransaction]:
        return [transaction for reference in tuple(self._reads) if (transaction := reference()) is not None]

    def oldest_read_age_seconds(self) -> float:
        """How long the oldest open view of this process has been open; 0 if none is open."""
        now = self.clock()
        return max((now - transaction.started_seconds for transaction in self._open_reads()), default=0.0)

    def end_old_reads(self, older_than_seconds: float = VIEW_AGE_MAX_SECONDS) -> int:
        """End views that have been open for longer; their next use raises Closed. Returns how many. For a timer."""
        now = self.clock()
        old = [t for t in self._open_reads() if t.expires and now - t.started_seconds > older_than_seconds]
        for transaction in old:
            transaction.end(EXPIRED)
        return len(old)

    @classmethod
    def end_old_reads_of_all(cls) -> int:
        """Call `end_old_reads` for every database that is open in this process for reading only."""
        while True:
            try:
                databases = list(cls._open_databases)
            except RuntimeError:  # another thread opened one meanwhile
                continue
            return sum(database.end_old_reads() for database in databases if database._read_only)

    def reader_check(self) -> int:
        """Free the reader slots of processes that died within a read. Returns how many. For a timer of the owner."""
        freed = 0 if self._owners_table is None else self._owners_table.free_dead()
        return freed + self._open_environment().reader_check()

    def readers(self) -> list[Holder]:
        """All open read transactions, of this process and of others. For the owner."""
        return [] if self._owners_table is None else self._owners_table.holders()

    @property
    def has_lock_file(self) -> bool:
        """Whether LMDB's lock file is in its place; else readers in other processes are refused. For the owner."""
        return self._owners_table is None or self._owners_table.is_in_place()

    def newest_transaction(self) -> int:
        """The number of the newest commit, as in `Holder.transaction`."""
        number: int = self._open_environment().info()["last_txnid"]
        return number

    # ---- durability and copies

    def checkpoint(self) -> None:
        """Write every commit so far to disk. Blocks until that is done, without the GIL. For a worker thread.

        Raises StorageFailed if the disk failed. The file must then not be trusted, not even by this process: the
        manager stops, and the next start rebuilds the state.
        """
        self._sync(self._open_environment())

    def _sync(self, environment: lmdb.Environment) -> None:
        if self._failed:
            raise StorageFailed(self.path, "an earlier write-back failed", errno.EIO)
        try:
            environment.sync(True)
        except lmdb.Error as error:
            self._failed = True
            failure = StorageFailed(self.path, f"could not be written to disk: {error}", code_of(error))
            self._condemn(failure)
            raise failure from error

    def _condemn(self, failure: StorageFailed) -> None:
        """Mark the file as untrusted: the kernel reports a failed write-back once, and then takes the lost pages for
        clean."""
        if self._state is None:
            return
        try:
            self._state.condemn(self.generation)
        except OSError as error:
            failure.add_note(f"its marker could not be changed either: {error}")

    def copy_to(self, descriptor: int, transaction: ReadTransaction | None = None) -> None:
        """Write a compact copy to a file that is open for writing: of now, or of the commit that `transaction` sees.
        Not synced.

        Writers go on meanwhile. The mode is that of the descriptor's file (0600); LMDB's own copy() writes 0644.
        """
        environment = self._open_environment()
        if transaction is None:  # not a transaction of LMDB: beside an owner it would have no slot
            with self.read() as now:
                self.copy_to(descriptor, now)
            return
        try:
            environment.copyfd(descriptor, compact=True, txn=transaction.raw)
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def renewed(self) -> Database:
        """A new generation with the present content of this one, published and open for writing. For the owner, while
        no thread writes. Raises StorageFull, OSError; nothing has changed then. Raises StorageFailed if it is not known
        which of the two the next open finds: then both must stay as they are."""
        if self._state is None or self._read_only:
            raise InvariantViolation(f"{self.path} is open for reading only")
        state, generation = self._state, self._state.next_generation()
        try:
            with closing(state.files.make_file(state.file_of(generation))) as file:
                self.copy_to(file.fileno())
                file.sync()
            database = Database.open_generation(state, generation, sync=not self._unsynced, clock=self.clock)
            try:
                database.publish()
            except BaseException:
                database.abandon()
                raise
        except BaseException as error:
            if isinstance(error, OSError) and state.current() == generation:
                detail = f"it is not known whether its new content is on the disk ({error})"
                raise StorageFailed(state.pointer, detail, error.errno or 0) from error
            state.remove(generation)
            raise
        return database

    def remove(self) -> None:
        """Remove the files of a generation that is closed and no longer current. Reads that have begun go on in
        them."""
        if self._state is not None:
            self._state.remove(self.generation)

    def publish(self) -> None:
        """Make this generation the current one of its directory. Its commits so far are synced first."""
        if self._state is None or self._read_only:
            raise InvariantViolation(f"{self.path} is open for reading only")
        self.checkpoint()
        self._state.publish(self.generation)

    @property
    def is_written_here(self) -> bool:
        """Whether this process is the one that writes this database."""
        return not self._read_only

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called, or this is a forked child."""
        return self._environment is None

    @property
    def is_parents(self) -> bool:
        """Whether this is a forked child, and the database belongs to its parent."""
        return self.begin is _refuse_forked

    def file_size_bytes(self) -> int:
        """The size of the file. The file grows and never shrinks. See `Transaction.used_bytes`."""
        self._open_environment()
        return self._file.status().st_size

    def free_bytes(self) -> int:
        """The bytes that users other than root may still write to the file system of the file."""
        return self._file.ask(self._files.free_bytes)

    def require_file(self) -> None:
        """Raises Corrupted if the file was removed: then the commits are lost. One system call."""
        if self._file.status().st_nlink == 0:
            raise moved(self.path)

    def _open_environment(self) -> lmdb.Environment:
        environment = self._environment
        if environment is None:
            self.begin()  # raises Closed, with the reason
            raise InvariantViolation("unreachable: a closed database began a transaction")
        return environment

    def close(self) -> None:
        """Sync, and note for the next open that everything is on disk. Idempotent; waits for the writer.

        Reads that have begun go on; the file is closed when the last has ended. Raises StorageFailed if the sync
        failed: the database is closed nevertheless, and marked as untrusted.
        """
        if self._writer_thread == threading.get_ident():
            raise InvariantViolation("a database closed within its own write transaction")
        if self._environment is None:  # also in a forked child, where the holder of the lock may not exist
            return
        with self._write_lock:
            environment, self._environment = self._environment, None
            self.begin = _refuse_closed
        try:
            if environment is not None and not self._read_only:
                self._sync(environment)
                if self._unsynced and self._state is not None:
                    self._state.clear_mark(self.generation)
        finally:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        if self._marker is not None:
            self._marker.close()
        self._file.close()

    def close_sealed(self) -> None:
        """Close, for the holder of the directory's lock, and seal the file. The file gets no seal if a read is still
        open, or if the disk has no space left for a seal. The next open then has to check every record."""
        has_readers = bool(self._open_reads())
        self.close()
        if has_readers or self._state is None:
            return
        try:
            self._state.seal(self.generation)
        except OSError as error:
            path = self._state.file_of(self.generation)
            log_event(logger, logging.WARNING, "state not sealed", f"the next open takes longer: {error}", path=path)

    def abandon(self) -> None:
        """Close without syncing, like a crash of the process: the marker stays. For a generation that is being
        replaced."""
        with self._write_lock:
            self._environment = None
            self.begin = _refuse_closed
        self._close_descriptors()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # ---- fork

    @classmethod
    def _close_all_in_child(cls) -> None:
        """An environment must not be used in a child: its reader slots and locks belong to the parent."""
        for database in list(cls._open_databases):
            cls._inherited.append((database._environment, database.begin))
            database._environment = None
            database.begin = _refuse_forked
            database._close_descriptors()
            database._writer_thread = 0
            database._write_lock = threading.Lock()  # no thread of this process holds it
            reads = database._open_reads()
            for read in reads:
                read.lock = threading.RLock()
            transactions: list[Transaction] = [*reads]
            if database._writer is not None:
                transactions.append(database._writer)
            cls._inherited.extend(transaction.abandon(FORKED) for transaction in transactions)


os.register_at_fork(after_in_child=Database._close_all_in_child)


class _File:
    """The database's file, also after its path leads to another. Closing an O_PATH descriptor drops none of LMDB's
    locks."""

    def __init__(self, path: str) -> None:
        self._descriptor: Final = RESERVE.call(os.open, path, os.O_PATH | os.O_CLOEXEC)
        self.close: Final = weakref.finalize(self, os.close, self._descriptor)
        self.close.atexit = False  # the end of the process closes the stores, which need their files for that

    def status(self) -> os.stat_result:
        """The status of the file. Raises Closed if this object is closed."""
        return self.ask(os.stat)

    def ask(self, question: Callable[[int], T]) -> T:
        """The answer of a system call about the open file. Raises Closed if this object is closed."""
        try:
            return question(self._descriptor)
        except OSError as error:  # perhaps closed just now by another thread, or by a signal handler in this one
            if error.errno != errno.EBADF:
                raise
            raise Closed from None


_numbers: Final = itertools.count(1)

_NO_TABLE: Final[Any] = None  # kind numbers begin at 1


def _opened_by_owner(state: StateDirectory, generation: int, sync: bool) -> tuple[lmdb.Environment, OwnersTable]:
    path = state.file_of(generation)
    try:
        return open_owned(path, sync=sync)
    except UnknownReaders as error:
        raise StateUntrusted(path, error.detail, generation) from error


def _readable_generation(state: StateDirectory) -> int:
    refuse_link(state.path)
    try:
        generation = state.current()
    except PermissionError:
        sharing.require_rights(state.pointer, data_dir=state.data_dir)
        raise
    if generation is None:
        problem = missing_data(state.data_dir)
        if problem is not None:
            raise RefusedForSafety(f"{state.data_dir} cannot be read: {problem}; name a manager's data directory")
        raise RefusedForSafety(
            f"{state.data_dir} holds no state yet: start its manager first, or name the right directory"
        )
    return generation
