"""The promise: `doctor` writes one file with all that a maintainer asks for first, and no secret is in it.

It works while a manager runs, hangs or is stopped, and on a damaged directory. It changes nothing, and never replaces a
file. `explain` shows the slow writes of the same manager.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_support import Command, ManagerProcess, StartManager, free_addresses

from warren_raft.admin import client
from warren_raft.config import Config
from warren_raft.disk.files import OsFile
from warren_raft.manager.self_report import TEXTS_SHOWN, shown_config, shown_setting
from warren_raft_cli.doctor import collected
from warren_raft_cli.doctor_sections import FILES_MAX, disk, files

PLANTED = "planted-9f2c"
"""Part of everything that must not be in the file."""
ENTITIES: dict[str, dict[str, Any]] = {
    "node": {"id": "n1", "labels": {"label": f"{PLANTED}-label"}, "hostname": f"{PLANTED}-host"},
    "service": {"id": "s1", "name": f"{PLANTED}-name", "env": [f"TOKEN={PLANTED}-env"]},
    "container": {"id": "c1", "env": [f"TOKEN={PLANTED}-env"]},
    "secret": {"id": "x1", "name": f"{PLANTED}-secret", "data": base64.b64encode(f"{PLANTED}-data".encode()).decode()},
}
ALWAYS = {"format", "made_at", "data_dir", "problems", "command_versions", "next_start", "disk", "files", "host"}
OF_A_MANAGER = ALWAYS | {"status", "explain", "manager", "metrics", "times"}


def put(warren: Command, tmp_path: Path, data_dir: Path, kind: str, entity: dict[str, Any]) -> None:
    (tmp_path / "entity.json").write_text(json.dumps(entity))
    assert warren("put", kind, "-f", tmp_path / "entity.json", "--data-dir", data_dir).code == 0


@pytest.fixture
def planted(
    tmp_path: Path, warren: Command, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> ManagerProcess:
    """A manager with secrets in its entities, its environment and its file of settings."""
    monkeypatch.setenv("DATABASE_PASSWORD", f"{PLANTED}-environment")
    monkeypatch.chdir(tmp_path)
    command = shlex.join(["sh", "-c", f"echo {PLANTED}-output; exit 3", f"{PLANTED}-argument"])
    backups = ("--backup-dir", str(tmp_path / "backups"), "--backup-every", "1s", "--backup-command", command)
    manager = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]}, *backups)
    manager.wait_ready()
    for kind, entity in ENTITIES.items():
        put(warren, tmp_path, tmp_path / "m1", kind, entity)
    with open(tmp_path / "m1.toml", "a") as file:
        file.write(f"# the token of the backup host is {PLANTED}-comment\n")
    deadline = time.monotonic() + 60
    while f"{PLANTED}-output" not in manager.log.read_text():
        assert time.monotonic() < deadline, manager.log.read_text()
        time.sleep(0.05)
    return manager


def tree(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Everything in a directory: mode, time of change, hash of the content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def assert_no_secret(text: str, data_dir: Path) -> None:
    raw = f"{PLANTED}-data".encode()
    for form in (PLANTED, base64.b64encode(PLANTED.encode()).decode()[:-4], raw.hex(), base64.b64encode(raw).decode()):
        assert form not in text
    for file in (data_dir / "tls").iterdir():
        for line in file.read_text().splitlines():
            if len(line) > 40:
                assert line not in text, f"a line of {file}"
    assert "PRIVATE" not in text


def test_no_secret_is_in_the_file(planted: ManagerProcess, warren: Command, tmp_path: Path) -> None:
    data_dir = tmp_path / "m1"
    said = warren("doctor", "running.json", "--config", tmp_path / "m1.toml", "--data-dir", data_dir)
    text = (tmp_path / "running.json").read_text()
    assert_no_secret(text, data_dir)
    assert PLANTED not in said.text
    report = json.loads(text)
    assert set(report) == OF_A_MANAGER | {"backup_disk"}
    assert report["problems"] == {}
    assert (report["status"]["counts"]["secrets"], report["status"]["node_id"]) == (1, "m1")
    assert report["next_start"]["write_timeout_seconds"]["from"] == str(tmp_path / "m1.toml")
    assert report["manager"]["config"]["write_timeout_seconds"] == {"value": 60, "from": "set"}
    assert report["manager"]["versions"]["python"].startswith("CPython") or "PyPy" in text
    assert report["manager"]["config"]["backup_command"] == {"value": "(set, and not shown)", "from": "set"}
    assert any("backup command failed" in line for line in report["manager"]["log_lines"])
    assert any("manager starting" in line for line in report["manager"]["log_lines"])
    assert any(name.startswith("warren-raft m1") for name in report["manager"]["process"]["threads"])
    assert report["times"]["sync"]["p99_seconds"] > 0
    assert report["disk"]["free_bytes"] > 0
    assert report["disk"]["file_system"]
    assert "tls/key.pem" in {each["name"] for each in report["files"]}
    assert os.stat(tmp_path / "running.json").st_mode & 0o777 == 0o600
    assert "degraded: m1 leads" in said.text
    assert "alarm: backup-command-failed" in said.text

    assert planted.stop() == 0
    before = tree(data_dir)
    said = warren("doctor", "stopped.json", "--data-dir", data_dir)
    assert tree(data_dir) == before
    text = (tmp_path / "stopped.json").read_text()
    assert_no_secret(text, data_dir)
    report = json.loads(text)
    assert set(report) == ALWAYS | {"directory"}
    assert report["directory"]["counts"]["secrets"] == 1
    assert list(report["problems"]) == ["status"]
    assert "no manager is running" in report["problems"]["status"]
    assert "not in the file: status" in said.text


def test_a_suspended_manager(manager: Path, warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUICK_ANSWER_SECONDS", 0.5)
    pid = client.AdminClient(manager).status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        said = warren("doctor", tmp_path / "suspended.json", "--data-dir", manager, "-o", "json").json
        for_people = " ".join(warren("doctor", tmp_path / "again.json", "--data-dir", manager).text.split())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert said["file"] == str(tmp_path / "suspended.json")
    assert "suspended" in said["problems"]["status"]
    assert "log: the manager did not answer, so its log is not in the file: add the lines" in for_people
    assert "files" in json.loads((tmp_path / "suspended.json").read_text())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a manager that was stopped."""
    data_dir = tmp_path_factory.mktemp("stopped") / "m1"
    manager = ManagerProcess(data_dir, "m1", {"m1": free_addresses(1)[0]})
    try:
        manager.wait_ready()
        assert manager.stop() == 0
    finally:
        manager.end()
    return data_dir


