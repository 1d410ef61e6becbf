"""Readers in other processes: how they keep the owner of a database from reusing pages that they still read.

LMDB has a table of readers in its lock file, and identifies a reader by its process id. Two processes in two containers
can have the same id: then the second process cannot read at all, and each process may free the slots of the other. So
readers in other processes do not use LMDB's locks. The owner sets slots of that table apart, which LMDB then gives to
nobody. A reader takes such a slot with a lock of its own, and enters the transaction that it reads, as LMDB does.

Lives here: the table, and its use by owner and readers. Not here: the choice of the file (database.py). Invariant:
while a reader reads, its slot holds a transaction that is not newer than the one it reads, and nobody frees that slot.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import lmdb

from warren_raft.disk import sharing
from warren_raft.disk.descriptors import RESERVE
from warren_raft.errors import InUse
from warren_raft.store.lmdb_errors import MAX_READERS, WouldBlock, no_space_as_storage_full
from warren_raft.support import forking

# ---------------------------------------------------------------------------------------------- LMDB's lock file
#
# MDB_txninfo in mdb.c of LMDB 0.9: a magic number, a format, a mutex, the newest transaction, the number of slots that
# were ever used; another mutex; then the slots, a cache line each: transaction (8 bytes), process (4), thread (at 16).

_MAGIC: Final = 0xBEEFC0DE
_LINE: Final = 64
_NOTHING: Final = 2**64 - 1
"""The transaction in the slot of a reader that is not reading at the moment."""


def _mutex_bytes() -> int:
    """sizeof(pthread_mutex_t) on 64-bit machines, of glibc and musl."""
    try:
        is_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # musl
        is_glibc = False
    return 48 if os.uname().machine == "aarch64" and is_glibc else 40


_NEWEST: Final = 8 + _mutex_bytes()
_COUNT: Final = _NEWEST + 8
_SLOTS_AT: Final = -(-(_COUNT + 4) // _LINE) * _LINE + -(-_mutex_bytes() // _LINE) * _LINE
FILE_BYTES: Final = _SLOTS_AT + MAX_READERS * _LINE

# ---------------------------------------------------------------------------------------------- slots set apart

FIRST: Final = 16
"""The slots before this one are LMDB's: it uses one or two of them before the others are set apart."""
SLOTS: Final = 256
"""The most read transactions of other processes at the same time. The owner checks each slot when it writes: 16 KB."""

_NUMBER: Final = 2**30
"""Slot i has _NUMBER + i as its process id. No process has such an id (PID_MAX_LIMIT of Linux is 2^22)."""
_CLAIM: Final = 2**40
"""The process that has locked byte _CLAIM + i of the lock file may use slot i. LMDB itself locks byte 0, and the byte
at the offset of a process id."""
_ATTACH: Final = _CLAIM - 1
"""The byte that is locked by the one reader that is attaching."""
_OWNED: Final = 2**40
"""The byte of the data file that its owner has locked, from before it opens the file until it has closed the file."""
_READ: Final = 2**40 + 1
"""The byte of the data file that every reader in another process has locked."""

ATTACH_SECONDS: Final = 10.0
"""How long a reader waits for another reader that is attaching, and for a lock file that is being made."""
REMOVED_SECONDS: Final = 1.0
"""How long an owner may hold the data file without this lock file. Then the owner uses another lock file."""
IN_DOUBT_SECONDS: Final = 1.0
"""How long the newest transaction may be in the database and not in the lock file, before its writer counts as dead."""
_PAUSE_SECONDS: Final = 0.002


def lock_file_of(path: str) -> str:
    """LMDB's lock file for the data file `path`."""
    return f"{path}-lock"


