"""The cost of heartbeats: the CPU time of three managers while nodes beat, and the syncs of their logs.

    python benchmarks/beats.py [--nodes 500] [--rate 2000] [--seconds 10]

Three manager processes run on one machine, and each has a caller in its own process that brings a third of the beats,
evenly spread over the time. The marks: the beats cost the managers at most 10 % of a core together, beyond the same
managers without beats, and no sync. (A beat as a plain write would be a log entry and three syncs.)
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

import common
from common import cpu_seconds, options, run, verdict

import warren_raft as wr

CORE_MARK = 0.10
WARM_SECONDS = 2.0
GROUPS_A_SECOND = 50
"""A caller brings its beats in so many groups a second, as a server does that serves many nodes."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--rate", type=int, default=2000, help="beats a second, at all managers together")
    parser.add_argument("--seconds", type=float, default=10.0)
    run(
        parser,
        measure,
        table,
        is_missed=lambda figures: not figures["is_met"],
        manager=lambda settings: Manager(settings).run(),
    )


class Manager(common.Manager):
    """Brings beats from a thread of its own."""

    def nodes(self, count: int) -> None:
        with self.store.batch() as batch:
            for number in range(count):
                batch.create_node(wr.Node(id=name(number), status=wr.NodeStatus.READY))

    def beat(self, first: int, nodes: int, rate: float, seconds: float) -> dict[str, float]:
        """Brings `rate` beats a second, of the nodes in turn. Returns how many, and the CPU time of this thread."""
        done = 0
        begin, cpu = time.monotonic(), time.thread_time()
        while (now := time.monotonic() - begin) < seconds:
            while done < now * rate:
                self.store.heartbeat(name((first + done) % nodes))
                done += 1
            time.sleep(1 / GROUPS_A_SECOND)
        return {"beats": done, "caller_seconds": time.thread_time() - cpu}

    def barrier(self) -> int:
        """Until this manager has the nodes."""
        return self.store.barrier()

    def log(self) -> dict[str, Any]:
        parts = self.store._parts
        return {
            "batches": parts.opened.log._next_batch,
            "known": len(parts.driver.engine.beats.table.known),
            "threads": threading.active_count(),
        }


def name(number: int) -> str:
    return f"node-{number:06d}"


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    nodes, rate, seconds = arguments.nodes, arguments.rate, arguments.seconds
    with common.Cluster(__file__, directory) as cluster:
        cluster.call_all("ready")
        leader, _ = cluster.leader_and_follower()
        cluster.managers[leader].call("nodes", nodes)
        cluster.call_all("barrier")

        def beaten(rate: float, seconds: float) -> tuple[list[dict[str, float]], float]:
            before = cpu_seconds(cluster.pids())
            for number, manager in enumerate(cluster.managers.values()):
                manager.begin("beat", number * nodes // 3, nodes, rate / 3, seconds)
            found = [manager.read() for manager in cluster.managers.values()]
            return found, cpu_seconds(cluster.pids()) - before

        beaten(rate, WARM_SECONDS)
        logs = cluster.call_all("log")
        _, idle = beaten(0.0, seconds)
        found, busy = beaten(rate, seconds)
        after = cluster.call_all("log")
    beats = sum(each["beats"] for each in found)
    batches = sum(each["batches"] for each in after) - sum(each["batches"] for each in logs)
    cost = (busy - idle) / seconds
    return {
        "nodes": nodes,
        "beats_a_second": round(beats / seconds),
        "cores_idle": round(idle / seconds, 4),
        "cores_busy": round(busy / seconds, 4),
        "cores_for_beats": round(cost, 4),
        "microseconds_a_beat": round(cost * seconds / beats * 1e6, 1),
        "callers_microseconds_a_beat": round(sum(each["caller_seconds"] for each in found) / beats * 1e6, 1),
        "log_batches": batches,
        "nodes_known_everywhere": min(each["known"] for each in after),
        "is_met": cost <= CORE_MARK * max(1.0, rate / 2000) and batches == 0,
    }


def table(figures: dict[str, Any]) -> str:
    rows = [f"{name.replace('_', ' '):<32}{value}" for name, value in figures.items() if name != "is_met"]
    return "\n".join([*rows, verdict(figures["is_met"], f"at most {CORE_MARK:.0%} of a core, no batch of the log")])


if __name__ == "__main__":
    sys.exit(main())
