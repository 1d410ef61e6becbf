"""Promise: a feed gets each event behind its beginning once, in order, all of a revision at once, and a bookmark only
behind every event up to it; or it ends with WatchLost. However slow its program is, and whatever replaces the state.

The steps are made here, in one thread, so that a program can be exactly as slow as the test wants.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fsm_harness import delete as deletion
from tests.fsm_harness import one, put
from warren_raft.errors import Closed, Corrupted, RefusedForSafety, WarrenError, WatchLost
from warren_raft.fsm import history
from warren_raft.fsm.history import History
from warren_raft.fsm.machine import StateMachine
from warren_raft.model.entities import Container, Node, Service
from warren_raft.store import watch as store_watch
from warren_raft.store.command import Operation, encode_operations, only_put_in
from warren_raft.store.database import Database
from warren_raft.store.events import Event, Filter, place_of, short_place_in
from warren_raft.store.tables import CONTAINER, NODE, SERVICE
from warren_raft.store.transactions import HISTORY
from warren_raft.store.watch import Feed, Item
from warren_raft.watching import feeding
from warren_raft.watching.feeding import Feeding


class World:
    """A state, its feeds, and what each feed has given."""

    def __init__(self, machine: StateMachine) -> None:
        self.machine = machine
        self.problem: WarrenError | None = None
        self.feeding = Feeding(lambda: self.machine.database, lambda: self.problem)
        self.rings = 0
        self.now = 0.0
        self.notified: list[Feed] = []

    # ---- Feeds

    def add(self, feed: Feed) -> None:
        self.feeding.add(feed)

    def forget(self, feed: Feed) -> None:
        self.feeding.forget(feed)

    def ring(self) -> None:
        self.rings += 1

    # ---- for the tests

    def watch(self, since: int | None = None, bookmark_seconds: float | None = None, **chosen: Any) -> Feed:
        revision = self.machine.revision
        position = revision if since is None else since
        feed = Feed(
            Filter.of(**chosen),
            position,
            reached_in=self.machine.database.number if position <= revision else None,
            notify=lambda: self.notified.append(feed),
            bookmark_seconds=bookmark_seconds,
        )
        self.add(feed)
        return feed

    def step(self) -> float:
        return self.feeding.step(self.now)

    def settle(self) -> float:
        """Steps until there is nothing to do."""
        for _ in range(10_000):
            wait = self.step()
            if wait > 0:
                return wait
        raise AssertionError("it never comes to rest")

    def items(self, feed: Feed, most: int | None = None) -> list[Item]:
        return feed.take_now(self, most)

    def events(self, feed: Feed) -> list[tuple[int, str, str]]:
        return [(e.revision, e.operation, e.id) for item in self.items(feed) for e in item.events]

    def change(self, *operations: Operation) -> int:
        return one(self.machine, *operations).revision


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Database.open(tmp_path / "state", sync=False) as database:
        yield World(StateMachine(database))


def container(id_: str, node: str = "n1", service: str = "s1", image: str = "") -> Operation:
    return put(Container(id=id_, node_id=node, service_id=service, image=image))


def gone(id_: str) -> Operation:
    return deletion(CONTAINER, id_)


# What is an event of which watch -------------------------------------------------------------------------------------


def test_a_watch_begins_behind_its_revision(world: World) -> None:
    world.change(container("a"))
    from_now, from_the_beginning, from_one = world.watch(), world.watch(0), world.watch(1)
    world.change(container("b"))
    world.settle()
    assert world.events(from_now) == world.events(from_one) == [(2, "put", "b")]
    assert world.events(from_the_beginning) == [(1, "put", "a"), (2, "put", "b")]


def test_an_event_has_the_entity_as_of_its_revision(world: World) -> None:
    feed = world.watch()
    world.change(put(Service(id="s", replicas=1)))
    world.change(put(Service(id="s", replicas=2)))
    world.change(deletion(SERVICE, "s"))
    world.change(put(b"the CA"))
    world.settle()
    events = [event for item in world.items(feed) for event in item.events]
    assert [e.entity.replicas for e in events[:2]] == [1, 2]  # type: ignore[union-attr]
    assert [e.entity.revision for e in events[:2]] == [1, 2]  # type: ignore[union-attr]
    assert events[2] == Event(3, "delete", "service", "s", None, 0)
    assert (events[3].kind, events[3].id, events[3].entity) == ("ca", "ca", b"the CA")
    assert "CA" not in repr(events[3])


def test_a_command_is_one_item_with_its_places(world: World) -> None:
    """A filter leaves gaps in the index. A delete of nothing is no change, and has no place."""
    everything, nodes = world.watch(), world.watch(kinds={"node"})
    world.change(put(Node(id="n1")), gone("missing"), container("a"), put(Node(id="n2")))
    world.settle()
    (item,) = world.items(everything)
    assert [(e.id, e.index) for e in item.events] == [("n1", 0), ("a", 1), ("n2", 2)]
    (item,) = world.items(nodes)
    assert [(e.id, e.index) for e in item.events] == [("n1", 0), ("n2", 2)]


def test_a_container_that_moves_leaves_one_node_and_comes_to_another(world: World) -> None:
    one_node, other = world.watch(node="n1"), world.watch(node="n2")
    both, service = world.watch(node="n1", service="s1"), world.watch(service="s1")
    world.change(container("a", "n1"))
    world.change(container("a", "n1", image="2"))
    world.change(container("a", "n2"))
    world.change(container("a", "n2", "s2"))
    world.change(gone("a"))
    world.settle()
    assert world.events(one_node) == [(1, "put", "a"), (2, "put", "a"), (3, "left", "a")]
    assert world.events(both) == [(1, "put", "a"), (2, "put", "a"), (3, "left", "a")]
    assert world.events(other) == [(3, "put", "a"), (4, "put", "a"), (5, "delete", "a")]
    assert world.events(service) == [(1, "put", "a"), (2, "put", "a"), (3, "put", "a"), (4, "left", "a")]


def test_what_left_has_the_entity_as_it_is_now(world: World) -> None:
    world.change(container("a", "n1"))
    feed = world.watch(node="n1")
    world.change(container("a", "n2"))
    world.settle()
    ((event,),) = [item.events for item in world.items(feed)]
    assert isinstance(event.entity, Container)
    assert event.entity.node_id == "n2"


def test_ids_choose_entities_of_every_kind_or_of_some(world: World) -> None:
    of_all, of_nodes = world.watch(ids={"x"}), world.watch(ids={"x", "y"}, kinds=["nodes"])
    here = world.watch(ids={"x"}, node="n1")
    world.change(container("x"), put(Node(id="x")), put(Service(id="y")), put(Node(id="y")))
    world.change(container("x", "n2"))
    world.settle()
    assert world.events(of_all) == [(1, "put", "x"), (1, "put", "x"), (2, "put", "x")]
    assert world.events(of_nodes) == [(1, "put", "x"), (1, "put", "y")]
    assert world.events(here) == [(1, "put", "x"), (2, "left", "x")]


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        ({"kinds": {"sevrice"}}, "kinds"),
        ({"kinds": "service"}, "kinds"),
        ({"kinds": set()}, "kinds"),
        ({"kinds": {7}}, "kinds"),
        ({"kinds": 7}, "kinds"),
        ({"ids": "x"}, "ids"),
        ({"ids": []}, "ids"),
        ({"ids": {""}}, "ids"),
        ({"ids": {"x" * 512}}, "ids"),
        ({"ids": {"\ud800"}}, "ids"),
        ({"node": ""}, "node"),
        ({"node": 7}, "node"),
        ({"service": "s", "kinds": {"node"}}, "service"),
        ({"node": "n", "kinds": {"container", "volume"}}, "node"),
    ],
)
def test_a_filter_that_nothing_can_match_is_refused(chosen: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=r"^watch\.") as caught:
        Filter.of(**chosen)
    assert caught.value.field == field  # type: ignore[attr-defined]


# Slow programs -------------------------------------------------------------------------------------------------------


def test_a_slow_watch_reads_on_from_the_history(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is bounded, and it gets everything nevertheless, in order and once. Others do not wait for it."""
    monkeypatch.setattr(feeding, "QUEUE_BYTES", 10 * store_watch.EVENT_BYTES)
    slow, quick = world.watch(), world.watch()
    seen: list[tuple[int, str, str]] = []
    quickly: list[tuple[int, str, str]] = []
    for number in range(200):
        world.change(container(f"c{number}"))
        world.settle()
        quickly += world.events(quick)
        assert slow.queued_bytes <= 12 * (store_watch.EVENT_BYTES + 100)
    assert [revision for revision, _, _ in quickly] == list(range(1, 201))
    while len(seen) < 200:
        rings = world.rings
        seen += world.events(slow)
        assert world.rings > rings or not slow.is_waiting
        world.settle()
    assert seen == quickly
    world.change(container("the last"))
    world.settle()
    assert slow in world.feeding._live
    assert world.events(slow) == [(201, "put", "the last")]


