"""The quick check of a record: what it accepts can be decoded, and has the index keys that every manager finds."""

from __future__ import annotations

from random import Random
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast import fast_first
from tests.hostile_cbor import NOT_OURS
from tests.strategies import STRANGE_VALUES, entities
from warren_raft.model.entities import Container, HealthCheck, PortMapping
from warren_raft.model.forms import FormKind, fields_of
from warren_raft.snapshots.records import array_of
from warren_raft.store import codec
from warren_raft.store.leading import leading_items
from warren_raft.store.tables import CA, CONTAINER, KINDS, SERVICE, Kind

ENTITY_KINDS = [kind for kind in KINDS if kind.entity is not None]
NEWEST = 1_000


def require_agreement(kind: Kind[Any], key: bytes, record: bytes, newest: int = NEWEST) -> bool:
    """Whether the quick check accepts the record. If so, everything else has to accept it too."""
    array = array_of(kind, key, record, newest)
    if array is None:
        return False
    entity = codec.decode(kind, record)
    assert entity.id.encode() == key
    assert entity.revision == codec.record_revision(record)
    assert 0 < entity.revision <= newest
    leading = leading_items(record, codec.indexed_width(kind))
    for _, keys_of in codec.index_keys(kind):
        assert keys_of(array) == keys_of(leading)
    return True


@pytest.mark.parametrize("kind", fast_first(ENTITY_KINDS, 3), ids=str)
def test_every_record_of_this_release_is_accepted(kind: Kind[Any]) -> None:
    @given(entities(kind.entity), st.integers(1, NEWEST))
    def check(entity: Any, revision: int) -> None:
        record = codec.make_record(revision, codec.encode(kind, entity))
        assert require_agreement(kind, entity.id.encode(), record)
        assert not require_agreement(kind, entity.id.encode() + b"x", record)
        assert not require_agreement(kind, entity.id.encode(), record, revision - 1)

    check()


def test_every_value_in_every_place_is_accepted_only_if_it_can_be_decoded() -> None:
    """A nested array is walked too: `places` are paths."""

    def places(array: list[Any], path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
        found = []
        for position, value in enumerate(array):
            found.append((*path, position))
            if type(value) is list:
                found += places(value, (*path, position))
        return found

    values = [
        *(value for value in STRANGE_VALUES if type(value) in (int, float, bytes, list, dict, bool)),
        *(None, True, 1.5),
        *([], [[]], [1], ["a"], ["a", 1], {}, {"a": "b"}, "", "a", b"", b"a", 0, -1, 1 << 62, 1 << 63, -(1 << 63)),
    ]
    full = Container(
        id="c",
        service_id="s",
        node_id="n",
        env=("A=b",),
        ports=(PortMapping(name="http"),),
        health_check=HealthCheck(command=("true",)),
    )
    accepted = refused = 0
    for place in places(cbor2.loads(codec.encode(CONTAINER, full))):
        for value in values:
            array = cbor2.loads(codec.encode(CONTAINER, full))
            inner = array
            for step in place[:-1]:
                inner = inner[step]
            inner[place[-1]] = value
            if require_agreement(CONTAINER, b"c", codec.make_record(1, cbor2.dumps(array))):
                accepted += 1
            else:
                refused += 1
    assert accepted > 200
    assert refused > 200


def test_damaged_bytes_are_accepted_only_if_they_can_be_decoded() -> None:
    random = Random(7)
    for kind, entity in ((CONTAINER, Container(id="c", service_id="s", node_id="n")), (SERVICE, None)):
        array = ["c", "web"] if entity is None else cbor2.loads(codec.encode(kind, entity))
        record = codec.make_record(9, cbor2.dumps(array))
        for _ in range(4_000):
            data = bytearray(record)
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            require_agreement(kind, b"c", bytes(data[: random.choice((len(data), random.randrange(len(data) + 1)))]))


@pytest.mark.parametrize("what", NOT_OURS)
def test_cbor_that_no_manager_writes_is_not_accepted(what: str) -> None:
    assert array_of(CONTAINER, b"c", b"\x82\x01" + NOT_OURS[what], NEWEST) is None


@pytest.mark.parametrize(
    "record",
    [
        b"\x82\x01\x99\x00\x16" + cbor2.dumps(cbor2.loads(codec.encode(CONTAINER, Container(id="c"))))[1:],
        b"\x9f\x01" + codec.encode(CONTAINER, Container(id="c")) + b"\xff",
        b"\x98\x02\x01" + codec.encode(CONTAINER, Container(id="c")),
    ],
    ids=["a longer head of the entity", "an array without a length", "a longer head of the record"],
)
def test_heads_that_no_index_key_is_read_behind_are_not_accepted(record: bytes) -> None:
    assert leading_items(record, 1) == []
    assert array_of(CONTAINER, b"c", record, NEWEST) is None


def test_an_older_and_a_newer_entity_are_left_to_the_decoder() -> None:
    array = cbor2.loads(codec.encode(CONTAINER, Container(id="c")))
    for other in (array[:5], [*array, "newer"]):
        assert array_of(CONTAINER, b"c", codec.make_record(1, cbor2.dumps(other)), NEWEST) is None
    assert array_of(CA, b"ca", codec.make_record(1, codec.encode(CA, b"ca")), NEWEST) is None


def test_the_largest_and_the_smallest_time_are_those_of_the_decoder() -> None:
    position = next(n for n, field in enumerate(fields_of(Container)) if field.form.kind is FormKind.TIME)
    array = cbor2.loads(codec.encode(CONTAINER, Container(id="c")))
    found = []
    for time in (-62135596800000001, -62135596800000000, 253402300799999999, 253402300800000000):
        array[position] = time
        found.append(require_agreement(CONTAINER, b"c", codec.make_record(1, cbor2.dumps(array))))
    assert found == [False, True, True, False]
