"""Notifications to systemd: ready, alive, a status line, stopping (sd_notify(3)).

Here: the datagrams, and when each is due. Not here: the manager, and the loop that calls this (serve.py). Invariant:
the watchdog gets signs of life only while the raft thread turns. Without systemd nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from warren_raft.alarms import Alarm
from warren_raft.errors import Closed, WarrenError
from warren_raft.health.checks import life_problem
from warren_raft.results import Status
from warren_raft.support.log_lines import log_event
from warren_raft.support.wording import printable

log = logging.getLogger(__name__)

STATUS_SECONDS: Final = 5.0
"""How often the status line is compared with the last one."""
STATUS_CHARACTERS: Final = 200
SEND_SECONDS: Final = 2.0
"""The longest wait for systemd to take a datagram."""


class Manager(Protocol):
    """The part of a ReplicatedStore that is needed here."""

    @property
    def alarms(self) -> tuple[Alarm, ...]: ...
    @property
    def failure(self) -> WarrenError | None: ...
    @property
    def waiting_for(self) -> str: ...
    def status(self) -> Status: ...


class ServiceManager:
    """For the main thread. `look` is called several times a second. If systemd takes no datagram, that is logged once,
    and nothing is raised."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address_in(environment)
        self._watchdog_seconds = _watchdog_seconds_in(environment)
        self._monotonic = monotonic
        self._alive_at = self._status_at = monotonic()
        """When each is due next."""
        self._status = ""
        self._has_failed = False

    def ready(self) -> None:
        """The manager can serve."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The manager is being closed."""
        self._send("STOPPING=1\nSTATUS=closing")

    def failed(self, error: WarrenError) -> None:
        """The manager stopped by itself."""
        self._send(f"STATUS={_one_line(f'stopped by itself: {error}')}")

    def look(self, manager: Manager) -> None:
        """Send what is due."""
        if self._address is None:
            return
        now = self._monotonic()
        if (
            self._watchdog_seconds is not None
            and now >= self._alive_at
            and not life_problem(manager.failure, manager.alarms)
        ):
            self._alive_at = now + self._watchdog_seconds / 3
            self._send("WATCHDOG=1")
        if now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            self._tell_status(manager)

    def _tell_status(self, manager: Manager) -> None:
        try:
            status = _one_line(manager.waiting_for or manager.status().verdict.text)
        except Closed:
            return
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log_event(log, logging.WARNING, "systemd not notified", error, notification=text.partition("=")[0])


def _address_in(environment: Mapping[str, str]) -> str | None:
    """A path, or an abstract address, which begins with "@" in the environment and with a zero byte for the kernel."""
    name = environment.get("NOTIFY_SOCKET", "")
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_seconds_in(environment: Mapping[str, str]) -> float | None:
    """The time within which systemd expects a sign of life; None: it expects none of this process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    process = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or int(microseconds) == 0 or process != str(os.getpid()):
        return None
    return int(microseconds) / 1e6


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))[:STATUS_CHARACTERS]
