"""`warren-raft import` and `export`: all entities of a cluster, one a line, in Warren's own form.

Not here: the form of a line (warren_raft/migrate/records.py). Invariant: import stores nothing if one line of the file
is bad. Export writes one consistent view, and a file under its final name is complete. Export closes its view before
it waits for the reader of its output: an open view makes the manager's database grow.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, BinaryIO, Final

import click

from warren_raft.admin import operation
from warren_raft.disk.outputs import (
    collected,
    is_node,
    is_stdout,
    open_node,
    whole_file,
)
from warren_raft.errors import InvalidEntity, NotFound, WarrenError
from warren_raft.migrate.lines import operation_of
from warren_raft.migrate.records import format_line
from warren_raft.model.json_form import write_base64
from warren_raft.store import codec
from warren_raft.store.tables import BY_NUMBER, CA, KINDS
from warren_raft.support.wording import counted

from .common import (
    BadFile,
    InputType,
    WarrenCommand,
    database,
    manager,
    print_json,
    require_stdout,
    timeout_option,
    wants_json,
)
from .tables import is_open_terminal

if TYPE_CHECKING:
    from warren_raft.admin.client import Item
    from warren_raft.store.interface import View

MAX_LINE_BYTES: Final = 8 * 1024 * 1024  # an entity of 1 MiB, in base64 and with every character escaped
# bbolt's first page: a header of 16 bytes, then this number, little-endian.
BOLT_MAGIC: Final = b"\xed\xda\x0c\xed"
BOLT_MAGIC_OFFSET: Final = 16
ERASE_LINE_ABOVE: Final = "\x1b[1A\x1b[2K\r"


@click.command("import", cls=WarrenCommand)
@click.argument("source", type=InputType(), metavar="FILE")
@timeout_option
def import_(source: BinaryIO, timeout: float | None) -> None:
    """Store every record of a file.

    The running manager stores them; existing entities are replaced.

    FILE (- is stdin) has one JSON object a line, as `export` writes it: {"bucket": …, "key": …, "value": …}. The whole
    file is checked before anything is stored. It is safe to import a file again.

    \b
    Example: warren-raft import state.jsonl --data-dir data/m1
    """
    items = list(_items(source).values())
    stored = 0
    with progress("importing", len(items)) as advance:

        def done(count: int) -> None:
            nonlocal stored
            stored += count
            advance(count)

        try:
            manager().put_all(items, timeout=timeout, done=done)
        except WarrenError as error:
            if stored:
                error.add_note(f"at least {stored} of {len(items)} records are stored; import the file again")
            raise
    if wants_json():
        print_json({"imported": stored})
    else:
        click.echo(f"imported {_entities(stored, has_ca=any(kind == CA.name for kind, _ in items))}")


def _entities(records: int, *, has_ca: bool) -> str:
    """How many entities are among the records, as `status` and `snapshot verify` count them: the CA is not one."""
    entities = counted(records - has_ca, "entity", "entities")
    return f"{entities} and the CA" if has_ca else entities


def _items(source: BinaryIO) -> dict[tuple[str, str], Item]:
    """The records of the file by kind and key. Of two records with one key the last one counts."""
    items: dict[tuple[str, str], Item] = {}
    for number, line in _lines(source):
        try:
            put = operation_of(line.decode())
        except UnicodeDecodeError:
            raise BadFile(f"line {number} of {source.name} is not UTF-8") from None
        except InvalidEntity as error:
            problem = str(error).removeprefix("record: ").removeprefix("record.")
            raise BadFile(f"line {number} of {source.name}: {problem}") from None
        kind, entity = BY_NUMBER[put.kind_number], put.entity
        assert entity is not None  # only a delete has none
        data = codec.decode_entity(CA, entity, 0) if kind is CA else entity
        items[kind.name, put.id] = kind.name, write_base64(data)
    if not items:
        raise BadFile(f"{source.name} holds no record")
    return items


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers, which begin at 1."""
    number = 0
    while line := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and line[BOLT_MAGIC_OFFSET:].startswith(BOLT_MAGIC):
            reason = "is a database file of a Go Warren; import reads only JSON lines"
            raise BadFile(f"{source.name} {reason}")
        if len(line) > MAX_LINE_BYTES:
            raise BadFile(f"line {number} of {source.name} is longer than {MAX_LINE_BYTES} bytes")
        if line.strip():
            yield number, line


@click.command("export", cls=WarrenCommand)
@click.argument("target", type=click.Path(allow_dash=True), metavar="FILE")
def export(target: str) -> None:
    """Write every entity to a file.

    FILE (- is stdout) gets one JSON object a line, in Warren's own form: the state of one moment. The command reads
    the database directly, whether or not the manager runs. FILE holds secrets: a new file is readable by its owner
    only, and appears under its name when it is complete. A symbolic link is followed; a device or a FIFO stays.

    \b
    Example: warren-raft export state.jsonl --data-dir data/m1
    """
    if target != "-" and os.path.isdir(target):
        raise click.UsageError(f"{target} is a directory: name a file")
    with _output(target) as file, database() as store, store.read() as view:
        written = _write_records(view, file)
        has_ca = _has_ca(view)
    if target == "-" or is_stdout(target):
        return
    if wants_json():
        print_json({"exported": written})
    else:
        click.echo(f"exported {_entities(written, has_ca=has_ca)} to {target}")


def _output(target: str) -> AbstractContextManager[IO[bytes]]:
    if target == "-":
        return collected("stdout", _send_to_stdout)
    return open_node(target) if is_node(target) else whole_file(target)


def _send_to_stdout(file: IO[bytes]) -> None:
    require_stdout()
    shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _write_records(view: View, file: IO[bytes]) -> int:
    """Writes every record of the view, ordered by kind and id. Returns their number."""
    written = 0
    for line in _records(view):
        file.write(line.encode() + b"\n")
        written += 1
    return written


def _records(view: View) -> Iterator[str]:
    for kind in KINDS:
        if kind is not CA:
            for entity in operation(view, "iter", kind)():
                yield format_line(kind.name, entity)
    if _has_ca(view):
        yield format_line(CA.name, view.get_ca())


def _has_ca(view: View) -> bool:
    try:
        view.get_ca()
    except NotFound:
        return False
    return True


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, if stderr is a terminal. Yields the function to call with each advance.

    If the work fails, the bar is erased, and the line of the error takes its place.
    """
    if not is_open_terminal(sys.stderr):
        yield lambda _count: None
        return
    try:
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            yield advance
    except BaseException:
        click.echo(ERASE_LINE_ABOVE, nl=False, err=True)  # the bar has ended with a new line
        raise
