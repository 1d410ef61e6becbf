"""Hypothesis strategies for every kind of entity, read off the dataclasses: a new field needs nothing here.

`entities(Service)` and `any_entity()` give valid, normalised entities. `almost_entities(Service)` strews in
values of wrong types, unknown members of enumerations, lists for tuples and the like, at every depth;
`strange_entities(Service)` has each such value in each place, one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from warren_raft.model.entities import (
    ENTITY_CLASSES,
    Container,
    Entity,
    NodeRole,
)
from warren_raft.model.forms import GO_ZERO_TIME, EntityField, Form, FormKind, FrozenMap, fields_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
"""Valid ids and values of indexed fields."""

TIMES = st.none() | st.datetimes(timezones=st.just(UTC)).filter(lambda time: time != GO_ZERO_TIME)
DURATIONS = st.timedeltas(timedelta(0), timedelta(days=36500))
"""Up to a century: within it, seconds in a float tell all microseconds apart."""

_PLAIN: dict[FormKind, st.SearchStrategy[Any]] = {
    FormKind.TEXT: TEXTS,
    FormKind.FLAG: st.booleans(),
    FormKind.BYTES: st.binary(max_size=24),
    FormKind.TIME: TIMES,
    FormKind.MAP: st.dictionaries(TEXTS, TEXTS, max_size=3).map(FrozenMap),
}

STRANGE_VALUES: list[Any] = [
    *(None, True, 0, 7, -1, 101, 65_536, 2**63, 2**2000, 0.5, -0.5, math.nan, math.inf, object(), Container(id="c")),
    *("", "text", "manager", NodeRole.MANAGER, "\ud800", "x" * 512, "é" * 256, b"bytes", bytearray(b"x")),
    *([], ["a"], ("b",), [1], {}, {"a": "b"}, {1: "b"}, FrozenMap({"a": "\udfff"}), FrozenMap({"a": "b"})),
    *(timedelta.max, timedelta(1), -timedelta(microseconds=1), date(2025, 1, 1), datetime(2025, 1, 1), GO_ZERO_TIME),  # noqa: DTZ001
    *(datetime(2025, 1, 1, tzinfo=zone) for zone in (UTC, timezone(timedelta(hours=-4)))),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))),  # no time of UTC
]
"""Values that are wrong in most fields, and right in a few."""

STRANGE = st.sampled_from(STRANGE_VALUES)


def _values(form: Form, strange: bool) -> st.SearchStrategy[Any]:
    """Values of a form; with `strange`, about one in twenty is something else."""
    values: st.SearchStrategy[Any]
    if form.kind is FormKind.SEQUENCE:
        values = st.lists(_values(form.item, strange), max_size=3).map(tuple)
    elif form.kind is FormKind.CHOICE:
        values = st.sampled_from(["", *form.cls, *map(str, form.cls)])
    elif form.kind is FormKind.STRUCT:
        values = _structs(form.cls, strange)
    elif form.kind is FormKind.INTEGER:
        values = st.integers(form.low, form.high)
    elif form.kind is FormKind.NUMBER:
        values = st.floats(form.low, None, allow_nan=False, allow_infinity=False)
    elif form.kind is FormKind.DURATION:
        values = DURATIONS
    else:
        values = _PLAIN[form.kind]
    if form.kind is FormKind.STRUCT and form.optional:
        values = st.none() | values
    return _strewn(values) if strange else values


@st.composite
def _strewn(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Any:
    return draw(STRANGE if draw(st.integers(0, 19)) == 19 else values)


def _field_values(field: EntityField, strange: bool) -> st.SearchStrategy[Any]:
    if not field.indexed:
        return _values(field.form, strange)
    values = st.lists(KEYS, max_size=3).map(tuple) if field.form.kind is FormKind.SEQUENCE else KEYS
    return _strewn(values) if strange else values


def _structs(cls: Any, strange: bool) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{f.name: _field_values(f, strange) for f in fields_of(cls)})


def entities(cls: Any) -> st.SearchStrategy[Any]:
    """Valid, normalised entities (or structures) of a class."""
    return _structs(cls, strange=False)


def almost_entities(cls: Any) -> st.SearchStrategy[Any]:
    """Entities of a class; some of their values cannot be stored, or cannot be stored unchanged."""
    return _structs(cls, strange=True)


def strange_entities(cls: Any) -> Iterator[Any]:
    """Each of STRANGE_VALUES in each place of an entity (or structure) that is otherwise almost empty."""
    for field in fields_of(cls):
        for value in _strange_values(field.form):
            yield cls(**({"id": "x"} if fields_of(cls)[0].required else {}) | {field.name: value})


def _strange_values(form: Form) -> Iterator[Any]:
    yield from STRANGE_VALUES
    if form.kind is FormKind.STRUCT:
        yield from strange_entities(form.cls)
    if form.kind is FormKind.SEQUENCE:
        for value in _strange_values(form.item):
            yield (value,)


def any_entity() -> st.SearchStrategy[Entity]:
    """Valid, normalised entities of all kinds."""
    return st.one_of([entities(cls) for cls in ENTITY_CLASSES.values()])
