"""Promise: `simulate` finds the mistakes that programs of a leader make when it is frozen, cut off, killed or not
answered, passes the programs that are right, and gives the same run for the same seed.

Each wrong program here is one that somebody has written. The first seed that finds it is searched for, not named.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from examples.orchestrator import reconciler, scheduler
from examples.orchestrator.leading import while_leading
from warren_raft.leadership.lead import Lead, Leads
from warren_raft.testing import SimulationFailed, simulate
from warren_raft.testing.simulated import turns

SEEDS = 60
"""A mistake must be found within so many seeds, and a program that is right must pass all of them."""
PASS_SECONDS = 5.0

Loop = Callable[[wr.Store, wr.Lead], object]


def setup(store: wr.Store) -> None:
    store.create_service(wr.Service(id="svc", name="web", replicas=3))


def never_too_many(view: wr.View) -> bool:
    return len(view.list_containers_by_service("svc")) <= 3


def all_there(view: wr.View) -> bool:
    return len(view.list_containers_by_service("svc")) == 3


def missing_at(store: wr.Store) -> int:
    service = store.get_service("svc")
    return service.replicas - len(store.list_containers_by_service("svc"))


def new_container() -> wr.Container:
    return wr.Container(id=str(uuid.uuid4()), service_id="svc")


def looping(one_pass: Loop) -> Callable[[wr.Store], object]:
    """A program that makes passes while its manager leads."""

    def program(store: wr.Store) -> None:
        def run(lead: wr.Lead) -> None:
            while not lead.wait_over(PASS_SECONDS):
                one_pass(store, lead)

        store.run_while_leading(run)

    return program


def right(store: wr.Store, lead: wr.Lead) -> None:
    """Fenced, and a container has the same id in whatever pass it is made."""
    service = store.get_service("svc")
    there = {container.id for container in store.list_containers_by_service("svc")}
    with lead.batch() as batch:
        batch.require("service", "svc", service.revision)
        for number in range(service.replicas):
            if f"svc-{number}" not in there:
                batch.create_container(wr.Container(id=f"svc-{number}", service_id="svc"), if_revision=0)


def found(program: Callable[[wr.Store], object], **more: Any) -> SimulationFailed:
    """The failure of a program that is wrong."""
    more = {"setup": setup, "check": all_there, "always": never_too_many, "seeds": range(SEEDS)} | more
    with pytest.raises(SimulationFailed) as caught:
        simulate(program, **more)
    return caught.value


# ------------------------------------------------------------------------------------------------ programs


@pytest.mark.parametrize("seeds", [SEEDS // 2, pytest.param(120, marks=pytest.mark.slow)])
def test_a_right_program_passes_and_has_met_everything(seeds: int) -> None:
    met = simulate(looping(right), setup=setup, check=all_there, always=never_too_many, seeds=range(seeds), steps=60)
    assert met["writes"] >= seeds * 0.9
    for what in ("frozen", "killed", "links lost", "deposed", "LeadershipLost", "Unavailable(maybe_applied=True)"):
        assert met[what] > seeds / 50, (what, met)


def test_a_program_that_writes_with_the_store_and_not_with_the_lead_acts_twice() -> None:
    """A leader is frozen between its reads and its write; another one acts; the first one wakes."""

    def wrong(store: wr.Store, lead: wr.Lead) -> None:
        missing = missing_at(store)
        with store.batch() as batch:
            for _ in range(missing):
                batch.create_container(new_container())

    failure = found(looping(wrong))
    assert str(failure).count("leads in term") > 1
    assert len(re.findall("is committed: revision", str(failure))) == 2


def test_a_write_that_is_made_again_under_another_id_is_made_twice() -> None:
    """With the store. A lead would be over."""

    def wrong(store: wr.Store, lead: wr.Lead) -> None:
        for _ in range(missing_at(store)):
            while True:
                try:
                    store.create_container(new_container(), timeout=1)
                except wr.Unavailable:
                    continue  # wrong if maybe_applied is True
                break

    assert "raises Unavailable(maybe_applied=True)" in str(found(looping(wrong)))


def plain(store: wr.Store, lead: wr.Lead) -> None:
    for _ in range(missing_at(store)):
        lead.create_container(new_container(), timeout=1)


def careless(store: wr.Store, lead: wr.Lead) -> None:
    with suppress(wr.Unavailable):
        plain(store, lead)


def by_futures(store: wr.Store, lead: wr.Lead) -> None:
    futures = []
    for _ in range(missing_at(store)):
        with lead.batch(wait=False, timeout=1) as batch:
            batch.create_container(new_container())
        futures.append(batch.future)
    for future in futures:
        future.exception()


def by_leading(store: wr.Store) -> None:
    """A loop in a thread of the program's own."""
    while True:
        with suppress(wr.LeadershipLost, wr.Unavailable), store.leading() as lead:
            while not lead.wait_over(PASS_SECONDS):
                plain(store, lead)
        time.sleep(1)


