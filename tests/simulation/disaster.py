"""All managers are lost at once, and operators restore a snapshot or recover a survivor: often by mistake at first.

They use the product's own code (recovery/), on the directories of the simulation. The result is another
cluster, with its own checkers and callers, which begin with the restored records. Not here: the faults before and after
(nemesis.py). Invariant: `strike` always ends with the members of one cluster started.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

from tests.killed import Killed, full_after, killed_after
from tests.page_cache import PageCache
from tests.simulation.checkers.acknowledged import AcknowledgedWrites
from tests.simulation.checkers.clusters import OneCluster
from tests.simulation.nemesis import Nemesis
from tests.simulation.operators import JOINERS
from tests.simulation.workload import Workload
from tests.simulation.world import Audience, Directory, Failure, Process, World
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.errors import (
    RefusedForSafety,
    SnapshotInvalid,
    StorageFull,
    WarrenError,
)
from warren_raft.fsm.entry import read_committed
from warren_raft.raft.membership import Founding, read_note
from warren_raft.recovery import recover as recovering
from warren_raft.recovery import restore as restoring
from warren_raft.recovery.recover import Recovery
from warren_raft.recovery.restore import restore
from warren_raft.snapshots import staging
from warren_raft.snapshots.file import SnapshotInfo, extract, write
from warren_raft.snapshots.verification import verify
from warren_raft.store import codec
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.tables import SERVICE

RESTORES = 0.7
"""Probability that a disaster ends with a restore; otherwise a survivor is recovered."""
REFUSALS = 0.3
"""Probability of each small mistake that has to be refused at once."""
INTERRUPTIONS = ("killed", "power cut", "disk full")
BEST = 0.7
"""Probability that the survivor with the longest log is recovered, as it should be."""
RESTORE_OPERATIONS, RECOVER_OPERATIONS = 100, 145
"""The number of file operations that restoring and recovering take, about."""
MISTAKE_SECONDS = 3.0
"""For this long managers run that have to find out that they do not belong together."""
FORMING_SECONDS = 60.0
AFTERWARDS_SECONDS = (0.5, 2.5)
"""The time of faults in the new cluster."""

TWO_ORIGINS = ("were restored from different snapshots",)
OLD_AND_NEW = ("was restored as cluster", "belongs to cluster", "was not restored, and", "is not the one the cluster")
"""An alarm or error has one of these texts. The last one comes from an old member that had met the initial members, and
no other manager since."""


class Snapshot(NamedTuple):
    path: Path
    manifest: SnapshotInfo


class Made(NamedTuple):
    """The contents of a restored or recovered directory."""

    cluster_id: str
    revision: int
    digest: bytes
    records: Mapping[bytes, bytes]


class Disaster:
    """The disaster of one run. Make it when the run begins, so that snapshots are saved; call `strike` once."""

    def __init__(self, world: World, workload: Workload, checkers: Sequence[Callable[[], object]]) -> None:
        self.world = world
        self.random = world.random
        self.checkers = checkers
        self._old = workload
        self._audience = world.audience
        self._cluster = OneCluster()
        self._latest = workload
        self._saved: list[Snapshot] = []
        self._said: list[str] = []
        world.observers.extend([self, self._cluster])
        for _ in range(2):
            world.after(self.random.random() * world.options.safety_seconds, self._save)

    def failed(self, _process: Process, error: WarrenError) -> None:
        """Observer's method: a manager of the old cluster stops by itself."""
        self._said.append(str(error))

    def strike(self, nemesis: Nemesis) -> tuple[Workload, Nemesis]:
        """Strike, and return the callers and the faults of the cluster afterwards."""
        world = self.world
        if self._cluster.cluster_id is None:
            world.checked["seen: disaster before there was a cluster"] += 1
            return self._old, nemesis
        mistaken = self.random.random() < world.options.mistake
        if mistaken and self.random.random() < REFUSALS:
            self._while_they_run()
        is_settled = nemesis.operators.is_settled
        for process in world.running():
            process.directory.damaged = None  # the damaged bytes were not read, and the log has gone on since
        nemesis.operators.heal()
        self._stop_all()
        for directory in world.directories.values():
            nemesis.mend(directory)
            directory.members = None  # restored and blank directories get the members of the new cluster
        snapshots = self._snapshots()
        if snapshots and self.random.random() < RESTORES:
            workload, to_add = self._restore_one_of(snapshots, mistaken)
        else:
            workload, to_add = self._recover(mistaken, is_settled)
        self._audience.tell("finish", world, self._old)
        world.two_clusters = False
        for id_ in to_add:
            world.directories[id_].wipe()
            world.directories[id_].audience = world.audience
        for id_ in sorted(world.directories):
            world.restart(id_)
        following = Nemesis(world, self.random.uniform(*AFTERWARDS_SECONDS))
        following.operators.add(to_add)
        return workload, following

    # Snapshots ---------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """`snapshot save` at a manager that runs."""
        running = [p for p in self.world.running() if p.opened.machine.committed.cluster_id is not None]
        sound = [process for process in running if not process.state_is_wrong]
        if sound:
            process = self.random.choice(sound)
            path = self.world.root / f"saved-{len(self._saved)}.mdb"
            database = process.opened.database
            manifest = write(database, path, created_at=datetime.now(UTC), node_id=process.id, quorum=True)
            self._saved.append(Snapshot(path, manifest))

    def _snapshots(self) -> list[Snapshot]:
        """The saved snapshots, and copies of some good snapshots that managers took: directories change later."""
        found = list(self._saved)
        held = [p for id_ in sorted(self.world.directories) for p in self._held(id_)]
        for path in self.random.sample(held, min(2, len(held))):
            try:
                manifest = verify(path)
            except SnapshotInvalid:
                continue
            copy = self.world.root / f"copied-{len(found)}.mdb"
            shutil.copyfile(path, copy)
            found.append(Snapshot(copy, manifest))
        return [snapshot for snapshot in found if snapshot.manifest.cluster_id is not None]

    def _held(self, id_: str) -> list[Path]:
        return sorted((self.world.directories[id_].path / "snapshots").glob("*.mdb"))

    def _stop_all(self) -> None:
        self.world.stop_all()
        self.world.note("all managers are down")

    def _count(self, what: str, note: str = "") -> None:
        self.world.faults[what] += 1
        self.world.note(f"disaster: {what} {note}".rstrip())

    # The tools ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _tools(self, directory: Directory) -> Iterator[None]:
        """Within this block the product's code uses this world's randomness, boots and network, and finds the log on
        the real disk."""

        def opened(config: Config, **options: Any) -> OpenedDirectory:
            return OpenedDirectory(
                config,
                **options | {"files": recovering.OS_FILES},
                boot_id=lambda: f"boot {directory.boot}",
                verify=lambda path, records, _cancel: verify(path, records=records),
            )

        def generator() -> Random:
            return Random(self.random.getrandbits(64))

        with (
            directory.laid_out(),
            mock.patch.object(restoring, "SystemRandom", generator),
            mock.patch.multiple(recovering, SystemRandom=generator, OpenedDirectory=opened, _answers=self._answers),
        ):
            yield

    def _answers(self, address: str) -> bool:
        return any(process.directory.address == address for process in self.world.running())

    def _restore(self, id_: str, snapshot: Snapshot, members: Mapping[str, str], *, interrupted: bool = False) -> Made:
        directory = self.world.directories[id_]
        cluster_id = snapshot.manifest.cluster_id

        def call(typed: str | None = cluster_id) -> None:
            restore(
                snapshot.path,
                directory.path,
                node_id=id_,
                members=members,
                cluster_id=typed,
                move_aside=True,
                allow_rollback=True,
            )

        with self._tools(directory):
            if interrupted:
                self._interrupt_restore(directory, call)
            try:
                call(None if interrupted and self.random.random() < 0.5 else cluster_id)
            except RefusedForSafety as refusal:
                if "--cluster-id" not in str(refusal):
                    raise
                if "was restored from this file" not in str(refusal):
                    call()
            made = _made(directory)
        if made.records != _records_of(snapshot, self.world.root / "looked-at"):
            raise Failure(f"{id_}: the restored records are not those in the snapshot")
        return made

    def _interrupt_restore(self, directory: Directory, call: Callable[[], None]) -> None:
        """Interrupt a restore. Afterwards the directory is as it was, or the next start on it completes the restore."""
        before, asides = _tree(directory), staging.asides(directory.path)
        self._interrupted("restore", directory, call, RESTORE_OPERATIONS)
        is_done = (directory.path / "restore.ready").exists() or staging.asides(directory.path) != asides
        if not is_done and _tree(directory) != before:
            raise Failure(f"{directory.id}: a restore did not end, and its directory has changed")

    def _interrupted(self, tool: str, directory: Directory, call: Callable[[], None], operations: int) -> None:
        """Call the tool. It dies, or finds no space left, at one of about `operations` file operations; or there is a
        power cut just after it returned."""
        how, random = self.random.choice(INTERRUPTIONS), self.random
        at = random.randrange(operations + operations // 2)
        if how == "disk full":
            try:
                with full_after(at // 4) as countdown:  # few of the operations need space
                    call()
            except (OSError, WarrenError) as problem:
                is_full = isinstance(problem, StorageFull) or "No space left" in str(problem)
                if not countdown.died or not is_full:
                    raise
                self._count(f"{tool}: disk full", directory.id)
            return
        cache = PageCache(directory.path)
        with (
            mock.patch.object(restoring, "OS_FILES", cache),
            mock.patch.object(recovering, "OS_FILES", cache),
            cache.watching(),
        ):
            try:
                with killed_after(at):
                    call()
            except Killed:
                self._count(f"{tool} killed" if how == "killed" else f"{tool}: power cut", directory.id)
            else:
                if how == "power cut":
                    self._count(f"{tool}: power cut right after it", directory.id)
        if how == "power cut":
            cache.cut(random, keep_pages=self.world.options.keep_pages, name_changes=random.randrange(4))
            directory.boot += 1

    def _refused(self, what: tuple[str, str], id_: str, words: str, call: Callable[[], object]) -> None:
        """Check that `what` (tool, mistake) is refused with these words, and that nothing has changed."""
        directory = self.world.directories[id_]
        before = _tree(directory)
        try:
            call()
        except (RefusedForSafety, SnapshotInvalid) as refusal:
            if words not in str(refusal):
                raise Failure(f"{id_}: {what} was refused for another reason: {refusal}") from refusal
        else:
            raise Failure(f"{id_}: {what} is not refused")
        if _tree(directory) != before:
            raise Failure(f"{id_}: {what} is refused, and its directory has changed")
        self._count(f"{what[0]} refused: {what[1]}", id_)

    def _begin(self, made: Made, ids: Sequence[str], told: int) -> Workload:
        """Begin a new cluster on these directories, with new checkers and callers. Check that the changes that were
        acknowledged to the old callers are there."""
        world = self.world
        before = [call.result for call in self._old.calls if isinstance(call.result, int)]
        if made.cluster_id == self._cluster.cluster_id or made.revision <= max(before, default=0):
            raise Failure("the new cluster can be taken for the old one: by its id, or by its revision")
        world.audience = Audience()
        workload = self._latest = Workload(world, after=self._latest)
        world.observers.append(world.audience.lists)
        world.observers.extend(checker() for checker in self.checkers)
        world.audience.tell("restored", made.cluster_id)
        AcknowledgedWrites.survive_in(made.records, ids[0], self._old, told)
        workload.begin_with([codec.decode(SERVICE, record) for record in made.records.values()], made.revision)
        for id_ in ids:
            world.directories[id_].audience = world.audience
        return workload

    def _run(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.world.restart(id_)
        self.world.run_until(self.world.now + MISTAKE_SECONDS)

    # Restored ----------------------------------------------------------------------------------------------------

    def _while_they_run(self) -> None:
        """Both tools refuse a directory on which a manager runs, with any options. Not tried with a removed manager
        that was left running, because its directory belongs to no member any more."""
        running = [p for p in self.world.running() if self.world.directories.get(p.id) is p.directory]
        if running:
            process = self.random.choice(running)
            words = "stop it first"
            what = "a manager runs"
            self._refused(("recover", what), process.id, words, lambda: Recovery(process.directory.path))
            if self._saved:
                snapshot = self.random.choice(self._saved)
                members = {process.id: process.directory.address}
                call = partial(restore, snapshot.path, process.directory.path, node_id=process.id, members=members)
                call = partial(call, move_aside=True, allow_rollback=True)
                self._refused(("restore", what), process.id, words, call)

    def _restore_one_of(self, snapshots: list[Snapshot], mistaken: bool) -> tuple[Workload, list[str]]:
        world, random = self.world, self.random
        for joiner in sorted(world.directories.keys() & set(JOINERS)):
            if random.random() < 0.5 and len(world.directories) > 1:
                world.directories.pop(joiner).remove()
        world.initial = {id_: directory.address for id_, directory in sorted(world.directories.items())}
        ids = sorted(world.initial)
        snapshot = random.choice(snapshots)
        if not mistaken:
            return self._restore_all(snapshot, ids, world.initial), []
        self._refusals(ids, snapshot)
        mistake = random.choice(self._mistakes(ids, snapshot, snapshots))
        if mistake is None:
            return self._old_beside_restored(ids, snapshot)
        done = mistake()
        self._stop_all()
        interrupted = random.choice(ids) if random.random() < world.options.interrupted else None
        return self._restore_all(snapshot, ids, world.initial, interrupted=interrupted, done=done), []

    def _mistakes(
        self, ids: Sequence[str], snapshot: Snapshot, snapshots: Sequence[Snapshot]
    ) -> list[Callable[[], dict[str, Made]] | None]:
        """The mistakes that can be made here; each returns the part that was done right. None: a mistake that is made
        after the restore."""
        if len(ids) < 3:
            return [dict]
        others = [each for each in snapshots if each.manifest.sha256 != snapshot.manifest.sha256]
        two = [partial(self._from_two_snapshots, ids, snapshot, self.random.choice(others))] if others else []
        old, some = partial(self._old_among_restored, ids, snapshot), partial(self._only_some_restored, ids, snapshot)
        return [dict, old, some, *two, None]

    def _restore_all(
        self,
        snapshot: Snapshot,
        ids: Sequence[str],
        members: Mapping[str, str],
        *,
        interrupted: str | None = None,
        done: Mapping[str, Made] = MappingProxyType({}),
    ) -> Workload:
        """Restore all members in the right way. `done`: members that were restored in the right way before."""
        made = [self._restore(id_, snapshot, members, interrupted=id_ == interrupted) for id_ in ids if id_ not in done]
        if any(each != made[0] for each in [*made, *done.values()]):
            raise Failure("the same snapshot and the same members made different states or clusters")
        self._count("restored", f"at revision {snapshot.manifest.revision}: {', '.join(ids)}")
        return self._begin(made[0], ids, snapshot.manifest.revision)

    def _refusals(self, ids: Sequence[str], snapshot: Snapshot) -> None:
        """Small mistakes on the command line; each is refused."""
        id_ = self.random.choice(ids)
        directory = self.world.directories[id_]
        call = partial(restore, members=self.world.initial, cluster_id=snapshot.manifest.cluster_id)
        with self._tools(directory):
            holds = staging.held(directory.path)
            if holds and self.random.random() < REFUSALS:
                words = "set the present data aside with --move-aside"
                plain = partial(call, snapshot.path, directory.path, node_id=id_)
                self._refused(("restore", "not empty"), id_, words, plain)
            wrong = self.random.choice(ids)
            call = partial(call, move_aside=True, allow_rollback=True)
            if "log" in holds and wrong != id_ and self.random.random() < REFUSALS:
                words = f"is the directory of {id_}"
                slip = partial(call, snapshot.path, directory.path, node_id=wrong)
                self._refused(("restore", "another's directory"), id_, words, slip)
            if self.random.random() < REFUSALS:
                damaged = self._damaged(snapshot)
                spoilt = partial(call, damaged, directory.path, node_id=id_)
                self._refused(("restore", "damaged file"), id_, damaged.name, spoilt)

    def _damaged(self, snapshot: Snapshot) -> Path:
        data = bytearray(snapshot.path.read_bytes())
        data[self.random.randrange(snapshot.manifest.size_bytes)] ^= 1 << self.random.randrange(8)
        path = self.world.root / "damaged.mdb"
        path.write_bytes(data)
        return path

    def _some(self, ids: Sequence[str]) -> list[str]:
        """At least one, and not all."""
        return sorted(self.random.sample(ids, self.random.randrange(1, len(ids))))

    def _old_among_restored(self, ids: Sequence[str], snapshot: Snapshot) -> dict[str, Made]:
        """Old and restored managers refuse each other. The old ones go on if they have a quorum; the restored ones
        wait."""
        restored = self._some(ids)
        old = [id_ for id_ in ids if id_ not in restored]
        made = self._restore_some(restored, snapshot)
        self._count("old member among restored", f"{old} among {restored}")
        self.world.two_clusters = True
        self._run(ids)
        self._none_formed(restored)
        self._refuse_each_other(restored, old)
        return made if self.random.random() < 0.5 else {}

    def _only_some_restored(self, ids: Sequence[str], snapshot: Snapshot) -> dict[str, Made]:
        """The other managers are down, or start on blank directories."""
        restored = self._some(ids)
        others = [id_ for id_ in ids if id_ not in restored]
        made = self._restore_some(restored, snapshot)
        self._count("only some restored", f"{restored}")
        blank = self.random.random() < 0.5
        for id_ in others if blank else []:
            self.world.directories[id_].wipe()
        self._run(ids if blank else restored)
        self._none_formed(ids if blank else restored)
        for id_ in restored:
            waits = self.world.processes[id_].engine.waits
            if "to be restored from the same file" not in waits:
                raise Failure(f"{id_} was restored alone, and does not say that it waits: {waits!r}")
        return made if self.random.random() < 0.5 else {}

    def _from_two_snapshots(self, ids: Sequence[str], one: Snapshot, other: Snapshot) -> dict[str, Made]:
        first = self._some(ids)
        second = [id_ for id_ in ids if id_ not in first]
        made = self._restore_some(first, one)
        self._restore_some(second, other)
        self._count("restored from two snapshots", f"{first} and {second}")
        self._run(ids)
        self._none_formed(ids)
        self._say(ids, TWO_ORIGINS)
        return made if self.random.random() < 0.5 else {}

    def _restore_some(self, ids: Sequence[str], snapshot: Snapshot) -> dict[str, Made]:
        """Restore some members. Their part is right, so the caller draws whether it is done again."""
        made = {id_: self._restore(id_, snapshot, self.world.initial) for id_ in ids}
        self._begin(made[ids[0]], ids, snapshot.manifest.revision)
        return made

    def _old_beside_restored(self, ids: Sequence[str], snapshot: Snapshot) -> tuple[Workload, list[str]]:
        """A manager that is not in the new list starts on its old directory, after the others have formed."""
        old = self.random.choice(ids)
        new = [id_ for id_ in ids if id_ != old]
        members = {id_: address for id_, address in self.world.initial.items() if id_ != old}
        workload = self._restore_all(snapshot, new, members)
        for id_ in new:
            self.world.restart(id_)
        formed = self.world.run_until(self.world.now + FORMING_SECONDS, lambda: self._all_ready(new))
        if not formed:
            raise Failure(f"restored members do not form within {FORMING_SECONDS:g} s\n{self.world.describe()}")
        self._count("old member beside restored", old)
        self.world.two_clusters = True
        self._run([old])
        self._refuse_each_other(new, [old])
        self._stop_all()
        return workload, [old]

    def _all_ready(self, ids: Sequence[str]) -> bool:
        processes = [self.world.processes.get(id_) for id_ in ids]
        return all(process is not None and process.engine.is_ready for process in processes)

    def _any_ready(self, ids: Sequence[str]) -> bool:
        return any(self._all_ready([id_]) for id_ in ids)

    # Checks ------------------------------------------------------------------------------------------------------

    def _none_formed(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            process = self.world.processes.get(id_)
            if process is None:
                raise Failure(f"{id_} was to wait for the others, and does not run")
            if process.engine.membership is not None or isinstance(read_note(process.opened.log.note), Founding):
                raise Failure(f"{id_} took part in a cluster that was not restored alike\n{self.world.describe()}")

    def _say(self, ids: Sequence[str], words: Sequence[str]) -> None:
        processes = [self.world.processes[id_] for id_ in ids if id_ in self.world.processes]
        alarms = [alarm for process in processes for alarm in process.engine.alarms.active]
        lines = [alarm.text for alarm in alarms] + self._said
        if not any(each in line for line in lines for each in words):
            raise Failure(f"nobody says that they do not belong together: {lines}\n{self.world.describe()}")

    def _refuse_each_other(self, new: Sequence[str], old: Sequence[str]) -> None:
        """Check that no old manager has a link to a new one. (A blank one that has met no manager may be a guest.)"""
        old = [id_ for id_ in old if id_ in self.world.processes and self._is_old(id_)]
        for id_ in old:
            if set(self.world.network.peers_of(id_)) & set(new):
                raise Failure(f"{id_}, of the old cluster, is let in\n{self.world.describe()}")
        if old and self._any_ready(new):  # one that was killed in a job just now has met nobody
            self._say([*new, *old], OLD_AND_NEW)

    def _is_old(self, id_: str) -> bool:
        return self.world.processes[id_].engine.membership is not None

    # Recovered ---------------------------------------------------------------------------------------------------

    def _recover(self, mistaken: bool, is_settled: bool) -> tuple[Workload, list[str]]:
        world, random = self.world, self.random
        world.initial = {id_: directory.address for id_, directory in sorted(world.directories.items())}
        found = self._survivors()
        best = max(found, key=lambda id_: found[id_])
        survivor = best if random.random() < BEST else random.choice(sorted(found))
        has_all = is_settled and found[survivor] == found[best]
        others = [id_ for id_ in sorted(world.directories) if id_ != survivor]
        if mistaken and others and random.random() < 0.5:
            self._others_answer(survivor, others)
        also: list[str] = []
        if mistaken and len(found) > 1 and random.random() < 0.3:
            also = [random.choice([id_ for id_ in sorted(found) if id_ != survivor])]
            self._begin(self._recovered(also[0]), also, 0)
            self._count("two survivors recovered", also[0])
        made = self._recovered(survivor, interrupted=mistaken and random.random() < self.world.options.interrupted)
        self._count("recovered", f"{survivor}{'' if has_all else ', which may not have all'}")
        workload = self._begin(made, [survivor], made.revision if has_all else 0)
        if mistaken and others and random.random() < 0.6:
            self._count("old members among recovered", f"{others} beside {survivor}")
            world.two_clusters = True
            self._run(sorted(world.directories))
            self._refuse_each_other([survivor], [id_ for id_ in others if id_ not in also])
            self._stop_all()
        return workload, others

    def _survivors(self) -> dict[str, tuple[int, int]]:
        """For each manager that can be recovered: the term and index of its log's end, as the tool shows them."""
        found = {}
        for id_, directory in sorted(self.world.directories.items()):
            try:
                with self._tools(directory), Recovery(directory.path) as recovery:
                    found[id_] = (recovery.term, recovery.index)
            except RefusedForSafety:
                self.world.note(f"{id_} cannot be recovered")
        if not found:
            raise Failure("no manager can be recovered")
        return found

    def _others_answer(self, survivor: str, others: Sequence[str]) -> None:
        """The other managers still run and answer: the tool has to refuse."""
        for id_ in others:
            self.world.restart(id_)
        directory = self.world.directories[survivor]
        with self._tools(directory):
            try:
                with Recovery(directory.path) as recovery:
                    answering = [id_ for id_, address in recovery.others.items() if self._answers(address)]
            except RefusedForSafety as refusal:
                if "connections: stop" not in str(refusal):
                    raise
                self._count("recover refused: others answer", survivor)
            else:
                if answering:
                    raise Failure(f"{survivor} would be recovered while {answering} answer")
        self._stop_all()

    def _recovered(self, id_: str, *, interrupted: bool = False) -> Made:
        directory = self.world.directories[id_]

        def call() -> None:
            recovery = Recovery(directory.path)
            try:
                recovery.carry_out()
            except BaseException:
                if not recovery._opened.database.is_closed:
                    recovery._opened.release()
                raise

        with self._tools(directory):
            if interrupted:
                # The next call shows whether the directory is the old one or the new one.
                self._interrupted("recover", directory, call, RECOVER_OPERATIONS)
            try:
                call()
            except RefusedForSafety as refusal:
                if not interrupted or "and not started since" not in str(refusal):
                    raise
            return _made(directory)


def _made(directory: Directory) -> Made:
    with Database.open_read_only(directory.path) as database, database.read() as transaction:
        committed = read_committed(transaction)
        records = {bytes(key): bytes(record) for key, record in transaction.items(SERVICE)}
        assert committed.cluster_id is not None
        return Made(committed.cluster_id, committed.revision, committed.digest, records)


def _records_of(snapshot: Snapshot, place: Path) -> dict[bytes, bytes]:
    """The records in a snapshot, read without the code that restores."""
    state = StateDirectory(place)
    state.create()
    generation = state.next_generation()
    extract(snapshot.path, state.file_of(generation))
    try:
        with Database.open_generation(state, generation, sync=False) as database, database.read() as transaction:
            return {bytes(key): bytes(record) for key, record in transaction.items(SERVICE)}
    finally:
        shutil.rmtree(place)


def _tree(directory: Directory) -> dict[str, bytes]:
    """All files that a manager would find: path -> contents. Not LMDB's lock files, because a reader may make them."""
    walks = (walk for each in staging.OURS for walk in os.walk(directory.path / each))
    files = (Path(base, name) for base, _, names in walks for name in names)
    return {str(path): path.read_bytes() for path in files if not path.name.endswith("-lock")}
