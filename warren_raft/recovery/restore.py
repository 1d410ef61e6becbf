"""`snapshot restore` and `recover`: a data directory that begins a new cluster with the data of an old one.

Lives here: the refusals, the identity of the new cluster, its log. Not here: the state (snapshots/install.py), and the
replacement of a directory at once (snapshots/staging.py). Invariant: members that restore the same file with the same
list agree on everything before they have met. Nothing is overwritten: the old content is set aside.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from random import SystemRandom
from typing import Final

from warren_raft.config import Config, split_address
from warren_raft.data_dir.description import ONLY_VOTER, advice_for_log, describe
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.data_dir.remembered import kept_for
from warren_raft.disk import privacy
from warren_raft.disk.files import OS_FILES
from warren_raft.disk.paths import absolute, require_directory
from warren_raft.disk.sharing import require_rights
from warren_raft.errors import (
    Corrupted,
    InUse,
    InvariantViolation,
    RefusedForSafety,
    WarrenError,
)
from warren_raft.fsm.entry import read_committed
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft import entries
from warren_raft.raft.log.log import Log
from warren_raft.raft.log.opening import owner_of
from warren_raft.raft.membership import (
    REMOVE,
    Change,
    Membership,
    Origin,
    apply_change,
)
from warren_raft.raft.state_machine import membership_of
from warren_raft.snapshots import staging
from warren_raft.snapshots.beside import verified_beside
from warren_raft.snapshots.file import (
    Path,
    Progress,
    SnapshotInfo,
    counts_of,
    read_manifest,
    write,
)
from warren_raft.snapshots.install import RESTORED_INDEX, REVISION_STEP, install
from warren_raft.store.command import MalformedCommand, decode
from warren_raft.store.database import Database
from warren_raft.store.ownership import DirectoryLock
from warren_raft.store.tables import BY_NAME
from warren_raft.support.wording import counted

CLUSTER_ID_CHARACTERS: Final = 32
NO_CLUSTER: Final = "none"
"""The operator types this for a snapshot without a cluster id, that is, of a LocalStore."""
PROBE_SECONDS: Final = 1.0
"""How long another member may take to accept a connection before it counts as stopped."""
_VERIFIED: Final = 0.75  # share of the whole, as measured
_ROOM: Final = 3
_ROOM_WHY: Final = "three times the state"  # the old one, its copy, and the new one while it is made
_OLD: Final = "old.mdb"  # the old state, in the directory of the new files while it is needed


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A directory that was made. It becomes a cluster when the directories of all `members` are made and started."""

    data_dir: str
    node_id: str
    cluster_id: str
    members: Mapping[str, str]
    index: int
    revision: int
    digest: str
    counts: Mapping[str, int]
    aside: str | None
    """The directory of the old files."""
    old: SnapshotInfo
    """The manifest of the state from which it was made."""


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
    progress: Progress | None = None,
) -> Restored:
    """Make DATA_DIR the directory of the member `node_id` of a new cluster that begins with the data of the snapshot.

    Call it once for each member of `members` (id -> `HOST:PORT`), with the same file and the same members; they form
    the cluster when all of them run. `cluster_id`: the required cluster id of the snapshot. `move_aside`: the content
    of DATA_DIR goes to DATA_DIR/aside-TIME. That needs `cluster_id` if the content is of another cluster, and
    `allow_rollback` if the snapshot is older than the content, or the content cannot be read.

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
    with _locked(data_dir):
        staging.finish(data_dir, files=OS_FILES)
        _check_owner(data_dir, node_id)
        if cluster_id is None and _look(data_dir).cluster_id == _common_cluster_id(manifest, members):
            raise RefusedForSafety(
                f"{data_dir} was restored from this file with these members already: start its manager (to restore it "
                f"again, add --cluster-id {manifest.cluster_id or NO_CLUSTER})"
            )
        _check_target(data_dir, file, manifest, typed=cluster_id is not None, aside=move_aside, rollback=allow_rollback)
        with _part_of(data_dir) as part:
            _check_room(data_dir, 2 * manifest.size_bytes, "twice the snapshot")
            origin = Origin(_common_cluster_id(manifest, members), members)
            with verified_beside(file, manifest, lambda share: report(share * _VERIFIED)) as require:
                made = _make(part, file, manifest, origin, node_id, lambda _machine: None)
                require()
            staging.commit(data_dir, datetime.now(UTC), files=OS_FILES)
        aside = staging.finish(data_dir, files=OS_FILES)
    report(1.0)
    return _restored(data_dir, node_id, origin, made, aside, manifest)


def _common_cluster_id(manifest: SnapshotInfo, members: Mapping[str, str]) -> str:
    """An id that is the same for all members that restore the same file with the same list, and for no others."""
    said = json.dumps([manifest.sha256, sorted(members.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:CLUSTER_ID_CHARACTERS]


def _make(
    part: str, file: str, manifest: SnapshotInfo, origin: Origin, node_id: str, first: Callable[[StateMachine], object]
) -> SnapshotInfo:
    """Make the whole content of the new directory in `part`, durably."""
    made = install(
        file,
        part,
        sha256=manifest.sha256,
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
    return made


def _restored(
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
def _locked(data_dir: str) -> Iterator[None]:
    """Hold the directory's lock. A directory that was made for the lock is removed if the restore fails."""
    existed = os.path.isdir(data_dir)
    if existed:
        privacy.require_data_or_empty(data_dir)
        require_rights(data_dir, data_dir=data_dir)
    try:
        lock = DirectoryLock(data_dir)
    except InUse:
        raise _runs(data_dir) from None
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
def _part_of(data_dir: str) -> Iterator[str]:
    part = staging.begin(data_dir, files=OS_FILES)
    try:
        yield part
    except BaseException:
        staging.discard(data_dir, files=OS_FILES)
        raise


