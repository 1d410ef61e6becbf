"""Promises: a peer reads the message that a manager encoded, in any pieces that the network makes of it. Other bytes
are a `BadFrame`, at a cost bounded by the bytes that arrived. (PySyncObj unpickled the bytes of strangers, buffered as
much as a length prefix of 2 GiB claimed, and took 6.3 s of CPU for 24 MiB.)"""

from __future__ import annotations

import datetime
import itertools
import pickle
import struct
import sys
import tracemalloc
import zlib
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_raft.errors import InvariantViolation
from warren_raft.raft.lanes import Lane
from warren_raft.raft.links import wire
from warren_raft.raft.links.wire import (
    FIRST,
    GIVEN_UP,
    MARK,
    MORE,
    BadFrame,
    FrameReader,
    Message,
    encode,
    first_body,
)
from warren_raft.raft.messages import COMMAND_BYTES_MAX
from warren_raft.store.command import MAX_BATCH_BYTES
from warren_raft.support import strict_cbor

APPEND: Message = {"type": "append", "term": 3, "entries": [[7, 3, b"command"]], "commit": 6, "hint": None}

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
messages = st.builds(
    lambda fields, kind: {**fields, "type": kind}, st.dictionaries(st.text(), values, max_size=5), st.text()
)


def frame(body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">II", flags << 24 | len(body), zlib.crc32(body)) + body


def frames(body: bytes) -> bytes:
    """A message of any size, in as many frames as it needs."""
    if len(body) <= wire.MAX_BODY_BYTES:
        return frame(body)
    step = wire.MAX_BODY_BYTES - wire.FIRST_BYTES
    found = [frame(first_body(0, len(body), body[:step]), Lane.NORMAL | FIRST | MORE)]
    for at in range(step, len(body), step):
        found.append(frame(body[at : at + step], Lane.NORMAL | (MORE if at + step < len(body) else 0)))
    return b"".join(found)


def read_all(reader: FrameReader, *chunks: bytes) -> list[Message]:
    found = []
    for chunk in chunks:
        reader.feed(chunk)
        while (message := reader.read()) is not None:
            found.append(message)
    return found


# Messages that are sent arrive.


