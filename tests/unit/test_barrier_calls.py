"""The promise: `barrier()` waits for what was acknowledged before it and for its own thread's writes, and for nothing
else. It ends by its deadline, or when the store closes.

Not here: how a manager finds out what was acknowledged (unit/raft/test_barriers.py)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports, wait_until
from warren_raft.manager import barrier_calls as module
from warren_raft.manager.barrier_calls import BarrierCall, BarrierCalls
from warren_raft.support.handover import Landing
from warren_raft.support.waking import Sleeper

DEADLINE = 60.0
SOON = 20.0


class Calls:
    """The barriers of one manager, by themselves."""

    def __init__(self) -> None:
        self.woken: list[Sleeper] = []
        self.landed: list[Landing] = []
        self.calls = BarrierCalls(self.woken.append, self.landed.append)

    def add(self, thread: int = 1, deadline: float = math.inf) -> BarrierCall:
        barrier = BarrierCall(deadline, self.calls.ended, thread=thread)
        barrier.prepare_wait()
        self.calls.add(barrier)
        return barrier


def test_a_barrier_waits_for_the_writes_that_its_thread_has_started() -> None:
    """`batch(wait=False)`, then `barrier()`: a local read sees the batch. Other threads do not wait."""
    it = Calls()
    it.calls.write_started(1)
    it.calls.write_started(1)
    own, other = it.add(thread=1), it.add(thread=2)
    assert it.calls.take() == [other]
    it.calls.write_ended(1)
    assert not it.calls.has_more
    it.calls.write_ended(1)
    assert it.calls.has_more
    assert it.calls.take() == [own]
    assert it.calls.take() == []
    assert it.add(thread=1) in it.calls.take()


def test_a_barrier_that_waits_for_writes_ends_at_its_deadline() -> None:
    it = Calls()
    it.calls.write_started(1)
    barrier = it.add(deadline=10.0)
    it.calls.expire(9.0)
    assert barrier.error is None
    it.calls.expire(10.0)
    assert isinstance(barrier.error, wr.Unavailable)
    assert it.woken == [barrier.caller]
    it.calls.write_ended(1)
    assert it.calls.take() == []


def test_no_more_than_a_bounded_number_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BARRIERS_MAX", 2)
    it = Calls()
    first, second, third = (it.add(thread) for thread in (1, 2, 3))
    assert isinstance(third.error, wr.Unavailable)
    assert not third.error.maybe_applied
    assert it.calls.take() == [first, second]
    first.end()
    assert it.add(thread=4) in it.calls.take()


def test_the_end_ends_each_barrier_once() -> None:
    it = Calls()
    taken, late = it.add(), BarrierCall(math.inf, it.calls.ended)
    late.prepare_wait()
    assert it.calls.end_all([late], "the store is closed") == [late.caller, taken.caller]
    assert isinstance(taken.error, wr.Closed)
    taken.end()  # the raft thread ends it too
    assert it.woken == []


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[wr.ReplicatedStore]:
    """One manager of three; the others are not there. Its barriers are questions, as those of a restored manager."""
    monkeypatch.setattr("warren_raft.manager.calls.needs_entry", lambda _engine: False)
    members = {f"m{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}
    config = wr.Config(
        node_id="m1", data_dir=tmp_path, listen=members["m1"], members=members, admin=False, queue_limit=1
    )
    with wr.ReplicatedStore(config) as store:
        yield store


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[wr.ReplicatedStore]:
    """A cluster of one."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with wr.ReplicatedStore(
        wr.Config(node_id="m1", data_dir=tmp_path, listen=address, members={"m1": address}, admin=False)
    ) as store:
        store.wait_ready(DEADLINE)
        yield store


def barrier_in_thread(store: wr.ReplicatedStore, timeout: float) -> tuple[threading.Thread, list[object]]:
    ended: list[object] = []

    def wait() -> None:
        try:
            ended.append(store.barrier(timeout))
        except BaseException as error:  # noqa: BLE001  the test looks at it
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, ended


def test_the_close_of_the_store_ends_barriers(lonely: wr.ReplicatedStore) -> None:
    threads = [barrier_in_thread(lonely, math.inf) for _ in range(5)]
    wait_until(lambda: len(lonely._parts.writes.barriers._waiting) == 5, "them to wait")
    lonely.close()
    for thread, ended in threads:
        thread.join(DEADLINE)
        assert [type(error) for error in ended] == [wr.Closed]
    with pytest.raises(wr.Closed):
        lonely.barrier()


def test_a_barrier_whose_caller_was_interrupted_is_forgotten(
    lonely: wr.ReplicatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_self: Sleeper, _seconds: float) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Sleeper, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lonely.barrier(math.inf)
    wait_until(lambda: not lonely._parts.writes.barriers._waiting, "it to be forgotten")
    assert not lonely._parts.driver.engine._barriers.is_waiting


def test_it_opens_no_session_and_writes_nothing(alone: wr.ReplicatedStore) -> None:
    last_index = alone._parts.opened.log.last_index
    assert alone.barrier(DEADLINE) == 0
    assert alone._parts.opened.log.last_index == last_index


def test_a_reader_sees_the_batch_that_it_did_not_wait_for(alone: wr.ReplicatedStore) -> None:
    for number in range(50):
        with alone.batch(wait=False) as batch:
            batch.create_node(wr.Node(id="n", hostname=str(number), labels={"x": "y" * 1000}))
        revision = alone.barrier(DEADLINE)
        assert alone.get_node("n").hostname == str(number)
        assert batch.future.result(DEADLINE) == revision


def test_barriers_of_many_threads_end(alone: wr.ReplicatedStore) -> None:
    """Each of them sees its thread's last write."""
    failures: list[str] = []

    def loop(name: str) -> None:
        for number in range(30):
            revision = alone.create_node(wr.Node(id=name, hostname=str(number)))
            if alone.barrier(DEADLINE) < revision or alone.get_node(name).hostname != str(number):
                failures.append(f"{name} {number}")

    threads = [threading.Thread(target=loop, args=(f"n{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


def test_the_barrier_of_a_local_store_returns_at_once(tmp_path: Path) -> None:
    """It commits nothing, unless writes are under way: then it returns behind them."""
    with wr.LocalStore(tmp_path) as store:
        revision = store.create_node(wr.Node(id="n"))
        index = store._machine.applied_index
        assert store.barrier() == revision
        assert store._machine.applied_index == index
        for number in range(30):
            with store.batch(wait=False) as batch:
                batch.create_node(wr.Node(id="n", hostname=str(number)))
            revision = store.barrier(DEADLINE)
            assert store.get_node("n").hostname == str(number)
            assert batch.future.result(DEADLINE) == revision
        with pytest.raises(wr.InvalidEntity):
            store.barrier(-1)
    with pytest.raises(wr.Closed):
        store.barrier()


def test_a_barrier_that_gets_no_answer_ends_by_its_deadline(lonely: wr.ReplicatedStore) -> None:
    began = time.monotonic()
    with pytest.raises(wr.Unavailable) as caught:
        lonely.barrier(0.2)
    assert time.monotonic() - began < SOON
    assert (caught.value.maybe_applied, caught.value.of_write) == (False, False)
