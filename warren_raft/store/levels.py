"""The level of the command set: the version of the commands that a cluster, or a local store, uses.

Lives here: the newest level that this release reads, and the levels that features need. Not here: the form of each
version (command.py), raising the level of a cluster (raft/levels.py). Invariant: no release opens a state whose level
it does not read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from warren_raft.errors import RefusedForSafety
from warren_raft.store.command import DELETE_CASCADE, LEASE, NO_FENCE, REQUIRE, VERSION

FIRST: Final = 1
"""The level of a state that names none. Every release reads it."""
NEWEST: Final = VERSION
"""The highest level that this release reads. Read it as `levels.NEWEST`, so that a test can set it."""
BEATS: Final = 2
"""The level from which heartbeats of nodes are told between managers, and barriers need no log entry."""
WITH_ALL: Final = 2
"""The level from which a command has every part that this release writes."""

_NEWER_VERBS: Final = {REQUIRE: "`require`", DELETE_CASCADE: "`cascade=True`", LEASE: "a lease"}


def number_of(record: bytes | None) -> int:
    """The level in the record of a state."""
    return FIRST if record is None else int.from_bytes(record, "big")


def record_of(level: int) -> bytes:
    return level.to_bytes(8, "big")


def require_readable(level: int, where: str) -> None:
    """Raises RefusedForSafety for the level of a newer release. `where` names the state."""
    if level > NEWEST:
        raise RefusedForSafety(
            f"{where} uses level {level} of the command set, and this release reads up to level {NEWEST}: install the "
            "release that wrote it, or a newer one (docs/upgrade.md)"
        )


def beyond_first(verbs: Collection[int], fence: int, request_key: str) -> str:
    """The feature of a command that level 1 lacks; "" if it needs none."""
    if fence != NO_FENCE:
        return "a fenced write (`leading`)"
    if request_key:
        return "`request_id`"
    return next((name for verb, name in _NEWER_VERBS.items() if verb in verbs), "")
