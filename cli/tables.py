"""Tables and lists of fields for people: what gives way where a terminal is narrow, and ages for times.

Here: layout. Not here: which columns a command has, and JSON. Invariant: an id, an address, a time or a number is
printed whole, on one line; on a terminal text gives way to it, and what is left out is said.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps
from typing import Final

import click

GAP: Final = "  "
SHORTEST: Final = 8
"""A column of text is not cut shorter than this, or than its header; rather it is left out."""
FIELD_WIDTH_MIN: Final = 24
"""A value beside its name is not wrapped where there is less room than this."""


@dataclass(frozen=True, slots=True)
class Column:
    """`gives`: text, which is cut, and then left out, where a terminal is too narrow. `wide`: with -o wide only."""

    header: str
    gives: bool = False
    wide: bool = False


def one_line(text: str) -> str:
    """The text without anything that would break a line or drive a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def cell(value: object) -> str:
    """A value of JSON as it stands in a table."""
    if value is None or value in ("", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case list() if all(isinstance(item, str) for item in value):
            return one_line(",".join(value))
        case dict() if all(isinstance(item, str | int | float) for item in value.values()):
            return one_line(",".join(f"{name}={item}" for name, item in value.items()))
        case dict() | list():
            return one_line(dumps(value))
        case _:
            return one_line(str(value))


# Times ---------------------------------------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """A span of time in its largest unit, in two or three characters mostly: 45s, 12m, 5h, 3d."""
    for unit, size, up_to in (("s", 1, 60), ("m", 60, 60), ("h", 3600, 48)):
        if seconds < size * up_to:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds // 86_400)}d"


def time_shown(time: str | None, *, wide: bool) -> str | None:
    """A time of JSON as its age, `3d`, or `in 5h` where it is to come; whole with -o wide."""
    if time is None or wide:
        return time
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    return age(seconds) if seconds >= 0 else f"in {age(-seconds)}"


# Layout --------------------------------------------------------------------------------------------------------------


def print_table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]], *, wide: bool = False) -> None:
    """Rows under headers, one line a row. On a terminal text is cut to make them fit; elsewhere, for grep and awk, and
    with `wide` everything is whole."""
    named = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [[cell(value) for value in row] for row in rows]
    shown = [number for number, column in enumerate(named) if wide or not column.wide]
    widths = [max(map(_width, (named[n].header, *(row[n] for row in cells)))) for n in shown]
    left_out: list[str] = []
    if is_terminal() and not wide:
        widths = _narrowed(widths, [named[n] for n in shown], _terminal_width())
        left_out = [named[n].header for n, width in zip(shown, widths, strict=True) if width == 0]
    _print_row([named[n].header.upper() for n in shown], widths, is_header=True)
    for row in cells:
        _print_row([row[n] for n in shown], widths)
    if left_out:
        click.echo(f"left out for want of width: {', '.join(left_out)} (-o wide shows all)", err=True)


def _narrowed(widths: Sequence[int], columns: Sequence[Column], room: int) -> list[int]:
    """Widths that fit, if they can be made to: the widest text is cut first; 0 is a column that is left out, the last
    ones first."""
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
    """Filled up or cut to a width in cells of a terminal."""
    over = _width(text) - width
    if over <= 0:
        return text + " " * -over
    text = text[:width]
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…" + " " * (width - 1 - _width(text))


def _width(text: str) -> int:
    """In cells of a terminal, where some characters take two and some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns


def print_text(text: str, *, indent: int) -> None:
    """A sentence; on a terminal it goes on below itself, indented."""
    room = _terminal_width() - indent if is_terminal() else 0
    first, *others = _wrapped(text, room) if room >= FIELD_WIDTH_MIN else [text]
    click.echo(first)
    for line in others:
        click.echo(" " * indent + line)


# Fields --------------------------------------------------------------------------------------------------------------


def print_fields(fields: Mapping[str, object] | Iterable[tuple[str, object]]) -> None:
    """Names and values, a line each; on a terminal a long value goes on below itself."""
    pairs = [(name, cell(value)) for name, value in (fields.items() if isinstance(fields, Mapping) else fields)]
    indent = max((len(name) for name, _ in pairs), default=0) + len(GAP)
    room = _terminal_width() - indent if is_terminal() else 0
    for name, text in pairs:
        lines = list(_wrapped(text, room)) if room >= FIELD_WIDTH_MIN else [text]
        click.echo(f"{name:<{indent}}{lines[0]}")
        for line in lines[1:]:
            click.echo(" " * indent + line)


def _wrapped(text: str, room: int) -> Iterator[str]:
    """Lines that end behind a space or a comma. What has neither is never broken: it can be copied whole."""
    line = ""
    for part in filter(None, re.findall(r"[^\s,]*[\s,]*", text)):
        if line and _width(line) + _width(part.rstrip()) > room:
            yield line.rstrip()
            line = ""
        line += part
    yield line.rstrip()
