"""The group `warren-raft`: the table of the commands, and the exit code of each error.

Not here: the commands. Invariant: every command ends with one of the documented exit codes (docs/cli.md), and a
command that fails prints one line on stderr: a sentence, or JSON with `-o json`. If that line cannot be written, the
exit code is the same.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from warren_raft import errors
from warren_raft.support.core_dumps import forbid_core_dumps

from .common import HELP_WIDTH, WarrenGroup
from .os_errors import sentence
from .streams import let_go, loss_accepted, written_whole
from .tables import one_line

# Command -> (module, name in it). A module is loaded when its command is called, so that `get` does not wait for the
# imports of `serve`.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("serve", "serve"),
    "status": ("status", "status"),
    "top": ("top", "top"),
    "explain": ("explain", "explain"),
    "bench": ("bench", "bench"),
    "describe": ("describe", "describe"),
    "doctor": ("doctor", "doctor"),
    "get": ("entities", "get"),
    "list": ("entities", "list_"),
    "put": ("entities", "put"),
    "delete": ("entities", "delete"),
    "watch": ("watching", "watch"),
    "events": ("watching", "events"),
    "import": ("data", "import_"),
    "export": ("data", "export"),
    "members": ("members", "members"),
    "leader": ("members", "leader"),
    "snapshot": ("snapshots", "snapshot"),
    "recover": ("recovery", "recover"),
    "cert": ("cert", "cert"),
    "config": ("config", "config"),
    "completion": ("completion", "completion"),
}
FAMILIES: Final[Mapping[str, Sequence[str]]] = {
    "Run a manager": ("serve", "status", "top", "explain", "bench", "describe", "doctor", "config"),
    "Entities": ("get", "list", "put", "delete", "watch", "events", "import", "export"),
    "The cluster": ("members", "leader", "cert"),
    "Backups and disasters": ("snapshot", "recover"),
    "This command line": ("completion",),
}
"""The commands in the order and under the headings of `--help`."""

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as every shell expects
READER_GONE: Final = 141  # 128 + SIGPIPE, as for a program that this signal ended

# The first class that matches the error decides.
EXIT_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (errors.Corrupted, 3),
    (errors.SnapshotInvalid, 3),
    (errors.RefusedForSafety, 4),
    (errors.InUse, 5),
    (errors.Unavailable, 6),
    (errors.StorageFull, 7),
    (errors.WarrenError, FAILED),
)


class ReaderGone(Exception):
    """Nobody reads stdout any more. Not an OSError: click would end the process with its own exit code."""


class OutputNotRead(errors.WarrenError):
    """The reader of a FIFO or a descriptor that the operator named has ended before it had the whole output."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: its reader has ended"


@contextmanager
def _noticing_readers() -> Iterator[None]:
    """Raises ReaderGone if the reader of stdout is gone, and OutputNotRead for an output that the operator named. Rich
    makes a SystemExit of the first."""
    try:
        yield
    except BrokenPipeError as error:
        from warren_raft.disk.outputs import is_stdout

        if isinstance(error.filename, str) and not is_stdout(error.filename):
            raise OutputNotRead(error.filename) from None
        raise ReaderGone from None
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            raise ReaderGone from None
        raise


class CommandTable(WarrenGroup):
    """A group that imports each command when it is called."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _noticing_readers():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _noticing_readers():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in FAMILIES.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for family, names in FAMILIES.items():
            self.format_family(ctx, formatter, family, names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command = getattr(import_module(f".{module}", __package__), name)
        assert isinstance(command, click.Command)  # the table names commands only
        return command


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        import warren_raft

        click.echo(f"warren-raft {warren_raft.__version__}")
        ctx.exit()


@click.group(
    cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """The cluster state of a container orchestrator, identical on every manager.

    \b
    Run a manager:      warren-raft serve --node-id m1 --listen 127.0.0.1:7946 \\
                            --member m1=127.0.0.1:7946 --bootstrap \\
                            --data-dir data/m1
    Show its status:    warren-raft status --data-dir data/m1
    Read its entities:  warren-raft list services --data-dir data/m1

    Exit codes: 0 done, 1 failed, 2 usage, 3 verification failed, 4 refused for safety, 5 in use, 6 no quorum
    or timeout, 7 no space left.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `warren-raft`."""
    forbid_core_dumps()  # if this fails, `serve` logs it
    sys.stdout, sys.stderr = written_whole(sys.stdout), written_whole(sys.stderr)
    code = run(arguments)
    let_go(sys.stdout)  # the rest of an output that failed
    let_go(sys.stderr)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code. Prints one line if the command fails, and nothing if nobody reads."""
    try:
        return _run(arguments)
    except ReaderGone:
        let_go(sys.stdout)
        let_go(sys.stderr)
        return READER_GONE


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    fail = _fail_in_json if _asks_for_json(given) else _fail
    try:
        result: Any = cli.main(given, prog_name="warren-raft", standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        with loss_accepted(sys.stderr):
            error.show()
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "warren-raft"
        return fail(error, f"{error.format_message()} (see {path} --help)", USAGE)
    except click.ClickException as error:
        return fail(error, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ReaderGone:
        raise
    except errors.WarrenError as error:
        return fail(error, "; ".join([str(error), *getattr(error, "__notes__", ())]), exit_code_of(error))
    except OSError as error:
        return fail(error, sentence(error), 7 if error.errno in (errno.ENOSPC, errno.EDQUOT) else FAILED)
    except Exception as error:
        if os.environ.get("WARREN_DEBUG"):
            raise
        text = f"internal error, {type(error).__name__}: {error} (WARREN_DEBUG=1 shows more)"
        return fail(error, text, FAILED)


def exit_code_of(error: BaseException) -> int:
    """The documented exit code of an error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), FAILED)


def _fail(_error: BaseException, text: str, code: int) -> int:
    with loss_accepted(sys.stderr):
        click.echo(f"warren-raft: {one_line(text)}", err=True)
    return code


def _fail_in_json(error: BaseException, text: str, code: int) -> int:
    """{"error": {"name", "text", "exit_code", and the data of an error of this package}}, on one line."""
    shown = {"name": json_name(type(error)), "text": one_line(text), "exit_code": code, **_data_of(error)}
    with loss_accepted(sys.stderr):
        click.echo(json.dumps({"error": shown}), err=True)
    return code


def json_name(kind: type[BaseException]) -> str:
    """The nearest class in warren_raft.errors, so that a class of ours with a sentence of its own changes no name. An
    error that has no such class but WarrenError has its own name."""
    public = (each for each in kind.__mro__ if each.__module__ == errors.__name__ and each is not errors.WarrenError)
    return next(public, kind).__name__


def _data_of(error: BaseException) -> dict[str, Any]:
    """The attributes of an error that JSON can hold, also lists of them. An OSError has its number."""
    if isinstance(error, errors.WarrenError):
        return {name: value for name, value in vars(error).items() if name[0] != "_" and _is_simple(value)}
    return {"errno": error.errno} if isinstance(error, OSError) else {}


def _is_simple(value: object) -> bool:
    items = value if isinstance(value, list | tuple) else (value,)
    return all(isinstance(item, str | int | float | None) for item in items)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether the last `-o` of a command line means JSON. A wrong command line is an error too, so click cannot be
    asked."""
    form = ""
    for number, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument in ("-o", "--output"):
            form = "".join(arguments[number + 1 : number + 2])
        elif argument.startswith("--output="):
            form = argument.removeprefix("--output=")
        elif argument.startswith("-o"):
            form = argument[2:]
    return form == "json"
