"""`snapshot restore`: a data directory that begins a new cluster with the data of a snapshot.

Lives here: the refusals, the identity of the new cluster, its log. Not here: the state (snapshots/install.py), and the
replacement of a directory at once (snapshots/staging.py). Invariant: members that restore the same file with the same
list agree on everything before they have met. Nothing is overwritten: the old content is set aside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import SystemRandom
from typing import Final

from warren_raft.config import Config
from warren_raft.disk import privacy
from warren_raft.disk.files import OS_FILES
from warren_raft.disk.paths import absolute
from warren_raft.disk.sharing import require_rights
from warren_raft.errors import (
    Corrupted,
    InUse,
    RefusedForSafety,
    WarrenError,
)
from warren_raft.fsm.entry import read_committed
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft.log.log import Log
from warren_raft.raft.log.opening import owner_of
from warren_raft.raft.membership import (
    Origin,
)
from warren_raft.recovery.replay import Plan, Replayed, ToRevision, plan
from warren_raft.snapshots import staging
from warren_raft.snapshots.beside import verified_copy
from warren_raft.snapshots.file import (
    Path,
    Progress,
    SnapshotInfo,
    counts_of,
    read_manifest,
)
from warren_raft.snapshots.install import RESTORED_INDEX, REVISION_STEP, install
from warren_raft.store.database import Database
from warren_raft.store.ownership import DirectoryLock
from warren_raft.store.tables import BY_NAME
from warren_raft.support.wording import counted, in_units_apart

CLUSTER_ID_CHARACTERS: Final = 32
NO_CLUSTER: Final = "none"
"""The operator types this for a snapshot without a cluster id, that is, of a LocalStore."""
_VERIFIED: Final = 0.75  # share of the whole, as measured
_COPY: Final = "copy.mdb"  # the copy that is verified


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A directory that was made. It becomes a cluster when the directories of all `members` are made and started."""

    data_dir: str
    node_id: str
    cluster_id: str
    """The id of the new cluster."""
    members: Mapping[str, str]
    """Id to address of every member."""
    index: int
    """The index of the last log entry that the state covers."""
    revision: int
    """The revision of the latest change in the state."""
    digest: str
    """The digest of the whole state, 64 hexadecimal digits: the same for every member."""
    counts: Mapping[str, int]
    """The number of entities, by the plural of each kind."""
    aside: str | None
    """The directory of the old files; None if there were none."""
    old: SnapshotInfo
    """The manifest of the state from which it was made."""
    replayed: Replayed | None = None
    """The part of a continuous backup that was replayed behind it; None: none was asked for."""


# In this module OS_FILES is passed on by name: the simulation puts a disk in its place that loses power.

# ---------------------------------------------------------------------------------------------- restore


