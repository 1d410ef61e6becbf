"""From a snapshot to a later revision: the files of a continuous backup that lead there, and the replay of them.

Lives here: the choice of files, gaps and conflicts, the replay. Not here: the files (shipped_log.py), the restore
around it (restore.py). Invariant: every entry between the snapshot and the end is replayed once and in order, and the
digest of the state is compared at every mark on the way.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal, NamedTuple

from warren_raft.errors import InvariantViolation, RefusedForSafety, SnapshotInvalid
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft import entries
from warren_raft.raft.log.contents import Entry
from warren_raft.raft.membership import Change, apply_change
from warren_raft.raft.state_machine import apply_membership, membership_of
from warren_raft.recovery.shipped_log import Contents, Group, Mark, first_index_in, names_in, newest_index_in
from warren_raft.snapshots.backups import backup_index_in
from warren_raft.snapshots.file import SnapshotInfo, read_manifest

LAST: Final = "last"
PROBLEMS_SHOWN: Final = 3
EARLIER_FILES_MAX: Final = 8
"""A day of files may be there, and only the last ones reach beyond the snapshot: one for each of a few leaders."""
TOGETHER_ENTRIES: Final = 64
"""Applied in one transaction."""
ToRevision = int | Literal["last"]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The part of a continuous backup that was replayed behind a snapshot."""

    files: tuple[str, ...]
    index: int
    """The index of the last entry that was replayed, whole or in part."""
    revision: int
    """The revision that was reached, in the numbers of the old cluster."""
    until: datetime
    """A moment soon after the last of these changes: when the leader wrote them to the backup directory."""
    warnings: tuple[str, ...] = ()
    """A sentence about each file that was found damaged, and was not needed."""


@dataclass
class Plan:
    """The files behind a snapshot, found by `plan`. `replay` may be called once, on a copy of the snapshot's state."""

    old: SnapshotInfo
    wanted: int | None
    """The revision to stop at; None: the last one."""
    end: Mark
    paths: list[str] = field(default_factory=list)
    size_bytes: int = 0
    warnings: tuple[str, ...] = ()
    reached: Mark | None = None
    _stopped_at: int = 0

    @property
    def identity(self) -> Sequence[object]:
        """The same on every member that replays the same changes, and on no other."""
        return [self.wanted] if self.wanted is not None else [self.end.revision, self.end.index, self.end.digest.hex()]

    @property
    def revision(self) -> int:
        """The revision that the replay reaches."""
        return self.end.revision if self.wanted is None else self.wanted

    @property
    def replayed(self) -> Replayed:
        """After `replay`."""
        assert self.reached is not None
        return Replayed(
            files=tuple(self.paths),
            index=self.reached.index,
            revision=self.reached.revision,
            until=self.end.at,
            warnings=self.warnings,
        )

    def replay(self, machine: StateMachine) -> None:
        """Raises SnapshotInvalid (an entry that this release cannot read, or another state than the digest says)."""
        self._stopped_at = machine.applied_index
        for path in self.paths:
            try:
                for group in Contents(path).groups:
                    self._replay_group(machine, path, group)
                    if group.mark.index >= self.end.index:
                        break
            except InvariantViolation as error:
                raise SnapshotInvalid(path, f"has an entry that cannot be replayed: {error}") from error
        expected = self.end.revision if self.wanted is None else self.wanted
        if machine.revision != expected:  # the files are read twice
            raise SnapshotInvalid(
                self.paths[-1], f"has changed meanwhile: it leads to revision {machine.revision}, not {expected}"
            )
        self.reached = replace(self.end, revision=machine.revision, index=self._stopped_at)

    def _replay_group(self, machine: StateMachine, path: str, group: Group) -> None:
        if group.mark.index <= machine.applied_index:
            return
        is_last = group.mark.index >= self.end.index
        if is_last and self.wanted is not None and group.mark.revision > self.wanted:
            self._replay_part(machine, group, self.wanted)
            return
        _apply_all(machine, [entry for entry in group.entries if entry[1] > machine.applied_index])
        self._stopped_at = machine.applied_index
        if (machine.revision, machine.digest) != (group.mark.revision, group.mark.digest):
            raise SnapshotInvalid(
                path,
                f"does not continue {self.old.node_id}'s snapshot: after entry {group.mark.index} the state has "
                f"revision {machine.revision} and digest {machine.digest.hex()[:16]}, and the file says "
                f"{group.mark.revision} and {group.mark.digest.hex()[:16]}",
            )

    def _replay_part(self, machine: StateMachine, group: Group, wanted: int) -> None:
        """An entry has the commands of many callers, each with a revision of its own: apply them one by one. Their
        indexes do not matter, because the new cluster begins with indexes of its own."""
        before = machine.applied_index
        for command, index, term in group.entries:
            if index <= before:
                continue
            content = entries.decode(command)
            if isinstance(content, Change):
                _apply_change(machine, machine.applied_index + 1, term, content)
                continue
            for each in content:
                if machine.revision >= wanted:
                    return
                machine.apply(machine.applied_index + 1, term, [each])
            self._stopped_at = index


