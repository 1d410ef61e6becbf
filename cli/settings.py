"""The settings of a manager on the command line: from options, variables, a file, a join file and the data directory.

Lives here: the options of `serve` and `config show`, the order of the sources, and the errors about settings. Not here:
the settings themselves (warren_raft/config.py). Invariant: the first source that has a setting decides, and it is known
which one that was.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from warren_raft.certificates.join_files import JoinFile
from warren_raft.config import (
    MAX_BACKUPS,
    Config,
    read_toml,
)
from warren_raft.errors import InvalidConfig, RefusedForSafety

from .common import (
    DATA_DIR_VARIABLE,
    SETTING_OPTIONS,
    DurationType,
    MemberType,
    PathType,
    WholeNumberType,
    WordsType,
    is_data_dir_typed,
    named_data_dir,
    setting_problem,
)

C = TypeVar("C", bound=Callable[..., Any])

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
OPTION: Final = "option"
ENVIRONMENT: Final = "environment"
DEFAULT: Final = "default"


def variable_of(option: str) -> str:
    """The environment variable of an option: WARREN_BACKUP_DIR is that of --backup-dir."""
    return "WARREN_" + option.removeprefix("--").replace("-", "_").upper()


def _option(name: str, *more: str, **attributes: Any) -> Callable[[C], C]:
    return click.option(name, *more, envvar=variable_of(name), **attributes)


_OPTIONS: Final = (
    _option("--node-id", metavar="ID", help="This manager's id, unique in the cluster."),
    _option("--listen", metavar="HOST:PORT", help="The address where the other managers reach this manager."),
    _option(
        "--member",
        "members",
        type=MemberType(),
        metavar="ID=HOST:PORT",
        multiple=True,
        help="An initial member, once for each, this manager included. On later starts, further addresses of members.",
    ),
    _option(
        "--join",
        metavar="FILE",
        help="This manager's join file (`warren-raft cert issue`): id, address, members, key, certificate. Options "
        "override it.",
    ),
    _option(
        "--bootstrap",
        is_flag=True,
        help="Begin a cluster of one: --member names only this manager, and its directory is empty. Without it the "
        "manager waits to be added. (In Python Config.bootstrap is True by default.)",
    ),
    _option(
        "--insecure-plaintext",
        is_flag=True,
        help="Links without TLS: every process that reaches the port can read everything and act as a member.",
    ),
    _option(
        "--metrics-listen",
        metavar="HOST:PORT",
        help="The pages /metrics, /livez, /readyz and /status over plain HTTP, for Prometheus and for probes. They are "
        "on the admin socket too.",
    ),
    _option(
        "--backup-dir",
        metavar="DIR",
        help="While this manager leads, save verified snapshots there at regular times, if something changed. The "
        "parent of DIR must exist.",
    ),
    _option(
        "--backup-every",
        type=DurationType(),
        metavar="TIME",
        help="The time between backups: 90s, 15m, 1h, 1d.  [default: 1h]",
    ),
    _option(
        "--backup-keep",
        type=WholeNumberType(1, MAX_BACKUPS),
        metavar="N",
        help="Keep the newest N backups.  [default: 24]",
    ),
    _option(
        "--backup-continuous",
        is_flag=True,
        help="Also write every change to the backup directory, a second after it was made.",
    ),
    _option(
        "--backup-command",
        type=WordsType(),
        metavar="COMMAND",
        help="Run it after each backup, with the file's path as its last argument. No shell reads it.",
    ),
    _option(
        "--config",
        "config_file",
        type=PathType(exists=True, dir_okay=False),
        metavar="FILE",
        help="Settings in TOML, under the names of warren_raft.Config. Options override them.",
    ),
)


def settings_options(command: C) -> C:
    """Decorates a command with an option for each setting that the command line can give."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def no_options(config_file: str | None) -> dict[str, Any]:
    """The options of `settings_options` as they are if none is typed but `--config`."""
    return defaultdict(lambda: None, members=(), config_file=config_file)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The settings of a manager, and for each one the place that gave it: an option, a file, or DEFAULT."""

    config: Config
    origins: Mapping[str, str]


class _Source(NamedTuple):
    """A place that gives settings."""

    name: str
    settings: Mapping[str, Any]


def gathered(options: Mapping[str, Any]) -> Gathered:
    """The settings from the options of `settings_options` and their variables, the file, the join file and the data
    directory; the first that has a setting decides. Raises UsageError for a setting that the operator has to
    correct."""
    config_file = options["config_file"]
    typed = {
        "node_id": options["node_id"],
        "listen": options["listen"],
        "members": _mapping(options["members"]),
        "data_dir": named_data_dir(),
        "join": _expanded(options["join"]),
        "bootstrap": _flag(options, "bootstrap"),
        "insecure_plaintext": _flag(options, "insecure_plaintext"),
        "metrics_listen": options["metrics_listen"],
        "backup_dir": _expanded(options["backup_dir"]),
        "backup_every_seconds": options["backup_every"],
        "backup_keep": options["backup_keep"],
        "backup_command": options["backup_command"],
        "backup_continuous": _flag(options, "backup_continuous"),
    }
    given = {name: value for name, value in typed.items() if value is not None}
    from_environment = {
        name for name in given if _parameter_source(name.removesuffix("_seconds")) is ParameterSource.ENVIRONMENT
    }
    sources = [
        _Source(OPTION, {name: given[name] for name in given if name not in from_environment}),
        _Source(ENVIRONMENT, {name: given[name] for name in from_environment}),
    ]
    config = _config(config_file, sources)
    for name in ("backup_every", "backup_keep", "backup_command"):
        option = f"--{name.replace('_', '-')}"
        if options[name] is not None and config.backup_dir is None:
            raise click.UsageError(f"{option} needs --backup-dir: without it no backup is made")
    return Gathered(config, {field.name: _origin(field.name, sources) for field in fields(Config)})


def _parameter_source(parameter: str) -> ParameterSource | None:
    """None in a thread of `doctor`, which has none of these options."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.get_parameter_source(parameter)


