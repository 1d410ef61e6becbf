"""A disk for a manager. It counts the syncs of its files; on demand one sync takes long, or no space is left.

Not here: the contents of files, and those that LMDB writes. Invariant: an operation that succeeds really happens, on
the files of the operating system.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter

from warren_raft.config import Config
from warren_raft.disk.files import OsFile, OsFiles
from warren_raft.manager.parts import Parts
from warren_raft.manager.store import ReplicatedStore

SEGMENT_SUFFIX = ".log"


class Disk(OsFiles):
    """Files for a StoreOnDisk. `delay_next_sync` and the counts may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, DiskFile] = {}
        self._delays: list[float] = []
        self._syncs: Counter[str] = Counter()
        self._delays_begun = 0
        self._delays_ended = 0
        self._released = threading.Event()
        self.is_full = False
        """Whether no space is left, so that all writes fail."""

    def open(self, path: str, *, create: bool = False) -> DiskFile:
        if create:
            self.require_room(path)
        file = super().open(path, create=create)
        with self._lock:
            opened = self._open[path] = DiskFile(self, path, file)
        return opened

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        with self._lock:
            if old in self._open:
                file = self._open[new] = self._open.pop(old)
                file.path = new

    def delay_next_sync(self, seconds: float) -> None:
        """The next sync of a log segment takes so many seconds longer."""
        with self._lock:
            self._delays.append(seconds)

    def require_room(self, path: str) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def release(self) -> None:
        """A delayed sync goes on at once, and no later sync is delayed."""
        self._released.set()

    def counts(self) -> dict[str, int]:
        """The numbers of syncs of log segments, of other syncs, and of delays that have begun and ended."""
        with self._lock:
            return {
                "segment_syncs": self._syncs["segment"],
                "other_syncs": self._syncs["other"],
                "delays_begun": self._delays_begun,
                "delays_ended": self._delays_ended,
            }

    def before_sync(self, path: str) -> None:
        is_segment = os.path.basename(path).endswith(SEGMENT_SUFFIX)
        with self._lock:
            self._syncs["segment" if is_segment else "other"] += 1
            if not is_segment or not self._delays:
                return
            seconds = self._delays.pop(0)
            self._delays_begun += 1
        self._released.wait(seconds)
        with self._lock:
            self._delays_ended += 1


class DiskFile(OsFile):
    """One file of a Disk."""

    def __init__(self, disk: Disk, path: str, file: OsFile) -> None:
        self.path = path
        self._disk = disk
        super().__init__(file._descriptor)
        file._descriptor = -1  # this file has the descriptor now

    def write(self, offset: int, data: bytes) -> None:
        self._disk.require_room(self.path)
        super().write(offset, data)

    def sync(self) -> None:
        self._disk.before_sync(self.path)
        super().sync()


class StoreOnDisk(ReplicatedStore):
    """A manager with its data directory on that disk."""

    def __init__(self, config: Config, disk: Disk) -> None:
        self._disk = disk
        super().__init__(config)

    def _made_parts(self) -> Parts:
        return Parts(self.config, files=self._disk)
