"""Whether a cluster stays as large as it is: `scripts/soak.sh --minutes 60 [--csv soak.csv] [--svg soak.svg]`.

Three managers under load on a bounded set of records (updates and deletes), with hundreds of snapshots in an hour.
Every minute the sizes of each manager's files and memory are measured. At the end no size may have grown from the first
half to the last. `--render soak.csv --svg soak.svg` draws a run again. Exits with 1 if something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.cluster.harness import Cluster

MINUTES: Final = 60.0
EVERY_SECONDS: Final = 60.0
SNAPSHOT_AFTER_MIB: Final = 4.0
HISTORY_CHANGES: Final = 5_000
"""The changes that the managers of a soak keep, instead of 100,000. Otherwise the state would be mostly history, and no
snapshot would be taken before the log has grown by tens of megabytes."""
RECORDS: Final = 2_000
THREADS: Final = 4
WRITES_PER_SECOND: Final = 300.0
"""Through all managers. A state file never shrinks: it keeps the size that its longest copy needed, and that is larger
when more is written during a copy. So the load is the same from the first minute to the last."""
WARM_SHARE: Final = 0.1
"""This part of the run, at its beginning, is not judged: caches fill, and the history reaches its length."""
MIB: Final = 1024 * 1024

GROWTH_SHARE: Final = 0.10
"""The highest value of the last half may be above the highest of the first half by this share, and by a metric's slack:
the size of one more segment, or of one snapshot on its way."""
SLACK: Final = {
    "log_mib": 17.0,
    "log_segments": 2.0,
    "state_mib": 2.0,
    "state_used_mib": 1.0,
    "snapshots_mib": 8.0,
    "rss_anon_mib": 8.0,
    "reader_slots": 4.0,
    "open_fds": 8.0,
}
SLOWER_SHARE: Final = 0.3
"""The median of the writes per second may be lower in the last half by this share."""


@dataclass(frozen=True)
class Sample:
    """One manager at one time. Sizes are those of files on the disk, in MiB."""

    seconds: float
    manager: str
    log_mib: float
    log_segments: int
    state_mib: float
    state_used_mib: float
    """Without the pages of the file that no commit needs any more."""
    snapshots_mib: float
    snapshots_taken_at: int
    """The index of the newest snapshot."""
    rss_anon_mib: float
    reader_slots: int
    open_fds: int
    writes_per_second: float
    p99_ms: float


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(cluster: Cluster, id_: str, began: float, seconds: float) -> Sample:
    log, snapshots = cluster.data_dir(id_) / "log", cluster.data_dir(id_) / "snapshots"
    done, p99 = cluster.call(id_, "churned")
    status = cluster.status(id_)
    pid = cluster.processes[id_].pid
    return Sample(
        seconds=round(time.monotonic() - began, 1),
        manager=id_,
        log_mib=size_mib(log),
        log_segments=len(list(log.iterdir())),
        state_mib=size_mib(cluster.state_of(id_)),
        state_used_mib=round(cluster.call(id_, "state_used_bytes") / MIB, 2),
        snapshots_mib=size_mib(snapshots),
        snapshots_taken_at=(status["snapshot"] or {"index": 0})["index"],
        rss_anon_mib=rss_anon_mib(pid),
        reader_slots=cluster.call(id_, "reader_slots"),
        open_fds=len(os.listdir(f"/proc/{pid}/fd")),
        writes_per_second=round(done / seconds, 1),
        p99_ms=round(p99 * 1e3, 1),
    )


def size_mib(directory: Path) -> float:
    total = 0
    for path in directory.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was removed just now
            total += path.stat().st_blocks * 512
    return round(total / MIB, 2)


def rss_anon_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return round(next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon")), 1)


def run(
    minutes: float, every_seconds: float, snapshot_after_mib: float, writes_per_second: float | None
) -> list[Sample]:
    """Run, and print a line a minute. AssertionError: the managers' states differ at the end."""
    samples: list[Sample] = []
    config = {"snapshot_after_bytes": int(snapshot_after_mib * MIB)}
    with Cluster(history_changes=HISTORY_CHANGES, **config) as cluster:
        began = last = time.monotonic()
        each = None if writes_per_second is None else writes_per_second / len(cluster.alive)
        cluster.call_all("start_churn", threads=THREADS, records=RECORDS, writes_per_second=each)
        print(HEADING, flush=True)
        while time.monotonic() - began < minutes * 60:
            due = min(last + every_seconds, began + minutes * 60)
            cluster.wait(lambda due=due: time.monotonic() >= due, "the next sample", every_seconds + 60)
            now = time.monotonic()
            samples += (row := [measure(cluster, id_, began, now - last) for id_ in cluster.alive])
            last = now
            print(line_of(row), flush=True)
        cluster.call_all("stop_churn")
        cluster.wait_converged()
    return samples


HEADING: Final = (
    "  min  log MiB          segments  state MiB        of it used       snapshots MiB    "
    "RssAnon MiB      slots     fds         writes/s  p99 ms  newest snapshot"
)


def line_of(row: Sequence[Sample]) -> str:
    """One line for all managers; figures in the order of their ids."""

    def each(name: str, digits: int = 1) -> str:
        return "/".join(f"{getattr(sample, name):.{digits}f}" for sample in row)

    return (
        f"{row[0].seconds / 60:5.1f}  {each('log_mib'):<15}  {each('log_segments', 0):<8}  {each('state_mib'):<15}  "
        f"{each('state_used_mib'):<15}  "
        f"{each('snapshots_mib'):<15}  {each('rss_anon_mib'):<15}  {each('reader_slots', 0):<8}  "
        f"{each('open_fds', 0):<10}  {sum(sample.writes_per_second for sample in row):8.0f}  "
        f"{max(sample.p99_ms for sample in row):6.1f}  {max(sample.snapshots_taken_at for sample in row)}"
    )


