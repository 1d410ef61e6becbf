"""`warren-raft bench`: writes to a running cluster for some seconds, and says how many it took and how long they took.

Here: the question, the load, the report, the removal. Not here: the stages of a write (readings.py).
Invariant: only volumes whose ids begin with PREFIX are written and removed, and nothing is written before a yes.
"""

from __future__ import annotations

import math
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.errors import RefusedForSafety, Unavailable, WarrenError
from warren_raft.fsm.history import MAX_BYTES, MAX_CHANGES
from warren_raft.support.wording import counted
from warren_raft.support.workers import Workers

from .common import WarrenCommand, WholeNumberType, database, manager, print_json, wants_json
from .data import progress
from .readings import STAGES, Reading, quantiles, write_stage_quantiles
from .tables import is_open_terminal, print_fields, say
from .top import QUANTILE, read, seconds_shown

if TYPE_CHECKING:
    from warren_raft.admin.client import AdminClient

PREFIX: Final = "warren-raft-bench-"
CLIENTS_MAX: Final = 30
"""Fewer than the calls that a manager carries out at a time, so that an operator's own writes need not queue."""
SIZE_MAX: Final = 1_000_000
WRITE_SECONDS: Final = 10.0
"""The deadline of one write: a cluster that takes longer has a fault."""


