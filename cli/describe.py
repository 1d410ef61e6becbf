"""`warren-raft describe`: what the directory of a stopped manager holds.

What is read is in warren_raft/describing.py; it is only printed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import WarrenCommand, data_dir, print_json, wants_json
from .tables import print_fields, print_table

if TYPE_CHECKING:
    from warren_raft.describing import Description


@click.command("describe", cls=WarrenCommand)
@click.argument("directory", metavar="DIR", required=False)
def describe(directory: str | None) -> None:
    """Show what a stopped manager's directory holds.

    Whose it is, of which cluster, how far its log and its state reach, and the members. Nothing is changed. Without DIR
    it is the directory of --data-dir. For a running manager see `status`.

    \b
    Example: warren-raft describe data/m1 -o json
    """
    from warren_raft.describing import describe as read

    description = read(directory or data_dir())
    if wants_json():
        print_json(description.to_json())
    else:
        print_description(description)


def print_description(description: Description) -> None:
    """Simple values as lines, the members as a table."""
    values = description.to_json()
    members = values.pop("members")
    print_fields(values)
    click.echo()
    print_table(["id", "address", "voter"], [[m["id"], m["address"], m["voter"]] for m in members])
