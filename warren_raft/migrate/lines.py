"""From a record of an import to the operation that stores it, quickly for a record in the usual form.

The form of a record, and every message about a bad one, is in records.py. Here the entity is made without a path for
each value, and its encoder is its only check: a third of the time.
Invariant: the quick way only accepts. Each record gives the same operation, or the same error, as `parse_line` or
`parse_stored`, and `put_operation`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

from warren_raft.errors import InvalidEntity
from warren_raft.migrate.records import BUCKETS, GO, ZERO_TIME, parse_line, parse_stored
from warren_raft.model.forms import Form, FormKind, fields_of
from warren_raft.model.validation import Refused
from warren_raft.store.command import Operation
from warren_raft.store.encoding import NOT_PLAIN
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import BY_NAME, Kind

_Read = Callable[[Any], Any]


def _refuse(name: str) -> Any:
    raise ValueError(name)


_parse: Final = json.JSONDecoder(parse_constant=_refuse).decode  # json.loads would make a decoder for each line
_FIELDS: Final = {"bucket", "key", "value"}
_UNUSUAL: Final = (*NOT_PLAIN, AttributeError, OverflowError, RecursionError, Refused, InvalidEntity)


def operation_of(text: str) -> Operation:
    """The operation that stores the record of one line. Raises InvalidEntity, like `parse_line` and `put_operation`."""
    operation = _usual_line(text)
    if operation is not None:
        return operation
    kind, _, entity = parse_line(text)
    return put_operation(BY_NAME[kind], entity, None)


def operation_of_stored(bucket: str, key: bytes, value: bytes) -> Operation:
    """The operation that stores a record of Warren's own database. Raises InvalidEntity, like `parse_stored` and
    `put_operation`."""
    operation = _usual_stored(bucket, key, value)
    if operation is not None:
        return operation
    kind, _, entity = parse_stored(bucket, key, value)
    return put_operation(BY_NAME[kind], entity, None)


def _usual_line(text: str) -> Operation | None:
    """The operation of a line in the usual form; None for any other line, which may be good too."""
    try:
        line = _parse(text)
        return _usual(BUCKETS[line["bucket"]], line["key"], line["value"]) if line.keys() == _FIELDS else None
    except _UNUSUAL:
        return None


def _usual_stored(bucket: str, key: bytes, value: bytes) -> Operation | None:
    """The same for a record of Warren's own database."""
    try:
        return _usual(BUCKETS[bucket], key.decode(), _parse(value.decode()))
    except _UNUSUAL:
        return None


def _usual(kind: Kind[Any], key: object, value: object) -> Operation | None:
    """The operation of a record in the usual form; None, or an error of `_UNUSUAL`, for any other record, which may be
    good too."""
    cls: Any = kind.entity
    if cls is None:
        return None
    entity = _reader_of(cls)(value)
    return put_operation(kind, entity, None) if entity.id == key else None


@cache  # bounded: one entry a class of model/entities.py
def _reader_of(cls: Any) -> _Read:
    """From a parsed JSON object to an instance of `cls`, whose values are not checked yet. Raises KeyError for an
    unknown field, and the errors of the readers of values."""
    fields = fields_of(cls)
    readers = {GO.name(field.name): (field.name, _reader_of_form(field.form)) for field in fields}

    def read(value: Any) -> Any:
        found = {}
        for key, given in value.items():
            name, reader = readers[key]
            if given is not None:  # null means the default
                found[name] = given if reader is None else reader(given)
        return cls(**found)

    return read


def _reader_of_form(form: Form) -> _Read | None:
    """The reader of a value; None if the encoder takes the value as it is in JSON."""
    if form.kind is FormKind.STRUCT:
        return _reader_of(form.cls)
    if form.kind is FormKind.SEQUENCE:
        item = _reader_of_form(form.item)
        return None if item is None else _reader_of_items(item)
    if form.kind is FormKind.NUMBER:
        return _number
    read = GO.read.get(form.kind)
    if read is None:
        return None
    if form.kind is FormKind.TIME:
        return lambda value: None if value == ZERO_TIME else read(value, "")
    return lambda value: read(value, "")


def _reader_of_items(item: _Read) -> _Read:
    def read(values: object) -> list[Any]:
        if type(values) is not list:
            raise TypeError
        return [item(value) for value in values]

    return read


def _number(value: object) -> float:
    """Go writes 4 for 4.0."""
    return float(value) if type(value) is int else cast("float", value)
