"""Runs a command of the operator, for a bounded time and with bounded memory, and ends it when its manager closes.

Not here: which command, and when (snapshots/after_backup.py). Invariant: the command has no descriptor of this process
but /dev/null and one pipe, no shell reads its arguments, and it never outlives its time limit.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from warren_raft.disk.descriptors import RESERVE
from warren_raft.errors import Closed

POLL_SECONDS: Final = 0.2
"""How soon a command ends after its manager began to close."""
GRACE_SECONDS: Final = 2.0
"""Between SIGTERM and SIGKILL."""
OUTPUT_BYTES_MAX: Final = 4096
"""The end of the output that is kept. Everything before it is read and dropped, so the command never waits for us."""
OUTPUT_READS_MAX: Final = 64
"""After its end: a pipe holds a megabyte at most, and a child that it left behind may write for ever."""
SETTING_VARIABLES: Final = frozenset(
    {
        "WARREN_NODE_ID",
        "WARREN_LISTEN",
        "WARREN_MEMBER",
        "WARREN_JOIN",
        "WARREN_BOOTSTRAP",
        "WARREN_INSECURE_PLAINTEXT",
        "WARREN_METRICS_LISTEN",
        "WARREN_BACKUP_DIR",
        "WARREN_BACKUP_EVERY",
        "WARREN_BACKUP_KEEP",
        "WARREN_BACKUP_CONTINUOUS",
        "WARREN_BACKUP_COMMAND",
        "WARREN_CONFIG",
        "WARREN_LOG_LEVEL",
        "WARREN_DATA_DIR",
    }
)
"""The variables of `warren-raft serve`."""
_NOT_FOR_CHILDREN: Final = SETTING_VARIABLES | {
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
}
"""systemd and the operator mean these for the manager itself."""


class Ended(NamedTuple):
    """How a command ended."""

    failure: str
    """Empty: it ended with exit code 0."""
    output: str
    """The end of its stdout and stderr."""


def run(command: Sequence[str], facts: Mapping[str, str], *, limit_seconds: float, stop: threading.Event) -> Ended:
    """Run it in a process group of its own, with `facts` added to the environment of this process, less the variables
    that are meant for this process alone. Raises Closed when `stop` is set, OSError if it cannot be started."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    process = RESERVE.call(
        subprocess.Popen,
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment | dict(facts),
        start_new_session=True,
    )
    try:
        output = _output_until_end(process, limit_seconds, stop)
    except BaseException:
        _end(process)
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()
    if process.returncode is None:
        _end(process)
        return Ended(f"it was ended after its time limit of {limit_seconds:g} s", output)
    return Ended(_failure_of(process.returncode), output)


def _output_until_end(process: subprocess.Popen[bytes], limit_seconds: float, stop: threading.Event) -> str:
    """Returns when the process has ended, or its time has. A child that it left behind may keep the pipe open."""
    assert process.stdout is not None
    ends_at, pipe = time.monotonic() + limit_seconds, _Pipe(process.stdout.fileno())
    while process.poll() is None and time.monotonic() < ends_at:
        if stop.is_set():
            raise Closed
        pipe.read(POLL_SECONDS)
    for _ in range(OUTPUT_READS_MAX):  # written before it ended
        if not pipe.read(0):
            break
    return pipe.kept.decode(errors="replace").strip()


class _Pipe:
    """The end of the bytes in a pipe. Its descriptor is the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLIN)
        self._is_open = True
        self.kept = b""

    def read(self, seconds: float) -> bool:
        """Read once, after at most so many seconds. Returns whether bytes came."""
        if not self._is_open:
            time.sleep(seconds)
            return False
        if not self._poller.poll(seconds * 1000):
            return False
        data = os.read(self._descriptor, 65536)
        self._is_open = bool(data)
        self.kept = (self.kept + data)[-OUTPUT_BYTES_MAX:]
        return self._is_open


def _failure_of(code: int) -> str:
    if code == 0:
        return ""
    return f"it ended with exit code {code}" if code > 0 else f"it was ended by signal {-code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and its children. One that hangs in the kernel is left behind, and has received SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
