"""The promise: callbacks of futures are called one after another, in order. A callback that waits, raises SystemExit or
never returns does not prevent the calls of the others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.harness import wait_until
from warren_raft.support import deliveries as module
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.own_thread import OwnThread

DEADLINE = 60.0


@pytest.fixture
def deliveries() -> Iterator[Deliveries]:
    """Looked after as a store does it."""
    deliveries = Deliveries("test-futures")
    thread = OwnThread("test-own", deliveries.look)
    thread.start()
    put = deliveries.put

    def put_in_own_thread(items: list[Callable[[], object]]) -> None:
        thread.call(lambda: put(items))

    deliveries.put = put_in_own_thread  # type: ignore[method-assign,assignment]
    yield deliveries
    thread.call(lambda: deliveries.finish(DEADLINE))
    thread.stop()
    thread.join(DEADLINE)


def leave() -> None:
    raise SystemExit


def test_they_are_delivered_in_order_by_one_thread(deliveries: Deliveries) -> None:
    told: list[tuple[int, str]] = []
    for number in range(100):
        deliveries.put([lambda number=number: told.append((number, threading.current_thread().name))])  # type: ignore[misc]
    wait_until(lambda: len(told) == 100, "all")
    assert told == [(number, "test-futures") for number in range(100)]


@pytest.mark.parametrize("bad", [leave, lambda: 1 / 0])
def test_one_that_raises_silences_nobody(deliveries: Deliveries, bad: Callable[[], object]) -> None:
    told = threading.Event()
    deliveries.put([bad, told.set])
    assert told.wait(DEADLINE)


def test_one_that_waits_for_a_later_one_gets_it(deliveries: Deliveries) -> None:
    first, second = threading.Event(), threading.Event()

    def waits() -> None:
        assert second.wait(DEADLINE)
        first.set()

    deliveries.put([waits, second.set])
    assert first.wait(DEADLINE)


def test_many_that_never_return_silence_nobody_and_one_too_many_only_until_one_returns(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_MAX", 3)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.005)
    lets_go = [threading.Event() for _ in range(4)]
    begun = threading.Semaphore(0)
    told = threading.Event()

    def stay(let_go: threading.Event) -> None:
        begun.release()
        let_go.wait(DEADLINE)

    for number, let_go in enumerate(lets_go):
        deliveries.put([lambda let_go=let_go: stay(let_go)])  # type: ignore[misc]
        assert begun.acquire(timeout=DEADLINE), number
    deliveries.put([told.set])
    assert not told.wait(0.2), "there is no thread for it"
    lets_go[0].set()
    assert told.wait(DEADLINE)
    for let_go in lets_go:
        let_go.set()
    wait_until(lambda: sum(t.name == "test-futures" for t in threading.enumerate()) == 1, "the others to end")


def test_finish_delivers_the_rest_also_behind_a_callback_that_waits_for_the_end() -> None:
    """close() in a callback."""
    deliveries = Deliveries("test-futures")
    told, finished = threading.Event(), threading.Event()
    deliveries.put([lambda: finished.wait(DEADLINE), told.set])
    began = time.monotonic()
    deliveries.finish(DEADLINE)
    assert time.monotonic() - began < DEADLINE / 2
    assert told.is_set()
    finished.set()


def test_without_a_thread_they_are_delivered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 starts no thread in `atexit`."""
    deliveries, told = Deliveries("test-futures"), list[int]()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch, contextlib.suppress(AssertionError):
        patch.setattr(threading.Thread, "start", refuse)
        deliveries.put([lambda: told.append(1), leave, lambda: told.append(2)])
    assert told == [1, 2]
    deliveries.finish(DEADLINE)
