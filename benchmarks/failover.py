"""The cost of a lost leader for the callers on the other managers, and the elections on a busy machine without a fault.

    python benchmarks/failover.py [--kills 50] [--closes 10] [--quiet-minutes 10 [--burn leader|follower|all]]

Three manager processes run on one machine, with callers on each. A kill is SIGKILL of the leader; its time ends when
each of the two survivors has acknowledged a write that began after the kill. A close is ReplicatedStore.close or
SIGTERM. A part that is set to 0 is left out.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import common
from common import Process, options, quantile, run, sample, say, verdict

FAILOVER_P50_MARK, FAILOVER_MAX_MARK = 0.5, 1.0
CLOSE_MARK = 0.1
"""Seconds. The mark of the quiet run is 0 elections."""
CALM_SECONDS = 1.0
"""The undisturbed load before each fault. The restarted manager catches up, and effects of the last fault end."""
AROUND_SECONDS = 0.3
"""The pause is measured from this long before a close until this long after it."""
LEADER_SECONDS = 60.0
"""The longest wait for a leader that all managers follow, or for the end of the old leader's process."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of the leader")
    parser.add_argument("--closes", type=int, default=10, help="clean closes of the leader, and as many SIGTERMs")
    parser.add_argument("--quiet-minutes", type=float, default=0.0, help="the minutes of full load without a fault")
    parser.add_argument(
        "--burn",
        choices=("leader", "follower", "all"),
        default="leader",
        help="the managers that also compute in the quiet run",
    )
    parser.add_argument("--callers", type=int, default=2, help="the callers on each manager while leaders are lost")
    parser.add_argument("--quiet-callers", type=int, default=32, help="the callers on each manager in the quiet run")
    run(parser, measure, table, manager=lambda settings: Manager(settings).run())


# A manager's process -------------------------------------------------------------------------------------------------


