"""The promise: a write that was slow is kept with its stages, and the longest one is that which was slow.

(First seen: nothing told why one write of many was slow.) Three managers in one process, whose disks are slow on
demand. `warren-raft explain` and the log line `slow write` show the same.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.disks import Disk, StoreOnDisk
from tests.cluster.harness import free_ports
from warren_raft.admin.client import AdminClient
from warren_raft.manager.session import Write
from warren_raft.manager.slow_writes import SLOW_MAX, SLOWEST_MAX, STAGES, WINDOW_SECONDS, WINDOWS, SlowWrites
from warren_raft.raft.stages import Stages

SLOW_SECONDS = 0.25
DISK_SECONDS = 0.6
PATIENCE_SECONDS = 30.0
"""The longest wait for a condition."""


@dataclass
class Managers:
    stores: dict[str, StoreOnDisk]
    disks: dict[str, Disk]

    @property
    def leader(self) -> StoreOnDisk:
        leader = self.stores["m1"].wait_leader(timeout=30)
        return self.stores[leader]

    @property
    def followers(self) -> list[StoreOnDisk]:
        leader = self.leader
        return [store for store in self.stores.values() if store is not leader]


@pytest.fixture(scope="module")
def managers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managers]:
    directory = tmp_path_factory.mktemp("slow")
    members = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(3), 1)}
    disks = {id_: Disk() for id_ in members}
    with ThreadPoolExecutor() as pool:
        opened = {
            id_: pool.submit(
                StoreOnDisk,
                wr.Config(
                    node_id=id_,
                    data_dir=directory / id_,
                    listen=address,
                    members=members,
                    insecure_plaintext=True,
                    slow_write_seconds=SLOW_SECONDS,
                ),
                disks[id_],
            )
            for id_, address in members.items()
        }
        stores = {id_: each.result() for id_, each in opened.items()}
    try:
        for store in stores.values():
            store.wait_ready(timeout=60)
            store.create_node(wr.Node(id=f"n-first-{store.config.node_id}"))  # opens the session of its process
        yield Managers(stores, disks)
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(StoreOnDisk.close, stores.values()))


def found(store: wr.ReplicatedStore, matches: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The newest slow write of a manager that matches. Its raft thread may note the write after the caller has the
    answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        slow = store._parts.writes.slow.to_json()["slow"]
        matching = [each for each in slow if matches(each)]
        if matching:
            break
        assert time.monotonic() < deadline, json.dumps(slow, indent=1)
        time.sleep(0.01)
    assert json.loads(json.dumps(matching[0])) == matching[0]
    return dict(matching[0])


def of_index(index: int) -> Callable[[dict[str, Any]], bool]:
    return lambda each: each["index"] == index


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """The keys of the log lines about slow writes."""
    return [
        record.__dict__["warren_keys"]
        for record in caplog.records
        if record.__dict__.get("warren_event") == "slow write"
    ]


def is_sum(write: dict[str, Any]) -> bool:
    stages = {name: seconds or 0.0 for name, seconds in write["stages"].items()}
    on_the_way = max(stages["sync"], stages["followers"], stages["leader"])
    whole = stages["queue"] + on_the_way + stages["apply"] + stages["wake"]
    return abs(whole - write["seconds"]) < 0.02


def test_the_disk_of_the_leader(managers: Managers, caplog: pytest.LogCaptureFixture) -> None:
    leader = managers.leader
    managers.disks[leader.config.node_id].delay_next_sync(DISK_SECONDS)
    leader.create_node(wr.Node(id="n-leader-disk", role="worker"))
    write = found(leader, lambda each: each["longest"] == "sync")
    leader._parts.writes.slow.say()
    assert write["stages"]["sync"] >= DISK_SECONDS - 0.02
    assert (write["op"], write["kind"], write["leader"]) == ("put", "node", leader.config.node_id)
    assert write["why"] == "the disk of the leader was slow"
    assert is_sum(write)
    assert all(seconds is not None for name, seconds in write["stages"].items() if name != "leader")
    keys = lines(caplog)[-1]
    assert (keys["longest"], keys["node"], keys["kind"]) == ("sync", leader.config.node_id, "node")
    assert float(keys["sync_seconds"]) >= DISK_SECONDS - 0.02


def test_the_disks_of_the_followers(managers: Managers) -> None:
    for follower in managers.followers:
        managers.disks[follower.config.node_id].delay_next_sync(DISK_SECONDS)
    managers.leader.create_node(wr.Node(id="n-follower-disks", role="worker"))
    write = found(managers.leader, lambda each: each["longest"] == "followers")
    assert write["follower"] in {store.config.node_id for store in managers.followers}
    assert write["follower_sync_seconds"] >= DISK_SECONDS - 0.1
    assert write["why"] == f"the disk of {write['follower']} was slow"
    assert is_sum(write)


def test_one_slow_follower_of_two_slows_no_write(managers: Managers) -> None:
    """Its reply is not needed, so it is not blamed: the decisive reply is that of the other one."""
    slow, quick = managers.followers
    managers.disks[slow.config.node_id].delay_next_sync(DISK_SECONDS)
    managers.leader.create_node(wr.Node(id="n-one-slow", role="worker"))
    slowest = managers.leader._parts.writes.slow.to_json()["slowest"]
    newest = max(slowest, key=lambda each: each["index"] or 0)
    assert newest["follower"] in (quick.config.node_id, slow.config.node_id)


def test_a_write_of_another_manager(managers: Managers) -> None:
    """Its manager tells the time of the leader, and the leader has the stages, under the same index."""
    follower, leader = managers.followers[0], managers.leader
    managers.disks[leader.config.node_id].delay_next_sync(DISK_SECONDS)
    follower.create_node(wr.Node(id="n-forwarded", role="worker"))
    write = found(follower, lambda each: each["longest"] == "leader")
    assert write["stages"]["leader"] >= DISK_SECONDS - 0.1
    assert write["leader"] == leader.config.node_id
    assert f"warren-raft explain on {leader.config.node_id}" in write["why"]
    assert is_sum(write)
    entry = found(leader, of_index(write["index"]))
    assert (entry["op"], entry["from"], entry["longest"]) == ("entry", [follower.config.node_id], "sync")
    assert entry["stages"]["sync"] >= DISK_SECONDS - 0.1


def test_a_write_that_was_not_done_in_time(managers: Managers) -> None:
    leader = managers.leader
    for store in managers.stores.values():
        managers.disks[store.config.node_id].delay_next_sync(4 * SLOW_SECONDS)
    with pytest.raises(wr.Unavailable):
        leader.create_node(wr.Node(id="n-late", role="worker"), timeout=2 * SLOW_SECONDS)
    write = found(leader, lambda each: each["error"] == "Unavailable")
    assert write["longest"] == "sync"
    assert write["index"] is None
    leader.barrier(timeout=30)


def test_writes_that_end_together_are_one_entry_of_the_list(managers: Managers) -> None:
    leader = managers.leader
    managers.disks[leader.config.node_id].delay_next_sync(DISK_SECONDS)
    futures = []
    for n in range(20):
        with leader.batch(wait=False) as batch:
            batch.create_node(wr.Node(id=f"n-together-{n}", role="worker"))
        futures.append(batch.future)
    for future in futures:
        future.result(30)
    write = found(leader, lambda each: each["writes"] > 1)
    assert 1 < write["writes"] <= 20
    assert write["stages"]["wake"] is None


def test_the_admin_socket_hands_them_out(managers: Managers) -> None:
    leader = managers.leader
    answer = AdminClient(leader.config.data_dir).explain()
    assert answer == leader._parts.writes.slow.to_json()
    assert answer["node_id"] == leader.config.node_id
    assert answer["slow_write_seconds"] == SLOW_SECONDS
    assert 0 < len(answer["slowest"]) <= SLOWEST_MAX
    assert set(answer["slow"][0]["stages"]) == set(STAGES)


# Without managers ----------------------------------------------------------------------------------------------------


@dataclass
class Leader:
    stages: Stages = field(default_factory=Stages)
    leader: str | None = "m1"
    voters: frozenset[str] = frozenset({"m1"})


def ended(begun: float, now: float) -> Write:
    write = Write(1, 1, b"x", now + 10, lambda _: None, begun=begun)
    write.index = 5
    write.ended_at = now
    return write


def test_a_caller_that_ran_late_makes_its_write_slow() -> None:
    slow = SlowWrites("m1")
    slow.begin(Leader(), 0.5)
    now = time.monotonic()
    for begun in (now - 2.001, now - 2.0):  # each was quick, and then its caller was away for two seconds
        slow.woken(ended(begun, now - 1.999))
    (write,) = slow.to_json()["slow"]
    assert (write["longest"], write["writes"]) == ("wake", 2)
    assert 1.9 < write["stages"]["wake"] < 10
    assert slow.counts["wake"] == 2
    slow.woken(ended(now - 0.01, now))
    assert len(slow.to_json()["slow"]) == 1


def test_a_slow_write_that_ended_with_a_slower_one_is_counted_there() -> None:
    """(First seen: fourteen writes of one entry were one line with their stages, and thirteen lines "its caller ran
    late".)"""
    slow = SlowWrites("m1")
    slow.begin(Leader(), 0.5)
    now = time.monotonic()
    both = [ended(now - 0.8, now - 0.001), ended(now - 0.7, now - 0.001)]
    slow.note(both, both[0], now - 0.001)
    for write in both:
        slow.woken(write)
    (shown,) = slow.to_json()["slow"]
    assert shown["writes"] == 2


def test_a_kept_write_becomes_slow_when_its_caller_runs_late() -> None:
    slow, now = SlowWrites("m1"), time.monotonic()
    slow.begin(Leader(), 0.5)
    write = ended(now - 0.9, now - 0.8)
    slow.note([write], write, now - 0.8)
    assert slow.to_json()["slow"] == []
    slow.woken(write)
    (shown,) = slow.to_json()["slow"]
    assert shown["longest"] == "wake"


def test_memory_is_bounded_and_the_slowest_stay() -> None:
    slow, start = SlowWrites("m1"), time.monotonic()
    slow.begin(Leader(), 1000.0)
    for n in range(1, 200):
        now = start + n
        write = ended(now - n / 100, now)
        if n / 100 >= slow.floor_seconds or now >= slow.sample_at:
            slow.note([write], write, now)
    kept = slow.to_json()["slowest"]
    assert len(kept) == SLOWEST_MAX
    assert max(each["seconds"] for each in kept) == pytest.approx(1.99)
    slow.slow_seconds = 0.1
    for n in range(200, 500):
        write = ended(start + n - 1.0, start + n)
        slow.note([write], write, start + n)
    assert len(slow.to_json()["slow"]) == SLOW_MAX


def test_the_slowest_writes_are_those_of_the_last_minutes() -> None:
    slow, now = SlowWrites("m1"), time.monotonic()
    slow.begin(Leader(), 1000.0)
    for seconds_ago in (2 * WINDOWS * WINDOW_SECONDS, 1.0):
        write = ended(now - seconds_ago - 0.1, now - seconds_ago)
        slow.note([write], write, now - seconds_ago)
    assert len(slow.to_json()["slowest"]) == 1


def test_a_quick_write_is_not_looked_at_closely() -> None:
    """In one minute, writes that are quicker than the slowest ones so far are left out, but for the histograms."""
    slow = SlowWrites("m1")
    slow.begin(Leader(), 0.5)
    for n in range(SLOWEST_MAX + 1):
        write = ended(10.0, 10.01 + n / 1000)
        slow.note([write], write, 10.01 + n / 1000)
    assert slow.floor_seconds == pytest.approx(0.011)
    assert slow.sample_at > 10.02


def test_many_slow_writes_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowWrites("m1")
    slow.begin(Leader(), 0.5)
    for n in range(50):
        write = ended(0.0, 1.0 + n)
        slow.note([write], write, 1.0 + n)
    slow.say()
    slow.say()
    said = lines(caplog)
    assert len(said) == 5
    assert (said[-1]["more"], said[-1]["took_seconds"]) == ("45", "50")


def test_before_the_start_nothing_is_kept() -> None:
    slow = SlowWrites("m1")
    assert slow.floor_seconds == slow.sample_at == float("inf")
    slow.say()
    assert slow.to_json()["slow"] == slow.to_json()["slowest"] == []


def test_reading_while_writes_end() -> None:
    slow = SlowWrites("m1")
    slow.begin(Leader(), 0.001)
    stop = threading.Event()

    def write_on() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            write = ended(n - 0.5, n)
            slow.note([write], write, n)

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        for _ in range(50):
            slow.to_json()
    finally:
        stop.set()
        thread.join()
