"""The promise: a stuck raft thread is an alarm within seconds, and its manager no longer says that it leads. Later the
manager stops, with the thread's stack in the log, and every call ends. A process that was suspended for a while, or a
thread that is busy with a long apply, is not stuck.

(Pins: a raft thread never stepped again. `is_leader` stayed true while another manager led, no alarm was raised,
`failure` was None, and writes ended one by one at their deadlines.)
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.busy_machine import in_time
from tests.cluster.harness import PROJECT, free_ports, wait_until
from warren_raft.alarms import Alarms
from warren_raft.manager.watchdog import ALARM, Watchdog
from warren_raft.raft.driver import Driver
from warren_raft.raft.engine import Engine
from warren_raft.raft.links.transport import Transport

DEADLINE = 60.0


# ------------------------------------------------------------------------------------------------- counting


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A watchdog of a thread that lives, with a clock and a progress of the test's."""

    def __init__(self, *, alarm_seconds: float = 5.0, stop_seconds: float | None = 60.0) -> None:
        self.clock = Clock()
        self.progress = 0
        self.alarms = Alarms("m1")
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.end.wait, args=(DEADLINE,), daemon=True)
        self.thread.start()
        self.watchdog = Watchdog(
            "m1",
            self.thread,
            lambda: self.progress,
            self.alarms,
            alarm_seconds=alarm_seconds,
            stop_seconds=stop_seconds,
            clock=self.clock,
        )

    def pass_seconds(self, seconds: float) -> Any:
        """The result of the last check."""
        problem = None
        for _ in range(round(seconds / self.watchdog.look_seconds)):
            self.clock.now += self.watchdog.look_seconds
            problem = self.watchdog.look()
        return problem

    def wait_alarm(self, *, raised: bool) -> None:
        """Another thread says it."""
        wait_until(lambda: self.alarms.is_raised(ALARM) == raised, f"the alarm to be {raised}", DEADLINE)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.end.set()
    watched.thread.join()
    watched.watchdog.close()


def test_a_thread_that_does_nothing_is_stuck_after_seconds_and_the_end_after_a_minute(watched: Watched) -> None:
    assert watched.pass_seconds(4.5) is None
    assert not watched.watchdog.is_stuck
    assert watched.pass_seconds(1) is None
    assert watched.watchdog.is_stuck
    watched.wait_alarm(raised=True)
    (alarm,) = watched.alarms.active
    assert alarm.severity == "critical"
    assert "m1 has done nothing for 5" in alarm.text
    assert watched.pass_seconds(54) is None
    assert "done nothing for 60 s" in str(watched.pass_seconds(1))


def test_it_is_over_with_the_first_sign_of_life(watched: Watched) -> None:
    watched.pass_seconds(20)
    watched.wait_alarm(raised=True)
    watched.progress += 1
    assert watched.pass_seconds(0.5) is None
    assert not watched.watchdog.is_stuck
    watched.wait_alarm(raised=False)
    assert watched.pass_seconds(59) is None, "the time before counts no more"


def test_a_long_apply_that_gets_on_is_no_standstill(watched: Watched) -> None:
    for _ in range(100):
        watched.progress += 1
        assert watched.pass_seconds(4) is None
    assert not watched.watchdog.is_stuck


@pytest.mark.parametrize("seconds", [10, 3600, 86_400 * 30])
def test_a_process_that_was_stopped_finds_nothing_stuck(watched: Watched, seconds: float) -> None:
    """SIGSTOP, a laptop's lid, a debugger: the watchdog's first look may come before the raft thread's first step."""
    watched.pass_seconds(2)
    watched.clock.now += seconds
    assert watched.watchdog.look() is None
    assert not watched.watchdog.is_stuck
    watched.progress += 1
    assert watched.pass_seconds(1) is None
    assert watched.alarms.active == ()


def test_a_thread_that_has_ended_is_the_end_at_once(watched: Watched) -> None:
    watched.end.set()
    watched.thread.join()
    assert "has ended" in str(watched.watchdog.look())
    assert watched.watchdog.is_stuck


def test_it_may_be_told_never_to_stop_the_manager() -> None:
    watched = Watched(stop_seconds=None)
    assert watched.pass_seconds(7200) is None
    assert watched.watchdog.is_stuck
    watched.end.set()


