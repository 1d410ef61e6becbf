"""All figures that docs/performance.md explains, ours and the references' in turns, as one table and one JSON object.

    python benchmarks/all.py [--quick] [--only writes,reads] [--json FILE] [--directory DIR]
    python benchmarks/all.py --write docs            measures, and writes the figures into docs/performance.md
    python benchmarks/all.py --render docs/performance.json [--write docs]      shows an earlier run again

The references are etcd, if Debian's packages are installed, LMDB alone, and fdatasync alone. Each round asks each of
them, in alternating order. A figure is the median of the rounds, with the least and the greatest value. Run it on a
machine that does nothing else: the table says if other programs used the processors. A whole run takes a quarter of an
hour.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import etcd_cluster
import figures
import growth
import ledger
import machine
import reads
import snapshots
import writes
from common import cpu_seconds, data_directory, rss_anon, sample, sync_ms
from etcd_cluster import Etcd
from figures import Row
from writes import WORKS, Work

from warren_raft import LocalStore
from warren_raft.migrate.records import format_line
from warren_raft.store.tables import CONTAINER

PAGE, JSON, PLOT = "performance.md", "performance.json", "performance.svg"
LEDGER = "one write"
PARTS = ("writes", "reads", "snapshots", "growth", LEDGER)
WARM_SECONDS = 1.0
VALUE_BYTES = len(format_line(CONTAINER.name, sample(0)))
"""etcd stores as many bytes as Warren's own form of the same container has."""
ETCD_WORKS = {
    "1 thread": (Work("", 1), 1),
    "1 thread on a follower": (Work("", 1, "follower"), 1),
    "8 threads": (Work("", 8), 1),
    "64 threads": (Work("", 64), 1),
    "256 threads": (Work("", 256), 1),
    "batches of 500": (Work("", writes.BATCHES_WAITING), 500),
}
"""For each of our works, etcd's: its callers, and the puts in a transaction."""
ETCD_AS = {"256 outstanding": "256 threads"}


@dataclass(frozen=True, slots=True)
class Sizes:
    rounds: int
    seconds: float
    idle_seconds: float
    restored: int
    """Containers in the snapshot that is restored."""
    large: int
    """Containers in the large state."""
    imported: int


FULL = Sizes(rounds=5, seconds=2.0, idle_seconds=10.0, restored=100_000, large=1_000_000, imported=100_000)
QUICK = Sizes(rounds=2, seconds=0.25, idle_seconds=1.0, restored=1_000, large=5_000, imported=5_000)


# Writes --------------------------------------------------------------------------------------------------------------


def write_rows(directory: Path, sizes: Sizes, client: Path | None) -> list[Row]:
    rows, found = [], dict[tuple[str, str], list[dict[str, float]]]()
    with contextlib.ExitStack() as stack:
        etcd = None if client is None else stack.enter_context(Etcd(directory, client))
        ours = stack.enter_context(writes.Cluster(directory, script=writes.__file__))
        memory = rss_anon(ours.places()["leader"].popen.pid) / 2**20
        rows.append(Row("writes", "leader's anonymous memory with 10,000 containers", "MiB", [memory], goal=96))
        sides: dict[str, Callable[[str], dict[str, float] | None]] = {
            "ours": lambda name: ours.load(WORKS[name], sizes.seconds)
        }
        if etcd is not None:
            etcd.fill(etcd.places()["leader"], writes.STORED, VALUE_BYTES)

            def load_etcd(name: str) -> dict[str, float] | None:
                if name not in ETCD_WORKS:
                    return None
                work, batch = ETCD_WORKS[name]
                size: dict[str, int] = {"keys": writes.STORED, "value_bytes": VALUE_BYTES, "batch": batch}
                return etcd.load(etcd.places()[work.place], work.callers, sizes.seconds, **size)

            sides["etcd"] = load_etcd
            load_etcd("8 threads")
        rows += idle_rows(ours, etcd, sizes.idle_seconds)
        ours.load(WORKS["8 threads"], min(WARM_SECONDS, sizes.seconds))
        for turn in range(sizes.rounds):
            order = list(sides.items())
            for name in WORKS:
                for side, load in order if turn % 2 == 0 else reversed(order):
                    row = load(name)
                    if row is not None:
                        found.setdefault((side, name), []).append(row)
    return rows + compared_writes(found)


def idle_rows(ours: writes.Cluster, etcd: Etcd | None, seconds: float) -> list[Row]:
    """The CPU time of managers that nobody calls."""
    groups = {"ours": ours.pids(), "etcd": [] if etcd is None else etcd.pids()}
    before = {name: cpu_seconds(pids) for name, pids in groups.items()}
    time.sleep(seconds)
    shares = {
        name: [100 * (cpu_seconds(pids) - before[name]) / seconds / len(pids)] for name, pids in groups.items() if pids
    }
    name, unit = "a manager that nobody calls", "% of a core"
    rows = [Row("writes", name, unit, shares["ours"], goal=0.5)]
    if "etcd" in shares:
        rows.append(Row("writes", name, unit, shares["ours"], "etcd", shares["etcd"]))
    return rows


