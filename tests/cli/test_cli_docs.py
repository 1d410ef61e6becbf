"""The promise: each command has help, an example and an entry in docs/cli.md, and docs/cli.md has no other commands.

An operator at three in the morning reads the help, not the code.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from warren_raft import errors
from warren_raft_cli import main as cli_main
from warren_raft_cli.main import COMMANDS, EXIT_CODES, cli

pytestmark = pytest.mark.docs

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
COMMON = {"--data-dir", "-o", "--output"}


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """All commands and groups below a command, each with its path as it is typed."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield " ".join([*path, name]), below
            yield from walk(below, (*path, name))


ALL = dict(walk(cli))


def options_of(command: click.Command) -> set[str]:
    return {name for p in command.params if isinstance(p, click.Option) for name in p.opts} - COMMON - {"--help"}


def section(path: str) -> str:
    """The text in docs/cli.md under the command's heading, down to the next heading of any level."""
    text = DOCS.read_text(encoding="utf-8")
    match = re.search(rf"^##+ {re.escape(path)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"docs/cli.md has no section {path!r}"
    return match[1]


def test_the_commands_are_those_of_the_contract() -> None:
    assert set(COMMANDS) == {
        "serve", "status", "top", "explain", "bench", "describe", "doctor", "get", "list", "put", "delete", "import",
        "export", "members", "leader", "snapshot", "recover", "cert", "config", "completion", "watch", "events",
    }  # fmt: skip
    groups = {path for path in ALL if " " in path}
    assert groups == {
        "members list", "members add", "members update", "members remove", "leader transfer",
        "snapshot save", "snapshot inspect", "snapshot verify", "snapshot restore",
        "snapshot list", "snapshot get", "snapshot export", "snapshot drill",
        "cert init", "cert issue", "cert renew", "cert show", "config show",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL)
def test_a_command_has_help_with_an_example_and_documented_options(path: str) -> None:
    command = ALL[path]
    assert command.help
    assert f"Example: warren-raft {path}" in command.help or isinstance(command, click.Group)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts} has no help"


def help_of(path: str) -> str:
    """The help as a terminal of 80 columns shows it."""
    context = cli.make_context("warren-raft", [], resilient_parsing=True, terminal_width=80)
    for name in path.split():
        assert isinstance(context.command, click.Group)
        command = context.command.get_command(context, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=context, terminal_width=80)
    return context.get_help()


@pytest.mark.parametrize("path", ["", *ALL])
def test_the_help_fits_80_columns_and_is_not_cut(path: str) -> None:
    """(Pins a fault: click ends the line of a command in `...` where it does not fit.)"""
    text = help_of(path)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "..." not in text.replace("[ARGS]...", "").replace("[OPTIONS]...", "")


def test_a_wide_terminal_shows_the_help_no_wider() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "warren_raft_cli", "--help"],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_commands_are_in_families() -> None:
    named = [name for names in cli_main.FAMILIES.values() for name in names]
    assert sorted(named) == sorted(COMMANDS)
    headings = [line[:-1] for line in help_of("").splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options", *cli_main.FAMILIES]


@pytest.mark.parametrize("path", ALL)
def test_a_command_takes_the_common_options(path: str) -> None:
    names = {name for parameter in ALL[path].params for name in parameter.opts}
    assert names >= COMMON


@pytest.mark.parametrize("path", ALL)
def test_a_command_and_each_of_its_options_are_in_the_reference(path: str) -> None:
    text = section(path)
    group = section(path.split()[0])
    for option in options_of(ALL[path]):
        assert f"`{option}" in text + group or f"`-f`, `{option}" in text, f"{option} of {path} is not in docs/cli.md"
    if not isinstance(ALL[path], click.Group):
        assert f"warren-raft {path}" in text


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(" st", ["status"]), (" leader ", ["transfer"]), (" get c", ["container", "certificate", "ca"])],
)
def test_a_shell_completes_commands_and_kinds(typed: str, offered: list[str]) -> None:
    words = {
        "COMP_WORDS": "warren-raft" + typed,
        "COMP_CWORD": str(typed.count(" ")),
        "_WARREN_RAFT_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from warren_raft_cli.main import main; main()"],
        env=os.environ | words,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"plain,{name}" for name in offered]


def test_the_reference_names_no_command_that_is_not_there() -> None:
    headings = re.findall(r"^##+ (.*)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) - {"Exit codes"} == set(ALL)


def test_a_message_names_a_command_as_it_is_typed() -> None:
    """(Pins a kind of fault: "run: members remove m2" is no command that a shell knows.)"""
    subcommand = "|".join(path for path in ALL if " " in path)
    cut_short = re.compile(rf"(?<!warren-raft )\b({subcommand})\b")
    project = DOCS.parent.parent
    found = [
        f"{path.relative_to(project)}:{text.lineno}: {match[0]}"
        for folder in ("warren_raft", "cli")
        for path in sorted((project / folder).rglob("*.py"))
        for text in messages(path)
        if (match := cut_short.search(text.value)) is not None
    ]
    assert found == []


def messages(path: Path) -> Iterator[ast.Constant]:
    """The texts in a program, except docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def test_the_reference_has_every_exit_code() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)}
    ends = {cli_main.DONE, cli_main.FAILED, cli_main.USAGE, cli_main.INTERRUPTED, cli_main.READER_GONE}
    assert documented == ends | {code for _, code in EXIT_CODES}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("node", "n"), 1),
        (errors.RevisionConflict("node", "n", 1, 2), 1),
        (errors.InvalidEntity("node", "is empty"), 1),
        (errors.Closed(), 1),
        (errors.InvariantViolation("x"), 1),
        (errors.Corrupted("/data", "torn"), 3),
        (errors.SnapshotInvalid("/s", "torn"), 3),
        (errors.RefusedForSafety("no"), 4),
        (errors.InUse("port"), 5),
        (errors.Unavailable("no quorum", maybe_applied=False), 6),
        (errors.StorageFull("full"), 7),
    ],
)
def test_an_error_has_its_documented_exit_code(error: BaseException, code: int) -> None:
    """A changed exit code is a breaking change, because scripts depend on exit codes."""
    assert cli_main.exit_code_of(error) == code


def kinds_of_error(kind: type[errors.WarrenError] = errors.WarrenError) -> Iterator[type[errors.WarrenError]]:
    for below in kind.__subclasses__():
        yield below
        yield from kinds_of_error(below)


def test_an_error_in_json_has_the_name_of_its_public_class() -> None:
    """(Pins a fault: a class of its own for a better sentence changed the name that scripts compare.)"""
    kinds = [
        kind for kind in kinds_of_error() if kind.__module__.partition(".")[0] in ("warren_raft", "warren_raft_cli")
    ]
    assert {"InvalidInFile", "ChangesNotKept", "NoAnswer", "BadFile"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        public = [each for each in kind.__mro__ if each in vars(errors).values() and each is not errors.WarrenError]
        assert cli_main.json_name(kind) == (public[0] if public else kind).__name__
    own = {cli_main.json_name(kind) for kind in kinds if kind.__module__.startswith("warren_raft_cli")}
    assert own - set(vars(errors)) == {"BadFile", "NoAnswer", "NoThread", "OutputNotRead"}
