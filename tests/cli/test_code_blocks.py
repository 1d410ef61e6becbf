"""The promise: each block of code on a page is run by a test, or the table below says why not.

A reader copies blocks. One that nobody runs is wrong after the next change of a name.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from cli_support import Command, StartManager, free_addresses

import warren_raft as wr
from tests.cluster.harness import free_ports
from tests.prose import ROOT, files
from warren_raft.certificates.ca import Authority
from warren_raft_cli.main import cli

pytestmark = pytest.mark.docs

HERE = "tests/cli/test_code_blocks.py::"
README = "tests/cli/test_readme.py::"
RECOVERY = "tests/cli/test_cli_restore.py::test_following_the_page_"
CERTIFICATES = "tests/cli/test_certificates_page.py::test_following_the_page_from_its_top_to_its_end"
TUTORIAL = "tests/cli/test_tutorial.py::test_the_tutorial_works_from_its_top_to_its_end"
FULL_DISK = "tests/cli/test_disk_full_page.py::test_following_the_page_on_a_full_disk"
FAULTS = "tests/unit/test_testing_faults.py::test_the_tests_in_the_page_on_embedding_pass"
ORCHESTRATOR = "not run: tests/cluster/test_orchestrator.py sends the same requests to the same managers, on free ports"

BLOCKS = {
    "README.md": (
        "not run: .ci/run runs both commands",
        README + "test_it_says_how_to_install_and_with_which_python",
        README + "test_the_python_examples_run",
        README + "test_the_python_examples_run",
        README + "test_the_shell_example_runs",
        README + "test_the_commands_for_three_hosts_are_those_of_the_page_that_is_tested",
        HERE + "test_a_manager_imports_the_data_of_a_warren_and_saves_them",
    ),
    "docs/backups.md": (
        "not run: tests/cli/test_readme.py runs these options of the README",
        "not run: tests/cli/test_cli_restore.py starts a manager with this option",
        "not run: tests/cli/test_cli_restore.py runs this command on files that are there",
        "not run: tests/cli/test_cli_drill.py runs the command on a file that is there",
        "tests/cli/test_backup_command.py::test_the_script_of_the_page_copies_each_backup",
        "not run: the test of the script starts a manager with this option",
    ),
    "docs/certificates.md": (
        *[CERTIFICATES] * 6,
        "not run: the other blocks of the page make CAs too; this one has one more option",
    ),
    "docs/cli.md": (HERE + "test_the_settings_in_a_file_are_valid",),
    "docs/disk-full.md": (FULL_DISK, FULL_DISK),
    "docs/embedding.md": (
        "tests/unit/test_lead.py::test_the_loop_in_the_page_on_embedding_works",
        "tests/unit/test_lead.py::test_the_loop_in_the_page_on_embedding_works",
        "tests/unit/test_watch.py::test_the_loop_in_the_page_on_embedding_follows_a_node",
        HERE + "test_the_coroutine_places_containers",
        HERE + "test_a_program_starts_from_a_join_file",
        FAULTS,
        FAULTS,
        "tests/unit/test_simulate.py::test_the_loop_in_the_page_on_embedding_is_right",
    ),
    "docs/from-warren.md": (HERE + "test_a_manager_imports_the_data_of_a_warren_and_saves_them",),
    "docs/health.md": ("not run: it needs Prometheus", "not run: it needs Kubernetes"),
    "docs/heartbeats.md": (HERE + "test_a_node_beats",),
    "docs/metrics.md": (HERE + "test_a_collector_is_registered",),
    "docs/performance.md": (
        "not run: a quarter of an hour",
        "not run: half an hour; tests/cluster/test_benchmarks.py runs a smaller one",
        "not run: tests/cluster/test_benchmarks.py runs the parts of the benchmarks",
    ),
    "docs/recovery.md": (
        RECOVERY + "a_dead_member_is_replaced",
        RECOVERY + "managers_move",
        RECOVERY + "managers_move",
        RECOVERY + "a_survivor_becomes_a_cluster_again",
        "not run: it needs a log with an entry of another release; tests/unit/test_restoring.py makes one",
        HERE + "test_one_entity_is_brought_back",
        HERE + "test_one_entity_is_brought_back",
        RECOVERY + "a_snapshot_is_restored",
    ),
    "docs/safety.md": ("not run: hours; tests/simulation runs a few seeds of each",),
    "docs/tutorial.md": (
        "tests/cli/test_tutorial.py::test_the_first_step_is_that_of_the_readme",
        *[TUTORIAL] * 12,
    ),
    "docs/upgrade.md": (
        "not run: tests/cluster/test_upgrade.py upgrades managers; the tests of other pages type these commands",
    ),
    "examples/orchestrator/README.md": (ORCHESTRATOR,) * 8,
}
"""Page -> for each of its blocks the test that runs it, or the reason why none does."""


class Block(NamedTuple):
    page: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    """The blocks of code of all pages."""
    for path in files():
        if path.suffix == ".md":
            for language, text in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
                yield Block(str(path.relative_to(ROOT)), language, text)


def block(page: str, containing: str) -> str:
    (found,) = [each.text for each in blocks() if each.page == page and containing in each.text]
    return found


def is_run_somewhere(each: Block) -> bool:
    """The reference of the commands shows each command by itself; the tests of the command type them."""
    is_reference = each.page == "docs/cli.md" and not each.language
    return not is_reference and (each.language != "" or each.text.startswith("warren-raft "))


def test_each_block_has_its_test_or_a_reason() -> None:
    found: dict[str, int] = {}
    for each in filter(is_run_somewhere, blocks()):
        found[each.page] = found.get(each.page, 0) + 1
    assert found == {page: len(tests) for page, tests in BLOCKS.items()}


@pytest.mark.parametrize(
    "test", sorted({t for tests in BLOCKS.values() for t in tests if not t.startswith("not run: ")})
)
def test_a_test_that_is_named_is_there_and_reads_pages(test: str) -> None:
    name, _, function = test.partition("::")
    source = (ROOT / name).read_text()
    assert f"def {function}(" in source
    assert ".md" in source


# ---- commands


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `warren-raft` command in a block, without redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        words: list[str] = []
        for word in [*reader, ";"]:
            if word.strip("&|;()") and not word.startswith((">", "<")):
                words.append(word)
                continue
            if words[:1] == ["warren-raft"]:
                yield words[1:]
            words = ["redirected to"] if word.startswith((">", "<")) else []


def test_each_command_on_a_page_is_one_that_the_program_knows() -> None:
    wrong, known = [], 0
    for each in blocks():
        if "COMMAND" in each.text or "warren-raft " not in each.text or each.language not in ("", "sh", "bash"):
            continue
        for words in commands(each.text):
            known += 1
            if problem := misunderstood(words):
                wrong.append(f"{each.page}: warren-raft {' '.join(words)}: {problem}")
    assert wrong == []
    assert known > 100


def misunderstood(words: list[str]) -> str:
    """Why click does not take the options of a command; empty if it does."""
    command: click.Command = cli
    context = click.Context(cli)
    words = [word for word in words if word != "--version"]
    while isinstance(command, click.Group):
        if not words or (below := command.get_command(context, words.pop(0))) is None:
            return "no such command"
        command, context = below, click.Context(below)
    try:
        command.make_parser(context).parse_args(words)
    except click.UsageError as error:
        return error.format_message()
    return ""


def test_an_option_that_is_not_there_is_found() -> None:
    assert misunderstood(["status", "--clutser"])
    assert misunderstood(["members", "show"])
    assert list(commands("echo x | warren-raft put node -f - >out 2>&1 &  # why\n")) == [["put", "node", "-f", "-"]]


@pytest.mark.slow
def test_a_manager_imports_the_data_of_a_warren_and_saves_them(
    warren: Command, start_manager: StartManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/from-warren.md, and the backups of README.md on the same manager. Its `serve` is started in its own way."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("warren.db").write_bytes(gzip.decompress((ROOT / "tests/data/warren-small.db.gz").read_bytes()))
    manager = start_manager(
        Path("data/m1"), "m1", {"m1": free_addresses(1)[0]}, "--backup-dir", str(tmp_path / "backup")
    )
    manager.wait_ready()
    for words in commands(block("docs/from-warren.md", "warren-raft import")):
        assert warren(*words).text
    for words in commands(block("README.md", "snapshot inspect").replace("--data-dir data ", "--data-dir data/m1 ")):
        if words[0] != "serve":
            assert warren(*words).text
    assert warren("describe", "restored").text
    manager.end()


def test_one_entity_is_brought_back(
    warren: Command, manager: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/recovery.md, on the history and on a snapshot."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/m1").symlink_to(manager)
    Path("new.json").write_text('{"id": "svc-1", "name": "web", "replicas": 3}')
    stored = warren("put", "service", "-f", "new.json", "--data-dir", "data/m1", "-o", "json").json["revision"]
    assert warren("snapshot", "save", "warren.snapshot", "--data-dir", "data/m1").text
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for containing in ("--at 1200", "snapshot list warren.snapshot services"):
        assert warren("delete", "service", "svc-1", "--data-dir", "data/m1").text
        program = block("docs/recovery.md", containing).replace("1200", str(stored))
        done = subprocess.run(["bash", "-euc", program], env=os.environ | path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert warren("get", "service", "svc-1", "--data-dir", "data/m1", "-o", "json").json["replicas"] == 3


def test_the_settings_in_a_file_are_valid(tmp_path: Path) -> None:
    text = block("docs/cli.md", "write_timeout_seconds = ")
    (tmp_path / "m1.toml").write_text(text)
    assert (
        wr.Config.from_toml(tmp_path / "m1.toml").write_timeout_seconds == tomllib.loads(text)["write_timeout_seconds"]
    )


# ---- Python


@pytest.fixture
def store(tmp_path: Path) -> Iterator[wr.LocalStore]:
    with wr.LocalStore(tmp_path / "state") as store:
        yield store


def test_a_program_starts_from_a_join_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice; the second time there is no join file any more."""
    (port,) = free_ports(1)
    Authority.create(tmp_path / "ca").issue({"m1": f"127.0.0.1:{port}"})[0].write(tmp_path / "m1.join")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        names: dict[str, Any] = {}
        exec(block("docs/embedding.md", "config_from_join("), names)
        assert names["config"].node_id == "m1"
        assert names["config"].listen == f"127.0.0.1:{port}"
        Path("m1.join").unlink(missing_ok=True)


