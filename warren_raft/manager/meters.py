"""The numbers of a manager for metrics/, from its parts.

Lives here: collecting them. Not here: the parts that count, and the status, which has most of the gauges (status.py).
Invariant: nothing in here waits for anything.
"""

from __future__ import annotations

import time
from typing import Final

from warren_raft.errors import Closed
from warren_raft.manager.parts import Parts
from warren_raft.metrics.meters import BackupMeters, ManagerMeters, Meters, StateMeters, state_meters
from warren_raft.results import Status
from warren_raft.snapshots.after_backup import AfterBackup
from warren_raft.snapshots.backups import Backups
from warren_raft.store import levels
from warren_raft.store.counts import ReadCounts

STATE_RACES_MAX: Final = 3
"""How often another state may replace the one that is read."""


def meters_of(parts: Parts, reads: ReadCounts, status: Status | None, started_at: float) -> Meters:
    """`status`: None if the manager is closed."""
    engine, driver, opened = parts.driver.engine, parts.driver, parts.opened
    newest = opened.keeper.newest
    return Meters(
        started_at=started_at,
        reads=reads,
        state=None if status is None else _state(parts),
        writes=parts.writes.counts,
        commits=opened.machine.database.commits,
        watches=parts.hub.open_count,
        watches_lost=parts.hub.lost_count,
        alarms=parts.alarms.active,
        manager=ManagerMeters(
            status=status,
            leader_contact_age_seconds=engine.leader_contact_age(time.monotonic()),
            leaders=engine.leaders_known,
            level_max=levels.NEWEST,
            queued=engine.queued_count,
            log_index=opened.log.last_index,
            snapshot_at=None if newest is None else newest.manifest.created_at,
            quota_bytes=parts.config.quota_bytes,
            syncs=driver.syncs,
            applies=driver.applies,
            stages={str(stage): each for stage, each in parts.writes.slow.durations.items()},
            slow_writes={str(stage): count for stage, count in parts.writes.slow.counts.items()},
            takings=opened.keeper.takings,
            installed=parts.installed,
            backups=None if parts.backups is None else _backups(parts.backups, parts.after_backup),
            beats=parts.heartbeats.taken,
            leases=len(opened.machine.leases),
        ),
    )


def _state(parts: Parts) -> StateMeters | None:
    for _ in range(STATE_RACES_MAX):
        machine = parts.opened.machine
        try:
            return state_meters(machine.database, machine.tally)
        except Closed:  # another state has just replaced this one, or the manager has just been closed
            continue
    return None


def _backups(backups: Backups, command: AfterBackup | None) -> BackupMeters:
    freshness = backups.freshness
    newest = freshness.newest
    return BackupMeters(
        saved=backups.saved,
        failed=backups.failed,
        newest_at=None if newest is None else newest.created_at,
        newest_bytes=0 if newest is None else newest.size_bytes,
        unsaved_seconds=freshness.unsaved_seconds,
        limit_seconds=freshness.limit_seconds,
        commands=None if command is None else (command.succeeded, command.failed),
        command_succeeded_at=None if command is None else command.status().succeeded_at,
    )
