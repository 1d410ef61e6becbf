"""`warren-raft get, list, put, delete`: one entity, or all of a kind.

get and list read the database directly; put and delete call the running manager. Not here: the fields and forms of an
entity. Invariant: the data of secrets, private keys and the CA are printed with --show only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from warren_raft.admin import operation
from warren_raft.errors import InvalidEntity, NotFound
from warren_raft.model.json_form import from_json, to_json
from warren_raft.store.tables import CA, CA_ID, CONTAINER, SERVICE, Kind

from .common import (
    REVISION_MAX,
    BadFile,
    IdType,
    InputType,
    KindType,
    ShowingCommand,
    WarrenCommand,
    WholeNumberType,
    database,
    if_revision_option,
    manager,
    print_json,
    print_revision,
    timeout_option,
    utf8_text,
    wants_json,
    wants_wide,
)
from .tables import Column, print_fields, print_table, say, time_shown

if TYPE_CHECKING:
    from warren_raft.store.interface import Reader

# Columns of `list`, as dotted paths into an entity's JSON; a path through a list takes every item. The columns of WIDE
# are shown with -o wide only.
COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "node": ("id", "role", "status", "address", "last_heartbeat", "resources.cpu_cores", "hostname", "labels"),
    "service": ("id", "name", "mode", "replicas", "updated_at", "deploy_strategy", "image", "networks"),
    "container": ("id", "node_id", "desired_state", "actual_state", "started_at", "service_name", "image"),
    "secret": ("id", "name", "created_at", "updated_at"),
    "volume": ("id", "node_id", "created_at", "name", "driver", "mount_path"),
    "network": ("id", "name", "subnet", "gateway", "driver"),
    "ingress": ("id", "name", "tls.enabled", "updated_at", "rules.host"),
    "certificate": ("id", "name", "not_after", "auto_renew", "hosts", "issuer"),
}
WIDE: Final[Mapping[str, Sequence[str]]] = {
    "node": ("overlay_ip", "resources.memory_bytes", "created_at"),
    "service": ("labels", "created_at"),
    "container": ("container_id", "exit_code", "error", "created_at", "finished_at"),
    "volume": ("options",),
    "ingress": ("labels", "created_at"),
    "certificate": ("not_before", "created_at"),
}
HEADERS: Final = {
    "actual_state": "actual",
    "created_at": "created",
    "deploy_strategy": "strategy",
    "desired_state": "desired",
    "finished_at": "finished",
    "last_heartbeat": "heartbeat",
    "node_id": "node",
    "not_after": "expires",
    "not_before": "valid from",
    "resources.cpu_cores": "cpus",
    "resources.memory_bytes": "memory bytes",
    "rules.host": "hosts",
    "service_name": "service",
    "started_at": "started",
    "tls.enabled": "tls",
    "updated_at": "updated",
}
TIMES: Final = {
    "created_at", "finished_at", "last_heartbeat", "not_after", "not_before", "started_at", "updated_at",
}  # fmt: skip
# Text columns, which are shortened on a narrow terminal. Ids, addresses, times, states and numbers are not.
GIVES: Final = {
    "deploy_strategy", "driver", "error", "hostname", "hosts", "image", "issuer", "labels", "mount_path",
    "name", "networks", "options", "rules.host", "service_name",
}  # fmt: skip
# Filter of `list` -> the kinds that have it.
FILTERS: Final[Mapping[str, Sequence[str]]] = {
    "service_id": ("container",),
    "node_id": ("container", "volume"),
    "name": ("service", "secret", "volume", "network", "ingress", "certificate"),
    "host": ("certificate",),
}
# Secret fields, printed with --show only, also in JSON: they would stay in terminals, shell histories and job logs.
HIDDEN: Final[Mapping[str, Sequence[str]]] = {"secret": ("data",), "certificate": ("key_pem",)}
IDS_SHOWN: Final = 5
"""An error names at most this many ids."""
MAX_INPUT_BYTES: Final = 8 * 1024 * 1024  # an entity of 1 MiB, in base64 and with every character escaped


show_option = click.option(
    "--show", is_flag=True, help="Also print the secret parts: a secret's data, a certificate's key, the CA."
)


@click.command("get", cls=ShowingCommand)
@click.argument("kind", type=KindType(with_ca=True))
@click.argument("entity_id", type=IdType(), metavar="[ID]", required=False)
@click.option(
    "--at",
    "revision",
    type=WholeNumberType(0, REVISION_MAX),
    metavar="REVISION",
    help="As it was at this revision, if the history reaches back so far.  [default: now]",
)
@show_option
def get(kind: Any, entity_id: str | None, revision: int | None, show: bool) -> None:
    """Print one entity. Reads the database directly, whether or not the manager runs.

    KIND is node, service, container, secret, volume, network, ingress, certificate or ca. ca has no ID; with --show
    its bytes are printed unchanged.

    \b
    Example: warren-raft get service svc-1 --data-dir data/m1 -o json
    Example: warren-raft get service svc-1 --at 1200 --data-dir data/m1
    """
    entity_id = checked_id(kind, entity_id)
    with database() as store:
        entity = (
            find_entity(store, kind, entity_id) if revision is None else _entity_at(store, kind, entity_id, revision)
        )
    print_entity(kind, entity, show=show)


def checked_id(kind: Kind[Any], entity_id: str | None) -> str:
    """The id of the entity that was named. Raises UsageError."""
    if kind.entity is None:
        if entity_id not in (None, CA_ID):
            raise click.UsageError(f"the CA has no ID; type: {click.get_current_context().command_path} ca")
        return CA_ID
    if entity_id is None:
        raise click.UsageError(f"no {kind.name} was named: add its ID")
    return entity_id


def print_entity(kind: Kind[Any], entity: Any, *, show: bool) -> None:
    """Prints an entity, or the CA's bytes; secret parts with `show` only."""
    if kind.entity is None:
        _print_ca(entity, show=show)
        return
    value = to_json(entity)
    if wants_json():
        print_json(value if show else without_secrets(kind.name, value))
    else:
        hidden = HIDDEN.get(kind.name, ())
        print_fields((name, _shown(entity, name, part, hidden, show=show)) for name, part in value.items())


