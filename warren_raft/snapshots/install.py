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
from warren_raft.fsm import leases
from warren_raft.fsm.digest import difference, framed, to_bytes
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.file import (
    Path,
    SnapshotInfo,
    extract,
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
    copy: Path,
    data_dir: Path,
    *,
    cluster_id: str,
    node_id: str,
    created_at: datetime,
    quorum: bool,
    first: Callable[[StateMachine], object] = lambda _machine: None,
    files: Files = OS_FILES,
) -> SnapshotInfo:
    """Make DATA_DIR/state and DATA_DIR/snapshots, all durable. Returns the new manifest.

    `copy`: a verified copy of a snapshot's database, in the same file system; this call uses it up. `first` may apply
    more of the old log before the old log ends. The state is the database of the new snapshot: a compact one, without
    the pages of the old history. Raises SnapshotInvalid, StorageFull, OSError, StorageFailed.
    """
    state = StateDirectory(data_dir, files=files)
    state.create()
    generation = state.next_generation()
    files.rename(os.fspath(copy), state.file_of(generation))
    snapshots = SnapshotDirectory(data_dir, files=files)
    snapshots.create()
    database = Database.open_generation(state, generation, sync=False)
    try:
        first(StateMachine(database))
        begin_anew(database, cluster_id)
        snapshot = snapshots.take(
            database,
            created_at=created_at,
            node_id=node_id,
            quorum=quorum,
            verify=lambda part: verify(part, records=False),
        )
    finally:
        database.abandon()  # its content is in the snapshot
    state.remove(generation)
    extract(snapshot.path, state.file_of(generation + 1), files=files)
    state.publish(generation + 1)
    # The first start compares the file with the hash that was verified, and need not check every record again.
    state.seal(generation + 1, snapshot.manifest.sha256)
    return snapshot.manifest


def begin_anew(database: Database, cluster_id: str) -> None:
    """Keep the entities with their revisions, and the leases of nodes. The new cluster begins without members, sessions
    and history."""
    with database.write() as transaction:
        kept = dict(leases.records_in(transaction))
        lost = ((key, record) for key, record in transaction.scan(SESSIONS) if key not in kept)
        total = int.from_bytes(transaction.position.digest, "big")
        total += sum(difference(framed(SESSIONS), key, record, None) for key, record in lost)
        for key, value in ((MEMBERSHIP, None), (CLUSTER_ID, cluster_id.encode())):
            total += difference(framed(META), key, transaction.fetch(META, key), value)
        transaction.clear(SESSIONS)
        for key, record in kept.items():
            transaction.store(SESSIONS, key, record)
        transaction.clear(HISTORY)
        transaction.erase(META, MEMBERSHIP)
        transaction.store(META, CLUSTER_ID, cluster_id.encode())
        revision = transaction.revision + REVISION_STEP
        transaction.move(Position(RESTORED_INDEX, applied_term=0, revision=revision, digest=to_bytes(total)))
