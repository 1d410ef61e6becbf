"""The log alone: a synced batch beside a bare fdatasync of the disk, and the time to open a log.

    python benchmarks/log.py [--rounds 2000] [--directory DIR]

The ways to sync take turns after each write, so that other load on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

from common import data_directory, quantile

from warren_raft.disk.files import OsFiles
from warren_raft.raft.log.log import SEGMENT_BYTES, Log

OPEN_ENTRIES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="synced writes of each kind")
    parser.add_argument("--directory", help="the directory for the files: it decides which disk is measured")
    arguments = parser.parse_args()
    with data_directory(arguments.directory) as directory:
        for size in (400, 30_000):
            measure_syncs(directory, arguments.rounds, size)
        for entries in (1, 10, 1000):
            measure_open(directory, entries)


def open_log(directory: str, name: str) -> Log:
    return Log.open(f"{directory}/{name}", files=OsFiles(), node_id="a", new_incarnation=lambda: "first")


def measure_syncs(directory: str, rounds: int, size: int) -> None:
    """Measures batches with one entry of `size` bytes, and the same number of bytes synced without a log."""
    log = open_log(directory, f"log-{size}")
    command = os.urandom(size)
    span = -(-(size + 600) // 512) * 512
    ways: dict[str, Callable[[], None]] = {
        "bare, file written ahead": bare_writer(f"{directory}/ahead", span, ahead=True),
        "bare, growing file": bare_writer(f"{directory}/growing", span, ahead=False),
        "log: append, take, write, complete": lambda: write_batch(log, command),
    }
    times: dict[str, list[float]] = {name: [] for name in (*ways, "log: append and take")}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
        times["log: append and take"].append(take_time)
        preparation = log.preparation()
        if preparation is not None:
            threading.Thread(target=preparation).start()
    print(f"{size} bytes, {rounds} rounds")
    for name, values in times.items():
        p50, p99, least = quantile(values, 0.5), quantile(values, 0.99), min(values)
        print(f"  {name:36}p50 {p50 * 1e6:7.0f} µs   p99 {p99 * 1e6:7.0f} µs   least {least * 1e6:5.0f} µs")
    log.close()


take_time = 0.0


def write_batch(log: Log, command: bytes) -> None:
    global take_time
    start = time.perf_counter()
    log.append(command, log.last_index + 1, 1)
    batch = log.take_batch()
    take_time = time.perf_counter() - start
    assert batch is not None
    batch.write()
    log.complete(batch)


def bare_writer(path: str, span: int, *, ahead: bool) -> Callable[[], None]:
    """A function that writes `span` bytes and calls fdatasync. After the length of a segment it starts at 0 again."""
    file = OsFiles().open(path, create=True)
    if ahead:
        file.write(0, bytes(SEGMENT_BYTES))
        file.sync()
    data = os.urandom(span)
    offset = 0

    def write() -> None:
        nonlocal offset
        if offset + span > SEGMENT_BYTES:
            offset = 0
        file.write(offset, data)
        file.sync()
        offset += span

    return write


def measure_open(directory: str, entries_a_batch: int) -> None:
    """Measures the cost of a restart: opens a log of small entries, in few or many batches."""
    name = f"open-{entries_a_batch}"
    log = open_log(directory, name)
    while log.entry_count < OPEN_ENTRIES:
        for _ in range(entries_a_batch - 1):
            log.append(bytes(100), log.last_index + 1, 1)
        write_batch(log, bytes(100))
    log.close()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        log = open_log(directory, name)
        times.append(time.perf_counter() - start)
        log.close()
    print(
        f"open {OPEN_ENTRIES} entries of 100 bytes, {entries_a_batch} a batch: "
        f"{statistics.median(times) * 1e3:.0f} ms, least {min(times) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