def _entity_at(store: Reader, kind: Kind[Any], entity_id: str, revision: int) -> Any:
    """Raises NotFound, with the revision as a note; NotKept."""
    from warren_raft.fsm.past import get_at

    try:
        return get_at(store, kind, entity_id, revision)
    except NotFound as error:
        error.add_note(f"there was none at revision {revision}")
        raise


def find_entity(store: Reader, kind: Kind[Any], entity_id: str) -> Any:
    """Raises NotFound; the text has the ids if the operator typed a name in the place of an id."""
    if kind is CA:
        return store.get_ca()
    try:
        return operation(store, "get", kind)(entity_id)
    except NotFound:
        if kind.name in FILTERS["name"]:
            ids = [entity.id for entity in _find(store, kind, {"name": entity_id})]
            if ids:
                raise OnlyAName(kind.name, kind.plural, entity_id, ids) from None
        raise


class OnlyAName(NotFound):
    """No entity has this id. Those with the ids `ids` have it as their name."""

    def __init__(self, kind: str, plural: str, name: str, ids: list[str]) -> None:
        super().__init__(kind, name)
        self.plural = plural
        self.ids = ids

    def __str__(self) -> str:
        if len(self.ids) == 1:
            return f"{super().__str__()}; the {self.kind} with this name has the id {self.ids[0]}"
        more = f" and {len(self.ids) - IDS_SHOWN} more" if len(self.ids) > IDS_SHOWN else ""
        named = ", ".join(self.ids[:IDS_SHOWN])
        return f"no {self.kind} has the id {self.key!r}; {len(self.ids)} {self.plural} have this name: {named}{more}"


def without_secrets(kind_name: str, value: Mapping[str, object]) -> dict[str, Any]:
    """The value with null in the place of each secret field. `put` refuses a secret field that is null."""
    return {**value, **dict.fromkeys(HIDDEN.get(kind_name, ()))}


