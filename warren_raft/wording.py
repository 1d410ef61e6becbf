"""Numbers and names as they stand in a sentence that somebody reads.

Only words, nothing of what they are about.
"""

from __future__ import annotations

from itertools import islice


def counted(number: int, one: str, many: str = "") -> str:
    """`1 entry`, `2 entries`; `many` is `one` with an s where it is left out."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def quoted(value: object, characters: int) -> str:
    """The beginning of `repr(value)`, of up to about so many characters. It costs no more than that, however large the
    value is: the text of 16 MiB that a peer sent takes half a second to make."""
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
