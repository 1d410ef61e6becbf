"""The table of all metrics: name, type, labels, meaning. docs/metrics.md has the same rows, with the advice for each.

Lives here: names. Not here: values (samples.py). Invariant: names follow Prometheus' conventions: one prefix, base
units, `_total` for counters. The old names of the same values are a table of their own.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram"]


class Family(NamedTuple):
    name: str
    type: Type
    labels: tuple[str, ...]
    help: str


def _family(name: str, type_: Type, labels: str, help_: str) -> Family:
    return Family(name, type_, tuple(labels.split()), help_)


FAMILIES: Final[tuple[Family, ...]] = (
    # The store
    _family("warren_build_info", "gauge", "version", "Always 1; the version of warren_raft is the label."),
    _family("warren_start_time_seconds", "gauge", "", "When the store was opened, in seconds since 1970."),
    _family("warren_store_open", "gauge", "", "1 while the store is open, 0 after it was closed."),
    _family(
        "warren_store_operations_total",
        "counter",
        "op kind result",
        "Reads and writes by operation and kind of entity; result is ok or error.",
    ),
    _family(
        "warren_store_errors_total",
        "counter",
        "op kind reason",
        "Reads and writes that ended with an error; reason is the class of the error.",
    ),
    _family(
        "warren_store_read_duration_seconds",
        "histogram",
        "op kind",
        "Time of a read. One read in 64 of each operation and kind is timed.",
    ),
    _family(
        "warren_store_write_duration_seconds",
        "histogram",
        "op kind",
        "Time of a write that succeeded, from its call until it was applied here.",
    ),
    _family(
        "warren_store_commit_duration_seconds",
        "histogram",
        "",
        "Time of a write transaction of the state, from its begin to the end of its commit.",
    ),
    _family("warren_store_db_size_bytes", "gauge", "", "Size of the file of the state. It never shrinks."),
    _family("warren_store_db_in_use_bytes", "gauge", "", "Bytes in use in the state, without the history of changes."),
    _family("warren_store_quota_bytes", "gauge", "", "Beyond so many bytes in use, the manager is low on space."),
    _family("warren_store_disk_free_bytes", "gauge", "", "Free bytes on the disk of the state."),
    _family(
        "warren_store_no_space",
        "gauge",
        "",
        "1 while creates and updates are refused, because too many managers are low on space.",
    ),
    _family("warren_store_readers", "gauge", "", "Open read transactions on the state, of all processes."),
    _family("warren_store_oldest_read_age_seconds", "gauge", "", "Age of the oldest open view of this process."),
    _family("warren_store_revision", "gauge", "", "Revision of the latest change that is applied here."),
    _family("warren_store_objects", "gauge", "kind", "Entities by kind."),
    _family("warren_nodes", "gauge", "role status", "Nodes by role and status."),
    _family("warren_containers", "gauge", "state", "Containers by actual state."),
    _family("warren_watch_active", "gauge", "", "Open watches."),
    _family("warren_watch_lost_total", "counter", "", "Watches that ended with WatchLost."),
    # Consensus
    _family("warren_raft_is_leader", "gauge", "", "1 on the leader, 0 on the others."),
    _family("warren_raft_has_leader", "gauge", "", "1 while this manager hears a leader, or leads."),
    _family("warren_raft_has_quorum", "gauge", "", "1 while this manager can expect a write to be committed."),
    _family("warren_raft_ready", "gauge", "", "1 once the state has caught up with the cluster after the start."),
    _family("warren_raft_term", "gauge", "", "The present term."),
    _family("warren_raft_level", "gauge", "", "The level of the command set in this manager's state."),
    _family("warren_raft_level_max", "gauge", "", "The highest level of the command set that this manager reads."),
    _family(
        "warren_raft_leader_changes_total",
        "counter",
        "",
        "How often this manager came to know a leader that was another one, or led in another term.",
    ),
    _family(
        "warren_raft_leader_contact_age_seconds",
        "gauge",
        "",
        "Seconds since the leader was heard; 0 on the leader, +Inf before the first time.",
    ),
    _family("warren_raft_log_index", "gauge", "", "Index of the last entry in the log."),
    _family("warren_raft_commit_index", "gauge", "", "Index of the last entry that is known to be committed."),
    _family("warren_raft_applied_index", "gauge", "", "Index of the last entry that is applied."),
    _family("warren_raft_log_entries", "gauge", "", "Entries in the log on disk."),
    _family("warren_raft_log_size_bytes", "gauge", "", "Size of the log on disk."),
    _family("warren_raft_peers_total", "gauge", "", "Members of the cluster, this manager among them."),
    _family("warren_raft_peers_connected", "gauge", "", "Other members that this manager has a link to."),
    _family("warren_raft_peer_connected", "gauge", "peer", "1 while this manager has a link to the member."),
    _family(
        "warren_raft_peer_contact_age_seconds",
        "gauge",
        "peer",
        "Seconds since the last message of the member arrived. No sample: none has arrived since the start.",
    ),
    _family(
        "warren_raft_peer_lag_entries",
        "gauge",
        "peer",
        "Entries that the member still has to apply, by its last report, to be level with the furthest member.",
    ),
    _family("warren_raft_tolerated_failures", "gauge", "", "How many more voting members may fail while writes go on."),
    _family("warren_raft_proposals_pending", "gauge", "", "Writes of this manager's callers that are on their way."),
    _family("warren_raft_proposals_queued", "gauge", "", "Commands that wait at the leader to become a log entry."),
    _family(
        "warren_raft_proposals_failed_total",
        "counter",
        "reason",
        "Writes of this manager's callers that failed, by the class of the error.",
    ),
    _family(
        "warren_raft_commit_duration_seconds",
        "histogram",
        "",
        "Time of a write of this manager's callers, from its call until it was applied here, of all kinds together.",
    ),
    _family(
        "warren_raft_write_stage_duration_seconds",
        "histogram",
        "stage",
        "Time of a stage of a write of this manager's callers. At most 100 writes a second are timed.",
    ),
    _family(
        "warren_raft_slow_writes_total",
        "counter",
        "stage",
        "Writes of this manager's callers that took longer than Config.slow_write_seconds, by their longest stage.",
    ),
    _family("warren_raft_sync_duration_seconds", "histogram", "", "Time to write and sync a batch of the log."),
    _family("warren_raft_apply_duration_seconds", "histogram", "", "Time to apply a run of committed entries."),
    # Snapshots and backups
    _family(
        "warren_snapshot_last_success_timestamp_seconds",
        "gauge",
        "",
        "When this manager's newest own snapshot was taken. The log is compacted up to such a snapshot.",
    ),
    _family("warren_snapshot_last_index", "gauge", "", "Index of the last entry in that snapshot."),
    _family("warren_snapshot_last_size_bytes", "gauge", "", "Size of that snapshot."),
    _family("warren_snapshot_save_duration_seconds", "histogram", "", "Time to take and verify an own snapshot."),
    _family(
        "warren_snapshot_installs_total",
        "counter",
        "",
        "How often a snapshot, of this manager or of another one, replaced the state.",
    ),
    _family(
        "warren_backup_last_success_timestamp_seconds",
        "gauge",
        "",
        "When the newest backup in this manager's backup directory was saved. No sample: it knows of none.",
    ),
    _family("warren_backup_last_size_bytes", "gauge", "", "Size of that backup."),
    _family(
        "warren_backup_unsaved_seconds",
        "gauge",
        "",
        "For how long the state has had changes that are in no backup; 0: it has none. No sample: it does not lead.",
    ),
    _family(
        "warren_backup_unsaved_limit_seconds", "gauge", "", "Beyond so many seconds the alarm `backup-old` is raised."
    ),
    _family("warren_backups_total", "counter", "result", "Backups by this process; result is ok or error."),
    _family(
        "warren_backup_commands_total",
        "counter",
        "result",
        "Runs of the command after a backup; result is ok or error.",
    ),
    _family(
        "warren_backup_command_last_success_timestamp_seconds",
        "gauge",
        "",
        "When the command after a backup last succeeded in this process. No sample: it has not.",
    ),
    # The rest
    _family("warren_alarms", "gauge", "name severity", "Raised alarms by name. No sample: the alarm is not raised."),
    _family(
        "warren_store_digest_mismatch",
        "gauge",
        "",
        "1 while this manager's state differs from that of another member at the same index.",
    ),
    _family("warren_heartbeats_total", "counter", "", "Heartbeats of nodes that callers of this manager gave to it."),
    _family("warren_heartbeat_nodes", "gauge", "", "Nodes that become down when their heartbeats stop."),
    _family(
        "warren_certificate_expiry_timestamp_seconds",
        "gauge",
        "",
        "When the certificate of the links expires. No sample: links are plaintext.",
    ),
)
"""All metrics. A store has those that mean something for it: a LocalStore has no `warren_raft_*`."""

BY_NAME: Final = {family.name: family for family in FAMILIES}

Filter = tuple[tuple[str, str], ...]
"""(label, value): only the samples with these labels, which are left out of the alias."""


class Alias(NamedTuple):
    name: str
    of: str
    only: Filter = ()

    @property
    def family(self) -> Family:
        """With the type and the remaining labels of the metric of which it is an alias."""
        of, left_out = BY_NAME[self.of], [label for label, _ in self.only]
        labels = tuple(label for label in of.labels if label not in left_out)
        return Family(self.name, of.type, labels, f"An old name of {self.of}. {of.help}")


def _objects(name: str, kind: str) -> Alias:
    return Alias(name, "warren_store_objects", (("kind", kind),))


ALIASES: Final[tuple[Alias, ...]] = (
    Alias("storage_read_duration", "warren_store_read_duration_seconds"),
    Alias("storage_write_duration", "warren_store_write_duration_seconds"),
    Alias("storage_operations_total", "warren_store_operations_total"),
    Alias("storage_errors_total", "warren_store_errors_total"),
    Alias("storage_db_size_bytes", "warren_store_db_size_bytes"),
    Alias("storage_db_open", "warren_store_open"),
    Alias("storage_tx_duration", "warren_store_commit_duration_seconds"),
    _objects("storage_nodes_total", "node"),
    _objects("storage_services_total", "service"),
    _objects("storage_tasks_total", "container"),
    _objects("storage_secrets_total", "secret"),
    Alias("warren_nodes_total", "warren_nodes"),
    Alias("warren_containers_total", "warren_containers"),
    _objects("warren_services_total", "service"),
    _objects("warren_secrets_total", "secret"),
    _objects("warren_volumes_total", "volume"),
)
"""The names of Warren, for its dashboards: only if they are asked for."""
