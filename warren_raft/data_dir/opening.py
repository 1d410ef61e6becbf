"""Opening a manager's data directory in the right order: its lock, its log, then the state, which the log may rebuild.

Not here: threads, links and callers (manager/parts.py), file formats (raft/log/log.py, store/generations.py).
Invariant: a log that ends below its applied state, or a state that lost pages, never reaches an engine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from random import Random
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.certificates.identity import Identity
from warren_raft.certificates.own import OwnCertificate
from warren_raft.config import Config
from warren_raft.data_dir.description import advice_for_log, cluster_trust_domain, has_one_voter, keep_entities
from warren_raft.data_dir.local_state import refuse_local, refuse_local_state
from warren_raft.data_dir.remembered import Memory
from warren_raft.disk.durable import make_directory
from warren_raft.disk.files import OS_FILES, Files, HeldDirectory
from warren_raft.disk.paths import moved
from warren_raft.errors import Corrupted, RefusedForSafety
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft.engine import Engine
from warren_raft.raft.levels import level_in
from warren_raft.raft.log.log import Log
from warren_raft.raft.log.opening import require_owner
from warren_raft.raft.membership import Membership
from warren_raft.raft.settings import Settings
from warren_raft.raft.state_machine import membership_of
from warren_raft.raft.way_back import way_back_in
from warren_raft.snapshots import staging
from warren_raft.snapshots.keeper import Keeper, Verify, verified_in_child
from warren_raft.snapshots.verification import VerificationFailed, prove_state, prove_state_in_child
from warren_raft.store import levels
from warren_raft.store.database import Database
from warren_raft.store.generations import (
    SUSPECT_AFTER_STARTS,
    StateDirectory,
    StateUntrusted,
    read_boot_id,
)
from warren_raft.store.ownership import LOCK_FILE_REMOVED, Anchors, DirectoryLock
from warren_raft.store.reader_slots import lock_file_of
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.data_dir.opening")

LOCK_ALARM_SECONDS: Final = 3600.0
"""How long the alarm lasts after the last removal of the lock file: the clean-up that removed it may come again."""


def _discard_part(config: Config, files: Files) -> None:
    """Remove the part of a restore that was killed (a running restore holds the lock). It only takes space, so an error
    does not prevent the start."""
    try:
        staging.discard(config.directory, files=files)
    except OSError as error:
        log_event(logger, logging.WARNING, "part of a killed restore not removed", error, node=config.node_id)


class OpenedDirectory:
    """A data directory of this process: `log`, `database` and `machine`, until close(), abandon() or the end.

    Opening raises InUse, RefusedForSafety (another node's directory, a network file system, no certificate), Corrupted
    (with how to rejoin). `certificate` is prepared on the way; None: this opener makes no links. Files, boot id and
    randomness are passed in, so that a simulation opens directories in the same way as a manager. Every change of the
    directory goes through `files`, except the lock, certificates, and LMDB's own. Without `files` the log's directory
    is held open (disk/files.py, HeldDirectory). `before_making` is called before a new directory is
    made: an error of it prevents that.
    """

    def __init__(
        self,
        config: Config,
        *,
        files: Files | None,
        random: Random,
        alarms: Alarms | None = None,
        certificate: OwnCertificate | None = None,
        boot_id: Callable[[], str] = read_boot_id,
        verify: Verify = verified_in_child,
        prove_apart: Callable[[str], None] = prove_state_in_child,
        before_making: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._prove_apart = prove_apart
        self._random = random
        self._alarms = Alarms(config.node_id) if alarms is None else alarms
        log_directory = str(config.directory / "log")
        disk = OS_FILES if files is None else files
        with ExitStack() as held:
            if certificate is not None:
                certificate.require_a_way()
            if not os.path.lexists(config.directory):
                before_making()
            self._lock = DirectoryLock(config.directory)
            held.callback(self._lock.release)
            staging.finish(config.directory, files=disk)
            _discard_part(config, disk)
            if files is None and not os.path.lexists(log_directory):
                refuse_local_state(config.directory)
            if certificate is not None:
                with advice_for_log(str(config.directory), config.node_id):
                    require_owner(disk, log_directory, config.node_id)  # before its certificate is replaced
                certificate.prepare(partial(cluster_trust_domain, config.directory))
            self._anchors = held.enter_context(closing(Anchors()))
            self.state = StateDirectory(config.directory, boot_id=boot_id, anchors=self._anchors, files=disk)
            self.state.create()
            if files is None:
                make_directory(log_directory)
                files = held.enter_context(closing(HeldDirectory(log_directory)))
                self._anchors.hold(log_directory)
            with advice_for_log(str(config.directory), config.node_id):
                self.log = Log.open(
                    log_directory,
                    files=files,
                    node_id=config.node_id,
                    new_incarnation=lambda: f"{random.getrandbits(128):032x}",
                )
            held.callback(self.log.close)
            self.memory = Memory(config, self.log.incarnation, files=disk)
            self.keeper = Keeper(
                self.state, node_id=config.node_id, reserve_bytes=config.disk_reserve_bytes, verify=verify
            )
            self.keeper.open()
            self.keeper.machine = self._open_state()
            self._held = held.pop_all()  # to give back at the end: the log, directories, and last the lock
        self._check_agreement()
        self._check_level()

    @property
    def machine(self) -> StateMachine:
        """The state in use; another one after the state was replaced."""
        return self.keeper.machine

    @property
    def database(self) -> Database:
        return self.machine.database

    def look(self) -> None:
        """Check that this is still the directory that was opened. For a timer, one thread.

        Raises Corrupted if the directory, or a part of it, was removed, moved or replaced, and InUse if another process
        has locked it. Then this manager must stop, because its writes are lost or go into another's directory. Raises
        OSError.
        """
        self._anchors.require()
        self._require_segments()
        if self._lock.restore_file():
            text = f"{self.config.directory}: {LOCK_FILE_REMOVED}"
            self._alarms.raise_alarm("lock-file-removed", text, ends_after_seconds=LOCK_ALARM_SECONDS)
        lock_file = lock_file_of(self.database.path)
        if self.database.has_lock_file:
            self._alarms.clear_others("lock-file-removed", {""})
        else:
            text = (
                f"{lock_file} was removed, perhaps by a clean-up: new readers in other processes are refused until "
                "this manager is started again"
            )
            self._alarms.raise_alarm("lock-file-removed", text, subject=lock_file)

    def _require_segments(self) -> None:
        for path in self.log.segment_paths:
            if not os.path.exists(path) and path in self.log.segment_paths:  # else the log itself removed it just now
                raise moved(path)

    def _open_state(self) -> StateMachine:
        """The current state if it may be trusted and the log continues from it, else a state made from a snapshot."""
        unexplained_starts = self.state.note_start()
        try:
            return self._state_or_rebuilt(is_suspect=unexplained_starts >= SUSPECT_AFTER_STARTS)
        except BaseException:
            self._forget_starts()  # the error says why this start failed
            raise

    def _forget_starts(self) -> None:
        try:
            self.state.forget_starts()
        except OSError as error:  # the next start will prove the state once more than necessary
            log_event(logger, logging.WARNING, "count of starts not reset", error, node=self.config.node_id)

    def _state_or_rebuilt(self, *, is_suspect: bool) -> StateMachine:
        prove = self._prove_in_child if is_suspect else prove_state
        try:
            machine = _opened(Database.open(self.state, sync=False, prove=prove, is_suspect=is_suspect))
        except Corrupted as error:
            log_event(logger, logging.WARNING, "state not usable", error, node=self.config.node_id)
            if isinstance(error, StateUntrusted):
                return self._rebuild(error.generation, "untrusted")
            return self._rebuild(self.state.current(), "damaged")
        if machine.applied_index < self.log.base_index:
            machine.database.abandon()  # a snapshot replaced the log, and a process died before it replaced the state
            return self._rebuild(machine.database.generation, "outdated")
        return machine

    def _prove_in_child(self, path: str) -> None:
        """The previous starts failed without an error. A kill, or too little memory, is not a fault of the state. A
        state that crashes its reader crashes only the child, and is rebuilt."""
        node = self.config.node_id
        text = "the last starts ended before the manager was ready, without an error: it is proved in a child process"
        log_event(logger, logging.WARNING, "state suspected", text, node=node, path=path)
        try:
            self._prove_apart(path)
        except VerificationFailed as error:
            text = f"{error}; it is proved in this process instead"
            log_event(logger, logging.WARNING, "state not proved apart", text, node=node, path=path)
            prove_state(path)
        text = "those starts ended for another reason: a kill, or a lack of memory"
        log_event(logger, logging.WARNING, "state is sound", text, node=node, path=path)

    def _rebuild(self, generation: int | None, why: str) -> StateMachine:
        """Rebuild the state from the newest good snapshot; the engine replays the log after it. The old file is kept
        for study once there is a new state."""
        machine = self.keeper.rebuild(self.log.holds)()
        machine.database.publish()
        aside = None if generation is None else self.state.set_aside(generation, why)
        log_event(
            logger,
            logging.WARNING,
            "state rebuilt",
            "from a snapshot, or from nothing, and the log behind it",
            node=self.config.node_id,
            reason=why,
            from_index=machine.applied_index,
            old_state=aside,
        )
        return machine

    def _check_agreement(self) -> None:
        """A log that ends below the applied index was truncated or replaced. The manager must not vote with the
        rest."""
        if self.machine.applied_index > self.log.last_index:
            detail = f"ends at index {self.log.last_index}, below the applied index {self.machine.applied_index}"
            try:
                refuse_local(self.machine.committed, self.config.directory)
                remedy = self._remedy(membership_of(self.machine))
            finally:
                self.abandon()
            raise Corrupted(str(self.config.directory / "log"), detail, remedy=remedy)

    def _check_level(self) -> None:
        """The state was not refused, but its log may go on at the level of a newer release."""
        level = level_in(self.log, self.machine.applied_index)
        try:
            levels.require_readable(level, str(self.config.directory / "log"))
        except RefusedForSafety:
            self.abandon()
            raise

    def _remedy(self, membership: Membership | None) -> str:
        """The next steps without a complete log."""
        if not has_one_voter(membership):
            return f"this manager cannot vote with the rest of its log: {way_back_in(membership, self.config.node_id)}"
        return keep_entities(str(self.config.directory))

    def make_engine(self, now: float, identity: Identity | None = None) -> Engine:
        """`identity`: from this manager's own certificate; None: its links are plaintext."""
        config = self.config
        settings = Settings(
            node_id=config.node_id,
            address=config.listen,
            members=config.members,
            heartbeat_seconds=config.heartbeat_interval_seconds,
            election_timeout_seconds=config.election_timeout_seconds,
            snapshot_after_bytes=config.snapshot_after_bytes,
            bootstrap=config.bootstrap,
            hints={id_: (address,) for id_, address in self.memory.said.items()},
            identity=identity,
            level_max=levels.NEWEST,
        )
        engine = Engine(
            settings,
            log=self.log,
            machine=self.machine,
            snapshots=self.keeper,
            alarms=self._alarms,
            # Each append message draws from it. It only spreads elections, and names a cluster once.
            random=Random(self._random.getrandbits(128)),  # noqa: S311
            now=now,
        )
        self._compare_members(engine)
        return engine

    def _compare_members(self, engine: Engine) -> None:
        replicated: Mapping[str, str] = {member.id: member.address for member in engine.members.values()}
        if replicated != dict(self.config.members):
            log_event(
                logger,
                logging.WARNING,
                "configured members differ",
                "the cluster's list counts; members are looked for at the configured addresses too",
                node=self.config.node_id,
                configured=_listed(self.config.members),
                cluster=_listed(replicated),
            )

    def close(self, *, failed: bool) -> None:
        """Sync the state and remove its marker; then the next start trusts the state on any boot and mount.

        A manager that closes cleanly was not killed by its state, whether it had a quorum and became ready or not.
        """
        try:
            self._anchors.require()
            self._close_database()
            if not failed:
                self.state.forget_starts()
        except Corrupted as error:
            if not failed:
                log_event(logger, logging.CRITICAL, "state not closed", error, node=self.config.node_id)
            self.database.abandon()  # another directory may have its place now, which must not be changed
        finally:
            self._held.close()

    def _close_database(self) -> None:
        """Seal the state, unless it is suspect: then the next start must check every record."""
        if self.keeper.is_suspect:
            self.database.close()
        else:
            self.database.close_sealed()

    def abandon(self) -> None:
        """Give up the opened directory for a reason other than the state: a port in use, a log that was replaced. Such
        a start must not count against the state, because a rebuild would destroy the only evidence that the log is too
        short."""
        self._forget_starts()
        self.release()

    def release(self) -> None:
        """Release the same things as the end of the process: no sync, the marker stays."""
        self.database.abandon()
        self._held.close()


def _listed(members: Mapping[str, str]) -> str:
    return ",".join(f"{id_}={address}" for id_, address in sorted(members.items()))


def _opened(database: Database) -> StateMachine:
    try:
        return StateMachine(database)
    except BaseException:
        database.abandon()
        raise
