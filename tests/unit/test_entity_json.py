"""The promise: JSON that the command line prints can be put back unchanged, and a mistake in it is reported by its
path.
Scripts read these names and notations, so each is pinned here by example as well.
"""

from __future__ import annotations

import json
import types
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import any_entity
from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import (
    Container,
    Entity,
    FrozenMap,
    HealthCheck,
    HealthStatus,
    Ingress,
    IngressPath,
    IngressRule,
    Network,
    Node,
    NodeResources,
    NodeRole,
    PortMapping,
    Secret,
    Service,
    UpdateConfig,
)
from warren_raft.model.json_form import (
    format_time,
    from_json,
    parse_time,
    to_json,
)

MORNING = datetime(2025, 10, 9, 8, 53, 20, 123456, tzinfo=UTC)


@given(any_entity())
def test_every_entity_comes_back_from_its_json(entity: Entity) -> None:
    text = json.dumps(to_json(entity), allow_nan=False)
    assert from_json(type(entity), json.loads(text)) == entity


def test_the_notations_are_those_that_scripts_rely_on() -> None:
    node = Node(
        id="n",
        role=NodeRole.MANAGER,
        labels=FrozenMap({"zone": "a"}),
        resources=NodeResources(cpu_cores=4, cpu_allocated=1.5),
        last_heartbeat=MORNING,
        revision=12,
    )
    assert to_json(node) == {
        "id": "n",
        "role": "manager",
        "address": "",
        "overlay_ip": "",
        "hostname": "",
        "labels": {"zone": "a"},
        "resources": {
            "cpu_cores": 4,
            "memory_bytes": 0,
            "disk_bytes": 0,
            "cpu_allocated": 1.5,
            "memory_allocated": 0,
            "disk_allocated": 0,
        },
        "status": "",
        "last_heartbeat": "2025-10-09T08:53:20.123456Z",
        "created_at": None,
        "revision": 12,
    }
    assert type(to_json(node)["role"]) is str
    assert type(to_json(node)["labels"]) is dict


def test_durations_are_seconds_and_whole_ones_are_integers() -> None:
    check = HealthCheck(interval=timedelta(seconds=30), timeout=timedelta(milliseconds=1500))
    shown = to_json(Container(id="c", health_check=check))["health_check"]
    assert shown["interval"] == 30
    assert type(shown["interval"]) is int
    assert shown["timeout"] == 1.5
    negative = UpdateConfig(delay=timedelta(microseconds=-1))
    assert to_json(Service(id="s", update_config=negative))["update_config"]["delay"] == -1e-06


def test_bytes_are_base64() -> None:
    assert to_json(Secret(id="s", data=b"\xff\xfe\x00"))["data"] == "//4A"
    assert from_json(Secret, {"id": "s", "data": "//4A"}).data == b"\xff\xfe\x00"


def test_a_missing_field_takes_its_default_and_the_revision_is_ignored() -> None:
    assert from_json(Service, {"id": "s", "revision": 99}) == Service(id="s")
    assert from_json(Service, {"id": "s", "revision": 99}).revision == 0
    assert from_json(Service, {"id": "s", "revision": "nonsense"}).revision == 0


def test_null_is_taken_where_it_means_not_set() -> None:
    given_in = {"id": "c", "health_check": None, "created_at": None}
    assert from_json(Container, given_in) == Container(id="c")


def test_incoming_values_are_normalised() -> None:
    node = from_json(Node, {"id": "n", "labels": {"a": "b"}, "resources": {"cpu_allocated": 2}})
    assert type(node.labels) is FrozenMap
    assert node.resources is not None
    assert type(node.resources.cpu_allocated) is float


