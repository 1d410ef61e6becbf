"""The forms that fields of entities take, read off their dataclasses, and what is asked of a value of each.

No entity is named here (they are in entities.py), none encoded: each format walks `fields_of` by itself.
Invariant: what `normalised` returns is deeply immutable, of exact types, and can be encoded by every format.
"""

# ruff: noqa: SIM110  (the loops here are on the way of every write; `all(...)` takes twice their time)

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, Final, NoReturn

KEY_MAX_BYTES: Final = 511
"""Longest id and longest indexed value, in bytes of UTF-8: LMDB's longest key."""

_UTF8_MAX_BYTES: Final = 4
"""The most bytes of UTF-8 that one character takes."""

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
"""Integers are Go's `int` and `int64`."""

DURATION_MIN: Final = timedelta(microseconds=INTEGER_MIN)
DURATION_MAX: Final = timedelta(microseconds=INTEGER_MAX)
"""Durations are stored as a signed 64-bit number of microseconds."""

GO_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
"""What Go writes for a time that was never set; here such a time is None."""


class FrozenMap(dict[str, str]):
    """An immutable, hashable mapping of text to text; equal to a dict of the same items.

    A dict underneath, so that `dict()`, `json`, `dataclasses.asdict` and `copy` take it for one (`asdict`
    gives a FrozenMap again). `m | {"a": "b"}` is a new, ordinary dict. Safe to share between threads.
    """

    __slots__ = ()

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("this mapping is immutable; change a copy: dict(mapping)")

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return f"FrozenMap({dict.__repr__(self)})"

    def __copy__(self) -> FrozenMap:
        return self

    def __deepcopy__(self, _memo: object) -> FrozenMap:
        return self

    def __reduce__(self) -> tuple[type[FrozenMap], tuple[dict[str, str]]]:
        return FrozenMap, (dict(self),)


EMPTY_MAP: Final = FrozenMap()


class FormKind(Enum):
    """What may stand in a field, or in an item of a sequence."""

    TEXT = "text"
    INTEGER = "an integer"
    NUMBER = "a number"
    FLAG = "true or false"
    BYTES = "bytes"
    TIME = "a time"
    DURATION = "a duration"
    CHOICE = "one of an enumeration"
    MAP = "a mapping of text to text"
    SEQUENCE = "a sequence"
    STRUCT = "a structure"


@dataclass(frozen=True, slots=True)
class Form:
    """A kind and its details: `cls` for CHOICE (the StrEnum) and STRUCT, `item` (a Form) for SEQUENCE.

    `optional` means that None stands for "not set"; every TIME is optional.
    """

    kind: FormKind
    cls: Any = None
    item: Any = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class EntityField:
    """A field of an entity or of a structure in it: what formats walk, in order of declaration."""

    name: str
    form: Form
    default: Any
    indexed: bool

    @property
    def required(self) -> bool:
        """Whether there is no default; so it is with `id` alone."""
        return self.default is dataclasses.MISSING


_PLAIN_FORMS: Final[dict[Any, Form]] = {
    str: Form(FormKind.TEXT),
    int: Form(FormKind.INTEGER),
    float: Form(FormKind.NUMBER),
    bool: Form(FormKind.FLAG),
    bytes: Form(FormKind.BYTES),
    timedelta: Form(FormKind.DURATION),
    datetime | None: Form(FormKind.TIME, optional=True),
    Mapping[str, str]: Form(FormKind.MAP),
}


def _form_of(hint: Any) -> Form:
    if hint in _PLAIN_FORMS:
        return _PLAIN_FORMS[hint]
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return Form(FormKind.SEQUENCE, item=_form_of(parts[0]))
    if parts and issubclass(parts[0], StrEnum):
        return Form(FormKind.CHOICE, cls=parts[0])
    return Form(FormKind.STRUCT, cls=parts[0] if parts else hint, optional=bool(parts))


@cache  # bounded: one entry a class of entities.py
def _read_fields(cls: Any) -> tuple[EntityField, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        EntityField(f.name, _form_of(hints[f.name]), f.default, f.metadata.get("indexed", False))
        for f in dataclasses.fields(cls)
        if f.name != "revision"
    )


def fields_of(cls: Any) -> tuple[EntityField, ...]:
    """The stored fields of the class of an entity or structure, in order; `revision` is not one of them."""
    return _read_fields(cls)


# ---- Is it normal already?
#
# Nearly everything that is written has exact types and good values already. So first a cheap question for a
# whole entity, asked form by form (all its texts, all its integers, ...); only a "no" leads to the slow walk
# below, field by field, that either converts or says what is wrong and where. A test holds the two together.

