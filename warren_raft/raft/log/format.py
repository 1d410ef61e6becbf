"""The bytes of the log: segment headers, records, batches, and the judgement of a damaged tail.

Lives here: pure functions from values to bytes and back. Not here: files, and the meaning of records (log.py).
Invariant: a batch is accepted only if every byte of it is as it was written. docs/log-format.md has the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from zlib import crc32

from ...errors import InvariantViolation

FORMAT_VERSION = 1
PAGE = 4096  # the page cache writes back, or loses, a whole page
SECTOR = 512  # a drive writes a whole sector: batches and trailers begin at one, so a torn write harms no other batch

MAX_NOTE_BYTES = 64 * 1024  # each segment header repeats the note
MAX_NAME_BYTES = 4096  # node ids, incarnations and votes: three of them fit a header beside the note
MAX_COMMAND_BYTES = 1 << 30  # a record's length has 32 bits
MAX_HEADER_BYTES = 128 * 1024  # more than the note and three names: a larger length is damaged

ENTRY, TRUNCATE, TERM, NOTE = 1, 2, 3, 4  # kinds of record

_FRAME = struct.Struct("<8sIII")  # magic, version, header bytes, CRC: no format version ever changes this part
_FRAME_MAGIC = b"WARRENLG"
_FIELDS = struct.Struct("<9Q")
_LENGTH = struct.Struct("<I")
_NO_VOTE = 0xFFFFFFFF

_RECORD_CRC = struct.Struct("<I")
_RECORD_REST = struct.Struct("<IBQQ")  # length of the data, kind, two numbers
_RECORD = struct.Struct("<IIBQQ")

_HEAD = struct.Struct("<4sQQQ")  # magic, batch number, commit index, body length in bytes
_HEAD_MAGIC = b"WBAT"
HEAD_BYTES = _HEAD.size + _LENGTH.size
_TRAILER = struct.Struct("<4sQQQ")  # magic, batch number, offset of the body, body length in bytes
_TRAILER_MAGIC = b"WEND"
_TRAILER_MARK = b"\xa5\x5a\xa5\x5a"  # ends a trailer: no single flipped bit makes it look unwritten

_ZEROS = bytes(64 * 1024)


class Damaged(Exception):
    """The bytes are not those that were written. Never leaves the log: opening.py turns it into Corrupted."""


class UnknownVersion(Exception):
    """The segment is sound, and has another format version."""


class State(NamedTuple):
    """The contents of a log at one point, without the entries themselves."""

    last_index: int
    last_term: int
    current_term: int
    voted_for: str | None
    commit_index: int
    note: bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The beginning of a segment: its owner, the segments before it, and the state with which reading starts."""

    number: int
    capacity: int  # bytes of the file, all of them written before the segment got its name
    oldest_segment: int  # the oldest one that reading needs, when this was written; older ones may be removed
    previous_end: int  # the end of the previous segment's last batch: nothing behind it is ever read again
    first_batch: int
    node_id: str
    incarnation: str
    state: State

    def with_capacity(self, capacity: int) -> SegmentHeader:
        return replace(self, capacity=capacity)

    def with_room(self, body_length: int) -> SegmentHeader:
        """The same header with a capacity of whole pages, not below its own, in which a batch of this length fits."""
        end = batch_span(len(encode_header(self)), body_length)[1]
        return self.with_capacity(align(max(self.capacity, end), PAGE))


# -- segment headers


def encode_header(header: SegmentHeader) -> bytes:
    """The header as whole pages. Its CRC covers every byte of them."""
    state = header.state
    fields = _FIELDS.pack(
        header.number,
        header.capacity,
        header.oldest_segment,
        header.previous_end,
        header.first_batch,
        state.last_index,
        state.last_term,
        state.current_term,
        state.commit_index,
    )
    vote = _LENGTH.pack(_NO_VOTE) if state.voted_for is None else _blob(state.voted_for.encode())
    names = _blob(header.node_id.encode()) + _blob(header.incarnation.encode())
    rest = b"".join((fields, names, vote, _blob(state.note)))
    size = align(_FRAME.size + len(rest), PAGE)
    rest = rest.ljust(size - _FRAME.size, b"\0")
    frame = _FRAME.pack(_FRAME_MAGIC, FORMAT_VERSION, size, 0)
    return _FRAME.pack(_FRAME_MAGIC, FORMAT_VERSION, size, crc32(rest, crc32(frame))) + rest


