"""A disk in memory for tests: the bytes that were written, those that are durable, and faults at any operation.

For each file it keeps the bytes that a reader sees (the page cache), the bytes that a power cut leaves, and the set of
4 KiB pages in which they may differ. For each directory it keeps the changes of names that no sync_directory has
covered. Model: a whole page is lost or kept; of the changes of names, the first few survive in their order; a failed
sync (EIO) leaves pages clean that never became durable, as Linux does. Not modelled: bytes that change by themselves
(tests use `set_content`), pages torn inside, file systems that reorder changes of names, directories that move or go.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import random
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

PAGE = 4096

T = TypeVar("T")

Keep = Callable[[str, int], bool]  # (path, page number) -> does this unsynced page survive the power cut?


def keep_none(_path: str, _page: int) -> bool:
    return False


def keep_all(_path: str, _page: int) -> bool:
    return True


def keep_some(source: random.Random, share: float = 0.5) -> Keep:
    """Each page survives with this probability, independently of other pages."""
    return lambda _path, _page: source.random() < share


class Crashed(BaseException):
    """The process died in this operation. It is neither an OSError nor an Exception, so that no code handles it."""


class Fault(NamedTuple):
    """The failure of an operation. `done`: the part of the operation that takes effect first, 0 to 1."""

    error: int | None  # an errno, or None: the process dies
    done: float


class _Inode:
    __slots__ = ("data", "dirty", "durable", "path", "resized")

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.resized = False  # shortened since the last sync: a power cut may bring the old length back

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:end] = data
        self.dirty.update(range(offset // PAGE, -(-end // PAGE)))

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self.dirty = {page for page in self.dirty if page * PAGE < size}
        self.resized = True

    def sync(self) -> None:
        size = len(self.data)
        if len(self.dirty) * PAGE >= size:
            self.durable[:] = self.data
        else:
            self._resize_durable(size)
            for page in self.dirty:
                self._keep(page)
        self.dirty.clear()
        self.resized = False

    def lose(self, keep: Keep) -> None:
        """A power cut: only the durable bytes and the unsynced pages that `keep` names are left."""
        if self.resized and keep(self.path, -1):
            self._resize_durable(min(len(self.data), len(self.durable)))
        for page in sorted(self.dirty):
            if keep(self.path, page):
                self._keep(page)
        self.data[:] = self.durable
        self.dirty.clear()
        self.resized = False

    def _keep(self, page: int) -> None:
        begin, end = page * PAGE, min((page + 1) * PAGE, len(self.data))
        if len(self.durable) < end:
            self._resize_durable(end)
        self.durable[begin:end] = self.data[begin:end]

    def _resize_durable(self, size: int) -> None:
        del self.durable[size:]
        self.durable.extend(bytes(size - len(self.durable)))

    def clone(self) -> _Inode:
        other = _Inode(self.path)
        other.data[:] = self.data
        other.durable[:] = self.durable
        other.dirty = set(self.dirty)
        other.resized = self.resized
        return other


class _NameChange(NamedTuple):
    """A change of a directory that is not durable yet: `new` appears (a file or a directory), `old` is removed."""

    directory: str
    old: str | None
    new: str | None
    inode: _Inode | None


class MemoryFile:
    """An open file of a MemoryFiles. It fails after the process that opened it has died."""

    __slots__ = ("_files", "_inode", "_life")

    def __init__(self, files: MemoryFiles, inode: _Inode, life: int) -> None:
        self._files = files
        self._inode = inode
        self._life = life

    def read(self, offset: int, size: int) -> bytes:
        self._check()
        data = self._inode.data
        return self._files.perform("read", self._inode.path, lambda: bytes(data[offset : offset + size]))

    def write(self, offset: int, data: bytes) -> None:
        self._check()
        fault = self._files.begin("write", self._inode.path)
        if fault is not None:
            data = data[: int(len(data) * fault.done)]
        if data:
            self._files.take_room(offset + len(data) - len(self._inode.data))
            self._inode.write(offset, data)
        self._files.end(fault, self._inode.path)

    def truncate(self, size: int) -> None:
        self._check()
        self._files.perform("truncate", self._inode.path, lambda: self._inode.truncate(size))

    def sync(self) -> None:
        self._check()
        fault = self._files.begin("sync", self._inode.path)
        if fault is None or fault.done >= 1:
            self._inode.sync()
        elif fault.error == errno.EIO:
            self._inode.dirty.clear()
        self._files.end(fault, self._inode.path)

    def size(self) -> int:
        self._check()
        return self._files.perform("size", self._inode.path, lambda: len(self._inode.data))

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a file in memory has no descriptor")

    def close(self) -> None:
        self._life = -1

    def _check(self) -> None:
        if self._life != self._files.life:
            raise OSError(errno.EBADF, "closed, or opened by a process that died", self._inode.path)


class MemoryFiles:
    """A file system in memory for one manager, as warren_raft.disk.files.Files. Not thread-safe.

    `operations` counts every call except close. A fault is planned for the Nth operation of this count, and happens
    once. After `Crashed`, call `kill` (the page cache survives) or `power_cut`.
    """

    def __init__(self, *directories: str, limit_bytes: int | None = None) -> None:
        self.operations = 0
        self.life = 0
        self.limit_bytes = limit_bytes
        self.history: list[tuple[str, str]] | None = None
        self.on_fault: Callable[[str, Fault], None] | None = (
            None  # called for each fault that happens: (operation, fault)
        )
        self._dead = False
        self._faults: dict[int, Fault] = {}
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._directories = {"/", *directories}
        self._durable_directories = set(self._directories)
        self._changes: list[_NameChange] = []

    # -- the protocol

    def list_directory(self, path: str) -> list[str]:
        return self.perform("list", path, lambda: self._list(path))

    def make_directory(self, path: str, *, private: bool = False) -> None:
        self.perform("make_directory", path, lambda: self._make_directory(path))

    def make_file(self, path: str, *, private: bool = False) -> MemoryFile:
        return self.perform("make_file", path, lambda: self._make_file(path))

    def open(self, path: str, *, create: bool = False) -> MemoryFile:
        return self.perform("create" if create else "open", path, lambda: self._open(path, create))

    def rename(self, old: str, new: str) -> None:
        self.perform("rename", new, lambda: self._rename(old, new))

    def link(self, old: str, new: str) -> None:
        self.perform("link", new, lambda: self._link(old, new))

    def unlink(self, path: str) -> None:
        self.perform("unlink", path, lambda: self._unlink(path))

    def remove_directory(self, path: str) -> None:
        raise io.UnsupportedOperation(f"directories in memory stay: {path}")

    def remove_tree(self, path: str) -> None:
        self.remove_directory(path)

    def sync_directory(self, path: str) -> None:
        self.perform("sync_directory", path, lambda: self._sync_directory(path))

    def free_bytes(self, place: str | int) -> int:
        return max(0, sys.maxsize if self.limit_bytes is None else self.limit_bytes - self.used_bytes)

    # -- faults

    def fail(self, operation: int, error: int, *, done: float = 0.0) -> None:
        """Let this operation raise OSError, after the part `done` (0 to 1) of a write took effect.

        With done=1 any operation takes effect and raises all the same.
        """
        self._faults[operation] = Fault(error, done)

    def crash(self, operation: int, *, done: float = 0.0) -> None:
        """Let the process die in this operation: before it (0), within a write, or right after it (1)."""
        self._faults[operation] = Fault(None, done)

    def clear_faults(self) -> None:
        """Forget the faults that have not happened."""
        self._faults.clear()

    def kill(self) -> None:
        """The process dies, and the page cache stays: the next process reads all bytes that were written."""
        self._dead = False
        self.life += 1

    def power_cut(self, keep: Keep = keep_none, *, name_changes: int = 0) -> None:
        """The machine loses its power. The synced bytes are left, the unsynced pages that `keep` chooses, and the first
        `name_changes` of the unsynced changes of names."""
        for inode in {id(inode): inode for inode in (*self._names.values(), *self._durable_names.values())}.values():
            inode.lose(keep)
        for change in self._changes[:name_changes]:
            self._make_durable(change)
        self._changes.clear()
        self._directories = set(self._durable_directories)
        self._durable_names = {
            path: inode for path, inode in self._durable_names.items() if posixpath.dirname(path) in self._directories
        }
        self._names = dict(self._durable_names)
        self.kill()

    @property
    def unsynced_name_changes(self) -> int:
        """The number of changes of names that a power cut may lose."""
        return len(self._changes)

    def unsynced_pages(self, path: str) -> set[int]:
        """The numbers of the pages of a file that a power cut may lose."""
        return set(self._names[path].dirty)

    # -- reading and damaging the disk

    def paths(self) -> list[str]:
        """The paths of all files, sorted."""
        return sorted(self._names)

    def content(self, path: str) -> bytes:
        """The bytes that a reader of this file sees."""
        return bytes(self._names[path].data)

    def set_content(self, path: str, data: bytes) -> None:
        """Give a file, which may be new, these bytes, durably."""
        inode = self._names.setdefault(path, _Inode(path))
        inode.data[:] = inode.durable[:] = data
        inode.dirty.clear()
        self._durable_names[path] = inode

    @property
    def used_bytes(self) -> int:
        """The sum of the lengths of all files."""
        return sum(len(inode.data) for inode in self._names.values())

    def clone(self) -> MemoryFiles:
        """A copy of the disk without planned faults, to try several faults from one moment."""
        copies: dict[int, _Inode] = {}

        def copy(inode: _Inode) -> _Inode:
            if id(inode) not in copies:
                copies[id(inode)] = inode.clone()
            return copies[id(inode)]

        other = MemoryFiles(limit_bytes=self.limit_bytes)
        other._names = {path: copy(inode) for path, inode in self._names.items()}
        other._durable_names = {path: copy(inode) for path, inode in self._durable_names.items()}
        other._directories = set(self._directories)
        other._durable_directories = set(self._durable_directories)
        other._changes = [
            change._replace(inode=None if change.inode is None else copy(change.inode)) for change in self._changes
        ]
        return other

    # -- inside

    def perform(self, name: str, path: str, effect: Callable[[], T]) -> T:
        """Count an operation, and carry it out or let it fail."""
        fault = self.begin(name, path)
        if fault is None:
            return effect()
        if fault.done >= 1:
            effect()
        self.end(fault, path)
        raise AssertionError("a fault always raises")

    def begin(self, name: str, path: str) -> Fault | None:
        if self._dead:
            raise Crashed(name, path)
        self.operations += 1
        if self.history is not None:
            self.history.append((name, path))
        fault = self._faults.pop(self.operations, None) if self._faults else None
        if fault is not None and self.on_fault is not None:
            self.on_fault(name, fault)
        return fault

    def end(self, fault: Fault | None, path: str) -> None:
        if fault is None:
            return
        if fault.error is None:
            self._dead = True
            raise Crashed(path)
        raise OSError(fault.error, os.strerror(fault.error), path)

    def take_room(self, growth: int) -> None:
        if growth > 0 and self.limit_bytes is not None and self.used_bytes + growth > self.limit_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _list(self, path: str) -> list[str]:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return [posixpath.basename(name) for name in self._names if posixpath.dirname(name) == path]

    def _make_directory(self, path: str) -> None:
        if path in self._directories:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if posixpath.dirname(path) not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._directories.add(path)
        self._changes.append(_NameChange(posixpath.dirname(path), None, path, None))

    def _open(self, path: str, create: bool) -> MemoryFile:
        inode = self._names.get(path)
        directory = posixpath.dirname(path)
        if inode is None and not (create and directory in self._directories):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if inode is None:
            inode = self._names[path] = _Inode(path)
            self._changes.append(_NameChange(directory, None, path, inode))
        elif create:
            inode.truncate(0)
        return MemoryFile(self, inode, self.life)

    def _make_file(self, path: str) -> MemoryFile:
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return self._open(path, create=True)

    def _link(self, old: str, new: str) -> None:
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        if new in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        inode = self._names[new] = self._names[old]
        self._changes.append(_NameChange(posixpath.dirname(new), None, new, inode))

    def _rename(self, old: str, new: str) -> None:
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        inode = self._names[new] = self._names.pop(old)
        inode.path = new
        self._changes.append(_NameChange(posixpath.dirname(new), old, new, inode))

    def _unlink(self, path: str) -> None:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        del self._names[path]
        self._changes.append(_NameChange(posixpath.dirname(path), path, None, None))

    def _sync_directory(self, path: str) -> None:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        for change in self._changes:
            if change.directory == path:
                self._make_durable(change)
        self._changes = [change for change in self._changes if change.directory != path]

    def _make_durable(self, change: _NameChange) -> None:
        if change.old is not None:
            self._durable_names.pop(change.old, None)
        if change.new is not None and change.inode is None:
            self._durable_directories.add(change.new)
        elif change.new is not None and change.inode is not None:
            self._durable_names[change.new] = change.inode
