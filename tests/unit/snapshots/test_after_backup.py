"""The promise: after each backup the operator's command runs with the file, within its time limit. A failure is told
and tried again. Neither a backup nor the end of the manager waits for it, and it gets nothing of the manager's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cluster.harness import wait_until
from tests.snapshot_support import add_node, small_state
from warren_raft.alarms import Alarms
from warren_raft.errors import Closed
from warren_raft.fsm.machine import StateMachine
from warren_raft.snapshots.after_backup import AfterBackup
from warren_raft.snapshots.backups import RETRY_SECONDS, Backups
from warren_raft.snapshots.file import SnapshotInfo, write
from warren_raft.snapshots.freshness import Position
from warren_raft.store.database import Database
from warren_raft.support import command


class World:
    """A leader with a clock of the test's own, its backups, and a command that is a script."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.script = directory / "ship"
        self.now = datetime(2026, 11, 22, 15, tzinfo=UTC)
        self.leads = True
        self.alarms = Alarms("n1")
        self.stop = threading.Event()
        self.backups = Backups(
            directory / "backups",
            every_seconds=10.0,
            keep=1,
            limit_seconds=7260.0,
            position=self.position,
            leads=lambda: self.leads,
            take=self.take,
            alarms=self.alarms,
            now=lambda: self.now,
        )
        self.after = AfterBackup(
            [str(self.script), "an argument"],
            self.backups,
            node_id="n1",
            limit_seconds=3600.0,
            alarms=self.alarms,
            now=lambda: self.now,
        )

    def position(self) -> Position:
        machine = StateMachine(self.database)
        return Position(machine.cluster_id, machine.revision, machine.digest.hex())

    def take(self, path: str) -> SnapshotInfo:
        return write(self.database, path, created_at=self.now, node_id="n1", quorum=True)

    def back_up(self, after: timedelta = timedelta(hours=1)) -> Path:
        self.now += after
        add_node(self.database, f"node-{StateMachine(self.database).applied_index}")
        self.backups.look()
        assert self.backups.newest is not None
        return Path(self.backups.newest[0])

    def write(self, *lines: str) -> None:
        self.script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        self.script.chmod(0o700)

    def look(self) -> None:
        self.after.look(self.stop)

    def said(self) -> list[str]:
        said = self.directory / "said"
        return said.read_text().splitlines() if said.exists() else []

    @property
    def alarm(self) -> str | None:
        texts = [alarm.text for alarm in self.alarms.active]
        assert len(texts) <= 1
        return texts[0] if texts else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_state(tmp_path / "data", containers=3) as database:
        yield World(database, tmp_path)


