"""The parts of a running manager: made, started and stopped here, in the right order, by a thread of their own.

Each part gets the other parts that it needs; none knows this module or the store. Not here: the work of a part.
Invariant: opening and closing are each done completely, whatever happens to the thread that asked for it. After an
opening that failed, nothing runs, and the directory is free.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from random import SystemRandom
from typing import Final, Protocol

from warren_raft.alarms import Alarms
from warren_raft.certificates.own import OwnCertificate
from warren_raft.config import Config, split_address
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.data_dir.origins import Origins
from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.errors import Closed, WarrenError
from warren_raft.fsm.machine import StateMachine
from warren_raft.leadership.callbacks import Leadership
from warren_raft.manager.barrier_calls import GRACE_SECONDS
from warren_raft.manager.calls import WriteCalls, too_new
from warren_raft.manager.disk_space import Space
from warren_raft.manager.heartbeats import Heartbeats
from warren_raft.manager.housekeeping import Housekeeping
from warren_raft.manager.lifetime import Lifetime
from warren_raft.manager.membership import MembershipCalls
from warren_raft.manager.readiness import Readiness
from warren_raft.manager.saving import Saving
from warren_raft.manager.session import Call, Writes
from warren_raft.manager.shipping import Shipping
from warren_raft.manager.slow_disk import SlowDisk
from warren_raft.manager.watchdog import Watchdog
from warren_raft.raft.driver import Driver
from warren_raft.raft.links.addresses import try_to_bind
from warren_raft.raft.links.transport import Transport
from warren_raft.results import BackupStatus
from warren_raft.snapshots.after_backup import AfterBackup
from warren_raft.snapshots.backups import Backups
from warren_raft.store.foreign_readers import ForeignReaders
from warren_raft.store.request_memory import RequestMemory
from warren_raft.support import forking
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.log_lines import log_event
from warren_raft.support.own_thread import OwnThread
from warren_raft.support.process_end import close_at_exit
from warren_raft.support.switch_interval import SWITCH_INTERVAL
from warren_raft.watching.hub import Hub

logger = logging.getLogger("warren_raft.manager.parts")

COMMAND_ENDS_SECONDS: Final = 5.0
"""The command after a backup gets SIGTERM, and two seconds later SIGKILL."""
HANGS_SECONDS: Final = 30.0
"""A thread for which a closing manager has waited this long may be in a system call that never returns."""


class Service(Protocol):
    """Something that serves callers while the manager is open: the admin socket, the pages for probes."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


MakeService = Callable[[Callable[[], int]], Service]
"""Makes the admin socket's server, of the function that makes a snapshot without a name."""


