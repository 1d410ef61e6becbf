"""The promise: a manager serves its process to the end: after the main thread has returned, and in `atexit`. It closes
cleanly there, with nothing on stderr, and the next start does not have to rebuild or verify the state.

Each program is a process of its own. (Pins a bug: `concurrent.futures` ends all of its pools when the main thread
returns, and the raft thread died of that, with a traceback.)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.harness import PROJECT, free_ports
from warren_raft.store.generations import StateDirectory

SECONDS = 90.0

OPEN = """
import atexit, logging, os, sys, threading, time
import warren_raft as wr
logging.basicConfig(level="WARNING")
directory, address = sys.argv[1:]
def opened():
    members = {"m1": address}
    config = wr.Config(
        node_id="m1", data_dir=directory, listen=address, members=members, snapshot_after_bytes=2**20
    )
    store = wr.ReplicatedStore(config)
    store.wait_ready(30)
    return store
def write(store, number):
    store.create_secret(wr.Secret(id=f"s{number % 10}", name="x", data=os.urandom(60_000)))
def write_until_closed(store):
    number = 0
    try:
        while True:
            write(store, number)
            number += 1
    except (wr.Closed, wr.Unavailable):
        return
store = opened()
"""


def run(program: str, directory: Path) -> str:
    """Run a program, which must end with 0 and write nothing to stderr. Returns its stdout."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", OPEN + program, str(directory), address]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout


def assert_closed_cleanly(directory: Path) -> None:
    state = StateDirectory(directory)
    generation = state.current()
    assert generation is not None
    assert not state.is_unsynced(generation)
    assert state.is_sealed(generation), "the next start has to look at every record"


def test_a_manager_goes_on_after_the_main_thread_has_returned(tmp_path: Path) -> None:
    """It writes enough for new segments of the log, and for a snapshot with its verification in a child."""
    said = run(
        """
def work():
    threading.main_thread().join()
    for number in range(700):
        write(store, number)
    deadline = time.monotonic() + 60
    while store.status().snapshot is None and time.monotonic() < deadline:
        time.sleep(0.05)
    print(store.failure, store.status().snapshot is not None)
    store.close()
threading.Thread(target=work).start()
""",
        tmp_path,
    )
    assert said == "None True\n"
    assert_closed_cleanly(tmp_path)


@pytest.mark.parametrize("threads", [0, 4])
def test_close_in_atexit(tmp_path: Path, threads: int) -> None:
    """The commonest way to embed a store; also while daemon threads of the program still write."""
    run(
        f"""
atexit.register(store.close)
write(store, 0)
for _ in range({threads}):
    threading.Thread(target=write_until_closed, args=(store,), daemon=True).start()
time.sleep(0.5)
""",
        tmp_path,
    )
    assert_closed_cleanly(tmp_path)


def test_a_store_that_nobody_closes_is_closed_at_the_end(tmp_path: Path) -> None:
    """Also while daemon threads of the program still write."""
    run(
        """
write(store, 0)
for _ in range(4):
    threading.Thread(target=write_until_closed, args=(store,), daemon=True).start()
time.sleep(0.3)
""",
        tmp_path,
    )
    assert_closed_cleanly(tmp_path)


def test_what_a_local_store_has_begun_is_done_at_the_end(tmp_path: Path) -> None:
    """No caller waits for these writes. They are on disk all the same, and their callbacks are called."""
    said = run(
        """
store.close()
local = wr.LocalStore(directory + "-local")
done = []
for number in range(50):
    with local.batch(wait=False) as batch:
        batch.create_node(wr.Node(id=f"n{number}"))
    batch.future.add_done_callback(lambda future: done.append(future.result()))
atexit._run_exitfuncs()
print(len(done))
""",
        tmp_path,
    )
    assert said == "50\n"
    assert_closed_cleanly(tmp_path.with_name(tmp_path.name + "-local"))


def test_a_forked_child_that_ends_closes_nothing(tmp_path: Path) -> None:
    said = run(
        """
write(store, 0)
child = os.fork()
if child == 0:
    sys.exit(0)  # through atexit, as a child of its own would
assert os.waitpid(child, 0)[1] == 0
write(store, 1)
print(store.is_leader)
""",
        tmp_path,
    )
    assert said == "True\n"
    assert_closed_cleanly(tmp_path)
