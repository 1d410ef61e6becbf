"""Replicated writes: throughput and latency on three managers of one machine, beside that machine's fdatasync.

    python benchmarks/writes.py [--seconds 4] [--directory DIR] [--json]

Three manager processes share the disk and the processors with the callers, who are threads of the leading process: the
way an orchestrator embeds the store. Each write updates one of 2,000 containers of realistic size, every field set.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

THREADS = (1, 8, 64, 256)
OUTSTANDING = 256
CONTAINERS = 2_000

MARKS = {"64 threads": 4_500, "256 outstanding": 12_000}
"""First marks of a 2-core machine, writes/s. One caller: p50 1.5 ms, or three times three parallel syncs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of load for each figure")
    parser.add_argument("--directory", help="where the data go: put it on the disk that is to be measured")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--manager", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.manager:
        Manager(json.loads(arguments.manager)).run()
        return
    directory = Path(tempfile.mkdtemp(prefix="warren-raft-bench-", dir=arguments.directory))
    try:
        figures = measure(directory, arguments.seconds)
    finally:
        shutil.rmtree(directory)
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))


# The disk ------------------------------------------------------------------------------------------------------------


def sync_seconds(directory: Path, name: str, count: int = 300) -> list[float]:
    """fdatasync of 700 bytes in a preallocated file: what one log batch of one write costs."""
    path = directory / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, bytes(1024 * count), 0)
        os.fsync(descriptor)
        times = []
        for position in range(count):
            os.pwrite(descriptor, b"x" * 700, 1024 * position)
            begin = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - begin)
        return times
    finally:
        os.close(descriptor)
        path.unlink()


def three_parallel_syncs(directory: Path) -> float:
    """Median time until three files, synced at the same time by three threads, are all durable: seconds."""
    barrier = threading.Barrier(3)
    rounds: list[list[float]] = [[], [], []]

    def worker(number: int) -> None:
        descriptor = os.open(directory / f"sync{number}", os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, bytes(1024 * 200), 0)
        os.fsync(descriptor)
        for position in range(200):
            barrier.wait()
            begin = time.perf_counter()
            os.pwrite(descriptor, b"x" * 700, 1024 * position)
            os.fdatasync(descriptor)
            rounds[number].append(time.perf_counter() - begin)
        os.close(descriptor)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(max(times) for times in zip(*rounds, strict=True))


# The managers --------------------------------------------------------------------------------------------------------


