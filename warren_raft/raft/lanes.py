"""Which messages may overtake which others on a link: three lanes.

Lives here: the lanes. Not here: how lanes share a link (links/link_queue.py), and the lane of each message
(messages.py).
Invariant: messages of one lane arrive in the order in which they were sent. The guard relies on this for append
messages and for replies. A reply or a vote may overtake entries that its sender sent earlier, as the leader of an older
term: the terms tell such messages apart. A message that cancels a large message takes the lane of the large message.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Lane(enum.IntEnum):
    """The lane with the smaller number goes first. The numbers are part of the format of a frame (links/wire.py)."""

    CONTROL = 0
    """Elections, replies, signs of life: a few hundred bytes at most, a few times a second. This lane never waits."""
    NORMAL = 1
    """The entries of the log, and all messages that are in no other lane."""
    BULK = 2
    """Megabytes. No other lane may wait for them. Each message here makes sense in any order with all others."""


LINK_LANES: Final[Mapping[str, Lane]] = dict.fromkeys(
    ("hello", "welcome", "refused", "ping", "got", "bye"), Lane.CONTROL
)
"""The links' own messages, by name. messages.py names the lanes of all other messages."""
