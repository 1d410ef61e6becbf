"""The first things that an operator sees: the verdict, its exit code, and all members, while a cluster loses its
managers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_support import Ran, StartManager, free_addresses

from warren_raft.results import BackupCommandStatus, BackupStatus
from warren_raft_cli.main import run
from warren_raft_cli.status import print_cluster, print_members, print_status

WAIT_SECONDS = 60
IDS = ("m1", "m2", "m3")
HEALTHY = r"healthy: m\d leads term \d+, 3 of 3 connected, tolerates 1 failure"
ANY_VERDICT = r"(healthy|degraded|no quorum): .*"

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


def wait_verdict(status: Status, directory: Path, code: int, line: str) -> None:
    """Wait until `status --check` has this exit code and prints this one line, a pattern. On a busy machine other
    verdicts may come before it: an election, a member that is behind for a moment."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        ran = status("--check", "--data-dir", directory)
        if ran.code == code and re.fullmatch(line + "\n", ran.out):
            return
        assert time.monotonic() < deadline, ran
        time.sleep(0.1)


def wait_equal_members(status: Status, directory: Path) -> dict[str, Any]:
    """The status of a healthy cluster when every member has reported a moment ago that it has applied everything. Each
    member reports once a second, and later on a busy machine, which may also elect another leader or raise an alarm."""

    def is_level(answer: dict[str, Any]) -> bool:
        return answer["verdict"]["state"] == "healthy" and all(
            (m["version"], m["lag_entries"], m["alarms"]) == (answer["version"], 0, []) and m["contact_age_seconds"] < 5
            for m in answer["members"]
        )

    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        answer: dict[str, Any] = json.loads(status("--check", "-o", "json", "--data-dir", directory).out)
        if is_level(answer):
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def rows_of(shown: str) -> dict[str, str]:
    """The rows of the members in the output of `status --cluster`: the verdict is above the table, and a note about the
    lag may be below it. (Pins a bug of this test: a busy machine has a lag, and the note was taken for rows.)"""
    _verdict, table, *_note = shown.split("\n\n")
    return {row.split()[0]: row for row in table.splitlines()[1:]}


def test_the_verdict_follows_a_cluster_that_loses_its_managers(
    start_manager: StartManager, status: Status, tmp_path: Path
) -> None:
    members = dict(zip(IDS, free_addresses(3), strict=True))
    managers = {id_: start_manager(tmp_path / id_, id_, members) for id_ in IDS}
    for manager in managers.values():
        manager.wait_ready()
    m1 = tmp_path / "m1"
    wait_verdict(status, m1, 0, HEALTHY)
    verdict, _, fields = status("--data-dir", m1).out.partition("\n\n")
    assert re.fullmatch(ANY_VERDICT, verdict)
    assert fields.startswith("node_id ")
    for member in wait_equal_members(status, m1)["members"]:
        assert member["disk_free_bytes"] > member["database_bytes"] > 0

    managers["m3"].end()
    wait_verdict(
        status, m1, 1, r"degraded: m\d leads term \d+, 2 of 3 connected, tolerates 0 failures; not connected: m3"
    )
    shown = status("--cluster", "--data-dir", m1)
    assert shown.code == 1
    assert re.match(ANY_VERDICT + "\n\n", shown.out)
    rows = rows_of(shown.out)
    assert rows.keys() == set(IDS)
    assert " away " in rows["m3"]

    managers["m2"].end()
    # A leader that has just lost the others leads for another moment, and has no quorum all the same.
    none = r"no quorum: (no leader is known|m1 leads term \d+), 1 of 3 connected; not connected: m2, m3.*"
    wait_verdict(status, m1, 6, none)
    assert status("--cluster", "--data-dir", m1).code == 6
    assert status("--data-dir", m1).code == 0, "only --check and --cluster tell the verdict by the exit code"


def test_a_check_where_no_manager_runs_is_a_failure_in_one_line(status: Status, tmp_path: Path) -> None:
    ran = status("--check", "--data-dir", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("warren-raft: no manager is running")


def test_an_alarm_is_a_degraded_cluster(start_manager: StartManager, status: Status, tmp_path: Path) -> None:
    missing = tmp_path / "not mounted" / "backups"
    manager = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]}, "--backup-dir", str(missing))
    manager.wait_ready()
    line = (
        rf"degraded: m1 leads term \d+, 1 of 1 connected, tolerates 0 failures; backup-failed {re.escape(str(missing))}"
    )
    wait_verdict(status, tmp_path / "m1", 1, line)


