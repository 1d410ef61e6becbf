"""Decoding of records and entity bytes, with converters that are built once from the forms of the fields.

An entity is the array of its fields in order of declaration, without `revision` (encoding.py makes it). A record is
[revision, entity]. Both are CBOR.
Invariant: fields are only appended, so a shorter array is an older entity and a longer array a newer one. Both are
read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import make_dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, cast

from cbor2 import dumps

from warren_raft.model.forms import EMPTY_MAP, EntityField, Form, FormKind, FrozenMap, fields_of
from warren_raft.store.encoding import encoder_of, struct_encoder
from warren_raft.store.leading import INTEGER_BYTES
from warren_raft.store.tables import (
    ID_MAX_BYTES,
    KINDS,
    Index,
    Kind,
)
from warren_raft.support.strict_cbor import BadCbor, decode_record

E = TypeVar("E")
KeysOf: TypeAlias = Callable[[list[Any]], tuple[bytes, ...]]
"""From the array of an entity to the entity's keys in one index."""

_Convert: TypeAlias = Callable[..., Any]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class MalformedRecord(ValueError):
    """The bytes are not a record, or not an entity of the kind."""


# ------------------------------------------------------------------------------- values that CBOR does not have


@lru_cache(maxsize=1024)  # few different durations are in use, and a look-up takes a fifth of the time of making one
def _duration(microseconds: int) -> timedelta:
    return timedelta(0, 0, microseconds)


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(0, 0, microseconds)


def _frozen_map(mapping: dict[str, str]) -> FrozenMap:
    return FrozenMap(mapping) if mapping else EMPTY_MAP


# ------------------------------------------------------------------------------- forms to converters

_PLAIN_DECODERS: Final[dict[FormKind, _Convert]] = {
    FormKind.TIME: _time,
    FormKind.DURATION: _duration,
    FormKind.MAP: _frozen_map,
}


class _Members(dict[str, str]):
    """From the text of each member of an enumeration to the member. Unknown text stays text: a newer manager may know
    it."""

    def __missing__(self, text: str) -> str:
        return text


def _decoder_of(form: Form) -> _Convert | None:
    """The converter from CBOR's value to a field's value; None if both are the same. The converter never gets null."""
    if form.kind is FormKind.SEQUENCE and form.item is not None:
        return _decoder_of_sequence(_decoder_of(form.item))
    if form.kind is FormKind.STRUCT:
        return _struct_decoder(form.cls)
    if form.kind is FormKind.CHOICE:
        return _Members({str(member): member for member in form.cls}).__getitem__
    return _PLAIN_DECODERS.get(form.kind)


def _decoder_of_sequence(item: _Convert | None) -> _Convert:
    return tuple if item is None else lambda values: tuple([item(value) for value in values])


def _conversions(fields: tuple[EntityField, ...]) -> tuple[tuple[int, _Convert], ...]:
    """(position, converter) of the fields that need one."""
    found = ((position, _decoder_of(field.form)) for position, field in enumerate(fields))
    return tuple((position, convert) for position, convert in found if convert is not None)


@cache  # bounded: one entry a class of model/entities.py
def _struct_decoder(cls: Any) -> _Convert:
    """From a CBOR array (a list, which is changed) to an instance; the revision of an entity is the second argument."""
    fields = fields_of(cls)
    width, conversions, fit, draft = len(fields), _conversions(fields), _fitter(fields), _draft_of(cls)

    def decode_struct(array: Any, *revision: int) -> Any:
        if type(array) is not list or len(array) != width:
            array = fit(array)
        for position, convert in conversions:
            value = array[position]
            if value is not None:
                array[position] = convert(value)
        instance = draft(*array, *revision)
        instance.__class__ = cls
        return instance

    return decode_struct


def _draft_of(cls: Any) -> Callable[..., Any]:
    """A class with the same slots as `cls` that is not frozen. An instance is filled first and then becomes a `cls`.

    A frozen dataclass sets each field through object.__setattr__, so that making a Container takes 4 µs. This way takes
    0.5 µs. Python allows the change of class because both classes have the same slots, and raises if they differ.
    """
    names = [field.name for field in fields_of(cls)]
    if "revision" in cls.__slots__:
        names.append("revision")
    draft = make_dataclass(f"_Draft{cls.__name__}", names, slots=True, eq=False, repr=False, match_args=False)
    return cast("Callable[..., Any]", draft)


def _fitter(fields: tuple[EntityField, ...]) -> Callable[[Any], list[Any]]:
    """Cut off the fields that a newer manager appended; add defaults for the fields that an older manager did not
    know."""
    width = len(fields)
    required = sum(field.required for field in fields)  # they come first
    defaults = [None if field.required else decode_record(encoder_of(field.form)(field.default)) for field in fields]

    def fit(array: Any) -> list[Any]:
        if type(array) is not list or len(array) < required:
            raise MalformedRecord("not the array of an entity")
        return array[:width] + defaults[len(array) :]

    return fit


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
    return _build(kind, array, revision)


def decode_entity(kind: Kind[E], entity: bytes | memoryview, revision: int) -> E:
    """The entity of entity bytes, as of `revision`. Raises MalformedRecord."""
    try:
        array = decode_record(entity)
    except BadCbor:
        raise MalformedRecord("not an entity") from None
    return _build(kind, array, revision)


def _build(kind: Kind[E], array: Any, revision: Any) -> E:
    if kind.entity is None:
        if type(array) is not list or len(array) < 1 or type(array[0]) is not bytes:
            raise MalformedRecord(f"not a {kind.name}")
        return cast("E", array[0])
    cls: Any = kind.entity
    try:
        return cast("E", _struct_decoder(cls)(array, revision))
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise MalformedRecord(f"not a {kind.name}") from None


def make_record(revision: int, entity: bytes) -> bytes:
    """The record for entity bytes that were last changed at `revision`."""
    return b"\x82" + dumps(revision) + entity


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
    if kind.entity is None:
        return ()
    names = [field.name for field in fields_of(kind.entity)]
    return tuple((index, _keys_of(index, names.index(index.field))) for index in kind.indexes)


@cache  # bounded: one entry a kind
def indexed_width(kind: Kind[Any]) -> int:
    """The number of items of an entity's array up to the last indexed one; 0 if the kind has no index."""
    names = [field.name for field in fields_of(kind.entity)] if kind.indexes else []
    return max((names.index(index.field) + 1 for index in kind.indexes), default=0)


INDEXED_WIDTHS: Final[Mapping[int, int]] = {kind.number: indexed_width(kind) for kind in KINDS if kind.indexes}
"""The indexed width by kind number, for the kinds that have indexes."""


def _keys_of(index: Index, position: int) -> KeysOf:
    key = folded_key if index.folded else exact_key

    def one(array: list[Any]) -> tuple[bytes, ...]:
        value = array[position] if len(array) > position else None
        found = key(value) if type(value) is str else b""
        return (found,) if found else ()

    def many(array: list[Any]) -> tuple[bytes, ...]:
        values = array[position] if len(array) > position else None
        if type(values) is not list:
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
