"""The promise: the commands in docs/disk-full.md show the manager whose disk is full, and that it works again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import READY_SECONDS, Command, StartManager, free_addresses

from tests.cluster.small_disks import MIB, small_disk

pytestmark = [pytest.mark.docs, pytest.mark.slow]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "disk-full.md").read_text(encoding="utf-8")
NODE = '{"id": "n", "role": "worker", "hostname": "h"}'


def test_following_the_page_on_a_full_disk(
    warren: Command, start_manager: StartManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    find, after = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "node.json").write_text(NODE)
    with small_disk(tmp_path / "data" / "m1", 128 * MIB) as disk:
        manager = start_manager(Path("data/m1"), "m1", {"m1": free_addresses(1)[0]})
        manager.wait_ready()
        disk.fill(left_bytes=32 * MIB)
        wait_for(lambda: warren("put", "node", "-f", "node.json", "--data-dir", "data/m1").code == 7)
        told = "".join(type_line(line) for line in find.splitlines())
        assert "disk-low" in told
        assert "data/m1/log" in told
        assert warren("delete", "node", "n", "--data-dir", "data/m1").code == 0

        make_space, check = after.splitlines()
        assert make_space == "# make space on the disk"
        disk.free()
        wait_for(lambda: warren("status", "--data-dir", "data/m1").text.startswith("healthy: "))
        assert type_line(check).startswith("healthy: ")
        assert warren("put", "node", "-f", "node.json", "--data-dir", "data/m1").code == 0
        manager.end()


def type_line(line: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], check=False, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert done.returncode in ((0, 1, 6) if line.startswith("warren-raft status ") else (0,)), done.stderr
    return done.stdout


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
