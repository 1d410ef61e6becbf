"""`warren-raft config show`: the settings that a start would use, and the place that gave each of them.

Not here: gathering them (settings.py). Invariant: nothing is started or changed, and `serve` with the same options uses
the settings that are shown.
"""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

import click

from warren_raft.config import Config

from .common import ShowingCommand, WarrenGroup, print_json, wants_json
from .settings import gathered, settings_options
from .tables import print_table


@click.group("config", cls=WarrenGroup)
def config() -> None:
    """The settings of a manager."""


@config.command("show", cls=ShowingCommand)
@settings_options
def show(**options: Any) -> None:
    """Show each setting that `serve` would use with these options, and where it comes from.

    Options decide first, then their environment variables (WARREN_BACKUP_DIR for --backup-dir), the file of --config,
    the join file, the data directory (its last start), and the default. Nothing is started.

    \b
    Example: warren-raft config show --config m1.toml --data-dir data/m1
    """
    found = gathered(options)
    values = {field.name: _shown(getattr(found.config, field.name)) for field in fields(Config)}
    if wants_json():
        print_json({name: {"value": value, "from": found.origins[name]} for name, value in values.items()})
        return
    rows = [(name, _text(value), found.origins[name]) for name, value in values.items()]
    print_table(("setting", "value", "from"), rows)


def _shown(value: object) -> Any:
    """The value as JSON has it."""
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, tuple):
        return list(value)
    return dict(value.items()) if hasattr(value, "items") else str(value)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{id_}={address}" for id_, address in value.items())
    if isinstance(value, list):
        return shlex.join(value) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
