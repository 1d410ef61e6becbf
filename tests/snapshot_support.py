"""Helpers for tests of snapshots: a small state with a bit of everything, and files that change behind a snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.fsm_harness import apply, command, put, some_entities
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.fsm.digest import recompute
from warren_raft.fsm.machine import StateMachine
from warren_raft.model.entities import Container, Node
from warren_raft.raft.membership import Member, Membership
from warren_raft.snapshots.file import (
    TRAILER_BYTES,
    SnapshotInfo,
    make_trailer,
    read_manifest,
    write,
)
from warren_raft.store.command import Operation, Verb
from warren_raft.store.database import Database, WriteTransaction

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def members_of(cluster_id: str, index: int) -> bytes:
    """A list of one member."""
    return Membership(cluster_id, index, {"n1": Member("n1", "127.0.0.1:7946", "incarnation-1", voter=True)}).encode()


@contextmanager
def small_state(directory: Path, containers: int = 40) -> Iterator[Database]:
    """Entities of most kinds, a session, members and a history: some thirty pages."""
    with Database.open(directory, sync=False) as database:
        machine = StateMachine(database)
        machine.apply_membership(2, 1, "cluster-1", members_of("cluster-1", 2))
        apply(machine, command(Operation(Verb.OPEN_SESSION), session=7, sequence=1, lowest=1))
        for sequence, entity in enumerate(some_entities(), 2):
            apply(machine, command(put(entity), session=7, sequence=sequence, lowest=1))
        apply(machine, *(command(put(Container(id=f"c-{n:04}", service_id=f"s-{n % 9}"))) for n in range(containers)))
        yield database


def add_node(database: Database, id: str) -> None:  # noqa: A002
    """One entry more."""
    apply(StateMachine(database), command(put(Node(id=id))))


def snapshot_of(database: Database, path: Path, *, files: Files = OS_FILES) -> SnapshotInfo:
    """Written by the node n1 at NOON, with a quorum."""
    return write(database, path, created_at=NOON, node_id="n1", quorum=True, files=files)


def change(database: Database, do: Callable[[WriteTransaction], object], *, new_digest: bool = False) -> None:
    """Change the database as only damage, or an error in a program, would; `new_digest`: and make the digest fit."""
    with database.write() as transaction:
        do(transaction)
        if new_digest:
            transaction.move(transaction.position._replace(digest=recompute(transaction)))


def rehash(path: Path, data: bytes, **changes: object) -> None:
    """Make `data` the database in a snapshot file, and let its last page fit it: the work of somebody with intent."""
    from dataclasses import replace

    sha256 = hashlib.sha256(data).hexdigest()
    manifest = replace(read_manifest(path), size_bytes=len(data), sha256=sha256, **changes)  # type: ignore[arg-type]
    path.write_bytes(data + make_trailer(manifest))


def database_in(path: Path) -> bytearray:
    """The bytes of the database in a snapshot file."""
    return bytearray(path.read_bytes()[:-TRAILER_BYTES])