class Manager(common.Manager):
    """SIGTERM closes the store and ends the process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        super().__init__(settings)
        self.numbers = itertools.count(1_000_000)
        say("started")

    def load(self, callers: int) -> None:
        for number in range(callers):
            self.start_caller([sample(number)])

    def burn(self) -> None:
        def compute() -> None:
            number = 0
            while not self.stop.is_set():
                number = (number * 31 + 7) % 1_000_003

        threading.Thread(target=compute, daemon=True).start()

    def write_once(self) -> float:
        """Writes once. Returns the time of the acknowledgement."""
        self.store.update_container(sample(next(self.numbers)))
        return time.monotonic()

    def counts(self) -> list[int]:
        return [len(self.times), self.unanswered]

    def close(self) -> None:
        self.store.close()


class Cluster(common.Cluster):
    """Three managers, callers on each."""

    def __init__(self, directory: Path, callers: int) -> None:
        super().__init__(__file__, directory, admin=False)
        self.callers = callers
        self.load(*self.managers)

    def load(self, *ids: str) -> None:
        """Starts callers on the managers that were just launched, when they are ready."""
        for id_ in ids:
            self.managers[id_].read()
        for id_ in ids:
            self.managers[id_].call("ready")
            self.managers[id_].call("load", self.callers)

    def restart(self, id_: str) -> None:
        self.launch(id_)
        self.load(id_)

    def leader(self) -> str:
        """The leader that all managers have followed for CALM_SECONDS."""
        deadline = time.monotonic() + LEADER_SECONDS
        since, before = time.monotonic(), ""
        while time.monotonic() < deadline:
            states = {id_: manager.call("state") for id_, manager in self.managers.items()}
            leaders = {state["leader"] for state in states.values()}
            id_ = leaders.pop() or ""
            if leaders or not id_ or id_ != before or not states[id_]["leads"]:
                since, before = time.monotonic(), id_
            elif time.monotonic() - since >= CALM_SECONDS:
                return id_
            time.sleep(0.02)
        raise TimeoutError("no leader that all managers follow")

    def others(self, id_: str) -> list[Process]:
        return [manager for other, manager in self.managers.items() if other != id_]

    def term(self) -> int:
        return max(manager.call("state")["term"] for manager in self.managers.values())


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if arguments.kills or arguments.closes:
        with Cluster(directory, arguments.callers) as managers:
            if arguments.kills:
                figures["kill"] = [kill(managers) for _ in range(arguments.kills)]
            if arguments.closes:
                figures["undisturbed"] = [undisturbed(managers) for _ in range(arguments.closes)]
                figures["close"] = [close(managers, "close") for _ in range(arguments.closes)]
                figures["SIGTERM"] = [close(managers, "SIGTERM") for _ in range(arguments.closes)]
    if arguments.quiet_minutes:
        with Cluster(directory, arguments.quiet_callers) as managers:
            figures["quiet"] = quiet(managers, arguments.quiet_minutes * 60, arguments.burn)
    return figures


def kill(managers: Cluster) -> dict[str, Any]:
    """The seconds until both survivors have acknowledged a write that began after the kill, and the terms it took."""
    leader = managers.leader()
    term = managers.term()
    survivors = managers.others(leader)
    lost = managers.managers.pop(leader)
    begin = time.monotonic()
    lost.popen.kill()
    for survivor in survivors:
        survivor.begin("write_once")
    seconds = [survivor.read() - begin for survivor in survivors]
    lost.end()
    terms = managers.term() - term
    managers.restart(leader)
    return {"seconds": round(max(seconds), 4), "first": round(min(seconds), 4), "terms": terms}


def close(managers: Cluster, how: str) -> dict[str, Any]:
    """The longest pause of the callers on the two other managers, while the leader closes."""
    leader = managers.leader()
    term = managers.term()
    going = managers.managers.pop(leader)
    others = list(managers.managers.values())
    begin = time.monotonic()
    if how == "close":
        going.call("close")
    else:
        going.popen.send_signal(signal.SIGTERM)
        going.popen.wait(LEADER_SECONDS)
    seconds = time.monotonic() - begin
    time.sleep(2 * AROUND_SECONDS)
    pauses = [other.call("longest_pause", begin - AROUND_SECONDS, begin + seconds + AROUND_SECONDS) for other in others]
    going.end()
    terms = managers.term() - term
    managers.restart(leader)
    return {"pause": round(max(pauses), 4), "took": round(seconds, 4), "terms": terms}


def undisturbed(managers: Cluster) -> dict[str, Any]:
    """The longest pause without a fault, which the machine itself causes."""
    others = managers.others(managers.leader())
    begin = time.monotonic()
    time.sleep(4 * AROUND_SECONDS)
    pauses = [other.call("longest_pause", begin, begin + 2 * AROUND_SECONDS) for other in others]
    return {"pause": round(max(pauses), 4)}


def quiet(managers: Cluster, seconds: float, burn: str) -> dict[str, Any]:
    """The number of elections during load without a fault."""
    leader = managers.leader()
    busy = {"leader": [leader], "follower": [id_ for id_ in managers.managers if id_ != leader][:1]}
    for id_ in busy.get(burn, managers.managers):
        managers.managers[id_].call("burn")
    term, begin = managers.term(), time.monotonic()
    before = sum(manager.call("counts")[0] for manager in managers.managers.values())
    time.sleep(seconds)
    counts = [manager.call("counts") for manager in managers.managers.values()]
    ended = time.monotonic()
    return {
        "minutes": round((ended - begin) / 60, 2),
        "burn": burn,
        "elections": managers.term() - term,
        "writes_per_second": round((sum(done for done, _ in counts) - before) / (ended - begin)),
        "unanswered": sum(unanswered for _, unanswered in counts),
        "longest_pause": round(max(m.call("longest_pause", begin, ended) for m in managers.managers.values()), 4),
    }


def table(figures: dict[str, Any]) -> str:
    lines = [f"{'':<32}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}  mark"] if set(figures) - {"quiet"} else []
    names = {"kill": "SIGKILL of the leader", "undisturbed": "nothing: longest pause"}
    for name in ("kill", "undisturbed", "close", "SIGTERM"):
        if name not in figures:
            continue
        values = [row["seconds" if name == "kill" else "pause"] for row in figures[name]]
        p50, p99, highest = quantile(values, 0.5), quantile(values, 0.99), max(values)
        mark = ""
        if name == "kill":
            is_met = p50 <= FAILOVER_P50_MARK and highest <= FAILOVER_MAX_MARK
            mark = verdict(is_met, f"p50 <= {FAILOVER_P50_MARK * 1e3:.0f}, max <= {FAILOVER_MAX_MARK * 1e3:.0f}")
        elif name != "undisturbed":
            mark = verdict(highest <= CLOSE_MARK, f"max <= {CLOSE_MARK * 1e3:.0f}")
        label = f"{names.get(name, f'{name} of the leader: pause')} ({len(values)})"
        lines.append(f"{label:<32}{p50 * 1e3:>9.1f}{p99 * 1e3:>9.1f}{highest * 1e3:>9.1f}  {mark}")
        terms = [row["terms"] for row in figures[name] if "terms" in row]
        if terms:
            lines.append(f"    terms it took: {', '.join(f'{terms.count(n)} x {n}' for n in sorted(set(terms)))}")
    if "quiet" in figures:
        row = figures["quiet"]
        lines.append(
            f"{row['minutes']:g} minutes of load, a thread computing in {row['burn']}: {row['elections']} elections "
            f"({verdict(row['elections'] == 0, '0')}), {row['writes_per_second']} writes/s, {row['unanswered']} "
            f"unanswered, longest pause {row['longest_pause'] * 1e3:.0f} ms"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
