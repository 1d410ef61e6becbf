"""The events that the draws of a run have to bring about, by the names under which runs count them.

A report of many seeds shows each of these names, so an event that never happened is shown with 0. Tests ask for each
of them (test_simulation.py). Not here: the probabilities (options.py). Invariant: a run counts each of these names.
"""

from __future__ import annotations

from typing import Final

from tests.simulation.options import PROFILES
from warren_raft.raft.replacement import ARROWS, Arrow

DRAWN: Final = frozenset(
    {
        "cluster of 2",
        "cluster of 4",
        "founding member removed",
        "two operators at once",
        "leadership asked for a member that is being removed",
        "request abandoned",
        "removed member left running",
        "removed directory returns",
        "idle, then a power cut of all managers",
        "idle, then a power cut of some managers",
        "leader with a slow disk cut off",
        "log truncated while a batch was on its way",
        "StorageFull while applying",
        "state made wrong",
        "state has to move to another file",
        "kill -9 at an arrow",
        "power cut at an arrow",
        "session evicted",
        "snapshot of more than 5 chunks sent",
        "large value written",
        "bytes waited on a thin link",
        "large message cancelled",
        "watcher ahead of its manager",
        "watcher fell behind",
        "watcher lost its manager",
        "watcher moved on",
        "fenced write",
        "fenced write refused",
        "fenced write overtaken by an election",
        "job attempted again",
    }
)
"""Changes of members, faults of disks, states and links, and an idle cluster that loses power."""

WAYS: Final = frozenset(
    {
        "restored",
        "restore killed",
        "restore: disk full",
        "restore: power cut",
        "restore refused: a manager runs",
        "restore refused: not empty",
        "old member among restored",
        "old member beside restored",
        "only some restored",
        "restored from two snapshots",
        "recovered",
        "recover killed",
        "recover: disk full",
        "recover: power cut",
        "old members among recovered",
    }
)
"""Ways to restore or recover after all managers were lost (disaster.py)."""


def killed_at(arrow: Arrow) -> str:
    """A manager dies when the replacement of its state has come to this arrow."""
    return f"killed at arrow {arrow}"


KILLS: Final = frozenset(killed_at(arrow) for arrow in ARROWS.values())
EXPECTED: Final = DRAWN | KILLS | WAYS | {f"profile: {name}" for name in PROFILES}
