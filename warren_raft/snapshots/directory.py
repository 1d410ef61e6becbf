"""A manager's own snapshots in DATA_DIR/snapshots: the files there, and how they are added and set aside.

When a snapshot is taken, and its use, is decided elsewhere; the format is in file.py.
Invariant: a file under a snapshot's name was verified before it got that name, and is on disk.
"""

from __future__ import annotations

import builtins
import os
import re
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from warren_raft.disk.durable import make_directory, rename
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.disk.paths import absolute
from warren_raft.disk.sharing import correct_mode
from warren_raft.errors import RefusedForSafety, SnapshotInvalid
from warren_raft.snapshots.file import (
    Path,
    SnapshotInfo,
    read_manifest,
    write,
)
from warren_raft.snapshots.verification import verify_in_child
from warren_raft.store.database import Database

INCOMING: Final = ("incoming.part", "incoming.json")
"""A snapshot that is being fetched, and the note about it. They belong to the fetch, which may go on after a
restart."""

SET_ASIDE_KEPT: Final = 1
"""How many damaged snapshots are kept for study: one shows enough, and each is as large as the state."""

_TAKING: Final = "taking.part"
_NAME: Final = re.compile(r"(\d{16,20})-(\d{1,20})\.mdb\Z")
_SET_ASIDE: Final = ".aside-damaged"

Verify: TypeAlias = Callable[[str], SnapshotInfo]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A file with an undamaged last page. `verify` checks the rest of the file."""

    path: str
    manifest: SnapshotInfo

    @property
    def index(self) -> int:
        """The index of the last log entry that the snapshot covers."""
        return self.manifest.index

    @property
    def term(self) -> int:
        """The term of that entry."""
        return self.manifest.term


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A file that has the name of a snapshot and is not a snapshot; `detail` says why."""

    path: str
    detail: str


