"""What `warren-raft status` shows of a manager, and of the other members as far as it has heard.

Here: gathering it from the parts of a manager. Not here: the verdict (verdict.py), printing (the command line).
Invariant: nothing in here waits for anything, so that the status of a manager in trouble can be read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from warren_raft.alarms import Alarm
from warren_raft.errors import WarrenError
from warren_raft.fsm.machine import StateMachine
from warren_raft.opening import OpenedDirectory
from warren_raft.raft.engine import Engine
from warren_raft.raft.reports import Report
from warren_raft.snapshots.directory import Snapshot
from warren_raft.store.tables import KINDS
from warren_raft.verdict import verdict_of


def status_of(
    opened: OpenedDirectory,
    engine: Engine,
    *,
    certificate: Mapping[str, Any] | None,
    alarms: Sequence[Alarm],
    failure: WarrenError | None,
    is_stuck: bool,
) -> dict[str, Any]:
    """The keys are those of the command line's `status`; docs/cli.md describes them. Raises Closed.

    `is_stuck`: the raft thread is, so what it last said of the cluster counts no longer.
    """
    machine, log = opened.machine, opened.log
    database = machine.database
    with database.read() as view:
        counts = {kind.plural: view.count(kind) for kind in KINDS if kind.entity is not None}
    status = {
        "node_id": opened.config.node_id,
        "version": engine.measured.version,
        "cluster_id": machine.cluster_id,
        "role": "follower" if is_stuck else engine.role,
        "leader": None if is_stuck else engine.leader,
        "term": engine.term,
        "commit_index": engine.commit_index,
        "applied_index": machine.applied_index,
        "revision": machine.revision,
        "digest": machine.digest.hex(),
        "has_quorum": engine.has_quorum and not is_stuck,
        "ready": engine.is_ready and not is_stuck,
        "waits": engine.waits,
        "links": "plaintext" if certificate is None else "tls",
        "certificate": certificate,
        "members": _members(engine, machine, opened.config.node_id, alarms),
        "counts": counts,
        "db_size_bytes": database.file_size_bytes(),
        "log_entries": log.entry_count,
        "log_bytes": log.size_bytes,
        "snapshot": _snapshot(opened.keeper.newest),
        "fetching": _fetching(engine.fetching),
        "full": engine.is_full,
        "digests_compared": dict(engine.compared_digests),
        "pending_writes": engine.pending_count,
        "oldest_read_age_seconds": database.oldest_read_age_seconds(),
        "alarms": [alarm.to_json() for alarm in alarms],
        "failure": None if failure is None else str(failure),
    }
    return {"verdict": verdict_of(status), **status}


def members_of(engine: Engine) -> list[dict[str, Any]]:
    """Each member: id, address, connected (from here), voter, leader."""
    leader = engine.leader
    return [
        {
            "id": member.id,
            "address": member.address,
            "connected": engine.is_connected(member.id),
            "voter": member.voter,
            "leader": member.id == leader,
        }
        for _, member in sorted(engine.members.items())
    ]


def _members(engine: Engine, machine: StateMachine, node_id: str, alarms: Sequence[Alarm]) -> list[dict[str, Any]]:
    """The same, and what each last told of itself: null where it has not."""
    heard, now = engine.reports, time.monotonic()
    reports: dict[str, Report] = {id_: each.report for id_, each in heard.items()}
    reports[node_id] = engine.own_report(machine.applied_index, alarms)
    newest = max(report.applied_index for report in reports.values())
    members = []
    for member in members_of(engine):
        age = engine.contact_age(member["id"], now)
        report = reports.get(member["id"])
        member["contact_age_seconds"] = None if age is None else round(age, 3)
        members.append(member | _reported(report, newest))
    return members


def _reported(report: Report | None, newest: int) -> dict[str, Any]:
    return {
        "applied_index": None if report is None else report.applied_index,
        "lag_entries": None if report is None else newest - report.applied_index,
        "fetching": None if report is None else _fetching(report.fetching),
        "disk_free_bytes": None if report is None else report.disk_free_bytes,
        "database_bytes": None if report is None else report.database_bytes,
        "version": None if report is None else report.version,
        "alarms": None if report is None else [dict(zip(_ALARM, alarm, strict=True)) for alarm in report.alarms],
    }


_ALARM = ("name", "subject", "severity")


def _fetching(fetching: tuple[int, int] | None) -> dict[str, int] | None:
    return None if fetching is None else {"bytes": fetching[0], "of": fetching[1]}


def _snapshot(newest: Snapshot | None) -> dict[str, Any] | None:
    if newest is None:
        return None
    age = datetime.now(UTC) - newest.manifest.created_at
    return {
        "index": newest.index,
        "size_bytes": newest.manifest.size_bytes,
        "age_seconds": max(0.0, round(age.total_seconds(), 3)),
    }
