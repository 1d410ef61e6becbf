"""The promise: stamps show when a write passed the points of its way, in their order, and their memory is bounded.

(First seen: nothing told why one write of many was slow.) Not here: the stages between the points of three managers,
which tests/cluster/test_benchmarks.py runs.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster.harness import free_ports
from warren_raft import Config, Node, ReplicatedStore
from warren_raft.support.stamps import STAMPS_MAX, Stamps


def test_only_the_newest_stamps_are_kept() -> None:
    stamps = Stamps()
    for number in range(STAMPS_MAX + 10):
        stamps.add("step", number)
    kept = stamps.take()
    assert [number for _, _, number in kept] == list(range(10, STAMPS_MAX + 10))
    assert [time for time, _, _ in kept] == sorted(time for time, _, _ in kept)


def test_a_write_passes_all_points_in_order(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = Config(node_id="m1", data_dir=str(tmp_path), listen=address, members={"m1": address}, admin=False)
    with ReplicatedStore(config) as store:
        store.wait_ready(60)
        store.create_node(Node(id="before"))
        store._parts.driver.stamps = stamps = Stamps()
        store.create_node(Node(id="stamped"))
        store._parts.driver.stamps = None
        taken = stamps.take()
    first: dict[str, int] = {}
    index = max(number for _, point, number in taken if point == "applied")
    for time, point, number in taken:
        if point not in ("stepped", "writing", "written", "applied") or number == index:
            first.setdefault(point, time)
    way = ["called", "submitted", "stepped", "writing", "written", "applied", "answered"]
    assert sorted(way, key=lambda point: first[point]) == way
    assert {"step", "handed", "sent"} <= set(first)