@pytest.mark.slow
@given(st.lists(messages, max_size=6), st.data())
def test_messages_arrive_in_order_however_the_stream_is_cut(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert read_all(FrameReader(), *chunks) == sent


def test_a_stream_cut_at_every_single_byte_loses_nothing() -> None:
    stream = encode(APPEND) + encode({"type": "ping"}) + encode(APPEND)
    expected = [APPEND, {"type": "ping"}, APPEND]
    assert read_all(FrameReader(), *(stream[i : i + 1] for i in range(len(stream)))) == expected
    for cut in range(len(stream) + 1):
        assert read_all(FrameReader(), stream[:cut], stream[cut:]) == expected


def test_the_layout_of_a_frame_is_pinned() -> None:
    """Two releases run side by side during an upgrade, so these bytes must not change."""
    assert encode({"type": "ping"}) == bytes.fromhex("0000000b 415a15a2 a1 64 74797065 64 70696e67")


def test_the_layout_of_a_message_in_parts_is_pinned() -> None:
    """Flags and lane, length, checksum. The first body begins with the leader's term and the message's length."""
    body = cbor2.dumps({"type": "append_entries", "term": 5, "x": bytes(1024)})
    stream = frame(first_body(5, len(body), body[:1024]), 0x0D) + frame(body[1024:], 0x11)
    assert stream[:20] == bytes.fromhex("0d00040c 2e326018 0000000000000005 00000420")
    assert read_all(FrameReader(), stream) == [{"type": "append_entries", "term": 5, "x": bytes(1024)}]


def test_the_largest_allowed_message_passes_and_one_byte_more_does_not() -> None:
    overhead = len(encode({"type": "x", "data": b""})) - 8 + 4  # a long byte string has four more bytes of length
    data = bytes(wire.MAX_MESSAGE_BYTES - overhead)
    (message,) = read_all(FrameReader(), encode({"type": "x", "data": data}))
    assert len(message["data"]) == len(data)
    with pytest.raises(InvariantViolation, match="over the limit"):
        encode({"type": "x", "data": data + b"!"})


def test_a_message_that_others_would_have_to_wait_for_is_no_control_message() -> None:
    with pytest.raises(InvariantViolation, match="'change' of 70020 bytes is too large for its lane"):
        encode({"type": "change", "x": bytes(70_000)})


LARGE: Message = {"type": "append_entries", "term": 5, "entries": [[bytes(range(256)) * 1000, 7, 5]]}


def parts_of(message: Message, size: int, lane: int, term: int = 5) -> list[bytes]:
    body = wire.encode_body(message)
    found = [frame(first_body(term, len(body), body[:size]), lane | FIRST | MORE)]
    for at in range(size, len(body), size):
        found.append(frame(body[at : at + size], lane | (MORE if at + size < len(body) else 0)))
    return found


@pytest.mark.slow
@given(st.data())
def test_lanes_pass_each_other_between_the_parts_of_large_messages(data: st.DataObject) -> None:
    """The messages of a lane stay in order and whole, with any frames of other lanes between their frames."""
    normal = [*parts_of(LARGE, 40_000, Lane.NORMAL), encode(APPEND), *parts_of(LARGE, 64_000, Lane.NORMAL)]
    bulk = [*parts_of({"type": "snapshot_chunk", "data": bytes(150_000)}, 50_000, Lane.BULK, term=0)]
    control = [encode({"type": "append_reply", "n": n}) for n in range(4)]
    waiting = [normal, bulk, control]
    stream = []
    while any(waiting):
        stream.append(data.draw(st.sampled_from([lane for lane in waiting if lane])).pop(0))
    found = read_all(FrameReader(), *stream)
    assert [m for m in found if m["type"] in ("append_entries", "append")] == [LARGE, APPEND, LARGE]
    assert [m["n"] for m in found if m["type"] == "append_reply"] == [0, 1, 2, 3]
    assert [len(m["data"]) for m in found if m["type"] == "snapshot_chunk"] == [150_000]


def test_parts_tell_of_the_leader_they_come_from_before_the_message_is_there() -> None:
    reader = FrameReader()
    parts = parts_of(LARGE, 60_000, Lane.NORMAL)
    assert read_all(reader, parts[0]) == []
    assert reader.arriving_term == 5
    assert reader.unfinished_bytes == 60_000
    reader.arriving_term = None
    assert read_all(reader, parts[1][:-1]) == []
    assert reader.arriving_term is None, "a part counts only when it is whole and its checksum is right"
    assert read_all(reader, parts[1][-1:], *parts[2:]) == [LARGE]
    assert reader.arriving_term == 5
    assert reader.unfinished_bytes == 0


def test_a_message_may_be_given_up_and_the_next_of_its_lane_is_whole() -> None:
    reader = FrameReader()
    parts = parts_of(LARGE, 60_000, Lane.BULK)
    stream = [*parts[:2], frame(b"", Lane.BULK | GIVEN_UP), encode({"type": "snapshot_chunk", "n": 1})]
    assert read_all(reader, *stream) == [{"type": "snapshot_chunk", "n": 1}]
    assert reader.unfinished_bytes == 0


def test_a_mark_is_answered_with_what_came_before_it_control_messages_left_out() -> None:
    reader = FrameReader()
    first = frame(cbor2.dumps({"type": "x"}), Lane.NORMAL)
    marked = frame(cbor2.dumps({"type": "x", "y": 1}), Lane.BULK | MARK)
    read_all(reader, first, encode({"type": "ping"}), marked, first)
    assert (reader.marked_bytes, reader.counted_bytes) == (len(first + marked), len(first + marked + first))


def begun(length: int) -> bytes:
    """The frame with the first 1024 bytes of a message of this length."""
    return frame(first_body(0, length, bytes(1024)), Lane.NORMAL | FIRST | MORE)


BAD_PARTS: dict[str, list[bytes]] = {
    "a part of a message that was not begun": [frame(b"x", Lane.NORMAL | MORE)],
    "a part of no message, which is a message itself": [frame(cbor2.dumps(APPEND), Lane.NORMAL | MORE)],
    "a message that was not begun is given up": [frame(cbor2.dumps(APPEND), Lane.BULK | GIVEN_UP)],
    "a message that begins in the middle of another": [*parts_of(LARGE, 60_000, 1)[:1], *parts_of(LARGE, 60_000, 1)],
    "a first part that is also the last": [frame(first_body(0, 1, b"x"), Lane.NORMAL | FIRST)],
    "a first part too short for its fields": [frame(b"x", Lane.NORMAL | FIRST | MORE)],
    "more bytes than were announced": [begun(1030), frame(b"1234567", 1)],
    "fewer bytes than were announced": [begun(1030), frame(b"1", 1)],
    "all bytes that were announced, and no last part": [begun(1024)],
    "a part of a few bytes that is not the last": [*parts_of(LARGE, 60_000, 1)[:1], frame(b"x" * 1000, 1 | MORE)],
    "an empty part": [*parts_of(LARGE, 60_000, 1)[:1], frame(b"", Lane.NORMAL | MORE)],
    "a control message in parts": [frame(first_body(0, 5000, bytes(1024)), FIRST | MORE)],
    "a giving up without a message": [frame(b"", Lane.BULK | GIVEN_UP)],
    "a giving up with a body": [*parts_of(LARGE, 60_000, 1)[:1], frame(b"x", Lane.NORMAL | GIVEN_UP)],
    "an unknown lane": [frame(b"x", 3)],
    "an unknown flag": [frame(b"x", 0x40)],
    "a message over the limit": [begun(wire.MAX_MESSAGE_BYTES + 1)],
}


@pytest.mark.parametrize("what", BAD_PARTS)
def test_parts_that_do_not_make_a_message_are_refused(what: str) -> None:
    with pytest.raises(BadFrame):
        read_all(FrameReader(), *BAD_PARTS[what])


def test_what_cbor_cannot_hold_is_an_error_at_the_sender() -> None:
    with pytest.raises(InvariantViolation, match="'odd' cannot be encoded"):
        encode({"type": "odd", "value": object()})


# Bytes that are not a frame of ours are refused.


def test_a_flipped_bit_anywhere_in_checksum_or_body_is_noticed() -> None:
    for bit in range(4 * 8, len(encode(APPEND)) * 8):
        damaged = bytearray(encode(APPEND))
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame, match="checksum"):
            read_all(FrameReader(), bytes(damaged))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_bad_frame_and_nothing_else(garbage: bytes) -> None:
    for stream in (garbage, frame(garbage)):
        try:
            found = read_all(FrameReader(), stream)
        except BadFrame:
            continue
        assert all(isinstance(message["type"], str) for message in found)


