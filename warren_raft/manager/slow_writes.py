"""Why a write was slow: the slow writes of this manager's callers, and the slowest recent ones, with their stages.

Lives here: choosing them, their stages, their log lines. Not here: the times of an entry (raft/stages.py), the table
(cli/explain.py). Invariant: memory is bounded, and no write waits for anything here. A caller's thread sets one
attribute of its own write, or appends to a queue; everything else is done in the raft thread, and the log lines are
written by the housekeeping, because a log handler may wait for the same slow disk.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from warren_raft.support.counting import Durations
from warren_raft.support.log_lines import log_event
from warren_raft.support.waiting import taken

if TYPE_CHECKING:
    from warren_raft.manager.session import Write
    from warren_raft.raft.stages import EntryTimes, Stages

logger = logging.getLogger("warren_raft.manager.writes")

Stage = Literal["queue", "sync", "followers", "leader", "apply", "wake"]
STAGES: Final[tuple[Stage, ...]] = ("queue", "sync", "followers", "leader", "apply", "wake")
"""
- queue: from the call until the leader made the log entry; on another manager, until it sent the write to the leader.
- sync: on the leader, until its own log held the entry durably.
- followers: on the leader, until the follower answered that completed a majority. At the same time as `sync`.
- leader: on another manager, until it knew that the entry was committed.
- apply: from then on, until the entry was applied here.
- wake: from then on, until the caller's thread ran again.
"""
SLOW_MAX: Final = 100
"""So many of the last slow writes are kept."""
SLOWEST_MAX: Final = 20
WINDOW_SECONDS: Final = 60.0
WINDOWS: Final = 10
"""The slowest writes, slow or not, of each of so many minutes are kept."""
SAMPLE_SECONDS: Final = 0.01
"""The histograms get a write at most so often: that costs a hundredth of a percent of the raft thread's time."""
LINES_MAX: Final = 5
"""The most log lines about slow writes in one round of the housekeeping, which is a second."""
LATE_SECONDS: Final = 2.0
"""A line that is written later than this after the write tells how much later."""


class Leads(Protocol):
    """The values of an engine that are needed here."""

    @property
    def stages(self) -> Stages: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def voters(self) -> Collection[str]: ...


