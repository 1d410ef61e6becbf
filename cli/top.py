"""`warren-raft top`: the cluster as one manager knows it, live in a terminal.

Here: the frame, the loop, the key that ends it. Not here: the rates (readings.py), the verdict (the manager's own).
Invariant: it only reads, and asks the manager once a second; the terminal is as before when it ends, also by SIGTERM
or an error.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.errors import WarrenError

from .common import ShowingCommand, manager, print_json, wants_json
from .readings import (
    STAGES,
    Reading,
    began_again,
    changes_per_second,
    histograms_in,
    quantiles,
    write_stage_quantiles,
    write_stages_in,
)
from .signals import handled
from .status import contact_shown, role_shown, size_shown
from .tables import age, is_open_terminal, one_line, time_shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
    from rich.table import Table
    from rich.text import Text

    from warren_raft.admin.client import AdminClient

EVERY_SECONDS: Final = 1.0
WINDOW: Final = 6
"""Readings that are kept: rates and quantiles are of the last five seconds, so that a single slow write is seen."""
QUANTILE: Final = 0.99
VERDICT_STYLES: Final[Mapping[str, str]] = {"healthy": "bold green", "degraded": "bold yellow"}
FAULT: Final = "bold red"
NUMBERS: Final = ("APPLIED", "LAG", "FREE", "DATABASE")
COLUMNS: Final = ("MEMBER", "ROLE", "CONTACT", *NUMBERS, "ALARMS")
LEFT_OUT_FIRST: Final = ("DATABASE", "FREE", "LAG")
"""On a narrow terminal the first of these columns, then the next: a number that is cut is worse than none."""
GAP: Final = 2
ID_MIN: Final = 8
"""Longer ids of members are shortened before a column is left out."""


@click.command("top", cls=ShowingCommand)
@click.option("--once", is_flag=True, help="Print one picture after a second, and end.")
def top(once: bool) -> None:
    """Show the cluster live: members, roles, lag, writes a second, p99, sizes and alarms.

    q ends it. The numbers are those that one running manager knows. Writes a second are changes of the state, of all
    managers' callers. p99 is of the last five seconds on this manager: write is a write of its own callers from call to
    return, sync its log, apply its state; stages are those of such a write (see explain).

    \b
    Example: warren-raft top --data-dir data/m1
    Example: warren-raft top --once -o json --data-dir data/m1
    """
    asked = manager()
    if once:
        before = read(asked)
        time.sleep(EVERY_SECONDS)
        _print_once(before, read(asked))
        return
    if wants_json() or not (is_open_terminal(sys.stdin) and is_open_terminal(sys.stdout)):
        raise click.UsageError("top is for a terminal; add --once for one picture")
    _run(asked)


def read(asked: AdminClient) -> Reading:
    """The manager now. Raises the errors of a call."""
    status = asked.status()
    page = asked.page("/metrics")
    if page is None:
        return Reading(time.monotonic(), status, {})
    return Reading(time.monotonic(), status, histograms_in(page), write_stages_in(page))


def _print_once(before: Reading, after: Reading) -> None:
    if wants_json():
        rate = changes_per_second(before, after)
        stages = quantiles(before, after, QUANTILE)
        print_json(
            {
                "writes_per_second": None if rate is None else round(rate, 1),
                "p99_seconds": {stage: stages.get(stage) for stage in STAGES},
                "write_stages_p99_seconds": write_stage_quantiles(before, after, QUANTILE),
                "status": after.status,
            }
        )
        return
    from rich.console import Console

    Console(highlight=False).print(frame(before, before, after))


def _run(asked: AdminClient) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    readings = deque([read(asked)], maxlen=WINDOW)  # before the screen is taken: an error now is one line
    problem = ""
    with (
        _keys() as pressed,
        Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live,
    ):
        while True:
            shown = frame(readings[0], readings[max(-3, -len(readings))], readings[-1], problem)
            live.update(Text("terminal too small") if live.console.width < 40 else shown, refresh=True)
            if "q" in pressed(EVERY_SECONDS):
                return
            try:
                reading = read(asked)
                if began_again(readings[-1], reading):
                    readings.clear()  # its counters began again too
                readings.append(reading)
                problem = ""
            except WarrenError as error:
                problem = str(error)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yields a function that waits for keys, at most so many seconds, and returns them. The end of stdin is a q."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    keys = select.poll()
    keys.register(descriptor, select.POLLIN)

    def pressed(seconds: float) -> str:
        return os.read(descriptor, 1024).decode(errors="replace") or "q" if keys.poll(seconds * 1e3) else ""

    with handled({signal.SIGTERM: lambda *_: sys.exit(128 + signal.SIGTERM)}):
        try:
            tty.setcbreak(descriptor)
            yield pressed
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# ---------------------------------------------------------------------------------------------- the frame


def frame(before: Reading, recent: Reading, after: Reading, problem: str = "") -> RenderableType:
    """The picture of the cluster, for 80 columns and more, at `after`. Rates and quantiles are since `before`.

    `recent`: a reading one or two seconds earlier, since when every member has reported. `problem`: why `after` is not
    of now.
    """
    from rich.console import Group
    from rich.text import Text

    status = after.status
    parts: list[RenderableType] = [_Head(status)]
    if problem:
        parts.append(Text(one_line(f"out of date: {problem}"), style=FAULT))
    parts += [_verdict(status), Text(), _numbers(before, after), Text(), _Members(recent, after)]
    alarms = [*_alarms(status)]
    if alarms:
        parts += [Text(), *alarms]
    return Group(*parts)


class _Head:
    """The first line: the manager, shortened on a narrow terminal, and the time."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        status = self._status
        cluster = status["cluster_id"] or "none yet"
        up = f", up {age(status['uptime_seconds'])}" if "uptime_seconds" in status else ""
        right = f"  {time.strftime('%H:%M:%S')}  q quits"
        left = Text.assemble((status["node_id"], "bold"), f" of cluster {cluster:.12}, version {status['version']}{up}")
        left.truncate(options.max_width - len(right), overflow="ellipsis", pad=True)
        return iter([Text.assemble(left, (right, "dim"))])