# ------------------------------------------------------------------------------------------------- a manager


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], threading.Event]]:
    """Have the raft thread hang in its next step, until the event is set."""
    lets_go: list[threading.Event] = []
    step = Engine.step

    def hanging(engine: Engine, *arguments: Any) -> Any:
        for event in lets_go:
            event.wait(4 * DEADLINE)
        return step(engine, *arguments)

    def begin() -> threading.Event:
        lets_go.append(threading.Event())
        return lets_go[-1]

    monkeypatch.setattr(Engine, "step", hanging)
    yield begin
    for event in lets_go:
        event.set()


def opened(directory: Path, **settings: Any) -> wr.ReplicatedStore:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    members = {"m1": address}
    store = wr.ReplicatedStore(
        wr.Config(node_id="m1", data_dir=directory / "m1", listen=address, members=members, admin=False, **settings)
    )
    store.wait_ready(DEADLINE)
    return store


def lose_patience(store: wr.ReplicatedStore) -> None:
    """Have a raft thread that hangs already end the manager soon. A manager that is so impatient from its start ends on
    a busy machine before the test."""
    watchdog = store._parts._watchdog
    assert watchdog is not None
    watchdog._alarm_seconds, watchdog._stop_seconds = 0.1, 0.5


def test_a_manager_with_a_stuck_raft_thread_does_not_say_that_it_leads(
    tmp_path: Path, hang: Callable[[], threading.Event]
) -> None:
    told: list[bool] = []
    with opened(tmp_path, watchdog_alarm_seconds=0.2) as store:
        store.on_leadership(lambda leads, _term: told.append(leads))
        wait_until(lambda: told[-1:] == [True], "the callback to be told")
        let_go = hang()
        wait_until(lambda: told[-1] is False, "the callback to be told of the standstill")
        assert (store.is_leader, store.leader, store.is_ready) == (False, None, False)
        status = store.status()
        assert (status.role, status.leader, status.has_quorum) == ("follower", None, False)
        wait_until(lambda: [alarm.name for alarm in store.alarms] == [ALARM], "the alarm")
        assert store.failure is None
        let_go.set()
        wait_until(lambda: told[-1] is True, "the callback to be told that it leads again")
        # A busy machine may have a standstill of its own before or after this one.
        assert all(one is not next_ for one, next_ in itertools.pairwise(told)), told
        wait_until(lambda: store.alarms == (), "the alarm to end")
        store.create_node(wr.Node(id="n"))


@pytest.mark.slow
def test_a_manager_with_a_raft_thread_that_stays_stuck_stops_and_every_call_ends(
    tmp_path: Path, hang: Callable[[], threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    store.create_node(wr.Node(id="before"))
    let_go = hang()
    lose_patience(store)
    ended: list[BaseException] = []

    def call(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  the test asks for it
            ended.append(error)

    with store.batch(wait=False, timeout=math.inf) as batch:
        batch.create_node(wr.Node(id="future"))
    calls: list[Callable[[], object]] = [
        lambda: store.create_node(wr.Node(id="n"), timeout=math.inf),
        lambda: store.barrier(math.inf),
        lambda: store.remove_member("m9", timeout=math.inf),
        lambda: batch.future.result(DEADLINE),
    ]
    threads = [threading.Thread(target=call, args=(function,), daemon=True) for function in calls]
    for thread in threads:
        thread.start()
    assert store.wait_failed(DEADLINE)
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert len(ended) == 4
    assert {type(error) for error in ended} <= {wr.Closed, wr.Unavailable}
    assert isinstance(store.failure, wr.InvariantViolation)
    assert store.get_node("before").id == "before", "reads go on"
    with pytest.raises(wr.Closed, match="the raft thread has done nothing for"):
        store.create_node(wr.Node(id="n"))
    wait_until(lambda: "raft thread stuck, this manager stops" in caplog.text, "the line in the log")
    stack = next(record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL)
    assert "_step (" in stack
    assert "hanging (" in stack
    began = time.monotonic()
    store.close()
    assert time.monotonic() - began < DEADLINE
    with pytest.raises(wr.InUse):  # the thread may still be in the middle of a transaction
        wr.ReplicatedStore(store.config)
    let_go.set()


def test_a_raft_thread_that_goes_on_after_its_manager_was_stopped_closes_its_links(
    tmp_path: Path, hang: Callable[[], threading.Event]
) -> None:
    """Nobody else does, where the program does not look at `failure`; and peers took this manager for connected."""
    store = opened(tmp_path)
    host, _, port = store.config.listen.rpartition(":")
    let_go = hang()
    lose_patience(store)
    assert store.wait_failed(DEADLINE)
    let_go.set()
    store._parts.driver.thread.join(DEADLINE)
    assert not store._parts.driver.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port))).close()
    store.close()
    wr.ReplicatedStore(store.config).close()  # the directory was given back