def _check_room(data_dir: str, needed: int, why: str) -> None:
    """Require space for the state and a snapshot of it. It takes less if the file system shares blocks."""
    free = OS_FILES.free_bytes(data_dir)
    if free < needed:
        raise RefusedForSafety(
            f"the disk of {data_dir} has {_mb(free)} left, and {why}, {_mb(needed)}, is needed: free some space first"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


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


# ---------------------------------------------------------------------------------------------- recover


class Survivor:
    """The contents of a stopped manager's directory that is to be recovered."""

    data_dir: str
    node_id: str
    old_cluster_id: str
    address: str
    """The address where its manager listened last, or its address in the list."""
    others: Mapping[str, str]
    """The other members, id -> address in the list."""
    index: int
    term: int
    """The term of the last entry. Everything up to this entry is taken over."""
    uncertain: int
    """How many of these entries are not known to have been acknowledged."""

    def _take(
        self,
        membership: Membership | None,
        incarnation: str,
        last: tuple[int, int],
        certain: int,
        *,
        but_removal: Membership | None,
        force: bool,
    ) -> None:
        """`membership`: after the last entry. `last`: the index and term of that entry. `but_removal`: without the
        removal of this directory, if the log has it. `certain`: the last index that is known to have been
        acknowledged."""
        if membership is None:
            aside = [os.path.basename(each) for each in staging.asides(self.data_dir)]
            if aside:
                raise RefusedForSafety(
                    f"{self.data_dir} was recovered or restored (the old files are in {', '.join(aside)}) and not "
                    "started since: start its manager"
                )
            raise RefusedForSafety(f"{self.data_dir} has not been part of a cluster yet: there is nothing to recover")
        is_member = membership.incarnation(self.node_id) == incarnation
        if not is_member and but_removal is not None and but_removal.incarnation(self.node_id) == incarnation:
            # The removal may not have taken effect: the others may have been lost before it was done.
            if not force:
                raise RefusedForSafety(
                    f"the removal of {self.node_id} from its cluster is in its log: recover another member, or add "
                    "--force if no other is left"
                )
            membership, is_member = but_removal, True
        if not is_member:
            raise RefusedForSafety(f"{self.node_id} is not a member of its cluster: recover a directory of a member")
        kept = kept_for(self.data_dir, incarnation)
        self.old_cluster_id = membership.cluster_id
        self.address = membership.members[self.node_id].address if kept is None else kept.listen
        self.others = {m.id: m.address for m in membership.members.values() if m.id != self.node_id}
        self.index, self.term = last
        self.uncertain = self.index - certain
        self._said = {} if kept is None else kept.said

    def _refuse_if_others_answer(self) -> None:
        """Probe their addresses in the list, and the addresses that they reported."""
        places = [*self.others.items(), *((id_, at) for id_, at in self._said.items() if id_ in self.others)]
        answering = dict(sorted((id_, address) for id_, address in places if _answers(address)))
        if answering:
            who = ", ".join(f"{id_} ({address})" for id_, address in answering.items())
            if len(answering) == 1:
                do = "accepts connections: stop it, or add --force if it is not a member of this cluster"
            else:
                do = "accept connections: stop them, or add --force if they are not members of this cluster"
            raise RefusedForSafety(f"{who} {do}")


class Preview(Survivor):
    """The findings and refusals that `Recovery` would have, without changing anything. The state itself is not proved.

    Raises the same errors as Recovery, except StorageFull: too little space is RefusedForSafety here as there.
    """

    def __init__(self, data_dir: Path, *, force: bool = False) -> None:
        try:
            with _advice_without_a_cluster():
                self.description: Final = describe(data_dir)
        except InUse:
            raise _runs(absolute(data_dir)) from None
        found = self.description
        self.data_dir, self.node_id = found.data_dir, found.node_id
        membership = found.membership_at(found.index)
        self._take(
            membership,
            found.incarnation,
            (found.index, found.term),
            found.commit_index,
            but_removal=found.membership_at(found.index, but_removal_of=found.incarnation),
            force=force,
        )
        if not force:
            self._refuse_if_others_answer()
        _check_room(self.data_dir, _ROOM * found.db_size_bytes, _ROOM_WHY)


class Recovery(Survivor):
    """The directory of a stopped manager after the loss of its cluster's quorum. `carry_out` makes it a cluster of one.

    Use it with `with`: it holds the directory. Until `carry_out`, it changes only what a start of the manager would
    change (its state is rebuilt if necessary). Raises RefusedForSafety, Corrupted, OSError.
    """

    def __init__(self, data_dir: Path, *, force: bool = False) -> None:
        """`force`: also if another member answers, so that there may be two separate clusters, and if the log has the
        removal of this manager."""
        self.data_dir = absolute(data_dir)
        require_directory(self.data_dir)
        with _locked(self.data_dir):
            staging.finish(self.data_dir, files=OS_FILES)
        with _advice_without_a_cluster(), advice_for_log(self.data_dir):
            node_id = owner_of(OS_FILES, os.path.join(self.data_dir, "log"))
            if node_id is None:
                raise RefusedForSafety(f"{self.data_dir} holds no manager's log: name the directory of a survivor")
            self.node_id = node_id
            self._opened = _open(self.data_dir, node_id)
        try:
            self._look(force)
        except BaseException:
            self._opened.close(failed=False)
            raise

    def _look(self, force: bool) -> None:
        opened = self._opened
        log, machine = opened.log, opened.machine
        self._entries = self._readable(force)
        membership = but_removal = membership_of(machine)
        for content, index, _ in self._entries:
            if isinstance(content, Change):
                membership = apply_change(membership, content, index)
                if (content.verb, content.incarnation) != (REMOVE, log.incarnation):
                    but_removal = apply_change(but_removal, content, index)
        last = log.last_index, log.last_term
        certain = max(log.commit_index, machine.applied_index)
        if log.last_index > machine.applied_index + len(self._entries):
            last = self._entries[-1][1:] if self._entries else (machine.applied_index, machine.applied_term)
            certain = min(certain, last[0])
        self._take(membership, log.incarnation, last, certain, but_removal=but_removal, force=force)
        if not force:
            self._refuse_if_others_answer()

    def _readable(self, force: bool) -> list[tuple[list[bytes] | Change, int, int]]:
        """The entries after the state; with `force`, up to the first entry that this release cannot read. If no release
        can read it, no manager has applied it or a later entry, and no caller got an acknowledgement for them."""
        log, machine = self._opened.log, self._opened.machine
        found = []
        for entry, index, term in log.entries[1:]:
            if index <= machine.applied_index:
                continue
            content, problem = _read(entry)
            if content is None and force:
                break
            if content is None:
                raise RefusedForSafety(
                    f"the log of {self.data_dir} holds an entry at index {index} that this release cannot read "
                    f"({problem}). If a newer release wrote it, type warren-raft recover with that release. If none "
                    "did, no manager has applied it or any entry behind it: add --force to go on without them"
                )
            found.append((content, index, term))
        return found

    def carry_out(self, progress: Progress | None = None) -> Restored:
        """Make the new directory and move the old files to DATA_DIR/aside-TIME. Call it once. Raises SnapshotInvalid
        (the state is damaged: restore a snapshot instead), StorageFull, OSError; nothing has changed then."""
        report = progress or (lambda _share: None)
        origin = Origin(f"{SystemRandom().getrandbits(128):032x}", {self.node_id: self.address})
        with _part_of(self.data_dir) as part:
            old_path = os.path.join(part, _OLD)
            database = self._opened.database
            _check_room(self.data_dir, _ROOM * database.file_size_bytes(), _ROOM_WHY)
            old = write(
                database, old_path, created_at=datetime.now(UTC), node_id=self.node_id, quorum=False, files=OS_FILES
            )
            with verified_beside(old_path, old, lambda share: report(share * _VERIFIED)) as require:
                made = _make(part, old_path, old, origin, self.node_id, self._replay)
                require()
            OS_FILES.unlink(old_path)
            staging.commit(self.data_dir, datetime.now(UTC), files=OS_FILES)
        self._opened.close(failed=False)
        with _locked(self.data_dir):
            aside = staging.finish(self.data_dir, files=OS_FILES)
        report(1.0)
        return _restored(self.data_dir, self.node_id, origin, made, aside, old)

    def _replay(self, machine: StateMachine) -> None:
        """Replay on the copy: the old directory must keep the knowledge of its manager unchanged."""
        membership = membership_of(machine)
        for content, index, term in self._entries:
            if not isinstance(content, Change):
                machine.apply(index, term, content)
                continue
            membership = apply_change(membership, content, index)
            if membership is None:
                machine.apply(index, term, ())
            else:
                machine.apply_membership(index, term, membership.cluster_id, membership.encode())

    def __enter__(self) -> Recovery:
        return self

    def __exit__(self, *_exception: object) -> None:
        if not self._opened.database.is_closed:
            self._opened.close(failed=False)


def _read(entry: bytes) -> tuple[list[bytes] | Change | None, str]:
    """The content of an entry; or None and the reason, if no manager of this release can apply it. A merely malformed
    entry is applied: it changes nothing."""
    try:
        content = entries.decode(entry)
        for command in content if isinstance(content, list) else ():
            with suppress(MalformedCommand):
                decode(command)
    except InvariantViolation as error:
        return None, str(error)
    return content, ""


def _open(data_dir: str, node_id: str) -> OpenedDirectory:
    """Open the directory as its manager would; the listen address does not matter."""
    nowhere = "127.0.0.1:1"
    config = Config(node_id=node_id, data_dir=data_dir, listen=nowhere, members={node_id: nowhere})
    try:
        return OpenedDirectory(config, files=None, random=SystemRandom())
    except InUse:
        raise _runs(data_dir) from None


def _runs(data_dir: str) -> RefusedForSafety:
    return RefusedForSafety(f"a manager is running on {data_dir}: stop it first")


@contextmanager
def _advice_without_a_cluster() -> Iterator[None]:
    """Errors for a damaged directory advise to rejoin the cluster, but here no cluster is left: give other advice."""
    try:
        yield
    except Corrupted as error:
        if error.remedy.startswith(ONLY_VOTER):
            raise
        remedy = "recover another survivor, or restore a snapshot: docs/recovery.md"
        raise Corrupted(error.path, error.detail, remedy=remedy) from error


def _answers(address: str) -> bool:
    try:
        with socket.create_connection(split_address(address), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
