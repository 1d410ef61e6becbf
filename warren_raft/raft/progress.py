"""How far the logs are: the knowledge of a leader about its followers, and which index is the truth for which question.

Every index of a manager's own log, and of its followers' logs, is in one of these places:

| entries, or indexes | index | kept in |
|---|---|---|
| the end of the log: sent, matched, proposed after | `log.last_index` | the log in memory |
| entries that survive any crash here | `log.synced_index` | the log |
| known to be committed | `log.commit_index` | the log; guard.py raises it, at a start context.py |
| the commit index that survives any crash here | `log.synced_commit_index` | the log |
| may be applied | the lower one of `commit_index` and `synced_index` | applying.py (`_limit`) |
| applied | `machine.applied_index` | the state |
| acknowledged by a follower as durable | `Progress.match` | here, of the present term |
| the commit index that survives any crash at a follower | `Progress.kept` | here, of the present term |
| counted for a majority | PySyncObj's match index: the lower one of `match` and `log.synced_index` | the core |

The core's own match and commit indexes are PySyncObj's, and only guard.py reads or raises them: it lets the core count
nothing that is not durable on both sides, and takes over the core's result into `log.commit_index`.

Not here: the meaning of a follower's answer (guard.py). Invariant: knowledge of an earlier term counts for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """The leader's knowledge of one follower, in this term."""

    match: int = 0
    """The highest index that the follower acknowledged as durable. Our own disk may not have it yet."""
    kept: int = 0
    """The follower has this commit index, or a higher one, on disk."""
    next_index: int = 0
    """The first index that was not sent on the present link; 0 before the first entries."""
    barrier: int = 0
    """A reset that answers a message before this sequence number is stale: since then this leader acted on a reset, or
    the link was replaced."""
    unacknowledged: deque[tuple[int, int]] = field(default_factory=deque)
    """(last index, bytes) of each message with entries that is on its way."""
    unacknowledged_bytes: int = 0

    def forget_link(self, next_sequence: int) -> None:
        self.next_index = 0
        self.barrier = next_sequence
        self.unacknowledged.clear()
        self.unacknowledged_bytes = 0

    def acknowledge(self, index: int) -> None:
        self.match = max(self.match, index)
        while self.unacknowledged and self.unacknowledged[0][0] <= index:
            self.unacknowledged_bytes -= self.unacknowledged.popleft()[1]


NOTHING = Progress()
"""Of a follower that this leader has not heard in this term. Not to be changed."""


class Followers:
    """The progress of each follower, in one term. For the raft thread or a simulator only."""

    def __init__(self) -> None:
        self._term = -1
        self._progress: dict[str, Progress] = {}
        self.needs_snapshot: set[str] = set()
        """Followers whose logs end before ours begins."""

    def of(self, peer: str, term: int) -> Progress:
        """The progress of a follower in the present term, to be changed."""
        if self._term != term:
            self._begin(term)
        progress = self._progress.get(peer)
        if progress is None:
            progress = self._progress[peer] = Progress()
        return progress

    def known(self, peer: str, term: int) -> Progress:
        """The progress of a follower in the present term, to be read only."""
        return self.all(term).get(peer, NOTHING)

    def all(self, term: int) -> Mapping[str, Progress]:
        if self._term != term:
            self._begin(term)
        return self._progress

    def _begin(self, term: int) -> None:
        self._term = term
        self._progress.clear()
        self.needs_snapshot.clear()

    def forget(self, peer: str) -> None:
        self._progress.pop(peer, None)
        self.needs_snapshot.discard(peer)
