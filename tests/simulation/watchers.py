"""Programs that watch: slow or quick, with filters, which move to another manager when theirs ends, and now and then
without a reason. And writers of containers, which move between services and nodes.

A watcher keeps what it was given in stretches: each begins at a revision at which it has read everything, and goes on
over any number of managers until WatchLost. checkers/watched.py judges them. The steps of the hubs are events of the
run; their thread (watching/hub.py) is not here. All draws are from a generator of their own, so that a seed without
watchers runs as before. Invariant: nothing that a watcher does changes the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, Final, NamedTuple
from unittest import mock

from tests.simulation.workload import Workload
from tests.simulation.world import Audience, Process, World
from warren_raft.errors import Closed, WatchLost
from warren_raft.model.entities import Container
from warren_raft.store import codec, watch
from warren_raft.store.command import Operation, Verb
from warren_raft.store.database import Database
from warren_raft.store.events import Event, Filter
from warren_raft.store.tables import CONTAINER
from warren_raft.store.watch import Feed
from warren_raft.watching import feeding
from warren_raft.watching.feeding import Feeding

FILTERS: Final[tuple[Mapping[str, Any], ...]] = (
    {},
    {"kinds": {"service"}},
    {"kinds": {"container", "service"}, "ids": {"key-0", "c0", "c1"}},
    {"node": "n0"},
    {"node": "n1", "kinds": {"container"}},
    {"service": "s0"},
    {"service": "s1", "node": "n0"},
    {"node": "n0", "ids": {"c0", "c1", "c2"}},
)
CONTAINERS, NODES, SERVICES = 4, 2, 2
MOVE_SECONDS = 0.3
"""The time between two writes of containers at a manager, about."""
QUEUE_EVENTS = 3
"""The queues are this small, so that slow watchers fall behind."""
STEPS = {"LIVE_CHANGES": 3, "CHUNK_CHANGES": 2, "STEP_CHANGES": 5}
LEAVES = 0.02
"""Probability that a watcher moves on after it has taken something."""


@contextmanager
def small_queues() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(feeding, "QUEUE_BYTES", QUEUE_EVENTS * watch.EVENT_BYTES))
        for name, value in STEPS.items():
            stack.enter_context(mock.patch.object(feeding, name, value))
        yield


class Given(NamedTuple):
    """An item that a watcher took, and the manager that gave it."""

    revision: int
    events: tuple[Event, ...]
    manager: str
    audience: Audience
    applied_revision: int
    """Of the manager at that time."""


def revision_of(process: Process) -> int:
    """Of its database: a commit may have come through although its disk refused something."""
    with process.opened.database.read() as transaction:
        return transaction.revision


class Stretch:
    """What a watcher was given from one reading of everything to the next."""

    def __init__(self, begin: int, audience: Audience) -> None:
        self.begin = begin
        self.audience = audience
        """Of the cluster in which everything was read."""
        self.given: list[Given] = []

    @property
    def end(self) -> int:
        return self.given[-1].revision if self.given else self.begin


class Hub:
    """The feeding of one process; its steps are events of the run."""

    def __init__(self, watchers: Watchers, process: Process) -> None:
        self._watchers = watchers
        self._process = process
        self._is_due = False
        self.feeding = Feeding(lambda: process.opened.machine.database)

    def ring(self) -> None:
        if not self._is_due and not self.feeding.is_idle:
            self._is_due = True
            self._watchers.world.after(self._watchers.random.expovariate(50.0), self._step)

    def _step(self) -> None:
        self._is_due = False
        if self._process.alive:
            wait = self.feeding.step(self._process.clock)
            if wait == 0:
                self.ring()
            elif wait < 10.0:
                self._watchers.world.after(wait, self.ring)

    def add(self, feed: Feed) -> None:
        self.feeding.add(feed)
        self.ring()

    def forget(self, feed: Feed) -> None:
        self.feeding.forget(feed)
        self.ring()

    def finish(self) -> None:
        for _ in range(1000):
            if self.feeding.step(self._process.clock) > 0:
                return
        raise AssertionError("a hub never comes to rest")


class Watcher:
    """One program that watches."""

    def __init__(self, watchers: Watchers, number: int) -> None:
        self._watchers = watchers
        self._world = watchers.world
        self._random = watchers.random
        self.name = f"watcher {number}"
        self.chosen = self._random.choice(FILTERS)
        self._rate = self._random.choice([1.0, 10.0, 50.0])
        self._bookmark_seconds = self._random.choice([None, 0.2, 1.0])
        self.stretches: list[Stretch] = []
        self._must_read = True
        self._process: Process | None = None
        self._feed: Feed | None = None

    def go(self) -> None:
        """Take what there is, again and again."""
        self._world.after(self._random.expovariate(self._rate), self._turn)

    def _turn(self) -> None:
        if self._feed is None:
            self._attach(self._random.choice(self._watchers.processes()) if self._watchers.processes() else None)
        elif self._process is not None and self._process.paused_until <= self._world.now:
            self.take(self._random.choice([None, 1]))
            if self._random.random() < LEAVES:
                self.leave("watcher moved on")
        self.go()

    def _attach(self, process: Process | None) -> None:
        if process is None:
            return
        revision = revision_of(process)
        if self._must_read:
            self._must_read = False
            self.stretches.append(Stretch(revision, process.audience))
        since = self.stretches[-1].end
        self._process = process
        self._feed = Feed(
            Filter.of(**self.chosen),
            since,
            reached_in=process.opened.database.number if since <= revision else None,
            notify=lambda: None,
            bookmark_seconds=self._bookmark_seconds,
        )
        if since > revision:
            self._world.faults["watcher ahead of its manager"] += 1
        self._watchers.hub_of(process).add(self._feed)

    def take(self, most: int | None) -> bool:
        """Whether something came."""
        process, feed = self._process, self._feed
        assert process is not None
        assert feed is not None
        if feed.is_waiting:
            self._world.faults["watcher fell behind"] += 1
        try:
            items = feed.take_now(self._watchers.hub_of(process), most)
        except WatchLost:
            self._world.checked["seen: WatchLost"] += 1
            self._must_read = True
            self._process = self._feed = None
            return False
        except Closed:
            self._process = self._feed = None
            return False
        revision = revision_of(process)
        for item in items:
            given = Given(item.revision, item.events, process.id, process.audience, revision)
            self.stretches[-1].given.append(given)
        self._world.checked["watched: events"] += sum(len(item.events) for item in items)
        return bool(items)

    def leave(self, why: str) -> None:
        """The items that were not taken are lost with the connection."""
        if self._feed is not None and self._process is not None:
            self._world.faults[why] += 1
            self._watchers.hub_of(self._process).forget(self._feed)
        self._process = self._feed = None

    def ended(self, process: Process) -> None:
        if self._process is process:
            self._world.faults["watcher lost its manager"] += 1
            self._process = self._feed = None

    def finish(self, process: Process) -> None:
        """Take everything, from a manager that has everything."""
        if self._process is not process:
            self.leave("watcher moved on")
        for _ in range(1000):
            if self._feed is None:
                self._attach(process)
            self._watchers.hub_of(process).finish()
            if not self.take(None) and self._feed is not None:
                return
        raise AssertionError(f"{self.name} never comes to an end")


class Watchers:
    """All watchers of a run, and the writers of containers."""

    def __init__(self, world: World, workload: Workload) -> None:
        self.world = world
        self.random = Random(f"watchers {world.options.seed}")
        self.everyone = [Watcher(self, number) for number in range(world.options.watchers)]
        self._hubs: dict[int, Hub] = {}
        self.workload = workload
        self.base_revision = 0
        self.base_places: dict[str, tuple[str, str]] = {}
        """The containers at `base_revision`, from which the checker follows the changes."""
        self.go_on(workload)

    def go_on(self, workload: Workload) -> None:
        """At the beginning, and in a restored cluster, where everything that was planned is forgotten."""
        self.workload = workload
        self._has_base = False
        self.world.observers.append(self)
        for watcher in self.everyone:
            watcher.go()
        self.world.after(MOVE_SECONDS, self._move)

    def processes(self) -> list[Process]:
        """The running managers of the present cluster."""
        return [process for process in self.world.running() if process.audience is self.world.audience]

    def hub_of(self, process: Process) -> Hub:
        if process.number not in self._hubs:
            self._hubs[process.number] = Hub(self, process)
        return self._hubs[process.number]

    # ---- observer's methods

    def stepped(self, process: Process) -> None:
        if not self._has_base and revision_of(process) >= self.workload.base_revision:  # not a blank manager
            self._has_base = True
            self._note_base(process)
        if process.number in self._hubs:
            self._hubs[process.number].ring()

    def _note_base(self, process: Process) -> None:
        with process.opened.database.read() as transaction:
            self.base_revision = transaction.revision
            found = [codec.decode(CONTAINER, record) for _, record in transaction.items(CONTAINER)]
        self.base_places = {each.id: (each.service_id, each.node_id) for each in found}

    def diverged(self, process: Process, right: Database) -> None:
        if process.number in self._hubs:
            self._hubs[process.number].feeding.diverged(right)

    def swapped(self, process: Process) -> None:
        self.stepped(process)

    def ending(self, process: Process) -> None:
        self._hubs.pop(process.number, None)
        for watcher in self.everyone:
            watcher.ended(process)

    # ---- writers of containers

    def _move(self) -> None:
        workload, random = self.workload, self.random
        if not workload.ended and not workload.is_paused:
            for id_ in sorted(workload.clients):
                client = workload.clients[id_]
                is_usable = client.process.alive and client.session and client.process.paused_until <= self.world.now
                if is_usable and random.random() < 0.5:
                    operations = tuple(self._operation() for _ in range(random.choice([1, 1, 3])))
                    client._submit(client.session, operations, None, lambda _result: None)
        self.world.after(random.uniform(0.5, 1.5) * MOVE_SECONDS, self._move)

    def _operation(self) -> Operation:
        random = self.random
        id_ = f"c{random.randrange(CONTAINERS)}"
        if random.random() < 0.2:
            return Operation(Verb.DELETE, CONTAINER.number, id_)
        container = Container(
            id=id_,
            service_id=f"s{random.randrange(SERVICES)}",
            node_id=f"n{random.randrange(NODES)}",
            image=str(random.random()),
        )
        return Operation(Verb.PUT, CONTAINER.number, id_, codec.encode(CONTAINER, container))
