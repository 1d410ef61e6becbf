"""The promises of writes, on the caller's side: an entity that can never be stored is refused before anything is sent,
and each call is one command, a batch too.

A fault that passes these checks is found by every manager's state machine at once. The effects of commands are tested
with fsm/.
"""

from __future__ import annotations

import inspect
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.direct_store import DirectStore
from warren_raft.errors import Closed, InvalidEntity, Misuse
from warren_raft.model.entities import (
    Container,
    Ingress,
    Network,
    Node,
    Secret,
    Service,
    TLSCertificate,
    Volume,
)
from warren_raft.store import codec
from warren_raft.store.command import (
    DELETE,
    INDEXED_ITEMS_MAX,
    PUT,
    Command,
    Operation,
    encode,
)
from warren_raft.store.database import Database
from warren_raft.store.interface import BaseStore, Batch, Writer
from warren_raft.store.operations import ENTITY_MAX_BYTES
from warren_raft.store.tables import (
    BY_NAME,
    CA,
    CA_ID,
    KINDS,
    Kind,
)

ENTITIES: dict[str, Any] = {
    "node": Node(id="x"),
    "service": Service(id="x"),
    "container": Container(id="x"),
    "secret": Secret(id="x"),
    "volume": Volume(id="x"),
    "network": Network(id="x"),
    "ingress": Ingress(id="x"),
    "tls_certificate": TLSCertificate(id="x"),
}
WRITES = [
    f"{verb}_{name}"
    for name in ENTITIES
    for verb in ("create", "update", "delete")
    if verb != "update" or name in ("node", "service", "container", "ingress", "tls_certificate")
] + ["save_ca"]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with DirectStore(Database.open(tmp_path, sync=False)) as opened:
        yield opened


def kind_of(method: str) -> Kind[Any]:
    return CA if method == "save_ca" else BY_NAME[method.partition("_")[2].removeprefix("tls_")]


def argument_of(method: str) -> Any:
    verb, _, name = method.partition("_")
    return b"ca" if verb == "save" else "x" if verb == "delete" else ENTITIES[name]


def test_the_store_has_the_48_operations() -> None:
    public = {name for name, _ in inspect.getmembers(BaseStore, inspect.isfunction) if not name.startswith("_")}
    reads = {name for name in public if name.startswith(("get_", "list_"))}
    writes = {name for name in public if name.startswith(("create_", "update_", "delete_", "save_"))}
    assert sorted(writes) == sorted(WRITES)
    assert len(reads) + len(writes) + len({"close"} & public) == 48
    assert public - reads - writes == {
        *("close", "batch", "read", "watch", "modify", "heartbeat", "last_heartbeat_age")
    }
    assert all(inspect.getdoc(getattr(BaseStore, name)) for name in public)


def test_the_updatable_kinds_are_those_of_the_table() -> None:
    assert {kind_of(method) for method in WRITES if method.startswith(("update", "save"))} == {
        kind for kind in KINDS if kind.updatable
    }


@pytest.mark.parametrize("method", WRITES)
def test_each_write_is_one_command_of_one_operation(store: DirectStore, method: str) -> None:
    argument, kind = argument_of(method), kind_of(method)
    entity = None if method.startswith("delete") else codec.encode(kind, argument)
    id_ = CA_ID if kind is CA else "x"
    assert getattr(store, method)(argument) == 1
    assert getattr(store, method)(argument, if_revision=1, timeout=5) == 2
    verb = DELETE if entity is None else PUT
    assert store.commands == [
        (Operation(verb, kind.number, id_, entity, None),),
        (Operation(verb, kind.number, id_, entity, 1),),
    ]
    with store.batch() as batch:
        assert getattr(batch, method)(argument, if_revision=2) is None
    assert store.commands[2] == (Operation(verb, kind.number, id_, entity, 2),)


