"""Message <-> frames: the bytes that travel between managers, and which bytes are refused on arrival.

Not here: sockets, links, which frame goes first (link_queue.py), the meaning of any message (transport.py,
raft/dispatch.py).
Invariant: bytes of a peer give a map with a text `type`, or `BadFrame`. They run no code, and a claimed length alone
takes no memory.

A frame is one byte of flags, a 3-byte big-endian body length, the 4-byte big-endian CRC-32 of the body, and the body.
A message is one CBOR map (RFC 8949) of definite length, without tags, with text or byte keys; integers fit 64 bits.
A small message is the body of one frame. A larger message is cut into several frames, and frames of other lanes may
come between them. Its first body begins with the fields of `_FIRST`: the term of the leader that sends the message (0:
messages of its type have no term), and the length of the whole message.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import cbor2

from warren_raft.errors import InvariantViolation, WarrenError
from warren_raft.raft.lanes import Lane
from warren_raft.raft.messages import COMMAND_BYTES_MAX, lane_of, leaders_term
from warren_raft.support import strict_cbor

Message = dict[str, Any]
Buffer = bytes | bytearray | memoryview

KIB = 1024
MIB = 1024 * KIB

MAX_MESSAGE_BYTES = COMMAND_BYTES_MAX + 64 * KIB
"""The largest message. A message has one log entry, whose largest content is one command of 4 MiB, or at most 512 KiB
of other data. The 64 KiB are for the fields around an entry."""

MAX_BODY_BYTES = 64 * KIB
"""The largest body of one frame. No message can interrupt a frame, and a link of 1 MB/s is busy with it for 65 ms."""

PART_BYTES_MIN = 1 * KIB
"""The smallest part of a message except the last. Parts of one byte would cost fifty times their size in memory."""

HANDSHAKE_MESSAGE_BYTES = 60 * KIB
"""The largest message before both sides have accepted each other. Any program may send a hello; ours has some hundred
bytes."""

HANDSHAKE_ITEMS = 64
"""The most CBOR items of a message before both sides have accepted each other. A hello has some thirty."""

LANE_BITS: Final = 0x03
MORE: Final = 0x04
"""Further frames of the same message follow in this lane."""
FIRST: Final = 0x08
"""The first of several frames of a message."""
MARK: Final = 0x10
"""The receiver has to answer at once how many bytes it has got (link_queue.py)."""
GIVEN_UP: Final = 0x20
"""The rest of the lane's unfinished message does not come. The frame has no body."""
_KNOWN_FLAGS: Final = LANE_BITS | MORE | FIRST | MARK | GIVEN_UP

_HEADER = struct.Struct(">II")
HEADER_BYTES: Final = _HEADER.size
_FIRST = struct.Struct(">QI")
FIRST_BYTES: Final = _FIRST.size


class BadFrame(WarrenError):
    """The bytes are not a frame of ours. The place in the stream is lost, so the connection has to be dropped."""


def encode_body(message: Mapping[str, object]) -> bytes:
    """The CBOR of a message.

    Raises `InvariantViolation` if the message cannot be sent at all: it is too large (callers refuse such data long
    before), or has a type that CBOR lacks. The caller must not use tagged types (sets, times, integers beyond 64 bits):
    they encode, but the receiver drops the link.
    """
    try:
        body = cbor2.dumps(message)
    except cbor2.CBOREncodeError as error:
        raise InvariantViolation(f"message {message.get('type')!r} cannot be encoded: {error}") from error
    if len(body) > MAX_MESSAGE_BYTES:
        text = f"message {message.get('type')!r} has {len(body)} bytes, over the limit of {MAX_MESSAGE_BYTES}"
        raise InvariantViolation(text)
    return body


def check_lane(kind: str, lane: Lane, body: bytes) -> None:
    """Raises `InvariantViolation` for a control message that is so large that other messages would wait for it."""
    if lane is Lane.CONTROL and len(body) > MAX_BODY_BYTES:
        raise InvariantViolation(f"message {kind!r} of {len(body)} bytes is too large for its lane")


