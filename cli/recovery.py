"""`warren-raft recover`: the quorum is lost for good, and one stopped survivor becomes a cluster of one.

Here: the question to the operator, and the printing. Not here: the checks and the work
(warren_raft/recovery/recover.py).
Invariant: nothing is changed before the operator has seen which writes may be missing and has said yes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.certificates import files
from warren_raft.raft.way_back import way_back
from warren_raft.support.wording import counted

from .common import WarrenCommand, data_dir, print_json, wants_json
from .data import progress
from .describe import description_json, print_description
from .tables import is_open_terminal, one_line, print_fields, say

if TYPE_CHECKING:
    from warren_raft.recovery.recover import Preview, Recovery, Survivor
    from warren_raft.recovery.replay import Replayed
    from warren_raft.recovery.restore import Restored

STEPS: Final = 1_000  # the length of a progress bar


@contextmanager
def shares(label: str) -> Iterator[Callable[[float], None]]:
    """A progress bar, as `progress` makes it. Yields a function that takes the share that is done, from 0 to 1."""
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
    help="Go on if a member seems to run, the manager was to be removed, or an entry is unreadable.",
)
@click.option("--dry-run", is_flag=True, help="Show the entries that it would keep, and change nothing.")
def recover(yes: bool, force: bool, dry_run: bool) -> None:
    """Make a new cluster of one from a stopped manager's data.

    Use it when the quorum is lost for good. Every entry in the manager's log is kept, also an entry that may not have
    been acknowledged. Writes that only the lost members held are gone. The cluster gets a new id, new revisions are a
    thousand million higher, and the old files stay in DIR/aside-TIME. Recover one survivor only. Then start it, and add
    the other managers on empty directories with `warren-raft members add`. If a snapshot is newer than the survivor,
    restore the snapshot instead. To compare survivors, use --dry-run: it shows the content and refuses in the same
    cases.

    \b
    Example: warren-raft recover --data-dir data/m1
    """
    from warren_raft.recovery.recover import Preview, Recovery

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
    say(f"{_missing(recovery)}\nThe digest differs from that of the old cluster on purpose.")
    say(f"next: start this manager as before; then, for each of the others: {_next(recovery)}")


def _next(recovery: Recovery) -> str:
    """The steps for the lost members. The certificate of this manager tells whether an operator issues them."""
    has_ca = files.is_there(recovery.data_dir) and not files.is_local(recovery.data_dir)
    return way_back("ID", "", "of an operator's CA" if has_ca else "", is_removed=True)


def _print_preview(preview: Preview) -> None:
    if wants_json():
        print_json(description_json(preview.description) | _taken_over(preview))
        return
    print_description(preview.description)
    say(f"\n{_missing(preview)}\nThis was a dry run: nothing was changed.")


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
    if not is_open_terminal(sys.stdin):
        raise RefusedForSafety(
            f"{recovery.data_dir} would become a cluster of one, without {_names(recovery)}: add --yes to do it"
        )
    say(f"{recovery.node_id}, of cluster {recovery.old_cluster_id}, has index {recovery.index}.", err=True)
    say(_missing(recovery), err=True)
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
    """The JSON form of a restored data directory."""
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
        "replayed": None if restored.replayed is None else _replayed_json(restored.replayed),
    }


def _replayed_json(replayed: Replayed) -> dict[str, Any]:
    return {
        "files": list(replayed.files),
        "index": replayed.index,
        "revision": replayed.revision,
        "until": replayed.until.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "warnings": list(replayed.warnings),
    }


def print_restored(restored: Restored) -> None:
    """Prints the new content of a data directory."""
    values = restored_json(restored)
    for warning in restored.replayed.warnings if restored.replayed is not None else ():
        say(f"warning: {one_line(warning)}", err=True)
    if wants_json():
        print_json(values)
        return
    old = restored.old
    values["from"] = (
        f"cluster {old.cluster_id or 'none'}, index {old.index}, revision {old.revision}, node {old.node_id}"
    )
    replayed = restored.replayed
    if replayed is None:
        del values["replayed"]
    else:
        values["replayed"] = (
            f"{counted(len(replayed.files), 'file')}, up to revision {replayed.revision}, index {replayed.index}, "
            f"written {values['replayed']['until']}"
        )
    print_fields(values)
