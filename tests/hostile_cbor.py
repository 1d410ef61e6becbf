"""CBOR as only an attacker writes it. The tests of decoders and the corpus of the fuzzers begin with it."""

from __future__ import annotations

import cbor2

_SHARED, _REFERENCE, _ARRAY_OF_2 = b"\xd8\x1c", b"\xd8\x1d", b"\x82"


def hash_bomb(levels: int = 43) -> bytes:
    """A map with nested lists as its keys. Each list holds the one before twice, by reference, so its hash takes twice
    as long; 43 levels are 476 bytes and some months."""
    keys = [_SHARED + _ARRAY_OF_2 + b"\x01\x02"]
    for level in range(levels):
        reference = _REFERENCE + cbor2.dumps(level)
        keys.append(_SHARED + _ARRAY_OF_2 + reference + reference)
    return b"\xb8" + bytes([len(keys)]) + b"".join(key + b"\x00" for key in keys)


def empty_lists(size_bytes: int) -> bytes:
    """A list of empty lists: 64 bytes of memory for each byte."""
    return b"\x9a" + (size_bytes - 5).to_bytes(4, "big") + b"\x80" * (size_bytes - 5)


NOT_OURS: dict[str, bytes] = {
    "hash bomb": hash_bomb(),
    "nothing": b"",
    "a date": b"\xc0\x74" + b"2013-03-21T20:04:00Z",
    "an integer of many digits": b"\xc2\x59\x20\x00" + b"\xff" * 0x2000,
    "a decimal with a huge exponent": b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "a rational": b"\xd8\x1e\x82\x01\x03",
    "a regular expression": b"\xd8\x23\x68(a+)+$aa",
    "a set": b"\xd9\x01\x02\x81\x01",
    "a reference to nothing": b"\xd8\x1d\x00",
    "a reference to itself": b"\xd8\x1c\x81\xd8\x1d\x00",
    "a string reference": b"\xd9\x01\x00\x82\x63abc\xd8\x19\x00",
    "CBOR that says it is CBOR": b"\xd9\xd9\xf7\x80",
    "an unknown tag": b"\xda\x00\x01\x86\x9f\x80",
    "a tag of a tag": b"\xc6" * 5000 + b"\x00",
    "a list without a length": b"\x9f\x01\xff",
    "a map without a length": b"\xbf\x61a\x01\xff",
    "a text without a length": b"\x7f\x61a\xff",
    "a break": b"\xff",
    "a number as a key": b"\xa1\x01\x01",
    "null as a key": b"\xa1\xf6\x01",
    "a list as a key": b"\xa1\x80\x01",
    "a map as a key": b"\xa1\xa0\x01",
    "a key twice": b"\xa2\x61a\x01\x61a\x02",
    "a list of 2^63 items": b"\x9b\x7f" + b"\xff" * 7,
    "a map of 2^64 items": b"\xbb" + b"\xff" * 8,
    "a text of 2^64 bytes": b"\x7b" + b"\xff" * 8,
    "bytes that are not there": b"\x5a\x7f\xff\xff\xff",
    "a text that is not UTF-8": b"\x61\xff",
    "a reserved length": b"\x1c",
    "a simple value in two bytes": b"\xf8\x01",
    "lists in each other": b"\x81" * 100_000 + b"\x00",
    "maps in each other": b"\xa1\x61a" * 100_000 + b"\x00",
}
"""Each is refused at every place that reads CBOR from outside this process."""
