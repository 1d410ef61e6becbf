"""Backups by the clock: the leader saves snapshots to a directory of the operator, and keeps the newest few there.

The files in the directory decide when the next backup is due, so neither a restart nor a new leader changes the rhythm.
The log index in the files decides which of two is newer, never a name or a clock: a clock may have been wrong.
Invariant: only whole files of this cluster, with a name that this module gave, are ever removed, and only after a new
backup is there. The new backup is not removed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.disk.durable import rename
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.disk.paths import absolute
from warren_raft.errors import Closed, RefusedForSafety, WarrenError
from warren_raft.snapshots.file import Path, SnapshotInfo, read_manifest
from warren_raft.snapshots.freshness import Freshness, Position, position_of
from warren_raft.snapshots.saving import remove_leftovers
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.backups")

POLL_SECONDS: Final = 1.0  # how soon a new leader takes over
FAILED: Final = "backup-failed"
MISORDERED: Final = "backup-order"
RETRY_SECONDS: Final = 60.0  # after a failure: the disk may be full for a moment only

_STAMP: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"warren-\d{8}T\d{6}Z-(\d{16,20})\.mdb\Z")
_PART: Final = re.compile(r"warren-\d{8}T\d{6}Z\.part(\.[0-9a-f]{8}\.part)?\Z")


def backup_index_in(name: str) -> int | None:
    """The index of the log in the name of a backup; None: it is another file."""
    match = _NAME.match(name)
    return None if match is None else int(match[1])


class Backups:
    """`run` belongs to one thread, `watch` to another one. The alarm "backup-failed" lasts while the last attempt
    failed, or the next one would fail. The alarm "backup-order" lasts while the file that sorts last is not the newest
    backup.

    `position` returns the position of the state, None before the cluster is formed. `leads`: whether this manager
    leads. `take` saves a verified snapshot to a path and returns its manifest. `now` is the time in UTC.
    `limit_seconds`: for how long changes may be in no backup before there is an alarm. `alarms`: the manager's; None: a
    registry of its own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every_seconds: float,
        keep: int,
        limit_seconds: float,
        position: Callable[[], Position | None],
        leads: Callable[[], bool],
        take: Callable[[str], SnapshotInfo],
        alarms: Alarms | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        files: Files = OS_FILES,
    ) -> None:
        self.directory: Final = absolute(directory)
        self._alarms = Alarms("") if alarms is None else alarms
        self._fails = False
        """The last attempt failed, or this manager could not save in the directory. False again after a successful
        backup, or when another manager leads and this manager could save there too."""
        self._every = every_seconds
        self._keep = keep
        self._position = position
        self._leads = leads
        self._take = take
        self._now = now
        self._files = files
        self._checked_at: datetime | None = None
        self.saved = self.failed = 0
        """Attempts of this process."""
        self.newest: tuple[str, SnapshotInfo] | None = None
        """The newest backup of the present state; None also while this manager does not lead."""
        self.in_use: str | None = None
        """A file that is not removed meanwhile."""
        self.wanted = False
        """Any thread may set it: a backup is due now, between two regular ones."""
        self.oldest_index: int | None = None
        """The index of the oldest backup of this cluster that is kept; None: not known. A file that could not be read
        just now may be older than those that could."""
        self._oldest_unread: int | None = None
        """The lowest index in the names of the files that the disk did not give in the last look."""
        self.freshness: Final = Freshness(self.directory, limit_seconds=limit_seconds, alarms=self._alarms, now=now)

    @property
    def alarm(self) -> str | None:
        """The text of the first alarm about this directory; None if there is none."""
        return next((alarm.text for alarm in self._alarms.active if alarm.subject == self.directory), None)

    def watch(self) -> None:
        """Compare the newest backup with the state, and raise an alarm if it is too old. Reads no disk."""
        self.freshness.look(self._position() if self._leads() else None)

    def run(self, stop: threading.Event) -> None:
        """Save backups until `stop` is set, which also ends a running backup if `take` checks it."""
        self._check()
        led, poll = False, min(POLL_SECONDS, self._every)
        due = time.monotonic() + poll
        while not stop.wait(poll):
            leads = self._leads()
            if leads != led or (self.wanted and not self._fails) or time.monotonic() >= due:
                led, due = leads, time.monotonic() + self.look()

    def look(self) -> float:
        """Save a backup if it is due. Returns the seconds until the next call. Never raises: it raises an alarm and
        retries."""
        position = self._position()
        if position is None or not self._leads():
            self.newest = None
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
        except Exception as error:  # noqa: BLE001 - an error in this program must be seen, but must not end all backups
            log_event(logger, logging.ERROR, "backup failed", directory=self.directory, exc_info=error)
            self._failed(error)
        else:
            return delay
        return min(self._every, RETRY_SECONDS)

    def _failed(self, error: Exception) -> None:
        self.failed += 1
        self.freshness.note_failure(self._reason(error))
        self._alarm(f"the backup to {self.directory} failed at {self._now():%Y-%m-%dT%H:%M:%SZ}: {self._reason(error)}")

    def _works(self) -> None:
        self._fails = False
        self._alarms.clear_alarm(FAILED, self.directory)

    def _alarm(self, text: str) -> None:
        self._fails = True
        self._alarms.raise_alarm(FAILED, text, subject=self.directory)

    def _check(self) -> None:
        """Once a minute: whether this manager could save a backup if it led, and which backup is the newest there."""
        now = self._now()
        if self._checked_at is not None and 0 <= (now - self._checked_at).total_seconds() < RETRY_SECONDS:
            return
        self._checked_at = now
        try:
            _require_writable(self.directory)
            self.freshness.note(self._newest_by_name())
            self._works()
        except OSError as error:
            self.freshness.note_failure(self._reason(error))
            self._alarm(f"no backup can be saved to {self.directory}: {self._reason(error)}")

    def _reason(self, error: Exception) -> str:
        parent = os.path.dirname(self.directory)
        if isinstance(error, FileNotFoundError) and not os.path.exists(parent):
            return f"there is no directory {parent}: mount its disk, or make it"
        return str(error)

    def _do_due(self, position: Position) -> float:
        with suppress(FileExistsError):
            # Not its parents: one of them may be the mount point of an unmounted disk.
            self._files.make_directory(self.directory, private=True)
        now, backups = self._now(), self._backups(position.cluster_id)
        self._compare_names(backups)
        # A backup that is ahead of this state is from before the cluster was set back: it does not hold the present
        # state.
        self.newest = next((backup for backup in backups if backup[1].revision <= position.revision), None)
        newest = None if self.newest is None else self.newest[1]
        self.freshness.note(newest)
        self.oldest_index = self._oldest(backups)
        if newest is not None and not self.wanted:
            age = (now - newest.created_at).total_seconds()
            if 0 <= age < self._every:
                return self._every - age
            if position_of(newest) == position:
                return self._every
        remove_leftovers(self.directory, _PART, now=now.timestamp(), files=self._files)
        saved, cluster_id = self._back_up(now)
        self.wanted = False
        kept = self._prune(self._backups(cluster_id), saved)
        self.oldest_index = self._oldest(kept)
        self._compare_names(kept)
        return self._every

    def _newest_by_name(self) -> SnapshotInfo | None:
        """The newest backup of this state, of the indexes in the names: a manager that does not lead reads no more
        manifests than that needs."""
        position = self._position()
        if position is None:
            return None
        try:
            found = filter(None, map(_NAME.match, self._files.list_directory(self.directory)))
        except FileNotFoundError:  # the first leader makes it
            return None
        for match in sorted(found, key=lambda match: int(match[1]), reverse=True):
            with suppress(WarrenError, OSError):  # a damaged file: the leader's log names it
                manifest = read_manifest(os.path.join(self.directory, match.string))
                if manifest.cluster_id == position.cluster_id:
                    return manifest
        return None

    def _oldest(self, backups: list[tuple[str, SnapshotInfo]]) -> int | None:
        indexes = [backup[1].index for backup in backups[-1:]]
        if self._oldest_unread is not None:
            indexes.append(self._oldest_unread)
        return min(indexes, default=None)

    def _backups(self, cluster_id: str | None) -> list[tuple[str, SnapshotInfo]]:
        """The backups of this cluster, the newest first: the one that covers the most of the log."""
        found, unread = [], []
        for name in self._files.list_directory(self.directory):
            if _NAME.match(name):
                path = os.path.join(self.directory, name)
                try:
                    manifest = read_manifest(path)
                except (WarrenError, OSError) as error:
                    log_event(logger, logging.WARNING, "file not counted as a backup", error, path=path)
                    if isinstance(error, OSError):
                        unread.append(backup_index_in(name) or 0)
                    continue
                if manifest.cluster_id == cluster_id:
                    found.append((path, manifest))
        self._oldest_unread = min(unread, default=None)
        return sorted(found, key=_age)

    def _compare_names(self, backups: list[tuple[str, SnapshotInfo]]) -> None:
        """An operator restores the file that sorts last. While that file is not the newest, there is an alarm."""
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
            f"{manifest.index}: a clock was wrong when one of them was saved. Restore {newest}, and check the clocks",
            subject=self.directory,
        )

    def _back_up(self, now: datetime) -> tuple[str, str | None]:
        """Returns the path of the new backup, and the id of its cluster."""
        stamp = now.astimezone(UTC).strftime(_STAMP)
        part = os.path.join(self.directory, f"warren-{stamp}.part")
        manifest = self._take(part)
        path = os.path.join(self.directory, f"warren-{stamp}-{manifest.index:016d}.mdb")
        if os.path.lexists(path):
            raise RefusedForSafety(f"{path} exists already, and {part} was to get its name")
        rename(part, path, files=self._files)
        self.saved += 1
        self.newest = path, manifest
        self.freshness.note(manifest)
        log_event(logger, logging.INFO, "backup saved", path=path, index=manifest.index, bytes=manifest.size_bytes)
        return path, manifest.cluster_id

    def _prune(self, backups: list[tuple[str, SnapshotInfo]], saved: str) -> list[tuple[str, SnapshotInfo]]:
        """Remove those before the newest regular ones, and all but the newest 2 * keep; never the one that was just
        saved. Returns the remaining backups."""
        regular = self._regular(backups)
        first_kept = regular[-self._keep :][0] if regular else 0
        kept = []
        for number, backup in enumerate(backups):
            path = backup[0]
            if (backup[1].index >= first_kept and number < 2 * self._keep) or path in (saved, self.in_use):
                kept.append(backup)
            else:
                self._files.unlink(path)
                log_event(logger, logging.INFO, "old backup removed", path=path)
        return kept

    def _regular(self, backups: list[tuple[str, SnapshotInfo]]) -> list[int]:
        """The indexes of the backups that count: not those that were wanted less than an interval after one that
        counts. The entries behind an interruption follow such a backup, and it must not shorten the history."""
        found: list[int] = []
        counted_at: datetime | None = None
        for _, manifest in reversed(backups):
            if counted_at is None or not 0 <= (manifest.created_at - counted_at).total_seconds() < self._every:
                counted_at = manifest.created_at
                found.append(manifest.index)
        return found


def _age(backup: tuple[str, SnapshotInfo]) -> tuple[int, float]:
    return -backup[1].index, -backup[1].created_at.timestamp()


def _require_writable(directory: str) -> None:
    """Require a directory, or the place to make it in, that this user may write to. Raises OSError. Writes nothing."""
    place = directory if os.path.lexists(directory) else os.path.dirname(directory)
    if not stat.S_ISDIR(os.stat(place).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "This user cannot write to it", place)