def _verdict(status: Mapping[str, Any]) -> Text:
    from rich.text import Text

    verdict = status["verdict"]
    style = VERDICT_STYLES.get(verdict["state"], FAULT)
    return Text.assemble((verdict["state"], style), f": {one_line(verdict['text'])}")


def _numbers(before: Reading, after: Reading) -> RenderableType:
    from rich.table import Table

    status, rate = after.status, changes_per_second(before, after)
    snapshot = status["snapshot"]
    stages = quantiles(before, after, QUANTILE)
    write_stages = write_stage_quantiles(before, after, QUANTILE)
    entities = (
        ", ".join(f"{count:,}\N{NO-BREAK SPACE}{plural}" for plural, count in status["counts"].items() if count)
        or "none"
    )
    rows = {
        "writes": f"{'-' if rate is None else f'{rate:,.0f}'} a second, {status['pending_writes']} on their way here",
        "p99": ", ".join(f"{stage} {seconds_shown(stages[stage])}" for stage in STAGES if stage in stages),
        "stages": ", ".join(f"{stage} {seconds_shown(value)}" for stage, value in write_stages.items()),
        "state": f"revision {status['revision']}, index {status['applied_index']}, "
        f"{size_shown(status['db_size_bytes'])}",
        "log": f"{status['log_entries']:,} entries, {size_shown(status['log_bytes'])}; snapshot "
        + ("none yet" if snapshot is None else f"{age(snapshot['age_seconds'])} old, "
           f"{size_shown(snapshot['size_bytes'])}"),
        "entities": entities,
    }  # fmt: skip
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    table.columns[0].style = "dim"
    return table


def seconds_shown(seconds: float | None) -> str:
    """A duration for people, in milliseconds below a second."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


class _Members:
    """The table of the members, without the last of LEFT_OUT_FIRST on a terminal that is too narrow for them."""

    def __init__(self, recent: Reading, after: Reading) -> None:
        self._members = after.status["members"]
        self._rows = [[one_line(cell) for cell in _cells(member, recent)] for member in self._members]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Table]:
        from rich.table import Table
        from rich.text import Text

        names = self._names(options.max_width)
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        for name in names:
            justify: JustifyMethod = "right" if name in NUMBERS else "left"
            table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True, min_width=self._width(name))
        for member, row in zip(self._members, self._rows, strict=True):
            style = FAULT if not member["connected"] else "bold" if member["leader"] else ""
            table.add_row(*(Text(row[COLUMNS.index(name)]) for name in names), style=style)
        return iter([table])

    def _names(self, width: int) -> list[str]:
        names = [*COLUMNS]
        for name in LEFT_OUT_FIRST:
            if sum(map(self._width, names)) + GAP * (len(names) - 1) > width:
                names.remove(name)
        return names

    def _width(self, name: str) -> int:
        """The alarms and the ids may be shortened, the numbers may not."""
        cells = [] if name == "ALARMS" else [row[COLUMNS.index(name)] for row in self._rows]
        widest = max(map(len, [name, *cells]))
        return min(widest, ID_MIN) if name == "MEMBER" else widest


def _cells(member: Mapping[str, Any], recent: Reading) -> list[str]:
    """One for each of COLUMNS."""
    alarms = [f"{alarm['name']} {alarm['subject']}".rstrip() for alarm in member["alarms"] or []]
    cells = [
        member["id"],
        role_shown(member),
        contact_shown(member),
        member["applied_index"],
        _lag(member, recent),
        size_shown(member["disk_free_bytes"]),
        size_shown(member["database_bytes"]),
        ", ".join(alarms),
    ]
    return ["-" if cell is None else str(cell) for cell in cells]


def _lag(member: Mapping[str, Any], recent: Reading) -> int | None:
    """The entries that a member still has to apply, without those of the last moment: its report may be as old."""
    lag: int | None = member["lag_entries"]
    return lag and min(lag, max(0, recent.status["applied_index"] - member["applied_index"]))


def _alarms(status: Mapping[str, Any]) -> Iterator[Text]:
    """The alarms of this manager. Those of the others, which are in their rows, have no text here."""
    from rich.text import Text

    for alarm in status["alarms"]:
        style = FAULT if alarm["severity"] == "critical" else "bold yellow"
        about = one_line(f"{alarm['name']} {alarm['subject']}".rstrip())
        since = time_shown(alarm["since"], wide=False)
        yield Text.assemble((about, style), f" for {since}: {one_line(alarm['text'])}")