@pytest.mark.parametrize("damage", ["log", "state", "empty", "note"])
def test_a_damaged_directory(damage: str, stopped: Path, warren: Command, tmp_path: Path) -> None:
    data_dir, file = tmp_path / "m1", tmp_path / "damaged.json"
    if damage == "empty":
        data_dir.mkdir(mode=0o700)
    else:
        shutil.copytree(stopped, data_dir)
    if damage == "log":
        (segment,) = [path for path in (data_dir / "log").iterdir() if path.suffix == ".log"]
        segment.write_bytes(b"\x00" * 64 + os.urandom(4096))
    if damage == "state":
        for state in (data_dir / "state").glob("*.mdb"):
            state.write_bytes(os.urandom(20_000))
    if damage == "note":
        (data_dir / "manager.json").write_text("{not JSON")
    before = tree(data_dir)
    ran = warren("doctor", file, "--data-dir", data_dir)
    assert ran.code == 0
    assert tree(data_dir) == before
    report = json.loads(file.read_text())
    assert ALWAYS - {"next_start"} <= set(report)
    assert "status" in report["problems"]
    sentences = [line for line in ran.text.splitlines() if line.startswith("not in the file: ")]
    for why in report["problems"].values():
        assert sum(why in line for line in sentences) == 1, ran.text
    if damage in ("log", "empty"):
        assert "directory" in report["problems"]
    if damage == "empty":  # one fact was told in three ways
        assert sentences == [f"not in the file: status, directory, next_start: {report['problems']['status']}"]
        assert "the directory holds no manager's data; name a manager's data directory" in sentences[0]
    if damage == "state":
        assert "directory" in report["problems"] or report["directory"]["state_problem"]


def test_no_file_is_replaced(manager: Path, warren: Command, tmp_path: Path) -> None:
    there = tmp_path / "report.json"
    there.write_text("mine")
    refused = warren("doctor", there, "--data-dir", manager)
    assert (refused.code, "exists already" in refused.err) == (4, True)
    assert there.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [there]


def test_the_report_on_stdout_is_json_alone(manager: Path, warren: Command) -> None:
    assert set(json.loads(warren("doctor", "-", "--data-dir", manager).text)) == OF_A_MANAGER


