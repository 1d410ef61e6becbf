"""Fixtures of the tests of the command line. Every process started here is ended here, also if a test fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Command, ManagerProcess, Ran, StartManager, free_addresses

from warren_raft_cli.main import run


@pytest.fixture
def warren(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `warren-raft ARGUMENTS` in this process. Each error must be one line."""
    monkeypatch.delenv("WARREN_DATA_DIR", raising=False)

    def command(*arguments: str | Path) -> Ran:
        capsysbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsysbinary.readouterr()
        ran = Ran(code, captured.out.decode(), captured.err.decode())
        if code != 0:
            assert ran.out == ""
            assert ran.err.count("\n") == 1
            if ran.err.startswith("{"):
                assert json.loads(ran.err)["error"]["exit_code"] == code
            else:
                assert ran.err.startswith("warren-raft: ")
            assert "Traceback" not in ran.err
            assert "internal error" not in ran.err
        return ran

    return command


@pytest.fixture
def start_manager() -> Iterator[StartManager]:
    """Starts managers that end with the test."""
    started: list[ManagerProcess] = []

    def start(data_dir: Path, node_id: str, members: dict[str, str], *extra: str) -> ManagerProcess:
        started.append(ManagerProcess(data_dir, node_id, members, *extra))
        return started[-1]

    yield start
    for manager in started:
        manager.end()


@pytest.fixture(scope="session")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a manager that runs during all tests: a cluster of one."""
    data_dir = tmp_path_factory.mktemp("manager") / "m1"
    process = ManagerProcess(data_dir, "m1", {"m1": free_addresses(1)[0]})
    try:
        process.wait_ready()
        yield data_dir
        assert process.stop() == 0, process.log.read_text()
    finally:
        process.end()
