"""The values of `warren-raft status`: of this manager, and of the other members as they reported them.

Lives here: collecting them from the parts of a manager. Not here: the verdict (verdict.py), printing (cli/).
Invariant: nothing in here waits for anything, so that the status of a manager with a fault can be read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from warren_raft.alarms import Alarm
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.errors import WarrenError
from warren_raft.fsm.machine import StateMachine
from warren_raft.manager.verdict import verdict_of
from warren_raft.raft.engine import Engine
from warren_raft.raft.reports import Report
from warren_raft.results import (
    BackupStatus,
    CertificateStatus,
    Fetching,
    ForeignRead,
    MemberAlarm,
    MemberStatus,
    OwnSnapshot,
    Status,
    Verdict,
)
from warren_raft.snapshots.directory import Snapshot

_UNJUDGED: Final = Verdict(state="degraded", text="", tolerates_failures=0)


def status_of(
    opened: OpenedDirectory,
    engine: Engine,
    *,
    certificate: CertificateStatus | None,
    backup: BackupStatus | None,
    alarms: Sequence[Alarm],
    failure: WarrenError | None,
    is_stuck: bool,
    uptime_seconds: float,
    foreign_read: ForeignRead | None,
) -> Status:
    """The status of a manager now. Raises Closed.

    `is_stuck`: the raft thread does not run, so its last information about the cluster is no longer valid.
    """
    machine, log = opened.machine, opened.log
    database = machine.database
    with database.read() as transaction:
        counts = transaction.counts()
    status = Status(
        verdict=_UNJUDGED,
        node_id=opened.config.node_id,
        version=engine.measured.version,
        level=machine.level,
        pid=os.getpid(),
        uptime_seconds=round(uptime_seconds, 3),
        listen=opened.config.listen,
        cluster_id=machine.cluster_id,
        role="follower" if is_stuck else engine.role,
        leader=None if is_stuck else engine.leader,
        term=engine.term,
        commit_index=engine.commit_index,
        applied_index=machine.applied_index,
        revision=machine.revision,
        digest=machine.digest.hex(),
        has_quorum=engine.has_quorum and not is_stuck,
        ready=engine.is_ready and not is_stuck,
        waits=engine.waits,
        links="plaintext" if certificate is None else "tls",
        certificate=certificate,
        members=members_of(engine, machine, opened.config.node_id, alarms),
        configured_only=tuple(sorted(opened.config.members.keys() - engine.members.keys())),
        counts=counts,
        db_size_bytes=database.file_size_bytes(),
        log_entries=log.entry_count,
        log_bytes=log.size_bytes,
        snapshot=_snapshot(opened.keeper.newest),
        backup=backup,
        fetching=_fetching(engine.fetching),
        full=engine.is_full,
        digests_compared=dict(engine.compared_digests),
        pending_writes=engine.pending_count,
        oldest_read_age_seconds=database.oldest_read_age_seconds(),
        oldest_foreign_read=foreign_read,
        alarms=tuple(alarms),
        failure=None if failure is None else str(failure),
    )
    return replace(status, verdict=verdict_of(status))


def members_of(
    engine: Engine, machine: StateMachine, node_id: str, alarms: Sequence[Alarm]
) -> tuple[MemberStatus, ...]:
    """Each member, in the order of the ids, with its last report to this manager."""
    heard, now, leader = engine.reports, time.monotonic(), engine.leader
    reports: dict[str, Report] = {id_: each.report for id_, each in heard.items()}
    reports[node_id] = engine.own_report(machine.applied_index, alarms)
    newest = max(report.applied_index for report in reports.values())
    members = []
    for member in sorted(engine.members.values(), key=lambda member: member.id):
        age, report = engine.contact_age(member.id, now), reports.get(member.id)
        members.append(
            MemberStatus(
                id=member.id,
                address=member.address,
                connected=engine.is_connected(member.id),
                voter=member.voter,
                leader=member.id == leader,
                contact_age_seconds=None if age is None else round(age, 3),
                applied_index=None if report is None else report.applied_index,
                lag_entries=None if report is None else newest - report.applied_index,
                fetching=None if report is None else _fetching(report.fetching),
                disk_free_bytes=None if report is None else report.disk_free_bytes,
                database_bytes=None if report is None else report.database_bytes,
                version=None if report is None else report.version,
                level_max=engine.level_max_of(member),
                alarms=None if report is None else _alarms(report),
                link_problem=engine.link_problem(member.id) or None,
            )
        )
    return tuple(members)


def _alarms(report: Report) -> tuple[MemberAlarm, ...]:
    return tuple(MemberAlarm(name=name, subject=subject, severity=word) for name, subject, word in report.alarms)


def _fetching(fetching: tuple[int, int] | None) -> Fetching | None:
    return None if fetching is None else Fetching(bytes=fetching[0], of=fetching[1])


def _snapshot(newest: Snapshot | None) -> OwnSnapshot | None:
    if newest is None:
        return None
    age = datetime.now(UTC) - newest.manifest.created_at
    return OwnSnapshot(
        index=newest.index,
        size_bytes=newest.manifest.size_bytes,
        age_seconds=max(0.0, round(age.total_seconds(), 3)),
    )
