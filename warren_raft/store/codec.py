"""Records and entity bytes: reading and making them, the revision of a record, the keys of an entity in the indexes.

An entity is the array of its fields in order of declaration, without `revision`. A record is [revision, entity]. Both
are CBOR. The bytes of an entity are made in encoding.py, and its instance from an array in decoding.py.
Invariant: bytes are an entity of the kind, or MalformedRecord is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, cast

from cbor2 import dumps

from warren_raft.model.forms import fields_of
from warren_raft.store.decoding import SHARED_RECORD_BYTES_MAX, struct_decoder
from warren_raft.store.decoding import MalformedRecord as MalformedRecord
from warren_raft.store.encoding import struct_encoder, unsigned
from warren_raft.store.leading import INTEGER_BYTES
from warren_raft.store.tables import (
    ID_MAX_BYTES,
    KINDS,
    Index,
    Kind,
)
from warren_raft.support.strict_cbor import BadCbor, decode_record

E = TypeVar("E")
KeysOf: TypeAlias = Callable[[Sequence[Any]], tuple[bytes, ...]]
"""From the array of an entity to the entity's keys in one index."""

# ------------------------------------------------------------------------------- entities and records


def encode(kind: Kind[E], entity: E) -> bytes:
    """The entity bytes: the CBOR array of all fields except `revision`. Equal entities give equal bytes.

    Raises one of NOT_PLAIN for a value that `validate` would refuse or convert. (Lists, dicts and subclasses of str
    need no conversion here, except in an id.)
    """
    if kind.entity is None:
        return dumps([entity])
    cls: Any = kind.entity
    return struct_encoder(cls)(entity)


def decode(kind: Kind[E], record: bytes | memoryview) -> E:
    """The entity of a record, with its revision. Unknown members of enumerations stay text.

    Raises MalformedRecord.
    """
    try:
        revision, array = decode_record(record)
    except (TypeError, ValueError):
        raise MalformedRecord("not a record") from None
    return _build(kind, array, revision, len(record) <= SHARED_RECORD_BYTES_MAX)


def decode_entity(kind: Kind[E], entity: bytes | memoryview, revision: int) -> E:
    """The entity of entity bytes, as of `revision`. Raises MalformedRecord."""
    try:
        array = decode_record(entity)
    except BadCbor:
        raise MalformedRecord("not an entity") from None
    return _build(kind, array, revision, len(entity) <= SHARED_RECORD_BYTES_MAX)


def _build(kind: Kind[E], array: object, revision: object, share: bool) -> E:
    cls: Any = kind.entity
    if cls is None:
        if type(array) is not tuple or len(array) < 1 or type(array[0]) is not bytes:
            raise MalformedRecord(f"not a {kind.name}")
        return cast("E", array[0])
    try:
        return cast("E", struct_decoder(cls, share)(array, revision))
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise MalformedRecord(f"not a {kind.name}") from None


def make_record(revision: int, entity: bytes) -> bytes:
    """The record for entity bytes that were last changed at `revision`."""
    return record_head(revision) + entity


def record_head(revision: int) -> bytes:
    """The first bytes of a record, before its entity."""
    return b"\x82" + unsigned(revision)


def holds(record: bytes, entity: bytes) -> bool:
    """Whether this is the record of these entity bytes, as of any revision."""
    return len(record) - len(entity) == 2 + INTEGER_BYTES.get(record[1], 0) and record.endswith(entity)


def record_revision(record: bytes | memoryview) -> int:
    """The revision of a record, from its first bytes alone. Raises MalformedRecord."""
    if len(record) < 2 or record[0] != 0x82:
        _refuse_record()
    head = record[1]
    if head < 0x18:
        return head
    size = INTEGER_BYTES.get(head)
    if size is None or len(record) < 2 + size:
        _refuse_record()
    return int.from_bytes(record[2 : 2 + size], "big")


def _refuse_record() -> NoReturn:
    raise MalformedRecord("not a record")


# ------------------------------------------------------------------------------- index keys


@cache  # bounded: one entry a kind
def index_keys(kind: Kind[Any]) -> tuple[tuple[Index, KeysOf], ...]:
    """Each index of the kind, with the function that takes its keys from the first `indexed_width` items of an entity.

    The function never raises, with any array: a value that is not a text of 1 to 511 bytes is not indexed.
    """
    return tuple((index, _keys_of(index, index_position(kind, index))) for index in kind.indexes)


def index_position(kind: Kind[Any], index: Index) -> int:
    """The position of the indexed field in an entity's array."""
    return field_position(kind, index.field)


def field_position(kind: Kind[Any], name: str) -> int:
    """The position of a field in an entity's array."""
    return [field.name for field in fields_of(kind.entity)].index(name)


@cache  # bounded: one entry a kind
def indexed_width(kind: Kind[Any]) -> int:
    """The number of items of an entity's array up to the last indexed one; 0 if the kind has no index."""
    return max((index_position(kind, index) + 1 for index in kind.indexes), default=0)


INDEXED_WIDTHS: Final[Mapping[int, int]] = {kind.number: indexed_width(kind) for kind in KINDS if kind.indexes}
"""The indexed width by kind number, for the kinds that have indexes."""


def _keys_of(index: Index, position: int) -> KeysOf:
    key = folded_key if index.folded else exact_key

    def one(array: Sequence[object]) -> tuple[bytes, ...]:
        value = array[position] if len(array) > position else None
        found = key(value) if type(value) is str else b""
        return (found,) if found else ()

    def many(array: Sequence[object]) -> tuple[bytes, ...]:
        values = array[position] if len(array) > position else None
        # `leading_items` makes lists, and `decode_record` tuples.
        if type(values) is not list and type(values) is not tuple:
            return ()
        found = dict.fromkeys(key(value) for value in values if type(value) is str)
        found.pop(b"", None)
        return tuple(found)

    return many if index.many else one


def exact_key(value: str) -> bytes:
    """The key of a value in an index; empty if the value cannot be indexed."""
    try:
        key = value.encode()
    except UnicodeEncodeError:  # a lone surrogate: a caller can pass one, but none is ever stored
        return b""
    return key if len(key) <= ID_MAX_BYTES else b""


def folded_key(value: str) -> bytes:
    """The same as `exact_key`, with ASCII letters in lower case."""
    return exact_key(value).lower()
