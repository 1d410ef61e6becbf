"""Tables and lists of fields for people: they fit the width of the terminal, and show times as ages.

Here: layout. Not here: the columns of each command, and JSON. Invariant: an id, an address, a time or a number is
printed in full, on one line. On a narrow terminal text is shortened, and a line names the columns that are left out.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps
from typing import IO, Final

import click

from warren_raft.support.wording import in_units, printable

from .streams import loss_accepted

GAP: Final = "  "
SHORTEST: Final = 8
"""A text column is not made narrower than this or than its header; it is left out instead."""
FIELD_WIDTH_MIN: Final = 24
"""A value beside its name is not wrapped if fewer cells than this are free for it."""


@dataclass(frozen=True, slots=True)
class Column:
    """`gives`: a text column; on a narrow terminal it is shortened, then left out. `wide`: shown with -o wide only."""

    header: str
    gives: bool = False
    wide: bool = False


def one_line(text: str) -> str:
    """A sentence on one line, with an escape like `\\x07` for each character that would control the terminal."""
    return printable("".join(" " if c.isspace() else c for c in text))


def say(text: str, *, err: bool = False) -> None:
    """Prints lines for people, with an escape for each character that would control the terminal. `err`: a note on
    stderr, which is lost if nobody reads it."""
    lines = "\n".join(map(printable, text.split("\n")))
    if not err:
        click.echo(lines)
        return
    with loss_accepted(sys.stderr):
        click.echo(lines, err=True)


def cell(value: object) -> str:
    """A JSON value in the form for a table."""
    if value is None or value in ("", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case list() if all(isinstance(item, str) for item in value):
            return printable(",".join(value))
        case dict() if all(isinstance(item, str | int | float) for item in value.values()):
            return printable(",".join(f"{name}={item}" for name, item in value.items()))
        case dict() | list():
            return printable(dumps(value))
        case _:
            return printable(str(value))


def with_units(name: str, value: object) -> tuple[str, object]:
    """A field and its value for people: `db_size_bytes`, 282624 become `db_size`, 276.0 KiB."""
    if not name.endswith("_bytes") or not isinstance(value, int):
        return name, value
    stem = name.removesuffix("_bytes")
    return stem if stem.endswith("size") else f"{stem}_size", in_units(value)


# Times ---------------------------------------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """A duration in its largest unit, mostly two or three characters: 45s, 12m, 5h, 3d."""
    for unit, size, up_to in (("s", 1, 60), ("m", 60, 60), ("h", 3600, 48)):
        if seconds < size * up_to:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds // 86_400)}d"


def time_shown(time: str | None, *, wide: bool) -> str | None:
    """A JSON time as its age, `3d`, or as `in 5h` if it is in the future; unchanged with `wide`."""
    if time is None or wide:
        return time
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    return age(seconds) if seconds >= 0 else f"in {age(-seconds)}"


def end_shown(time: str) -> str:
    """The end of something that is valid until then: `in 5h`, or `EXPIRED 3d ago`."""
    shown = str(time_shown(time, wide=False))
    return shown if shown.startswith("in ") else f"EXPIRED {shown} ago"


# Layout --------------------------------------------------------------------------------------------------------------


def print_table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]], *, wide: bool = False) -> None:
    """Prints rows under headers, one line a row. On a terminal text is shortened to fit. In a pipe, for grep and awk,
    and with `wide` nothing is shortened."""
    named = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [[cell(value) for value in row] for row in rows]
    shown = [number for number, column in enumerate(named) if wide or not column.wide]
    widths = [max(map(_width, (named[n].header, *(row[n] for row in cells)))) for n in shown]
    left_out: list[str] = []
    if is_terminal() and not wide:
        widths = _narrowed(widths, [named[n] for n in shown], terminal_width())
        left_out = [named[n].header for n, width in zip(shown, widths, strict=True) if width == 0]
    _print_row([named[n].header.upper() for n in shown], widths, is_header=True)
    for row in cells:
        _print_row([row[n] for n in shown], widths)
    if left_out:
        say(f"the terminal is too narrow for: {', '.join(left_out)} (-o wide shows all columns)", err=True)


def _narrowed(widths: Sequence[int], columns: Sequence[Column], room: int) -> list[int]:
    """Widths that fit into `room`, if that is possible. The widest text column is shortened first. Width 0 means that
    the column is left out; the last text columns are left out first."""
    fitting = list(widths)
    givers = [number for number, column in enumerate(columns) if column.gives]
    least = {number: min(widths[number], max(SHORTEST, _width(columns[number].header))) for number in givers}
    while (over := _line_width(fitting) - room) > 0:
        can_give = [number for number in givers if fitting[number] > least[number]]
        if can_give:
            widest = max(can_give, key=lambda number: fitting[number])
            next_widest = max((fitting[number] for number in can_give if number != widest), default=0)
            most = fitting[widest] - max(least[widest], next_widest)
            fitting[widest] -= max(1, min(over, most))
        elif any(fitting[number] for number in givers):
            fitting[max(number for number in givers if fitting[number])] = 0
            fitting = [width and original for width, original in zip(fitting, widths, strict=True)]
        else:
            break
    return fitting


def _line_width(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + len(GAP) * (len(shown) - 1)


def _print_row(texts: Sequence[str], widths: Sequence[int], *, is_header: bool = False) -> None:
    cells = [_fitted(text, width) for text, width in zip(texts, widths, strict=True) if width]
    line = GAP.join(cells).rstrip()
    click.echo(click.style(line, bold=True) if is_header and is_terminal() else line)


def _fitted(text: str, width: int) -> str:
    """The text padded or shortened to a width, in terminal cells."""
    over = _width(text) - width
    if over <= 0:
        return text + " " * -over
    text = text[:width]
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…" + " " * (width - 1 - _width(text))


def _width(text: str) -> int:
    """The width in terminal cells: some characters take two cells, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def is_terminal() -> bool:
    return is_open_terminal(sys.stdout)


