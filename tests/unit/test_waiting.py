"""The promise: a thread that waits is woken by every ring that comes after it began, and leaves nothing behind."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from tests.cluster.harness import wait_until
from warren_raft.errors import Closed
from warren_raft.support import own_thread
from warren_raft.support.own_thread import OwnThread
from warren_raft.support.waiting import Bell, Reply, taken

DEADLINE = 60.0


def test_every_thread_that_waits_is_woken() -> None:
    bell, goal = Bell(), [0]
    seen: list[int] = []

    def wait(number: int) -> None:
        seen.append(bell.wait_for(lambda: goal[0] if goal[0] >= number else 0, time.monotonic() + DEADLINE))

    threads = [threading.Thread(target=wait, args=(number,)) for number in (1, 1, 2, 3)]
    for thread in threads:
        thread.start()
    for number in (1, 2, 3):
        wait_until(lambda: len(bell._sleepers) == 4 - len(seen), "all to sleep")
        goal[0] = number
        bell.ring()
        wait_until(lambda number=number: len(seen) == number + 1, "the waits that are over")
    for thread in threads:
        thread.join()
    assert sorted(seen) == [1, 1, 2, 3]
    assert not bell._sleepers


def test_at_the_deadline_it_returns_the_present_value_of_the_condition() -> None:
    bell = Bell()
    assert bell.wait_for(lambda: "", time.monotonic() - 1) == ""
    assert bell.wait_for(list, time.monotonic() + 0.01) == []
    assert bell.wait_for(lambda: 5, -math.inf) == 5
    assert not bell._sleepers


def test_an_error_of_the_condition_ends_the_wait() -> None:
    bell = Bell()
    looks = iter([False, False, False])

    def condition() -> bool:
        for look in looks:
            return look
        raise Closed

    def ring() -> None:
        wait_until(lambda: bell._sleepers, "the other thread to sleep")
        bell.ring()

    ringing = threading.Thread(target=ring)
    ringing.start()
    with pytest.raises(Closed):
        bell.wait_for(condition, time.monotonic() + DEADLINE)
    assert not bell._sleepers
    ringing.join()


def test_no_ring_is_lost_between_a_look_and_a_sleep() -> None:
    """Two threads hand a number back and forth; the bell rings at every moment there is."""
    bell, turn = Bell(), [0]
    rounds = 3_000

    def play(mine: int) -> None:
        for number in range(rounds):
            assert bell.wait_for(lambda: turn[0] == 2 * number + mine, time.monotonic() + DEADLINE)  # noqa: B023
            turn[0] += 1
            bell.ring()

    threads = [threading.Thread(target=play, args=(mine,)) for mine in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert turn == [2 * rounds]


def test_a_reply_is_a_value_or_an_error() -> None:
    given: Reply[int] = Reply()
    assert not given.wait(0)
    given.give(5)
    assert given.wait(math.inf)
    assert given.result() == 5
    failed: Reply[int] = Reply()
    failed.fail(Closed("over"))
    assert failed.wait(0)
    with pytest.raises(Closed, match="over"):
        failed.result()


def test_two_threads_that_empty_a_queue_get_each_thing_once() -> None:
    others: list[int] = []

    class Shared(deque[int]):
        """Another thread takes one whenever this one does."""

        def popleft(self) -> int:
            found = super().popleft()
            if self:
                others.append(super().popleft())
            return found

    assert taken(Shared(range(6))) == [0, 2, 4]
    assert others == [1, 3, 5]
    assert taken(deque[int]()) == []


# ------------------------------------------------------------------------------------------------- an own thread


def test_calls_are_made_one_after_another_in_order_whatever_they_raise() -> None:
    thread = OwnThread("test-own")
    thread.start()
    order: list[object] = []
    thread.post(lambda: order.append(1))
    thread.post(lambda: 1 / 0)
    assert thread.call(lambda: order.append(2)) is None
    with pytest.raises(SystemExit):
        thread.call(leave)
    assert thread.call(lambda: threading.current_thread().name) == "test-own"
    assert order == [1, 2]
    thread.stop()
    thread.join(DEADLINE)
    with pytest.raises(Closed):
        thread.call(lambda: 1)


def test_an_answer_that_comes_just_before_the_thread_ends_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`on_leadership` raised Closed where its callback had closed the store meanwhile."""
    thread = OwnThread("test-own")

    class Late(Reply[int]):
        """Its time is up. Before the caller goes on, the thread answers and ends."""

        def wait(self, seconds: float) -> bool:
            if seconds > 0 and thread._thread.is_alive():
                thread.stop()
                thread.join(DEADLINE)
                return False
            return super().wait(seconds)

    monkeypatch.setattr(own_thread, "Reply", Late)
    monkeypatch.setattr(own_thread, "POLL_SECONDS", 0.01)
    thread.start()
    assert thread.call(lambda: 5) == 5


def leave() -> None:
    raise SystemExit


def test_an_idle_that_raises_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks after the raft thread and the callbacks: after one error it did not come again without a call."""
    monkeypatch.setattr(own_thread, "POLL_SECONDS", 0.01)
    called = threading.Semaphore(0)

    def idle() -> float | None:
        called.release()
        raise ValueError("a bug")

    thread = OwnThread("test-own", idle)
    thread.start()
    for _ in range(3):
        assert called.acquire(timeout=DEADLINE)
    thread.stop()
    thread.join(DEADLINE)


def test_idle_is_called_as_often_as_it_asks_for() -> None:
    called = threading.Semaphore(0)
    pauses: list[float | None] = [0.0, 0.001, 0.0, None]

    def idle() -> float | None:
        called.release()
        return pauses.pop(0) if pauses else None

    thread = OwnThread("test-own", idle)
    thread.start()
    for _ in range(4):
        assert called.acquire(timeout=DEADLINE)
    assert not called.acquire(timeout=0.05), "it was not asked for"
    calls: list[Callable[[], object]] = [lambda: None, lambda: None]
    for call in calls:
        thread.call(call)
        assert called.acquire(timeout=DEADLINE)
    thread.stop()
    thread.join(DEADLINE)
