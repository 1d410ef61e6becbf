"""Reads of a store compared with LMDB alone, in the same run.

    python benchmarks/reads.py [--directory DIR] [--json]

The store is a LocalStore with 10,000 containers of 100 services on 100 nodes. Each number is the median of several
rounds, so that a busy machine slows all numbers alike. LMDB alone (a transaction and a get of the same record, without
decoding) is the limit of the machine. The exit code is 1 if a read is above its mark.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common import options, run

from warren_raft import (
    Container,
    ContainerState,
    HealthCheck,
    HealthStatus,
    LocalStore,
    PortMapping,
    ReadOnlyStore,
    ResourceRequirements,
    RestartPolicy,
    Service,
    VolumeMount,
)
from warren_raft.store.tables import CONTAINER, CONTAINER_BY_SERVICE

CONTAINERS = 10_000
SERVICES = 100
NODES = 100
ROUNDS = 15
ROUND_SECONDS = 0.05
NOON = datetime(2025, 10, 9, 12, 0, 0, 123456, tzinfo=UTC)

ALONE = "LMDB alone: "
COMPARED: dict[str, tuple[str, float | None]] = {
    "get by id": ("get", 1.8),
    "get by id, not in the cache": ("get", None),
    "100 containers of a service": ("100 by an index", None),
    "list of 10,000, each looked up in the cache": ("list of 10,000", None),
    "list of 10,000, none in the cache": ("list of 10,000", None),
}
"""The read of LMDB alone with which a read is compared, and the mark for the ratio, if there is one."""
MARKS_MICROSECONDS = {
    "list of 10,000 containers": 500.0,
    "list of 10,000, 1 % changed": 2_000.0,
    "list of 10,000, none in the cache": 100_000.0,
}
"""The marks of the reads that have one of their own."""


def container(number: int, message: str = "200 OK") -> Container:
    """A container as an orchestrator writes it: with every structure, about 450 bytes in the file.

    Environment, ports and policies are those of its service; identifiers, names of the host and times are its own.
    """
    service = number % SERVICES
    created = NOON + timedelta(seconds=number)
    return Container(
        id=f"container-{number:012x}",
        service_id=f"service-{service:012x}",
        service_name=f"service-{service}",
        node_id=f"node-{number % NODES:012x}",
        container_id=f"{number:064x}",
        desired_state=ContainerState.RUNNING,
        actual_state=ContainerState.RUNNING,
        image="registry.example/web/frontend:1.25.3",
        env=("LOG_LEVEL=info", f"PORT={8000 + service}", "REGION=eu-west-1"),
        ports=(
            PortMapping(
                name="http",
                container_port=8000 + service,
                host_port=30_000 + service,
                protocol="tcp",
                publish_mode="ingress",
            ),
        ),
        mounts=(VolumeMount(source=f"data-{service}", target="/var/lib/data"),),
        secrets=("database-password",),
        health_check=HealthCheck(
            type="http", endpoint="/health", interval=timedelta(seconds=10), timeout=timedelta(seconds=2), retries=3
        ),
        health_status=HealthStatus(
            healthy=True, message=message, checked_at=created + timedelta(days=1), consecutive_successes=17
        ),
        restart_policy=RestartPolicy(condition="on-failure", max_attempts=5, delay=timedelta(seconds=5)),
        resources=ResourceRequirements(cpu_limit=0.5, memory_limit=512 << 20),
        stop_timeout=10,
        created_at=created,
        started_at=created + timedelta(seconds=3),
    )


def fill(store: LocalStore) -> None:
    for start in range(0, CONTAINERS, 1000):
        with store.batch() as batch:
            for number in range(start, start + 1000):
                batch.create_container(container(number))
    with store.batch() as batch:
        for service in range(SERVICES):
            batch.create_service(Service(id=f"service-{service:012x}", name=f"service-{service}"))


def median_microseconds(call: Callable[[], object]) -> float:
    """The time of one call: the median of rounds of as many calls as fit in ROUND_SECONDS."""
    begin = time.perf_counter()
    call()
    count = max(1, int(ROUND_SECONDS / max(time.perf_counter() - begin, 1e-6)))
    return 1e6 * statistics.median(seconds_of(call, count) / count for _ in range(ROUNDS))


def seconds_of(call: Callable[[], object], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - begin


def once_microseconds(call: Callable[[], object], prepare: Callable[[], object]) -> float:
    """The same for a call that needs a preparation each time. The preparation is not timed."""

    def timed() -> float:
        prepare()
        return seconds_of(call, 1)

    return 1e6 * statistics.median(timed() for _ in range(ROUNDS))


def measure(store: LocalStore) -> dict[str, float]:
    """The microseconds of each read."""
    database = store._attached()
    table, cached = database.tables[CONTAINER.number], database.decoded.tables[CONTAINER.number]
    handle, index = table.handle, database.index_handles[CONTAINER_BY_SERVICE.name]
    id_, service_id, name = container(5_000).id, container(5_000).service_id, container(5_000).service_name
    key, service_key = id_.encode(), service_id.encode()
    turns = itertools.count()

    def raw_get() -> object:
        with database.begin(handle) as txn:
            return txn.get(key)

    def raw_list() -> object:
        with database.begin() as txn:
            return list(txn.cursor(handle))

    def raw_by_service() -> object:
        with database.begin() as txn:
            cursor = txn.cursor(index)
            cursor.set_key(service_key)
            return [txn.get(found, None, handle) for found in cursor.iternext_dup()]

    def forget_list() -> None:
        table.listed = None

    def forget_all() -> None:
        table.listed = None
        cached.clear()

    def uncached_get() -> object:
        database.decoded.forget(CONTAINER.number, key)
        return store.get_container(id_)

    def change_some() -> None:
        turn = next(turns)
        with store.batch() as batch:
            for number in range(turn % 97, CONTAINERS, 100):
                batch.update_container(container(number, f"200 OK {turn}"))

    store.list_containers()
    found = {
        ALONE + "get": median_microseconds(raw_get),
        ALONE + "list of 10,000": median_microseconds(raw_list),
        ALONE + "100 by an index": median_microseconds(raw_by_service),
        "get by id": median_microseconds(lambda: store.get_container(id_)),
        "get by id, not in the cache": median_microseconds(uncached_get),
        "get by name": median_microseconds(lambda: store.get_service_by_name(name)),
        "100 containers of a service": median_microseconds(lambda: store.list_containers_by_service(service_id)),
        "list of 10,000 containers": median_microseconds(store.list_containers),
        "list of 10,000, 1 % changed": once_microseconds(store.list_containers, change_some),
        "list of 10,000, each looked up in the cache": once_microseconds(store.list_containers, forget_list),
        "list of 10,000, none in the cache": once_microseconds(store.list_containers, forget_all),
    }
    with store.read() as view:
        found["get by id in a view"] = median_microseconds(lambda: view.get_container(id_))
    return found


def measure_all(directory: Path) -> dict[str, float]:
    with LocalStore(directory) as store:
        fill(store)
        gc.collect()
        found = measure(store)
    with ReadOnlyStore(directory) as reader:
        id_ = container(5_000).id
        found["get by id of a ReadOnlyStore"] = median_microseconds(lambda: reader.get_container(id_))
    return found


def ratios(found: dict[str, float]) -> dict[str, float]:
    """The time of each read that has a counterpart in LMDB alone, divided by the time of that."""
    return {label: found[label] / found[ALONE + other] for label, (other, _) in COMPARED.items()}


def missed(found: dict[str, float]) -> list[str]:
    """The labels of the reads that are above a mark."""
    by_ratio = ((label, ratio, COMPARED[label][1]) for label, ratio in ratios(found).items())
    own = ((label, found[label], mark) for label, mark in MARKS_MICROSECONDS.items())
    return [label for label, value, mark in (*by_ratio, *own) if mark is not None and value > mark]


def table(found: dict[str, float]) -> str:
    lines = []
    for label, microseconds in found.items():
        other, mark = COMPARED.get(label, ("", None))
        notes = [f"{ratios(found)[label]:.2f} times LMDB alone" + (f" (mark {mark})" if mark else "")] if other else []
        if label in MARKS_MICROSECONDS:
            notes.append(f"(mark {MARKS_MICROSECONDS[label]:,.0f} µs)")
        if label in missed(found):
            notes.append("MISSED")
        lines.append(f"{label:44} {microseconds:12,.2f} µs  {', '.join(notes)}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    run(
        options(__doc__),
        lambda directory, _arguments: measure_all(directory),
        table,
        is_missed=lambda found: bool(missed(found)),
    )
