"""Impostors, replayed hellos and a hostile member among real managers: each kind is drawn, and does no harm."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.options import draw
from tests.simulation.run import run

SEEDS = (10, 93)


def test_each_kind_of_hostile_one_is_drawn_and_harms_nothing() -> None:
    seen: set[str] = set()
    for seed in SEEDS:
        result = run(replace(draw(seed), hostile_rate=6.0))
        assert result.failure is None, f"seed {seed}: {result.failure}"
        seen |= {what for what, times in result.faults.items() if times and what.startswith("hostile")}
    kinds = {"impostor refused", "impostor let in", "said nack", "said request_vote", "said append_entries"}
    assert {f"hostile: {kind}" for kind in kinds} <= seen
    assert any(what.startswith("hostile: replayed hello") for what in seen)
