"""`warren-raft get, list, put, delete`: entities, one or many.

get and list read the database directly; put and delete ask the running manager. What an entity is and which
forms it has is not decided here. Invariant: the data of secrets, private keys and the CA need --show to be printed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from warren_raft.admin import operation
from warren_raft.entity_json import from_json, to_json
from warren_raft.errors import InvalidEntity
from warren_raft.store.tables import CA_ID, CONTAINER, Kind

from .common import (
    IdType,
    KindType,
    WarrenCommand,
    database,
    if_revision_option,
    manager,
    print_json,
    print_revision,
    timeout_option,
    wants_json,
    wants_wide,
)
from .tables import Column, print_fields, print_table, time_shown

if TYPE_CHECKING:
    from warren_raft.store.interface import Reader

# Columns of `list`, as dotted paths into an entity's JSON; a path through a list takes every item. WIDE: with -o wide.
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
# Text that gives way where a terminal is narrow; ids, addresses, times, states and numbers do not.
GIVES: Final = {
    "deploy_strategy", "driver", "error", "hostname", "hosts", "image", "issuer", "labels", "mount_path",
    "name", "networks", "options", "rules.host", "service_name",
}  # fmt: skip
# Which filters of `list` a kind has; the first that is given decides how the database is asked.
FILTERS: Final[Mapping[str, Sequence[str]]] = {
    "service_id": ("container",),
    "node_id": ("container", "volume"),
    "name": ("service", "secret", "volume", "network", "ingress", "certificate"),
    "host": ("certificate",),
}
# What is printed with --show only, JSON included: it would stay in terminals, shell histories and logs of jobs.
HIDDEN: Final[Mapping[str, Sequence[str]]] = {"secret": ("data",), "certificate": ("key_pem",)}
MAX_INPUT_BYTES: Final = 8 * 1024 * 1024  # an entity of 1 MiB in base64, spelt out with escapes


show_option = click.option(
    "--show", is_flag=True, help="Also print what is secret: a secret's data, a certificate's key, the CA."
)


@click.command("get", cls=WarrenCommand)
@click.argument("kind", type=KindType(with_ca=True))
@click.argument("entity_id", type=IdType(), metavar="[ID]", required=False)
@show_option
def get(kind: Any, entity_id: str | None, show: bool) -> None:
    """Print one entity. Reads the database directly, whether or not the manager runs.

    KIND is node, service, container, secret, volume, network, ingress or certificate, or ca, which has no ID
    and is printed, with --show, as the bytes it is.

    \b
    Example: warren-raft get service svc-1 --data-dir data/m1 -o json
    """
    if kind.entity is None:
        _get_ca(entity_id, show=show)
        return
    if entity_id is None:
        raise click.UsageError(f"which {kind.name}? Give its ID.")
    with database() as store:
        entity = operation(store, "get", kind)(entity_id)
    value = to_json(entity)
    if wants_json():
        print_json(value if show else _without_secrets(kind.name, value))
    else:
        hidden = HIDDEN.get(kind.name, ())
        print_fields((name, _shown(entity, name, part, hidden, show=show)) for name, part in value.items())


def _without_secrets(kind_name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """With null in the place of what is hidden, which `put` takes for no value at all: it refuses it."""
    return {**value, **dict.fromkeys(HIDDEN.get(kind_name, ()))}


def _get_ca(entity_id: str | None, *, show: bool) -> None:
    if entity_id not in (None, CA_ID):
        raise click.UsageError("there is one CA and it has no ID: warren-raft get ca")
    with database() as store:
        data = store.get_ca()
    if wants_json():
        print_json({"data": base64.b64encode(data).decode() if show else None})
    elif not show:  # and nothing on stdout, which may be a file that is wanted to hold the CA
        raise click.UsageError(f"the CA has {len(data)} bytes, which are printed with --show only")
    else:
        click.echo(data, nl=False)


@click.command("list", cls=WarrenCommand)
@click.argument("kind", type=KindType())
@click.option("--service", "service_id", type=IdType(), metavar="ID", help="Containers of this service only.")
@click.option("--node", "node_id", type=IdType(), metavar="ID", help="Containers or volumes on this node only.")
@click.option("--name", metavar="NAME", help="Entities of this name only.")
@click.option("--host", metavar="HOST", help="Certificates that cover this host name only.")
@show_option
def list_(kind: Any, show: bool, **filters: str | None) -> None:
    """Print the entities of a kind, by id. Reads the database directly, whether or not the manager runs.

    KIND is node, service, container, secret, volume, network, ingress or certificate, or its plural.

    \b
    Example: warren-raft list containers --service svc-1 --data-dir data/m1
    """
    given = {name: value for name, value in filters.items() if value is not None}
    for name in given:
        if kind.name not in FILTERS[name]:
            option = "--" + name.removesuffix("_id")
            raise click.UsageError(f"{option} does not go with {kind.plural}, only with {' '.join(FILTERS[name])}")
    with database() as store:
        entities = _find(store, kind, given)
    values = [to_json(entity) for entity in entities]
    if wants_json():
        print_json(values if show else [_without_secrets(kind.name, value) for value in values])
    else:
        _print_list(kind.name, values, wide=wants_wide(), show=show)


def _print_list(kind_name: str, values: Sequence[Mapping[str, Any]], *, wide: bool, show: bool) -> None:
    wide_only = WIDE.get(kind_name, ())
    paths = [*COLUMNS[kind_name], *(HIDDEN.get(kind_name, ()) if show else ()), *wide_only]
    columns = [
        Column(HEADERS.get(path, path.replace("_", " ")), gives=path in GIVES, wide=path in wide_only) for path in paths
    ]
    rows = [[_in_list(value, path, wide=wide) for path in paths] for value in values]
    print_table(columns, rows, wide=wide)


def _in_list(value: Mapping[str, Any], path: str, *, wide: bool) -> Any:
    found = _at(value, path)
    return time_shown(found, wide=wide) if path in TIMES else found


def _find(store: Reader, kind: Kind[Any], given: Mapping[str, str]) -> list[Any]:
    """The entities that pass every filter; an index finds those of a service, a node or a host."""
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
@click.option(
    "-f", "--file", "source", type=click.File("rb"), metavar="FILE", required=True, help="The entity; - is stdin."
)
@if_revision_option
@timeout_option
def put(kind: Any, source: BinaryIO, if_revision: int | None, timeout: float | None) -> None:
    """Create or replace one entity through the running manager. Prints the new revision.

    FILE holds what `get -o json` prints; fields left out take their defaults, and `revision` is ignored. For ca
    it holds the CA's bytes.

    \b
    Example: warren-raft put service -f svc-1.json --data-dir data/m1
    """
    data = source.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise InvalidEntity(kind.name, f"{source.name} holds more than an entity can")
    if not data:  # of a CA too: what was to write into a pipe has failed
        raise InvalidEntity(kind.name, f"{source.name} is empty")
    value = base64.b64encode(data).decode() if kind.entity is None else _parse(kind, source.name, data)
    print_revision(manager().put(kind.name, value, if_revision=if_revision, timeout=timeout))


def _parse(kind: Kind[Any], name: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file, checked here so that a wrong one is told of whether or not a manager runs."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidEntity(kind.name, f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidEntity(kind.name, f"{name} does not hold a JSON object")
    for field in HIDDEN.get(kind.name, ()):
        if field in value and value[field] is None:
            raise InvalidEntity(kind.name, f"is null in {name}: print it with `get --show`", field=field)
    if kind.entity is not None:
        from_json(kind.entity, value)
    return value


@click.command("delete", cls=WarrenCommand)
@click.argument("kind", type=KindType())
@click.argument("entity_id", type=IdType(), metavar="ID")
@if_revision_option
@timeout_option
def delete(kind: Any, entity_id: str, if_revision: int | None, timeout: float | None) -> None:
    """Delete one entity through the running manager.

    Done as well when there is none. Prints the revision of the deletion, or of the latest change when there was
    nothing to delete.

    \b
    Example: warren-raft delete container con-17 --data-dir data/m1
    """
    print_revision(manager().delete(kind.name, entity_id, if_revision=if_revision, timeout=timeout))


def _shown(entity: Any, name: str, value: object, hidden: Sequence[str], *, show: bool) -> object:
    """A field's JSON as a table may show it."""
    held = getattr(entity, name)
    if not isinstance(held, bytes) or (name in hidden and show):
        return value
    return f"({len(held)} bytes, shown with {'--show' if name in hidden else '-o json'})"


def _at(value: Any, path: str) -> Any:
    """What is at a dotted path in an entity's JSON; None where there is nothing."""
    for step in path.split("."):
        if isinstance(value, list):
            value = [item.get(step) for item in value]
        else:
            value = value.get(step) if value is not None else None
    return value
