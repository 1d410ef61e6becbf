"""The rows of a run of all benchmarks, as a table, as the block of a page, and as a plot.

Lives here: medians, spreads, ratios and goals. Not here: the measurement (all.py). Invariant: everything that is shown
comes from one run's JSON, so a page can be checked against it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
"""The lines around the part of a page that `benchmarks/all.py --write` replaces."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: its values, one for each round, and in the same rounds those of its reference, such as etcd or the
    bare disk. A figure of which another benchmark took the median has one value."""

    part: str
    name: str
    unit: str
    ours: list[float]
    reference: str = ""
    theirs: list[float] = field(default_factory=list)
    goal: float | None = None
    """Of the ratio if there is a reference, otherwise of the figure."""
    more_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """Ours by theirs, round by round; if the rounds differ in number, of the medians."""
        if not self.theirs:
            return []
        if len(self.ours) == len(self.theirs):
            return [own / other for own, other in zip(self.ours, self.theirs, strict=True)]
        return [statistics.median(self.ours) / statistics.median(self.theirs)]

    @property
    def is_met(self) -> bool | None:
        """None: there is no goal."""
        if self.goal is None:
            return None
        value = statistics.median(self.ratios or self.ours)
        return value >= self.goal if self.more_is_better else value <= self.goal

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        sign, factor = ("≥" if self.more_is_better else "≤"), ("×" if self.theirs else "")
        return f"{sign} {number(self.goal)}{factor} {'met' if self.is_met else 'MISSED'}"


def to_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def from_json(rows: Iterable[dict[str, Any]]) -> list[Row]:
    return [Row(**row) for row in rows]


# Text ----------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the greatest value if there are several."""
    if not values:
        return ""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"


HEADINGS = ("figure", "unit", "ours", "compared with", "theirs", "ratio", "goal")


def cells(row: Row) -> tuple[str, ...]:
    ratio = f"{spread(row.ratios)}×" if row.ratios else ""
    return row.name, row.unit, spread(row.ours), row.reference, spread(row.theirs), ratio, row.verdict


def parts(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.part, []).append(row)
    return found


def machine_lines(run: dict[str, Any]) -> list[str]:
    """The machine, the interpreter and the disk of a run, and whether they were undisturbed."""
    machine = run["machine"]
    syncs = run["fdatasync_p50_ms"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}",
        f"Python {machine['python']}, {machine['python_build']}; a fixed loop takes {machine['python_loop_ms']} ms",
        f"fdatasync before and after: {syncs[0]} and {syncs[1]} ms; three at a time {run['three_syncs_p50_ms']} ms",
        f"etcd: {run['etcd']}",
        f"{run['rounds']} rounds of {run['seconds']} s, warren_raft {run['warren_raft']}, {run['date']}",
    ]
    return lines + [f"{part}: {said}" for part, said in run["disturbed"].items()]


def table(run: dict[str, Any]) -> str:
    """The table for a terminal."""
    rows = from_json(run["rows"])
    grid = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in grid) for column in range(len(HEADINGS))]

    def line(texts: Sequence[str]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()

    lines = [*machine_lines(run), ""]
    for part, own in parts(rows).items():
        lines += ["", part.upper(), line(HEADINGS), *(line(cells(row)) for row in own)]
    return "\n".join(lines)


def page_block(run: dict[str, Any]) -> str:
    """The lines between BEGIN and END of a page."""
    lines = ["", *(f"- {line}" for line in machine_lines(run))]
    for part, own in parts(from_json(run["rows"])).items():
        lines += ["", f"### {part.capitalize()}", "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in own]
    return "\n".join([*lines, "", ""])


def with_block(page: str, run: dict[str, Any]) -> str:
    """The page with the figures of this run."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{page_block(run)}{END}{after}"


# Plot ----------------------------------------------------------------------------------------------------------------

WIDTH, BAR, GAP, LEFT, RIGHT = 840, 16, 8, 390, 80
OURS, GREY = "#1b6ca8", "#888"
MET, MISSED = "#4f7f3a", "#c8553d"
LONGEST = 4.0
"""Longer bars are cut off at this ratio."""


def plot(run: dict[str, Any]) -> str:
    """One bar for each ratio to a reference, as a picture in SVG: 1 is the reference, and a short line is the goal. A
    longer bar is better, so for times the ratio is turned around."""
    rows = [row for row in from_json(run["rows"]) if row.ratios]
    height = 50 + len(rows) * (BAR + GAP)
    scale = (WIDTH - LEFT - RIGHT) / LONGEST
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-weight="bold">times as good as the reference (line: the goal)</text>',
    ]
    for position, row in enumerate(rows):
        top = 30 + position * (BAR + GAP)
        value = _goodness(row, statistics.median(row.ratios))
        colour = GREY if row.goal is None else MET if row.is_met else MISSED
        length = min(value, LONGEST) * scale
        drawn += [
            f'<text x="{LEFT - 6}" y="{top + 12}" text-anchor="end">{row.name} : {row.reference}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LEFT + length + 5:.1f}" y="{top + 12}">{number(value)}</text>',
        ]
        if row.goal is not None:
            goal = LEFT + min(_goodness(row, row.goal), LONGEST) * scale
            drawn.append(f'<path d="M{goal:.1f} {top - 3}V{top + BAR + 3}" stroke="black"/>')
    drawn.append(f'<path d="M{LEFT + scale:.1f} 22V{height - 18}" stroke="{OURS}" stroke-dasharray="3"/>')
    drawn.append(f'<text x="{LEFT + scale:.1f}" y="{height - 5}" text-anchor="middle">1: the reference</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _goodness(row: Row, ratio: float) -> float:
    return ratio if row.more_is_better else 1 / ratio
