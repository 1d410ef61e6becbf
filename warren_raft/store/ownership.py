"""The owner of a data directory, and the check that the directory is still the one that was opened.

Lives here: the lock that excludes a second process, and the watch over the directories and files that must stay in
their places. Not here: their contents (generations.py, raft/log/log.py). Invariant: of all processes that open a data
directory at most one owns it, even if somebody removes the lock file.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from contextlib import suppress
from typing import ClassVar, Final

from warren_raft.disk import privacy, sharing
from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.durable import make_directory
from warren_raft.disk.paths import absolute, moved, refuse_file
from warren_raft.errors import InUse

LOCK_NAME: Final = "lock"
_LOCK_RACES_MAX: Final = 10  # how often a lock file may be removed between its opening and its locking
_FILE_LOCK_SECONDS: Final = 0.1
"""How long a locked lock file is tried: `is_held` takes the lock for an instant."""
_DIRECTORY_LOCK_SECONDS: Final = 1.0
"""How long a locked directory with a free lock file is tried: systemd-tmpfiles locks each directory for a moment while
it looks for old files in it."""
_LOCK_PAUSE_SECONDS: Final = 0.02

LOCK_FILE_REMOVED: Final = (
    "the file lock was removed from this directory, perhaps by a clean-up of old files, and was made again: exclude "
    "this directory from clean-ups, which may remove the data next"
)


def _make_data_directory(path: str) -> None:
    """Make a missing directory durably with mode 0700, in a shared directory too: only the owner may decide to share
    it."""
    make_directory(path, private=True)


def require_usable(path: str) -> None:
    """Raises RefusedForSafety if a data directory, or a file in it, belongs to another user or is open to every user of
    the host, or if the directory holds other files and no data. Changes nothing. Does nothing if the directory does not
    exist. Raises RefusedForSafety also for a file in its place, and OSError."""
    refuse_file(path)
    privacy.require_data_or_empty(path)  # first: advice to change owner or modes would wreck a directory like /etc
    with suppress(FileNotFoundError):
        if os.stat(path).st_uid != 0:  # root may have made the directory for this user, perhaps by a package
            sharing.require_rights(path, data_dir=path)  # a third user could replace our files by others
    for name in (LOCK_NAME, "log", "state"):
        sharing.require_rights(os.path.join(path, name), data_dir=path)
    privacy.require_private(path)


def _lock(descriptor: int, seconds: float) -> bool:
    """Lock an open file or directory exclusively, within `seconds`. Returns whether that succeeded. Raises OSError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return True


def _holder_pid(descriptor: int) -> int:
    """The process that has the lock on an open file. 0 if that is not known: a container does not see the processes
    outside, and some file systems have other device numbers in /proc/locks."""
    found = os.fstat(descriptor)
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pid = 0
    with suppress(OSError), open("/proc/locks", encoding="ascii") as file:  # no /proc: the holder is not known
        for _, *words in map(str.split, file):
            if words[0] == "FLOCK" and words[4] == inode:
                pid = int(words[3])
    return max(0, pid)


def _named(pid: int) -> str:
    name = "another program"
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        name = file.read().strip()
    return f"process {pid} ({name})"


def _holder_of(descriptor: int, data_dir: str) -> str:
    """The holder of the lock on an open file, and the way out, for a message."""
    pid = _holder_pid(descriptor)
    if pid == os.getpid():
        return "another store of this process: close it first"
    if not pid:
        return (
            f"another process, which `fuser -v {data_dir}/{LOCK_NAME}` shows: stop it first, or name another directory"
        )
    return f"{_named(pid)}: stop it first, or name another directory"


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # some file systems do not lock directories
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


