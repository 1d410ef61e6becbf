"""Entities from records in the plainest way, to compare the product's decoders with: a walk over the table of fields,
lists as lists, and nothing that one record shares with another.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2

from warren_raft.model.forms import EMPTY_MAP, Form, FormKind, FrozenMap, fields_of
from warren_raft.store.encoding import encoder_of

ERRORS = (TypeError, ValueError, AttributeError, OverflowError, cbor2.CBORDecodeError)
"""An error of one of these types means that the bytes are no record of the kind."""


def plain_decode(cls: Any, record: bytes) -> Any:
    """The entity of a record. Raises one of ERRORS."""
    revision, array = cbor2.loads(record, max_depth=16, allow_indefinite=False, strict_hashable_types=True)
    return _struct(cls, array, revision=revision)


def _struct(cls: Any, array: Any, **revision: Any) -> Any:
    fields = fields_of(cls)
    if type(array) is not list or len(array) < sum(field.required for field in fields):
        raise ValueError
    missing = fields[len(array) :]
    array = [*array[: len(fields)], *(cbor2.loads(encoder_of(field.form)(field.default)) for field in missing)]
    pairs = zip(fields, array, strict=True)
    values = {field.name: None if value is None else _value(field.form, value) for field, value in pairs}
    return cls(**values, **revision)


def _value(form: Form, value: Any) -> Any:
    if form.kind is FormKind.SEQUENCE:
        return tuple([_value(form.item, item) for item in value])
    if form.kind is FormKind.STRUCT:
        return _struct(form.cls, value)
    if form.kind is FormKind.CHOICE:
        return {str(member): member for member in form.cls}.get(value, value)
    if form.kind is FormKind.TIME:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
    if form.kind is FormKind.DURATION:
        return timedelta(microseconds=value)
    if form.kind is FormKind.MAP:
        if value and type(value) is not dict:
            raise TypeError
        return FrozenMap(value) if value else EMPTY_MAP
    return value
