"""What watches cost the writers: 64 callers on the leader, without watches and beside 500, in turns.

    python benchmarks/watches.py [--seconds 3] [--rounds 3] [--directory DIR] [--json]

500 watches of one node each are open in the leader's process, each with a thread that iterates, as for 500 workers. In
the first case no write is of a node that is watched. In the second each write is an event of one watch, so the threads
that are woken for it compete with the callers. "nobody" is measured before each case, in the same run.
"""

from __future__ import annotations

import statistics
import threading
from pathlib import Path
from typing import Any

import writes
from common import options, run, verdict

import warren_raft as wr

WATCHES = 500
CALLERS = writes.WORKS["64 threads"]
MARK = 10.0
"""The most that the writers may lose, in percent, if no write is of a watched node."""


class Manager(writes.Manager):
    def __init__(self, settings: dict[str, Any]) -> None:
        self._watches: list[wr.Watch] = []
        self._threads: list[threading.Thread] = []
        self._seen: list[int] = []
        super().__init__(settings)

    def watch(self, of_written: bool) -> int:
        """Opens the watches. Returns how many nodes the written containers are on."""
        written = sorted({container.node_id for container in self.containers})
        nodes = [f"nowhere-{number}" for number in range(WATCHES)]
        if of_written:
            nodes[: len(written)] = written[:WATCHES]
        self._seen = [0] * WATCHES
        self._watches = [self.store.watch(node=node) for node in nodes]
        self._threads = [threading.Thread(target=self._follow, args=(number,)) for number in range(WATCHES)]
        for thread in self._threads:
            thread.start()
        return len(written)

    def _follow(self, number: int) -> None:
        for _ in self._watches[number]:
            self._seen[number] += 1

    def unwatch(self) -> int:
        """Closes them. Returns how many events they gave."""
        for watch in self._watches:
            watch.close()
        for thread in self._threads:
            thread.join()
        return sum(self._seen)


def measure(directory: Path, seconds: float, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"nobody": [], "no event": [], "one event a write": []}
    events = 0
    with writes.Cluster(directory, script=__file__) as managers:
        leader = managers.places()["leader"]
        managers.load(CALLERS, 1.0)  # warm
        for _ in range(rounds):
            for name, of_written in (("no event", False), ("one event a write", True)):
                found["nobody"].append(managers.load(CALLERS, seconds))
                leader.call("watch", of_written)
                found[name].append(managers.load(CALLERS, seconds))
                events += leader.call("unwatch")
    figures: dict[str, Any] = {name: middle(rows) for name, rows in found.items()}
    before = figures["nobody"]["writes_per_second"]
    for name in ("no event", "one event a write"):
        figures[name]["lost_percent"] = round(100 - 100 * figures[name]["writes_per_second"] / before, 1)
    figures["events"] = events
    return figures


def middle(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}


def table(figures: dict[str, Any]) -> str:
    lines = [f"{'500 watches':<24}{'writes/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'CPU ms':>10}{'lost %':>10}{'mark':>16}"]
    for name, row in figures.items():
        if isinstance(row, dict):
            shown = (row[figure] for figure in ("writes_per_second", "p50_ms", "p99_ms", "cpu_ms_a_write"))
            mark = verdict(row["lost_percent"] <= MARK, f"<= {MARK:g} %") if name == "no event" else ""
            numbers = "".join(f"{value:>10}" for value in shown)
            lines.append(f"{name:<24}{numbers}{row.get('lost_percent', ''):>10}{mark:>16}")
    return "\n".join([*lines, f"events given: {figures['events']}"])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="the seconds of load for each figure")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is measured")
    run(
        parser,
        lambda directory, given: measure(directory, given.seconds, given.rounds),
        table,
        is_missed=lambda figures: figures["no event"]["lost_percent"] > MARK,
        manager=lambda settings: Manager(settings).run(),
    )


if __name__ == "__main__":
    main()