@dataclass(slots=True, eq=False)
class SlowWrite:
    """A write of a caller here, or an entry of this leader with writes of other managers. Durations are in seconds;
    None: it had no such stage, or it is not known."""

    at: float
    """When it ended, in seconds since 1970."""
    ended: float
    """The same by time.monotonic()."""
    seconds: float
    """From the call to its end, without `wake`."""
    op: str
    kind: str
    size_bytes: int
    """Of the command."""
    writes: int
    """How many slow writes ended in the same moment, this one, which was the slowest, among them."""
    senders: Collection[str]
    """The other managers from which the writes of an entry came. Empty: it is a write of a caller here."""
    index: int
    """The log entry; 0: the write was not applied."""
    leader: str | None
    tries: int
    """How often the write was sent to a leader."""
    error: str | None
    """The class of its error."""
    queue: float | None = None
    sync: float | None = None
    followers: float | None = None
    follower: str | None = None
    """The follower that completed a majority."""
    follower_sync: float | None = None
    """How long that follower waited for its disk; None: not long."""
    replies: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By follower: when it had answered since the entry was made, and how long its disk took of that time."""
    through_leader: float | None = None
    apply: float | None = None
    wake: float | None = None
    sampled: bool = False
    """Whether its `wake` is counted in the histogram."""

    def stage(self, name: Stage) -> float | None:
        value: float | None = self.through_leader if name == "leader" else getattr(self, name)
        return value

    @property
    def longest(self) -> Stage | None:
        """The stage that took longest."""
        known = [(seconds, name) for name in STAGES if (seconds := self.stage(name)) is not None]
        return max(known)[1] if known else None

    @property
    def total(self) -> float:
        """From the call until the caller ran again."""
        return self.seconds + (self.wake or 0.0)

    @property
    def why(self) -> str:
        """The longest stage, as a sentence."""
        match self.longest:
            case "queue" if self.leader is None:
                return "it waited for a leader"
            case "queue":
                return "it waited behind other writes, or for a leader"
            case "sync":
                return "the disk of the leader was slow"
            case "followers" if self.follower is None:
                return "no majority had answered by its deadline"
            case "followers" if (self.follower_sync or 0.0) * 2 >= (self.followers or 0.0):
                return f"the disk of {self.follower} was slow"
            case "followers":
                return f"{self.follower} answered late: its process or the network was slow"
            case "leader":
                return f"the leader needed that long; its stages: warren-raft explain on {self.leader or 'the leader'}"
            case "apply":
                return "it was applied late: the processor was busy, or the state could not be written"
            case "wake":
                return "the caller's thread ran late: its process was busy"
            case None:
                return "its stages are not known"

    def to_json(self) -> dict[str, Any]:
        return {
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "op": self.op,
            "kind": self.kind,
            "size_bytes": self.size_bytes,
            "writes": self.writes,
            "from": sorted(self.senders),
            "index": self.index or None,
            "leader": self.leader,
            "tries": self.tries,
            "error": self.error,
            "seconds": _rounded(self.total),
            "stages": {name: _rounded(self.stage(name)) for name in STAGES},
            "longest": self.longest,
            "why": self.why,
            "follower": self.follower,
            "follower_sync_seconds": _rounded(self.follower_sync),
            "followers": {
                peer: {"seconds": _rounded(seconds), "sync_seconds": _rounded(sync or None)}
                for peer, (seconds, sync) in self.replies.items()
            },
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


class SlowWrites:
    """The methods are for the raft thread, unless they say otherwise. Before `begin` nothing is kept."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._engine: Leads | None = None
        self.slow_seconds = math.inf
        """A write that takes so long is slow."""
        self.floor_seconds = math.inf
        """A shorter write is not kept."""
        self.sample_at = math.inf
        """When the histograms get the next write."""
        self.durations: Final[Mapping[Stage, Durations]] = {name: Durations() for name in STAGES}
        self.entries: deque[EntryTimes] = deque()
        """If there are any, call `note_entries`."""
        self.counts: Final[dict[Stage, int]] = dict.fromkeys(STAGES, 0)
        """The slow writes of callers here, by their longest stage."""
        self._slow: deque[SlowWrite] = deque(maxlen=SLOW_MAX)
        self._unsaid: deque[SlowWrite] = deque(maxlen=SLOW_MAX)
        self._window: list[SlowWrite] = []
        """The slowest of this minute, at most SLOWEST_MAX."""
        self._windows: deque[list[SlowWrite]] = deque(maxlen=WINDOWS)
        """Those of the minutes before."""
        self._window_ends = -math.inf

    def begin(self, engine: Leads, slow_seconds: float) -> None:
        """Before the raft thread starts."""
        self._engine = engine
        self.entries = engine.stages.slow
        self.slow_seconds = engine.stages.slow_seconds = slow_seconds
        self.floor_seconds = 0.0
        self.sample_at = -math.inf

    # Writes that have ended ----------------------------------------------------------------------------------------

    def note(self, ended: Iterable[Write], slowest: Write, now: float) -> None:
        """These writes have ended in this step, and the slowest of them may have to be kept. Call it if that one took
        `floor_seconds`, or at `sample_at`."""
        assert self._engine is not None
        found = slowest.trace = self._of(slowest, self._engine, now)
        if now >= self.sample_at:
            self.sample_at = now + SAMPLE_SECONDS
            self._count(found)
        if now >= self._window_ends:
            self._windows.append(self._window)
            self._window, self._window_ends = [], now + WINDOW_SECONDS
            self.floor_seconds = 0.0
        if found.seconds >= self.slow_seconds:
            found.writes = sum(now - write.begun >= self.slow_seconds for write in ended)
            self._keep_slow(found)
        if found.seconds >= self.floor_seconds:
            self._keep(found)

    def note_entries(self) -> None:
        """Entries that were slow were applied in this step. Those with writes of other managers are kept: their callers
        know no stages of the leader."""
        assert self._engine is not None
        while self.entries:
            entry = self.entries.popleft()
            if entry.senders:
                ago = time.monotonic() - entry.applied_at
                found = SlowWrite(
                    at=time.time() - ago,
                    ended=entry.applied_at,
                    seconds=entry.applied_at - entry.came_at,
                    op="entry",
                    kind="",
                    size_bytes=0,
                    writes=0,
                    senders=entry.senders,
                    index=entry.index,
                    leader=self._node_id,
                    tries=0,
                    error=None,
                )
                found.queue = entry.made_at - entry.came_at
                self._add_stages(found, entry, self._engine)
                self._keep_slow(found)

    def _of(self, write: Write, engine: Leads, now: float) -> SlowWrite:
        found = _made(write, now, engine.leader)
        entry = engine.stages.of(write.index) if write.index else None
        if entry is not None:
            found.queue = max(0.0, entry.made_at - write.begun)
            self._add_stages(found, entry, engine)
        elif write.sent_at:
            found.queue = max(0.0, write.sent_at - write.begun)
            committed = engine.stages.apply_began if write.index else now
            found.through_leader = max(0.0, committed - write.sent_at)
            found.apply = now - committed if write.index else None
        elif write.sent and not write.index:  # it is in this leader's log, and was not committed by its deadline
            self._add_missing(found, engine)
        else:
            found.queue = found.seconds
        return found

    def _add_missing(self, found: SlowWrite, engine: Leads) -> None:
        """The stage at which this leader's entries are."""
        oldest = engine.stages.oldest
        if oldest is not None and oldest.synced_at < oldest.made_at:
            found.sync = found.seconds
        else:
            found.followers = found.seconds

    def _add_stages(self, found: SlowWrite, entry: EntryTimes, engine: Leads) -> None:
        made_at = entry.made_at
        found.sync = entry.synced_at - made_at if entry.synced_at >= made_at else None
        found.replies = {reply.peer: (reply.at - made_at, reply.sync_seconds) for reply in entry.replies}
        decisive = entry.decisive(engine.voters, self._node_id)
        if decisive is not None:
            found.followers = decisive.at - made_at
            found.follower = decisive.peer
            found.follower_sync = decisive.sync_seconds or None
        committed = made_at + max(found.sync or 0.0, found.followers or 0.0)
        found.apply = max(0.0, found.ended - committed)

    def _count(self, found: SlowWrite) -> None:
        """One more write for the histograms."""
        if found.error is not None:
            return
        found.sampled = True
        for name, durations in self.durations.items():
            seconds = found.stage(name)
            if seconds is not None:
                durations.note(seconds)

    def _keep_slow(self, found: SlowWrite) -> None:
        self._slow.append(found)
        self._unsaid.append(found)
        longest = found.longest
        if longest is not None:
            self.counts[longest] += found.writes

    def _keep(self, found: SlowWrite) -> None:
        self._window.append(found)
        if len(self._window) > SLOWEST_MAX:
            self._window = sorted(self._window, key=_seconds)[1:]  # a new list: another thread may read the old one
            self.floor_seconds = min(self._window[0].seconds, self.slow_seconds)

    # In a caller's thread --------------------------------------------------------------------------------------------

    def woken(self, write: Write) -> None:
        """The caller of a write that has ended runs again."""
        found, now = write.trace, time.monotonic()
        if found is not None:
            found.wake = now - found.ended
            if found.sampled:
                self.durations["wake"].note(found.wake)
            if found.total >= self.slow_seconds > found.seconds:
                self._keep_slow(found)
        elif write.ended_at and now - write.begun >= self.slow_seconds > write.ended_at - write.begun:
            self._keep_late(_made(write, write.ended_at, None), now - write.ended_at)

    def _keep_late(self, found: SlowWrite, wake: float) -> None:
        """A write became slow while its caller woke up. Those that ended together are one, as in `note`."""
        found.wake = wake
        try:
            last = self._slow[-1]
        except IndexError:
            last = found
        if last is not found and last.ended == found.ended and last.longest == "wake":
            last.writes += 1
            last.wake = wake
            self.counts["wake"] += 1
        else:
            self._keep_slow(found)

    # Any thread ----------------------------------------------------------------------------------------------------

    def say(self) -> None:
        """Write the log lines about the slow writes since the last call. For one thread."""
        if not self._unsaid:
            return
        found = taken(self._unsaid)
        shown = sorted(sorted(found, key=_total)[-LINES_MAX:], key=_ended)
        for each in shown:
            more = len(found) - len(shown) if each is shown[-1] else 0
            keys = {**self._keys(each), "more": more or None}
            log_event(logger, logging.WARNING, "slow write", each.why, exc_info=None, **keys)

    def _keys(self, found: SlowWrite) -> dict[str, object]:
        ago = time.monotonic() - found.ended
        stages = {f"{name}_seconds": found.stage(name) for name in STAGES}
        return {
            "node": self._node_id,
            "op": found.op,
            "kind": found.kind or None,
            "took_seconds": found.total,
            "longest": found.longest,
            **stages,
            "follower": found.follower,
            "follower_sync_seconds": found.follower_sync,
            "index": found.index or None,
            "leader": found.leader,
            "from": ",".join(sorted(found.senders)) or None,
            "size_bytes": found.size_bytes or None,
            "writes": found.writes if found.writes > 1 else None,
            "tries": found.tries if found.tries > 1 else None,
            "error": found.error,
            "ended_ago_seconds": ago if ago > LATE_SECONDS else None,
        }

    def to_json(self) -> dict[str, Any]:
        """The last slow writes, and the slowest writes of the last minutes, both newest first."""
        since = time.monotonic() - WINDOWS * WINDOW_SECONDS
        kept = [found for window in (*self._windows.copy(), self._window) for found in window.copy()]
        slowest = sorted((found for found in kept if found.ended >= since), key=_total)[-SLOWEST_MAX:]
        return {
            "node_id": self._node_id,
            "slow_write_seconds": self.slow_seconds,
            "slow": [found.to_json() for found in sorted(self._slow.copy(), key=_ended, reverse=True)],
            "slowest": [found.to_json() for found in sorted(slowest, key=_ended, reverse=True)],
        }


def _made(write: Write, ended: float, leader: str | None) -> SlowWrite:
    """Without its stages."""
    series = write.series
    return SlowWrite(
        at=time.time() - (time.monotonic() - ended),
        ended=ended,
        seconds=ended - write.begun,
        op="" if series is None else series.op,
        kind="" if series is None else series.kind,
        size_bytes=len(write.data),
        writes=1,
        senders=(),
        index=write.index,
        leader=leader,
        tries=write.tries,
        error=write.failed_with,
    )


def _seconds(found: SlowWrite) -> float:
    return found.seconds


def _total(found: SlowWrite) -> float:
    return found.total


def _ended(found: SlowWrite) -> float:
    return found.ended
