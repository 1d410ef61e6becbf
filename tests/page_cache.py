"""A power cut for a real directory tree that is written through the functions of `os`.

While the cache watches, it knows which contents and which names were synced. `cut` turns the tree into the one that the
machine finds when it runs again. Names in a directory are durable after a sync of that directory. Of the other changes
of names, the first few survive, in their order. Of contents that were not synced, each page survives or not. Writes of
LMDB itself are noticed when the database syncs. Not here: the log in the simulation (memory_files.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

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


class PageCache:
    """The page cache of one directory tree. All of the tree is durable at first. Use `with cache.watching()`, then
    perhaps `cache.cut`."""

    def __init__(self, root: Path) -> None:
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

    # Watching ----------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the functions of `os` in this process until the end of the block."""
        functions = {
            "open": self._open,
            "mkdir": self._mkdir,
            "rename": self._rename,
            "replace": self._rename,
            "link": self._link,
            "unlink": self._unlink,
            "rmdir": self._unlink,
            "fsync": self._sync,
            "fdatasync": self._sync,
        }
        with ExitStack() as stack:
            for name, watch in functions.items():
                stack.enter_context(mock.patch.object(os, name, self._watched(getattr(os, name), watch)))
            synced = Database._sync

            def sync(database: Database, environment: Any) -> None:
                synced(database, environment)
                self._synced(os.stat(database.path).st_ino, Path(database.path))

            stack.enter_context(mock.patch.object(Database, "_sync", sync))
            yield

    @staticmethod
    def _watched(function: Callable[..., Any], watch: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            return watch(function, *arguments, **options)

        return watched

    def _place(self, path: Any, dir_fd: int | None = None) -> tuple[_Directory, str] | None:
        """The directory of a path and the name in it; None if the path is not in the tree."""
        text = os.fspath(path)
        if isinstance(text, bytes):
            text = os.fsdecode(text)
        if dir_fd is not None and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        parent, name = os.path.split(os.path.abspath(text))
        try:
            node = self._nodes.get(os.stat(parent).st_ino)
        except FileNotFoundError:
            return None
        inside = parent == str(self._root) or parent.startswith(f"{self._root}{os.sep}")
        return (node, name) if inside and isinstance(node, _Directory) else None

    def _open(
        self, function: Callable[..., int], path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        place = self._place(path, dir_fd) if flags & os.O_CREAT and not _exists(path, dir_fd) else None
        descriptor = function(path, flags, mode, dir_fd=dir_fd)
        if place is not None:
            self._made(place, _File(), os.fstat(descriptor).st_ino)
        return descriptor

    def _mkdir(self, function: Callable[..., None], path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        function(path, mode, dir_fd=dir_fd)
        if place is not None:
            self._made(place, _Directory(), os.stat(path, dir_fd=dir_fd).st_ino)

    def _made(self, place: tuple[_Directory, str], node: _Node, inode: int) -> None:
        self._nodes[inode] = node
        self._pending.append(_Change([(*place, node)]))

    def _rename(
        self,
        function: Callable[..., None],
        old: Any,
        new: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        before, after = self._place(old, src_dir_fd), self._place(new, dst_dir_fd)
        inode = os.stat(old, dir_fd=src_dir_fd, follow_symlinks=False).st_ino
        function(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        node = self._nodes.get(inode)
        if node is not None:
            gone = [] if before is None else [(*before, None)]
            come = [] if after is None else [(*after, node)]
            self._pending.append(_Change([*gone, *come]))

    def _link(self, function: Callable[..., None], old: Any, new: Any, **options: Any) -> None:
        function(old, new, **options)
        place, node = self._place(new), self._nodes.get(os.stat(new).st_ino)
        if place is not None and node is not None:
            self._pending.append(_Change([(*place, node)]))

    def _unlink(self, function: Callable[..., None], path: Any, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        function(path, dir_fd=dir_fd)
        if place is not None:
            self._pending.append(_Change([(*place, None)]))

    def _sync(self, function: Callable[[int], None], descriptor: int) -> None:
        function(descriptor)
        self._synced(os.fstat(descriptor).st_ino, Path(f"/proc/self/fd/{descriptor}"))

    def _synced(self, inode: int, path: Path) -> None:
        node = self._nodes.get(inode)
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


def _exists(path: Any, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


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
