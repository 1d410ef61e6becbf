"""What the draws of a run have to bring about, by the names under which runs count it.

A report of many seeds shows each of these names, so that one which never happened stands there with 0, and tests ask
for each (test_simulation.py). Not here: the probabilities (options.py). Invariant: each name is one that a run counts.
"""

from __future__ import annotations

from typing import Final

from tests.simulation.options import PROFILES

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
        "session evicted",
        "snapshot of more than 5 chunks sent",
        "large value written",
        "bytes waited on a thin link",
        "large message cancelled",
    }
)
"""Where members change, disks, states and links have their troubles, and an idle cluster loses power."""

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
"""Where all managers are lost (disaster.py)."""

EXPECTED: Final = DRAWN | WAYS | {f"profile: {name}" for name in PROFILES}
