"""The state of a new cluster from the snapshot of an old one: its entities, and nothing else.

The log and the new directory are made elsewhere (recovery/restore.py, staging.py). Invariant: the same snapshot and the
same cluster id make the same records, thus the same digest, on every member. The snapshot file is not changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Final

from warren_raft.disk.files import OS_FILES, Files
from warren_raft.errors import SnapshotInvalid
from warren_raft.fsm.digest import recompute
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.file import (
    Path,
    SnapshotInfo,
    extract,
    opened,
    sha256_of,
)
from warren_raft.snapshots.verification import verify
from warren_raft.store.database import (
    CLUSTER_ID,
    HISTORY,
    MEMBERSHIP,
    META,
    SESSIONS,
    Database,
)
from warren_raft.store.generations import StateDirectory
from warren_raft.store.position import Position

RESTORED_INDEX: Final = 2
"""Where a restored log begins, in term 0: above 1, so that no manager takes it for a log that is complete from its
start."""

REVISION_STEP: Final = 1_000_000_000
"""The increase of revisions (etcd's figure). A watcher or a cache of the old cluster never mistakes a new revision for
one of its own, even if much was written after the snapshot."""


def install(
    path: Path,
    data_dir: Path,
    *,
    sha256: str,
    cluster_id: str,
    node_id: str,
    created_at: datetime,
    quorum: bool,
    first: Callable[[StateMachine], object] = lambda _machine: None,
    files: Files = OS_FILES,
) -> SnapshotInfo:
    """Make DATA_DIR/state and DATA_DIR/snapshots of a verified snapshot, all durable. Returns the new manifest.

    `sha256`: the hash of the verified bytes. `first` may apply more of the old log before the old log ends. Raises
    SnapshotInvalid (the file is not the verified one), StorageFull, OSError, StorageFailed.
    """
    state = StateDirectory(data_dir, files=files)
    state.create()
    generation = state.next_generation()
    target = state.file_of(generation)
    size = extract(path, target, files=files).size_bytes
    with opened(target) as descriptor:
        if sha256_of(descriptor, size) != sha256:
            raise SnapshotInvalid(os.fspath(path), "was changed while it was restored")
    with Database.open_generation(state, generation, sync=False) as database:
        first(StateMachine(database))
        begin_anew(database, cluster_id)
        database.publish()
        snapshots = SnapshotDirectory(data_dir, files=files)
        snapshots.create()
        manifest = snapshots.take(
            database,
            created_at=created_at,
            node_id=node_id,
            quorum=quorum,
            verify=lambda part: verify(part, records=False),
        ).manifest
    state.seal(generation)  # so that the first start need not check every record again
    return manifest


def begin_anew(database: Database, cluster_id: str) -> None:
    """Keep the entities with their revisions. The new cluster begins without members, sessions and history."""
    with database.write() as transaction:
        transaction.clear(SESSIONS)
        transaction.clear(HISTORY)
        transaction.erase(META, MEMBERSHIP)
        transaction.store(META, CLUSTER_ID, cluster_id.encode())
        revision, digest = transaction.revision + REVISION_STEP, recompute(transaction)
        transaction.move(Position(RESTORED_INDEX, applied_term=0, revision=revision, digest=digest))
