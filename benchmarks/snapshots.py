"""Snapshots of a realistic state: taking, verifying, extracting and restoring one, compared with the disk itself.

    python benchmarks/snapshots.py [--containers 100000] [--directory DIR] [--json]

The state has 100,000 containers with every field set. Each figure is the median of five. The exit code is 1 if a figure
misses its mark; on a busy machine, compare the figures of the disk and the processor beside it.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import free_ports, options, peak_growth, run, sample, sync_ms, verdict

from warren_raft.fsm.machine import StateMachine
from warren_raft.migrate.records import format_line
from warren_raft.raft.membership import Member, Membership
from warren_raft.snapshots.file import extract, write
from warren_raft.snapshots.verification import verify, verify_in_child
from warren_raft.store.command import NO_SESSION, Command, encode
from warren_raft.store.database import Database
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import CONTAINER

ROUNDS = 5
COMMANDS_AN_ENTRY = 1_000

MARKS = {
    "write_seconds": 0.25,
    "verify_seconds": 5.0,
    "rss_anon_growth_mib": 32.0,
    "restore_to_first_read_seconds": 2.0,
}
"""The first marks, of a 2-core machine: upper bounds."""

FIRST_READ = """
import sys
from warren_raft import Config, ReplicatedStore
directory, address = sys.argv[1:]
with ReplicatedStore(Config(node_id="m1", data_dir=directory, listen=address, members={"m1": address})) as store:
    store.wait_ready()
    store.get_container(sys.stdin.readline().strip())
    print("read", flush=True)
    sys.stdin.readline()
"""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--containers", type=int, default=100_000)
    run(
        parser,
        lambda directory, arguments: measure(directory, arguments.containers),
        table,
        is_missed=lambda figures: any(figures[name] > mark for name, mark in MARKS.items()),
    )


# The state -----------------------------------------------------------------------------------------------------------


def fill(database: Database, count: int) -> int:
    """Stores `count` containers as a cluster would, with their history. Returns an estimate of their size in JSON."""
    machine = StateMachine(database)
    index = machine.applied_index + 1
    members = {"m1": Member("m1", "127.0.0.1:7946", "incarnation", voter=True)}
    machine.apply_membership(index, 1, "benchmark", Membership("benchmark", index, members).encode())
    for start in range(0, count, COMMANDS_AN_ENTRY):
        operations = [put_operation(CONTAINER, sample(n), None) for n in range(start, start + COMMANDS_AN_ENTRY)]
        commands = [encode(Command(NO_SESSION, 0, 0, (operation,))) for operation in operations]
        machine.apply(machine.applied_index + 1, 1, commands)
    database.checkpoint()
    return count * len(format_line(CONTAINER.name, sample(0)))


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, count: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"fdatasync_p50_ms": [sync_ms(directory)]}
    path, copy = directory / "snapshot.mdb", directory / "copy.mdb"
    with Database.open(directory / "data", sync=False) as database:
        json_bytes = fill(database, count)
        gc.collect()

        def take() -> None:
            write(database, path, created_at=datetime.now(UTC), node_id="m1", quorum=True)

        take()  # warms the mapping and the page cache
        figures["containers"], figures["json_mb"] = count, round(json_bytes / 1e6, 1)
        figures["file_mb"] = round(path.stat().st_size / 1e6, 1)
        figures["disk_write_and_fsync_seconds"] = median(lambda: plain_write(path, copy), copy)
        figures["write_seconds"] = median(take, path)
        path.unlink()
        figures["rss_anon_growth_mib"] = round(growth_of(take) / 2**20, 1)
    figures["verify_quick_seconds"] = median(lambda: verify(path, records=False))
    begin = time.process_time()
    figures["verify_seconds"] = median(lambda: verify(path))
    figures["verify_processor_seconds"] = round((time.process_time() - begin) / ROUNDS, 3)
    figures["verify_in_child_seconds"] = median(lambda: verify_in_child(path, records=True))
    figures["extract_seconds"] = median(lambda: extract(path, copy), copy)
    figures |= restored(path, directory / "restored")
    figures["fdatasync_p50_ms"].append(sync_ms(directory))
    return figures


def restored(path: Path, directory: Path) -> dict[str, float]:
    """`warren-raft snapshot restore`, which verifies all of the file; then a manager from its start to a read. Each is
    a process of its own, as an operator types them."""
    work, start, processor = [], [], []
    for _ in range(ROUNDS):
        shutil.rmtree(directory, ignore_errors=True)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        command = [sys.executable, "-m", "warren_raft_cli", "snapshot", "restore", str(path)]
        command += ["--data-dir", str(directory), "--node-id", "m1", "--member", f"m1={address}"]
        begin, before = time.perf_counter(), children_seconds()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        work.append(time.perf_counter() - begin)
        processor.append(children_seconds() - before)
        start.append(first_read_seconds(directory, address))
    figures = {
        "restore_seconds": statistics.median(work),
        "restore_processor_seconds": statistics.median(processor),
        "start_to_first_read_seconds": statistics.median(start),
        "restore_to_first_read_seconds": statistics.median(map(sum, zip(work, start, strict=True))),
    }
    return {name: round(value, 3) for name, value in figures.items()}


def children_seconds() -> float:
    """The processor time of the children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_read_seconds(directory: Path, address: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-c", FIRST_READ, str(directory), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{sample(0).id}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.communicate("\n")
    if line != "read\n" or process.returncode != 0:
        raise SystemExit("the restored manager did not read")
    return seconds


def median(call: Callable[[], object], made: Path | None = None) -> float:
    """The median of ROUNDS calls, in seconds. The file that a call makes is removed before each call."""
    times = []
    for _ in range(ROUNDS):
        if made is not None:
            made.unlink(missing_ok=True)
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 3)


def plain_write(path: Path, copy: Path) -> None:
    """Writes and syncs the same bytes, nothing else: the limit of the disk."""
    with open(path, "rb") as source, open(copy, "wb") as target:
        os.sendfile(target.fileno(), source.fileno(), 0, path.stat().st_size)
        os.fsync(target.fileno())


def growth_of(call: Callable[[], object]) -> int:
    """The largest growth of this process's memory during the call, in bytes."""
    gc.collect()
    with peak_growth(os.getpid(), every_seconds=0.001) as grown:
        call()
    return grown[0]


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"fdatasync p50 before/after: {figures['fdatasync_p50_ms']} ms",
        f"{figures['containers']} containers, {figures['json_mb']} MB in JSON, a snapshot of {figures['file_mb']} MB",
    ]
    for name, value in figures.items():
        if name.endswith(("_seconds", "_mib")):
            mark = MARKS.get(name)
            said = "" if mark is None else verdict(value <= mark, f"<= {mark}")
            lines.append(f"{name.replace('_', ' '):<32}{value:>10}{said:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
