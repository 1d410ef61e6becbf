"""The numbers of a store at one moment, as metrics need them: what a store gives to metrics/.

Lives here: the types. Not here: counting (store/counts.py, support/counting.py), collecting (manager/meters.py,
`_meters` of the other stores), names for Prometheus (families.py). Invariant: plain values and counters, no thread and
no lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from warren_raft.alarms import Alarm
from warren_raft.fsm.tallies import Tally, tally_of
from warren_raft.results import Status
from warren_raft.store.counts import ReadCounts, WriteCounts
from warren_raft.store.database import Database
from warren_raft.store.tables import KINDS
from warren_raft.support.counting import Durations


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMeters:
    """The state of an open store."""

    objects: Mapping[str, int]
    """Entities by the name of their kind."""
    tally: Tally
    revision: int
    file_bytes: int
    used_bytes: int
    """Without the history."""
    free_bytes: int
    """Of the disk."""
    oldest_read_age_seconds: float
    readers: int | None
    """Open read transactions of this process and of others; None: another process owns the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupMeters:
    """The backups of one manager."""

    saved: int
    failed: int
    newest_at: datetime | None
    newest_bytes: int
    unsaved_seconds: float | None
    """None: the manager does not lead."""
    limit_seconds: float
    commands: tuple[int, int] | None
    """Commands after a backup that succeeded, and that failed; None: there is no command."""
    command_succeeded_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerMeters:
    """A manager and its cluster."""

    status: Status | None
    """None: it is closed."""
    leader_contact_age_seconds: float
    """Infinite: no leader was heard so far."""
    leaders: int
    """How often another leader, or the same one in another term, was known."""
    level_max: int
    """The highest level of the command set that it reads."""
    queued: int
    log_index: int
    snapshot_at: datetime | None
    """When the newest own snapshot was taken; None: there is none."""
    quota_bytes: int
    syncs: Durations
    applies: Durations
    stages: Mapping[str, Durations]
    """The stages of a write by name."""
    slow_writes: Mapping[str, int]
    """By the longest stage."""
    takings: Durations
    """Snapshots of its own that were taken."""
    installed: int
    """How often another state replaced its state."""
    backups: BackupMeters | None
    beats: int
    leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """A store."""

    started_at: float
    """Seconds since 1970."""
    reads: ReadCounts
    state: StateMeters | None
    """None: the store is closed."""
    writes: WriteCounts | None = None
    """None: the store cannot write."""
    commits: Durations | None = None
    watches: int | None = None
    watches_lost: int = 0
    alarms: tuple[Alarm, ...] | None = None
    """None: the store has no alarms."""
    manager: ManagerMeters | None = None


class Metered(Protocol):
    """A store, as metrics need it."""

    def _meters(self) -> Meters:
        """Its numbers now. For any thread, in any state of the store."""


def state_meters(database: Database, tally: Tally | None) -> StateMeters:
    """`tally`: that of the state machine; None: there is none, and every node and container is read. Raises Closed."""
    with database.read() as transaction:
        objects = {kind.name: transaction.count(kind) for kind in KINDS if kind.entity is not None}
        used = transaction.used_bytes(history=False)
        revision = transaction.revision
        if tally is None:
            tally = tally_of(transaction)
    return StateMeters(
        objects=objects,
        tally=tally,
        revision=revision,
        file_bytes=database.file_size_bytes(),
        used_bytes=used,
        free_bytes=database.free_bytes(),
        oldest_read_age_seconds=database.oldest_read_age_seconds(),
        readers=len(database.readers()) if database.is_written_here else None,
    )
