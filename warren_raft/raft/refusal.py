"""The reason why a peer is refused: a code for the peer's program and a sentence for the peer's operator.

Lives here: the value that links and members share. Not here: when a peer is refused (links/transport.py judges its
protocol and its certificate, membership.py and roster.py its membership). Invariant: `text` is one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WRONG_NODE: Final = "wrong_node"
"""The code for a manager that dialled one peer and found another, because its address for the peer is out of date."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a peer is refused."""

    code: str
    text: str
