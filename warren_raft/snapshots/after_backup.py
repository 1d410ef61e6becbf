"""The operator's command that runs after each backup, for instance to copy the file to another host.

Lives here: for which backup it runs, when it runs again, and its alarm. Not here: saving backups (backups.py), running
a process (support/command.py). Invariant: the command never delays a backup, and its file is not removed while it runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.errors import Closed
from warren_raft.results import BackupCommandStatus
from warren_raft.snapshots.backups import POLL_SECONDS, RETRY_SECONDS, Backups
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.support import command
from warren_raft.support.log_lines import WithOutput, log_event

logger = logging.getLogger("warren_raft.backups")

FAILED: Final = "backup-command-failed"
LIMIT_SECONDS_MIN: Final = 600.0
"""A command may run for the time between two backups, but at least for so long."""


class AfterBackup:
    """`run` belongs to one thread; `status` is for any thread.

    While this manager leads, the command runs once for the newest backup that is there, then for each new one. A leader
    cannot know whether the command of an earlier leader was done, so it begins with the newest file. A run that failed
    is repeated every minute, for the newest backup. `now` is the time in UTC.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        backups: Backups,
        *,
        node_id: str,
        limit_seconds: float,
        alarms: Alarms,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._arguments = tuple(arguments)
        self._backups = backups
        self._node_id = node_id
        self._limit_seconds = max(limit_seconds, LIMIT_SECONDS_MIN)
        self._alarms = alarms
        self._now = now
        self._done: str | None = None
        """The file for which the command has succeeded in this leadership."""
        self._failed: str | None = None
        self._checked_at: datetime | None = None
        self.succeeded = self.failed = 0
        """Runs of this process."""
        self._succeeded_at: datetime | None = None
        self._index: int | None = None
        self._failed_at: datetime | None = None
        self._failure = ""
        self._running_since: datetime | None = None

    def run(self, stop: threading.Event) -> None:
        """Run the command after each backup until `stop` is set, which also ends a command that runs."""
        while not stop.wait(POLL_SECONDS):
            self.look(stop)

    def look(self, stop: threading.Event) -> None:
        """Run the command if there is a backup for it. Never raises: it raises an alarm and tries again."""
        newest = self._backups.newest
        if newest is None:
            self._done = None
            if self._is_due(self._failed is not None):
                self._check()
            return
        path, manifest = newest
        if path == self._done or not self._is_due(path == self._failed):
            return
        self._backups.in_use = path  # not removed from now on
        try:
            if self._backups.newest is newest:
                self._carry_out(path, manifest, stop)
        except Closed:
            return
        except Exception as error:  # noqa: BLE001 - an error in this program must be seen, but must not end all commands
            self._fails(path, f"{type(error).__name__}: {error}", "")
        finally:
            self._backups.in_use = None
            self._running_since = None

    def _is_due(self, has_failed: bool) -> bool:
        """After a failure, or while there is nothing to do, only once a minute."""
        if self._checked_at is None or (self._backups.newest is not None and not has_failed):
            return True
        return not 0 <= (self._now() - self._checked_at).total_seconds() < RETRY_SECONDS

    def _check(self) -> None:
        """Whether the program is there, so that an error is seen before this manager leads for the first time."""
        self._checked_at = self._now()
        program = self._arguments[0]
        if shutil.which(program) is not None:
            self._failed = None
            self._alarms.clear_alarm(FAILED, self._backups.directory)
            return
        self._failed = program
        self._alarm(f"the command after a backup cannot run: there is no program {program} that this user may run")

    def _carry_out(self, path: str, manifest: SnapshotInfo, stop: threading.Event) -> None:
        self._checked_at = self._running_since = self._now()
        try:
            ended = command.run(
                [*self._arguments, path],
                _facts(path, manifest, self._node_id),
                limit_seconds=self._limit_seconds,
                stop=stop,
            )
        except OSError as error:
            self._fails(path, f"it cannot be started: {error.strerror}", "")
            return
        if ended.failure:
            self._fails(path, ended.failure, ended.output)
            return
        self._done, self._failed = path, None
        self.succeeded += 1
        self._succeeded_at, self._index = self._now(), manifest.index
        self._alarms.clear_alarm(FAILED, self._backups.directory)
        log_event(logger, logging.INFO, "backup command succeeded", node=self._node_id, path=path)

    def _fails(self, path: str, why: str, output: str) -> None:
        """The output and the arguments go to the log at most: the alarm is on pages without a password."""
        self._failed = path
        self.failed += 1
        self._failed_at, self._failure = self._now(), why
        text = WithOutput(why, output)
        log_event(logger, logging.WARNING, "backup command failed", text, node=self._node_id, path=path)
        said = "its output is in the log of this manager" if output else "it printed nothing"
        self._alarm(
            f"the command {self._arguments[0]} for {os.path.basename(path)} failed at "
            f"{self._failed_at:%Y-%m-%dT%H:%M:%SZ}: {why}; {said}. It runs again every minute"
        )

    def _alarm(self, text: str) -> None:
        self._alarms.raise_alarm(FAILED, text, subject=self._backups.directory)

    def status(self) -> BackupCommandStatus:
        since = self._running_since
        return BackupCommandStatus(
            succeeded_at=self._succeeded_at,
            index=self._index,
            failed_at=self._failed_at,
            failure=self._failure,
            running_seconds=None if since is None else max(0.0, round((self._now() - since).total_seconds(), 3)),
        )


def _facts(path: str, manifest: SnapshotInfo, node_id: str) -> dict[str, str]:
    return {
        "WARREN_BACKUP_FILE": path,
        "WARREN_BACKUP_DIR": os.path.dirname(path),
        "WARREN_BACKUP_TIME": f"{manifest.created_at:%Y-%m-%dT%H:%M:%SZ}",
        "WARREN_BACKUP_INDEX": str(manifest.index),
        "WARREN_BACKUP_REVISION": str(manifest.revision),
        "WARREN_BACKUP_BYTES": str(os.stat(path).st_size),
        "WARREN_CLUSTER_ID": manifest.cluster_id or "",
        "WARREN_NODE_ID": node_id,
    }
