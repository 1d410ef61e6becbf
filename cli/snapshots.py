"""`warren-raft snapshot …`: save the state of a manager as one file, inspect it, verify it, restore it.

Not here: the format and the verification (warren_raft/snapshots), the checks of a restore
(warren_raft/recovery/restore.py).
Invariant: a file under its final name is complete, readable by its owner only, and on disk; no file is replaced.
"""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import click

from warren_raft.disk.files import OS_FILES
from warren_raft.disk.outputs import is_stdout
from warren_raft.support.wording import counted, in_units

from . import snapshot_contents, snapshot_drill
from .common import (
    MemberType,
    NodeIdType,
    RevisionType,
    ShowingCommand,
    WarrenGroup,
    data_dir,
    manager,
    print_json,
    setting_problem,
    wants_json,
    wants_wide,
)
from .data import progress
from .recovery import print_restored, shares
from .snapshot_contents import FILE, no_directory
from .tables import print_fields, say, with_units

if TYPE_CHECKING:
    from warren_raft.snapshots.file import SnapshotInfo


@click.group("snapshot", cls=WarrenGroup)
def snapshot() -> None:
    """Save, inspect, verify and restore snapshots, and read the entities in them.

    A snapshot is one file with the whole state of a manager, including secrets, and the hash to verify it.

    \b
    Example: warren-raft snapshot save warren.snapshot --data-dir data/m1
    """


# ---------------------------------------------------------------------------------------------- save


@snapshot.command("save")
@click.argument("target", type=FILE, metavar="FILE")
def save(target: str) -> None:
    """Save the state of a running manager.

    Works on any manager, also without a quorum; then the file says so. The manager verifies every record before it
    sends the file. FILE holds secrets: it is readable by its owner only, and appears under its name when it is complete
    and on disk. An existing file is never replaced. FILE may be a device or a FIFO.

    \b
    Example: warren-raft snapshot save warren.snapshot --data-dir data/m1
    """
    from warren_raft.snapshots.file import TRAILER_BYTES
    from warren_raft.snapshots.saving import new_file, require_hash

    if target == "-":
        raise click.UsageError(
            f"{target!r} is not the name of a file; a snapshot cannot go to stdout: name a file or /dev/stdout"
        )
    with new_file(target) as part:
        _receive(part, target)
        manifest = require_hash(part)
    if not manifest.quorum:
        say(
            f"warren-raft: {manifest.node_id} had no quorum: the cluster may have stored more than {target} holds",
            err=True,
        )
    if is_stdout(target):
        return
    if wants_json():
        print_json(manifest_json(manifest))
    else:
        size = in_units(manifest.size_bytes + TRAILER_BYTES)
        say(f"saved index {manifest.index}, revision {manifest.revision}, to {target} ({size})")


def _receive(part: str, target: str) -> None:
    from warren_raft.errors import StorageFull

    with (
        manager().snapshot() as (size, chunks),
        closing(OS_FILES.make_file(part, private=True)) as file,
        progress("saving", size) as advance,
    ):
        position = 0
        try:
            for chunk in chunks:
                file.write(position, chunk)
                position += len(chunk)
                advance(len(chunk))
            file.sync()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"{target}: no space left for the snapshot") from error
            raise


# ---------------------------------------------------------------------------------------------- inspect, verify


@snapshot.command("inspect", cls=ShowingCommand)
@click.argument("file", type=FILE, callback=no_directory, metavar="FILE")
def inspect(file: str) -> None:
    """Show the description in a snapshot's last page.

    It does not read the rest of the file: use `verify` for that.

    \b
    Example: warren-raft snapshot inspect warren.snapshot -o json
    """
    from warren_raft.snapshots.file import read_manifest

    values = manifest_json(read_manifest(file))
    if wants_json():
        print_json(values)
    else:
        values["verified"] = f"no, only the last page was read; type warren-raft snapshot verify {file}"
        print_fields(values if wants_wide() else [with_units(*field) for field in values.items()])


@snapshot.command("verify")
@click.argument("file", type=FILE, callback=no_directory, metavar="FILE")
def verify(file: str) -> None:
    """Verify that a snapshot is as it was saved.

    Checks its hash, the structure of the database, its digest, the members, every record and every index. Any damage
    gives exit code 3.

    \b
    Example: warren-raft snapshot verify warren.snapshot
    """
    from warren_raft.snapshots.verification import verify as prove

    with shares("verifying") as report:
        manifest = prove(file, progress=report)
    if wants_json():
        print_json(manifest_json(manifest))
    else:
        entities = counted(sum(manifest.counts.values()), "entity", "entities")
        say(
            f"{file} is sound: index {manifest.index}, revision {manifest.revision}, {entities}, "
            f"digest {manifest.digest}"
        )