def test_a_batch_has_every_write_operation() -> None:
    batch = {name for name, _ in inspect.getmembers(Batch, inspect.isfunction) if not name.startswith("_")}
    assert sorted(batch - {"require"}) == sorted(WRITES)
    for name in WRITES:
        of_batch = inspect.signature(getattr(Batch, name)).parameters
        of_store = inspect.signature(getattr(Writer, name)).parameters
        assert list(of_batch) == [name for name in of_store if name != "timeout"]


# ---- Refused before anything is sent.

BAD_WRITES: list[tuple[str, Any]] = [
    ("create_node", Node(id="")),
    ("create_node", Node(id="x" * 512)),
    ("create_node", Node(id="\ud800")),
    ("create_node", Node(id="x", role="king")),
    ("create_node", Node(id="x", address=5)),  # type: ignore[arg-type]
    ("create_node", Node(id="x", created_at=datetime(2025, 1, 1))),  # noqa: DTZ001
    ("create_node", Service(id="x")),
    ("create_node", None),
    ("create_node", {"id": "x"}),
    ("create_service", Service(id="x", name="n" * 512)),
    ("create_container", Container(id="x", node_id="n" * 512)),
    ("create_tls_certificate", TLSCertificate(id="x", hosts=("h" * 512,))),
    ("create_tls_certificate", TLSCertificate(id="x", hosts=("h",) * (INDEXED_ITEMS_MAX + 1))),
    ("create_secret", Secret(id="x", data=bytes(ENTITY_MAX_BYTES))),
    ("save_ca", "text"),
    ("save_ca", None),
    ("save_ca", bytes(ENTITY_MAX_BYTES)),
    ("delete_node", ""),
    ("delete_node", "x" * 512),
    ("delete_node", "é" * 256),
    ("delete_node", "\ud800"),
    ("delete_node", 5),
    ("delete_node", b"x"),
]


def test_a_batch_has_a_bounded_number_of_hosts(store: DirectStore) -> None:
    half = INDEXED_ITEMS_MAX // 2
    with store.batch() as batch:
        batch.create_tls_certificate(TLSCertificate(id="x", hosts=("h",) * half))
        batch.create_tls_certificate(TLSCertificate(id="y", hosts=("h",) * half))
        with pytest.raises(InvalidEntity, match="more than 32,768 hosts"):
            batch.create_tls_certificate(TLSCertificate(id="z", hosts=("h",)))
        assert len(batch) == 2


@pytest.mark.parametrize(("method", "argument"), BAD_WRITES)
def test_an_entity_that_can_never_be_stored_is_refused_before_it_is_sent(
    store: DirectStore, method: str, argument: Any
) -> None:
    with pytest.raises(InvalidEntity) as caught:
        getattr(store, method)(argument)
    assert caught.value.kind == kind_of(method).name
    assert isinstance(caught.value, ValueError)
    batch = store.batch()
    with pytest.raises(InvalidEntity), batch:
        getattr(batch, method)(argument)
    assert store.commands == []


@pytest.mark.parametrize("if_revision", [-1, 1.0, "1", True, 2**63])
def test_a_condition_is_a_revision(store: DirectStore, if_revision: Any) -> None:
    for method in ("create_node", "delete_node", "save_ca"):
        with pytest.raises(InvalidEntity, match="if_revision"):
            getattr(store, method)(argument_of(method), if_revision=if_revision)
    assert store.commands == []


def test_the_largest_entity_is_stored_and_one_byte_more_is_not(store: DirectStore) -> None:
    overhead = len(codec.encode(BY_NAME["secret"], Secret(id="x", data=bytes(100_000)))) - 100_000
    largest = Secret(id="x", data=bytes(ENTITY_MAX_BYTES - overhead))
    store.create_secret(largest)
    assert store.get_secret("x") == largest
    with pytest.raises(InvalidEntity, match=str(ENTITY_MAX_BYTES)):
        store.create_secret(Secret(id="x", data=largest.data + b"x"))


def test_the_longest_id_and_name_are_stored_and_found(store: DirectStore) -> None:
    longest = "é" * 255 + "x"
    store.create_service(Service(id=longest, name=longest))
    assert store.get_service(longest) == store.get_service_by_name(longest) == Service(id=longest, name=longest)
    store.delete_service(longest)
    assert store.list_services() == []


