"""The promise: no attack that once stopped, read or changed a cluster still does so, by any attacker.

benchmarks/attacks.py makes each attack against a cluster that runs; here each is made once, against the leader. The
refusals are tested in unit/raft/test_trust.py, unit/test_tls_links.py and unit/test_strict_cbor.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.cluster.harness import PROJECT

pytestmark = pytest.mark.timeout(240)


def test_no_attack_stops_a_manager_or_reads_or_changes_anything() -> None:
    command = [sys.executable, "benchmarks/attacks.py", "--seconds", "0", "--managers", "1", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=200)
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)
    assert [row for row in rows if row["wrong"]] == []
    assert done.returncode == 0, done.stderr
    made = Counter(row["attacker"] for row in rows if row["outcome"] and row["attack"] != "afterwards")
    assert made == {"no certificate": 13, "non-member": 13, "removed": 12, "member": 13}, (
        "an attack that nobody answered"
    )
