"""Replicated writes: throughput, latency and CPU time on three managers of one machine, compared with its fdatasync.

    python benchmarks/writes.py [--seconds 4] [--only "64 threads"] [--directory DIR] [--json]

Three manager processes share the disk and the processors with the callers. The callers are threads of the leader's
process, because an orchestrator embeds the store in this way. Each write updates one of 2,000 containers of realistic
size, with every field set, among 10,000. The links are plaintext; tls.py compares them with TLS.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import common
from common import cpu_seconds, in_turns, options, quantile, run, sample, say, sync_ms, verdict

import warren_raft as wr

STORED = 10_000
CONTAINERS = 2_000
"""At least so many of the stored containers are updated in turn."""
BATCH = 200
BATCHES_WAITING = 8
CONVERGE_SECONDS = 30.0


class Work(NamedTuple):
    """One way of writing: a method of Manager, its first argument, and the manager that is asked."""

    method: str
    callers: int
    place: str = "leader"


WORKS = {
    "1 thread": Work("load", 1),
    "1 thread on a follower": Work("load", 1, "follower"),
    "8 threads": Work("load", 8),
    "64 threads": Work("load", 64),
    "256 threads": Work("load", 256),
    "256 outstanding": Work("outstanding", 256),
    "batches of 500": Work("batches", 500),
}

MARKS = {"64 threads": 4_500, "256 outstanding": 12_000}
"""The first marks, of a 2-core machine, in writes/s. One caller: p50 1.5 ms, or three times three parallel syncs."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="the seconds of load for each figure")
    parser.add_argument("--only", choices=WORKS, help="one of the ways to write")
    run(
        parser,
        lambda directory, given: measure(directory, given.seconds, [given.only] if given.only else list(WORKS)),
        table,
        manager=lambda settings: Manager(settings).run(),
    )


# The disk ------------------------------------------------------------------------------------------------------------


def three_parallel_syncs(directory: Path) -> float:
    """The median time until three files, which three threads sync at the same time, are all durable, in seconds."""
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


