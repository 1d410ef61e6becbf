"""The promise: the systemd unit that is shipped is understood, and systemd rates it as well sandboxed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "contrib" / "warren-raft@.service"
EXPOSURE_TENTHS_MAX = 20
"""systemd 252 says 1.5 of 10; without the sandboxing it is 9.2."""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_the_unit_is_sandboxed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TENTHS_MAX}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze cannot look at a file")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unknown" not in done.stderr
