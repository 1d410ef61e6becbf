"""`recover`: the directory of a stopped manager becomes a new cluster of one, after the loss of the quorum.

Lives here: what the directory holds, the refusals, the replay of its log. Not here: the new directory (restore.py).
Invariant: every entry in the log that this release can read is taken over, whether or not it was acknowledged. Nothing
is overwritten: the old content is set aside.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from random import SystemRandom
from typing import Final

from warren_raft.config import Config, split_address
from warren_raft.data_dir.description import ONLY_VOTER, advice_for_log, describe
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.data_dir.remembered import kept_for
from warren_raft.disk.files import OS_FILES
from warren_raft.disk.paths import absolute, require_directory
from warren_raft.errors import (
    Corrupted,
    InUse,
    InvariantViolation,
    RefusedForSafety,
)
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft import entries
from warren_raft.raft.log.opening import owner_of
from warren_raft.raft.membership import (
    REMOVE,
    Change,
    Membership,
    Origin,
    apply_change,
)
from warren_raft.raft.state_machine import apply_membership, membership_of
from warren_raft.recovery.restore import Restored, check_room, locked, make, part_of, restored, runs
from warren_raft.snapshots import staging
from warren_raft.snapshots.file import Path, Progress, write
from warren_raft.store.command import MalformedCommand, decode

PROBE_SECONDS: Final = 1.0
"""How long another member may take to accept a connection before it counts as stopped."""
_ROOM: Final = 3
_ROOM_WHY: Final = "three times the state"  # the old one, its copy, and the new one while it is made
_OLD: Final = "old.mdb"  # the old state, in the directory of the new files while it is needed


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
            raise runs(absolute(data_dir)) from None
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
        check_room(self.data_dir, _ROOM * found.db_size_bytes, _ROOM_WHY)


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
        with locked(self.data_dir):
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
        with part_of(self.data_dir) as part:
            old_path = os.path.join(part, _OLD)
            database = self._opened.database
            check_room(self.data_dir, _ROOM * database.file_size_bytes(), _ROOM_WHY)
            old = write(
                database, old_path, created_at=datetime.now(UTC), node_id=self.node_id, quorum=False, files=OS_FILES
            )
            made = make(part, old_path, old, origin, self.node_id, self._replay, report)
            OS_FILES.unlink(old_path)
            staging.commit(self.data_dir, datetime.now(UTC), files=OS_FILES)
        self._opened.close(failed=False)
        with locked(self.data_dir):
            aside = staging.finish(self.data_dir, files=OS_FILES)
        report(1.0)
        return restored(self.data_dir, self.node_id, origin, made, aside, old)

    def _replay(self, machine: StateMachine) -> None:
        """Replay on the copy: the old directory must keep the knowledge of its manager unchanged."""
        membership = membership_of(machine)
        for content, index, term in self._entries:
            if not isinstance(content, Change):
                machine.apply(index, term, content)
                continue
            membership = apply_change(membership, content, index)
            apply_membership(machine, index, term, membership, content)

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
        raise runs(data_dir) from None


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
