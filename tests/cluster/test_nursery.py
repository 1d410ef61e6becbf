"""The promise: forked managers are to the tests as if each had been started by itself."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import nursery
from tests.cluster.harness import Cluster, free_ports


def test_managers_have_different_hashes_also_after_a_restart(cluster: Cluster) -> None:
    """A set of texts has another order in each, so an order that gets into the state makes digests differ."""
    before = cluster.call_all("hash_of_a_text")
    assert len(set(before.values())) == 3
    cluster.stop("m1")
    cluster.start("m1")
    assert cluster.call("m1", "hash_of_a_text") not in before.values()


def settings(directory: Path) -> dict[str, Any]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    members = {"m1": address}
    config = {"node_id": "m1", "data_dir": str(directory / "m1"), "listen": address, "members": members, "admin": False}
    return {"config": config, "journals": str(directory), "name": "m1"}


def test_a_fork_ends_as_its_process_does(tmp_path: Path) -> None:
    """An error that nobody expects is on its stderr."""
    wrong, log = settings(tmp_path), tmp_path / "m1.log"
    del wrong["journals"]
    fork = nursery.fork(wrong, log)
    assert fork.wait(60) == 1
    assert "KeyError: 'journals'" in log.read_text()
    assert fork.stdout.read() == b""
    fork.stdin.close()
    fork.stdout.close()


def test_a_fork_does_not_outlive_the_process_that_forked_it(tmp_path: Path) -> None:
    own = nursery.Nursery()
    fork = own.fork(settings(tmp_path), tmp_path / "m1.log")
    assert b"open" in fork.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0)
    own._process.send_signal(signal.SIGKILL)
    own.close()
    assert fork.stdout.read() == b""  # no process has the other end
    with pytest.raises(AssertionError, match="has ended"):
        fork.poll()
    fork.stdin.close()
    fork.stdout.close()
    fork._ended.close()