class HangingHandler(logging.Handler):
    """A log's pipe that nobody reads: a thread that logs waits, with the handler's lock held."""

    def __init__(self, let_go: threading.Event) -> None:
        super().__init__(logging.INFO)
        self.let_go = let_go
        self.hangs = threading.Event()

    def emit(self, _record: logging.LogRecord) -> None:
        self.hangs.set()
        self.let_go.wait(3 * DEADLINE)


@pytest.mark.slow
def test_a_raft_thread_that_is_stuck_in_a_log_line_is_noticed(tmp_path: Path) -> None:
    """The watchdog, and the code that closes the store, must not wait for the same lock."""
    let_go = threading.Event()
    store = opened(tmp_path)
    handler = HangingHandler(let_go)
    logging.getLogger("warren_raft").addHandler(handler)
    try:
        store._parts.driver.call(logging.getLogger("warren_raft.driver").warning, "a line")
        assert handler.hangs.wait(DEADLINE)
        lose_patience(store)
        assert store.wait_failed(DEADLINE)
        assert not store.is_leader
        closer = threading.Thread(target=store.close, daemon=True)
        closer.start()
        closer.join(DEADLINE)
        assert not closer.is_alive(), "close() waits for the log, too"
    finally:
        let_go.set()
        logging.getLogger("warren_raft").removeHandler(handler)
    store.close()


def test_a_raft_thread_that_is_thrown_out_of_its_loop_ends_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only SystemExit and Ctrl-C end an asyncio loop: the thread ended silently. The driver now shuts down in that
    case, and only once: two tasks did it at the same time, and one of them was interrupted."""
    begun: list[Driver] = []
    shut_down = Driver._shut_down

    async def counted(driver: Driver) -> None:
        begun.append(driver)
        await shut_down(driver)

    def leave() -> None:
        raise SystemExit

    monkeypatch.setattr(Driver, "_shut_down", counted)
    store = opened(tmp_path)
    store._parts.driver.call(leave)
    assert store.wait_failed(DEADLINE)
    assert "SystemExit" in str(store.failure)
    with pytest.raises(wr.Closed):
        store.create_node(wr.Node(id="n"), timeout=math.inf)
    store.close()
    assert [driver for driver in begun if driver is store._parts.driver] == [
        store._parts.driver
    ]  # others may be ending still
    with wr.ReplicatedStore(store.config) as again:
        again.wait_ready(DEADLINE)


def test_a_shut_down_that_breaks_off_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(transport: Transport) -> None:
        await close(transport)
        raise OSError("the links cannot be closed")

    close = Transport.close
    store = opened(tmp_path)
    driver = store._parts.driver
    before = set(threading.enumerate())
    monkeypatch.setattr(Transport, "close", broken)
    store.close()
    monkeypatch.undo()
    names = ("warren-raft-worker", "warren-raft-log", "warren-raft-sync")
    left = [thread for thread in before if thread.name.startswith(names) and thread.name.endswith(driver._node_id)]
    for thread in left:
        thread.join(DEADLINE)
    assert not driver.thread.is_alive()
    assert [thread.name for thread in left if thread.is_alive()] == []


PROGRAM = """
import sys, time
import warren_raft as wr
directory, address = sys.argv[1:]
config = wr.Config(
    node_id="m1", data_dir=directory, listen=address, members={"m1": address}, admin=False,
    watchdog_alarm_seconds=1.0, watchdog_stop_seconds=2.0,
)
with wr.ReplicatedStore(config) as store:
    store.wait_ready(60)
    told = []
    store.on_leadership(lambda leads, term: told.append(leads))
    while not told:
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.readline()
    store.create_node(wr.Node(id="n"))
    time.sleep(0.5)
    print(told, store.failure, store.alarms)
"""


@pytest.mark.slow
def test_a_process_that_is_stopped_and_goes_on_is_not_stuck(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m1"), address]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            threading.Event().wait(2.5)  # longer than after which it would stop; nothing can be waited for
            os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate("\n", timeout=60)
    with in_time():  # on a busy machine the thread may have stood still by itself
        assert (out, err) == ("[True] None ()\n", "")
