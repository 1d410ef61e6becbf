"""The promise: each callback of `on_leadership` gets the present state, then every change, in order, in a thread of its
own. No callback can silence another, and none is called after it is unsubscribed. Every wait ends with the store.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports, wait_until
from warren_raft.leadership import callbacks
from warren_raft.leadership.callbacks import Leadership
from warren_raft.support.waiting import Bell

DEADLINE = 60.0


def opened(directory: Path, others: int = 0) -> wr.ReplicatedStore:
    """A store of a cluster of one, or of a cluster with its others away, so that it never leads."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(1 + others)]
    members = {f"m{number}": address for number, address in enumerate(addresses, 1)}
    return wr.ReplicatedStore(
        wr.Config(node_id="m1", data_dir=directory / "m1", listen=addresses[0], members=members, admin=False)
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[wr.ReplicatedStore]:
    with opened(tmp_path) as store:
        store.wait_ready(DEADLINE)
        wait_until(lambda: store.is_leader, "it to lead")
        yield store


class Told:
    """A callback that notes its arguments."""

    def __init__(self, also: Callable[[], object] = lambda: None) -> None:
        self.states: list[tuple[bool, int]] = []
        self._also = also

    def __call__(self, is_leader: bool, term: int) -> None:
        self.states.append((is_leader, term))
        self._also()

    def wait(self, *states: bool) -> None:
        wait_until(lambda: [leads for leads, _ in self.states] == list(states), f"{states}, not {self.states}")


class Here:
    """The standing of a manager, as the test sets it."""

    def __init__(self, term_now: int = 1, leads: bool = True) -> None:
        self.bell = Bell()
        self.term_now, self.leads, self.has_ended = term_now, leads, False

    def change(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.bell.ring()

    def leading_term(self) -> int | None:
        return self.term_now if self.leads else None

    def term(self) -> int:
        return self.term_now

    def is_over(self) -> bool:
        return self.has_ended

    def require(self) -> None:
        if self.has_ended:
            raise wr.Closed


class AtOnce:
    """Makes the calls in the thread that asks for them."""

    def call(self, function: Callable[[], None]) -> None:
        function()

    def post(self, function: Callable[[], object]) -> None:
        function()


def test_a_callback_is_told_the_present_state(store: wr.ReplicatedStore, tmp_path: Path) -> None:
    """A callback that was registered after the election heard nothing, and never did its work."""
    told = Told()
    store.on_leadership(told)
    told.wait(True)
    assert told.states == [(True, store.status().term)]
    with opened(tmp_path / "alone", others=1) as other:
        told = Told()
        other.on_leadership(told)
        told.wait(False)


def leave() -> None:
    raise SystemExit


def test_a_callback_that_blocks_for_ever_or_leaves_silences_no_other(store: wr.ReplicatedStore) -> None:
    for_ever = threading.Event()
    blocks, leaves, first, last = Told(lambda: for_ever.wait(60)), Told(leave), Told(), Told()
    for callback in (first, blocks, leaves, last):
        store.on_leadership(callback)
    for callback in (first, blocks, leaves, last):
        callback.wait(True)
    store.close()
    for callback in (first, leaves, last):
        callback.wait(True, False)
    assert len(blocks.states) == 1
    for_ever.set()


def test_an_unsubscribed_callback_is_told_nothing_more(store: wr.ReplicatedStore) -> None:
    told, other = Told(), Told()
    unsubscribe = store.on_leadership(told)
    store.on_leadership(other)
    told.wait(True)
    unsubscribe()
    unsubscribe()
    store.close()
    other.wait(True, False)
    assert len(told.states) == 1
    unsubscribe()


def test_a_callback_may_unsubscribe_itself_and_register_another(store: wr.ReplicatedStore) -> None:
    later = Told()
    handle: list[Callable[[], None]] = []
    ready = threading.Event()

    def once() -> None:
        ready.wait(DEADLINE)
        handle[0]()
        store.on_leadership(later)

    told = Told(once)
    handle.append(store.on_leadership(told))
    ready.set()
    later.wait(True)
    store.close()
    later.wait(True, False)
    assert len(told.states) == 1


def test_there_are_not_more_callbacks_than_threads_for_them(
    store: wr.ReplicatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "CALLBACKS_MAX", 2)
    unsubscribe = store.on_leadership(Told())
    store.on_leadership(Told())
    with pytest.raises(wr.RefusedForSafety, match="unsubscribe"):
        store.on_leadership(Told())
    unsubscribe()
    told = Told()

    def registered() -> bool:
        try:
            store.on_leadership(told)
        except wr.RefusedForSafety:
            return False
        return True

    wait_until(registered, "the thread of the one before to end")
    told.wait(True)


def test_a_closed_store_takes_no_callback_and_one_that_stopped_by_itself_tells_it_so(store: wr.ReplicatedStore) -> None:
    store._parts.life.fail(wr.InvariantViolation("a test"))
    told = Told()
    store.on_leadership(told)
    told.wait(False)
    store.close()
    with pytest.raises(wr.Closed):
        store.on_leadership(told)


def test_a_slow_callback_hears_that_leadership_was_lost_in_between() -> None:
    here = Here(term_now=3)
    told = Told(lambda: slow.acquire(timeout=DEADLINE))
    slow = threading.Semaphore(0)
    leadership = Leadership(here, AtOnce())
    leadership.subscribe(told)
    wait_until(lambda: told.states == [(True, 3)], "the first")
    here.change(term_now=5)  # lost, and won again
    slow.release(10)
    wait_until(lambda: told.states == [(True, 3), (False, 5), (True, 5)], "both")
    here.change(leads=False, has_ended=True)
    leadership.join(DEADLINE, but=())
    assert told.states[3:] == [(False, 5)]


# ------------------------------------------------------------------------------------------------- waits


def waits(store: wr.ReplicatedStore) -> dict[str, Callable[[], object]]:
    """Each of them would last for ever: there is no other manager."""
    return {
        "wait_ready": lambda: store.wait_ready(None),
        "wait_leader": lambda: store.wait_leader(math.inf),
        "wait_failed": lambda: store.wait_failed(None),
        "write": lambda: store.create_node(wr.Node(id="n"), timeout=math.inf),
        "barrier": lambda: store.barrier(math.inf),
        "add_member": lambda: store.add_member("m9", "127.0.0.1:1", timeout=math.inf),
        "transfer_leadership": lambda: store.transfer_leadership(timeout=math.inf),
    }


def test_every_wait_ends_when_the_store_is_closed(tmp_path: Path) -> None:
    store = opened(tmp_path, others=1)
    ended: dict[str, Any] = {}
    began = threading.Semaphore(0)

    def call(name: str, wait: Callable[[], object]) -> None:
        began.release()
        try:
            ended[name] = wait()
        except BaseException as error:  # noqa: BLE001  the test asks for it
            ended[name] = type(error)

    calls = waits(store)
    threads = [threading.Thread(target=call, args=item, daemon=True) for item in calls.items()]
    for thread in threads:
        thread.start()
        assert began.acquire(timeout=DEADLINE)
    with store.batch(wait=False, timeout=math.inf) as batch:
        batch.create_node(wr.Node(id="n"))
    store.close()
    for thread in threads:
        thread.join(DEADLINE)
    assert ended == dict.fromkeys(calls, wr.Closed) | {"wait_failed": False}
    assert isinstance(batch.future.exception(DEADLINE), wr.Closed)
