"""Numbers and values in the form of a sentence for people.

Only words live here, and no knowledge of their subject.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Final

LIKENESS: Final = 0.7
"""The share of equal letters from which a word may be the one that was meant. Lower, `wide` would be like `id`."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 entry`, `2 entries`. Without `many`, the plural is `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """The text with `\\x07` or the like in the place of each character that a terminal would not print as it is: a name
    may have been made to move its cursor or to ring its bell."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def in_units(size_bytes: int) -> str:
    """`276.0 KiB`: the size in the largest unit that gives a number of at least 1."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while round(size, 1) >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{size_bytes} B"


def in_units_apart(*sizes_bytes: int) -> list[str]:
    """Each size as `in_units` gives it; if two different ones would read alike, all of them in bytes."""
    texts = [in_units(size) for size in sizes_bytes]
    return texts if len(set(texts)) == len(set(sizes_bytes)) else [f"{size} B" for size in sizes_bytes]


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, with the known word that is nearest to the typed one, whatever their cases are; empty if no
    known word is near."""
    by_lower = {word.lower(): word for word in known}
    near = get_close_matches(typed.lower(), list(by_lower), n=1, cutoff=LIKENESS)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def quoted(value: object, characters: int) -> str:
    """The beginning of `repr(value)`, about `characters` long. The cost does not depend on the size of the value: the
    `repr` of 16 MiB from a peer would take half a second."""
    if characters <= 0:
        return "…"
    if isinstance(value, str | bytes):
        return repr(value[:characters])[:characters]
    if isinstance(value, list):
        return f"[{', '.join(quoted(each, characters // 4) for each in value[:4])}{', …' if len(value) > 4 else ''}]"
    if isinstance(value, dict):
        pairs = [f"{quoted(key, characters // 4)}: {quoted(value[key], characters // 4)}" for key in islice(value, 4)]
        return f"{{{', '.join(pairs)}{', …' if len(value) > 4 else ''}}}"
    return repr(value)[:characters]
