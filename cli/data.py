"""`warren-raft import` and `export`: all entities of a cluster, in Warren's own forms: JSON lines, or a database.

Not here: these forms (warren_raft/migrate/), and how an import finds out which one a file has (import_sources.py).
Invariant: import stores nothing if one record of the file is bad. Export writes one consistent view, and a file under
its final name is complete. Export closes its view before it waits for the reader of its output: an open view makes the
manager's database grow.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import click

from warren_raft.admin import operation
from warren_raft.disk.outputs import (
    collected,
    is_node,
    is_stdout,
    open_node,
    whole_file,
)
from warren_raft.errors import NotFound, Unavailable, WarrenError
from warren_raft.migrate.database import write as write_database
from warren_raft.migrate.records import format_line
from warren_raft.model.json_form import write_base64
from warren_raft.store import codec
from warren_raft.store.command import Operation
from warren_raft.store.tables import BY_NUMBER, CA, CA_ID, KINDS, Kind
from warren_raft.support.wording import counted

from . import import_sources
from .common import (
    InputType,
    WarrenCommand,
    database,
    manager,
    print_json,
    require_stdout,
    timeout_option,
    wants_json,
)
from .tables import is_open_terminal, print_table, say, terminal_width

if TYPE_CHECKING:
    from warren_raft.admin.client import Item
    from warren_raft.store.interface import View

ERASE_LINE_ABOVE: Final = "\x1b[1A\x1b[2K\r"
BAR_MIN: Final = 8
BAR_MAX: Final = 36
BESIDE_BAR: Final = len("  []  100%") + 1  # a line as long as the terminal makes some of them begin another one
REST: Final = len("  00:00:00")
"""The time that the rest will take. It is left out on a narrow terminal."""


@click.command("import", cls=WarrenCommand)
@click.argument("source", type=InputType(), metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Check the file, and say what an import would change.")
@timeout_option
def import_(source: BinaryIO, *, dry_run: bool, timeout: float | None) -> None:
    """Store every record of a file.

    The running manager stores them; existing entities are replaced.

    FILE is the database of a Go Warren (warren.db), or (- is stdin) has one JSON object a line, as `export` writes it:
    {"bucket": …, "key": …, "value": …}. The whole file is checked before anything is stored. It is safe to import a
    file again.

    \b
    Example: warren-raft import state.jsonl --data-dir data/m1
             warren-raft import warren.db --dry-run --data-dir data/m1
    """
    puts = import_sources.operations(source)
    if dry_run:
        with database() as store, store.read() as view:
            changes = _changes(puts, view)
        _print_changes(changes)
        return
    items = list(_items(puts))
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
            elif isinstance(error, Unavailable) and error.maybe_applied:
                error.add_note(f"some of the {len(items)} records may be stored; import the file again")
            raise
    if wants_json():
        print_json({"imported": stored})
    else:
        say(f"imported {_entities(stored, has_ca=any(kind == CA.name for kind, _ in items))}")


def _entities(records: int, *, has_ca: bool) -> str:
    """How many entities are among the records, as `status` and `snapshot verify` count them: the CA is not one."""
    entities = counted(records - has_ca, "entity", "entities")
    return f"{entities} and the CA" if has_ca else entities


def _items(puts: Iterable[Operation]) -> Iterator[Item]:
    """The operations in the form in which a manager takes them."""
    for put in puts:
        kind, entity = BY_NUMBER[put.kind_number], put.entity
        assert entity is not None  # only a delete has none
        data = codec.decode_entity(CA, entity, 0) if kind is CA else entity
        yield kind.name, write_base64(data)


class Changes(NamedTuple):
    """How many entities of a kind an import would create, change, and find as they are."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0


def _changes(puts: Iterable[Operation], view: View) -> dict[Kind[Any], Changes]:
    """The effect that an import would have on a state, by kind."""
    changes: dict[Kind[Any], Changes] = {}
    for put in puts:
        kind = BY_NUMBER[put.kind_number]
        before = changes.get(kind, Changes())
        stored = _stored(view, kind, put.id)
        if stored is None:
            changes[kind] = before._replace(new=before.new + 1)
        elif stored == put.entity:
            changes[kind] = before._replace(unchanged=before.unchanged + 1)
        else:
            changes[kind] = before._replace(changed=before.changed + 1)
    return {kind: changes[kind] for kind in KINDS if kind in changes}


def _stored(view: View, kind: Kind[Any], entity_id: str) -> bytes | None:
    """The bytes of a stored entity as an import would send them; None if there is no such entity."""
    try:
        entity = view.get_ca() if kind is CA else operation(view, "get", kind)(entity_id)
    except NotFound:
        return None
    return codec.encode(kind, entity)


