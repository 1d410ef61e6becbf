"""The promise: a full disk costs creates and updates while it is full. No restart and no command is needed afterwards,
and nothing is lost.

Real file systems, a small one for each manager, with a small reserve.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import PROJECT, Cluster, ManagerError
from tests.cluster.small_disks import MIB, SmallDisk, small_disk

RESERVE = 4 * MIB
Make = Callable[..., tuple[Cluster, dict[str, SmallDisk]]]


@pytest.fixture
def on_small_disks(tmp_path: Path) -> Iterator[Make]:
    """Makes managers; all or some of them have a file system of their own."""
    with contextlib.ExitStack() as stack:

        def make(
            ids: tuple[str, ...] = ("m1", "m2", "m3"),
            size_bytes: int = 64 * MIB,
            small: tuple[str, ...] | None = None,
            **config: Any,
        ) -> tuple[Cluster, dict[str, SmallDisk]]:
            mounted = {
                id_: stack.enter_context(small_disk(tmp_path / id_, size_bytes))
                for id_ in (ids if small is None else small)
            }
            settings = {"disk_reserve_bytes": RESERVE, **config}
            cluster = stack.enter_context(Cluster(ids, start=False, **settings))
            for id_, disk in mounted.items():
                cluster.data_dir(id_).symlink_to(disk.path)
            cluster.start(*ids)
            return cluster, mounted

        yield make


def is_refused(cluster: Cluster, id_: str, key: str = "refused") -> bool:
    """Whether a create is answered with StorageFull, now."""
    try:
        cluster.call(id_, "put", key=key, value="x", timeout=5.0)
    except ManagerError as error:
        if error.kind != "StorageFull":
            raise
        return True
    return False


def wait_full(cluster: Cluster, *ids: str, full: bool = True) -> None:
    def agree() -> bool:
        return all(status["full"] is full for status in cluster.statuses(*ids).values())

    cluster.wait(agree, f"{ids or 'all'} to be {'full' if full else 'full no more'}")


def alarms(cluster: Cluster, id_: str) -> str:
    return "\n".join(alarm["text"] for alarm in cluster.status(id_)["alarms"])


def test_one_manager_whose_disk_fills_refuses_creates_and_goes_on_by_itself(on_small_disks: Make) -> None:
    """The command line also reports it: by exit code 7, and by one line that names the disk's manager."""
    cluster, disks = on_small_disks(("m1",), admin=True)
    for number in range(50):
        cluster.call("m1", "put", key=f"c{number}", value="x" * 1000)
    disks["m1"].fill(RESERVE - MIB)
    wait_full(cluster, "m1")
    directory = str(cluster.data_dir("m1"))
    assert f"the disk of {directory} is low on space" in alarms(cluster, "m1")
    assert is_refused(cluster, "m1")
    command = [sys.executable, "-m", "cli", "put", "node", "-f", "-", "--data-dir", directory]
    ran = subprocess.run(command, cwd=PROJECT, input=b'{"id": "n1"}', capture_output=True, check=False)
    assert ran.returncode == 7, ran
    assert ran.stderr.count(b"\n") == 1, ran.stderr
    assert directory.encode() in ran.stderr
    for number in range(25):
        cluster.call("m1", "delete", key=f"c{number}")
    assert cluster.call("m1", "barrier") > 0
    assert cluster.call("m1", "get", key="c30")[0] == "x" * 1000
    disks["m1"].free()
    wait_full(cluster, "m1", full=False)
    assert alarms(cluster, "m1") == ""
    assert not is_refused(cluster, "m1", "after")
    held = {key for key, *_ in cluster.call("m1", "dump")["containers"]}
    assert held == {*(f"c{number}" for number in range(25, 50)), "after"}


def test_a_disk_that_is_full_to_the_last_byte_loses_nothing(on_small_disks: Make) -> None:
    """There is no reserve, so that the log and the state meet the full disk themselves."""
    cluster, disks = on_small_disks(("m1",), disk_reserve_bytes=0)
    cluster.call("m1", "put", key="before", value="x")
    disks["m1"].fill()
    done, number = [], 0

    def refused() -> bool:
        nonlocal number
        number += 1
        try:
            cluster.call("m1", "put", key=f"c{number}", value="x" * 200_000, timeout=2.0)
        except ManagerError as error:
            if error.kind not in ("StorageFull", "Unavailable"):
                raise
            return error.kind == "StorageFull"
        done.append(f"c{number}")
        return False

    cluster.wait(refused, "the disk to be full to the last byte")
    assert "no space left for the" in alarms(cluster, "m1")
    assert cluster.call("m1", "get", key="before")[0] == "x"
    disks["m1"].free()
    cluster.wait(lambda: not cluster.status("m1")["full"], "room")
    cluster.wait(lambda: alarms(cluster, "m1") == "", "the alarm to end")
    assert not is_refused(cluster, "m1", "after")
    held = {key for key, *_ in cluster.call("m1", "dump")["containers"]}
    assert {"before", "after", *done} <= held
    cluster.kill("m1")
    cluster.start("m1")
    assert held <= {key for key, *_ in cluster.call("m1", "dump")["containers"]}


