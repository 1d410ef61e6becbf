"""The promise: an exception that arrives in a caller's thread at any moment (Ctrl-C, an alarm for a time limit), and a
signal handler that calls the store in the middle of another call, cost at most that call. The manager lives, no lock
stays taken, no counter is wrong, and no other caller waits for ever.

(Pins: an exception between two lines of `Driver.submit` stopped the raft thread for good, while `is_leader` stayed true
and no alarm was raised; `close()` in a SIGTERM handler hung.)
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import PROJECT, free_ports, wait_until
from tests.interrupting import At, Interrupted, interrupt, interrupted, sweep
from warren_raft.local import read_only
from warren_raft.store import reader_slots
from warren_raft.store.database import Database

DEADLINE = 60.0
ELECTION_SECONDS = 0.05
"""A manager that starts waits for a part of this before it leads, although it is alone. Some tests start hundreds."""
Any_Store = wr.ReplicatedStore | wr.LocalStore


Open = Callable[[], Any]


@pytest.fixture(params=["replicated", "local"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the store of this test."""
    if request.param == "local":
        return lambda: wr.LocalStore(tmp_path / "store")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    members = {"m1": address}
    config = wr.Config(
        node_id="m1",
        data_dir=tmp_path / "store",
        listen=address,
        members=members,
        admin=False,
        heartbeat_interval_seconds=0.02,
        election_timeout_seconds=ELECTION_SECONDS,
    )
    return lambda: wr.ReplicatedStore(config)


def opened(open_store: Open) -> Any:
    """Open the store when its directory is free, and wait until it is ready."""

    def tried() -> Any:
        try:
            return open_store()
        except wr.InUse:
            return None

    store = wait_until(tried, "the directory to be free", DEADLINE)
    if isinstance(store, wr.ReplicatedStore):
        store.wait_ready(DEADLINE)
    return store


@pytest.fixture
def store(open_store: Open) -> Iterator[Any]:
    store = opened(open_store)
    yield store
    closing = threading.Thread(target=store.close, daemon=True)  # a bug must not hang the whole run
    closing.start()
    closing.join(DEADLINE)
    assert not closing.is_alive(), "close() hangs"


def assert_alive(store: Any) -> None:
    """The store writes and reads in this thread and in another, counts no ended call, and has lost no thread."""
    done: list[int] = []

    def use() -> None:
        store.create_node(wr.Node(id="alive"), timeout=DEADLINE)
        with store.batch(wait=False, timeout=DEADLINE) as batch:
            batch.create_node(wr.Node(id="alive"))
        batch.future.result(DEADLINE)
        with store.read() as view:
            done.append(view.get_node("alive").revision)
        store.list_nodes()

    use()
    other = threading.Thread(target=use, daemon=True)
    other.start()
    other.join(DEADLINE)
    assert len(done) == 2, "another thread waits for ever"
    database = store._attached()
    wait_until(lambda: not database._open_reads(), "all views to end")  # housekeeping may measure just now
    if isinstance(store, wr.ReplicatedStore):
        assert (store.failure, store.is_leader, store.alarms) == (None, True, ())
        wait_until(lambda: not store._parts.writes._outstanding and store.status().pending_writes == 0, "all to end")
        assert store._parts.writes._ended == set()
        wait_until(lambda: not store._parts.writes._waking._groups, "all callers to be awake")
        before = set(store._parts.life.changed._sleepers)
        store._parts.life.changed.ring()  # like the next change; until then the entries of interrupted waits stay
        assert not before & set(store._parts.life.changed._sleepers)  # threads that follow leadership may sleep again
    else:
        assert not store._commits._queue


def started_threads() -> list[str]:
    """The names of the started threads. Threads with a `start` that was interrupted are left out: Python counts them
    for ever. Some never existed. One waits for ever within Python's `Thread.start` protocol, before its first call of
    ours, because the interruption left Python's own lock taken there (`Condition.__enter__`)."""
    return [thread.name for thread in threading.enumerate() if thread.is_alive()]