def test_it_shows_the_newest_backup_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    manager: dict[str, Any] = {"verdict": {"state": "healthy", "text": "m1 leads"}, "alarms": [], "members": []}
    manager |= {"role": "leader", "leader": "m1"}
    backup = BackupStatus(
        directory="/mnt/backup",
        saved_at=datetime.now(UTC) - timedelta(minutes=12.5),
        age_seconds=750.0,
        index=7,
        revision=6,
        size_bytes=2 << 20,
        log_index=None,
        unsaved_seconds=0.0,
        limit_seconds=7260.0,
        failed_at=None,
        failure="",
        command=None,
    )

    def line(answer: dict[str, Any] = manager, /, **differing: Any) -> str:
        print_status(answer | {"backup": replace(backup, **differing).to_json()})
        return capsys.readouterr().out.splitlines()[-1].removeprefix("backup  ")

    at = "12m old, index 7, revision 6, 2.0 MiB"
    assert line() == f"{at}, every change is saved, in /mnt/backup"
    assert line(unsaved_seconds=61.0) == f"{at}, newer changes are 1m old, in /mnt/backup"
    assert line(unsaved_seconds=None) == f"{at}, in /mnt/backup"
    done = BackupCommandStatus(
        succeeded_at=datetime.now(UTC) - timedelta(minutes=11.5),
        index=7,
        failed_at=None,
        failure="",
        running_seconds=None,
    )
    assert line(command=done).endswith("in /mnt/backup; its command succeeded 11m ago for index 7")
    assert line(command=replace(done, running_seconds=61.0)).endswith("in /mnt/backup; its command has run for 1m")
    assert line(command=replace(done, succeeded_at=None)).endswith("/mnt/backup; its command has not succeeded yet")
    failed_at = datetime.now(UTC) - timedelta(seconds=3700)
    none: dict[str, Any] = dict.fromkeys(("saved_at", "age_seconds", "index", "revision", "size_bytes"))
    assert line(**none, failed_at=failed_at, failure="no space") == (
        "none, every change is saved, last failure 1h ago, in /mnt/backup"
    )
    # (Pins a fault: a follower's status looked as if the command had never succeeded.)
    follower = manager | {"role": "follower", "leader": "m2"}
    not_yet = replace(done, succeeded_at=None, index=None)
    idle = none | {"unsaved_seconds": None}
    # (Pins a fault: it said that the leader saves backups, whose settings a follower does not know.)
    only = "; this manager saves backups only while it leads"
    assert line(follower, **idle) == line(follower | {"leader": None}, **idle) == f"none, in /mnt/backup{only}"
    runs = "; this manager saves backups and runs the backup command only while it leads"
    assert line(follower, **idle, command=not_yet) == f"none, in /mnt/backup{runs}"
    assert line(follower, command=done).endswith(f"{runs}; its command succeeded here 11m ago for index 7")


def test_sizes_are_in_units_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """(Pins a fault: `snapshot save` had MB, `top` MiB, and `status` bytes.)"""
    answer: dict[str, Any] = {"verdict": {"state": "healthy", "text": "m1 leads"}, "alarms": [], "members": []}
    answer |= {"db_size_bytes": 282624, "log_bytes": 5 << 30, "fetching": {"bytes": 10, "of": 3 << 20}}
    answer |= {"snapshot": {"index": 7, "size_bytes": 1536, "age_seconds": 61.0}}
    print_status(answer)
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["db_size", "276.0 KiB"],
        ["log_size", "5.0 GiB"],
        ["fetching", "10 B of 3.0 MiB"],
        ["snapshot", "1m old, index 7, 1.5 KiB"],
    ]
    print_status(answer, wide=True)
    assert "db_size_bytes  282624" in capsys.readouterr().out


def test_it_says_which_process_answers_and_since_when(status: Status, manager: Path) -> None:
    began = time.monotonic()
    first, second = (json.loads(status("-o", "json", "--data-dir", manager).out) for _ in range(2))
    assert str(manager).encode() in Path(f"/proc/{first['pid']}/cmdline").read_bytes().split(b"\0")
    assert first["listen"] == first["members"][0]["address"]
    assert 0 < first["uptime_seconds"] < second["uptime_seconds"]
    assert second["uptime_seconds"] - first["uptime_seconds"] <= time.monotonic() - began + 0.001  # rounded
    lines = dict(line.split(maxsplit=1) for line in status("--data-dir", manager).out.splitlines() if " " in line)
    assert re.fullmatch(r"\d+[smhd]", lines["uptime"])
    assert lines["pid"] == str(first["pid"])


def test_the_reason_why_there_is_no_link_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """(Pins a report: a manager that refused the certificate of another one said so in its log only.)"""
    usual: dict[str, Any] = dict.fromkeys(("contact_age_seconds", "applied_index", "lag_entries", "disk_free_bytes"))
    usual |= dict.fromkeys(("database_bytes", "version", "level_max", "alarms"))
    usual |= {"address": "h:1", "connected": False, "voter": True, "leader": False}
    why = "we refuse it: the certificate has expired"
    members = [usual | {"id": "m1", "connected": True, "link_problem": None}, usual | {"id": "m2", "link_problem": why}]
    for show in (print_members, print_cluster):
        show(members, wide=False)
        assert capsys.readouterr().out.endswith(f"\n\nno link with m2: {why}\n")
        show([usual | {"id": "m2"}], wide=False)
        assert "no link" not in capsys.readouterr().out, "a manager of an earlier release tells no reason"
