"""The promise: a process that runs out of file descriptors, or may not make a file so large, costs a store only the
time of the shortage. The reserve carries the store through it, and no signal ends the program.

Real limits (setrlimit), in processes of their own. Not here: full disks (tests/cluster/test_full_disk.py), consensus
(tests/unit/raft/test_space.py).
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.cluster.harness import PROJECT
from warren_raft.disk import descriptors
from warren_raft.disk.descriptors import RESERVED, Reserve
from warren_raft.disk.file_size_signal import held_off
from warren_raft.disk.shortage import shortage_of, storage_full
from warren_raft.errors import StorageFull
from warren_raft.snapshots import verification

SECONDS = 500.0


def run(program: str, directory: Path, **settings: Any) -> str:
    """The output of a program, in a process of its own, after BEGINNING."""
    command = [sys.executable, "-W", "error", "-c", BEGINNING + program, str(directory), json.dumps(settings)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout


BEGINNING = """
import gc, json, logging, os, resource, signal, socket, sys
from pathlib import Path
import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.unit.test_data_directory import alone
directory, settings = sys.argv[1], json.loads(sys.argv[2])
logging.basicConfig(level="WARNING")

def names(store):
    return [alarm.name for alarm in store.alarms]

def limit(kind, value):
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))

def open_files():
    # The targets of all descriptors except the standard ones.
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{number} {os.readlink('/proc/self/fd/' + number)}")
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return sorted(name for name in found if int(name.split()[0]) > 2)

def use_up():
    limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + 20)
    held = []
    while True:
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return held
"""


# ---- the reserve


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    gc.collect()  # closes what earlier tests left, so that nothing is closed in the middle of this one
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def use_up() -> list[int]:
    held = []
    while True:
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return held


@pytest.mark.usefixtures("few_descriptors")
def test_a_call_that_finds_no_descriptor_takes_those_in_reserve(tmp_path: Path) -> None:
    reserve = Reserve()
    reserve.open()
    hogs = use_up()
    try:
        assert not reserve.refill()  # all of it is held, and there is no other
        opened = [reserve.call(os.open, tmp_path, os.O_RDONLY) for _ in range(RESERVED)]
        with pytest.raises(OSError, match="Too many open files"):
            reserve.call(os.open, tmp_path, os.O_RDONLY)
        assert not reserve.refill()
        for descriptor in opened:
            os.close(descriptor)
        assert not reserve.refill()
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        with reserve.call(open, tmp_path / "file", "wb"):
            pass
        reserve.call(lmdb.open, str(tmp_path / "lmdb")).close()
        done = reserve.call(subprocess.run, ["true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 0
        reserve.close()
        hogs.append(os.open(os.devnull, os.O_RDONLY))  # they were given back
    finally:
        for descriptor in hogs:
            os.close(descriptor)


@pytest.mark.parametrize("left", range(8))
@pytest.mark.usefixtures("few_descriptors")
def test_a_child_that_finds_no_descriptor_leaves_none_open(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a bug: Popen opened /dev/null and one pipe, found no descriptor for the next pipe, and left them open.)"""
    monkeypatch.setattr(verification, "RESERVE", Reserve())  # a store that another test left may hold some in reserve
    hogs = use_up()
    for descriptor in hogs[len(hogs) - left :]:
        os.close(descriptor)
    try:
        assert verification._run(["echo", "started"], None, None) == (0, b"started\n", b"")
    except OSError as error:
        started = error.errno
    else:
        started = 0
    finally:
        again = use_up()
        for descriptor in [*hogs[: len(hogs) - left], *again]:
            os.close(descriptor)
    assert len(again) == left
    assert started == (0 if left >= 6 else errno.EMFILE)  # null, stderr, and two pipes


