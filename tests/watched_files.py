"""The real disk for a module under test: its changes are counted, and one of them fails or ends the process on demand.

Not here: the loss of data that was not synced (page_cache.py). Invariant: an operation that returns has happened. After
the death of the process nothing more is changed, also not by a clean-up of the code under test.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.killed import Killed
from warren_raft.disk.files import OsFile, OsFiles

Watcher = Callable[[str, str], object]
"""(operation, path), just before the operation."""


class WatchedFiles(OsFiles):
    """Pass it as `files`. `operations` counts the changes: a write, a sync, and every change of names."""

    def __init__(
        self,
        *,
        dies_at: int | None = None,
        watcher: Watcher = lambda _operation, _path: None,
        may_fail: Callable[[str], bool] = lambda _path: True,
    ) -> None:
        """`dies_at`: how many changes are carried out before the process dies. None: it does not die. `may_fail`: the
        paths at which `fail_after` may have an effect."""
        self.operations = 0
        self.died = False
        self._dies_at = dies_at
        self._watcher = watcher
        self._may_fail = may_fail
        self._refused: dict[str, int] = {}
        self._fails: tuple[int, int] | None = None
        self.failed = ""
        """The operation that `fail_after` has let fail; "" before."""

    def die_after(self, operations: int) -> None:
        """The process dies after so many more changes."""
        self._dies_at = self.operations + operations

    def fail_after(self, operations: int, error: int) -> None:
        """After so many more changes one change fails with this errno, and nothing of it happens."""
        self._fails = self.operations + operations, error

    def refuse(self, operation: str, error: int) -> None:
        """From now on this operation (the name of a method) raises OSError with this errno."""
        self._refused[operation] = error

    def permit(self) -> None:
        """Let every change happen from now on."""
        self._refused.clear()
        self._fails = None

    def before(self, operation: str, path: str) -> None:
        """Count the operation. Raises Killed, OSError."""
        if self.died or self.operations == self._dies_at:
            self.died = True
            raise Killed
        self.operations += 1
        self._watcher(operation, path)
        if self._fails is not None and self.operations > self._fails[0] and self._may_fail(path):
            (_, error), self._fails, self.failed = self._fails, None, operation
            raise OSError(error, os.strerror(error), path)
        if operation in self._refused:
            error = self._refused[operation]
            raise OSError(error, os.strerror(error), path)

    # The protocol --------------------------------------------------------------------------------------------------

    def make_directory(self, path: str, *, private: bool = False) -> None:
        self.before("make_directory", path)
        super().make_directory(path, private=private)

    def make_file(self, path: str, *, private: bool = False) -> WatchedFile:
        self.before("make_file", path)
        return self.watched(path, super().make_file(path, private=private))

    def open(self, path: str, *, create: bool = False) -> WatchedFile:
        if create:
            self.before("open", path)
        return self.watched(path, super().open(path, create=create))

    def watched(self, path: str, file: OsFile) -> WatchedFile:
        return WatchedFile(self, path, file)

    def rename(self, old: str, new: str) -> None:
        self.before("rename", new)
        super().rename(old, new)

    def link(self, old: str, new: str) -> None:
        self.before("link", new)
        super().link(old, new)

    def unlink(self, path: str) -> None:
        self.before("unlink", path)
        super().unlink(path)

    def remove_directory(self, path: str) -> None:
        self.before("remove_directory", path)
        super().remove_directory(path)

    def remove_tree(self, path: str) -> None:
        """Step by step, so that it may be interrupted at each step."""
        for base, directories, names in os.walk(path, topdown=False):
            for name in names:
                self.unlink(os.path.join(base, name))
            for name in directories:
                self.remove_directory(os.path.join(base, name))
        self.remove_directory(path)

    def sync_directory(self, path: str) -> None:
        self.before("sync_directory", path)
        super().sync_directory(path)


class WatchedFile(OsFile):
    """A file of a WatchedFiles; it has taken over the descriptor of `file`."""

    def __init__(self, files: WatchedFiles, path: str, file: OsFile) -> None:
        self._files = files
        self._path = path
        super().__init__(file._descriptor)
        file._descriptor = -1

    def write(self, offset: int, data: bytes) -> None:
        self._files.before("write", self._path)
        super().write(offset, data)

    def truncate(self, size: int) -> None:
        self._files.before("truncate", self._path)
        super().truncate(size)

    def sync(self) -> None:
        self._files.before("sync", self._path)
        super().sync()