def compared_writes(found: dict[tuple[str, str], list[dict[str, float]]]) -> list[Row]:
    def ours(name: str, figure: str) -> list[float]:
        return [row[figure] for row in found["ours", name]]

    def row(
        name: str, figure: str, unit: str, goal: float | None = None, shown: str = "", *, more: bool = False
    ) -> Row:
        rounds = found.get(("etcd", ETCD_AS.get(name, name)), [])
        theirs, reference = [each[figure] for each in rounds], ("etcd" if rounds else "")
        return Row(
            "writes",
            shown or name,
            unit,
            ours(name, figure),
            reference,
            theirs,
            goal if rounds else None,
            more_is_better=more,
        )

    p50, rate, cpu = ("p50_ms", "ms"), ("writes_per_second", "writes/s"), ("cpu_ms_a_write", "ms")
    return [
        row("1 thread", *p50, 0.9, "1 caller, p50"),
        row("1 thread", "p99_ms", "ms", shown="1 caller, p99"),
        row("8 threads", *rate, shown="8 callers", more=True),
        row("64 threads", *rate, 1.5, "64 callers", more=True),
        row("64 threads", "p99_ms", "ms", shown="64 callers, p99"),
        row("256 threads", *rate, 1.2, "256 callers", more=True),
        row("256 outstanding", *rate, 2.0, "256 outstanding of one thread", more=True),
        row("batches of 500", *rate, shown="commands of 500 writes", more=True),
        Row(
            "writes",
            "commands of 500 writes",
            "writes/s",
            ours("batches of 500", "writes_per_second"),
            goal=40_000,
            more_is_better=True,
        ),
        row("1 thread on a follower", *p50, shown="1 caller on a follower, p50"),
        Row(
            "writes",
            "1 caller on a follower, p50",
            "ms",
            ours("1 thread on a follower", "p50_ms"),
            "on the leader",
            ours("1 thread", "p50_ms"),
            1.1,
        ),
        Row(
            "writes",
            "256 callers",
            "writes/s",
            ours("256 threads", "writes_per_second"),
            "64 callers",
            ours("64 threads", "writes_per_second"),
            1.0,
            more_is_better=True,
        ),
        row("1 thread", *cpu, 1.0, "CPU of all processes a write, 1 caller"),
        row("64 threads", *cpu, 0.7, "CPU of all processes a write, 64 callers"),
    ]


# Reads, snapshots, growth --------------------------------------------------------------------------------------------


def read_rows(directory: Path, sizes: Sizes) -> list[Row]:
    """The rows of reads.py, with the reads that it compares with LMDB alone."""
    found: dict[str, list[float]] = {}
    with LocalStore(str(directory / "reads")) as store:
        reads.fill(store)
        gc.collect()
        for _ in range(sizes.rounds):
            for label, microseconds in reads.measure(store).items():
                found.setdefault(label, []).append(microseconds)
    rows = []
    for label, values in found.items():
        if label.startswith(reads.ALONE):
            continue
        if label in reads.COMPARED:
            reference, goal = reads.COMPARED[label]
            theirs = found[reads.ALONE + reference]
            rows.append(Row("reads", label, "µs", values, f"LMDB, {reference}", theirs, goal))
        if label in reads.MARKS_MICROSECONDS or label not in reads.COMPARED:
            rows.append(Row("reads", label, "µs", values, goal=reads.MARKS_MICROSECONDS.get(label)))
    return rows


def snapshot_rows(directory: Path, sizes: Sizes, client: Path | None) -> list[Row]:
    place = directory / "snapshots"
    place.mkdir()
    found = snapshots.measure(place, sizes.restored)
    theirs: list[float] = []
    if client is not None:
        with Etcd(directory, client) as etcd:
            leader = etcd.places()["leader"]
            etcd.fill(leader, sizes.restored, VALUE_BYTES)
            saved = etcd.save(leader)
            key = "/containers/container-000000000000"
            theirs = [etcd_cluster.restore_seconds(saved, directory / "restored", key) for _ in range(sizes.rounds)]
    count = f"{sizes.restored:,}"
    restored = found["restore_to_first_read_seconds"]
    rows = [
        Row("snapshots", f"verified restore of {count} to the first read", "s", [restored], goal=1.1),
        Row("snapshots", f"verify {count}, records too", "s", [found["verify_seconds"]], goal=2.5),
        Row(
            "snapshots",
            f"take one of {count}",
            "s",
            [found["write_seconds"]],
            "write and fsync of the bytes",
            [found["disk_write_and_fsync_seconds"]],
        ),
    ]
    disk = [found["disk_write_and_fsync_seconds"]]
    rows.insert(1, Row("snapshots", rows[0].name, "s", [restored], "write and fsync of the bytes", disk))
    if theirs:
        rows.insert(1, Row("snapshots", rows[0].name, "s", [restored], "etcd, not verified", theirs))
    return rows