def test_other_errors_pass_and_nothing_is_held_without_a_store(tmp_path: Path) -> None:
    reserve = Reserve()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        reserve.call(os.open, tmp_path / "none", os.O_RDONLY)
    assert reserve.refill()
    assert len(os.listdir("/proc/self/fd")) == before
    reserve.open()
    reserve.open()
    reserve.close()
    assert len(os.listdir("/proc/self/fd")) == before + RESERVED
    reserve.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_gives_its_copies_back() -> None:
    reserve = Reserve()
    before = len(os.listdir("/proc/self/fd"))
    reserve.open()
    child = os.fork()
    if child == 0:
        os._exit(len(os.listdir("/proc/self/fd")) > before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reserve.close()


# ---- file descriptors


@pytest.mark.slow
def test_a_manager_goes_on_when_its_program_uses_up_all_descriptors(tmp_path: Path) -> None:
    """(Pins a bug: it stopped for good with the first segment of its log that it had to make.)"""
    said = run(
        """
store = wr.ReplicatedStore(alone(directory + "/m1", snapshot_after_bytes=2_000_000))
store.wait_ready(60)
hogs = use_up()
wait_until(lambda: names(store) == ["descriptors-low"], "the alarm")
for number in range(60):  # several segments, and snapshots of them
    store.create_secret(wr.Secret(id=f"s{number % 5}", name="s", data=os.urandom(900_000)))
wait_until(lambda: len(store._parts.opened.keeper.held) == 2, "two snapshots")
assert store.failure is None
assert names(store) == ["descriptors-low"], names(store)
for descriptor in hogs:
    os.close(descriptor)
wait_until(lambda: names(store) == [], "the alarm to end")
store.create_node(wr.Node(id="after"))
store.close()
del store
gc.collect()  # the bell of its loop lives as long as a thread may ring it
print(open_files())
""",
        tmp_path,
    )
    assert said == "[]\n"


@pytest.mark.slow
def test_a_manager_waits_where_even_its_reserve_was_taken(tmp_path: Path) -> None:
    said = run(
        """
from warren_raft.disk import descriptors
descriptors.RESERVE._count = 0
store = wr.ReplicatedStore(alone(directory + "/m1", snapshot_after_bytes=1 << 40, checkpoint_interval_seconds=1.0))
store.wait_ready(60)
hogs = use_up()
limit(resource.RLIMIT_NOFILE, 3)  # nothing that is given back can be had again
failed = None
for number in range(60):
    try:
        store.create_secret(wr.Secret(id="s", name="s", data=os.urandom(900_000)), timeout=2)
    except wr.Unavailable as error:
        failed = error
        if "no file descriptor left" in str(failed):  # else the machine was too busy for the deadline
            break
assert "no file descriptor left" in str(failed), failed
assert "log-blocked" in names(store), names(store)
assert store.failure is None
limit(resource.RLIMIT_NOFILE, 1000)
wait_until(lambda: names(store) == [] and not store.status().full, "the alarms to end")
store.create_node(wr.Node(id="after"), timeout=60)
print(store.get_node("after").id)
store.close()
""",
        tmp_path,
    )
    assert said == "after\n"


@pytest.mark.slow
def test_the_admin_socket_says_once_that_it_cannot_accept_and_accepts_again(tmp_path: Path) -> None:
    """(Pins a bug: asyncio's server wrote a hundred tracebacks a second.)"""
    said = run(
        """
import asyncio.constants, io
asyncio.constants.ACCEPT_RETRY_DELAY = 0.01
stream = io.StringIO()
logging.getLogger().addHandler(logging.StreamHandler(stream))
store = wr.ReplicatedStore(alone(directory + "/m1"))
store.wait_ready(60)
callers = [socket.socket(socket.AF_UNIX) for _ in range(5)]
hogs = use_up()
limit(resource.RLIMIT_NOFILE, 3)
for caller in callers:
    caller.connect(directory + "/m1/admin.sock")
wait_until(lambda: "descriptors-low" in names(store), "the alarm")
wait_until(lambda: "admin connections not accepted" in stream.getvalue(), "the line")
limit(resource.RLIMIT_NOFILE, 1000)
from warren_raft.admin.client import AdminClient
assert AdminClient(directory + "/m1").status()["node_id"] == "m1"
store.close()
print([line.split(":")[0] for line in stream.getvalue().splitlines() if "accept" in line])
""",
        tmp_path,
    )
    assert said == "['admin connections not accepted']\n"


# ---- the size of files


@pytest.mark.slow
@pytest.mark.parametrize("disposition", ["SIG_DFL", "SIG_IGN"])
def test_a_local_store_that_reaches_the_limit_on_file_sizes_says_so_and_goes_on(
    tmp_path: Path, disposition: str
) -> None:
    """(Pins a bug: it took EFBIG for a broken disk, for good; where a program had set SIGXFSZ back, that ended it.)"""
    said = run(
        """
signal.signal(signal.SIGXFSZ, getattr(signal, settings["disposition"]))
store = wr.LocalStore(directory + "/state")
store.create_node(wr.Node(id="first"))
size = os.path.getsize(directory + "/state/state/1.mdb")
limit(resource.RLIMIT_FSIZE, size + 3_000_000)
try:
    for number in range(10):
        store.create_secret(wr.Secret(id=f"s{number}", name="s", data=os.urandom(900_000)))
except wr.StorageFull as error:
    said = str(error)
print(number > 0, "a file would become larger than this process, or its file system, allows; raise the limit" in said)
store.delete_node("first")
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
store.create_secret(wr.Secret(id="after", name="s", data=os.urandom(900_000)))
print(signal.getsignal(signal.SIGXFSZ) == getattr(signal, settings["disposition"]))
store.close()
with wr.LocalStore(directory + "/state") as store:
    print(len(store.list_secrets()) == number + 1)
""",
        tmp_path,
        disposition=disposition,
    )
    assert said == "True True\nTrue\nTrue\n"


@pytest.mark.slow
@pytest.mark.parametrize("disposition", ["SIG_DFL", "SIG_IGN"])
def test_a_manager_that_reaches_it_waits_and_goes_on(tmp_path: Path, disposition: str) -> None:
    said = run(
        """
signal.signal(signal.SIGXFSZ, getattr(signal, settings["disposition"]))
store = wr.ReplicatedStore(alone(directory + "/m1", snapshot_after_bytes=1 << 40, checkpoint_interval_seconds=1.0))
store.wait_ready(60)
limit(resource.RLIMIT_FSIZE, 3_000_000)  # less than a prepared segment, more than one made in need
failed = None
for number in range(20):
    try:
        store.create_secret(wr.Secret(id=f"s{number}", name="s", data=os.urandom(900_000)), timeout=3)
    except (wr.Unavailable, wr.StorageFull) as error:
        failed = error
        if "larger than this process" in str(failed):  # else the machine was too busy for the deadline
            break
assert "larger than this process, or its file system, allows" in str(failed), failed
assert set(names(store)) & {"state-blocked", "log-blocked"}, names(store)
assert store.failure is None
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
wait_until(lambda: names(store) == [] and not store.status().full, "the alarms to end")
store.create_node(wr.Node(id="after"), timeout=60)
print(store.get_node("after").id)
store.close()
""",
        tmp_path,
        disposition=disposition,
    )
    assert said == "after\n"


def test_the_signal_is_held_off_for_a_call_and_in_threads_that_begin_in_it() -> None:
    masks: list[set[int]] = []

    def note() -> None:
        masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, [])))

    with held_off():
        thread = threading.Thread(target=note)
        thread.start()
        thread.join()
        signal.pthread_kill(threading.get_ident(), signal.SIGXFSZ)
        note()
    note()
    assert [signal.SIGXFSZ in mask for mask in masks] == [True, True, False]


# ---- errors that are a shortage


def test_an_error_after_which_the_disk_is_unknown_is_no_shortage() -> None:
    assert shortage_of(OSError(errno.EIO, "Input/output error")) is None
    assert shortage_of(PermissionError(errno.EPERM, "no")) is None
    assert shortage_of(ValueError("no")) is None


def test_a_storage_full_names_the_lack() -> None:
    space, descriptors_ = shortage_of(StorageFull("by measure")), shortage_of(storage_full("x", errno.EMFILE))
    assert space is not None
    assert space.is_space
    assert descriptors_ is not None
    assert not descriptors_.is_space
    assert descriptors.limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
