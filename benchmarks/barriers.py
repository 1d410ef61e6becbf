"""Barriers beside writes, in turns: latency of one caller, and the rate of 64 callers, on the leader and on a follower.

    python benchmarks/barriers.py [--seconds 1] [--rounds 4] [--before CHECKOUT] [--directory DIR] [--json]

A barrier writes nothing and waits for no disk, so it takes a part of a write's time. `--before` names a checkout of an
earlier release, in which a barrier was an entry of the log: its barriers are measured in the same turns, on a cluster
of their own. Three manager processes share the disk and the processors with the callers, as in writes.py.
"""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import options, quantile, run, verdict
from writes import Cluster
from writes import Manager as Writer

CALLERS = 64
LATENCY_MARK = 0.4
"""A barrier's p50 beside that of a write, at most."""
RATE_MARK = 5.0
"""Barriers a second of 64 callers, beside those of the release before, at least."""
STORED = 2_000


class Manager(Writer):
    def barriers(self, threads: int, seconds: float) -> dict[str, float]:
        """Barriers of threads that each wait for their own."""
        gate = threading.Barrier(threads + 1)
        times: list[list[float]] = [[] for _ in range(threads)]

        def caller(number: int) -> None:
            own = times[number]
            gate.wait()
            end = time.perf_counter() + seconds
            while (begin := time.perf_counter()) < end:
                self.store.barrier()
                own.append(time.perf_counter() - begin)

        workers = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        gate.wait()
        begin = time.perf_counter()
        for worker in workers:
            worker.join()
        took = [each for own in times for each in own]
        return {"per_second": len(took) / (time.perf_counter() - begin), "p50_ms": quantile(took, 0.5) * 1e3}

    def writes(self, threads: int, seconds: float) -> dict[str, float]:
        found = self.load(threads, seconds)
        return {"per_second": found["writes_per_second"], "p50_ms": found["p50_ms"]}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="the seconds of each figure, in each round")
    parser.add_argument("--rounds", type=int, default=4, help="how often the figures are measured in turns")
    parser.add_argument("--before", help="a checkout of the release before, with its own .venv")
    run(
        parser,
        lambda directory, given: measure(directory, given.seconds, given.rounds, given.before),
        table,
        is_missed=is_missed,
        manager=lambda settings: Manager(settings).run(),
    )


def measure(directory: Path, seconds: float, rounds: int, before: str | None) -> dict[str, Any]:
    with ExitStack() as stack:
        clusters = {"now": stack.enter_context(Cluster(directory, STORED, script=__file__))}
        if before is not None:
            clusters["before"] = stack.enter_context(cluster_of(before, directory))
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for place in ("leader", "follower"):
                for callers in (1, CALLERS):
                    for what in ("barriers", "writes"):
                        for name, cluster in clusters.items():
                            if name == "now" or what == "barriers":
                                figure = cluster.places()[place].call(what, callers, seconds)
                                found.setdefault(f"{what} {name}, {callers} on the {place}", []).append(figure)
    return {
        name: {key: round(statistics.median(each[key] for each in figures), 3) for key in figures[0]}
        for name, figures in found.items()
    }


def cluster_of(checkout: str, directory: Path) -> Cluster:
    """A cluster of the managers of another checkout, with this benchmark's commands."""

    class Before(Cluster):
        python = str(Path(checkout) / ".venv/bin/python")

    return Before(directory, STORED, script=__file__)


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that have marks."""
    found = {}
    for place in ("leader", "follower"):
        barrier, write = (figures[f"{what} now, 1 on the {place}"]["p50_ms"] for what in ("barriers", "writes"))
        found[f"p50 of a barrier / p50 of a write, on the {place}"] = barrier / write
        now = figures[f"barriers now, {CALLERS} on the {place}"]["per_second"]
        before = figures.get(f"barriers before, {CALLERS} on the {place}")
        if before is not None:
            found[f"barriers/s now / before, {CALLERS} callers on the {place}"] = now / before["per_second"]
    return found


def is_met(name: str, ratio: float) -> bool:
    return ratio <= LATENCY_MARK if name.startswith("p50") else ratio >= RATE_MARK


def is_missed(figures: dict[str, Any]) -> bool:
    return not all(is_met(name, ratio) for name, ratio in ratios(figures).items())


def table(figures: dict[str, Any]) -> str:
    lines = [f"{'':44}{'a second':>12}{'p50 ms':>10}"]
    lines += [f"{name:44}{each['per_second']:>12,.0f}{each['p50_ms']:>10.2f}" for name, each in figures.items()]
    for name, ratio in ratios(figures).items():
        mark = f"at most {LATENCY_MARK}" if name.startswith("p50") else f"at least {RATE_MARK}"
        lines.append(f"{name}: {ratio:.2f}, {verdict(is_met(name, ratio), mark)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
