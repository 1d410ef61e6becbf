"""Helpers for tests of the state machine: entries built from operations, and the whole contents of a database."""

from __future__ import annotations

from typing import Any

from warren_raft.fsm.machine import Result, StateMachine
from warren_raft.model.entities import (
    Container,
    Entity,
    Node,
    Secret,
    Service,
    TLSCertificate,
)
from warren_raft.store.command import Command, Operation, encode
from warren_raft.store.database import Database
from warren_raft.store.operations import delete_operation, put_operation
from warren_raft.store.tables import CA, KINDS, Kind
from warren_raft.store.transactions import SPACES

KIND_OF: dict[type[Any], Kind[Any]] = {kind.entity: kind for kind in KINDS if kind.entity is not None}

Contents = dict[str, dict[bytes, bytes]]


def put(entity: Entity | bytes, if_revision: int | None = None) -> Operation:
    """Stores an entity; bytes are the CA."""
    return put_operation(CA if isinstance(entity, bytes) else KIND_OF[type(entity)], entity, if_revision)


def delete(kind: Kind[Any], id: str, if_revision: int | None = None) -> Operation:  # noqa: A002
    return delete_operation(kind, id, if_revision)


def command(*operations: Operation, session: int = 0, sequence: int = 0, lowest: int = 0, **more: Any) -> bytes:
    """`more`: fence, request_key, forget_below, version."""
    return encode(Command(session, sequence, lowest, operations, **more))


def apply(machine: StateMachine, *commands: bytes, term: int = 1) -> list[Result]:
    """One entry."""
    return machine.apply(machine.applied_index + 1, term, commands)


def one(machine: StateMachine, *operations: Operation, term: int = 1, **more: Any) -> Result:
    """One entry of one command."""
    return apply(machine, command(*operations, **more), term=term)[0]


def contents(database: Database) -> Contents:
    """Every record of every sub-database, by name. It must be the same on every manager."""
    with database.read() as transaction:
        found = {kind.bucket: dict(transaction.items(kind)) for kind in KINDS}
        found |= {space: dict(transaction.scan(space)) for space in SPACES}
        for name, handle in database.index_handles.items():
            pairs = transaction.raw.cursor(handle)
            found[name] = {key + b"\0" + id_: b"" for key, id_ in pairs}
        return found


def some_entities() -> list[Entity | bytes]:
    """One entity of most kinds, and two of the kinds that are looked up by more than the id."""
    return [
        Node(id="n-1", hostname="alpha"),
        Service(id="s-1", name="web", image="nginx:1.25", replicas=3),
        Service(id="s-2", name="db"),
        Container(id="c-1", service_id="s-1", node_id="n-1"),
        Container(id="c-2", service_id="s-2", node_id="n-1"),
        Secret(id="x-1", name="password", data=b"\0\xff"),
        TLSCertificate(id="t-1", name="web", hosts=("a.example.com", "*.example.com")),
        b"the CA",
    ]
