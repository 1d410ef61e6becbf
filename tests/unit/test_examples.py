"""The decisions of the orchestrator of examples/, without processes: what its users would test in theirs.

The promises: an update never has more containers than it may have, nor fewer running than it must have; a decision that
is out of date changes nothing; a watch over HTTP begins with the present state and can be resumed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

import warren_raft as wr
from examples import small_orchestrator
from examples.orchestrator import api, reconciler, scheduler, worker
from tests.cluster.harness import wait_until
from warren_raft import ContainerState, NodeStatus
from warren_raft.fsm import history
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import CONTAINER
from warren_raft.testing import SimulationFailed, simulate

WAIT_SECONDS = 60.0


class World:
    """Containers by id, two nodes, and one service; its workers do as they are told when the test says so."""

    def __init__(self, service: wr.Service) -> None:
        self.service = service
        self.containers: dict[str, wr.Container] = {}
        self.nodes = {id_: wr.Node(id=id_, status=NodeStatus.READY) for id_ in ("a", "b")}
        self._names = itertools.count()

    def in_order(self) -> list[wr.Container]:
        return [self.containers[id_] for id_ in sorted(self.containers)]

    def running(self) -> int:
        return sum(
            each.desired_state == each.actual_state == ContainerState.RUNNING
            and self.nodes[each.node_id].status != NodeStatus.DOWN
            for each in self.containers.values()
        )

    def step(self) -> bool:
        """One pass of the reconciler, and one of the scheduler. Whether there was anything to do."""
        update = self.service.update_config or wr.UpdateConfig()
        at_once = max(update.parallelism, 1)
        surge = min(update.max_surge, at_once)
        must_run = min(self.running(), self.service.replicas - (at_once - surge))
        most = max(len(self.containers), self.service.replicas + surge)
        step = reconciler.plan(self.service, self.in_order(), self.nodes)
        for each in step.remove:
            del self.containers[each.id]
        for each in step.stop:
            self.containers[each.id] = replace(each, desired_state=ContainerState.SHUTDOWN)
        for _ in range(step.create):
            id_ = f"c{next(self._names):04}"
            self.containers[id_] = replace(reconciler._new_container(self.service), id=id_)
        assert len(self.containers) <= most
        assert self.running() >= must_run
        placed = scheduler.choose(self.in_order(), self.nodes.values())
        for container, node in placed:
            self.containers[container.id] = replace(container, node_id=node.id)
        return bool(step.create or step.stop or step.remove or placed)

    def report(self, number: int) -> bool:
        """A worker brings one container to its wanted state. Whether that is news."""
        if not self.containers:
            return False
        container = self.in_order()[number % len(self.containers)]
        if not container.node_id or container.actual_state == container.desired_state:
            return False
        self.containers[container.id] = replace(container, actual_state=container.desired_state)
        return True

    def settle(self) -> None:
        for _ in range(200):
            reported = [self.report(number) for number in range(len(self.containers))]
            if not self.step() and not any(reported):
                return
        raise AssertionError("it does not come to rest")


SERVICES = st.builds(
    wr.Service,
    id=st.just("s"),
    image=st.sampled_from(["one", "two"]),
    replicas=st.integers(0, 5),
    update_config=st.none() | st.builds(wr.UpdateConfig, parallelism=st.integers(0, 3), max_surge=st.integers(0, 3)),
)
NODES = st.tuples(st.sampled_from("ab"), st.sampled_from(NodeStatus))


@given(SERVICES, st.lists(st.just("step") | st.integers(0, 9) | SERVICES | NODES, max_size=30))
def test_an_update_stays_within_its_bounds_and_ends(service: wr.Service, happenings: list[Any]) -> None:
    world = World(service)
    for each in happenings:
        if each == "step":
            world.step()
        elif isinstance(each, int):
            world.report(each)
        elif isinstance(each, wr.Service):
            world.service = each
        else:
            world.nodes[each[0]] = replace(world.nodes[each[0]], status=each[1])
    world.nodes = {id_: replace(node, status=NodeStatus.READY) for id_, node in world.nodes.items()}
    world.settle()
    assert [each.image for each in world.in_order()] == [world.service.image] * world.service.replicas
    assert world.running() == world.service.replicas


def test_containers_are_spread_over_the_ready_nodes() -> None:
    nodes = [
        wr.Node(id="a", status=NodeStatus.READY),
        wr.Node(id="b", status=NodeStatus.DOWN),
        wr.Node(id="c", status=NodeStatus.READY),
    ]
    containers = [wr.Container(id=str(n), desired_state=ContainerState.RUNNING) for n in range(4)]
    assert [node.id for _, node in scheduler.choose(containers, nodes)] == ["a", "c", "a", "c"]
    assert scheduler.choose(containers, nodes[1:2]) == []


def test_a_service_that_cannot_be_carried_out_does_not_stop_the_others(tmp_path: Path) -> None:
    """(Pins a fault: an id that leaves no room for those of containers ended every manager in turn.)"""

    async def one_pass(store: wr.LocalStore) -> None:
        async with store.aio.leading() as lead:
            await reconciler.reconcile(store, lead)

    with wr.LocalStore(tmp_path) as store:
        store.create_service(wr.Service(id="a" * 505, name="a", replicas=1))
        store.create_service(wr.Service(id="b", name="b", replicas=2))
        asyncio.run(one_pass(store))
        assert [each.service_id for each in store.list_containers()] == ["b", "b"]


def test_a_large_service_of_the_one_file_is_made_in_parts(tmp_path: Path) -> None:
    """(Pins a fault: one batch for all of its containers was too large, so no service was served any more.)"""
    with wr.LocalStore(tmp_path) as store, store.leading() as lead:
        store.create_service(wr.Service(id="large", name="large", replicas=60_000))
        store.create_service(wr.Service(id="z", name="z", replicas=2))
        small_orchestrator.reconcile(store, lead)
        assert len(store.list_containers_by_service("z")) == 2
        assert len(store.list_containers_by_service("large")) == small_orchestrator.BATCH_MAX


def largest(id_: str) -> wr.Container:
    """A container that can be stored as it is, and not with the id of a node."""
    for length in range(1024 * 1024, 0, -1):
        container = wr.Container(id=id_, service_id="web", image="x" * length, desired_state=ContainerState.RUNNING)
        with suppress(wr.InvalidEntity):
            put_operation(CONTAINER, container, None)
            return container
    raise AssertionError


@pytest.mark.parametrize("which", ["one file", "with asyncio"])
def test_containers_that_are_too_large_keep_no_other_from_its_node(
    which: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """(Pins a fault: the command of a pass was too large, and it was the same in each pass.)"""
    with wr.LocalStore(tmp_path) as store:
        store.create_node(wr.Node(id="a" * 30, status=NodeStatus.READY))
        stuck = largest("0")
        store.create_container(stuck)
        for number in range(1, 8):
            store.create_container(replace(stuck, id=str(number), image="x" * 900_000))
        if which == "one file":
            with store.leading() as lead:
                small_orchestrator.schedule(store, lead)
        else:
            asyncio.run(passes(store, scheduler.schedule))
        assert [each.id for each in store.list_containers() if not each.node_id] == ["0"]
    assert "container 0 gets no node: " in (capfd.readouterr().err if which == "one file" else caplog.text)


def test_a_service_whose_containers_are_large_is_made_in_parts(tmp_path: Path) -> None:
    """(Pins a fault: five containers of one command were too large together, so the service never got any.)"""
    with wr.LocalStore(tmp_path) as store:
        store.create_service(wr.Service(id="web", name="web", replicas=5, env=("x" * 900_000,)))
        made = []
        for _ in range(2):
            asyncio.run(passes(store, reconciler.reconcile))
            made.append(len(store.list_containers()))
        assert made == [2, 5]


def test_large_containers_of_the_one_file_are_made_and_taken_from_a_lost_node_in_parts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """(Pins a fault: a batch that was too large for one command was the same in each pass, for ever.)"""
    with wr.LocalStore(tmp_path) as store, store.leading() as lead:
        store.create_service(wr.Service(id="web", name="web", replicas=9, image="x" * 900_000))
        small_orchestrator.reconcile(store, lead)
        assert len(store.list_containers()) == 9
        for each in store.list_containers():
            store.update_container(replace(each, node_id="gone"))
        small_orchestrator.reconcile(store, lead)
        assert {each.node_id for each in store.list_containers()} == {""}
        store.create_service(wr.Service(id="a" * 505, name="a", replicas=100))
        small_orchestrator.reconcile(store, lead)
    assert capfd.readouterr().err.count("\n") == 1


def test_containers_of_a_node_that_was_deleted_are_placed_again(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path) as store, store.leading() as lead:
        setup(store)
        small_orchestrator.reconcile(store, lead)
        small_orchestrator.schedule(store, lead)
        store.delete_node("a")
        small_orchestrator.reconcile(store, lead)
        small_orchestrator.schedule(store, lead)
        assert {each.node_id for each in store.list_containers()} == {"b"}


# Under simulated faults -----------------------------------------------------------------------------------------------


def setup(store: wr.Store) -> None:
    update = wr.UpdateConfig(parallelism=2, max_surge=1)
    store.create_service(wr.Service(id="web", image="web:1", replicas=3, update_config=update))
    for id_ in "ab":
        store.create_node(wr.Node(id=id_, status=NodeStatus.READY))


def placed(view: wr.View, image: str) -> bool:
    found = view.list_containers()
    return len(found) == 3 and all((each.image, bool(each.node_id)) == (image, True) for each in found)


@pytest.mark.parametrize("seeds", [20, pytest.param(80, marks=pytest.mark.slow)])
def test_the_orchestrator_in_one_file_is_right_under_faults(seeds: int) -> None:
    def program(store: wr.Store) -> None:
        store.run_while_leading(partial(small_orchestrator.work, store))

    simulate(
        program,
        setup=setup,
        check=lambda view: placed(view, "web:1"),
        always=lambda view: len(view.list_containers()) <= 3,
        seeds=range(seeds),
        steps=60,
    )


class Unfenced:
    """In the place of a lead: its writes are those of the store."""

    def __init__(self, store: wr.Store, lead: wr.Lead) -> None:
        self._lead = lead
        self.batch = store.batch

    @property
    def is_over(self) -> bool:
        return self._lead.is_over


def test_the_orchestrator_in_one_file_is_wrong_without_its_lead() -> None:
    def program(store: wr.Store) -> None:
        store.run_while_leading(lambda lead: small_orchestrator.work(store, Unfenced(store, lead)))  # type: ignore[arg-type]

    with pytest.raises(SimulationFailed):
        simulate(
            program,
            setup=setup,
            check=lambda view: placed(view, "web:1"),
            always=lambda view: len(view.list_containers()) <= 3,
            seeds=range(60),
            steps=60,
        )


def leader(store: wr.Store) -> None:
    """The passes of a manager, without asyncio."""

    def run(lead: wr.Lead) -> None:
        while not lead.wait_over(1):
            with store.read() as view:
                steps = reconciler.plans(view)
            for step in steps:
                with suppress(wr.RevisionConflict), lead.batch(timeout=1) as batch:
                    reconciler.write(step, batch)
            with store.read() as view:
                chosen = scheduler.choose(view.list_containers(), view.list_nodes())
            with suppress(wr.RevisionConflict), lead.batch(timeout=1) as batch:
                scheduler.write(chosen, batch)

    store.run_while_leading(run)


def workers(store: wr.Store) -> None:
    """The workers of all nodes; and the user, who wants another image."""
    with suppress(wr.RevisionConflict):
        service = store.get_service("web")
        store.update_service(replace(service, image="web:2"), if_revision=service.revision)
    while True:
        time.sleep(0.3)
        for each in store.list_containers():
            if each.node_id and each.actual_state != each.desired_state:
                with suppress(wr.RevisionConflict):
                    store.update_container(replace(each, actual_state=each.desired_state), if_revision=each.revision)


@pytest.mark.parametrize("seeds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_an_update_is_right_under_faults(seeds: int) -> None:
    simulate(
        leader,
        workers,
        setup=setup,
        check=lambda view: placed(view, "web:2"),
        always=lambda view: len(view.list_containers()) <= 3 + 1,
        seeds=range(seeds),
        steps=100,
    )


# On a store, which takes the place of a cluster -----------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with wr.LocalStore(tmp_path / "state") as store:
        store.create_service(wr.Service(id="web", name="web", image="web:1", replicas=2))
        store.create_node(wr.Node(id="a", status=NodeStatus.READY))
        yield store


async def passes(store: Any, *do: Callable[[Any, wr.AsyncLead], Awaitable[None]]) -> None:
    async with store.aio.leading() as lead:
        for each in do:
            await each(store, lead)


def test_a_service_that_was_deleted_meanwhile_gets_no_containers(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = reconciler.plans

    def decided_too_early(view: wr.View) -> list[reconciler.Plan]:
        found = decided(view)
        store.delete_service("web")
        return found

    monkeypatch.setattr(reconciler, "plans", decided_too_early)
    asyncio.run(passes(store, reconciler.reconcile))
    assert store.list_containers() == []


def test_a_node_that_went_down_meanwhile_gets_no_containers(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(passes(store, reconciler.reconcile))
    chosen = scheduler.choose

    def chosen_too_early(*arguments: Any) -> list[tuple[wr.Container, wr.Node]]:
        found = chosen(*arguments)
        store.modify(wr.Node, "a", lambda node: replace(node, status=NodeStatus.DOWN))
        return found

    monkeypatch.setattr(scheduler, "choose", chosen_too_early)
    asyncio.run(passes(store, scheduler.schedule))
    assert [each.node_id for each in store.list_containers()] == ["", ""]


def test_containers_without_a_service_are_removed(store: Any) -> None:
    asyncio.run(passes(store, reconciler.reconcile, scheduler.schedule))
    assert [each.node_id for each in store.list_containers_by_service("web")] == ["a", "a"]
    store.delete_service("web")  # without its containers
    asyncio.run(passes(store, reconciler.reconcile))
    assert store.list_containers() == []


def test_the_orchestrator_in_one_file_does_the_same(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole program of one manager. The node "a" of this store is somebody else's, and never beats."""
    monkeypatch.setattr(small_orchestrator, "BEAT_SECONDS", 0.1)
    small_orchestrator.join(store, "mine")

    def running(image: str, *nodes: str) -> bool:
        found = [(each.image, each.node_id) for each in store.list_containers_by_service("web")]
        is_reported = all(
            each.node_id != "mine" or each.actual_state == ContainerState.RUNNING for each in store.list_containers()
        )
        return is_reported and sorted(found) == [(image, node_id) for node_id in nodes]

    wait_until(lambda: running("web:1", "a", "mine") or running("web:1", "a", "a"), "the containers")
    store.modify(wr.Service, "web", lambda service: replace(service, replicas=4))
    wait_until(lambda: running("web:1", "a", "a", "mine", "mine"), "two more")
    store.modify(wr.Node, "a", lambda node: replace(node, status=NodeStatus.DOWN))
    wait_until(lambda: running("web:1", *["mine"] * 4), "the containers on the node that lives")
    store.modify(wr.Service, "web", lambda service: replace(service, replicas=1))
    wait_until(lambda: running("web:1", "mine"), "the rest to be deleted")
    store.delete_service("web", cascade=True)
    assert store.list_containers() == []
    store.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_api_answers_with_the_error_of_the_store(store: Any) -> None:
    async def ask() -> list[tuple[int, Any]]:
        async with TestClient(TestServer(api.Api(store).application())) as client:
            requests = [
                client.get("/services/nothing"),
                client.put("/services/web?if_revision=7", json={"name": "web"}),
                client.put("/services/web", json={"replicas": "two"}),
                client.put("/services/web", data="{"),
                client.patch("/services/web", json={"replicas": 3}),
                client.put("/containers/c/state", json={"node": "b", "state": "running"}),
                client.put("/containers/c/state", json={"node": "a", "state": "flying"}),
                client.put("/containers/c/state", json={"node": "a", "state": "running"}),
                client.put("/nodes/a"),
            ]
            answers = [await each for each in requests]
            return [(each.status, await each.text()) for each in answers]

    store.create_container(wr.Container(id="c", service_id="web", node_id="a"))
    answers = asyncio.run(ask())
    assert [status for status, _ in answers] == [404, 409, 400, 400, 200, 404, 400, 200, 200]
    assert json.loads(answers[0][1]) == {"error": "NotFound", "text": "no service 'nothing'"}
    assert "replicas" in json.loads(answers[2][1])["text"]
    assert (store.get_service("web").image, store.get_service("web").replicas) == ("web:1", 3)
    assert store.get_container("c").actual_state == ContainerState.RUNNING
    assert store.get_node("a").status == NodeStatus.READY


