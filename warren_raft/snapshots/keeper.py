"""The snapshots of a running manager: taking, sending and fetching them, and opening a state from one of them.

Consensus (raft/catchup.py) decides when, and knows this class as its `Snapshots`; directory.py decides the names.
Invariant: a snapshot is sent, or made into a state, only after its bytes were checked in this process's life. A state
from a fetched snapshot is published only when the snapshot's file is on disk.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.durable import replace_file
from warren_raft.disk.sharing import without_links
from warren_raft.disk.shortage import shortage_of
from warren_raft.errors import (
    Corrupted,
    InvariantViolation,
    SnapshotInvalid,
    StorageFull,
)
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft.way_back import way_back_unknown
from warren_raft.snapshots.directory import (
    INCOMING,
    Damaged,
    Snapshot,
    SnapshotDirectory,
)
from warren_raft.snapshots.file import (
    TRAILER_BYTES,
    SnapshotInfo,
    extract,
    no_space_as_storage_full,
)
from warren_raft.snapshots.verification import Cancel, verify_in_child
from warren_raft.store.database import Database
from warren_raft.store.generations import StateDirectory
from warren_raft.store.position import FIRST_INDEX
from warren_raft.support.counting import Durations
from warren_raft.support.log_lines import log_event
from warren_raft.support.wording import in_units, in_units_apart

logger = logging.getLogger("warren_raft.snapshots")

KEPT: Final = 2

Verify: TypeAlias = Callable[[str, bool, Cancel], SnapshotInfo]
"""(path, whether to check every record, an event that cancels) -> the manifest; raises SnapshotInvalid, Closed."""


def verified_in_child(path: str, records: bool, cancel: Cancel) -> SnapshotInfo:
    """In a child, because in this process it would stall the raft thread by tens of milliseconds at a time."""
    return verify_in_child(path, records=records, cancel=cancel)


@dataclass(frozen=True, slots=True)
class Held:
    """A verified snapshot on this manager's disk."""

    snapshot: Snapshot

    @property
    def index(self) -> int:
        return self.snapshot.index

    @property
    def term(self) -> int:
        return self.snapshot.term

    @property
    def sha256(self) -> str:
        """The hash of the database in the file. The trailer has a hash of its own."""
        return self.snapshot.manifest.sha256

    @property
    def file_bytes(self) -> int:
        return self.snapshot.manifest.size_bytes + TRAILER_BYTES


