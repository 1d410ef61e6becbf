"""Opening LMDB environments: as the one owner of a file, as a reader in another process, or without locks.

Lives here: LMDB's settings, which files are open in this process, and the effects of a fork. Not here: the contents
(database.py), how the owner sees a reader (reader_slots.py). Invariant: no file is open twice in one process, as LMDB
demands. Environments that a forked child inherited do not count, and are never used.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import lmdb
import lmdb._envid

from warren_raft.disk.descriptors import RESERVE
from warren_raft.errors import Corrupted, InUse, RefusedForSafety
from warren_raft.store.generations import is_read_only_file_system
from warren_raft.store.lmdb_errors import (
    MAX_READERS,
    StorageFailed,
    WouldBlock,
    code_of,
    refuse_newer_data,
    translated,
)
from warren_raft.store.reader_slots import OwnersTable, ReadersTable, lock_file_of

T = TypeVar("T")

MAP_SIZE_BYTES: Final = 64 * 1024**3
"""Address space reserved once for a database, because growing a map under readers is the weakest part of LMDB. It takes
no memory and no disk. Far above any state (100,000 containers are about 0.1 GB)."""

MAX_DATABASES: Final = 64  # kinds, indexes and three more, with spare ones for a newer version

LOCK_SECONDS: Final = 2.0
"""How long an owner waits for the lock of its process id. A reader that makes a lock file holds that lock for an
instant, and may have the same process id in another container."""
_PAUSE_SECONDS: Final = 0.01


class _Process:
    """The files that this process has open; a forked child begins with none."""

    def __init__(self) -> None:
        self.forks = -1
        self.after_fork()

    def after_fork(self) -> None:
        self.forks += 1
        self.opening = threading.Lock()
        self.opener = 0
        """The last thread that took the lock. While the lock is taken, this thread holds it."""
        self.with_locks: weakref.WeakKeyDictionary[lmdb.Environment, tuple[int, int]] = weakref.WeakKeyDictionary()


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


def _one_at_a_time(path: str, open_it: Callable[[], T]) -> T:
    """The result of `open_it`, called by one thread at a time. Raises InUse in a signal handler that interrupts its own
    thread in this function: the handler would wait for itself, and must not touch the lock file meanwhile."""
    thread = threading.get_ident()  # before the lock is taken: a signal handler may interrupt the call that takes it
    if _process.opener == thread and _process.opening.locked():
        raise InUse(path, "cannot be opened by a signal handler that interrupted the opening of a database; try again")
    with _process.opening:
        _process.opener = thread
        if _is_open_with_locks(path):
            raise InUse(path, "is already open in this process")
        return open_it()


# ------------------------------------------------------------------------------- files that py-lmdb refuses

_file_keys: Final[Any] = lmdb._envid.env_keys


def _keys_of_this_process(path: object, subdir: object) -> tuple[object, ...]:
    """py-lmdb remembers the open files and refuses to open one twice. It does not forget them in a forked child, where
    the environments belong to the parent. So its keys here also hold the number of forks of this process."""
    return tuple((_process.forks, key) for key in _file_keys(path, subdir))


lmdb._envid.env_keys = _keys_of_this_process  # py-lmdb looks the function up at each opening


def _is_open_with_locks(path: str) -> bool:
    """Whether this process has the file open with LMDB's locks. The system gives these locks up as soon as any
    descriptor of the lock file is closed, so the lock file must not even be opened while they are held."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) in _process.with_locks.values()


# ------------------------------------------------------------------------------- opening


def open_owned(path: str, *, sync: bool) -> tuple[lmdb.Environment, OwnersTable]:
    """Open an existing file for reading and writing, as the one process that owns the directory.

    Raises InUse, Corrupted, RefusedForSafety (a newer format), StorageFull, StorageFailed, OSError.
    """
    return _one_at_a_time(path, partial(_opened_by_owner, path, sync))


def _opened_by_owner(path: str, sync: bool) -> tuple[lmdb.Environment, OwnersTable]:
    table = OwnersTable(path)
    try:
        environment = _open_patiently(path, sync)
    except BaseException:
        table.close()
        raise
    with closing_on_failure(environment, path):
        status = os.stat(path)
        _process.with_locks[environment] = (status.st_dev, status.st_ino)
        table.set_apart(environment)
    return environment, table


