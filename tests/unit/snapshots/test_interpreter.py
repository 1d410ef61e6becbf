"""The promise: a program that embeds a manager is never started as a child of itself, and its snapshots are verified
with any `sys.executable`: the program, nothing, or an interpreter that no longer exists.
"""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import PROJECT
from warren_raft.snapshots import interpreter
from warren_raft.snapshots.interpreter import candidates, import_places


@pytest.fixture(autouse=True)
def nothing_is_named_for_multiprocessing() -> Iterator[None]:
    named = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable("")
    yield
    multiprocessing.set_executable(named)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that notes each start."""
    path = tmp_path / "app"
    path.write_text(f"#!/bin/sh\necho started >> {tmp_path}/starts\n")
    path.chmod(0o755)
    return path


def test_the_interpreter_that_runs_this_comes_first() -> None:
    assert candidates()[0] == sys.executable


@pytest.mark.parametrize("flag", ["frozen", "oxidized"])
def test_a_frozen_program_has_none_whatever_lies_beside_it(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(sys, flag, True, raising=False)
    assert candidates() == []


def test_a_compiled_program_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_IS_COMPILED", True)
    assert candidates() == []


@pytest.mark.parametrize("executable", ["", None, "python3", "/gone/python3", "/proc"])
def test_an_embedded_interpreter_finds_the_one_that_it_was_built_with(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "_base_executable", executable)
    found = candidates()
    assert found
    assert executable not in found
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert os.path.join(sysconfig.get_config_var("BINDIR"), version) in found


def test_the_program_is_no_candidate(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys, "_base_executable", str(program))
    assert str(program) not in candidates()


def test_nor_is_it_under_the_name_of_a_python(monkeypatch: pytest.MonkeyPatch, program: Path) -> None:
    (program.parent / "python3").symlink_to(program)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python3"))
    monkeypatch.setattr(sys, "_base_executable", None)
    monkeypatch.setattr(os, "readlink", lambda _path: str(program))  # /proc/self/exe of a program that embeds Python
    assert str(program.parent / "python3") not in candidates()


def test_an_interpreter_that_is_named_for_multiprocessing_comes_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreters = candidates()
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    multiprocessing.set_executable(interpreters[0])
    assert candidates() == interpreters[:1]


def test_a_child_imports_from_where_this_process_did_wherever_it_went_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Pins a bug: with a relative PYTHONPATH, no snapshot was verified after a chdir.)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "relative", *sys.path])
    places = import_places()
    assert all(map(os.path.isabs, places))
    assert os.path.join(str(interpreter._STARTED_IN), "relative") in places
    assert str(tmp_path) not in places
    assert str(PROJECT) in places


PROGRAM = """
import json, logging, sys
settings = json.loads(sys.argv[1])
from pathlib import Path
from warren_raft.snapshots import pacing
pacing.PAUSE_SECONDS = 0.0
for name, value in settings["sys"].items():
    setattr(sys, name, value)
if settings["only"] is not None:  # no other interpreter lies beside it
    from warren_raft.snapshots import interpreter
    interpreter.sysconfig.get_config_var = lambda _name: None
    sys.prefix = sys.exec_prefix = sys.base_prefix = "/gone"
logging.basicConfig(level="WARNING", format="%(message)s")
import warren_raft as wr
address = f"127.0.0.1:{settings['port']}"
config = wr.Config(node_id="m1", data_dir=settings["directory"], listen=address, members={"m1": address},
                   snapshot_after_bytes=100_000)
with wr.ReplicatedStore(config) as store:
    store.wait_ready(30)
    from tests.cluster.harness import wait_until
    number = 0
    def is_cut():
        global number
        number += 1
        store.create_secret(wr.Secret(id=f"s{number % 4}", name="s", data=bytes(20_000)))
        return number > 60 and store.status().log_bytes < 2_000_000 and len(snapshots()) == 2
    def snapshots():
        return list(Path(settings["directory"], "snapshots").glob("*.mdb"))
    wait_until(is_cut, "two snapshots, and the log cut")
    store.snapshot(settings["directory"] + "/saved.mdb")
    print(json.dumps([alarm.to_json() for alarm in store.status().alarms]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attributes", "is_alone", "lines"),
    [
        ({"frozen": True}, False, 1),
        ({}, True, 1),
        ({}, False, 0),
    ],
    ids=["frozen", "embedded, without an interpreter", "embedded, beside its interpreter"],
)
def test_a_manager_in_a_program_that_is_no_python_takes_snapshots_and_cuts_its_log(
    attributes: dict[str, object], is_alone: bool, lines: int, tmp_path: Path, program: Path
) -> None:
    """(Pins a bug: the program was started again for each snapshot, none was verified, and the log grew for ever.)"""
    from tests.cluster.harness import free_ports

    settings = {
        "sys": {"executable": str(program), "_base_executable": str(program), **attributes},
        "only": True if is_alone else None,
        "directory": str(tmp_path / "m1"),
        "port": free_ports(1)[0],
    }
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(settings)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert not (tmp_path / "starts").exists()
    said = [line for line in done.stderr.splitlines() if line.startswith("no child process can verify snapshots")]
    assert len(said) == lines, done.stderr
