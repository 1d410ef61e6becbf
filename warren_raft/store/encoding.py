"""Entity bytes: the CBOR array of an entity's fields, checked and written in one pass by one function for each class.

Each function is compiled once from the table of fields, as dataclasses compile `__init__`, because it is part of every
write: with a closure that walks the table, `create_container` takes 1.3 to 1.5 times as long until its operation is
made. The fault of a refused value is described by `validate`, not here.
Invariant: the bytes equal cbor2's bytes for the normalised entity. A value that `validate` refuses is never encoded.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from struct import Struct
from typing import Any, Final, TypeAlias, cast

from warren_raft.model.forms import (
    GO_ZERO_TIME,
    INTEGER_MAX,
    INTEGER_MIN,
    KEY_MAX_BYTES,
    EntityField,
    Form,
    FormKind,
    FrozenMap,
    fields_of,
)

Encode: TypeAlias = Callable[[Any], bytes]

NOT_PLAIN: Final = (TypeError, ValueError, LookupError)
"""An encoder raises one of these for a value that cannot be stored, or only after `validate` has converted it."""

# ------------------------------------------------------------------------------- CBOR (RFC 8949, 3)

_UNSIGNED: Final = 0x00
_NEGATIVE: Final = 0x20
_BYTES: Final = 0x40
_TEXT: Final = 0x60
_ARRAY: Final = 0x80
_MAP: Final = 0xA0
_FALSE: Final = b"\xf4"
_TRUE: Final = b"\xf5"
_NULL: Final = b"\xf6"
_ZERO: Final = b"\x00"
_EMPTY_ARRAY: Final = b"\x80"
_EMPTY_MAP: Final = b"\xa0"

_FLOAT: Final = Struct(">Bd").pack
_FLOAT_64: Final = 0xFB
_HEAD_8: Final = Struct(">BB").pack
_HEAD_16: Final = Struct(">BH").pack
_HEAD_32: Final = Struct(">BI").pack
_HEAD_64: Final = Struct(">BQ").pack
_UINT32_MAX: Final = 0xFFFF_FFFF


def _head(major: int, number: int) -> bytes:
    """The type of an item and its number (a value or a length), in the fewest bytes."""
    if number < 24:
        return bytes((major | number,))
    if number <= 0xFF:
        return _HEAD_8(major | 24, number)
    if number <= 0xFFFF:
        return _HEAD_16(major | 25, number)
    if number <= _UINT32_MAX:
        return _HEAD_32(major | 26, number)
    return _HEAD_64(major | 27, number)


def unsigned(number: int) -> bytes:
    """The bytes of an integer, 0 to 2^64-1."""
    return _head(_UNSIGNED, number)


def byte_string(data: bytes) -> bytes:
    """The bytes of a byte string."""
    return _head(_BYTES, len(data)) + data


class _Heads(dict[int, bytes]):
    """The heads of one type. The heads of small numbers are stored, the others are made when they are needed."""

    def __init__(self, major: int) -> None:
        self._major = major
        super().__init__((number, _head(major, number)) for number in range(256))

    def __missing__(self, number: int) -> bytes:
        return _head(self._major, number)


_TEXT_HEADS: Final = _Heads(_TEXT)
_ARRAY_HEADS: Final = _Heads(_ARRAY)
_UNSIGNED_HEADS: Final = _Heads(_UNSIGNED)

# ------------------------------------------------------------------------------- values

_utf8: Final = str.encode
"""Raises TypeError for a value that is not a str, UnicodeEncodeError for a lone surrogate. A subclass of str is
text."""


def text(value: Any) -> bytes:
    """The bytes of a text."""
    data = _utf8(value)
    return _TEXT_HEADS[len(data)] + data


def _key(value: Any) -> bytes:
    """The bytes of a text that is indexed."""
    data = _utf8(value)
    if len(data) > KEY_MAX_BYTES:
        raise ValueError
    return _TEXT_HEADS[len(data)] + data


def _id(value: object) -> bytes:
    """The bytes of an id. A subclass of str is refused, because the id itself is also passed on beside the bytes."""
    if type(value) is not str or not value:
        raise TypeError
    return _key(value)


def _integer(value: int) -> bytes:
    """The bytes of an integer of 64 bits."""
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise ValueError
    return _UNSIGNED_HEADS[value] if value >= 0 else _head(_NEGATIVE, -1 - value)


def _integer_encoder(low: int, high: int) -> Encode:
    def integer(value: object) -> bytes:
        if type(value) is not int:
            raise TypeError
        if not low <= value <= high:
            raise ValueError
        return _UNSIGNED_HEADS[value] if value >= 0 else _head(_NEGATIVE, -1 - value)

    return integer


def _number_encoder(low: float, high: float) -> Encode:
    def number(value: object) -> bytes:
        if type(value) is not float or not math.isfinite(value):
            raise TypeError
        if not low <= value <= high:
            raise ValueError
        return _FLOAT(_FLOAT_64, value)

    return number


def _flag(value: object) -> bytes:
    if value is False:
        return _FALSE
    if value is True:
        return _TRUE
    raise TypeError


def _bytes(value: object) -> bytes:
    if type(value) is not bytes:
        raise TypeError
    return _head(_BYTES, len(value)) + value


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_GO_ZERO: Final = (GO_ZERO_TIME - _EPOCH) // _MICROSECOND


def _time(value: object) -> bytes:
    """Microseconds since 1970; null for a time that is not set."""
    if value is None:
        return _NULL
    if type(value) is not datetime or value.tzinfo is not UTC:
        raise TypeError
    since = value - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if microseconds > _UINT32_MAX:  # nearly every time: all that are later than 01:11:35 on 1 January 1970
        return _HEAD_64(_UNSIGNED | 27, microseconds)
    return _NULL if microseconds == _GO_ZERO else _integer(microseconds)


def _duration_encoder(low: timedelta, high: timedelta) -> Encode:
    """An encoder of durations, in microseconds."""
    integer = _integer_encoder(low // _MICROSECOND, high // _MICROSECOND)

    def duration(value: object) -> bytes:
        if type(value) is not timedelta:
            raise TypeError
        if not value:
            return _ZERO
        return integer((value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds)

    return duration


def _map(mapping: object) -> bytes:
    """In the order of the keys, so that equal maps have equal bytes."""
    if type(mapping) is not FrozenMap and type(mapping) is not dict:
        raise TypeError
    if not mapping:
        return _EMPTY_MAP
    items = sorted(mapping.items())
    return _head(_MAP, len(items)) + b"".join([text(key) + text(value) for key, value in items])


@cache  # bounded: one entry an enumeration
def _choices(enum: Any) -> dict[str, bytes]:
    return {"": text(""), **{str(member): text(member) for member in enum}}


def _choice_encoder(enum: Any) -> Encode:
    known = _choices(enum)

    def choice(value: Any) -> bytes:
        if type(value) is not str and type(value) is not enum:
            raise TypeError
        return known[value]

    return choice


def _sequence_encoder(item: Encode) -> Encode:
    def sequence(value: object) -> bytes:
        if type(value) is not tuple:
            if type(value) is not list:
                raise TypeError
            value = tuple(value)  # so that another thread cannot make it longer than the head says
        if not value:
            return _EMPTY_ARRAY
        parts = [_ARRAY_HEADS[len(value)]]
        for one in value:
            parts.append(item(one))
        return b"".join(parts)

    return sequence


def _optional(encode: Encode) -> Encode:
    return lambda value: _NULL if value is None else encode(value)


_PLAIN: Final[dict[FormKind, Encode]] = {
    FormKind.TEXT: text,
    FormKind.FLAG: _flag,
    FormKind.BYTES: _bytes,
    FormKind.TIME: _time,
    FormKind.MAP: _map,
}
_RANGED: Final[dict[FormKind, Callable[[Any, Any], Encode]]] = {
    FormKind.INTEGER: _integer_encoder,
    FormKind.NUMBER: _number_encoder,
    FormKind.DURATION: _duration_encoder,
}


def encoder_of(form: Form, *, indexed: bool = False) -> Encode:
    """The function that makes the bytes of a value of this form."""
    if form.kind is FormKind.SEQUENCE:
        return _sequence_encoder(_key if indexed else encoder_of(form.item))
    if form.kind is FormKind.CHOICE:
        return _choice_encoder(form.cls)
    if form.kind is FormKind.STRUCT:
        return _optional(struct_encoder(form.cls)) if form.optional else struct_encoder(form.cls)
    if form.kind in _RANGED:
        return _RANGED[form.kind](form.low, form.high)
    return _key if indexed else _PLAIN[form.kind]


# ------------------------------------------------------------------------------- structures

_SOURCE: Final = """\
def encode(self):
    if type(self) is not cls:
        raise TypeError
    return join((
        {head!r},
{items}
    ))
