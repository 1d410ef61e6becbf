"""Shared by the commands: the common options, the types of arguments, the call to the manager, the printing.

Not here: the commands. Invariant: `--data-dir` and `-o` mean the same before and after a command's name. If both are
given, the option nearest to the command counts; the environment counts last.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from warren_raft.errors import InvalidConfig, WarrenError
from warren_raft.support.wording import did_you_mean

from .os_errors import sentence
from .tables import say

if TYPE_CHECKING:
    from warren_raft.admin.client import AdminClient
    from warren_raft.local.read_only import ReadOnlyStore
    from warren_raft.store.tables import Kind

DATA_DIR_VARIABLE: Final = "WARREN_DATA_DIR"
ID_MAX_BYTES: Final = 511
REVISION_MAX: Final = 2**63 - 1
MAX_SECONDS: Final = 3600
HELP_WIDTH: Final = 80
SENTENCE_MAX: Final = 1000
_DATA_DIR: Final = "warren_raft.data_dir"  # keys of click's `meta`; a group shares it with its commands
_OUTPUT: Final = "warren_raft.output"


# -------------------------------------------------------------------------------------- common options


PATHS: Final = frozenset({"DIR", "FILE", "FILE.join", "PATH"})
"""The metavars of options and arguments that name a file or a directory."""
OUTPUT_FORMATS: Final = ("table", "wide", "json")


def _remember(key: str) -> Any:
    def callback(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            refuse_empty(value, "--data-dir" if key == _DATA_DIR else "--output")
            ctx.meta[key] = value

    return callback


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--data-dir"],
            metavar="DIR",
            expose_value=False,
            callback=_remember(_DATA_DIR),
            help=f"The manager's data directory on this host.  [env: {DATA_DIR_VARIABLE}]",
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(OUTPUT_FORMATS),
            expose_value=False,
            callback=_remember(_OUTPUT),
            help="The form of the result. wide: a table with every column in full.  [default: table]",
        ),
    ]


def note_outputs(ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> str | None:
    """The callback of a command whose own `-o` names a file, and takes the common output formats too. It may be given
    for both. Returns the name of the file."""
    files = [value for value in values if value not in OUTPUT_FORMATS]
    for value in values:
        if value in OUTPUT_FORMATS:
            ctx.meta[_OUTPUT] = value
    if len(files) > 1:
        raise click.UsageError(f"-o names two files, {files[0]} and {files[1]}")
    return files[0] if files else None


class WarrenCommand(click.Command):
    """A command with the common options. An option of its own with the same name replaces the common one. Empty names
    of files and directories are refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = {name for parameter in self.params for name in parameter.opts}
        self.params.extend(option for option in _common_options() if own.isdisjoint(option.opts))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            metavar = (parameter.metavar or "").strip("[]")
            if metavar in PATHS and ctx.params.get(parameter.name or "") == "" and not ctx.resilient_parsing:
                refuse_empty("", parameter.opts[0] if isinstance(parameter, click.Option) else metavar)
        return rest


class ShowingCommand(WarrenCommand):
    """A command that does nothing but show something. If stdout was closed, it fails before it begins. A script that
    wants only the exit code uses `>/dev/null`, not `>&-`."""

    def invoke(self, ctx: click.Context) -> Any:
        require_stdout()
        return super().invoke(ctx)


