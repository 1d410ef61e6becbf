"""What snapshots cost a cluster while it works: taking one, sending one, and a manager's restart.

    python benchmarks/catchup.py [--containers 100000] [--parts taking,sending,restart] [--directory DIR] [--json]

Three manager processes on one machine, callers in the leading one, every container of realistic size. Exits with 1
where a mark is missed; on a busy machine, compare the disk's own figures beside it. What a snapshot costs by itself,
without a cluster, is in snapshots.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from writes import free_ports, sample, sync_seconds

ROUNDS = 5
CALLERS = 32
BATCH = 200
RESTART_COMMANDS = 10_000
BEFORE_SECONDS = 4.0
"""Of undisturbed load, which each disturbance is compared with."""
WAIT_SECONDS = 300.0
CUT_AFTER_BYTES = 12 * 1024 * 1024
"""While a follower is away: so that two snapshots are taken, and the log is cut to the older one."""
LEVEL_ENTRIES = 64
"""A follower that lacks at most so many entries has caught up: it is applying what has just been committed."""

MARKS = {
    "taking on the leader: p99 ratio": 2.0,
    "taking: RssAnon growth MiB": 32.0,
    "sending: p99 ratio": 2.0,
    "restart after a close: first read s": 0.5,
    "restart after a close: ready s": 1.0,
    "restart after kill -9: first read s": 0.5,
    "restart after kill -9: ready s": 1.0,
}
"""First marks of a 2-core machine: at most so much."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--containers", type=int, default=100_000)
    parser.add_argument("--parts", default="taking,sending,restart", help="some of them, with commas")
    parser.add_argument("--directory", help="where the data go: put it on the disk that is to be measured")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--manager", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.manager:
        Manager(json.loads(arguments.manager)).run()
        return
    directory = Path(tempfile.mkdtemp(prefix="warren-raft-bench-", dir=arguments.directory))
    try:
        figures = measure(directory, arguments.parts.split(","), arguments.containers)
    finally:
        shutil.rmtree(directory)
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))
    if any(figures.get(name, 0.0) > mark for name, mark in MARKS.items()):
        sys.exit(1)


# A manager's process -------------------------------------------------------------------------------------------------


class Manager:
    """Reads a command a line, answers with a line of JSON. The first lines are sent unasked: the count of containers at
    the first local read, and that it is ready."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import warren_raft as wr

        logging.getLogger("warren_raft").addHandler(logging.NullHandler())
        self.containers = settings.pop("containers")
        self.store = wr.ReplicatedStore(wr.Config(**settings))
        with self.store.read() as view:
            found = next(iter(view.iter_containers()), None)
        self._say("empty" if found is None else found.id)
        self.unavailable = (wr.Unavailable, wr.Closed)
        self.stop = threading.Event()
        self.callers: list[threading.Thread] = []
        self.times: list[tuple[float, float]] = []
        """When a write was acknowledged, and how long it took."""

    @staticmethod
    def _say(what: Any) -> None:
        print(json.dumps(what), flush=True)

    def run(self) -> None:
        self.store.wait_ready(WAIT_SECONDS)
        self._say("ready")
        for line in sys.stdin:
            command = json.loads(line)
            self._say(getattr(self, command[0])(*command[1:]))
        self.stop.set()
        self.store.close()

    def state(self) -> dict[str, Any]:
        status = self.store.status()
        names = ("applied_index", "term", "log_entries", "digest", "fetching", "snapshot")
        return {**{name: status[name] for name in names}, "leads": self.store.is_leader}

    def fill(self, count: int, batch_size: int) -> None:
        """So many containers, some to a command, a thousand commands on their way."""
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

    def load(self, callers: int) -> None:
        for number in range(callers):
            self.callers.append(threading.Thread(target=self._call, args=(number,), daemon=True))
            self.callers[-1].start()

    def _call(self, number: int) -> None:
        containers = [sample(n) for n in range(number, self.containers, max(1, self.containers // 64))]
        turn = 0
        while not self.stop.is_set():
            turn += 1
            begin = time.monotonic()
            try:
                self.store.update_container(containers[turn % len(containers)])
            except self.unavailable:
                continue
            end = time.monotonic()
            self.times.append((end, end - begin))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """The writes that were acknowledged in this time."""
        found = [(moment, took) for moment, took in [*self.times] if begin < moment < end]
        took = sorted(seconds for _, seconds in found)
        moments = [begin, *(moment for moment, _ in found), end]
        return {
            "writes/s": round(len(took) / (end - begin)),
            "p99 ms": round(took[int(len(took) * 0.99)] * 1e3, 2) if took else float("inf"),
            "longest pause ms": round(max(b - a for a, b in pairwise(sorted(moments))) * 1e3, 1),
        }

    def take(self) -> float:
        """Take and verify a snapshot, as the product does; seconds."""
        begin = time.monotonic()
        self.store._opened.keeper.take(quorum=True)()
        return time.monotonic() - begin

    def cut_often(self, often: bool) -> None:
        """Whether snapshots are taken, and the log cut, after CUT_AFTER_BYTES, whatever the state's size."""
        self.store._opened.keeper.state_bytes = (lambda: 0) if often else (lambda: 1 << 60)


