"""Entities as JSON for programs, the command line and scripts: snake_case names, times as RFC 3339.

The walk over an entity is here, once for every notation; Warren's own notation is a table in migrate/records.py.
Invariant: `from_json(type(e), to_json(e)) == e` for every valid entity; `revision` is written, but never read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from warren_raft.errors import InvalidEntity
from warren_raft.model.entities import Entity, EntityT, kind_name, validate
from warren_raft.model.forms import Form, FormKind, fields_of
from warren_raft.model.validation import KEY_SHOWN, Refused
from warren_raft.support.wording import did_you_mean

_MICROSECOND: Final = timedelta(microseconds=1)
_SECOND_MICROSECONDS: Final = 1_000_000


# ---- The types of JSON.

_NAMES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number with a decimal point",
    str: "text",
    list: "a list",
    dict: "an object",
}
_TYPES: Final[Mapping[FormKind, tuple[type, ...]]] = {
    FormKind.TEXT: (str,),
    FormKind.CHOICE: (str,),
    FormKind.INTEGER: (int,),
    FormKind.NUMBER: (float, int),
    FormKind.FLAG: (bool,),
    FormKind.MAP: (dict,),
}
"""The values without a notation of their own."""
_EXPECTED: Final[Mapping[FormKind, str]] = {
    FormKind.TEXT: "text",
    FormKind.CHOICE: "text",
    FormKind.INTEGER: "a whole number",
    FormKind.NUMBER: "a number",
    FormKind.FLAG: "true or false",
    FormKind.MAP: 'an object of texts, as {"name": "text"}',
}


def wrong_json(path: str, value: object, expected: str) -> Refused:
    """Names only the type, in the words of JSON, because the value may be a secret."""
    return Refused(path, f"must be {expected}, not {_NAMES.get(type(value), type(value).__name__)}")


def _require_type(value: Any, kind: FormKind, path: str) -> None:
    """Raises Refused for a value of another type. `validate` checks the values themselves, in the words of Python."""
    if type(value) not in _TYPES[kind]:
        is_str = isinstance(value, str) and str in _TYPES[kind]  # an enumeration's value, from a Python program
        is_map = isinstance(value, Mapping) and kind is FormKind.MAP
        if not is_str and not is_map:
            raise wrong_json(path, value, _EXPECTED[kind])
    if kind is FormKind.MAP:
        for name, text in value.items():
            if not isinstance(text, str):
                raise wrong_json(f"{path}[{str(name)[:KEY_SHOWN]!r}]", text, "text")


# ---- One value: times, durations, bytes.

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:Z|([+-]\d\d):([0-5]\d))", re.ASCII
)


def format_time(value: datetime) -> str:
    """An aware time as RFC 3339 in UTC, always with six digits of a second: 2025-10-09T08:53:20.123456Z."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> datetime:
    """The time of an RFC 3339 text, in UTC; digits beyond the microsecond are cut off.

    Raises ValueError for any other text and for a time outside the years 1 to 9999 of UTC.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("must be a time like 2025-10-09T08:53:20.123456Z (RFC 3339)")
    year, month, day, hour, minute, second, fraction, zone_hours, zone_minutes = match.groups()
    microsecond = int((fraction or "")[:6].ljust(6, "0"))
    local = datetime(  # raises ValueError itself for the 30th of February and the like
        int(year), int(month), int(day), int(hour), int(minute), int(second), microsecond, UTC
    )
    if zone_hours is None:
        return local
    sign = -1 if zone_hours[0] == "-" else 1
    offset = timedelta(hours=int(zone_hours[1:]), minutes=int(zone_minutes)) * sign
    try:
        return local.replace(tzinfo=timezone(offset)).astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 of UTC") from None


def write_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def read_base64(value: object, path: str) -> bytes:
    """The bytes of a text in standard base64. Raises Refused, which does not quote the text."""
    if not isinstance(value, str):
        raise wrong_json(path, value, "base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise Refused(path, "is not base64") from None


def _write_time(value: datetime | None) -> str | None:
    return None if value is None else format_time(value)


def read_time(value: object, path: str) -> datetime | None:
    """A time, or None for null. Raises Refused."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_json(path, value, "a time (RFC 3339 text)")
    try:
        return parse_time(value)
    except ValueError as error:
        raise Refused(path, str(error)) from None


