"""A cluster of manager processes on this machine, under one directory.

Lives here: the processes. Not here: the commands (cluster_commands.py), and the work of managers, which is done through
the clients of `warren-raft`.
Invariant: a signal is sent only to a process that is known to be the manager of this directory.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from warren_raft.admin.client import AdminClient, NotRunning
from warren_raft.errors import Unavailable

PROJECT: Final = Path(__file__).resolve().parent.parent
SAMPLE_STATE: Final = PROJECT / "examples" / "sample-state.jsonl"
AUTHORITY: Final = "ca"
"""The directory of the CA, in the directory of the cluster."""
# Deadlines for a busy machine. Each wait ends when its condition holds.
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
KILL_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05
DIGEST_SHOWN: Final = 16  # characters, enough to compare digests by eye


class ClusterFailed(click.ClickException):
    """A process of the cluster is in a wrong state. The message names the process and the log file to read."""


class Manager:
    """One manager process of the cluster: its files, its start and its end."""

    def __init__(self, directory: Path, node_id: str, members: Mapping[str, str]) -> None:
        self.id = node_id
        self.address = members[node_id]
        self.data_dir = directory / node_id
        self.log = directory / f"{node_id}.log"
        self.client = AdminClient(self.data_dir)
        self._join_file = directory / f"{node_id}.join"
        self._pid_file = directory / f"{node_id}.pid"
        self._members = members
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the manager; None if it does not run."""
        with suppress(FileNotFoundError, ValueError):
            pid = int(self._pid_file.read_text())
            return pid if self._is_ours(pid) else None
        return None

    def start(self) -> None:
        """Starts the process. Does not wait for it: see `is_ready`."""
        if self.pid is not None:
            raise ClusterFailed(f"{self.id} is running already (process {self.pid})")
        command = [sys.executable, "-m", "warren_raft_cli", "serve", f"--data-dir={self.data_dir}", *self._settings()]
        if len(self._members) == 1:
            command.append("--bootstrap")
        with open(self.log, "ab") as log:
            # A session of its own, so that Ctrl-C on the script does not reach the managers.
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pid_file.write_text(f"{self._child.pid}\n")

    def _settings(self) -> list[str]:
        """Its join file. A cluster of an older release has none: its managers make their certificates."""
        if self._join_file.exists():
            return [f"--join={self._join_file}"]
        members = [f"--member={node_id}={address}" for node_id, address in self._members.items()]
        return [f"--node-id={self.id}", f"--listen={self.address}", *members]

    def check_running(self) -> None:
        """Raises ClusterFailed if the process has ended."""
        if self._child is not None and self._child.poll() is not None:
            last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise ClusterFailed(f"{self.id} ended with exit code {self._child.returncode}: {last} (log: {self.log})")

    def status(self) -> dict[str, Any] | None:
        """The status of the manager; None if it does not answer."""
        try:
            return self.client.status()
        except (NotRunning, Unavailable):
            return None

    def answers(self) -> bool:
        """Whether the manager answers. Raises ClusterFailed if the process has ended."""
        self.check_running()
        return self.status() is not None

    def is_ready(self) -> bool:
        """Whether the manager answers, knows a leader and has a quorum. Raises ClusterFailed as `answers` does."""
        self.check_running()
        status = self.status()
        return status is not None and bool(status["leader"]) and bool(status["has_quorum"])

    def end(self, number: signal.Signals, timeout: float) -> bool:
        """Sends the signal and waits until the process has ended. Returns False if no process ran."""
        pid = self.pid
        if pid is None:
            return False
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if not self._is_ours(pid):  # checked again: from now on the descriptor stands for this process
                return False
            signal.pidfd_send_signal(descriptor, number)
            ended = select.poll()  # select() takes no descriptor above 1023
            ended.register(descriptor, select.POLLIN)
            if not ended.poll(timeout * 1e3):
                raise ClusterFailed(f"{self.id} (process {pid}) did not end within {timeout:.0f} s of {number.name}")
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        if self._child is not None:
            self._child.wait()
            self._child = None
        self._pid_file.unlink(missing_ok=True)
        return True

    def _is_ours(self, pid: int) -> bool:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return b"serve" in command and os.fsencode(f"--data-dir={self.data_dir}") in command


