"""CBOR (RFC 8949) that this process did not write itself: from a peer, a log, a record, a session, a snapshot.

Lives here: the only calls of cbor2's decoder. Not here: encoding, and the meaning of a value, which each reader checks.
Invariant: bytes give plain values (null, booleans, integers of 65 bits at most, floats, text, bytes, lists, maps with
text or bytes as keys) or `BadCbor`, in time and memory that are bounded before anything is allocated or hashed.

The bounds exist because a few bytes of CBOR can mean much work. With all of cbor2's features, 478 bytes of shared
references as the keys of a map keep a process busy for ever (the hash of each nested key is twice the work of the key
in it), and 1 MiB of empty lists takes 70 MiB and a second. cbor2 is written in Rust and does not release the
interpreter lock meanwhile, so no other thread could end it.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import Any, Final, TypeAlias

import cbor2

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_ITEMS: Final = 64 * 1024
"""The limit for one message, log entry or list of members. A manager sends at most the 512 KiB of entries of one append
message: 12,000 of the smallest, four items each. This many empty lists take 16 ms and 4 MiB."""

MAX_RECORD_ITEMS: Final = 512 * 1024
"""The limit for an entity or a session. An entity has up to 1 MiB, which may be texts of one character."""

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
"""The limit for a record. An entity travels in a command of at most 4 MiB, and the largest session is smaller."""

MAX_DEPTH: Final = 16
"""The limit for lists and maps nested in each other. Ours have five levels."""


class BadCbor(ValueError):
    """The bytes are not CBOR as a manager writes it, or have more items than a manager writes."""


class _NoTags(dict[int, Any]):
    """Gives cbor2 a decoder for every tag, which refuses it: dates, large numbers, shared references, all of them."""

    def __missing__(self, tag: int) -> Any:
        return _refuse_tag


def _refuse_tag(value: object, immutable: bool) -> Any:
    raise ValueError("tags are not used")


_NO_TAGS: Final = _NoTags()


def decode(data: Buffer, *, max_items: int = MAX_ITEMS) -> Any:
    """The value of exactly these bytes. Raises BadCbor. Any thread."""
    if len(data) > max_items:
        _check_item_count(data, max_items)
    stream = BytesIO(data)
    decoder = cbor2.CBORDecoder(
        stream,
        semantic_decoders=_NO_TAGS,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )
    try:
        value = decoder.decode()
    except cbor2.CBORDecodeError as error:
        raise BadCbor(_reason(error)) from None
    if stream.tell() != len(data):
        raise BadCbor(f"{len(data) - stream.tell()} bytes follow its end")
    return value


RecordMap: Final = cbor2.frozendict
"""The type of the maps that `decode_record` gives."""


def decode_record(data: Buffer) -> Any:
    """The value at the beginning of a record of the database; bytes after it are not examined. Raises BadCbor.

    Lists are tuples and maps are `RecordMap`, so that any value in a record can be a key.

    Reads of entities consist mostly of this. To find where the value ends would take half as long again, and nothing
    depends on it: a record has its digest, and every manager has the same bytes. Any thread.
    """
    if len(data) > MAX_RECORD_ITEMS:
        if len(data) > MAX_RECORD_BYTES:
            raise BadCbor(f"has {len(data)} bytes, over the limit of {MAX_RECORD_BYTES}")
        _check_item_count(data, MAX_RECORD_ITEMS)
    try:
        return cbor2.loads(
            data,
            semantic_decoders=_NO_TAGS,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            immutable=True,
        )
    except cbor2.CBORDecodeError as error:
        raise BadCbor(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """cbor2's error has the position, and the error's cause has the reason."""
    return f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)


# ------------------------------------------------------------------------------- how many items there are

_STEPS: Final = bytes(
    1 + {24: 1, 25: 2, 26: 4, 27: 8}.get(info, 0) + (info if major in (2, 3) and info < 24 else 0)
    for major in range(8)
    for info in range(32)
)
"""For each first byte of an item: the distance to the next item, without the content of a long string. Items follow
each other at any nesting; only strings, types 2 and 3, have content in between."""
_STRING_8: Final = frozenset({0x58, 0x78})
_STRING_16: Final = frozenset({0x59, 0x79})
_STRING_32_64: Final = frozenset({0x5A, 0x5B, 0x7A, 0x7B})


def _check_item_count(data: Buffer, limit: int) -> None:
    """Refuse more than `limit` items, from their first bytes alone. No data has more items than bytes."""
    at = 0
    with suppress(IndexError):  # the data ends within an item, which the decoder refuses
        for _ in range(limit):
            first = data[at]
            step = _STEPS[first]
            if first in _STRING_16:
                step += data[at + 1] << 8 | data[at + 2]
            elif first in _STRING_8:
                step += data[at + 1]
            elif first in _STRING_32_64:
                step += int.from_bytes(data[at + 1 : at + step])
            at += step
    if at < len(data):
        raise BadCbor(f"{len(data)} bytes with over {limit} items")