def test_it_gets_the_path_as_last_argument_and_the_facts_in_its_environment(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("AWS_PROFILE", "backup")
    monkeypatch.setenv("WARREN_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("WARREN_DATA_DIR", "/the/manager/itself")
    world.write(f'echo "$#|$1|$2" >{tmp_path}/said', f"env >>{tmp_path}/said", f"ls /proc/self/fd >{tmp_path}/fds")
    path = world.back_up()
    secret = os.open(path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        world.look()
    finally:
        os.close(secret)
    assert world.alarm is None
    arguments, *environment = world.said()
    assert arguments == f"2|an argument|{path}"
    assert world.backups.newest is not None
    manifest = world.backups.newest[1]
    wanted = {
        f"WARREN_BACKUP_FILE={path}",
        f"WARREN_BACKUP_DIR={path.parent}",
        "WARREN_BACKUP_TIME=2026-11-22T16:00:00Z",
        f"WARREN_BACKUP_INDEX={manifest.index}",
        f"WARREN_BACKUP_REVISION={manifest.revision}",
        f"WARREN_BACKUP_BYTES={path.stat().st_size}",
        f"WARREN_CLUSTER_ID={manifest.cluster_id or ''}",
        "WARREN_NODE_ID=n1",
        "AWS_PROFILE=backup",
    }
    assert wanted <= set(environment)
    assert not any(line.startswith("NOTIFY_SOCKET=") for line in environment)
    assert not any(line.startswith(("WARREN_LISTEN=", "WARREN_DATA_DIR=")) for line in environment)
    # 0, 1 and 2, and the one with which `ls` reads the directory: not `secret`, and none of the database
    assert (tmp_path / "fds").read_text().split() == ["0", "1", "2", "3"]


def test_it_runs_once_for_each_backup(world: World, tmp_path: Path) -> None:
    world.write(f'echo "$2" >>{tmp_path}/said')
    world.look()
    assert world.said() == []
    first = world.back_up()
    world.look()
    world.look()
    second = world.back_up()
    world.look()
    assert world.said() == [str(first), str(second)]
    status = world.after.status()
    assert (status.succeeded_at, status.failure, status.running_seconds) == (world.now, "", None)
    assert status.index == StateMachine(world.database).applied_index
    assert (world.after.succeeded, world.after.failed) == (2, 0)


def test_a_new_leader_begins_with_the_newest_backup(world: World, tmp_path: Path) -> None:
    """It cannot know whether the command of the leader before it was done."""
    world.write(f'echo "$2" >>{tmp_path}/said')
    path = world.back_up()
    world.look()
    world.leads = False
    world.backups.look()
    world.look()
    world.leads = True
    world.backups.look()
    world.look()
    assert world.said() == [str(path)] * 2


def test_a_failure_is_told_without_its_output_and_tried_again(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.write("echo the password is 1234 >&2", f"echo run >>{tmp_path}/said", "exit 3")
    path = world.back_up()
    world.look()
    assert world.alarm is not None
    assert (
        f"the command {world.script} for {path.name} failed at 2026-11-22T16:00:00Z: it ended with exit " in world.alarm
    )
    assert "code 3; its output is in the log of this manager. It runs again every minute" in world.alarm
    assert "1234" not in world.alarm
    assert "the password is 1234" in caplog.text
    status = world.after.status()
    assert (status.failed_at, status.failure) == (world.now, "it ended with exit code 3")
    world.look()
    assert len(world.said()) == 1, "not before a minute"
    world.now += timedelta(seconds=RETRY_SECONDS)
    world.write("exit 0")
    world.look()
    assert world.alarm is None
    assert (world.after.succeeded, world.after.failed) == (1, 1)


def test_a_new_backup_does_not_wait_for_the_minute(world: World, tmp_path: Path) -> None:
    world.write("exit 1")
    world.back_up()
    world.look()
    world.write(f'echo "$2" >>{tmp_path}/said')
    path = world.back_up(after=timedelta(seconds=10))
    world.look()
    assert world.said() == [str(path)]
    assert world.alarm is None


def test_a_program_that_is_not_there_is_told_before_this_manager_leads(world: World) -> None:
    world.leads = False
    world.look()
    assert world.alarm is not None
    assert world.alarm.endswith(f"there is no program {world.script} that this user may run")
    world.write("exit 0")
    world.look()
    assert world.alarm is not None, "once a minute"
    world.now += timedelta(seconds=RETRY_SECONDS)
    world.look()
    assert world.alarm is None
    world.leads = True
    world.script.unlink()
    world.back_up()
    world.look()
    assert world.alarm is not None
    assert "it cannot be started: No such file or directory" in world.alarm


def test_its_file_is_not_removed_while_it_runs(world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    world.write(f"read _ <{tmp_path}/go", f'cp "$2" {tmp_path}/copy')
    first = world.back_up()
    content = first.read_bytes()
    thread = threading.Thread(target=world.look)
    thread.start()
    with (tmp_path / "go").open("w") as go:  # opens when the command reads it
        second = world.back_up()
        assert first.exists()
        assert world.after.status().running_seconds == 3600.0
        go.write("on\n")
    thread.join(60)
    assert (tmp_path / "copy").read_bytes() == content
    third = world.back_up()
    assert {path.name for path in third.parent.iterdir()} == {third.name}
    assert not second.exists()


def test_it_is_ended_after_its_time_limit_with_its_children(tmp_path: Path) -> None:
    stop = threading.Event()
    script = f"sleep 600 & echo $! >{tmp_path}/pid; echo begun; wait"
    ended = command.run(["sh", "-c", script], {}, limit_seconds=0.5, stop=stop)
    assert ended == ("it was ended after its time limit of 0.5 s", "begun")
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(child), "the end of the child")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_that_ignores_sigterm_is_killed_when_the_manager_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "GRACE_SECONDS", 0.1)
    stop, raised = threading.Event(), []
    program = (
        f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(tmp_path / 'on')!r}, 'w'); time.sleep(600)"
    )

    def run() -> None:
        try:
            command.run([sys.executable, "-c", program], {}, limit_seconds=600, stop=stop)
        except Closed as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until((tmp_path / "on").exists, "the command")
    stop.set()
    thread.join(60)
    assert len(raised) == 1


def test_only_the_end_of_its_output_is_kept_and_a_child_that_it_leaves_behind_holds_nothing_up(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! >{tmp_path}/pid; head -c 3000000 /dev/zero | tr '\\0' x; echo the end; exit 7"
    ended = command.run(["sh", "-c", script], {}, limit_seconds=60, stop=threading.Event())
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert ended.failure == "it ended with exit code 7"
    assert ended.output.endswith("xxxthe end")
    assert len(ended.output) <= command.OUTPUT_BYTES_MAX


def test_no_descriptor_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for words in (["true"], ["false"], ["sh", "-c", "kill -9 $$"]):
        command.run(words, {}, limit_seconds=60, stop=threading.Event())
    with pytest.raises(FileNotFoundError):
        command.run(["/there/is/none"], {}, limit_seconds=60, stop=threading.Event())
    assert count() == before
