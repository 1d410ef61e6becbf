"""Shared by the benchmarks: their options, a realistic container, and managers in processes of their own with callers.

Also here: the machine's own figures for comparison, which are fdatasync and a process's memory. Not here: the measured
figures and their marks, which each benchmark has itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import warren_raft as wr

WAIT_SECONDS = 300.0
"""The longest wait for a condition that comes by itself unless something is wrong."""
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


# Options and answers -------------------------------------------------------------------------------------------------


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the common options. Each benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="the directory for the data: it decides which disk is measured")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[Path, argparse.Namespace], Any],
    table: Callable[[Any], str],
    *,
    is_missed: Callable[[Any], bool] = lambda _figures: False,
    **roles: Callable[[dict[str, Any]], object],
) -> None:
    """A benchmark's main program: it measures in a new directory, prints the figures, and exits with 1 if a mark is
    missed.

    `roles`: by the name of an option, the function for the processes that the benchmark starts with that option. It
    takes the option's value, which is JSON.
    """
    for role in roles:
        parser.add_argument(f"--{role}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for role, play in roles.items():
        if settings := getattr(arguments, role):
            play(json.loads(settings))
            return
    with data_directory(arguments.directory) as directory:
        figures = measure(Path(directory), arguments)
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))
    if is_missed(figures):
        sys.exit(1)


def data_directory(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    """For `with`: the directory of a benchmark's data while it runs."""
    return tempfile.TemporaryDirectory(prefix="warren-raft-bench-", dir=parent)


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that is not exceeded by this part of all values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def verdict(is_met: bool, mark: str) -> str:
    return f"{mark}: {'met' if is_met else 'MISSED'}"


# The machine ---------------------------------------------------------------------------------------------------------


def sync_ms(directory: Path) -> float:
    """Median fdatasync of 700 bytes in a preallocated file, in milliseconds: the cost of one log batch of one write."""
    path, count = directory / "sync", 300
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, bytes(1024 * count), 0)
        os.fsync(descriptor)
        times = []
        for position in range(count):
            os.pwrite(descriptor, b"x" * 700, 1024 * position)
            begin = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - begin)
        return round(statistics.median(times) * 1e3, 3)
    finally:
        os.close(descriptor)
        path.unlink()


