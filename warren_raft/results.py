"""The results of a manager's methods as frozen dataclasses: its status, its members, the verdict on its cluster.

Lives here: the types and their JSON form, which is that of the command line's `-o json`. Not here: gathering the values
(manager/status.py), judging them (manager/verdict.py). Invariant: `to_json()` has the field names as keys and needs no
lock or thread.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from warren_raft.alarms import Alarm

State = Literal["healthy", "degraded", "no quorum"]
Role = Literal["leader", "follower", "candidate"]


class Result:
    """A frozen dataclass with a JSON form. Reading a field as `result["field"]` is deprecated."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as `json.dumps` takes them: times in RFC 3339, UTC; sequences as lists."""
        return {each.name: _json_of(getattr(self, each.name)) for each in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        text = f"{type(self).__name__} is not a mapping any more: read .{name}, or to_json()[{name!r}]"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.to_json()[name]


def _json_of(value: object) -> Any:
    if isinstance(value, Result | Alarm):
        return value.to_json()
    if isinstance(value, tuple):
        return [_json_of(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _json_of(each) for key, each in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Result):
    """Whether the cluster is well, as seen by one manager."""

    state: State
    text: str
    """One line: the leader, how many members are connected, and each problem."""
    tolerates_failures: int
    """How many more voting members may fail while writes go on."""
    warning: str = ""
    """One line about a danger that is no fault: two voting members, which are both needed. Empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching(Result):
    """A snapshot on its way to a manager."""

    bytes: int
    """Received so far."""
    of: int
    """Bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSnapshot(Result):
    """The newest snapshot in a manager's own data directory."""

    index: int
    """The index of the last log entry that it covers."""
    size_bytes: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupCommandStatus(Result):
    """The command that runs after each backup, as this process has run it."""

    succeeded_at: datetime | None
    index: int | None
    """The index of the backup for which it last succeeded."""
    failed_at: datetime | None
    """The last failed run, also if a later one succeeded; None: none failed."""
    failure: str
    """Why that run failed, without its output; empty: none failed."""
    running_seconds: float | None
    """None: it does not run now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStatus(Result):
    """The backups in a manager's backup directory, as the manager last found them."""

    directory: str
    saved_at: datetime | None
    """The moment whose state the newest backup of this cluster holds. None, also in the next four: none was found."""
    age_seconds: float | None
    index: int | None
    """The index of the last log entry that it covers."""
    revision: int | None
    """The revision of the latest change in it."""
    size_bytes: int | None
    log_index: int | None
    """Every entry up to this index is there, in the newest backup or behind it. None: no manager writes entries there
    (`backup_continuous`), or this manager has not led yet."""
    unsaved_seconds: float | None
    """For how long the state has had changes that are in no backup; 0.0: it has none. None: this manager does not
    lead."""
    limit_seconds: float
    """The alarm `backup-old` is raised when `unsaved_seconds` is above this."""
    failed_at: datetime | None
    """The last failed attempt of this process, also if a later one succeeded; None: none failed."""
    failure: str
    """Why that attempt failed; empty: none failed."""
    command: BackupCommandStatus | None
    """None: no command runs after a backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus(Result):
    """The certificate that a manager uses now."""

    trust_domain: str
    serial: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRead(Result):
    """A view of the state that another process has open, and that keeps pages which were changed since."""

    pid: int
    """The process id, in the namespace of process ids of that process."""
    pid_namespace: int | None
    """The number of that namespace (`lsns -t pid` shows it), if it is another one than this manager's: the process is
    in another container. None: it is the same, or not known."""
    age_seconds: float
    """Since this manager found the view, which it looks for once a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAlarm(Result):
    """An alarm of another member, as that member reported it. The text and the time are in that member's own status."""

    name: str
    """Mostly an `AlarmName`. A member of a later release may have others."""
    subject: str
    severity: str
    """Mostly a `Severity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus(Result):
    """A member of the cluster, with the report that it last sent to this manager. None: it has sent none."""

    id: str
    address: str
    """`HOST:PORT`, from the list of members."""
    connected: bool
    """Whether this manager has a link to it."""
    voter: bool
    """False: it has not caught up yet since it was added."""
    leader: bool
    contact_age_seconds: float | None
    """Since its last message arrived."""
    applied_index: int | None
    """The last log entry whose effect is in its state."""
    lag_entries: int | None
    """How many entries it still has to apply to be level with the furthest member."""
    fetching: Fetching | None
    """None also if it is not fetching a snapshot."""
    disk_free_bytes: int | None
    """On the disk of its data directory."""
    database_bytes: int | None
    """Used in its database, without the history."""
    version: str | None
    """Of its package."""
    level_max: int | None
    """The highest level of the command set that it reads; None: this manager has no link to it now."""
    alarms: tuple[MemberAlarm, ...] | None
    link_problem: str | None = None
    """Why the last attempt of this manager to make a link with it failed, for people; None: there is a link, or it is
    not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Result):
    """A manager and its cluster at one moment, as this manager knows them."""

    verdict: Verdict
    node_id: str
    version: str
    """The version of the package."""
    level: int
    """The level of the command set in this manager's state: which commands the cluster uses (docs/upgrade.md)."""
    pid: int
    """The id of the manager's process, in the process's own PID namespace."""
    uptime_seconds: float
    """Since the store was opened, by the monotonic clock."""
    listen: str
    """`HOST:PORT` at which the manager accepts its peers; empty for a LocalStore."""
    cluster_id: str | None
    """None before the cluster is formed."""
    role: Role
    leader: str | None
    """The id of the leader; None if this manager knows none."""
    term: int
    commit_index: int
    """The last log entry that this manager knows to be committed."""
    applied_index: int
    """The last log entry whose effect is in this manager's state."""
    revision: int
    """The revision of the latest change in this manager's state."""
    digest: str
    """Digest of the whole state, 64 hexadecimal digits. Managers with the same applied index have the same digest."""
    has_quorum: bool
    """Whether this manager knows a leader that has a majority."""
    ready: bool
    """Whether, since its start, this manager has had a leader and has caught up."""
    waits: str
    """Before the cluster is formed: the members that this manager waits for, as a sentence; else empty."""
    links: Literal["tls", "plaintext"]
    certificate: CertificateStatus | None
    """None if links are plaintext."""
    members: tuple[MemberStatus, ...]
    configured_only: tuple[str, ...]
    """Ids of managers that this manager's join file or `members` setting names, and that are no members: they were
    removed, or not added yet. Empty before the cluster is formed."""
    counts: Mapping[str, int]
    """Entities by the plural of their kind."""
    db_size_bytes: int
    """The size of the file of the state."""
    log_entries: int
    """Entries that are in the log now; older ones are in the snapshot."""
    log_bytes: int
    snapshot: OwnSnapshot | None
    """None before the first one."""
    backup: BackupStatus | None
    """None if this manager has no backup directory."""
    fetching: Fetching | None
    """None if this manager is not fetching a snapshot."""
    full: bool
    """Whether creates and updates are refused, because too many members are low on space."""
    digests_compared: Mapping[str, int]
    """By member: the newest index at which its digest equals this manager's."""
    pending_writes: int
    """Writes of this process that are on their way."""
    oldest_read_age_seconds: float
    """Of the views of this process; 0 when none is open."""
    oldest_foreign_read: ForeignRead | None
    """The oldest view of another process that keeps pages; None if there is none."""
    alarms: tuple[Alarm, ...]
    failure: str | None
    """Why this manager stopped by itself."""
