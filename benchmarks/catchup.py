"""The cost of snapshots for a working cluster: taking one, sending one, and a manager's restart.

    python benchmarks/catchup.py [--containers 100000] [--parts taking,sending,restart] [--directory DIR] [--json]

Three manager processes run on one machine, with callers in the leader and containers of realistic size. The exit code
is 1 if a mark is missed; on a busy machine, compare the figures of the disk beside it. Not here: a snapshot without a
cluster (snapshots.py).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
from common import options, peak_growth, quantile, run, sample, say, sync_ms, verdict, wait_for

ROUNDS = 5
CALLERS = 32
BATCH = 200
RESTART_COMMANDS = 10_000
BEFORE_SECONDS = 4.0
"""The time of undisturbed load before each disturbance, for comparison."""
CUT_AFTER_BYTES = 12 * 1024 * 1024
"""While a follower is away: small enough that two snapshots are taken, and the log is compacted to the older one."""
LEVEL_ENTRIES = 64
"""A follower that lacks at most so many entries has caught up: it is applying the newest committed entries."""

MARKS = {
    "taking on the leader: p99 ratio": 2.0,
    "taking: RssAnon growth MiB": 32.0,
    "sending: p99 ratio": 2.0,
    "restart after a close: first read s": 0.5,
    "restart after a close: ready s": 1.0,
    "restart after kill -9: first read s": 0.5,
    "restart after kill -9: ready s": 1.0,
}
"""The first marks, of a 2-core machine: upper bounds."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--containers", type=int, default=100_000, help="the number of containers; 60,000 are too few for sending"
    )
    parser.add_argument("--parts", default="taking,sending,restart", help="the parts to run, with commas")
    run(
        parser,
        lambda directory, given: measure(directory, given.parts.split(","), given.containers),
        table,
        is_missed=lambda figures: any(figures.get(name, 0.0) > mark for name, mark in MARKS.items()),
        manager=lambda settings: Manager(settings).run(),
    )


# A manager's process -------------------------------------------------------------------------------------------------


