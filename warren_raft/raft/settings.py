"""The settings of one manager's consensus. Plain data.

Lives here: the settings that differ between managers or clusters, and their defaults. Not here: constants that are the
same everywhere (each is in the module that uses it), and the store's own settings (config.py). Invariant: they do not
change while the manager runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from warren_raft.certificates.identity import Identity
from warren_raft.raft.large import LARGE_BYTES
from warren_raft.raft.membership import FIRST_LEVEL

TAKEN_AFTER_BYTES: Final = 32 * 1024 * 1024
"""A snapshot is not worth its writing before the log has grown by this much, or by the size of the state in the last
snapshot if that is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    node_id: str
    address: str
    members: Mapping[str, str]
    """Initial members, id -> address; used on an empty directory only."""
    heartbeat_seconds: float = 0.2
    election_timeout_seconds: float = 1.0
    snapshot_after_bytes: int = TAKEN_AFTER_BYTES
    """A snapshot is taken when the log since the last one is larger than this, and than the state."""
    large_bytes: int = LARGE_BYTES
    """A command above this travels ahead of the log (large.py)."""
    bootstrap: bool = True
    """Whether a list of members that names this manager alone makes a cluster of one."""
    hints: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Further addresses at which to dial members, by id, learnt before this start. `members` are hints too."""
    identity: Identity | None = None
    """Of this manager's own certificate; None: its links are plaintext."""
    level_max: int = FIRST_LEVEL
    """The highest level of the command set that this manager's state machine reads."""
