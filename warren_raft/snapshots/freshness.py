"""How old the newest backup is, and for how long the state has had changes that no backup holds.

Not here: saving backups (backups.py). Invariant: nothing in here reads a disk, so it is true, and there is an alarm,
also while the disk of the backup directory does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from warren_raft.alarms import Alarms
from warren_raft.results import BackupCommandStatus, BackupStatus
from warren_raft.snapshots.file import SnapshotInfo

OLD: Final = "backup-old"
SETTLE_SECONDS: Final = 60.0
"""A new leader has so long to save a backup to its directory, which may be another one than that of the last leader."""


class Position(NamedTuple):
    """The position and content of the state. Two equal positions need only one backup."""

    cluster_id: str | None
    revision: int
    digest: str


def position_of(manifest: SnapshotInfo) -> Position:
    return Position(manifest.cluster_id, manifest.revision, manifest.digest)


class Freshness:
    """`note` belongs to the thread of the backups, `look` to the housekeeping; `status` is for any thread.

    The alarm "backup-old" lasts while this manager leads and its state has had changes that are in no backup for more
    than `limit_seconds`. `now` is the time in UTC.
    """

    def __init__(self, directory: str, *, limit_seconds: float, alarms: Alarms, now: Callable[[], datetime]) -> None:
        self._directory = directory
        self.limit_seconds: Final = limit_seconds
        self._alarms = alarms
        self._now = now
        self.newest: SnapshotInfo | None = None
        """The newest backup of this state that this manager has found in the directory; None: it has found none."""
        self._held_at: datetime | None = None
        """When the newest backup, or the absence of one, was last known to be enough."""
        self._shipped: tuple[Position, datetime] | None = None
        """The newest state whose entries are beside the backups, and when they were written."""
        self.log_index: int | None = None
        """Every entry up to this index is in the newest backup or beside it; None: this manager does not know."""
        self.unsaved_since: datetime | None = None
        """Since when there are changes that the newest backup does not hold; None: none, or it does not lead."""
        self.leads = False
        self._led_since = now()
        self.failure = ""
        self.failed_at: datetime | None = None
        """The last failure of this process, also after a later success."""

    def note(self, newest: SnapshotInfo | None) -> None:
        """The newest backup in the directory is this one."""
        if newest != self.newest:
            self._held_at = None if newest is None else newest.created_at
            self.newest = newest

    def note_shipped(self, position: Position, at: datetime, index: int) -> None:
        """Every change up to this position is in the entries beside the backups."""
        self._shipped, self.log_index = (position, at), index

    def note_failure(self, text: str) -> None:
        self.failure, self.failed_at = text, self._now()

    def look(self, position: Position | None) -> None:
        """Compare the newest backup with the state. `position`: None if this manager does not lead."""
        now, newest, shipped = self._now(), self.newest, self._shipped
        if position is not None and not self.leads:
            self._led_since = now
        self.leads = position is not None
        if shipped is not None:
            self._held_at = max(self._held_at or shipped[1], shipped[1])
        is_held = position in (None if newest is None else position_of(newest), None if shipped is None else shipped[0])
        if position is None or is_held:
            self._held_at, self.unsaved_since = now if position is not None else self._held_at, None
            self._alarms.clear_alarm(OLD, self._directory)
            return
        if self._held_at is None:
            self._held_at = now
        self.unsaved_since = self._held_at
        over = (now - self.unsaved_since).total_seconds() - self.limit_seconds
        led = (now - self._led_since).total_seconds()
        if over <= 0 or led < min(self.limit_seconds, SETTLE_SECONDS):
            self._alarms.clear_alarm(OLD, self._directory)
            return
        held = "there is no backup" if newest is None else f"the newest backup is of {_text(newest.created_at)}"
        self._alarms.raise_alarm(
            OLD,
            f"{held} in {self._directory}, and changes that are older than the limit of "
            f"{timedelta(seconds=self.limit_seconds)} are in no backup: {self._reason()}",
            subject=self._directory,
            ago_seconds=over,
        )

    def _reason(self) -> str:
        if self.failed_at is not None:
            return f"the last attempt failed at {_text(self.failed_at)}: {self.failure}"
        return f"no attempt has failed, so the disk may hang (ls {self._directory})"

    @property
    def unsaved_seconds(self) -> float | None:
        """For how long changes have been in no backup; 0: every change is in one. None: this manager does not lead."""
        if not self.leads:
            return None
        return 0.0 if self.unsaved_since is None else self._seconds_since(self.unsaved_since)

    def _seconds_since(self, moment: datetime) -> float:
        return max(0.0, round((self._now() - moment).total_seconds(), 3))

    def status(self, command: BackupCommandStatus | None = None) -> BackupStatus:
        newest = self.newest
        return BackupStatus(
            directory=self._directory,
            saved_at=None if newest is None else newest.created_at,
            age_seconds=None if newest is None else self._seconds_since(newest.created_at),
            index=None if newest is None else newest.index,
            revision=None if newest is None else newest.revision,
            size_bytes=None if newest is None else newest.size_bytes,
            log_index=self.log_index,
            unsaved_seconds=self.unsaved_seconds,
            limit_seconds=self.limit_seconds,
            failed_at=self.failed_at,
            failure=self.failure,
            command=command,
        )


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
