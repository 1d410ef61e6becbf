"""The directory of a stopped manager, described: node, cluster, indexes, members.

Lives here: reading them. Not here: starting a manager (opening.py), making a new cluster from a directory
(recovery/restore.py).
Invariant: nothing in the directory is changed and no file is made, so it may be read-only, or a copy for study.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from warren_raft.disk import last_failure
from warren_raft.disk.files import OsFile, OsFiles
from warren_raft.disk.paths import absolute, require_directory
from warren_raft.errors import (
    Corrupted,
    InUse,
    RefusedForSafety,
    SnapshotInvalid,
    WarrenError,
)
from warren_raft.fsm.entry import Committed, read_committed
from warren_raft.raft import entries
from warren_raft.raft.log import opening as log_opening
from warren_raft.raft.log.contents import BASE_INDEX, Contents
from warren_raft.raft.membership import (
    REMOVE,
    Change,
    Founding,
    Member,
    Membership,
    Origin,
    apply_change,
    read_note,
)
from warren_raft.raft.way_back import way_back_in
from warren_raft.snapshots import staging
from warren_raft.snapshots.directory import SnapshotDirectory
from warren_raft.snapshots.file import counts_of
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.ownership import DirectoryLock

VOTER: Final = "voter"
LEARNER: Final = "learner"
REMOVED: Final = "removed"
WAITING: Final = "waiting"
Standing = Literal["voter", "learner", "removed", "waiting"]
"""The standing of a directory in its cluster: a voter, a learner, removed, or waiting: not yet part of a cluster."""


ONLY_VOTER: Final = "as far as this directory knows, it is the only voter's: it may be the only copy of the entities"

Base = tuple[int, Membership | None]
"""An index of the log, and the member list at that index."""


class ReadOnlyFiles(OsFiles):
    """Files that are opened for reading only."""

    def open(self, path: str, *, create: bool = False) -> OsFile:
        return OsFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))


@dataclass(frozen=True, kw_only=True)
class Description:
    """A stopped manager's directory. `index` and `term` are those of the last entry in its log."""

    data_dir: str
    node_id: str
    incarnation: str
    cluster_id: str | None
    """None before the directory is part of a cluster."""
    origin: str | None
    """The cluster id that a restore gave to the directory, until it is part of that cluster; else None."""
    standing: Standing
    """`waiting`: not yet part of a cluster."""
    members: tuple[Member, ...]
    """The member list after the last entry that is known to be committed. Before there is such an entry, the members
    with which the directory was founded or restored. A manager that was away when it was removed is still in its own
    list: `standing` says `removed`."""
    index: int
    term: int
    commit_index: int
    """Entries up to this index are known to be committed; later entries may be committed."""
    log_bytes: int
    state: Committed | None
    """The position of the state; None if the state cannot be read, and then `state_problem` says why."""
    state_problem: str | None
    counts: Mapping[str, int]
    """The number of entities, by the plural of each kind."""
    db_size_bytes: int
    """The size of the file of the state."""
    snapshots: tuple[int, ...]
    """The index of each snapshot, the newest first."""
    aside: tuple[str, ...]
    """Directories with the old files of a restore or recovery."""
    contents: Contents = field(repr=False)
    base: Base = field(repr=False)
    """The entries after it lead to every later member list."""

    @property
    def address(self) -> str | None:
        """The manager's own address in the list."""
        return next((member.address for member in self.members if member.id == self.node_id), None)

    def membership_at(self, index: int, *, but_removal_of: str = "") -> Membership | None:
        """The member list after the entry at `index`; `but_removal_of`: without the removal of this incarnation."""
        return _membership_at(index, self.base, self.contents, but_removal_of)

    def to_json(self) -> dict[str, Any]:
        """The form of `warren-raft describe -o json`."""
        state = self.state
        return {
            "data_dir": self.data_dir,
            "node_id": self.node_id,
            "cluster_id": self.cluster_id,
            "origin": self.origin,
            "standing": self.standing,
            "index": self.index,
            "term": self.term,
            "commit_index": self.commit_index,
            "applied_index": None if state is None else state.applied_index,
            "revision": None if state is None else state.revision,
            "digest": None if state is None else state.digest.hex(),
            "state_problem": self.state_problem,
            "members": [self._member_json(member) for member in self.members],
            "counts": dict(self.counts),
            "db_size_bytes": self.db_size_bytes,
            "log_bytes": self.log_bytes,
            "snapshots": list(self.snapshots),
            "aside": list(self.aside),
        }

    def _member_json(self, member: Member) -> dict[str, Any]:
        """A manager that was away when it was removed is a voter in its own list."""
        is_removed = self.standing == REMOVED and (member.id, member.incarnation) == (self.node_id, self.incarnation)
        standing = REMOVED if is_removed else VOTER if member.voter else LEARNER
        return {"id": member.id, "address": member.address, "voter": standing == VOTER, "standing": standing}