def test_a_written_entity_is_normalised_and_the_callers_revision_is_ignored(store: DirectStore) -> None:
    entity = Service(id="s", env=["A=b"], labels={"k": "v"}, revision=99)  # type: ignore[arg-type]
    revision = store.create_service(entity)
    read = store.get_service("s")
    assert (read.env, read.labels, read.revision) == (("A=b",), {"k": "v"}, revision)


# ---- Batches.


def test_a_batch_is_one_command_in_the_order_of_its_writes(store: DirectStore) -> None:
    with store.batch() as batch:
        batch.create_node(Node(id="a"))
        batch.delete_node("a")
        batch.create_node(Node(id="b"))
        assert len(batch) == 3
        assert store.commands == []
    assert batch.revision == 1
    assert [[(operation.verb, operation.id) for operation in command] for command in store.commands] == [
        [(PUT, "a"), (DELETE, "a"), (PUT, "b")]
    ]
    assert [node.id for node in store.list_nodes()] == ["b"]
    with pytest.raises(Misuse):
        _ = batch.future


def test_an_exception_in_the_block_sends_nothing(store: DirectStore) -> None:
    batch = store.batch()
    with pytest.raises(ZeroDivisionError), batch:
        batch.create_node(Node(id=str(1 / 0)))
    assert store.commands == []
    for attribute in ("revision", "future"):
        with pytest.raises(Misuse):
            getattr(batch, attribute)


def test_a_batch_is_used_once_and_within_its_block(store: DirectStore) -> None:
    batch = store.batch()
    with pytest.raises(Misuse):
        batch.create_node(Node(id="before"))
    with batch:
        batch.create_node(Node(id="within"))
    with pytest.raises(Misuse):
        batch.create_node(Node(id="after"))
    with pytest.raises(Misuse), batch:
        pass
    assert [node.id for node in store.list_nodes()] == ["within"]


def test_a_batch_without_writes_is_no_command(store: DirectStore) -> None:
    """A command without operations is a barrier; nobody asked for one."""
    store.create_node(Node(id="n"))
    with store.batch() as batch:
        pass
    with store.batch(wait=False) as unwaited:
        pass
    assert (batch.revision, unwaited.future.result(0), len(store.commands)) == (1, 1, 1)


def test_a_batch_that_does_not_wait_has_a_future(store: DirectStore) -> None:
    with store.batch(wait=False) as batch:
        batch.create_node(Node(id="n"))
    assert isinstance(batch.future, Future)
    assert batch.future.result(0) == 1
    with pytest.raises(Misuse, match="future"):
        _ = batch.revision


def delete_many(batch: Batch, count: int) -> None:
    for number in range(count):
        batch.delete_node(str(number))


@pytest.mark.slow
def test_a_batch_of_4_mib_is_sent_and_a_larger_one_is_not(store: DirectStore) -> None:
    def fill(batch: Batch, size: int) -> None:
        for number in range(4):
            batch.create_secret(Secret(id=str(number), data=bytes(size)))

    with store.batch() as batch:
        fill(batch, ENTITY_MAX_BYTES - 200)
    sent = encode(Command(0, 0, 0, store.commands[0]))
    assert 4 * ENTITY_MAX_BYTES - 1000 < len(sent) <= 4 * ENTITY_MAX_BYTES
    too_large = store.batch()
    with pytest.raises(InvalidEntity, match="batch"), too_large:
        fill(too_large, ENTITY_MAX_BYTES - 20)
    many = store.batch()
    with pytest.raises(InvalidEntity, match="batch"), many:
        delete_many(many, 300_000)
    assert len(store.commands) == 1


def test_a_closed_store_takes_no_writes(store: DirectStore) -> None:
    store.close()
    for method in WRITES:
        with pytest.raises(Closed):
            getattr(store, method)(argument_of(method))