def _print_ca(data: bytes, *, show: bool) -> None:
    if wants_json():
        print_json({"data": base64.b64encode(data).decode() if show else None})
    elif not show:  # nothing goes to stdout: it may be the file that is to hold the CA
        raise click.UsageError(f"the CA has {len(data)} bytes; to print them add --show")
    else:
        click.echo(data, nl=False)


@click.command("list", cls=ShowingCommand)
@click.argument("kind", type=KindType())
@click.option("--service", "service_id", type=IdType(), metavar="ID", help="Only containers of this service.")
@click.option("--node", "node_id", type=IdType(), metavar="ID", help="Only containers or volumes on this node.")
@click.option("--name", metavar="NAME", help="Only entities with this name.")
@click.option("--host", metavar="HOST", help="Only certificates that cover this host name.")
@show_option
def list_(kind: Any, show: bool, **filters: str | None) -> None:
    """Print the entities of a kind, ordered by id. Reads the database directly, whether or not the manager runs.

    KIND is node, service, container, secret, volume, network, ingress or certificate, or its plural.

    \b
    Example: warren-raft list containers --service svc-1 --data-dir data/m1
    """
    given = {name: value for name, value in filters.items() if value is not None}
    for name in given:
        if kind.name not in FILTERS[name]:
            option = "--" + name.removesuffix("_id")
            raise click.UsageError(f"{option} is not for {kind.plural}; it is for: {' '.join(FILTERS[name])}")
    with database() as store:
        entities = _find(store, kind, given)
    print_entities(kind, entities, show=show)


def print_entities(kind: Kind[Any], entities: Sequence[Any], *, show: bool) -> None:
    """Prints a list of entities; secret parts with `show` only."""
    values = [to_json(entity) for entity in entities]
    if wants_json():
        print_json(values if show else [without_secrets(kind.name, value) for value in values])
    else:
        _print_list(kind.name, values, wide=wants_wide(), show=show)


def _print_list(kind_name: str, values: Sequence[Mapping[str, object]], *, wide: bool, show: bool) -> None:
    wide_only = WIDE.get(kind_name, ())
    paths = [*COLUMNS[kind_name], *(HIDDEN.get(kind_name, ()) if show else ()), *wide_only]
    columns = [
        Column(HEADERS.get(path, path.replace("_", " ")), gives=path in GIVES, wide=path in wide_only) for path in paths
    ]
    rows = [[_in_list(value, path, wide=wide) for path in paths] for value in values]
    print_table(columns, rows, wide=wide)


def _in_list(value: Mapping[str, object], path: str, *, wide: bool) -> Any:
    found = _at(value, path)
    return time_shown(found, wide=wide) if path in TIMES else found


def _find(store: Reader, kind: Kind[Any], given: Mapping[str, str]) -> list[Any]:
    """The entities that pass every filter. The filters by service, node and host use an index."""
    rest = dict(given)
    if kind is CONTAINER and "service_id" in rest:
        found: Sequence[Any] = store.list_containers_by_service(rest.pop("service_id"))
    elif kind is CONTAINER and "node_id" in rest:
        found = store.list_containers_by_node(rest.pop("node_id"))
    elif "host" in rest:
        found = store.get_tls_certificates_by_host(rest.pop("host"))
    else:
        found = operation(store, "list", kind)()
    return [entity for entity in found if all(getattr(entity, name) == value for name, value in rest.items())]


@click.command("put", cls=WarrenCommand)
@click.argument("kind", type=KindType(with_ca=True))
@click.option("-f", "--file", "source", type=InputType(), metavar="FILE", required=True, help="The entity; - is stdin.")
@if_revision_option
@timeout_option
def put(kind: Any, source: BinaryIO, if_revision: int | None, timeout: float | None) -> None:
    """Create or replace one entity through the running manager. Prints the new revision.

    If the stored entity is equal already, nothing is changed, and its revision is printed.

    FILE has the form that `get -o json` prints. Fields that are left out take their defaults, and `revision` is
    ignored. For ca FILE holds the CA's bytes.

    \b
    Example: warren-raft put service -f svc-1.json --data-dir data/m1
    """
    data = source.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise BadFile(f"{source.name} is larger than {MAX_INPUT_BYTES} bytes")
    if not data:  # an error for a CA too: the program that writes into a pipe has failed
        raise BadFile(f"{source.name} is empty: there is nothing to put")
    try:
        value = base64.b64encode(data).decode() if kind.entity is None else _parse(kind, source.name, data)
        revision = manager().put(kind.name, value, if_revision=if_revision, timeout=timeout)
    except InvalidEntity as error:
        raise InvalidInFile(source.name, error.kind, error.reason, id=error.id, field=error.field) from None
    print_revision(revision)


