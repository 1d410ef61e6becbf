"""The promise: the memory of a manager, which holds keys and secrets, gets into no core dump, and into no program that
it starts.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.cli_support import ManagerProcess, free_addresses

StartManager = Callable[..., ManagerProcess]
PR_GET_DUMPABLE = 3


@pytest.fixture
def with_core_dumps(tmp_path: Path) -> Iterator[None]:
    """Children of this process may dump their core, into a directory of the test."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        dumps = "import os; os.abort()"
        if not os.WCOREDUMP(status_of(subprocess.Popen([sys.executable, "-c", dumps], cwd=tmp_path))):
            pytest.skip("this host dumps no cores")
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def status_of(process: subprocess.Popen[bytes]) -> int:
    """The process's status, as waitpid(2) returns it."""
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return status


@pytest.mark.usefixtures("with_core_dumps")
def test_a_manager_that_crashes_leaves_no_core_dump(
    tmp_path: Path, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a core dump would be here
    manager = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    manager.wait_ready()
    manager.process.send_signal(signal.SIGABRT)
    status = status_of(manager.process)
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)


def test_nor_does_the_child_that_verifies_a_snapshot(tmp_path: Path) -> None:
    """The child reads files that may be damaged, and a damaged file may crash it."""
    limits = {"cpu_seconds": 60, "memory_bytes": 2 * 1024**3}
    options = json.dumps({"records": True, "nice": 0, "parent": os.getpid(), **limits})
    program = (
        "import ctypes, sys\n"
        "from warren_raft.snapshots.verify_child import main\n"
        "main(sys.argv[1:])\n"
        f"sys.exit(10 + ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0))\n"
    )
    child = [sys.executable, "-c", program, str(tmp_path / "no-snapshot"), options]
    assert subprocess.run(child, stdout=subprocess.DEVNULL, check=False).returncode == 10


def test_what_a_manager_has_open_is_closed_in_a_program_that_it_starts(
    tmp_path: Path, start_manager: StartManager
) -> None:
    """O_CLOEXEC: no other program gets log, state, links or sockets, not even for the moment of an exec."""
    manager = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    manager.wait_ready()
    flags = {}
    for number in map(int, os.listdir(f"/proc/{manager.process.pid}/fd")):
        with open(f"/proc/{manager.process.pid}/fdinfo/{number}") as info:
            fields = dict(line.split(":", 1) for line in info.read().splitlines() if ":" in line)
        flags[number] = int(fields["flags"], 8), os.readlink(f"/proc/{manager.process.pid}/fd/{number}")
    ours = {number: each for number, each in flags.items() if number > 2}
    assert len(ours) > 10
    assert any(target.endswith(".mdb") for _, target in ours.values())
    assert any("/log/" in target for _, target in ours.values())
    assert [target for mode, target in ours.values() if not mode & os.O_CLOEXEC] == []
