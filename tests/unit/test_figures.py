"""The promise: the figures in docs/performance.md and its plot are those of one run, whose JSON lies beside the page.

(A page's figures were typed by hand before, and nobody could tell of which run they were.) Not here: the measurement,
which tests/cluster/test_benchmarks.py runs.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """A module of benchmarks/, whose folder is on the path of its own programs only."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


figures = load("figures")
Row = figures.Row


def test_the_page_and_its_plot_have_the_figures_of_the_run_beside_them() -> None:
    """If this fails: `python benchmarks/all.py --render docs/performance.json --write docs`."""
    run = json.loads((ROOT / "docs/performance.json").read_text())
    page = (ROOT / "docs/performance.md").read_text()
    assert figures.with_block(page, run) == page
    assert figures.plot(run) == (ROOT / "docs/performance.svg").read_text()


def test_a_ratio_is_of_the_same_round() -> None:
    """The medians of both sides come from different rounds on a machine that is busy now and then."""
    row = Row("writes", "rate", "writes/s", [10.0, 40.0, 20.0], "etcd", [5.0, 10.0, 20.0])
    assert row.ratios == [2.0, 4.0, 1.0]
    assert Row("snapshots", "restore", "s", [3.0], "etcd", [1.0, 2.0, 9.0]).ratios == [1.5]


@pytest.mark.parametrize(
    ("ours", "theirs", "goal", "more", "said"),
    [
        ([0.8], [1.0], 0.9, False, "≤ 0.9× met"),
        ([1.0], [1.0], 0.9, False, "≤ 0.9× MISSED"),
        ([3.0], [2.0], 1.5, True, "≥ 1.5× met"),
        ([2.0], [2.0], 1.5, True, "≥ 1.5× MISSED"),
        ([96.0], [], 96, False, "≤ 96 met"),
        ([39_000.0], [], 40_000, True, "≥ 40,000 MISSED"),
        ([39_000.0], [], None, True, ""),
    ],
)
def test_a_goal_is_of_the_ratio_if_there_is_one(
    ours: list[float], theirs: list[float], goal: float | None, more: bool, said: str
) -> None:
    row = Row("writes", "name", "ms", ours, "etcd" if theirs else "", theirs, goal, more)
    assert row.verdict == said


def test_a_row_comes_back_from_json() -> None:
    rows = [Row("reads", "get", "µs", [2.0], "LMDB", [1.0], 1.8), Row("writes", "memory", "MiB", [50.0])]
    assert figures.from_json(json.loads(json.dumps(figures.to_json(rows)))) == rows
