"""The form of every line that a manager writes to Python's `logging`: the event, then keys, then a sentence.

Lives here: that form. Not here: the words, and handlers and levels, which the program sets. Invariant: one event is one
line, with any text of a peer or an error in its values.
"""

from __future__ import annotations

import json
import logging


def log_event(
    logger: logging.Logger,
    level: int,
    what: str,
    /,
    text: object = "",
    *,
    exc_info: BaseException | bool | None = None,
    **keys: object,
) -> None:
    """Log `what key=value …: text`. A key with the value None is left out.

    `what` is a fixed phrase ("leader changed"), so that a line can be searched for. Everything that varies is a key,
    `node` first. `text` is a sentence for people, for example that of an error. The record also has the three parts
    separately, for handlers of JSON: `warren_event`, `warren_keys` (a dict of texts) and `warren_text`.
    """
    if not logger.isEnabledFor(level):
        return
    shown = {name: _shown(value) for name, value in keys.items() if value is not None}
    told = " ".join(str(text).split())
    extra = {"warren_event": what, "warren_keys": shown, "warren_text": told}
    line = " ".join([what, *(f"{name}={word(value)}" for name, value in shown.items())]) + (f": {told}" if told else "")
    logger.log(level, "%s", line, extra=extra, exc_info=exc_info, stacklevel=2)


def word(text: str) -> str:
    """The text itself if it is one word, else the text in quotes."""
    is_word = text.isprintable() and not any(character in ' "=\\' for character in text)
    return text if text and is_word else json.dumps(text, ensure_ascii=False)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