class DirectoryLock:
    """The ownership of a data directory: an flock on DATA_DIR/lock and one on DATA_DIR itself, until `release`.

    Both locks end with the process, however it ends. The lock on the directory still holds if a clean-up removes the
    file; earlier releases checked only the file. Raises InUse if another process, or another store of this process, has
    either lock. Raises RefusedForSafety if the directory or a file in it belongs to another user, or is open to every
    user of the host (disk/privacy.py). A forked child closes its copies: an flock lasts until the last copy of its
    descriptor is closed, so a child that outlives its parent would keep the parent's directory locked.
    """

    _held: ClassVar[weakref.WeakSet[DirectoryLock]] = weakref.WeakSet()

    def __init__(self, data_dir: str | os.PathLike[str]) -> None:
        self.path: Final = absolute(data_dir)
        require_usable(self.path)
        _make_data_directory(self.path)
        self._file = -1
        self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._file = self._locked_file()
            self._lock_directory()
        except BaseException:
            self.release()
            raise
        DirectoryLock._held.add(self)

    def _locked_file(self) -> int:
        """The locked file that has the lock's name."""
        for _ in range(_LOCK_RACES_MAX):
            try:
                descriptor = sharing.open_new(LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW, directory=self._directory)
            except OSError as error:  # it names only the file
                raise OSError(error.errno, error.strerror, os.path.join(self.path, LOCK_NAME)) from error
            try:
                if not _lock(descriptor, _FILE_LOCK_SECONDS):
                    raise InUse(self.path, f"is in use by {_holder_of(descriptor, self.path)}")
                if self._has_name(descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # it was removed after it was opened, so its lock excludes nobody
        raise InUse(self.path, f"has a lock file that is removed as soon as it is made ({LOCK_NAME})")

    def _has_name(self, descriptor: int) -> bool:
        try:
            named = os.stat(LOCK_NAME, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def _lock_directory(self) -> None:
        try:
            is_ours = _lock(self._directory, _DIRECTORY_LOCK_SECONDS)
        except OSError:
            return  # a file system that locks only files, as network file systems do
        if not is_ours:
            raise InUse(
                self.path,
                "is locked by another process, although its lock file is not (perhaps somebody removed the lock file): "
                f"`fuser -v {self.path}` shows that process",
            )

    @classmethod
    def is_held(cls, data_dir: str | os.PathLike[str]) -> bool:
        """Whether a process has the directory locked at this moment. Makes no file."""
        return any(_is_locked(path) for path in (os.path.join(data_dir, LOCK_NAME), os.fspath(data_dir)))

    @classmethod
    def holder(cls, data_dir: str | os.PathLike[str]) -> str | None:
        """The process that has the directory locked at this moment, for a message; None if no process has. Makes no
        file. Raises OSError."""
        if not cls.is_held(data_dir):
            return None
        pid = 0
        with suppress(FileNotFoundError):
            descriptor = os.open(os.path.join(data_dir, LOCK_NAME), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                pid = _holder_pid(descriptor)
            finally:
                os.close(descriptor)
        return _named(pid) if pid else "a process that is not known"

    def restore_file(self) -> bool:
        """Make and lock DATA_DIR/lock again if somebody removed or replaced it. Returns whether it was removed or
        replaced.

        Raises InUse if another process has locked the new file: a store of an older release that now works in this
        directory too. Raises OSError. One thread at a time. Costs two system calls if the file is in its place.
        """
        if self._has_name(self._file):
            return False
        before, self._file = self._file, self._locked_file()
        os.close(before)
        return True

    def release(self) -> None:
        """Give up the directory. Idempotent."""
        descriptors = self._file, self._directory
        self._file = self._directory = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # for all copies: a child may have been forked just now
                os.close(descriptor)

    @classmethod
    def _forget_in_child(cls) -> None:
        for lock in list(cls._held):
            descriptors = lock._file, lock._directory
            lock._file = lock._directory = -1
            for descriptor in descriptors:
                if descriptor >= 0:
                    os.close(descriptor)


os.register_at_fork(after_in_child=DirectoryLock._forget_in_child)


class Anchors:
    """Directories and files that must stay at their paths for as long as a store is open. All methods are thread-safe.

    Each is kept open (O_PATH, which does not affect locks), so that no other file gets its inode number meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}

    def hold(self, path: str) -> None:
        """From now on `path` must lead to the same file or directory. Does nothing if it is held already. Raises
        OSError."""
        with self._lock:
            if path not in self._held:
                self._held[path] = RESERVE.call(os.open, path, os.O_PATH | os.O_CLOEXEC)

    def let_go(self, path: str) -> None:
        """Call before the path is removed or replaced. Does nothing if the path is not held."""
        with self._lock:
            descriptor = self._held.pop(path, -1)
            if descriptor >= 0:
                os.close(descriptor)

    def require(self) -> None:
        """Raises Corrupted, with the path, if one of them is no longer in its place. Two system calls for each."""
        with self._lock:
            for path, descriptor in self._held.items():
                held = os.fstat(descriptor)
                try:
                    is_there = os.path.samestat(os.stat(path), held)
                except (FileNotFoundError, NotADirectoryError):
                    is_there = False
                if not is_there:
                    raise moved(path)

    def close(self) -> None:
        """Release all of them. Idempotent."""
        for path in list(self._held):
            self.let_go(path)
