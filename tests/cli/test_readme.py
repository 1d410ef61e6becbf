"""The promise: the commands in the README work, as they stand there.

Only ports and directories are replaced, so that no other cluster on the machine is in the way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_support import free_addresses
from test_cluster_local import SCRIPTS, free_port_base

pytestmark = pytest.mark.docs

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_it_leads_with_exactly_two_commands_and_both_are_there() -> None:
    commands = re.findall(r"^(scripts/\S+)", blocks("bash")[0], re.MULTILINE)
    assert commands == ["scripts/cluster-local.sh", "scripts/test.sh"]
    assert "scripts/cluster-local.sh demo" in blocks("bash")[0]
    assert all(re.search(r": about (a|\d+) minutes?\b", line) for line in blocks("bash")[0].splitlines() if line)
    assert all(os.access(PROJECT / command, os.X_OK) for command in commands)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_examples_run(tmp_path: Path, number: int) -> None:
    program = blocks("python")[number].replace("127.0.0.1:7946", free_addresses(1)[0])
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_shell_example_runs(tmp_path: Path) -> None:
    script = blocks("bash")[1]
    cluster = f"{sys.executable} {SCRIPTS / 'cluster_commands.py'} --directory {tmp_path / 'cluster'}"
    script = script.replace("scripts/cluster-local.sh up", f"{cluster} up --port-base {free_port_base()}")
    script = script.replace("scripts/cluster-local.sh", cluster).replace(".cluster/", f"{tmp_path}/cluster/")
    script = script.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    try:
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"hostname": "worker-9"' in done.stdout
        *_, last_table = done.stdout.split("started m2\n")
        digests = {line.split()[-1] for line in last_table.splitlines() if re.match(r"m\d ", line)}
        assert len(digests) == 1
    finally:
        subprocess.run(["bash", "-c", f"{cluster} clean"], check=True, capture_output=True)


def test_it_says_how_to_install_and_with_which_python(tmp_path: Path) -> None:
    """The packages themselves come from a registry, so pip is not run; the scripts' own tests install them."""
    (install,) = blocks("sh")
    requires = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert f"# Python {requires.removeprefix('>=')} or newer" in install
    assert re.search(r"^~/warren/bin/pip install \. ", install, re.MULTILINE)
    make = install.splitlines()[0].replace("python3 ", f"{sys.executable} ").replace("venv ~", "venv --without-pip ~")
    subprocess.run(["bash", "-euc", make], env=os.environ | {"HOME": str(tmp_path)}, check=True, timeout=300)
    assert (tmp_path / "warren/bin/python").exists()


def test_no_file_is_made_twice() -> None:
    """(Pins a fault: the second example saved a snapshot under the name of the first, which is refused.)"""
    saved = re.findall(r"warren-raft (?:export|snapshot save) (\w\S*)", "".join(blocks("bash")))
    assert len(saved) == len(set(saved)) == 3


def test_no_command_has_a_gap_to_fill_in() -> None:
    """(Pins a fault: `serve … --backup-dir` and `--member …` could not be copied.)"""
    assert not [line for block in blocks("bash") for line in block.splitlines() if "…" in line.partition("#")[0]]


def test_the_commands_for_three_hosts_are_those_of_the_page_that_is_tested() -> None:
    page = (PROJECT / "docs" / "certificates.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(warren-raft .*?) *(?:#.*)?$", blocks("bash")[2], re.MULTILINE)
    assert len(commands) == 3
    assert all(re.search(rf"^{re.escape(command)}$", page, re.MULTILINE) for command in commands)


def test_what_the_examples_leave_in_a_clone_is_not_taken_for_a_change() -> None:
    """A newcomer types the examples in the clone. (Pins a bug: `git add .` would have added a file full of secrets.)"""
    ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").split()
    shell = "".join(blocks("bash"))
    left = set(re.findall(r"warren-raft (?:export|snapshot save) (\w\S*)", shell))
    left |= {f"{path.split('/')[0]}/" for path in re.findall(r"--data-dir (\w\S*)", shell)}
    python = "".join(blocks("python"))
    left |= {f"{path.split('/')[0]}/" for path in re.findall(r'(?:LocalStore\(|data_dir=)"(\w[^"]*)"', python)}
    left |= {f"{path}/" for path in re.findall(r"cert init (\w+)", shell)} | {"*.join"}  # of cert issue
    assert left == {
        "backup.jsonl",
        "warren.snapshot",
        "today.snapshot",
        "data/",
        "restored/",
        "state/",
        "ca/",
        "*.join",
    }
    assert {f"/{path}" for path in left} <= set(ignored)
