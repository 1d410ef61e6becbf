"""The promise: systemd is told when a manager can serve and when it closes, and gets signs of life only while the raft
thread turns.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_support import READY_SECONDS, StartManager, free_addresses

from warren_raft.errors import Closed, InvariantViolation
from warren_raft_cli.service_manager import STATUS_CHARACTERS, STATUS_SECONDS, ServiceManager

WATCHDOG_SECONDS = 3.0


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd listens on."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(READY_SECONDS)
        yield listener


def told(systemd: socket.socket) -> list[str]:
    """The notifications that wait."""
    lines = []
    systemd.setblocking(False)
    try:
        while True:
            lines += systemd.recv(4096).decode().splitlines()
    except BlockingIOError:
        return lines


class Manager:
    """What systemd is told about."""

    def __init__(self) -> None:
        self.alarms: tuple[Any, ...] = ()
        self.failure: InvariantViolation | None = None
        self.waiting_for = ""
        self.text = "healthy: m1 leads"
        self.is_closed = False

    def status(self) -> Any:
        if self.is_closed:
            raise Closed
        return SimpleNamespace(verdict=SimpleNamespace(text=self.text))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def notifier(systemd: socket.socket, clock: Clock, **environment: str) -> ServiceManager:
    address = systemd.getsockname()
    name = address if isinstance(address, str) else "@" + address[1:].decode()
    watchdog = {"WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6)), "WATCHDOG_PID": str(os.getpid())}
    return ServiceManager({"NOTIFY_SOCKET": name, **watchdog, **environment}, monotonic=clock)


@pytest.mark.slow
def test_serve_tells_its_life(
    tmp_path: Path, start_manager: StartManager, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.getsockname()))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    process = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]})
    lines: list[str] = []
    while lines.count("WATCHDOG=1") < 3 or "READY=1" not in lines or not any("m1 leads" in line for line in lines):
        lines += systemd.recv(4096).decode().splitlines()
        assert "STOPPING=1" not in lines
    process.wait_ready()
    assert process.stop() == 0
    while "STOPPING=1" not in lines:
        lines += systemd.recv(4096).decode().splitlines()
    assert lines.count("READY=1") == 1
    assert lines.index("READY=1") < lines.index("STOPPING=1")


@pytest.mark.slow
def test_one_that_waits_for_others_is_not_ready_and_says_for_whom(
    tmp_path: Path, start_manager: StartManager, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.getsockname()))
    a, b, c = free_addresses(3)
    process = start_manager(tmp_path / "m1", "m1", {"m1": a, "m2": b, "m3": c})
    lines: list[str] = []
    while not any(line.startswith("STATUS=") and "m2" in line for line in lines):
        lines += systemd.recv(4096).decode().splitlines()
    assert "READY=1" not in lines
    assert process.stop() == 0


def test_signs_of_life_end_with_the_raft_thread(systemd: socket.socket) -> None:
    clock, manager = Clock(), Manager()
    service = notifier(systemd, clock)
    for _ in range(30):
        service.look(manager)
        clock.now += 0.1
    signs = told(systemd).count("WATCHDOG=1")
    assert signs >= 3, "several within the time that systemd waits"
    manager.alarms = (SimpleNamespace(name="member-away"), SimpleNamespace(name="no-quorum"))
    clock.now += WATCHDOG_SECONDS
    service.look(manager)
    assert "WATCHDOG=1" in told(systemd), "the cluster is another matter"
    manager.alarms = (SimpleNamespace(name="raft-thread-stuck"),)
    for _ in range(100):
        clock.now += 0.1
        service.look(manager)
    assert "WATCHDOG=1" not in told(systemd)
    manager.alarms = ()
    service.look(manager)
    assert "WATCHDOG=1" in told(systemd), "it goes on"
    manager.failure = InvariantViolation("an invariant broke")
    clock.now += WATCHDOG_SECONDS
    service.look(manager)
    assert "WATCHDOG=1" not in told(systemd)


def test_the_status_line_is_sent_when_it_changes(systemd: socket.socket) -> None:
    clock, manager = Clock(), Manager()
    service = notifier(systemd, clock, WATCHDOG_USEC="0")
    for text in ("healthy: m1 leads", "healthy: m1 leads", "degraded:\nm2 is\taway " + "x" * 1_000):
        manager.text = text
        service.look(manager)
        clock.now += STATUS_SECONDS
    first, second = told(systemd)
    assert first == "STATUS=healthy: m1 leads"
    assert second.startswith("STATUS=degraded: m2 is away xx")
    assert len(second) == len("STATUS=") + STATUS_CHARACTERS
    manager.is_closed = True
    service.look(manager)
    service.failed(InvariantViolation("an invariant\nbroke"))
    (line,) = told(systemd)
    assert line.startswith("STATUS=stopped by itself: ")


def test_without_systemd_nothing_is_sent_and_nothing_fails(systemd: socket.socket) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
        service = ServiceManager(environment)
        service.ready()
        service.look(Manager())
        service.stopping()
    other = notifier(systemd, Clock(), WATCHDOG_PID="1")
    other.look(Manager())
    assert "WATCHDOG=1" not in told(systemd), "it is expected of another process"


def test_a_systemd_that_is_gone_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    service.ready()
    service.stopping()
    assert caplog.text.count("systemd not notified") == 1


def test_an_abstract_socket() -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind("")  # the kernel chooses an abstract address
        notifier(listener, Clock()).ready()
        assert told(listener) == ["READY=1"]
