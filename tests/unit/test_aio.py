"""The promise: `store.aio` does what the store does, for coroutines, and nothing in it blocks their loop. However a
coroutine or its loop ends, the store goes on, and nothing of them is left in it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import operator
import os
import subprocess
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.unit.test_lead import Sent
from tests.unit.test_leadership import Here, opened
from tests.unit.test_writer import WRITES, argument_of
from warren_raft.aio.leading import AsyncLead, AsyncLeading, run_each_lead
from warren_raft.aio.waiting import wait_for
from warren_raft.leadership import loops
from warren_raft.leadership.lead import Lead, Leading, Leads
from warren_raft.manager import session
from warren_raft.store.interface import BaseStore
from warren_raft.support import handover
from warren_raft.support.handover import Landing, hand_over
from warren_raft.support.waiting import Bell

T = TypeVar("T")
AnyStore = wr.LocalStore | wr.ReplicatedStore
ROOT = Path(__file__).parents[2]
DEADLINE = 60.0
WAIT = 2.0
PAUSE_MAX = 1.0
"""Far above what a turn takes (some ms), because other programs may keep the processors busy, and below WAIT."""


def run(main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE):
            return await main

    return asyncio.run(bounded())


@pytest.fixture(params=["local", "replicated"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyStore]:
    with wr.LocalStore(tmp_path / "s") if request.param == "local" else opened(tmp_path) as store:
        yield store


@pytest.fixture
def leaderless(tmp_path: Path) -> Iterator[wr.ReplicatedStore]:
    """A manager whose only peer is away."""
    with opened(tmp_path, others=1) as store:
        yield store


@pytest.fixture
def local(tmp_path: Path) -> Iterator[wr.LocalStore]:
    with wr.LocalStore(tmp_path / "s") as store:
        yield store


def node(number: int = 0) -> wr.Node:
    return wr.Node(id=f"n{number}")


class Turns:
    """The turns of a loop: how many there were, and the longest time between two."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_seconds = 0.0

    async def take(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            self.longest_seconds = max(self.longest_seconds, now - last)
            last = now
            self.count += 1


@asynccontextmanager
async def turns() -> AsyncIterator[Turns]:
    found = Turns()
    task = asyncio.create_task(found.take())
    yield found
    task.cancel()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  conditions of other threads
        await asyncio.sleep(0.002)


# ---------------------------------------------------------------------------------------- writes


def test_every_write_does_what_it_does_in_a_thread(local: wr.LocalStore, tmp_path: Path) -> None:
    async def main() -> list[int]:
        return [await getattr(local.aio, name)(argument_of(name), timeout=5, request_id=name) for name in WRITES]

    with wr.LocalStore(tmp_path / "other") as other:
        assert run(main()) == [getattr(other, name)(argument_of(name)) for name in WRITES]
        assert local.list_nodes() == other.list_nodes()
        assert local.get_ca() == other.get_ca()


def test_writes_reads_and_waits_of_a_program(store: AnyStore) -> None:
    async def main() -> None:
        aio = store.aio
        await aio.wait_ready()
        assert await aio.wait_leader() in ("m1", "local")
        first = await aio.create_service(wr.Service(id="s"))
        assert store.get_service("s").revision == first
        assert await aio.barrier() == first
        async with aio.batch() as batch:
            batch.require("service", "s", first)
            batch.create_container(wr.Container(id="c", service_id="s"))
        assert batch.revision == first + 1
        async with aio.batch() as empty:
            pass
        assert empty.revision == batch.revision
        changed = await aio.modify(wr.Service, "s", lambda service: replace(service, replicas=3))
        assert changed == store.get_service("s")
        assert await aio.delete_service("s", cascade=True, if_revision=changed.revision) == changed.revision + 1
        assert store.list_containers() == []

    run(main())


def test_errors_come_from_await_and_nothing_is_sent(store: AnyStore) -> None:
    async def main() -> None:
        aio = store.aio
        calls = [
            aio.create_node(wr.Node(id="")),
            aio.delete_node(""),
            aio.delete_service("", cascade=True),
            aio.create_node(node(), timeout=-1),
            aio.create_node(node(), request_id=""),
            aio.barrier(timeout=-1),
        ]
        for call in calls:
            with pytest.raises(wr.InvalidEntity):
                await call
        with pytest.raises(wr.RevisionConflict):
            await aio.create_node(node(), if_revision=7)
        with pytest.raises(wr.NotFound):
            await aio.modify(wr.Node, "n0", lambda found: found)
        with pytest.raises(wr.InvalidEntity):  # noqa: PT012
            async with aio.batch() as batch:
                batch.create_node(node())
                batch.create_node(wr.Node(id=""))
        with pytest.raises(wr.Misuse):
            batch.create_node(node())
        with pytest.raises(wr.Misuse):
            await batch.__aenter__()
        assert store.list_nodes() == []

    run(main())


def test_a_conflict_makes_modify_begin_again(store: AnyStore) -> None:
    async def main() -> None:
        aio = store.aio
        await aio.create_service(wr.Service(id="s", replicas=0))

        def one_more(service: wr.Service) -> wr.Service:
            return replace(service, replicas=service.replicas + 1)

        await asyncio.gather(*[aio.modify(wr.Service, "s", one_more) for _ in range(20)])
        assert store.get_service("s").replicas == 20

    run(main())


def test_writes_are_carried_out_in_the_order_in_which_a_task_starts_them(store: AnyStore) -> None:
    async def main() -> None:
        large = "x" * 400_000  # goes another way to the log, and must not be overtaken
        nodes = [wr.Node(id="n", hostname=large if turn % 50 == 0 else f"{turn}") for turn in range(200)]
        revisions = await asyncio.gather(*[store.aio.create_node(each) for each in nodes])
        assert revisions == sorted(revisions)
        assert store.get_node("n").hostname == "199"

    run(main())


def test_several_loops_write_at_once(store: AnyStore) -> None:
    async def main(number: int) -> None:
        await asyncio.gather(*[store.aio.create_node(node(100 * number + turn)) for turn in range(100)])

    threads = [threading.Thread(target=lambda number=number: run(main(number))) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(store.list_nodes()) == 300


def test_the_results_of_a_step_cost_one_call_to_each_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls: list[object] = []
        call = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: calls.append(arguments) or call(*arguments)  # type: ignore
        landings = [Landing(loop) for _ in range(100)]
        hand_over(landings)
        landings[0].release()  # again, and while the loop has been called already
        assert all([await landing.wait(math.inf) for landing in landings])
        assert len(calls) == 1
        later = Landing(loop)
        later.release()
        assert await later.wait(DEADLINE)
        assert len(calls) == 2
        assert not await Landing(loop).wait(0)

    run(main())


def test_writes_that_are_done_together_cost_the_store_few_calls(store: AnyStore) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls: list[object] = []
        call = loop.call_soon_threadsafe
        await store.aio.create_node(node())  # a leader, and a session
        loop.call_soon_threadsafe = lambda *arguments: calls.append(arguments) or call(*arguments)  # type: ignore
        await asyncio.gather(*[store.aio.create_node(node(turn)) for turn in range(1, 500)])
        assert len(calls) < 100

    run(main())


# ---------------------------------------------------------------------------------------- the loop is not blocked


def test_nothing_is_imported_in_the_loop(tmp_path: Path) -> None:
    """An import reads files: everything is loaded when the store opens."""
    program = f"""
import asyncio, sys
import warren_raft as wr
from tests.unit.test_leadership import opened
from pathlib import Path

async def use(store):
    async with store.aio.watch() as events:
        await store.aio.create_node(wr.Node(id="n"))
        await store.aio.barrier()
        async with store.aio.leading() as lead, lead.batch() as batch:
            batch.delete_node("n")
        await anext(events)

for store in (wr.LocalStore({str(tmp_path / "s")!r}), opened(Path({str(tmp_path)!r}))):
    with store:
        wr.Node
        before = set(sys.modules)
        asyncio.run(use(store))
        assert set(sys.modules) == before, set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=DEADLINE, cwd=ROOT)


@pytest.mark.slow
def test_nothing_blocks_the_loop_without_a_leader(leaderless: wr.ReplicatedStore) -> None:
    """Every call waits for two seconds. If one of them blocked the loop, there would be no turns meanwhile."""

    async def main() -> None:
        aio = leaderless.aio
        async with turns() as taken:
            calls: list[Coroutine[Any, Any, object]] = [
                aio.create_node(node(turn), timeout=WAIT) for turn in range(100)
            ]
            calls += [aio.barrier(WAIT), aio.wait_ready(WAIT), aio.wait_leader(WAIT)]
            calls += [aio.leading(WAIT).__aenter__()]
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} == {wr.Unavailable}
        assert not any(error.maybe_applied for error in errors if isinstance(error, wr.Unavailable))
        assert taken.count > 50
        assert taken.longest_seconds < PAUSE_MAX

    run(main())


def test_nothing_blocks_the_loop_from_the_first_write_to_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        store = opened(tmp_path)
        async with turns() as taken:
            await store.aio.create_node(node())  # waits for the election, and opens the session
            await store.aio.snapshot(tmp_path / "snapshot.mdb")
            lead = await store.aio.leading().__aenter__()
            waits = asyncio.create_task(lead.wait_over())
            await until(lambda: taken.count)
            await store.aio.close()
            assert await waits
        assert taken.longest_seconds < PAUSE_MAX
        assert wr.inspect(tmp_path / "snapshot.mdb").counts["nodes"] == 1
        for call in (
            store.aio.create_node(node()),
            store.aio.barrier(),
            store.aio.wait_leader(),
            lead.delete_node("n"),
        ):
            with pytest.raises(wr.Closed):
                await call

    run(main())


def test_a_full_queue_refuses_at_once(leaderless: wr.ReplicatedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HELD_MAX", 10 - leaderless.config.queue_limit)

    async def main() -> None:
        aio = leaderless.aio
        waiting = [asyncio.create_task(aio.create_node(node(turn), timeout=math.inf)) for turn in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(wr.Unavailable, match="queue of waiting writes is full") as caught:
            await aio.create_node(node(), timeout=math.inf)
        assert not caught.value.maybe_applied
        for task in waiting:
            task.cancel()
        assert {type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)} == {
            asyncio.CancelledError
        }

    run(main())


def test_waiting_calls_end_when_the_store_closes(tmp_path: Path) -> None:
    async def main() -> None:
        store = opened(tmp_path, others=1)
        aio = store.aio
        calls: list[Coroutine[Any, Any, object]] = [aio.create_node(node(), timeout=math.inf), aio.barrier(math.inf)]
        calls += [aio.wait_ready(None), aio.wait_leader(None), aio.leading().__aenter__()]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        await aio.close()
        assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {wr.Closed}

    run(main())


def test_a_raft_thread_that_does_not_answer_is_waited_for_until_a_second_after_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GRACE_SECONDS", 0.0)

    async def main() -> None:
        with opened(tmp_path) as store:
            await store.aio.wait_ready()
            monkeypatch.setattr(store._parts.driver, "submit", lambda _call: True)
            with pytest.raises(wr.Unavailable, match="the raft thread does not answer") as caught:
                await store.aio.create_node(node(), timeout=0.01)
            assert caught.value.maybe_applied

    run(main())


# ---------------------------------------------------------------------------------------- cancellation


def test_a_cancelled_write_that_was_not_sent_is_dropped(leaderless: wr.ReplicatedStore) -> None:
    """With `timeout=math.inf` it would be kept for ever."""
    outstanding = leaderless._parts.writes._outstanding

    async def main() -> None:
        task = asyncio.create_task(leaderless.aio.create_node(node(), timeout=math.inf))
        await until(lambda: outstanding)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not outstanding)

    run(main())


def test_a_cancelled_write_that_was_sent_is_carried_out(local: wr.LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write is being committed, and one waits behind it. Both are cancelled: the first one is stored."""
    goes_on, commits = threading.Event(), threading.Event()
    commit = local._commits._commit

    def slow(requests: Any) -> Any:
        commits.set()
        assert goes_on.wait(DEADLINE)
        return commit(requests)

    monkeypatch.setattr(local._commits, "_commit", slow)

    async def main() -> None:
        first = asyncio.create_task(local.aio.create_node(node(1), timeout=math.inf))
        await until(commits.is_set)
        second = asyncio.create_task(local.aio.create_node(node(2), timeout=math.inf))
        await asyncio.sleep(0)
        late = asyncio.create_task(local.aio.create_node(node(3), timeout=0.01))
        with pytest.raises(wr.Unavailable) as caught:
            await late
        assert not caught.value.maybe_applied
        for task in (first, second):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        goes_on.set()
        await local.aio.create_node(node(4))
        assert [each.id for each in local.list_nodes()] == ["n1", "n4"]

    try:
        run(main())
    finally:
        goes_on.set()


def test_a_cancelled_write_of_a_manager_is_made_once_with_a_request_id(tmp_path: Path) -> None:
    """It may have been carried out. With its request id it is made again without harm."""

    async def main() -> None:
        with opened(tmp_path) as store:
            await store.aio.wait_ready()
            for turn in range(20):
                task = asyncio.create_task(store.aio.create_node(node(turn), request_id=f"job-{turn}"))
                for _ in range(turn % 4):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                revision = await store.aio.create_node(node(turn), request_id=f"job-{turn}")
                assert store.get_node(f"n{turn}").revision == revision
            await store.aio.barrier()
            assert len(store.list_nodes()) == 20
            with store.read() as view:
                assert view.revision == 20

    run(main())


def test_a_cancelled_batch_sends_nothing(local: wr.LocalStore) -> None:
    async def main() -> None:
        async def fill() -> None:
            async with local.aio.batch() as batch:
                batch.create_node(node())
                await asyncio.sleep(DEADLINE)

        task = asyncio.create_task(fill())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert local.list_nodes() == []

    run(main())


def test_a_cancelled_wait_leaves_nothing_behind(
    leaderless: wr.ReplicatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Before a cluster is formed, a barrier would go through the log, and the leader could not be asked.)"""
    monkeypatch.setattr("warren_raft.manager.calls.needs_entry", lambda _engine: False)
    parts = leaderless._parts

    async def main() -> None:
        aio = leaderless.aio

        async def lead() -> None:
            async with aio.leading():
                pass

        threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))  # also those of other tests

        def left() -> tuple[int, int, set[threading.Thread], set[str]]:
            waiting = len(parts.life.changed._sleepers), len(parts.writes.barriers._waiting)
            return *waiting, set(threading.enumerate()) - threads, set(os.listdir("/proc/self/fd")) - files

        before = left()
        calls: list[Coroutine[Any, Any, object]] = [aio.barrier(math.inf), aio.wait_ready(None), aio.wait_leader(None)]
        tasks = [asyncio.create_task(call) for call in [*calls, lead()]]
        await until(lambda: left()[:2] == (before[0] + 3, before[1] + 1))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: left() == before)

    run(main())


# ---------------------------------------------------------------------------------------- watches


def test_a_watch_gives_each_change_once_and_in_order(store: AnyStore) -> None:
    async def main() -> None:
        aio = store.aio
        first = await aio.create_node(node())
        async with aio.watch(since=first, kinds={"node"}) as events:
            writes = [asyncio.create_task(aio.create_node(node(turn))) for turn in range(100)]
            seen = [event async for event, _ in _zipped(events, 99)]  # an equal node0 is no change
            await asyncio.gather(*writes)
        assert [event.id for event in seen] == [f"n{turn}" for turn in range(1, 100)]
        assert [event.revision for event in seen] == list(range(first + 1, first + 100))
        assert events.revision == first + 99
        async with aio.watch(since=first) as events, aio.batch() as batch:
            batch.delete_node("n1")
            batch.delete_node("n2")
        found: list[wr.Event] = []
        async with aio.watch(since=first) as events:
            while len(found) < 101:
                found += await events.take(DEADLINE)
            assert await events.take(0) == []
        assert [event.id for event in found[-2:]] == ["n1", "n2"]
        assert "AsyncWatch" in repr(events)

    run(main())


async def _zipped(events: wr.AsyncWatch, count: int) -> AsyncIterator[tuple[wr.Event, int]]:
    """The first `count` events."""
    number = 0
    async for event in events:
        yield event, number
        number += 1
        if number == count:
            return


def test_a_cancelled_task_loses_no_event_and_leaves_no_waiter(store: AnyStore) -> None:
    async def main() -> None:
        async with store.aio.watch(kinds={"node"}) as events:
            for turn in range(20):
                task = asyncio.create_task(anext(events))
                for _ in range(turn % 4):
                    await asyncio.sleep(0)
                write = asyncio.create_task(store.aio.create_node(node(turn)))
                if turn % 2:
                    await write
                task.cancel()
                await asyncio.wait([task, write])
                event = await anext(events) if task.cancelled() else task.result()
                assert event.id == f"n{turn}"
            assert not events._bell._sleepers
            task = asyncio.create_task(anext(events))
            await until(lambda: events._bell._sleepers)
            task.cancel()
            await asyncio.wait([task])
            assert not events._bell._sleepers

    run(main())


def test_a_watch_ends_with_its_block_its_store_and_its_last_reference(tmp_path: Path) -> None:
    of_other_tests = set(threading.enumerate())

    def threads() -> list[str]:
        found = set(threading.enumerate()) - of_other_tests
        return [thread.name for thread in found if thread.name == "warren-raft-watching"]

    async def main() -> None:
        store = wr.LocalStore(tmp_path / "s")
        watch = store.aio.watch()

        async def read() -> list[wr.Event]:
            return [event async for event in watch]

        task = asyncio.create_task(read())
        await store.aio.create_node(node())
        await until(lambda: watch.revision == 1)
        watch.close()
        assert [event.id for event in await task] == ["n0"]
        with pytest.raises(wr.Closed):
            await watch.take()
        await until(lambda: not threads())
        other = store.aio.watch()
        assert threads()
        del other
        gc.collect()
        await until(lambda: not threads())
        last = store.aio.watch()
        task = asyncio.create_task(last.take())  # type: ignore[arg-type]
        await until(lambda: last._bell._sleepers)
        await store.aio.close()
        with pytest.raises(wr.Closed):
            await task
        with pytest.raises(wr.Closed):
            store.aio.watch()

    run(main())


def test_events_without_end_leave_turns_to_the_other_tasks(local: wr.LocalStore) -> None:
    """A loop over a watch whose next event is always there already must not keep the event loop to itself."""

    async def main() -> None:
        for turn in range(200):
            await local.aio.create_node(node(turn))
        async with local.aio.watch(since=0) as events, turns() as taken:
            await until(lambda: len(events._feed.queue) == 200)
            before = taken.count
            task = asyncio.create_task(_last(events))
            others = asyncio.create_task(_count_until(task))
            await task
            assert await others > 100
            assert taken.count >= before

    run(main())


async def _last(events: wr.AsyncWatch) -> None:
    async for event in events:
        if event.id == "n199":
            return


async def _count_until(task: asyncio.Task[None]) -> int:
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    return count


def test_a_wrong_argument_of_a_watch(store: AnyStore) -> None:
    with pytest.raises(wr.InvalidEntity):
        store.aio.watch(kinds={"knots"})


# ---------------------------------------------------------------------------------------- loops that end


def test_a_loop_that_is_closed_while_writes_are_under_way_costs_the_store_nothing(
    store: AnyStore, caplog: pytest.LogCaptureFixture
) -> None:
    others = set(handover._handovers.values())  # of loops that other tests left
    loop = asyncio.new_event_loop()
    begun = [store.aio.create_node(node(turn)) for turn in range(50)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", partial(operator.attrgetter("loop"), SimpleNamespace(loop=loop)))
        for coroutine in begun:
            coroutine.send(None)  # as a task would begin it
    gone = weakref.ref(loop)
    loop.close()
    with caplog.at_level(logging.DEBUG):
        wait_until(lambda: len(store.list_nodes()) == 50, "the writes are carried out all the same")
        store.create_node(node(50))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for coroutine in begun:
        coroutine.close()
    del begun, coroutine, loop

    def is_forgotten() -> bool:
        gc.collect()
        return gone() is None and set(handover._handovers.values()) <= others

    wait_until(is_forgotten, "nothing refers to the loop")


def test_a_loop_that_cannot_be_called_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def broken(*_arguments: object) -> None:
            raise OSError("no")

        loop.call_soon_threadsafe = broken  # type: ignore
        lost = Landing(loop)
        lost.release()
        loop.call_soon_threadsafe = call  # type: ignore
        Landing(loop).release()
        assert await lost.wait(DEADLINE)

    run(main())
    assert [record.message.split(":")[0] for record in caplog.records] == ["event loop not called"]


# ---------------------------------------------------------------------------------------- errors


def test_a_traceback_does_not_grow(local: wr.LocalStore) -> None:
    """The store keeps one error of its disk, and every write raises it."""
    local._failure = wr.Corrupted("state", "for the test")

    async def length() -> int:
        try:
            await local.aio.create_node(node())
        except wr.Corrupted as error:
            return len(traceback.extract_tb(error.__traceback__))
        return 0

    async def main() -> None:
        assert len({await length() for _ in range(5)}) == 1

    run(main())


# ---------------------------------------------------------------------------------------- leadership


def test_every_write_of_a_lead_has_its_term_as_fence_and_none_follows_its_end() -> None:
    here, sent = Here(term_now=5), Sent()
    lead = AsyncLead(Lead(sent, here, 5))

    async def main() -> None:
        await lead.create_node(node())
        await lead.modify(wr.Node, "n", lambda found: replace(found, hostname="x"))
        async with lead.batch() as batch:
            batch.delete_node("n")
        assert (sent.fences, lead.term, lead.is_over) == ([5] * 3, 5, False)
        assert not await lead.wait_over(0)
        over = asyncio.create_task(lead.wait_over())
        await until(lambda: here.bell._sleepers)
        threading.Thread(target=lambda: here.change(leads=False)).start()
        assert await over
        with pytest.raises(wr.LeadershipLost):
            await lead.create_node(node())
        with pytest.raises(wr.LeadershipLost):
            async with lead.batch() as batch:
                batch.delete_node("n")
        assert sent.fences == [5] * 3

    run(main())


def test_a_program_that_leads(store: AnyStore) -> None:
    async def main() -> None:
        leading = store.aio.leading(timeout=DEADLINE)
        async with leading as lead:
            revision = await lead.create_node(node())
            assert (lead.term, lead.is_over) == (1, False)
        assert store.get_node("n0").revision == revision
        assert "Lead" in repr(lead)
        assert "Store" in repr(store.aio)
        with pytest.raises(wr.Misuse):
            await leading.__aenter__()

    run(main())


def test_the_next_lead_of_a_term_begins_behind_an_empty_command() -> None:
    sent, here = Sent(), Here(term_now=5)
    leads = Leads(here)

    async def main() -> None:
        for _ in range(2):
            async with AsyncLeading(Leading(sent, leads, None)) as lead:
                await lead.create_node(node())
            with pytest.raises(wr.LeadershipLost):
                await lead.create_node(node())
        sent.outcomes = [wr.Unavailable("full", maybe_applied=False), None]
        async with AsyncLeading(Leading(sent, leads, None)):
            pass
        sent.outcomes = [wr.Unavailable("full", maybe_applied=False)] * 1000
        with pytest.raises(wr.Unavailable, match="did not get to lead"):
            async with AsyncLeading(Leading(sent, leads, 0.25)):
                pass

    run(main())
    assert sent.fences[:6] == [5, 0, 5, 0, 0, 0]
    assert 6 <= len(sent.fences) < 15


def test_a_coroutine_function_is_called_with_each_lead(caplog: pytest.LogCaptureFixture) -> None:
    """As run_while_leading of the store: again after an error, with another lead, and not again after a return."""
    sent, here = Sent(), Here(term_now=3)
    leads, given = Leads(here), []
    errors: list[BaseException | None] = [
        ExceptionGroup("tasks", [wr.Unavailable("late", maybe_applied=True), wr.LeadershipLost(3)]),
        ZeroDivisionError(),
        asyncio.CancelledError(),  # of a task that the function waited for; nobody cancelled the loop
        None,
    ]

    async def work(lead: wr.AsyncLead) -> None:
        given.append(lead)
        error = errors.pop(0)
        if error is not None:
            raise error

    async def main() -> None:
        task = asyncio.create_task(run_each_lead(lambda: Leading(sent, leads, None), work))
        await until(lambda: not errors)
        assert [lead.is_over for lead in given] == [True, True, True, False]
        errors.append(None)
        here.change(term_now=4)
        await until(lambda: not errors)
        assert [lead.term for lead in given] == [3, 3, 3, 3, 4]
        here.change(has_ended=True, leads=False)
        with pytest.raises(wr.Closed):
            await task

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr(loops, "AGAIN_SECONDS", 0.001)
        run(main())
    assert sent.fences == [0, 0, 0]
    told = [(record.levelname, record.exc_info is not None) for record in caplog.records]
    assert told == [("WARNING", False), ("ERROR", True), ("ERROR", True)]


def test_a_loop_that_is_cancelled_ends_its_lead_and_the_next_lead_sees_what_it_did(
    store: AnyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop is cancelled while its write is under way. The next loop makes what is missing, under new ids."""
    leads: list[wr.AsyncLead] = []

    async def wait_in_a_group(lead: wr.AsyncLead) -> None:
        async with asyncio.TaskGroup() as group, store.aio.watch() as events:
            group.create_task(lead.wait_over())
            await events.take()

    async def work(lead: wr.AsyncLead) -> None:
        leads.append(lead)
        while len(store.list_nodes()) < 3:
            await lead.create_node(wr.Node(id=uuid.uuid4().hex))
        await wait_in_a_group(lead)

    async def main() -> None:
        await store.aio.wait_ready(DEADLINE)
        for number in range(1, 21):
            task = asyncio.create_task(store.aio.run_while_leading(work))
            await until(lambda: len(leads) == number)  # noqa: B023
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert leads[-1].is_over
            with pytest.raises(wr.LeadershipLost):
                await leads[-1].create_node(node())
        task = asyncio.create_task(store.aio.run_while_leading(work))
        await until(lambda: len(store.list_nodes()) >= 3)
        await asyncio.sleep(0)
        await store.aio.close()
        with pytest.raises(wr.Closed):
            await task

    run(main())
    assert [record.getMessage() for record in caplog.records if ".leadership." in record.name] == []


def test_a_write_that_is_cancelled_ends_its_lead(store: AnyStore) -> None:
    async def main() -> None:
        async with store.aio.leading(DEADLINE) as lead:
            write = asyncio.create_task(lead.create_node(node()))
            await asyncio.sleep(0)
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
            assert lead.is_over
            with pytest.raises(wr.LeadershipLost, match="the end of one of its writes is not known"):
                await lead.create_node(node(1))
        async with store.aio.leading(DEADLINE) as lead:
            there = {found.id for found in store.list_nodes()}
            await store.aio.barrier()
            assert {found.id for found in store.list_nodes()} == there

    run(main())


def test_a_condition_that_becomes_true_before_anybody_can_ring_is_seen() -> None:
    bell, looks = Bell(), iter([False, True])
    assert run(wait_for(bell, lambda: next(looks), math.inf))
    assert not bell._sleepers


def test_the_face_for_asyncio_is_that_of_the_store() -> None:
    """Every write, `modify` and `batch`; reads stay on the store."""
    names = {name for name in dir(wr.AsyncStore) if not name.startswith("_")}
    writer = {name for name in dir(wr.Writer) if not name.startswith("_")}
    assert names >= writer
    assert names - writer == {
        "barrier",
        "close",
        "leading",
        "run_while_leading",
        "snapshot",
        "wait_leader",
        "wait_ready",
        "watch",
    }
    assert issubclass(wr.LocalStore, BaseStore)
