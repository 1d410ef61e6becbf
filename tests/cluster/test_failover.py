"""The promise: after a leader was killed, the others do not wait for a whole election timeout; if a leader is closed,
they hardly notice; and a manager keeps its leader while its process computes without a break.

A short run of benchmarks/failover.py, to see that it works; the figures that count are those of a long run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.busy_machine import in_time
from tests.cluster.harness import PROJECT

ELECTION_TIMEOUT_SECONDS = 1.0  # Config's default, and the least of the timeouts that are drawn


def test_a_killed_leader_a_closed_one_and_a_busy_one(tmp_path: Path) -> None:
    """The faster of two kills counts, and the faster of two closes: a busy machine must be able to pass."""
    options = ["--kills", "2", "--closes", "1", "--quiet-minutes", "0.05", "--quiet-callers", "8", "--json"]
    command = [sys.executable, str(PROJECT / "benchmarks" / "failover.py"), *options, "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    closes, quiet = [*figures["close"], *figures["SIGTERM"]], figures["quiet"]
    with in_time():
        assert min(row["seconds"] for row in figures["kill"]) < 0.9 * ELECTION_TIMEOUT_SECONDS, figures
        assert min(row["pause"] for row in closes) < 0.5 * ELECTION_TIMEOUT_SECONDS, figures
        assert (quiet["elections"], quiet["unanswered"]) == (0, 0), figures
    assert quiet["writes_per_second"] > 0, figures
