"""Entities from the CBOR array of their fields, built in one pass by one function for each class.

Lives here: the counterpart of encoding.py, compiled from the table of fields in the same way: with closures that walk
the table, a container takes 11 µs and not 7. Not here: records and their revisions (codec.py), bounds on foreign bytes
(support/strict_cbor.py).
Invariant: new fields are appended to the array, so a shorter array is an older entity and a longer array a newer one.
Both are read. Two entities share a part only if this release could have written the part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias

from warren_raft.model.forms import EMPTY_MAP, EntityField, Form, FormKind, FrozenMap, fields_of
from warren_raft.store.encoding import NOT_PLAIN, compiled, encoder_of
from warren_raft.support.strict_cbor import decode_record

Convert: TypeAlias = Callable[..., Any]
"""From CBOR's value to a field's value. It never gets null, which stands for None in every field."""

SHARED_PARTS_MAX: Final = 256
"""Parts of one field that are remembered for sharing."""

SHARED_RECORD_BYTES_MAX: Final = 2048
"""Entities in longer records share no parts, so that the remembered parts stay small."""


class MalformedRecord(ValueError):
    """The bytes are not a record, or not an entity of the kind."""


# ------------------------------------------------------------------------------- values that CBOR does not have

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=1024)  # few different durations are in use, and a look-up takes a fifth of the time of making one
def _duration(microseconds: int) -> timedelta:
    return timedelta(0, 0, microseconds)


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(0, 0, microseconds)


def _frozen_map(mapping: Any) -> FrozenMap:
    if not mapping:
        return EMPTY_MAP
    if type(mapping) is tuple:  # `dict` would take pairs
        raise TypeError
    return FrozenMap(mapping)


class _Members(dict[str, str]):
    """From the text of each member of an enumeration to the member. Unknown text stays text: a newer manager may know
    it."""

    def __missing__(self, value: str) -> str:
        if isinstance(value, Collection) and not isinstance(value, str | bytes):
            raise TypeError
        return value


# ------------------------------------------------------------------------------- forms to converters

_PLAIN_CONVERTERS: Final[dict[FormKind, Convert]] = {
    FormKind.TIME: _time,
    FormKind.DURATION: _duration,
    FormKind.MAP: _frozen_map,
}


def _converter_of(form: Form, share: bool) -> Convert | None:
    """None if CBOR's value is the field's value."""
    if form.kind is FormKind.SEQUENCE:
        return _converter_of_sequence(_converter_of(form.item, share))
    if form.kind is FormKind.STRUCT:
        return struct_decoder(form.cls, share)
    if form.kind is FormKind.CHOICE:
        return _Members({str(member): member for member in form.cls}).__getitem__
    return _PLAIN_CONVERTERS.get(form.kind)


def _converter_of_sequence(item: Convert | None) -> Convert:
    return tuple if item is None else lambda values: tuple([item(value) for value in values])


def _can_be_shared(form: Form) -> bool:
    """Whether the form is a sequence, a map or a structure, with few different values among many entities.

    Times differ from entity to entity. Numbers are left out because 0.0 and -0.0 are equal, and are two values.
    """
    return form.kind in (FormKind.SEQUENCE, FormKind.STRUCT, FormKind.MAP) and not any(
        each.kind in (FormKind.TIME, FormKind.NUMBER) for each in _forms_in(form)
    )


def _forms_in(form: Form) -> Iterator[Form]:
    yield form
    if form.kind is FormKind.SEQUENCE:
        yield from _forms_in(form.item)
    if form.kind is FormKind.STRUCT:
        for field in fields_of(form.cls):
            yield from _forms_in(field.form)


def _sharing(form: Form, convert: Convert) -> tuple[Convert, Convert]:
    """(find, make): `find(value) or make(value)` is the field's value, and the same object for equal values.

    Containers of one service have the same environment, ports and policies. With shared parts they take half the
    memory, and a garbage collection has a quarter of the objects to visit.

    True, 1 and 1.0 are equal, so a part is remembered only if the encoder accepts it: then it has the types that its
    fields declare, and nothing that a foreign record holds gets into another entity. Any thread: each step on the table
    is one step of the interpreter.
    """
    encode = encoder_of(form)
    parts: dict[Any, Any] = {}

    def make(value: object) -> Any:
        made = convert(value)
        if not made:  # an empty sequence or map: there is one object of each already
            return made
        try:
            encode(made)
        except NOT_PLAIN:
            return made
        if len(parts) >= SHARED_PARTS_MAX:
            parts.clear()
        parts[value] = made
        return made

    return parts.get, make


# ------------------------------------------------------------------------------- structures

_SOURCE: Final = """\
def decode(array{revision}):
    if type(array) is not tuple or len(array) != {width}:
        array = fit(array)
    self = draft()
    {targets} = array
{conversions}
    self.__class__ = cls
    return self
"""
_CONVERSION: Final = "    self.{name} = None if {value} is None else {made}"


@cache  # bounded: two entries a class of model/entities.py
def struct_decoder(cls: Any, share: bool) -> Convert:
    """From CBOR's array (a tuple) to an instance; the revision of an entity is the second argument.

    `share`: parts may be shared with other entities. Raises TypeError, ValueError, AttributeError or OverflowError for
    an array that is not one of `cls`. Tracebacks show the function's source.
    """
    fields = fields_of(cls)
    names: dict[str, Any] = {"cls": cls, "draft": _draft_of(cls), "fit": _fitter(fields)}
    targets, conversions = [], []
    for number, field in enumerate(fields):
        convert = _converter_of(field.form, share)
        if convert is None:
            targets.append(f"self.{field.name}")
            continue
        value = f"v{number}"
        names[f"make{number}"], made = convert, f"make{number}({value})"
        if share and _can_be_shared(field.form):
            names[f"find{number}"], names[f"make{number}"] = _sharing(field.form, convert)
            made = f"find{number}({value}) or {made}"
        targets.append(value)
        conversions.append(_CONVERSION.format(name=field.name, value=value, made=made))
    is_entity = "revision" in cls.__slots__
    if is_entity:
        conversions.append("    self.revision = revision")
    source = _SOURCE.format(
        revision=", revision" if is_entity else "",
        width=len(fields),
        targets=", ".join(targets) + ",",
        conversions="\n".join(conversions),
    )
    return compiled("decode", source, f"<decoder of {cls.__module__}.{cls.__qualname__}>", names)


def _draft_of(cls: Any) -> Any:
    """A class with the same slots as `cls` that is not frozen. An instance is filled first and then becomes a `cls`.

    A frozen dataclass sets each field through object.__setattr__, so that making a Container takes 4 µs. This way takes
    0.4 µs. Python allows the change of class because both classes have the same slots, and raises if they differ.
    """
    return type(f"_Draft{cls.__name__}", (), {"__slots__": cls.__slots__})


def _fitter(fields: tuple[EntityField, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """Cut off the fields that a newer manager appended; add defaults for the fields that an older manager did not
    know."""
    width = len(fields)
    required = sum(field.required for field in fields)  # they come first
    defaults = tuple(
        None if field.required else decode_record(encoder_of(field.form)(field.default)) for field in fields
    )

    def fit(array: object) -> tuple[Any, ...]:
        if type(array) is not tuple or len(array) < required:
            raise MalformedRecord("not the array of an entity")
        return array[:width] + defaults[len(array) :]

    return fit