@contextlib.contextmanager
def peak_growth(pid: int, every_seconds: float, measure: Callable[[int], int] | None = None) -> Iterator[list[int]]:
    """For `with`: yields a list with the largest growth of `measure(pid)`; final at the end. The default is a process's
    anonymous memory, in bytes."""
    measured = measure or rss_anon
    before, done = measured(pid), threading.Event()
    grown = [0]

    def watch() -> None:
        while not done.wait(every_seconds):
            grown[0] = max(grown[0], measured(pid) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()


def cpu_seconds(pids: Iterable[int]) -> float:
    """The CPU time that these processes have used, in user mode and in the kernel. Resolution: 10 ms a process."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_anon(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


# The entities --------------------------------------------------------------------------------------------------------


def sample(number: int) -> wr.Container:
    """A container of realistic size, with every structure."""
    return wr.Container(
        id=f"container-{number:012d}",
        service_id=f"service-{number % 100:08d}",
        service_name=f"web-{number % 100}",
        node_id=f"node-{number % 50:08d}",
        container_id="8be2162e3ab2dddf86efa13ea13510061c5cabe89e756147c70f5230aae843ab2",
        desired_state="running",
        actual_state="running",
        image="nginx:1.25-alpine",
        env=("MODE=prod", "URL=postgres://db:5432/app"),
        ports=(wr.PortMapping(name="http", container_port=80, host_port=8080, protocol="tcp", publish_mode="ingress"),),
        mounts=(wr.VolumeMount(source="vol-1", target="/var/lib/data", read_only=False),),
        health_check=wr.HealthCheck(type="http", endpoint="http://localhost/", interval=timedelta(seconds=10)),
        health_status=wr.HealthStatus(healthy=True, message="HTTP 200", checked_at=MOMENT, consecutive_successes=9),
        restart_policy=wr.RestartPolicy(condition="always", delay=timedelta(seconds=5)),
        resources=wr.ResourceRequirements(cpu_limit=0.5, memory_limit=1 << 29),
        stop_timeout=10,
        created_at=MOMENT,
        started_at=MOMENT + timedelta(seconds=1),
    )


def in_turns(containers: list[wr.Container]) -> list[wr.Container]:
    """The containers with another content, then as they are: to be written in turn, again and again. A write of what
    is stored already would change nothing, and cost less."""
    return [*(replace(container, exit_code=container.exit_code + 1) for container in containers), *containers]


# Managers ------------------------------------------------------------------------------------------------------------


def say(what: Any) -> None:
    """Sends a value from a Manager to its Process, which gets it with one `read`."""
    print(json.dumps(what), flush=True)


class Manager:
    """A manager in this process. It reads one command a line (a method's name and its arguments), and answers each with
    one line of JSON. A benchmark's subclass adds its own commands."""

    def __init__(self, settings: dict[str, Any]) -> None:
        logging.getLogger("warren_raft").addHandler(logging.NullHandler())  # broken links are expected here
        self.store = wr.ReplicatedStore(wr.Config(**settings))
        self.stop = threading.Event()
        self.times: list[tuple[float, float]] = []
        """For each write of a caller: the time of its acknowledgement, and its duration, in seconds."""
        self.unanswered = 0

    def run(self) -> None:
        """Reads commands until stdin ends."""
        try:
            for line in sys.stdin:
                name, *arguments = json.loads(line)
                say(getattr(self, name)(*arguments))
        finally:
            self.stop.set()
            self.store.close()

    def ready(self) -> None:
        self.store.wait_ready(WAIT_SECONDS)

    def state(self) -> dict[str, Any]:
        return {**self.store.status().to_json(), "leads": self.store.is_leader}

    def fill(self, count: int, batch_size: int) -> None:
        """Writes `count` containers, `batch_size` in each command.

        At most 1,000 // batch_size + 8 commands are on their way at the same time.
        """
        waiting: list[Any] = []
        for start in range(0, count, batch_size):
            with self.store.batch(wait=False, timeout=WAIT_SECONDS) as batch:
                for number in range(start, min(count, start + batch_size)):
                    batch.update_container(sample(number))
            waiting.append(batch.future)
            if len(waiting) >= 1_000 // batch_size + 8:
                waiting.pop(0).result()
        for future in waiting:
            future.result()

    def start_caller(self, containers: list[wr.Container]) -> None:
        """Starts a thread that writes the containers in turn, one after the other, until the end."""
        threading.Thread(target=self._call, args=(containers,), daemon=True).start()

    def _call(self, containers: list[wr.Container]) -> None:
        for container in itertools.cycle(in_turns(containers)):
            if self.stop.is_set():
                return
            begin = time.monotonic()
            try:
                self.store.update_container(container)
            except wr.Closed:
                return
            except wr.Unavailable:
                self.unanswered += 1
                continue
            end = time.monotonic()
            self.times.append((end, end - begin))

    def between(self, begin: float, end: float) -> list[tuple[float, float]]:
        """The times and durations of the writes that were acknowledged between `begin` and `end`."""
        return [(moment, took) for moment, took in [*self.times] if begin < moment < end]

    def longest_pause(self, begin: float, end: float) -> float:
        """The longest time between two acknowledged writes, of any caller of this manager, in seconds."""
        moments = sorted(moment for moment, _ in self.between(begin, end))
        return max(after - before for before, after in itertools.pairwise([begin, *moments, end]))


class Process:
    """The process of a Manager, seen from the benchmark: `script --manager SETTINGS`."""

    def __init__(self, script: str, settings: dict[str, Any], python: str = sys.executable) -> None:
        arguments = [python, script, "--manager", json.dumps(settings)]
        self.begun = time.monotonic()
        self.popen = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> Any:
        assert self.popen.stdout is not None
        return json.loads(self.popen.stdout.readline())

    def begin(self, *command: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(command) + "\n")
        self.popen.stdin.flush()

    def call(self, *command: Any) -> Any:
        self.begin(*command)
        return self.read()

    def end(self) -> None:
        """Ends the process, at any moment. The end of stdin closes its manager cleanly."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self.popen.wait(WAIT_SECONDS)


class Cluster:
    """For `with`: managers on this machine, in directories of their own."""

    python = sys.executable
    """A subclass may name the Python of another checkout: then its managers are measured."""

    def __init__(self, script: str, directory: Path, count: int = 3, **settings: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(dir=directory))
        self.addresses = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(count), 1)}
        self.managers: dict[str, Process] = {}
        self._script, self._settings = script, settings
        for id_ in self.addresses:
            self.launch(id_)

    def launch(self, id_: str) -> Process:
        """Start the process of a manager. The caller still has to read its first lines."""
        settings: dict[str, Any] = {"node_id": id_, "data_dir": str(self.directory / id_)}
        settings |= {"listen": self.addresses[id_], "members": self.addresses, **self._settings}
        self.managers[id_] = Process(self._script, settings, self.python)
        return self.managers[id_]

    def pids(self) -> list[int]:
        return [manager.popen.pid for manager in self.managers.values()]

    def call_all(self, *command: Any) -> list[Any]:
        for manager in self.managers.values():
            manager.begin(*command)
        return [manager.read() for manager in self.managers.values()]

    def leader_and_follower(self) -> tuple[str, str]:
        def found() -> str | None:
            states = {id_: manager.call("state") for id_, manager in self.managers.items()}
            return next((id_ for id_, state in states.items() if state["leads"]), None)

        leader = wait_for(found, "a leader")
        return leader, next(id_ for id_ in self.managers if id_ != leader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        for manager in self.managers.values():
            if failure is not None:
                manager.popen.kill()
            manager.end()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def wait_for(condition: Callable[[], Any], what: str, states: Callable[[], list[Any]] = list) -> Any:
    """Wait for a condition. `states`: the managers' descriptions, for the error if it does not come."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            said = [{name: state[name] for name in ("node_id", "verdict", "alarms")} for state in states()]
            raise TimeoutError(f"waited {WAIT_SECONDS:g} s for {what}: {said}")
        time.sleep(0.02)
    return found
