"""The promise: an entity that `validate` accepts is immutable to the last level and can be stored.

A wrong value that slips through here is found by the state machines of all managers at once, when it is too late to
refuse it. And if one reader could change an entity, every other reader of the cache would see the change.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given

from tests.strategies import almost_entities, any_entity, strange_entities
from warren_raft.errors import InvalidEntity
from warren_raft.fsm.history import Change
from warren_raft.model import entities as module
from warren_raft.model.entities import (
    ENTITY_CLASSES,
    Container,
    ContainerState,
    Entity,
    FrozenMap,
    HeaderManipulation,
    HealthCheck,
    HealthStatus,
    Ingress,
    IngressPath,
    IngressRule,
    IngressTLS,
    Network,
    Node,
    NodeResources,
    NodeRole,
    PortMapping,
    RateLimit,
    RestartPolicy,
    Secret,
    Service,
    TLSCertificate,
    UpdateConfig,
    Volume,
    kind_name,
    validate,
)
from warren_raft.model.forms import GO_ZERO_TIME, Form, FormKind, fields_of
from warren_raft.model.validation import Refused, normalised
from warren_raft.store.command import PUT, Command, Operation

NOON = datetime(2025, 10, 9, 12, 0, 0, 123456, tzinfo=UTC)

# ---- The classes are the contract's.

FIELDS = {
    "Node": "id role address overlay_ip hostname labels resources status last_heartbeat created_at",
    "NodeResources": "cpu_cores memory_bytes disk_bytes cpu_allocated memory_allocated disk_allocated",
    "Service": "id name image replicas mode deploy_strategy update_config env ports networks secrets volumes"
    " labels health_check restart_policy resources stop_timeout created_at updated_at",
    "UpdateConfig": "parallelism delay failure_action max_surge max_unavailable health_check_grace_period"
    " canary_weight canary_steps canary_stability_window blue_green_grace_period auto_rollback_enabled"
    " failure_threshold_percent",
    "PortMapping": "name container_port host_port protocol publish_mode",
    "VolumeMount": "source target read_only",
    "HealthCheck": "type endpoint command interval timeout retries",
    "HealthStatus": "healthy message checked_at consecutive_failures consecutive_successes",
    "RestartPolicy": "condition max_attempts delay",
    "ResourceRequirements": "cpu_limit memory_limit cpu_reservation memory_reservation",
    "Container": "id service_id service_name node_id container_id desired_state actual_state image env ports"
    " mounts secrets health_check health_status restart_policy resources stop_timeout created_at started_at"
    " finished_at exit_code error",
    "Secret": "id name data created_at updated_at",
    "Volume": "id name driver node_id mount_path options created_at",
    "Network": "id name subnet gateway driver",
    "Ingress": "id name rules tls labels created_at updated_at",
    "IngressRule": "host paths",
    "IngressBackend": "service_name port",
    "PathRewrite": "strip_prefix replace_path",
    "IngressPath": "path path_type backend rewrite headers rate_limit access_control",
    "HeaderManipulation": "add set remove",
    "RateLimit": "requests_per_second burst",
    "AccessControl": "allowed_ips denied_ips",
    "IngressTLS": "enabled secret_name hosts auto_tls email",
    "TLSCertificate": "id name hosts cert_pem key_pem issuer not_before not_after auto_renew labels"
    " created_at updated_at",
}
ENUMERATIONS = {
    "NodeRole": "manager worker hybrid",
    "NodeStatus": "ready down draining unknown",
    "ServiceMode": "replicated global",
    "DeployStrategy": "rolling blue-green canary",
    "PublishMode": "host ingress",
    "HealthCheckType": "http tcp exec",
    "RestartCondition": "never on-failure always",
    "ContainerState": "pending running failed complete shutdown",
    "PathType": "Prefix Exact",
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_are_those_of_warren_in_its_order(name: str) -> None:
    # Records hold fields by position: another order would give every stored entity other values.
    cls = getattr(module, name)
    assert [f.name for f in fields_of(cls)] == FIELDS[name].split()
    everything = [f.name for f in dataclasses.fields(cls)]
    assert everything == FIELDS[name].split() + (["revision"] if cls in ENTITY_CLASSES.values() else [])


@pytest.mark.parametrize("name", ENUMERATIONS)
def test_enumerations_are_those_of_warren(name: str) -> None:
    assert list(getattr(module, name)) == ENUMERATIONS[name].split()
    assert issubclass(getattr(module, name), StrEnum)


@pytest.mark.parametrize("cls", ENTITY_CLASSES.values())
def test_only_the_id_is_needed_and_only_keywords_are_taken(cls: Any) -> None:
    assert [f.name for f in fields_of(cls) if f.required] == ["id"]
    entity = cls(id="x")
    assert entity.revision == 0
    assert validate(entity) is entity
    with pytest.raises(TypeError):
        cls("x")
    with pytest.raises(TypeError):
        cls()


def test_the_revision_is_not_compared() -> None:
    assert Node(id="n", revision=3) == Node(id="n", revision=4)
    assert hash(Node(id="n", revision=3)) == hash(Node(id="n", revision=4))
    assert validate(Node(id="n", revision=3)).revision == 3
    assert validate(Node(id="n", labels={}, revision=3)).revision == 3


def test_indexed_fields_are_those_that_the_store_looks_up_by() -> None:
    indexed = {name: [f.name for f in fields_of(cls) if f.indexed] for name, cls in ENTITY_CLASSES.items()}
    assert indexed == {
        "node": ["id"],
        "service": ["id", "name"],
        "container": ["id", "service_id", "node_id"],
        "secret": ["id", "name"],
        "volume": ["id", "name"],
        "network": ["id"],
        "ingress": ["id", "name"],
        "certificate": ["id", "name", "hosts"],
    }


def test_secrets_do_not_show_in_the_text_of_an_entity() -> None:
    assert "hunter2" not in repr(Secret(id="s", data=b"hunter2"))
    assert "hunter2" not in repr(TLSCertificate(id="c", key_pem=b"hunter2"))
    assert "hunter2" not in repr(Service(id="s", env=("PASSWORD=hunter2",)))
    assert "hunter2" not in repr(Container(id="c", env=("PASSWORD=hunter2",)))
    assert "hunter2" not in repr(Volume(id="v", options={"o": "username=u,password=hunter2"}))


def test_nor_in_the_text_of_an_object_that_carries_one() -> None:
    operation = Operation(PUT, 4, "s", b"hunter2")
    assert repr(Command(1, 2, 3, (operation,))) == (
        "Command(session=1, sequence=2, lowest=3, operations=(Operation(verb=1, kind_number=4, id='s', "
        "entity=(7 bytes), if_revision=None),), fence=0, request_key='', forget_below=0, version=2)"
    )
    assert "hunter2" not in repr(Change(1, (operation,), (None,)))


# ---- Immutability, and the use of entities by callers.

RICH = validate(
    Service(
        id="s",
        labels={"tier": "front"},
        env=("A=1",),
        ports=(PortMapping(container_port=80),),
        update_config=UpdateConfig(canary_steps=(10, 50), delay=timedelta(seconds=5)),
        created_at=NOON,
        revision=7,
    )
)


@pytest.mark.slow
@given(any_entity())
def test_every_entity_survives_deepcopy_pickle_and_replace_and_can_be_hashed(entity: Entity) -> None:
    for twin in (
        copy.deepcopy(entity),
        copy.copy(entity),
        pickle.loads(pickle.dumps(entity)),
        dataclasses.replace(entity),
    ):
        assert _anatomy(twin) == _anatomy(entity)
        assert hash(twin) == hash(entity)


def test_asdict_gives_plain_parts_that_equal_dicts_and_go_into_json() -> None:
    plain = dataclasses.asdict(RICH)
    assert plain["labels"] == {"tier": "front"}
    assert dict(plain["labels"]) == {"tier": "front"}
    assert plain["ports"][0]["container_port"] == 80
    assert plain["update_config"]["canary_steps"] == (10, 50)
    assert plain["revision"] == 7
    assert json.loads(json.dumps(plain["labels"])) == {"tier": "front"}


def test_nothing_in_a_validated_entity_can_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RICH.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RICH.ports[0].host_port = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        object.__setattr__(RICH, "unknown", 1)  # slots: there is nowhere to put it
    with pytest.raises(TypeError):
        RICH.labels["tier"] = "back"  # type: ignore[index]
    with pytest.raises(TypeError):
        RICH.env[0] = "B=2"  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.__setitem__("a", "2"),
        lambda m: m.__delitem__("a"),
        lambda m: m.__ior__({"b": "2"}),
        lambda m: m.clear(),
        lambda m: m.pop("a"),
        lambda m: m.pop("zz", None),
        lambda m: m.popitem(),
        lambda m: m.setdefault("b", "2"),
        lambda m: m.update(b="2"),
        lambda m: setattr(m, "attribute", 1),
    ],
)
def test_a_frozen_map_refuses_every_change(change: Any) -> None:
    frozen = FrozenMap({"a": "1"})
    with pytest.raises((TypeError, AttributeError)):
        change(frozen)
    assert frozen == {"a": "1"}


def test_a_frozen_map_is_a_mapping_that_compares_hashes_and_copies() -> None:
    frozen = FrozenMap({"a": "1", "b": "2"})
    assert isinstance(frozen, Mapping)
    assert frozen == {"b": "2", "a": "1"}
    assert frozen == {"b": "2", "a": "1"}
    assert frozen != {"a": "1"}
    assert hash(frozen) == hash(FrozenMap({"b": "2", "a": "1"}))
    assert dict(frozen) == {"a": "1", "b": "2"}
    assert type(dict(frozen)) is dict
    assert frozen | {"c": "3"} == {"a": "1", "b": "2", "c": "3"}
    for twin in (copy.copy(frozen), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert type(twin) is FrozenMap
        assert twin == frozen
    assert repr(frozen) == "FrozenMap({'a': '1', 'b': '2'})"


def test_a_caller_that_keeps_its_dict_and_list_cannot_change_the_entity() -> None:
    labels, env = {"a": "1"}, ["A=1"]
    written = validate(Service(id="s", labels=labels, env=env))  # type: ignore[arg-type]
    labels["a"] = "2"
    env.append("B=2")
    assert written.labels == {"a": "1"}
    assert written.env == ("A=1",)


# ---- Values that are converted.


def test_lists_and_dicts_become_tuples_and_frozen_maps_at_every_depth() -> None:
    headers = HeaderManipulation(add={"X-A": "1"}, remove=["X-B"])  # type: ignore[arg-type]
    paths = [IngressPath(path="/", headers=headers)]
    given_in = Ingress(id="i", rules=[IngressRule(paths=paths)], labels={"a": "b"})  # type: ignore[arg-type]
    stored = validate(given_in)
    assert type(stored.rules) is tuple
    assert type(stored.labels) is FrozenMap
    stored_headers = stored.rules[0].paths[0].headers
    assert stored_headers is not None
    assert type(stored_headers.add) is FrozenMap
    assert stored_headers.remove == ("X-B",)
    assert hash(stored) == hash(validate(stored))


def test_integers_become_floats_where_floats_are_declared() -> None:
    resources = validate(Node(id="n", resources=NodeResources(cpu_allocated=2))).resources
    assert resources is not None
    assert type(resources.cpu_allocated) is float


def test_times_become_utc_with_a_plain_type() -> None:
    class Stamp(datetime):
        pass

    summer = timezone(timedelta(hours=2))
    node = validate(Node(id="n", created_at=Stamp(2025, 7, 1, 14, 30, 0, 5, tzinfo=summer)))
    assert node.created_at == datetime(2025, 7, 1, 12, 30, 0, 5, tzinfo=UTC)
    assert node.created_at is not None
    assert node.created_at.tzinfo is UTC
    assert type(node.created_at) is datetime


def test_the_zero_time_of_go_means_not_set() -> None:
    zero = datetime(1, 1, 1, tzinfo=UTC)
    west = timezone(timedelta(hours=-3))
    for moment in (zero, zero.replace(tzinfo=timezone(timedelta(0), "GMT"))):
        assert validate(Node(id="n", created_at=moment)).created_at is None
    early = zero.replace(tzinfo=west)  # three hours later: the same digits, and yet a time
    assert validate(Node(id="n", created_at=early)).created_at == early


def test_a_member_of_an_enumeration_may_be_given_as_member_or_as_text() -> None:
    for state in (ContainerState.RUNNING, "running"):
        container = Container(id="c", actual_state=state)
        assert validate(container) is container
        assert container.actual_state == "running"


def test_subclasses_of_text_become_text() -> None:
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    service = validate(Service(id=Name("s"), name=NodeRole.WORKER, env=(Name("A=1"),)))
    assert [type(text) for text in (service.id, service.name, service.env[0])] == [str, str, str]
    assert (service.id, service.name, service.env) == ("s", "worker", ("A=1",))


# ---- Values that are refused, and the name of their fault.


class Port(IntEnum):
    HTTP = 80


class Other(StrEnum):
    WORD = "elsewhere"


class Special(Node):
    """A subclass, which could hold a field that no format knows."""


NAIVE = datetime(2025, 1, 1)  # noqa: DTZ001
PATHS = (IngressPath(), IngressPath(path_type="Regex"))

REFUSED: list[tuple[Any, str | None, str]] = [
    (Node(id=""), "id", "empty"),
    (Node(id=None), "id", "NoneType"),  # type: ignore[arg-type]
    (Node(id="x" * 512), "id", "512 bytes"),
    (Node(id="é" * 256), "id", "512 bytes"),
    (Node(id="\ud800"), "id", "surrogate"),
    (Service(id="s", name="x" * 512), "name", "at most 511"),
    (Secret(id="s", name="x" * 512), "name", "at most 511"),
    (Volume(id="v", name="x" * 512), "name", "at most 511"),
    (Ingress(id="i", name="x" * 512), "name", "at most 511"),
    (Container(id="c", service_id="x" * 512), "service_id", "at most 511"),
    (Container(id="c", node_id="𝔸" * 128), "node_id", "at most 511"),
    (TLSCertificate(id="t", hosts=("a", "x" * 512)), "hosts[1]", "at most 511"),
    (Node(id="n", role="boss"), "role", "'boss' is none of manager, worker, hybrid"),
    (Node(id="n", role=Other.WORD), "role", "none of"),
    (Node(id="n", role=None), "role", "NoneType"),  # type: ignore[arg-type]
    (Node(id="n", role=[]), "role", "list"),  # type: ignore[arg-type]
    (Ingress(id="i", rules=(IngressRule(paths=PATHS),)), "rules[0].paths[1].path_type", "Prefix, Exact"),
    (Service(id="s", replicas=True), "replicas", "bool"),
    (Service(id="s", replicas=3.0), "replicas", "float"),  # type: ignore[arg-type]
    (Service(id="s", replicas=None), "replicas", "NoneType"),  # type: ignore[arg-type]
    (Service(id="s", replicas=2**63), "replicas", "64-bit"),
    (Service(id="s", replicas=-(2**63) - 1), "replicas", "64-bit"),
    (Service(id="s", ports=(PortMapping(host_port=Port.HTTP),)), "ports[0].host_port", "Port"),
    (Service(id="s", stop_timeout=timedelta(seconds=10)), "stop_timeout", "timedelta"),  # type: ignore[arg-type]
    (Node(id="n", resources=NodeResources(cpu_allocated=math.nan)), "resources.cpu_allocated", "finite"),
    (Node(id="n", resources=NodeResources(cpu_allocated=-math.inf)), "resources.cpu_allocated", "finite"),
    (Node(id="n", resources=NodeResources(cpu_allocated=2**2000)), "resources.cpu_allocated", "large"),
    (Node(id="n", resources=NodeResources(cpu_allocated=True)), "resources.cpu_allocated", "bool"),
    (Node(id="n", resources={"cpu_cores": 1}), "resources", "dict"),  # type: ignore[arg-type]
    (Node(id="n", resources=PortMapping()), "resources", "NodeResources or None"),  # type: ignore[arg-type]
    (Service(id="s", ports=(None,)), "ports[0]", "PortMapping, not NoneType"),  # type: ignore[arg-type]
    (Service(id="s", ports=None), "ports", "a sequence"),  # type: ignore[arg-type]
    (Service(id="s", env="A=1"), "env", "a sequence"),  # type: ignore[arg-type]
    (Service(id="s", env=(1,)), "env[0]", "int"),  # type: ignore[arg-type]
    (Service(id="s", env=("ok", "\udfff")), "env[1]", "surrogate"),
    (Service(id="s", env={"A=1"}), "env", "set"),  # type: ignore[arg-type]
    (Service(id="s", image=b"nginx"), "image", "bytes"),  # type: ignore[arg-type]
    (Service(id="s", labels={"a": 1}), "labels['a']", "must be text (str), not int"),  # type: ignore[dict-item]
    (Service(id="s", labels={1: "a"}), "labels", "a key must be text (str), not int"),  # type: ignore[dict-item]
    (Service(id="s", labels={"\ud800": "a"}), "labels", "surrogate"),
    (Service(id="s", labels=FrozenMap({"\ud800": "a"})), "labels", "surrogate"),
    (Service(id="s", labels=FrozenMap({"a": "\ud800"})), "labels['a']", "surrogate"),
    (Service(id="s", labels={"x" * 99: 1}), f"labels['{'x' * 60}']", "int"),  # type: ignore[dict-item]
    (Service(id="s", labels=[("a", "b")]), "labels", "a mapping"),  # type: ignore[arg-type]
    (Service(id="s", labels=None), "labels", "a mapping"),  # type: ignore[arg-type]
    (Secret(id="s", data="text"), "data", "bytes, not str"),  # type: ignore[arg-type]
    (Secret(id="s", data=bytearray(b"x")), "data", "bytes, not bytearray"),  # type: ignore[arg-type]
    (Secret(id="s", data=None), "data", "bytes"),  # type: ignore[arg-type]
    (Node(id="n", created_at=NAIVE), "created_at", "time zone"),
    (Node(id="n", created_at=date(2025, 1, 1)), "created_at", "date"),  # type: ignore[arg-type]
    (Node(id="n", created_at="2025-01-01T00:00:00Z"), "created_at", "str"),  # type: ignore[arg-type]
    (
        Node(id="n", created_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))),
        "created_at",
        "years 1 to 9999",
    ),
    (Service(id="s", restart_policy=RestartPolicy(delay=timedelta.max)), "restart_policy.delay", "64-bit"),
    (Service(id="s", restart_policy=RestartPolicy(delay=5)), "restart_policy.delay", "int"),  # type: ignore[arg-type]
    (Service(id="s", replicas=-5), "replicas", "must not be negative, and is -5"),
    (Service(id="s", stop_timeout=-1), "stop_timeout", "must not be negative, and is -1"),
    (
        Service(id="s", ports=(PortMapping(host_port=65_536),)),
        "ports[0].host_port",
        "must be at most 65535, and is 65536",
    ),
    (Service(id="s", ports=(PortMapping(container_port=-1),)), "ports[0].container_port", "must not be negative"),
    (Service(id="s", update_config=UpdateConfig(canary_weight=101)), "update_config.canary_weight", "at most 100"),
    (Service(id="s", update_config=UpdateConfig(canary_steps=(5, -1))), "update_config.canary_steps[1]", "negative"),
    (Service(id="s", restart_policy=RestartPolicy(delay=-timedelta(seconds=2))), "restart_policy.delay", "is -2.0"),
    (Node(id="n", resources=NodeResources(cpu_allocated=-0.5)), "resources.cpu_allocated", "must not be negative"),
    (Node(id="n", resources=NodeResources(memory_bytes=-1)), "resources.memory_bytes", "must not be negative"),
    (
        Ingress(id="i", rules=(IngressRule(paths=(IngressPath(rate_limit=RateLimit(burst=-1)),)),)),
        "rules[0].paths[0].rate_limit.burst",
        "must not be negative",
    ),
    (Ingress(id="i", tls=IngressTLS(enabled=1)), "tls.enabled", "bool"),  # type: ignore[arg-type]
    (Container(id="c", health_status=HealthStatus(checked_at=NAIVE)), "health_status.checked_at", "zone"),
    (Container(id="c", health_check=HealthCheck(command=("a", None))), "health_check.command[1]", "str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("entity", "field", "reason"), REFUSED)
def test_a_value_that_cannot_be_stored_is_refused_by_the_name_of_its_field(
    entity: Any, field: str | None, reason: str
) -> None:
    with pytest.raises(InvalidEntity) as caught:
        validate(entity)
    error = caught.value
    assert error.field == field
    assert reason in error.reason
    assert error.kind == kind_name(type(entity))
    assert error.id == (entity.id if isinstance(entity.id, str) else None)


@pytest.mark.parametrize("thing", [None, "node", {"id": "n"}, PortMapping(), Node, Special(id="n"), b"ca"])
def test_only_the_classes_of_entities_are_entities(thing: Any) -> None:
    with pytest.raises(InvalidEntity) as caught:
        validate(thing)
    assert caught.value.kind == "entity"
    assert type(thing).__name__ in caught.value.reason


def test_the_limits_themselves_are_let_through() -> None:
    edge = Container(
        id="é" * 255 + "x",
        service_id="x" * 511,
        exit_code=-(2**63),
        stop_timeout=2**63 - 1,
        finished_at=datetime.max.replace(tzinfo=UTC),
        created_at=datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        restart_policy=RestartPolicy(delay=timedelta(microseconds=2**63 - 1)),
        ports=(PortMapping(container_port=0, host_port=65_535),),
        error="\x00\n\u2028✓𝔸",
    )
    assert validate(edge) is edge
    network = Network(id="n", name="x" * 5000)  # not indexed, so not limited here
    assert validate(network) is network


def test_errors_do_not_quote_values_that_may_be_secret() -> None:
    for entity in (
        Secret(id="s", data="hunter2"),  # type: ignore[arg-type]
        Service(id="s", env=("PASSWORD=hunter2\ud800",)),
        Service(id="s", labels={"password": b"hunter2"}),  # type: ignore[dict-item]
    ):
        with pytest.raises(InvalidEntity) as caught:
            validate(entity)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


# ---- The normal form, form by form.


def _anatomy(value: Any) -> Any:
    """A value with the types of all its parts, so that equal means alike to the last level."""
    if dataclasses.is_dataclass(value):
        parts: Any = [_anatomy(getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)):
        parts = [_anatomy(item) for item in value]
    elif isinstance(value, Mapping):
        parts = {(type(k), k): (type(v), v) for k, v in value.items()}
    elif isinstance(value, datetime):
        parts = (value.replace(tzinfo=None), value.tzinfo is UTC)
    else:
        parts = value
    return type(value), parts


def _is_normal(form: Form, value: Any) -> bool:
    """Whether a value, and all that is in it, has exactly the type that its form says."""
    if form.kind is FormKind.STRUCT:
        return (value is None and form.optional) or _has_normal_fields(form.cls, value)
    if form.kind is FormKind.SEQUENCE:
        return type(value) is tuple and all(_is_normal(form.item, item) for item in value)
    if form.kind is FormKind.MAP:
        return type(value) is FrozenMap and all(type(text) is str for item in value.items() for text in item)
    if form.kind is FormKind.TIME:
        return value is None or (type(value) is datetime and value.tzinfo is UTC and value != GO_ZERO_TIME)
    if form.kind is FormKind.CHOICE:
        return type(value) in (str, form.cls)
    return type(value) is PLAIN_TYPES[form.kind]


def _has_normal_fields(cls: Any, value: Any) -> bool:
    return type(value) is cls and all(_is_normal(f.form, getattr(value, f.name)) for f in fields_of(cls))


PLAIN_TYPES = {
    FormKind.TEXT: str,
    FormKind.INTEGER: int,
    FormKind.NUMBER: float,
    FormKind.FLAG: bool,
    FormKind.BYTES: bytes,
    FormKind.DURATION: timedelta,
}


@given(any_entity())
def test_a_normal_entity_is_returned_as_it_is(entity: Entity) -> None:
    assert validate(entity) is entity


@pytest.mark.slow
@pytest.mark.parametrize("cls", ENTITY_CLASSES.values())
def test_the_result_is_normal_and_a_normal_value_stays_the_same_object(cls: Any) -> None:
    for entity in strange_entities(cls):
        check_normalised(entity)
    given(almost_entities(cls))(check_normalised)()


def check_normalised(entity: Any) -> None:
    try:
        normal = normalised(entity)
    except Refused:
        return
    assert _has_normal_fields(type(entity), normal)
    assert (normal is entity) is _has_normal_fields(type(entity), entity)
    assert validate(normal) is normal
    assert hash(normal) is not None
    assert normal.revision == entity.revision


def test_every_form_of_a_field_has_its_check() -> None:
    kinds = {f.form.kind for name in FIELDS for f in fields_of(getattr(module, name))}
    assert kinds == set(FormKind)


def test_importing_the_entities_loads_nothing_heavy() -> None:
    heavy = ["asyncio", "cbor2", "lmdb", "json", "socket", "ssl"]
    code = f"import sys, warren_raft.model.entities; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
