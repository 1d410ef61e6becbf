"""The loop of the raft thread: a function is called before each wait, and nothing that is due waits."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from warren_raft.raft.step_loop import Bell, StepLoop

DEADLINE = 30.0
LONG = 3600.0


class Rig:
    """A loop. Each call of `between` is counted and passed on to `act`."""

    def __init__(self) -> None:
        self.calls = 0
        self.act: Callable[[], float] = lambda: math.inf
        self.bell = Bell()
        self.loop = StepLoop(self._between, self.bell)

    def _between(self) -> float:
        self.calls += 1
        return self.act()

    def run(self, future: asyncio.Future[None]) -> None:
        async def wait() -> None:
            async with asyncio.timeout(DEADLINE):
                await future

        self.loop.run_until_complete(wait())


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    with closing(rig.loop):
        yield rig


def test_the_bell_ends_a_wait_and_needs_no_turn_of_the_loop(rig: Rig) -> None:
    done = rig.loop.create_future()
    seen: list[int] = []

    def act() -> float:
        seen.append(rig.calls)
        if len(seen) == 1:
            threading.Timer(0.01, rig.bell.ring).start()
        elif not done.done():
            done.set_result(None)
        return math.inf

    rig.act = act
    begin = time.monotonic()
    rig.run(done)
    assert time.monotonic() - begin < DEADLINE / 2


def test_it_waits_no_longer_than_it_is_told(rig: Rig) -> None:
    done = rig.loop.create_future()
    times: list[float] = []

    def act() -> float:
        times.append(time.monotonic())
        if len(times) == 20:
            done.set_result(None)
        return times[-1] + 0.005

    rig.act = act
    rig.run(done)
    assert times[-1] - times[0] < DEADLINE / 2


@pytest.mark.parametrize("how", ["soon", "at"])
def test_what_is_scheduled_between_two_waits_does_not_wait(rig: Rig, how: str) -> None:
    """asyncio has computed its time before."""
    done = rig.loop.create_future()

    def finish() -> None:
        done.set_result(None)

    def act() -> float:
        if rig.calls == 2:
            if how == "soon":
                rig.loop.call_soon(finish)
            else:
                rig.loop.call_later(0.001, finish)
        return time.monotonic() + (0.01 if rig.calls < 2 else LONG)

    rig.act = act
    rig.run(done)


def test_sockets_timers_and_other_threads_go_on_while_steps_are_always_due(rig: Rig) -> None:
    """A state that catches up asks for one step after the other."""
    rig.act = lambda: -math.inf
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)

        async def work() -> None:
            async with asyncio.timeout(DEADLINE):
                await asyncio.sleep(0.01)
                theirs.send(b"x")
                assert await rig.loop.sock_recv(ours, 1) == b"x"
                assert await asyncio.to_thread(lambda: 7) == 7

        rig.loop.run_until_complete(work())
    assert rig.calls > 3


def test_an_exception_ends_the_loop(rig: Rig) -> None:
    def act() -> float:
        raise SystemExit

    rig.act = act
    with pytest.raises(SystemExit):
        rig.run(rig.loop.create_future())
    rig.act = lambda: math.inf
    rig.loop.run_until_complete(_cancel_all(rig))


async def _cancel_all(rig: Rig) -> None:
    tasks = [task for task in asyncio.all_tasks(rig.loop) if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_bell_stays_open_as_long_as_a_thread_may_ring_it() -> None:
    """The number of a closed descriptor may be the next file's, and eight bytes would be written into that file."""
    rig = Rig()
    rig.loop.close()
    rig.bell.ring()
    descriptor = rig.bell.descriptor
    os.fstat(descriptor)
    bell = rig.bell
    del rig
    bell.ring()
    assert os.eventfd_read(descriptor) == 2


def pair_with_bytes() -> tuple[socket.socket, socket.socket]:
    """Two sockets. The first one has a byte to read."""
    first, second = socket.socketpair()
    first.setblocking(False)
    second.send(b"x")
    return first, second


def test_a_reader_is_called_before_the_next_step_without_a_turn_of_the_loop(rig: Rig) -> None:
    done = rig.loop.create_future()
    first, second = pair_with_bytes()
    order: list[str] = []

    def read() -> None:
        first.recv(10)
        order.append("read")

    def act() -> float:
        order.append("step")
        if "read" in order and not done.done():
            done.set_result(None)
        return math.inf

    rig.act = act
    with first, second:
        rig.loop.add_reader(first, read)
        rig.run(done)
        assert rig.loop.remove_reader(first)
        assert not rig.loop.remove_reader(first)
    at = order.index("read")
    assert order[at - 1 : at + 2] == ["step", "read", "step"]


def test_a_reader_that_fails_does_not_end_the_loop(rig: Rig) -> None:
    done = rig.loop.create_future()
    first, second = pair_with_bytes()
    failures: list[object] = []
    rig.loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def read(number: int) -> None:
        first.recv(10)
        rig.loop.call_soon(done.set_result, None)
        raise ValueError(number)

    with first, second:
        rig.loop.add_reader(first, read, 3)
        rig.run(done)
        rig.loop.remove_reader(first)
    assert [str(failure) for failure in failures] == ["3"]


def test_a_reader_that_another_one_removes_is_not_called_any_more(rig: Rig) -> None:
    """Both have bytes in the same look. Added again, the one that was removed is called."""
    done = rig.loop.create_future()
    pairs = [pair_with_bytes(), pair_with_bytes()]
    called: list[int] = []

    def read(number: int) -> None:
        called.append(number)
        pairs[number][0].recv(10)
        other = 1 - number
        if len(called) == 1:
            rig.loop.remove_reader(pairs[other][0])
            rig.loop.add_reader(pairs[other][0], again)

    def again() -> None:
        called.append(2)
        for first, _ in pairs:
            rig.loop.remove_reader(first)
        done.set_result(None)

    for number, (first, _) in enumerate(pairs):
        rig.loop.add_reader(first, read, number)
    rig.run(done)
    for pair in pairs:
        for each in pair:
            each.close()
    assert len(called) == 2
    assert called[1] == 2