_AllNormal = Callable[[Iterable[Any]], bool]


def _encodes(text: str) -> bool:
    """Whether text has a UTF-8 form; text with a lone surrogate has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts_normal(values: Iterable[Any]) -> bool:
    for value in values:
        if type(value) is not str or not (value.isascii() or _encodes(value)):
            return False
    return True


def _integers_normal(values: Iterable[Any]) -> bool:
    for value in values:
        if type(value) is not int or not INTEGER_MIN <= value <= INTEGER_MAX:
            return False
    return True


def _numbers_normal(values: Iterable[Any]) -> bool:
    for value in values:
        if type(value) is not float or not math.isfinite(value):
            return False
    return True


def _exactly(cls: type) -> _AllNormal:
    def normal(values: Iterable[Any]) -> bool:
        for value in values:
            if type(value) is not cls:
                return False
        return True

    return normal


def _times_normal(values: Iterable[Any]) -> bool:
    for value in values:
        if value is None:
            continue
        if type(value) is not datetime or value.tzinfo is not UTC or value == GO_ZERO_TIME:
            return False
    return True


def _durations_normal(values: Iterable[Any]) -> bool:
    for value in values:
        if type(value) is not timedelta or not DURATION_MIN <= value <= DURATION_MAX:
            return False
    return True


def _maps_normal(values: Iterable[Any]) -> bool:
    for value in values:
        if type(value) is not FrozenMap or not (_texts_normal(value) and _texts_normal(value.values())):
            return False
    return True


def _choices_normal(form: Form) -> _AllNormal:
    enum, known = form.cls, _known_choices(form.cls)

    def normal(values: Iterable[Any]) -> bool:
        for value in values:
            if (type(value) is not str and type(value) is not enum) or value not in known:
                return False
        return True

    return normal


def _sequences_normal(form: Form) -> _AllNormal:
    items_normal = _all_normal(form.item)

    def normal(values: Iterable[Any]) -> bool:
        for value in values:
            if type(value) is not tuple or not (not value or items_normal(value)):
                return False
        return True

    return normal


def _structs_normal(form: Form) -> _AllNormal:
    cls, optional, groups = form.cls, form.optional, _groups(form.cls)

    def normal(values: Iterable[Any]) -> bool:
        for value in values:
            if value is None and optional:
                continue
            if type(value) is not cls:
                return False
            for take, all_normal in groups:
                if not all_normal(take(value)):
                    return False
        return True

    return normal


_SIMPLE_NORMAL: Final[dict[FormKind, _AllNormal]] = {
    FormKind.TEXT: _texts_normal,
    FormKind.INTEGER: _integers_normal,
    FormKind.NUMBER: _numbers_normal,
    FormKind.FLAG: _exactly(bool),
    FormKind.BYTES: _exactly(bytes),
    FormKind.TIME: _times_normal,
    FormKind.DURATION: _durations_normal,
    FormKind.MAP: _maps_normal,
}
_DETAILED_NORMAL: Final[dict[FormKind, Callable[[Form], _AllNormal]]] = {
    FormKind.CHOICE: _choices_normal,
    FormKind.SEQUENCE: _sequences_normal,
    FormKind.STRUCT: _structs_normal,
}


@cache  # bounded: one entry a form of this module
def _all_normal(form: Form) -> _AllNormal:
    return _SIMPLE_NORMAL.get(form.kind) or _DETAILED_NORMAL[form.kind](form)


def _take(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Like attrgetter, but a tuple for a single name too."""
    if len(names) > 1:
        return attrgetter(*names)
    get = attrgetter(names[0])
    return lambda entity: (get(entity),)


def _groups(cls: type) -> tuple[tuple[Callable[[Any], tuple[Any, ...]], _AllNormal], ...]:
    """For each form that occurs in a class: how to take all such fields, and what to ask of them."""
    names: dict[Form, list[str]] = {}
    for f in fields_of(cls):
        names.setdefault(f.form, []).append(f.name)
    return tuple((_take(group), _all_normal(form)) for form, group in names.items())


@cache  # bounded: one entry an entity class
def _checks(cls: Any) -> tuple[_AllNormal, tuple[tuple[Callable[[Any], Any], bool], ...]]:
    """What to ask of a whole entity, and how to take its indexed fields (and whether it is a sequence)."""
    keys = tuple((attrgetter(f.name), f.form.kind is FormKind.SEQUENCE) for f in fields_of(cls) if f.indexed)
    return _all_normal(Form(FormKind.STRUCT, cls)), keys


