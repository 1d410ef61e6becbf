"""The demonstration: the leader of three is killed under load, and nothing is lost; then a snapshot is restored.

Runs on free ports and in a directory of its own, so that it disturbs no other cluster.
Invariant: it gives exit code 0 only if this run has checked every line that it prints as shown.
"""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click
from local_cluster import (
    KILL_SECONDS,
    SAMPLE_STATE,
    START_SECONDS,
    ClusterFailed,
    LocalCluster,
    Manager,
    run_cli,
    wait_until,
)

from warren_raft.admin.client import NotRunning
from warren_raft.errors import Unavailable
from warren_raft.local.read_only import ReadOnlyStore
from warren_raft.migrate.records import same_record
from warren_raft.model.json_form import to_json

MANAGERS: Final = ("m1", "m2", "m3")
WRITERS_PER_MANAGER: Final = 2
WRITES_BEFORE: Final = 300  # acknowledged before the leader is killed
WRITES_AFTER: Final = 300  # and after
WRITE_TIMEOUT_SECONDS: Final = 10.0
LOAD_SECONDS: Final = 120.0  # the longest time for these writes, on a busy machine
SERVICE: Final = "demo-service"


@dataclass
class Load:
    """The answers that the writers got. `acknowledged` has only ids of acknowledged writes."""

    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    acknowledged: dict[str, int] = field(default_factory=dict)  # id -> revision
    times: list[float] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.acknowledged)


def run() -> int:
    """Runs the demonstration. Returns its exit code."""
    directory = Path(tempfile.mkdtemp(prefix="warren-raft-demo-"))
    cluster = LocalCluster.create(directory / "cluster", dict(zip(MANAGERS, _free_addresses(), strict=True)))
    try:
        _demonstrate(cluster)
    except BaseException:
        click.echo(f"\nFAILED. The managers' data and logs are left in {directory}", err=True)
        raise
    finally:
        cluster.stop()
    shutil.rmtree(directory)
    return 0


def _demonstrate(cluster: LocalCluster) -> None:
    _step(f"Starting three managers under {cluster.directory}")
    cluster.start()
    cluster.load(SAMPLE_STATE)
    cluster.print_status()

    leader = _leader(cluster)
    with _writers(cluster) as load:
        _step(f"{len(MANAGERS) * WRITERS_PER_MANAGER} writers, {WRITERS_PER_MANAGER} on each manager")
        _wait_for_writes(load, WRITES_BEFORE)
        before, killed_at = len(load), time.monotonic()
        leader.end(signal.SIGKILL, KILL_SECONDS)
        _step(f"Killed the leader, {leader.id}, with SIGKILL after {before} acknowledged writes")
        _wait_for_writes(load, len(load) + WRITES_AFTER)
    pause = _longest_pause(load, killed_at)
    click.echo(f"{len(load) - before} more writes were acknowledged; the longest pause was {pause:.1f} s")
    new_leader = _leader(cluster)

    _step(f"Starting {leader.id} again")
    cluster.start([leader])
    index, digest = _same_digest(cluster)
    cluster.print_status()

    _step("Comparing the acknowledged writes with the records of each manager")
    for manager in cluster.managers.values():
        _check_acknowledged(manager, load.acknowledged)
    exported = _check_exports(cluster)
    new_digest = _restore_and_compare(cluster)

    click.echo("\nShown in this run:")
    click.echo(f"  the leader {leader.id} was killed under load; {new_leader.id} took over")
    click.echo(f"  all {len(load)} acknowledged writes are on all three managers, {leader.id} included")
    click.echo(f"  the sample state is there too; {exported} records are equal on all three managers")
    click.echo(f"  three equal digests at applied index {index}: {digest}")
    click.echo(f"  a second cluster, restored from a snapshot of the first, holds the same {exported} records")
    click.echo(f"  its three managers have equal digests too: {new_digest}")


# -------------------------------------------------------------------------------------------- snapshot


def _restore_and_compare(cluster: LocalCluster) -> str:
    """Checks that a second cluster, restored from a snapshot, holds the same records. Returns its managers' digest."""
    file = cluster.directory.parent / "demo.snapshot"
    source = cluster.managers[MANAGERS[0]]
    _step(f"Saving a snapshot of {source.id} and restoring it into a second cluster")
    click.echo(run_cli("snapshot", "save", str(file), f"--data-dir={source.data_dir}").strip())
    members = dict(zip(MANAGERS, _free_addresses(), strict=True))
    restored = LocalCluster.create(cluster.directory.parent / "restored", members)
    try:
        for manager in restored.managers.values():
            options = [f"--member={node_id}={address}" for node_id, address in members.items()]
            options += [f"--data-dir={manager.data_dir}", f"--node-id={manager.id}"]
            run_cli("snapshot", "restore", str(file), *options)
        restored.start()
        restored.print_status()
        _, digest = _same_digest(restored)
        _check_same_records(cluster, restored)
    finally:
        restored.stop()
    return digest


def _check_same_records(cluster: LocalCluster, restored: LocalCluster) -> None:
    """Compares exports. Digests cannot be compared: they include the members and the cluster's id."""
    exports = [
        run_cli("export", "-", f"--data-dir={m.data_dir}")
        for m in (cluster.managers[MANAGERS[0]], *restored.managers.values())
    ]
    if len(set(exports)) != 1:
        raise ClusterFailed("the records of the restored cluster differ from those of the first")
    click.echo(f"{len(exports[0].splitlines())} records on each of the restored managers, the same as before")


