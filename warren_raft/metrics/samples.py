"""From the numbers of a store (meters.py) to the samples of each metric (families.py).

Lives here: the value of each metric. Not here: names and meanings, and the types of prometheus_client (collector.py).
Invariant: a metric without a meaning for a store has no entry.
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from typing import TypeAlias

from warren_raft.metrics.meters import BackupMeters, ManagerMeters, Meters, StateMeters
from warren_raft.results import Status
from warren_raft.store.counts import Counted, WriteCounts
from warren_raft.store.tables import CONTAINER, NODE
from warren_raft.support.counting import Durations

Samples: TypeAlias = list[tuple[tuple[str, ...], float | Durations]]
"""(the values of the labels, in the order of the family; the value)."""
Found: TypeAlias = dict[str, Samples]


def samples_of(meters: Meters) -> Found:
    """The samples by the name of their metric."""
    found: Found = {
        "warren_build_info": [((version("warren-raft"),), 1)],
        "warren_start_time_seconds": _one(meters.started_at),
        "warren_store_open": _one(meters.state is not None),
    }
    found |= _operations(meters)
    if meters.commits is not None:
        found["warren_store_commit_duration_seconds"] = _one(meters.commits)
    if meters.state is not None:
        found |= _state(meters.state)
    if meters.watches is not None:
        found["warren_watch_active"] = _one(meters.watches)
        found["warren_watch_lost_total"] = _one(meters.watches_lost)
    if meters.alarms is not None:
        raised = Counter((alarm.name, alarm.severity) for alarm in meters.alarms)
        found["warren_alarms"] = [(labels, count) for labels, count in sorted(raised.items())]
    if meters.manager is not None:
        found |= _manager(meters.manager, meters.writes)
    return found


def _one(value: float | Durations) -> Samples:
    return [((), value)]


def _operations(meters: Meters) -> Found:
    reads = list(meters.reads.all())
    writes = [] if meters.writes is None else list(meters.writes.all())
    done: Samples = []
    errors: Samples = []
    for each in (*reads, *writes):
        done.append(((each.op, each.kind, "ok"), each.done))
        if each.errors:
            done.append(((each.op, each.kind, "error"), sum(each.errors.values())))
        errors += [((each.op, each.kind, reason), count) for reason, count in sorted(each.errors.items())]
    found: Found = {
        "warren_store_operations_total": done,
        "warren_store_errors_total": errors,
        "warren_store_read_duration_seconds": _durations(reads),
    }
    if meters.writes is not None:
        found["warren_store_write_duration_seconds"] = _durations(writes)
    return found


def _durations(counted: list[Counted]) -> Samples:
    return [((each.op, each.kind), each.durations) for each in counted]


def _state(state: StateMeters) -> Found:
    found: Found = {
        "warren_store_db_size_bytes": _one(state.file_bytes),
        "warren_store_db_in_use_bytes": _one(state.used_bytes),
        "warren_store_disk_free_bytes": _one(state.free_bytes),
        "warren_store_oldest_read_age_seconds": _one(state.oldest_read_age_seconds),
        "warren_store_revision": _one(state.revision),
        "warren_store_objects": [((kind,), count) for kind, count in state.objects.items()],
        "warren_nodes": _tallied(state, NODE.number),
        "warren_containers": _tallied(state, CONTAINER.number),
    }
    if state.readers is not None:
        found["warren_store_readers"] = _one(state.readers)
    return found


def _tallied(state: StateMeters, kind_number: int) -> Samples:
    return [(labels, count) for (number, labels), count in sorted(state.tally.items()) if number == kind_number]


def _manager(manager: ManagerMeters, writes: WriteCounts | None) -> Found:
    found: Found = {
        "warren_store_quota_bytes": _one(manager.quota_bytes),
        "warren_raft_leader_changes_total": _one(manager.leaders),
        "warren_raft_sync_duration_seconds": _one(manager.syncs),
        "warren_raft_apply_duration_seconds": _one(manager.applies),
        "warren_raft_write_stage_duration_seconds": [((name,), each) for name, each in manager.stages.items()],
        "warren_raft_slow_writes_total": [((name,), count) for name, count in sorted(manager.slow_writes.items())],
        "warren_snapshot_save_duration_seconds": _one(manager.takings),
        "warren_snapshot_installs_total": _one(manager.installed),
        "warren_heartbeats_total": _one(manager.beats),
    }
    if writes is not None:
        found |= _all_writes(writes)
    if manager.backups is not None:
        found |= _backups(manager.backups)
    if manager.status is not None:
        found |= _raft(manager, manager.status) | _members(manager.status) | _conditions(manager, manager.status)
    return found


def _all_writes(writes: WriteCounts) -> Found:
    together, failed = Durations(), Counter[str]()
    for each in writes.all():
        together.take_over(each.durations)
        failed.update(each.errors)
    return {
        "warren_raft_commit_duration_seconds": _one(together),
        "warren_raft_proposals_failed_total": [((reason,), count) for reason, count in sorted(failed.items())],
    }


def _backups(backups: BackupMeters) -> Found:
    found: Found = {"warren_backups_total": [(("ok",), backups.saved), (("error",), backups.failed)]}
    if backups.newest_at is not None:
        found["warren_backup_last_success_timestamp_seconds"] = _one(backups.newest_at.timestamp())
        found["warren_backup_last_size_bytes"] = _one(backups.newest_bytes)
    found["warren_backup_unsaved_limit_seconds"] = _one(backups.limit_seconds)
    if backups.commands is not None:
        succeeded, failed = backups.commands
        found["warren_backup_commands_total"] = [(("ok",), succeeded), (("error",), failed)]
    if backups.command_succeeded_at is not None:
        at = backups.command_succeeded_at.timestamp()
        found["warren_backup_command_last_success_timestamp_seconds"] = _one(at)
    if backups.unsaved_seconds is not None:
        found["warren_backup_unsaved_seconds"] = _one(backups.unsaved_seconds)
    return found


def _raft(manager: ManagerMeters, status: Status) -> Found:
    return {
        "warren_raft_is_leader": _one(status.role == "leader"),
        "warren_raft_has_leader": _one(status.leader is not None),
        "warren_raft_has_quorum": _one(status.has_quorum),
        "warren_raft_ready": _one(status.ready),
        "warren_raft_term": _one(status.term),
        "warren_raft_level": _one(status.level),
        "warren_raft_level_max": _one(manager.level_max),
        "warren_raft_leader_contact_age_seconds": _one(manager.leader_contact_age_seconds),
        "warren_raft_log_index": _one(manager.log_index),
        "warren_raft_commit_index": _one(status.commit_index),
        "warren_raft_applied_index": _one(status.applied_index),
        "warren_raft_log_entries": _one(status.log_entries),
        "warren_raft_log_size_bytes": _one(status.log_bytes),
        "warren_raft_tolerated_failures": _one(status.verdict.tolerates_failures),
        "warren_raft_proposals_pending": _one(status.pending_writes),
        "warren_raft_proposals_queued": _one(manager.queued),
    }


def _members(status: Status) -> Found:
    peers = [member for member in status.members if member.id != status.node_id]
    return {
        "warren_raft_peers_total": _one(len(status.members)),
        "warren_raft_peers_connected": _one(sum(peer.connected for peer in peers)),
        "warren_raft_peer_connected": [((peer.id,), peer.connected) for peer in peers],
        "warren_raft_peer_contact_age_seconds": [
            ((peer.id,), peer.contact_age_seconds) for peer in peers if peer.contact_age_seconds is not None
        ],
        "warren_raft_peer_lag_entries": [
            ((peer.id,), peer.lag_entries) for peer in peers if peer.lag_entries is not None
        ],
    }


def _conditions(manager: ManagerMeters, status: Status) -> Found:
    differs = any(alarm.name in ("state-differs", "state-wrong") for alarm in status.alarms)
    found: Found = {
        "warren_store_no_space": _one(status.full),
        "warren_store_digest_mismatch": _one(differs),
        "warren_heartbeat_nodes": _one(manager.leases),
    }
    if status.snapshot is not None and manager.snapshot_at is not None:
        found["warren_snapshot_last_success_timestamp_seconds"] = _one(manager.snapshot_at.timestamp())
        found["warren_snapshot_last_index"] = _one(status.snapshot.index)
        found["warren_snapshot_last_size_bytes"] = _one(status.snapshot.size_bytes)
    if status.certificate is not None:
        found["warren_certificate_expiry_timestamp_seconds"] = _one(status.certificate.not_after.timestamp())
    return found