class InvalidInFile(InvalidEntity):
    """The entity in the file `file` can never be stored."""

    def __init__(
        self,
        file: str,
        kind: str,
        reason: str,
        *,
        id: str | None,  # noqa: A002
        field: str | None,
    ) -> None:
        super().__init__(kind, reason, id=id, field=field)
        self.file = file

    def __str__(self) -> str:
        return f"{self.file}: {super().__str__()}"


def _parse(kind: Kind[Any], name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file. It is checked here, so that the error comes also if no manager runs."""
    try:
        value = json.loads(utf8_text(data, name))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        if error.msg == "Extra data":
            raise BadFile(f"{name} holds more than one JSON object ({where}): put stores one entity") from None
        raise BadFile(f"{name} is not JSON: {where}: {error.msg.removesuffix(' starting at')}") from None
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{name} is not JSON: {error}") from None
    if isinstance(value, list):
        raise BadFile(f"{name} holds a list: put stores one entity, so put each object of the list by itself")
    if not isinstance(value, dict):
        raise BadFile(f"{name} does not hold a JSON object, which begins with {{")
    if value.keys() == {"bucket", "key", "value"}:
        raise BadFile(f"{name} holds a record in Warren's own form: type warren-raft import {name}")
    for field in HIDDEN.get(kind.name, ()):
        if field in value and value[field] is None:
            raise InvalidEntity(kind.name, "is null: write the file with `get --show -o json`", field=field)
    if kind.entity is not None:
        from_json(kind.entity, value)
    return value


@click.command("delete", cls=WarrenCommand)
@click.argument("kind", type=KindType())
@click.argument("entity_id", type=IdType(), metavar="ID")
@click.option("--cascade", is_flag=True, help="Delete the containers of the service too, in the same command.")
@if_revision_option
@timeout_option
def delete(kind: Any, entity_id: str, cascade: bool, if_revision: int | None, timeout: float | None) -> None:
    """Delete one entity through the running manager.

    The containers of a service remain, except with --cascade.

    Prints the revision of the deletion. If there is no such entity, the command succeeds, prints the revision of the
    latest change, and says on stderr that nothing was deleted.

    \b
    Example: warren-raft delete container con-17 --data-dir data/m1
    """
    if cascade and kind is not SERVICE:
        raise click.UsageError(f"--cascade is for services; a {kind.name} has nothing that goes with it")
    asked = manager()
    before = asked.status()["revision"]
    if cascade:
        revision = asked.delete_cascade(entity_id, if_revision=if_revision, timeout=timeout)
    else:
        revision = asked.delete(kind.name, entity_id, if_revision=if_revision, timeout=timeout)
    print_revision(revision)
    if revision <= before:  # a deletion makes a new revision
        say(f"warren-raft: there is no {kind.name} {entity_id!r}: nothing was deleted", err=True)


def _shown(entity: object, name: str, value: object, hidden: Sequence[str], *, show: bool) -> object:
    """The value of a field in a table. Bytes are replaced by their number, unless they are secret and `show` is set."""
    held = getattr(entity, name)
    if not isinstance(held, bytes) or (name in hidden and show):
        return value
    return f"({len(held)} bytes, shown with {'--show' if name in hidden else '-o json'})"


def _at(value: Any, path: str) -> Any:
    """The value at a dotted path in an entity's JSON; None if there is none."""
    for step in path.split("."):
        if isinstance(value, list):
            value = [item.get(step) for item in value]
        else:
            value = value.get(step) if value is not None else None
    return value