# --------------------------------------------------------------------------------------------- writers


@contextmanager
def _writers(cluster: LocalCluster) -> Iterator[Load]:
    """Runs writers on every manager until the block ends."""
    load = Load()
    managers = list(cluster.managers.values())
    threads = [
        threading.Thread(target=_write, args=(load, managers[n % len(managers) :] + managers, f"demo-{n}"))
        for n in range(len(managers) * WRITERS_PER_MANAGER)
    ]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(load.stop.set)  # called first
        yield load
    if load.failed:
        raise ClusterFailed(f"a writer got this error: {load.failed[0]}")


def _write(load: Load, managers: Sequence[Manager], prefix: str) -> None:
    """Writes one container after the other, through the first manager that answers."""
    number = 0
    try:
        while not load.stop.is_set():
            _write_one(load, managers, f"{prefix}-{number}")
            number += 1
    except BaseException as error:
        load.failed.append(error)
        raise


def _write_one(load: Load, managers: Sequence[Manager], container_id: str) -> None:
    """Writes one container. Tries the managers in turn until one acknowledges it."""
    entity = {"id": container_id, "service_id": SERVICE, "image": f"image-of-{container_id}", "exit_code": 0}
    for manager in managers:
        try:
            revision = manager.client.put("container", entity, timeout=WRITE_TIMEOUT_SECONDS)
        except (NotRunning, Unavailable):
            continue  # killed, or without a leader. A second put of the same entity changes nothing
        with load.lock:
            load.acknowledged[container_id] = revision
            load.times.append(time.monotonic())
        return


def _wait_for_writes(load: Load, count: int) -> None:
    def enough() -> bool:
        if load.failed:
            raise ClusterFailed(f"a writer got this error: {load.failed[0]}")
        return len(load) >= count

    wait_until(enough, LOAD_SECONDS, f"{count} acknowledged writes (there are {len(load)})")


def _longest_pause(load: Load, since: float) -> float:
    """The longest time after `since` in which nothing was acknowledged, in seconds."""
    times = [since, *sorted(t for t in load.times if t > since)]
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


# ---------------------------------------------------------------------------------------------- checks


def _leader(cluster: LocalCluster) -> Manager:
    """The manager that reports that it leads. Raises ClusterFailed if there is none within the deadline."""

    def leading() -> list[Manager]:
        return [m for m in cluster.managers.values() if (m.status() or {}).get("role") == "leader"]

    wait_until(lambda: len(leading()) == 1, START_SECONDS, "a leader")
    return leading()[0]


def _same_digest(cluster: LocalCluster) -> tuple[int, str]:
    """Waits until all managers are at one applied index; their digests must then be equal."""
    statuses: list[Mapping[str, Any]] = []

    def level() -> bool:
        statuses[:] = [m.status() or {"applied_index": None} for m in cluster.managers.values()]
        return len({s["applied_index"] for s in statuses}) == 1 and statuses[0]["applied_index"] is not None

    wait_until(level, START_SECONDS, "the managers to be at one applied index")
    digests = {str(status["digest"]) for status in statuses}
    if len(digests) != 1:
        raise ClusterFailed(f"different digests at applied index {statuses[0]['applied_index']}: {digests}")
    return int(statuses[0]["applied_index"]), digests.pop()


def _check_acknowledged(manager: Manager, acknowledged: Mapping[str, int]) -> None:
    """Checks that every acknowledged write is in the manager's own database, with its content."""
    with ReadOnlyStore(manager.data_dir) as store:
        held = {container.id: container for container in store.list_containers_by_service(SERVICE)}
    missing = [name for name in acknowledged if name not in held]
    wrong = [name for name, c in held.items() if to_json(c)["image"] != f"image-of-{name}"]
    if missing or wrong:
        raise ClusterFailed(f"{manager.id}: lost {sorted(missing)[:5]} ({len(missing)}), altered {sorted(wrong)[:5]}")
    click.echo(f"{manager.id}: {len(acknowledged)} acknowledged, {len(held)} held, 0 missing")


def _check_exports(cluster: LocalCluster) -> int:
    """Checks that the managers' exports are equal and have the sample state. Returns the number of records."""
    exports = {m.id: run_cli("export", "-", f"--data-dir={m.data_dir}") for m in cluster.managers.values()}
    if len(set(exports.values())) != 1:
        raise ClusterFailed("the managers' exports differ")
    lines = exports[MANAGERS[0]].splitlines()
    held = {_key(line): line for line in lines}
    for line in SAMPLE_STATE.read_text(encoding="utf-8").splitlines():
        if not same_record(line, held.get(_key(line), "{}")):
            raise ClusterFailed(f"the record {_key(line)} of the sample state has changed")
    return len(lines)


def _key(line: str) -> tuple[str, str]:
    import json

    record = json.loads(line)
    return record["bucket"], record["key"]


def _free_addresses() -> list[str]:
    """Addresses on loopback with ports that were free a moment ago."""
    with ExitStack() as stack:
        links = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in MANAGERS]
        return [f"127.0.0.1:{link.getsockname()[1]}" for link in links]


def _step(text: str) -> None:
    click.echo(f"\n== {text}")