def test_the_coroutine_places_containers(store: wr.LocalStore) -> None:
    names: dict[str, Any] = {"wr": wr, "replace": replace}
    exec(block("docs/embedding.md", "async def place(").replace("wait_over(5)", "wait_over(0.01)"), names)
    store.create_node(wr.Node(id="node-1"))
    store.create_container(wr.Container(id="con-1"))

    async def until_placed() -> None:
        placing = asyncio.create_task(names["place"](store))
        async with asyncio.timeout(60), store.aio.watch(0, node="node-1") as events:
            await anext(events)
        placing.cancel()
        await asyncio.gather(placing, return_exceptions=True)

    asyncio.run(until_placed())
    assert store.get_container("con-1").node_id == "node-1"


def test_a_node_beats(store: wr.LocalStore) -> None:
    exec(block("docs/heartbeats.md", "store.heartbeat("), {"wr": wr, "store": store})
    assert store.last_heartbeat_age("node-1") is not None


def test_a_collector_is_registered(store: wr.LocalStore) -> None:
    names: dict[str, Any] = {"store": store}
    exec(block("docs/metrics.md", "CollectorRegistry("), names)
    assert names["registry"].get_sample_value("warren_store_open") == 1


def test_the_example_that_help_begins_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wr.__doc__ is not None
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix("    ") for line in wr.__doc__.splitlines() if line.startswith("    ")]
    exec("\n".join(lines).replace("127.0.0.1:7946", free_addresses(1)[0]), {})
    assert wr.describe("data/m1").counts["nodes"] == 1
