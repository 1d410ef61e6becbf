"""The promise: scripts/cluster-local.sh runs a cluster on this machine and touches no process that is not its own; and
its demonstration checks all that it says, or fails.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cli_support import Command

from tests.cluster.harness import free_ports, wait_until

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = PROJECT / "scripts"


def free_port_base(count: int = 3) -> int:
    """The first of `count` ports in a row that stay free while their managers are down."""
    while True:
        (first,) = free_ports(1)
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


class Script:
    """scripts/cluster-local.sh on a directory, run with the Python of the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, str(SCRIPTS / "cluster_commands.py"), "--directory", str(self.directory), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def pid(self, node_id: str) -> int:
        return int((self.directory / f"{node_id}.pid").read_text())

    def rows(self) -> dict[str, list[str]]:
        """The status table by id."""
        lines = self("status").splitlines()
        return {fields[0]: fields for fields in map(str.split, lines[1:])}


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    script = Script(tmp_path / "a cluster")
    yield script
    script("clean")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def wait_level(script: Script) -> dict[str, list[str]]:
    """The rows when all managers have the same revision and digest: a follower applies a write a moment later."""

    def level() -> dict[str, list[str]] | None:
        rows = script.rows()
        return rows if len({tuple(row[7:]) for row in rows.values()}) == 1 else None

    rows = wait_until(level, "three equal digests")
    assert rows is not None
    return rows


def test_a_cluster_lives_through_all_its_commands(script: Script, warren: Command) -> None:
    shown = script("up", "--port-base", str(free_port_base()))
    assert str(script.directory) in shown
    assert "m3" in shown
    shown = warren("status", "--data-dir", script.directory / "m1", "-o", "json").json
    authority = warren("cert", "show", script.directory / "ca", "-o", "json").json
    assert shown["certificate"]["trust_domain"] == authority["trust_domain"], "it has a CA of its own"
    services = warren("list", "services", "--data-dir", script.directory / "m1", "-o", "json").json
    assert len(services) > 0, "the sample state was not loaded"
    rows = wait_level(script)
    assert [row[3] for row in rows.values()].count("leader") == 1

    killed, stopped = script.pid("m1"), script.pid("m2")
    script("kill", "m1")
    assert not is_alive(killed)
    assert "does not run" in script("kill", "m1", code=1)
    assert script.rows()["m1"][3] == "down"
    script("start", "m1")
    assert "is running already" in script("start", "m1", code=1)
    script("stop", "m2")
    assert not is_alive(stopped)
    script("up")  # starts the managers that do not run, and does not load the sample state again
    assert wait_level(script)["m1"][7] == rows["m1"][7]

    pids = [script.pid(node_id) for node_id in ("m1", "m2", "m3")]
    assert "stopped 3 managers" in script("down")
    assert not any(map(is_alive, pids))
    assert "stopped 0 managers" in script("down")
    assert (script.directory / "m1").is_dir()
    script("clean")
    assert not script.directory.exists()


def test_a_start_without_a_quorum_ends_and_the_manager_stays(script: Script) -> None:
    script("up", "--port-base", str(free_port_base()), "--managers", "3")
    script("down")
    script("start", "m2")
    assert is_alive(script.pid("m2"))
    script("up")
    assert all(row[3] in ("leader", "follower") for row in script.rows().values())


@pytest.mark.parametrize("command", ["kill", "stop"])
def test_a_process_that_has_got_an_old_managers_number_is_left_alone(script: Script, command: str) -> None:
    """Process ids are used again: after a reboot the file may name another program's process."""
    script("up", "--port-base", str(free_port_base(1)), "--managers", "1")
    script("down")
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            (script.directory / "m1.pid").write_text(f"{other.pid}\n")
            assert "does not run" in script(command, "m1", code=1)
            assert script.rows()["m1"][3] == "down"
            assert other.poll() is None
        finally:
            other.kill()


def test_a_manager_that_cannot_start_is_told_with_its_last_line_and_nothing_stays(script: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        shown = script("up", "--port-base", str(port), "--managers", "1", code=1)
    assert "exit code 5" in shown
    assert "m1.log" in shown
    assert not (script.directory / "m1.pid").exists() or not is_alive(script.pid("m1"))


@pytest.mark.parametrize("command", [("status",), ("kill", "m1"), ("start", "m1"), ("stop", "m1")])
def test_a_directory_without_a_cluster_is_told(script: Script, command: tuple[str, ...]) -> None:
    assert "there is no cluster in" in script(*command, code=1)


def test_clean_removes_nothing_that_is_not_a_cluster(script: Script) -> None:
    script.directory.mkdir()
    (script.directory / "precious").touch()
    assert "nothing to remove" in script("clean")
    assert (script.directory / "precious").exists()
    (script.directory / "precious").unlink()


def test_an_unknown_manager_is_told_with_those_there_are(script: Script) -> None:
    script("up", "--port-base", str(free_port_base(1)), "--managers", "1")
    assert "no manager m7 here, only m1" in script("kill", "m7", code=1)


# ---------------------------------------------------------------------------------- the demonstration


def managers_under(directory: Path) -> set[int]:
    """The processes that are managers of directories under this one."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"\0serve\0" in command and b"--data-dir=" + os.fsencode(directory) in command:
            found.add(int(name))
    return found


def test_the_demonstration_ends_well_says_what_it_showed_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "cluster_commands.py"), "demo"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Killed the leader" in done.stdout
    assert done.stdout.count(", 0 missing") == 3
    assert "three equal digests at applied index" in done.stdout
    assert "a second cluster, restored from a snapshot of the first, holds the same" in done.stdout
    assert "its three managers have equal digests too" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_demonstration_that_is_stopped_stops_its_managers(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "cluster_commands.py"), "demo"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "writers" in line:
                break
        assert len(managers_under(tmp_path)) == 3
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=200)
    assert demo.returncode == 128 + signal.SIGTERM
    assert managers_under(tmp_path) == set()


def test_a_lost_write_makes_the_demonstration_fail(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demonstration that cannot fail shows nothing. Here it looks for a write that no manager has."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import demo
    import local_cluster

    script("up", "--port-base", str(free_port_base(1)), "--managers", "1")
    found = local_cluster.LocalCluster.find(script.directory)
    assert found is not None
    manager = found.manager("m1")
    entity = {"id": "kept", "service_id": demo.SERVICE, "image": "image-of-kept"}
    revision = manager.client.put("container", entity)
    demo._check_acknowledged(manager, {"kept": revision})
    with pytest.raises(local_cluster.ClusterFailed, match="lost"):
        demo._check_acknowledged(manager, {"kept": revision, "lost": revision})
    manager.client.put("container", entity | {"image": "another"})
    with pytest.raises(local_cluster.ClusterFailed, match="altered"):
        demo._check_acknowledged(manager, {"kept": revision})


def test_a_restored_cluster_that_lacks_a_record_makes_the_demonstration_fail(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import demo
    import local_cluster

    script("up", "--port-base", str(free_port_base(1)), "--managers", "1")
    found = local_cluster.LocalCluster.find(script.directory)
    assert found is not None
    empty = script.directory.parent / "empty"
    other = local_cluster.LocalCluster.create(empty, {"m1": f"127.0.0.1:{free_port_base(1)}"})
    try:
        other.start()
        with pytest.raises(local_cluster.ClusterFailed, match="differ from those of the first"):
            demo._check_same_records(found, other)
    finally:
        other.stop()