def wait_threads_end(count: int) -> None:
    """Wait until there are at most `count` threads."""
    try:
        wait_until(lambda: len(started_threads()) <= count, "threads to end", DEADLINE)
    except AssertionError as error:
        error.add_note(f"there were {count}, there are {started_threads()}")
        raise


def write(store: Any) -> None:
    store.create_node(wr.Node(id="n"), timeout=DEADLINE)


def write_without_waiting(store: Any) -> None:
    with store.batch(wait=False, timeout=DEADLINE) as batch:
        batch.create_node(wr.Node(id="n"))
    batch.future.result(DEADLINE)


def read(store: Any) -> None:
    store.list_nodes()
    with store.read() as view:
        list(view.iter_nodes())
        view.list_nodes()


def look(store: Any) -> None:
    if isinstance(store, wr.ReplicatedStore):
        store.status()
        store.members()
        assert store.wait_leader(DEADLINE) == "m1"
        store.wait_ready(DEADLINE)
        assert not store.wait_failed(0)


def change_members(store: Any) -> None:
    if isinstance(store, wr.ReplicatedStore):
        store.remove_member("m9", timeout=DEADLINE)
        store.transfer_leadership("m1", timeout=DEADLINE)


def subscribe(store: Any) -> None:
    if isinstance(store, wr.ReplicatedStore):
        store.on_leadership(lambda _leads, _term: None)()


CALLS: list[Callable[[Any], None]] = [write, write_without_waiting, read, look, change_members, subscribe]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_an_exception_between_any_two_instructions(store: Any, call: Callable[[Any], None]) -> None:
    write(store)
    threads = len(started_threads())
    places = sweep(lambda: call(store), interrupt)
    assert places or not isinstance(store, wr.ReplicatedStore)
    assert_alive(store)
    # One thread delivers to futures. Each other thread waits in `result()` for a future with a lock that was left
    # taken, or has a callback that was registered when its caller was interrupted.
    deliveries = store._parts._deliveries if isinstance(store, wr.ReplicatedStore) else store._deliveries
    lost = 1 + len(deliveries._stuck)
    if isinstance(store, wr.ReplicatedStore):
        lost += sum(not subscription.is_over for subscription in store._parts.leadership._subscriptions)
    wait_threads_end(threads + lost)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_signal_handler_that_uses_the_store_between_any_two_instructions(
    store: Any, call: Callable[[Any], None]
) -> None:
    """The handler meets no lock that its own thread holds."""
    write(store)

    def handler() -> None:
        write(store)
        read(store)

    places = sweep(lambda: call(store), handler, step=3)
    assert places or not isinstance(store, wr.ReplicatedStore)
    assert_alive(store)


def test_an_opening_that_is_interrupted_leaves_the_directory_free(open_store: Open) -> None:
    """Opening goes on in the store's own thread, which then closes the store that no caller has.

    Only where Python lets signals in. At the two instructions between the last such place and the end of the
    constructor the store is open, and no code of it is left that could close it, as in the caller's next instruction.
    """
    opened(open_store).close()
    threads = len(started_threads())
    number, at = 1, At(0, interrupt, real=True)
    while at.seen >= number - 5:
        at = At(number, interrupt, real=True)
        stores: list[Any] = []
        interrupted(at, lambda stores=stores: stores.append(open_store()))  # type: ignore[misc]
        for store in stores:
            store.close()
        if not stores:
            opened(open_store).close()
        number += 5
    assert number > 100
    store = opened(open_store)
    assert_alive(store)
    store.close()
    wait_threads_end(threads)