class Manager(common.Manager):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._stored = STORED
        self._chosen: list[wr.Container] = []
        say("started")

    def fill(self, count: int, batch_size: int) -> None:
        super().fill(count, batch_size)
        self._stored = count

    @property
    def containers(self) -> list[wr.Container]:
        """Those that are updated in turn: part of the stored ones. Made when first needed, because they need memory."""
        if not self._chosen:
            step = max(1, self._stored // CONTAINERS)
            self._chosen = in_turns([sample(n) for n in range(0, self._stored, step)])
        return self._chosen

    def load(self, threads: int, seconds: float) -> dict[str, float]:
        """Writes of threads that each wait for their own."""
        containers, count = self.containers, len(self.containers)
        gate = threading.Barrier(threads + 1)
        times: list[list[float]] = [[] for _ in range(threads)]

        def caller(number: int) -> None:
            own = times[number]
            gate.wait()
            end = time.perf_counter() + seconds
            turn = number
            while (begin := time.perf_counter()) < end:
                self.store.update_container(containers[turn % count])
                own.append(time.perf_counter() - begin)
                turn += threads  # a container is written by one caller in each pass, so that every write changes it

        workers = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        gate.wait()
        begin = time.perf_counter()
        for worker in workers:
            worker.join()
        return summary([t for own in times for t in own], time.perf_counter() - begin)

    def outstanding(self, window: int, seconds: float) -> dict[str, float]:
        """Writes of one thread that waits only for the oldest of `window`."""
        return self._pipelined(1, window, seconds)

    def batches(self, size: int, seconds: float) -> dict[str, float]:
        """Writes of one thread in commands of `size` each. The rate is that of the writes."""
        return self._pipelined(size, BATCHES_WAITING, seconds)

    def _pipelined(self, size: int, window: int, seconds: float) -> dict[str, float]:
        containers, count = self.containers, len(self.containers)
        waiting: deque[tuple[float, Any]] = deque()
        times: list[float] = []
        begin = time.perf_counter()
        turn = 0
        while time.perf_counter() - begin < seconds:
            while len(waiting) >= window:
                started, future = waiting.popleft()
                future.result()
                times.append(time.perf_counter() - started)
            with self.store.batch(wait=False) as batch:
                for _ in range(size):
                    turn += 1
                    batch.update_container(containers[turn % count])
            waiting.append((time.perf_counter(), batch.future))
        for started, future in waiting:
            future.result()
            times.append(time.perf_counter() - started)
        return summary(times, time.perf_counter() - begin, size)


def summary(times: list[float], seconds: float, writes: int = 1) -> dict[str, float]:
    """`times`: the seconds of each command, which has so many `writes`."""
    return {
        "writes": len(times) * writes,
        "writes_per_second": round(len(times) * writes / seconds),
        "p50_ms": round(quantile(times, 0.5) * 1e3, 2),
        "p99_ms": round(quantile(times, 0.99) * 1e3, 2),
        "max_ms": round(max(times) * 1e3, 2),
    }


class Cluster(common.Cluster):
    """Managers with containers in the store, ready for load."""

    def __init__(
        self,
        directory: Path,
        stored: int = STORED,
        count: int = 3,
        *,
        script: str = __file__,
        fill_batch: int = BATCH,
        admin: bool = False,
    ) -> None:
        super().__init__(script, directory, count, insecure_plaintext=True, admin=admin)
        assert {manager.read() for manager in self.managers.values()} == {"started"}
        self.call_all("ready")
        self.places()["leader"].call("fill", stored, fill_batch)

    def places(self) -> dict[str, common.Process]:
        """The leader and a follower now: on a busy machine leadership may move."""
        leader, follower = self.leader_and_follower()
        return {"leader": self.managers[leader], "follower": self.managers[follower]}

    def load(self, work: Work, seconds: float) -> dict[str, float]:
        """The rate, the latencies, and the CPU time of all processes a write."""
        manager = self.places()[work.place]
        before = cpu_seconds(self.pids())
        row: dict[str, float] = manager.call(work.method, work.callers, seconds)
        cpu = cpu_seconds(self.pids()) - before
        return {**row, "cpu_ms_a_write": round(1e3 * cpu / row["writes"], 4)}


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, seconds: float, works: list[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {"fdatasync_p50_ms": [sync_ms(directory)]}
    figures["three_parallel_syncs_p50_ms"] = round(three_parallel_syncs(directory) * 1e3, 3)
    with Cluster(directory) as managers:
        managers.load(WORKS["8 threads"], 1.0)  # warm
        for name in works:
            figures[name] = managers.load(WORKS[name], seconds)
        figures["same_state_on_all"] = converged(managers)
    figures["fdatasync_p50_ms"].append(sync_ms(directory))
    return figures


def converged(managers: Cluster) -> bool:
    deadline = time.monotonic() + CONVERGE_SECONDS
    while time.monotonic() < deadline:
        if len({(state["applied_index"], state["digest"]) for state in managers.call_all("state")}) == 1:
            return True
    return False


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"fdatasync p50 before/after: {figures['fdatasync_p50_ms']} ms; three at a time: "
        f"{figures['three_parallel_syncs_p50_ms']} ms",
        f"{'callers':<24}{'writes/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'CPU ms':>10}{'mark':>24}",
    ]
    for name, row in figures.items():
        if isinstance(row, dict):
            shown = (row[figure] for figure in ("writes_per_second", "p50_ms", "p99_ms", "max_ms", "cpu_ms_a_write"))
            numbers = "".join(f"{value:>10}" for value in shown)
            lines.append(f"{name:<24}{numbers}{mark(name, figures):>24}")
    lines.append(f"same applied index and digest on all three: {figures['same_state_on_all']}")
    return "\n".join(lines)


def mark(name: str, figures: dict[str, Any]) -> str:
    row = figures[name]
    if name == "1 thread":
        bound = max(1.5, 3 * figures["three_parallel_syncs_p50_ms"])
        return verdict(row["p50_ms"] <= bound, f"p50 <= {bound:.2f} ms")
    if name in MARKS:
        return verdict(row["writes_per_second"] >= MARKS[name], f">= {MARKS[name]}")
    return ""


if __name__ == "__main__":
    main()
