"""`warren-raft watch, events`: the changes of the state, one line each.

Both read the database directly, whether or not the manager runs. Not here: what is an event (store/events.py), and
where the time and the session of a change are kept (data_dir/origins.py).
Invariant: a change is printed once, in order, or the command fails; secret parts are printed with --show only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from warren_raft.errors import WatchLost
from warren_raft.model.json_form import format_time, to_json
from warren_raft.store.command import owner_among
from warren_raft.store.events import BOOKMARK
from warren_raft.store.tables import CONTAINER
from warren_raft.support.wording import printable

from .common import (
    REVISION_MAX,
    IdType,
    KindType,
    ShowingCommand,
    WholeNumberType,
    data_dir,
    database,
    wants_json,
    wants_wide,
)
from .entities import show_option, without_secrets
from .tables import say

if TYPE_CHECKING:
    from warren_raft.data_dir.origins import KnownOrigins
    from warren_raft.local.read_only import ReadOnlyStore
    from warren_raft.store.events import Event

_SECONDS: Final = len("2026-11-27T15:13:06")
END_SECONDS: Final = 0.01
"""After this time without an event `events` hears how far it is, and ends."""

kind_option = click.option(
    "--kind", "kinds", multiple=True, type=KindType(with_ca=True), metavar="KIND", help="Only this kind; repeatable."
)


@click.command("watch", cls=ShowingCommand)
@click.option(
    "--since",
    type=WholeNumberType(0, REVISION_MAX),
    metavar="N",
    help="Begin with the changes after revision N.  [default: now]",
)
@kind_option
@click.option("--service", "service_id", type=IdType(), metavar="ID", help="Only containers of this service.")
@click.option("--node", "node_id", type=IdType(), metavar="ID", help="Only containers on this node.")
@show_option
def watch(since: int | None, kinds: Sequence[Any], service_id: str | None, node_id: str | None, show: bool) -> None:
    """Print each change of the state as it is applied here, until stopped. Reads the database directly.

    A line has the revision, the operation, the kind and the id; all changes of one batch have the same revision. left:
    a container does not belong to the service or node any more. With -o json a line is a JSON object, with the entity.

    \b
    Example: warren-raft watch --kind service --kind container --data-dir data/m1
    """
    if (service_id or node_id) and any(kind is not CONTAINER for kind in kinds):
        raise click.UsageError("--service and --node choose containers; watch other kinds with another command")
    with database() as store:
        if since is not None:
            _require_kept(store, since)
        with store.watch(since, kinds=_names(kinds), service=service_id, node=node_id) as events:
            _print(events, show=show)


@click.command("events", cls=ShowingCommand)
@click.option(
    "--since",
    type=WholeNumberType(0, REVISION_MAX),
    metavar="N",
    help="Only the changes after revision N.  [default: all that are kept]",
)
@kind_option
@show_option
def events(since: int | None, kinds: Sequence[Any], show: bool) -> None:
    """Print the changes of the state that are kept, oldest first. Reads the database directly.

    A line has the revision, when this manager applied it, the manager through which it was written, and then what watch
    prints. With -o wide it also has the session, which is one process of that manager. A dash stands for what is not
    known: the change came in a snapshot, or was in the log before this manager started, or its manager was removed, or
    the note could not be written. The last 100,000 revisions are kept, and at most 32 MiB.

    \b
    Example: warren-raft events --since 1200 --data-dir data/m1
    """
    from warren_raft.data_dir.origins import KnownOrigins, member_ids
    from warren_raft.watching.feeding import oldest_since

    with database() as store:
        with store.read() as view:
            end = view.revision
        origins = _Origins(KnownOrigins(data_dir()), member_ids(store))
        if since is not None:
            _require_kept(store, since)
        begin = oldest_since(store) if since is None else since
        with store.watch(begin, kinds=_names(kinds), bookmark_seconds=END_SECONDS) as found:
            while found.revision < end:
                _print((event for event in found.take() if event.operation != BOOKMARK), show=show, origins=origins)


class ChangesNotKept(WatchLost):
    """The changes after `since` are not kept any more. Those after `oldest` are."""

    def __init__(self, since: int, oldest: int, newest: int) -> None:
        super().__init__(newest)
        self.since = since
        self.oldest = oldest

    def __str__(self) -> str:
        return (
            f"the changes after revision {self.since} are not all kept any more, those after revision {self.oldest} "
            f"are. To see these, type --since {self.oldest}. To miss nothing, read everything with `warren-raft list` "
            f"or `warren-raft export`, then watch with --since {self.resume_from}"
        )


def _require_kept(store: ReadOnlyStore, since: int) -> None:
    """Raises ChangesNotKept before anything is printed. Says so if the revision is still to come."""
    from warren_raft.watching.feeding import oldest_since

    oldest = oldest_since(store)
    with store.read() as view:
        newest = view.revision
    if since < oldest:
        raise ChangesNotKept(since, oldest, newest)
    if since > newest:
        say(f"warren-raft: nothing after revision {since} yet: the latest is {newest}", err=True)


def _names(kinds: Sequence[Any]) -> list[str] | None:
    return [kind.name for kind in kinds] or None


class _Origins:
    """When the revisions were made, and by whom, in words."""

    def __init__(self, known: KnownOrigins, members: Sequence[str]) -> None:
        self._known = known
        self._members = members
        self._width = max(map(len, [*members, "-"]))

    def as_json(self, revision: int) -> dict[str, str | None]:
        applied_at, session = self._known.of(revision)
        return {
            "applied_at": None if applied_at is None else format_time(applied_at),
            "node": None if session is None else owner_among(session, self._members),
            "session": None if session is None else f"{session:016x}",
        }

    def as_text(self, revision: int, *, wide: bool) -> str:
        time, node, session = self.as_json(revision).values()
        if wide:
            return f"{time or '-':<27}  {node or '-':<{self._width}}  {session or '-':<16}"
        seconds = "-" if time is None else time[:_SECONDS] + "Z"
        return f"{seconds:<{_SECONDS + 1}}  {node or '-':<{self._width}}"


def _print(found: Iterable[Event], *, show: bool, origins: _Origins | None = None) -> None:
    for event in found:
        if wants_json():
            click.echo(_as_json(event, {} if origins is None else origins.as_json(event.revision), show=show))
        else:
            origin = "" if origins is None else origins.as_text(event.revision, wide=wants_wide()) + "  "
            say(f"{event.revision}  {origin}{event.operation:<6}  {event.kind:<11}  {printable(event.id)}")


def _as_json(event: Event, origin: Mapping[str, str | None], *, show: bool) -> str:
    entity: Any = event.entity
    if isinstance(entity, bytes):
        entity = {"data": base64.b64encode(entity).decode() if show else None}
    elif entity is not None:
        entity = to_json(entity) if show else without_secrets(event.kind, to_json(entity))
    head = {name: getattr(event, name) for name in ("revision", "operation", "kind", "id", "index")}
    return json.dumps({**head, **origin, "entity": entity})