def test_one_full_disk_of_three_costs_nothing_and_two_cost_creates(on_small_disks: Make) -> None:
    cluster, disks = on_small_disks()
    leader, (one, other) = cluster.wait_leader(), cluster.followers()
    cluster.start_load(leader, other)
    cluster.wait_acknowledged(100)
    disks[one].fill()
    cluster.wait(lambda: "low on space" in alarms(cluster, one), "the alarm")
    cluster.wait_acknowledged(200, leader, other)
    cluster.stop_load()
    assert not is_refused(cluster, leader, "with one full disk")
    disks[leader].fill(RESERVE - MIB)
    wait_full(cluster)
    for id_ in cluster.alive:
        assert is_refused(cluster, id_), id_
    cluster.call(other, "delete", key="with one full disk")
    cluster.call(leader, "barrier")
    disks[one].free()
    wait_full(cluster, full=False)
    for id_ in cluster.alive:
        assert not is_refused(cluster, id_, f"through {id_}")
    disks[leader].free()
    cluster.wait(lambda: not any(alarms(cluster, id_) for id_ in cluster.alive), "the end of all alarms")
    cluster.wait_converged()


def test_a_leader_whose_disk_is_full_to_the_last_byte_is_no_end_to_writes(on_small_disks: Make) -> None:
    cluster, disks = on_small_disks(disk_reserve_bytes=0)
    leader, followers = cluster.wait_leader(), cluster.followers()
    disks[leader].fill()
    cluster.start_load(*followers)
    cluster.wait_acknowledged(300, *followers)
    cluster.stop_load()
    disks[leader].free()
    cluster.check()


def test_a_snapshot_waits_for_room_and_is_taken_then(on_small_disks: Make) -> None:
    cluster, disks = on_small_disks(("m1",), snapshot_after_bytes=2 * MIB, history_changes=1)
    keys = [f"c{number}" for number in range(8)]
    for key in keys:
        cluster.call("m1", "put", key=key, value="x" * 200_000)
    # There is space for further entries in the log, but not for a snapshot: the state keeps its size.
    disks["m1"].fill(RESERVE + MIB)

    def write_more() -> bool:
        for _ in range(8):
            cluster.call("m1", "put", key=keys[0], value="y" * 20_000)
        return "no snapshot could be taken" in alarms(cluster, "m1")

    cluster.wait(write_more, "a snapshot that had no space left")
    assert str(cluster.data_dir("m1")) in alarms(cluster, "m1")
    disks["m1"].free()
    cluster.wait(lambda: cluster.status("m1")["snapshot"], "the snapshot")
    cluster.wait(lambda: alarms(cluster, "m1") == "", "the end of the alarm")
    assert {key for key, *_ in cluster.call("m1", "dump")["containers"]} == set(keys)


@pytest.mark.parametrize("reserve", [RESERVE, 0])
def test_a_snapshot_from_the_leader_waits_for_room_and_is_installed_then(on_small_disks: Make, reserve: int) -> None:
    """Without a reserve the fetch meets the full disk in the middle."""
    cluster, disks = on_small_disks(
        small=("m3",), snapshot_after_bytes=2 * MIB, disk_reserve_bytes=reserve, history_changes=1
    )
    cluster.stop("m3")
    leader = cluster.wait_leader()

    def cut() -> bool:
        for number in range(10):
            cluster.call(leader, "put", key=f"c{number}", value="x" * 200_000)
        status = cluster.status(leader)
        return bool(status["log_entries"] < status["applied_index"] - 20)

    cluster.wait(cut, "the leader's log to be cut")
    for prepared in (cluster.data_dir("m3") / "log").glob("*.tmp"):
        prepared.unlink()  # a start would remove it, and have that much more space
    disks["m3"].fill(reserve + 3 * MIB)
    cluster.start("m3", ready=False)
    cluster.wait(lambda: "snapshot" in alarms(cluster, "m3"), "the alarm")
    assert cluster.status("m3")["applied_index"] < cluster.status(leader)["applied_index"]
    cluster.call(leader, "put", key="meanwhile", value="x")
    disks["m3"].free()
    cluster.wait_converged()
    cluster.wait(lambda: alarms(cluster, "m3") == "", "the end of the alarm")
    state = cluster.data_dir("m3") / "state"
    cluster.wait(lambda: len(list(state.glob("*.mdb"))) == 1, "generations that nobody uses to be removed")
