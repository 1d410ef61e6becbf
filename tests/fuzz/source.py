"""Bytes as a source of choices: a fuzzer changes the bytes, and so the values that are built from them.

Hypothesis is not used for this: a coverage-guided fuzzer gives bytes only, and the corpus has to mean the same to both.
Invariant: the same bytes make the same choices; when the bytes end, each choice is the first one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import cbor2

T = TypeVar("T")

INTEGERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    23,
    24,
    255,
    256,
    2**16,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -(2**63),
)
TEXTS = (
    "",
    "m1",
    "m2",
    "m3",
    "m4",
    "127.0.0.1:7000",
    "a",
    "c-1",
    "web",
    "x" * 300,
    "\x1b[2J",
    "é\u2028",
    "type",
    "add",
)
DEPTH = 4
_SIMPLE = (
    b"\xf4",
    b"\xf5",
    b"\xf6",
    b"\xf7",
    b"\xe0",
    b"\xf8\x20",
    b"\xf9\x7e\x00",
    b"\xfb" + bytes(8),
    b"\xff",
    b"\x1c",
)
_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 37, 256, 258, 55799, 2**32)


class Source:
    """Reads choices from `data`, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, limit: int) -> int:
        """0 to limit - 1, limit up to 65,536."""
        return (self.byte() if limit <= 256 else self.byte() << 8 | self.byte()) % limit

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes, or all that are left."""
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.bytes(len(self._data))

    def blob(self) -> bytes:
        return self.bytes(self.below(64))

    def integer(self) -> int:
        if self.byte() & 1:
            return self.pick(INTEGERS)
        return int(struct.unpack(">q", self.bytes(8).rjust(8, b"\0"))[0])

    def text(self) -> str:
        if self.byte() & 1:
            return self.pick(TEXTS)
        return self.blob().decode("utf-8", "ignore")

    def value(self, depth: int = DEPTH) -> Any:
        """A value that a message may contain."""
        kind = self.below(9 if depth else 6)
        if kind < 2:
            return self.integer()
        if kind < 6:
            return (None, self.byte() & 1 == 1, self.text(), self.blob())[kind - 2]
        count = self.below(5)
        if kind < 8:
            return [self.value(depth - 1) for _ in range(count)]
        return {self.text(): self.value(depth - 1) for _ in range(count)}

    def cbor(self, depth: int = DEPTH) -> bytes:
        """One item of CBOR: mostly a valid one, now and then an invalid one (tags, false lengths, unusual forms)."""
        kind = self.below(16)
        if kind < 6 or not depth:
            return cbor2.dumps(self.value(0))
        if kind < 9:
            items = [self.cbor(depth - 1) for _ in range(self.below(5))]
            return self._head(4, len(items)) + b"".join(items)
        if kind < 12:
            items = [self.cbor(depth - 1) for _ in range(2 * self.below(4))]
            return self._head(5, len(items) // 2) + b"".join(items)
        if kind == 12:
            return cbor2.dumps(cbor2.CBORTag(self.pick(_TAGS), 0))[:-1] + self.cbor(depth - 1)
        if kind == 13:
            return self.pick(_SIMPLE)
        if kind == 14:
            major = self.below(8)
            return bytes([major << 5 | 31]) + self.cbor(depth - 1) + b"\xff"
        return self.blob()

    def _head(self, major: int, length: int) -> bytes:
        """The head of an item: mostly the true length in few bytes; sometimes in many bytes, sometimes a false one."""
        form = self.below(8)
        if form < 5 and length < 24:
            return bytes([major << 5 | length])
        if form == 7:
            length = self.pick((length + 1, 2**16 - 1, 2**32 - 1))
        return bytes([major << 5 | 26]) + length.to_bytes(4, "big")