def _apply_all(machine: StateMachine, found: Sequence[Entry]) -> None:
    """Entries in a row; those with commands some together, which takes a fraction of the time."""
    together: list[tuple[int, Sequence[bytes]]] = []
    for command, index, term in found:
        content = entries.decode(command)
        if isinstance(content, Change):
            machine.apply_all(machine.applied_index + 1, together)
            together.clear()
            _apply_change(machine, index, term, content)
            continue
        together.append((term, content))
        if len(together) >= TOGETHER_ENTRIES:
            machine.apply_all(machine.applied_index + 1, together)
            together.clear()
    machine.apply_all(machine.applied_index + 1, together)


def _apply_change(machine: StateMachine, index: int, term: int, change: Change) -> None:
    apply_membership(machine, index, term, apply_change(membership_of(machine), change, index), change)


# ---------------------------------------------------------------------------------------------- the choice of files


def plan(file: str, old: SnapshotInfo, to_revision: ToRevision) -> Plan:
    """Find the files beside the snapshot `file` that lead to a revision, or as far as they go.

    Raises RefusedForSafety (there is a gap, or they do not reach the revision), SnapshotInvalid (damaged), OSError.
    """
    directory = os.path.dirname(file)
    wanted = None if to_revision == LAST else int(to_revision)
    start = Mark(old.index, old.revision, bytes.fromhex(old.digest), old.created_at)
    found = Plan(old=old, wanted=wanted, end=start)
    if wanted is not None and wanted < old.revision:
        raise RefusedForSafety(
            f"{file} is of revision {old.revision}, later than {wanted}: name an earlier backup, or a later revision"
        )
    chain = _Chain(directory, old)
    while wanted is None or found.end.revision < wanted:
        contents = chain.next(found.end.index)
        if contents is None:
            break
        found.paths.append(contents.path)
        found.size_bytes += os.path.getsize(contents.path)
        before, found.end = found.end, _end_in(contents, wanted)
        chain.require_one_history(contents, before.index + 1, found.end.index)
    reached = f"revision {found.end.revision}, index {found.end.index}"
    if wanted is not None and found.end.revision < wanted:
        raise RefusedForSafety(
            f"{file} and the files beside it lead to {reached}, and not to revision {wanted}"
            f"{chain.why(found.end.index)}"
        )
    if wanted is None and (why := chain.why(found.end.index)):
        raise RefusedForSafety(
            f"{file} and the files beside it lead to {reached}{why}. To restore what is before that, add --to-revision "
            f"{found.end.revision}"
        )
    if wanted is None:
        _require_nothing_newer(file, old, found.end.index)
    found.warnings = chain.warnings(found.paths)
    return found


def _require_nothing_newer(file: str, old: SnapshotInfo, reached: int) -> None:
    """Raises RefusedForSafety if the last revision of the directory is known to be later, or if no entries are there:
    somebody who asks for the last revision has perhaps copied the snapshot alone."""
    directory = os.path.dirname(file)
    names = os.listdir(directory or ".")
    if not names_in(names):
        raise RefusedForSafety(
            f"no file of a continuous backup (warren-*.log) is beside {file}: copy them too, or leave --to-revision out"
        )
    for name in names:
        index = backup_index_in(name)
        if index is None or index <= reached:
            continue
        path = os.path.join(directory, name)
        try:
            newer = read_manifest(path)
        except SnapshotInvalid:
            continue
        if newer.cluster_id == old.cluster_id and newer.index > reached:
            raise RefusedForSafety(
                f"{file} and the files beside it lead to index {reached}, and {path} is a later backup, of index "
                f"{newer.index}: restore that one"
            )


def _end_in(contents: Contents, wanted: int | None) -> Mark:
    for group in contents.groups:
        if wanted is not None and group.mark.revision >= wanted:
            return group.mark
    return contents.groups[-1].mark


class _Damaged(NamedTuple):
    """A file of which a part, or all, cannot be read."""

    path: str
    text: str
    newest_index: int | None
    """Of its last mark; None: not known."""
    is_readable: bool = True
    """False: perhaps the file is whole, and only its mode or its disk keeps it from being read."""