class Manager(common.Manager):
    """It sends its first lines by itself: the id of the first container, from its first local read, then "ready"."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.containers = settings.pop("containers")
        super().__init__(settings)
        with self.store.read() as view:
            found = next(iter(view.iter_containers()), None)
        say("empty" if found is None else found.id)

    def run(self) -> None:
        self.ready()
        say("ready")
        super().run()

    def load(self, callers: int) -> None:
        for number in range(callers):
            self.start_caller([sample(n) for n in range(number, self.containers, max(1, self.containers // 64))])

    def pace(self, begin: float, end: float) -> dict[str, float]:
        """The figures of the writes that were acknowledged in this time."""
        took = [seconds for _, seconds in self.between(begin, end)]
        return {
            "writes/s": round(len(took) / (end - begin)),
            "p99 ms": round(quantile(took, 0.99) * 1e3, 2) if took else float("inf"),
            "longest pause ms": round(self.longest_pause(begin, end) * 1e3, 1),
        }

    def take(self) -> float:
        """Take and verify a snapshot, as the product does. Returns the seconds."""
        begin = time.monotonic()
        self.store._parts.opened.keeper.take(quorum=True)()
        return time.monotonic() - begin

    def cut_often(self, often: bool) -> None:
        """Decides whether snapshots are taken, and the log compacted, after CUT_AFTER_BYTES, at any state size."""
        self.store._parts.opened.keeper.state_bytes = (lambda: 0) if often else (lambda: 1 << 60)


class Cluster(common.Cluster):
    def __init__(self, directory: Path, containers: int) -> None:
        super().__init__(__file__, directory, admin=False, snapshot_after_bytes=CUT_AFTER_BYTES, containers=containers)
        for manager in self.managers.values():
            assert [manager.read(), manager.read()] == ["empty", "ready"]
        self.call_all("cut_often", False)


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, parts: list[str], containers: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"containers": containers, "fdatasync_p50_ms": [sync_ms(directory)]}
    for part in parts:
        figures |= PARTS[part](directory, containers)
        figures["fdatasync_p50_ms"].append(sync_ms(directory))
    return figures


def taking(directory: Path, containers: int) -> dict[str, Any]:
    """Medians of ROUNDS: the leader's writes while it takes and verifies a snapshot, and while all three managers do.

    The second has no mark: managers take their snapshots at different times (STAGGER_STEPS in raft/catchup.py).
    """
    with Cluster(directory, containers) as managers:
        leader = managers.managers[managers.leader_and_follower()[0]]
        leader.call("fill", containers, BATCH)
        leader.call("load", CALLERS)
        figures: dict[str, Any] = {}
        growth = []
        for where in ("the leader", "all three"):
            rounds = []
            takers = [leader] if where == "the leader" else list(managers.managers.values())
            for _ in range(ROUNDS):
                time.sleep(BEFORE_SECONDS)
                begin = time.monotonic()
                with peak_growth(leader.popen.pid, every_seconds=0.005) as grown:
                    for taker in takers:
                        taker.begin("take")
                    seconds = [taker.read() for taker in takers]
                growth.append(grown[0] / 2**20)
                before = leader.call("pace", begin - BEFORE_SECONDS, begin)
                while_ = leader.call("pace", begin, begin + max(seconds))
                rounds.append((before, while_, max(seconds)))
            figures |= compared(f"taking on {where}", rounds)
        figures["taking: RssAnon growth MiB"] = round(statistics.median(growth), 1)
        return figures


def compared(name: str, rounds: list[tuple[dict[str, float], dict[str, float], float]]) -> dict[str, float]:
    def middle(values: Iterator[float]) -> float:
        return round(statistics.median(values), 2)

    return {
        f"{name}: seconds": middle(seconds for *_, seconds in rounds),
        f"{name}: p99 before ms": middle(before["p99 ms"] for before, *_ in rounds),
        f"{name}: p99 while ms": middle(while_["p99 ms"] for _, while_, _ in rounds),
        f"{name}: p99 ratio": middle(while_["p99 ms"] / before["p99 ms"] for before, while_, _ in rounds),
        f"{name}: writes/s before": middle(before["writes/s"] for before, *_ in rounds),
        f"{name}: writes/s while": middle(while_["writes/s"] for _, while_, _ in rounds),
        f"{name}: longest pause ms": middle(while_["longest pause ms"] for _, while_, _ in rounds),
    }


def sending(directory: Path, containers: int) -> dict[str, Any]:
    """One round, as it takes minutes: a follower is away while the containers are written and the log compacted."""
    with Cluster(directory, containers) as managers:
        leader_id, away = managers.leader_and_follower()
        leader = managers.managers[leader_id]
        behind = managers.managers[away].call("state")["applied_index"]
        killed = managers.managers.pop(away)
        killed.popen.kill()
        killed.end()
        managers.call_all("cut_often", True)
        leader.call("fill", containers, BATCH)

        def is_cut() -> bool:
            state = leader.call("state")
            return bool(state["applied_index"] - state["log_entries"] > behind)

        wait_for(is_cut, "the log to be cut")
        managers.call_all("cut_often", False)
        term = leader.call("state")["term"]
        leader.call("load", CALLERS)
        time.sleep(BEFORE_SECONDS)
        begin = time.monotonic()
        follower = managers.launch(away)
        follower.read()
        follower.read()  # ready: it has every entry that was committed when it first heard the leader

        def is_level() -> bool:
            return bool(
                follower.call("state")["applied_index"] >= leader.call("state")["applied_index"] - LEVEL_ENTRIES
            )

        wait_for(is_level, f"{away} to catch up")
        end = time.monotonic()
        before = leader.call("pace", begin - BEFORE_SECONDS, begin)
        while_ = leader.call("pace", begin, end)
        return {
            **compared("sending", [(before, while_, end - begin)]),
            "sending: elections": leader.call("state")["term"] - term,
        }


def restart(directory: Path, _containers: int) -> dict[str, Any]:
    """Medians of ROUNDS: the time from the start of a follower's process, including the start of the interpreter."""
    figures: dict[str, Any] = {}
    with Cluster(directory, RESTART_COMMANDS) as managers:
        leader, follower = managers.leader_and_follower()
        managers.managers[leader].call("fill", RESTART_COMMANDS, 1)
        for how in ("a close", "kill -9"):
            rounds = [restarted(managers, follower, how) for _ in range(ROUNDS)]
            figures[f"restart after {how}: first read s"] = round(statistics.median(first for first, _ in rounds), 3)
            figures[f"restart after {how}: ready s"] = round(statistics.median(ready for _, ready in rounds), 3)
    figures["restart: an interpreter with the imports s"] = round(statistics.median(bare() for _ in range(ROUNDS)), 3)
    return figures


def restarted(managers: Cluster, id_: str, how: str) -> tuple[float, float]:
    wait_for(lambda: len({state["applied_index"] for state in managers.call_all("state")}) == 1, "one applied index")
    process = managers.managers.pop(id_)
    if how == "kill -9":
        process.popen.kill()
    process.end()
    process = managers.launch(id_)
    assert process.read() == sample(0).id
    first = time.monotonic() - process.begun
    assert process.read() == "ready"
    ready = time.monotonic() - process.begun
    process.call("cut_often", False)
    # A kill before that would count as a failed start.
    wait_for(lambda: not (managers.directory / id_ / "state" / "starts").exists(), f"{id_} to have started")
    return first, ready


def bare() -> float:
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import warren_raft; warren_raft.ReplicatedStore"], check=True)
    return time.monotonic() - begin


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"taking": taking, "sending": sending, "restart": restart}


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"fdatasync p50 before, between and after: {figures['fdatasync_p50_ms']} ms; {figures['containers']} containers"
    ]
    for name, value in figures.items():
        if ": " in name:
            mark = MARKS.get(name)
            said = "" if mark is None else verdict(value <= mark, f"<= {mark}")
            lines.append(f"{name:<46}{value:>10}{said:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
