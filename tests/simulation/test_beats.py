"""Tests: which calls of a node as down the checker of heartbeats takes for early, and which status of a node is right
at the end.

Not here: the simulated nodes in a whole run (test_simulation.py), the beats of managers (unit/raft/test_beats.py).
Invariant: no manager runs here; each case names its beats.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.beats import NodesThatBeat, Taken
from tests.simulation.checkers.beats import DECIDING_SECONDS, Heartbeats

TTL = 2.0
NOW = 120.0
RUNS, DIED = 1, 2
"""The numbers of two processes of managers."""


def too_early(*answered: tuple[float, int], first: float, ttl: float = TTL) -> str:
    """The checker's verdict on a call at `NOW`; "": it was right. `answered`: how long ago each answered beat came, and
    the process that answered it. `first`: how long ago the node first sent a beat."""
    world = SimpleNamespace(
        now=NOW,
        options=SimpleNamespace(clock_drift=0.0),
        running=lambda: [SimpleNamespace(number=RUNS, id="m3")],
    )
    beats = [Taken(NOW - ago, process) for ago, process in answered]
    node: Any = SimpleNamespace(id="n", ttl=ttl, answered=beats, first_at=NOW - first)
    process: Any = SimpleNamespace(id="m2", world=world)
    return Heartbeats()._too_early(process, node)


def test_a_beat_of_a_late_node_may_come_too_late_also_if_the_manager_of_the_one_before_has_died() -> None:
    """(Pins a bug: a beat at a manager that had died was left out, and then the node did not seem late.)"""
    assert not too_early((4.9, DIED), (0.15, RUNS), first=10.0)
    assert not too_early((0.15, RUNS), first=4.9)  # the one before was not answered
    assert not too_early((4.9, RUNS), (0.15, RUNS), first=10.0)


@pytest.mark.parametrize(
    ("answered", "first"),
    [
        ([(0.65, RUNS), (0.15, RUNS)], 10.0),
        ([(0.15, RUNS)], 0.15),
        ([(0.65, DIED), (0.15, RUNS)], 0.65),
        ([(4.9, DIED), (0.65, RUNS), (0.15, RUNS)], 10.0),
    ],
    ids=["in time", "its first beat", "its second beat", "it came back before"],
)
def test_a_node_that_was_not_late_is_called_down_too_early(answered: list[tuple[float, int]], first: float) -> None:
    assert "m2 called n down 0.150 s after a beat that m3 answered" in too_early(*answered, first=first)


def test_a_beat_of_a_late_node_counts_after_the_time_of_a_decision() -> None:
    assert not too_early((19.0, DIED), (DECIDING_SECONDS - 0.1, RUNS), first=19.0, ttl=9.0)
    assert too_early((19.0, DIED), (DECIDING_SECONDS + 0.1, RUNS), first=19.0, ttl=9.0)


@pytest.mark.parametrize(
    ("is_alive", "stored", "right"),
    [(True, "unknown", ["ready"]), (False, "ready", ["down"]), (False, "unknown", ["down", "unknown"])],
)
def test_a_node_that_died_before_it_was_made_ready_keeps_its_status(
    is_alive: bool, stored: str, right: list[str]
) -> None:
    """(Pins a false alarm: it had to be down. Only a ready node becomes down.)"""
    node: Any = SimpleNamespace(is_drained=False, last_at=NOW, is_alive=is_alive, stored=stored)
    assert list(NodesThatBeat.right_statuses(node)) == right