class _Chain:
    """The files of one cluster in a directory, each read at most once and let go of when the chain has passed it."""

    def __init__(self, directory: str, old: SnapshotInfo) -> None:
        self._old = old
        self._term = old.term
        paths = [os.path.join(directory, name) for name in names_in(os.listdir(directory))]
        earlier = [path for path in paths if first_index_in(path) <= old.index]
        self._unread = paths[len(earlier) :]
        self._earlier = earlier[-EARLIER_FILES_MAX:]
        """Files that begin before the snapshot's end: read if those behind them do not lead on."""
        self._read: list[Contents] = []
        self._damaged: list[_Damaged] = []
        """Of the files that were read."""
        self._begins = 0
        """The highest first index of the undamaged files that were read."""

    def next(self, index: int) -> Contents | None:
        """The file that leads furthest beyond the entry `index`; None: none does."""
        found = self._next(index)
        while found is None and self._earlier:
            self._take(self._earlier.pop())
            found = self._next(index)
        return found

    def _next(self, index: int) -> Contents | None:
        while self._unread and first_index_in(self._unread[0]) <= index + 1:
            self._take(self._unread.pop(0))
        self._read = [each for each in self._read if each.last is not None and each.last.index > index]
        fitting = [each for each in self._read if each.term_at(index) == self._term]
        if not fitting:
            return None
        found = max(fitting, key=lambda each: each.groups[-1].mark.index)
        term = found.term_at(found.groups[-1].mark.index)
        assert term is not None
        self._term = term
        return found

    def require_one_history(self, chosen: Contents, first: int, last: int) -> None:
        """Entries that are in more than one file must be equal. They are not if the machines of a cluster were set back
        to an old image: then the same indexes were used twice."""
        for other in self._read:
            if other is chosen or other.last is None:
                continue
            for index in range(max(first, other.header.first_index), min(last, other.last.index) + 1):
                if other.entry_at(index) != chosen.entry_at(index):
                    raise RefusedForSafety(
                        f"{chosen.path} and {other.path} have different entries at index {index}: this cluster was set "
                        "back to an earlier state, and went on. Move the files of the history that you do not want "
                        "out of the directory"
                    )

    def _take(self, path: str) -> None:
        try:
            contents = Contents(path)
        except SnapshotInvalid as error:
            self._damaged.append(_Damaged(path, str(error), newest_index_in(path)))
            return
        except OSError as error:
            text = f"{path} cannot be read: {error.strerror or error}"
            self._damaged.append(_Damaged(path, text, None, is_readable=False))
            return
        if contents.header.cluster_id != self._old.cluster_id:
            return
        if contents.problem:
            self._damaged.append(_Damaged(path, f"{path} {contents.problem}", contents.newest_index))
        elif contents.groups:
            self._begins = max(self._begins, contents.header.first_index)
        self._read.append(contents)

    def warnings(self, used: Collection[str]) -> tuple[str, ...]:
        """A sentence about each file that was read and is damaged. `used`: the files whose undamaged part counts."""
        return tuple(
            f"{each.text}; {'the part behind the damage' if each.path in used else 'it'} was not needed"
            for each in self._damaged
        )

    def _damage(self, index: int) -> str:
        """The damaged files that may hold entries behind this one; "" if there are none."""
        found = [each.text for each in self._damaged if self._may_go_on(each, index)]
        return f": {'; '.join(found[:PROBLEMS_SHOWN])}" if found else ""

    def _may_go_on(self, file: _Damaged, index: int) -> bool:
        """Whether it may hold entries behind this one. A leader writes all entries from the first one of its file on,
        so a file without any mark has none that an undamaged file with a higher first index lacks."""
        if not file.is_readable:
            return True
        if file.newest_index is not None:
            return file.newest_index > index
        return first_index_in(file.path) >= self._begins and os.path.getsize(file.path) > 0

    def why(self, index: int) -> str:
        """Why the chain ends at this entry although there may be more; "" if nothing shows that there is more."""
        if damage := self._damage(index):
            return damage
        if self._read:
            paths = ", ".join(each.path for each in self._read)
            return f": {paths} has the entry {index} with another term, so it is of another history of this cluster"
        while self._unread and not self._read:
            self._take(self._unread.pop(0))
        if damage := self._damage(index):
            return damage
        if self._read:
            first = self._read[0].header.first_index
            return (
                f": the entries {index + 1} to {first - 1} are in no file, and {self._read[0].path} begins behind them"
            )
        return ""
