"""Draws the pictures of the documentation as SVG, beside this file: `python docs/pictures/draw.py`.

Lives here: the content and the places of all shapes. Not here: the packages of the house, which are read from
docs/DESIGN.md. Invariant: the same source gives the same bytes, and the pictures suit light and dark pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
DESIGN: Final = HERE.parent / "DESIGN.md"
DRAWING: Final = re.compile(r"from a line to the lines below it:\n\n```\n(.*?)```", re.DOTALL)

# The panel has a colour of its own: a page may be dark although the system is light.
STYLE: Final = """
  svg { font: 14px "Liberation Sans", Arial, Helvetica, sans-serif; }
  .panel { fill: #ffffff; stroke: #c9d1d9; }
  text { fill: #1f2933; }
  .small { font-size: 12px; fill: #52606d; }
  .head { font-weight: bold; }
  .box { fill: #eef4fb; stroke: #6b8fb3; }
  .own { fill: #e5f5ec; stroke: #57a177; }
  .bad { fill: #fbe9e7; stroke: #c0564a; }
  .lane { stroke: #c9d1d9; stroke-width: 1.5; }
  .line { stroke: #52606d; stroke-width: 1.5; fill: none; }
  .tip { fill: #52606d; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #161b22; stroke: #3d444d; }
    text { fill: #e6edf3; }
    .small { fill: #9ea7b3; }
    .box { fill: #1c2f45; stroke: #5a86b5; }
    .own { fill: #17352a; stroke: #4d9a72; }
    .bad { fill: #44211d; stroke: #d2736a; }
    .lane { stroke: #3d444d; }
    .line { stroke: #9ea7b3; }
    .tip { fill: #9ea7b3; }
  }
"""

LETTER: Final = 7.5
"""The pixels of a letter of a wide sans-serif font (DejaVu Sans), on the average of the words here. Not every host has
the fonts of STYLE."""


class Picture:
    """Shapes on a panel. Lengths are pixels; y goes down."""

    def __init__(self, title: str, width: int, height: int) -> None:
        self._width, self._height, self._title = width, height, title
        self._shapes: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self._shapes.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, *lines: str, kind: str = "box", height: float = 0) -> None:
        """A box around lines of text; x and y are those of the middle of its upper edge. The second line is smaller."""
        for line, letter in zip(lines, (LETTER, LETTER * 12 / 14), strict=False):
            if len(line) * letter > width:
                raise ValueError(f"{line!r} does not fit a box of {width:g} pixels in a wide font")
        height = height or 10 + 18 * len(lines)
        left = x - width / 2
        self._shapes.append(
            f'<rect x="{left:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>'
        )
        top = y + (height - 18 * len(lines)) / 2 + 14
        for number, line in enumerate(lines):
            self.text(x, top + 18 * number, line, "small" if number else "")

    def line(self, x: float, y: float, to_x: float, to_y: float, kind: str = "lane") -> None:
        self._shapes.append(f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" class="{kind}"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float, text: str = "") -> None:
        """An arrow with its text above the middle. A slanted one goes down, as time does."""
        self._shapes.append(f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" class="line" marker-end="url(#tip)"/>')
        if text:
            self.text((x + to_x) / 2, min(y, to_y) - 5 + abs(to_y - y) / 2, text, "small")

    def svg(self) -> str:
        size = f'width="{self._width}" height="{self._height}" viewBox="0 0 {self._width} {self._height}"'
        tip = '<path d="M0 0 L9 4.5 L0 9 z" class="tip"/>'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(self._title)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto"'
            f' markerUnits="userSpaceOnUse">{tip}</marker></defs>',
            f'<rect x="1" y="1" width="{self._width - 2}" height="{self._height - 2}" rx="8" class="panel"/>',
            *self._shapes,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def write_path() -> Picture:
    """The steps of the table in docs/DESIGN.md, from the caller and back."""
    picture = Picture("The path of a write", 920, 560)
    caller, m2, m1, m3 = 80, 300, 560, 820
    for x, name, role in ((caller, "caller", ""), (m2, "m2", "follower"), (m1, "m1", "leader"), (m3, "m3", "follower")):
        picture.text(x, 30, name, "head")
        picture.text(x, 47, role, "small")
        picture.line(x, 56, x, 545)
    picture.arrow(caller, 85, m2 - 4, 85, "1  the write, checked and encoded")
    picture.arrow(m2, 120, m1 - 4, 120, "2  the command, with a request id")
    picture.box(m1, 138, 170, "3  one log entry", "of all commands that wait")
    picture.arrow(m1, 215, m2 + 4, 215, "4  append message")
    picture.arrow(m1, 215, m3 - 4, 215, "4  append message")
    for x in (m2, m1, m3):
        picture.box(x, 235, 120, "5  sync the log")
    picture.arrow(m2, 300, m1 - 4, 300, "success")
    picture.arrow(m3, 300, m1 + 4, 300, "success")
    picture.box(m1, 315, 170, "6  committed", "a majority has it on disk")
    picture.box(m1, 385, 170, "7  apply", "one transaction, no sync")
    picture.arrow(m1, 450, m2 + 4, 450, "commit index")
    picture.arrow(m1, 450, m3 - 4, 450, "commit index")
    picture.box(m2, 466, 120, "7  apply")
    picture.box(m3, 466, 120, "7  apply")
    picture.arrow(m2, 525, caller + 4, 525, "8  the result, from m2's own state")
    return picture


def failover() -> Picture:
    """The log of one run: m1 was killed at 0 ms, and m2 led at 119 ms. The times of the followers are those of it."""
    picture = Picture("A leader is killed", 920, 430)
    start, scale = 222, 4.35
    lanes = {"caller": 75, "m1": 150, "m2": 225, "m3": 300}

    def at(milliseconds: float) -> float:
        return start + scale * milliseconds

    names = {"caller": "a caller at m2", "m1": "m1, the leader", "m2": "m2", "m3": "m3"}
    for lane, y in lanes.items():
        picture.text(16, y + 5, names[lane], "head", "start")
        picture.line(146, y, at(154), y)
    picture.box(start - 36, lanes["m1"] - 14, 72, "term 2", kind="own", height=28)
    picture.box(at(0) + 34, lanes["m1"] - 14, 68, "kill -9", kind="bad", height=28)
    for lane, milliseconds in (("m3", 5), ("m2", 8)):
        picture.box(start - 36, lanes[lane] - 14, 72, "follows", height=28)
        picture.box(at(milliseconds) + 45, lanes[lane] - 14, 90, "link broke", kind="bad", height=28)
    wait_y = lanes["m2"]
    picture.arrow(at(8) + 92, wait_y, at(104), wait_y, "waits 30 to 250 ms, drawn at random")
    picture.arrow(at(106), wait_y + 4, at(109), lanes["m3"] - 18)
    picture.arrow(at(112), lanes["m3"] - 18, at(115), wait_y + 4)
    picture.box(at(110.5), lanes["m3"] - 14, 110, "votes, synced", height=28)
    picture.box(at(119) + 52, wait_y - 14, 104, "leads term 3", kind="own", height=28)
    picture.box(at(124) + 47, lanes["m3"] - 14, 92, "follows m2", height=28)
    picture.arrow(at(30), lanes["caller"], at(30), wait_y - 16)
    picture.text(at(30) + 6, lanes["caller"] + 22, "a write", "small", "start")
    picture.line(at(30), lanes["caller"], at(146), lanes["caller"], "line")
    picture.text(at(88), lanes["caller"] - 8, "waits: m2 keeps the write, and proposes it when it leads", "small")
    picture.arrow(at(146), wait_y - 14, at(146), lanes["caller"] + 4)
    picture.text(at(146), lanes["caller"] - 8, "done")
    axis = 350
    picture.line(at(0), axis, at(150), axis, "line")
    for milliseconds in (0, 50, 100, 150):
        picture.line(at(milliseconds), axis - 4, at(milliseconds), axis + 4, "line")
        picture.text(at(milliseconds), axis + 20, f"{milliseconds} ms", "small")
    notes = (
        "The question for pre-votes and the request for votes are drawn as one pair of arrows.",
        "If no link breaks, because the host of m1 lost its power, m2 and m3 wait for 1 to 2 election timeouts.",
    )
    for number, note in enumerate(notes):
        picture.text(16, axis + 46 + 18 * number, note, "small", "start")
    return picture


ROOMS: Final = {
    "cli": "the command warren-raft",
    "testing": "for tests of programs",
    "manager": "ReplicatedStore",
    "local": "LocalStore, ReadOnlyStore",
    "maintenance.py": "inspect, restore, recover",
    "store_interface.py": "the methods of all stores",
    "recovery": "directories after a disaster",
    "data_dir": "opening a directory",
    "admin": "the admin socket",
    "aio": "store.aio",
    "health": "probes",
    "metrics": "for Prometheus",
    "snapshots": "files, backups",
    "migrate": "a Go Warren's data",
    "watching": "watches",
    "leadership": "leads, callbacks",
    "heartbeats": "nodes: ready or down",
    "fsm": "the state machine",
    "store": "tables on LMDB",
    "raft": "consensus, log, links",
    "certificates": "keys, join files",
    "config.py": "settings",
    "results.py": "results",
    "model": "entities",
    "alarms.py": "alarms",
    "support": "threads, waiting",
    "disk": "files, durability",
    "errors.py": "all errors",
}
"""Package or module -> its matter, in two or three words."""


def house() -> Picture:
    """The packages, in the lines of the drawing in docs/DESIGN.md."""
    drawing = DRAWING.search(DESIGN.read_text(encoding="utf-8"))
    assert drawing is not None, "docs/DESIGN.md has no drawing of the imports"
    lines = drawing[1].splitlines()
    left, right, step = 30, 830, 58
    picture = Picture("The packages: each line uses the lines below it", 920, 40 + step * len(lines))
    for number, line in enumerate(lines):
        top = 20 + step * number
        sides = [side.split() for side in line.split("│")]
        middle = (left + right) / 2
        edges = [(left, right)] if len(sides) == 1 else [(left, middle - 12), (middle + 12, right)]
        for names, (begin, end) in zip(sides, edges, strict=True):
            width = (end - begin) / len(names)
            for place, name in enumerate(names):
                words = [name, ROOMS[name]] if name in ROOMS else [name]
                kind = "own" if name in ("fsm", "store", "raft", "manager", "local") else "box"
                picture.box(begin + width * (place + 0.5), top, width - 8, *words, kind=kind, height=46)
        if len(sides) > 1:
            picture.line(middle, top - 6, middle, top + 52, "line")
    picture.arrow(872, 30, 872, 20 + step * len(lines) - 20)
    picture.text(872, 24, "uses", "small")
    return picture


PICTURES: Final[dict[str, Callable[[], Picture]]] = {
    "write-path.svg": write_path,
    "failover.svg": failover,
    "house.svg": house,
}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw().svg(), encoding="utf-8")
