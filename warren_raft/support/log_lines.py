"""The form of every line that a manager writes to Python's `logging`: the event, then keys, then a sentence.

Lives here: that form, and the last lines of this process for a bug report. Not here: the words, and handlers and
levels, which the program sets. Invariant: one event is one line, with any text of a peer or an error in its values. The
lines that are kept have no more than RECENT_MAX times LINE_CHARACTERS characters.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections import deque
from typing import Final, NamedTuple

from warren_raft.support.wording import printable

RECENT_MAX: Final = 500
"""So many of the last lines are kept, of level INFO or above, whatever the program logs."""
LINE_CHARACTERS: Final = 1000


class Line(NamedTuple):
    """One log line that is kept."""

    at: float
    """In seconds since 1970."""
    level: int
    logger: str
    node: str
    """Empty: the line is about no manager."""
    text: str


class WithOutput(NamedTuple):
    """A sentence, and words of another program, which may hold a secret: they are logged, and not kept."""

    text: str
    output: str

    def __str__(self) -> str:
        return f"{self.text}; {self.output}"


_recent: Final[deque[Line]] = deque(maxlen=RECENT_MAX)


def log_event(
    logger: logging.Logger,
    level: int,
    event: str,
    /,
    text: object = "",
    *,
    exc_info: BaseException | bool | None = None,
    **keys: object,
) -> None:
    """Log `event key=value …: text`. A key with the value None is left out.

    `event` is a fixed phrase ("leader changed"), so that a line can be searched for. Everything that varies is a key,
    `node` first. `text` is a sentence for people, for example that of an error. The record also has the three parts
    separately, for handlers of JSON: `warren_event`, `warren_keys` (a dict of texts) and `warren_text`.
    """
    is_enabled = logger.isEnabledFor(level)
    if not is_enabled and level < logging.INFO:
        return
    shown = {name: _shown(value) for name, value in keys.items() if value is not None}
    told = " ".join(str(text).split())
    extra = {"warren_event": event, "warren_keys": shown, "warren_text": told}
    line = printable(told)
    head = " ".join([event, *(f"{name}={word(value)}" for name, value in shown.items())])
    if level >= logging.INFO:
        kept = printable(" ".join(text.text.split())) if isinstance(text, WithOutput) else line
        about = _with(head, kept) + (f" [{_place(exc_info)}]" if isinstance(exc_info, BaseException) else "")
        _recent.append(Line(time.time(), level, logger.name, shown.get("node", ""), about[:LINE_CHARACTERS]))
    if is_enabled:
        logger.log(level, "%s", _with(head, line), extra=extra, exc_info=exc_info, stacklevel=2)


def _with(head: str, text: str) -> str:
    return f"{head}: {text}" if text else head


def recent(node_id: str) -> list[Line]:
    """The last lines of this process that are about a manager, or about none; oldest first. Any thread."""
    return [line for line in _recent.copy() if line.node in ("", node_id)]


def _place(error: BaseException) -> str:
    """The class of an error and the place where it was raised. Its words may have a part of an entity."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def word(text: str) -> str:
    """The text itself if it is one word, else the text in quotes."""
    is_word = text.isprintable() and not any(character in ' "=\\' for character in text)
    return text if text and is_word else in_quotes(text)


def in_quotes(text: str) -> str:
    """The text as JSON, with an escape for each character that would control a terminal."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
