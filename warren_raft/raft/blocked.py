"""The alarms of a log or a state that cannot be written for want of something; both go on by themselves.

Lives here: their names and words. Not here: what is lacking (shortage.py), and trying again (engine.py,
installation.py). Invariant: of one thing at most one such alarm is raised, and none once it was written.
"""

from __future__ import annotations

from typing import Final, Literal

from warren_raft.alarms import AlarmName, Alarms
from warren_raft.shortage import Shortage

Thing = Literal["log", "state"]

_NAMES: Final[dict[Thing, tuple[AlarmName, AlarmName]]] = {
    "log": ("log-no-space", "log-blocked"),
    "state": ("state-no-space", "state-blocked"),
}
_CONSEQUENCES: Final[dict[Thing, str]] = {
    "log": "this manager acknowledges nothing until it can be",
    "state": "this manager applies nothing until it can be",
}


def raise_blocked(alarms: Alarms, thing: Thing, shortage: Shortage, error: Exception, *, place: str = "") -> None:
    """`place`: the path that is written to, where the error does not name it."""
    of_space, of_others = _NAMES[thing]
    name, other = (of_space, of_others) if shortage.is_space else (of_others, of_space)
    alarms.clear_alarm(other)
    why = f"no space for the {thing}" if shortage.is_space else f"the {thing} cannot be written: {shortage.what}"
    text = f"{why}; {_CONSEQUENCES[thing]} ({error})"
    if shortage.remedy not in text:
        text += f"; {shortage.remedy}"
    alarms.raise_alarm(name, f"{place}: {text}" if place else text, severity="critical")


def clear_blocked(alarms: Alarms, thing: Thing) -> None:
    """It was written."""
    for name in _NAMES[thing]:
        alarms.clear_alarm(name)
