"""The requirements for a value of each form: a value that does not have its stored form is converted or refused.

Ordinary writes do not come here: store/encoding.py encodes plain values itself, and asks here about the others only.
Invariant: the result of `normalised` is deeply immutable, of exact types, and can be encoded by every format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from operator import is_
from typing import Any, Final

from warren_raft.model.forms import (
    DURATION_MAX,
    DURATION_MIN,
    GO_ZERO_TIME,
    INTEGER_MAX,
    INTEGER_MIN,
    KEY_MAX_BYTES,
    Form,
    FormKind,
    FrozenMap,
    fields_of,
)

KEY_SHOWN: Final = 60
"""How many characters of a mapping's key are shown in the path of a refused value."""


def _encodes(text: str) -> bool:
    """Whether text has a UTF-8 form; text with a lone surrogate has none."""
    try:
        str.encode(text)  # so that a subclass's own `encode` has no effect
    except UnicodeEncodeError:
        return False
    return True


@cache  # bounded: one entry an enumeration
def _known_choices(enum: type[StrEnum]) -> frozenset[str]:
    return frozenset({"", *enum})


class Refused(Exception):
    """A field and its fault. `validate` turns it into an InvalidEntity."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def wrong_type(path: str, value: object, expected: str) -> Refused:
    """Names only the type, because the value may be a secret."""
    return Refused(path, f"must be {expected}, not {type(value).__name__}")


def _to_text(value: object, _form: Form, path: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(path, value, "text (str)")
    if not _encodes(value):
        raise Refused(path, "has a lone surrogate and so no UTF-8 form")
    return str.__str__(value)


def _require_range(value: object, form: Form, path: str) -> None:
    if form.low <= value <= form.high:
        return
    shown = value.total_seconds() if isinstance(value, timedelta) else value
    if value < form.low:
        raise Refused(path, f"must not be negative, and is {shown}")
    raise Refused(path, f"must be at most {form.high}, and is {shown}")


def _to_integer(value: object, form: Form, path: str) -> int:
    if type(value) is not int:
        raise wrong_type(path, value, "an integer (int)")
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise Refused(path, "is outside the range of a signed 64-bit integer")
    _require_range(value, form, path)
    return value


def _to_number(value: object, form: Form, path: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise wrong_type(path, value, "a number (float or int)")
    try:
        number = float(value)
    except OverflowError:
        raise Refused(path, "is too large for a float") from None
    if not math.isfinite(number):
        raise Refused(path, "must be finite")
    _require_range(number, form, path)
    return number


def _to_flag(value: object, _form: Form, path: str) -> bool:
    if type(value) is not bool:
        raise wrong_type(path, value, "True or False (bool)")
    return value


def _to_bytes(value: object, _form: Form, path: str) -> bytes:
    if type(value) is not bytes:
        raise wrong_type(path, value, "bytes")
    return value


def _to_time(value: object, _form: Form, path: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise wrong_type(path, value, "a time (an aware datetime, or None)")
    if value.utcoffset() is None:
        raise Refused(path, "must be an aware datetime: this one has no time zone")
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise Refused(path, "is outside the years 1 to 9999 in UTC") from None
    if utc == GO_ZERO_TIME:
        return None
    is_normal = type(value) is datetime and value.tzinfo is UTC
    return value if is_normal else datetime(*utc.timetuple()[:6], utc.microsecond, tzinfo=UTC)


def _to_duration(value: object, form: Form, path: str) -> timedelta:
    if type(value) is not timedelta:
        raise wrong_type(path, value, "a duration (timedelta)")
    if not DURATION_MIN <= value <= DURATION_MAX:
        raise Refused(path, "is outside the range of a signed 64-bit number of microseconds")
    _require_range(value, form, path)
    return value


def _to_choice(value: Any, form: Form, path: str) -> str:
    text = _to_text(value, form, path)
    if text not in _known_choices(form.cls):
        raise Refused(path, f"{text[:40]!r} is none of {', '.join(form.cls)}")
    return value if type(value) is form.cls else text


def _to_map_key(key: object, form: Form, path: str) -> str:
    try:
        return _to_text(key, form, path)
    except Refused as refused:
        raise Refused(path, f"a key {refused.reason}") from None


def _to_map(value: object, form: Form, path: str) -> FrozenMap:
    if not isinstance(value, Mapping):
        raise wrong_type(path, value, "a mapping of text to text")
    items = []
    for one, text in value.items():
        key = _to_map_key(one, form, path)
        items.append((key, _to_text(text, form, f"{path}[{key[:KEY_SHOWN]!r}]")))
    if type(value) is FrozenMap and all(type(k) is type(v) is str for k, v in value.items()):
        return value
    return FrozenMap(items)


def _to_sequence(value: object, form: Form, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise wrong_type(path, value, "a sequence (tuple or list)")
    item = form.item
    convert = _CONVERT[item.kind]
    items = tuple(convert(one, item, f"{path}[{number}]") for number, one in enumerate(value))
    return value if type(value) is tuple and all(map(is_, value, items)) else items


def _to_struct(value: object, form: Form, path: str) -> Any:
    if value is None and form.optional:
        return None
    if type(value) is not form.cls:
        raise wrong_type(path, value, form.cls.__name__ + (" or None" if form.optional else ""))
    return _with_fields_converted(value, path + ".")


_CONVERT: Final[dict[FormKind, Callable[[object, Form, str], object]]] = {
    FormKind.TEXT: _to_text,
    FormKind.INTEGER: _to_integer,
    FormKind.NUMBER: _to_number,
    FormKind.FLAG: _to_flag,
    FormKind.BYTES: _to_bytes,
    FormKind.TIME: _to_time,
    FormKind.DURATION: _to_duration,
    FormKind.CHOICE: _to_choice,
    FormKind.MAP: _to_map,
    FormKind.SEQUENCE: _to_sequence,
    FormKind.STRUCT: _to_struct,
}


def _with_fields_converted(instance: Any, prefix: str) -> Any:
    """The same instance if nothing had to be converted. An entity's revision stays."""
    changed: dict[str, object] = {}
    for f in fields_of(type(instance)):
        value = getattr(instance, f.name)
        converted = _CONVERT[f.form.kind](value, f.form, prefix + f.name)
        if converted is not value:
            changed[f.name] = converted
    return dataclasses.replace(instance, **changed) if changed else instance


def _check_keys(entity: Any) -> None:
    if not entity.id:
        raise Refused("id", "must not be empty")
    for f in fields_of(entity.__class__):
        value = getattr(entity, f.name)
        if f.indexed and f.form.kind is FormKind.SEQUENCE:
            for number, text in enumerate(value):
                _check_key(text, f"{f.name}[{number}]")
        elif f.indexed:
            _check_key(value, f.name)


def _check_key(text: str, path: str) -> None:
    size_bytes = len(text.encode())
    if size_bytes > KEY_MAX_BYTES:
        raise Refused(path, f"is {size_bytes} bytes of UTF-8, at most {KEY_MAX_BYTES} are stored")


def normalised(entity: object) -> Any:
    """The entity with every value in its normal form: the same object if it is so already. Raises Refused."""
    normal = _with_fields_converted(entity, "")
    _check_keys(normal)
    return normal