"""
_ITEM: Final = "encode_{name}(self.{name}),"
_OPTIONAL_ITEM: Final = "null if (value := self.{name}) is None else encode_{name}(value),"
_KEY_ITEM: Final = "key_heads[len(value := utf8(self.{name}))], value,"
_ITEMS: Final[dict[FormKind, str]] = {
    FormKind.TEXT: "text_heads[len(value := utf8(self.{name}))], value,",
    FormKind.CHOICE: "choices_{name}[value] if (kind := type(value := self.{name})) is str or kind is choice_{name}"
    " else encode_{name}(value),",
    FormKind.INTEGER: "unsigned[value] if type(value := self.{name}) is int and {low} <= value <= {high}"
    " else encode_{name}(value),",
    FormKind.FLAG: "true if (value := self.{name}) is True else false if value is False else encode_{name}(value),",
    FormKind.SEQUENCE: "empty_array if (value := self.{name}) is no_items else encode_{name}(value),",
}
"""The bytes of the values that most fields have, the same as those of `encoder_of`, without a call: an entity has up to
fifty values, and a call costs more than its value. `encoder_of` encodes the other values, or refuses them."""
_NAMES: Final[dict[str, Any]] = {
    "join": b"".join,
    "utf8": _utf8,
    "text_heads": _TEXT_HEADS,
    "key_heads": {size: _TEXT_HEADS[size] for size in range(KEY_MAX_BYTES + 1)},  # LookupError for a longer text
    "unsigned": _UNSIGNED_HEADS,
    "true": _TRUE,
    "false": _FALSE,
    "null": _NULL,
    "no_items": (),
    "empty_array": _EMPTY_ARRAY,
}
"""The names in the source of every encoder."""


def _item(field: EntityField) -> str:
    """The source of a field's bytes."""
    form = field.form
    if field.required:
        template = _ITEM
    elif form.optional:
        template = _OPTIONAL_ITEM
    elif field.indexed and form.kind is FormKind.TEXT:
        template = _KEY_ITEM
    else:
        template = _ITEMS.get(form.kind, _ITEM)
    low = max(form.low, 0) if form.kind is FormKind.INTEGER else 0
    return template.format(name=field.name, low=low, high=form.high)


