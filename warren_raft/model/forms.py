"""The forms of entities' fields, read from the types in their dataclasses, and the limits of values.

No entity is named here (they are in entities.py). No value is checked here (validation.py).
Invariant: every type that a field of an entity has is one of the forms, so each format can write it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import cache
from typing import Any, Final, NoReturn

KEY_MAX_BYTES: Final = 511
"""The longest id and the longest indexed value, in bytes of UTF-8: LMDB's longest key."""

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
"""Integers are Go's `int` and `int64`."""

DURATION_MIN: Final = timedelta(microseconds=INTEGER_MIN)
DURATION_MAX: Final = timedelta(microseconds=INTEGER_MAX)
"""Durations are stored as a signed 64-bit number of microseconds."""

GO_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
"""Go's value for a time that was never set; here such a time is None."""


class FrozenMap(dict[str, str]):
    """An immutable, hashable mapping of text to text; equal to a dict of the same items.

    It is a dict underneath, so that `dict()`, `json`, `dataclasses.asdict` and `copy` accept it (`asdict` gives a
    FrozenMap again). `m | {"a": "b"}` is a new, ordinary dict. Safe to share between threads.
    """

    __slots__ = ()

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
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
    """The possible contents of a field, or of an item of a sequence."""

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

    `optional`: None means "not set"; every TIME is optional. `low` and `high` are the least and the greatest value of
    an INTEGER, a NUMBER or a DURATION that may be written. Values that are already stored are read unchanged.
    """

    kind: FormKind
    cls: Any = None
    item: Any = None
    optional: bool = False
    low: Any = None
    high: Any = None


@dataclass(frozen=True, slots=True)
class EntityField:
    """A field of an entity or of a structure in it. The formats walk these in order of declaration."""

    name: str
    form: Form
    default: Any
    indexed: bool

    @property
    def required(self) -> bool:
        """Whether the field has no default. Only `id` has none."""
        return self.default is dataclasses.MISSING


_PLAIN_FORMS: Final[dict[Any, Form]] = {
    str: Form(FormKind.TEXT),
    int: Form(FormKind.INTEGER, low=0, high=INTEGER_MAX),
    float: Form(FormKind.NUMBER, low=0.0, high=math.inf),
    bool: Form(FormKind.FLAG),
    bytes: Form(FormKind.BYTES),
    timedelta: Form(FormKind.DURATION, low=timedelta(0), high=DURATION_MAX),
    datetime | None: Form(FormKind.TIME, optional=True),
    Mapping[str, str]: Form(FormKind.MAP),
}


def _form_of(hint: object) -> Form:
    """`tuple[X, ...]` is a sequence, `NodeRole | str` a choice; any other class is a structure, optional with None."""
    if hint in _PLAIN_FORMS:
        return _PLAIN_FORMS[hint]
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return Form(FormKind.SEQUENCE, item=_form_of(parts[0]))
    if parts and issubclass(parts[0], StrEnum):
        return Form(FormKind.CHOICE, cls=parts[0])
    return Form(FormKind.STRUCT, cls=parts[0] if parts else hint, optional=bool(parts))


def within(low: object, high: object = None, *, default: object = 0) -> Any:
    """A field with numbers from `low` to `high`, instead of from 0 to the greatest number that can be
    stored."""
    limits = {"low": low} if high is None else {"low": low, "high": high}
    return dataclasses.field(default=default, metadata={"range": limits})


def _with_range(form: Form, limits: Mapping[str, Any]) -> Form:
    if form.kind is FormKind.SEQUENCE:
        return dataclasses.replace(form, item=_with_range(form.item, limits))
    return dataclasses.replace(form, **limits)


@cache  # bounded: one entry a class of entities.py
def _read_fields(cls: Any) -> tuple[EntityField, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        EntityField(
            f.name,
            _with_range(_form_of(hints[f.name]), f.metadata.get("range", {})),
            f.default,
            f.metadata.get("indexed", False),
        )
        for f in dataclasses.fields(cls)
        if f.name != "revision"
    )


def fields_of(cls: object) -> tuple[EntityField, ...]:
    """The stored fields of the class of an entity or structure, in order, without `revision`."""
    return _read_fields(cls)  # mypy does not take a class for the argument of a cached function