def _key_fits(text: str) -> bool:
    return len(text) * _UTF8_MAX_BYTES <= KEY_MAX_BYTES or len(text.encode()) <= KEY_MAX_BYTES


def is_normal(entity: Any) -> bool:
    """Whether `normalised` would return an equal entity of the very same types. Asked of every write."""
    all_normal, keys = _checks(entity.__class__)
    if not all_normal((entity,)) or not entity.id:
        return False
    for take, several in keys:
        value = take(entity)
        if not (all(map(_key_fits, value)) if several else _key_fits(value)):
            return False
    return True


@cache  # bounded: one entry an enumeration
def _known_choices(enum: type[StrEnum]) -> frozenset[str]:
    return frozenset({"", *enum})


# ---- Convert it, or say what is wrong.


class Refused(Exception):
    """What is wrong, and with which field. `validate` makes an InvalidEntity of it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def wrong_type(path: str, value: object, expected: str) -> Refused:
    """Names the type only: the value may be a secret."""
    return Refused(path, f"must be {expected}, not {type(value).__name__}")


def _to_text(value: Any, _form: Form, path: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(path, value, "text (str)")
    if not _encodes(value):
        raise Refused(path, "has a lone surrogate and so no UTF-8 form")
    return str.__str__(value)


def _to_integer(value: Any, _form: Form, path: str) -> int:
    if type(value) is not int:
        raise wrong_type(path, value, "an integer (int)")
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise Refused(path, "is outside the range of a signed 64-bit integer")
    return value


def _to_number(value: Any, _form: Form, path: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise wrong_type(path, value, "a number (float or int)")
    try:
        number = float(value)
    except OverflowError:
        raise Refused(path, "is too large for a float") from None
    if not math.isfinite(number):
        raise Refused(path, "must be finite")
    return number


def _to_flag(value: Any, _form: Form, path: str) -> bool:
    if type(value) is not bool:
        raise wrong_type(path, value, "True or False (bool)")
    return value


def _to_bytes(value: Any, _form: Form, path: str) -> bytes:
    if type(value) is not bytes:
        raise wrong_type(path, value, "bytes")
    return value


def _to_time(value: Any, _form: Form, path: str) -> datetime | None:
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
    exact = datetime(*utc.timetuple()[:6], utc.microsecond, tzinfo=UTC)
    return None if exact == GO_ZERO_TIME else exact


def _to_duration(value: Any, _form: Form, path: str) -> timedelta:
    if type(value) is not timedelta:
        raise wrong_type(path, value, "a duration (timedelta)")
    if not DURATION_MIN <= value <= DURATION_MAX:
        raise Refused(path, "is outside the range of a signed 64-bit number of microseconds")
    return value


def _to_choice(value: Any, form: Form, path: str) -> str:
    text = _to_text(value, form, path)
    if text not in _known_choices(form.cls):
        raise Refused(path, f"{text[:40]!r} is none of {', '.join(form.cls)}")
    return value if type(value) is form.cls else text


def _to_map(value: Any, form: Form, path: str) -> FrozenMap:
    if not isinstance(value, Mapping):
        raise wrong_type(path, value, "a mapping of text to text")
    pairs = ((_to_text(k, form, path), _to_text(v, form, path)) for k, v in value.items())
    return FrozenMap(pairs)


def _to_sequence(value: Any, form: Form, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise wrong_type(path, value, "a sequence (tuple or list)")
    item = form.item
    convert = _CONVERT[item.kind]
    return tuple(convert(one, item, f"{path}[{number}]") for number, one in enumerate(value))


def _to_struct(value: Any, form: Form, path: str) -> Any:
    if value is None and form.optional:
        return None
    if type(value) is not form.cls:
        raise wrong_type(path, value, form.cls.__name__ + (" or None" if form.optional else ""))
    return form.cls(**_converted_fields(value, form.cls, path + "."))


_CONVERT: Final[dict[FormKind, Callable[[Any, Form, str], Any]]] = {
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


def _converted_fields(entity: Any, cls: type, prefix: str) -> dict[str, Any]:
    return {f.name: _CONVERT[f.form.kind](getattr(entity, f.name), f.form, prefix + f.name) for f in fields_of(cls)}


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
    if not _key_fits(text):
        raise Refused(path, f"is {len(text.encode())} bytes of UTF-8, at most {KEY_MAX_BYTES} are stored")


def normalised(entity: Any) -> Any:
    """A copy of an entity in which every value has its normal form, `revision` as it was. Raises Refused."""
    cls: Any = type(entity)
    normal = cls(**_converted_fields(entity, cls, ""), revision=entity.revision)
    _check_keys(normal)
    return normal
