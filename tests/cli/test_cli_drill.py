"""The promise: `snapshot drill` ends with exit code 0 only if a manager serves every entity of the file, and leaves
nothing behind, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import Command, free_addresses

import warren_raft as wr
from tests.cluster.harness import wait_until
from warren_raft.disk.files import OsFiles
from warren_raft.manager import drill as drill_module
from warren_raft.manager.drill import LEFTOVER_SECONDS, PREFIX, drill


def saved(directory: Path, *nodes: str) -> Path:
    """A snapshot with an entity of every kind that has something special about it."""
    directory.mkdir()
    address = free_addresses(1)[0]
    config = wr.Config(node_id="m1", data_dir=directory / "m1", listen=address, members={"m1": address}, admin=False)
    with wr.ReplicatedStore(config) as store:
        store.wait_ready(60)
        store.save_ca(b"the key of the CA")
        store.create_secret(wr.Secret(id="s-1", name="password", data=b"1234"))
        store.create_service(wr.Service(id="svc-1", name="web", replicas=3))
        for node in nodes:
            store.create_node(wr.Node(id=node, role="worker", status="ready"))
            store.heartbeat(node, ttl_seconds=1)  # it will be down a second after the drill's manager leads
        store.snapshot(directory / "warren.snapshot")
    return directory / "warren.snapshot"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("drill") / "one", "n-1", "n-2")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_every_entity_comes_back_and_nothing_stays(
    warren: Command, snapshot: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(scratch / "state"))  # where this user's CA would be
    before = snapshot.read_bytes()
    answer = warren("snapshot", "drill", snapshot, "--scratch", scratch, "-o", "json").json
    assert list(answer["seconds"]) == ["read", "restore", "start", "compare", "stop"]
    assert answer["total_seconds"] == pytest.approx(sum(answer["seconds"].values()), abs=0.01)
    counts = {kind: number for kind, number in answer["counts"].items() if number}
    assert counts == {"nodes": 2, "services": 1, "secrets": 1, "ca": 1}
    assert answer["from"] == warren("snapshot", "inspect", snapshot, "-o", "json").json
    assert answer["file"] == str(snapshot)
    assert list(scratch.iterdir()) == []
    assert snapshot.read_bytes() == before
    text = warren("snapshot", "drill", snapshot, "--scratch", scratch).text
    assert f"{snapshot} can be restored: index {answer['from']['index']}, " in text
    assert "5 entities, all equal, in " in text


def test_a_cluster_that_holds_something_else_is_exit_code_3(
    warren: Command, snapshot: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore is at fault: it gives the content of another file. Once the numbers differ, once only the ids."""
    restore = drill_module.restore
    for nodes, says in ((("n-1",), "1 nodes instead of 2"), (("n-1", "other"), "their digest is ")):
        other = saved(tmp_path / nodes[-1], *nodes)

        def wrong(_file: object, *arguments: object, other: Path = other, **options: object) -> object:
            return restore(other, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(drill_module, "restore", wrong)
        ran = warren("snapshot", "drill", snapshot, "--scratch", scratch)
        assert ran.code == 3
        assert f"{snapshot}: the restored cluster holds other entities: {says}" in ran.err
        assert list(scratch.iterdir()) == []


def test_too_little_space_is_exit_code_4_before_anything_is_made(
    warren: Command, snapshot: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 3 * wr.inspect(snapshot).size_bytes + (64 << 20)
    monkeypatch.setattr(OsFiles, "free_bytes", lambda _self, _path: needed - 1)
    ran = warren("snapshot", "drill", snapshot, "--scratch", scratch)
    assert ran.code == 4
    assert f"the disk of {scratch} has " in ran.err
    assert "name a directory on another disk with --scratch, or free some space" in ran.err
    assert list(scratch.iterdir()) == []


def test_a_port_that_another_program_takes_first_is_replaced(
    snapshot: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_back, refused = drill_module._read_back, []

    def once(*arguments: object) -> object:
        if not refused:
            refused.append(1)
            raise wr.InUse("the port")
        return read_back(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(drill_module, "_read_back", once)
    assert drill(snapshot, scratch=scratch).counts["nodes"] == 2
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "when"),
    [
        (signal.SIGINT, 130, "lock"),  # in the restore
        (signal.SIGINT, 130, "tls"),  # while the manager is opened
        (signal.SIGTERM, 143, "lock"),
    ],
)
def test_a_signal_leaves_nothing_behind(
    snapshot: Path, scratch: Path, number: signal.Signals, code: int, when: str
) -> None:
    command = [sys.executable, "-m", "warren_raft_cli", "snapshot", "drill", str(snapshot), "--scratch", str(scratch)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(scratch.glob(f"{PREFIX}*/data-*/{when}")), "the drill has begun")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (code, 0), errors  # 0: the signal came too late
    assert errors.strip() == b""
    assert list(scratch.iterdir()) == []


def test_a_directory_that_a_killed_drill_left_is_removed_and_one_in_use_is_not(snapshot: Path, scratch: Path) -> None:
    left, used, young = (scratch / f"{PREFIX}{name}" for name in ("left", "used", "young"))
    for each in (left, used, young):
        each.mkdir()
        (each / "secrets").touch()
        old = time.time() - (0 if each == young else 2 * LEFTOVER_SECONDS)
        os.utime(each, (old, old))
    (scratch / "another").mkdir()
    lock = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        drill(snapshot, scratch=scratch)
    finally:
        os.close(lock)
    assert {path.name for path in scratch.iterdir()} == {used.name, young.name, "another"}
