"""From a change to the feeds that want it, by a look-up in a dict for each way in which a filter can choose.

Not here: reading changes (feeding.py). Invariant: a change costs a few look-ups, however many feeds do not want it; the
events of an operation are decoded once for all feeds that want it, and not at all if none does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from warren_raft.errors import WatchLost
from warren_raft.fsm.history import Change, Values
from warren_raft.store import codec
from warren_raft.store.command import Operation, only_put_in
from warren_raft.store.events import Event, EventOperation, Filter, Place, place_of, short_place_in
from warren_raft.store.tables import BY_NUMBER, CONTAINER
from warren_raft.store.watch import EVENT_BYTES, Feed

_EVERY_KIND: Final = 0
"""In the place of a kind's number; the numbers begin at 1."""
_CONTAINER: Final = CONTAINER.number


class Decoded:
    """One operation of a change, and its events, each made when it is first asked for. Raises codec.MalformedRecord for
    an entity that cannot be read."""

    __slots__ = ("_events", "_place", "before", "index", "is_known", "operation", "revision")

    def __init__(self, change: Change, index: int) -> None:
        self.revision = change.revision
        self.index = index
        self.operation: Operation = change.operations[index]
        self.is_known = change.before is not None
        """Whether the history has the values before it. (The first releases kept none.)"""
        self.before: Values | None = None if change.before is None else change.before[index]
        self._place: Place | None = None
        self._events: dict[EventOperation, Event] = {}

    @property
    def place(self) -> Place | None:
        """The place of the container after the operation; None if it was deleted."""
        entity = self.operation.entity
        if self._place is None and entity is not None:
            self._place = place_of(entity)
        return self._place

    @property
    def size_bytes(self) -> int:
        entity = self.operation.entity
        return EVENT_BYTES if entity is None else EVENT_BYTES + len(entity)

    def event_for(self, filter: Filter) -> Event | None:  # noqa: A002
        """Its event for a filter; None: it is none. Raises WatchLost if that cannot be known, for a container whose
        place before is not known."""
        _, kind_number, id_, _, _ = self.operation
        if not filter.wants(kind_number, id_):
            return None
        place = self.place if filter.has_place else None
        if not filter.has_place:
            name = filter.judge(None, () if self.operation.entity is not None else None)
        else:
            name = filter.judge(self.before, place)
            if name is None and not self.is_known:
                raise WatchLost(self.revision)
        return None if name is None else self._event(name)

    def _event(self, name: EventOperation) -> Event:
        event = self._events.get(name)
        if event is None:
            _, kind_number, id_, data, _ = self.operation
            kind = BY_NUMBER[kind_number]
            entity: Any = None if data is None else codec.decode_entity(kind, data, self.revision)
            event = self._events[name] = Event(self.revision, name, kind.name, id_, entity, self.index)
        return event


def operations_in(change: Change) -> Iterator[Decoded]:
    """The operations of a change, in order."""
    return (Decoded(change, index) for index in range(len(change.operations)))


class Routes:
    """The live feeds. For the hub's thread."""

    def __init__(self) -> None:
        self._by_kind: dict[int, dict[Feed, None]] = {}
        self._by_id: dict[tuple[int, str], dict[Feed, None]] = {}
        self._by_service: dict[str, dict[Feed, None]] = {}
        self._by_node: dict[str, dict[Feed, None]] = {}

    def add(self, feed: Feed) -> None:
        for table, key in self._keys_of(feed.filter):
            table.setdefault(key, {})[feed] = None

    def remove(self, feed: Feed) -> None:
        for table, key in self._keys_of(feed.filter):
            feeds = table.get(key)
            if feeds is not None:
                feeds.pop(feed, None)
                if not feeds:
                    del table[key]

    def _keys_of(self, filter: Filter) -> Iterator[tuple[dict[Any, dict[Feed, None]], object]]:  # noqa: A002
        kinds = (_EVERY_KIND,) if filter.kinds is None else filter.kinds
        if filter.ids is not None:
            return ((self._by_id, (kind, id_)) for kind in kinds for id_ in filter.ids)
        if filter.node is not None:
            return iter(((self._by_node, filter.node),))
        if filter.service is not None:
            return iter(((self._by_service, filter.service),))
        return ((self._by_kind, kind) for kind in kinds)

    def skips(self, body: bytes) -> bool:
        """Whether a change in its encoded form is certainly not wanted by any feed. Nearly all writes are one put."""
        found = only_put_in(body)
        if found is None:
            return False
        kind_number, id_start, id_end, entity_start = found
        if self._by_kind and (_EVERY_KIND in self._by_kind or kind_number in self._by_kind):
            return False
        if self._by_id:
            id_ = str(body[id_start:id_end], "utf-8", "replace")
            if (_EVERY_KIND, id_) in self._by_id or (kind_number, id_) in self._by_id:
                return False
        if kind_number != _CONTAINER or not (self._by_node or self._by_service):
            return True
        place = short_place_in(body, entity_start)
        return place is not None and place[0] not in self._by_service and place[1] not in self._by_node

    def candidates(self, decoded: Decoded) -> Iterator[Feed]:
        """The feeds that may want an operation; some more than once."""
        _, kind_number, id_, _, _ = decoded.operation
        by_kind, by_id = self._by_kind, self._by_id
        if by_kind:
            yield from by_kind.get(_EVERY_KIND, ())
            yield from by_kind.get(kind_number, ())
        if by_id:
            yield from by_id.get((_EVERY_KIND, id_), ())
            yield from by_id.get((kind_number, id_), ())
        if kind_number == _CONTAINER and (self._by_node or self._by_service):
            if not decoded.is_known:  # it may have been in any of these places
                for table in (self._by_service, self._by_node):
                    for feeds in table.values():
                        yield from feeds
                return
            for place in (decoded.place, decoded.before):
                if place is not None:
                    yield from self._by_service.get(place[0], ())
                    yield from self._by_node.get(place[1], ())
