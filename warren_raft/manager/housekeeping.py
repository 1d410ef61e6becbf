"""The background work of a manager, once a second: measuring, writing the state back, tidying, noticing changed files.

Lives here: two threads and their chores, each a few lines. Not here: measuring (disk_space.py, slow_disk.py), the
directory (data_dir/opening.py), the certificate (certificates/own.py). Invariant: each chore is tried in each round,
even if another one failed; only an error that makes the manager unsafe ends the thread, and the manager. A chore that
reads or writes a disk never keeps the alarms about hanging disks from being raised: these have a thread of their own.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.certificates.credentials import Credentials
from warren_raft.certificates.own import OwnCertificate
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.descriptors import RESERVE, limit
from warren_raft.disk.shortage import shortage_of
from warren_raft.errors import WarrenError
from warren_raft.manager.disk_space import Space
from warren_raft.manager.slow_disk import SlowDisk
from warren_raft.raft.engine import Engine
from warren_raft.raft.reports import Report
from warren_raft.snapshots.backups import Backups
from warren_raft.store.foreign_readers import RENEW_AGAIN_SECONDS, ForeignReaders
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.manager.housekeeping")

PAUSE_SECONDS: Final = 1.0
NOTE_READY_SECONDS: Final = 0.05
"""How often a starting manager checks whether it became ready. A manager that is killed soon after its start has not
failed to start. Counting it as a failed start twice would cost the next start a proof of the whole state."""


class Housekeeping:
    """`measure` and `remember` may also be called while the thread does not run.

    `use_credentials`: makes links with another certificate. `stop_manager`: stops the manager with an error.
    `say_slow`: writes log lines about slow writes.
    """

    def __init__(
        self,
        *,
        version: str,
        opened: OpenedDirectory,
        engine: Engine,
        space: Space,
        slow_disk: SlowDisk,
        certificate: OwnCertificate,
        alarms: Alarms,
        backups: Backups | None,
        use_credentials: Callable[[Credentials], None],
        stop_manager: Callable[[WarrenError], None],
        foreign_readers: ForeignReaders,
        say_slow: Callable[[], None],
    ) -> None:
        self._node_id = opened.config.node_id
        self._version = version
        self._opened = opened
        self._engine = engine
        self._space = space
        self._certificate = certificate
        self._alarms = alarms
        self._backups = backups
        self._use_credentials = use_credentials
        self._stop_manager = stop_manager
        self._foreign_readers = foreign_readers
        self._renew_at = 0.0
        self._is_noted = False
        """Whether it is on disk that this start got ready."""
        self._interval_seconds: Final = opened.config.checkpoint_interval_seconds
        self._write_back_at = time.monotonic() + self._interval_seconds
        self._written_back = -1
        """The applied index at the last checkpoint."""
        self._looks: Final = (alarms.tick, say_slow, slow_disk.look, self._look_at_backups)
        """They read no disk."""
        self._chores: Final = (
            self._look_at_descriptors,
            self._look_at_directory,
            self._look_at_certificate,
            self._note_ready,
            self._tidy,
            self._look_at_foreign_readers,
            self.measure,
            self.remember,
            self._write_back,
        )

    def run(self, stop: threading.Event) -> None:
        """Keep house until `stop` is set, or until the manager has to stop."""
        pause = min(PAUSE_SECONDS, self._interval_seconds)
        while not stop.wait(pause if self._is_noted else min(pause, NOTE_READY_SECONDS)):
            if not self._all_done(self._chores):
                return

    def watch(self, stop: threading.Event) -> None:
        """The alarms about hanging disks, and the log lines about slow writes, until `stop` is set. In another thread
        than `run`, which may hang in a checkpoint."""
        while not stop.wait(PAUSE_SECONDS):
            if not self._all_done(self._looks):
                return

    def _all_done(self, chores: Iterable[Callable[[], object]]) -> bool:
        """Returns False if the manager has to stop."""
        for chore in chores:
            try:
                chore()
            except Exception as error:  # noqa: BLE001 - the thread must go on checking the disk
                if isinstance(error, WarrenError) and shortage_of(error) is None:
                    self._stop_manager(error)
                    return False
                self._note_failed(error)
        return True

    def measure(self) -> None:
        """Give the values to consensus, which sends them to the others. See raft/health.py for how often."""
        self._engine.low_space = self._space.look(self._opened.database)
        self._engine.measured = Report(
            version=self._version, disk_free_bytes=self._space.free_bytes, database_bytes=self._space.used_bytes
        )

    def remember(self) -> None:
        """Write how this manager was started, and the addresses of the others, for a start from its directory alone."""
        memory = self._opened.memory
        memory.keep(self._engine.addresses_to_keep(memory.said))

    # The other chores --------------------------------------------------------------------------------------------

    def _look_at_directory(self) -> None:
        self._opened.look()

    def _tidy(self) -> None:
        self._opened.keeper.tidy()

    def _note_ready(self) -> None:
        if not self._is_noted and self._engine.is_ready:
            self._opened.state.forget_starts()
            self._is_noted = True

    def _write_back(self) -> None:
        """Sync the state and end old reads, once in each checkpoint interval."""
        if time.monotonic() < self._write_back_at:
            return
        self._write_back_at = time.monotonic() + self._interval_seconds
        self._opened.database.end_old_reads()
        index = self._opened.machine.applied_index
        if index != self._written_back:
            self._opened.database.checkpoint()
            self._written_back = index

    def _look_at_descriptors(self) -> None:
        if RESERVE.refill():
            self._alarms.clear_alarm("descriptors-low")
            return
        text = (
            f"the program of {self._node_id} has used up its file descriptors (at most {limit()}): it can take "
            "no connections, and has a few in reserve for the log and for snapshots; find the leak "
            f"(as root: ls -l /proc/{os.getpid()}/fd), or raise the limit (ulimit -n, LimitNOFILE=)"
        )
        self._alarms.raise_alarm("descriptors-low", text)

    def _look_at_certificate(self) -> None:
        new = self._certificate.look()
        if new is not None:
            self._use_credentials(new)

    def _look_at_foreign_readers(self) -> None:
        """A reader that never ends its view would let the state file grow for ever: then the state moves to another
        file. A process that died holds nothing, and its process id may soon be that of another one."""
        self._opened.database.reader_check()
        now = time.monotonic()
        if self._foreign_readers.look(self._opened.database) and now >= self._renew_at:
            self._renew_at = now + RENEW_AGAIN_SECONDS
            self._engine.renewal_wanted = True

    def _look_at_backups(self) -> None:
        if self._backups is not None:  # its own thread may hang with the disk of the backup directory
            self._backups.watch()

    def _note_failed(self, error: Exception) -> None:
        """The error may last for days: log one traceback, and raise an alarm that ends when the error has not come
        again."""
        if not self._alarms.is_raised("housekeeping-failed"):
            log_event(logger, logging.ERROR, "housekeeping failed", "it goes on", node=self._node_id, exc_info=error)
        text = f"{self._node_id} cannot do a part of its housekeeping: {type(error).__name__}: {error}"
        lasts_seconds = 2 * max(PAUSE_SECONDS, self._interval_seconds)
        self._alarms.raise_alarm("housekeeping-failed", text, ends_after_seconds=lasts_seconds)
