"""Trust: which type of message is accepted from a peer of which standing.

Lives here: the table of DESIGN.md ("Trust"); no other code says which peer may send a message. Not here: how a
standing is found (roster.py), and what of an admitted message is believed, which each part that takes it decides.
Invariant: a type that the table does not name comes from nobody.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class PeerStanding(enum.StrEnum):
    """What the peer of a link is to this manager, by the directory and the certificate that the link was made with."""

    MEMBER = "member"
    """In the list that this manager has applied (or, before there is one, in the founders' record), as this very
    directory."""
    LEAVING = "leaving"
    """A directory that was removed, and whose vote may still be needed (DESIGN.md, "Settled lists")."""
    AHEAD = "ahead"
    """It says that it belongs to a later list than the one this manager has applied. That is a claim: it is heard by a
    manager that lags, and by no other."""
    FORMING = "forming"
    """There is no list yet, and no record of the founders that names it."""
    GUEST = "guest"
    """It has a link, so that it can be added."""


_ELECTIONS: Final = ("request_vote", "response_vote", "pre_vote", "pre_vote_reply", "hand_over", "timeout_now")
_LOG: Final = ("append_entries", "next_node_idx", "nack")
_WRITES: Final = ("submit", "submit_refused", "submit_large", "submit_large_cancel", "submit_large_end")
_SENT_AHEAD: Final = ("large_entry", "large_entry_cancel", "large_entry_drop")
_SENT_AHEAD_ANSWERS: Final = ("large_entry_held", "large_entry_refused")
_SNAPSHOT_TO_US: Final = ("snapshot_offer", "snapshot_chunk", "snapshot_gone")
_SNAPSHOT_FROM_US: Final = ("snapshot_get", "snapshot_wanted")
_OPERATORS: Final = ("change", "change_answer")
_FOUNDING: Final = ("founding_view", "founding")

_OF_A_VOTER: Final = frozenset(
    (*_ELECTIONS, *_LOG, *_WRITES, *_SENT_AHEAD, *_SENT_AHEAD_ANSWERS, *_SNAPSHOT_TO_US, *_OPERATORS, *_FOUNDING)
) | {"health", "addresses"}

MAY_SEND: Final[Mapping[PeerStanding, frozenset[str]]] = {
    PeerStanding.MEMBER: _OF_A_VOTER | frozenset(_SNAPSHOT_FROM_US),
    PeerStanding.LEAVING: _OF_A_VOTER,
    PeerStanding.AHEAD: frozenset(["append_entries", "request_vote", "pre_vote", *_SENT_AHEAD, *_SNAPSHOT_TO_US]),
    PeerStanding.FORMING: frozenset(_FOUNDING),
    PeerStanding.GUEST: frozenset(["founding_view"]),  # a blank one declares to everybody; nobody believes it
}

KNOWN: Final = frozenset().union(*MAY_SEND.values())
"""Every type that the engine takes. Another one is a later version's."""


def may_send(standing: PeerStanding, kind: str) -> bool:
    """Whether a message of the type `kind` may come from a peer of this standing."""
    return kind in MAY_SEND[standing]
