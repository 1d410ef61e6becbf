"""`warren-raft snapshot drill`: restores a snapshot into a cluster that lasts for a moment, and says how that went.

Not here: the steps and the comparison (warren_raft/manager/drill.py). Invariant: a signal that ends the command also
removes the scratch directory, which holds secrets.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from warren_raft.support.wording import counted

from .common import WarrenCommand, print_json, refuse_file, wants_json
from .recovery import shares
from .signals import handled
from .snapshot_contents import file_argument
from .tables import print_table, say

if TYPE_CHECKING:
    from warren_raft.manager.drill import Drill


@click.command("drill", cls=WarrenCommand)
@file_argument
@click.option(
    "--scratch",
    metavar="DIR",
    help="Where the temporary directory is made.  [default: the directory for temporary files, TMPDIR]",
)
def drill(file: str, scratch: str | None) -> None:
    """Try a snapshot: restore it into a scratch cluster, and compare every entity.

    FILE is restored into a temporary directory, a manager is started on it and becomes the leader of a cluster of one,
    and every entity that it serves is compared with FILE. Then all of that is removed. The times of the steps tell how
    long a real restore on this host would take. No running cluster is touched. It needs free space of three times the
    size of FILE and 64 MiB.

    \b
    Example: warren-raft snapshot drill warren.snapshot
    """
    from warren_raft.manager.drill import drill as carry_out

    if scratch is not None:
        scratch = os.path.expanduser(scratch)
        refuse_file(scratch, "--scratch")
    logging.getLogger("warren_raft").addHandler(logging.NullHandler())  # a problem of that manager ends the drill
    # They end the command like Ctrl-C: as an exception, so that everything is removed.
    with handled({signal.SIGTERM: _exit, signal.SIGHUP: _exit}), shares("drilling") as report:
        done = carry_out(file, scratch=scratch, progress=report)
    if wants_json():
        print_json(drill_json(done))
        return
    print_table(("step", "seconds"), [(step, f"{each:.2f}") for step, each in done.seconds.items()])
    total = sum(done.seconds.values())
    entities = counted(sum(done.counts.values()), "entity", "entities")
    say(
        f"\n{file} can be restored: index {done.old.index}, revision {done.old.revision}, {entities}, all equal, "
        f"in {total:.1f} s"
    )


def drill_json(done: Drill) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "file": done.file,
        "seconds": {step: round(each, 3) for step, each in done.seconds.items()},
        "total_seconds": round(sum(done.seconds.values()), 3),
        "entities_digest": done.entities_digest,
        "counts": dict(done.counts),
        "from": done.old.to_json(),
    }


def _exit(number: int, _frame: object) -> None:
    sys.exit(128 + number)