def test_a_truncated_frame_is_waited_for_not_guessed() -> None:
    reader = FrameReader()
    whole = encode(APPEND)
    for cut in range(len(whole)):
        assert read_all(FrameReader(), whole[:cut]) == []
    assert read_all(reader, whole[:-1]) == []
    assert read_all(reader, whole[-1:]) == [APPEND]


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "not a map": cbor2.dumps([1, 2]),
    "no type": cbor2.dumps({"kind": "append"}),
    "type is bytes": cbor2.dumps({"type": b"append"}),
    "type is a number": cbor2.dumps({"type": 1}),
    "number as a key": cbor2.dumps({"type": "x", 1: 2}),
    "the same key twice": b"\xa2\x64type\x61x\x64type\x61y",
    "something after the map": cbor2.dumps({"type": "x"}) + b"\x00",
    "cut short": cbor2.dumps({"type": "x", "n": 1})[:-1],
    "indefinite length": b"\xbf\x64type\x61x\xff",
    "bad UTF-8": b"\xa1\x64type\x61\xff",
    "a time": cbor2.dumps({"type": "x", "at": datetime.datetime.now(datetime.UTC)}),
    "a big number": cbor2.dumps({"type": "x", "n": 1 << 70}),
    "a set": cbor2.dumps({"type": "x", "s": {1}}),
    "a shared reference": b"\xa2\x64type\x61x\x61a\xd8\x1c\x80",
    "a string reference": cbor2.dumps({"type": "x"}, string_referencing=True),
    "an unknown tag": cbor2.dumps({"type": "x", "v": cbor2.CBORTag(4711, 1)}),
    "self-described CBOR": cbor2.dumps(cbor2.CBORTag(55799, {"type": "x"})),
    "nested too deep": b"\xa2\x64type\x61x\x61a" + b"\x81" * strict_cbor.MAX_DEPTH + b"\x00",
    "an array that claims 2**32 items": b"\xa2\x64type\x61x\x61a\x9a\xff\xff\xff\xff",
    "bytes that claim 2**62": b"\xa2\x64type\x61x\x61a\x5b\x40" + bytes(7),
    "pickle": pickle.dumps({"type": "x"}),
}


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_body_that_is_not_plain_cbor_of_ours_is_refused(what: str) -> None:
    with pytest.raises(BadFrame):
        read_all(FrameReader(), frame(BAD_BODIES[what]))


def test_nothing_that_arrives_is_ever_unpickled() -> None:
    """A pickle runs code when it is read. No bytes of a peer may be able to run code."""
    assert not any("pickle" in (getattr(value, "__module__", "") or "") for value in vars(wire).values())

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return pytest.fail, ("unpickled",)

    with pytest.raises(BadFrame):
        read_all(FrameReader(), frame(pickle.dumps({"type": Bomb()})))