def frame_head(flags: int, body: Buffer) -> bytes:
    """The bytes of a frame before its body."""
    return _HEADER.pack(flags << 24 | len(body), zlib.crc32(body))


def first_body(term: int, length: int, data: Buffer) -> bytes:
    """The body of the first of several frames."""
    return b"".join((_FIRST.pack(term, length), data))


def encode(message: Mapping[str, Any]) -> bytes:
    """All frames of a message, without other frames between them. Raises `InvariantViolation` as `encode_body` does."""
    body, lane = encode_body(message), lane_of(message)
    if len(body) <= MAX_BODY_BYTES:
        return frame_head(lane, body) + body
    check_lane(message["type"], lane, body)
    step = MAX_BODY_BYTES - FIRST_BYTES
    first = first_body(leaders_term(message), len(body), body[:step])
    pieces = [frame_head(lane | FIRST | MORE, first), first]
    for at in range(step, len(body), step):
        part = body[at : at + step]
        pieces += (frame_head(lane | (MORE if at + step < len(body) else 0), part), part)
    return b"".join(pieces)


class _Unfinished:
    """A message of which some frames have arrived."""

    __slots__ = ("came", "length", "parts", "term")

    def __init__(self, term: int, length: int) -> None:
        self.term = term
        self.length = length
        self.parts: list[bytes] = []
        self.came = 0