def test_a_close_that_is_interrupted_is_finished_by_the_next(open_store: Open) -> None:
    number, at = 1, At(0, interrupt)
    while at.seen >= number - 13:
        store = opened(open_store)
        at = At(number, interrupt)
        if interrupted(at, store.close):
            finishing = threading.Thread(target=store.close, daemon=True)
            finishing.start()
            finishing.join(DEADLINE)
            assert not finishing.is_alive(), "close() hangs"
        with pytest.raises(wr.Closed):
            store.list_nodes()
        number += 13
    assert number > 100


@pytest.mark.parametrize("call", [write, write_without_waiting, read], ids=lambda call: call.__name__)
def test_a_signal_handler_that_closes_the_store_in_the_middle_of_a_call(
    open_store: Open, call: Callable[[Any], None]
) -> None:
    """The call ends soon, done or with Closed; the store is closed when the handler returns."""
    number, at = 1, At(0, interrupt)
    while at.seen >= number - 41:
        store = opened(open_store)
        at = At(number, store.close)
        with contextlib.suppress(wr.Closed, wr.Unavailable):
            at.run(lambda store=store: call(store))  # type: ignore[misc]
        store.close()
        with pytest.raises(wr.Closed):
            store.list_nodes()
        number += 41
    assert number > 100


def test_a_signal_handler_that_closes_the_store_in_the_middle_of_close(open_store: Open) -> None:
    number, at = 1, At(0, interrupt)
    while at.seen >= number - 17:
        store = opened(open_store)
        at = At(number, store.close)
        at.run(store.close)
        with pytest.raises(wr.Closed):
            store.list_nodes()
        number += 17
    assert number > 100


def test_callers_that_are_interrupted_or_late_keep_no_other_caller_waiting(store: Any) -> None:
    """The callers of one log entry wake each other. Some of them are interrupted when they wake up, or give up just
    then; every other caller gets its answer."""
    lots, over, done = random.Random(1), threading.Event(), [0] * 12

    def write_patiently(number: int) -> None:
        for _ in range(40):
            store.create_node(wr.Node(id=f"n{number}"), timeout=DEADLINE)
            done[number] += 1

    def write_roughly() -> None:
        with contextlib.suppress(Interrupted):  # between two writes
            while not over.is_set():
                with contextlib.suppress(Interrupted, wr.Unavailable):
                    store.create_node(wr.Node(id="n"), timeout=lots.choice((0.001, 0.01, DEADLINE)))

    write(store)
    patient = [threading.Thread(target=write_patiently, args=(number,), daemon=True) for number in range(len(done))]
    rough = [threading.Thread(target=write_roughly, daemon=True) for _ in range(12)]
    for thread in (*patient, *rough):
        thread.start()
    give_up_at = time.monotonic() + DEADLINE
    while any(thread.is_alive() for thread in patient) and time.monotonic() < give_up_at:
        thread = lots.choice(rough)
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted))
        lots.choice(patient).join(0.002)
    assert done == [40] * len(done)
    over.set()
    for thread in rough:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert_alive(store)


# ------------------------------------------------------------------------------------------------- beside a manager


OWNER = """
import sys
import warren_raft as wr
with wr.LocalStore(sys.argv[1]) as store:
    for number in range(20):
        store.create_node(wr.Node(id=f"n{number}"))
    print("ready", flush=True)
    for line in sys.stdin:
        store._own.call(store._renew)  # another generation, which readers follow
        store.create_node(wr.Node(id=line.strip()))
        print("done", flush=True)
"""


