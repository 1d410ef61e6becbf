"""Why a peer is not let in: a code for its program and a sentence for its operator.

Lives here: the value that links and members share. Not here: when a peer is refused (transport.py for its protocol and
its certificate, membership.py and roster.py for its membership). Invariant: `text` is one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WRONG_NODE: Final = "wrong_node"
"""The code of a manager that dialled one peer and found another: its address was out of date."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a peer is not let in."""

    code: str
    text: str
