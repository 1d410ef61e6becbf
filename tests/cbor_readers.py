"""All readers of CBOR from outside this process: functions of bytes, and the errors that each raises for bad bytes.

Used by the tests of the strict decoder and by the fuzzers. Not here: hostile CBOR (hostile_cbor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from warren_raft.errors import InvariantViolation
from warren_raft.fsm.sessions import Session
from warren_raft.raft import entries
from warren_raft.raft.lanes import Lane
from warren_raft.raft.links import wire
from warren_raft.raft.links.wire import (
    FIRST,
    MORE,
    BadFrame,
    FrameReader,
)
from warren_raft.raft.membership import (
    Founding,
    Hello,
    Membership,
    read_note,
)
from warren_raft.store import codec
from warren_raft.store.tables import CONTAINER
from warren_raft.support.strict_cbor import BadCbor, decode, decode_record


def hello(founding: bytes) -> dict[str, Any]:
    said = Hello("m2", "127.0.0.1:7946", "inc", True, None, 0, b"")
    return {**said.to_message(), "founding": founding}


def in_frames(body: bytes) -> bytes:
    """A message of any size, in as many frames as it needs."""
    if len(body) <= wire.MAX_BODY_BYTES:
        return wire.frame_head(0, body) + body
    step = wire.MAX_BODY_BYTES - wire.FIRST_BYTES
    parts = [wire.first_body(0, len(body), body[:step])]
    parts += [body[at : at + step] for at in range(step, len(body), step)]
    flags = [Lane.NORMAL | FIRST | MORE, *[Lane.NORMAL | MORE] * (len(parts) - 2), int(Lane.NORMAL)]
    return b"".join(wire.frame_head(flag, part) + part for flag, part in zip(flags, parts, strict=True))


def read_message(body: bytes) -> object:
    reader = FrameReader()
    reader.feed(in_frames(body))
    return reader.read()


READERS: dict[str, tuple[Callable[[bytes], object], type[Exception]]] = {
    "a message": (read_message, BadFrame),
    "the founders in a hello": (lambda data: Hello.from_message(hello(data)), ValueError),
    "founders": (Founding.decode, ValueError),
    "the list of members": (Membership.decode, ValueError),
    "the note of a log": (read_note, InvariantViolation),
    "a log entry with commands": (lambda data: entries.decode(b"\x00\x01" + data), InvariantViolation),
    "a log entry with a change": (lambda data: entries.decode(b"\x00\x02" + data), InvariantViolation),
    "a session": (Session.decode, ValueError),
    "a record": (lambda data: codec.decode(CONTAINER, data), codec.MalformedRecord),
    "an entity": (lambda data: codec.decode_entity(CONTAINER, data, 1), codec.MalformedRecord),
    "bytes": (decode, BadCbor),
    "a record's bytes": (decode_record, BadCbor),
}
"""Each reader of CBOR from outside -> the errors that it raises for bytes that it cannot read. (A blank note and an
empty founding record are not CBOR.)"""
