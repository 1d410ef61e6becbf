"""Trust: the standings that a peer can have (DESIGN.md, "Trust").

Not here: how a standing is found (roster.py), which messages a peer of each standing may send (messages.py), and which
claims of a message are believed (each module that takes the message). Invariant: a peer has one standing.
"""

from __future__ import annotations

import enum


class PeerStanding(enum.StrEnum):
    """The relation of a peer to this manager, by the directory and the certificate with which the link was made."""

    MEMBER = "member"
    """The list that this manager has applied (before there is a list: the founding record) has this very directory."""
    LEAVING = "leaving"
    """The directory was removed, and its vote may still be needed (DESIGN.md, "Settled lists")."""
    AHEAD = "ahead"
    """The peer claims to have a later list than this manager has applied. Only a manager that lags hears the peer."""
    FORMING = "forming"
    """There is no list yet, and no founding record that names the peer."""
    GUEST = "guest"
    """The peer has a link so that it can be added, and nothing else."""