def _print_changes(changes: Mapping[Kind[Any], Changes]) -> None:
    if wants_json():
        print_json({"would_import": {kind.plural: change._asdict() for kind, change in changes.items()}})
        return
    rows = [(kind.plural, *change) for kind, change in changes.items()]
    print_table(("kind", *Changes._fields), rows)
    say("nothing was stored (--dry-run)", err=True)


@click.command("export", cls=WarrenCommand)
@click.argument("target", type=click.Path(allow_dash=True), metavar="[FILE]", required=False)
@click.option(
    "--warren-db", type=click.Path(), metavar="FILE", help="Write a Go Warren's database (warren.db) instead of lines."
)
def export(target: str | None, warren_db: str | None) -> None:
    """Write every entity to a file.

    FILE (- is stdout) gets one JSON object a line, in Warren's own form: the state of one moment. The command reads
    the database directly, whether or not the manager runs. FILE holds secrets: a new file is readable by its owner
    only, and appears under its name when it is complete. A symbolic link is followed; a device or a FIFO stays.

    \b
    Example: warren-raft export state.jsonl --data-dir data/m1
             warren-raft export --warren-db warren.db --data-dir data/m1
    """
    name = target if warren_db is None else warren_db
    if name is None or (target is not None and warren_db is not None):
        raise click.UsageError("name one file: FILE, or --warren-db FILE")
    if warren_db is not None and (name == "-" or is_node(name)):
        raise click.UsageError("--warren-db must name a file: a database cannot be written to a pipe or a device")
    write_view(name, _opened_view(), None if warren_db is None else _write_database)


@contextmanager
def _opened_view() -> Iterator[View]:
    with database() as store, store.read() as view:
        yield view


def write_view(
    name: str, opened: AbstractContextManager[View], write: Callable[[View, IO[bytes]], int] | None = None
) -> None:
    """Writes all entities of a view to a file (- is stdout), as JSON lines without another `write`, and says how
    many."""
    if name != "-" and os.path.isdir(name):
        raise click.UsageError(f"{name} is a directory: name a file")
    if name == "-":
        require_stdout()
    with _output(name) as file, opened as view:
        written = (write or _write_records)(view, file)
        has_ca = _has_ca(view)
    if name == "-" or is_stdout(name):
        return
    if wants_json():
        print_json({"exported": written})
    else:
        say(f"exported {_entities(written, has_ca=has_ca)} to {name}")


def _output(target: str) -> AbstractContextManager[IO[bytes]]:
    if target == "-":
        return collected("stdout", _send_to_stdout)
    return open_node(target) if is_node(target) else whole_file(target)


def _send_to_stdout(file: IO[bytes]) -> None:
    shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _write_records(view: View, file: IO[bytes]) -> int:
    """Writes every record of the view, ordered by kind and id. Returns their number."""
    written = 0
    for line in _records(view):
        file.write(line.encode() + b"\n")
        written += 1
    return written


def _write_database(view: View, file: IO[bytes]) -> int:
    return write_database(file, partial(_stored_in, view))


def _records(view: View) -> Iterator[str]:
    for kind in KINDS:
        if kind is not CA:
            for entity in operation(view, "iter", kind)():
                yield format_line(kind.name, entity)
    if _has_ca(view):
        yield format_line(CA.name, view.get_ca())


def _stored_in(view: View, kind: Kind[Any]) -> Iterator[tuple[str, Any]]:
    """The entities of a kind with their ids, in the order of the ids."""
    if kind is CA:
        return iter([(CA_ID, view.get_ca())] if _has_ca(view) else [])
    return ((entity.id, entity) for entity in operation(view, "iter", kind)())


def _has_ca(view: View) -> bool:
    try:
        view.get_ca()
    except NotFound:
        return False
    return True


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, if stderr is a terminal: one line of it. Yields the function to call with each advance.

    If the work fails, the bar is erased, and the line of the error takes its place.
    """
    if not is_open_terminal(sys.stderr):
        yield lambda _count: None
        return
    try:
        room = terminal_width() - len(label) - BESIDE_BAR
        shows_rest = room >= REST + BAR_MIN
        width = max(1, min(BAR_MAX, room - REST if shows_rest else room))
        with click.progressbar(length=total, label=label, file=sys.stderr, width=width, show_eta=shows_rest) as bar:

            def advance(count: int) -> None:
                bar.update(count)

            yield advance
    except BaseException:
        click.echo(ERASE_LINE_ABOVE, nl=False, err=True)  # the bar has ended with a new line
        raise
