"""Processes of managers that begin with all modules imported: forks of a process that has done nothing but import them.

Starting Python and importing the store takes half a second of a processor, and the tests start a thousand managers.
Lives here: the process that forks, and its forks as the harness sees them, with the interface of subprocess.Popen. Not
here: the manager (manager_process.py).
Invariant: a fork ends when the process that forked it ends, and that one ends with the process of the tests. SEEDS
forking processes take turns, so the managers of a cluster have different seeds of Python's hashes, and a manager has
another one after its next start.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final

PROJECT: Final = Path(__file__).resolve().parents[2]
SEEDS: Final = 4
REQUEST_BYTES: Final = 1 << 16
POLL_SECONDS: Final = 0.003


class Fork:
    """A process of a manager, as a subprocess.Popen with pipes for stdin and stdout."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes], ended: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._ended = ended
        """The process that forked it writes the exit code there."""
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and (told := self._ended.read()) is not None:
                assert told, "the process that forks managers has ended"
                self.returncode = int(told)
                self._ended.close()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code; raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"the manager with process id {self.pid}", timeout)
            pause.wait(POLL_SECONDS)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """A process that forks managers. For any thread."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-m", "tests.cluster.nursery", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                cwd=PROJECT,
                stdin=subprocess.PIPE,  # as a fork has: sys.stdin knows whether its file can seek
                pass_fds=[theirs.fileno()],
            )
            assert self._process.stdin is not None
            self._process.stdin.close()

    def fork(self, settings: dict[str, Any], log: Path) -> Fork:
        """A manager with these settings; it appends its stderr to `log`."""
        with contextlib.ExitStack() as theirs:

            def pipe(*, to_us: bool) -> tuple[IO[bytes], int]:
                reader, writer = os.pipe()
                own, other = (reader, writer) if to_us else (writer, reader)
                theirs.callback(os.close, other)
                return open(own, "rb" if to_us else "wb", buffering=-1 if to_us else 0), other

            stdin, stdin_of_it = pipe(to_us=False)
            stdout, stdout_of_it = pipe(to_us=True)
            ended, ended_of_it = pipe(to_us=True)
            os.set_blocking(ended.fileno(), False)
            stderr_of_it = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            theirs.callback(os.close, stderr_of_it)
            with self._lock:
                request = json.dumps(settings).encode()
                assert len(request) < REQUEST_BYTES
                socket.send_fds(self._socket, [request], [stdin_of_it, stdout_of_it, stderr_of_it, ended_of_it])
                pid = int(self._socket.recv(REQUEST_BYTES))
        return Fork(pid, stdin, stdout, ended)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)


_nurseries: list[Nursery] = []
_turn = itertools.count()
_lock = threading.Lock()


def fork(settings: dict[str, Any], log: Path) -> Fork:
    with _lock:
        turn = next(_turn) % SEEDS
        if turn == len(_nurseries):
            _nurseries.append(Nursery())
    return _nurseries[turn].fork(settings, log)


@atexit.register
def close() -> None:
    """End the processes that fork, and with them all forks."""
    with _lock:
        while _nurseries:
            _nurseries.pop().close()


# The process that forks ----------------------------------------------------------------------------------------------


def main() -> None:
    from tests.cluster import manager_process

    requests = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(requests.fileno(), False)
    ended: dict[int, int] = {}
    """For each fork the descriptor that gets its exit code."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the tests still want to end theirs
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == woken:
                    os.read(woken, REQUEST_BYTES)
                    _reap(ended)
                    continue
                request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
                if not request:
                    return
                pid = os.fork()
                if pid == 0:
                    break
                ended[pid] = descriptors.pop()
                for descriptor in descriptors:
                    os.close(descriptor)
                requests.send(str(pid).encode())
            else:
                continue
            break
    # This is the fork. It leaves no trace of the one before it.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in (requests.detach(), woken, wake, *descriptors, *ended.values()):
        os.close(descriptor)
    manager_process.run(json.loads(request))


def _reap(ended: dict[int, int]) -> None:
    while ended:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        descriptor = ended.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know
            os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(descriptor)


if __name__ == "__main__":
    main()
