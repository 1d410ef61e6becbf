"""Scenarios in a process of their own, several managers in each: `python -m tests.cluster.programs NAME DIRECTORY`.

Each function is a scenario, judged by its asserts; test_one_process.py runs them. The process ends with 0, or with a
traceback and 1. Invariant: nothing here runs in the process of the tests, so patches and forks stay here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.harness import free_ports, wait_until

if TYPE_CHECKING:
    import warren_raft as wr

MANAGERS = ("m1", "m2", "m3")
NO_ELECTION_SECONDS = 20.0
"""An election timeout that a busy machine does not use up. The first election does not wait for it."""
AT_ONCE_SECONDS = 20.0
"""A call that does not wait takes less, on any machine; a call that waits takes longer."""
END_SECONDS = 60.0
CALL_SECONDS = 10 * END_SECONDS
"""The deadline of calls that must end before."""


@contextlib.contextmanager
def opened(
    directory: Path, ids: tuple[str, ...] = MANAGERS, *, election_timeout_seconds: float = 1.0
) -> Iterator[dict[str, wr.ReplicatedStore]]:
    """A cluster within this process, ready."""
    import warren_raft as wr

    members = {id_: f"127.0.0.1:{port}" for id_, port in zip(ids, free_ports(len(ids)), strict=True)}
    with contextlib.ExitStack() as stack:
        stores = {id_: open_store(directory, id_, members, election_timeout_seconds) for id_ in ids}
        for store in stores.values():
            stack.callback(wr.ReplicatedStore.close, store)
        for store in stores.values():
            store.wait_ready(END_SECONDS)
        yield stores


def open_store(
    directory: Path, id_: str, members: dict[str, str], election_timeout_seconds: float = 1.0
) -> wr.ReplicatedStore:
    import warren_raft as wr

    config = wr.Config(
        node_id=id_,
        data_dir=directory / id_,
        listen=members[id_],
        members=members,
        election_timeout_seconds=election_timeout_seconds,
        write_timeout_seconds=END_SECONDS,
        admin=False,
    )
    return wr.ReplicatedStore(config)


def leader_of(stores: dict[str, wr.ReplicatedStore]) -> str:
    return wait_until(lambda: next((id_ for id_, store in stores.items() if store.is_leader), ""), "a leader")


def same_state(stores: dict[str, wr.ReplicatedStore]) -> None:
    def level() -> bool:
        states = [store.status() for store in stores.values()]
        if len({(state.applied_index, state.commit_index) for state in states}) != 1:
            return False
        assert len({state.digest for state in states}) == 1, states
        return True

    wait_until(level, "one applied index")


def container(id_: str, image: str = "x") -> wr.Container:
    import warren_raft as wr

    return wr.Container(id=id_, image=image)


# No pickle ------------------------------------------------------------------------------------------------------------


def no_pickle(directory: Path) -> None:
    """A whole cluster (first start, writes, a hand-over, a restart, a new member) in a process in which nothing can be
    unpickled. PySyncObj itself must fail here, to show that the trap works."""
    import _pickle
    import pickle

    def trap(*_: Any, **__: Any) -> Any:
        raise AssertionError("something is unpickled")

    for module in (pickle, _pickle):
        for name in ("load", "loads", "Unpickler"):
            setattr(module, name, trap)
    pickle._Unpickler.load = trap  # type: ignore[attr-defined]
    pickle._loads = pickle._load = trap  # type: ignore[attr-defined]

    with opened(directory) as stores:
        for number, store in enumerate(stores.values()):
            store.create_container(container(f"c{number}"))
        leader = leader_of(stores)
        stores[leader].transfer_leadership(timeout=END_SECONDS)
        config = stores[leader].config
        stores[leader].close()
        others = [store for id_, store in stores.items() if id_ != leader]
        for number in range(30):
            others[number % 2].create_container(container(f"while down {number}"))
        stores[leader] = open_store(directory, leader, dict(config.members))
        stores[leader].wait_ready(END_SECONDS)
        members = {**config.members, "m4": f"127.0.0.1:{free_ports(1)[0]}"}
        stores["m4"] = open_store(directory, "m4", members)
        others[0].add_member("m4", members["m4"], timeout=END_SECONDS)
        stores["m4"].create_container(container("through the new one"))
        same_state(stores)
        stores[leader].close()
        stores["m4"].close()

    from pysyncobj.pickle import loads, to_bytes

    try:
        loads(to_bytes("\x80\x04K\x01."))
    except AssertionError:
        return
    raise AssertionError("PySyncObj unpickles in spite of the trap")


# Beside others in one process -----------------------------------------------------------------------------------------


def beside_pysyncobj(directory: Path) -> None:
    """Two clusters of ours and a stock PySyncObj pair in one process: each has its own state, and its own module."""
    import pysyncobj.syncobj
    from pysyncobj import SyncObj, replicated

    class Sum(SyncObj):  # type: ignore[misc]
        def __init__(self, own: str, other: str) -> None:
            super().__init__(own, [other])
            self.total = 0

        @replicated  # type: ignore[untyped-decorator]
        def add(self, number: int) -> int:
            self.total += number
            return self.total

    before = dict(vars(pysyncobj.syncobj))
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    stock = [Sum(first, second), Sum(second, first)]
    try:
        with opened(directory / "one", ("m1", "m2")) as one, opened(directory / "two", ("m1", "m2", "m3")) as two:
            wait_until(lambda: all(node.isReady() for node in stock), "the stock pair")
            for number in range(1, 21):
                stock[number % 2].add(number, sync=True, timeout=END_SECONDS)
                one[f"m{number % 2 + 1}"].create_container(container(f"one {number}"))
                two[f"m{number % 3 + 1}"].create_container(container(f"two {number}"))
            assert one["m1"].status().cluster_id != two["m1"].status().cluster_id
            for name, stores in (("one", one), ("two", two)):
                same_state(stores)
                for store in stores.values():
                    assert {c.id.split()[0] for c in store.list_containers()} == {name}
                    assert len(store.list_containers()) == 20
            wait_until(lambda: {node.total for node in stock} == {210}, "the stock pair to agree")
        stock[0].add(1, sync=True, timeout=END_SECONDS)  # our clusters are closed, and the stock pair still works
    finally:
        for node in stock:
            node.destroy()
    changed = [name for name, value in before.items() if vars(pysyncobj.syncobj)[name] is not value]
    assert changed == [], f"the shared module was changed: {changed}"


def one_directory_twice(directory: Path) -> None:
    """The second store of a directory is refused, also in the same process, and does no harm. After the first one is
    closed, the directory is free."""
    import warren_raft as wr

    with opened(directory, ("m1",)) as stores:
        config = stores["m1"].config
        for _ in range(3):
            with pytest.raises(wr.InUse, match=re.escape(str(directory / "m1"))):
                wr.ReplicatedStore(config)
        stores["m1"].create_container(container("still here"))
    threads = {thread.name for thread in threading.enumerate()}
    assert not any("warren" in name for name in threads), threads
    with wr.ReplicatedStore(config) as store:
        store.wait_ready(END_SECONDS)
        assert store.get_container("still here").image == "x"


# Closing --------------------------------------------------------------------------------------------------------------


def close_ends_every_call(directory: Path) -> None:
    """Threads are in each kind of call while close() is called, for all managers at once and twice for each. Every call
    ends soon, with its result, with Closed or with Unavailable (a hand-over may be refused, as no manager is left). No
    thread of ours is left."""
    import warren_raft as wr

    ended: list[tuple[str, BaseException | None]] = []
    go = threading.Event()

    def call_for_ever(name: str, call: Callable[[], object]) -> None:
        end: BaseException | None = None
        try:
            while True:
                call()
        except (wr.Closed, wr.Unavailable, wr.RefusedForSafety) as error:
            end = error
        finally:
            ended.append((name, end))

    def fill(store: wr.ReplicatedStore) -> None:
        futures: list[Future[int]] = []
        for _ in range(20):
            with store.batch(wait=False, timeout=CALL_SECONDS) as batch:
                batch.create_container(container("future"))
            futures.append(batch.future)
        for future in futures:
            future.result(CALL_SECONDS)

    def leadership(store: wr.ReplicatedStore) -> None:
        store.transfer_leadership(timeout=CALL_SECONDS)

    with opened(directory) as stores:
        threads = []
        for id_, store in stores.items():
            calls: dict[str, Callable[[], object]] = {
                "write": lambda store=store: store.create_container(container("x"), timeout=CALL_SECONDS),
                "barrier": lambda store=store: store.barrier(CALL_SECONDS),
                "futures": lambda store=store: fill(store),
                "read": lambda store=store: store.list_containers(),
                "members": lambda store=store: store.remove_member("m9", timeout=CALL_SECONDS),
                "transfer": lambda store=store: leadership(store),
            }
            for name, call in calls.items():
                for _ in range(1 if name == "transfer" else 3):
                    what = f"{id_} {name}"
                    thread = threading.Thread(target=call_for_ever, name=what, args=(what, call), daemon=True)
                    threads.append(thread)
                    thread.start()
        go.wait(1.0)  # until all threads are in their calls
        closers = [threading.Thread(target=store.close) for store in stores.values() for _ in range(2)]
        begin = time.monotonic()
        for thread in closers:
            thread.start()
        for thread in [*closers, *threads]:
            thread.join(max(0.0, begin + END_SECONDS - time.monotonic()))
        assert not any(thread.is_alive() for thread in closers), "close() hangs"
        hanging = [thread.name for thread in threads if thread.is_alive()]
        assert not hanging, f"calls did not end: {hanging}"
        assert not [name for name, end in ended if end is None], "a call raised something else"
        for store in stores.values():
            try:
                store.get_container("x")
            except wr.Closed:
                continue
            raise AssertionError("a closed store reads")
    left = [thread.name for thread in threading.enumerate() if "warren" in thread.name]
    assert not left, left


def close_hands_over(directory: Path) -> None:
    """When close() of the leader has returned, another manager leads already, without an election timeout."""
    with opened(directory, election_timeout_seconds=NO_ELECTION_SECONDS) as stores:
        leader = leader_of(stores)
        for store in stores.values():
            store.create_container(container("x"))
        same_state(stores)
        stores[leader].close()
        others = {id_: store for id_, store in stores.items() if id_ != leader}
        leading = [id_ for id_, store in others.items() if store.leader == id_]
        assert len(leading) == 1, {id_: store.leader for id_, store in others.items()}


def close_from_a_callback(directory: Path) -> None:
    """A caller may close the store in the callback that tells it whether the manager leads. Each callback first gets
    the present state, then each change."""
    told: list[tuple[bool, int]] = []
    closed = threading.Event()
    store = open_store(directory, "m1", {"m1": f"127.0.0.1:{free_ports(1)[0]}"})

    def callback(leads: bool, term: int) -> None:
        told.append((leads, term))
        if leads:
            store.close()
            closed.set()

    store.on_leadership(callback)
    assert closed.wait(END_SECONDS), "close() in a callback hangs"
    wait_until(lambda: [leads for leads, _ in told][-2:] == [True, False], "the callback to be told of the end")
    assert [leads for leads, _ in told] in ([False, True, False], [True, False]), told
    assert not store.is_leader


def wait_in_a_future(directory: Path) -> None:
    """The callback of a future may wait: for a write, for another future, for close(). It runs in a thread that none of
    these needs, so it costs no leadership, even if it takes long."""
    with opened(directory, election_timeout_seconds=NO_ELECTION_SECONDS) as stores:
        store = stores[leader_of(stores)]
        term = store.status().term
        done, slow_is_over = threading.Event(), threading.Event()

        def started() -> Future[int]:
            with store.batch(wait=False) as batch:
                batch.create_container(container("future"))
            return batch.future

        def callback(_future: Future[int]) -> None:
            store.create_container(container("x"))
            store.barrier()
            store.wait_ready()
            started().result(END_SECONDS)
            done.set()

        started().add_done_callback(lambda _future: slow_is_over.wait(CALL_SECONDS))
        started().add_done_callback(callback)
        assert done.wait(END_SECONDS), "a callback that waits hangs"
        assert store.status().term == term
        slow_is_over.set()
        closed = threading.Event()
        started().add_done_callback(lambda _future: (store.close(), closed.set()))
        assert closed.wait(END_SECONDS), "close() in a callback hangs"
        others = [other for other in stores.values() if other is not store]
        others[0].create_container(container("second"))
        assert others[0].status().term == term + 1, "the hand-over, and nothing else"
        assert others[0].get_container("x").image == "x"


# Fork -----------------------------------------------------------------------------------------------------------------


def fork(directory: Path) -> None:
    """In a forked child each call raises Closed at once; the parent is not disturbed."""
    import warren_raft as wr

    with opened(directory) as stores:
        store = stores[leader_of(stores)]
        store.create_container(container("before"))
        view = store.read()
        view.__enter__()
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: store.get_container("before"),
            "list": store.list_containers,
            "view": lambda: view.get_container("before"),
            "create": lambda: store.create_container(container("child")),
            "batch": lambda: put_in_batch(store),
            "barrier": store.barrier,
            "status": store.status,
            "wait_ready": lambda: store.wait_ready(AT_ONCE_SECONDS * 2),
            "wait_leader": lambda: store.wait_leader(AT_ONCE_SECONDS * 2),
            "transfer": store.transfer_leadership,
            "add": lambda: store.add_member("m4", "127.0.0.1:1"),
        }
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            wrong = []
            for name, call in calls.items():
                begin = time.monotonic()
                try:
                    call()
                    wrong.append(f"{name} worked")
                except wr.Closed:
                    if time.monotonic() - begin > AT_ONCE_SECONDS:
                        wrong.append(f"{name} took its time")
                except BaseException as error:  # noqa: BLE001
                    wrong.append(f"{name} raised {error!r}")
            try:
                store.close()
            except BaseException as error:  # noqa: BLE001
                wrong.append(f"close raised {error!r}")
            os.write(writing, "; ".join(wrong).encode() or b"fine")
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read().decode()
        assert os.waitpid(child, 0)[1] == 0
        assert said == "fine", said
        assert view.get_container("before").image == "x"
        view.__exit__(None, None, None)
        for id_, other in stores.items():
            other.create_container(container(f"after, through {id_}"))
        same_state(stores)


def put_in_batch(store: wr.ReplicatedStore) -> None:
    with store.batch() as batch:
        batch.create_container(container("child"))


PROGRAMS: dict[str, Callable[[Path], None]] = {
    program.__name__: program
    for program in (
        no_pickle,
        beside_pysyncobj,
        one_directory_twice,
        close_ends_every_call,
        close_hands_over,
        close_from_a_callback,
        wait_in_a_future,
        fork,
    )
}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s")
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]))
    print("done")
