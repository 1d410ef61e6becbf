"""Numbers and names as they stand in a sentence that somebody reads.

Only words, nothing of what they are about.
"""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 entry`, `2 entries`; `many` is `one` with an s where it is left out."""
    return f"{number} {one if number == 1 else many or one + 's'}"