@cache  # bounded: one entry a class of model/entities.py
def struct_encoder(cls: Any) -> Encode:
    """The function that makes the bytes of an instance of `cls`. Tracebacks show its source."""
    fields = fields_of(cls)
    items = "\n".join("        " + _item(field) for field in fields)
    source = _SOURCE.format(head=_head(_ARRAY, len(fields)), items=items)
    names: dict[str, Any] = {**_NAMES, "cls": cls}
    for field in fields:
        form, name = field.form, field.name
        if form.kind is FormKind.STRUCT:
            names[f"encode_{name}"] = struct_encoder(form.cls)  # the source itself encodes None
        else:
            names[f"encode_{name}"] = _id if field.required else encoder_of(form, indexed=field.indexed)
        if form.kind is FormKind.CHOICE:
            names[f"choice_{name}"], names[f"choices_{name}"] = form.cls, _choices(form.cls)
    return compiled("encode", source, f"<encoder of {cls.__module__}.{cls.__qualname__}>", names)


def compiled(name: str, source: str, filename: str, names: dict[str, object]) -> Callable[..., Any]:
    """The function `name` of a source that was made only from the names of our own fields. `names`: its globals.

    Tracebacks show the source, under `filename`.
    """
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), names)  # noqa: S102 - see above
    return cast("Callable[..., Any]", names[name])