class WarrenGroup(click.Group):
    """A group with the common options. Its commands and groups have them too."""

    command_class = WarrenCommand
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            ctx.fail(f"there is no command {name!r}{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_common_options())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_family(ctx, formatter, "Commands", self.list_commands(ctx))

    def format_family(
        self, ctx: click.Context, formatter: click.HelpFormatter, heading: str, names: Sequence[str]
    ) -> None:
        """Some commands under a heading, each with the whole first sentence of its help: click would cut it."""
        width = max(map(len, self.list_commands(ctx)))
        commands = [(name, self.get_command(ctx, name)) for name in names]
        with formatter.section(heading):
            formatter.write_dl(
                [(name.ljust(width), each.get_short_help_str(SENTENCE_MAX)) for name, each in commands if each]
            )


def refuse_empty(value: str, argument: str) -> None:
    """Raises UsageError for an empty value, as a shell variable that is not set gives one: it must not mean another
    place, the environment's or the current directory."""
    if not value:
        raise click.UsageError(f"{argument} is empty")


def named_data_dir() -> str | None:
    """The data directory that the operator named; None if none was named. Raises UsageError for a file."""
    directory = _named()
    if directory is not None:
        refuse_file(directory, "--data-dir")
    return directory


def _named() -> str | None:
    directory = click.get_current_context().meta.get(_DATA_DIR) or os.environ.get(DATA_DIR_VARIABLE) or None
    return None if directory is None else os.path.expanduser(directory)  # a shell leaves the ~ of --data-dir=~/m1


def is_data_dir_typed() -> bool:
    """Whether `--data-dir` was given. If not, the environment may name the data directory."""
    return bool(click.get_current_context().meta.get(_DATA_DIR))


def refuse_file(directory: str, argument: str) -> None:
    """Raises UsageError if there is a file in the place of the directory that an argument names."""
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise click.UsageError(f"{directory} is a file; {argument} must name a directory")


def data_dir() -> str:
    """The data directory that the operator named. Raises UsageError if none was named."""
    directory = unchecked_data_dir()
    refuse_file(directory, "--data-dir")
    return directory


def unchecked_data_dir() -> str:
    """As `data_dir`, without a look at the disk, which may hang."""
    directory = _named()
    if directory is None:
        raise click.UsageError(f"no manager was named: add --data-dir DIR, or set {DATA_DIR_VARIABLE}")
    return directory


def wants_json() -> bool:
    """Whether the operator asked for `-o json`."""
    return bool(click.get_current_context().meta.get(_OUTPUT) == "json")


def wants_wide() -> bool:
    """Whether the operator asked for `-o wide`."""
    return bool(click.get_current_context().meta.get(_OUTPUT) == "wide")


def manager() -> AdminClient:
    """The manager that runs on the named data directory."""
    from warren_raft.admin.client import AdminClient

    return AdminClient(data_dir())


def database() -> ReadOnlyStore:
    """The database in the named data directory, for reading, whether or not its manager runs."""
    from warren_raft.local.read_only import ReadOnlyStore

    return ReadOnlyStore(data_dir())


class SecondsType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A time to wait, in seconds: above 0, at most an hour, not NaN."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not 0 < seconds <= MAX_SECONDS:
            self.fail(f"{value} is not a time above 0 and up to {MAX_SECONDS} seconds", param, ctx)
        return seconds


class WholeNumberType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A whole number in a range, both ends included."""

    name = "whole number"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            self.fail(f"{value!r:.60} is not a whole number", param, ctx)
        if len(digits) > len(str(self._most)) or not self._least <= int(value) <= self._most:
            self.fail(f"{value:.60} is not from {self._least} to {self._most}", param, ctx)
        return int(value)


class DurationType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A time with its unit, 1 s to 365 d, converted to seconds."""

    name = "time"
    _UNITS: Final = MappingProxyType({"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        number, unit = value[:-1], value[-1:]
        if unit not in self._UNITS or not (number.isascii() and number.isdigit() and len(number) <= 9):
            self.fail(f"{value!r} is not a time like 90s, 15m, 1h or 1d", param, ctx)
        seconds = int(number) * self._UNITS[unit]
        if not 1 <= seconds <= 365 * 86_400:
            self.fail(f"{value!r} is not from 1s to 365d", param, ctx)
        return seconds


timeout_option = click.option(
    "--timeout",
    type=SecondsType(),
    metavar="SECONDS",
    help="The longest time to wait for a quorum.  [default: the manager's write_timeout_seconds]",
)
if_revision_option = click.option(
    "--if-revision",
    type=WholeNumberType(0, REVISION_MAX),
    metavar="N",
    help="Only if the stored entity is at revision N (0: only if there is none).",
)


# ------------------------------------------------------------------------------------------- arguments


class KindType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A kind of entity by its name or its plural."""

    name = "kind"

    def __init__(self, *, with_ca: bool = False) -> None:
        self._with_ca = with_ca

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind[Any]:
        from warren_raft.store.tables import (
            BY_NAME,
            CA,
            KINDS,
            Kind,
        )

        if isinstance(value, Kind):
            return value
        kind = BY_NAME.get(value)
        if kind is CA and not self._with_ca:
            self.fail(
                "there is one CA, which cannot be listed or deleted: type warren-raft get ca, or put ca", param, ctx
            )
        if kind is None:
            names = [kind.name for kind in KINDS if kind is not CA or self._with_ca]
            meant = did_you_mean(value, [*names, *(BY_NAME[name].plural for name in names)])
            kinds = f"{' Kinds' if meant else '; kinds'} are: {' '.join(names)}"
            self.fail(f"there is no kind {value!r} here{meant}{kinds}", param, ctx)
        return kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from warren_raft.store.tables import CA, KINDS

        names = [kind.name for kind in KINDS if kind is not CA or self._with_ca]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class IdType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """An entity's id: 1 to 511 bytes of UTF-8."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            self.fail("an id is text in UTF-8", param, ctx)
        if not 1 <= size <= ID_MAX_BYTES:
            self.fail(f"an id has 1 to {ID_MAX_BYTES} bytes, not {size}", param, ctx)
        return str(value)


class NodeIdType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A manager's id."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from warren_raft.config import check_node_id

        try:
            return check_node_id(value)
        except InvalidConfig as error:
            self.fail(error.reason, param, ctx)


class MemberType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A manager as ID=HOST:PORT, converted to a pair."""

    name = "id=host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        from warren_raft.config import check_address, check_node_id

        if isinstance(value, tuple):
            return value
        node_id, equals, address = value.partition("=")
        try:
            if not equals:
                self.fail(f"{value!r} is not ID=HOST:PORT", param, ctx)
            return check_node_id(node_id), check_address(address)
        except InvalidConfig as error:
            self.fail(error.reason, param, ctx)


class RevisionType(WholeNumberType):
    """A revision, or `last`."""

    name = "revision"

    def __init__(self) -> None:
        super().__init__(1, REVISION_MAX)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "last":
            return value
        if isinstance(value, str) and not value.removeprefix("-").isdigit():
            self.fail(f"{value!r:.60} is not a whole number, and not last", param, ctx)
        return super().convert(value, param, ctx)


class WordsType(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """A program and its arguments in one text, with the quotes of a shell."""

    name = "command"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            self.fail(f"{value!r} cannot be read: {error}".lower(), param, ctx)
        if not words or not words[0]:
            self.fail("it names no program", param, ctx)
        return words


class PathType(click.Path):
    """click.Path, with the sentences of this package."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            text = self._problem(os.fspath(value))
            if text is None:
                raise
            raise click.UsageError(text, ctx) from None

    def _problem(self, path: str) -> str | None:
        """None: another one than the kind of file."""
        if not path:
            return None
        try:
            os.stat(path)
        except OSError as error:
            if error.errno == errno.ENOENT and not self.file_okay:
                return f"there is no directory {path}"
            return sentence(error)
        if os.path.isdir(path):
            return None if self.dir_okay else f"{path} is a directory: name a file"
        return None if self.file_okay else f"{path} is a file: name a directory"


class InputType(click.File):
    """A file to read as bytes; - is stdin."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IO[Any]:
        if value == "-" and sys.stdin is None:
            self.fail("stdin is closed: name a file", param, ctx)
        if value == "":
            self.fail("the name of the file is empty", param, ctx)
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            if isinstance(error.__context__, OSError):
                self.fail(sentence(error.__context__), param, ctx)
            raise


SETTING_OPTIONS: Final = MappingProxyType(
    {
        "node_id": "--node-id",
        "listen": "--listen",
        "members": "--member",
        "data_dir": "--data-dir",
        "join": "--join",
        "backup_dir": "--backup-dir",
        "backup_every_seconds": "--backup-every",
        "backup_keep": "--backup-keep",
        "backup_command": "--backup-command",
        "backup_continuous": "--backup-continuous",
    }
)
"""Names of settings -> the options that give them."""


def setting_problem(error: InvalidConfig, typed: Collection[str]) -> str:
    """The error about a setting; it names the option if the operator typed this setting."""
    name = (error.field or "").partition(".")[0]
    return f"{SETTING_OPTIONS[name]}: {error.reason}" if name in typed and name in SETTING_OPTIONS else str(error)


class BadFile(WarrenError):
    """The content of a file that the operator named cannot be used. Exit code 1."""


def utf8_text(data: bytes, name: str) -> str:
    """The text in the bytes of a file; a byte order mark is left out. Raises BadFile, which says the place of the first
    wrong byte. A NUL is wrong too: a binary file may be UTF-8 by chance."""
    try:
        text = data.decode("utf-8-sig")
        place = data.find(b"\0")
    except UnicodeDecodeError as error:
        place = len(data) - len(error.object) + error.start
    if place < 0:
        return text
    raise BadFile(f"{name} is not UTF-8 text: byte {place + 1} is 0x{data[place]:02x}")


# -------------------------------------------------------------------------------------------- printing


def require_stdout() -> None:
    """For output that is the purpose of the command. Raises OSError if stdout was closed before the process began."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdout")


def print_json(value: object) -> None:
    """Prints the value as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def print_revision(revision: int) -> None:
    """Prints the revision of a write."""
    if wants_json():
        print_json({"revision": revision})
    else:
        say(f"revision {revision}")
