"""The promise: a manager is a good guest of the process that embeds it, beside others of its kind or of PySyncObj's,
across fork and close, and it unpickles nothing that came from a disk or a network.

Each scenario runs in a process of its own (programs.py), with warnings as errors.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.harness import FORBIDDEN_IN_LOGS, PROJECT
from tests.cluster.programs import PROGRAMS

pytestmark = pytest.mark.timeout(120)

SECONDS = 100.0
FOREIGN_WARNINGS = {"beside_pysyncobj": ["-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"]}
"""Stock PySyncObj's own."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, tmp_path: Path) -> None:
    flags = ["-X", "faulthandler", "-W", "error", *FOREIGN_WARNINGS.get(name, [])]
    command = [sys.executable, *flags, "-m", "tests.cluster.programs", name, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False)
    said = f"{PROGRAMS[name].__doc__}\n{done.stdout}\n{done.stderr[-6000:]}"
    assert (done.returncode, done.stdout) == (0, "done\n"), said
    assert not [word for word in FORBIDDEN_IN_LOGS if word in done.stderr], said
