"""A power cut for a real directory tree that is changed through Files (warren_raft/disk/files.py).

The cache knows which contents and which names were synced. `cut` turns the tree into the one that the machine finds
when it runs again. Names in a directory are durable after a sync of that directory. Of the other changes of names, the
first few survive, in their order. Of contents that were not synced, each page survives or not. LMDB writes and syncs by
itself; its syncs are noticed in a `watching` block. Not here: the log in the simulation (memory_files.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from tests.watched_files import WatchedFile, WatchedFiles
from warren_raft.disk.files import OsFile
from warren_raft.store.database import Database

PAGE = 4096


@dataclass(eq=False)
class _File:
    durable: bytes = b""


@dataclass(eq=False)
class _Directory:
    durable: dict[str, _Node] = field(default_factory=dict)


_Node = _File | _Directory


@dataclass
class _Change:
    """A change of names, in one or two directories at once. None: the name is removed."""

    edits: list[tuple[_Directory, str, _Node | None]]

    def carry_out(self) -> None:
        for directory, name, node in self.edits:
            if node is None:
                directory.durable.pop(name, None)
            else:
                directory.durable[name] = node


class PageCache(WatchedFiles):
    """The disk with the page cache of one directory tree. All of the tree is durable at first. Pass it as `files`, let
    the databases work in a `watching` block, then perhaps `cut`. It does not know of changes elsewhere, or of changes
    that go past it: a cut takes such changes back."""

    def __init__(self, root: Path, *, dies_at: int | None = None) -> None:
        super().__init__(dies_at=dies_at)
        self._root = root
        self._nodes: dict[int, _Node] = {}
        """Inode number -> the file or directory, for those that exist now."""
        self._pending: list[_Change] = []
        self._tree = self._read(root)

    def _read(self, path: Path) -> _Directory:
        node = _Directory()
        self._nodes[path.stat().st_ino] = node
        for each in sorted(path.iterdir()):
            if each.is_dir():
                node.durable[each.name] = self._read(each)
            elif each.is_file():
                node.durable[each.name] = self._nodes[each.stat().st_ino] = _File(each.read_bytes())
        return node

    @property
    def unsynced_name_changes(self) -> int:
        """The number of changes of names that a power cut may lose."""
        return len(self._pending)

    # Watching ----------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notice the syncs of databases in this process until the end of the block."""
        synced = Database._sync

        def sync(database: Database, environment: Any) -> None:
            synced(database, environment)
            self._synced(Path(database.path))

        with mock.patch.object(Database, "_sync", sync):
            yield

    def _place(self, path: str) -> tuple[_Directory, str] | None:
        """The directory of a path and the name in it; None if the path is not in the tree."""
        parent, name = os.path.split(os.path.abspath(path))
        try:
            node = self._nodes.get(os.stat(parent).st_ino)
        except FileNotFoundError:
            return None
        inside = parent == str(self._root) or parent.startswith(f"{self._root}{os.sep}")
        return (node, name) if inside and isinstance(node, _Directory) else None

    def _changed(self, path: str, node: _Node | None) -> None:
        place = self._place(path)
        if place is not None:
            self._pending.append(_Change([(*place, node)]))

    def _made(self, path: str, node: _Node) -> None:
        if self._place(path) is not None:
            self._nodes[os.stat(path).st_ino] = node
            self._changed(path, node)

    def make_directory(self, path: str, *, private: bool = False) -> None:
        super().make_directory(path, private=private)
        self._made(path, _Directory())

    def make_file(self, path: str, *, private: bool = False) -> WatchedFile:
        file = super().make_file(path, private=private)
        self._made(path, _File())
        return file

    def open(self, path: str, *, create: bool = False) -> WatchedFile:
        is_new = create and not os.path.lexists(path)
        file = super().open(path, create=create)
        if is_new:
            self._made(path, _File())
        return file

    def watched(self, path: str, file: OsFile) -> WatchedFile:
        return CachedFile(self, path, file)

    def rename(self, old: str, new: str) -> None:
        before, node = self._place(old), self._nodes.get(os.lstat(old).st_ino)
        replaced = os.lstat(new) if os.path.lexists(new) else None
        super().rename(old, new)
        after = self._place(new)
        if replaced is not None and replaced.st_nlink == 1:
            self._nodes.pop(replaced.st_ino, None)
        if node is not None:
            gone = [] if before is None else [(*before, None)]
            come = [] if after is None else [(*after, node)]
            self._pending.append(_Change([*gone, *come]))

    def link(self, old: str, new: str) -> None:
        super().link(old, new)
        node = self._nodes.get(os.stat(new).st_ino)
        if node is not None:
            self._changed(new, node)

    def unlink(self, path: str) -> None:
        removed = os.lstat(path) if os.path.lexists(path) else None
        super().unlink(path)
        self._changed(path, None)
        if removed is not None and removed.st_nlink == 1:
            self._nodes.pop(removed.st_ino, None)  # another file may get this number

    def remove_directory(self, path: str) -> None:
        removed = os.lstat(path) if os.path.lexists(path) else None
        super().remove_directory(path)
        self._changed(path, None)
        if removed is not None:
            self._nodes.pop(removed.st_ino, None)

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self._synced(Path(path))

    def file_synced(self, descriptor: int) -> None:
        """For the files of this cache: one of them was synced."""
        self._synced(Path(f"/proc/self/fd/{descriptor}"))

    def _synced(self, path: Path) -> None:
        node = self._nodes.get(path.stat().st_ino)
        if isinstance(node, _File):
            node.durable = path.read_bytes()
        elif node is not None:
            self._names_are_durable(node)

    def _names_are_durable(self, directory: _Directory) -> None:
        left = []
        for change in self._pending:
            if any(each is directory for each, _, _ in change.edits):
                change.carry_out()
            else:
                left.append(change)
        self._pending = left

    # The cut -----------------------------------------------------------------------------------------------------

    def cut(self, random: Random, *, keep_pages: float, name_changes: int) -> None:
        """Cut the power, and leave the tree as the machine finds it later. `keep_pages`: the probability that a page
        without a sync survives. `name_changes`: the number of unsynced changes of names that survive."""
        now = self._contents_now()
        for change in self._pending[:name_changes]:
            change.carry_out()
        self._pending.clear()
        left = dict(self._files_of(self._tree, self._root))
        for path in list(self._root.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in self._directories_of(self._tree, self._root):
            path.mkdir(mode=0o700, exist_ok=True)
        for path, node in sorted(left.items()):
            path.write_bytes(_left_of(node.durable, now.get(id(node), node.durable), random, keep_pages))
            path.chmod(0o600)

    def _contents_now(self) -> dict[int, bytes]:
        """Identity of a file's node -> the present bytes of the file."""
        found = {}
        for base, _, names in os.walk(self._root):
            for name in names:
                path = Path(base, name)
                node = self._nodes.get(path.stat().st_ino) if path.is_file() else None
                if isinstance(node, _File):
                    found[id(node)] = path.read_bytes()
        return found

    def _files_of(self, directory: _Directory, path: Path) -> Iterator[tuple[Path, _File]]:
        for name, node in directory.durable.items():
            if isinstance(node, _File):
                yield path / name, node
            else:
                yield from self._files_of(node, path / name)

    def _directories_of(self, directory: _Directory, path: Path) -> Iterator[Path]:
        for name, node in directory.durable.items():
            if isinstance(node, _Directory):
                yield path / name
                yield from self._directories_of(node, path / name)


class CachedFile(WatchedFile):
    """A file of a PageCache."""

    def __init__(self, cache: PageCache, path: str, file: OsFile) -> None:
        self._cache = cache
        super().__init__(cache, path, file)

    def sync(self) -> None:
        super().sync()
        self._cache.file_synced(self.fileno())


def _left_of(durable: bytes, now: bytes, random: Random, keep_pages: float) -> bytes:
    """The bytes after a cut. Each page that differs is the new one or the old one, and so is the length."""
    if durable == now:
        return durable
    left = bytearray(durable)
    for begin in range(0, len(now), PAGE):
        page = now[begin : begin + PAGE]
        if durable[begin : begin + PAGE] != page and random.random() < keep_pages:
            left.extend(bytes(max(0, begin + len(page) - len(left))))
            left[begin : begin + len(page)] = page
    return bytes(left)
