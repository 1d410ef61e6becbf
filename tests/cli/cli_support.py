"""Helpers for the tests of the command line: free ports, managers as real processes, the output of a command.

A caller that starts a process here has to end it; the fixtures in conftest.py do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.harness import free_ports

READY_SECONDS = 60
EXIT_SECONDS = 60
WRITE_SECONDS = 60
"""The deadline of a write of these managers, for a busy machine."""


@dataclass
class Ran:
    """The output and the exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """The command's stdout; the command must have succeeded."""
        assert self.code == 0, self.err
        return self.out

    @property
    def json(self) -> Any:
        return json.loads(self.text)


Command = Callable[..., Ran]


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback; their ports stay free while their managers are down."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


class ManagerProcess:
    """`warren-raft serve` as a process of its own. Without members it gets only its directory and `extra`."""

    def __init__(self, data_dir: Path, node_id: str, members: dict[str, str], *extra: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        command = [sys.executable, "-m", "warren_raft_cli", "serve", "--data-dir", str(data_dir), *extra]
        if members:
            settings = data_dir.with_name(f"{data_dir.name}.toml")
            settings.write_text(f"write_timeout_seconds = {WRITE_SECONDS}\n")
            command += ["--config", str(settings)]
            command += ["--node-id", node_id, "--listen", members[node_id]]
        for member, address in members.items():
            command += ["--member", f"{member}={address}"]
        if len(members) == 1:
            command.append("--bootstrap")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        self._out = self.process.stdout

    def wait_ready(self) -> str:
        """Wait for the line that the manager prints when it can serve, and return it."""
        os.set_blocking(self._out.fileno(), False)
        deadline = time.monotonic() + READY_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            line += self._out.read() or b""
            time.sleep(0.01)
        return line.decode().rstrip()

    def wait_socket(self) -> None:
        """Wait until the manager answers on its admin socket, which does not need a quorum."""
        deadline = time.monotonic() + READY_SECONDS
        while not (self.data_dir / "admin.sock").exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_SECONDS)

    def end(self) -> None:
        """Ends the process, in any state."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(EXIT_SECONDS)
        self._out.close()


StartManager = Callable[..., ManagerProcess]
