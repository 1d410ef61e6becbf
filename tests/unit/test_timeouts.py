"""The promise: a timeout means the same in every method of every store, and a wrong one is refused before anything is
sent. `math.inf` ended in an OverflowError after the write was applied, and -1 in "the raft thread does not answer".
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports
from warren_raft.snapshots.backups import Backups
from warren_raft.support import timeouts

WRONG: list[Any] = [-1, -0.001, -math.inf, math.nan, True, False, "5", b"5", [1], -(10**400)]
FOR_EVER: list[Any] = [math.inf, 1e10, 1e300, 10**400]

ENTITIES: dict[str, Any] = {
    "node": wr.Node(id="x"),
    "service": wr.Service(id="x"),
    "container": wr.Container(id="x"),
    "secret": wr.Secret(id="x"),
    "volume": wr.Volume(id="x"),
    "network": wr.Network(id="x"),
    "ingress": wr.Ingress(id="x"),
    "certificate": wr.TLSCertificate(id="x"),
    "data": b"x",
}


def local(directory: Path) -> wr.LocalStore:
    return wr.LocalStore(directory / "local")


def replicated(directory: Path) -> wr.ReplicatedStore:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    store = wr.ReplicatedStore(
        wr.Config(node_id="m1", data_dir=directory / "m1", listen=address, members={"m1": address}, admin=False)
    )
    store.wait_ready()
    return store


@pytest.fixture(params=[local, replicated])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with request.param(tmp_path) as opened:
        yield opened


def methods(store: Any) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Every public method with a timeout, ready to be called with one."""
    for name in dir(type(store)):  # not getmembers: it would read every property, the deprecated ones too
        method = getattr(type(store), name)
        if not inspect.isfunction(method):
            continue
        method = getattr(store, name)
        parameters = inspect.signature(method).parameters
        if name.startswith("_") or "timeout" not in parameters:
            continue
        arguments: dict[str, Any] = {}
        for parameter in parameters.values():
            if parameter.default is parameter.empty:
                known = {"id": "x", "address": "127.0.0.1:1", **ENTITIES, "cls": wr.Node, "function": lambda node: node}
                arguments[parameter.name] = known[parameter.name]
        yield name, lambda timeout, method=method, arguments=arguments: method(**arguments, timeout=timeout)


def test_a_wrong_timeout_is_refused_everywhere_and_nothing_is_written(store: Any) -> None:
    names = []
    for name, call in methods(store):
        names.append(name)
        for timeout in WRONG:
            with pytest.raises(wr.InvalidEntity, match=r"^timeout: must be a number of seconds from 0 on"):
                call(timeout)
    assert {"create_node", "delete_secret", "save_ca", "batch", "modify", "leading"} <= set(names)
    assert {"barrier", "wait_ready", "wait_leader", "wait_failed", "transfer_leadership"} <= set(names)
    assert store.list_nodes() == []
    with store.read() as view:
        assert view.revision == 0


def test_for_ever_is_a_timeout_of_every_write_and_every_wait(store: Any) -> None:
    endless = {"modify", "add_member", "update_member", "remove_member", "transfer_leadership", "wait_failed"}
    for name, call in methods(store):
        if name not in endless:
            for timeout in FOR_EVER:
                call(timeout)
    assert store.get_node("x") == wr.Node(id="x")  # deleted and written again by update_node
    assert [store.modify(wr.Node, "x", lambda node: node, timeout=timeout).id for timeout in FOR_EVER] == ["x"] * 4
    with store.batch(timeout=math.inf) as batch:
        batch.create_node(wr.Node(id="b"))
    with store.batch(wait=False, timeout=1e10) as batch:
        batch.create_node(wr.Node(id="c"))
    batch.future.result(30)
    assert [node.id for node in store.list_nodes()] == ["b", "c", "x"]


def test_a_change_of_members_may_wait_for_ever(tmp_path: Path) -> None:
    with replicated(tmp_path) as store:
        store.remove_member("m9", timeout=math.inf)
        with pytest.raises(wr.RefusedForSafety):
            store.transfer_leadership("m9", timeout=1e10)
        assert store.wait_leader(math.inf) == "m1"


def test_a_local_store_refuses_a_wrong_default() -> None:
    for timeout in WRONG:
        with pytest.raises(wr.InvalidEntity, match=r"^timeout: "):
            wr.LocalStore("/nonexistent/directory", write_timeout_seconds=timeout)


def test_nothing_that_is_asked_to_wait_overflows() -> None:
    lock = threading.Lock()
    for seconds in (math.inf, 1e300, -1.0, -math.inf):
        wait = timeouts.wait_seconds(seconds)
        assert lock.acquire(timeout=wait)
        lock.release()
    assert timeouts.deadline(math.inf) == math.inf
    assert timeouts.deadline(None) == math.inf


def test_backups_go_on_with_an_interval_longer_than_a_thread_can_wait(tmp_path: Path) -> None:
    """`stop.wait(1e10)` is an OverflowError: it ended the thread for backups, and no alarm said so."""
    backups = Backups(
        tmp_path,
        every_seconds=1e10,
        keep=1,
        limit_seconds=1e10,
        position=lambda: None,
        leads=lambda: False,
        take=lambda _path: {},
    )
    looked = threading.Event()
    backups.look = lambda: (looked.set(), 1e10)[1]  # type: ignore[method-assign]
    stop = threading.Event()
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            backups.run(stop)
            ended.append(None)
        except BaseException as error:  # noqa: BLE001  the test asks for it
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert looked.wait(30)
    stop.set()
    thread.join(30)
    assert ended == [None]


def test_a_timeout_is_written_without_the_time_that_passed_before_the_wait(tmp_path: Path) -> None:
    """(Pins a bug: "within 0.999994 s".)"""
    one, two = (f"127.0.0.1:{port}" for port in free_ports(2))
    members = {"m1": one, "m2": two}
    config = wr.Config(node_id="m1", data_dir=tmp_path / "m1", listen=one, members=members, admin=False)
    with wr.ReplicatedStore(config) as store, pytest.raises(wr.Unavailable, match=r"within 0\.1 s"):
        store.wait_ready(timeout=0.0999994)