class Keeper:
    """The snapshots of one open data directory. The jobs that `take`, `read` and others return run in any worker
    thread."""

    def __init__(
        self,
        state: StateDirectory,
        *,
        node_id: str,
        reserve_bytes: int,
        verify: Verify = verified_in_child,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state = state
        self._disk = state.files
        self._directory = SnapshotDirectory(state.data_dir, files=self._disk)
        self._node_id = node_id
        self._reserve_bytes = reserve_bytes
        self._verify = verify
        self._clock = clock
        self._held: list[Held] = []
        self._proved: set[str] = set()
        """Paths of the files that were verified since this manager started."""
        self._damaged: set[str] = set()
        self._files = threading.Lock()  # names in the two directories change one at a time
        self._names = threading.Lock()  # guards _dropped: no path in it has a new file by now
        self.is_suspect = False
        """A snapshot of the state in use failed its verification: this state must not be the source of another."""
        self._retired: list[tuple[int, str]] = []
        self._dropped: list[str] = []
        self._incoming = ("", 0)
        self.takings: Final = Durations()
        """The snapshots that were taken and verified."""
        self.closing: Final = threading.Event()
        """Set to end the jobs that run."""
        self.machine: StateMachine
        """The state in use; set by the code that opens the directory."""
        self.on_swap: Callable[[StateMachine, bool], None] = lambda _machine, _was_wrong: None
        """Called in the raft thread when another state replaces `machine`."""

    def open(self) -> None:
        """Read the directory. Call this first; the caller holds the directory's lock."""
        self._directory.create()
        self._state.hold(self._directory.path)
        self._held = [Held(snapshot) for snapshot in self._directory.list()]
        self._incoming = self._read_incoming()

    # The present snapshots ---------------------------------------------------------------------------------------

    @property
    def held(self) -> list[Held]:
        """The usable snapshots, the newest first."""
        return [held for held in self._held if held.snapshot.path not in self._damaged]

    @property
    def newest(self) -> Snapshot | None:
        """The newest snapshot, for display."""
        held = self.held
        return held[0].snapshot if held else None

    @property
    def incoming(self) -> tuple[str, int]:
        """(sha256, bytes) of the file that is being fetched, also since before this manager's start; ("", 0): none."""
        return self._incoming

    def state_bytes(self) -> int:
        """The state's size when the newest snapshot was taken; 0 before the first. Not its present size: the log could
        never outgrow a state that only grows with it."""
        newest = self.newest
        return 0 if newest is None else newest.manifest.size_bytes

    # Taking ------------------------------------------------------------------------------------------------------

    def take(self, *, quorum: bool) -> Callable[[], Held]:
        database = self.machine.database

        def job() -> Held:
            began = time.monotonic()
            with database.read() as transaction:
                size = transaction.used_bytes()
            self.require_room(size + TRAILER_BYTES)
            try:
                with self._files:
                    snapshot = self._directory.take(
                        database,
                        created_at=self._clock(),
                        node_id=self._node_id,
                        quorum=quorum,
                        verify=lambda path: self._verify(path, False, self.closing),
                    )
            except SnapshotInvalid:
                self.is_suspect = True
                raise
            self._reclaim(snapshot.path)
            self.takings.note(time.monotonic() - began)
            return Held(snapshot)

        return job

    def took(self, snapshot: Held, pinned: set[str]) -> None:
        """Hold a new snapshot. Of the others keep the newest, and those with a pinned sha256."""
        others = [each for each in self.held if each.snapshot.path != snapshot.snapshot.path]
        held = sorted([snapshot, *others], key=_age)
        self._held = held[:KEPT] + [each for each in held[KEPT:] if each.sha256 in pinned]
        self._drop(each for each in held[KEPT:] if each not in self._held)

    def drop(self, snapshot: Held) -> None:
        """Drop a snapshot that was taken and is not wanted."""
        self._held = [each for each in self._held if each.snapshot.path != snapshot.snapshot.path]
        self._drop([snapshot])

    def drop_held(self, but: Held) -> None:
        """Drop all snapshots except `but`: they were taken of a state that had diverged or was damaged."""
        others = [each for each in self._held if each.snapshot.path != but.snapshot.path]
        self._held = []
        self._drop(others)

    def _drop(self, snapshots: Iterable[Held]) -> None:
        with self._names:
            self._dropped += [each.snapshot.path for each in snapshots]

    def _reclaim(self, path: str) -> None:
        """The name belongs to a new verified file now, and no longer to an old one. Raises FileNotFoundError if `tidy`
        has removed it already."""
        with self._names:
            self._dropped = [each for each in self._dropped if each != path]
            os.stat(path)
        self._damaged.discard(path)
        self._proved.add(path)

    def require_room(self, wanted_bytes: int) -> None:
        """Raise StorageFull below the reserve: the log shares this disk, and a snapshot can wait."""
        free, needed = self._disk.free_bytes(self._state.data_dir), wanted_bytes + self._reserve_bytes
        if free < needed:
            left, total = in_units_apart(free, needed)
            raise StorageFull(
                f"{self._state.data_dir} has {left} left, and {total} are needed: {in_units(wanted_bytes)} to write, "
                f"and {in_units(self._reserve_bytes)} that stay free"
            )

    # Sending -----------------------------------------------------------------------------------------------------

    def read(self, sha256: str, offset: int, size: int, *, again: bool = False) -> Callable[[], bytes]:
        path = next((each.snapshot.path for each in self.held if each.sha256 == sha256), None)

        def job() -> bytes:
            if path is None:
                raise FileNotFoundError(errno.ENOENT, "the snapshot was set aside meanwhile", sha256)
            self._prove(path, again=again)
            descriptor = RESERVE.call(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)

        return job

    def _prove(self, path: str, *, again: bool = False) -> None:
        """Verify once in this process's life, or `again`: the file may have been damaged since it was taken. Raises
        FileNotFoundError if it is not there any more."""
        try:
            if path in self._proved and not again:
                os.stat(path)
                return
            self._verify(path, False, self.closing)
        except SnapshotInvalid as error:
            self._set_aside(path, error)
            raise
        except FileNotFoundError:
            self._damaged.add(path)  # somebody removed it, so it is no longer held
            raise
        self._proved.add(path)

    def _set_aside(self, path: str, error: SnapshotInvalid) -> None:
        self._damaged.add(path)
        with self._files, suppress(FileNotFoundError):
            aside = self._directory.set_aside(Damaged(path=path, detail=error.detail))
            log_event(
                logger, logging.WARNING, "damaged snapshot set aside", error.detail, node=self._node_id, path=aside
            )

    # Fetching ----------------------------------------------------------------------------------------------------

    def receive(self, sha256: str, offset: int, data: bytes, size: int) -> Callable[[], None]:
        def job() -> None:
            try:
                with no_space_as_storage_full(self._directory.incoming):
                    self.require_room(2 * size - offset)  # the rest of it, and the state that is made from it
                    if offset == 0:
                        self._begin_incoming(sha256)
                    self._write_incoming(offset, data)
            except StorageFull as error:
                shortage = shortage_of(error)
                if shortage is None or shortage.is_space:
                    self._remove_incoming()  # the log needs the space more
                raise
            except FileNotFoundError:
                self.drop_incoming()  # somebody removed the file
                raise
            self._incoming = (sha256, offset + len(data))

        return job

    def _write_incoming(self, offset: int, data: bytes) -> None:
        with closing(self._disk.open(self._directory.incoming)) as file:
            file.write(offset, data)
            file.truncate(offset + len(data))

    def _remove_incoming(self) -> None:
        self._incoming = ("", 0)
        for path in (self._directory.incoming, self._incoming_note):
            with suppress(FileNotFoundError):
                self._disk.unlink(path)

    def _begin_incoming(self, sha256: str) -> None:
        self._disk.open(self._directory.incoming, create=True).close()
        replace_file(self._incoming_note, json.dumps({"sha256": sha256}).encode(), files=self._disk)

    @property
    def _incoming_note(self) -> str:
        return os.path.join(self._directory.path, INCOMING[1])

    def _read_incoming(self) -> tuple[str, int]:
        """The part of an interrupted fetch. Its content is verified when it is complete."""
        try:
            with open(self._incoming_note, encoding="utf-8", opener=without_links) as file:
                sha256 = json.load(file)["sha256"]
            return str(sha256), os.path.getsize(self._directory.incoming)
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return "", 0

    def drop_incoming(self) -> None:
        """The file is not a valid snapshot, or is missing; the next fetch starts from the beginning."""
        self._incoming = ("", 0)

    def open_incoming(self, sha256: str, cluster_id: str | None) -> Callable[[], tuple[Held, StateMachine]]:
        """Open the fetched snapshot, after checking all of it, records and indexes too: before LMDB opens it for
        writing."""
        path = self._directory.incoming

        def job() -> tuple[Held, StateMachine]:
            try:
                manifest = self._verify(path, True, self.closing)
            except FileNotFoundError:
                self.drop_incoming()  # somebody removed the file
                raise
            if manifest.sha256 != sha256:
                raise SnapshotInvalid(path, f"has the hash {manifest.sha256}, {sha256} was offered")
            if cluster_id is not None and manifest.cluster_id != cluster_id:
                raise SnapshotInvalid(path, f"is of cluster {manifest.cluster_id}, this manager of {cluster_id}")
            # The copy comes first, because there may be no space left for it. In that case the file is still the
            # incoming one.
            machine = self._open_copy(path)
            try:
                with self._files:
                    snapshot = self._directory.adopt(path)
            except BaseException:
                self._give_up(machine.database)
                raise
            self._incoming = ("", 0)
            self._reclaim(snapshot.path)
            return Held(snapshot), machine

        return job

    # A state from a snapshot ---------------------------------------------------------------------------------------

    def rebuild(self, log_holds: Callable[[int, int], bool]) -> Callable[[], StateMachine]:
        """Rebuild the state from the newest good snapshot at which the log continues: `log_holds(index, term)`. Without
        such a snapshot, rebuild it from the log alone if that is complete. Raises Corrupted if neither is possible."""
        candidates = [held.snapshot.path for held in self.held if log_holds(held.index, held.term)]
        from_nothing = log_holds(FIRST_INDEX, 0)

        def job() -> StateMachine:
            for path in candidates:
                try:
                    self._prove(path, again=True)  # the disk that made the state wrong may have damaged this file too
                except SnapshotInvalid:
                    continue  # it was set aside, with a line in the log
                except FileNotFoundError:
                    continue  # a newer snapshot has replaced it meanwhile
                return self._open_copy(path)
            if from_nothing:
                return StateMachine(Database.create(self._state, sync=False))
            remedy = (
                f"none of its snapshots can be used: {way_back_unknown(self._node_id)}. If it is the only voter, "
                "restore a backup in its place: warren-raft snapshot restore"
            )
            raise Corrupted(self._state.path, "cannot be rebuilt", remedy=remedy)

        return job

    def _open_copy(self, path: str) -> StateMachine:
        with self._files:
            generation = self._state.next_generation()
            extract(path, self._state.file_of(generation), files=self._disk)
        try:
            database = Database.open_generation(self._state, generation, sync=False)
        except BaseException:
            self._state.remove(generation)  # the next attempt has another number
            raise
        try:
            return StateMachine(database)
        except BaseException:
            self._give_up(database)
            raise

    def _give_up(self, database: Database) -> None:
        database.abandon()
        self._state.remove(database.generation)

    def publish(self, machine: StateMachine) -> Callable[[], None]:
        return machine.database.publish

    def swap(self, machine: StateMachine, why: str) -> None:
        """Readers use the new state from now on; reads that have begun go on in the old one. `why`: the old state is
        kept for study under this word; "": the old state has no fault and is removed."""
        if machine is self.machine:
            raise InvariantViolation("a state cannot replace itself")
        self._retired.append((self.machine.database.generation, why))
        self.is_suspect = False
        self.machine = machine
        self.on_swap(machine, bool(why))

    def discard(self, machine: StateMachine) -> None:
        machine.database.abandon()
        self._retired.append((machine.database.generation, ""))

    def tidy(self) -> None:
        """Remove the files of states and snapshots that are no longer used. For a timer, one thread."""
        with self._names:
            while self._dropped:
                with suppress(FileNotFoundError):
                    self._disk.unlink(self._dropped[0])
                del self._dropped[0]
        while self._retired:
            generation, why = self._retired[0]
            if why:
                aside = self._state.set_aside(generation, why)
                log_event(logger, logging.WARNING, "replaced state kept", node=self._node_id, reason=why, path=aside)
            else:
                self._state.remove(generation)
            del self._retired[0]


def _age(held: Held) -> tuple[int, int]:
    return -held.index, -held.term
