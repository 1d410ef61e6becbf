"""DATA_DIR/last-failure.json: why the manager of a directory stopped by itself, or did not start.

Lives here: that file. Not here: when it is written (cli/serve.py), and shown. Invariant: the file only helps people:
no manager decides by it, and a damaged one counts as none.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from .durable import replace_file
from .sharing import without_links

FILE_NAME: Final = "last-failure.json"
FORMAT: Final = 1
TEXT_CHARACTERS: Final = 2_000
"""A longer text is cut: a part of it may come from a peer."""
FILE_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The error with which the last run of a manager ended."""

    at: datetime
    """Aware, UTC."""
    text: str
    """One line."""
    removed: str = ""
    """If the manager was removed from its cluster: the incarnation of its log; else empty."""

    def to_json(self) -> dict[str, str]:
        """The form of `describe -o json`: at (RFC 3339), text."""
        return {"at": self._time, "text": self.text}

    @property
    def _time(self) -> str:
        return self.at.isoformat(timespec="seconds").replace("+00:00", "Z")

    def __str__(self) -> str:
        return f"its last run failed at {self._time}: {self.text}"


def keep(directory: str | os.PathLike[str], text: str, at: datetime, *, removed: str = "") -> None:
    """Write the file in a manager's directory. Raises OSError."""
    value = {"format": FORMAT, "at": at.astimezone(UTC).isoformat(), "text": _line(text), "removed": removed}
    replace_file(os.path.join(directory, FILE_NAME), json.dumps(value, indent=1).encode() + b"\n")


def forget(directory: str | os.PathLike[str]) -> None:
    """Remove the file, because the manager runs. Raises OSError."""
    path = os.path.join(directory, FILE_NAME)
    if os.path.lexists(path):
        os.unlink(path)


def read(directory: str | os.PathLike[str]) -> LastFailure | None:
    """None if there is no such file, or if it cannot be read: the failure is shown beside another answer."""
    try:
        with open(os.path.join(directory, FILE_NAME), "rb", opener=without_links) as file:
            value = json.loads(file.read(FILE_BYTES_MAX))
        at, text, removed = datetime.fromisoformat(value["at"]), value["text"], value["removed"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if at.tzinfo is None or not isinstance(text, str) or not isinstance(removed, str):
        return None
    return LastFailure(at, _line(text), removed)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:TEXT_CHARACTERS])