class SnapshotDirectory:
    """DATA_DIR/snapshots (mode 0700), used by the one process that holds the directory's lock.

    <index, 16 digits>-<term>.mdb      a snapshot; the names sort by age
    <...>.mdb.aside-damaged            a snapshot that was found damaged
    taking.part, incoming.part         a snapshot that is being taken, and one that is being fetched

    Any thread may call `list` and `scan` at any time. The methods that change something (`create`, `take`, `adopt`,
    `set_aside`) are for one thread at a time. keeper.py removes old snapshots when they are no longer in use.
    """

    def __init__(self, data_dir: Path, *, files: Files = OS_FILES) -> None:
        """`files`: every change of the directory goes through it."""
        self.path: Final = os.path.join(absolute(data_dir), "snapshots")
        self._files: Final = files

    def create(self) -> None:
        """Make the directory if it is missing. Remove the part of a process that died while it took a snapshot."""
        make_directory(self.path, files=self._files)
        for name in self._files.list_directory(self.path):
            if name.endswith(".part") and name not in INCOMING:
                self._files.unlink(os.path.join(self.path, name))

    @property
    def incoming(self) -> str:
        """The path of the file that a fetch in progress writes to."""
        return os.path.join(self.path, INCOMING[0])

    # ---- reading the directory

    def list(self) -> builtins.list[Snapshot]:
        """The snapshots with an undamaged last page, the newest first. Raises RefusedForSafety for a newer format."""
        return self.scan()[0]

    def scan(self) -> tuple[builtins.list[Snapshot], builtins.list[Damaged]]:
        """Like `list`, and also the files with a snapshot's name that are not snapshots."""
        snapshots, damaged = [], []
        for name in self._names():
            path = os.path.join(self.path, name)
            try:
                snapshots.append(_snapshot_at(path))
            except SnapshotInvalid as error:
                damaged.append(Damaged(path=path, detail=error.detail))
            except FileNotFoundError:
                continue  # removed meanwhile
        snapshots.sort(key=lambda snapshot: (snapshot.index, snapshot.term), reverse=True)
        return snapshots, damaged

    def _names(self) -> builtins.list[str]:
        try:
            return sorted(name for name in self._files.list_directory(self.path) if _NAME.match(name))
        except FileNotFoundError:
            return []

    # ---- changing the directory

    def take(
        self,
        database: Database,
        *,
        created_at: datetime,
        node_id: str,
        quorum: bool,
        verify: Verify = lambda path: verify_in_child(path, records=False),
    ) -> Snapshot:
        """Take a snapshot of the present content of `database`, verify it, and only then give it its name.

        If there is an undamaged snapshot of the same state already, return that one.

        Raises SnapshotInvalid (the copy is damaged, so perhaps the state is), StorageFull, OSError, and the errors of
        `verify`. In these cases no file is left.
        """
        part = os.path.join(self.path, _TAKING)
        with suppress(FileNotFoundError):
            self._files.unlink(part)
        manifest = write(database, part, created_at=created_at, node_id=node_id, quorum=quorum, files=self._files)
        try:
            existing = self._sound(manifest, verify)
            if existing is not None:
                self._files.unlink(part)
                return existing
            verify(part)  # before another is set aside: it may be the present state that is wrong
            self._set_aside_other(manifest)
            return self._give_name(part, manifest)
        except BaseException:
            with suppress(FileNotFoundError):
                self._files.unlink(part)
            raise

    def _sound(self, manifest: SnapshotInfo, verify: Verify) -> Snapshot | None:
        """The snapshot of the same state, if there is one. A damaged snapshot of the same entry is set aside."""
        path = self._path_of(manifest)
        try:
            snapshot = _snapshot_at(path)
            if snapshot.manifest.digest != manifest.digest:
                return None
            verify(path)
        except FileNotFoundError:
            return None
        except SnapshotInvalid as error:
            self.set_aside(Damaged(path=path, detail=error.detail))
            return None
        return snapshot

    def _set_aside_other(self, manifest: SnapshotInfo) -> None:
        """Set aside a snapshot of the same entry that is of another state."""
        path = self._path_of(manifest)
        if os.path.lexists(path):
            self.set_aside(Damaged(path=path, detail=f"has another digest than {manifest.digest}"))

    def adopt(self, part_path: Path) -> Snapshot:
        """Give a received and verified file of this directory its name. Replaces a file of the same name.

        Raises SnapshotInvalid, RefusedForSafety (a file elsewhere), OSError.
        """
        part = absolute(part_path)
        if os.path.dirname(part) != self.path:
            raise RefusedForSafety(f"{part} is not in {self.path}: copy it there first")
        manifest = read_manifest(part)
        with closing(self._files.open(part)) as file:
            file.sync()
        return self._give_name(part, manifest)

    def _give_name(self, part: str, manifest: SnapshotInfo) -> Snapshot:
        path = self._path_of(manifest)
        correct_mode(part)
        rename(part, path, files=self._files)
        return Snapshot(path=path, manifest=manifest)

    def _path_of(self, manifest: SnapshotInfo) -> str:
        return os.path.join(self.path, name_of(manifest))

    def set_aside(self, snapshot: Snapshot | Damaged) -> str:
        """Rename a damaged snapshot; only the newest of these files is kept. Returns the new path."""
        target = snapshot.path + _SET_ASIDE
        self._files.rename(snapshot.path, target)
        old = [name for name in self._files.list_directory(self.path) if name.endswith(_SET_ASIDE)]
        old.remove(os.path.basename(target))
        for name in sorted(old, reverse=True)[SET_ASIDE_KEPT - 1 :]:
            self._files.unlink(os.path.join(self.path, name))
        self._files.sync_directory(self.path)
        return target


def name_of(manifest: SnapshotInfo) -> str:
    """The name of a snapshot's file."""
    return f"{manifest.index:016d}-{manifest.term}.mdb"


def _snapshot_at(path: str) -> Snapshot:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise SnapshotInvalid(path, "is not a file")
    manifest = read_manifest(path)
    if name_of(manifest) != os.path.basename(path):
        raise SnapshotInvalid(path, f"is the snapshot {name_of(manifest)} under a wrong name")
    return Snapshot(path=path, manifest=manifest)
