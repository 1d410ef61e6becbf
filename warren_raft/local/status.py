"""The status of a LocalStore, in the form of a manager's: the only member of its cluster, which leads.

Not here: the state itself (store.py). Invariant: nothing in here waits for anything, so that the status of a store
that has failed can be read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from warren_raft.alarms import Alarm
from warren_raft.errors import WarrenError
from warren_raft.fsm.machine import StateMachine
from warren_raft.results import ForeignRead, MemberStatus, Status, Verdict
from warren_raft.store import levels

LOCAL_ID: Final = "local"
"""The id of a LocalStore as a member, and so of its leader."""

LEADING_TERM: Final = 1
"""The term in which a LocalStore leads. Its entries are of term 0, as no manager's are, and its commands have no
fence."""


def status_of(
    machine: StateMachine,
    term: int,
    *,
    pending_writes: int,
    alarms: Sequence[Alarm],
    failure: WarrenError | None,
    uptime_seconds: float,
    foreign_read: ForeignRead | None,
) -> Status:
    """The status now. Raises Closed."""
    database = machine.database
    with database.read() as transaction:
        counts = transaction.counts()
    leads = failure is None
    return Status(
        verdict=_verdict(alarms, failure),
        node_id=LOCAL_ID,
        version=version("warren-raft"),
        level=machine.level,
        pid=os.getpid(),
        uptime_seconds=round(uptime_seconds, 3),
        listen="",
        cluster_id=None,
        role="leader" if leads else "follower",
        leader=LOCAL_ID if leads else None,
        term=term,
        commit_index=machine.applied_index,
        applied_index=machine.applied_index,
        revision=machine.revision,
        digest=machine.digest.hex(),
        has_quorum=leads,
        ready=leads,
        waits="",
        links="plaintext",
        certificate=None,
        members=members_of(machine, failure),
        configured_only=(),
        counts=counts,
        db_size_bytes=database.file_size_bytes(),
        log_entries=0,
        log_bytes=0,
        snapshot=None,
        backup=None,
        fetching=None,
        full=False,
        digests_compared={},
        pending_writes=pending_writes,
        oldest_read_age_seconds=database.oldest_read_age_seconds(),
        oldest_foreign_read=foreign_read,
        alarms=tuple(alarms),
        failure=None if failure is None else str(failure),
    )


def members_of(machine: StateMachine, failure: WarrenError | None) -> tuple[MemberStatus, ...]:
    """The store itself; it has no address."""
    return (
        MemberStatus(
            id=LOCAL_ID,
            address="",
            connected=True,
            voter=True,
            leader=failure is None,
            contact_age_seconds=None,
            applied_index=machine.applied_index,
            lag_entries=0,
            fetching=None,
            disk_free_bytes=None,
            database_bytes=None,
            version=version("warren-raft"),
            level_max=levels.NEWEST,
            alarms=None,
        ),
    )


def _verdict(alarms: Sequence[Alarm], failure: WarrenError | None) -> Verdict:
    if failure is not None:
        return Verdict(state="degraded", text=f"this store stopped: {failure}", tolerates_failures=0)
    text = "; ".join(["one process without a cluster", *(alarm.text for alarm in alarms)])
    return Verdict(state="degraded" if alarms else "healthy", text=text, tolerates_failures=0)
