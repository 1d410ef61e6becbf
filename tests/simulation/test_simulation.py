"""No acknowledged write is lost, whatever fails: a few hundred seeds of the simulation, and proof that it can find
what it is for. Wider: `python -m tests.simulation --seeds 0:10000 --jobs 2`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.__main__ import one
from tests.simulation.options import draw
from tests.simulation.planted import PLANTED, planted
from tests.simulation.run import run
from tests.simulation.world import World

SEEDS = range(1_000_000, 1_000_200)
BUDGET_SECONDS = 45.0
"""For SEEDS; where that is not enough, the rest of them is left out, and the test says so."""
SEEDS_MIN = 40
FOUND_AT = {}
"""The first seed that finds each planted bug. After a change of the simulation: `--plant all --seeds 0:1000`."""


def left_behind() -> set[str]:
    root = Path("/dev/shm")
    return {path.name for path in root.glob("warren-raft-simulation-*")} if root.is_dir() else set()


def test_nothing_is_lost_in_a_few_hundred_runs() -> None:
    """Safety under faults, then convergence: every checker, on as many seeds as there is time for."""
    end = time.monotonic() + BUDGET_SECONDS
    checked: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    done = acknowledged = 0
    for seed in SEEDS:
        result = one(seed)
        assert result.failure is None, f"python -m tests.simulation --seed {seed}: {result.failure}"
        done += 1
        acknowledged += result.acknowledged
        checked.update(result.checked)
        faults.update(result.faults)
        if time.monotonic() > end:
            break
    print(f"{done} of {len(SEEDS)} seeds, {acknowledged} calls acknowledged, {sum(faults.values())} faults")
    assert done >= SEEDS_MIN
    assert acknowledged > 20 * done
    assert checked["linearizability: keys not decided"] == 0
    assert {"power cut", "kill -9", "partition: one", "connection broken", "slow sync"} <= faults.keys()


@pytest.mark.parametrize("bug", FOUND_AT)
def test_a_planted_bug_is_found(bug: str) -> None:
    """A simulation that finds nothing proves nothing: it finds this one, at this seed, and nothing without it."""
    seed = FOUND_AT[bug]
    assert one(seed, plant=bug).failure is not None
    assert one(seed).failure is None


def test_every_planted_bug_has_its_seed() -> None:
    assert FOUND_AT.keys() == PLANTED.keys()


def test_a_planted_bug_is_gone_afterwards() -> None:
    """Another test's product must be the product."""
    for name, changes in PLANTED.items():
        before = [vars(change.owner)[change.name] for change in changes]
        with planted(name):
            assert [vars(change.owner)[change.name] for change in changes] != before
        assert [vars(change.owner)[change.name] for change in changes] == before


def trace_of(seed: int, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_a_seed_means_the_same_in_every_process() -> None:
    """Otherwise a failure could not be looked at again. Nothing may depend on the order of sets or the time of day."""
    for seed in (1_000_003, 1_000_011):
        assert trace_of(seed, "1") == trace_of(seed, "2")


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    """Thousands of runs share a small /dev/shm; also those that end in the middle."""

    class Breaker:
        def __init__(self) -> None:
            self.steps = 0

        def stepped(self, _process: object) -> None:
            self.steps += 1
            if self.steps > 50:
                raise RuntimeError("a checker is broken")

    before = left_behind()
    result = run(draw(1_000_000), [Breaker])
    assert "a checker is broken" in (result.failure or "")
    assert result.found_by == "stepped"
    assert left_behind() <= before


def test_a_world_that_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before = left_behind()
    monkeypatch.setattr(World, "start", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in (run(draw(1_000_000)).failure or "")
    assert left_behind() <= before