def _open_lock_file(path: str) -> int:
    """Open the lock file of the data file `path`; make it if it is missing."""
    descriptor = sharing.open_new(lock_file_of(path), os.O_RDWR | os.O_NOFOLLOW)
    try:
        sharing.correct_mode(lock_file_of(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _flock(kind: int, start: int, length: int = 1) -> bytes:
    """struct flock of fcntl(2), on 64-bit machines."""
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def _try_lock(descriptor: int, kind: int, start: int, length: int = 1) -> bool:
    """Lock bytes for this descriptor. Returns False if another process has them. This is an open file description lock:
    closing another descriptor of the file does not release it. A process that dies releases its locks."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(kind, start, length))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(descriptor: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, length))


def _is_locked(descriptor: int, start: int) -> bool:
    """Whether another descriptor has a lock on the byte."""
    answer: bytes = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, start))
    kind: int = struct.unpack_from("@h", answer)[0]
    return kind != fcntl.F_UNLCK


def _slot(number: int) -> int:
    """The offset of slot `number` of those set apart, in bytes."""
    return _SLOTS_AT + (FIRST + number) * _LINE


_SET_APART: Final = tuple((number, _slot(number) // 8) for number in range(SLOTS))
"""The number of each slot set apart, and where it begins, in words of 8 bytes."""


class _Table:
    """The lock file in memory: `long` in words of 8 bytes, `short` in words of 4. A word is read or written at once.

    The module mmap is not used: it keeps a second descriptor of the file, and a forked child could not release its
    locks.
    """

    def __init__(self, descriptor: int) -> None:
        address = _map(None, FILE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
        if address == _MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._address: Final[int] = address
        whole = memoryview((ctypes.c_char * FILE_BYTES).from_address(address)).cast("B")
        self.long: Final = whole.cast("Q")
        self.short: Final = whole.cast("I")

    def unmap(self) -> None:
        """Both views raise ValueError afterwards. Reading unmapped memory would end the process (SIGSEGV)."""
        self.long.release()
        self.short.release()
        _unmap(self._address, FILE_BYTES)

    def set_apart(self) -> None:
        """Mark the slots that LMDB must not use. Any process may do it, at any time: all write the same."""
        for number, at in _SET_APART:
            if self.short[2 * at + 2] == 0:
                self.long[at] = _NOTHING
                self.short[2 * at + 2] = _NUMBER + number
        if self.short[_COUNT // 4] < FIRST + SLOTS:
            self.short[_COUNT // 4] = FIRST + SLOTS  # the writer checks this many slots


def _allocate(descriptor: int) -> None:
    """Reserve space for the whole lock file. Writing to a page of it without space ends the process (SIGBUS)."""
    if _fallocate(descriptor, 0, 0, FILE_BYTES) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        if os.fstat(descriptor).st_size < FILE_BYTES:
            os.ftruncate(descriptor, FILE_BYTES)


_libc: Final = ctypes.CDLL(None, use_errno=True)
_map: Final[Any] = _libc.mmap
_map.restype = ctypes.c_void_p
_map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_unmap: Final[Any] = _libc.munmap
_unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_fallocate: Final[Any] = _libc.fallocate  # posix_fallocate writes into the file if the call is not supported
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


# ---------------------------------------------------------------------------------------------- the owner's side


class Holder(NamedTuple):
    """A read transaction that is open in any process."""

    pid: int
    """The process id, in the process's own namespace of process ids."""
    namespace: int
    """The number of that namespace (`lsns -t pid` shows it); 0 if it is not known."""
    transaction: int
    """LMDB's number of the last commit that the transaction sees."""
    uses_lmdbs_locks: bool
    """True for the owner itself, and for other programs."""


class UnknownReaders(InUse):
    """Other processes read the file, and their lock file was removed: the owner cannot see which pages they read."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            f"is read by processes that opened it before {lock_file_of(path)} was removed: stop them; "
            f"`fuser -v {path}` shows them",
        )


class OwnersTable:
    """The slots of an open database, for its one owner. Any thread.

    Make it before LMDB opens the file. Call `set_apart` as soon as LMDB has opened the file, before any read. It is
    closed after the environment is gone, not before: closing any descriptor of the lock file releases all of LMDB's
    locks on it.
    """

    def __init__(self, path: str) -> None:
        self._path: Final = path
        self._data = RESERVE.call(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._lock = -1
        self._table: _Table | None = None
        try:
            _try_lock(self._data, fcntl.F_RDLCK, _OWNED)
            self._lock = _open_lock_file(path)
            self._require_known_readers()
            # LMDB frees the slots of a process if its byte is not locked.
            _try_lock(self._lock, fcntl.F_RDLCK, _NUMBER, SLOTS)
            if os.fstat(self._lock).st_size >= FILE_BYTES:
                self._free_own()
            with no_space_as_storage_full(lock_file_of(path)):
                _allocate(self._lock)
        except BaseException:
            self.close()
            raise
        forking.let_go_in_child(self)

    def descriptors(self) -> Iterator[int]:
        """For support/forking.py."""
        yield from (self._data, self._lock)

    def _require_known_readers(self) -> None:
        """Raises UnknownReaders if a process reads the data file and uses another lock file than this."""
        deadline = time.monotonic() + REMOVED_SECONDS
        while _is_locked(self._data, _READ) and not _is_locked(self._lock, 0):
            if time.monotonic() > deadline:  # so it is not a reader that is just ending
                raise UnknownReaders(self._path)
            time.sleep(_PAUSE_SECONDS)

    def is_in_place(self) -> bool:
        """Whether new readers find the lock file. If not, they are refused until the owner is started again."""
        try:
            return os.path.samestat(os.stat(lock_file_of(self._path)), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def _free_own(self) -> None:
        """Free the slots of an earlier process that had the same process id, as the first process of every container
        has. LMDB takes these slots for its own, and never frees them."""
        own = os.getpid()
        if not _try_lock(self._lock, fcntl.F_WRLCK, own):
            return  # it is alive, in another container
        try:
            table = os.pread(self._lock, FILE_BYTES, 0)
            for at in range(_SLOTS_AT, FILE_BYTES, _LINE):
                if struct.unpack_from("@I", table, at + 8)[0] == own:
                    os.pwrite(self._lock, bytes(4), at + 8)
        finally:
            _unlock(self._lock, own)

    def set_apart(self, environment: lmdb.Environment) -> None:
        """Call when LMDB has opened the file and no transaction has begun."""
        weakref.finalize(environment, self.close).atexit = False
        self._table = _Table(self._lock)
        # If a reader has the lock file open, LMDB trusts the file. If an earlier owner used another lock file (because
        # somebody removed this one and put it back), LMDB would write over the newest transaction.
        newest = environment.info()["last_txnid"]
        self._table.long[_NEWEST // 8] = max(newest, self._table.long[_NEWEST // 8])
        self._table.set_apart()

    def close(self) -> None:
        """Call once, when the environment is gone, or was not opened."""
        table, self._table = self._table, None
        if table is not None:
            table.unmap()
        for descriptor in (self._lock, self._data):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._data = -1

    def holders(self) -> list[Holder]:
        """All open read transactions."""
        table = self._table
        found: list[Holder] = []
        if table is not None:
            for at in range(_SLOTS_AT // 8, (_SLOTS_AT + table.short[_COUNT // 4] * _LINE) // 8, _LINE // 8):
                transaction, process, identity = table.long[at], table.short[2 * at + 2], table.long[at + 2]
                if process == 0 or transaction == _NOTHING:
                    continue
                is_apart = _NUMBER <= process < _NUMBER + SLOTS
                pid, namespace = (identity & 0xFFFF_FFFF, identity >> 32) if is_apart else (process, 0)
                found.append(Holder(pid, namespace, transaction, not is_apart))
        return found

    def free_dead(self) -> int:
        """Free the slots set apart of readers that died. Returns how many. One thread at a time."""
        table, freed = self._table, 0
        if table is not None:
            long = table.long
            for number, at in _SET_APART:
                if long[at] != _NOTHING and _try_lock(self._lock, fcntl.F_WRLCK, _CLAIM + number):
                    long[at] = _NOTHING
                    _unlock(self._lock, _CLAIM + number)
                    freed += 1
        return freed


# ---------------------------------------------------------------------------------------------- a reader's side


def pid_namespace() -> int:
    """The number of this process's namespace of process ids; 0 if it is not known. For messages only."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino & 0xFFFF_FFFF
    except OSError:  # a sandbox hides it
        return 0


class ReadersTable:
    """The slots, for one reader in a process that does not own the database. Any thread.

    Make it before LMDB opens the data file without its locks; then call `use`. `open_natively` opens an environment
    with LMDB's locks: by that LMDB makes its lock file if no process has it open. Raises InUse (another reader is
    attaching, or the lock file is not the owner's), OSError.
    """

    def __init__(self, path: str, open_natively: Callable[[], lmdb.Environment]) -> None:
        self._path: Final = path
        self._free: list[int] = []
        self._users: dict[int, int] = {}
        """Slot -> id() of the ForeignRead that has it. Each step is one operation of a dict or a list: the garbage
        collector may give a slot back between any two lines, and must not wait for a lock."""
        self._claiming = threading.RLock()  # a signal handler may read while its thread claims a slot
        self._claimed: dict[int, object] = {}
        """Number of a slot that is locked, or is being locked just now -> the token of that call of `_claim_slot`."""
        self._descriptor = _open_lock_file(path)
        self._data = -1
        try:
            with no_space_as_storage_full(lock_file_of(path)):
                _allocate(self._descriptor)
            self._attach(open_natively)
            self._data = RESERVE.call(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            _try_lock(self._data, fcntl.F_RDLCK, _READ)
            self._table: Final = self._mapped()
        except BaseException:
            for descriptor in (self._data, self._descriptor):
                if descriptor >= 0:
                    os.close(descriptor)
            raise
        self._begin: Callable[..., lmdb.Transaction[Any]]
        self._held: Final[list[lmdb.Environment]] = []
        descriptors = (self._data, self._descriptor)
        self._close: Final = weakref.finalize(self, _close_table, descriptors, self._table, self._held)
        self._close.atexit = False
        self._table.set_apart()  # after `finalize`: it takes a while, and an exception (Ctrl-C) may arrive in it
        _readers_tables.add(self)
        forking.let_go_in_child(self)

    def use(self, environment: lmdb.Environment) -> None:
        """Read from `environment`, which is opened without LMDB's locks. It is kept until this object is closed or
        gone. The lock file is closed first, because another environment of this process may lock it afterwards."""
        self._begin = environment.begin
        self._held.append(environment)

    def close(self) -> None:
        """Call if the opening failed. Otherwise the table is closed when nothing refers to it any more."""
        self._close()

    def descriptors(self) -> Iterator[int]:
        """For support/forking.py."""
        if self._close.alive:  # otherwise other files may have these numbers by now
            yield from (self._data, self._descriptor)

    @staticmethod
    def forget_all_in_child() -> None:
        """In a forked child: the slots belong to the parent and stay as they are."""
        for table in list(_readers_tables):
            table._close.detach()
            table._users.clear()

    # ---- attaching

    def _attach(self, open_natively: Callable[[], lmdb.Environment]) -> None:
        """Hold byte 0, as LMDB does, of a lock file that LMDB has made: then no process makes the file again."""
        deadline = time.monotonic() + ATTACH_SECONDS
        while not _try_lock(self._descriptor, fcntl.F_WRLCK, _ATTACH):
            self._pause(deadline, "is being opened by another reader, which makes no progress")
        try:
            without_owner = time.monotonic() + REMOVED_SECONDS
            while not self._hold(open_natively, without_owner):
                self._pause(deadline, "is being opened by another process, which makes no progress")
        finally:
            _unlock(self._descriptor, _ATTACH)
        if os.pread(self._descriptor, 4, 0) != _MAGIC_BYTES:
            raise InUse(self._path, "is open in a process of another release: stop that process")

    def _mapped(self) -> _Table:
        """Map through a descriptor of its own: a mapped file stays open, in a forked child too, and keeps its locks."""
        descriptor = RESERVE.call(os.open, lock_file_of(self._path), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not os.path.samestat(os.fstat(descriptor), os.fstat(self._descriptor)):
                raise InUse(self._path, "has another lock file than a moment ago")
            return _Table(descriptor)
        finally:
            os.close(descriptor)

    def _pause(self, deadline: float, reason: str) -> None:
        if time.monotonic() > deadline:
            raise InUse(self._path, reason)
        time.sleep(_PAUSE_SECONDS)

    def _hold(self, open_natively: Callable[[], lmdb.Environment], without_owner: float) -> bool:
        """Whether byte 0 is ours now. It is never locked just for a moment: an owner that opens the file in that moment
        would trust the content of the file, which may be from another boot of the machine."""
        if _is_locked(self._descriptor, 0):
            return _try_lock(self._descriptor, fcntl.F_RDLCK, 0)  # unless LMDB makes the file just now
        if self._is_owned():
            if time.monotonic() > without_owner:
                raise InUse(
                    self._path,
                    f"is open in a manager that uses another lock file: {lock_file_of(self._path)} was removed; "
                    "restart that manager",
                )
            return False  # it is opening the file
        try:
            environment = open_natively()
        except WouldBlock:
            return False  # others were faster, and one of them has our process id
        try:
            return _try_lock(self._descriptor, fcntl.F_RDLCK, 0)
        finally:
            environment.close()

    def _is_owned(self) -> bool:
        if self._data >= 0:
            return _is_locked(self._data, _OWNED)
        descriptor = RESERVE.call(os.open, self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return _is_locked(descriptor, _OWNED)
        finally:
            os.close(descriptor)

    # ---- reading

    def begin(self, *arguments: object) -> ForeignRead:
        """Like `lmdb.Environment.begin`, for `with`. Raises InUse (no slot is free), lmdb.Error."""
        read = ForeignRead(self)
        slot = read.slot = self._take(id(read))
        long, newest_at, doubted_at = self._table.long, _NEWEST // 8, 0.0
        while True:
            newest = long[newest_at]
            long[slot] = newest
            # From here on the writer keeps the pages that `newest` sees. No memory barrier is needed: a writer that has
            # not seen the slot yet reuses such pages in its third transaction from now at the earliest, and `newest` is
            # checked once more below.
            transaction = self._begin(*arguments)
            if transaction.id() == newest == long[newest_at]:
                break
            # The writer is at work, and the header page may have been read half written. If this lasts, the writer died
            # after it had written the page and before it entered that in the lock file.
            now = time.monotonic()
            doubted_at = doubted_at or now
            if transaction.id() > newest and now - doubted_at > IN_DOUBT_SECONDS and not self._is_owned():
                break
            transaction.abort()
            if now - doubted_at > ATTACH_SECONDS:
                raise InUse(
                    self._path, "changes all the time, or its manager uses another lock file: restart that manager"
                )
            if now > doubted_at:
                time.sleep(_PAUSE_SECONDS)
        read.transaction = transaction
        return read

    def _take(self, user: int) -> int:
        try:
            slot = self._free.pop()
        except IndexError:
            slot = self._claim()
        self._users[slot] = user
        return slot

    def give_back(self, slot: int, user: int) -> None:
        """Free the slot if it belongs to this user. `slot` is below 0 if an interrupt came before the user knew it."""
        users = self._users
        if not self._close.alive:
            return  # the table was closed: a read that an interrupt left over is collected after the table
        if slot < 0:
            slot = next((number for number, whose in list(users.items()) if whose == user), slot)
        if users.get(slot) == user:
            self._table.long[slot] = _NOTHING
            del users[slot]
            self._free.append(slot)

    def _claim(self) -> int:
        """Claim a slot that no other reader has. Returns the index of its first word."""
        with self._claiming:
            start = secrets.randbelow(SLOTS)
            for number in (*range(start, SLOTS), *range(start)):
                if number not in self._claimed and self._claim_slot(number):
                    return _slot(number) // 8
        raise InUse(self._path, f"has {SLOTS} open read transactions of other processes, the most there can be")

    def _claim_slot(self, number: int) -> bool:
        """The lock on a slot excludes other processes. `_claimed` excludes a signal handler that reads in the middle of
        this, because the kernel would grant it the lock again. The entry in `_claimed` is made first, in one step."""
        token = object()
        is_ours = False
        try:
            is_ours = self._claimed.setdefault(number, token) is token and self._lock_slot(number)
        finally:
            if not is_ours and self._claimed.get(number) is token:
                del self._claimed[number]
        return is_ours

    def _lock_slot(self, number: int) -> bool:
        descriptor, at = self._descriptor, _slot(number)
        if not _try_lock(descriptor, fcntl.F_WRLCK, _CLAIM + number):
            return False
        is_apart = self._table.short[(at + 8) // 4] == _NUMBER + number
        if not is_apart or not _try_lock(descriptor, fcntl.F_RDLCK, _NUMBER + number):
            _unlock(descriptor, _CLAIM + number)
            return False
        self._table.long[at // 8] = _NOTHING  # a reader that died may have left its transaction
        self._table.long[at // 8 + 2] = pid_namespace() << 32 | os.getpid()  # LMDB shows it as the thread
        return True


_MAGIC_BYTES: Final = struct.pack("@I", _MAGIC)


class ForeignRead:
    """A read transaction with its slot. `with` gives LMDB's transaction."""

    _is_over = True
    """True if an interrupt came while the object was made."""

    def __init__(self, table: ReadersTable) -> None:
        self._table = table
        self.slot = -1
        self.transaction: lmdb.Transaction[Any] | None = None
        self._is_over = False

    def __enter__(self) -> Any:
        return self.transaction

    def __exit__(self, *_exception: object) -> None:
        self.abort()

    def get(self, key: bytes) -> Any:
        """One record, or None. Ends the transaction."""
        with self as transaction:
            return transaction.get(key)

    def abort(self) -> None:
        """End the transaction, then give the slot back. Idempotent."""
        if self.transaction is not None:
            self.transaction.abort()
        self._table.give_back(self.slot, id(self))
        self._is_over = True

    def __del__(self) -> None:
        if not self._is_over:
            self.abort()


def _close_table(descriptors: tuple[int, ...], table: _Table, held: list[lmdb.Environment]) -> None:
    """The slots become free with the locks. The environment goes last. Each step is done even if an exception (Ctrl-C)
    arrives in the previous step."""
    data, lock = descriptors
    try:
        table.unmap()
    finally:
        try:
            os.close(data)
        finally:
            try:
                os.close(lock)
            finally:
                held.clear()


_readers_tables: Final[weakref.WeakSet[ReadersTable]] = weakref.WeakSet()
os.register_at_fork(after_in_child=ReadersTable.forget_all_in_child)
