"""The promise: a newcomer who types docs/tutorial.md from its top to its end gets what it says.

Only ports and directories are replaced, and the packages are not installed again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import READY_SECONDS, free_addresses

from tests.busy_machine import in_time

pytestmark = [pytest.mark.docs, pytest.mark.slow]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
TYPED_SECONDS = 5 * READY_SECONDS
WAIT = "until [ $(grep -sl ^ready m1.log m2.log m3.log | wc -l) = 3 ]; do sleep 0.1; done\n"
"""The reader repeats a `grep` until every manager has written its line."""


def blocks() -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code, from the second step on."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```", PAGE[PAGE.index("## 2.") :], re.MULTILINE | re.DOTALL)


def script() -> str:
    """All blocks, as one program for bash. A block of Python is saved under the name in its first line."""
    lines = "trap 'kill -9 $(cat m?.pid 2>/dev/null) 2>/dev/null || true' EXIT\n"
    for language, text in blocks():
        if language == "python":
            lines += f"cat >{text.split()[1]} <<'PROGRAM'\n{text}PROGRAM\n"
            continue
        if text.startswith("warren-raft serve --data-dir data/m1"):
            text = f"rm m1.log\n{text}"  # WAIT must not find the old line before the new process has emptied the file
        # The reader has no `set -e`, and a member that came back may still be behind: the exit code is 1 then.
        text = re.sub("^(warren-raft status --cluster .*)$", r"\1 || [ $? = 1 ]", text, flags=re.MULTILINE)
        waits = "grep ^ready" in text
        lines += WAIT if waits else text.replace("cd .. && rm -r ~/warren-tutorial", "rm -r data state")
        if text.startswith("rm m1.log"):
            lines += WAIT
    for port, address in zip((7946, 7947, 7948), free_addresses(3), strict=True):
        lines = lines.replace(f"127.0.0.1:{port}", address)
    return lines


def test_the_tutorial_works_from_its_top_to_its_end(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script()],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=TYPED_SECONDS,
        check=False,
    )
    logs = "".join(log.read_text() for log in sorted(tmp_path.glob("m?.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    said = done.stdout
    assert "web 3 at revision 2" in said
    for step in ("nginx:1.25", "m1 leads", "worker-1", "led by m", "con-2 on node-1"):
        said = said[said.index(step) :]
    with in_time():  # the managers hear of each other in time
        assert done.stdout.index("healthy: ") < done.stdout.index("degraded: ")
    assert (tmp_path / "tutorial.snapshot").exists()
    assert not (tmp_path / "data").exists()


def test_the_first_step_is_that_of_the_readme() -> None:
    """The packages come from a registry, so pip is not run here; the scripts' own tests install them."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    for line in ("python3 -m venv ~/warren", "~/warren/bin/pip install ."):
        assert f"\n{line}\n" in PAGE
        assert f"\n{line} " in readme