class Manager:
    """A manager process: reads a command a line, answers with a line of JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import warren_raft as wr

        self.store = wr.ReplicatedStore(wr.Config(**settings))

    def run(self) -> None:
        print(json.dumps("started"), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps(getattr(self, command[0])(*command[1:])), flush=True)
        self.store.close()

    def lead(self) -> bool:
        self.store.wait_ready(30)
        return self.store.is_leader

    def fill(self, count: int) -> int:
        containers = [sample(n) for n in range(count)]
        for start in range(0, count, 200):
            with self.store.batch() as batch:
                for container in containers[start : start + 200]:
                    batch.create_container(container)
        return count

    def state(self) -> list[Any]:
        status = self.store.status()
        return [status["applied_index"], status["digest"]]

    def load(self, threads: int, seconds: float) -> dict[str, float]:
        containers = [sample(n) for n in range(CONTAINERS)]
        gate, times = threading.Barrier(threads + 1), [[] for _ in range(threads)]

        def caller(number: int) -> None:
            own: list[float] = times[number]
            gate.wait()
            end = time.perf_counter() + seconds
            turn = number
            while (begin := time.perf_counter()) < end:
                self.store.update_container(containers[turn % CONTAINERS])
                own.append(time.perf_counter() - begin)
                turn += 7

        workers = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        gate.wait()
        begin = time.perf_counter()
        for worker in workers:
            worker.join()
        return summary([t for own in times for t in own], time.perf_counter() - begin)

    def outstanding(self, window: int, seconds: float) -> dict[str, float]:
        containers = [sample(n) for n in range(CONTAINERS)]
        waiting: deque[tuple[float, Any]] = deque()
        times: list[float] = []
        begin = time.perf_counter()
        turn = 0
        while time.perf_counter() - begin < seconds:
            while len(waiting) >= window:
                started, future = waiting.popleft()
                future.result()
                times.append(time.perf_counter() - started)
            turn += 1
            with self.store.batch(wait=False) as batch:
                batch.update_container(containers[turn % CONTAINERS])
            waiting.append((time.perf_counter(), batch.future))
        for started, future in waiting:
            future.result()
            times.append(time.perf_counter() - started)
        return summary(times, time.perf_counter() - begin)


def sample(number: int) -> Any:
    import warren_raft as wr

    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return wr.Container(
        id=f"container-{number:012d}",
        service_id=f"service-{number % 100:08d}",
        service_name=f"web-{number % 100}",
        node_id=f"node-{number % 50:08d}",
        container_id="8be2162e3ab2dddf86efa13ea13510061c5cabe89e756147c70f5230aae843ab2",
        desired_state="running",
        actual_state="running",
        image="nginx:1.25-alpine",
        env=("MODE=prod", "URL=postgres://db:5432/app"),
        ports=(wr.PortMapping(name="http", container_port=80, host_port=8080, protocol="tcp", publish_mode="ingress"),),
        mounts=(wr.VolumeMount(source="vol-1", target="/var/lib/data", read_only=False),),
        health_check=wr.HealthCheck(type="http", endpoint="http://localhost/", interval=timedelta(seconds=10)),
        health_status=wr.HealthStatus(healthy=True, message="HTTP 200", checked_at=moment, consecutive_successes=9),
        restart_policy=wr.RestartPolicy(condition="always", delay=timedelta(seconds=5)),
        resources=wr.ResourceRequirements(cpu_limit=0.5, memory_limit=1 << 29),
        stop_timeout=10,
        created_at=moment,
        started_at=replace_second(moment),
    )


def replace_second(moment: datetime) -> datetime:
    return moment + timedelta(seconds=1)


def summary(times: list[float], seconds: float) -> dict[str, float]:
    times.sort()
    return {
        "writes_per_second": round(len(times) / seconds),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1e3, 2),
    }


class Process:
    """The other end of a Manager."""

    def __init__(self, settings: dict[str, Any]) -> None:
        arguments = [sys.executable, __file__, "--manager", json.dumps(settings)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def call(self, *command: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@contextlib.contextmanager
def cluster(directory: Path) -> Any:
    addresses = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(3), 1)}
    managers = [
        Process({"node_id": id_, "data_dir": str(directory / id_), "listen": address, "members": addresses})
        for id_, address in addresses.items()
    ]
    try:
        for manager in managers:
            manager.read()
        yield managers
    finally:
        for manager in managers:
            manager.stop()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, seconds: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"fdatasync_p50_ms": [round(statistics.median(sync_seconds(directory, "sync")) * 1e3, 3)]}
    figures["three_parallel_syncs_p50_ms"] = round(three_parallel_syncs(directory) * 1e3, 3)
    with cluster(directory) as managers:
        leader = next(manager for manager, leads in [(m, m.call("lead")) for m in managers] if leads)
        leader.call("fill", CONTAINERS)
        leader.call("load", 8, 1.0)  # warm
        for threads in THREADS:
            figures[f"{threads} threads" if threads > 1 else "1 thread"] = leader.call("load", threads, seconds)
        figures[f"{OUTSTANDING} outstanding"] = leader.call("outstanding", OUTSTANDING, seconds)
        figures["same_state_on_all"] = converged(managers)
    figures["fdatasync_p50_ms"].append(round(statistics.median(sync_seconds(directory, "sync")) * 1e3, 3))
    return figures


def converged(managers: list[Process]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if len({json.dumps(manager.call("state")) for manager in managers}) == 1:
            return True
    return False


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"fdatasync p50 before/after: {figures['fdatasync_p50_ms']} ms; three at a time: "
        f"{figures['three_parallel_syncs_p50_ms']} ms",
        f"{'callers':<18}{'writes/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'mark':>24}",
    ]
    for name, row in figures.items():
        if isinstance(row, dict):
            numbers = f"{row['writes_per_second']:>10}{row['p50_ms']:>10}{row['p99_ms']:>10}"
            lines.append(f"{name:<18}{numbers}{mark(name, figures):>24}")
    lines.append(f"same applied index and digest on all three: {figures['same_state_on_all']}")
    return "\n".join(lines)


def mark(name: str, figures: dict[str, Any]) -> str:
    row = figures[name]
    if name == "1 thread":
        bound = max(1.5, 3 * figures["three_parallel_syncs_p50_ms"])
        return f"p50 <= {bound:.2f} ms: {'met' if row['p50_ms'] <= bound else 'MISSED'}"
    if name in MARKS:
        return f">= {MARKS[name]}: {'met' if row['writes_per_second'] >= MARKS[name] else 'MISSED'}"
    return ""


if __name__ == "__main__":
    main()