def header_size(start: bytes) -> int:
    """The header's length in bytes, from a segment's first page."""
    if len(start) < PAGE:
        raise Damaged("the segment is shorter than its header")
    magic, _, size, _ = _FRAME.unpack_from(start)
    if magic != _FRAME_MAGIC:
        raise Damaged("this is not a segment of a log, or its header is damaged")
    if size % PAGE or not PAGE <= size <= MAX_HEADER_BYTES:
        raise Damaged("the segment's header is damaged")
    return int(size)


def header_salt(data: bytes) -> int:
    """The seed for the CRCs of a segment's batches. So batches of another segment or manager never pass for its own."""
    return int(_FRAME.unpack_from(data)[3])


def decode_header(data: bytes) -> SegmentHeader:
    """The header from exactly header_size() bytes. Raises Damaged or UnknownVersion."""
    magic, version, size, crc = _FRAME.unpack_from(data)
    frame = _FRAME.pack(magic, version, size, 0)
    if len(data) != size or crc32(memoryview(data)[_FRAME.size :], crc32(frame)) != crc:
        raise Damaged("the segment's header is damaged")
    if version != FORMAT_VERSION:
        raise UnknownVersion(f"log format {version}; this program knows format {FORMAT_VERSION}")
    fields = _FIELDS.unpack_from(data, _FRAME.size)
    number, capacity, oldest, end, batch, index, term, current, commit = fields
    at = _FRAME.size + _FIELDS.size
    node_id, at = _take_blob(data, at)
    incarnation, at = _take_blob(data, at)
    vote, at = _take_blob(data, at)
    note, at = _take_blob(data, at)
    voted_for = None if vote is None else vote.decode()
    state = State(index, term, current, voted_for, commit, note or b"")
    names = ((node_id or b"").decode(), (incarnation or b"").decode())
    return SegmentHeader(number, capacity, oldest, end, batch, *names, state)


def encode_name(name: str) -> bytes:
    """A node id or incarnation as bytes. InvariantViolation if it is empty or too long for a header."""
    data = name.encode()
    if not 0 < len(data) <= MAX_NAME_BYTES:
        raise InvariantViolation(f"a name has 1 to {MAX_NAME_BYTES} bytes, not {len(data)}")
    return data