def growth_rows(directory: Path, sizes: Sizes) -> list[Row]:
    found = growth.measure(directory, sizes.large, sizes.imported, sizes.rounds, sizes.seconds)
    small, large = (f"{count:,}" for count in found["containers"])
    one, batches, members = (
        found[name] for name in ("one caller: p50 ms", "batches of 500: writes/s", "64 threads: writes/s")
    )
    named = f"with {large} containers"
    return [
        Row("growth", f"1 caller, p50, {named}", "ms", one["large"], f"with {small}", one["small"], 1.3),
        Row(
            "growth",
            f"commands of 500 writes, {named}",
            "writes/s",
            batches["large"],
            f"with {small}",
            batches["small"],
            round(1 / 1.3, 2),
            more_is_better=True,
        ),
        Row(
            "growth",
            "64 callers, five managers",
            "writes/s",
            members["five"],
            "three managers",
            members["three"],
            0.7,
            more_is_better=True,
        ),
        Row("growth", f"import of {sizes.imported:,} containers", "s", [found["import_seconds"]], goal=15),
    ]


def ledger_rows(directory: Path, sizes: Sizes) -> list[Row]:
    """The medians of the stages: the usual write. They do not add up exactly."""
    found = ledger.measure(directory, 1, 2 * sizes.seconds)
    stages = {**found["stages"], "the whole write": found["whole"]}
    return [Row(LEDGER, name, "µs, p50", [row["p50_us"]]) for name, row in stages.items()]


# The run -------------------------------------------------------------------------------------------------------------


def measure(parent: str | None, sizes: Sizes, only: list[str]) -> dict[str, Any]:
    facts, missing = machine.facts(), etcd_cluster.why_missing()
    rows: list[Row] = []
    disturbed: dict[str, str] = {}
    with data_directory(parent) as place:
        directory = Path(place)
        client = None if missing else etcd_cluster.build(directory)
        syncs, three = [sync_ms(directory)], round(writes.three_parallel_syncs(directory) * 1e3, 3)
        parts: dict[str, Callable[[Path], list[Row]]] = {
            "writes": lambda scratch: write_rows(scratch, sizes, client),
            "reads": lambda scratch: read_rows(scratch, sizes),
            "snapshots": lambda scratch: snapshot_rows(scratch, sizes, client),
            "growth": lambda scratch: growth_rows(scratch, sizes),
            LEDGER: lambda scratch: ledger_rows(scratch, sizes),
        }
        for name in only:
            print(f"measuring {name} …", file=sys.stderr)
            with machine.Quiet() as quiet, scratch_directory(directory) as scratch:
                rows += parts[name](scratch)
            if said := quiet.said():
                disturbed[name] = said
        syncs.append(sync_ms(directory))
    if "writes" in only:
        one = next(row for row in rows if row.name == "1 caller, p50")
        rows.append(Row("writes", one.name, "ms", [statistics.median(one.ours)], "three fdatasyncs", [three]))
        rows.sort(key=lambda row: list(parts).index(row.part))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "warren_raft": version("warren-raft"),
        "machine": facts,
        "etcd": missing or etcd_cluster.version(),
        "rounds": sizes.rounds,
        "seconds": sizes.seconds,
        "fdatasync_p50_ms": syncs,
        "three_syncs_p50_ms": three,
        "disturbed": disturbed,
        "rows": figures.to_json(rows),
    }


@contextlib.contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as path:
        yield Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="the directory for the data: it decides which disk is measured")
    parser.add_argument("--quick", action="store_true", help="short rounds and small states: figures that say little")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of the parts {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run there")
    parser.add_argument("--render", type=Path, metavar="FILE", help="do not measure: show the run in this file")
    parser.add_argument(
        "--write", type=Path, metavar="DIRECTORY", help=f"write the run into {PAGE} there, and its plot"
    )
    given = parser.parse_args()
    only = given.only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if given.render is not None:
        run = json.loads(given.render.read_text(encoding="utf-8"))
    else:
        run = measure(given.directory, QUICK if given.quick else FULL, only)
    if given.json is not None:
        write_json(given.json, run)
    if given.write is not None:
        page = given.write / PAGE
        page.write_text(figures.with_block(page.read_text(encoding="utf-8"), run), encoding="utf-8")
        (given.write / PLOT).write_text(figures.plot(run), encoding="utf-8")
        write_json(given.write / JSON, run)
    print(figures.table(run))


def write_json(path: Path, run: dict[str, Any]) -> None:
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
