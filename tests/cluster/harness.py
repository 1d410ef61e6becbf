"""A cluster of real manager processes on free loopback ports, under one temporary directory.

Lives here: processes, signals and waiting (always for a condition, with a deadline that a busy machine meets). Not
here: a manager's commands for tests (manager_process.py), the writers' journals (history.py), judging (checkers.py).
Invariant: when a Cluster ends, also after a failure, its processes have ended and are waited for, and its files are
removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import permutations
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.busy_machine import in_time
from tests.cluster import nursery
from tests.cluster.checkers import State, check, check_linearizability
from tests.cluster.history import History
from tests.cluster.network import Network
from warren_raft.testing.ports import free_ports

T = TypeVar("T")

PROJECT: Final = Path(__file__).resolve().parents[2]
WAIT_SECONDS: Final = 60.0
"""The deadline for any condition. Waiting ends when the condition holds, so only a failure or a very busy machine takes
so long."""
POLL_SECONDS: Final = 0.02
CALL_SECONDS: Final = 40.0
WRITE_SECONDS: Final = 30.0
"""The deadline of a write of a test that gives none."""
LOG_SHOWN: Final = 25
SNAPSHOT_AFTER_BYTES: Final = 24 * 1024
"""Some hundred writes of a test's load: a second or two."""
HISTORY_CHANGES: Final = 500
"""The changes that are kept with `compaction`; otherwise most of a test's state would be history."""
FORBIDDEN_IN_LOGS: Final = (
    "Traceback (most recent call last)",
    "Task was destroyed",
    "was never awaited",
    "CRITICAL",
    "alarm=peer-fault",
)


class ManagerError(Exception):
    """A command raised in the manager: `kind` is the class's name, `data` its attributes."""

    def __init__(self, kind: str, text: str, data: dict[str, Any]) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text
        self.data = data


class ManagerDied(Exception):
    """The process ended before it answered."""


