"""`warren-raft snapshot …`: save the state of a manager as one file, look into such a file, prove it.

The format and the proof are in warren_raft/snapshots. Invariant: a file under the name it was asked for is whole, its
owner's alone and on disk; nothing that was there is replaced.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

import click

from .common import WarrenGroup, cell, manager, print_json, wants_json
from .data import progress

if TYPE_CHECKING:
    from warren_raft.snapshots.file import Manifest

STEPS: Final = 1_000  # of the bar that shows a verification


@click.group("snapshot", cls=WarrenGroup)
def snapshot() -> None:
    """Save, inspect and verify snapshots.

    A snapshot is one file with all that a manager has stored, secrets included, and the hash to prove it.

    \b
    Example: warren-raft snapshot save warren.snapshot --data-dir data/m1
    """


# ---------------------------------------------------------------------------------------------- save


@snapshot.command("save")
@click.argument("target", type=click.Path(), metavar="FILE")
def save(target: str) -> None:
    """Save the state of a running manager.

    Works on any manager, and without a quorum; then the file says so. The manager verifies every record before it
    sends the file. FILE holds secrets: it is readable by its owner only, it appears under its name when it is
    complete and on disk, and a file that is there already is never replaced.

    \b
    Example: warren-raft snapshot save warren.snapshot --data-dir data/m1
    """
    from warren_raft.snapshots.saving import new_file, require_hash

    with new_file(target) as part:
        _receive(part, target)
        manifest = require_hash(part)
    if not manifest.quorum:
        click.echo(
            f"warren-raft: {manifest.node_id} had no quorum: the cluster may have stored more than {target} holds",
            err=True,
        )
    if wants_json():
        print_json(manifest_json(manifest))
    else:
        size = manifest.size_bytes / 1e6
        click.echo(f"saved index {manifest.index}, revision {manifest.revision}, to {target} ({size:.1f} MB)")


def _receive(part: str, target: str) -> None:
    from warren_raft.errors import StorageFull

    with manager().snapshot() as (size, chunks):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file, progress("saving", size) as advance:
            try:
                for chunk in chunks:
                    _write_all(file.fileno(), chunk)
                    advance(len(chunk))
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageFull(f"{target}: no space left for the snapshot") from error
                raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# ---------------------------------------------------------------------------------------------- inspect, verify


@snapshot.command("inspect")
@click.argument("file", type=click.Path(), metavar="FILE")
def inspect(file: str) -> None:
    """Show what a snapshot says of itself.

    From its last page alone, at once: whether the rest is whole, `verify` tells.

    \b
    Example: warren-raft snapshot inspect warren.snapshot -o json
    """
    from warren_raft.snapshots.file import read_manifest

    _print_manifest(read_manifest(file))


@snapshot.command("verify")
@click.argument("file", type=click.Path(), metavar="FILE")
def verify(file: str) -> None:
    """Prove that a snapshot is whole.

    Its hash, the structure of the database, its digest, every record of it and every index. Exit code 3 on any
    damage.

    \b
    Example: warren-raft snapshot verify warren.snapshot
    """
    from warren_raft.snapshots.verification import verify as prove

    with progress("verifying", STEPS) as advance:
        shown = 0

        def report(share: float) -> None:
            nonlocal shown
            steps = int(share * STEPS)
            advance(steps - shown)
            shown = steps

        manifest = prove(file, progress=report)
    if wants_json():
        print_json(manifest_json(manifest))
    else:
        entities = sum(manifest.counts.values())
        click.echo(
            f"{file} is sound: index {manifest.index}, revision {manifest.revision}, {entities} entities, "
            f"digest {manifest.digest}"
        )


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """What a snapshot says of itself, as the commands print it."""
    return manifest.to_json()


def _print_manifest(manifest: Manifest) -> None:
    values = manifest_json(manifest)
    if wants_json():
        print_json(values)
        return
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {cell(value)}")
