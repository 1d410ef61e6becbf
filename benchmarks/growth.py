"""The cost of a write in a large state compared with a small one, and of five managers compared with three; an import.

    python benchmarks/growth.py [--containers 1000000] [--imported 100000] [--rounds 5] [--seconds 2]
                                [--directory DIR] [--json]

The two clusters of a comparison run at the same time and are loaded in turns, so that a busy machine slows both. A
million containers are written through the cluster first; that takes minutes, and about 10 GB of the disk.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import writes
from common import options, run, sample, wait_for
from machine import middle
from writes import WORKS

from warren_raft.migrate.records import format_line
from warren_raft.store.tables import CONTAINER

SMALL = 1_000
FILL_BATCH = 1_000
PAIRS = {
    "one caller: p50 ms": ("1 thread", "p50_ms"),
    "batches of 500: writes/s": ("batches of 500", "writes_per_second"),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--containers", type=int, default=1_000_000)
    parser.add_argument("--imported", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load for each figure and round")
    run(
        parser,
        lambda directory, given: measure(directory, given.containers, given.imported, given.rounds, given.seconds),
        table,
        manager=lambda settings: Manager(settings).run(),
    )


class Manager(writes.Manager):
    def takes_a_snapshot(self) -> bool:
        return bool(self.store._parts.driver.engine._catchup._taking)


def cluster(directory: Path, stored: int, count: int = 3) -> writes.Cluster:
    """Managers that have stored the containers, and have ended the snapshots that these caused."""
    made = writes.Cluster(directory, stored, count, script=__file__, fill_batch=min(stored, FILL_BATCH))
    wait_for(lambda: not any(made.call_all("takes_a_snapshot")), "the last snapshot")
    return made


def measure(directory: Path, containers: int, imported: int, rounds: int, seconds: float) -> dict[str, Any]:
    return {
        "containers": [SMALL, containers],
        **large_and_small(directory, containers, rounds, seconds),
        **five_and_three(directory, rounds, seconds),
        "imported": imported,
        "import_seconds": import_seconds(directory, imported),
    }


def large_and_small(directory: Path, containers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """For each pair: the values with the small state and with the large one."""
    begin = time.perf_counter()
    with cluster(directory, containers) as large, cluster(directory, SMALL) as small:
        found: dict[str, Any] = {"fill_seconds": round(time.perf_counter() - begin, 1)}
        found |= {name: {"small": [], "large": []} for name in PAIRS}
        for each in (large, small):
            each.load(WORKS["8 threads"], min(1.0, seconds))  # warm
        for _ in range(rounds):
            for name, (work, figure) in PAIRS.items():
                for size, each in (("small", small), ("large", large)):
                    found[name][size].append(each.load(WORKS[work], seconds)[figure])
        return found


def five_and_three(directory: Path, rounds: int, seconds: float) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"three": [], "five": []}
    with cluster(directory, SMALL, 3) as three, cluster(directory, SMALL, 5) as five:
        for each in (three, five):
            each.load(WORKS["8 threads"], min(1.0, seconds))  # warm
        for _ in range(rounds):
            for name, each in (("three", three), ("five", five)):
                rates[name].append(each.load(WORKS["64 threads"], seconds)["writes_per_second"])
    return {"64 threads: writes/s": rates}


def import_seconds(directory: Path, count: int) -> float:
    """`warren-raft import` of containers in Warren's own form, through a cluster of three."""
    path = directory / "containers.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(format_line(CONTAINER.name, sample(number)) + "\n" for number in range(count))
    with writes.Cluster(directory, stored=1, script=__file__, admin=True) as managers:
        data_dir = managers.directory / managers.leader_and_follower()[0]
        command = [sys.executable, "-m", "warren_raft_cli", "import", str(path), "--data-dir", str(data_dir)]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return round(time.perf_counter() - begin, 2)


def table(figures: dict[str, Any]) -> str:
    small, large = figures["containers"]
    lines = [f"{small:,} and {large:,} containers, stored in {figures['fill_seconds']} s; three and five managers"]
    lines.append(f"import of {figures['imported']:,} containers: {figures['import_seconds']} s")
    for name, pair in figures.items():
        if isinstance(pair, dict):
            lines += [f"{name:<28}{which:>8}{_shown(values)}" for which, values in pair.items()]
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    spread = middle(values)
    return f"{spread['median']:>12,.4g} ({spread['low']:,.4g} to {spread['high']:,.4g})"


if __name__ == "__main__":
    main()
