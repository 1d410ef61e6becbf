"""`warren-raft describe`: prints the content of a stopped manager's data directory.

Not here: reading the directory (warren_raft/data_dir/description.py). Invariant: nothing in the directory is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.disk import last_failure

from .common import ShowingCommand, data_dir, print_json, refuse_file, wants_json, wants_wide
from .tables import print_fields, print_table, print_text, with_units

if TYPE_CHECKING:
    from warren_raft.data_dir.description import Description

MEMBER_COLUMNS: Final = ("id", "address", "standing")


@click.command("describe", cls=ShowingCommand)
@click.argument("directory", metavar="DIR", required=False)
def describe(directory: str | None) -> None:
    """Show the content of a stopped manager's directory.

    Shows the manager's id, its cluster, the last index of its log and of its state, and the members. It changes
    nothing. Without DIR it shows the directory of --data-dir. For a running manager use `status`.

    \b
    Example: warren-raft describe data/m1 -o json
    """
    from warren_raft.data_dir.description import describe as read

    if directory:
        refuse_file(directory, "DIR")
    description = read(directory or data_dir())
    if wants_json():
        print_json(description_json(description))
    else:
        print_description(description)


def description_json(description: Description) -> dict[str, Any]:
    """The JSON form of `describe`, and of `recover --dry-run`."""
    failure = last_failure.read(description.data_dir)
    return description.to_json() | {"last_failure": None if failure is None else failure.to_json()}


def print_description(description: Description) -> None:
    """Prints each simple value on a line, and the members as a table."""
    values = description.to_json()
    members, origin = values.pop("members"), values.pop("origin")
    if origin is not None:
        values["cluster_id"] = f"- (restored as {origin}; the cluster forms when its members have met)"
    failure = last_failure.read(description.data_dir)
    print_fields(values if wants_wide() else [with_units(*field) for field in values.items()])
    if failure is not None:
        click.echo()
        print_text(str(failure), indent=0)
    click.echo()
    print_table(MEMBER_COLUMNS, [[member[name] for name in MEMBER_COLUMNS] for member in members])
