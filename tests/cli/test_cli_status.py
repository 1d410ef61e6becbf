"""The first things that an operator sees: the verdict, its exit code, and all members, while a cluster loses its
managers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Ran, StartManager, free_addresses

from warren_raft_cli.main import run

WAIT_SECONDS = 40
IDS = ("m1", "m2", "m3")

Status = Callable[..., Ran]


@pytest.fixture
def status(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Status:
    """Runs `warren-raft status …`; the caller looks at the exit code."""
    monkeypatch.delenv("WARREN_DATA_DIR", raising=False)

    def command(*arguments: str | Path) -> Ran:
        capsysbinary.readouterr()
        code = run(["status", *map(str, arguments)])
        captured = capsysbinary.readouterr()
        return Ran(code, captured.out.decode(), captured.err.decode())

    return command


def wait_code(status: Status, directory: Path, code: int) -> Ran:
    deadline = time.monotonic() + WAIT_SECONDS
    while (ran := status("--check", "--data-dir", directory)).code != code:
        assert time.monotonic() < deadline, ran
        time.sleep(0.1)
    return ran


def wait_equal_members(status: Status, directory: Path) -> dict[str, Any]:
    """The status when every member has reported that it has applied everything. Each member reports once a second."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        answer: dict[str, Any] = json.loads(status("--check", "-o", "json", "--data-dir", directory).out)
        if all((m["version"], m["lag_entries"]) == (answer["version"], 0) for m in answer["members"]):
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def test_the_verdict_follows_a_cluster_that_loses_its_managers(
    start_manager: StartManager, status: Status, tmp_path: Path
) -> None:
    members = dict(zip(IDS, free_addresses(3), strict=True))
    managers = {id_: start_manager(tmp_path / id_, id_, members) for id_ in IDS}
    for manager in managers.values():
        manager.wait_ready()
    m1 = tmp_path / "m1"
    said = wait_code(status, m1, 0).out
    assert said.startswith("healthy: m")
    assert said.endswith(", 3 of 3 connected, tolerates 1 failure\n")
    assert said.count("\n") == 1
    assert status("--data-dir", m1).out.startswith(said + "\n")

    answer = wait_equal_members(status, m1)
    assert answer["verdict"]["state"] == "healthy"
    for member in answer["members"]:
        assert member["contact_age_seconds"] < 5
        assert member["disk_free_bytes"] > member["database_bytes"] > 0
        assert member["alarms"] == []

    managers["m3"].end()
    said = wait_code(status, m1, 1).out
    assert said.startswith("degraded: ")
    assert ", 2 of 3 connected, tolerates 0 failures; not connected: m3" in said
    table = status("--cluster", "--data-dir", m1).out
    assert table.startswith("degraded: ")
    rows = {line.split()[0]: line for line in table.splitlines()[3:]}
    assert rows.keys() == set(IDS)
    assert " away " in rows["m3"]

    managers["m2"].end()
    said = wait_code(status, m1, 6).out
    # A leader that has just lost the others leads for another moment, and has no quorum all the same.
    assert re.match(r"no quorum: (no leader is known|m1 leads term \d+), 1 of 3 connected; not connected: m2, m3", said)
    assert status("--data-dir", m1).code == 0, "only --check has an exit code of its own"


def test_a_check_where_no_manager_runs_is_a_failure_in_one_line(status: Status, tmp_path: Path) -> None:
    ran = status("--check", "--data-dir", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("warren-raft: no manager is running")


def test_an_alarm_is_a_degraded_cluster(start_manager: StartManager, status: Status, tmp_path: Path) -> None:
    missing = tmp_path / "not mounted" / "backups"
    manager = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]}, "--backup-dir", str(missing))
    manager.wait_ready()
    said = wait_code(status, tmp_path / "m1", 1).out
    assert said.startswith("degraded: m1 leads term ")
    assert said.endswith(f"backup-failed {missing}\n")
