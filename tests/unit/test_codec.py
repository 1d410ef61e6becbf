"""The promise: a record is read as it was written, by any version and from any version.

A record outlives the program that wrote it by years, and is read by older and newer managers. So the bytes are pinned
here, and so is the reading of an entity with fewer or more fields than this version knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast import fast_first
from tests.plain_decoding import ERRORS, plain_decode
from tests.strategies import any_entity, entities
from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import (
    ENTITY_CLASSES,
    AccessControl,
    Container,
    ContainerState,
    FrozenMap,
    HealthCheck,
    HealthCheckType,
    Ingress,
    IngressPath,
    IngressRule,
    Node,
    NodeRole,
    PathType,
    PortMapping,
    RestartPolicy,
    Service,
    TLSCertificate,
    UpdateConfig,
    kind_name,
    validate,
)
from warren_raft.model.forms import FormKind, fields_of
from warren_raft.store import codec
from warren_raft.store.cache import HEAD_BYTES
from warren_raft.store.decoding import SHARED_PARTS_MAX, SHARED_RECORD_BYTES_MAX
from warren_raft.store.tables import (
    BY_BUCKET,
    BY_NAME,
    BY_NUMBER,
    CA,
    CERTIFICATE,
    CONTAINER,
    ID_MAX_BYTES,
    INDEXES,
    INGRESS,
    KINDS,
    NODE,
    SERVICE,
    Kind,
)

NOON = datetime(2025, 10, 9, 12, 0, 0, 123456, tzinfo=UTC)
ENTITY_KINDS = [kind for kind in KINDS if kind.entity is not None]


def record_of(kind: Kind[Any], entity: Any, revision: int = 7) -> bytes:
    return codec.make_record(revision, codec.encode(kind, entity))


def index_values(kind: Kind[Any], array: list[Any]) -> dict[str, tuple[str, ...]]:
    """The keys of an entity in each index of the kind."""
    return {index.name: tuple(key.decode() for key in keys_of(array)) for index, keys_of in codec.index_keys(kind)}


def kind_of(entity: Any) -> Kind[Any]:
    return BY_NAME[kind_name(type(entity))]


# ---- The table of kinds is on disk and on the wire.


def test_numbers_and_buckets_of_kinds_never_change() -> None:
    assert [(kind.number, kind.name, kind.plural, kind.bucket, kind.updatable) for kind in KINDS] == [
        (1, "node", "nodes", "nodes", True),
        (2, "service", "services", "services", True),
        (3, "container", "containers", "containers", True),
        (4, "secret", "secrets", "secrets", False),
        (5, "volume", "volumes", "volumes", False),
        (6, "network", "networks", "networks", False),
        (7, "ingress", "ingresses", "ingresses", True),
        (8, "certificate", "certificates", "tls_certificates", True),
        (9, "ca", "ca", "ca", True),
    ]
    assert [(index.name, index.field, index.many, index.folded) for index in INDEXES] == [
        ("service.name", "name", False, False),
        ("container.service", "service_id", False, False),
        ("container.node", "node_id", False, False),
        ("secret.name", "name", False, False),
        ("volume.name", "name", False, False),
        ("ingress.name", "name", False, False),
        ("certificate.name", "name", False, False),
        ("certificate.host", "hosts", True, True),
    ]


def test_a_kind_is_found_by_each_of_its_names() -> None:
    for kind in KINDS:
        assert BY_NUMBER[kind.number] is BY_BUCKET[kind.bucket] is BY_NAME[kind.name] is BY_NAME[kind.plural] is kind
    assert {kind.name: kind.entity for kind in ENTITY_KINDS} == dict(ENTITY_CLASSES)


def test_indexes_are_on_fields_of_a_length_that_validate_checks() -> None:
    """An index on a field that may be longer than a key would silently lack its entries."""
    for kind in ENTITY_KINDS:
        checked = {f.name: f.form.kind is FormKind.SEQUENCE for f in fields_of(kind.entity) if f.indexed}
        assert {"id": False, **{index.field: index.many for index in kind.indexes}} == checked


# ---- Bytes.


@pytest.mark.slow
@given(any_entity(), st.integers(0, 2**64 - 1))
def test_reading_gives_back_the_written_value(entity: Any, revision: int) -> None:
    kind = kind_of(entity)
    record = record_of(kind, entity, revision)
    read = codec.decode(kind, record)
    assert read == entity
    assert type(read) is type(entity)
    assert read.revision == revision == codec.record_revision(record)
    assert hash(read) == hash(entity)  # deeply immutable, or it would have no hash
    assert codec.decode(kind, memoryview(record)) == entity
    assert codec.decode_entity(kind, codec.encode(kind, entity), revision) == entity


@given(any_entity())
def test_reading_and_writing_again_gives_the_same_bytes(entity: Any) -> None:
    kind = kind_of(entity)
    assert codec.encode(kind, codec.decode(kind, record_of(kind, entity))) == codec.encode(kind, entity)


def test_the_order_of_a_map_does_not_show() -> None:
    one = Node(id="n", labels=FrozenMap({"a": "1", "b": "2", "c": "3"}))
    other = Node(id="n", labels=FrozenMap({"c": "3", "a": "1", "b": "2"}))
    assert codec.encode(NODE, one) == codec.encode(NODE, other)


def test_the_bytes_of_an_entity_never_change() -> None:
    """A container as the first release wrote it. If this fails, no database that exists can be read any more."""
    container = Container(
        id="c1",
        service_id="s1",
        desired_state=ContainerState.RUNNING,
        env=("A=b",),
        ports=(PortMapping(name="http", container_port=80),),
        health_check=HealthCheck(type=HealthCheckType.EXEC, command=("true",), interval=timedelta(seconds=10)),
        created_at=NOON,
        exit_code=-1,
    )
    assert codec.make_record(300, codec.encode(CONTAINER, container)).hex() == (
        "8219012c"  # [300,
        "96626331627331606060"  # 22 fields: "c1", "s1", "", "", "",
        "6772756e6e696e676060"  # "running", "", "",
        "8163413d62"  # ["A=b"],
        "818564687474701850006060"  # [["http", 80, 0, "", ""]],
        "8080"  # mounts, secrets
        "86646578656360816474727565"  # ["exec", "", ["true"],
        "1a009896800000"  # 10 s, 0, 0],
        "f6f6f600"  # no status, restart policy or resources, 0,
        "1b000640b88a625240"  # noon: 1760011200123456 microseconds since 1970
        "f6f62060"  # null, null, -1, ""]
    )


def test_the_ca_is_its_bytes() -> None:
    assert codec.encode(CA, b"\x00ca") == bytes.fromhex("8143006361")
    assert codec.decode(CA, record_of(CA, b"\x00ca")) == b"\x00ca"
    with pytest.raises(codec.MalformedRecord):
        codec.decode(CA, codec.make_record(1, cbor2.dumps(["text"])))


# ---- Other versions.


@pytest.mark.parametrize("kind", fast_first(ENTITY_KINDS, 3), ids=str)
def test_an_older_entity_has_defaults_for_the_fields_it_does_not_know(kind: Kind[Any]) -> None:
    """Every prefix of the fields is an entity that some older version could have written."""

    @given(entities(kind.entity), st.data())
    def check(entity: Any, data: st.DataObject) -> None:
        array = cbor2.loads(codec.encode(kind, entity))
        width = data.draw(st.integers(1, len(array)))
        read = codec.decode(kind, codec.make_record(5, cbor2.dumps(array[:width])))
        known = {field.name: getattr(entity, field.name) for field in fields_of(kind.entity)[:width]}
        assert read == kind.entity(**known)  # type: ignore[misc]
        assert read.revision == 5

    check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENTITY_KINDS, ids=str)
def test_a_field_that_a_newer_version_appended_is_left_out(kind: Kind[Any]) -> None:
    @given(entities(kind.entity))
    def check(entity: Any) -> None:
        array = cbor2.loads(codec.encode(kind, entity))
        newer = codec.make_record(5, cbor2.dumps([*array, {"new": [1]}, "newer"]))
        assert codec.decode(kind, newer) == entity

    check()


def test_nested_structures_may_be_older_and_newer_too() -> None:
    array = cbor2.loads(codec.encode(SERVICE, Service(id="s", update_config=UpdateConfig(parallelism=2))))
    config = [field.name for field in fields_of(Service)].index("update_config")
    newer, array[config] = [*array[config], "newer", 1], array[config][:1]
    assert codec.decode(SERVICE, codec.make_record(1, cbor2.dumps(array))).update_config == UpdateConfig(parallelism=2)
    array[config] = newer
    assert codec.decode(SERVICE, codec.make_record(1, cbor2.dumps(array))).update_config == UpdateConfig(parallelism=2)


def test_members_of_enumerations_are_members_again_and_unknown_ones_stay_text() -> None:
    """A newer manager may know more members; an older one reads them as text."""
    known = codec.decode(NODE, record_of(NODE, Node(id="n", role="manager")))
    assert known.role is NodeRole.MANAGER
    newer = codec.decode(NODE, codec.make_record(7, cbor2.dumps(["n", "arbiter"])))
    assert newer.role == "arbiter"
    assert type(newer.role) is str
    assert type(codec.decode(NODE, record_of(NODE, Node(id="n"))).role) is str  # "" is not a member
    path = IngressPath(path_type="Regex", access_control=AccessControl(allowed_ips=("10.0.0.0/8",)))
    ingress = Ingress(id="i", rules=(IngressRule(host="h", paths=(path, IngressPath(path_type="Exact"))),))
    paths = [["", "Regex", None, None, None, None, [["10.0.0.0/8"], []]], ["", "Exact"]]
    read = codec.decode(INGRESS, codec.make_record(7, cbor2.dumps(["i", "", [["h", paths]]])))
    assert read == ingress
    assert [type(path.path_type) for path in read.rules[0].paths] == [str, PathType]


# ---- Records.


@pytest.mark.parametrize("revision", [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_a_record_is_the_array_of_revision_and_entity(revision: int) -> None:
    entity = codec.encode(NODE, Node(id="n"))
    record = codec.make_record(revision, entity)
    assert record == cbor2.dumps([revision, cbor2.loads(entity)])
    assert codec.record_revision(record) == codec.record_revision(memoryview(record)) == revision


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_two_revisions_never_have_the_same_head(one: int, other: int) -> None:
    """The cache compares heads in place of revisions."""
    heads = [codec.make_record(revision, codec.encode(CA, b""))[:HEAD_BYTES] for revision in (one, other)]
    assert (heads[0] == heads[1]) is (one == other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bytes_that_are_no_record_are_refused_and_nothing_else_happens(kind: Kind[Any]) -> None:
    @given(st.binary(max_size=60))
    def from_noise(noise: bytes) -> None:
        for data in (noise, codec.make_record(1, noise)):
            with contextlib.suppress(codec.MalformedRecord):
                codec.decode(kind, data)
            with contextlib.suppress(codec.MalformedRecord):
                codec.record_revision(data)

    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=25) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=60,
    )

    @given(values)
    def from_wrong_types(array: Any) -> None:
        record = cbor2.dumps([1, array])
        index_values(kind, array if type(array) is list else [])  # never raises
        with contextlib.suppress(codec.MalformedRecord):
            codec.decode(kind, record)

    from_noise()
    from_wrong_types()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, 2.0**70, 2**63, "", "a", b"a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=1), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def damaged(draw: st.DrawFn, array: list[Any]) -> list[Any]:
    """An array of fields in which one array is shorter or longer than ours, or one value is another, at any depth."""
    array = list(array)
    at = draw(st.integers(0, len(array)))
    inner = array[at] if at < len(array) else None
    if type(inner) is list and draw(st.booleans()):
        array[at] = draw(damaged(inner))
    elif at == len(array):
        array.append(draw(JUNK))
    elif draw(st.booleans()):
        array[at] = draw(JUNK)
    else:
        del array[at:]
    return array


def outcome(decode: Any, cls: Any, record: bytes) -> Any:
    """The fields of the entity, or None if the record is refused."""
    try:
        entity = decode(cls, record)
    except ERRORS:
        return None
    return [entity.revision, *(thawed(getattr(entity, field.name)) for field in fields_of(cls))]


def thawed(value: Any) -> Any:
    """A value in which it does not matter whether a list is a tuple, or a map of which class it is."""
    if type(value) in (list, tuple):
        return [thawed(item) for item in value]
    if isinstance(value, dict | cbor2.frozendict):
        return {key: thawed(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value), *(thawed(getattr(value, field.name)) for field in fields_of(type(value)))]
    return value


@pytest.mark.parametrize("kind", fast_first(ENTITY_KINDS, 3), ids=str)
def test_any_record_gives_the_same_as_a_plain_walk_over_its_fields(kind: Kind[Any]) -> None:
    """The compiled decoders share parts between entities; no record may change what another gives."""

    def decode(_cls: Any, record: bytes) -> Any:
        return codec.decode(kind, record)

    @given(entities(kind.entity), st.data())
    def check(entity: Any, data: st.DataObject) -> None:
        record = record_of(kind, entity)
        array = cbor2.loads(codec.encode(kind, entity))
        for other in (data.draw(damaged(array)), data.draw(damaged(array))):
            other_record = codec.make_record(7, cbor2.dumps(other))
            assert outcome(decode, kind.entity, other_record) == outcome(plain_decode, kind.entity, other_record)
        position = data.draw(st.integers(0, len(record) - 1))
        flipped = bytearray(record)
        flipped[position] ^= 1 << data.draw(st.integers(0, 7))
        with contextlib.suppress(codec.MalformedRecord):
            codec.decode(kind, bytes(flipped))
        for _ in range(2):  # at last in the exact types: repr tells 1 from True and -0.0 from 0.0
            assert repr(codec.decode(kind, record)) == repr(plain_decode(kind.entity, record))

    check()


def test_no_entity_gets_a_value_of_another_type_from_a_foreign_record() -> None:
    """True, 1 and 1.0 are one key of a dict. A part of a foreign record must not be shared as the part of ours."""
    attempts, port = 654_321, 45_678
    foreign = [["always", float(attempts), 0], [["", True, float(port), "", ""]]]
    ours = Service(
        id="s",
        restart_policy=RestartPolicy(condition="always", max_attempts=attempts),
        ports=(PortMapping(container_port=1, host_port=port),),
    )
    array = cbor2.loads(codec.encode(SERVICE, ours))
    names = [field.name for field in fields_of(Service)]
    array[names.index("restart_policy")], array[names.index("ports")] = foreign
    codec.decode(SERVICE, codec.make_record(1, cbor2.dumps(array)))
    for _ in range(2):
        record = record_of(SERVICE, ours)
        assert repr(codec.decode(SERVICE, record)) == repr(plain_decode(Service, record))


def test_entities_share_parts_that_are_alike_and_large_entities_do_not() -> None:
    def pair(**fields: Any) -> tuple[Container, Container]:
        first, second = (codec.decode(CONTAINER, record_of(CONTAINER, Container(id=i, **fields))) for i in "ab")
        return first, second

    parts: dict[str, Any] = {
        "env": ("A=1", "B=2"),
        "ports": (PortMapping(host_port=80),),
        "restart_policy": RestartPolicy(max_attempts=3),
    }
    one, other = pair(**parts)
    large, large_too = pair(**parts, error="x" * SHARED_RECORD_BYTES_MAX)
    for name in parts:
        assert getattr(one, name) is getattr(other, name)
        assert getattr(one, name) == getattr(large, name) == getattr(large_too, name)
        assert getattr(large, name) is not getattr(large_too, name)


def test_the_shared_parts_are_bounded() -> None:
    for number in range(3 * SHARED_PARTS_MAX):
        read = codec.decode(NODE, record_of(NODE, Node(id="n", labels=FrozenMap({"bounded": str(number)}))))
        assert read.labels == {"bounded": str(number)}
        if number % 97 == 0:
            held = sum(type(each) is FrozenMap and "bounded" in each for each in gc.get_objects())
            assert held <= SHARED_PARTS_MAX + 1


@pytest.mark.parametrize("data", [b"", b"\x82", b"\x81\x01", b"\x82\x18", b"\x82\x20\x80", b"\x82\x1c\x80", b"\x80"])
def test_a_revision_is_not_read_from_bytes_without_one(data: bytes) -> None:
    with pytest.raises(codec.MalformedRecord):
        codec.record_revision(data)


@pytest.mark.parametrize("array", [[], "text", {"id": "n"}, 5, None])
def test_an_entity_without_an_id_is_none(array: Any) -> None:
    with pytest.raises(codec.MalformedRecord):
        codec.decode(NODE, cbor2.dumps([1, array]))


def test_decoding_makes_instances_that_are_like_any_other() -> None:
    """They are built as another class first (see _draft_of); nothing of that may show."""
    read = codec.decode(NODE, record_of(NODE, Node(id="n", role="manager"), 9))
    built = Node(id="n", role=NodeRole.MANAGER, revision=9)
    assert dataclasses.asdict(read) == dataclasses.asdict(built)
    assert repr(read) == repr(built)
    assert dataclasses.replace(read, address="a") == Node(id="n", role="manager", address="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.address = "b"  # type: ignore[misc]


# ---- Index values.


@pytest.mark.parametrize(
    ("kind", "entity", "values"),
    [
        (SERVICE, Service(id="s", name="web"), {"service.name": ("web",)}),
        (SERVICE, Service(id="s"), {"service.name": ()}),
        (CONTAINER, Container(id="c", service_id="s"), {"container.service": ("s",), "container.node": ()}),
        (NODE, Node(id="n"), {}),
        (CA, b"ca", {}),
        (
            CERTIFICATE,
            TLSCertificate(id="t", name="N", hosts=("B.example", "a.EXAMPLE", "b.example", "", "É.example")),
            {"certificate.name": ("N",), "certificate.host": ("b.example", "a.example", "É.example")},
        ),
    ],
)
def test_empty_values_are_not_indexed_equal_ones_once_and_hosts_without_case(
    kind: Kind[Any], entity: Any, values: dict[str, tuple[str, ...]]
) -> None:
    assert index_values(kind, cbor2.loads(codec.encode(kind, entity))) == values


def test_a_value_longer_than_a_key_is_not_indexed() -> None:
    """No write of ours has one, and a message of a peer must not stop apply."""
    longest, longer = "x" * ID_MAX_BYTES, "x" * (ID_MAX_BYTES + 1)
    assert index_values(SERVICE, ["s", longest]) == {"service.name": (longest,)}
    assert index_values(SERVICE, ["s", longer]) == {"service.name": ()}
    assert index_values(CERTIFICATE, ["t", "", [longer, "é" * 255, "ok"]])["certificate.host"] == (
        "é" * 255,
        "ok",
    )


def test_an_index_of_a_field_that_an_older_entity_lacks_has_nothing_of_it() -> None:
    assert index_values(CONTAINER, ["c", "s"]) == {"container.service": ("s",), "container.node": ()}


def test_the_indexed_width_reaches_the_last_field_that_is_indexed() -> None:
    assert {kind.name: codec.indexed_width(kind) for kind in KINDS} == {
        "node": 0,
        "service": 2,
        "container": 4,
        "secret": 2,
        "volume": 2,
        "network": 0,
        "ingress": 2,
        "certificate": 3,
        "ca": 0,
    }


def test_numbers_that_would_be_refused_today_are_read_as_they_are_stored() -> None:
    """An earlier release took them; a state that cannot be read would be lost with them."""
    kind = BY_NAME["service"]
    stored = cbor2.loads(codec.encode(kind, Service(id="s", replicas=5, ports=(PortMapping(host_port=80),))))
    names = [field.name for field in fields_of(Service)]
    stored[names.index("replicas")] = -5
    port = stored[names.index("ports")][0]
    port[[field.name for field in fields_of(PortMapping)].index("host_port")] = 70_000
    read = codec.decode_entity(kind, cbor2.dumps(stored), 7)
    assert (read.replicas, read.ports[0].host_port, read.revision) == (-5, 70_000, 7)
    with pytest.raises(InvalidEntity, match="replicas: must not be negative"):
        validate(read)