def describe(data_dir: str | os.PathLike[str]) -> Description:
    """Describe the directory. Nothing is changed. The state is read and not verified.

    Raises InUse (a manager runs on it), RefusedForSafety (there is no manager's log, a restore is not finished, files
    of a later release), Corrupted (the log is damaged), OSError.
    """
    directory = absolute(data_dir)
    require_directory(directory)
    _refuse_running(directory)
    if staging.is_committed(directory):
        raise RefusedForSafety(f"{directory} was restored and not started since: its next start finishes that")
    with advice_for_log(directory):
        looked = log_opening.look(ReadOnlyFiles(), os.path.join(directory, "log"))
    if looked is None:
        raise RefusedForSafety(f"{directory} holds no manager's log: name the directory of a manager")
    contents = looked.contents
    state = _read_state(directory, contents)
    _refuse_running(directory)  # log and state may not fit together if a manager has begun to write meanwhile
    index, term = contents.entries[-1][1:]
    commit_index = min(index, max(contents.commit_index, state.base[0]))
    membership = _membership_at(commit_index, state.base, contents)
    note = read_note(contents.note) if membership is None else None
    members = _initial_members(note) if membership is None else membership.members
    return Description(
        data_dir=directory,
        node_id=looked.node_id,
        incarnation=looked.incarnation,
        cluster_id=None if membership is None else membership.cluster_id,
        origin=_origin(note),
        standing=_standing(membership, looked.node_id, looked.incarnation, last_failure.read(directory)),
        members=tuple(member for _, member in sorted(members.items())),
        index=index,
        term=term,
        commit_index=commit_index,
        log_bytes=looked.size_bytes,
        state=state.committed,
        state_problem=state.problem,
        counts=state.counts,
        db_size_bytes=state.size_bytes,
        snapshots=tuple(snapshot.index for snapshot in SnapshotDirectory(directory).list()),
        aside=tuple(staging.asides(directory)),
        contents=contents,
        base=state.base,
    )


def owner_of(data_dir: str | os.PathLike[str]) -> tuple[str, str]:
    """The node id and the incarnation of the log; empty if they cannot be read: another error is to be reported."""
    try:
        header = log_opening.newest_header(ReadOnlyFiles(), os.path.join(data_dir, "log"))
    except (WarrenError, OSError):
        return "", ""
    return ("", "") if header is None else (header.node_id, header.incarnation)


def cluster_trust_domain(data_dir: str | os.PathLike[str]) -> str:
    """The trust domain of the directory's cluster, as far as the directory knows it; empty if it is not part of a
    cluster, or if the cluster has none. The caller holds the directory's lock.

    Raises the errors of `describe`, except InUse.
    """
    directory = absolute(data_dir)
    with advice_for_log(directory):
        looked = log_opening.look(ReadOnlyFiles(), os.path.join(directory, "log"))
    if looked is None:
        return ""
    contents = looked.contents
    base = _read_state(directory, contents).base
    membership = _membership_at(max(contents.commit_index, base[0]), base, contents)
    return "" if membership is None else membership.trust_domain


@contextmanager
def advice_for_log(directory: str, node_id: str = "") -> Iterator[None]:
    """A damaged log has the advice to join the cluster again, with the id and the address if they can be read. In a
    cluster of one there is none: the advice is then to keep the entities, which are in the state."""
    try:
        yield
    except Corrupted as error:
        members = _members_in_state(directory)
        if has_one_voter(members):
            raise Corrupted(error.path, error.detail, remedy=keep_entities(directory)) from error
        node_id = node_id or owner_of(directory)[0]
        if error.remedy != log_opening.REMEDY or not node_id:
            raise
        remedy = f"{log_opening.PART_OF_LOG}: {way_back_in(members, node_id)}"
        raise Corrupted(error.path, error.detail, remedy=remedy) from error


