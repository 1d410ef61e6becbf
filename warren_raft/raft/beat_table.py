"""The last beat of each node that this manager knows of, on a clock that counts only the time in which it ran.

Lives here: ages, and how the news of two managers about one node are put together. Not here: the messages between
managers, and when a node may be called down (beats.py); nodes as entities (heartbeats/). Pure: time and randomness are
passed in. Invariant: a beat is never taken for older than it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from warren_raft.support.waiting import taken

GAP_SECONDS: Final = 0.3
"""The clock of a table advances by no more than this from one look to the next. A manager looks every 0.25 s; if more
time has passed, it was suspended or its clock has leapt, and no node may be called down because of that."""
INBOX_MAX: Final = 65_536
"""Beats that wait for the raft thread, which takes them every 0.25 s. Beyond it, the oldest ones are dropped: that
happens only while the raft thread hangs, and the newest beat of a node is the one that counts."""
MARK_BITS: Final = 32
NODES_MAX: Final = 100_000
"""Beats of further nodes are not kept: a hostile manager can make up any number of nodes."""


class Beat(NamedTuple):
    """The last beat of a node."""

    ttl_seconds: float
    at: float
    """When it came, by the clock of the table."""
    mark: int
    """A random number by which two managers know that they speak of the same beat. 0: no beat is known, and `at` is
    when this manager began to count."""
    other: tuple[float, float] | None = None
    """(ttl, at) of the last beat but this one, as far as known here. A message may take long, and then its beat seems
    to be the last one for a while."""

    def besides(self, ttl_seconds: float, at: float) -> Beat:
        """There was another beat, at that time."""
        return self if self.other is not None and at <= self.other[1] else self._replace(other=(ttl_seconds, at))


class BeatTable:
    """For the raft thread or a simulator only; `take`, `age_of`, `known.get` and setting `gone` for any thread."""

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self._random_bits = random_bits
        self.inbox: deque[tuple[str, float, float]] = deque(maxlen=INBOX_MAX)
        """(node id, ttl, time by the monotonic clock) of the beats that callers brought since the last look."""
        self._came_at: dict[str, float] = {}
        """When the newest beat of a node was brought, until the next look. `age_of` ignores a time before the last
        look: an exception of a signal handler, or a look between the two steps of `take`, may leave one."""
        self.known: dict[str, Beat] = {}
        self._own: dict[str, Beat] = {}
        """The last beat of each node that a caller brought here. No other manager knows its time better."""
        self.gone: Iterable[str] = ()
        """Set from any thread: nodes that do not exist any more. They are forgotten."""
        self.now = 0.0
        """The clock of the table, in seconds."""
        self._looked_at: float | None = None
        """The time of the last look, by the monotonic clock."""

    # From any thread ---------------------------------------------------------------------------------------------

    def take(self, node_id: str, ttl_seconds: float, now: float) -> None:
        """A caller brings a beat, at the time `now` of the monotonic clock."""
        self.inbox.append((node_id, ttl_seconds, now))
        self._came_at[node_id] = now

    def age_of(self, node_id: str, now: float) -> float | None:
        """Seconds since the last beat of a node that is known here, to a look (0.25 s); None if none is known. `now` by
        the monotonic clock."""
        came_at = self._came_at.get(node_id)
        if came_at is not None and (self._looked_at is None or came_at >= self._looked_at):
            return max(0.0, now - came_at)
        beat = self.known.get(node_id)
        return None if beat is None or not beat.mark else max(0.0, self.now - beat.at)

    # In the raft thread ------------------------------------------------------------------------------------------

    def look(self, now: float) -> list[str]:
        """Advance the clock, and take in the beats of callers. Returns the nodes that have beaten."""
        before = self.now
        if self._looked_at is not None:
            self.now += max(0.0, min(now - self._looked_at, GAP_SECONDS))
        self._looked_at = now
        if self.gone:
            self._forget()
        if not self.inbox:
            return []
        found: dict[str, None] = {}
        known, bits = self.known, self._random_bits
        beats = taken(self.inbox)
        for node_id, ttl_seconds, came_at in beats:
            # It came since the last look: whatever the clock says, it is not older than that.
            at = max(before, min(self.now, self.now - (now - came_at)))
            beat = known.get(node_id)
            if beat is not None and beat.mark and at < beat.at:  # two callers' threads brought their beats out of order
                known[node_id] = beat.besides(ttl_seconds, at)
                continue
            other = beat[:2] if beat is not None and beat.mark else None
            known[node_id] = self._own[node_id] = Beat(ttl_seconds, at, bits(MARK_BITS) or 1, other)
            found[node_id] = None
        # Not before: `age_of` knows of a beat at every moment after `take`.
        if len(beats) < INBOX_MAX:
            for node_id, _, came_at in beats:
                if self._came_at.get(node_id) == came_at:
                    self._came_at.pop(node_id, None)
        else:  # beats were dropped, so their nodes are not among these
            self._came_at.clear()
        return list(found)

    def to_tell(self, node_id: str) -> list[Beat]:
        """The beats that another manager needs to know. The last one that came here is told although there seems to be
        a later one, because the later one may turn out to be older."""
        beat, own = self.known.get(node_id), self._own.get(node_id)
        if beat is None or not beat.mark:
            return []
        if own is None or own.mark == beat.mark or own.at + own.ttl_seconds < self.now:
            return [beat]
        return [beat, own]

    def merge(self, node_id: str, ttl_seconds: float, age_seconds: float, mark: int) -> bool:
        """Another manager knows of a beat of this age. Returns whether it is news.

        The beat took some time to come here, so it is older than it seems. If the same beat is heard of twice, the
        earlier time is nearer to the truth: otherwise, with each leader, a dead node would seem a little younger.
        """
        own = self._own.get(node_id)
        if own is not None and own.mark == mark:
            return False
        at = self.now - age_seconds
        beat = self.known.get(node_id)
        if beat is None and len(self.known) >= NODES_MAX:
            return False
        if beat is None or not beat.mark:
            self.known[node_id] = Beat(ttl_seconds, at, mark)
        elif beat.mark == mark:
            return at < beat.at and self._correct(node_id, beat, at)
        elif at <= beat.at:
            self.known[node_id] = beat.besides(ttl_seconds, at)
            return False
        else:
            self.known[node_id] = Beat(ttl_seconds, at, mark, beat[:2])
        return True

    def _correct(self, node_id: str, beat: Beat, at: float) -> bool:
        """The last beat was earlier than it seemed. Returns whether another one is the last one now. If that one did
        not come here, it gets a new mark: other managers may know the old mark with an earlier time, and would not take
        it for news."""
        if beat.other is None or at >= beat.other[1]:
            self.known[node_id] = beat._replace(at=at)
            return False
        other = self._own.get(node_id)
        if other is None or other[:2] != beat.other:
            other = Beat(*beat.other, self._random_bits(MARK_BITS) or 1)
        self.known[node_id] = other
        return True

    def begin_to_count(self, node_id: str, ttl_seconds: float) -> None:
        """No beat of this node is known here, but it is known to beat: count from now on."""
        self.known.setdefault(node_id, Beat(ttl_seconds, self.now, 0))

    def _forget(self) -> None:
        gone, self.gone = self.gone, ()
        for node_id in gone:
            self.known.pop(node_id, None)
            self._own.pop(node_id, None)