REFUSED: list[tuple[type[Entity], Any, str | None, str]] = [
    (Service, {"id": "s", "replica": 3}, "replica", "there is no such field; did you mean replicas?"),
    (Service, {"id": "s", "Replicas": 3}, "Replicas", "there is no such field; did you mean replicas?"),
    (Service, {"name": "web"}, "id", "missing"),
    (Service, {}, "id", "missing"),
    (Service, {"id": "s", "ports": [{"container_port": "80"}]}, "ports[0].container_port", "must be a whole number"),
    (Service, {"id": None}, "id", "must be text, not null"),
    (Service, {"id": ""}, "id", "empty"),
    (Service, {"id": "s", "replicas": "3"}, "replicas", "must be a whole number, not text"),
    (Service, {"id": "s", "replicas": 3.0}, "replicas", "must be a whole number, not a number with a decimal point"),
    (Service, {"id": "s", "replicas": True}, "replicas", "must be a whole number, not true or false"),
    (Service, {"id": "s", "env": None}, "env", "must be a list, not null"),
    (Service, {"id": "s", "env": {"A": "1"}}, "env", "must be a list, not an object"),
    (Service, {"id": "s", "env": ["A=1", 2]}, "env[1]", "must be text, not a number"),
    (Service, {"id": "s", "labels": ["a"]}, "labels", "must be an object of texts, as"),
    (Service, {"id": "s", "labels": None}, "labels", ", not null"),
    (Service, {"id": "s", "labels": {"a": None}}, "labels['a']", "must be text, not null"),
    (Service, {"id": "s", "mode": "some"}, "mode", "replicated, global"),
    (
        Service,
        {"id": "s", "ports": [{"container_port": 80}, {"port": 80}]},
        "ports[1].port",
        "there is no such field; the fields are: name",
    ),
    (Service, {"id": "s", "ports": [80]}, "ports[0]", "must be a JSON object, not a number"),
    (Service, {"id": "s", "ports": [None]}, "ports[0]", "a JSON object"),
    (Service, {"id": "s", "update_config": {"delay": "5s"}}, "update_config.delay", "seconds"),
    (
        Service,
        {"id": "s", "update_config": {"delay": True}},
        "update_config.delay",
        "must be a number of seconds, not true or false",
    ),
    (Service, {"id": "s", "update_config": {"delay": None}}, "update_config.delay", "seconds"),
    (Service, {"id": "s", "update_config": {"delay": 1e300}}, "update_config.delay", "duration"),
    (Service, {"id": "s", "update_config": {"delay": float("nan")}}, "update_config.delay", "duration"),
    (Service, {"id": "s", "update_config": {"revision": 1}}, "update_config.revision", "no such field"),
    (Node, {"id": "n", "resources": {"cpu_allocated": float("inf")}}, "resources.cpu_allocated", "finite"),
    (Node, {"id": "n", "created_at": "yesterday"}, "created_at", "RFC 3339"),
    (Node, {"id": "n", "created_at": "2025-13-01T00:00:00Z"}, "created_at", "month"),
    (Node, {"id": "n", "created_at": 1760000000}, "created_at", "must be a time (RFC 3339 text), not a number"),
    (Secret, {"id": "s", "data": "not base64!"}, "data", "base64"),
    (Secret, {"id": "s", "data": "//4"}, "data", "base64"),
    (Secret, {"id": "s", "data": "//4A!"}, "data", "base64"),
    (Secret, {"id": "s", "data": "ÿ"}, "data", "base64"),
    (Secret, {"id": "s", "data": 5}, "data", "base64"),
    (
        Ingress,
        {"id": "i", "rules": [{"paths": [{}, {"path_type": "Regex"}]}]},
        "rules[0].paths[1].path_type",
        "Prefix, Exact",
    ),
    (
        Ingress,
        {"id": "i", "rules": [{"paths": [{"backend": {"prt": 1}}]}]},
        "rules[0].paths[0].backend.prt",
        "mean port?",
    ),
    (Network, ["id", "n"], None, "must be a JSON object, not a list"),
    (Network, "n", None, "a JSON object"),
    (Network, None, None, "must be a JSON object, not null"),
    (
        Network,
        {"id": "n", "wide": True},
        "wide",
        "there is no such field; the fields are: id name subnet gateway driver",
    ),
]


