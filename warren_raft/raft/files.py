"""What the log does to a disk, as a protocol passed in, and the real implementations.

Lives here: the operations and their promises. Not here: what is written (log_format.py) and when (log.py).
Invariant: nothing survives a power cut for sure before sync() (bytes) or sync_directory() (names) returned.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from warren_raft.descriptors import RESERVE
from warren_raft.sharing import make_directory, open_new


class File(Protocol):
    """An open file. Offsets and sizes are bytes. Every method raises OSError as the system reports it."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """All of `data` at `offset`. After an OSError any prefix of it may have been written."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""

    def sync(self) -> None:
        """fdatasync: the bytes and the size written so far survive a power cut once this has returned.

        After an error the kernel may call the pages clean although they are not on disk: only writing
        the same bytes again and syncing again makes them durable. A file that has no name any more is an
        error too: its bytes are lost with this process.
        """

    def size(self) -> int:
        """Length in bytes."""

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing. Does not sync."""


class Files(Protocol):
    """A file system. Any thread may call; no two threads use the same File at the same moment."""

    def list_directory(self, path: str) -> list[str]:
        """The names in a directory, in no order. FileNotFoundError where there is none."""

    def make_directory(self, path: str) -> None:
        """One directory, mode 0700 (2770 in a shared one). FileExistsError where there is one."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing. `create` starts an empty file, mode 0600 (0660 in a shared directory), whatever
        was there."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name in the same directory, atomically."""

    def unlink(self, path: str) -> None:
        """Remove a name."""

    def sync_directory(self, path: str) -> None:
        """fsync of a directory: its names survive a power cut once this has returned."""


class OsFile:
    """A descriptor of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        parts = []
        while size > 0:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):  # a nearly full disk takes a part first, and says ENOSPC to the rest
            written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise OSError(errno.ESTALE, "the file was removed while it was written to")

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OsFiles:
    """The real file system. Symbolic links in the last part of a file's path are refused."""

    def list_directory(self, path: str) -> list[str]:
        return os.listdir(path)

    def make_directory(self, path: str) -> None:
        make_directory(path)

    def open(self, path: str, *, create: bool = False) -> OsFile:
        return OsFile(_open_file(path, None, create=create))

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        descriptor = _open_directory(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class HeldDirectory(OsFiles):
    """The real file system, with one directory (by its absolute path) that is opened once.

    Its names are looked up in that very directory from then on, also when the path leads elsewhere later, because it
    was moved, unmounted or replaced: nothing is ever written to, or removed from, the other directory. Other paths
    are looked up as OsFiles does. `close` gives the directory back.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = _open_directory(path, os.O_NOFOLLOW)

    def close(self) -> None:
        """A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def list_directory(self, path: str) -> list[str]:
        return os.listdir(self._descriptor) if path == self._path else super().list_directory(path)

    def open(self, path: str, *, create: bool = False) -> OsFile:
        name, directory = self._at(path)
        with _naming(path):
            return OsFile(_open_file(name, directory, create=create))

    def rename(self, old: str, new: str) -> None:
        (old_name, old_directory), (new_name, new_directory) = self._at(old), self._at(new)
        with _naming(old):
            os.rename(old_name, new_name, src_dir_fd=old_directory, dst_dir_fd=new_directory)

    def unlink(self, path: str) -> None:
        name, directory = self._at(path)
        with _naming(path):
            os.unlink(name, dir_fd=directory)

    def sync_directory(self, path: str) -> None:
        if path == self._path:
            os.fsync(self._descriptor)
        else:
            super().sync_directory(path)

    def _at(self, path: str) -> tuple[str, int | None]:
        """`path` as a name, and the directory to look it up in."""
        directory, name = posixpath.split(path)
        return (name, self._descriptor) if directory == self._path else (path, None)


def _open_file(path: str, directory: int | None, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    if create:
        return open_new(path, flags | os.O_TRUNC, directory=directory)
    return RESERVE.call(os.open, path, flags, dir_fd=directory)


def _open_directory(path: str, further_flags: int = 0) -> int:
    return RESERVE.call(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | further_flags)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Errors name the whole path, not the last part of it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
