"""python -m tests.simulation --seeds 0:10000 --jobs 2 | --seed N"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.options import draw
from tests.simulation.run import Result, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", help="FIRST:END, END not included")
    parser.add_argument("--seed", type=int, help="run one seed again and print its trace")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.seed is not None:
        return report_one(arguments.seed)
    first, end = (int(part) for part in (arguments.seeds or "0:100").split(":"))
    return report_many(range(first, end), arguments.jobs)


def one(seed: int) -> Result:
    logging.disable(logging.CRITICAL)
    result = run(draw(seed))
    if result.failure is None:
        result.trace = []
    return result


def report_one(seed: int) -> int:
    options = draw(seed)
    result = run(options)
    print("\n".join(result.trace))
    print(f"seed {seed}: {options.describe()}")
    print(f"seed {seed}: {result.failure or 'clean'}; {result.acknowledged} acknowledged, faults {dict(result.faults)}")
    return 1 if result.failure else 0


def report_many(seeds: range, jobs: int) -> int:
    failed: list[Result] = []
    faults: Counter[str] = Counter()
    acknowledged = done = 0
    simulated = 0.0
    begin = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(one, seeds, chunksize=4):
            done += 1
            faults.update(result.faults)
            acknowledged += result.acknowledged
            simulated += result.simulated_seconds
            if result.failure is not None:
                failed.append(result)
                print(f"seed {result.seed} FAILED: {result.failure}", flush=True)
            if done % 100 == 0:
                print(f"{done} of {len(seeds)} seeds, {len(failed)} failed, {acknowledged} acknowledged", flush=True)
    seconds = time.monotonic() - begin
    print(
        f"{done} seeds, {len(failed)} failed; {acknowledged} calls acknowledged; {done / seconds * 60:.0f} seeds a minute, "
        f"{simulated / seconds:.0f} simulated seconds a second"
    )
    for fault, count in sorted(faults.items()):
        print(f"  {count:8d}  {fault}")
    if failed:
        print(f"run one again: python -m tests.simulation --seed {failed[0].seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
