"""A message on its way in the tests' networks: in the very bytes, and by the very rules, of a link between managers.

Plain CBOR would let through what a link refuses, a map with numbers as keys for one, and be of no use as a test of it.
"""

from __future__ import annotations

from typing import Any

from warren_raft.raft.wire import FrameReader, encode

__all__ = ["decode", "encode"]


def decode(frame: bytes) -> dict[str, Any]:
    """The message in one whole frame. Raises BadFrame for what no manager would take."""
    reader = FrameReader()
    reader.feed(frame)
    message = reader.read()
    assert message is not None, "a frame that is not whole"
    return message