def test_without_a_name_the_file_has_that_of_the_manager(
    manager: Path, warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = warren("doctor", "--data-dir", manager).text
    (made,) = tmp_path.iterdir()
    assert made.name.startswith("warren-doctor-m1-")
    assert f"wrote {made.name} " in said


def test_a_directory_that_is_not_there(warren: Command, tmp_path: Path) -> None:
    refused = warren("doctor", tmp_path / "report.json", "--data-dir", tmp_path / "none")
    assert (refused.code, "there is no directory" in refused.err) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_text_setting_is_not_shown_unless_it_is_a_path_or_an_address() -> None:
    config = Config(node_id="m1", data_dir="d", listen="127.0.0.1:1", members={"m1": "127.0.0.1:1"}, backup_dir="b")
    texts = {name for name, each in shown_config(config).items() if isinstance(each["value"], str | dict)}
    assert texts <= TEXTS_SHOWN
    assert shown_setting("backup_command", ()) == []
    assert shown_setting("backup_command", f"curl -H {PLANTED}") == "(set, and not shown)"
    assert shown_config(config)["backup_dir"]["from"] == "set"


def test_the_mount_is_that_of_the_path() -> None:
    found = disk("/proc")
    assert (found["mount_point"], found["file_system"]) == ("/proc", "proc")


def test_many_files_are_cut(tmp_path: Path) -> None:
    for n in range(FILES_MAX + 10):
        (tmp_path / str(n)).touch()
    (tmp_path / "link").symlink_to("/etc")
    found = files(str(tmp_path))
    assert len(found) == FILES_MAX + 1
    assert "and more" in found[-1]["name"]


# A disk or a network share that hangs ---------------------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Looks at these paths, and at what is below them, hang until the test ends, as those at a dead network share."""
    paths: set[str] = set()
    ends = threading.Event()
    monkeypatch.setattr("warren_raft_cli.doctor.SECTION_SECONDS", 0.3)
    monkeypatch.setattr("warren_raft_cli.doctor.WRITE_SECONDS", 0.3)
    for module, name in ((os, "stat"), (os, "lstat"), (os, "statvfs"), (os, "scandir"), (os, "open")):
        monkeypatch.setattr(module, name, partial(_hang_or_call, paths, ends, getattr(module, name)))
    yield paths
    ends.set()


def _hang_or_call(
    paths: set[str], ends: threading.Event, call: Callable[..., Any], path: Any, *rest: Any, **more: Any
) -> Any:
    if isinstance(path, str | Path) and any(str(path).startswith(each) for each in paths):
        assert threading.current_thread() is not threading.main_thread(), f"{path} would hang the command"
        assert ends.wait(60)
    return call(path, *rest, **more)


def test_a_backup_directory_that_hangs(
    warren: Command, tmp_path: Path, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch, hanging: set[str]
) -> None:
    """A drill: the backups were on a network share whose server had gone, and the report was never written."""
    monkeypatch.setattr("warren_raft_cli.doctor.SECTION_SECONDS", 3.0)  # the manager of a busy machine answers in it
    backups = tmp_path / "backups"
    manager = start_manager(tmp_path / "m1", "m1", {"m1": free_addresses(1)[0]}, "--backup-dir", str(backups))
    manager.wait_ready()
    hanging.add(str(backups))
    said = warren("doctor", tmp_path / "report.json", "--data-dir", tmp_path / "m1")
    assert said.code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["problems"]) == {"backup_disk"}, report["problems"]
    told = report["problems"]["backup_disk"]
    assert told.startswith(f"{backups} did not answer within 3 s; {disk(str(tmp_path))['mount_point']} is a mount of ")
    assert set(report) == OF_A_MANAGER
    assert f"not in the file: backup_disk: {backups} did not answer" in said.text


def test_a_data_directory_that_hangs(stopped: Path, warren: Command, tmp_path: Path, hanging: set[str]) -> None:
    hanging.add(str(stopped))
    assert warren("doctor", tmp_path / "report.json", "--data-dir", stopped).code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"disk", "files", "next_start"} <= set(report["problems"])
    for section in ("disk", "files"):
        assert f"{stopped} did not answer within 0.3 s" in report["problems"][section]
    assert report["host"]["cpus"]


