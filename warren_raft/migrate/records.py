"""Warren's own form of a record: the bucket, the key, and the value as Go's encoding/json writes it.

The source of records (a file of lines, a Go database) and their use are the caller's matter.
Invariant: parsing a formatted record gives the same kind and the same entity, or the same bytes for the CA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, TypeAlias

from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import Entity, validate
from warren_raft.model.forms import FormKind
from warren_raft.model.json_form import (
    Notation,
    format_time,
    read_base64,
    read_time,
    write_base64,
    wrong_json,
)
from warren_raft.model.validation import Refused
from warren_raft.store import tables
from warren_raft.support.wording import did_you_mean

Record: TypeAlias = tuple[str, str, Entity | bytes]
"""The name of a kind, a key, and the value under it: an entity, or the bytes of the CA."""

OLD_CONTAINERS: Final = "tasks"
"""Warren's name for the bucket of the containers in its first releases."""
BUCKETS: Final[Mapping[str, tables.Kind[Any]]] = {**tables.BY_BUCKET, OLD_CONTAINERS: tables.CONTAINER}
_KINDS: Final[Mapping[str, tables.Kind[Any]]] = {kind.name: kind for kind in tables.KINDS}

_LINE_FIELDS: Final = ("bucket", "key", "value")


# ---- Go's names and notations.

_GO_WORDS: Final[Mapping[str, str]] = {
    "cpu": "CPU",
    "id": "ID",
    "ip": "IP",
    "ips": "IPs",
    "pem": "PEM",
    "tls": "TLS",
}
"""The words that Go does not simply capitalise. (So service_id is ServiceID, and cert_pem is CertPEM.)"""

ZERO_TIME: Final = "0001-01-01T00:00:00Z"
"""Go's text for a time that is not set."""

_MICROSECOND: Final = timedelta(microseconds=1)
_MICROSECOND_NANOSECONDS: Final = 1_000


@cache  # bounded: one entry a name of a field
def go_name(name: str) -> str:
    """Go's name of a field of ours: allowed_ips is AllowedIPs."""
    return "".join(_GO_WORDS.get(word, word.capitalize()) for word in name.split("_"))


def _go_path(path: str) -> str:
    """`rules[0].path_type` with Go's names, for a reader of Warren's data."""
    steps = (step.partition("[") for step in path.split("."))
    return ".".join(go_name(name) + bracket + rest for name, bracket, rest in steps)


def _write_time(value: datetime | None) -> str:
    return ZERO_TIME if value is None else format_time(value)


def _write_duration(value: timedelta) -> int:
    return value // _MICROSECOND * _MICROSECOND_NANOSECONDS


def _read_duration(value: object, path: str) -> timedelta:
    if type(value) is not int:
        raise wrong_json(path, value, "a whole number of nanoseconds")
    microseconds = abs(value) // _MICROSECOND_NANOSECONDS  # the rest is dropped, as with the fractions of times
    try:
        return timedelta(microseconds=microseconds if value >= 0 else -microseconds)
    except OverflowError:
        raise Refused(path, "is more nanoseconds than a duration can hold") from None


def _write_number(value: float) -> int | float:
    """Go writes 4 for 4.0. An integer has no negative zero: that stays -0.0, which Go reads."""
    negative_zero = value == 0 and math.copysign(1, value) < 0
    return int(value) if value.is_integer() and abs(value) < 2**53 and not negative_zero else value


def _write_map(value: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(value.items()))


GO: Final = Notation(
    name=go_name,
    write={
        FormKind.CHOICE: str,
        FormKind.NUMBER: _write_number,
        FormKind.BYTES: write_base64,
        FormKind.TIME: _write_time,
        FormKind.DURATION: _write_duration,
        FormKind.MAP: _write_map,
    },
    read={
        FormKind.BYTES: read_base64,
        FormKind.TIME: read_time,
        FormKind.DURATION: _read_duration,
    },
    null_is_unset=True,
)

_GO_ESCAPES: Final = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
"""Go escapes these inside strings, which is the only place where JSON can hold them."""

_LINE_ESCAPES: Final = str.maketrans({"\u0085": "\\u0085"})
"""In addition to Go's: the one other character that ends a line by Unicode's rules."""


def _go_json(value: object) -> str:
    """Compact JSON as Go's json.Marshal writes it; objects keep their order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_GO_ESCAPES)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_json(text: str) -> Any:
    """Parsed JSON. Raises ValueError, also for input that Python accepts and Go does not."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


# ---- The CA: bytes to us, a JSON object to Warren.


def _ca_to_json(data: bytes) -> Any:
    """The JSON object in the bytes, if the very same bytes can be made from it; else base64 text."""
    try:
        value = _read_json(data.decode())
        exact = isinstance(value, dict) and _ca_from_json(value) == data
    except (ValueError, Refused):  # not UTF-8, not JSON, or not possible in JSON
        exact = False
    return value if exact else write_base64(data)


def _ca_from_json(value: object) -> bytes:
    if isinstance(value, str):
        return read_base64(value, "")
    if not isinstance(value, dict):
        raise wrong_json("", value, "base64 text or a JSON object")
    try:
        return _go_json(value).encode()
    except (UnicodeEncodeError, RecursionError):
        raise Refused("", "is nested too deeply, or has text without a UTF-8 form") from None


