"""Checks: a watcher gets the events of its filter, from its beginning on and over all managers: each once, in order,
none left out, all of a command at once. No bookmark is ahead of them. A watcher of an old cluster is told that it is
lost in a restored one. Not: how soon events come.

The events that should have come are made from the history of one manager and the places of the containers before it,
without the code of the watches. `judge` is called when a cluster is lost, and `judge_end` at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.simulation.watchers import Stretch, Watcher, Watchers
from tests.simulation.world import Failure, Process
from warren_raft.fsm import history
from warren_raft.fsm.history import Change
from warren_raft.model.entities import Node
from warren_raft.store import codec
from warren_raft.store.command import PUT
from warren_raft.store.events import Event
from warren_raft.store.tables import BY_NUMBER, CONTAINER


class Seen(NamedTuple):
    """An event, as a program sees it."""

    revision: int
    index: int
    operation: str
    kind: str
    id: str
    image: str


class Watched:
    def judge(self, watchers: Watchers, process: Process, *, is_end: bool) -> None:
        """Compare with the history of a manager. `is_end`: it has everything, and so must the watchers."""
        with process.opened.database.read() as transaction:
            newest = transaction.revision
            floor = max(watchers.base_revision, history.floor(transaction))
            if floor > watchers.base_revision:
                return  # this manager cannot tell
            changes = list(history.since(transaction, floor))
        for watcher in watchers.everyone:
            expected = list(_expected(watcher, changes, dict(watchers.base_places)))
            for stretch in watcher.stretches:
                if stretch.audience is process.audience:
                    self._judge(watcher, stretch, expected, floor, newest)
            last = watcher.stretches[-1:]
            if is_end and last and last[0].audience is not process.audience:
                raise Failure(f"{watcher.name} goes on in a restored cluster as if it were the old one")

    def _judge(self, watcher: Watcher, stretch: Stretch, expected: list[Seen], floor: int, newest: int) -> None:
        named = f"{watcher.name} {dict(watcher.chosen)} from revision {stretch.begin}"
        seen: list[Seen] = []
        before = stretch.begin
        for item in stretch.given:
            if item.audience is not stretch.audience:
                raise Failure(f"{named}: {item.manager} of a restored cluster goes on at revision {item.revision}")
            if item.revision <= before:
                raise Failure(f"{named}: {item.manager} gave revision {item.revision} after {before}")
            if item.revision > item.applied_revision:
                raise Failure(
                    f"{named}: {item.manager} gave revision {item.revision} at its revision {item.applied_revision}"
                )
            before = item.revision
            seen += [_seen(event) for event in item.events if event.operation != "bookmark"]
        wanted = [each for each in expected if max(stretch.begin, floor) < each.revision <= min(stretch.end, newest)]
        seen = [each for each in seen if floor < each.revision <= newest]
        if seen != wanted:
            place = next((n for n, pair in enumerate(zip(seen, wanted, strict=False)) if pair[0] != pair[1]), -1)
            at = min(len(seen), len(wanted)) if place < 0 else place
            raise Failure(f"{named}: event {at} is {seen[at : at + 1]}, and should be {wanted[at : at + 1]}")

    def judge_end(self, watchers: Watchers, process: Process) -> None:
        """The same, after every watcher has taken everything."""
        for watcher in watchers.everyone:
            watcher.finish(process)
            newest = process.opened.machine.revision
            kinds = watcher.chosen
            stretch = watcher.stretches[-1]
            with process.opened.database.read() as transaction:
                changes = list(history.since(transaction, watchers.base_revision))
            missing = [
                each
                for each in _expected(watcher, changes, dict(watchers.base_places))
                if max(stretch.end, watchers.base_revision) < each.revision <= newest
            ]
            if missing:
                raise Failure(f"{watcher.name} {dict(kinds)} ended at {stretch.end}, without {missing[0]}")
        self.judge(watchers, process, is_end=True)


def _seen(event: Event) -> Seen:
    return Seen(event.revision, event.index, event.operation, event.kind, event.id, _content(event.entity))


def _content(entity: Any) -> str:
    """A part of an entity that differs between its revisions: the image, or the status of a node."""
    return "" if entity is None else str(entity.status if isinstance(entity, Node) else entity.image)


def _expected(watcher: Watcher, changes: list[Change], places: dict[str, tuple[str, str]]) -> Iterator[Seen]:
    """`places`: the containers before the changes, which are followed."""
    chosen = watcher.chosen
    kinds, ids = chosen.get("kinds"), chosen.get("ids")
    service, node = chosen.get("service"), chosen.get("node")
    has_place = service is not None or node is not None

    def here(place: tuple[str, str] | None) -> bool:
        return place is not None and service in (None, place[0]) and node in (None, place[1])

    for change in changes:
        for index, operation in enumerate(change.operations):
            kind: Any = BY_NUMBER[operation.kind_number]
            is_put = operation.verb == PUT
            entity = None
            if operation.entity is not None:
                entity = codec.decode(kind, codec.make_record(change.revision, operation.entity))
            was_here = is_here = not has_place
            if kind is CONTAINER:
                now = (entity.service_id, entity.node_id) if entity is not None else None
                before = places.pop(operation.id, None)
                if now is not None:
                    places[operation.id] = now
                if has_place:
                    was_here, is_here = here(before), here(now)
            elif has_place:
                continue
            if (kinds is not None and kind.name not in kinds) or (ids is not None and operation.id not in ids):
                continue
            if not is_put and was_here:
                yield Seen(change.revision, index, "delete", kind.name, operation.id, "")
            elif is_put and (is_here or was_here):
                name = "put" if is_here else "left"
                yield Seen(change.revision, index, name, kind.name, operation.id, _content(entity))
