"""A watch as its program sees it (Watch), and the queue between it and the hub that fills it (Feed).

`EventQueue` is what watches for threads and for asyncio (aio/watch.py) have in common: all but the waiting. Not here:
where the events come from (watching/). Invariant: the items of a feed are whole revisions, in order. Only the hub's
thread appends to the queue, and only the program takes out of it. Neither waits for the other. An exception of a signal
handler in the middle of a call loses no event: what a call did not return, the next one returns.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, Self

from warren_raft.errors import Closed, WarrenError
from warren_raft.store.events import Event, Filter
from warren_raft.support import timeouts
from warren_raft.support.waiting import Bell

QUEUE_BYTES: Final = 1024 * 1024
"""The most bytes of entities (and EVENT_BYTES for each event) in the queue of a watch, if it has more than one
revision. A watch whose program is slower reads on from the history as soon as its queue is half empty."""
EVENT_BYTES: Final = 512
"""Counted for each event besides the bytes of its entity."""

WATCH_CLOSED: Final = "the watch is closed"


class Item(NamedTuple):
    """The events of one revision, or a bookmark."""

    revision: int
    events: tuple[Event, ...]
    size_bytes: int


class Feed:
    """One watch between the hub and its program. See the module's docstring."""

    __slots__ = (
        "__weakref__",
        "_added_bytes",
        "_taken_bytes",
        "bookmark_at",
        "bookmark_seconds",
        "error",
        "filter",
        "given",
        "is_closed",
        "is_waiting",
        "notify",
        "position",
        "queue",
        "reached_in",
    )

    def __init__(
        self,
        filter: Filter,  # noqa: A002
        position: int,
        *,
        reached_in: int | None,
        notify: Callable[[], object],
        bookmark_seconds: float | None = None,
    ) -> None:
        """Events behind the revision `position`. `reached_in`: the number of a database that has had this
        revision already; None: that of this store has not reached it."""
        self.filter: Final = filter
        self.notify: Final = notify
        self.bookmark_seconds: Final = bookmark_seconds
        self.queue: Final[deque[Item]] = deque()
        self.is_closed = False
        """Set by the program: it wants no more."""
        self.error: WarrenError | None = None
        """Set by the hub: nothing comes after the items in the queue, for this reason."""
        # The rest belongs to the hub.
        self.position = position
        """Every event up to this revision is in the queue, or was. A live feed may be further: as far as the hub."""
        self.given = position
        """The revision of the newest item, or the beginning."""
        self.reached_in = reached_in
        self.is_waiting = False
        """Its queue was full: ring the hub when there is room."""
        self.bookmark_at = -math.inf
        self._added_bytes = self._taken_bytes = 0

    # ---- for the hub

    def put(self, revision: int, events: tuple[Event, ...], size_bytes: int) -> None:
        if not self.queue:
            self._added_bytes = self._taken_bytes
        self._added_bytes += size_bytes
        self.position = self.given = revision
        self.queue.append(Item(revision, events, size_bytes))

    @property
    def queued_bytes(self) -> int:
        return self._added_bytes - self._taken_bytes if self.queue else 0

    def end(self, error: WarrenError) -> None:
        """Nothing comes any more. The program gets the items in the queue first, unless the store is closed."""
        if self.error is None:
            self.error = error

    # ---- for the program

    def take_now(self, feeds: Feeds, most: int | None = None) -> list[Item]:
        """The items that are there, in order, `most` at most; none if there are none now. Raises as `hand_over`."""
        found: list[Item] = []
        self.hand_over(feeds, found.append, most)
        return found

    def hand_over(self, feeds: Feeds, keep: Callable[[Item], object], most: int | None = None) -> None:
        """Call `keep` with each item that is there, in order, `most` at most, and take it out of the queue.

        If an exception comes in between, the next call begins with the same item.
        Raises Closed if the feed was closed, or its store. If there is no item, raises WatchLost, or the error that
        ended the store.
        """
        if self.is_closed:
            raise Closed(WATCH_CLOSED)
        error = self.error
        if isinstance(error, Closed):
            raise error.with_traceback(None)
        queue, count = self.queue, 0
        while queue and (most is None or count < most):
            item = queue[0]
            keep(item)
            if queue and queue[0] is item:  # no signal handler took it meanwhile
                self._taken_bytes += item.size_bytes  # first: the hub never sees more bytes taken than there were
                del queue[0]  # no call since the line before, so Python lets no signal in
            count += 1
        if count and self.is_waiting:
            feeds.ring()
        if not count and error is not None and not queue:
            raise error.with_traceback(None)  # otherwise the error would collect a traceback for each call

    def has_news(self) -> bool:
        """Whether `take_now` would return an item or raise."""
        return bool(self.queue) or self.is_closed or self.error is not None