@pytest.mark.parametrize(("cls", "value", "field", "reason"), REFUSED)
def test_a_mistake_is_named_by_its_path(cls: type[Entity], value: Any, field: str | None, reason: str) -> None:
    with pytest.raises(InvalidEntity) as caught:
        from_json(cls, value)
    assert caught.value.field == field
    assert reason in caught.value.reason
    expected_id = value.get("id") if isinstance(value, dict) else None
    assert caught.value.id == expected_id


def test_a_mistake_in_a_secret_does_not_quote_it() -> None:
    with pytest.raises(InvalidEntity) as caught:
        from_json(Secret, {"id": "s", "data": "hunter2!"})
    assert "hunter2" not in str(caught.value)


def test_an_object_that_is_not_an_entity_has_no_json() -> None:
    with pytest.raises(InvalidEntity):
        from_json(HealthStatus, {})  # type: ignore[type-var]
    with pytest.raises(InvalidEntity, match="HealthStatus is not the class of an entity"):
        to_json(HealthStatus())  # type: ignore[arg-type]


def test_any_mapping_and_any_tuple_are_taken() -> None:
    """A program may have made them without json.loads."""
    port = types.MappingProxyType({"container_port": 80})
    given_in = types.MappingProxyType({"id": "s", "ports": (port,), "labels": FrozenMap({"a": "b"})})
    assert from_json(Service, given_in) == Service(
        id="s", ports=(PortMapping(container_port=80),), labels=FrozenMap({"a": "b"})
    )


def test_an_entity_of_a_newer_manager_can_be_shown() -> None:
    # Reading takes any string, so showing must too; only writing is strict.
    paths = (IngressPath(path_type="Regex"),)
    shown = to_json(Ingress(id="i", rules=(IngressRule(paths=paths),)))
    assert shown["rules"][0]["paths"][0]["path_type"] == "Regex"


# ---- Times.


@given(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.timezones()))  # noqa: DTZ001
def test_a_time_in_any_zone_is_shown_in_utc_and_comes_back(moment: datetime) -> None:
    assert format_time(moment).endswith("Z")
    assert parse_time(format_time(moment)) == moment.astimezone(UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-10-09T08:53:20.123456Z", MORNING),
        ("2025-10-09T08:53:20.123456789Z", MORNING),
        ("2025-10-09T08:53:20.1234569999999Z", MORNING),
        ("2025-10-09T04:53:20.123456-04:00", MORNING),
        ("2025-10-09T14:23:20.123456+05:30", MORNING),
        ("2025-10-09T08:53:20Z", MORNING.replace(microsecond=0)),
        ("2025-10-09T08:53:20.1Z", MORNING.replace(microsecond=100000)),
        ("2025-10-09T08:53:20+00:00", MORNING.replace(microsecond=0)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_times_are_read_in_every_form_that_go_writes(text: str, moment: datetime) -> None:
    assert parse_time(text) == moment
    assert parse_time(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-10-09",
        "2025-10-09 08:53:20Z",
        "2025-10-09T08:53:20",
        "2025-10-09T08:53:20.Z",
        "2025-10-09T08:53Z",
        "20251009T085320Z",
        "2025-W41-4T08:53:20Z",
        "2025-10-09T08:53:20Z ",
        "2025-10-09T08:53:20Z\n",
        "2025-10-09T08:53:20+0400",
        "2025-10-09T08:53:20+24:00",
        "2025-10-09T08:53:20+04:60",
        "2025-02-30T08:53:20Z",
        "2025-10-09T24:00:00Z",
        "2025-10-09T08:53:60Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00",
        "２０２５-10-09T08:53:20Z",
    ],
)
def test_a_text_that_is_not_an_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_time(text)
