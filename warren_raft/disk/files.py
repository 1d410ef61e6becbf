"""The operations that decide what a disk holds after a crash, as a protocol that is passed in, and the real disk.

Lives here: making, syncing, renaming and removing files and directories, and the free space. Not here: reading a file
by its path, locks, and LMDB, which opens, maps, writes and syncs its database files by itself. Invariant: bytes are
sure to survive a power cut only after sync() has returned; names, after sync_directory().
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, Protocol

from warren_raft.disk import sharing
from warren_raft.disk.descriptors import RESERVE


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

    def fileno(self) -> int:
        """The descriptor, for a lock on the file, and for LMDB or the kernel to copy into it. Bytes that come so are
        durable after sync() too. io.UnsupportedOperation if the file has no descriptor."""

    def close(self) -> None:
        """Close the descriptor. Does not sync. A second call does nothing."""


class Files(Protocol):
    """A file system. Thread-safe, but two threads must not use the same File at the same time. Every method raises
    OSError as the system reports it."""

    def list_directory(self, path: str) -> list[str]:
        """The names in a directory, in any order. FileNotFoundError if the directory does not exist."""

    def make_directory(self, path: str, *, private: bool = False) -> None:
        """Make one directory, mode 0700 (2770 in a shared directory, unless `private`). FileExistsError if `path`
        exists."""

    def make_file(self, path: str, *, private: bool = False) -> File:
        """Make a file and open it for reading and writing, mode 0600 (0660 in a shared directory, unless `private`).
        FileExistsError if `path` exists, also as a symbolic link."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing. With `create` the file is new or emptied, with mode 0600 (0660 in a shared
        directory)."""

    def rename(self, old: str, new: str) -> None:
        """Give a file or a directory another name on the same file system, atomically. A file `new` is replaced."""

    def link(self, old: str, new: str) -> None:
        """Give a file a second name on the same file system. FileExistsError if `new` exists."""

    def unlink(self, path: str) -> None:
        """Remove a name of a file."""

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""

    def remove_tree(self, path: str) -> None:
        """Remove a directory and everything in it, step by step. FileNotFoundError if it does not exist."""

    def sync_directory(self, path: str) -> None:
        """Call fsync on a directory. When it has returned, the directory's names survive a power cut."""

    def free_bytes(self, place: str | int) -> int:
        """The bytes that users other than root may still write to the file system of a path or of an open file."""


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
        try:
            written = os.pwrite(self._descriptor, data, offset)
            while written < len(data):  # a nearly full disk writes a part first, and raises ENOSPC for the rest
                written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)
        except OSError as error:
            raise self._named(error) from None

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._named(error) from None

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._named(error) from None
        if os.fstat(self._descriptor).st_nlink == 0:
            raise OSError(errno.ESTALE, "the file was removed while this process wrote to it")

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        return self._descriptor

    def _named(self, error: OSError) -> OSError:
        """The same error, with the path of the file as far as the system knows it."""
        with suppress(OSError):
            error.filename = os.readlink(f"/proc/self/fd/{self._descriptor}")
        return error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class OsFiles:
    """The real file system. Symbolic links in the last part of a file's path are refused."""

    def list_directory(self, path: str) -> list[str]:
        return RESERVE.call(os.listdir, path)

    def make_directory(self, path: str, *, private: bool = False) -> None:
        if private:
            os.mkdir(path, sharing.PRIVATE_DIRECTORY)
        else:
            sharing.make_directory(path)

    def make_file(self, path: str, *, private: bool = False) -> OsFile:
        return OsFile(_make_file(path, None, private=private))

    def open(self, path: str, *, create: bool = False) -> OsFile:
        return OsFile(_open_file(path, None, create=create))

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def remove_tree(self, path: str) -> None:
        shutil.rmtree(path)

    def sync_directory(self, path: str) -> None:
        descriptor = _open_directory(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, place: str | int) -> int:
        status = os.statvfs(place)
        return status.f_bavail * status.f_frsize


class Capacity(NamedTuple):
    """A file system."""

    size_bytes: int
    free_bytes: int
    """For users other than root."""
    inodes: int
    """0: it has no fixed number."""
    free_inodes: int


def capacity(path: str) -> Capacity:
    """That of the file system of a path. Raises OSError."""
    found = os.statvfs(path)
    unit = found.f_frsize
    return Capacity(found.f_blocks * unit, found.f_bavail * unit, found.f_files, found.f_favail)


OS_FILES: Final = OsFiles()
"""The real file system, for each module to which no other is given."""


class HeldDirectory(OsFiles):
    """The real file system, with one directory (given by its absolute path) that is opened once.

    Names of files in this directory are looked up in the opened directory, also if its path later leads to another
    directory, because it was moved, unmounted or replaced. So no file is ever written to or removed from the wrong
    directory. Other paths, and directories in this one, are looked up as in OsFiles. `close` closes the directory.
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

    def make_file(self, path: str, *, private: bool = False) -> OsFile:
        name, directory = self._at(path)
        with _naming(path):
            return OsFile(_make_file(name, directory, private=private))

    def open(self, path: str, *, create: bool = False) -> OsFile:
        name, directory = self._at(path)
        with _naming(path):
            return OsFile(_open_file(name, directory, create=create))

    def rename(self, old: str, new: str) -> None:
        (old_name, old_directory), (new_name, new_directory) = self._at(old), self._at(new)
        with _naming(old):
            os.rename(old_name, new_name, src_dir_fd=old_directory, dst_dir_fd=new_directory)

    def link(self, old: str, new: str) -> None:
        (old_name, old_directory), (new_name, new_directory) = self._at(old), self._at(new)
        with _naming(old):
            os.link(old_name, new_name, src_dir_fd=old_directory, dst_dir_fd=new_directory, follow_symlinks=False)

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


def _make_file(path: str, directory: int | None, *, private: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    if private:
        return RESERVE.call(os.open, path, flags, sharing.PRIVATE_FILE, dir_fd=directory)
    return sharing.open_new(path, flags, directory=directory)


def _open_file(path: str, directory: int | None, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    if create:
        return sharing.open_new(path, flags | os.O_TRUNC, directory=directory)
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