# Judging -------------------------------------------------------------------------------------------------------------


def problems_of(samples: Sequence[Sample]) -> list[str]:
    """A line for each value that grew."""
    end = max(sample.seconds for sample in samples)
    judged = [sample for sample in samples if sample.seconds > end * WARM_SHARE]
    middle = end * (1 + WARM_SHARE) / 2
    found = []
    for id_ in sorted({sample.manager for sample in judged}):
        first = [sample for sample in judged if sample.manager == id_ and sample.seconds <= middle]
        last = [sample for sample in judged if sample.manager == id_ and sample.seconds > middle]
        if not first or not last:
            return ["too few samples to be judged: a longer run, or --every"]
        for name, slack in SLACK.items():
            before, after = (max(getattr(sample, name) for sample in half) for half in (first, last))
            if after > before * (1 + GROWTH_SHARE) + slack:
                found.append(f"{id_}: {name} grew from {before:g} to {after:g}")
        before, after = (median(sample.writes_per_second for sample in half) for half in (first, last))
        if after < before * (1 - SLOWER_SHARE):
            found.append(f"{id_}: writes_per_second fell from {before:g} to {after:g}")
        if first[-1].snapshots_taken_at >= last[-1].snapshots_taken_at:
            found.append(f"{id_}: no snapshot was taken in the last half")
    return found


# CSV and SVG ---------------------------------------------------------------------------------------------------------


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def read_csv(path: Path) -> list[Sample]:
    convert: dict[str, Any] = {"float": float, "int": int, "str": str}
    with open(path, newline="", encoding="utf-8") as file:
        return [
            Sample(**{field.name: convert[str(field.type)](row[field.name]) for field in fields(Sample)})
            for row in csv.DictReader(file)
        ]


PANELS: Final = (
    ("log_mib", "log on disk, MiB"),
    ("state_mib", "state file, MiB"),
    ("state_used_mib", "of it in use, MiB"),
    ("snapshots_mib", "snapshots, MiB"),
    ("rss_anon_mib", "RssAnon, MiB"),
    ("reader_slots", "reader slots"),
    ("open_fds", "open descriptors"),
    ("writes_per_second", "writes/s through each"),
    ("p99_ms", "p99, ms"),
)
COLOURS: Final = ("#1b6ca8", "#c8553d", "#4f7f3a")
WIDTH, HEIGHT, MARGIN, COLUMNS = 380, 150, 46, 2


def to_svg(samples: Sequence[Sample]) -> str:
    """One panel for each metric, one line for each manager; axes begin at 0."""
    rows = -(-len(PANELS) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + 30
    ids = sorted({sample.manager for sample in samples})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (name, title) in enumerate(PANELS):
        parts.append(f'<g transform="translate({number % COLUMNS * WIDTH},{number // COLUMNS * HEIGHT})">')
        parts += panel(samples, ids, name, title)
        parts.append("</g>")
    for number, id_ in enumerate(ids):
        at = f'x="{MARGIN + 80 * number}" y="{height - 10}"'
        parts.append(f'<text {at} fill="{COLOURS[number % len(COLOURS)]}">{id_}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(samples: Sequence[Sample], ids: Sequence[str], name: str, title: str) -> list[str]:
    end = max(sample.seconds for sample in samples) or 1.0
    top = max(getattr(sample, name) for sample in samples) * 1.1 or 1.0
    wide, high = WIDTH - MARGIN - 14, HEIGHT - 50
    parts = [
        f'<text x="{MARGIN}" y="16" font-weight="bold">{title}</text>',
        f'<path d="M{MARGIN} 24V{24 + high}H{MARGIN + wide}" fill="none" stroke="#888"/>',
        f'<text x="{MARGIN - 4}" y="{24 + high}" text-anchor="end">0</text>',
        f'<text x="{MARGIN - 4}" y="33" text-anchor="end">{top:.4g}</text>',
        f'<text x="{MARGIN + wide}" y="{38 + high}" text-anchor="end">{end / 60:.4g} min</text>',
    ]
    for number, id_ in enumerate(ids):
        points = " ".join(
            f"{MARGIN + wide * sample.seconds / end:.1f},{24 + high * (1 - getattr(sample, name) / top):.1f}"
            for sample in samples
            if sample.manager == id_
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[number % len(COLOURS)]}"/>')
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="soak.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--every", type=float, default=EVERY_SECONDS, metavar="SECONDS", help="between two samples")
    parser.add_argument("--snapshot-after-mib", type=float, default=SNAPSHOT_AFTER_MIB)
    parser.add_argument(
        "--rate",
        type=float,
        default=WRITES_PER_SECOND,
        metavar="N",
        help="writes a second through all managers together; 0: as many as they take",
    )
    parser.add_argument("--csv", type=Path, help="write the samples there")
    parser.add_argument("--svg", type=Path, help="draw them there")
    parser.add_argument("--render", type=Path, metavar="CSV", help="do not run: judge and draw these samples")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM ends the cluster, too
    if arguments.render is not None:
        samples = read_csv(arguments.render)
    else:
        samples = run(arguments.minutes, arguments.every, arguments.snapshot_after_mib, arguments.rate or None)
        if arguments.csv is not None:
            write_csv(arguments.csv, samples)
    if arguments.svg is not None:
        arguments.svg.write_text(to_svg(samples), encoding="utf-8")
    problems = problems_of(samples)
    print("\n".join(["FAIL", *problems]) if problems else "PASS: nothing grew from the first half to the last")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