def has_one_voter(membership: Membership | None) -> bool:
    return membership is not None and sum(member.voter for member in membership.members.values()) == 1


def keep_entities(directory: str) -> str:
    """The next steps of an only voter without a complete log. Its state may be the only copy of its entities."""
    return (
        f"{ONLY_VOTER}: keep it, and put the log back; or type warren-raft export state.jsonl --data-dir "
        f"{shlex.quote(directory)}, begin a new cluster in an empty directory, and import the file there: "
        "docs/recovery.md"
    )


def _members_in_state(directory: str) -> Membership | None:
    try:
        path = state_file(directory)
        with closing(Database.open_file(path)) as database, database.read() as transaction:
            return _membership(read_committed(transaction), path)
    except (WarrenError, OSError):
        return None  # the damage of the log is the error to report


def _refuse_running(directory: str) -> None:
    if DirectoryLock.is_held(directory):
        raise InUse(directory, f"has a running manager: see warren-raft status --data-dir {directory}")


def _membership_at(index: int, base: Base, contents: Contents, but_removal_of: str = "") -> Membership | None:
    applied_index, membership = base
    for command, entry_index, _ in contents.entries[1:]:
        if applied_index < entry_index <= index:
            content = entries.decode(command)
            if isinstance(content, Change) and (content.verb, content.incarnation) != (REMOVE, but_removal_of):
                membership = apply_change(membership, content, entry_index)
    return membership


def _standing(
    membership: Membership | None, node_id: str, incarnation: str, failure: last_failure.LastFailure | None
) -> Standing:
    """A manager that was away when it was removed hears it from the members; its own list does not say so."""
    if membership is None:
        return WAITING
    is_told = failure is not None and failure.removed == incarnation
    if is_told or membership.incarnation(node_id) != incarnation:
        return REMOVED
    return VOTER if membership.members[node_id].voter else LEARNER


def _initial_members(note: Founding | Origin | None) -> Mapping[str, Member]:
    """The members of the founding record, or of the list with which a directory was restored."""
    match note:
        case Founding():
            return note.members
        case Origin():
            return {id_: Member(id_, address, "", voter=True) for id_, address in note.members.items()}
    return {}


def _origin(note: Founding | Origin | None) -> str | None:
    match note:
        case Founding():
            return note.origin or None
        case Origin():
            return note.cluster_id
    return None


@dataclass(frozen=True, kw_only=True)
class _State:
    """The part of the state that could be read, and the point from which the member list can be followed."""

    committed: Committed | None = None
    problem: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    base: Base


def _read_state(directory: str, contents: Contents) -> _State:
    try:
        path = state_file(directory)
        with closing(Database.open_file(path)) as database, database.read() as transaction:
            committed, counts = read_committed(transaction), counts_of(transaction)
            membership, size_bytes = _membership(committed, path), database.file_size_bytes()
    except Corrupted as error:
        problem = f"{error.path}: {error.detail}; its manager rebuilds the state when it starts"
        return _State(problem=problem, base=_base(directory, contents))
    return _State(
        committed=committed,
        counts=counts,
        size_bytes=size_bytes,
        base=(committed.applied_index, membership),
    )


def state_file(directory: str) -> str:
    """The path of the state. Raises Corrupted if no state may be trusted."""
    state = StateDirectory(directory)
    generation = state.current()
    if generation is None:
        raise Corrupted(state.path, "there is no state yet")
    state.require_trusted(generation, reading=True)
    state.is_sealed(generation)
    return state.file_of(generation)


def _membership(committed: Committed, path: str) -> Membership | None:
    try:
        return Membership.decode(committed.membership) if committed.membership else None
    except ValueError as error:
        raise Corrupted(path, f"its members cannot be read: {error}") from None


def _base(directory: str, contents: Contents) -> Base:
    """Without a state: from the newest snapshot at which the log continues, or from the log's beginning."""
    for snapshot in SnapshotDirectory(directory).list():
        if contents.holds(snapshot.index, snapshot.term):
            try:
                with closing(Database.open_file(snapshot.path)) as database, database.read() as transaction:
                    return snapshot.index, _membership(read_committed(transaction), snapshot.path)
            except (Corrupted, SnapshotInvalid):
                continue  # try an older snapshot
    return BASE_INDEX, None
