"""What callers asked and were answered, as the linearizability checker takes it.

Invariant: a call whose outcome the caller does not know has no end; it may take effect at any later time, or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NEVER = float("inf")


@dataclass(slots=True)
class Call:
    """One call on one key. `kind`: put, cas, delete, read. `argument`: the value, and for cas the expected revision.

    `result`: the revision of a change; (revision, value) of a read, (0, None) where there is nothing; ("conflict",
    actual revision); None while unknown.
    """

    client: str
    kind: str
    key: str
    argument: Any
    invoked: float
    returned: float = NEVER
    result: Any = None
    request: tuple[int, int] | None = None
