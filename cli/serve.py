"""`warren-raft serve`: one manager in the foreground, from its start to a clean end.

Here: signals, logging, and the wait until the manager can serve. Not here: the manager itself (`ReplicatedStore`).
Invariant: SIGTERM and SIGINT close the store and give exit code 0; a manager that stops by itself never gives 0.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.certificates.join_files import JoinFile
from warren_raft.config import (
    MAX_BACKUPS,
    Config,
    read_toml,
)
from warren_raft.errors import (
    Closed,
    InvalidConfig,
    RefusedForSafety,
    Unavailable,
)
from warren_raft.support.core_dumps import forbid_core_dumps
from warren_raft.support.log_lines import log_event, word

from .common import (
    DATA_DIR_VARIABLE,
    DurationType,
    MemberType,
    WarrenCommand,
    WholeNumberType,
    named_data_dir,
    setting_problem,
)

if TYPE_CHECKING:
    from warren_raft.manager.store import ReplicatedStore

log = logging.getLogger(__name__)

OPTIONS: Final[Mapping[str, str]] = {
    "node_id": "--node-id ID",
    "listen": "--listen HOST:PORT",
    "members": "--member ID=HOST:PORT (once for each initial member)",
    "data_dir": f"--data-dir DIR (or set {DATA_DIR_VARIABLE})",
}
"""The settings that a manager must have -> the options that give them."""
IN_JOIN_FILE: Final = frozenset({"node_id", "listen", "members"})
EXAMPLE: Final = (
    "warren-raft serve --node-id m1 --listen 127.0.0.1:7946 --member m1=127.0.0.1:7946 --bootstrap --data-dir data/m1"
)
POLL_SECONDS: Final = 0.2  # the longest time until a signal is noticed
STILL_WAITING_SECONDS: Final = 10.0  # the time between two log lines of a manager without a leader


@click.command("serve", cls=WarrenCommand)
@click.option("--node-id", metavar="ID", help="This manager's id, unique in the cluster.")
@click.option("--listen", metavar="HOST:PORT", help="The address where the other managers reach this manager.")
@click.option(
    "--member",
    "members",
    type=MemberType(),
    metavar="ID=HOST:PORT",
    multiple=True,
    help="An initial member, once for each, this manager included. On later starts, further addresses of members.",
)
@click.option(
    "--join",
    metavar="FILE",
    help="This manager's join file (`warren-raft cert issue`): id, address, members, key, certificate. Options "
    "override it.",
)
@click.option(
    "--bootstrap",
    is_flag=True,
    help="Begin a cluster of one: --member names only this manager, and its directory is empty. Without it the manager "
    "waits to be added. (In Python Config.bootstrap is True by default.)",
)
@click.option(
    "--insecure-plaintext",
    is_flag=True,
    help="Links without TLS: every process that reaches the port can read everything and act as a member.",
)
@click.option(
    "--backup-dir",
    metavar="DIR",
    help="While this manager leads, save verified snapshots there at regular times, if something changed. The parent "
    "of DIR must exist.",
)
@click.option(
    "--backup-every",
    type=DurationType(),
    metavar="TIME",
    help="The time between backups: 90s, 15m, 1h, 1d.  [default: 1h]",
)
@click.option(
    "--backup-keep", type=WholeNumberType(1, MAX_BACKUPS), metavar="N", help="Keep the newest N backups.  [default: 24]"
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Settings in TOML, under the names of warren_raft.Config. Options override them.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The lowest level that is logged to stderr.",
)
def serve(
    node_id: str | None,
    listen: str | None,
    members: tuple[tuple[str, str], ...],
    join: str | None,
    bootstrap: bool,
    insecure_plaintext: bool,
    backup_dir: str | None,
    backup_every: float | None,
    backup_keep: int | None,
    config_file: str | None,
    log_level: str,
) -> None:
    """Run one manager in the foreground.

    When the manager can serve, it prints one line `ready node_id=… listen=… leader=…` on stdout. It waits for that
    without a limit. SIGTERM or Ctrl-C hands leadership over and closes cleanly. SIGHUP makes it look for a newer
    certificate. A manager that ran before starts again with --data-dir alone: its id, address, members and certificate
    are in its directory. Without --join every address must be on loopback, unless the directory has a certificate.

    \b
    Example: warren-raft serve --join m1.join --data-dir data/m1
    Example: warren-raft serve --node-id m1 --listen 127.0.0.1:7946 --data-dir data/m1 \\
                 --member m1=127.0.0.1:7946 --member m2=127.0.0.1:7947 --member m3=127.0.0.1:7948
    """
    _log_to_stderr(log_level)
    config = _config(
        config_file,
        join=None if join is None else os.path.expanduser(join),
        bootstrap=bootstrap or None,
        insecure_plaintext=insecure_plaintext or None,
        node_id=node_id,
        listen=listen,
        members=_mapping(members),
        data_dir=named_data_dir(),
        backup_dir=None if backup_dir is None else os.path.expanduser(backup_dir),
        backup_every_seconds=backup_every,
        backup_keep=backup_keep,
    )
    for option, value in (("--backup-every", backup_every), ("--backup-keep", backup_keep)):
        if value is not None and config.backup_dir is None:
            raise click.UsageError(f"{option} needs --backup-dir: without it no backup is made")
    if not forbid_core_dumps():
        text = "a core dump of this process would hold secrets: allow it to call prctl, or set LimitCORE=0"
        log_event(log, logging.WARNING, "core dumps not forbidden", text, node=config.node_id)
    from warren_raft.manager.store import ReplicatedStore

    with _Signals() as signals, ReplicatedStore(config) as store:
        if _wait_ready(store, signals):
            _say_ready(config, store.leader)
        while not signals.must_stop() and not store.wait_failed(POLL_SECONDS):
            if signals.take_hang_up():
                store.reload_certificate()
        failure = store.failure
        if failure is not None:
            raise failure
        log_event(log, logging.INFO, "stop requested", node=config.node_id, signal=signals.stopped_by)


def _say_ready(config: Config, leader: str | None) -> None:
    """Prints the line `ready …`. If stdout has no reader any more (a closed terminal or pipe), the manager goes on."""
    try:
        print(f"ready node_id={config.node_id} listen={config.listen} leader={leader}", flush=True)
    except OSError as error:
        log_event(log, logging.WARNING, "ready line not written", error, node=config.node_id)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the buffered line goes there at the end


def _config(config_file: str | None, **settings: object) -> Config:
    """The settings from the options, the file, the join file and the data directory; the first that has a setting
    decides. Raises UsageError for a setting that the operator has to correct."""
    given = {name: value for name, value in settings.items() if value is not None}
    typed = frozenset(given)
    from_join: dict[str, Any] = {}
    try:
        named = given if config_file is None else {**read_toml(config_file), **given}
        from_join = _from_join_file(named)
        given |= from_join
        given |= _from_directory({**named, **from_join})
        if named.keys() <= {field.name for field in fields(Config)}:  # else a name is wrong, which is the first to know
            _require_all({**named, **given}, config_file)
        if "bootstrap" not in named:
            given["bootstrap"] = False
        if config_file is not None:
            return Config.from_toml(config_file, **given)
        return Config.from_mapping(given)
    except InvalidConfig as error:
        text = setting_problem(error, typed)
        if (error.field or "").partition(".")[0] in from_join:
            text += f" (in {named['join']})"
        raise click.UsageError(text) from None


def _require_all(known: Mapping[str, object], config_file: str | None) -> None:
    """Raises UsageError, which names all the settings that are missing, the places that were looked at, and an
    example."""
    missing = [name for name in OPTIONS if name not in known]
    if not missing:
        return
    text = f"missing: {', '.join(OPTIONS[name] for name in missing)}"
    if config_file is not None:
        text += f"; {config_file} does not set them"
    directory = known.get("data_dir")
    if isinstance(directory, str):
        is_there = os.path.isdir(directory)
        text += f"; {directory} holds no manager's log" if is_there else f"; there is no directory {directory}"
        text += ", so no earlier start is known"
    if "join" not in known and IN_JOIN_FILE.intersection(missing):
        text += "; a join file (--join FILE) has the id, the address and the members too"
    raise click.UsageError(
        f"{text}; for instance{' --data-dir data/m1' if missing == ['data_dir'] else f': {EXAMPLE}'}"
    )


def _from_join_file(named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the join file, without those that were named. Empty if the file was removed after its use."""
    path, directory = named.get("join"), named.get("data_dir")
    if not isinstance(path, str):
        return {}
    from warren_raft.certificates.files import directory_of

    try:
        join = JoinFile.read(path)
    except FileNotFoundError:
        if isinstance(directory, str) and os.path.exists(directory_of(directory)):
            return {}
        raise click.UsageError(
            f"there is no join file {path}: copy it here from the host where warren-raft cert issue made it"
        ) from None
    members = dict(join.members)
    if named.get("node_id", join.node_id) == join.node_id:
        members[join.node_id] = named.get("listen", join.address)
    settings = {"node_id": join.node_id, "listen": members[join.node_id], "members": members}
    return {name: value for name, value in settings.items() if name not in named}