@click.command("bench", cls=WarrenCommand)
@click.option(
    "--seconds", type=WholeNumberType(1, 600), default=10, metavar="N", help="How long, 1 to 600.  [default: 10]"
)
@click.option(
    "--clients",
    type=WholeNumberType(1, CLIENTS_MAX),
    default=8,
    metavar="N",
    help=f"Writes at a time, 1 to {CLIENTS_MAX}.  [default: 8]",
)
@click.option(
    "--size",
    type=WholeNumberType(0, SIZE_MAX),
    default=256,
    metavar="BYTES",
    help=f"Bytes in each entity, 0 to {SIZE_MAX:,}.  [default: 256]",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def bench(seconds: int, clients: int, size: int, yes: bool) -> None:
    """Load a running cluster with writes: how many a second, and how long one takes.

    It writes to this cluster: each client overwrites one volume, and its id begins with warren-raft-bench-. At the
    end the volumes are removed. Programs that watch volumes see them. Each write is a revision, and old revisions leave
    the history, so a program that is behind may have to read everything again. It ends at the first write that fails.

    \b
    Example: warren-raft bench --seconds 10 --clients 8 --data-dir data/m1
    """
    asked = manager()
    status = asked.status()
    _confirm(status, seconds, yes)
    _remove(asked, _leftovers())
    ids = [f"{PREFIX}{secrets.token_hex(4)}-{number}" for number in range(clients)]
    before = read(asked)
    try:
        load = _load(asked, ids, size, seconds)
        after = read(asked)
    finally:
        _remove(asked, ids)
    _print(status, load, before, after, clients, size)


def _confirm(status: Mapping[str, Any], seconds: int, yes: bool) -> None:
    """Raises RefusedForSafety without a yes."""
    if yes:
        return
    cluster = f"cluster {status['cluster_id']}"
    if not is_open_terminal(sys.stdin):
        raise RefusedForSafety(f"{cluster} would be written to for {seconds} s: add --yes to do it")
    say(
        f"This writes to {cluster} ({status['verdict']['text']}) for {seconds} s, as fast as it can. It then "
        f"removes all volumes with an id that begins with {PREFIX}. Other writers wait longer meanwhile, and "
        f"of the history only the last {MAX_CHANGES:,} revisions remain, at most {MAX_BYTES >> 20} MiB.",
        err=True,
    )
    if not click.confirm("Write to this cluster?", err=True):
        raise RefusedForSafety("nothing was written")


@dataclass(frozen=True, slots=True)
class Load:
    """The writes of all clients."""

    seconds: float
    durations: Sequence[float]
    """In seconds, sorted; at least one."""

    def quantile(self, share: float) -> float:
        return self.durations[math.ceil(len(self.durations) * share) - 1]


def _load(asked: AdminClient, ids: Sequence[str], size: int, seconds: int) -> Load:
    """Writes with a client for each id. Raises the error of the first write that fails, and Unavailable if none was
    done in time."""
    stop, workers = threading.Event(), Workers(len(ids), "warren-bench")
    begin = time.monotonic()
    clients: list[Future[list[float]]] = []
    try:
        clients += [workers.submit(_write, asked, id_, size, stop) for id_ in ids]
        with progress("writing", seconds) as advance:
            for second in range(1, seconds + 1):
                done, _ = wait(clients, begin + second - time.monotonic(), FIRST_EXCEPTION)
                if done:
                    break  # with an error: a client ends by itself only then
                advance(1)
    finally:
        stop.set()
        workers.shutdown(seconds=2 * WRITE_SECONDS)
    durations = sorted(each for client in clients for each in client.result())
    if not durations:
        raise Unavailable(f"no write was done in {seconds} s", maybe_applied=True)
    return Load(time.monotonic() - begin, durations)


def _write(asked: AdminClient, id_: str, size: int, stop: threading.Event) -> list[float]:
    durations: list[float] = []
    filling = "x" * size
    while not stop.is_set():
        begin = time.perf_counter()
        volume = {"id": id_, "driver": "none", "options": {"write": str(len(durations)), "filling": filling}}
        asked.put("volume", volume, timeout=WRITE_SECONDS)
        durations.append(time.perf_counter() - begin)
    return durations


def _leftovers() -> list[str]:
    """The volumes of an earlier run that was killed."""
    with database() as store:
        return [volume.id for volume in store.list_volumes() if volume.id.startswith(PREFIX)]


def _remove(asked: AdminClient, ids: Sequence[str]) -> None:
    try:
        for id_ in ids:
            asked.delete("volume", id_, timeout=WRITE_SECONDS)
    except WarrenError as error:
        error.add_note(f"volumes whose ids begin with {PREFIX} may remain: the next warren-raft bench removes them")
        raise


def _print(status: Mapping[str, Any], load: Load, before: Reading, after: Reading, clients: int, size: int) -> None:
    stages = quantiles(before, after, QUANTILE)
    write_stages = write_stage_quantiles(before, after, QUANTILE)
    rate = len(load.durations) / load.seconds
    p50, p99, longest = load.quantile(0.5), load.quantile(0.99), load.durations[-1]
    if wants_json():
        print_json(
            {
                "writes": len(load.durations),
                "seconds": round(load.seconds, 3),
                "writes_per_second": round(rate, 1),
                "p50_seconds": round(p50, 6),
                "p99_seconds": round(p99, 6),
                "max_seconds": round(longest, 6),
                "manager_p99_seconds": {stage: stages.get(stage) for stage in STAGES},
                "write_stages_p99_seconds": write_stages,
                "clients": clients,
                "size_bytes": size,
                "node_id": status["node_id"],
                "leader": status["leader"],
            }
        )
        return
    fields = {
        "load": f"{counted(clients, 'client')} of {status['node_id']}, {size:,} bytes in each entity; "
        f"{status['leader']} leads",
        "writes": f"{len(load.durations):,} in {load.seconds:.1f} s: {rate:,.0f} a second",
        "a write": ", ".join(
            f"{name} {seconds_shown(value)}" for name, value in (("p50", p50), ("p99", p99), ("longest", longest))
        ),
        f"p99 in {status['node_id']}": ", ".join(f"{stage} {seconds_shown(value)}" for stage, value in stages.items()),
        "p99 by stage": ", ".join(f"{stage} {seconds_shown(value)}" for stage, value in write_stages.items()),
    }
    print_fields({name: text for name, text in fields.items() if text})
