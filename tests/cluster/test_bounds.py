"""The promise: under endless writes a manager's files and memory stay within bounds that depend on the state, not on
the time: the log, snapshots, generations, readers' slots.

One manager, small limits. The bounds of sessions and history are tested in tests/unit/test_sessions.py and
unit/test_history.py, that of the leader's queue in tests/unit/raft/test_space.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.busy_machine import in_time
from tests.cluster.harness import PROJECT, Cluster

MIB = 1024 * 1024
SNAPSHOT_AFTER = MIB
ROUNDS = 60
SEGMENT_BYTES = 16 * MIB
"""The size of the segment in use, and of the segment that is made ahead (raft/log/log.py)."""


def files(directory: Path) -> dict[str, int]:
    """Every file with its size; a file that is removed meanwhile is left out."""
    found = {}
    for path in directory.rglob("*"):
        try:
            if path.is_file():
                found[str(path.relative_to(directory))] = path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def snapshots_in(found: dict[str, int]) -> set[str]:
    return {name for name in found if name.startswith("snapshots/") and name.endswith(".mdb")}


def test_files_and_memory_stay_bounded_under_endless_writes(make_cluster: Callable[..., Cluster]) -> None:
    """60 MB are written, and the state is 0.2 MB. The log in memory reaches back to the older of the two kept
    snapshots, so it is about twice as large as the log between two snapshots."""
    cluster = make_cluster(
        ("m1",), snapshot_after_bytes=SNAPSHOT_AFTER, history_changes=1, checkpoint_interval_seconds=0.2
    )
    directory = cluster.data_dir("m1")
    most_files, most_bytes, snapshots = 0, 0, set()
    for _ in range(ROUNDS):
        cluster.call("m1", "overwrite", keys=10, writes=50, size=20_000)
        found = files(directory)
        # Two are kept; others wait for the housekeeping, which runs several times a second.
        with in_time():
            assert len(snapshots_in(found)) <= 6
        assert sum(name.startswith("state/") and name.endswith(".mdb") for name in found) == 1
        snapshots |= snapshots_in(found)
        most_files = max(most_files, len(found))
        most_bytes = max(most_bytes, sum(found.values()))
        # On a busy machine a snapshot takes its time, and these writes do not wait for it.
        cluster.wait(lambda: cluster.status("m1")["log_entries"] * 20_000 <= 8 * SNAPSHOT_AFTER, "the log to be cut")
    cluster.wait(lambda: len(snapshots_in(files(directory))) == 2, "all but two snapshots to be removed")
    assert len(snapshots) > 5, "nothing was put to the test"
    assert most_files <= 25, sorted(found)
    assert most_bytes <= 4 * SEGMENT_BYTES, found


def test_files_stay_bounded_over_starts_and_crashes(make_cluster: Callable[..., Cluster]) -> None:
    """A start removes the remaining files of a killed process."""
    cluster = make_cluster(("m1",), snapshot_after_bytes=SNAPSHOT_AFTER, history_changes=1)
    directory = cluster.data_dir("m1")

    def are_few() -> bool:
        """A snapshot lets the log be cut, however quickly the processes before were killed. The files of its old
        segments go when the next segment begins."""
        cluster.call("m1", "overwrite", keys=10, writes=10, size=20_000)
        return len(files(directory)) <= 25

    for _ in range(6):
        cluster.call("m1", "overwrite", keys=10, writes=100, size=20_000)
        cluster.kill("m1")
        cluster.start("m1")
        cluster.wait(are_few, "the files of killed processes to be removed")


READER = """
import sys, warren_raft as wr
with wr.ReadOnlyStore(sys.argv[1]).read() as view:
    list(view.iter_containers())
    print("reading", flush=True)
    sys.stdin.read()
"""


def wait_free(cluster: Cluster, pid: int) -> None:
    cluster.wait(lambda: pid not in cluster.call("m1", "readers"), "the slot to be freed")


def test_a_reader_killed_within_a_read_gives_its_slot_and_its_pages_back(make_cluster: Callable[..., Cluster]) -> None:
    """Until its slot is freed, no page that it saw is used again, and the database grows with every write."""
    cluster = make_cluster(("m1",), checkpoint_interval_seconds=0.2)
    cluster.call("m1", "put", key="c", value="x")
    for _ in range(3):
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, cluster.data_dir("m1")],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            assert reader.pid in cluster.call("m1", "readers")
            reader.kill()
        wait_free(cluster, reader.pid)
