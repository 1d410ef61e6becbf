"""Which nodes change between ready and down: the rules, and the same rules in a LocalStore.

Not here: which nodes are due in a cluster (raft/test_beats.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.unit.test_watch import one_manager
from warren_raft.heartbeats.judging import Judge
from warren_raft.raft.beat_table import BeatTable
from warren_raft.store import codec
from warren_raft.store.command import PUT, Operation
from warren_raft.store.operations import ENTITY_MAX_BYTES
from warren_raft.store.tables import NODE

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TTL = 10.0
LEASES = {"n": TTL}


@pytest.fixture
def table() -> BeatTable:
    table = BeatTable(lambda _bits: 7)
    table.look(0.0)
    table.now = 100.0
    return table


def node(status: str, id_: str = "n") -> wr.Node:
    return wr.Node(id=id_, status=status, hostname="h", revision=5)


def judged(table: BeatTable, *nodes: wr.Node, due: tuple[str, ...] = ()) -> list[wr.Node]:
    return Judge().look(nodes, table, LEASES, due, NOW).changed


def test_a_ready_node_that_is_due_becomes_down(table: BeatTable) -> None:
    table.merge("n", TTL, 12.0, 1)
    (changed,) = judged(table, node("ready"), due=("n",))
    assert changed == replace(node("ready"), status="down", last_heartbeat=NOW - timedelta(seconds=12))
    assert changed.revision == 5


@pytest.mark.parametrize("status", ["down", "unknown", ""])
def test_a_node_that_beats_becomes_ready(table: BeatTable, status: str) -> None:
    table.merge("n", TTL, 1.0, 1)
    (changed,) = judged(table, node(status), due=("n",))
    assert (changed.status, changed.last_heartbeat) == ("ready", NOW - timedelta(seconds=1))


@pytest.mark.parametrize("status", ["draining", "a status of a program's own"])
@pytest.mark.parametrize("age", [1.0, 12.0])
def test_a_draining_node_is_left_alone(table: BeatTable, status: str, age: float) -> None:
    table.merge("n", TTL, age, 1)
    assert judged(table, node(status), due=("n",)) == []


def test_a_node_that_never_beat_is_left_alone(table: BeatTable) -> None:
    assert judged(table, node("ready"), node("down", "o"), due=("n", "o")) == []
    table.begin_to_count("o", TTL)  # no beat is known
    assert judged(table, node("down", "o")) == []


def test_a_beat_that_came_after_the_verdict_counts(table: BeatTable) -> None:
    table.merge("n", TTL, 9.0, 1)
    assert judged(table, node("ready"), due=("n",)) == []


def test_a_node_that_a_program_calls_ready_gets_its_ttl(table: BeatTable) -> None:
    """A node that was away is started again. Its program registers it, and its first beat comes a little later."""
    judge = Judge()
    table.merge("n", TTL, 60.0, 1)
    judge.look([node("down")], table, LEASES, (), NOW)
    found = judge.look([node("ready")], table, LEASES, ("n",), NOW)
    assert (found.changed, found.called_ready, found.watched) == ([], ["n"], {"n": TTL})


def test_a_new_leader_does_not_take_every_ready_node_for_new(table: BeatTable) -> None:
    """(Otherwise each change of leaders would put a dead node off by its ttl.)"""
    judge = Judge()
    table.merge("n", TTL, 60.0, 1)
    found = judge.look([node("ready")], table, LEASES, ("n",), NOW)
    assert ([each.status for each in found.changed], found.called_ready) == (["down"], [])


# A LocalStore ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[wr.LocalStore]:
    with wr.LocalStore(tmp_path / "state") as store:
        yield store


def test_a_local_store_calls_nodes_down_and_ready(store: wr.LocalStore) -> None:
    store.create_node(wr.Node(id="beats", status="ready"))
    store.create_node(wr.Node(id="dies", status="ready"))
    store.create_node(wr.Node(id="never", status="ready"))
    store.create_node(wr.Node(id="drains", status="draining"))
    begin = time.monotonic()
    for id_ in ("dies", "drains"):
        store.heartbeat(id_, ttl_seconds=1)

    def beaten() -> bool:
        store.heartbeat("beats", ttl_seconds=1)
        return store.get_node("dies").status == "down"

    wait_until(beaten, "the node that died to be down")
    assert time.monotonic() - begin >= 1.0
    revision = store.get_node("dies").revision
    assert [node.status for node in store.list_nodes()] == ["ready", "down", "draining", "ready"]
    assert store.get_node("beats").revision == 1  # a beat alone is not written
    store.heartbeat("dies", ttl_seconds=60)
    wait_until(lambda: store.get_node("dies").status == "ready", "the node to be ready again")
    assert store.get_node("dies").revision == revision + 1
    age = store.last_heartbeat_age("dies")
    assert age is not None
    assert age < 5
    assert store.last_heartbeat_age("never") is None


def test_a_beat_of_no_node_is_refused(store: wr.LocalStore) -> None:
    with pytest.raises(wr.NotFound, match="no node 'n'"):
        store.heartbeat("n")
    assert store.last_heartbeat_age("n") is None


@pytest.mark.parametrize("ttl", [0, 0.5, 86_401, float("nan"), float("inf"), True, "15", None])
def test_a_ttl_is_a_second_to_a_day(store: wr.LocalStore, ttl: object) -> None:
    store.create_node(wr.Node(id="n"))
    with pytest.raises(wr.InvalidEntity, match="ttl_seconds"):
        store.heartbeat("n", ttl_seconds=ttl)  # type: ignore[arg-type]


def test_a_beat_has_an_age_as_soon_as_the_store_has_answered_it(store: wr.LocalStore) -> None:
    store.create_node(wr.Node(id="n"))
    assert store.last_heartbeat_age("n") is None
    store.heartbeat("n")
    age = store.last_heartbeat_age("n")
    assert age is not None
    assert age < 5


def test_a_closed_store_takes_no_beats(tmp_path: Path) -> None:
    store = wr.LocalStore(tmp_path / "state")
    store.create_node(wr.Node(id="n"))
    store.heartbeat("n")
    store.close()
    with pytest.raises(wr.Closed):
        store.heartbeat("n")
    with pytest.raises(wr.Closed):
        store.last_heartbeat_age("n")


def test_the_beats_of_a_deleted_node_are_forgotten(store: wr.LocalStore) -> None:
    store.create_node(wr.Node(id="n", status="ready"))
    store.heartbeat("n", ttl_seconds=60)
    assert store.last_heartbeat_age("n") is not None
    store.delete_node("n")
    wait_until(lambda: store.last_heartbeat_age("n") is None, "the beat to be forgotten")
    store.create_node(wr.Node(id="n", status="ready"))
    assert store.last_heartbeat_age("n") is None


def of_a_newer_release(node: wr.Node) -> bytes:
    """Its record, with a role that this release does not know."""
    return codec.encode(NODE, node).replace(b"\x66worker", b"\x66oracle")


@pytest.fixture(params=["local", "replicated"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[wr.Store]:
    with wr.LocalStore(tmp_path / "state") if request.param == "local" else one_manager(tmp_path / "m1") as store:
        yield store


@pytest.mark.slow
def test_a_node_that_cannot_be_stored_keeps_no_other_node_from_its_change(
    any_store: wr.Store, caplog: pytest.LogCaptureFixture
) -> None:
    big = wr.Node(id="big", status="ready", labels={"x": "y" * (ENTITY_MAX_BYTES - 2_000)})
    room = ENTITY_MAX_BYTES - len(codec.encode(NODE, big))
    any_store.create_node(replace(big, labels={"x": "y" * (ENTITY_MAX_BYTES - 2_000 + room)}))
    newer = of_a_newer_release(wr.Node(id="newer", status="ready", role="worker"))
    any_store._execute((Operation(PUT, NODE.number, "newer", newer),), 5)  # type: ignore[attr-defined]
    any_store.create_node(wr.Node(id="zz", status="ready"))
    for id_ in ("big", "newer", "zz"):
        any_store.heartbeat(id_, ttl_seconds=1)
    wait_until(lambda: any_store.get_node("zz").status == "down", "the other node to be down")
    any_store.heartbeat("zz", ttl_seconds=1)  # and it goes on
    wait_until(lambda: any_store.get_node("zz").status == "ready", "the other node to be ready")
    wait_until(lambda: any_store.get_node("zz").status == "down", "the other node to be down again")
    assert [any_store.get_node(id_).status for id_ in ("big", "newer")] == ["ready", "ready"]
    lines = [record.getMessage() for record in caplog.records if "not judged" in record.getMessage()]
    assert [line.partition(" subject=")[2].partition(":")[0] for line in lines] == ["big", "newer"]