CLOSES_A_FILE = pytest.mark.filterwarnings(
    "ignore:Exception ignored .*<_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
"""An exception may arrive after a file was opened and before a variable has it: Python closes it, with a warning."""


class Owner:
    """A process that has the directory open, and uses another generation when it is told to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(directory)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read("ready")

    def renew(self, node_id: str) -> None:
        """Another generation, and a node in it that the one before has not."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{node_id}\n")
        self._process.stdin.flush()
        self._read("done")

    def _read(self, line: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{line}\n"

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path / "store")
    yield owner
    owner.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def assert_reads(reader: wr.ReadOnlyStore, *ids: str) -> None:
    """The reader sees these nodes, in this thread and in another."""
    seen: list[set[str]] = []

    def use() -> None:
        with reader.read() as view:
            seen.append({node.id for node in view.list_nodes()})
        seen.append({node.id for node in reader.list_nodes()})

    use()
    other = threading.Thread(target=use, daemon=True)
    other.start()
    other.join(DEADLINE)
    assert len(seen) == 4, "another thread waits for ever"
    assert all(set(ids) <= each for each in seen)


def test_a_reader_beside_a_manager_that_is_interrupted(owner: Owner) -> None:
    with wr.ReadOnlyStore(owner.directory) as reader:
        read(reader)
        assert sweep(lambda: read(reader), interrupt, real=True)
        assert_reads(reader)
        assert sweep(lambda: read(reader), lambda: read(reader), step=3, real=True)
        assert_reads(reader)