def _from_directory(named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the data directory has from an earlier start, without those that were named. The address of
    --listen also replaces this manager's old address among the members."""
    if {"node_id", "listen", "members"} <= named.keys() or not isinstance(named.get("data_dir"), str):
        return {}
    from warren_raft.data_dir.remembered import settings_of

    held = settings_of(named["data_dir"])
    if not held:
        return {}
    owner = held["node_id"]
    if named.get("node_id", owner) != owner:
        raise RefusedForSafety(
            f"{named['data_dir']} is the directory of {owner}, not of {named['node_id']}: name another --data-dir"
        )
    if "members" in named and owner in named["members"]:
        held["listen"] = named["members"][owner]
    if "listen" in named and "members" in held:
        held["members"][owner] = named["listen"]
    return {name: value for name, value in held.items() if name not in named}


def _mapping(members: tuple[tuple[str, str], ...]) -> dict[str, str] | None:
    """The --member options as a mapping. None if there are none: then the members of the file count."""
    mapping: dict[str, str] = {}
    for node_id, address in members:
        if mapping.setdefault(node_id, address) != address:
            raise click.UsageError(f"--member: {node_id} has two addresses, {mapping[node_id]} and {address}")
    return mapping or None


def _wait_ready(store: ReplicatedStore, signals: _Signals) -> bool:
    """Waits until the manager can serve. Returns False if it is told to stop, or fails, before that."""
    say_after = time.monotonic() + STILL_WAITING_SECONDS
    while not signals.must_stop() and store.failure is None:
        try:
            store.wait_ready(timeout=POLL_SECONDS)
        except Unavailable:
            if time.monotonic() >= say_after:
                text = store.waiting_for or "there is no leader yet, or the log is not applied yet"
                log_event(log, logging.WARNING, "still waiting", text, node=store.config.node_id)
                say_after += STILL_WAITING_SECONDS
        except Closed:
            return False
        else:
            return True
    return False


class _Signals:
    """SIGTERM and SIGINT ask for a clean end; a second signal ends the process at once. SIGHUP asks for a look at the
    certificate's files.

    The handlers run between any two steps of the main thread. So they take no lock and write nothing; they set
    attributes, which the main thread reads.
    """

    def __init__(self) -> None:
        self.stopped_by = ""
        """The name of the signal that asked for the end; empty before the signal."""
        self._hang_ups = self._seen_hang_ups = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_stop)
        self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hang_up)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def must_stop(self) -> bool:
        """Whether the process was asked to end."""
        return bool(self.stopped_by)

    def take_hang_up(self) -> bool:
        """Whether a SIGHUP came since the last call."""
        came = self._seen_hang_ups != self._hang_ups
        self._seen_hang_ups = self._hang_ups
        return came

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    def _on_hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self._hang_ups += 1


class KeyValueFormatter(logging.Formatter):
    """time=… level=… logger=… message="…" key=value … text="…": one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": json.dumps(getattr(record, "warren_event", None) or record.getMessage(), ensure_ascii=False),
            **{name: word(value) for name, value in getattr(record, "warren_keys", {}).items()},
        }
        if text := getattr(record, "warren_text", ""):
            parts["text"] = json.dumps(text, ensure_ascii=False)
        if record.exc_info:
            parts["traceback"] = json.dumps(self.formatException(record.exc_info), ensure_ascii=False)
        return " ".join(f"{name}={value}" for name, value in parts.items())


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