class FrameReader:
    """Turns a stream of chunks into messages: `feed` a chunk, then `read` until it returns None.

    The cost is linear in the bytes that are fed, in chunks of any size. The reader holds the arrived bytes of one
    frame, of one unfinished message in each lane, and the rest of one chunk. `limit_bytes` and `limit_items` of a
    message may be changed between messages. After `BadFrame` the reader must not be used any more. Not thread-safe.
    """

    __slots__ = (
        "_at",
        "_chunk",
        "_held",
        "_unfinished",
        "arriving_term",
        "counted_bytes",
        "has_read_all",
        "limit_bytes",
        "limit_items",
        "marked_bytes",
        "unfinished_bytes",
    )

    def __init__(self, limit_bytes: int = MAX_MESSAGE_BYTES, *, limit_items: int = strict_cbor.MAX_ITEMS) -> None:
        self.limit_bytes = limit_bytes
        self.limit_items = limit_items
        self.counted_bytes = 0
        """The bytes of all frames so far that are not CONTROL."""
        self.marked_bytes = 0
        """`counted_bytes` at the end of the newest frame with a mark."""
        self.arriving_term: int | None = None
        """Parts of messages have arrived since this was None: the newest term of these messages (0: they have no
        term)."""
        self.unfinished_bytes = 0
        """The bytes that are held of unfinished messages."""
        self.has_read_all = True
        """Whether `read` would return None, because all bytes of the last chunk were read."""
        self._chunk: Buffer = b""  # the bytes that are read: the last chunk, or _held
        self._held = bytearray()  # the beginning of a frame that came in pieces, and the bytes after it
        self._at = 0  # the next byte of _chunk to read
        self._unfinished: dict[int, _Unfinished] = {}

    @property
    def held_bytes(self) -> int:
        """The bytes that are held of unfinished messages and frames. Valid after `read` has returned None."""
        return self.unfinished_bytes + len(self._held)

    def feed(self, chunk: Buffer) -> None:
        """Take the next bytes of the stream. The caller must not change them until `read` has returned None."""
        self.has_read_all = False
        if self._held:
            self._held += chunk
            self._chunk = self._held
        else:
            self._chunk = chunk

    def read(self) -> Message | None:
        """The next message, or None if its rest has not arrived. Raises `BadFrame`."""
        while True:
            start = self._at + HEADER_BYTES
            if start > len(self._chunk):
                self._hold()
                return None
            word, checksum = _HEADER.unpack_from(self._chunk, self._at)
            flags, length = word >> 24, word & 0xFFFFFF
            if flags & ~_KNOWN_FLAGS or flags & LANE_BITS > Lane.BULK:
                raise BadFrame(f"a frame has unknown flags {flags:#04x}")
            if length > MAX_BODY_BYTES:
                raise BadFrame(f"a frame claims {length} bytes, over the limit of {MAX_BODY_BYTES}")
            end = start + length
            if end > len(self._chunk):
                self._hold()
                return None
            body = bytes(self._chunk[start:end])
            self._at = end
            if zlib.crc32(body) != checksum:
                raise BadFrame(f"a frame of {length} bytes does not match its checksum")
            if flags != Lane.CONTROL:
                whole = self._take(flags, body)
                if whole is None:
                    continue
                body = whole
            if len(body) > self.limit_bytes:
                raise BadFrame(f"a message of {len(body)} bytes, over the limit of {self.limit_bytes}")
            if end == len(self._chunk):
                self._hold()
            return _decode(body, self.limit_items)

    def _take(self, flags: int, body: bytes) -> bytes | None:
        """The body of the message that a frame holds or completes; None if the message is unfinished."""
        lane = flags & LANE_BITS
        if lane != Lane.CONTROL:
            self.counted_bytes += HEADER_BYTES + len(body)
            if flags & MARK:
                self.marked_bytes = self.counted_bytes
        if lane not in self._unfinished and not flags & (FIRST | MORE | GIVEN_UP):
            return body
        return self._take_part(lane, flags, body)

    def _take_part(self, lane: int, flags: int, body: bytes) -> bytes | None:
        message = self._unfinished.get(lane)
        if flags & GIVEN_UP:
            if message is None or body:
                raise BadFrame("a frame gives up a message that was not begun")
            self._forget(lane)
            return None
        if message is None:
            message, body = self._begin(lane, flags, body)
        elif flags & FIRST:
            raise BadFrame("a message begins within another one of its lane")
        message.parts.append(body)
        message.came += len(body)
        self.unfinished_bytes += len(body)
        self._check_part(message, body, is_last=not flags & MORE)
        self.arriving_term = max(message.term, self.arriving_term or 0)
        if flags & MORE:
            return None
        self._forget(lane)
        return b"".join(message.parts)

    def _forget(self, lane: int) -> None:
        self.unfinished_bytes -= self._unfinished.pop(lane).came

    def _begin(self, lane: int, flags: int, body: bytes) -> tuple[_Unfinished, bytes]:
        if flags & (FIRST | MORE) != FIRST | MORE or len(body) < FIRST_BYTES:
            raise BadFrame("a frame has a part of a message that was not begun")
        if lane == Lane.CONTROL:
            raise BadFrame("a control message comes in parts")
        term, length = _FIRST.unpack_from(body)
        if length > self.limit_bytes:
            raise BadFrame(f"a message claims {length} bytes, over the limit of {self.limit_bytes}")
        message = self._unfinished[lane] = _Unfinished(term, length)
        return message, body[FIRST_BYTES:]

    @staticmethod
    def _check_part(message: _Unfinished, body: bytes, *, is_last: bool) -> None:
        if is_last:
            is_sound = message.came == message.length
        else:
            is_sound = len(body) >= PART_BYTES_MIN and message.came < message.length
        if not is_sound:
            raise BadFrame(f"a part has {len(body)} bytes, and its message {message.came} of {message.length} bytes")

    def _hold(self) -> None:
        """Keep the unread bytes until more arrive. Usually there are none, and then no buffer is kept."""
        if self._chunk is self._held:
            del self._held[: self._at]
        elif self._at < len(self._chunk):
            self._held = bytearray(memoryview(self._chunk)[self._at :])
        self._chunk = self._held
        self._at = 0
        self.has_read_all = True


def _decode(body: Buffer, max_items: int) -> Message:
    try:
        message = strict_cbor.decode(body, max_items=max_items)
    except strict_cbor.BadCbor as error:
        raise BadFrame(f"a message of {len(body)} bytes is not acceptable CBOR: {error}") from None
    if type(message) is not dict or type(message.get("type")) is not str:
        raise BadFrame("a message is not a map with a text 'type'")
    return message
