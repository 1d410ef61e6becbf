"""When an entry of this leader passes the stages of its way: made, durable here, acknowledged by followers, applied.

Lives here: the times of the entries that are not applied yet, and of those that were applied last. Not here: the wait
of a caller, and words (manager/slow_writes.py). Invariant: nothing is decided by these times, so a wrong one costs no
write. The memory is bounded by the entries that a leader has under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from math import inf
from typing import Final, NamedTuple

UNDER_WAY_MAX: Final = 256
"""More entries than a leader has under way (proposing.py). Of more, the oldest have no times."""
SLOW_SYNC_SECONDS: Final = 0.02
"""A follower tells how long its disk took for a reply if it took at least so long. A quick reply is smaller, and needs
no more work than before."""
NOT_YET: Final = -1.0


class Reply(NamedTuple):
    """A follower has acknowledged an entry."""

    peer: str
    at: float
    sync_seconds: float
    """How long the reply waited for the follower's disk; 0: less than SLOW_SYNC_SECONDS, or the follower's release does
    not tell it."""


class EntryTimes:
    """One entry of commands. The times are those of the raft thread's clock, mostly to the begin of a step."""

    __slots__ = ("applied_at", "came_at", "index", "made_at", "replies", "senders", "synced_at")

    def __init__(self, index: int, made_at: float, senders: Collection[str], came_at: float = 0.0) -> None:
        self.index = index
        self.came_at = came_at or made_at
        """When the oldest command of another manager came here; the same as `made_at` if there is none."""
        self.made_at = made_at
        self.senders = senders
        """The other managers whose callers made some of its commands."""
        self.synced_at = NOT_YET
        """When this manager's own log held it durably."""
        self.replies: list[Reply] = []
        """In the order in which they came."""
        self.applied_at = NOT_YET

    def decisive(self, voters: Collection[str], node_id: str) -> Reply | None:
        """The reply that completed a majority of the voters; None: no reply did. `node_id` is the leader."""
        missing = len(voters) // 2 + 1 - (node_id in voters)
        if missing == 0:
            return None
        replies = [reply for reply in self.replies if reply.peer in voters]
        return replies[missing - 1] if len(replies) >= missing else None


class Stages:
    """For the raft thread or a simulator only."""

    def __init__(self) -> None:
        self._under_way: deque[EntryTimes] = deque(maxlen=UNDER_WAY_MAX)
        """By index."""
        self._applied: dict[int, EntryTimes] = {}
        """Those that were applied last."""
        self.apply_began = self.apply_ended = NOT_YET
        """When this manager applied the last run of entries."""
        self.slow_seconds = inf
        """An entry that needed so long is kept in `slow`."""
        self.slow: deque[EntryTimes] = deque(maxlen=UNDER_WAY_MAX)
        """For the code that takes them out."""

    def made(self, index: int, now: float, senders: Collection[str], came_at: float = 0.0) -> None:
        """This leader has made an entry of commands, some of which came from these other managers; the oldest of those
        at `came_at`."""
        self._under_way.append(EntryTimes(index, now, senders, came_at))

    def forget(self) -> None:
        """This manager leads no more, or leads again."""
        self._under_way.clear()

    def synced(self, index: int, now: float) -> None:
        """This manager's own log is durable up to an index."""
        for entry in self._under_way:
            if entry.index > index:
                return
            if entry.synced_at == NOT_YET:
                entry.synced_at = now

    def acknowledged(self, peer: str, match: int, index: int, now: float, sync_seconds: float) -> None:
        """A follower has acknowledged the entries above `match`, up to `index`."""
        for entry in self._under_way:
            if entry.index > index:
                return
            if entry.index > match:
                entry.replies.append(Reply(peer, now, sync_seconds))

    def applied(self, index: int, began: float, ended: float) -> None:
        """The state holds all entries up to an index since a run of entries, which began and ended at these times."""
        self.apply_began, self.apply_ended = began, ended
        under_way, self._applied = self._under_way, {}
        while under_way and under_way[0].index <= index:
            entry = under_way.popleft()
            entry.applied_at = ended
            self._applied[entry.index] = entry
            if ended - entry.came_at >= self.slow_seconds:
                self.slow.append(entry)

    @property
    def oldest(self) -> EntryTimes | None:
        """The oldest entry of this leader that is not applied yet."""
        return self._under_way[0] if self._under_way else None

    def of(self, index: int) -> EntryTimes | None:
        """The times of an entry that the last run applied, if this manager made it in its present leadership."""
        return self._applied.get(index)
