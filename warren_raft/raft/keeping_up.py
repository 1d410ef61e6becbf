"""Whether a learner keeps up with the leader: rounds of catching up, as the Raft thesis has them (4.2.1).

A round begins with the leader's last index of that moment. It ends when the learner, in an answer given after the round
began, has all entries up to that index. A learner keeps up if its last round took at most an election timeout. The
number of entries on their way says nothing about that: it is their rate times the round trip. Pure; time is passed in.
Not here: the promotion (changes.py). Invariant: an answer from before a round began does not end the round.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Round:
    began: float
    target: int
    """The leader's last index when the round began."""
    was_quick: bool = False
    """Whether the round before this one took at most an election timeout."""


class Rounds:
    """The rounds of all learners of one leader."""

    def __init__(self, quick_seconds: float) -> None:
        self._quick_seconds = quick_seconds
        self._rounds: dict[str, _Round] = {}

    def reset(self) -> None:
        self._rounds.clear()

    def forget(self, learner: str) -> None:
        """The member is not connected, or is not a learner any more."""
        self._rounds.pop(learner, None)

    def look(self, learner: str, now: float, *, last_index: int, match_index: int, answered: float | None) -> None:
        """Call this often. `match_index`: the learner certainly holds the log up to it; `answered`: its last answer."""
        current = self._rounds.get(learner)
        if current is None:
            self._rounds[learner] = _Round(now, last_index)
        elif answered is not None and answered > current.began and match_index >= current.target:
            was_quick = answered - current.began <= self._quick_seconds
            self._rounds[learner] = _Round(now, last_index, was_quick)
        elif now - current.began > self._quick_seconds:
            current.was_quick = False

    def keeps_up(self, learner: str) -> bool:
        current = self._rounds.get(learner)
        return current is not None and current.was_quick