def restore(
    file: Path,
    data_dir: Path,
    *,
    node_id: str,
    members: Mapping[str, str],
    cluster_id: str | None = None,
    move_aside: bool = False,
    allow_rollback: bool = False,
    to_revision: ToRevision | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Make DATA_DIR the directory of the member `node_id` of a new cluster that begins with the data of the snapshot.

    Call it once for each member of `members` (id -> `HOST:PORT`), with the same file and the same members; they form
    the cluster when all of them run. `cluster_id`: the required cluster id of the snapshot. `move_aside`: the content
    of DATA_DIR goes to DATA_DIR/aside-TIME. That needs `cluster_id` if the content is of another cluster, and
    `allow_rollback` if the snapshot is older than the content, or the content cannot be read. `to_revision`: replay the
    files of the continuous backup that are beside the file up to this revision of the old cluster, or "last" for all of
    them. It must be the same for each member.

    Raises RefusedForSafety (see docs/recovery.md), SnapshotInvalid, InvalidConfig, StorageFull, OSError. After an
    error, and if the process dies, DATA_DIR has its old content. If the disk fails, or the process dies, while the
    complete new content is put in its place, the next process that opens DATA_DIR finishes that.
    """
    file, data_dir = absolute(file), absolute(data_dir)
    report = progress or (lambda _share: None)
    if node_id not in members:
        raise RefusedForSafety(f"{node_id} is not among the members ({', '.join(sorted(members))}): name it with them")
    Config(node_id=node_id, data_dir=data_dir, listen=members[node_id], members=members)  # for its checks
    manifest = read_manifest(file)
    if cluster_id is not None and cluster_id != (manifest.cluster_id or NO_CLUSTER):
        raise RefusedForSafety(
            f"{file} is a snapshot of cluster {manifest.cluster_id or NO_CLUSTER}, not of {cluster_id}"
        )
    with locked(data_dir):
        staging.finish(data_dir, files=OS_FILES)
        _check_owner(data_dir, node_id)
        behind = None if to_revision is None else plan(file, manifest, to_revision)
        common = _common_cluster_id(manifest, members, behind)
        if cluster_id is None and _look(data_dir).cluster_id == common:
            raise RefusedForSafety(
                f"{data_dir} was restored from this file with these members already: start its manager (to restore it "
                f"again, add --cluster-id {manifest.cluster_id or NO_CLUSTER})"
            )
        target = manifest if behind is None else replace(manifest, revision=behind.revision, index=behind.end.index)
        _check_target(data_dir, file, target, typed=cluster_id is not None, aside=move_aside, rollback=allow_rollback)
        with part_of(data_dir) as part:
            check_room(data_dir, 2 * (manifest.size_bytes + _bytes_of(behind)), "twice the snapshot")
            origin = Origin(common, members)
            first = (lambda _machine: None) if behind is None else behind.replay
            made = make(part, file, manifest, origin, node_id, first, report)
            staging.commit(data_dir, datetime.now(UTC), files=OS_FILES)
        aside = staging.finish(data_dir, files=OS_FILES)
    report(1.0)
    return replace(
        restored(data_dir, node_id, origin, made, aside, manifest), replayed=None if behind is None else behind.replayed
    )


def _bytes_of(behind: Plan | None) -> int:
    return 0 if behind is None else behind.size_bytes


def _common_cluster_id(manifest: SnapshotInfo, members: Mapping[str, str], behind: Plan | None) -> str:
    """An id that is the same for all members that restore the same file and changes with the same list, and for no
    others."""
    said = json.dumps([manifest.sha256, sorted(members.items()), *(() if behind is None else behind.identity)])
    return hashlib.sha256(said.encode()).hexdigest()[:CLUSTER_ID_CHARACTERS]


def make(
    part: str,
    file: str,
    manifest: SnapshotInfo,
    origin: Origin,
    node_id: str,
    first: Callable[[StateMachine], object],
    report: Progress,
) -> SnapshotInfo:
    """Verify the snapshot, and make of it the whole content of the new directory in `part`, durably."""
    copy = os.path.join(part, _COPY)
    with verified_copy(file, copy, manifest, lambda share: report(share * _VERIFIED), files=OS_FILES) as require:
        made = install(
            copy,
            part,
            cluster_id=origin.cluster_id,
            node_id=node_id,
            created_at=datetime.now(UTC),
            quorum=manifest.quorum,
            first=first,
            files=OS_FILES,
        )
        log = Log.create_at(
            os.path.join(part, "log"),
            files=OS_FILES,
            node_id=node_id,
            incarnation=f"{SystemRandom().getrandbits(128):032x}",
            index=RESTORED_INDEX,
            note=origin.encode(),
        )
        log.close()
        require()
    return made


def restored(
    data_dir: str, node_id: str, origin: Origin, made: SnapshotInfo, aside: str | None, old: SnapshotInfo
) -> Restored:
    return Restored(
        data_dir=data_dir,
        node_id=node_id,
        cluster_id=origin.cluster_id,
        members=dict(sorted(origin.members.items())),
        index=made.index,
        revision=made.revision,
        digest=made.digest,
        counts=made.counts,
        aside=aside,
        old=old,
    )


@contextmanager
def locked(data_dir: str) -> Iterator[None]:
    """Hold the directory's lock. A directory that was made for the lock is removed if the restore fails."""
    existed = os.path.isdir(data_dir)
    if existed:
        privacy.require_data_or_empty(data_dir)
        require_rights(data_dir, data_dir=data_dir)
    try:
        lock = DirectoryLock(data_dir)
    except InUse:
        raise runs(data_dir) from None
    try:
        yield
    except BaseException:
        if not existed:
            OS_FILES.unlink(os.path.join(data_dir, "lock"))
            with suppress(OSError):  # the directory is not empty
                OS_FILES.remove_directory(data_dir)
        raise
    finally:
        lock.release()


@contextmanager
def part_of(data_dir: str) -> Iterator[str]:
    part = staging.begin(data_dir, files=OS_FILES)
    try:
        yield part
    except BaseException:
        staging.discard(data_dir, files=OS_FILES)
        raise


def check_room(data_dir: str, needed: int, why: str) -> None:
    """Require space for the state and a snapshot of it. It takes less if the file system shares blocks."""
    free = OS_FILES.free_bytes(data_dir)
    if free < needed:
        left, wanted = in_units_apart(free, needed)
        raise RefusedForSafety(
            f"the disk of {data_dir} has {left} left, and {why}, {wanted}, is needed: free some space first"
        )


def runs(data_dir: str) -> RefusedForSafety:
    return RefusedForSafety(f"a manager is running on {data_dir}: stop it first")


# ---------------------------------------------------------------------------------------------- the present content


@dataclass(frozen=True)
class _Held:
    """The content of a directory; `unreadable` says why it is not known."""

    cluster_id: str | None = None
    index: int = 0
    revision: int = 0
    counts: Mapping[str, int] | None = None
    unreadable: str = ""

    def __str__(self) -> str:
        if self.unreadable:
            return f"data that cannot be read ({self.unreadable})"
        return f"cluster {self.cluster_id or NO_CLUSTER} at index {self.index}, revision {self.revision}"


def _look(directory: str) -> _Held:
    try:
        with Database.open_read_only(directory) as database, database.read() as transaction:
            found = read_committed(transaction)
            return _Held(found.cluster_id, found.applied_index, found.revision, counts_of(transaction))
    except (WarrenError, OSError) as error:
        return _Held(unreadable=str(error))


def _check_owner(data_dir: str, node_id: str) -> None:
    """A wrong --node-id would set another member's data aside."""
    try:
        owner = owner_of(OS_FILES, os.path.join(data_dir, "log"))
    except Corrupted:
        return  # the owner is not known
    if owner not in (None, node_id):
        raise RefusedForSafety(f"{data_dir} is the directory of {owner}, not of {node_id}: use one of its own")


def _check_target(
    data_dir: str, file: str, manifest: SnapshotInfo, *, typed: bool, aside: bool, rollback: bool
) -> None:
    cluster = manifest.cluster_id or NO_CLUSTER
    type_it = f"if that is meant, add --cluster-id {cluster}"
    if not staging.held(data_dir):
        others = {_look(each).cluster_id for each in staging.asides(data_dir)} - {None}
        if others and manifest.cluster_id not in others and not typed:
            raise RefusedForSafety(
                f"{data_dir} was cluster {', '.join(sorted(map(str, others)))} before, and {file} is of cluster "
                f"{cluster}: {type_it}"
            )
        strangers = privacy.strangers(data_dir)
        if strangers:
            raise RefusedForSafety(privacy.no_data(data_dir, strangers))
        return
    held = _look(data_dir)
    is_other = not held.unreadable and held.cluster_id != manifest.cluster_id
    is_older = not held.unreadable and not is_other and manifest.revision < held.revision
    # Restored from this history before: the revisions that it has used since would be used again.
    is_repeated = is_other and manifest.revision + REVISION_STEP <= held.revision
    compared = (
        f"{data_dir} holds {held}, and {file} has cluster {cluster} at index {manifest.index}, revision "
        f"{manifest.revision}" + (_vanishing(held, manifest) if is_older else "")
    )
    if not aside:
        raise RefusedForSafety(f"{compared}: use an empty directory, or set the present data aside with --move-aside")
    if is_other and not typed:
        raise RefusedForSafety(f"{compared}, which is another cluster: {type_it}")
    if is_repeated and not rollback:
        raise RefusedForSafety(
            f"{compared}, and the restored state would continue at a lower revision: watchers and caches would take "
            "old data for new; if that is meant, add --allow-rollback"
        )
    if (is_older or held.unreadable) and not rollback:
        raise RefusedForSafety(f"{compared}: if that is meant, add --allow-rollback")


def _vanishing(held: _Held, manifest: SnapshotInfo) -> str:
    there = held.counts or {}
    fewer = [
        f"{counted(n, BY_NAME[k].name, k)} {'becomes' if n == 1 else 'become'} {manifest.counts.get(k, 0)}"
        for k, n in there.items()
        if n > manifest.counts.get(k, 0)
    ]
    changes = f", older by {counted(held.revision - manifest.revision, 'change')} that would vanish"
    return changes + (f" ({', '.join(fewer)})" if fewer else "")
