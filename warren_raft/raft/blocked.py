"""The alarms for a log or a state that cannot be written for want of a resource, like space or descriptors.

Lives here: the names and words of these alarms. Not here: the resource that is short (disk/shortage.py), and the next
attempt, which needs no operator (log_writer.py, applying.py, installation.py). Invariant: a log or a state has at most
one such alarm, and has no such alarm once it was written.
"""

from __future__ import annotations

from typing import Final, Literal

from warren_raft.alarms import AlarmName, Alarms
from warren_raft.disk.shortage import Shortage

Thing = Literal["log", "state"]

_NAMES: Final[dict[Thing, tuple[AlarmName, AlarmName]]] = {
    "log": ("log-no-space", "log-blocked"),
    "state": ("state-no-space", "state-blocked"),
}
_CONSEQUENCES: Final[dict[Thing, str]] = {
    "log": "this manager acknowledges no writes until the log can be written",
    "state": "this manager applies no entries until the state can be written",
}


def raise_blocked(alarms: Alarms, thing: Thing, shortage: Shortage, error: Exception, *, place: str = "") -> None:
    """Raise the alarm for `thing`. `place` is the path that is written to, if the error does not name it."""
    of_space, of_others = _NAMES[thing]
    name, other = (of_space, of_others) if shortage.is_space else (of_others, of_space)
    alarms.clear_alarm(other)
    why = f"no space left for the {thing}" if shortage.is_space else f"the {thing} cannot be written: {shortage.what}"
    text = f"{why}; {_CONSEQUENCES[thing]} ({error})"
    if shortage.remedy not in text:
        text += f"; {shortage.remedy}"
    alarms.raise_alarm(name, f"{place}: {text}" if place else text, severity="critical")


def clear_blocked(alarms: Alarms, thing: Thing) -> None:
    """Clear the alarms of `thing`, because it was written."""
    for name in _NAMES[thing]:
        alarms.clear_alarm(name)
