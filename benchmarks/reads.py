"""Reads of a store compared with LMDB alone, in the same run: `python benchmarks/reads.py`.

The store is a LocalStore with 10,000 containers of 100 services on 100 nodes. Each number is the median of several
rounds, so that a busy machine slows all numbers alike. LMDB alone (a transaction and a get of the same record, without
decoding) is the limit of the machine. The exit code is 1 if a read is above its mark.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

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


def container(number: int) -> Container:
    """A container as an orchestrator writes it: with every structure, about 450 bytes in the file."""
    service = number % SERVICES
    return Container(
        id=f"container-{number:012x}",
        service_id=f"service-{service:012x}",
        service_name=f"service-{service}",
        node_id=f"node-{number % NODES:012x}",
        container_id=f"{number:064x}",
        desired_state=ContainerState.RUNNING,
        actual_state=ContainerState.RUNNING,
        image="registry.example/web/frontend:1.25.3",
        env=("LOG_LEVEL=info", "PORT=8080", "REGION=eu-west-1"),
        ports=(PortMapping(name="http", container_port=8080, host_port=30080, protocol="tcp", publish_mode="ingress"),),
        mounts=(VolumeMount(source="data", target="/var/lib/data"),),
        secrets=("database-password",),
        health_check=HealthCheck(
            type="http", endpoint="/health", interval=timedelta(seconds=10), timeout=timedelta(seconds=2), retries=3
        ),
        health_status=HealthStatus(healthy=True, message="200 OK", checked_at=NOON, consecutive_successes=17),
        restart_policy=RestartPolicy(condition="on-failure", max_attempts=5, delay=timedelta(seconds=5)),
        resources=ResourceRequirements(cpu_limit=0.5, memory_limit=512 << 20),
        stop_timeout=10,
        created_at=NOON,
        started_at=NOON,
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


def measure(store: LocalStore) -> list[tuple[str, float, float | None]]:
    """(label, microseconds, mark in microseconds or None) for each read."""
    database = store._attached()
    handle, index = database.tables[CONTAINER.number].handle, database.index_handles[CONTAINER_BY_SERVICE.name]
    id_, service_id, name = container(5_000).id, container(5_000).service_id, container(5_000).service_name
    key, service_key = id_.encode(), service_id.encode()
    table = database.decoded.tables[CONTAINER.number]

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

    def forget() -> None:
        table.clear()

    def uncached_get() -> object:
        database.decoded.forget(CONTAINER.number, key)
        return store.get_container(id_)

    store.list_containers()
    found: list[tuple[str, float, float | None]] = [
        ("LMDB alone: get", median_microseconds(raw_get), None),
        ("LMDB alone: list of 10,000", median_microseconds(raw_list), None),
        ("LMDB alone: 100 by an index", median_microseconds(raw_by_service), None),
        ("get by id", median_microseconds(lambda: store.get_container(id_)), 4),
        ("get by id, not in the cache", median_microseconds(uncached_get), None),
        ("get by name", median_microseconds(lambda: store.get_service_by_name(name)), None),
        ("100 containers of a service", median_microseconds(lambda: store.list_containers_by_service(service_id)), 500),
        ("list of 10,000 containers", median_microseconds(store.list_containers), 40_000),
        ("list of 10,000, none in the cache", once_microseconds(store.list_containers, forget), None),
    ]
    with store.read() as view:
        found.append(("get by id in a view", median_microseconds(lambda: view.get_container(id_)), None))
    return found


def measure_read_only(path: str) -> tuple[str, float, float | None]:
    with ReadOnlyStore(path) as store:
        id_ = container(5_000).id
        return "get by id of a ReadOnlyStore", median_microseconds(lambda: store.get_container(id_)), None


def main() -> int:
    """Prints the table. Returns 1 if a mark is missed."""
    with tempfile.TemporaryDirectory() as path:
        with LocalStore(path) as store:
            fill(store)
            gc.collect()
            rows = measure(store)
        rows.append(measure_read_only(path))
    missed = [label for label, microseconds, mark in rows if mark is not None and microseconds > mark]
    for label, microseconds, mark in rows:
        note = "" if mark is None else f"  (mark {mark:,} µs{', MISSED' if label in missed else ''})"
        print(f"{label:36} {microseconds:12,.2f} µs{note}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