def _write_duration(value: timedelta) -> int | float:
    """Seconds. (Up to 272 years a float can represent every microsecond.)"""
    seconds, microseconds = divmod(value // _MICROSECOND, _SECOND_MICROSECONDS)
    return value.total_seconds() if microseconds else seconds


def _read_duration(value: object, path: str) -> timedelta:
    if type(value) is not int and type(value) is not float:
        raise wrong_json(path, value, "a number of seconds")
    try:
        return timedelta(seconds=value)
    except (ValueError, OverflowError):
        raise Refused(path, "is not a number of seconds that a duration can hold") from None


# ---- A whole entity, in one notation or another.


@dataclass(frozen=True, slots=True)
class Notation:
    """The form of entities in JSON: the names of fields, and the kinds of values for which JSON has no form.

    Kinds not in `write` and `read` are passed unchanged; sequences and structures are walked. With `null_is_unset`,
    null in any field means its default, as in Go; otherwise null is allowed only where None is a value.
    """

    name: Callable[[str], str]
    write: Mapping[FormKind, Callable[[Any], Any]]
    read: Mapping[FormKind, Callable[[object, str], object]]
    null_is_unset: bool

    def fields_to_json(self, struct: object) -> dict[str, Any]:
        """The fields of an entity or structure under this notation's names, without `revision`."""
        return {self.name(f.name): self._to_json(getattr(struct, f.name), f.form) for f in fields_of(struct.__class__)}

    def _to_json(self, value: Any, form: Form) -> Any:
        if form.kind is FormKind.SEQUENCE:
            return [self._to_json(item, form.item) for item in value]
        if form.kind is FormKind.STRUCT:
            return None if value is None else self.fields_to_json(value)
        write = self.write.get(form.kind)
        return value if write is None else write(value)

    def struct_from_json(self, cls: Any, value: object, path: str = "") -> Any:
        """The entity or structure of a JSON object, not yet validated. Raises Refused."""
        if not isinstance(value, Mapping):
            raise wrong_json(path, value, "a JSON object")
        prefix = path + "." if path else ""
        unread = dict(value)
        fields: dict[str, Any] = {}
        for f in fields_of(cls):
            name = self.name(f.name)
            if name not in unread:
                continue
            given = unread.pop(name)
            if given is not None or not self.null_is_unset:
                fields[f.name] = self._from_json(given, f.form, prefix + name)
        for name in unread:
            raise Refused(prefix + str(name), _no_field(str(name), [self.name(f.name) for f in fields_of(cls)]))
        for f in fields_of(cls):
            if f.required and f.name not in fields:
                raise Refused(prefix + self.name(f.name), "is missing")
        return cls(**fields)

    def _from_json(self, value: object, form: Form, path: str) -> Any:
        if form.kind is FormKind.SEQUENCE:
            if not isinstance(value, list | tuple):
                raise wrong_json(path, value, "a list")
            return tuple(self._from_json(item, form.item, f"{path}[{number}]") for number, item in enumerate(value))
        if form.kind is FormKind.STRUCT:
            if value is None and form.optional:
                return None
            return self.struct_from_json(form.cls, value, path)
        read = self.read.get(form.kind)
        if read is not None:
            return read(value, path)
        if type(value) not in _TYPES[form.kind] or value.__class__ is dict:
            _require_type(value, form.kind, path)
        return value


def _no_field(name: str, known: Sequence[str]) -> str:
    return "there is no such field" + (did_you_mean(name, known) or f"; the fields are: {' '.join(known)}")


_OURS: Final = Notation(
    name=str,
    write={
        FormKind.CHOICE: str,
        FormKind.BYTES: write_base64,
        FormKind.TIME: _write_time,
        FormKind.DURATION: _write_duration,
        FormKind.MAP: dict,
    },
    read={
        FormKind.BYTES: read_base64,
        FormKind.TIME: read_time,
        FormKind.DURATION: _read_duration,
    },
    null_is_unset=False,
)


def to_json(entity: Entity) -> dict[str, Any]:
    """An entity as a dict that `json.dumps` takes: its fields in order, then `revision`. Any thread may call it.

    Times are RFC 3339 text in UTC with microseconds, or None; durations are seconds (an int if whole); bytes are
    base64. `warren-raft get -o json` prints the same. Raises InvalidEntity for an object that is not an entity. An
    entity that was never stored may hold values that a write would refuse: they are written as they are.
    """
    kind_name(entity.__class__)
    return {**_OURS.fields_to_json(entity), "revision": entity.revision}


def from_json(cls: type[EntityT], value: object) -> EntityT:
    """The valid entity in a parsed JSON object (any mapping). Missing fields get their defaults. Any thread may call.

    `revision` is accepted and ignored. Raises InvalidEntity, whose `field` is a path as `ports[0].container_port`, for
    an unknown field, a missing id, a wrong type, bad base64, a bad time, and each value that a write would refuse. The
    error never quotes bytes, which may be a secret.
    """
    kind = kind_name(cls)
    if not isinstance(value, Mapping):
        raise InvalidEntity(kind, wrong_json("", value, "a JSON object").reason)
    given = {name: part for name, part in value.items() if name != "revision"}
    try:
        entity: EntityT = _OURS.struct_from_json(cls, given)
    except Refused as refused:
        identity = given.get("id")
        raise InvalidEntity(
            kind, refused.reason, id=identity if isinstance(identity, str) else None, field=refused.path
        ) from None
    return validate(entity)