def in_coroutines(one_pass: Callable[[wr.Store, wr.AsyncLead], Awaitable[None]]) -> Callable[[wr.Store], object]:
    async def program(store: wr.Store) -> None:
        async def run(lead: wr.AsyncLead) -> None:
            while not await lead.wait_over(PASS_SECONDS):
                await one_pass(store, lead)

        await store.aio.run_while_leading(run)

    return program


async def together(store: wr.Store, lead: wr.AsyncLead) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(missing_at(store)):
            group.create_task(lead.create_container(new_container(), timeout=1))


async def cancelled(store: wr.Store, lead: wr.AsyncLead) -> None:
    for _ in range(missing_at(store)):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await lead.create_container(new_container())


NATURAL = {
    "plain": looping(plain),
    "careless": looping(careless),
    "by futures": looping(by_futures),
    "by leading": by_leading,
    "together": in_coroutines(together),
    "cancelled": in_coroutines(cancelled),
}
"""Loops with new random ids in each pass."""


@pytest.mark.parametrize("name", NATURAL)
def test_a_natural_loop_with_random_ids_is_right(name: str) -> None:
    """It reads, and writes the difference by its lead. A write that is not answered may be carried out later, but not
    behind the first read of the next lead."""
    simulate(NATURAL[name], setup=setup, check=all_there, always=never_too_many, seeds=range(SEEDS // 2), steps=SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "names"),
    [
        ((Lead, "_end", lambda _lead, _reason: None), ["careless", "by futures", "cancelled"]),
        ((Leads, "is_first", lambda _leads, _term: True), [*NATURAL]),
    ],
    ids=["a lead goes on after a write of unknown end", "the next lead does not wait for the ends"],
)
def test_a_natural_loop_is_wrong_without_its_lead(
    planted: tuple[Any, str, Any], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence by the term does not help: both writes are those of one leader, in one term. The first one is not
    committed when its caller gives up, nor when the next pass reads."""
    monkeypatch.setattr(*planted)
    for name in names:
        failure = found(NATURAL[name], steps=SEEDS)
        assert " raises Unavailable(maybe_applied=True)" in str(failure) or name == "cancelled", failure


def asked_for(store: wr.Store) -> None:
    """Another program: a user asks for one more replica from time to time, and keeps a note of it."""
    while True:
        time.sleep(random.uniform(1, 10))
        service = store.get_service("svc")
        with store.batch() as batch:
            batch.update_service(replace(service, replicas=service.replicas + 1), if_revision=service.revision)
            batch.create_network(wr.Network(id=f"asked-{service.replicas + 1}"))


def marking(condition: Callable[[wr.Service], int | None]) -> Loop:
    def one_pass(store: wr.Store, lead: wr.Lead) -> None:
        service = store.get_service("svc")
        lead.update_service(replace(service, labels={"seen": str(service.replicas)}), if_revision=condition(service))

    return one_pass


def nothing_forgotten(view: wr.View) -> bool:
    return view.get_service("svc").replicas == 3 + len(view.list_networks())


@pytest.mark.slow
def test_a_write_without_a_condition_takes_back_the_change_of_another_program() -> None:
    simulate(
        looping(marking(lambda service: service.revision)),
        asked_for,
        setup=setup,
        check=lambda view: True,
        always=nothing_forgotten,
        seeds=range(SEEDS // 4),
        steps=100,
    )
    with pytest.raises(SimulationFailed):
        simulate(
            looping(marking(lambda service: None)),
            asked_for,
            setup=setup,
            check=lambda view: True,
            always=nothing_forgotten,
            seeds=range(SEEDS),
        )


def test_what_was_read_before_the_leadership_began_is_old() -> None:
    """A program that reads, then waits to lead, and writes by what it read."""

    def wrong(store: wr.Store) -> None:
        missing = missing_at(store)
        with store.leading() as lead, lead.batch() as batch:
            for _ in range(missing):
                batch.create_container(new_container())
        time.sleep(1000)

    assert found(wrong)


def test_the_loop_in_the_page_on_embedding_is_right() -> None:
    page = (Path(wr.__file__).parent.parent / "docs" / "embedding.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    example = page[page.index("from warren_raft.testing import simulate") :].split("```")[0]
    exec(example.replace("range(200)", f"range({SEEDS // 3})"), names)
    names["test_the_loop_under_faults"]()


@pytest.mark.slow
def test_the_loops_of_the_orchestrator_in_examples_are_right() -> None:
    """With their frame, in one event loop. tests/unit/test_examples.py has their decisions."""

    async def program(store: wr.Store) -> None:
        async with asyncio.TaskGroup() as group:
            for each in (scheduler.schedule, reconciler.reconcile):
                group.create_task(while_leading(store, each))

    def with_nodes(store: wr.Store) -> None:
        setup(store)
        for id_ in ("n-1", "n-2"):
            store.create_node(wr.Node(id=id_, status=wr.NodeStatus.READY))

    def placed(view: wr.View) -> bool:
        return all_there(view) and all(each.node_id for each in view.list_containers())

    simulate(program, setup=with_nodes, check=placed, always=never_too_many, seeds=range(SEEDS // 4))


# ------------------------------------------------------------------------------------------------ the same run


def wrong_somewhere(store: wr.Store, lead: wr.Lead) -> None:
    time.sleep(random.uniform(0, 1))
    with store.batch() as batch:
        for _ in range(missing_at(store)):
            batch.create_container(new_container())


@cache
def found_somewhere() -> SimulationFailed:
    return found(looping(wrong_somewhere))


def print_a_schedule() -> None:
    """In another process: see below."""
    print("\n".join(found_somewhere().schedule))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run() -> None:
    failure = found_somewhere()
    again = found(looping(wrong_somewhere), seeds=[failure.seed])
    assert again.schedule == failure.schedule
    assert again.seed == failure.seed
    program = "from tests.unit.test_simulate import print_a_schedule; print_a_schedule()"
    root = Path(wr.__file__).parent.parent
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        output = subprocess.run(
            [sys.executable, "-c", program], cwd=root, env=environment, check=True, capture_output=True, text=True
        ).stdout
        assert output.splitlines() == failure.schedule


@pytest.mark.slow
def test_a_failure_says_how_it_came_to_pass() -> None:
    failure = found_somewhere()
    assert failure.reason == "AssertionError: never_too_many returned False"
    assert isinstance(failure.__cause__, AssertionError)
    text = str(failure)
    assert text.startswith(f"seed {failure.seed}: AssertionError")
    assert text.endswith(f"seeds=[{failure.seed}]")
    line = re.compile(r" *\d+ +\d+\.\d{3} s  (m[123]|--)  \S.*")
    assert all(line.fullmatch(each) for each in failure.schedule)
    words = (
        "leads in term 1",
        "reads service svc at revision 1",
        "reads the containers of svc at revision 1",
        "write 1: put container ",
        "is committed: revision 2",
    )
    for each in words:
        assert each in text


# ------------------------------------------------------------------------------------------------ what it models


@pytest.mark.slow
def test_the_cluster_keeps_the_promises_of_the_product() -> None:
    """Acknowledged writes stay, a write with `maybe_applied=False` never takes effect, writes of a lead take effect in
    their term only, a barrier shows all that was acknowledged, and a state never goes back."""
    acknowledged: set[str] = set()
    not_applied: set[str] = set()

    def writing(store: wr.Store) -> None:
        revision = 0
        while True:
            time.sleep(1)
            id_ = str(uuid.uuid4())
            try:
                store.create_node(wr.Node(id=id_), timeout=random.choice((1, 10)))
            except wr.Unavailable as error:
                if not error.maybe_applied:
                    not_applied.add(id_)
                continue
            acknowledged.add(id_)
            assert id_ in {node.id for node in store.list_nodes()}, "a caller reads its own writes"
            try:
                known = set(acknowledged)
                store.barrier(timeout=20)
            except wr.Unavailable:
                continue
            with store.read() as view:
                assert known <= {node.id for node in view.list_nodes()}
                assert view.revision >= revision
                revision = view.revision

    def leading(store: wr.Store, lead: wr.Lead) -> None:
        assert store.list_networks() or lead.term
        lead.create_network(wr.Network(id=str(uuid.uuid4()), name=str(lead.term)))

    def terms_in_order(view: wr.View) -> None:
        terms = [int(each.name) for each in sorted(view.list_networks(), key=lambda each: each.revision)]
        assert terms == sorted(terms)

    def kept(view: wr.View) -> None:
        there = {node.id for node in view.list_nodes()}
        assert acknowledged <= there
        assert not not_applied & there

    for seed in range(SEEDS // 6):
        acknowledged.clear()
        not_applied.clear()
        met = simulate(writing, looping(leading), check=kept, always=terms_in_order, seeds=[seed])
        assert met["writes"] > 10


def test_a_write_with_a_request_id_is_made_once_however_often_it_is_made() -> None:
    def program(store: wr.Store) -> None:
        while True:
            try:
                store.create_node(wr.Node(id=str(uuid.uuid4())), request_id="the job", timeout=2)
                return
            except wr.Unavailable:
                continue

    def once(view: wr.View) -> bool:
        return len(view.list_nodes()) == 1

    simulate(program, check=once, seeds=range(20), steps=40)


def test_a_program_follows_its_watch_after_faults_too() -> None:
    def copying(store: wr.Store) -> None:
        """Each manager keeps a copy of the nodes by its watch, which must be that of its state."""
        while True:
            with store.read() as view:
                events = view.watch(kinds={"node"})
                copy = {node.id for node in view.list_nodes()}
            with events:
                while True:
                    for event in events.take(timeout=20):
                        (copy.add if event.operation == "put" else copy.discard)(event.id)
                    with store.read() as view:
                        if view.revision == events.revision:
                            assert copy == {node.id for node in view.list_nodes()}
                            seen[0] += 1

    def changing(store: wr.Store, lead: wr.Lead) -> None:
        if len(store.list_nodes()) > 5:
            lead.delete_node(store.list_nodes()[0].id)
        lead.create_node(wr.Node(id=str(uuid.uuid4())))

    seen = [0]
    simulate(copying, looping(changing), check=lambda view: len(view.list_nodes()) > 1, seeds=range(10))
    assert seen[0] > 50
    assert threading.active_count() < 50


def test_a_node_that_beats_stays_ready_and_one_that_stops_becomes_down() -> None:
    def worker(store: wr.Store) -> None:
        while True:
            time.sleep(2)
            for node in ("beats", "stops") if time.monotonic() < 1_100 else ("beats",):
                try:
                    store.heartbeat(node, ttl_seconds=20)
                except wr.Unavailable:
                    continue
            age = store.last_heartbeat_age("beats")
            assert age is not None
            assert age < 20

    def nodes(store: wr.Store) -> None:
        for id_ in ("beats", "stops", "silent"):
            store.create_node(wr.Node(id=id_))

    def states(view: wr.View) -> bool:
        return [node.status for node in view.list_nodes()] == ["ready", "", "down"]

    def never_down(view: wr.View) -> bool:
        return view.get_node("beats").status in ("", "ready")

    simulate(worker, _busy_for(200), setup=nodes, check=states, always=never_down, seeds=range(10))


def _busy_for(seconds: float) -> Callable[[wr.Store], None]:
    """A program that changes something for so long, so that the end is not before."""

    def program(store: wr.Store) -> None:
        while time.monotonic() < 1_000 + seconds:
            time.sleep(10)
            store.save_ca(str(time.time_ns()).encode())

    return program


def test_a_manager_tells_its_program_about_leadership_and_readiness() -> None:
    told: list[tuple[bool, int]] = []

    def program(store: wr.Store) -> None:
        store.wait_ready()
        assert store.is_ready
        assert store.wait_leader() in ("m1", "m2", "m3")
        assert (store.failure, store.waiting_for, store.alarms) == (None, "", ())
        store.on_leadership(lambda is_leader, term: told.append((is_leader, term)))
        assert not store.wait_failed(timeout=1)
        store.reload_certificate()
        try:
            with store.read(max_staleness_seconds=0.001) as view:
                assert view.leader_contact_age_seconds is not None
        except wr.Unavailable:
            pass
        if store.is_leader:
            assert store.leader is not None

    simulate(program, check=lambda view: True, seeds=range(5))
    assert {is_leader for is_leader, _ in told} == {True, False}


def test_a_program_that_closes_its_store_starts_again() -> None:
    starts = []

    def program(store: wr.Store) -> None:
        starts.append(repr(store))
        with store:
            store.barrier()
        with pytest.raises(wr.Closed):
            store.list_nodes()

    simulate(program, check=lambda view: True, seeds=range(3), steps=100)
    assert starts.count("<SimulatedStore m1>") > 5


def test_a_program_that_ends_by_an_error_of_the_store_is_started_again() -> None:
    def program(store: wr.Store) -> None:
        while True:
            with store.leading(timeout=1) as lead:
                lead.create_node(wr.Node(id="n"))
                time.sleep(1)

    met = simulate(program, check=lambda view: bool(view.list_nodes()), seeds=range(5))
    assert met["programs ended by an error"] > 10


def test_one_manager_alone_has_no_faults_but_lost_answers() -> None:
    met = simulate(looping(right), setup=setup, check=all_there, seeds=range(10), size=1)
    assert met["frozen"] == met["killed"] == met["links lost"] == 0


def test_a_program_that_only_waits_comes_to_an_end_although_a_node_beats() -> None:
    """The looks of the leader at the beats go on for ever, and no thread ever has a turn."""

    def program(store: wr.Store) -> None:
        store.heartbeat("n")
        store.run_while_leading(lambda lead: None)

    simulate(
        program, setup=lambda store: store.create_node(wr.Node(id="n")), check=lambda view: True, seeds=[0], size=1
    )


# ------------------------------------------------------------------------------------------------ asyncio


def test_a_coroutine_function_is_a_program_too() -> None:
    def program(one_pass: Callable[[wr.Store, wr.AsyncLead], Awaitable[object]]) -> Callable[[wr.Store], object]:
        async def run(store: wr.Store) -> None:
            while True:
                async with store.aio.leading() as lead:
                    with suppress(wr.LeadershipLost, wr.Unavailable, wr.RevisionConflict):
                        while not await lead.wait_over(PASS_SECONDS):
                            await one_pass(store, lead)
                await asyncio.sleep(1)

        return run

    async def fenced(store: wr.Store, lead: wr.AsyncLead) -> None:
        there = {container.id for container in store.list_containers()}
        async with lead.batch() as batch:
            for id_ in {"svc-0", "svc-1", "svc-2"} - there:
                batch.create_container(wr.Container(id=id_, service_id="svc"), if_revision=0)

    async def wrong(store: wr.Store, lead: wr.AsyncLead) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(missing_at(store)):
                group.create_task(store.aio.create_container(new_container()))

    met = simulate(program(fenced), setup=setup, check=all_there, always=never_too_many, seeds=range(20))
    assert met["writes"] >= 18
    failure = found(program(wrong))
    assert found(program(wrong), seeds=[failure.seed]).schedule == failure.schedule
    assert [each.name for each in threading.enumerate() if "simulated" in each.name] == []


@pytest.mark.slow
def test_the_writes_of_a_loop_are_carried_out_in_their_order() -> None:
    async def program(store: wr.Store) -> None:
        await store.aio.wait_ready()
        assert await store.aio.wait_leader(20) in ("m1", "m2", "m3")
        start = uuid.uuid4().hex
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(attempt(store, f"{start}-{number}"))
        assert await attempt(store, f"{start}-8")
        with suppress(wr.Unavailable):
            await store.aio.barrier()
            assert len([each for each in store.list_nodes() if each.id.startswith(start)]) > 0
        await store.aio.close()

    async def attempt(store: wr.Store, id_: str) -> int:
        try:
            return await store.aio.create_node(wr.Node(id=id_), timeout=100)
        except wr.Unavailable:
            return 1

    def in_order(view: wr.View) -> None:
        orders: dict[str, list[int]] = defaultdict(list)
        for node in sorted(view.list_nodes(), key=lambda node: node.revision):
            start, _, number = node.id.partition("-")
            orders[start].append(int(number))
        for numbers in orders.values():
            assert numbers == sorted(numbers)

    met = simulate(program, check=in_order, seeds=range(10), steps=100)
    assert met["writes"] > 100


@pytest.mark.slow
def test_a_cancelled_write_is_dropped_or_carried_out_and_the_loop_goes_on() -> None:
    async def program(store: wr.Store) -> None:
        while True:
            began = asyncio.get_running_loop().time()
            with suppress(TimeoutError, wr.Unavailable):
                async with asyncio.timeout(0.001):
                    await store.aio.create_node(wr.Node(id=uuid.uuid4().hex))
            async with store.aio.watch(kinds={"node"}) as events:
                await events.take(timeout=2)
            assert asyncio.get_running_loop().time() - began < 60
            with pytest.raises(wr.Misuse):
                await store.aio.snapshot("file")

    simulate(program, check=lambda view: bool(view.list_nodes()), seeds=range(5))


# ------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize("where", ["in the program", "while it leads", "in a callback", "in the check", "always"])
def test_an_error_that_is_not_the_stores_fails_with_its_cause(where: str) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    def program(store: wr.Store) -> None:
        match where:
            case "in the program":
                fail()
            case "while it leads":
                store.run_while_leading(fail)
            case "in a callback":
                store.on_leadership(fail)
            case "always":
                store.create_node(wr.Node(id="n"))

    with pytest.raises(SimulationFailed, match="seed 7: ZeroDivisionError") as caught:
        simulate(
            program,
            check=fail if where == "in the check" else lambda view: True,
            always=fail if where == "always" else None,
            seeds=[7],
        )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("leads", [True, False])
def test_a_wrong_argument_is_a_mistake_of_the_program(leads: bool) -> None:
    def program(store: wr.Store) -> None:
        if leads:
            store.run_while_leading(lambda lead: lead.create_node(wr.Node(id="")))
        else:
            store.create_node(wr.Node(id=""))

    with pytest.raises(SimulationFailed, match="InvalidEntity"):
        simulate(program, check=lambda view: True, seeds=[0])


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.status(),
        lambda store: store.members(),
        lambda store: store.add_member("m4", "127.0.0.1:1"),
        lambda store: store.update_member("m1", "127.0.0.1:1"),
        lambda store: store.remove_member("m1"),
        lambda store: store.transfer_leadership(),
        lambda store: store.snapshot("file"),
    ],
)
def test_what_is_not_simulated_says_so(use: Callable[[wr.Store], object]) -> None:
    with pytest.raises(SimulationFailed, match="is not part of the simulation"):
        simulate(use, check=lambda view: True, seeds=[0])


def test_a_store_is_used_in_the_thread_of_its_program_only() -> None:
    caught: list[Exception] = []

    def elsewhere(store: wr.Store) -> None:
        try:
            store.list_nodes()
        except wr.Misuse as error:
            caught.append(error)

    def program(store: wr.Store) -> None:
        thread = threading.Thread(target=elsewhere, args=(store,))
        thread.start()
        thread.join()

    simulate(program, check=lambda view: True, seeds=[0])
    assert "in the thread of its program only" in str(caught[0])


def test_a_program_that_waits_for_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STUCK_SECONDS", 0.2)
    let_go = threading.Event()

    def waits_for_another_thread(_store: wr.Store) -> None:
        let_go.wait()

    with pytest.raises(SimulationFailed, match="in waits_for_another_thread"):
        simulate(waits_for_another_thread, check=lambda view: True, seeds=[0])
    let_go.set()


def test_the_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="at least one program"):
        simulate(check=lambda view: True)
    for wrong in ({"size": 0}, {"steps": -1}):
        with pytest.raises(ValueError, match="at least"):
            simulate(looping(right), check=lambda view: True, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        simulate(looping(right), check=lambda view: True, setup=lambda store: 1 // 0)


# ------------------------------------------------------------------------------------------------ Python itself


@pytest.fixture
def clocks() -> Iterator[None]:
    before = (time.time, time.time_ns, time.monotonic, time.monotonic_ns, time.sleep, os.urandom, random.getstate())
    yield
    assert before == (
        *(time.time, time.time_ns, time.monotonic, time.monotonic_ns, time.sleep, os.urandom),
        random.getstate(),
    )
    assert turns._turns_of == {}


@pytest.mark.usefixtures("clocks")
def test_the_clock_is_simulated_in_programs_only() -> None:
    seen: list[float] = []

    def program(store: wr.Store) -> None:
        began = time.monotonic()
        time.sleep(1_000)
        assert time.monotonic() - began >= 1_000
        assert abs(time.monotonic_ns() - time.monotonic() * 1e9) < 1_000
        assert abs(time.time_ns() - time.time() * 1e9) < 10_000
        seen.append(time.time())

    def check(view: wr.View) -> None:
        assert abs(time.time() - real) < 60

    real = time.time()
    simulate(program, check=check, seeds=range(2), steps=30)
    assert seen
    assert all(1_767_225_600 + 1_000 <= each < 1_767_225_600 + 5_000 for each in seen)


@pytest.mark.usefixtures("clocks")
def test_a_failure_leaves_the_clock_as_it_was() -> None:
    found(looping(right), seeds=[0], check=lambda view: False)