def test_any_pace_gives_the_same_events(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bounds, and programs that take at random: every feed has the same events as one that reads them at once."""
    for name in ("LIVE_CHANGES", "CHUNK_CHANGES"):
        monkeypatch.setattr(feeding, name, 3)
    monkeypatch.setattr(feeding, "STEP_CHANGES", 5)
    monkeypatch.setattr(feeding, "QUEUE_BYTES", 4 * store_watch.EVENT_BYTES)
    draw = random.Random(5)
    filters: Sequence[dict[str, Any]] = [
        {},
        {"node": "n1"},
        {"service": "s2"},
        {"node": "n2", "service": "s1"},
        {"ids": {"c1", "c2"}},
        {"kinds": {"node", "container"}},
    ]
    feeds: list[tuple[Feed, int, dict[str, Any], list[Event]]] = []
    marks: dict[Feed, int] = {}
    for _ in range(400):
        if draw.random() < 0.2 and len(feeds) < 40:
            chosen = draw.choice(filters)
            since = draw.choice([None, draw.randint(0, world.machine.revision + 3)])
            begun = world.machine.revision if since is None else since
            feeds.append((world.watch(since, draw.choice([None, 0.5]), **chosen), begun, chosen, []))
        for _ in range(draw.randrange(3)):
            world.change(
                *(
                    draw.choice(
                        [
                            container(f"c{draw.randrange(4)}", f"n{draw.randrange(3)}", f"s{draw.randrange(3)}"),
                            gone(f"c{draw.randrange(4)}"),
                            put(Node(id=f"n{draw.randrange(3)}", hostname=str(draw.random()))),
                        ]
                    )
                    for _ in range(draw.randint(1, 3))
                )
            )
        world.now += 0.1
        for _ in range(draw.randrange(4)):
            world.step()
        for feed, _, _, seen in feeds:
            if draw.random() < 0.3:
                for item in world.items(feed, draw.choice([None, 1])):
                    seen += item.events
                    marks[feed] = item.revision
    for _ in range(200):
        world.settle()
        for feed, _, _, seen in feeds:
            seen += [event for item in world.items(feed) for event in item.events]
    assert len(feeds) == 40
    for feed, begun, chosen, seen in feeds:
        assert feed.error is None
        at_once = world.watch(begun, **chosen)
        expected: list[Event] = []
        for _ in range(1000):
            world.step()
            expected += [event for item in world.items(at_once) for event in item.events]
        assert [event for event in seen if event.operation != "bookmark"] == expected, chosen
        revisions = [event.revision for event in seen]
        assert revisions == sorted(revisions)
        for place, event in enumerate(seen):
            if event.operation == "bookmark":
                assert event.revision not in [later.revision for later in seen[place + 1 :]]


def test_a_watch_that_comes_too_late_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 20)
    for number in range(100):
        world.change(container(f"c{number}"))
    late, in_time = world.watch(3), world.watch(95)
    world.settle()
    assert late in world.notified
    for _ in range(2):
        with pytest.raises(WatchLost) as caught:
            world.items(late)
        assert caught.value.resume_from == 100
    assert [revision for revision, _, _ in world.events(in_time)] == [96, 97, 98, 99, 100]


def test_a_watch_that_is_too_slow_gets_what_it_has_and_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 20)
    monkeypatch.setattr(feeding, "QUEUE_BYTES", 3 * store_watch.EVENT_BYTES)
    slow = world.watch()
    for number in range(100):
        world.change(container(f"c{number}"))
        world.settle()
    seen = [revision for revision, _, _ in world.events(slow)]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 2
    world.settle()
    with pytest.raises(WatchLost):
        world.items(slow)


def test_all_live_watches_are_not_lost_with_the_hub(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub itself came too late: watches that began later go on."""
    early = world.watch()
    world.step()
    monkeypatch.setattr(history, "MAX_CHANGES", 20)
    for number in range(100):
        world.change(container(f"c{number}"))
    late = world.watch()
    world.settle()
    with pytest.raises(WatchLost):
        world.items(early)
    world.change(container("x"))
    world.settle()
    assert world.events(late) == [(101, "put", "x")]


# Bookmarks -----------------------------------------------------------------------------------------------------------


def test_a_quiet_watch_hears_how_far_it_is(world: World) -> None:
    feed = world.watch(0, bookmark_seconds=10.0, kinds={"service"})
    for number in range(5):
        world.change(container(f"c{number}"))
    world.settle()
    assert world.events(feed) == [(5, "bookmark", "")]  # it has caught up
    world.settle()
    world.now = 20.0
    world.settle()
    assert world.events(feed) == []  # nothing new
    world.change(container("x"))
    world.settle()
    assert world.events(feed) == [(6, "bookmark", "")]
    world.change(container("y"))
    assert world.settle() == 10.0  # it is due then, although nothing happens
    assert world.events(feed) == []
    world.now = 30.0
    world.settle()
    assert world.events(feed) == [(7, "bookmark", "")]
    world.change(put(Service(id="s")))
    world.now = 60.0
    world.settle()
    assert world.events(feed) == [(8, "put", "s")]  # which says as much


def test_a_bookmark_is_never_ahead_of_an_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how far this feed is, not how far the state is."""
    monkeypatch.setattr(feeding, "LIVE_CHANGES", 2)
    feed = world.watch(bookmark_seconds=1.0, kinds={"service"})
    world.watch()  # it wants everything, so no change is skipped
    world.settle()
    for number in range(4):
        world.change(container("c", image=str(number)))
    world.change(put(Service(id="s")))
    world.step()
    assert world.events(feed) == [(2, "bookmark", "")]
    world.settle()
    assert world.events(feed) == [(5, "put", "s")]


# The state is replaced -----------------------------------------------------------------------------------------------


@pytest.fixture
def other(world: World, tmp_path: Path) -> Callable[[], StateMachine]:
    """Makes another state, with the same content as the present one."""
    opened: list[Database] = []

    def make() -> StateMachine:
        directory = tmp_path / f"other{len(opened)}"
        directory.mkdir()
        (directory / "state").mkdir()
        with (directory / "state" / "1.mdb").open("wb") as file:
            world.machine.database.copy_to(file.fileno())
        (directory / "state" / "current").write_text("1\n")
        opened.append(Database.open(directory, sync=True))
        return StateMachine(opened[-1])

    yield make  # type: ignore[misc]
    for database in opened:
        database.close()


def test_a_watch_goes_on_in_the_next_state(world: World, other: Callable[[], StateMachine]) -> None:
    live, future = world.watch(), world.watch(6)
    world.change(container("a"))
    world.settle()
    world.machine = other()
    world.change(container("b"))
    world.settle()
    world.change(container("c"))
    for _ in range(5):
        world.change(container("d", image=str(world.machine.revision)))
    world.settle()
    assert [revision for revision, _, _ in world.events(live)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [revision for revision, _, _ in world.events(future)] == [7, 8]


def test_a_state_that_goes_back_is_no_continuation(world: World, other: Callable[[], StateMachine]) -> None:
    """It has other changes at the same revisions. Only a watch that waits for a revision may go on waiting."""
    world.change(container("a"))
    old = other()
    live, behind, future = world.watch(), world.watch(1), world.watch(7)
    world.change(container("b"))
    world.settle()
    world.machine = old
    world.settle()
    for feed in (live, behind):
        assert world.events(feed) == [(2, "put", "b")]
        with pytest.raises(WatchLost) as caught:
            world.items(feed)
        assert caught.value.resume_from == 1
    for _ in range(7):
        world.change(container("c", image=str(world.machine.revision)))
    world.settle()
    assert world.events(future) == [(8, "put", "c")]


def test_a_state_that_was_wrong_ends_its_watches(world: World, other: Callable[[], StateMachine]) -> None:
    """Its events were perhaps not those of the cluster."""
    live = world.watch()
    world.change(container("a"))
    world.settle()
    old = world.machine.database.number
    world.machine = other()
    world.feeding.diverged(world.machine.database)
    world.settle()
    assert world.events(live) == [(1, "put", "a")]
    with pytest.raises(WatchLost):
        world.items(live)
    later = world.watch()
    world.change(container("b"))
    world.settle()
    assert world.events(later) == [(2, "put", "b")]
    of_an_old_view = Feed(Filter.of(), 1, reached_in=old, notify=lambda: None)
    world.add(of_an_old_view)
    world.settle()
    with pytest.raises(WatchLost):
        world.items(of_an_old_view)


def test_a_view_of_a_wrong_state_cannot_be_watched_when_it_is_replaced(
    world: World, other: Callable[[], StateMachine]
) -> None:
    """There was no watch before, so nothing looked at the replacement when it happened."""
    old = world.machine.database.number
    world.machine = other()
    world.feeding.diverged(world.machine.database)
    world.settle()
    first = Feed(Filter.of(), 0, reached_in=old, notify=lambda: None)
    waits = Feed(Filter.of(), 0, reached_in=None, notify=lambda: None)
    for feed in (first, waits):
        world.add(feed)
    world.change(container("b"))
    world.settle()
    with pytest.raises(WatchLost):
        world.items(first)
    assert world.events(waits) == [(1, "put", "b")]


def test_a_state_without_history_is_told(world: World, other: Callable[[], StateMachine]) -> None:
    """So is one of a restored cluster, whose revisions leap."""
    live, at_the_end = world.watch(), world.watch(2)
    world.change(container("a"))
    world.settle()
    world.change(container("b"))
    world.machine = other()
    with world.machine.database.write() as transaction:
        transaction.clear(HISTORY)
        transaction.move(transaction.position._replace(revision=1_000_002))
    world.machine._load()
    world.settle()
    assert world.events(live) == [(1, "put", "a")]
    for feed in (live, at_the_end):
        with pytest.raises(WatchLost) as caught:
            world.items(feed)
        assert caught.value.resume_from == 1_000_002


# Changes that an earlier release kept, and damage --------------------------------------------------------------------


def keep_old(machine: StateMachine, *operations: Operation) -> int:
    """Keep a change as the first release did, without the values before it."""
    revision = machine.revision + 1
    with machine.database.write() as transaction:
        kept = History(transaction)
        kept.append(transaction, revision, encode_operations(operations))
        kept.finish(transaction)
        key = revision.to_bytes(8, "big")
        record = transaction.fetch(HISTORY, key)
        assert record is not None
        head = int.from_bytes(record[:8], "big") & ~history._HAS_BEFORE
        transaction.store(HISTORY, key, head.to_bytes(8, "big") + record[8:])
        transaction.move(transaction.position._replace(revision=revision))
    machine._load()
    return revision


@pytest.mark.parametrize("is_live", [True, False])
def test_a_place_before_that_is_not_known_is_not_guessed(world: World, is_live: bool) -> None:
    watches = {
        "node": world.watch(node="n1"),
        "other node": world.watch(node="n2"),
        "service": world.watch(service="s1"),
        "another id": world.watch(node="n1", ids={"x"}),
        "containers": world.watch(kinds={"container"}),
    }
    if is_live:
        world.settle()
    keep_old(world.machine, container("a", "n2"))
    world.settle()
    assert world.events(watches["other node"]) == [(1, "put", "a")]  # it is here now, wherever it was
    assert world.events(watches["service"]) == [(1, "put", "a")]
    assert world.events(watches["containers"]) == [(1, "put", "a")]
    with pytest.raises(WatchLost):
        world.items(watches["node"])
    keep_old(world.machine, gone("a"))
    world.settle()
    assert world.events(watches["containers"]) == [(2, "delete", "a")]
    assert world.events(watches["another id"]) == []
    for name in ("other node", "service"):
        with pytest.raises(WatchLost):
            world.items(watches[name])


def test_damage_is_told_to_those_that_need_the_damaged_bytes(world: World) -> None:
    nodes, containers = world.watch(kinds={"node"}), world.watch(kinds={"container"})
    world.settle()
    keep_old(world.machine, container("a")._replace(entity=b"\x81\xff"))
    world.settle()
    assert world.events(nodes) == []
    with pytest.raises(Corrupted, match="revision 1"):
        world.items(containers)


def test_a_history_that_cannot_be_read_is_an_error(world: World) -> None:
    feed = world.watch(0)
    world.change(container("a"))
    with world.machine.database.write() as transaction:
        transaction.store(HISTORY, (1).to_bytes(8, "big"), b"\x00" * 8 + b"xxx")
        transaction.move(transaction.position)
    with pytest.raises(Corrupted, match="history"):
        world.step()
    world.feeding.end(Corrupted("x", "y"))
    with pytest.raises(Corrupted):
        world.items(feed)


# Ends ----------------------------------------------------------------------------------------------------------------


def test_a_watch_that_is_forgotten_costs_nothing_more(world: World) -> None:
    feeds = [world.watch(**chosen) for chosen in ({}, {"node": "n"}, {"service": "s"}, {"ids": {"x"}})]
    world.settle()
    behind = world.watch(0)
    for feed in [*feeds, behind]:
        world.forget(feed)
        world.forget(feed)
    world.settle()
    assert world.feeding.is_idle
    routes = world.feeding._routes
    for table in (routes._by_kind, routes._by_id, routes._by_node, routes._by_service):
        assert table == {}
    assert set(world.notified) == {*feeds, behind}
    with pytest.raises(Closed):
        world.items(feeds[0])


def test_a_store_that_failed_ends_its_watches(world: World) -> None:
    feed = world.watch()
    world.change(container("a"))
    world.settle()
    world.problem = Closed("this manager stopped")
    world.step()
    with pytest.raises(Closed, match="stopped"):  # at once, as every call of such a store
        world.items(feed)
    assert world.feeding.is_idle


def test_a_program_that_cannot_be_notified_ends_no_other_watch(world: World) -> None:
    def fails() -> None:
        raise RuntimeError("its event loop is closed")

    failing = Feed(Filter.of(), 0, reached_in=0, notify=fails)
    world.add(failing)
    other = world.watch()
    for number in range(2):
        world.change(container("a", image=str(number)))
        world.settle()
    assert world.events(other) == [(1, "put", "a"), (2, "put", "a")]
    with pytest.raises(Closed):
        world.items(failing)


def test_there_is_a_limit_of_watches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "FEEDS_MAX", 3)
    feeds = [world.watch() for _ in range(2)]
    world.settle()
    world.watch()
    with pytest.raises(RefusedForSafety, match="close those"):
        world.watch()
    world.forget(feeds[0])
    world.watch()  # before the next step too
    with pytest.raises(RefusedForSafety, match="close those"):
        world.watch()
    world.settle()
    world.forget(feeds[1])
    world.settle()
    world.watch()


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 511])
def test_the_quick_look_at_a_container_finds_what_its_index_has(size: int) -> None:
    """It decides that no watch wants a change, so it must never differ."""
    for made in (
        Container(id="c", service_id="s" * size, node_id="n"),
        Container(id="c", service_id="s", service_name="ä" * (size // 2), node_id="n" * size),
        Container(id="ä" * 10, node_id="n" * size),
    ):
        operation = put(made)
        body = encode_operations([operation])
        found = only_put_in(body)
        assert found is not None
        assert operation.entity is not None
        assert found[0] == CONTAINER.number
        assert body[found[1] : found[2]].decode() == made.id
        assert body[found[3] :] == operation.entity
        assert short_place_in(body, found[3]) in (None, place_of(operation.entity))
        assert (short_place_in(body, found[3]) is None) == (size > 255)
        for end in range(len(body)):  # cut off anywhere it raises nothing, and finds nothing else
            if only_put_in(body[:end]) is not None:
                assert short_place_in(body[:end], found[3]) in (None, place_of(operation.entity))
    assert only_put_in(encode_operations([operation, operation])) is None
    assert only_put_in(encode_operations([gone("c")])) is None


def test_an_entity_is_decoded_once_for_all_watches_and_only_if_one_wants_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warren_raft.store import codec

    decoded: list[int] = []
    original = codec.decode_entity

    def counted(kind: Any, entity: bytes, revision: int) -> Any:
        decoded.append(revision)
        return original(kind, entity, revision)

    monkeypatch.setattr(codec, "decode_entity", counted)
    feeds = [world.watch(node=f"n{number % 3}") for number in range(30)]
    world.settle()
    world.change(container("a", "n1"), container("b", "elsewhere"), put(Node(id="n")))
    world.settle()
    assert decoded == [1]
    found = [event for feed in feeds for item in world.items(feed) for event in item.events]
    assert len(found) == 10
    assert len({id(event) for event in found}) == 1
    assert NODE.number not in world.feeding._routes._by_kind