def test_a_watch_that_comes_too_late_is_told_so(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> tuple[int, Any]:
        server = TestServer(api.Api(store).application())
        async with TestClient(server) as client, client.get("/watch?since=1") as answer:
            return answer.status, await answer.json()

    monkeypatch.setattr(history, "MAX_CHANGES", 10)
    for number in range(100):
        store.create_node(wr.Node(id=f"n-{number}"))
    status, answer = asyncio.run(ask())
    assert (status, answer["error"]) == (410, "WatchLost")


class Ended:
    """A watch of a store that is closed."""

    def __enter__(self) -> Ended:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def take(self) -> list[wr.Event]:
        raise wr.Closed


def test_a_report_of_a_container_that_moved_meanwhile_changes_nothing(store: Any) -> None:
    """The node has read that the container is here; it moves before `modify` reads it."""
    store.create_container(wr.Container(id="c", service_id="web", node_id="a"))
    seen = store.list_containers_by_node("a")
    store.update_container(replace(seen[0], node_id="b"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "list_containers_by_node", lambda _node_id: seen)
        patched.setattr(store, "watch", lambda **_filters: Ended())
        with pytest.raises(wr.Closed):
            small_orchestrator.run_containers(store, "a")
    assert store.get_container("c").actual_state == ""


def test_a_worker_ends_that_is_stopped_while_its_manager_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TaskGroup of Python 3.11 loses such a cancellation. It happened when all processes were stopped together."""
    signals: list[Callable[[], None]] = []

    async def beating(_worker: worker.Worker, _session: object) -> None:
        try:
            await asyncio.sleep(WAIT_SECONDS)
        finally:  # the other task has failed
            signals[0]()

    async def failing(_worker: worker.Worker, _session: object) -> None:
        raise aiohttp.ClientPayloadError("the watch ended")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "add_signal_handler", lambda _number, stop: signals.append(stop))
        async with TestClient(TestServer(web.Application())) as client, asyncio.timeout(WAIT_SECONDS):
            await worker.run("w", [str(client.make_url("/"))])

    monkeypatch.setattr(worker.Worker, "_beat", beating)
    monkeypatch.setattr(worker.Worker, "_follow", failing)
    monkeypatch.setattr(worker, "_ask", lambda request: asyncio.sleep(0, request.close()))
    asyncio.run(run())


def test_a_watch_begins_with_the_present_state_says_that_it_lives_and_is_resumed(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "QUIET_SECONDS", 0.05)

    async def lines(client: TestClient[Any, Any], path: str, count: int) -> list[list[Any]]:
        async with client.get(path) as stream:
            events = [json.loads(await stream.content.readline()) for _ in range(count)]
        return [[each["revision"], each["operation"], each["id"]] for each in events]

    async def ask() -> list[list[list[Any]]]:
        async with TestClient(TestServer(api.Api(store).application())) as client, asyncio.timeout(WAIT_SECONDS):
            return [
                await lines(client, "/watch?node=a", 4),
                await lines(client, "/watch?kind=node&kind=service", 3),
                await lines(client, "/watch?kind=service&since=0", 1),
                await lines(client, "/watch?node=a&since=2", 2),
            ]

    store.create_container(wr.Container(id="c", service_id="web", node_id="a"))
    store.update_container(wr.Container(id="c", service_id="web", node_id="b"))
    store.create_container(wr.Container(id="d", service_id="web", node_id="a"))
    assert asyncio.run(ask()) == [
        [[5, "put", "d"], [5, "bookmark", ""], [5, "bookmark", ""], [5, "bookmark", ""]],
        [[2, "put", "a"], [1, "put", "web"], [5, "bookmark", ""]],
        [[1, "put", "web"]],
        [[3, "put", "c"], [4, "left", "c"]],
    ]
