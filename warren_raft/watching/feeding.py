"""Filling feeds from the history of the state, step by step, without a thread or a clock of its own.

Not here: the thread and its waking (hub.py), the effect of a filter (store/events.py), the program's side
(store/watch.py). Invariant: a feed gets each event behind its beginning once, in the order of revision and index, all
events of a revision at once, and a bookmark only behind every event up to it; or it ends with an error.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from warren_raft.errors import Closed, Corrupted, RefusedForSafety, WarrenError, WatchLost
from warren_raft.fsm import history
from warren_raft.fsm.history import Change
from warren_raft.store.codec import MalformedRecord
from warren_raft.store.database import Database
from warren_raft.store.events import BOOKMARK, Event
from warren_raft.store.reading import Reader
from warren_raft.store.transactions import Owner, ReadTransaction
from warren_raft.store.watch import EVENT_BYTES, QUEUE_BYTES, WATCH_CLOSED, Feed
from warren_raft.support.log_lines import log_event
from warren_raft.support.waiting import taken
from warren_raft.watching.routes import Decoded, Routes, operations_in

logger = logging.getLogger("warren_raft.watching")

FEEDS_MAX: Final = 4_096
"""Watches of one store: several for each of 500 nodes."""
LIVE_CHANGES: Final = 1_024
"""The most changes that one step routes to the live feeds."""
CHUNK_CHANGES: Final = 256
"""The most changes that are read for one feed at a time while it catches up. Then the next one has its turn."""
STEP_CHANGES: Final = 2_048
"""The most changes that one step reads for all feeds that catch up, so that live feeds wait some milliseconds only."""


def oldest_since(reader: Reader) -> int:
    """The lowest revision behind which every change is kept. Later it may be lost."""

    def floor(database: Owner, _txn: object) -> int:
        with ReadTransaction(database) as transaction:
            return history.floor(transaction)

    return reader._within(floor)


class Feeding:
    """`add` and `forget` from any thread; the rest in one thread.

    `attached()`: the database to read from now; raises Closed. `problem()`: why there will be no more changes, or None.
    `is_continued`: another database has the changes of the one before, except after `diverged`. If it is False, that is
    not known of any.
    """

    def __init__(
        self,
        attached: Callable[[], Database],
        problem: Callable[[], WarrenError | None] = lambda: None,
        *,
        is_continued: bool = True,
    ) -> None:
        self._is_continued: Final = is_continued
        self._attached = attached
        self._problem = problem
        self._arriving: deque[Feed] = deque()
        self._leaving: deque[Feed] = deque()
        self._routes = Routes()
        self._live: dict[Feed, None] = {}
        self._behind: dict[Feed, None] = {}
        """Feeds for which the history is read. The first has its turn."""
        self._marked: dict[Feed, None] = {}
        """Live feeds with bookmarks."""
        self._position = 0
        """The live feeds have every event up to this revision."""
        self._newest = 0
        """The revision of the state at the last step."""
        self._database: Database | None = None
        self._right_from = 0
        """The databases with lower numbers had perhaps other changes."""
        self._touched: dict[Feed, None] = {}
        """Feeds whose programs are to be notified."""
        self.lost = 0
        """How many feeds ended because they missed changes."""

    # ---- any thread

    def add(self, feed: Feed) -> None:
        """Raises RefusedForSafety beyond FEEDS_MAX."""
        if len(self._live) + len(self._behind) + len(self._arriving) >= FEEDS_MAX and self.count_open() >= FEEDS_MAX:
            raise RefusedForSafety(
                f"{FEEDS_MAX} watches are open on this store: close those that are not needed any more"
            )
        self._arriving.append(feed)

    def count_open(self) -> int:
        """Without those that the next step removes."""
        return sum(not feed.is_closed for feed in self.feeds)

    @property
    def feeds(self) -> list[Feed]:
        return [*self._live, *self._behind, *self._arriving]

    def forget(self, feed: Feed) -> None:
        feed.is_closed = True
        self._leaving.append(feed)

    def diverged(self, right: Database) -> None:
        """The states before this one were wrong: their changes are not those of this one, which is attached next."""
        self._right_from = right.number

    @property
    def is_idle(self) -> bool:
        """Whether there is no feed at all."""
        return not (self._live or self._behind or self._arriving)

    # ---- one thread

    def end(self, error: WarrenError) -> None:
        """End every feed."""
        self._admit()
        for feed in [*self._live, *self._behind]:
            self._lose(feed, error)
        self._notify()

    def step(self, now: float) -> float:
        """Give the feeds what they lack. Returns the seconds until the next step; 0: there is more to do at once.

        Raises Closed if the store is closed, or if its database is being replaced at this moment.
        """
        try:
            self._admit()
            problem = self._problem()
            if problem is not None:
                self.end(problem)
            if self.is_idle:
                return math.inf
            return self._read(now)
        finally:
            self._notify()

    def _admit(self) -> None:
        for feed in taken(self._arriving):
            self._behind[feed] = None
        for feed in taken(self._leaving):
            self._remove(feed)
            feed.end(Closed(WATCH_CLOSED))
            self._touched[feed] = None

    def _read(self, now: float) -> float:
        database = self._attached()
        with database.read() as transaction:
            revision = self._newest = transaction.revision
            if database is not self._database or revision < self._position:
                self._replaced(database, revision)
            self._feed_live(transaction, revision)
            has_more = self._catch_up(transaction, revision)
        wait = self._bookmark(now)
        return 0.0 if has_more or self._position < revision else wait

    def _notify(self) -> None:
        touched, self._touched = self._touched, {}
        for feed in touched:
            try:
                feed.notify()
            except Exception as error:  # noqa: BLE001  it is logged; the other feeds go on
                log_event(logger, logging.ERROR, "program of a watch not notified", exc_info=error)
                self._remove(feed)
                feed.is_closed = True

    # ---- the database

    def _replaced(self, database: Database, revision: int) -> None:
        """Another database than before. Its history is read from where each feed is, so a history that does not reach
        back is noticed."""
        for feed in list(self._live):
            self._fall_behind(feed, self._position)
        if database is not self._database and not self._is_continued:
            self._right_from = database.number
        self._database = database
        for feed in list(self._behind):
            if feed.reached_in is not None and feed.position > revision:
                self._lose(feed, WatchLost(revision))
        self._position = revision

    def _reached(self, feed: Feed) -> None:
        """The present database has the feed's revision, or had it."""
        if feed.reached_in is None:
            feed.reached_in = self._number

    def _is_of_wrong_state(self, feed: Feed) -> bool:
        """Whether it begins, or went on, in a state that was replaced because it was wrong. (While a wrong state is
        attached, nothing is lost: there is no other state to go on in.)"""
        return feed.reached_in is not None and feed.reached_in < self._right_from <= self._number

    @property
    def _number(self) -> int:
        assert self._database is not None  # it is being read, or was
        return self._database.number

    # ---- live feeds

    def _feed_live(self, transaction: ReadTransaction, revision: int) -> None:
        """Give every live feed the next changes, each of which is read and decoded once."""
        if self._live and self._position < revision:
            try:
                for count, change in enumerate(self._changes(transaction, self._position, self._routes.skips), 1):
                    self._route(change)
                    self._position = change.revision
                    if count == LIVE_CHANGES:
                        return
            except WatchLost:  # each feed is judged by itself: it may need none of the changes that are lost
                for feed in list(self._live):
                    self._fall_behind(feed, self._position)
        self._position = revision

    def _route(self, change: Change) -> None:
        """All events of a change, to each live feed that wants some."""
        found: dict[Feed, list[Event]] = {}
        sizes: dict[Feed, int] = {}
        for decoded in operations_in(change):
            for feed in dict.fromkeys(self._routes.candidates(decoded)):
                if change.revision <= feed.position:
                    continue
                event = self._event(decoded, feed)
                if event is not None:
                    found.setdefault(feed, []).append(event)
                    sizes[feed] = sizes.get(feed, 0) + decoded.size_bytes
        for feed, events in found.items():
            if feed.error is not None:
                continue
            if feed.queued_bytes >= QUEUE_BYTES:
                self._fall_behind(feed, change.revision - 1)
            else:
                self._give(feed, change.revision, events, sizes[feed])

    def _event(self, decoded: Decoded, feed: Feed) -> Event | None:
        """The event of an operation for a feed. If it cannot be told, the feed ends."""
        try:
            return decoded.event_for(feed.filter)
        except WatchLost:
            self._lose(feed, WatchLost(self._newest))
        except MalformedRecord as error:
            self._lose(feed, self._corrupted(f"revision {decoded.revision}: {error}"))
        return None

    def _give(self, feed: Feed, revision: int, events: list[Event], size_bytes: int) -> None:
        feed.put(revision, tuple(events), size_bytes)
        self._touched[feed] = None

    # ---- feeds that are behind

    def _catch_up(self, transaction: ReadTransaction, revision: int) -> bool:
        """Read the history for the feeds that are behind. Returns whether there is more to read at once."""
        room = STEP_CHANGES
        has_more = False
        for feed in list(self._behind):
            if self._is_of_wrong_state(feed):
                self._lose(feed, WatchLost(revision))
                continue
            if feed.position < self._position:
                if not self._has_room(feed):
                    continue
                if room <= 0:
                    return True
                room -= self._read_for(feed, transaction, revision)
            if feed.error is not None:
                continue
            if feed.position >= self._position:
                self._go_live(feed, revision)
            else:  # behind the others, so that each has its turn
                del self._behind[feed]
                self._behind[feed] = None
                has_more = has_more or self._has_room(feed)
        return has_more

    def _has_room(self, feed: Feed) -> bool:
        feed.is_waiting = True  # first: a program that takes items between these lines rings
        if feed.queued_bytes > QUEUE_BYTES // 2:
            return False
        feed.is_waiting = False
        return True

    def _read_for(self, feed: Feed, transaction: ReadTransaction, revision: int) -> int:
        """Read some changes for one feed. Returns how many."""
        count = 0
        try:
            for change in self._changes(transaction, feed.position):
                count += 1
                self._read_change(feed, change)
                if feed.error is not None or count == CHUNK_CHANGES or feed.queued_bytes >= QUEUE_BYTES:
                    return count
        except WatchLost as error:
            self._lose(feed, error)
            return count
        feed.position = max(feed.position, revision)
        return count

    def _read_change(self, feed: Feed, change: Change) -> None:
        events: list[Event] = []
        size_bytes = 0
        for decoded in operations_in(change):
            event = self._event(decoded, feed)
            if event is not None:
                events.append(event)
                size_bytes += decoded.size_bytes
        if feed.error is not None:
            return
        if events:
            self._give(feed, change.revision, events, size_bytes)
        feed.position = change.revision

    def _go_live(self, feed: Feed, revision: int) -> None:
        """From now on it gets its events with the others. If it is ahead of them, it gets none twice."""
        del self._behind[feed]
        feed.is_waiting = False
        if feed.position <= revision:
            self._reached(feed)
        self._live[feed] = None
        self._routes.add(feed)
        if feed.bookmark_seconds is not None:
            self._marked[feed] = None

    def _fall_behind(self, feed: Feed, position: int) -> None:
        """It has every event up to `position`, and must read on by itself."""
        if feed.position <= position:
            self._reached(feed)
        feed.position = max(feed.position, position)
        self._remove(feed)
        self._behind[feed] = None

    def _lose(self, feed: Feed, error: WarrenError) -> None:
        if isinstance(error, WatchLost):
            self.lost += 1
        feed.end(error)
        self._remove(feed)
        self._touched[feed] = None

    def _remove(self, feed: Feed) -> None:
        self._behind.pop(feed, None)
        self._marked.pop(feed, None)
        if feed in self._live:
            del self._live[feed]
            self._routes.remove(feed)

    # ---- bookmarks

    def _bookmark(self, now: float) -> float:
        """Tell quiet feeds how far they are. Returns the seconds until the next bookmark is due."""
        wait = math.inf
        revision = self._position
        for feed in self._marked:
            if feed.position > revision or feed.given >= revision:
                continue  # it begins later, or had an event or a bookmark since the last change
            assert feed.bookmark_seconds is not None  # the others are not in this table
            if now < feed.bookmark_at:
                wait = min(wait, feed.bookmark_at - now)
            elif feed.queued_bytes < QUEUE_BYTES:
                self._give(feed, revision, [Event(revision, BOOKMARK, "", "")], EVENT_BYTES)
                feed.bookmark_at = now + feed.bookmark_seconds
        return wait

    # ---- the history

    def _changes(
        self, transaction: ReadTransaction, after: int, skips: Callable[[bytes], bool] | None = None
    ) -> Iterator[Change]:
        """Raises WatchLost if some are not kept any more, Corrupted. `skips`: see history.since."""
        try:
            yield from history.since(transaction, after, skips)
        except ValueError as error:
            raise self._corrupted(f"its history cannot be read: {error}") from None

    def _corrupted(self, detail: str) -> Corrupted:
        assert self._database is not None  # it is being read
        return Corrupted(self._database.path, detail)