# The cost is bounded by the bytes that arrived.


def test_a_length_prefix_alone_costs_nothing() -> None:
    for claimed in (wire.MAX_BODY_BYTES + 1, 2**24 - 1):
        with pytest.raises(BadFrame, match=f"claims {claimed} bytes"):
            read_all(FrameReader(), struct.pack(">II", claimed, 0))
    with pytest.raises(BadFrame, match="unknown flags 0xff"):
        read_all(FrameReader(), struct.pack(">II", 2**32 - 1, 0))
    handshake = FrameReader(wire.HANDSHAKE_MESSAGE_BYTES)
    with pytest.raises(BadFrame, match="message of 65536 bytes, over the limit of 61440"):
        read_all(handshake, frame(bytes(65_536)))
    with pytest.raises(BadFrame, match="message claims 61441 bytes, over the limit of 61440"):
        read_all(FrameReader(wire.HANDSHAKE_MESSAGE_BYTES), frame(first_body(0, 61_441, b"x"), 0x0D))
    tracemalloc.start()
    try:
        claim = frame(first_body(0, wire.MAX_MESSAGE_BYTES, bytes(1024)), Lane.NORMAL | FIRST | MORE)
        assert read_all(FrameReader(), claim) == []
        assert tracemalloc.get_traced_memory()[1] < 64 * wire.KIB
    finally:
        tracemalloc.stop()


def copied_bytes(stream: bytes, step: int) -> int:
    """The bytes that a reader moves for a stream in steps. They are counted, so the test depends on no clock."""
    moved = 0
    reader = FrameReader()
    for at in range(0, len(stream), step):
        before = buffers(reader)
        read_all(reader, stream[at : at + step])
        for name, (room, size) in buffers(reader).items():
            if before.get(name, (0, 0))[0] != room:  # the buffer was allocated again, so at worst copied
                moved += size
    return moved


def buffers(reader: FrameReader) -> dict[int, tuple[int, int]]:
    """(allocated bytes, used bytes) of each buffer of a reader."""
    return {-1: (sys.getsizeof(reader._held), len(reader._held))}


def test_the_cost_of_a_message_in_small_pieces_is_linear() -> None:
    """The buffer grows by a constant factor, so the copies add up to a small multiple of the frame, not its square."""
    size = 1 * wire.MIB
    stream = encode({"type": "x", "data": bytes(size)})
    assert copied_bytes(stream, 512) < 20 * size


def test_many_small_frames_in_one_chunk_do_not_move_the_rest_each_time() -> None:
    reader = FrameReader()
    reader.feed(encode({"type": "ping"}) * 20_000)
    chunk = reader._chunk
    for _ in range(20_000):
        assert reader._chunk is chunk
        assert not reader.has_read_all
        assert reader.read() == {"type": "ping"}
    assert reader.has_read_all
    assert reader.read() is None
    assert len(reader._held) == 0


def test_a_large_body_of_tiny_items_is_refused_before_it_becomes_objects() -> None:
    """16 MiB of empty lists would be 1.2 GB of objects and take seven seconds. A correct large body is one large
    entry."""
    count = 2 * wire.MIB
    body = b"\xa2\x64type\x61x\x61a\x9a" + struct.pack(">I", count) + b"\x80" * count
    with pytest.raises(BadFrame, match="items"):
        read_all(FrameReader(), frames(body))


def test_a_message_of_a_stranger_has_few_items() -> None:
    """Before a link is up, any program may send a message."""
    items = wire.HANDSHAKE_ITEMS
    for count, is_refused in ((items - 5, False), (items, True)):
        reader = FrameReader(wire.HANDSHAKE_MESSAGE_BYTES, limit_items=items)
        reader.feed(encode({"type": "hello", "x": [0] * count}))
        if is_refused:
            with pytest.raises(BadFrame, match="over 64 items"):
                reader.read()
        else:
            assert reader.read() is not None


def test_a_large_body_of_large_items_passes() -> None:
    message = {
        "type": "x",
        "entries": [[i, 2**40, -5, 1.5, None, "text" * 99, bytes(70_000)] for i in range(40)],
    }
    assert read_all(FrameReader(), encode(message)) == [message]


def test_a_message_is_as_long_as_the_longest_command_and_a_few_fields() -> None:
    """A member may leave one message unfinished in each of two lanes, in the memory of this manager. (Pins a bug: 16
    MiB.)"""
    assert MAX_BATCH_BYTES == COMMAND_BYTES_MAX
    assert wire.MAX_MESSAGE_BYTES == COMMAND_BYTES_MAX + 64 * 1024
