"""The promise: a batch of the log costs one sync of one file, and the state is not synced between checkpoints.

The files that the manager's log is given count the syncs. If strace is installed, the system calls of all threads of
the process are counted as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.harness import Cluster

NO_CHECKPOINT_SECONDS = 3600.0
SYNCING_CALLS = ("fsync", "fdatasync", "msync", "sync_file_range", "syncfs", "sync")
CALL = re.compile(r"(?P<call>\w+)\((?P<descriptor>\d+<(?P<path>[^>]*)>)?")


def test_a_batch_costs_one_sync(cluster: Cluster) -> None:
    """On leader and followers, under load of many callers: not more syncs than batches, and many writes in a batch."""
    leader = cluster.wait_leader()
    before = {id_: (cluster.call(id_, "disk_counts"), cluster.call(id_, "log_batches")) for id_ in cluster.alive}
    cluster.start_load(threads=8)
    cluster.wait_acknowledged(600)
    cluster.stop_load()
    cluster.wait_converged()
    for id_, (counts, batches) in before.items():
        after, batches_after = cluster.call(id_, "disk_counts"), cluster.call(id_, "log_batches")
        syncs = after["segment_syncs"] - counts["segment_syncs"]
        assert 0 < syncs <= batches_after - batches, id_
        writes = cluster.history.read().acknowledged()
        assert syncs < writes / 2, f"{id_} ({leader} leads): {syncs} syncs for {writes} writes of 24 callers"


def traced(trace: Path) -> Counter[str]:
    """The number of syncs by kind: `log`, `prepared` (the next segment, ahead of time), `state`, or another path."""
    synced: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        call = CALL.search(line)
        if call is None or call["call"] not in SYNCING_CALLS or "resumed>" in line:
            continue
        path = Path(call["path"] or call["call"])
        if path.parent.name == "log" and path.suffix == ".log":
            synced["log"] += 1
        elif path.parent.name == "log":
            synced["prepared"] += 1
        elif path.name == "state":
            synced["state's directory"] += 1  # once, when the start is noted as successful
        elif path.suffix == ".mdb":
            synced["state"] += 1
        else:
            synced[str(path)] += 1
    return synced


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed; the counts of the log's files stand alone")
    probe = subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("this machine does not let us trace")
    return found


def test_the_system_calls_of_a_manager_under_load(make_cluster: Callable[..., Cluster], strace: str) -> None:
    """One manager of three runs under `strace -f`. It starts after the cluster was formed, so that only the load is
    counted; no checkpoint is due. It leads, so its log gets every write."""
    cluster = make_cluster(checkpoint_interval_seconds=NO_CHECKPOINT_SECONDS)
    cluster.start_load(threads=1)
    cluster.wait_acknowledged(30)
    cluster.stop_load()
    cluster.stop("m1")
    trace = cluster.directory / "trace"
    flags = ["-f", "-qq", "-y", "--seccomp-bpf", "-e", "trace=" + ",".join(SYNCING_CALLS), "-e", "signal=none"]
    process = cluster.launch("m1", prefix=[strace, *flags, "-o", str(trace)])
    process.opened.result(60)
    cluster.wait_ready("m1")
    cluster.call("m2", "transfer_leadership", id="m1")
    assert cluster.wait_leader() == "m1"

    before, batches = traced(trace), cluster.call("m1", "log_batches")
    acknowledged = cluster.acknowledged()
    cluster.start_load(threads=4)
    cluster.wait_acknowledged(400)
    cluster.stop_load()
    cluster.wait_converged()
    during, batches = traced(trace) - before, cluster.call("m1", "log_batches") - batches
    writes = cluster.acknowledged() - acknowledged
    assert writes >= 400
    assert 0 < during["log"] <= batches, (during, batches)
    assert during["state"] == 0, f"the state was synced between checkpoints: {during}"
    assert set(during) <= {"log", "prepared", "state's directory"}, during
    assert during["state's directory"] <= 1, during
    print(f"{writes} writes, {batches} batches of the log; synced: {dict(during)}")

    # A clean close syncs the state, and the trace shows that. So the trace would have shown such a sync above.
    cluster.stop("m1")
    closed = traced(trace)
    assert closed["state"] + closed["msync"] > before["state"] + before["msync"], closed
