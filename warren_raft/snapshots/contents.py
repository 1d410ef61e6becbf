"""Reads of the entities in a snapshot, by the methods of a store.

Not here: the verification (verification.py), and a new state from a snapshot (install.py).
Invariant: no record is decoded before the hash, the structure and the digest of the file were proved, and the file is
not changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from warren_raft.errors import Corrupted, Misuse, SnapshotInvalid
from warren_raft.snapshots.file import Path, SnapshotInfo, manifest_in, opened
from warren_raft.snapshots.verification import verify_open_file
from warren_raft.store.database import Database
from warren_raft.store.interface import Reader


class Contents(Reader):
    """An open snapshot. Made by `opened_snapshot`."""

    def __init__(self, manifest: SnapshotInfo, database: Database) -> None:
        super().__init__()
        self.manifest: Final = manifest
        self._database = database

    def _attached(self) -> Database:
        return self._database

    def _feeds(self) -> NoReturn:
        raise Misuse("a snapshot does not change: there is nothing to watch")


@contextmanager
def opened_snapshot(path: Path) -> Iterator[Contents]:
    """Verify a snapshot (a third of a second for 100,000 containers), and open it for reading until the block ends.

    Raises SnapshotInvalid (also in the block, for a record that no manager wrote), RefusedForSafety (a newer format),
    OSError.
    """
    path = os.fspath(path)
    with opened(path) as descriptor:
        manifest = manifest_in(descriptor, path)
        same_file = verify_open_file(descriptor, manifest, path)
        try:
            with Database.open_file(same_file) as database:
                yield Contents(manifest, database)
        except Corrupted as error:
            raise SnapshotInvalid(path, error.detail) from None
