"""`warren-raft snapshot list, get, export`: the entities in a snapshot, without a cluster.

Not here: verifying and opening the file (warren_raft/snapshots/contents.py), and the printing of entities
(entities.py, data.py). Invariant: nothing is printed from a file whose hash and digest are wrong, and the file is not
changed.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import click

from warren_raft.admin import operation
from warren_raft.snapshots.contents import opened_snapshot

from .common import IdType, KindType, ShowingCommand, WarrenCommand, note_outputs, print_json, wants_json
from .data import write_view
from .entities import checked_id, find_entity, print_entities, print_entity, show_option
from .tables import print_table

FILE: Final = click.Path(readable=False)  # opened later: an error then has its own exit code, not that of usage


def no_directory(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """A directory is a wrong name; the exit code of a damaged snapshot would mislead."""
    if os.path.isdir(value):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), value)
    return value


file_argument = click.argument("file", type=FILE, callback=no_directory, metavar="FILE")


@click.command("list", cls=ShowingCommand)
@file_argument
@click.argument("kind", type=KindType(), required=False)
@show_option
def list_(file: str, kind: Any, show: bool) -> None:
    """Print the entities of a kind that are in a snapshot; without KIND, how many there are of each kind.

    The file is verified first: its hash, the structure of the database and its digest.

    \b
    Example: warren-raft snapshot list warren.snapshot services
    """
    with opened_snapshot(file) as contents:
        counts, entities = contents.manifest.counts, None if kind is None else operation(contents, "list", kind)()
    if entities is not None:
        print_entities(kind, entities, show=show)
    elif wants_json():
        print_json(dict(counts))
    else:
        print_table(("kind", "entities"), list(counts.items()))


@click.command("get", cls=ShowingCommand)
@file_argument
@click.argument("kind", type=KindType(with_ca=True))
@click.argument("entity_id", type=IdType(), metavar="[ID]", required=False)
@show_option
def get(file: str, kind: Any, entity_id: str | None, show: bool) -> None:
    """Print one entity that is in a snapshot.

    `put` stores what this prints with -o json (for a secret or a certificate also with --show), so one entity comes
    back without a restore. The file is verified first: its hash, the structure of the database and its digest.

    \b
    Example: warren-raft snapshot get warren.snapshot service svc-1 -o json
    """
    entity_id = checked_id(kind, entity_id)
    with opened_snapshot(file) as contents:
        entity = find_entity(contents, kind, entity_id)
    print_entity(kind, entity, show=show)


@click.command("export", cls=WarrenCommand)
@file_argument
@click.option(
    "-o",
    "--output",
    "target",
    multiple=True,
    callback=note_outputs,
    metavar="OUT",
    help="The new file; - is stdout. table, wide and json mean the form of the result, as in every command (a file of "
    "that name: ./json).",
)
def export(file: str, target: str | None) -> None:
    """Write every entity that is in a snapshot to a file, in the form of `export`.

    OUT holds secrets: a new file is readable by its owner only, and appears under its name when it is complete. FILE is
    verified first: its hash, the structure of the database and its digest.

    \b
    Example: warren-raft snapshot export warren.snapshot -o state.jsonl
    """
    if not target:
        raise click.UsageError("name the new file: -o OUT")
    with opened_snapshot(file) as contents:
        write_view(target, contents.read())
