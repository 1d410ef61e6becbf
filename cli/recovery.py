"""`warren-raft recover`: the quorum is lost for good, and one stopped survivor becomes a cluster of one.

What is refused and done is in warren_raft/restoring.py; here are the question before it and what is printed after.
Invariant: nothing is changed before the operator has read what may be missing and said yes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.wording import counted

from .common import WarrenCommand, data_dir, print_json, wants_json
from .data import progress
from .describe import print_description
from .tables import print_fields

if TYPE_CHECKING:
    from warren_raft.restoring import Preview, Recovery, Restored, Survivor

STEPS: Final = 1_000  # of a bar that shows shares


@contextmanager
def shares(label: str) -> Iterator[Callable[[float], None]]:
    """A progress bar as of `progress`, told the share that is done."""
    shown = 0
    with progress(label, STEPS) as advance:

        def report(share: float) -> None:
            nonlocal shown
            steps = int(share * STEPS)
            advance(steps - shown)
            shown = steps

        yield report


@click.command("recover", cls=WarrenCommand)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force",
    is_flag=True,
    help="Also if a member seems up, it was to be removed, or an entry is unreadable.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would take over, and change nothing.")
def recover(yes: bool, force: bool, dry_run: bool) -> None:
    """Turn a stopped manager's data into a new cluster of one.

    For when the quorum is lost for good. Everything that its log holds is taken over, also what is not known to be
    acknowledged; what only the lost members held is gone. The cluster gets a new id, revisions go on a thousand million
    further, and the old files stay in DIR/aside-TIME. Recover one survivor only, start it, and add the others on empty
    directories with `members add`. If a snapshot is newer than the survivor, restore that instead. With `--dry-run`
    it says what there is and what it would refuse, so that survivors can be compared.

    \b
    Example: warren-raft recover --data-dir data/m1
    """
    from warren_raft.restoring import Preview, Recovery

    if dry_run:
        _print_preview(Preview(data_dir(), force=force))
        return
    with Recovery(data_dir(), force=force) as recovery:
        _confirm(recovery, yes)
        with shares("recovering") as report:
            restored = recovery.carry_out(report)
    if wants_json():
        print_json(restored_json(restored) | _taken_over(recovery))
        return
    print_restored(restored)
    click.echo(
        f"{_missing(recovery)}\nStart it as before, and add others on empty directories: members add ID=HOST:PORT."
    )


def _print_preview(preview: Preview) -> None:
    if wants_json():
        print_json(preview.description.to_json() | _taken_over(preview))
        return
    print_description(preview.description)
    click.echo(f"\n{_missing(preview)}\nThis was a dry run: nothing was changed.")


def _taken_over(survivor: Survivor) -> dict[str, Any]:
    return {
        "log_index": survivor.index,
        "log_term": survivor.term,
        "uncertain_entries": survivor.uncertain,
        "lost_members": sorted(survivor.others),
    }


def _confirm(recovery: Recovery, yes: bool) -> None:
    from warren_raft.errors import RefusedForSafety

    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedForSafety(
            f"{recovery.data_dir} would become a cluster of one, without {_names(recovery)}: add --yes if that is meant"
        )
    click.echo(f"{recovery.node_id}, of cluster {recovery.old_cluster_id}, has index {recovery.index}.", err=True)
    click.echo(_missing(recovery), err=True)
    if not click.confirm("Make it a new cluster of one?", err=True):
        raise RefusedForSafety("nothing was changed")


def _missing(recovery: Survivor) -> str:
    taken = f"Everything up to index {recovery.index} of term {recovery.term} is taken over"
    if recovery.uncertain:
        entries = counted(recovery.uncertain, "entry that is", "entries that are")
        taken += f", of that {entries} not known to have been acknowledged"
    if not recovery.others:
        return f"{taken}."
    return f"{taken}. Writes that were acknowledged and that only {_names(recovery)} held may be missing."


def _names(recovery: Survivor) -> str:
    return ", ".join(sorted(recovery.others)) or "others"


def restored_json(restored: Restored) -> dict[str, Any]:
    """A directory that was made, as the commands print it."""
    return {
        "data_dir": restored.data_dir,
        "node_id": restored.node_id,
        "cluster_id": restored.cluster_id,
        "members": dict(restored.members),
        "index": restored.index,
        "revision": restored.revision,
        "digest": restored.digest,
        "counts": dict(restored.counts),
        "aside": restored.aside,
        "from": restored.old.to_json(),
    }


def print_restored(restored: Restored) -> None:
    """What a directory holds now."""
    values = restored_json(restored)
    if wants_json():
        print_json(values)
        return
    old = restored.old
    values["from"] = (
        f"cluster {old.cluster_id or 'none'}, index {old.index}, revision {old.revision}, node {old.node_id}"
    )
    print_fields(values)