class LocalCluster:
    """The managers under one directory, which has their data, logs and process ids."""

    def __init__(self, directory: Path, members: Mapping[str, str]) -> None:
        self.directory = directory
        self.members = dict(members)
        self.managers = {node_id: Manager(directory, node_id, self.members) for node_id in self.members}

    @classmethod
    def create(cls, directory: Path, members: Mapping[str, str]) -> LocalCluster:
        """Makes a cluster in a directory without one, with a CA of its own and a join file for each manager."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(directory / AUTHORITY, ignore_errors=True)  # of an earlier `create` that was killed
        run_cli("cert", "init", AUTHORITY, here=directory)
        wanted = [f"{node_id}={address}" for node_id, address in members.items()]
        run_cli("cert", "issue", *wanted, "--ca", AUTHORITY, here=directory)
        (directory / "cluster.json").write_text(json.dumps({"members": dict(members)}, indent=2) + "\n")
        return cls(directory, members)

    @classmethod
    def find(cls, directory: Path) -> LocalCluster | None:
        """The cluster in the directory, if there is one."""
        try:
            return cls(directory, json.loads((directory / "cluster.json").read_text())["members"])
        except FileNotFoundError:
            return None

    def manager(self, node_id: str) -> Manager:
        try:
            return self.managers[node_id]
        except KeyError:
            raise ClusterFailed(f"there is no manager {node_id} here, only {' '.join(self.managers)}") from None

    def start(self, managers: Iterable[Manager] | None = None) -> None:
        """Starts the managers (default: those that do not run) and waits until each is ready. If too few managers run
        for a quorum, it waits until each answers. If that fails, it stops the managers that it has started.
        """
        chosen = [m for m in self.managers.values() if m.pid is None] if managers is None else list(managers)
        started: list[Manager] = []
        try:
            for manager in chosen:
                manager.start()
                started.append(manager)
            quorum = sum(m.pid is not None for m in self.managers.values()) * 2 > len(self.managers)
            for manager in started:
                what = f"{manager.id} to be ready (log: {manager.log})"
                is_up = manager.is_ready if quorum else manager.answers

                def all_run(is_up: Callable[[], bool] = is_up) -> bool:
                    for each in started:
                        each.check_running()  # one that has ended would keep the others waiting
                    return is_up()

                wait_until(all_run, START_SECONDS, what)
        except BaseException:
            self.stop(started)
            raise

    def stop(self, managers: Iterable[Manager] | None = None) -> int:
        """Sends SIGTERM to the managers (default: all), and SIGKILL if one does not end. Returns how many ran."""
        stopped = 0
        for manager in list(self.managers.values()) if managers is None else managers:
            try:
                stopped += manager.end(signal.SIGTERM, STOP_SECONDS)
            except ClusterFailed as error:
                click.echo(f"{error.message}; killing it", err=True)
                stopped += manager.end(signal.SIGKILL, KILL_SECONDS)
        return stopped

    def load(self, path: Path) -> None:
        """Imports a file of JSON lines through the first manager that runs."""
        target = next(m for m in self.managers.values() if m.pid is not None)
        run_cli("import", str(path), f"--data-dir={target.data_dir}")

    def print_status(self) -> None:
        """Prints one line for each manager: its id, address, role and progress."""
        from warren_raft_cli.tables import print_table

        headers = ("id", "address", "process", "role", "leader", "term", "applied", "revision", "digest")
        print_table(headers, [self._status_row(manager) for manager in self.managers.values()])

    def _status_row(self, manager: Manager) -> list[object]:
        status = manager.status()
        pid = manager.pid
        row: list[object] = [manager.id, manager.address, pid]
        if status is None:
            return [*row, "not answering" if pid else "down", None, None, None, None, None]
        names = ("role", "leader", "term", "applied_index", "revision")
        return [*row, *(status[name] for name in names), str(status["digest"])[:DIGEST_SHOWN]]


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Returns when the condition holds. Raises ClusterFailed if it does not hold within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterFailed(f"waited {timeout:.0f} s for {what}")
        time.sleep(POLL_SECONDS)


def run_cli(*arguments: str, here: Path | None = None) -> str:
    """Runs `warren-raft` in the directory `here`. Returns its stdout."""
    command = [sys.executable, "-m", "warren_raft_cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here)
    if done.returncode != 0:
        raise ClusterFailed(done.stderr.strip() or f"warren-raft {arguments[0]} failed")
    return done.stdout
