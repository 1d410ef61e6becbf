"""The settings of one manager for its start: its id, its data directory, its members.

Only checking and reading settings is done here; nothing is opened or created, and no address is resolved.
Invariant: a Config that exists is valid, and it never changes.
"""

from __future__ import annotations

import codecs
import ipaddress
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from .disk.paths import absolute
from .errors import InvalidConfig
from .model.forms import FrozenMap
from .support.wording import did_you_mean

MAX_NODE_ID_LENGTH: Final = 64  # the id is part of file names, log lines and every frame's handshake
TOML_BYTES_MAX: Final = 1 << 20
TOML_DEPTH_MAX: Final = 64
"""The deepest nesting of tables. The parts of an id with dots, which may have 64 characters, are such tables."""
MAX_BACKUPS: Final = 100_000  # eleven years of hourly backups; each is read before the next is made
MAX_QUOTA_BYTES: Final = 32 * 1024**3
"""Half of the address space of a database (store/database.py). The rest is for deletes, which write too, and for pages
that open views keep."""
MEMBERS_MAX: Final = 64
"""The longest list of members that is accepted; Raft clusters have three or five voters."""
MISSING: Final = "is missing"
MAX_QUEUE_LIMIT: Final = 1_000_000  # a million waiting writes of 1 KiB are already 1 GiB of memory
_NODE_ID = re.compile(r"[A-Za-z0-9._-]+\Z")
_BROADCAST = ipaddress.ip_address("255.255.255.255")
_HOST_NAME = re.compile(r"[A-Za-z0-9.-]+\Z")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one manager. The first four are required; the text of each other one gives its default and why.

    A name of a file or directory is made absolute when the Config is made, so a later `os.chdir` changes nothing.

    Raises:
        InvalidConfig: (a ValueError) a setting is wrong; `.field` names it.
    """

    node_id: str
    """This manager's id: 1 to 64 of A-Z a-z 0-9 . _ -, unique in the cluster. It is part of file names, log lines and
    every connection between managers."""
    data_dir: str | os.PathLike[str]
    """The directory of this manager's log and state. It is made (mode 0700) if it does not exist. A directory that
    every user of the host may read or write is refused when it is opened (RefusedForSafety, `chmod o-rwx`). A directory
    of mode 2770 (`chmod g+rwxs`) is shared with its group: its files get mode 0660, and managers of other users of the
    group may take over there."""
    listen: str
    """HOST:PORT at which the other managers reach this one, IPv6 as [::1]:7946. The port is 1 to 65535. 0.0.0.0,
    [::], 255.255.255.255 and multicast addresses are refused, because the others dial this address."""
    members: Mapping[str, str]
    """Id to address of every initial member, including this one, each address once. They make the member list only on
    an empty directory. Afterwards the replicated list counts, and these addresses are further places to look for
    members. A joiner names the cluster's members and itself."""
    write_timeout_seconds: float = 10.0
    """How long a write waits for its result if the call gives no timeout: seconds above 0. Default 10: several
    elections are over by then."""
    request_memory_seconds: float = 3600.0
    """How long the `request_id` of a write is remembered: seconds above 0. All managers should have the same value: the
    shortest one counts. Of more than 100,000 ids the oldest is forgotten earlier. Default 3600: by then a caller that
    crashed has been restarted, and has made its write again."""
    switch_interval_seconds: float | None = 0.0005
    """`sys.setswitchinterval` while a store is open: seconds above 0, or None, which leaves the interval unchanged.
    Default 0.0005: with Python's own 5 ms, a busy thread of the embedding process makes each write several times
    slower."""
    bootstrap: bool = True
    """If `members` names only this manager: whether it begins a cluster of one on an empty directory. False: it waits
    until it is added to a cluster. Default True: a program with one manager works at once. Set it to False in a program
    that finds out the members by itself: if the program found none, a second cluster would begin. The command `serve`
    has the other default: it begins a cluster of one only with `--bootstrap`. No
    effect if `members` names others, or if the directory is already part of a cluster."""
    admin: bool = True
    """Answer the command line on admin.sock (mode 0600) in the data directory. Default True: without it no command
    reaches a manager in another program."""
    metrics_listen: str | None = None
    """HOST:PORT for the pages /livez, /readyz, /status and /metrics over plain HTTP (docs/health.md), IPv6 as
    [::1]:9090; 0.0.0.0 and [::] are every address of the host. Whoever reaches the port can read the pages, which have
    no entities and no secrets, and can change nothing. Default None: the pages are on the admin socket alone."""
    insecure_plaintext: bool = False
    """True: links between managers are plain TCP, so everybody with access to `listen` can read everything and act as a
    member. For tests, and for networks that are encrypted and closed by other means; every manager of the cluster needs
    it. Default False: links are TLS, with the key and certificate in data_dir/tls."""
    join: str | os.PathLike[str] | None = None
    """A join file (`warren-raft cert issue`) with this manager's key and certificate. They are copied to data_dir/tls
    if that is missing or has an older certificate, also while the manager runs. Default None: the files in data_dir/tls
    are used. If there are none, and all addresses are on loopback, this user's CA on this host issues a certificate
    automatically."""
    heartbeat_interval_seconds: float = 0.2
    """How often a leader sends the others a heartbeat: seconds above 0. Default 0.2: an election timeout has five of
    them, so a few that are late cause no election, and a manager that nobody calls uses little processor time."""
    election_timeout_seconds: float = 1.0
    """How long a follower waits for a message of its leader before it asks for an election: at least twice
    `heartbeat_interval_seconds`. The wait is drawn from this value to twice this value, so that the followers do not
    ask at once. Default 1.0: a leader that died is replaced within a few seconds, and a shorter pause of the network or
    of a process costs no leader."""
    checkpoint_interval_seconds: float = 30.0
    """How often the state database is synced to disk: seconds above 0. The log makes writes durable; this interval
    bounds how much of the log is replayed after a crash of the machine. Default 30: the sync is rare beside the syncs
    of the log."""
    disk_reserve_bytes: int = 64 * 1024 * 1024
    """With fewer free bytes on its disk, a manager is low on space: 0 or more. If such managers are a majority, creates
    and updates are refused (StorageFull) and deletes go on. The reserve is for the log of deletes, and for writes on
    their way. Default 64 MiB: four segments of the log."""
    quota_bytes: int = MAX_QUOTA_BYTES
    """If its database uses more bytes, a manager is low on space too, with the same consequences: 1 to 32 GiB. The
    history of changes, which has its own bound (32 MiB), is not counted. Default 32 GiB: half of the address space of a
    database; the other half is for deletes, and for pages that open views keep."""
    snapshot_after_bytes: int = 32 * 1024 * 1024
    """A snapshot of the state is taken, and the log compacted, when the log has grown by so many bytes, or by the size
    of the state if that is more: 0 or more. Default 32 MiB: two segments of the log."""
    queue_limit: int = 10_000
    """How many writes may be on their way: 1 to 1,000,000, but never more than 16,384, because a session remembers no
    more. Further writes are held until their deadline. Of writes with a future (`batch(wait=False)`) 16,384 are held,
    or 256 MiB, and the next one fails at once. Default 10,000: 10 MiB of writes of 1 KiB."""
    backup_dir: str | os.PathLike[str] | None = None
    """Where this manager saves backups while it leads: warren-TIME-INDEX.mdb, verified snapshots. The directory is made
    (mode 0700) if it does not exist; its parent must exist. Default None: no backups, because a backup belongs on
    another disk, which only the operator knows."""
    backup_every_seconds: float = 3600.0
    """The time between two backups: seconds above 0. No backup is made while nothing changes. Default 3600: at most the
    writes of an hour are missing in the newest backup."""
    backup_keep: int = 24
    """How many of the newest backups of this cluster are kept: 1 to 100,000. No other file is removed, but those
    of the continuous backup that no kept backup needs. Default 24: those of a day."""
    backup_continuous: bool = False
    """Also write every committed entry to the backup directory, about a second after its commit, so that
    `snapshot restore --to-revision` brings back any revision since the oldest backup. The entries are removed with the
    backups that they follow. Default False: it writes as many bytes as the log, and keeps them for `backup_keep`
    backups."""
    backup_command: Sequence[str] = ()
    """A command that runs after each backup, for instance to copy the file to another host: a program and its
    arguments. The path of the file is added as the last argument, and facts about it are in the environment
    (docs/backups.md). No shell reads it. It may run for `backup_every_seconds`, at least for ten minutes. If it fails,
    that is an alarm, and it runs again every minute. Default (): none."""
    backup_alarm_seconds: float | None = None
    """If changes have been in no backup for more seconds than this, that is an alarm (backup-old): at least
    `backup_every_seconds` without `backup_continuous`. Default None: twice `backup_every_seconds` and one minute, so
    one backup may be late; with `backup_continuous` one minute."""

    slow_write_seconds: float = 0.5
    """A write that takes longer gets a log line with its stages, and `warren-raft explain` shows it: seconds above 0.
    Default 0.5: a hundred times as long as a usual write on a good disk, and half of the shortest election."""

    watchdog_alarm_seconds: float = 5.0
    """If the raft thread has done nothing for so many seconds (above 0), that is an alarm, and `is_leader` is False
    until it goes on. Normally it does something 50 times a second. Default 5: the others have elected another leader by
    then."""
    watchdog_stop_seconds: float | None = 60.0
    """After so many seconds without progress the manager stops, with `failure` set and the thread's stack in the log:
    at least `watchdog_alarm_seconds`, or None: never. Default 60: a disk or a log handler that hangs for less than a
    minute costs no restart."""

    def __post_init__(self) -> None:
        check_node_id(self.node_id, field="node_id")
        self._fix_path("data_dir", self.data_dir)
        check_address(self.listen, field="listen")
        object.__setattr__(self, "members", self._checked_members())
        for name in (
            "write_timeout",
            "request_memory",
            "heartbeat_interval",
            "election_timeout",
            "checkpoint_interval",
            "slow_write",
        ):
            self._check_duration(f"{name}_seconds")
        for name in ("switch_interval_seconds", "watchdog_stop_seconds"):
            if getattr(self, name) is not None:
                self._check_duration(name)
        self._check_duration("watchdog_alarm_seconds")
        if self.watchdog_stop_seconds is not None and self.watchdog_stop_seconds < self.watchdog_alarm_seconds:
            raise _wrong("watchdog_stop_seconds", "must be at least watchdog_alarm_seconds")
        if self.election_timeout_seconds < 2 * self.heartbeat_interval_seconds:
            raise _wrong("election_timeout_seconds", "must be at least twice heartbeat_interval_seconds")
        for name in ("admin", "bootstrap", "insecure_plaintext", "backup_continuous"):
            if type(getattr(self, name)) is not bool:
                raise _wrong(name, f"must be true or false, not {getattr(self, name)!r}")
        for name in ("disk_reserve_bytes", "snapshot_after_bytes"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise _wrong(name, f"must be a whole number from 0 on, not {getattr(self, name)!r}")
        if type(self.quota_bytes) is not int or not 1 <= self.quota_bytes <= MAX_QUOTA_BYTES:
            raise _wrong("quota_bytes", f"must be a whole number from 1 to {MAX_QUOTA_BYTES}, not {self.quota_bytes!r}")
        if type(self.queue_limit) is not int or not 1 <= self.queue_limit <= MAX_QUEUE_LIMIT:
            raise _wrong("queue_limit", f"must be a whole number from 1 to {MAX_QUEUE_LIMIT}, not {self.queue_limit!r}")
        if self.metrics_listen is not None:
            split_address(self.metrics_listen, field="metrics_listen")
        if self.join is not None:
            self._fix_path("join", self.join, "file")
        self._check_backups()

    @property
    def directory(self) -> Path:
        """The data directory as a Path."""
        return Path(self.data_dir)

    @property
    def is_loopback(self) -> bool:
        """Whether every address, `listen` and the members', is on this host alone."""
        return all(is_on_loopback(address) for address in (self.listen, *self.members.values()))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **overrides: object) -> Config:
        """A Config from a TOML file: keys are the field names, `members` is a table of id = "host:port". A path
        may begin with `~`, and ids with dots need no quotes.

        Overrides, given by field name, win over the file; an override of None is ignored.
        Raises InvalidConfig for an unknown key or a wrong value, naming the file and the key, and OSError for a file
        that cannot be read.
        """
        settings = read_toml(path)
        own = settings.keys() - {name for name, value in overrides.items() if value is not None}
        settings.update({name: value for name, value in overrides.items() if value is not None})
        try:
            return cls.from_mapping(settings)
        except InvalidConfig as error:
            if error.reason == MISSING and error.field is not None:
                raise _wrong(error.field, f"{MISSING} in {os.fspath(path)}") from None
            if error.field is None or error.field.partition(".")[0] not in own:
                raise
            raise _wrong(error.field, f"{error.reason} (in {os.fspath(path)})") from None

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Config:
        """A Config from field names and values. Unlike the constructor, it names an unknown or missing setting.

        Raises InvalidConfig.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            meant = did_you_mean(unknown[0], known) or f"; known are {', '.join(sorted(known))}"
            raise _wrong(unknown[0], f"there is no such setting{meant}")
        for name in ("node_id", "data_dir", "listen", "members"):
            if name not in settings:
                raise _wrong(name, MISSING)
        return cls(**settings)

    def _check_backups(self) -> None:
        if self.backup_dir is not None:
            self._fix_path("backup_dir", self.backup_dir)
        self._check_duration("backup_every_seconds")
        if type(self.backup_keep) is not int or not 1 <= self.backup_keep <= MAX_BACKUPS:
            raise _wrong("backup_keep", f"must be a whole number from 1 to {MAX_BACKUPS}, not {self.backup_keep!r}")
        if self.backup_alarm_seconds is not None:
            self._check_duration("backup_alarm_seconds")
            if self.backup_alarm_seconds < self.backup_every_seconds and not self.backup_continuous:
                raise _wrong("backup_alarm_seconds", "must be at least backup_every_seconds")
        self._fix_command()
        needing = ("every_seconds", "keep", "alarm_seconds", "command", "continuous")
        for name in (f"backup_{each}" for each in needing):
            if self.backup_dir is None and getattr(self, name) != getattr(Config, name):
                raise _wrong(name, "needs backup_dir: without one no backup is made")

    def _fix_command(self) -> None:
        """The program of `backup_command` must be the same after a chdir too, if its name has a directory."""
        command: object = self.backup_command
        if not isinstance(command, list | tuple) or not all(isinstance(word, str) for word in command):
            raise _wrong("backup_command", f"must be a list of a program and its arguments, not {command!r:.80}")
        if any("\0" in word for word in command) or (command and not command[0]):
            raise _wrong("backup_command", "needs the name of a program, and no argument with a zero byte")
        object.__setattr__(self, "backup_command", tuple(command))
        if command and "/" in command[0]:
            program = absolute(os.path.expanduser(command[0]))
            object.__setattr__(self, "backup_command", (program, *command[1:]))

    def _fix_path(self, field: str, value: object, kind: str = "directory") -> None:
        """Make the name absolute: every part of a manager must mean the same place, even after a chdir."""
        name = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(name, str) or not name:
            raise _wrong(field, f"must be the name of a {kind}, not {value!r}")
        if "\0" in name:
            raise _wrong(field, "holds a zero byte")
        try:
            object.__setattr__(self, field, absolute(name))
        except FileNotFoundError as error:
            raise _wrong(field, f"{name!r}: {error.strerror}") from None

    def _check_duration(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise _wrong(name, f"must be a number of seconds above 0, not {value!r}")

    def _checked_members(self) -> Mapping[str, str]:
        check_members(self.members)
        own = self.members.get(self.node_id)
        if own is None:
            raise _wrong("members", f"must contain this manager, {self.node_id}")
        if own != self.listen:
            raise _wrong("members", f"says that {self.node_id} is at {own}, but it listens on {self.listen}")
        return FrozenMap(self.members)


def check_members(members: object) -> None:
    """Check a table of id to address: each id and address is valid, and each address is there once. Raises
    InvalidConfig."""
    if not isinstance(members, Mapping):
        raise _wrong("members", f"must map ids to addresses, not {members!r}")
    owners: dict[str, str] = {}
    for node_id, address in members.items():
        check_node_id(node_id, field="members")
        check_address(address, field=f"members.{node_id}")
        if address in owners:
            raise _wrong("members", f"{owners[address]} and {node_id} share the address {address}")
        owners[address] = node_id


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a TOML file by field name, for `Config.from_mapping`. The values are not checked.

    Raises InvalidConfig for a file that is not TOML, OSError for a file that cannot be read.
    """
    import tomllib

    with open(path, "rb") as file:
        data = file.read(TOML_BYTES_MAX + 1)
    if len(data) > TOML_BYTES_MAX:
        raise InvalidConfig(f"{os.fspath(path)} has more than {TOML_BYTES_MAX} bytes")
    try:
        settings: dict[str, Any] = tomllib.loads(data.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError:
        raise InvalidConfig(f"{os.fspath(path)} is not UTF-8 text") from None
    except ValueError as error:  # a TOMLDecodeError is one, and so is the error for too many digits
        raise InvalidConfig(f"{os.fspath(path)} is not TOML: {error}") from None
    except RecursionError:
        raise InvalidConfig(f"{os.fspath(path)} is nested too deeply") from None
    if _is_deep(settings):
        raise InvalidConfig(f"{os.fspath(path)} is nested too deeply")
    for name in ("data_dir", "backup_dir", "join"):
        if isinstance(settings.get(name), str):
            settings[name] = os.path.expanduser(settings[name])
    if isinstance(settings.get("members"), dict):
        settings["members"] = _with_flat_ids(settings["members"], os.fspath(path))
    return settings


def _is_deep(value: object) -> bool:
    """Whether tables and lists are nested at more than TOML_DEPTH_MAX levels."""
    level = [value]
    for _ in range(TOML_DEPTH_MAX):
        nested = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [inner for each in nested for inner in each]
    return bool(level)


def _with_flat_ids(table: Mapping[str, object], path: str) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for id_, address in _flat(table):
        if id_ in members:
            raise _wrong(f"members.{id_}", f"is given twice (in {path})")
        members[id_] = address
    return members


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Join the parts of ids: an id may have dots, and TOML reads a key with dots and without quotes as nested
    tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_node_id(node_id: object, *, field: str = "node_id") -> str:
    """The id if it is valid: 1 to 64 of A-Z a-z 0-9 . _ -, and neither '.' nor '..'. Else raises InvalidConfig."""
    if not isinstance(node_id, str) or not _NODE_ID.match(node_id) or set(node_id) == {"."}:
        raise _wrong(field, f"{node_id!r} is not a node id (1 to {MAX_NODE_ID_LENGTH} of A-Z a-z 0-9 . _ -)")
    if len(node_id) > MAX_NODE_ID_LENGTH:
        raise _wrong(field, f"an id of {len(node_id)} characters; at most {MAX_NODE_ID_LENGTH} are allowed")
    return node_id


def split_address(address: object, *, field: str = "address") -> tuple[str, int]:
    """Host (without brackets) and port of "host:port" or "[ipv6]:port". Raises InvalidConfig."""
    if not isinstance(address, str):
        raise _wrong(field, f"{address!r} is not an address (host:port)")
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif not _HOST_NAME.match(host):
        host = ""
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise _wrong(field, f"{address!r} is not an address (host:port)")
    if not 1 <= int(port) <= 65_535:
        raise _wrong(field, f"{address!r}: a port is a number from 1 to 65535")
    return host, int(port)


def check_address(address: object, *, field: str = "address") -> str:
    """The address, if a manager can be reached there: "host:port" or "[ipv6]:port". Raises InvalidConfig."""
    host, port = split_address(address, field=field)
    if _is_of_no_host(host):
        raise _wrong(field, f"other managers cannot reach {host}: name this host's own, as 192.0.2.1:{port}")
    assert isinstance(address, str)  # split_address has checked it
    return address


def _is_of_no_host(host: str) -> bool:
    """Whether it stands for all addresses of a host, or for several hosts (multicast, broadcast)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_unspecified or address.is_multicast or address == _BROADCAST


def is_on_loopback(address: str) -> bool:
    """Whether an address ("host:port") is on this host alone. Raises InvalidConfig."""
    return _is_loopback(split_address(address)[0])


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may lead to another host tomorrow


def _wrong(field: str, reason: str) -> InvalidConfig:
    return InvalidConfig(reason, field=field)
