"""Which messages may pass which others on a link: three lanes.

Lives here: the lanes. Not here: how they share a link (link_queue.py), and which message takes which (messages.py).
Invariant: messages of one lane arrive in the order in which they were sent; the guard counts on it for append messages
and for replies. A reply may pass the entries that its sender sent before, as the leader of an older term: terms tell
such messages apart. A vote may, for the same reason. A message that cancels a large one takes the lane of that one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Lane(enum.IntEnum):
    """The smaller lane goes first. The numbers are part of the format of a frame (wire.py)."""

    CONTROL = 0
    """A few hundred bytes at most, a few times a second: elections, replies, signs of life. It never waits."""
    NORMAL = 1
    """The log's entries and everything else."""
    BULK = 2
    """Megabytes that nobody else may wait for. Each of these messages makes sense in any order with all others."""


LINK_LANES: Final[Mapping[str, Lane]] = dict.fromkeys(
    ("hello", "welcome", "refused", "ping", "got", "bye"), Lane.CONTROL
)
"""The links' own messages, by name. messages.py names the lane of each other one."""
