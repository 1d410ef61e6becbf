"""The calls and their answers, in the form that the linearizability checker takes.

Invariant: a call has no end if its caller does not know the result; it may take effect at any later time, or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NEVER = float("inf")


@dataclass(slots=True)
class Call:
    """One call on one key. `kind`: put, cas, delete, read. `argument`: the value, and for cas the expected revision.

    `result`: the revision of a change; (revision, value) of a read, (0, None) if there is no record; ("conflict",
    actual revision); None: it is not known.
    """

    client: str
    kind: str
    key: str
    argument: Any
    invoked: float
    returned: float = NEVER
    result: Any = None
    request: tuple[int, int] | None = None
    fence: int = 0
    """The only term in which it may take effect; 0: any."""
