"""The log alone: a synced batch beside the disk's bare fdatasync, and the time an open takes.

    python benchmarks/log.py [--rounds 2000] [--directory DIR]

The ways to sync take turns, write by write, so that whatever else the machine does is shared by all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

from common import data_directory, quantile

from warren_raft.raft.files import OsFiles
from warren_raft.raft.log import SEGMENT_BYTES, Log

OPEN_ENTRIES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="synced writes of each kind")
    parser.add_argument("--directory", help="where the files go: put it on the disk that is to be measured")
    arguments = parser.parse_args()
    with data_directory(arguments.directory) as directory:
        for size in (400, 30_000):
            measure_syncs(directory, arguments.rounds, size)
        for entries in (1, 10, 1000):
            measure_open(directory, entries)


def open_log(directory: str, name: str) -> Log:
    return Log.open(f"{directory}/{name}", files=OsFiles(), node_id="a", new_incarnation=lambda: "first")


def measure_syncs(directory: str, rounds: int, size: int) -> None:
    """One entry of `size` bytes a batch, and the same number of bytes written and synced without a log."""
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
    """Write `span` bytes and fdatasync; the file starts anew when it has the length of a segment."""
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
    """Small entries, in few or many batches: what a restart costs."""
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
