"""Messages on their way in the tests' networks. Their bytes and rules are those of a link between managers.

Plain CBOR would accept messages that a link refuses, for example a map with numbers as keys, and so would test less.
"""

from __future__ import annotations

from typing import Any

from warren_raft.raft.links.wire import FrameReader, encode

__all__ = ["decode", "encode"]


def decode(frame: bytes) -> dict[str, Any]:
    """The message in one whole frame. Raises BadFrame if no manager would accept it."""
    reader = FrameReader()
    reader.feed(frame)
    message = reader.read()
    assert message is not None, "the frame is not whole"
    return message
