"""Trust: the standings that a peer can have (DESIGN.md, "Trust").

Not here: how a standing is found (roster.py), which message a peer of a standing may send (messages.py), and which
claims of an admitted message are believed, which each part that takes it decides. Invariant: a peer has one standing.
"""

from __future__ import annotations

import enum


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
