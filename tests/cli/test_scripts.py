"""The promise: the scripts set up all that they need by themselves, once; if they cannot, they name the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
LIBRARY = PROJECT / "scripts" / "lib.sh"

# A fake Python. {too_old}, {no_venv} and {plain} are exit codes that make it lack a feature. It notes its arguments.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"{notes}"
case "$*" in
    -V) echo "Python 3.11.0" ;;
    *version_info*) exit {too_old} ;;
    *ensurepip*) exit {no_venv} ;;
    *optimizations*) exit {plain} ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *"pip install"*) touch "$(dirname "$0")/warren-raft"; chmod +x "$(dirname "$0")/warren-raft" ;;
esac
"""


class FakeMachine:
    """A project directory, and a PATH with fake Pythons."""

    def __init__(self, directory: Path, *, too_old: bool = False, no_venv: bool = False, plain: bool = False) -> None:
        self.root = directory / "project"
        self.root.mkdir()
        (self.root / "pyproject.toml").write_text("first")
        (self.root / "requirements").mkdir()
        (self.root / "requirements" / "base.txt").write_text("first")
        self._notes = directory / "notes"
        self._bin = directory / "bin"
        self._bin.mkdir()
        for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
            self._install(self._bin / name, too_old=too_old, no_venv=no_venv, plain=plain)
        self.distribution = directory / "distribution-python3"

    def _install(self, path: Path, **lacks: bool) -> None:
        path.write_text(FAKE_PYTHON.format(notes=self._notes, **{name: int(is_so) for name, is_so in lacks.items()}))
        path.chmod(0o755)

    def install_distribution(self, *, too_old: bool = False, no_venv: bool = False) -> None:
        """The distribution's Python, which is not on the PATH."""
        self._install(self.distribution, too_old=too_old, no_venv=no_venv, plain=True)

    def found_python(self) -> str:
        """The Python that scripts/lib.sh chooses."""
        return self._run("find_python").stdout.strip()

    def ensure_venv(self, extras: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs the function of scripts/lib.sh for this project."""
        return self._run(f'ensure_venv "{extras}"', **environment)

    def _run(self, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
        program = (
            f'set -euo pipefail; source "{LIBRARY}"; project_root="{self.root}"; venv="{self.root}/${{venv##*/}}"; '
            f'distribution_python="{self.distribution}"; {call}'
        )
        environment |= {"PATH": f"{self._bin}:/usr/bin:/bin", "HOME": str(self.root)}
        command = ["bash", "-c", program, "script"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def installations(self) -> list[str]:
        """The parts of requirements/ that each installation installed."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [",".join(re.findall(r"requirements/(\w+)\.txt", line)) for line in lines if "--require-hashes" in line]


def test_it_installs_once_and_again_when_the_project_asks_for_something_else(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    for _ in range(2):
        assert machine.ensure_venv("test").returncode == 0
        assert machine.ensure_venv().returncode == 0, "the requirements of the tests include those of the cluster"
    assert machine.installations() == ["base,test"]
    assert machine.ensure_venv("test,lint").returncode == 0
    assert machine.ensure_venv("lint").returncode == 0
    assert machine.installations()[1:] == ["base,test,lint"]
    for name in ("pyproject.toml", "requirements/base.txt"):
        (machine.root / name).write_text("second")
        assert machine.ensure_venv().returncode == 0
    assert machine.installations()[2:] == ["base", "base"]


def test_a_plain_build_gives_way_to_the_distributions_python(tmp_path: Path) -> None:
    """A plain build needs up to 1.4 times as much processor time."""
    machine = FakeMachine(tmp_path, plain=True)
    first = str(tmp_path / "bin" / "python3")
    assert machine.found_python() == first
    for lack in ("too_old", "no_venv"):
        machine.install_distribution(**{lack: True})
        assert machine.found_python() == first, lack
    assert machine.ensure_venv().returncode == 0
    machine.install_distribution()
    assert machine.found_python() == str(machine.distribution)
    assert machine.ensure_venv().returncode == 0
    made_with = (machine.root / ".venv" / "made-with").read_text()
    assert made_with == f"{machine.distribution}\n", "a .venv of another Python is made again"


def test_an_optimized_python_on_the_path_is_taken(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.install_distribution()
    assert machine.found_python() == str(tmp_path / "bin" / "python3")


def test_another_python_has_an_environment_of_its_own(tmp_path: Path) -> None:
    """(Otherwise each run with another Python would make .venv again, for minutes.)"""
    machine = FakeMachine(tmp_path)
    assert machine.ensure_venv().returncode == 0
    for python in ("python3.12", str(tmp_path / "bin" / "python3.13")):
        assert machine.ensure_venv(PYTHON=python).returncode == 0
    for name, python in ((".venv", "python3"), (".venv-python3.12", "python3.12"), (".venv-python3.13", "python3.13")):
        made_with = (machine.root / name / "made-with").read_text()
        assert made_with == f"{tmp_path / 'bin' / python}\n"
    ran = machine.ensure_venv(PYTHON="/no/python")
    assert ran.returncode == 1
    assert ran.stderr == "script: PYTHON=/no/python is no Python 3.11 or newer that can be run\n"


def test_the_pins_are_what_the_project_asks_for() -> None:
    """Otherwise scripts and CI would run with other versions than users: scripts/lock.sh writes the pins again."""
    with open(PROJECT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)
    extras = settings["project"]["optional-dependencies"]
    parts = {"base": [*settings["project"]["dependencies"], *settings["build-system"]["requires"]], **extras}
    assert {path.stem for path in (PROJECT / "requirements").glob("*.txt")} == set(parts)
    for part, wanted in parts.items():
        text = (PROJECT / "requirements" / f"{part}.txt").read_text()
        pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", text, re.MULTILINE))
        for requirement in map(Requirement, wanted):
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{name} is not in requirements/{part}.txt: run scripts/lock.sh"
            assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is too old: run scripts/lock.sh"
        for entry in text.replace("\\\n", " ").splitlines():
            assert entry.startswith("#") or "--hash=sha256:" in entry, entry


def test_without_venv_it_prints_the_one_line_to_type(tmp_path: Path) -> None:
    """Debian's python3 comes without venv, and pip's own message about that does not help."""
    machine = FakeMachine(tmp_path, no_venv=True)
    ran = machine.ensure_venv("test")
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.endswith("sudo apt-get install python3-venv")
    assert machine.installations() == []


def test_without_a_python_that_is_new_enough_it_says_so(tmp_path: Path) -> None:
    ran = FakeMachine(tmp_path, too_old=True).ensure_venv("test")
    assert ran.returncode == 1
    assert "3.11" in ran.stderr


@pytest.mark.parametrize(
    "name",
    [
        "scripts/lib.sh",
        "scripts/test.sh",
        "scripts/cluster-local.sh",
        "scripts/lock.sh",
        "scripts/audit.sh",
        "scripts/package.sh",
        ".ci/run",
    ],
)
def test_the_shell_scripts_parse_and_can_be_run(name: str) -> None:
    subprocess.run(["bash", "-n", str(PROJECT / name)], check=True)
    assert name.endswith("lib.sh") or os.access(PROJECT / name, os.X_OK)


@pytest.mark.skipif(sys.prefix != str(PROJECT / ".venv"), reason="would set up .venv; run by scripts/test.sh")
def test_the_cluster_script_needs_no_other_installation_than_the_tests(tmp_path: Path) -> None:
    command = [str(PROJECT / "scripts" / "cluster-local.sh"), "--directory", str(tmp_path), "down"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped 0 managers\n", "")
