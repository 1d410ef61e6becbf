"""A guard against a change that makes warren_raft much slower: ratios of this run beside those of the last release.

    python benchmarks/guard.py            ten seconds; exit code 1 if a ratio has grown beyond its limit
    python benchmarks/guard.py --write    at a release: stores the ratios of this run in benchmarks/ratios.json

No ratio depends on the speed of the machine. Writes are counted in calls of Python functions, in all threads of three
managers; the median of many rounds counts. Reads are compared with LMDB alone, and a verification with a fixed loop, in
CPU time of the same run; the least of many rounds counts, because other programs can only make a round worse.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine
import reads
import snapshots
from common import data_directory, free_ports, in_turns, sample

import warren_raft as wr
from warren_raft.snapshots.file import write
from warren_raft.snapshots.verification import verify
from warren_raft.store.database import Database
from warren_raft.store.tables import CONTAINER

RATIOS = Path(__file__).with_name("ratios.json")
LIMIT = 1.8
"""A ratio may be so many times that of the last release. Noise on a busy machine stays far below, and a change that
doubles the cost does not."""
READY_SECONDS = 120.0
ROUNDS = 30
WRITES_A_ROUND = 10
OUTSTANDING = 256
OUTSTANDING_ROUNDS = 10
CONTAINERS = 1_000
READ_CALLS = 500
LIST_CALLS = 5
IDLE_SECONDS = 2.0


# Calls ---------------------------------------------------------------------------------------------------------------


@contextmanager
def counted_calls() -> Iterator[Callable[[], int]]:
    """Count the calls of Python functions in this thread, and in the threads that begin meanwhile. Yields a function
    for the number so far."""
    counter = itertools.count()  # `next` is one step, so threads may share it

    def profile(_frame: object, event: str, _argument: object) -> None:
        if event == "call":
            next(counter)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield lambda: next(counter)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def calls_a_write(directory: Path) -> dict[str, float]:
    addresses = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(3), 1)}
    with counted_calls() as calls, ExitStack() as stack:
        stores = []
        for id_, address in addresses.items():
            config = wr.Config(
                node_id=id_,
                data_dir=str(directory / id_),
                listen=address,
                members=addresses,
                admin=False,
                insecure_plaintext=True,
            )
            stores.append(stack.enter_context(wr.ReplicatedStore(config)))
        for store in stores:
            store.wait_ready(READY_SECONDS)
        leader = next(store for store in stores if store.is_leader)
        containers = in_turns([sample(n) for n in range(OUTSTANDING)])
        one_after_another = itertools.cycle(containers)

        def one_by_one() -> int:
            for container in itertools.islice(one_after_another, WRITES_A_ROUND):
                leader.update_container(container)
            return WRITES_A_ROUND

        def outstanding() -> int:
            waiting: deque[Any] = deque()
            for container in containers:
                if len(waiting) == OUTSTANDING:
                    waiting.popleft().result()
                with leader.batch(wait=False) as batch:
                    batch.update_container(container)
                waiting.append(batch.future)
            while waiting:
                waiting.popleft().result()
            return len(containers)

        def usual(work: Callable[[], int], rounds: int) -> float:
            """The median of the calls a write, without those of the timers."""

            def once() -> float:
                before, begin = calls(), time.monotonic()
                writes = work()
                return (calls() - before - idle * (time.monotonic() - begin)) / writes

            work()  # warm
            return statistics.median(once() for _ in range(rounds))

        before, begin = calls(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle = (calls() - before) / (time.monotonic() - begin)
        return {
            "calls a write, one caller": usual(one_by_one, ROUNDS),
            "calls a write, 256 outstanding": usual(outstanding, OUTSTANDING_ROUNDS),
        }


# CPU time ------------------------------------------------------------------------------------------------------------


def least_seconds(*ways: Callable[[], object], calls: int = 1) -> list[float]:
    """The least CPU time of `calls` calls of each. They take turns, so that a busy moment meets all of them."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for own, way in zip(times, ways, strict=True):
            begin = time.thread_time()
            for _ in range(calls):
                way()
            own.append(time.thread_time() - begin)
    return [min(own) for own in times]


def read_ratios(directory: Path) -> dict[str, float]:
    with wr.LocalStore(str(directory)) as store:
        with store.batch() as batch:
            for number in range(CONTAINERS):
                batch.create_container(reads.container(number))
        database = store._attached()
        handle, id_ = database.tables[CONTAINER.number].handle, reads.container(CONTAINERS // 2).id
        key = id_.encode()

        def get_alone() -> object:
            with database.begin(handle) as transaction:
                return transaction.get(key)

        def list_alone() -> object:
            with database.begin() as transaction:
                return list(transaction.cursor(handle))

        store.list_containers()
        alone, get = least_seconds(get_alone, lambda: store.get_container(id_), calls=READ_CALLS)
        listed_alone, listed = least_seconds(list_alone, store.list_containers, calls=LIST_CALLS)
    return {
        "get by id, times LMDB alone": get / alone,
        "list, times LMDB alone": listed / listed_alone,
        "first list of a reader, times LMDB alone": first_list_seconds(directory) / (listed_alone / LIST_CALLS),
    }


def first_list_seconds(directory: Path) -> float:
    """The CPU time of a list for which nothing was read before."""

    def once() -> float:
        with wr.ReadOnlyStore(str(directory)) as store:
            begin = time.thread_time()
            store.list_containers()
            return time.thread_time() - begin

    return min(once() for _ in range(ROUNDS))


def verify_ratio(directory: Path) -> dict[str, float]:
    path = directory / "snapshot"
    with Database.open(directory / "state", sync=False) as database:
        snapshots.fill(database, CONTAINERS)
        write(database, path, created_at=reads.NOON, node_id="m1", quorum=True)
    verified, loop = least_seconds(lambda: verify(path), machine.loop)
    return {"verify a snapshot, times a fixed loop": verified / loop}


# The comparison ------------------------------------------------------------------------------------------------------


def measure() -> dict[str, float]:
    with data_directory(None) as place:
        directory = Path(place)
        for name in ("managers", "reads", "verify"):
            (directory / name).mkdir()
        found = {
            **read_ratios(directory / "reads"),
            **verify_ratio(directory / "verify"),
            **calls_a_write(directory / "managers"),
        }
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def table(now: dict[str, float], last: dict[str, float]) -> list[str]:
    """A line for each ratio."""
    lines = []
    for name, value in now.items():
        grown = value / last[name]
        said = "SLOWER" if grown > LIMIT else ""
        lines.append(f"{name:<44}{value:>10.4g}{last[name]:>10.4g}{grown:>8.2f}× (at most {LIMIT}×) {said}".rstrip())
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the ratios of this run")
    parser.add_argument("--ratios", type=Path, default=RATIOS, metavar="FILE", help="another file of ratios")
    given = parser.parse_args()
    logging.getLogger("warren_raft").addHandler(logging.NullHandler())  # plaintext links warn
    now = measure()
    if given.write:
        stored = {"release": version("warren-raft"), "ratios": now}
        given.ratios.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    stored = json.loads(given.ratios.read_text(encoding="utf-8"))
    lines = table(now, stored["ratios"])
    print(f"{'ratio':<44}{'now':>10}{stored['release']:>10}", *lines, sep="\n")
    if any(line.endswith("SLOWER") for line in lines):
        print(
            "A ratio has grown. If that is wanted, the release stores the new ones: python benchmarks/guard.py --write"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