def test_settings_that_hang(
    manager: Path, warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: set[str]
) -> None:
    """Here a FIFO that nobody writes to, whose opening hangs by itself."""
    os.mkfifo(tmp_path / "m1.toml")
    monkeypatch.setattr("warren_raft_cli.doctor.SECTION_SECONDS", 1.0)
    said = warren("doctor", tmp_path / "report.json", "--config", tmp_path / "m1.toml", "--data-dir", manager)
    os.close(os.open(tmp_path / "m1.toml", os.O_RDWR | os.O_NONBLOCK))
    assert said.code == 0
    problems = json.loads((tmp_path / "report.json").read_text())["problems"]
    assert problems == {"next_start": f"{tmp_path / 'm1.toml'} did not answer within 1 s"}
    hanging.add(str(tmp_path / "share"))
    share = tmp_path / "share" / "m1.toml"
    said = warren("doctor", tmp_path / "second.json", "--config", share, "--data-dir", manager)
    assert said.code == 0


def test_a_report_is_made_without_mountinfo_and_without_threads(
    stopped: Path, warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: set[str]
) -> None:
    """(Pins faults: an error of the look at the mounts, or of the start of a thread, ended the report, and later the
    report had no disk section.)"""
    hanging.add(str(tmp_path / "share"))
    read_text = Path.read_text

    def refused(path: Path, *rest: Any, **more: Any) -> str:
        if path.name == "mountinfo":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return read_text(path, *rest, **more)

    monkeypatch.setattr(Path, "read_text", refused)
    problems = collected(str(tmp_path / "share"), None, answers=False)["problems"]
    assert problems["disk"] == f"{tmp_path / 'share'} did not answer within 0.3 s"
    report = collected(str(stopped), None)
    assert "disk" not in report["problems"], "the space is known"
    assert report["disk"]["free_bytes"] > 0
    why = "the mounts cannot be read: /proc/self/mountinfo: No such file or directory"
    assert (report["disk"]["mount_problem"], report["disk"]["file_system"]) == (why, None)
    assert f"disk: {why}" in warren("doctor", tmp_path / "report.json", "--data-dir", stopped).text

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    problems = collected(str(stopped), None)["problems"]
    assert set(problems) == ALWAYS - {"format", "made_at", "data_dir", "problems"} | {"status", "directory"}
    assert problems["disk"] == (
        f"{stopped} was not looked at, because no thread could be started: raise the limit of threads (ulimit -u, or "
        "TasksMax of the systemd unit)"
    )


def test_an_error_of_a_disk_that_answers_does_not_name_its_mount(tmp_path: Path) -> None:
    """(Pins a fault: "there is no file …; / is a mount of overlay", as if the mount were the reason.)"""
    problems = collected(str(tmp_path / "none"), None)["problems"]
    assert problems["disk"] == f"there is no file {tmp_path / 'none'}"


def test_a_file_whose_directory_hangs(manager: Path, warren: Command, tmp_path: Path, hanging: set[str]) -> None:
    hanging.add(str(tmp_path / "share"))
    refused = warren("doctor", tmp_path / "share" / "report.json", "--data-dir", manager)
    assert refused.code == 1
    assert "did not answer within 0.3 s: name a FILE on another disk, or - for stdout" in refused.err


# explain -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_that_of_the_file(
    manager: Path, warren: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a fault: the error was about stdout, with no way out.)"""

    def full(_self: OsFile, _offset: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OsFile, "write", full)
    file = tmp_path / "report.json"
    ran = warren("doctor", file, "--data-dir", manager)
    assert ran.code == 7
    assert ran.err == (f"warren-raft: {file}: No space left on device: name a FILE on another disk, or - for stdout\n")
    assert not list(tmp_path.glob("report*"))


def test_explain_shows_the_slowest_writes_of_a_manager(manager: Path, warren: Command, tmp_path: Path) -> None:
    put(warren, tmp_path, manager, "volume", {"id": "v-explain", "name": "v-explain"})
    answer = warren("explain", "--data-dir", manager, "-o", "json").json
    assert (answer["node_id"], answer["slow_write_seconds"]) == ("m1", 0.5)
    assert answer["slowest"][0]["stages"]["sync"] > 0
    slowest = (answer["slow"] or answer["slowest"])[0]  # on a busy machine the writes of other tests were slower
    for form in ("table", "wide"):
        text = warren("explain", "--data-dir", manager, "-o", form).text
        assert f"{slowest['op']} {slowest['kind']}" in text
        assert "QUEUE" in text
        assert "FOLLOWERS" not in text, "a cluster of one has none"


def test_explain_of_a_stopped_manager_says_so(warren: Command, tmp_path: Path) -> None:
    ran = warren("explain", "--data-dir", tmp_path)
    assert ran.code == 1
    assert "no manager is running" in ran.err
