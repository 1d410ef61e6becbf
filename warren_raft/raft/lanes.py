"""Which messages may pass which others on a link: three lanes, by the type of the message.

Here: the table. Not here: how lanes share a link (link_queue.py), what a message means (engine.py).
Invariant: messages of one lane arrive in the order in which they were sent; the guard counts on it for
append messages, and for replies.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final


class Lane(enum.IntEnum):
    """The smaller lane goes first. The numbers are part of the format of a frame (wire.py)."""

    CONTROL = 0
    """A few hundred bytes at most, a few times a second: elections, replies, signs of life. It never waits."""
    NORMAL = 1
    """The log's entries and everything else."""
    BULK = 2
    """Megabytes that nobody else may wait for. Each of these messages makes sense in any order with all others."""


LANES: Final[Mapping[str, Lane]] = {
    **dict.fromkeys(("hello", "welcome", "refused", "ping", "got", "bye"), Lane.CONTROL),
    **dict.fromkeys(("pre_vote", "pre_vote_reply", "request_vote", "response_vote"), Lane.CONTROL),
    **dict.fromkeys(("nack", "timeout_now", "next_node_idx", "change", "change_answer"), Lane.CONTROL),
    **dict.fromkeys(("large_entry_held", "large_entry_refused", "hand_over"), Lane.CONTROL),
    **dict.fromkeys(("snapshot_chunk", "submit_large", "large_entry"), Lane.BULK),
    # Behind what they cancel, or what is left of it.
    **dict.fromkeys(("submit_large_cancel", "large_entry_cancel"), Lane.BULK),
}
"""By type; one that is not named here is NORMAL. A reply may pass the entries that its sender sent before, as a leader
of an older term: terms tell such messages apart. A vote may, for the same reason."""

LEADERS_TYPES: Final = frozenset({"append_entries", "large_entry"})
"""Only a leader sends these, and they say of which term. While a large one arrives, that leader is alive."""


def lane_of(message: Mapping[str, Any]) -> Lane:
    return LANES.get(message["type"], Lane.NORMAL)


def leaders_term(message: Mapping[str, Any]) -> int:
    """The term in which the sender of a message leads; 0 where the message does not say that it does."""
    return int(message["term"]) if message["type"] in LEADERS_TYPES else 0
