"""The promise: the others do not wait out an election timeout for a leader that was killed, hardly notice one that is
closed, and a manager whose process computes without a break keeps its leader.

A short run of benchmarks/failover.py, so that it runs; the figures that count are those of a long one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.harness import PROJECT

ELECTION_TIMEOUT_SECONDS = 1.0  # Config's default, and the least of the timeouts that are drawn


@pytest.mark.timeout(180)
def test_a_killed_leader_a_closed_one_and_a_busy_one(tmp_path: Path) -> None:
    """Of two kills the faster counts, and of two closes: what is demanded is what a busy machine can do, too."""
    options = ["--kills", "2", "--closes", "1", "--quiet-minutes", "0.05", "--quiet-callers", "8", "--json"]
    command = [sys.executable, str(PROJECT / "benchmarks" / "failover.py"), *options, "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert min(row["seconds"] for row in figures["kill"]) < 0.9 * ELECTION_TIMEOUT_SECONDS, figures
    closes = [*figures["close"], *figures["SIGTERM"]]
    assert min(row["pause"] for row in closes) < 0.5 * ELECTION_TIMEOUT_SECONDS, figures
    quiet = figures["quiet"]
    assert (quiet["elections"], quiet["unanswered"]) == (0, 0), figures
    assert quiet["writes_per_second"] > 0, figures
