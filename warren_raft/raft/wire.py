"""Message <-> frame: what travels between managers, byte for byte, and what is refused on arrival.

Not here: sockets, links, the meaning of any message (transport.py, engine.py).
Invariant: bytes of a peer yield a map with a text `type`, or `BadFrame`; no code, no memory only claimed.

A frame is a 4-byte big-endian body length, the 4-byte big-endian CRC-32 of the body, and the body: one CBOR
map (RFC 8949) of definite length, without tags, with text or byte keys. Integers fit 64 bits.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import cbor2

from warren_raft.errors import InvariantViolation, WarrenError

Message = dict[str, Any]

KIB = 1024
MIB = 1024 * KIB

MAX_FRAME_BYTES = 16 * MIB + 64 * KIB
"""Largest body. A message carries one log entry (at most about 5 MiB) or at most 512 KiB of anything else, so
this is three times what is ever sent; the slack is for the fields around an entry."""

HANDSHAKE_FRAME_BYTES = 64 * KIB
"""Largest body before both sides accepted each other: a hello has some hundred bytes, from anybody."""

MAX_DEPTH = 16
"""Nested containers in a message. Ours have four levels."""

SPARSE_BODY_BYTES = 1 * MIB
MAX_ITEMS = 16 * KIB
"""A body above `SPARSE_BODY_BYTES` is one large entry, so it has few CBOR items. Without this bound 16 MiB of
empty lists become 1.2 GB of objects and seven seconds of a thread that has heartbeats to answer."""

_HEADER = struct.Struct(">II")


class BadFrame(WarrenError):
    """The bytes are not a frame of ours. The stream has lost its place: the connection has to be dropped."""


def encode(message: Mapping[str, Any]) -> bytes:
    """The frame of a message, ready to be written to any number of links.

    Raises `InvariantViolation` when the message cannot be sent at all (too large, or with a type CBOR lacks):
    what is too large is refused long before. Tagged types (sets, times, integers beyond 64 bits) are the
    caller's to avoid: they encode, and the receiver drops the link.
    """
    try:
        body = cbor2.dumps(message)
    except cbor2.CBOREncodeError as error:
        raise InvariantViolation(f"message {message.get('type')!r} cannot be encoded: {error}") from error
    if len(body) > MAX_FRAME_BYTES:
        text = f"message {message.get('type')!r} has {len(body)} bytes, over the limit of {MAX_FRAME_BYTES}"
        raise InvariantViolation(text)
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


class FrameReader:
    """Turns a stream of chunks into messages: `feed` a chunk, then `read` until it returns None.

    Cost is linear in the bytes fed, however they are cut; what is held is what has arrived of one frame and
    the rest of one chunk. `limit_bytes` may be changed between messages. After `BadFrame` it is of no use.
    """

    __slots__ = ("_at", "_chunk", "_held", "limit_bytes")

    def __init__(self, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._chunk: bytes | bytearray | memoryview = b""  # where frames are read from: the last chunk, or _held
        self._held = bytearray()  # the beginning of a frame that came in pieces, and what came after it
        self._at = 0  # how far _chunk is read

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the stream. They are the reader's until `read` has returned None."""
        if self._held:
            self._held += chunk
            self._chunk = self._held
        else:
            self._chunk = chunk

    def read(self) -> Message | None:
        """The next message, or None when the rest of it has not arrived. Raises `BadFrame`."""
        start = self._at + _HEADER.size
        if start > len(self._chunk):
            self._hold()
            return None
        length, checksum = _HEADER.unpack_from(self._chunk, self._at)
        if length > self.limit_bytes:
            raise BadFrame(f"a frame claims {length} bytes, over the limit of {self.limit_bytes}")
        end = start + length
        if end > len(self._chunk):
            self._hold()
            return None
        with memoryview(self._chunk) as view:
            body = bytes(view[start:end])
        self._at = end
        if zlib.crc32(body) != checksum:
            raise BadFrame(f"a frame of {length} bytes does not match its checksum")
        return _decode(body)

    def _hold(self) -> None:
        """Keep what is left until more arrives. The usual case, nothing left, keeps no buffer either."""
        if self._chunk is self._held:
            del self._held[: self._at]
        elif self._at < len(self._chunk):
            self._held = bytearray(memoryview(self._chunk)[self._at :])
        self._chunk = self._held
        self._at = 0


class _NoTags(Mapping[int, Any]):
    """Tells cbor2 that every tag has a decoder, which refuses: dates, big numbers, shared references, all."""

    def __getitem__(self, tag: int) -> Any:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _refuse_tag(value: object, immutable: bool) -> Any:
    raise ValueError("tags are not used")


_NO_TAGS = _NoTags()


def _decode(body: bytes) -> Message:
    if len(body) > SPARSE_BODY_BYTES:
        _check_item_count(body)
    stream = io.BytesIO(body)
    decoder = cbor2.CBORDecoder(
        stream,
        semantic_decoders=_NO_TAGS,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )
    try:
        message = decoder.decode()
    except cbor2.CBORDecodeError as error:
        raise BadFrame(f"a frame of {len(body)} bytes is not acceptable CBOR: {error}") from error
    if stream.tell() != len(body):
        raise BadFrame(f"a frame of {len(body)} bytes has something after its message")
    if type(message) is not dict or type(message.get("type")) is not str:
        raise BadFrame("a frame holds no map with a text 'type'")
    return message


def _check_item_count(body: bytes) -> None:
    """Walk the heads of all items (they follow each other whatever the nesting), skipping strings unseen."""
    at = 0
    for _ in range(MAX_ITEMS):
        if at >= len(body):
            return
        major, info = body[at] >> 5, body[at] & 0x1F
        at += 1
        value = info
        if 24 <= info < 28:
            width = 1 << (info - 24)
            value = int.from_bytes(body[at : at + width], "big")
            at += width
        if major in (2, 3):  # byte string, text string
            at += value
    raise BadFrame(f"a frame of {len(body)} bytes has over {MAX_ITEMS} items")
