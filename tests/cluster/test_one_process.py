"""The promise: a manager does not disturb the process that embeds it: beside other managers or stock PySyncObj, across
fork and close; and it unpickles nothing that came from a disk or a network.

Each scenario runs in a process of its own (programs.py), with warnings as errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import FORBIDDEN_IN_LOGS, PROJECT, Cluster
from tests.cluster.programs import PROGRAMS
from warren_raft.admin.client import AdminClient, NotRunning

SECONDS = 500.0
FOREIGN_WARNINGS = {"beside_pysyncobj": ["-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"]}
"""Warnings of stock PySyncObj itself."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, tmp_path: Path) -> None:
    flags = ["-X", "faulthandler", "-W", "error", *FOREIGN_WARNINGS.get(name, [])]
    command = [sys.executable, *flags, "-m", "tests.cluster.programs", name, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=SECONDS, check=False)
    said = f"{PROGRAMS[name].__doc__}\n{done.stdout}\n{done.stderr[-6000:]}"
    assert (done.returncode, done.stdout) == (0, "done\n"), said
    assert not [word for word in FORBIDDEN_IN_LOGS if word in done.stderr], said


PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def orphans_adopted() -> Iterator[None]:
    """Children of a killed child become children of this process, so that it can wait for them."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def test_a_forked_child_holds_nothing_of_a_dead_manager(make_cluster: Callable[..., Cluster]) -> None:
    """A worker that the embedding program forked outlives that program. It has copies of every descriptor: the lock on
    the directory, the port, the links, the admin socket. The other managers, and clients of the admin socket, must
    notice at once that the manager is dead, and the manager must be able to start again."""
    cluster = make_cluster(admin=True)
    leader = cluster.wait_leader()
    with orphans_adopted():
        child = cluster.call(leader, "fork_child")
        try:
            cluster.kill(leader)
            cluster.wait_leader(not_=[leader])
            for id_, status in cluster.statuses().items():  # an open link lasts for seconds more
                assert leader not in [m["id"] for m in status["members"] if m["connected"]], f"{id_} has a link to it"
            with pytest.raises(NotRunning):
                AdminClient(cluster.data_dir(leader)).status()
            cluster.start(leader)
            assert AdminClient(cluster.data_dir(leader)).status()["node_id"] == leader
            cluster.call(leader, "put", key="back", value="x")
            cluster.wait_converged()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
