"""The form of every line that a manager writes to Python's `logging`: what happened, then keys, then a sentence.

Lives here: that form. Not here: the words, and handlers or levels, which are the program's. Invariant: one event is
one line, whatever a peer or an error put into its values.
"""

from __future__ import annotations

import json
import logging


def event(logger: logging.Logger, level: int, what: str, /, text: object = "", **keys: object) -> None:
    """Log `what key=value …: text`. A key whose value is None is left out.

    `what` is a fixed phrase ("leader changed"), so that a line can be searched for; everything that differs from one
    time to the next is a key, `node` first. `text` is a sentence for people, an error's for instance.
    """
    if logger.isEnabledFor(level):
        logger.log(level, "%s", line(what, text, **keys))


def line(what: str, /, text: object = "", **keys: object) -> str:
    """The text of one event."""
    words = [what, *(f"{key}={_value(value)}" for key, value in keys.items() if value is not None)]
    told = " ".join(str(text).split())
    return " ".join(words) + (f": {told}" if told else "")


def _value(value: object) -> str:
    """As it is where that is one word, else in quotes."""
    if isinstance(value, float):
        value = f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    is_word = text.isprintable() and not any(character in ' "=\\' for character in text)
    return text if text and is_word else json.dumps(text, ensure_ascii=False)
