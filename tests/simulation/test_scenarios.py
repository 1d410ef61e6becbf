"""Each bug that can be told on a few lines stays told: a script per story, run on the real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.scenario import SCENARIOS, Scenario, ScenarioFailed, run_file


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_scenario_holds(path: Path) -> None:
    run_file(path)


def test_a_script_that_does_not_hold_fails_at_its_line() -> None:
    script = "cluster m1\nstart m1\nready\n\nleads m2 within 1  # it does not exist\n"
    with pytest.raises(ScenarioFailed, match="line 5"):
        Scenario().run(script)


def test_a_word_that_is_no_command_fails() -> None:
    with pytest.raises(ScenarioFailed, match="unknown command expect"):
        Scenario().run("expect nothing")
