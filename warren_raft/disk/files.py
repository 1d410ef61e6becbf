"""The log's operations on a disk, as a protocol that is passed in, and the real implementations.

Lives here: the operations and their promises. Not here: the bytes that are written (raft/log/format.py) and when
(raft/log/log.py). Invariant: bytes are sure to survive a power cut only after sync() has returned; names, after
sync_directory().
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.sharing import make_directory, open_new


class File(Protocol):
    """An open file. Offsets and sizes are bytes. Every method raises OSError as the system reports it."""

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, or fewer at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`. After an OSError any prefix of `data` may be written."""

    def truncate(self, size: int) -> None:
        """Truncate the file to `size` bytes."""

    def sync(self) -> None:
        """Call fdatasync. When it has returned, the bytes written so far and the size survive a power cut.

        After an error the kernel may call the pages clean although they are not on disk. Then only a second write of
        the same bytes and a second sync make them durable. If the file has no name any more, that is an error too,
        because its bytes are lost when this process ends.
        """

    def size(self) -> int:
        """The length in bytes."""

    def close(self) -> None:
        """Close the descriptor. Does not sync. A second call does nothing."""


class Files(Protocol):
    """A file system. Thread-safe, but two threads must not use the same File at the same time."""

    def list_directory(self, path: str) -> list[str]:
        """The names in a directory, in any order. FileNotFoundError if the directory does not exist."""

    def make_directory(self, path: str) -> None:
        """Make one directory, mode 0700 (2770 in a shared directory). FileExistsError if `path` exists."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing. With `create` the file is new or emptied, with mode 0600 (0660 in a shared
        directory)."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name in the same directory, atomically."""

    def unlink(self, path: str) -> None:
        """Remove a name."""

    def sync_directory(self, path: str) -> None:
        """Call fsync on a directory. When it has returned, the directory's names survive a power cut."""


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
        while written < len(data):  # a nearly full disk writes a part first, and raises ENOSPC for the rest
            written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise OSError(errno.ESTALE, "the file was removed while this process wrote to it")

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
    """The real file system, with one directory (given by its absolute path) that is opened once.

    Names in this directory are looked up in the opened directory, also if its path later leads to another directory,
    because it was moved, unmounted or replaced. So nothing is ever written to or removed from the wrong directory.
    Other paths are looked up as in OsFiles. `close` closes the directory.
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
        """The name for `path`, and the descriptor of the directory in which it is looked up."""
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
    """Make errors name the whole path, not its last part only."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
