"""Backups by the clock: the leader saves a snapshot to a directory of the operator's, and keeps the newest few there.

What is due is told by the directory itself, so that neither a restart nor a new leader changes the rhythm. Which of two
is newer is told by the log index in them, never by a name or a clock: a clock may have been ahead when one was saved.
Invariant: only whole files of this cluster, with a name this module gave, are ever removed, and only after a new one
is there, which stays.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from warren_raft import timeouts
from warren_raft.alarms import Alarms
from warren_raft.errors import Closed, RefusedForSafety, WarrenError
from warren_raft.log_lines import log_event
from warren_raft.paths import absolute
from warren_raft.snapshots.file import Manifest, Path, read_manifest
from warren_raft.snapshots.saving import remove_leftovers
from warren_raft.store.generations import sync_directory

logger = logging.getLogger("warren_raft.backups")

POLL_SECONDS: Final = 1.0  # how soon a new leader takes over
FAILED: Final = "backup-failed"
MISORDERED: Final = "backup-order"
RETRY_SECONDS: Final = 60.0  # after a failure, which may be a disk that is full for a moment

_STAMP: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"warren-\d{8}T\d{6}Z-\d{16,20}\.mdb\Z")
_PART: Final = re.compile(r"warren-\d{8}T\d{6}Z\.part(\.[0-9a-f]{8}\.part)?\Z")


class Position(NamedTuple):
    """Where the state is: two equal ones need one backup."""

    cluster_id: str | None
    revision: int
    digest: str


class Backups:
    """`run` is a thread's. While the last attempt failed, or one would fail, there is the alarm "backup-failed"; while
    the file that sorts last is not the newest backup, "backup-order".

    `position` tells where the state is, None where this manager does not lead. `take` saves a verified snapshot at a
    path and returns its manifest. `now` is the time in UTC. `alarms`: the manager's; None: a registry of its own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every_seconds: float,
        keep: int,
        position: Callable[[], Position | None],
        take: Callable[[str], Mapping[str, Any]],
        alarms: Alarms | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.directory: Final = absolute(directory)
        self._alarms = Alarms("") if alarms is None else alarms
        self._fails = False
        """The last attempt did, or this manager could not save there; until one went well, or another manager leads
        and this one could save there too."""
        self._every = every_seconds
        self._keep = keep
        self._position = position
        self._take = take
        self._now = now
        self._checked_at: datetime | None = None

    @property
    def alarm(self) -> str | None:
        """The text of the first alarm about this directory; None while there is none."""
        return next((alarm.text for alarm in self._alarms.active if alarm.subject == self.directory), None)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set, which also ends a backup under way if `take` heeds it."""
        self._check()
        delay = min(POLL_SECONDS, self._every)
        while not stop.wait(timeouts.wait_seconds(delay)):
            delay = self.look()

    def look(self) -> float:
        """Do what is due. Returns after how many seconds to look again. Never raises: it tells and tries again."""
        position = self._position()
        if position is None:
            self._alarms.clear_alarm(MISORDERED, self.directory)
            self._check()
            return POLL_SECONDS
        self._checked_at = None
        try:
            delay = self._do_due(position)
            self._works()
        except Closed:
            return POLL_SECONDS
        except (WarrenError, OSError) as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must be seen, and must not be the end of all backups
            log_event(logger, logging.ERROR, "backup failed", directory=self.directory, exc_info=error)
            self._failed(error)
        else:
            return delay
        return min(self._every, RETRY_SECONDS)

    def _failed(self, error: Exception) -> None:
        self._alarm(f"the backup to {self.directory} failed at {self._now():%Y-%m-%dT%H:%M:%SZ}: {error}")

    def _works(self) -> None:
        self._fails = False
        self._alarms.clear_alarm(FAILED, self.directory)

    def _alarm(self, text: str) -> None:
        self._fails = True
        self._alarms.raise_alarm(FAILED, text, subject=self.directory)

    def _check(self) -> None:
        """Whether this manager could save a backup when it leads: once, and while it could not, now and then again."""
        now = self._now()
        if self._checked_at is not None:
            age = (now - self._checked_at).total_seconds()
            if not self._fails or 0 <= age < RETRY_SECONDS:
                return
        self._checked_at = now
        try:
            _require_writable(self.directory)
            self._works()
        except OSError as error:
            self._alarm(f"no backup can be saved to {self.directory}: {error}")

    def _do_due(self, position: Position) -> float:
        with suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)  # not its parents: one may be a disk that is not mounted
        now, backups = self._now(), self._backups(position.cluster_id)
        self._compare_names(backups)
        # One that is ahead of this state is of a cluster that was set back since: nothing of the present one is in it.
        of_this_state = [manifest for _, manifest in backups if manifest.revision <= position.revision]
        if of_this_state:
            newest = of_this_state[0]
            age = (now - newest.created_at).total_seconds()
            if 0 <= age < self._every:
                return self._every - age
            if Position(newest.cluster_id, newest.revision, newest.digest) == position:
                return self._every
        remove_leftovers(self.directory, _PART, now=now.timestamp())
        saved, cluster_id = self._back_up(now)
        self._compare_names(self._prune(self._backups(cluster_id), saved))
        return self._every

    def _backups(self, cluster_id: str | None) -> list[tuple[str, Manifest]]:
        """Those of this cluster, the newest first: the one with the most of the log in it."""
        found = []
        for name in os.listdir(self.directory):
            if _NAME.match(name):
                path = os.path.join(self.directory, name)
                try:
                    manifest = read_manifest(path)
                except (WarrenError, OSError) as error:
                    log_event(logger, logging.WARNING, "file not counted as a backup", error, path=path)
                    continue
                if manifest.cluster_id == cluster_id:
                    found.append((path, manifest))
        return sorted(found, key=_age)

    def _compare_names(self, backups: list[tuple[str, Manifest]]) -> None:
        """Whoever restores takes the file that sorts last. While that is not the newest, there is an alarm."""
        if not backups:
            return
        newest, manifest = backups[0]
        last, last_manifest = max(backups, key=lambda backup: backup[0])
        if last_manifest.index == manifest.index:
            self._alarms.clear_alarm(MISORDERED, self.directory)
            return
        self._alarms.raise_alarm(
            MISORDERED,
            f"{last} sorts last, and ends at index {last_manifest.index}; the newest backup, {newest}, ends at index "
            f"{manifest.index}: a clock was wrong when one of them was saved. Restore {newest}, and look at the clocks",
            subject=self.directory,
        )

    def _back_up(self, now: datetime) -> tuple[str, str | None]:
        """Returns the path of the new backup, and the id of the cluster that it is of."""
        stamp = now.astimezone(UTC).strftime(_STAMP)
        part = os.path.join(self.directory, f"warren-{stamp}.part")
        manifest = self._take(part)
        path = os.path.join(self.directory, f"warren-{stamp}-{manifest['index']:016d}.mdb")
        if os.path.lexists(path):
            raise RefusedForSafety(f"{path} is there already, and {part} was to get its name")
        os.rename(part, path)
        sync_directory(self.directory)
        log_event(
            logger, logging.INFO, "backup saved", path=path, index=manifest["index"], bytes=manifest["size_bytes"]
        )
        return path, manifest["cluster_id"]

    def _prune(self, backups: list[tuple[str, Manifest]], saved: str) -> list[tuple[str, Manifest]]:
        """Remove all but the newest, and never the one that was just saved. Returns what is left."""
        kept = []
        for number, backup in enumerate(backups):
            path = backup[0]
            if number < self._keep or path == saved:
                kept.append(backup)
            else:
                os.unlink(path)
                log_event(logger, logging.INFO, "old backup removed", path=path)
        return kept


def _age(backup: tuple[str, Manifest]) -> tuple[int, float]:
    return -backup[1].index, -backup[1].created_at.timestamp()


def _require_writable(directory: str) -> None:
    """A directory, or the place to make it in, that this user may write to. Raises OSError. Nothing is written."""
    place = directory if os.path.lexists(directory) else os.path.dirname(directory)
    if not stat.S_ISDIR(os.stat(place).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "This user cannot write to it", place)
