"""Snapshots of a running manager for use outside it: a file with a name, one without a name, and the backups.

Not here: the file (snapshots/saving.py), when a backup is due (snapshots/backups.py), the manager's own snapshots
(snapshots/keeper.py). Invariant: a manager that has not been part of a cluster saves nothing.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.durable import make_directory
from warren_raft.errors import Closed, RefusedForSafety
from warren_raft.manager.lifetime import Lifetime
from warren_raft.manager.readiness import Readiness
from warren_raft.manager.shipping import Shipping
from warren_raft.raft.engine import Engine
from warren_raft.snapshots.after_backup import AfterBackup
from warren_raft.snapshots.backups import Backups
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.snapshots.freshness import Position
from warren_raft.snapshots.saving import save, take_nameless
from warren_raft.store.database import Database

LATE_SECONDS: Final = 60.0
"""So late the newest changes may come to the backup directory before that is an alarm."""


class Saving:
    """For any thread. A save that runs ends with Closed when the manager closes."""

    def __init__(self, opened: OpenedDirectory, engine: Engine, life: Lifetime, readiness: Readiness) -> None:
        self._opened = opened
        self._files = opened.state.files
        self._engine = engine
        self._life = life
        self._readiness = readiness

    def snapshot(self, path: str | os.PathLike[str]) -> SnapshotInfo:
        """Save the present state at `path`; ReplicatedStore.snapshot has the errors."""
        database = self._attached()
        node_id = self._opened.config.node_id
        if self._opened.machine.cluster_id is None:
            raise RefusedForSafety(
                f"{node_id} has not been part of a cluster yet, so there is nothing to save: use the data directory of "
                "a manager that is a member"
            )
        quorum = self._engine.has_quorum and self._life.is_alive
        return save(
            database,
            path,
            created_at=datetime.now(UTC),
            node_id=node_id,
            quorum=quorum,
            cancel=self._life.stopping,
            files=self._files,
        )

    def nameless(self) -> int:
        """The descriptor of a snapshot in a file without a name, which the caller closes. Errors as `snapshot`."""
        directory = str(self._opened.config.directory / "snapshots")
        make_directory(directory, files=self._files)
        with self._attached().read() as transaction:
            self._opened.keeper.require_room(transaction.used_bytes())
        return take_nameless(directory, self.snapshot, files=self._files)

    def backups(self, alarms: Alarms) -> Backups | None:
        """The backups that the configuration asks for; None: it asks for none."""
        config = self._opened.config
        if config.backup_dir is None:
            return None
        return Backups(
            config.backup_dir,
            every_seconds=config.backup_every_seconds,
            keep=config.backup_keep,
            limit_seconds=config.backup_alarm_seconds or _limit_seconds(config),
            position=self._position,
            leads=lambda: self._readiness.is_leader,
            take=self.snapshot,
            alarms=alarms,
            files=self._files,
        )

    def after_backup(self, backups: Backups, alarms: Alarms) -> AfterBackup | None:
        """The command after each backup; None: the configuration names none."""
        config = self._opened.config
        if not config.backup_command:
            return None
        return AfterBackup(
            config.backup_command,
            backups,
            node_id=config.node_id,
            limit_seconds=config.backup_every_seconds,
            alarms=alarms,
        )

    def shipping(self, backups: Backups, alarms: Alarms) -> Shipping | None:
        """The continuous backup; None: the configuration asks for none."""
        if not self._opened.config.backup_continuous:
            return None
        return Shipping(self._opened, backups, alarms=alarms, files=self._files)

    def _position(self) -> Position | None:
        committed = self._opened.machine.committed
        if committed.cluster_id is None:  # the cluster forms with its first entries
            return None
        return Position(committed.cluster_id, committed.revision, committed.digest.hex())

    def _attached(self) -> Database:
        database = self._life.database
        if database is None:
            raise Closed
        return database


def _limit_seconds(config: Config) -> float:
    return LATE_SECONDS if config.backup_continuous else 2 * config.backup_every_seconds + LATE_SECONDS