def wait_until(condition: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Wait until `condition` returns a true value, and return that value. AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        pause.wait(POLL_SECONDS)
    return result


class Process:
    """One run of a manager, from its start to its end."""

    def __init__(self, settings: dict[str, Any], log: Path, prefix: Sequence[str] = ()) -> None:
        self.popen: subprocess.Popen[bytes] | nursery.Fork
        if prefix:
            command = [*prefix, sys.executable, "-m", "tests.cluster.manager_process", json.dumps(settings)]
            with open(log, "ab") as stderr:
                self.popen = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd=PROJECT
                )
        else:
            self.popen = nursery.fork(settings, log)
        self.pid = self.popen.pid
        self.is_paused = False
        self.opened: Future[str] = Future()
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, Future[Any]] = {0: self.opened}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def ask(self, command: str, **arguments: Any) -> Future[Any]:
        """Begin a command; its result is in the future, or ManagerError, or ManagerDied."""
        future: Future[Any] = Future()
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = future
            request = {"number": number, "command": command, "arguments": arguments}
            try:
                assert self.popen.stdin is not None
                self.popen.stdin.write((json.dumps(request) + "\n").encode())
                self.popen.stdin.flush()
            except (OSError, ValueError):
                self._waiting.pop(number)
                future.set_exception(ManagerDied(command))
        return future

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            answer = json.loads(line)
            self.pid = answer.get("pid", self.pid)
            with self._lock:
                future = self._waiting.pop(answer["number"])
            if "error" in answer:
                future.set_exception(ManagerError(answer["error"], answer["text"], answer["data"]))
            else:
                future.set_result(answer["result"])
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(ManagerDied("the process ended"))

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            os.kill(self.pid, number)

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Wait for the end of the process. Returns its exit code; its pipes are closed, and it is reaped."""
        code = self.popen.wait(seconds)
        self._reader.join(seconds)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return code

    def destroy(self) -> None:
        """SIGKILL, in any state of the process."""
        self.signal(signal.SIGKILL)
        if self.pid != self.popen.pid and self.is_alive:
            self.popen.kill()
        self.wait()


class Cluster:
    """Managers by id; for `with`. `config` goes into each manager's Config. `network`: their links can be cut.
    `compaction`: a snapshot is taken, and the log compacted, after SNAPSHOT_AFTER_BYTES of commands. `history_changes`:
    the number of changes that each manager keeps."""

    def __init__(
        self,
        ids: Sequence[str] = ("m1", "m2", "m3"),
        *,
        start: bool = True,
        network: bool = False,
        compaction: bool = False,
        history_changes: int | None = None,
        **config: Any,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="warren-raft-cluster-"))
        self.journals = self.directory / "journals"
        self.journals.mkdir()
        self.history = History(self.journals)
        self.members = {id_: f"127.0.0.1:{port}" for id_, port in zip(ids, free_ports(len(ids)), strict=True)}
        self.addresses = dict(self.members)
        small = {"snapshot_after_bytes": SNAPSHOT_AFTER_BYTES} if compaction else {}
        self.config = {"admin": False, "write_timeout_seconds": WRITE_SECONDS, **small, **config}
        self._compaction = compaction
        self._history_changes = HISTORY_CHANGES if compaction and history_changes is None else history_changes
        self.previous: set[str] = set()
        """The managers that start with the previous release (tests/previous_release.py)."""
        self.processes: dict[str, Process] = {}
        self.allowed_in_logs: list[str] = []
        """The test expects log lines that contain one of these texts."""
        self.kills = 0
        """SIGKILLs of managers, by `kill`."""
        self.verdicts: Counter[str] = Counter()
        """The number of records' histories that the last `check` found linearizable, or not decided."""
        self._runs = 0
        self._ended: list[Process] = []
        self._network = Network(self._id_at) if network else None
        try:
            if start:
                self.start(*ids)
        except BaseException:
            self.destroy()
            raise

    # Starting and ending -----------------------------------------------------------------------------------------

    def data_dir(self, id_: str) -> Path:
        return self.directory / id_

    def log_of(self, id_: str) -> Path:
        return self.directory / f"{id_}.log"

    def launch(self, id_: str, *, prefix: Sequence[str] = (), **config: Any) -> Process:
        """Start a manager's process; do not wait for it."""
        assert id_ not in self.processes, f"{id_} runs"
        self._runs += 1
        address = self.addresses[id_]
        settings = {
            "node_id": id_,
            "data_dir": str(self.data_dir(id_)),
            "listen": address,
            "members": {**self.members, id_: address},
            **self.config,
            **config,
        }
        name = f"{id_}-{self._runs}"
        child = {"config": settings, "journals": str(self.journals), "name": name}
        child["compaction"] = self._compaction
        child["history_changes"] = self._history_changes
        child["previous_release"] = id_ in self.previous
        if self._network is not None:
            child["network"] = self._network.port
        self.processes[id_] = Process(child, self.log_of(id_), prefix)
        return self.processes[id_]

    def start(self, *ids: str, ready: bool = True, **config: Any) -> None:
        """Start managers together, and wait until each is open; unless `ready` is False, also until each is ready."""
        processes = [self.launch(id_, **config) for id_ in ids]
        for id_, process in zip(ids, processes, strict=True):
            self._result(id_, process.opened, WAIT_SECONDS)
        if ready:
            self.wait_ready(*ids)

    def add_blank(self, id_: str) -> None:
        """Start a further manager on a blank directory, with an address of its own; it is not a member yet."""
        self.addresses[id_] = f"127.0.0.1:{free_ports(1)[0]}"
        self.start(id_, ready=False)

    def launch_refused(self, id_: str, **config: Any) -> ManagerError:
        """Start a manager that must not open. Returns its error."""
        process = self.launch(id_, **config)
        error = process.opened.exception(WAIT_SECONDS)
        assert isinstance(error, ManagerError), f"{id_} opened, or died: {error!r}"
        self.refused(id_)
        return error

    def refused(self, id_: str) -> None:
        """Wait for the end of a manager that was launched and did not open."""
        assert self._gone(id_) == 1

    def kill(self, *ids: str) -> None:
        """SIGKILL to all these managers, then wait for their ends."""
        for id_ in ids:
            self.processes[id_].signal(signal.SIGKILL)
            self.kills += 1
        for id_ in ids:
            assert self._gone(id_) == -signal.SIGKILL

    def stop(self, *ids: str) -> None:
        """SIGTERM; each manager must end by itself, with exit code 0."""
        for id_ in ids:
            self.processes[id_].signal(signal.SIGTERM)
        for id_ in ids:
            assert self._gone(id_) == 0, self.describe()

    def _gone(self, id_: str) -> int:
        try:
            code = self.processes[id_].wait()
        except subprocess.TimeoutExpired:
            self._dump_threads(id_)
            raise AssertionError(f"{id_} did not end\n{self.describe()}") from None
        self._ended.append(self.processes.pop(id_))
        return code

    def pause(self, id_: str) -> None:
        """SIGSTOP: the process is suspended."""
        self.processes[id_].signal(signal.SIGSTOP)
        self.processes[id_].is_paused = True

    def resume(self, id_: str) -> None:
        self.processes[id_].signal(signal.SIGCONT)
        self.processes[id_].is_paused = False

    # The network -------------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        assert self._network is not None, "this test wants Cluster(network=True)"
        return self._network

    def _id_at(self, address: str) -> str:
        """The manager that listens at an address now. "nobody": there is none, and that name has no faults."""
        return next((id_ for id_, own in list(self.addresses.items()) if own == address), "nobody")

    def cut(self, one: str, other: str) -> None:
        """No byte goes between these two managers."""
        self.network.hold([(one, other), (other, one)])

    def cut_one_way(self, sender: str, receiver: str) -> None:
        """Messages of `sender` do not reach `receiver`; the other direction works."""
        self.network.hold([(sender, receiver)])

    def split(self, *sides: Sequence[str]) -> None:
        """Cut the network between these sides."""
        of = {id_: number for number, side in enumerate(sides) for id_ in side}
        self.network.hold([(one, other) for one, other in permutations(of, 2) if of[one] != of[other]])

    def isolate(self, id_: str) -> None:
        """Cut one manager off from all others."""
        self.split([id_], [other for other in self.addresses if other != id_])

    def slow_links(self, *ids: str, delay_seconds: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """Slow all links of these managers (default: all) in both directions: by a delay, a limit on bytes, or both."""
        touched = set(ids or self.addresses)
        ways = [pair for pair in permutations(self.addresses, 2) if touched & set(pair)]
        self.network.slow(ways, delay_seconds=delay_seconds, bytes_per_second=bytes_per_second)

    def heal(self) -> None:
        """The network is whole and fast again; held bytes arrive."""
        self.network.heal()

    # Damage ------------------------------------------------------------------------------------------------------

    def state_of(self, id_: str) -> Path:
        return self.data_dir(id_) / "state"

    def generation(self, id_: str) -> int:
        """The generation of the state that is in use."""
        return int((self.state_of(id_) / "current").read_text())

    def is_unsynced(self, id_: str) -> bool:
        """Whether there is a marker beside the state."""
        return (self.state_of(id_) / f"{self.generation(id_)}.mdb.unsynced").exists()

    def forge_marker(self, id_: str) -> None:
        """Make the marker of unsynced commits name another boot, as if the machine had been restarted since."""
        marker = self.state_of(id_) / f"{self.generation(id_)}.mdb.unsynced"
        text = marker.read_text()
        assert text.startswith("boot "), text
        marker.write_text(text.replace("boot ", "boot 0", 1))

    def snapshots_of(self, id_: str) -> list[Path]:
        """The files of a manager's snapshots, the newest first."""
        return sorted((self.data_dir(id_) / "snapshots").glob("*-*.mdb"), reverse=True)

    @staticmethod
    def flip_bit(path: Path, draw: random.Random) -> None:
        """Flip a bit, like a disk that rots; not in the zeros at the end of a file that is made ahead."""
        with open(path, "r+b") as file:
            position = draw.randrange(max(1, len(file.read().rstrip(b"\0"))))
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1 << draw.randrange(8)]))

    # Snapshots ---------------------------------------------------------------------------------------------------

    def log_base(self, id_: str) -> int:
        return self.call(id_, "log_base")

    def wait_cut(self, index: int, *ids: str) -> None:
        """Wait until the logs of these managers (default: all that run) begin behind `index`; there must be load."""
        waited_for = ids or self.alive
        self.wait(lambda: all(self.log_base(id_) > index for id_ in waited_for), f"logs that begin behind {index}")

    def leave_behind(self, id_: str) -> int:
        """Kill a manager, and wait until the logs of the others no longer hold the entries that it needs. Returns its
        last index, or a later one."""
        index = self.status(id_)["commit_index"]
        self.kill(id_)
        self.wait_cut(index)
        return index

    def is_fetching(self, id_: str) -> bool:
        return self.status(id_)["fetching"] is not None

    def destroy(self) -> None:
        """End all processes, then remove all files."""
        for id_ in list(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[id_].destroy()
            del self.processes[id_]
        if self._network is not None:
            self._network.close()
            self._network = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.check_logs()
        finally:
            self.destroy()

    def check_logs(self) -> None:
        """No manager logged an error that the test did not expect."""
        for path in sorted(self.directory.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            bad = [number for number, line in enumerate(lines) if any(word in line for word in FORBIDDEN_IN_LOGS)]
            bad = [number for number in bad if not any(text in lines[number] for text in self.allowed_in_logs)]
            excerpt = "\n".join(lines[max(0, bad[0] - 3) : bad[0] + LOG_SHOWN]) if bad else ""
            assert not bad, f"{path.name}:\n{excerpt}"

    # Asking ------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> list[str]:
        """The managers that run and are not suspended."""
        return [id_ for id_, process in self.processes.items() if process.is_alive and not process.is_paused]

    def ask(self, id_: str, command: str, **arguments: Any) -> Future[Any]:
        return self.processes[id_].ask(command, **arguments)

    def call(self, id_: str, command: str, **arguments: Any) -> Any:
        """Raises ManagerError."""
        return self._result(id_, self.ask(id_, command, **arguments), CALL_SECONDS)

    def _result(self, id_: str, future: Future[T], seconds: float) -> T:
        try:
            return future.result(seconds)
        except FutureTimeout:
            self._dump_threads(id_)
            raise AssertionError(f"{id_} did not answer within {seconds:g} s\n{self.describe()}") from None
        except ManagerDied:
            raise AssertionError(f"{id_} died\n{self.describe()}") from None

    def call_all(self, command: str, *ids: str, **arguments: Any) -> dict[str, Any]:
        """The answers of several managers (default: all that run) to the same command, asked at once."""
        asked = {id_: self.ask(id_, command, **arguments) for id_ in ids or self.alive}
        return {id_: self._result(id_, future, CALL_SECONDS) for id_, future in asked.items()}

    def status(self, id_: str) -> dict[str, Any]:
        return self.call(id_, "status")

    def statuses(self, *ids: str) -> dict[str, dict[str, Any]]:
        return self.call_all("status", *ids)

    # Waiting -----------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
        """Like `wait_until`, with the managers' states and logs in the failure."""
        try:
            return wait_until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def wait_ready(self, *ids: str) -> None:
        try:
            self.call_all("wait_ready", *ids, timeout=CALL_SECONDS - 5)
        except ManagerError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def wait_leader(self, *, not_: Iterable[str] = ()) -> str:
        """The id of the manager that certainly leads, and that a majority of the running managers follow."""
        unwanted = set(not_)

        def leader() -> str | None:
            statuses = self.statuses()
            for id_, status in statuses.items():
                followers = [other for other in statuses.values() if other["leader"] == id_]
                if status["is_leader"] and id_ not in unwanted and len(followers) * 2 > len(statuses):
                    return id_
            return None

        return self.wait(leader, f"a leader other than {sorted(unwanted)}") or ""

    def followers(self) -> list[str]:
        leader = self.wait_leader()
        return [id_ for id_ in self.alive if id_ != leader]

    def wait_converged(self, *ids: str) -> tuple[int, str]:
        """Wait until these managers (default: all that run) are at the same applied index, the last one. Returns
        (index, digest).

        At the same index the digests must be equal, and each must be the digest of the records.
        """

        def level() -> dict[str, Any] | None:
            statuses = self.statuses(*ids)
            indexes = {status["applied_index"] for status in statuses.values()}
            indexes |= {status["commit_index"] for status in statuses.values()}
            return statuses if len(indexes) == 1 else None

        statuses = self.wait(level, "one applied index")
        assert statuses is not None
        digests = {id_: (status["digest"], status["revision"]) for id_, status in statuses.items()}
        assert len(set(digests.values())) == 1, f"other states at the same index: {digests}\n{self.describe()}"
        for id_, (kept, recomputed) in self.call_all("recomputed_digest", *ids).items():
            assert kept == recomputed, f"{id_}: the digest is not that of the records"
        status = next(iter(statuses.values()))
        return status["applied_index"], status["digest"]

    # Load --------------------------------------------------------------------------------------------------------

    def start_load(self, *ids: str, threads: int = 2, **arguments: Any) -> None:
        """Start writers on each of these managers (default: all that run)."""
        self.call_all("start_load", *ids, threads=threads, **arguments)

    def assert_no_election(self, leader: str, term: int) -> None:
        """This manager still leads, in this term."""
        with in_time():
            assert self.wait_leader() == leader
            assert {id_: status["term"] for id_, status in self.statuses().items()} == dict.fromkeys(self.alive, term)

    def stop_load(self, *ids: str) -> None:
        """Have each writer finish its write and end."""
        ended = self.call_all("stop_load", *ids)
        assert all(ended.values()), f"writers did not end: {ended}\n{self.describe()}"

    def acknowledged(self, *ids: str) -> int:
        return self.history.read().acknowledged(*ids)

    def wait_acknowledged(self, more: int, *ids: str) -> None:
        """Wait until so many more writes are acknowledged: through these managers, or through any if none is named."""
        enough = self.acknowledged(*ids) + more
        self.wait(lambda: self.acknowledged(*ids) >= enough, f"{more} more acknowledged writes through {ids or 'any'}")

    def check(self, *ids: str) -> History:
        """Let the managers converge, then judge the state of each against all answers of the callers."""
        self.wait_converged(*ids)
        self.history.read()
        for id_, dump in self.call_all("dump", *ids).items():
            check(self.history, State.of(id_, dump))
        self.verdicts = check_linearizability(self.history)
        return self.history

    # Descriptions for failures -----------------------------------------------------------------------------------

    def describe(self) -> str:
        """Each manager's state and the end of its log, for a failure's message."""
        lines = []
        for id_ in self.addresses:
            process = self.processes.get(id_)
            lines.append(f"--- {id_}: {self._state_of(process)}")
            if self.log_of(id_).exists():
                lines += self.log_of(id_).read_text(errors="replace").splitlines()[-LOG_SHOWN:]
        return "\n".join(lines)

    @staticmethod
    def _state_of(process: Process | None) -> str:
        if process is None:
            return "does not run"
        if not process.is_alive or process.is_paused:
            return f"ended with {process.popen.returncode}" if not process.is_alive else "paused"
        try:
            status = process.ask("status").result(2)
        except Exception as error:  # noqa: BLE001 - it is a part of another failure's message
            return f"does not answer: {error!r}"
        shown = ("role", "leader", "term", "commit_index", "applied_index", "pending_writes", "alarms", "failure")
        links = [member["id"] for member in status["members"] if member["connected"]]
        return " ".join(f"{name}={status[name]}" for name in shown) + f" connected={links}"

    def _dump_threads(self, id_: str) -> None:
        """Write all stacks of a manager that does not answer into its log."""
        process = self.processes.get(id_)
        if process is not None:
            process.signal(signal.SIGUSR1)
            with contextlib.suppress(Exception):
                process.ask("nothing").result(1)  # time to write the stacks