class Feeds(Protocol):
    """The hub of a store (watching/hub.py). Thread-safe; also for signal handlers and finalizers."""

    def add(self, feed: Feed) -> None:
        """Begin to fill it. Raises Closed, RefusedForSafety (too many)."""

    def forget(self, feed: Feed) -> None:
        """End it; its program is notified once more. Idempotent."""

    def ring(self) -> None:
        """There is something to do: a change, or room in a queue."""

    def new_bell(self) -> Bell:
        """By which the program of a watch waits for news."""


class Wanted(NamedTuple):
    """The arguments of a watch, checked."""

    filter: Filter
    position: int
    reached_in: int | None
    bookmark_seconds: float | None


class EventQueue:
    """The events of a watch that are there, in order. `_bell` rings when there is news."""

    def __init__(self, feeds: Feeds, wanted: Wanted) -> None:
        self._feeds = feeds
        self._bell = bell = feeds.new_bell()
        self._rest: deque[Event] = deque()
        """Events that were taken out of the queue, and not given yet."""
        self._given = wanted.position
        """See `revision`. It changes in the last step of a call, together with `_rest`: there is no call of a function
        in between or behind, so Python lets no signal in."""
        self._feed = Feed(
            wanted.filter,
            wanted.position,
            reached_in=wanted.reached_in,
            notify=bell.ring,
            bookmark_seconds=wanted.bookmark_seconds,
        )
        self._forget = weakref.finalize(self, feeds.forget, self._feed)
        self._forget.atexit = False  # the end of the process closes the stores
        try:
            feeds.add(self._feed)
        except BaseException:
            self._forget()
            raise

    @property
    def revision(self) -> int:
        """Everything up to this revision was given: `since=watch.revision` goes on exactly behind it.

        While only some events of a command were given, it is the revision before. A watch that gets no events stays
        where it began; `bookmark_seconds` moves it on.
        """
        return self._given

    def _first(self) -> tuple[Event, int]:
        """The first event of the rest, and what `revision` is after it."""
        event = self._rest[0]
        is_last = len(self._rest) == 1 or self._rest[1].revision > event.revision
        return event, event.revision if is_last else self._given

    def _fill(self, most: int | None = None) -> None:
        """Add the events of the next revisions to the rest, of `most` at most. Raises the errors of the watch."""
        self._feed.hand_over(self._feeds, self._keep, most)

    def _keep(self, item: Item) -> None:
        if item.revision > (self._rest[-1].revision if self._rest else self._given):  # otherwise it was kept before
            self._rest.extend(item.events)

    def close(self) -> None:
        """End the watch: a loop that iterates ends. Idempotent; any thread, and signal handlers."""
        self._feed.is_closed = True
        self._forget()

    def __repr__(self) -> str:
        """For logs and debuggers. Any state, any thread; never raises."""
        state = "closed" if self._feed.is_closed else "open" if self._feed.error is None else "ended"
        return f"<{type(self).__name__} at revision {self.revision}, {state}>"


class Watch(EventQueue):
    """The events of a watch, in order: iterate over it, or call `take`. Use it with `with`, or call `close()`.

    One thread iterates; any thread may close it, which ends the iteration. An exception that a signal handler raises
    in the middle of a call (KeyboardInterrupt, for example) loses no event: the next call gives it. A watch that nobody
    refers to any more is closed by itself. In a forked child it raises Closed.

    Iterating and `take` raise:
        WatchLost: events were missed, because the program was too slow or came too late, or the state was replaced
            by one whose history does not reach back. Read everything again in a view, and go on by `view.watch()`.
        Closed: the store was closed, or its manager has stopped.
        Corrupted: the state is damaged.
    """

    def take(self, timeout: float | None = None) -> list[Event]:
        """All events that are there, at least those of one revision, and whole revisions only. Waits for the first.

        `timeout` in seconds, None: for ever. Returns an empty list at the timeout. Raises the errors of the class, and
        Closed if the watch was closed.
        """
        deadline = timeouts.deadline(timeout)
        while not self._rest or self._feed.is_closed:
            if not self._bell.wait_for(self._feed.has_news, deadline):
                return []
            self._fill()  # perhaps nothing: the news is an item that was kept before an exception
        found, rest = list(self._rest), deque[Event]()
        self._given, self._rest = found[-1].revision, rest
        return found

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while not self._rest or self._feed.is_closed:
            self._bell.wait_for(self._feed.has_news, math.inf)
            if self._feed.is_closed:
                raise StopIteration
            self._fill(1)
        event, self._given = self._first()
        del self._rest[0]
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