def _blob(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _take_blob(data: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    return (None, at) if length == _NO_VOTE else (data[at : at + length], at + length)


# -- records


def record_head(kind: int, first: int, second: int, data: bytes) -> bytes:
    """The bytes before `data` in a record. The CRC covers both."""
    rest = _RECORD_REST.pack(len(data), kind, first, second)
    return _RECORD_CRC.pack(crc32(data, crc32(rest))) + rest


def records(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, first number, second number, data) of each record between two offsets. Raises Damaged."""
    size, unpack = _RECORD.size, _RECORD.unpack_from
    while start < end:
        if end - start < size:
            raise Damaged("a record is cut off")
        crc, length, kind, first, second = unpack(data, start)
        stop = start + size + length
        if stop > end:
            raise Damaged("a record is longer than its batch")
        content = data[start + size : stop]
        if crc32(content, crc32(data[start + 4 : start + size])) != crc:
            raise Damaged("a record fails its checksum")
        yield kind, first, second, content
        start = stop


# -- batches


class BatchView(NamedTuple):
    """The place of a sound batch in its segment, in bytes from the segment's start, and the contents of its head."""

    number: int
    commit_index: int
    start: int
    body_end: int
    end: int

    def records(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The records of this batch, from the segment's bytes."""
        return records(data, self.start + HEAD_BYTES, self.body_end)


def align(offset: int, unit: int) -> int:
    """The next multiple of `unit` at or after `offset`."""
    return -(-offset // unit) * unit


def batch_span(start: int, body_length: int) -> tuple[int, int]:
    """(start of the trailer, end of the batch), in bytes from the segment's start."""
    trailer = align(start + body_length, SECTOR)
    pages = -(-trailer // PAGE) - start // PAGE
    size = _TRAILER.size + pages * _LENGTH.size + _LENGTH.size + len(_TRAILER_MARK)
    return trailer, trailer + align(size, SECTOR)


def encode_batch(number: int, commit_index: int, parts: Sequence[bytes], start: int, salt: int) -> bytes:
    """The bytes of a whole batch at `start` (a multiple of SECTOR) of the segment with this salt."""
    body_length = HEAD_BYTES + sum(map(len, parts))
    head = _HEAD.pack(_HEAD_MAGIC, number, commit_index, body_length)
    checked = _LENGTH.pack(crc32(head, salt))
    body = b"".join((head, checked, *parts, bytes(-body_length % SECTOR)))
    return body + _trailer(number, start, body_length, body, salt)


def _trailer(number: int, start: int, body_length: int, body: bytes, salt: int) -> bytes:
    """The trailer of a body at `start`: it has a CRC for each page that has a part of the body."""
    sums = struct.pack(f"<{-(-(start + len(body)) // PAGE) - start // PAGE}I", *_page_sums(start, body))
    content = _TRAILER.pack(_TRAILER_MAGIC, number, start, body_length) + sums
    whole = content + _LENGTH.pack(crc32(content, salt)) + _TRAILER_MARK
    return whole.ljust(align(len(whole), SECTOR), b"\0")


def _page_sums(start: int, body: bytes) -> list[int]:
    if start % PAGE + len(body) <= PAGE:  # nearly always, with few writers
        return [crc32(body)]
    view = memoryview(body)
    return [crc32(view[begin:end]) for begin, end in _page_parts(start, len(body))]


def _page_parts(start: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of the body, one for each page of the file, as offsets into the body."""
    begin = 0
    while begin < length:
        end = min(length, begin + PAGE - (start + begin) % PAGE)
        yield begin, end
        begin = end


def read_batch(data: bytes, start: int, number: int, salt: int) -> BatchView | None:
    """Batch `number` at `start` of a segment's bytes, if every byte of it is as it was written; else None."""
    head = _read_head(data, start, salt)
    if head is None or head[0] != number:
        return None
    _, commit_index, body_length = head
    trailer, end = batch_span(start, body_length)
    if end > len(data):
        return None
    if data[trailer:end] != _trailer(number, start, body_length, data[start:trailer], salt):
        return None
    return BatchView(number, commit_index, start, start + body_length, end)


def _read_head(data: bytes, start: int, salt: int) -> tuple[int, int, int] | None:
    """(number, commit index, body length) if there is a sound head of a batch at `start`; else None."""
    if len(data) - start < HEAD_BYTES:
        return None
    magic, number, commit_index, body_length = _HEAD.unpack_from(data, start)
    (crc,) = _LENGTH.unpack_from(data, start + _HEAD.size)
    if magic != _HEAD_MAGIC or crc32(data[start : start + _HEAD.size], salt) != crc:
        return None
    return number, commit_index, body_length


class _Trailer(NamedTuple):
    number: int
    start: int
    body_length: int
    sums: tuple[int, ...]
    offset: int
    end: int


def _read_trailer(data: bytes, offset: int, salt: int) -> _Trailer | None:
    """The trailer at `offset`, if it is sound and belongs there; else None."""
    if len(data) - offset < SECTOR:
        return None
    magic, number, start, body_length = _TRAILER.unpack_from(data, offset)
    if magic != _TRAILER_MAGIC or start + body_length > offset or batch_span(start, body_length)[0] != offset:
        return None
    end = batch_span(start, body_length)[1]
    pages = -(-offset // PAGE) - start // PAGE
    checked = offset + _TRAILER.size + pages * _LENGTH.size
    if end > len(data) or not data.startswith(_TRAILER_MARK, checked + _LENGTH.size):
        return None
    if _LENGTH.unpack_from(data, checked)[0] != crc32(data[offset:checked], salt):
        return None
    sums = struct.unpack_from(f"<{pages}I", data, offset + _TRAILER.size)
    return _Trailer(number, start, body_length, sums, offset, end)


# -- the judgement of a tail that is not a sound batch


def is_zero(data: bytes, start: int) -> bool:
    """True if all bytes from `start` on are zero, as in a new segment."""
    while start < len(data):
        size = min(len(_ZEROS), len(data) - start)
        if not data.startswith(_ZEROS if size == len(_ZEROS) else _ZEROS[:size], start):
            return False
        start += size
    return True


def damage(data: bytes, start: int, number: int, salt: int) -> str | None:
    """The reason why the bytes at `start` cannot be a torn write of batch `number`; None if they can.

    A torn write leaves each page of the batch as it was (zeros) or as written, or a prefix of the bytes. Nothing
    follows it, because the next batch is written only after the sync of this batch has returned.
    """
    if is_zero(data, start):
        return None
    if _something_later(data, start, number, salt):
        return f"batch {number} is damaged, and a later batch follows it"
    head = _read_head(data, start, salt)
    trailer = _find_trailer(data, start, number, salt)
    if trailer is not None:
        return _damage_before(trailer, data, start, number)
    if head is None or head[0] != number:
        return None
    return _damage_of_trailer(data, start, head, salt)


def _something_later(data: bytes, start: int, number: int, salt: int) -> bool:
    """Whether there is a sound head or trailer of a later batch. It proves that batch `number` was synced."""
    for offset in _aligned(data, _HEAD_MAGIC, start):
        head = _read_head(data, offset, salt)
        if head is not None and head[0] > number:
            return True
    for offset in _aligned(data, _TRAILER_MAGIC, start):
        trailer = _read_trailer(data, offset, salt)
        if trailer is not None and trailer.number > number:
            return True
    return False


def _find_trailer(data: bytes, start: int, number: int, salt: int) -> _Trailer | None:
    for offset in _aligned(data, _TRAILER_MAGIC, start):
        trailer = _read_trailer(data, offset, salt)
        if trailer is not None and trailer.number == number and trailer.start == start:
            return trailer
    return None


def _aligned(data: bytes, magic: bytes, start: int) -> Iterator[int]:
    """The offsets, from `start` on, of the sectors that begin with `magic`."""
    offset = data.find(magic, start)
    while offset >= 0:
        if offset % SECTOR == 0:
            yield offset
        offset = data.find(magic, offset + 1)


def _damage_before(trailer: _Trailer, data: bytes, start: int, number: int) -> str | None:
    """`damage` if there is a trailer: each page of the body must be as written, or as it was before."""
    body = data[start : trailer.offset]
    lost = False
    for (begin, end), crc in zip(_page_parts(start, len(body)), trailer.sums, strict=True):
        part = body[begin:end]
        if crc32(part) == crc:
            continue
        if not is_zero(part, 0):
            return f"batch {number} is damaged at offset {start + begin}"
        lost = True
    if not lost:
        return f"batch {number} has sound pages and a damaged head or trailer"
    return None if is_zero(data, trailer.end) else f"batch {number} is damaged, and other bytes follow it"


def _damage_of_trailer(data: bytes, start: int, head: tuple[int, int, int], salt: int) -> str | None:
    """`damage` if there is a head and no sound trailer: the bytes of the trailer must be a part of the right one."""
    number, _, body_length = head
    offset, end = batch_span(start, body_length)
    if end > len(data):
        return f"batch {number} claims more bytes than its segment has"
    if not is_zero(data, end):
        return f"batch {number} is damaged, and other bytes follow it"
    try:
        for _ in records(data, start + HEAD_BYTES, start + body_length):
            pass
    except Damaged:
        return None
    expected = _trailer(number, start, body_length, data[start:offset], salt)
    return None if _is_part(data[offset:end], expected) else f"the trailer of batch {number} is damaged"


def _is_part(actual: bytes, expected: bytes) -> bool:
    """True if a torn write of `expected` over zeros can leave `actual`."""
    for begin in range(0, len(expected), SECTOR):
        sector, whole = actual[begin : begin + SECTOR], expected[begin : begin + SECTOR]
        if sector == whole or not any(sector):
            continue
        written = sector.rstrip(b"\0")  # a kill during the write leaves a prefix, and zeros behind it
        return whole.startswith(written) and not any(actual[begin + SECTOR :])
    return True