# ---------------------------------------------------------------------------------------------- its entities

snapshot.add_command(snapshot_contents.list_)
snapshot.add_command(snapshot_contents.get)
snapshot.add_command(snapshot_contents.export)
snapshot.add_command(snapshot_drill.drill)


# ---------------------------------------------------------------------------------------------- restore


@snapshot.command("restore")
@click.argument("file", type=FILE, callback=no_directory, metavar="FILE")
@click.option("--node-id", required=True, type=NodeIdType(), metavar="ID", help="The member that DIR is for.")
@click.option(
    "--member",
    "members",
    type=MemberType(),
    metavar="ID=HOST:PORT",
    multiple=True,
    required=True,
    help="A manager of the new cluster, once for each, this one included; the same on each manager.",
)
@click.option("--cluster-id", metavar="ID", help="Only if FILE is a snapshot of this cluster.")
@click.option("--move-aside", is_flag=True, help="Move the present content of DIR to DIR/aside-TIME.")
@click.option(
    "--allow-rollback",
    is_flag=True,
    help="Restore although the present content of DIR is newer than FILE, or cannot be read.",
)
@click.option(
    "--to-revision",
    type=RevisionType(),
    metavar="N",
    help="Also replay the continuous backup beside FILE up to this revision; last: all of it.",
)
def restore(
    file: str,
    node_id: str,
    members: tuple[tuple[str, str], ...],
    cluster_id: str | None,
    move_aside: bool,
    allow_rollback: bool,
    to_revision: int | Literal["last"] | None,
) -> None:
    """Make DIR (--data-dir) the directory of a manager in a new cluster that begins with the content of FILE.

    Stop all managers. Run the command for each member with the same FILE and the same members, then start the managers:
    they form a new cluster with an id of its own when all of them have met. Its entities are those of FILE. New
    revisions are a thousand million higher, so that no watcher takes a new change for an old one. DIR must hold no
    manager's data. If the command refuses or is killed, DIR has its old content or all of the new. The steps are in
    docs/recovery.md.

    \b
    Example: warren-raft snapshot restore warren.snapshot --node-id m1 \\
                 --member m1=127.0.0.1:7946 --member m2=127.0.0.1:7947 \\
                 --member m3=127.0.0.1:7948 --data-dir data/m1
    """
    from warren_raft.errors import InvalidConfig
    from warren_raft.recovery.restore import restore as carry_out

    addresses: dict[str, str] = {}
    for member, address in members:
        if addresses.setdefault(member, address) != address:
            raise click.UsageError(f"--member: {member} has two addresses, {addresses[member]} and {address}")
    with shares("restoring") as report:
        try:
            restored = carry_out(
                file,
                data_dir(),
                node_id=node_id,
                members=addresses,
                cluster_id=cluster_id,
                move_aside=move_aside,
                allow_rollback=allow_rollback,
                to_revision=to_revision,
                progress=report,
            )
        except InvalidConfig as error:
            raise click.UsageError(setting_problem(error, {"node_id", "members", "data_dir"})) from None
    print_restored(restored)
    others = [member for member in restored.members if member != node_id]
    if others and not wants_json():
        are = "is" if len(others) == 1 else "are"
        say(f"The cluster forms when {', '.join(others)} {are} restored too, from the same file with the same members.")
    if not wants_json():
        say(next_step(data_dir(), node_id, addresses))


def next_step(directory: str, node_id: str, members: dict[str, str]) -> str:
    """The command that starts the restored manager, and the certificate that it will use."""
    from warren_raft.certificates import files as tls_files
    from warren_raft.config import is_on_loopback

    serve, join = f"warren-raft serve --data-dir {shlex.quote(directory)}", f"--join {node_id}.join"
    if tls_files.is_there(directory):
        return f"next: {serve}\n{node_id} uses the certificate in {os.path.join(directory, 'tls')}."
    if all(map(is_on_loopback, members.values())):
        return (
            f"next: {serve}\nAll addresses are on this host, so this user's CA on this host issues the certificate of "
            f"{node_id}. To use the certificate of another CA, add {join}."
        )
    return f"next: {serve} {join}\n{node_id} has no certificate here: `warren-raft cert issue` makes the join file."


def manifest_json(manifest: SnapshotInfo) -> dict[str, Any]:
    """The description of a snapshot, as the commands print it."""
    return manifest.to_json()