# ---- Records.


def _kind_of(bucket: object) -> tables.Kind[Any]:
    kind = BUCKETS.get(bucket) if isinstance(bucket, str) else None
    if kind is None:
        meant = did_you_mean(bucket, tables.BY_BUCKET) if isinstance(bucket, str) else ""
        raise InvalidEntity("record", f"{bucket!r:.60} is not one of Warren's buckets{meant}", field="bucket")
    return kind


def _entity_from_json(kind: tables.Kind[Any], key: str, value: object) -> Any:
    entity = GO.struct_from_json(kind.entity, value)
    if entity.id != key:
        raise Refused("ID", "is not the key of the record")
    try:
        return validate(entity)
    except InvalidEntity as error:
        raise Refused(_go_path(error.field or ""), error.reason) from None


def parse_record(bucket: object, key: object, value: object) -> Record:
    """The record for a bucket's name, a key and a parsed JSON value.

    Raises InvalidEntity for an unknown bucket, a key that is not the entity's ID, a field that Warren does not have,
    and everything that `validate` refuses. The field's path is in Go's names: `Rules[0].Paths[1].PathType`.
    """
    kind = _kind_of(bucket)
    if not isinstance(key, str):
        raise InvalidEntity(kind.name, f"the key of a record {wrong_json('', key, 'text').reason}")
    try:
        if kind is not tables.CA:
            return kind.name, key, _entity_from_json(kind, key, value)
        if key != tables.CA_ID:
            raise Refused("", f"the key of the only record of this kind is {tables.CA_ID!r}")
        return kind.name, key, _ca_from_json(value)
    except Refused as refused:
        raise InvalidEntity(kind.name, refused.reason, id=key, field=refused.path or None) from None


def parse_line(text: str) -> Record:
    """The record of one line, `{"bucket": "nodes", "key": "...", "value": {...Go's field names...}}`.

    Times are cut to the microsecond; null and a missing field mean the default. Raises InvalidEntity if the line is not
    one whole JSON object of these three fields, and for the same reasons as `parse_record`.
    """
    try:
        line = _read_json(text)
    except ValueError as error:
        reason = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise InvalidEntity("record", f"the line is not one whole JSON object: {reason}") from None
    if not isinstance(line, dict) or sorted(line) != sorted(_LINE_FIELDS):
        has = f"it has {', '.join(map(str, line))[:200] or 'no field'}" if isinstance(line, dict) else "it is no object"
        fields = ", ".join(_LINE_FIELDS)
        raise InvalidEntity("record", f"the line is not a JSON object of just {fields}, as `export` writes it: {has}")
    return parse_record(line["bucket"], line["key"], line["value"])


def parse_stored(bucket: str, key: bytes, value: bytes) -> Record:
    """The record under a key of a bucket of Warren's own database: values are JSON, and the CA is plain bytes.

    Raises InvalidEntity like `parse_record`, and if the key is not UTF-8 or the value is not JSON.
    """
    kind = _kind_of(bucket)
    try:
        name = key.decode()
        parsed = write_base64(value) if kind is tables.CA else _read_json(value.decode())
    except ValueError as error:
        raise InvalidEntity(kind.name, f"the record {key!r:.80} is not UTF-8 and JSON: {error}") from None
    return parse_record(bucket, name, parsed)


def format_stored(kind_name: str, entity: Entity | bytes) -> bytes:
    """The value of a record in Warren's own database: JSON as `format_line` has it, and the plain bytes of the CA.

    Raises InvalidEntity if the kind does not exist or the entity is not of this kind.
    """
    _require_kind(kind_name, entity)
    return entity if isinstance(entity, bytes) else _go_json(GO.fields_to_json(entity)).encode()


def _require_kind(kind_name: str, entity: object) -> tables.Kind[Any]:
    kind = _KINDS.get(kind_name)
    if kind is None:
        raise InvalidEntity("record", f"{kind_name!r:.60} is not the name of a kind")
    expected = kind.entity or bytes
    if type(entity) is not expected:
        raise InvalidEntity(kind.name, f"must be {expected.__name__}, not {type(entity).__name__}")
    return kind


def format_line(kind_name: str, entity: Entity | bytes) -> str:
    """A record as one line of JSON, without the end of the line.

    Fields are in Go's order. Times are in UTC with six digits; a time that is not set is Go's zero time. An empty
    sequence is [], an empty mapping {}. Only structures that are not set are null. The CA is the JSON object in its
    bytes if the object gives the very same bytes back, else base64 text.

    Raises InvalidEntity if the kind does not exist or the entity is not of this kind.
    """
    kind = _require_kind(kind_name, entity)
    if isinstance(entity, bytes):
        key, value = tables.CA_ID, _ca_to_json(entity)
    else:
        key, value = entity.id, GO.fields_to_json(entity)
    line = dict(zip(_LINE_FIELDS, (kind.bucket, key, value), strict=True))
    return _go_json(line).translate(_LINE_ESCAPES)


def same_record(one: str, other: str) -> bool:
    """Whether two lines have the same meaning: times to the microsecond in any zone, null equals empty, 4 equals 4.0.

    Raises InvalidEntity like `parse_line`.
    """
    return parse_line(one) == parse_line(other)
