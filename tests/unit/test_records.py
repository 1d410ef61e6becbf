"""The promise: a Go Warren's data comes in completely, and goes out so that a Go Warren would read the same from it.

Data lost here would be lost silently on the day of the migration, for every cluster that moves.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import any_entity
from warren_raft.errors import InvalidEntity
from warren_raft.migrate.records import (
    format_line,
    go_name,
    parse_line,
    parse_record,
    parse_stored,
    same_record,
)
from warren_raft.model.entities import (
    ENTITY_CLASSES,
    AccessControl,
    Container,
    Entity,
    Ingress,
    IngressPath,
    IngressRule,
    Node,
    NodeResources,
    RestartPolicy,
    Secret,
    Service,
    TLSCertificate,
    kind_name,
    validate,
)
from warren_raft.store import tables

SAMPLE = Path(__file__).parents[2] / "examples" / "sample-state.jsonl"
SAMPLE_LINES = SAMPLE.read_text(encoding="utf-8").split("\n")[:-1]


def line(bucket: str, key: str, **value: Any) -> str:
    return json.dumps({"bucket": bucket, "key": key, "value": {"ID": key, **value}})


def parsed(bucket: str, **value: Any) -> Any:
    return parse_line(line(bucket, "x", **value))[2]


def written(entity: Any) -> Any:
    return json.loads(format_line(kind_name(type(entity)), entity))["value"]


# ---- A Go Warren's own records.

_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


def canonical(value: Any) -> Any:
    """JSON with times as moments to the microsecond, and null for all that is empty. Knows no field."""
    if isinstance(value, dict):
        return {name: canonical(part) for name, part in value.items()} or None
    if isinstance(value, list):
        return [canonical(item) for item in value] or None
    if isinstance(value, str) and (match := _GO_TIME.fullmatch(value)):
        seconds, fraction, zone = match.groups()
        return datetime.fromisoformat(seconds + (fraction or ".0")[:7] + zone.replace("Z", "+00:00")).astimezone(UTC)
    return value


def test_the_sample_has_every_kind() -> None:
    assert {parse_line(text)[0] for text in SAMPLE_LINES} == {kind.name for kind in tables.KINDS}
    assert len(SAMPLE_LINES) > 100


@pytest.mark.parametrize("text", SAMPLE_LINES, ids=lambda text: json.loads(text)["key"])
def test_every_record_of_a_go_warren_comes_back_as_it_was(text: str) -> None:
    kind, key, entity = parse_line(text)
    out = format_line(kind, entity)
    assert canonical(json.loads(out)) == canonical(json.loads(text))
    assert parse_line(out) == (kind, key, entity)
    assert same_record(text, out)
    assert format_line(*parse_line(out)[::2]) == out  # a second round changes no byte
    if not isinstance(entity, bytes):
        assert entity.id == key
        assert validate(entity) is entity
        assert type(entity) is ENTITY_CLASSES[kind]


@pytest.mark.slow
@given(any_entity())
def test_every_entity_comes_back_from_its_line(entity: Entity) -> None:
    kind = kind_name(type(entity))
    text = format_line(kind, entity)
    assert parse_line(text) == (kind, entity.id, entity)
    assert text.splitlines() == [text]  # one record stays one line, however the reader splits


# ---- Names and notations.


def test_names_are_go_s() -> None:
    ours = "id service_id cpu_cores tls auto_tls cert_pem key_pem overlay_ip allowed_ips max_surge"
    go_s = "ID ServiceID CPUCores TLS AutoTLS CertPEM KeyPEM OverlayIP AllowedIPs MaxSurge"
    assert [go_name(name) for name in ours.split()] == go_s.split()


def test_a_container_is_written_as_go_would_write_it() -> None:
    container = Container(
        id="c",
        service_id="s",
        restart_policy=RestartPolicy(condition="always", max_attempts=3, delay=timedelta(seconds=5)),
        stop_timeout=10,
        created_at=datetime(2025, 10, 9, 8, 53, 20, 123456, tzinfo=UTC),
        error="<ü & \u2028>",
        revision=9,
    )
    assert format_line("container", container) == (
        '{"bucket":"containers","key":"c","value":{"ID":"c","ServiceID":"s","ServiceName":"","NodeID":"",'
        '"ContainerID":"","DesiredState":"","ActualState":"","Image":"","Env":[],"Ports":[],"Mounts":[],'
        '"Secrets":[],"HealthCheck":null,"HealthStatus":null,'
        '"RestartPolicy":{"Condition":"always","MaxAttempts":3,"Delay":5000000000},"Resources":null,'
        '"StopTimeout":10,"CreatedAt":"2025-10-09T08:53:20.123456Z","StartedAt":"0001-01-01T00:00:00Z",'
        '"FinishedAt":"0001-01-01T00:00:00Z","ExitCode":0,"Error":"\\u003cü \\u0026 \\u2028\\u003e"}}'
    )


def test_times_are_cut_to_the_microsecond_and_turned_to_utc() -> None:
    node = parsed("nodes", CreatedAt="2025-10-09T04:53:20.123456789-04:00", LastHeartbeat="0001-01-01T00:00:00Z")
    assert node.created_at == datetime(2025, 10, 9, 8, 53, 20, 123456, tzinfo=UTC)
    assert node.last_heartbeat is None


@pytest.mark.parametrize(
    ("nanoseconds", "microseconds"), [(5_000_000_000, 5_000_000), (1_999, 1), (999, 0), (-999, 0), (0, 0)]
)
def test_durations_are_nanoseconds_cut_to_the_microsecond(nanoseconds: int, microseconds: int) -> None:
    service = parsed("services", RestartPolicy={"Delay": nanoseconds})
    assert service.restart_policy.delay == timedelta(microseconds=microseconds)
    assert written(service)["RestartPolicy"]["Delay"] == microseconds * 1000


def test_null_empty_and_missing_are_alike() -> None:
    nulls = dict.fromkeys(["Name", "Env", "Ports", "Labels", "HealthCheck", "Replicas", "StopTimeout", "CreatedAt"])
    empties = {"Name": "", "Env": [], "Ports": [], "Labels": {}, "Replicas": 0, "CreatedAt": "0001-01-01T00:00:00Z"}
    assert parsed("services") == parsed("services", **nulls) == parsed("services", **empties) == Service(id="x")
    assert same_record(line("services", "x", **nulls), line("services", "x", **empties))
    assert parsed("secrets", Data=None) == parsed("secrets", Data="") == Secret(id="x")
    nested = parsed("ingresses", Rules=[{"Host": None, "Paths": [{"AccessControl": {"DeniedIPs": None}}]}])
    assert nested.rules == (IngressRule(paths=(IngressPath(access_control=AccessControl()),)),)


def test_a_structure_that_is_not_set_is_not_an_empty_one() -> None:
    assert parsed("nodes", Resources=None) != parsed("nodes", Resources={})
    assert written(Node(id="x", resources=NodeResources()))["Resources"] is not None
    assert written(Node(id="x"))["Resources"] is None


def test_whole_floats_are_written_as_go_writes_them_and_read_either_way() -> None:
    node = parsed("nodes", Resources={"CPUAllocated": 4})
    assert type(node.resources.cpu_allocated) is float
    assert '"CPUAllocated":4,' in format_line("node", node)
    huge = Node(id="x", resources=NodeResources(cpu_allocated=1e300))
    assert '"CPUAllocated":1e+300,' in format_line("node", huge)
    for value in (0.1, 1e300, 2.0**60, 0.5):
        again = parse_line(format_line("node", Node(id="x", resources=NodeResources(cpu_allocated=value))))[2]
        assert again == Node(id="x", resources=NodeResources(cpu_allocated=value))


def test_bytes_are_base64_and_maps_are_sorted_as_go_sorts_them() -> None:
    certificate = TLSCertificate(id="t", cert_pem=b"\xff\xfe\x00", labels={"b": "1", "a": "2"})
    assert written(certificate)["CertPEM"] == "//4A"
    assert list(written(certificate)["Labels"]) == ["a", "b"]


def test_the_old_bucket_of_containers_is_understood() -> None:
    old, new = line("tasks", "x", Image="nginx"), line("containers", "x", Image="nginx")
    assert parse_line(old) == ("container", "x", Container(id="x", image="nginx"))
    assert same_record(old, new)
    assert json.loads(format_line("container", Container(id="x")))["bucket"] == "containers"


def test_records_that_differ_are_told_apart() -> None:
    one = line("services", "x", Replicas=1, CreatedAt="2025-10-09T08:53:20.123456Z")
    assert same_record(one, line("services", "x", Replicas=1, CreatedAt="2025-10-09T10:53:20.123456999+02:00"))
    assert not same_record(one, line("services", "x", Replicas=1, CreatedAt="2025-10-09T08:53:20.123457Z"))
    assert not same_record(one, line("services", "x", Replicas=2, CreatedAt="2025-10-09T08:53:20.123456Z"))
    assert not same_record(line("volumes", "x"), line("networks", "x"))


# ---- The CA.


def ca_line(value: Any) -> str:
    return json.dumps({"bucket": "ca", "key": "ca", "value": value})


def test_the_ca_is_stored_as_the_bytes_go_had_and_shown_as_the_object() -> None:
    text = ca_line({"RootKeyDER": "a+b/", "RootCertDER": "<&>", "Größe": [1, 2.5, None, True]})
    kind, key, data = parse_line(text)
    assert (kind, key) == ("ca", "ca")
    assert data == ('{"RootKeyDER":"a+b/","RootCertDER":"\\u003c\\u0026\\u003e","Größe":[1,2.5,null,true]}'.encode())
    assert json.loads(format_line("ca", data)) == json.loads(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00 DER",
        b"-----BEGIN CERTIFICATE-----",
        b'"text"',
        b"[1]",
        b"5",
        b'{"a": 1}',  # not as Go would write it: as an object, the space would be lost
        b'{"a":1,"a":2}',
        b'{"a":1.50}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":"<"}',
        b'{"a":"\\ud800"}',
        '{"a":1}'.encode("utf-16"),
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,  # deeper than json of any release of Python goes
    ],
    ids=lambda data: data[:20].decode("latin-1"),
)
def test_a_ca_that_an_object_cannot_give_back_to_the_byte_is_written_as_base64(data: bytes) -> None:
    out = format_line("ca", data)
    assert base64.b64decode(json.loads(out)["value"]) == data
    assert parse_line(out) == ("ca", "ca", data)


@given(st.binary(max_size=40) | st.dictionaries(st.text(), st.text()).map(lambda d: json.dumps(d).encode()))
def test_every_ca_comes_back_to_the_byte(data: bytes) -> None:
    assert parse_line(format_line("ca", data)) == ("ca", "ca", data)


# ---- A Go Warren's database.


def test_stored_records_are_parsed_as_lines_are() -> None:
    assert parse_stored("tasks", b"x", b'{"ID":"x","Image":"nginx"}') == (
        "container",
        "x",
        Container(id="x", image="nginx"),
    )
    assert parse_stored("ca", b"ca", b'{"a": "<"}') == ("ca", "ca", b'{"a": "<"}')
    assert parse_stored("nodes", "ö".encode(), '{"ID":"ö"}'.encode()) == ("node", "ö", Node(id="ö"))


@pytest.mark.parametrize(
    ("bucket", "key", "value"),
    [
        ("jobs", b"x", b"{}"),
        ("nodes", b"\xff", b'{"ID":"x"}'),
        ("nodes", b"x", b'{"ID":"\xff"}'),
        ("nodes", b"x", b'{"ID":"x"'),
        ("nodes", b"x", '{"ID":"x"}'.encode("utf-16")),
        ("nodes", b"x", b'{"ID":"y"}'),
        ("ca", b"other", b"{}"),
    ],
)
def test_stored_records_that_are_none_are_refused(bucket: str, key: bytes, value: bytes) -> None:
    with pytest.raises(InvalidEntity):
        parse_stored(bucket, key, value)


# ---- Records that are refused.

WHOLE = line("nodes", "x")

REFUSED = [
    ("", "record", None, "not one whole JSON object"),
    ("null", "record", None, "bucket, key, value"),
    ("[1]", "record", None, "a JSON object of just bucket, key, value, as `export` writes it: it is no object"),
    (WHOLE[:-1], "record", None, "not one whole JSON object"),
    (WHOLE[: len(WHOLE) // 2], "record", None, "not one whole JSON object"),
    (WHOLE + WHOLE, "record", None, "not one whole JSON object: column "),
    ('{"bucket":"nodes","key":"x"}', "record", None, "bucket, key, value"),
    ('{"bucket":"nodes","key":"x","value":{"ID":"x"},"more":1}', "record", None, "it has bucket, key, value, more"),
    ('{"bucket":"nodes","key":"x","value":{"ID":NaN}}', "record", None, "NaN is not JSON"),
    ('{"bucket":"nodes","key":"x","value":' + "[" * 100_000 + "]" * 100_000 + "}", "record", None, "nested"),
    (line("jobs", "x"), "record", "bucket", "'jobs' is not one of Warren's buckets"),
    (line("Node", "x"), "record", "bucket", "'Node' is not one of Warren's buckets; did you mean nodes?"),
    (line("certificates", "x"), "record", "bucket", "not one of"),
    ('{"bucket":null,"key":"x","value":{}}', "record", "bucket", "None is not"),
    ('{"bucket":["nodes"],"key":"x","value":{}}', "record", "bucket", "not one of"),
    ('{"bucket":"nodes","key":5,"value":{}}', "node", None, "the key of a record must be text, not a number"),
    ('{"bucket":"nodes","key":"x","value":{}}', "node", "ID", "missing"),
    ('{"bucket":"nodes","key":"x","value":{"ID":null}}', "node", "ID", "missing"),
    ('{"bucket":"nodes","key":"x","value":{"ID":"y"}}', "node", "ID", "not the key"),
    ('{"bucket":"nodes","key":"x","value":null}', "node", None, "a JSON object"),
    ('{"bucket":"nodes","key":"","value":{"ID":""}}', "node", "ID", "empty"),
    ('{"bucket":"nodes","key":"\\ud800","value":{"ID":"\\ud800"}}', "node", "ID", "surrogate"),
    (line("nodes", "x", Boss=True), "node", "Boss", "there is no such field; the fields are: ID Role"),
    (line("nodes", "x", role="worker"), "node", "role", "no such field"),
    (line("nodes", "x", Revision=1), "node", "Revision", "no such field"),
    (line("nodes", "x", Role="boss"), "node", "Role", "manager, worker, hybrid"),
    (line("nodes", "x", CreatedAt="yesterday"), "node", "CreatedAt", "RFC 3339"),
    (
        line("nodes", "x", Resources={"CPUCores": 1.5}),
        "node",
        "Resources.CPUCores",
        "must be a whole number, not a number with a decimal point",
    ),
    (line("services", "x", RestartPolicy={"Delay": 1.5}), "service", "RestartPolicy.Delay", "nanoseconds"),
    (line("services", "x", RestartPolicy={"Delay": 10**40}), "service", "RestartPolicy.Delay", "duration"),
    (line("services", "x", Replicas=2**63), "service", "Replicas", "64-bit"),
    (line("services", "x", Ports=[None]), "service", "Ports[0]", "a JSON object"),
    (line("services", "x", Ports=[{"HostIP": ""}]), "service", "Ports[0].HostIP", "did you mean HostPort?"),
    (line("secrets", "x", Data="hunter2!"), "secret", "Data", "base64"),
    (
        line("ingresses", "x", Rules=[{"Paths": [{}, {"PathType": "Regex"}]}]),
        "ingress",
        "Rules[0].Paths[1].PathType",
        "Prefix, Exact",
    ),
    (line("ca", "x"), "ca", None, "'ca'"),
    (ca_line(None), "ca", None, "base64 text or a JSON object"),
    (ca_line([1]), "ca", None, "base64 text or a JSON object"),
    (ca_line("not base64!"), "ca", None, "base64"),
    ('{"bucket":"ca","key":"ca","value":{"a":"\\ud800"}}', "ca", None, "UTF-8"),
]


@pytest.mark.parametrize(("text", "kind", "field", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_a_line_that_is_no_record_is_refused_in_one_clear_line(
    text: str, kind: str, field: str | None, reason: str
) -> None:
    with pytest.raises(InvalidEntity) as caught:
        parse_line(text)
    error = caught.value
    assert (error.kind, error.field) == (kind, field)
    assert reason in error.reason
    assert "\n" not in str(error)
    assert len(str(error)) < 200
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("kind", "entity"), [("nodes", Node(id="n")), ("service", Node(id="n")), ("ca", Node(id="n")), ("node", b"n")]
)
def test_only_entities_of_the_kind_are_written(kind: str, entity: Any) -> None:
    with pytest.raises(InvalidEntity):
        format_line(kind, entity)


def test_an_entity_of_a_newer_manager_can_be_exported() -> None:
    rules = (IngressRule(paths=(IngressPath(path_type="Regex"),)),)
    assert written(Ingress(id="i", rules=rules))["Rules"][0]["Paths"][0]["PathType"] == "Regex"


def test_a_record_needs_no_line() -> None:
    assert parse_record("networks", "n", {"ID": "n"})[0] == "network"