class Process:
    """The other end of a Manager."""

    def __init__(self, settings: dict[str, Any]) -> None:
        arguments = [sys.executable, __file__, "--manager", json.dumps(settings)]
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
        """Stdin's end closes it cleanly, where it has not ended by itself."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self.popen.wait(WAIT_SECONDS)

    def kill(self) -> None:
        self.popen.kill()
        self.end()


class Cluster:
    """Three managers."""

    def __init__(self, directory: Path, containers: int) -> None:
        self.directory = Path(tempfile.mkdtemp(dir=directory))
        self.containers = containers
        self.addresses = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(3), 1)}
        self.managers: dict[str, Process] = {}
        for id_ in self.addresses:
            self.launch(id_)
        for manager in self.managers.values():
            assert [manager.read(), manager.read()] == ["empty", "ready"]
        self.call_all("cut_often", False)

    def launch(self, id_: str) -> Process:
        settings = {"node_id": id_, "data_dir": str(self.directory / id_), "listen": self.addresses[id_]}
        more = {"members": self.addresses, "admin": False, "snapshot_after_bytes": CUT_AFTER_BYTES}
        self.managers[id_] = Process({**settings, **more, "containers": self.containers})
        return self.managers[id_]

    def call_all(self, *command: Any) -> list[Any]:
        for manager in self.managers.values():
            manager.begin(*command)
        return [manager.read() for manager in self.managers.values()]

    def leader_and_follower(self) -> tuple[str, str]:
        def found() -> str | None:
            states = {id_: manager.call("state") for id_, manager in self.managers.items()}
            return next((id_ for id_, state in states.items() if state["leads"]), None)

        leader = wait_for(found)
        return leader, next(id_ for id_ in self.managers if id_ != leader)

    def end(self) -> None:
        for manager in self.managers.values():
            manager.end()


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("a condition that does not come")
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def cluster(directory: Path, containers: int) -> Iterator[Cluster]:
    opened = Cluster(directory, containers)
    try:
        yield opened
    except BaseException:
        for manager in opened.managers.values():
            manager.popen.kill()
        raise
    finally:
        opened.end()


# The figures ---------------------------------------------------------------------------------------------------------


def measure(directory: Path, parts: list[str], containers: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"containers": containers, "fdatasync_p50_ms": [sync_ms(directory)]}
    for part in parts:
        figures |= PARTS[part](directory, containers)
        figures["fdatasync_p50_ms"].append(sync_ms(directory))
    return figures


def sync_ms(directory: Path) -> float:
    return round(statistics.median(sync_seconds(directory, "sync")) * 1e3, 3)


def taking(directory: Path, containers: int) -> dict[str, Any]:
    """Medians of ROUNDS: the leader's writes while it takes and verifies a snapshot; and while all three do at once,
    which has no mark: managers take theirs at different times (catchup.py, STAGGER_STEPS)."""
    with cluster(directory, containers) as managers:
        leader = managers.managers[managers.leader_and_follower()[0]]
        leader.call("fill", containers, BATCH)
        leader.call("load", CALLERS)
        figures: dict[str, Any] = {}
        growth = []
        for where in ("the leader", "all three"):
            rounds = []
            takers = [leader] if where == "the leader" else list(managers.managers.values())
            for _ in range(ROUNDS):
                time.sleep(BEFORE_SECONDS)
                begin = time.monotonic()
                with peak_growth(leader.popen.pid) as grown:
                    for taker in takers:
                        taker.begin("take")
                    seconds = [taker.read() for taker in takers]
                growth.append(grown[0] / 2**20)
                before = leader.call("between", begin - BEFORE_SECONDS, begin)
                while_ = leader.call("between", begin, begin + max(seconds))
                rounds.append((before, while_, max(seconds)))
            figures |= compared(f"taking on {where}", rounds)
        figures["taking: RssAnon growth MiB"] = round(statistics.median(growth), 1)
        return figures


def compared(name: str, rounds: list[tuple[dict[str, float], dict[str, float], float]]) -> dict[str, float]:
    def middle(values: Iterator[float]) -> float:
        return round(statistics.median(values), 2)

    return {
        f"{name}: seconds": middle(seconds for *_, seconds in rounds),
        f"{name}: p99 before ms": middle(before["p99 ms"] for before, *_ in rounds),
        f"{name}: p99 while ms": middle(while_["p99 ms"] for _, while_, _ in rounds),
        f"{name}: p99 ratio": middle(while_["p99 ms"] / before["p99 ms"] for before, while_, _ in rounds),
        f"{name}: writes/s before": middle(before["writes/s"] for before, *_ in rounds),
        f"{name}: writes/s while": middle(while_["writes/s"] for _, while_, _ in rounds),
        f"{name}: longest pause ms": middle(while_["longest pause ms"] for _, while_, _ in rounds),
    }


@contextlib.contextmanager
def peak_growth(pid: int) -> Iterator[list[int]]:
    """By how many bytes the anonymous memory of a process grew at most meanwhile; known at the end."""
    before, done = rss_anon(pid), threading.Event()
    grown = [0]

    def watch() -> None:
        while not done.wait(0.005):
            grown[0] = max(grown[0], rss_anon(pid) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()


def rss_anon(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def sending(directory: Path, containers: int) -> dict[str, Any]:
    """One round, as it is minutes: a follower was away while all the containers came, and the log was cut."""
    with cluster(directory, containers) as managers:
        leader_id, away = managers.leader_and_follower()
        leader = managers.managers[leader_id]
        behind = managers.managers[away].call("state")["applied_index"]
        managers.managers.pop(away).kill()
        managers.call_all("cut_often", True)
        leader.call("fill", containers, BATCH)

        def is_cut() -> bool:
            state = leader.call("state")
            return bool(state["applied_index"] - state["log_entries"] > behind)

        wait_for(is_cut)
        managers.call_all("cut_often", False)
        term = leader.call("state")["term"]
        leader.call("load", CALLERS)
        time.sleep(BEFORE_SECONDS)
        begin = time.monotonic()
        follower = managers.launch(away)
        follower.read()
        follower.read()  # ready: it has what was committed when it first heard the leader

        def is_level() -> bool:
            return bool(
                follower.call("state")["applied_index"] >= leader.call("state")["applied_index"] - LEVEL_ENTRIES
            )

        wait_for(is_level)
        end = time.monotonic()
        before = leader.call("between", begin - BEFORE_SECONDS, begin)
        while_ = leader.call("between", begin, end)
        return {
            **compared("sending", [(before, while_, end - begin)]),
            "sending: elections": leader.call("state")["term"] - term,
        }


def restart(directory: Path, _containers: int) -> dict[str, Any]:
    """Medians of ROUNDS: from the start of a follower's process, the interpreter's own included."""
    figures: dict[str, Any] = {}
    with cluster(directory, RESTART_COMMANDS) as managers:
        leader, follower = managers.leader_and_follower()
        managers.managers[leader].call("fill", RESTART_COMMANDS, 1)
        for how in ("a close", "kill -9"):
            rounds = [restarted(managers, follower, how) for _ in range(ROUNDS)]
            figures[f"restart after {how}: first read s"] = round(statistics.median(first for first, _ in rounds), 3)
            figures[f"restart after {how}: ready s"] = round(statistics.median(ready for _, ready in rounds), 3)
    figures["restart: an interpreter with the imports s"] = round(statistics.median(bare() for _ in range(ROUNDS)), 3)
    return figures


def restarted(managers: Cluster, id_: str, how: str) -> tuple[float, float]:
    wait_for(lambda: len({state["applied_index"] for state in managers.call_all("state")}) == 1)
    process = managers.managers.pop(id_)
    if how == "kill -9":
        os.kill(process.popen.pid, signal.SIGKILL)
    process.end()
    process = managers.launch(id_)
    assert process.read() == sample(0).id
    first = time.monotonic() - process.begun
    assert process.read() == "ready"
    ready = time.monotonic() - process.begun
    process.call("cut_often", False)
    wait_for(lambda: not (managers.directory / id_ / "state" / "starts").exists())  # else it counts as a failed start
    return first, ready


def bare() -> float:
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import warren_raft; warren_raft.ReplicatedStore"], check=True)
    return time.monotonic() - begin


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"taking": taking, "sending": sending, "restart": restart}


def table(figures: dict[str, Any]) -> str:
    lines = [
        f"fdatasync p50 before, between and after: {figures['fdatasync_p50_ms']} ms; {figures['containers']} containers"
    ]
    for name, value in figures.items():
        if ": " in name:
            mark = MARKS.get(name)
            said = "" if mark is None else f"<= {mark}: {'met' if value <= mark else 'MISSED'}"
            lines.append(f"{name:<46}{value:>10}{said:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
