"""Promise: a command has exactly one encoding, every manager reads it alike, and no bytes do harm.

A command of a newer manager stops this one. A merely malformed command is `MalformedCommand`, which apply answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_raft.errors import InvariantViolation
from warren_raft.model.forms import KEY_MAX_BYTES
from warren_raft.store.codec import INDEXED_WIDTHS
from warren_raft.store.command import (
    CLOSE_SESSION,
    COMMAND_OVERHEAD_BYTES,
    DELETE,
    DELETE_CASCADE,
    INDEXED_ITEMS_MAX,
    MAX_BATCH_BYTES,
    NO_SESSION,
    OPEN_SESSION,
    PUT,
    REQUEST_KEY_MAX_BYTES,
    REQUEST_KEY_OVERHEAD_BYTES,
    REQUIRE,
    Command,
    MalformedCommand,
    Operation,
    UnknownCommandVersion,
    Verb,
    decode,
    encode,
    encode_operations,
    encoded_operations,
    examine,
    is_session_of,
    new_session,
    operation_size_bytes,
)

numbers = st.integers(0, 2**64 - 1)
ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
kinds = st.integers(1, 23)
conditions = st.none() | numbers
puts = st.builds(Operation, st.just(PUT), kinds, ids, st.binary(min_size=1, max_size=300), conditions)
deletes = st.builds(Operation, st.just(DELETE), kinds, ids, st.none(), conditions)
session_steps = st.sampled_from([(Operation(OPEN_SESSION, 0, ""),), (Operation(CLOSE_SESSION, 0, ""),)])
operations = st.lists(puts | deletes, max_size=5).map(tuple) | session_steps

conditions_alone = st.builds(Operation, st.just(REQUIRE), kinds, ids, st.none(), numbers)
cascades = st.builds(Operation, st.just(DELETE_CASCADE), kinds, ids, st.none(), conditions)
operations_of_version_2 = st.lists(puts | deletes | conditions_alone | cascades, max_size=5).map(tuple) | session_steps


@st.composite
def commands(draw: st.DrawFn, version: int | None = None) -> Command:
    sequence = draw(numbers)
    version = draw(st.sampled_from((1, 2))) if version is None else version
    steps = draw(operations if version == 1 else operations_of_version_2)
    command = Command(draw(numbers), sequence, draw(st.integers(0, sequence)), steps, version=version)
    if version == 1:
        return command
    key = draw(st.just("") | st.text(st.characters(codec="utf-8"), min_size=1, max_size=32))
    return command._replace(fence=draw(numbers), request_key=key, forget_below=draw(numbers) if key else 0)


EXAMPLE = Command(2**62 + 7, 12, 10, (Operation(PUT, 3, "c-1", b"\x81\x63c-1"), Operation(DELETE, 1, "n-1", None, 5)))


@given(commands())
def test_reading_gives_back_the_written_value(command: Command) -> None:
    data = encode(command)
    assert decode(data) == command
    assert encoded_operations(data) == encode_operations(command.operations)
    size = COMMAND_OVERHEAD_BYTES + sum(map(operation_size_bytes, command.operations))
    if command.request_key:
        size += REQUEST_KEY_OVERHEAD_BYTES + len(command.request_key.encode())
    assert len(data) == (size if command.version == 2 else size - 10)


@given(commands())
def test_any_cbor_reader_can_print_a_command_and_finds_the_version_first(command: Command) -> None:
    request = [command.forget_below, command.request_key] if command.request_key else []
    assert cbor2.loads(encode(command)) == [
        command.version,
        command.session,
        command.sequence,
        command.lowest,
        *([command.fence, request] if command.version == 2 else []),
        [
            [o.verb, o.kind_number, -1 if o.if_revision is None else o.if_revision, o.id, o.entity or b""]
            for o in command.operations
        ],
    ]


@given(commands(), st.data())
def test_there_is_no_second_encoding_of_the_same_command(command: Command, data: st.DataObject) -> None:
    """A changed byte makes another command or none: otherwise two managers could read different proposals."""
    good = bytearray(encode(command))
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(good))
    except (MalformedCommand, UnknownCommandVersion):
        return
    assert other != command
    assert encode(other) == bytes(good)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: encode(EXAMPLE)[:34] + tail))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        command = decode(data)
    except (MalformedCommand, UnknownCommandVersion):
        return
    assert encode(command) == data


@pytest.mark.parametrize("length", range(len(encode(EXAMPLE))))
def test_a_command_cut_anywhere_is_malformed(length: int) -> None:
    with pytest.raises(MalformedCommand):
        decode(encode(EXAMPLE)[:length])


def test_bytes_behind_a_command_make_it_malformed() -> None:
    with pytest.raises(MalformedCommand, match="after the end"):
        decode(encode(EXAMPLE) + b"\x00")


@pytest.mark.parametrize(
    "future",
    [b"\x87\x03" + encode(EXAMPLE)[2:], cbor2.dumps([3]), cbor2.dumps([17, {"anything": "else"}, 3])],
)
def test_a_newer_version_stops_the_manager_whatever_its_shape(future: bytes) -> None:
    with pytest.raises(UnknownCommandVersion) as caught:
        decode(future)
    assert caught.value.version == future[1]
    assert isinstance(caught.value, InvariantViolation)


@pytest.mark.parametrize(
    "broken",
    [
        Command(1, 3, 4),  # its lowest awaited sequence is above its own sequence
        Command(1, 1, 1, (Operation(PUT, 3, "c"),)),  # no entity
        Command(1, 1, 1, (Operation(DELETE, 3, "c", b"x"),)),  # an entity
        Command(1, 1, 1, (Operation(PUT, 3, "", b"x"),)),  # no id
        Command(1, 1, 1, (Operation(DELETE, 0, "c"),)),  # no kind
        Command(1, 1, 1, (Operation(9, 3, "c"),)),  # no such verb
        Command(1, 1, 1, (Operation(REQUIRE, 3, "c"),)),  # no condition
        Command(1, 1, 1, (Operation(REQUIRE, 3, "c", b"x", 1),)),  # an entity
        Command(1, 1, 1, (Operation(REQUIRE, 0, "c", None, 1),)),  # no kind
        Command(1, 1, 1, (Operation(DELETE_CASCADE, 2, ""),)),  # no id
        Command(1, 1, 1, (Operation(DELETE_CASCADE, 2, "s", b"x"),)),  # an entity
        Command(1, 1, 1, (Operation(REQUIRE, 3, "c", None, 1),), version=1),  # verbs of version 2
        Command(1, 1, 1, (Operation(DELETE_CASCADE, 2, "s"),), version=1),
        Command(1, 1, 1, request_key="x" * (REQUEST_KEY_MAX_BYTES + 1)),
        Command(1, 1, 1, (Operation(0, 3, "c"),)),
        Command(1, 1, 1, (Operation(PUT, 3, "x" * (KEY_MAX_BYTES + 1), b"x"),)),
        Command(1, 1, 1, (Operation(OPEN_SESSION, 0, ""), Operation(DELETE, 3, "c"))),  # not alone
        Command(1, 1, 1, (Operation(CLOSE_SESSION, 0, "", None, 3),)),
        Command(1, 1, 1, (Operation(OPEN_SESSION, 1, ""),)),
        Command(1, 1, 1, (Operation(OPEN_SESSION, 0, "x"),)),
    ],
)
def test_an_operation_is_whole_or_the_command_is_malformed(broken: Command) -> None:
    with pytest.raises(MalformedCommand):
        decode(encode(broken))


def test_an_id_may_be_as_long_as_a_key() -> None:
    command = Command(1, 1, 1, (Operation(DELETE, 3, "ä" * 255 + "x"),))
    assert decode(encode(command)) == command


def test_an_id_that_is_not_utf_8_is_malformed() -> None:
    with pytest.raises(MalformedCommand):
        decode(encode(EXAMPLE).replace(b"n-1", b"n\xff1"))


# Commands that may be put into a log --------------------------------------------------------------------------------


def problem_of(data: bytes, indexed_widths: Mapping[int, int] = MappingProxyType({})) -> str:
    found = examine(data, indexed_widths)
    return found if isinstance(found, str) else ""


SAMPLES = [
    Command(1 << 62, 9, 1, (Operation(PUT, 3, "id", b"entity", None), Operation(DELETE, 3, "id", None, 7))),
    Command(5, 1, 1, (Operation(Verb.OPEN_SESSION),)),
    Command(5, 2, 0),
    Command(5, 2, 0, (Operation(REQUIRE, 3, "id", None, 7), Operation(DELETE_CASCADE, 2, "s")), 9, "job-17", 40),
    Command(1 << 62, 9, 1, (Operation(PUT, 3, "id", b"entity", None), Operation(DELETE, 3, "id", None, 7)), version=1),
]


def test_a_request_key_has_one_form() -> None:
    good = encode(Command(5, 2, 0, (), 9, "ä", 40))
    start = COMMAND_OVERHEAD_BYTES - 5 - 1
    assert good[start : start + 14] == b"\x82\x1b" + (40).to_bytes(8, "big") + b"\x78\x02" + "ä".encode()
    for position, value in [(0, 0x81), (0, 0x83), (1, 0x1A), (10, 0x79), (11, 0), (11, 3), (12, 0xFF)]:
        with pytest.raises(MalformedCommand):
            decode(good[: start + position] + bytes((value,)) + good[start + position + 1 :])


@pytest.mark.parametrize("command", SAMPLES)
def test_a_command_that_decode_reads_may_be_put_into_a_log(command: Command) -> None:
    assert examine(encode(command)) == command


@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3), st.data())
def test_it_may_exactly_where_decode_reads_it(command: Command, changes: list[tuple[int, int]], data: Any) -> None:
    raw = bytearray(encode(command))
    for position, value in changes:
        raw[position % len(raw)] = value
    cut = data.draw(st.integers(0, len(raw)))
    for candidate in (bytes(raw), bytes(raw[:cut]), bytes(raw) + b"x"):
        try:
            is_readable = decode(candidate).session != NO_SESSION
        except (MalformedCommand, UnknownCommandVersion):
            is_readable = False
        assert (problem_of(candidate) == "") is is_readable


def test_a_command_of_another_version_is_named_as_such() -> None:
    raw = bytearray(encode(SAMPLES[0]))
    raw[1] = 9
    assert problem_of(bytes(raw)) == "a command of version 9, this release reads 2"


def test_a_command_that_is_too_large_or_has_no_session_may_not_be_put_into_a_log() -> None:
    assert "is the most" in problem_of(bytes(MAX_BATCH_BYTES + 1))
    assert "no session" in problem_of(encode(Command(NO_SESSION, 1, 1)))


CERTIFICATE, CONTAINER = 8, 3
NOT_INDEXED = "not a command: an indexed field of an entity is not a text, or there are too many"


@pytest.mark.parametrize(
    ("kind_number", "entity"),
    [
        (CERTIFICATE, ["c1", "web", [[]] * 1000]),
        (CERTIFICATE, ["c1", "web", ["a"] * (INDEXED_ITEMS_MAX + 1)]),
        (CERTIFICATE, ["c1", {"a": 1}, []]),
        (CERTIFICATE, ["c1", "web", 7]),
        (CONTAINER, ["c1", [[[]]], "web", "n1"]),
        (CONTAINER, "c1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_indexed_field_must_be_text(kind_number: int, entity: object) -> None:
    """Such an entity of 4 MiB took nine seconds of each manager's raft thread."""
    command = encode(Command(5, 1, 1, (Operation(PUT, kind_number, "c1", cbor2.dumps(entity)),)))
    assert problem_of(command, INDEXED_WIDTHS) == NOT_INDEXED
    assert problem_of(command) == ""


