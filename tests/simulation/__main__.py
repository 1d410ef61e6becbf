"""python -m tests.simulation --seeds 0:10000 --jobs 2 | --seed N | --plant NAME|all --seeds 0:1000 [--black-box] |
--engine stock
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.checkers import ALL, WHITE_BOX
from tests.simulation.draws import EXPECTED
from tests.simulation.options import draw
from tests.simulation.planted import PLANTED, planted
from tests.simulation.run import Result, run
from tests.simulation.stock import run_stock

ENGINES = ("warren", "stock", "stock-unsynced")
CHUNK = 4
"""Seeds handed to a worker at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="FIRST:END, END not included")
    parser.add_argument("--seed", type=int, help="run one seed again and print its trace")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--plant", choices=[*PLANTED, "all"], help="plant this bug, and stop at the first seed that finds it"
    )
    parser.add_argument("--black-box", action="store_true", help="leave out the checkers that look inside a manager")
    parser.add_argument("--engine", choices=ENGINES, default="warren", help="stock: the released PySyncObj")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    one_seed = partial(one, plant=arguments.plant, black_box=arguments.black_box, engine=arguments.engine)
    if arguments.seed is not None:
        return report_one(one_seed(arguments.seed, keep_trace=True))
    first, end = (int(part) for part in arguments.seeds.split(":"))
    if arguments.plant is not None:
        names = list(PLANTED) if arguments.plant == "all" else [arguments.plant]
        return report_planted(names, range(first, end), arguments.jobs, arguments.black_box)
    return report_many(results(one_seed, range(first, end), arguments.jobs), end - first, arguments.engine)


def one(
    seed: int,
    *,
    plant: str | None = None,
    black_box: bool = False,
    keep_trace: bool = False,
    engine: str = "warren",
) -> Result:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        if engine != "warren":
            return run_stock(seed, loses_unsynced=engine == "stock-unsynced")
        checkers = [checker for checker in ALL if not black_box or checker not in WHITE_BOX]
        with planted(plant):
            result = run(draw(seed), checkers)
    finally:
        logging.disable(before)  # other tests in this process check log lines
    if result.failure is None and not keep_trace:
        result.trace = []
    return result


def results(one_seed: partial[Result], seeds: range, jobs: int) -> Iterator[Result]:
    """The results, in the order of the seeds. Closing the iterator gives up the seeds that have not begun."""
    if jobs == 1:
        yield from map(one_seed, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(one_seed, seeds, chunksize=CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def report_one(result: Result) -> int:
    print("\n".join(result.trace))
    print(f"seed {result.seed}: {draw(result.seed).describe()}")
    print(f"seed {result.seed}: {result.failure or 'clean'}; {result.acknowledged} acknowledged")
    print(f"faults {dict(sorted(result.faults.items()))}; found by {result.found_by or 'nobody'}")
    return 1 if result.failure else 0


def report_planted(names: list[str], seeds: range, jobs: int, black_box: bool) -> int:
    """Print a table: for each bug the seed and the checker that found it, and the seconds of the search."""
    missed = 0
    print(f"{'bug':32} {'seed':>6} {'seconds':>8}  found by", flush=True)
    for name in names:
        begin = time.monotonic()
        search = results(partial(one, plant=name, black_box=black_box), seeds, jobs)
        found = next((result for result in search if result.failure is not None), None)
        search.close()  # type: ignore[attr-defined]
        seconds = time.monotonic() - begin
        if found is None:
            missed += 1
            print(f"{name:32} {'none':>6} {seconds:8.1f}", flush=True)
        else:
            line = (found.failure or "").strip().splitlines()
            print(f"{name:32} {found.seed:6d} {seconds:8.1f}  {found.found_by}: {_shortened(line)}", flush=True)
    return 1 if missed else 0


def _shortened(lines: list[str]) -> str:
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0])[:160]


def report_many(found: Iterator[Result], count: int, engine: str) -> int:
    failed: list[Result] = []
    faults: Counter[str] = Counter()
    checked: Counter[str] = Counter()
    seeds_with: Counter[str] = Counter()
    acknowledged = done = 0
    simulated = 0.0
    begin = time.monotonic()
    for result in found:
        done += 1
        faults.update(result.faults)
        checked.update(result.checked)
        seeds_with.update(result.faults.keys() | result.checked.keys())
        acknowledged += result.acknowledged
        simulated += result.simulated_seconds
        if result.failure is not None:
            failed.append(result)
            print(f"seed {result.seed} FAILED, found by {result.found_by}: {result.failure}", flush=True)
        if done % 100 == 0:
            print(f"{done} of {count} seeds, {len(failed)} failed, {acknowledged} acknowledged", flush=True)
    seconds = time.monotonic() - begin
    for name, count_failed in Counter(result.found_by for result in failed).most_common():
        first = next(result.seed for result in failed if result.found_by == name)
        print(f"  {count_failed:8d}  failed by {name}, first at seed {first}")
    print(
        f"{done} seeds, {len(failed)} failed; {acknowledged} calls acknowledged; "
        f"{done / seconds * 60:.0f} seeds a minute, {simulated / seconds:.0f} simulated seconds a second"
    )
    print(f"injected: {sum(faults.values())} faults of {len(faults)} kinds; then the counts of seen and checked events")
    print(f"  {'times':>8}  {'in seeds':>8}")
    expected = EXPECTED if engine == "warren" else frozenset()
    for what, number in [*sorted((what, faults[what]) for what in faults.keys() | expected), *sorted(checked.items())]:
        print(f"  {number:8d}  {seeds_with[what]:8d}  {what}")
    if failed:
        print(f"run one again: python -m tests.simulation --engine {engine} --seed {failed[0].seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
