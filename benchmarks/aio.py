"""Writes of the tasks of one asyncio loop beside those of as many threads, in turns.

    python benchmarks/aio.py [--seconds 2] [--rounds 3] [--directory DIR] [--json]

The callers are in the leader's process, and write the same containers. A task awaits its write, and begins the next one
then, as a thread does. There is no mark: tasks share one thread with everything else of their program, and are chosen
for other reasons.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import writes
from common import options, run

CALLERS = (64, 256)


class Manager(writes.Manager):
    def load_tasks(self, tasks: int, seconds: float) -> dict[str, float]:
        """Writes of tasks that each await their own."""
        return asyncio.run(self._load_tasks(tasks, seconds))

    async def _load_tasks(self, tasks: int, seconds: float) -> dict[str, float]:
        containers, count, aio = self.containers, len(self.containers), self.store.aio
        times: list[float] = []
        begin = time.perf_counter()
        end = begin + seconds

        async def caller(number: int) -> None:
            turn = number
            while (begun := time.perf_counter()) < end:
                await aio.update_container(containers[turn % count])
                times.append(time.perf_counter() - begun)
                turn += 7

        await asyncio.gather(*[caller(number) for number in range(tasks)])
        return writes.summary(times, time.perf_counter() - begin)


def measure(directory: Path, seconds: float, rounds: int) -> dict[str, Any]:
    works = {}
    for callers in CALLERS:
        works[f"{callers} threads"] = writes.Work("load", callers)
        works[f"{callers} tasks"] = writes.Work("load_tasks", callers)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    with writes.Cluster(directory, script=__file__) as managers:
        for work in works.values():
            managers.load(work, 0.5)  # warm
        for _ in range(rounds):
            for name, work in works.items():
                found[name].append(managers.load(work, seconds))
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def table(figures: dict[str, Any]) -> str:
    lines = [f"{'callers':<24}{'writes/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'CPU ms':>10}"]
    for name, row in figures.items():
        shown = (row[figure] for figure in ("writes_per_second", "p50_ms", "p99_ms", "max_ms", "cpu_ms_a_write"))
        lines.append(f"{name:<24}" + "".join(f"{value:>10}" for value in shown))
    return "\n".join(lines)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="the seconds of load for each figure")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is measured")
    run(
        parser,
        lambda directory, given: measure(directory, given.seconds, given.rounds),
        table,
        manager=lambda settings: Manager(settings).run(),
    )


if __name__ == "__main__":
    main()