def is_open_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream of `sys` is a terminal. It is None if it was closed before the process began."""
    return stream is not None and stream.isatty()


def terminal_width() -> int:
    """In columns. 80 without a terminal."""
    return shutil.get_terminal_size().columns


def print_text(text: str, *, indent: int) -> None:
    """Prints a sentence. On a terminal its further lines are indented."""
    room = terminal_width() - indent if is_terminal() else 0
    text = one_line(text)
    first, *others = _wrapped(text, room) if room >= FIELD_WIDTH_MIN else [text]
    click.echo(first)
    for line in others:
        click.echo(" " * indent + line)


# Fields --------------------------------------------------------------------------------------------------------------


def print_fields(fields: Mapping[str, object] | Iterable[tuple[str, object]]) -> None:
    """Prints names and values, one line each. On a terminal a long value is wrapped under its own column."""
    pairs = [(name, cell(value)) for name, value in (fields.items() if isinstance(fields, Mapping) else fields)]
    indent = max((len(name) for name, _ in pairs), default=0) + len(GAP)
    room = terminal_width() - indent if is_terminal() else 0
    for name, text in pairs:
        lines = list(_wrapped(text, room)) if room >= FIELD_WIDTH_MIN else [text]
        click.echo(f"{name:<{indent}}{lines[0]}")
        for line in lines[1:]:
            click.echo(" " * indent + line)


def _wrapped(text: str, room: int) -> Iterator[str]:
    """Lines that end after a space or a comma. A word without either is never broken, so that it can be copied."""
    line = ""
    for part in filter(None, re.findall(r"[^\s,]*[\s,]*", text)):
        if line and _width(line) + _width(part.rstrip()) > room:
            yield line.rstrip()
            line = ""
        line += part
    yield line.rstrip()