def _flag(options: Mapping[str, Any], name: str) -> bool | None:
    """None if neither the option nor its variable gave it. The variable may say no."""
    return None if _parameter_source(name) is ParameterSource.DEFAULT else options[name]


def _origin(name: str, sources: Sequence[_Source]) -> str:
    source = next((source.name for source in sources if name in source.settings), DEFAULT)
    if source not in (OPTION, ENVIRONMENT):
        return source
    if name == "data_dir" and not is_data_dir_typed():
        return DATA_DIR_VARIABLE
    option = SETTING_OPTIONS.get(name, f"--{name.replace('_', '-')}")
    return option if source == OPTION else variable_of(option)


def _expanded(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)


def _config(config_file: str | None, sources: list[_Source]) -> Config:
    """The settings of the options and variables in `sources`, and of the other sources, which are appended to it."""
    typed = sources[0].settings
    from_join: dict[str, Any] = {}
    try:
        if config_file is not None:
            sources.append(_Source(config_file, read_toml(config_file)))
        named = _merged(sources)
        from_join = _from_join_file(named)
        sources.append(_Source(str(named.get("join")), from_join))
        sources.append(_Source(f"{named.get('data_dir')} (its last start)", _from_directory(_merged(sources))))
        if named.keys() <= {field.name for field in fields(Config)}:  # else a name is wrong, which is the first to know
            _require_all(_merged(sources), config_file)
        sources.append(_Source(DEFAULT, {"bootstrap": False}))
        if config_file is None:
            return Config.from_mapping(_merged(sources))
        from_others = {name: value for name, value in _merged(sources).items() if _origin(name, sources) != config_file}
        return Config.from_toml(config_file, **from_others)
    except InvalidConfig as error:
        text = setting_problem(error, typed)
        name = (error.field or "").partition(".")[0]
        if name not in typed and name in sources[1].settings:
            text = f"{_origin(name, sources)}: {error.reason}"
        node_id = sources[1].settings.get("node_id")
        if name == "members" and node_id is not None and error.reason.startswith("must contain this manager"):
            text += f" ({node_id} is from {variable_of('--node-id')})"
        if (error.field or "").partition(".")[0] in from_join:
            text += f" (in {named['join']})"
        raise click.UsageError(text) from None


def _merged(sources: Sequence[_Source]) -> dict[str, Any]:
    """The settings of all sources; the first one that has a setting decides."""
    return {name: value for source in reversed(sources) for name, value in source.settings.items()}


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
