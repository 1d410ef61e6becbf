"""A test that is late on a busy machine is run again; every other failure counts at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import busy_machine

PROJECT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest
from tests import busy_machine

waited = iter(range(100))
busy_machine.waited_seconds = lambda: float(next(waited))  # a second more, each time
runs = []


@pytest.fixture
def fresh():
    return []


def test_passes_the_third_time(fresh):
    fresh.append(runs.append("third"))
    with busy_machine.in_time():
        assert runs.count("third") == 3
    assert len(fresh) == 1


def test_never_passes():
    runs.append("never")
    with busy_machine.in_time():
        assert False


def test_has_nothing_to_do_with_time():
    runs.append("plain")
    assert False


def test_on_a_machine_that_has_time(monkeypatch):
    runs.append("quiet")
    monkeypatch.setattr(busy_machine, "waited_seconds", lambda: 0.0)
    busy_machine._running[-1].stash[busy_machine.BEFORE] = 0.0
    with busy_machine.in_time():
        assert False


def test_the_numbers_of_runs():
    assert [runs.count(name) for name in ("third", "never", "plain", "quiet")] == [3, 3, 1, 1]
"""


def test_only_a_late_test_on_a_busy_machine_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_runs.py").write_text(TESTS)
    options = ["-p", "tests.busy_machine", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False)
    assert "3 failed, 2 passed" in done.stdout, done.stdout
    assert "waited 1.0 s for a processor" in done.stdout
    _, _, summary = done.stdout.partition(busy_machine.RAN_AGAIN)
    named = [line.rpartition("::")[2] for line in summary.splitlines() if line.startswith("test_runs.py::")]
    assert named == ["test_never_passes", "test_passes_the_third_time"]


def test_the_kernel_says_how_long_threads_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressure = tmp_path / "cpu"
    monkeypatch.setattr(busy_machine, "PRESSURE", pressure)
    assert busy_machine.waited_seconds() == float("inf")
    pressure.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=0\n")
    assert busy_machine.waited_seconds() == 2.5