class Parts:
    """`open` once; then the attributes are there. `close` from any thread, in signal handlers and in callbacks.

    `files`: every change of the data directory goes through this object, except the lock, the certificates and LMDB's
    own. None: the files of the operating system. `make_transport`: see Driver.
    """

    opened: OpenedDirectory
    driver: Driver[Call]
    readiness: Readiness
    calls: WriteCalls
    membership: MembershipCalls
    saving: Saving
    leadership: Leadership
    hub: Hub
    heartbeats: Heartbeats
    _housekeeping: Housekeeping
    _version: str

    def __init__(
        self, config: Config, *, files: Files | None = None, make_transport: Callable[..., Transport] = Transport
    ) -> None:
        self.config: Final = config
        self._files = files
        self._make_transport = make_transport
        self.alarms: Final = Alarms(config.node_id)
        self.life: Final = Lifetime(self.alarms)
        self.certificate: Final = OwnCertificate(config, self.alarms)
        self._deliveries = Deliveries(f"warren-raft-futures {config.node_id}")
        self.writes: Final = Writes(config.node_id, config.queue_limit, self._deliveries)
        self._space = Space(
            str(config.directory),
            reserve_bytes=config.disk_reserve_bytes,
            quota_bytes=config.quota_bytes,
            alarms=self.alarms,
            free=(OS_FILES if files is None else files).free_bytes,
        )
        self._watchdog: Watchdog | None = None
        """Made last: while it is None, not everything was started."""
        self._admin: Service | None = None
        self._pages: Service | None = None
        self.backups: Backups | None = None
        """None: the configuration asks for none."""
        self.after_backup: AfterBackup | None = None
        self.shipping: Shipping | None = None
        self.installed = 0
        """How often another state replaced the state."""
        self._backups: threading.Thread | None = None
        self._commander: threading.Thread | None = None
        self._shipper: threading.Thread | None = None
        self._housekeeper: threading.Thread | None = None
        self._watcher: threading.Thread | None = None
        self._judge: threading.Thread | None = None
        self._close_error: BaseException | None = None
        self._closers: dict[threading.Thread, None] = {}
        self._own = OwnThread(f"warren-raft-own {config.node_id}", self._look_after)

    # Opening -----------------------------------------------------------------------------------------------------

    def open(self, make_admin: MakeService | None, make_pages: Callable[[], Service] | None = None) -> None:
        """Returns when everything runs. If this thread is interrupted, opening goes on: call `close_soon` then."""
        self._own.start()
        self._own.call(partial(self._open, make_admin, make_pages))

    def _open(self, make_admin: MakeService | None, make_pages: Callable[[], Service] | None) -> None:
        config = self.config
        self._version = version("warren-raft")
        with ExitStack() as undo:
            RESERVE.open()
            undo.callback(RESERVE.close)
            listen = split_address(config.listen, field="listen")
            self.opened = OpenedDirectory(
                config,
                files=self._files,
                random=SystemRandom(),
                alarms=self.alarms,
                certificate=self.certificate,
                before_making=partial(try_to_bind, *listen),  # the directory would keep the id of this start
            )
            self.opened.keeper.on_swap = self._swapped
            undo.callback(self.opened.abandon)
            self.life.database = self.opened.database
            self.origins = Origins(
                config.directory,
                node_id=config.node_id,
                old_index=self.opened.log.last_index,
                files=OS_FILES if self._files is None else self._files,
            )
            undo.callback(self.origins.close)
            self.opened.machine.on_made = self.origins.keep
            self._make_parts(listen)
            undo.callback(self._stop_threads)
            self._start(make_admin, make_pages)
            undo.pop_all()
        forking.call_in_child(self.life, Lifetime.end_in_child)
        close_at_exit(self)

    def _make_parts(self, listen: tuple[str, int]) -> None:
        config, life = self.config, self.life
        credentials = self.certificate.credentials
        identity = None if credentials is None else credentials.identity
        self.driver = driver = Driver(
            listen=listen,
            node_id=config.node_id,
            log=self.opened.log,
            credentials=credentials,
            writes=self.writes,
            make_engine=partial(self.opened.make_engine, identity=identity),
            on_change=life.changed.ring,
            on_failure=life.fail,
            make_transport=self._make_transport,
        )
        self.writes.too_new = partial(too_new, driver.engine)
        self.writes.slow.begin(driver.engine, config.slow_write_seconds)
        self.hub = Hub(life.require_database, self._why_no_changes, ring_by=self._ring_by)
        node_id, seconds = config.node_id, config.write_timeout_seconds
        self.readiness = Readiness(node_id, life, driver.engine)
        self.calls = WriteCalls(
            node_id,
            seconds,
            life=life,
            driver=driver,
            writes=self.writes,
            space=self._space,
            request_memory=RequestMemory(config.request_memory_seconds, lambda: driver.engine.applied_index),
            revision=lambda: self.opened.machine.revision,
        )
        self.membership = MembershipCalls(
            node_id,
            seconds,
            life=life,
            readiness=self.readiness,
            driver=driver,
            calls=self.calls,
            certificate=self.certificate,
        )
        self.saving = Saving(self.opened, driver.engine, life, self.readiness)
        self.leadership = Leadership(self.readiness, self._own)
        self.heartbeats = Heartbeats(
            node_id, life, driver.engine, self.calls, leases=lambda: self.opened.machine.leases
        )
        self.backups = self.saving.backups(self.alarms)
        if self.backups is not None:
            self.after_backup = self.saving.after_backup(self.backups, self.alarms)
            self.shipping = self.saving.shipping(self.backups, self.alarms)
        self.foreign_readers = ForeignReaders(self.alarms)
        self._housekeeping = Housekeeping(
            version=self._version,
            opened=self.opened,
            engine=driver.engine,
            space=self._space,
            slow_disk=SlowDisk(str(self.config.data_dir), driver.syncs, driver.syncing_since, self.alarms),
            certificate=self.certificate,
            alarms=self.alarms,
            backups=self.backups,
            use_credentials=driver.set_credentials,
            stop_manager=self._stop_manager,
            foreign_readers=self.foreign_readers,
            say_slow=self.writes.slow.say,
        )

    def _start(self, make_admin: MakeService | None, make_pages: Callable[[], Service] | None) -> None:
        config, driver = self.config, self.driver
        self._housekeeping.measure()
        if config.switch_interval_seconds is not None:
            SWITCH_INTERVAL.acquire(self, config.switch_interval_seconds)
        self._say_starting()
        driver.engine.use_wall_clock(time.time)
        driver.start()
        self._housekeeping.remember()
        if make_admin is not None:
            self._admin = make_admin(self.saving.nameless)
            self._admin.start()
        if make_pages is not None:
            self._pages = make_pages()
            self._pages.start()
        self._housekeeper = self._started("warren-raft-housekeeping", self._housekeeping.run)
        self._watcher = self._started("warren-raft-disk-watch", self._housekeeping.watch)
        self._judge = self._started("warren-raft-heartbeats", self.heartbeats.run)
        if self.backups is not None:
            self._backups = self._started("warren-raft-backups", self.backups.run)
        if self.after_backup is not None:
            self._commander = self._started("warren-raft-after-backup", self.after_backup.run)
        if self.shipping is not None:
            self._shipper = self._started("warren-raft-backup-log", self.shipping.run)
        self._watchdog = Watchdog(
            config.node_id,
            driver.thread,
            lambda: (driver.pulse(), self.opened.machine.applied_index),
            self.alarms,
            alarm_seconds=config.watchdog_alarm_seconds,
            stop_seconds=config.watchdog_stop_seconds,
        )

    def _started(self, name: str, run: Callable[[threading.Event], None]) -> threading.Thread:
        thread = threading.Thread(target=run, args=(self.life.stopping,), name=name, daemon=True)
        thread.start()
        return thread

    def _say_starting(self) -> None:
        config, machine = self.config, self.opened.machine
        log_event(
            logger,
            logging.INFO,
            "manager starting",
            node=config.node_id,
            version=self._version,
            directory=config.directory,
            listen=config.listen,
            cluster=machine.cluster_id or "none",
            term=self.readiness.term(),
            last_index=self.opened.log.last_index,
            applied_index=machine.applied_index,
            links="plaintext" if self.certificate.credentials is None else "tls",
        )
        if config.insecure_plaintext:
            text = (
                f"everybody with access to {config.listen} can read everything and act as a member; give every "
                "manager a certificate (warren-raft cert issue ID --ca DIR) and start it without insecure_plaintext"
            )
            log_event(logger, logging.WARNING, "links are plaintext", text, node=config.node_id)

    # While it is open --------------------------------------------------------------------------------------------

    def _swapped(self, machine: StateMachine, was_wrong: bool) -> None:
        """In the raft thread, after the state was replaced. Reads that have begun go on in the old state."""
        machine.on_made = self.origins.keep
        if was_wrong:
            self.origins.forget(self.opened.log.last_index)
            self.hub.diverged(machine.database)
        self.installed += 1
        if self.life.database is not None:
            machine.database.commits.take_over(self.life.database.commits)
        self.life.database = machine.database
        self.hub.ring()

    def _ring_by(self, ring: Callable[[], None] | None) -> None:
        self.driver.on_applied = ring

    def _why_no_changes(self) -> WarrenError | None:
        """For watches: this manager applies nothing any more."""
        failure = self.life.failure
        return None if failure is None else Closed(f"this manager stopped: {failure}")

    def _stop_manager(self, error: WarrenError) -> None:
        """In one of the two threads of the housekeeping, which found that this manager must not go on."""
        self.life.fail(error)
        self.driver.end_writes(f"this manager stopped: {error}")
        self.driver.stop()

    def backup_status(self) -> BackupStatus | None:
        """None: this manager has no backup directory."""
        if self.backups is None:
            return None
        command = None if self.after_backup is None else self.after_backup.status()
        return self.backups.freshness.status(command)

    def _look_after(self) -> float | None:
        """Called again and again in the own thread: is the raft thread alive, does a callback block the others?"""
        watchdog, life = self._watchdog, self.life
        if watchdog is None:
            return self._deliveries.look()
        if not life.is_alive:
            return self._deliveries.look() or watchdog.look_seconds  # writes are being ended, and their futures told
        problem = watchdog.look()
        if problem is not None:
            life.failure = problem
            self.driver.end_writes(f"this manager stopped: {problem}")
            self.driver.request_stop()  # if it goes on some day, its links would make peers take it for alive
            watchdog.say(self.alarms.stopped, str(problem))
        if watchdog.is_stuck != life.is_stuck or problem is not None:
            life.is_stuck = watchdog.is_stuck
            life.changed.ring()
        return min(watchdog.look_seconds, self._deliveries.look() or watchdog.look_seconds)

    # Closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything; idempotent. An exception that arrives here ends only the waiting."""
        if self.life.is_ended:
            return
        thread = threading.current_thread()
        self._closers[thread] = None
        try:
            self.close_soon()
            self.life.changed.wait_for(lambda: self.life.is_ended, math.inf)
        finally:
            self._closers.pop(thread, None)
        self._own.join(GRACE_SECONDS)
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def close_soon(self) -> None:
        """Close everything when the opening has ended, well or not. Returns at once."""
        self._own.post(self._close_now)

    def _close_now(self) -> None:
        """In the own thread."""
        life = self.life
        if life.is_ended:
            return
        try:
            if self._watchdog is not None:
                began = time.monotonic()
                self.membership.hand_over()
                life.is_closed = True
                life.changed.ring()
                self._stop_threads()
                self._housekeeping.remember()
                life.database = None
                self._close_directory()
                self._say_stopped(time.monotonic() - began)
        except BaseException as error:  # noqa: BLE001  for the caller of close()
            self._close_error = error
        finally:
            if self._watchdog is not None:
                self._watchdog.close(GRACE_SECONDS)
            self.alarms.end()
            life.is_closed = life.is_ended = True
            life.database = None
            life.changed.ring()
            self._own.stop()

    def _stop_threads(self) -> None:
        """Stop every thread that was started, also if some were not started."""
        if self._admin is not None:
            self._admin.stop()
        if self._pages is not None:
            self._pages.stop()
        self.life.stopping.set()
        self.opened.keeper.closing.set()
        if self._housekeeper is not None:
            self._housekeeper.join(HANGS_SECONDS)
        if self._watcher is not None:
            self._watcher.join(GRACE_SECONDS)
        if self._judge is not None:
            self._judge.join(GRACE_SECONDS)
        if self._backups is not None:
            self._backups.join(GRACE_SECONDS)  # the backup directory's disk may hang
        if self._shipper is not None:
            self._shipper.join(GRACE_SECONDS)
        if self._commander is not None:
            self._commander.join(COMMAND_ENDS_SECONDS)
        self.hub.close(GRACE_SECONDS)
        self.driver.stop(*((GRACE_SECONDS,) if self.life.is_stuck else ()))
        self.driver.end_writes("the store is closed")
        self._deliveries.finish(GRACE_SECONDS)
        self.leadership.join(GRACE_SECONDS, but=self._closers)
        SWITCH_INTERVAL.release(self)

    def _close_directory(self) -> None:
        threads = (self.driver.thread, self._housekeeper)
        hanging = [thread.name for thread in threads if thread is not None and thread.is_alive()]
        if not hanging:
            try:
                self._close_opened()
            finally:
                RESERVE.close()
            return
        # The thread may be in the middle of a transaction, and go on. No process may open the directory before it ends.
        self._say(
            logging.CRITICAL,
            "thread hangs",
            "the data directory stays in use until this process ends",
            thread=", ".join(hanging),
        )

    def _close_opened(self) -> None:
        self.origins.close()
        self.opened.close(failed=self.life.failure is not None)

    def _say(self, level: int, what: str, text: object, **keys: str | float) -> None:
        """Log near the end: another thread does it, because a log handler with a full pipe may never return."""
        assert self._watchdog is not None  # everything was started
        node = self.config.node_id
        self._watchdog.say(lambda: log_event(logger, level, what, text, node=node, exc_info=None, **keys))

    def _say_stopped(self, took_seconds: float) -> None:
        failure = self.life.failure
        self._say(
            logging.INFO,
            "manager stopped",
            failure or "",
            reason="closed" if failure is None else "failed",
            term=self.readiness.term(),
            applied_index=self.opened.machine.applied_index,
            took_seconds=took_seconds,
        )
