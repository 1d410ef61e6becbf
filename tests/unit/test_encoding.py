"""The promise: an entity's bytes are those of its CBOR array, and nothing is stored that `validate` would refuse.

The encoders are compiled and write CBOR by themselves, so both are compared with something slower that is plainly
right: the bytes with cbor2's for an array that is built field by field, the checks with the walk that converts.
"""

from __future__ import annotations

import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from hypothesis import given

from tests.strategies import almost_entities, any_entity, strange_entities
from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import (
    ENTITY_CLASSES,
    Container,
    ContainerState,
    HealthCheck,
    HealthCheckType,
    Node,
    NodeResources,
    RestartPolicy,
    Secret,
    Service,
    TLSCertificate,
    validate,
)
from warren_raft.model.forms import INTEGER_MAX, INTEGER_MIN, Form, FormKind, FrozenMap, fields_of
from warren_raft.model.validation import Refused, normalised
from warren_raft.store.encoding import NOT_PLAIN, struct_encoder

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def array_of(entity: Any) -> list[Any]:
    """The meaning of the bytes: the values of all fields but `revision`, in order."""
    return [plain(field.form, getattr(entity, field.name)) for field in fields_of(type(entity))]


def plain(form: Form, value: Any) -> Any:
    """A value as CBOR has it."""
    if value is None:
        return None
    if form.kind is FormKind.SEQUENCE:
        return [plain(form.item, item) for item in value]
    if form.kind is FormKind.STRUCT:
        return array_of(value)
    if form.kind is FormKind.TIME:
        return (value - EPOCH) // MICROSECOND
    if form.kind is FormKind.DURATION:
        return value // MICROSECOND
    if form.kind is FormKind.MAP:
        return dict(sorted(value.items()))
    return str(value) if form.kind is FormKind.CHOICE else value


def encoded(entity: Any) -> bytes:
    return struct_encoder(type(entity))(entity)


@pytest.mark.slow
@given(any_entity())
def test_the_bytes_are_those_of_cbor2(entity: Any) -> None:
    assert encoded(entity) == cbor2.dumps(array_of(entity))


LONG = [0, 1, 23, 24, 255, 256, 65535, 65536]
"""Lengths at which the head of an item changes its form."""

EDGES: list[Any] = [
    *(Service(id="s", image="x" * length) for length in LONG),
    *(Service(id="s", image="é" * (length // 2)) for length in LONG),
    *(Service(id="s", env=("A=1",) * length) for length in LONG),
    *(Service(id="s", labels=FrozenMap({str(n): "é" for n in range(length)})) for length in LONG),
    *(Secret(id="s", data=bytes(length)) for length in LONG),
    *(Container(id="c", exit_code=sign * number) for number in [*LONG, 2**32 - 1, 2**32] for sign in (1, -1)),
    *(Container(id="c", exit_code=number) for number in (INTEGER_MIN, INTEGER_MAX, -24, -25, -256, -257)),
    *(Container(id="c", created_at=EPOCH + n * MICROSECOND) for n in (-(2**40), -1, 0, 1, 2**32 - 1, 2**32)),
    Container(id="c", created_at=datetime.max.replace(tzinfo=UTC)),
    Container(id="c", created_at=datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
    *(Container(id="c", restart_policy=RestartPolicy(delay=n * MICROSECOND)) for n in (0, 1, 2**63 - 1)),
    *(Node(id="n", resources=NodeResources(cpu_allocated=number)) for number in (0.0, -0.0, 0.1, 1e300, 5e-324)),
    Container(id="c", desired_state=ContainerState.RUNNING, health_check=HealthCheck(type=HealthCheckType.TCP)),
    Node(id="𝔸" * 127, labels=FrozenMap({"é": "1", "z": "2", "𝔸": "3", "\uffff": "4"})),
    TLSCertificate(id="t", hosts=("x" * 511, "é" * 255)),
]


@pytest.mark.parametrize("entity", EDGES, ids=lambda entity: repr(entity)[:60])
def test_the_bytes_are_those_of_cbor2_at_every_edge(entity: Any) -> None:
    assert encoded(entity) == cbor2.dumps(array_of(entity))


@pytest.mark.slow
@pytest.mark.parametrize("cls", ENTITY_CLASSES.values())
def test_the_encoder_agrees_with_validate_also_in_its_refusals(cls: Any) -> None:
    """Were the encoder the laxer of the two, every manager would find something in the log that cannot be stored."""
    for entity in strange_entities(cls):
        compare_with_validate(entity)
    given(almost_entities(cls))(compare_with_validate)()


def compare_with_validate(entity: Any) -> None:
    try:
        data = encoded(entity)
    except NOT_PLAIN:
        data = None
    try:
        wanted = encoded(normalised(entity))
    except Refused:
        wanted = None
    assert data in (None, wanted)


@pytest.mark.slow
@given(any_entity())
def test_a_normal_entity_is_encoded_without_asking_validate(entity: Any) -> None:
    assert normalised(entity) == entity
    encoded(entity)


def test_lists_and_dicts_are_encoded_as_they_are() -> None:
    """Most callers have these; a conversion would take longer than the write itself."""
    given_in = Service(id="s", env=["A=1"], labels={"b": "2", "a": "1"})  # type: ignore[arg-type]
    assert encoded(given_in) == encoded(validate(given_in))


class Name(str):
    """Text that is more than text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


def test_an_id_has_exactly_the_type_of_text() -> None:
    """The id itself goes into the command beside the bytes."""
    with pytest.raises(NOT_PLAIN):
        encoded(Node(id=Name("n")))
    assert encoded(Node(id="n", address=Name("a"))) == encoded(Node(id="n", address="a"))


class Lookalike:
    """Equal to a member of an enumeration, and no text."""

    def __eq__(self, other: object) -> bool:
        return other == "manager"

    def __hash__(self) -> int:
        return hash("manager")


def test_a_value_that_only_looks_like_a_member_of_an_enumeration_is_refused() -> None:
    lookalike: Any = Lookalike()
    with pytest.raises(NOT_PLAIN):
        encoded(Node(id="n", role=lookalike))
    with pytest.raises(InvalidEntity):
        validate(Node(id="n", role=lookalike))


def test_a_traceback_shows_the_line_of_the_compiled_encoder() -> None:
    wrong: Any = 5
    with pytest.raises(TypeError) as caught:
        encoded(Node(id="n", hostname=wrong))
    assert "utf8(self.hostname))], value," in "".join(traceback.format_exception(caught.value))