def test_the_indexed_items_of_a_command_are_bounded_together() -> None:
    def command(hosts: int) -> bytes:
        entity = cbor2.dumps(["c1", "web", ["a"] * hosts])
        return encode(Command(5, 1, 1, tuple(Operation(PUT, CERTIFICATE, f"c{n}", entity) for n in range(2))))

    assert problem_of(command(INDEXED_ITEMS_MAX // 2), INDEXED_WIDTHS) == ""
    assert problem_of(command(INDEXED_ITEMS_MAX // 2 + 1), INDEXED_WIDTHS) == NOT_INDEXED


def test_an_entity_that_ends_early_may_not() -> None:
    entity = cbor2.dumps(["c1", "web", ["a", "b"]])
    for end in range(len(entity)):
        steps = (Operation(PUT, CERTIFICATE, "c1", entity[:end] or b"\x83"),)
        assert problem_of(encode(Command(5, 1, 1, steps)), INDEXED_WIDTHS) == NOT_INDEXED


def test_a_session_is_its_managers() -> None:
    for number in (0, 1, 5, (1 << 39) - 1):
        session = new_session("m1", {39: number}.__getitem__)
        assert 0 < session < 1 << 63
        assert is_session_of(session, "m1")
        assert not is_session_of(session, "m2")
