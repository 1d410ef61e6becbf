"""From an entity, or an id, to the operation that stores or deletes it.

Called in the caller's thread, before anything is sent: type, validation, encoding, limits. Commands are in command.py.
Invariant: every operation made here can be stored: a valid entity, an id and a size within the limits.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import validate
from warren_raft.store import codec
from warren_raft.store.command import (
    DELETE,
    DELETE_CASCADE,
    INDEXED_ITEMS_MAX,
    PUT,
    REQUEST_KEY_MAX_BYTES,
    REQUIRE,
    Operation,
)
from warren_raft.store.encoding import NOT_PLAIN
from warren_raft.store.tables import CA, CA_ID, CERTIFICATE, ID_MAX_BYTES, KINDS, SERVICE, Kind

E = TypeVar("E")

ENTITY_MAX_BYTES: Final = 1024 * 1024
"""The largest entity, encoded."""

REVISION_MAX: Final = 2**63 - 1
"""Above every possible revision."""

TOO_MANY_HOSTS: Final = f"has more than {INDEXED_ITEMS_MAX:,} hosts of TLS certificates"


def put_operation(kind: Kind[E], entity: E, if_revision: int | None) -> Operation:
    """The operation that stores an entity. Raises InvalidEntity for an entity that can never be stored."""
    if kind.entity is None:
        return _ca_operation(entity, if_revision)
    if type(entity) is not kind.entity:
        reason = f"must be a {kind.entity.__name__}, not {type(entity).__name__}"
        raise InvalidEntity(kind.name, reason)
    valid: Any = entity
    try:
        data = codec.encode(kind, valid)
    except NOT_PLAIN:
        valid = validate(valid)  # converts it, or describes its fault
        data = codec.encode(kind, valid)
    if kind is CERTIFICATE and len(valid.hosts) > INDEXED_ITEMS_MAX:
        raise InvalidEntity(kind.name, TOO_MANY_HOSTS, id=valid.id, field="hosts")
    return _put(kind, valid.id, data, if_revision)


def _ca_operation(data: object, if_revision: int | None) -> Operation:
    if type(data) is not bytes:
        raise InvalidEntity(CA.name, f"must be bytes, not {type(data).__name__}")
    return _put(CA, CA_ID, codec.encode(CA, data), if_revision)


def _put(kind: Kind[Any], id: str, entity: bytes, if_revision: int | None) -> Operation:  # noqa: A002
    if len(entity) > ENTITY_MAX_BYTES:
        reason = f"takes {len(entity)} bytes encoded; {ENTITY_MAX_BYTES} is the most"
        raise InvalidEntity(kind.name, reason, id=id)
    return Operation(PUT, kind.number, id, entity, _checked_revision(kind, id, if_revision))


def delete_operation(kind: Kind[Any], id: str, if_revision: int | None) -> Operation:  # noqa: A002
    """The operation that deletes an entity. Raises InvalidEntity for an id that no entity can have."""
    if not isinstance(id, str):
        raise InvalidEntity(kind.name, f"must be text (str), not {type(id).__name__}", field="id")
    id = str.__str__(id)  # noqa: A001  a subclass of str is converted, as in an entity that is stored
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        raise InvalidEntity(kind.name, "has a lone surrogate and so no UTF-8 form", field="id") from None
    if not 0 < size <= ID_MAX_BYTES:
        raise InvalidEntity(kind.name, f"must have 1 to {ID_MAX_BYTES} bytes in UTF-8", id=id, field="id")
    return Operation(DELETE, kind.number, id, None, _checked_revision(kind, id, if_revision))


def cascade_operation(id: str, if_revision: int | None) -> Operation:  # noqa: A002
    """The operation that deletes a service and its containers. Raises InvalidEntity."""
    return delete_operation(SERVICE, id, if_revision)._replace(verb=DELETE_CASCADE)


def require_operation(kind: Kind[Any], id: str, revision: int) -> Operation:  # noqa: A002
    """The operation that only requires a revision of the stored entity. Raises InvalidEntity."""
    if revision is None:
        raise InvalidEntity(kind.name, "a required revision must be a whole number, not None", id=id)
    return delete_operation(kind, id, revision)._replace(verb=REQUIRE)


def checked_request_id(request_id: str) -> str:
    """The request key of a command. Raises InvalidEntity for a text that is none."""
    try:
        if isinstance(request_id, str) and 0 < len(str.encode(request_id)) <= REQUEST_KEY_MAX_BYTES:
            return str.__str__(request_id)
    except UnicodeEncodeError:  # a lone surrogate
        pass
    reason = f"must be a text of 1 to {REQUEST_KEY_MAX_BYTES} bytes in UTF-8"
    raise InvalidEntity("command", reason, field="request_id")


def kind_of(cls: type[E]) -> Kind[E]:
    """The kind of an entity's class. Raises InvalidEntity for any other class."""
    for kind in KINDS:
        if kind.entity is cls and cls is not None:  # the CA has no class
            return kind
    raise InvalidEntity("entity", f"{cls!r:.60} is not a class of entities, such as Service")


def _checked_revision(kind: Kind[Any], id: str, if_revision: int | None) -> int | None:  # noqa: A002
    if if_revision is None or (type(if_revision) is int and 0 <= if_revision <= REVISION_MAX):
        return if_revision
    reason = f"if_revision must be a whole number from 0 to {REVISION_MAX}, not {if_revision!r:.60}"
    raise InvalidEntity(kind.name, reason, id=id)