def test_a_signal_handler_that_reads_while_its_thread_takes_a_slot_gets_another(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one slot for two views, the manager would spare the pages of the later one only."""
    monkeypatch.setattr(reader_slots.secrets, "randbelow", lambda _slots: 0)  # both begin their search at the same slot
    number, at = 1, At(0, interrupt)
    while at.seen >= number - 1:
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(wr.ReadOnlyStore(owner.directory))

            def view(stack: contextlib.ExitStack = stack, reader: wr.ReadOnlyStore = reader) -> None:
                stack.enter_context(reader.read())

            database: Any = reader._database
            table = database.begin.__self__
            table._free.clear()  # forget the slots that opening took, as if all were in use
            at = At(number, view, real=True)
            at.run(view)
            assert len(table._users) == (1 if at.seen < number else 2), at.where
            del database, table  # otherwise it would stay open
        number += 1
    assert number > 20


@CLOSES_A_FILE
def test_the_opening_and_the_closing_of_a_reader_that_are_interrupted(owner: Owner) -> None:
    def open_and_close() -> None:
        wr.ReadOnlyStore(owner.directory).close()

    open_and_close()
    before = descriptors()
    assert len(sweep(open_and_close, interrupt, step=7, real=True)) > 20
    gc.collect()
    # At a dozen of a thousand places a descriptor was opened and no variable has it yet: that descriptor is lost.
    assert descriptors() <= before + 6, "descriptors are lost"
    with wr.ReadOnlyStore(owner.directory) as reader:
        assert_reads(reader, "n0")


def test_a_signal_handler_that_opens_a_reader_while_its_thread_opens_one(owner: Owner) -> None:
    """If both cannot be open, the handler gets an error: it must not wait for the thread that it interrupts."""
    told: set[str] = set()  # texts only: the frames of the errors would keep files open

    def open_and_close() -> None:
        wr.ReadOnlyStore(owner.directory).close()

    def handler() -> None:
        try:
            open_and_close()
            told.add("opened")
        except wr.InUse:
            told.add("refused")

    assert sweep(open_and_close, handler, step=11, real=True)
    assert told == {"opened", "refused"}
    open_and_close()


@CLOSES_A_FILE
@pytest.mark.parametrize("action", ["exception", "handler"])
def test_a_reader_that_is_interrupted_when_it_follows_to_another_generation(owner: Owner, action: str) -> None:
    with wr.ReadOnlyStore(owner.directory) as reader:
        read(reader)
        number, at = 1, At(0, interrupt)
        while at.seen >= number - 61:
            owner.renew(f"more-{number}")
            at = At(number, interrupt if action == "exception" else lambda: read(reader), real=True)
            interrupted(at, reader.list_nodes)
            assert_reads(reader, f"more-{number}")
            number += 61
        assert number > 100


@CLOSES_A_FILE
def test_a_reader_that_is_interrupted_when_it_has_opened_another_generation(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each later read was refused: the reader itself had the file open. The steps of 61 above rarely come here."""
    with wr.ReadOnlyStore(owner.directory) as reader:
        read(reader)
        owner.renew("more")
        with monkeypatch.context() as patch:
            patch.setattr(read_only, "_identity", lambda _path: interrupt())
            with pytest.raises(Interrupted):
                read(reader)
        assert_reads(reader, "more")


def test_a_reader_that_is_closed_while_it_opens_another_generation(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wr.ReadOnlyStore(owner.directory) as reader:
        read(reader)
        owner.renew("more")

        def open_slowly(state: Any) -> Database:
            database = open_read_only(state)
            other = threading.Thread(target=reader.close)
            other.start()
            other.join()
            return database

        open_read_only = Database.open_read_only
        monkeypatch.setattr(Database, "open_read_only", open_slowly)
        with pytest.raises(wr.Closed):
            read(reader)
    monkeypatch.undo()
    with wr.ReadOnlyStore(owner.directory) as reader:
        assert_reads(reader, "more")


# ------------------------------------------------------------------------------------------------- real signals


class TimeLimit(Exception):
    """Like the exceptions that gunicorn, celery and pytest-timeout raise in SIGALRM's handler."""


class Alarm:
    """Raises TimeLimit after a time, once."""

    has_rung = False
    """If the exception arrived in a finalizer, Python has dropped it, and only this flag shows it."""

    def set(self, seconds: float) -> None:
        """Set the alarm; 0: no alarm."""
        self.has_rung = False
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def ring(self, _number: int, _frame: FrameType | None) -> None:
        self.has_rung = True
        raise TimeLimit


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    alarm = Alarm()
    before = signal.signal(signal.SIGALRM, alarm.ring)
    rest = signal.setitimer(signal.ITIMER_REAL, 0)
    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, *rest)


# Python reports an exception that it drops in a finalizer.
@pytest.mark.filterwarnings("ignore:(?s).*TimeLimit:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", [write, write_without_waiting, read], ids=lambda call: call.__name__)
def test_time_limits_by_a_signal(store: Any, call: Callable[[Any], None], alarm: Alarm) -> None:
    """The exception arrives at the processor's present instruction, also in a system call that waits."""
    draw = random.Random(8)

    def use() -> None:  # a function: Python 3.13 does not guard the jump back of a loop by the `try` around it
        alarm.set(draw.uniform(0.00005, 0.004))
        while not alarm.has_rung:
            call(store)

    for _ in range(200):
        try:
            use()
        except (TimeLimit, RuntimeError):  # RuntimeError: `Condition.wait` of the standard library, see interrupting.py
            assert alarm.has_rung
    assert_alive(store)


PROGRAM = """
import os, signal, sys, threading
import warren_raft as wr
kind, directory, address = sys.argv[1:]
if kind == "local":
    store = wr.LocalStore(directory)
else:
    config = wr.Config(node_id="m1", data_dir=directory, listen=address, members={"m1": address}, admin=False)
    store = wr.ReplicatedStore(config)
    store.wait_ready(30)
def stop(number, frame):
    store.close()
    raise SystemExit(0)
signal.signal(signal.SIGTERM, stop)
threading.Timer(float(sys.stdin.readline()), os.kill, (os.getpid(), signal.SIGTERM)).start()
while True:
    with store.batch(wait=False) as batch:
        batch.create_node(wr.Node(id="n"))
    batch.future.result()
"""


@pytest.mark.parametrize("kind", ["replicated", "local"])
def test_close_in_the_handler_of_sigterm(kind: str, tmp_path: Path) -> None:
    """The usual way to stop a service, while it writes. (Pins a bug: close() hung for 30 s.)"""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    for number in range(5):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", PROGRAM, kind, str(tmp_path / "store"), address],
            input=f"{0.05 * number + 0.01}\n",
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert time.monotonic() - began < 25
