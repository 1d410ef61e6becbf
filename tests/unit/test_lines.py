"""The quick way from a line to its operation: the same operation, or the same error, as the careful way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given

from tests.strategies import any_entity
from warren_raft.errors import InvalidEntity
from warren_raft.migrate import lines
from warren_raft.migrate.lines import operation_of
from warren_raft.migrate.records import ZERO_TIME, format_line, format_stored, parse_line
from warren_raft.model.entities import (
    Container,
    Entity,
    HealthCheck,
    Node,
    NodeResources,
    PortMapping,
    ResourceRequirements,
    Secret,
    TLSCertificate,
    kind_name,
)
from warren_raft.store.command import Operation
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import BY_NAME


def careful(text: str) -> Operation:
    kind, _, entity = parse_line(text)
    return put_operation(BY_NAME[kind], entity, None)


def answer(make: Callable[[str], Operation], text: str) -> object:
    try:
        return make(text)
    except InvalidEntity as error:
        return type(error), str(error), error.id, error.field


def require_same(text: str) -> object:
    found = answer(operation_of, text)
    assert found == answer(careful, text)
    return found


@given(any_entity())
@example(Node(id="n", resources=NodeResources(cpu_allocated=-0.0)))
def test_every_exported_entity_is_read_quickly_and_the_same(entity: Entity) -> None:
    text = format_line(kind_name(type(entity)), entity)
    name = kind_name(type(entity))
    operation = put_operation(BY_NAME[name], entity, None)
    assert lines._usual_line(text) == require_same(text) == operation
    bucket, value = BY_NAME[name].bucket, format_stored(name, entity)
    assert lines._usual_stored(bucket, entity.id.encode(), value) == operation
    assert lines.operation_of_stored(bucket, entity.id.encode(), value) == operation


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or position) of every value in parsed JSON."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.5, 4.0, 1 << 62, 1 << 63, 1 << 400, 1e308),
    *("", "a", "running", "\ud800", ZERO_TIME, "0001-01-01T00:00:00+00:00", "2026-01-02T03:04:05.1234567+01:00"),
    *("2026-02-30T00:00:00Z", "YQ==", "=", "x" * 600),
    *([], [None], ["a"], [1], [[]], [{}], {}, {"a": "b"}, {"a": 1}, {"ID": "c"}),
]
FULL: list[Entity] = [
    Container(
        id="c",
        env=("A=b",),
        ports=(PortMapping(name="http"),),
        health_check=HealthCheck(command=("true",)),
        resources=ResourceRequirements(cpu_limit=2.0),
    ),
    Secret(id="s", data=b"secret"),
    TLSCertificate(id="t", hosts=("a.example",)),
]


@pytest.mark.parametrize("entity", FULL, ids=lambda entity: type(entity).__name__)
def test_every_value_in_every_place_has_the_answer_of_the_careful_way(entity: Entity) -> None:
    text = format_line(kind_name(type(entity)), entity)
    good = bad = 0
    for number in range(sum(1 for _ in places(json.loads(text)))):
        for value in VALUES:
            line = json.loads(text)
            inner, key = list(places(line))[number]
            inner[key] = value
            if isinstance(require_same(json.dumps(line)), Operation):
                good += 1
            else:
                bad += 1
    assert good > 20
    assert bad > 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        '{"bucket": "nodes"}',
        '{"bucket": "nodes", "key": "n", "value": {"ID": "n"}, "more": 1}',
        '{"bucket": "nodes", "key": "n", "value": {"ID": "m"}}',
        '{"bucket": "nodes", "key": "n", "value": {}}',
        '{"bucket": "nodes", "key": "n", "value": {"ID": "n", "Nothing": 1}}',
        '{"bucket": "nodes", "key": "n", "value": {"ID": "n"}}',
        '{"bucket": "nodes", "key": "n", "value": {"ID": "n"}} x',
        '{"bucket": "tasks", "key": "n", "value": {"ID": "n"}}',
        '{"bucket": "tasks", "key": "n", "value": {"ID": NaN}}',
        '{"bucket": "ca", "key": "ca", "value": "YQ=="}',
        '{"bucket": ["nodes"], "key": "n", "value": {"ID": "n"}}',
        '{"bucket": "nodes", "key": "n", "value": ' + "[" * 100_000,
        '{"bucket": "secrets", "key": "s", "value": {"ID": "s", "Data": "' + "A" * 4_000_000 + '"}}',
    ],
    ids=lambda text: text[:60],
)
def test_a_line_in_another_form_has_the_answer_of_the_careful_way(text: str) -> None:
    require_same(text)