def _open_patiently(path: str, sync: bool) -> lmdb.Environment:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return _open(path, sync=sync)
        except WouldBlock:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def open_foreign(path: str) -> tuple[lmdb.Environment, ReadersTable | None]:
    """Open a file for reading, while another process may own it and write to it. No table: no process can write to it.

    Raises FileNotFoundError, InUse, Corrupted, RefusedForSafety (a newer format; this process may not write to the lock
    file), StorageFull, StorageFailed, OSError.
    """
    return _one_at_a_time(path, partial(_opened_beside_owner, path))


def _opened_beside_owner(path: str) -> tuple[lmdb.Environment, ReadersTable | None]:
    try:
        table = ReadersTable(path, lambda: _open(path, read_only=True))
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        _require_read_only_file_system(path)
        return open_alone(path), None
    try:
        environment = open_alone(path)
    except BaseException:
        table.close()
        raise
    table.use(environment)
    return environment, table


def _require_read_only_file_system(path: str) -> None:
    """A mount for reading only is not enough: another mount of the same file system may let others write to the
    file."""
    if not is_read_only_file_system(os.path.dirname(path)):
        raise RefusedForSafety(
            f"{path} is mounted for reading only, but a reader must write to {lock_file_of(path)}, so that the manager "
            "sees the reader: mount it for writing too, or use `warren-raft snapshot save`"
        )


def open_alone(path: str) -> lmdb.Environment:
    """Open for reading without LMDB's locks and lock file: for a file that nobody writes, or with a ReadersTable."""
    return _open(path, read_only=True, lock=False)


def _open(path: str, *, sync: bool = True, read_only: bool = False, lock: bool = True) -> lmdb.Environment:
    refuse_newer_data(path)
    try:
        environment: lmdb.Environment = RESERVE.call(
            lmdb.open,
            path,
            map_size=MAP_SIZE_BYTES,
            subdir=False,
            readonly=read_only,
            sync=sync,
            mode=0o600,
            create=not read_only,
            max_readers=MAX_READERS,
            max_dbs=MAX_DATABASES,
            max_spare_txns=0,  # py-lmdb 3.0 would free a spare one in a forked child too, and so the parent's slot
            lock=lock,
            lib_version=0,  # LMDB's file format; without it the environment variable LMDB_DEFAULT_LIB_VERSION decides
        )
    except lmdb.Error as error:
        if code_of(error) == errno.ENOMEM:
            reason = f"{MAP_SIZE_BYTES >> 30} GiB of address space cannot be reserved: is there a limit (ulimit -v)?"
            raise StorageFailed(path, reason, errno.ENOMEM) from error
        if code_of(error) != errno.ENOENT:
            raise translated(error, path) from error
        if os.path.exists(path):  # LMDB reports the same error for an empty file
            raise Corrupted(path, "is empty") from None
        raise FileNotFoundError(errno.ENOENT, "no such database", path) from None
    with closing_on_failure(environment, path):
        _close_on_exec(path)
    return environment


def _close_on_exec(path: str) -> None:
    """LMDB opens its lock file with O_CLOEXEC, but not the data file: a program that this process starts would inherit
    it, with every secret in it. py-lmdb does not give its descriptor. If a sandbox hides /proc/self/fd, nothing is
    changed."""
    wanted = os.stat(path)
    with suppress(FileNotFoundError, PermissionError):
        for number in map(int, RESERVE.call(os.listdir, "/proc/self/fd")):
            try:
                if os.path.samestat(os.fstat(number), wanted):
                    os.set_inheritable(number, False)
            except OSError as error:
                if error.errno != errno.EBADF:  # another thread has closed it just now
                    raise


@contextmanager
def closing_on_failure(environment: lmdb.Environment, path: str) -> Iterator[None]:
    """Translate errors of LMDB in the block; close the environment after any error."""
    try:
        yield
    except lmdb.Error as error:
        environment.close()
        raise translated(error, path) from error
    except BaseException:
        environment.close()
        raise
