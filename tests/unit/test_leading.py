"""The promise: every manager reads the id and the indexed fields of a record alike, from any bytes.

The results are compared with those of cbor2, for bytes in the form that this package writes, and noise does no harm.
"""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_raft.store import codec
from warren_raft.store.leading import (
    begin_alike,
    is_byte_string,
    is_entity_of,
    leading_items,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(["x" * 255, "x" * 256])
REVISIONS = st.sampled_from([0, 23, 24, 255, 256, 2**16, 2**32, 2**64 - 1])
SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.binary(max_size=30) | TEXTS
VALUES = st.recursive(
    SCALARS | st.datetimes(timezones=st.timezones()),  # a tag
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
ITEMS = TEXTS | st.lists(TEXTS, max_size=4) | VALUES
FEW = st.sampled_from(
    ["", "a", "b", "é", "x" * 23, "x" * 24, "x" * 23 + "y", "x" * 255, "x" * 256, ["a"], ["b"], 5, None]
)


def record_of(revision: int, array: Any) -> bytes:
    return codec.make_record(revision, cbor2.dumps(array))


def seen(item: Any) -> Any:
    """An item as the indexes see it."""
    if type(item) is list:
        return [part for part in item if type(part) is str]
    return item if type(item) is str else None


@given(REVISIONS, st.lists(ITEMS, max_size=26), st.integers(0, 26))
def test_the_first_items_are_the_same_as_cbor2_reads(revision: int, array: list[Any], count: int) -> None:
    assert leading_items(record_of(revision, array), count) == [seen(item) for item in array[:count]]


@given(REVISIONS, REVISIONS, st.lists(FEW, max_size=6), st.lists(FEW, max_size=6), st.integers(0, 5))
def test_records_that_begin_alike_have_the_same_first_items(
    revision: int, other_revision: int, array: list[Any], other: list[Any], count: int
) -> None:
    """Were this wrong, an index would keep a key that its entity no longer has."""
    records = record_of(revision, array), record_of(other_revision, other)
    are_short_texts = all(type(item) is str and len(item.encode()) < 256 for item in array[:count])
    expected = len(array) == len(other) >= count and array[:count] == other[:count] and are_short_texts
    assert begin_alike(*records, count) is expected


@given(st.lists(FEW, max_size=6), st.data())
def test_a_record_begins_like_itself_changed_behind_and_not_like_itself_cut(
    array: list[Any], data: st.DataObject
) -> None:
    record = record_of(7, array)
    count = data.draw(st.integers(0, 6))
    if begin_alike(record, record, count):
        assert begin_alike(record, record + b"behind", count)
        cut = record[: data.draw(st.integers(0, len(record)))]
        assert not begin_alike(cut, record, count) or leading_items(cut, count) == leading_items(record, count)
        assert not begin_alike(record, cut, count) or leading_items(cut, count) == leading_items(record, count)


def test_a_record_that_is_cut_off_does_not_begin_like_the_whole() -> None:
    record = record_of(7, ["abcd"])
    assert begin_alike(record, record, 1)
    assert not begin_alike(record[:-1], record, 1)
    assert not begin_alike(record, record[:-1], 1)


FORMS = st.sampled_from(
    [
        b"\x82",
        b"\x84",
        b"\x98",
        b"\x9f",
        b"\xff",
        b"\x61a",
        b"\x62a",
        b"\x78\x01a",
        b"\x7f",
        b"\x18\x18",
        b"\xd9",
        b"\xf6",
    ]
)


@given(st.lists(FORMS, max_size=12).map(b"".join) | st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 4))
def test_no_bytes_raise_and_an_unreadable_item_is_left_out(noise: bytes, other: bytes, count: int) -> None:
    for record in (noise, b"\x82\x01" + noise):
        items = leading_items(record, count)
        assert items == leading_items(record, 4)[:count]
        for longer in (record + other, other + record, b"\x82\x05" + other):
            assert not begin_alike(record, longer, count) or leading_items(longer, count) == items
            assert not begin_alike(longer, record, count) or leading_items(longer, count) == items
    is_entity_of("a", noise)
    is_byte_string(noise)


@pytest.mark.parametrize(
    "form", ["9affffffff61", "9bffffffffffffffff61", "bbffffffffffffffff61", "7bffffffffffffffff61"]
)
def test_a_false_length_costs_nothing(form: str) -> None:
    assert leading_items(b"\x82\x01\x82" + bytes.fromhex(form) + b"a", 2) == []


@pytest.mark.parametrize(
    ("record", "items"),
    [
        ("8201826161", ["a"]),  # of two items, one is there
        ("820181616a6162", ["j"]),  # bytes after the array are not items of it
        ("82018142ff", []),
        ("82018198", []),
        ("820181826161", []),
        ("82018161ff", []),  # no UTF-8
        ("8301816161", []),  # not a record
        ("8218816161", []),
        ("82", []),
        ("", []),
    ],
)
def test_an_item_that_is_not_whole_is_not_there(record: str, items: list[Any]) -> None:
    assert leading_items(bytes.fromhex(record), 2) == items


def test_depth_does_not_matter() -> None:
    deep = b"\x81" * 100_000 + b"\x00"
    assert leading_items(b"\x82\x01\x82" + deep + b"\x61a", 2) == [[], "a"]


@given(TEXTS, st.lists(ITEMS, max_size=25))
def test_an_entity_is_known_by_its_id(id_: str, others: list[Any]) -> None:
    entity = cbor2.dumps([id_, *others])
    assert is_entity_of(id_, entity)
    assert not is_entity_of(id_ + "x", entity)
    assert not is_entity_of("x" + id_, entity)


@pytest.mark.parametrize(
    "entity", ["", "80", "806161", "98", "9800", "9f6161ff", "a16161f6", "6161", "816162", "814161", "81786161"]
)
def test_bytes_that_begin_in_another_way_belong_to_no_entity(entity: str) -> None:
    assert not is_entity_of("a", bytes.fromhex(entity))


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=3))
def test_plain_bytes_are_known_to_the_last_one(data: bytes, more: bytes) -> None:
    entity = cbor2.dumps([data])
    assert is_byte_string(entity)
    assert not is_byte_string(entity + more)
    assert not is_byte_string(entity[:-1])
    assert not is_byte_string(cbor2.dumps([data, data]))
    assert not is_byte_string(cbor2.dumps([["a"]]))
    assert not is_byte_string(b"\x82" + entity[1:])
