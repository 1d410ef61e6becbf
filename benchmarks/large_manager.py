"""A manager of the Large cluster (large_cluster.py): the natural program, with the public interface of the store.

Lives here: the scheduler and the reconciler, which are those of examples/orchestrator, in threads that act while this
manager leads; and the port for nodes and users, in an asyncio loop. Not here: nodes, users and figures.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import common

import warren_raft as wr

sys.path.append(str(Path(__file__).parents[1]))
from examples.orchestrator import reconciler, scheduler

SCHEDULER_SECONDS, RECONCILER_SECONDS = 5.0, 10.0
TTL_SECONDS = 15.0
BUCKETS = 50
"""A duration is counted in one of so many buckets for each factor of e, so quantiles are exact to 2 %."""

T = TypeVar("T")


class Times:
    """Counted durations. They take the same memory for any number, and those of several managers can be added."""

    def __init__(self) -> None:
        self.counts = Counter[int]()
        self.longest = 0.0

    def note(self, seconds: float) -> None:
        self.counts[math.ceil(math.log(max(seconds, 1e-9)) * BUCKETS)] += 1
        self.longest = max(self.longest, seconds)

    def add(self, counts: dict[str, int], longest: float) -> None:
        self.counts.update({int(bucket): count for bucket, count in counts.items()})
        self.longest = max(self.longest, longest)

    def quantile(self, part: float) -> float:
        left = math.ceil(part * self.counts.total())
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return min(math.exp(bucket / BUCKETS), self.longest)
        return 0.0

    def summary(self) -> dict[str, float]:
        figures = {"p50_ms": self.quantile(0.5), "p99_ms": self.quantile(0.99), "max_ms": self.longest}
        return {"count": self.counts.total(), **{name: round(value * 1e3, 2) for name, value in figures.items()}}


def node_id(number: int) -> str:
    return f"node-{number:08d}"


def service_id(number: int) -> str:
    return f"service-{number:08d}"


class Manager(common.Manager):
    def __init__(self, settings: dict[str, Any]) -> None:
        self._port, self.is_plain = settings.pop("port"), settings.pop("plain_heartbeats")
        super().__init__(settings)
        self.took = defaultdict[str, Times](Times)
        self.counted = Counter[str]()

    def run(self) -> None:
        loop, stop = asyncio.new_event_loop(), asyncio.Event()
        server = threading.Thread(target=loop.run_until_complete, args=(self._serve(stop),))
        server.start()
        try:
            super().run()
        finally:
            loop.call_soon_threadsafe(stop.set)
            server.join()
            loop.close()

    # Commands of the benchmark ---------------------------------------------------------------------------------------

    def fill_cluster(self, nodes: int, services: int, replicas: int) -> None:
        """A cluster in which everything runs already."""
        now = datetime.now(UTC)
        with self.store.batch() as batch:
            for number in range(nodes):
                batch.create_node(wr.Node(id=node_id(number), role=wr.NodeRole.WORKER, status=wr.NodeStatus.READY))
        update = wr.UpdateConfig(parallelism=2, max_surge=1)
        for first in range(0, services, 20):
            with self.store.batch() as batch:
                for number in range(first, min(first + 20, services)):
                    model = common.sample(number)
                    service = wr.Service(
                        id=service_id(number),
                        name=f"web-{number}",
                        image=model.image,
                        env=model.env,
                        replicas=replicas,
                        update_config=update,
                        created_at=now,
                    )
                    batch.create_service(service)
                    for replica in range(replicas):
                        place = number * replicas + replica
                        container = replace(
                            common.sample(place),
                            service_id=service.id,
                            service_name=service.name,
                            node_id=node_id(place % nodes),
                        )
                        batch.create_container(container)

    def barrier(self) -> int:
        return self.store.barrier()

    def begin(self) -> None:
        for name, seconds, do_pass in (
            ("scheduler", SCHEDULER_SECONDS, self._schedule),
            ("reconciler", RECONCILER_SECONDS, self._reconcile),
        ):
            self.store.run_while_leading(partial(self._make_passes, name, seconds, do_pass))

    def figures(self) -> dict[str, Any]:
        return {"took": {name: (each.counts, each.longest) for name, each in self.took.items()}, **self.counted}

    # The loops of the leader -----------------------------------------------------------------------------------------

    def _make_passes(self, name: str, seconds: float, do_pass: Callable[[wr.Lead], None], lead: wr.Lead) -> None:
        while not lead.is_over:
            begin = time.monotonic()
            try:
                do_pass(lead)
            except wr.Unavailable:
                self.counted["unavailable"] += 1
            took = time.monotonic() - begin
            self.took[f"{name} pass"].note(took)
            lead.wait_over(max(0.0, seconds - took))

    def _schedule(self, lead: wr.Lead) -> None:
        with self.store.read() as view:
            chosen = scheduler.choose(view.list_containers(), view.list_nodes())[: scheduler.BATCH_MAX]
        if chosen:
            self._write("scheduler", lead, partial(scheduler.write, chosen))

    def _reconcile(self, lead: wr.Lead) -> None:
        if self.is_plain:
            self._expire(lead)
        with self.store.read() as view:
            steps = reconciler.plans(view)
        for step in steps:
            self._write("reconciler", lead, partial(reconciler.write, step))

    def _expire(self, lead: wr.Lead) -> None:
        """With plain heartbeats, nobody else finds out which nodes have died."""
        latest = datetime.now(UTC) - timedelta(seconds=TTL_SECONDS)
        for node in self.store.list_nodes():
            if node.status == wr.NodeStatus.READY and node.last_heartbeat and node.last_heartbeat < latest:
                write = partial(wr.Batch.update_node, node=replace(node, status=wr.NodeStatus.DOWN))
                self._write("reconciler", lead, partial(write, if_revision=node.revision))

    def _write(self, kind: str, lead: wr.Lead, write: Callable[[wr.Batch], object]) -> None:
        begin = time.monotonic()
        try:
            with lead.batch() as batch:
                write(batch)
        except wr.RevisionConflict:  # something changed meanwhile: the next pass decides again
            self.counted["conflicts"] += 1
        self.took[kind].note(time.monotonic() - begin)

    # The port for nodes and users ------------------------------------------------------------------------------------

    async def _serve(self, stop: asyncio.Event) -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", self._port)
        await stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """Requests of many nodes and users. A line of JSON each: [number, operation, arguments...]; answered by [number,
    name of the error or null]. Events are [node, "all", containers], [node, "put", container, wanted state, actual
    state], [node, "gone", container] and [node, "status", status]."""

    def __init__(self, manager: Manager) -> None:
        self._manager, self._store = manager, manager.store
        self._rest = b""
        self._transport: Any = None
        self._tasks = set[asyncio.Task[None]]()
        self._follows = dict[str, asyncio.Task[None]]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            number, operation, *arguments = json.loads(line)
            if operation == "beat" and not self._manager.is_plain:
                self._say([number, self._beat(*arguments)])
            elif operation == "unfollow":
                self._follows.pop(arguments[0]).cancel()
                self._say([number, None])
            elif operation == "follow":
                self._follows[arguments[0]] = self._begin(self._follow(*arguments))
                self._say([number, None])
            elif operation == "follow nodes":
                self._begin(self._follow_nodes())
                self._say([number, None])
            else:
                write = {"beat": self._plain_beat, "report": self._report, "change": self._change}[operation]
                self._begin(self._answer(number, write(*arguments)))

    def _say(self, line: list[Any]) -> None:
        self._transport.write(json.dumps(line).encode() + b"\n")

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        """A request that failed in an unexpected way ends the connection, and so the benchmark."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "a request failed", "exception": error})
            self._transport.close()

    async def _answer(self, number: int, write: Awaitable[object]) -> None:
        try:
            await write
        except wr.Closed:
            return
        except wr.WarrenError as error:
            self._say([number, type(error).__name__])
        else:
            self._say([number, None])

    def _beat(self, id_: str) -> str | None:
        try:
            self._store.heartbeat(id_, TTL_SECONDS)
        except wr.WarrenError as error:
            return type(error).__name__
        return None

    async def _plain_beat(self, id_: str) -> None:
        """As Warren does it: a write for the node, and one for each of its containers, one after another."""
        now = datetime.now(UTC)

        def ready(node: wr.Node) -> wr.Node:
            status = wr.NodeStatus.READY if node.status == wr.NodeStatus.DOWN else node.status
            return replace(node, last_heartbeat=now, status=status)

        def seen(container: wr.Container) -> wr.Container:
            health = container.health_status or wr.HealthStatus(healthy=True)
            return replace(container, health_status=replace(health, checked_at=now))

        aio = self._store.aio
        await self._timed(aio.modify(wr.Node, id_, ready))
        for container in self._store.list_containers_by_node(id_):
            with suppress(wr.NotFound):  # deleted meanwhile
                await self._timed(aio.modify(wr.Container, container.id, seen))

    async def _timed(self, write: Awaitable[T]) -> T:
        begin = time.monotonic()
        found = await write
        self._manager.took["heartbeat"].note(time.monotonic() - begin)
        return found

    async def _report(self, id_: str, container_id: str, state: str) -> None:
        """`modify`: a report must not undo a "shut down" of the reconciler, and must not bring back a container."""

        def reported(container: wr.Container) -> wr.Container:
            if container.node_id != id_:
                raise wr.NotFound("container", f"{container.id} on {id_}")
            return replace(container, actual_state=state)

        await self._store.aio.modify(wr.Container, container_id, reported)

    async def _change(self, id_: str, changes: dict[str, Any]) -> None:
        await self._store.aio.modify(wr.Service, id_, lambda service: replace(service, **changes))

    async def _follow(self, id_: str) -> None:
        """All containers of a node, then the changes of their states."""
        with suppress(wr.Closed):
            while True:
                with self._store.read() as view:
                    since, present = view.revision, view.list_containers_by_node(id_)
                known = {each.id: _states(each) for each in present}
                self._say([id_, "all", [[each, *states] for each, states in known.items()]])
                async with self._store.aio.watch(since, node=id_) as events:
                    with suppress(wr.WatchLost):  # too much was missed: everything again
                        async for event in events:
                            if not isinstance(event.entity, wr.Container) or event.operation == "left":
                                known.pop(event.id, None)
                                self._say([id_, "gone", event.id])
                            elif known.get(event.id) != (states := _states(event.entity)):
                                known[event.id] = states
                                self._say([id_, "put", event.id, *states])

    async def _follow_nodes(self) -> None:
        """The status of each node, then its changes."""
        known = dict[str, str]()

        def tell(node: wr.Node) -> None:
            if known.get(node.id) != node.status:
                known[node.id] = node.status
                self._say([node.id, "status", node.status])

        with suppress(wr.Closed):
            while True:
                with self._store.read() as view:
                    since, present = view.revision, view.list_nodes()
                for node in present:
                    tell(node)
                async with self._store.aio.watch(since, kinds={"node"}) as events:
                    with suppress(wr.WatchLost):  # too much was missed: everything again
                        async for event in events:
                            if isinstance(event.entity, wr.Node):
                                tell(event.entity)


def _states(container: wr.Container) -> tuple[str, str]:
    return container.desired_state, container.actual_state
