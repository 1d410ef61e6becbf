"""Every record of a state can be read: the entities, the indexes made from them, the sessions and the history.

The digest and the position are checked in verification.py. Most records have the form that this release writes; they
are checked without making the entity, which takes half of the time.
Invariant: `array_of` gives an array only for a record that `codec.decode` reads. Both give the same index keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import lmdb

from warren_raft.fsm import history, requests
from warren_raft.fsm.leases import Leases
from warren_raft.fsm.sessions import Sessions
from warren_raft.model.forms import Form, FormKind, fields_of
from warren_raft.store import codec
from warren_raft.store.encoding import compiled
from warren_raft.store.leading import INTEGER_BYTES, leading_items
from warren_raft.store.tables import CA_ID, KINDS, Kind
from warren_raft.store.transactions import IndexedIds, ReadTransaction
from warren_raft.support.strict_cbor import BadCbor, RecordMap, decode_record

_REPORT_EVERY: Final = 1_000  # records between two calls of `report`

_ARRAY_OF_2: Final = 0x82
_EMPTY_ARRAY: Final = 0x80
_ARRAY_8: Final = 0x98

_Check = Callable[[object], bool]


class Unreadable(Exception):
    """A record, a session, an index or the history has a fault; the text says which."""


def check_records(
    transaction: ReadTransaction, newest: int, report: Callable[[int], object] = lambda _count: None
) -> None:
    """Decode every record, and compare the indexes with them. `newest` is the revision of the state. `report` is called
    with the number of records that are done. Raises Unreadable, MemoryError, lmdb.Error."""
    done = 0
    differences: list[str] = []
    for kind in KINDS:
        width = codec.indexed_width(kind)
        indexes = [IndexedIds(kind, index, keys_of) for index, keys_of in codec.index_keys(kind)]
        for key, record in transaction.items(kind):
            array: Sequence[Any] | None = array_of(kind, key, record, newest)
            if array is None:
                problem = _problem_of(kind, key, record, newest)
                if problem is not None:
                    raise Unreadable(f"{kind.name} {key.decode(errors='replace')!r} {problem}")
                array = leading_items(record, width)
            for ids in indexes:
                ids.add(array, key)
            done += 1
            if done % _REPORT_EVERY == 0:
                report(done)
        for ids in indexes:
            differences += transaction.index_differences(ids.index.name, ids.by_key())
    if differences:
        raise Unreadable(first_of(differences))


def first_of(problems: list[str]) -> str:
    """The first problem, and how many more there are."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _problem_of(kind: Kind[Any], key: bytes, record: bytes, newest: int) -> str | None:
    try:
        entity = codec.decode(kind, record)
        revision = codec.record_revision(record)
    except codec.MalformedRecord as error:
        return f"cannot be read: {error}"
    id_ = CA_ID if kind.entity is None else entity.id
    if type(id_) is not str or id_.encode(errors="surrogatepass") != key:
        return f"is stored under another id than its own, {id_!r}"
    if not 0 < revision <= newest:
        return f"has revision {revision}, and the newest is {newest}"
    return None


def check_sessions(transaction: ReadTransaction) -> None:
    """Read every session, every lease and every request key. Raises Unreadable, MemoryError, lmdb.Error."""
    try:
        Sessions(requests.sessions_in(transaction))
        Leases(transaction)
        requests.check(transaction)
    except (MemoryError, lmdb.Error):
        raise
    except Exception as error:
        raise Unreadable(f"its sessions cannot be read: {error}") from error


def check_history(transaction: ReadTransaction, newest_of_state: int) -> None:
    """Read every change of the history. Raises Unreadable, MemoryError, lmdb.Error."""
    newest = floor = history.floor(transaction)
    try:
        for change in history.since(transaction, floor):
            newest = change.revision
    except (MemoryError, lmdb.Error):
        raise
    except Exception as error:
        raise Unreadable(f"its history cannot be read after revision {newest}: {error}") from error
    if newest > newest_of_state:
        raise Unreadable(f"its history goes on to revision {newest}, beyond {newest_of_state}")


# ---------------------------------------------------------------------------------------------- records of usual form


def array_of(kind: Kind[Any], key: bytes, record: bytes, newest: int) -> tuple[Any, ...] | None:
    """The array of the entity in a record that has the usual form, and no fault. None for any other record: decoding
    it tells whether it has a fault."""
    try:
        if record[0] != _ARRAY_OF_2 or not _EMPTY_ARRAY < record[2 + INTEGER_BYTES.get(record[1], 0)] <= _ARRAY_8:
            return None  # `leading_items` would read none of it
        revision, array = decode_record(record)
        cls: Any = kind.entity
        found: tuple[Any, ...] = array
        if (
            cls is not None
            and type(revision) is int
            and 0 < revision <= newest
            and _struct_check(cls)(found)
            and found[0].encode() == key
        ):
            return found
    except (BadCbor, AttributeError, IndexError, TypeError, ValueError):
        return None
    return None


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_TIME: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST_TIME: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)

_SOURCE: Final = """\
def is_sound(array):
    if type(array) is not tuple or len(array) != {width}:
        return False
    {targets} = array
    return {conditions}
"""
_CONDITIONS: Final[dict[FormKind, str]] = {
    FormKind.CHOICE: "type({value}) is str",
    FormKind.MAP: "type({value}) is RecordMap",
    FormKind.DURATION: "type({value}) is int",  # an integer of CBOR is never too large for a duration
    FormKind.TIME: f"type({{value}}) is int and {_FIRST_TIME} <= {{value}} <= {_LAST_TIME}",
    FormKind.SEQUENCE: "type({value}) is tuple",
}
"""The condition under which the decoder takes a value. It takes any value in a field of another form as it is."""


@cache  # bounded: one entry a class of model/entities.py
def _struct_check(cls: Any) -> _Check:
    """Whether an array is decoded to a `cls` without an error. It may be, if the answer is no. Tracebacks show the
    function's source."""
    names: dict[str, Any] = {"RecordMap": RecordMap}
    targets, conditions = [], []
    for number, field in enumerate(fields_of(cls)):
        value = f"v{number}"
        targets.append(value)
        condition = _condition_of(field.form, value, names)
        if condition is not None:
            conditions.append(f"({value} is None or {condition})")
    source = _SOURCE.format(
        width=len(targets), targets=", ".join(targets) + ",", conditions=" and ".join(conditions) or "True"
    )
    return compiled("is_sound", source, f"<check of {cls.__module__}.{cls.__qualname__}>", names)


def _condition_of(form: Form, value: str, names: dict[str, Any]) -> str | None:
    """The condition for a value that is not None; None if there is none. `names` gets the functions that it calls."""
    if form.kind is FormKind.STRUCT:
        names[f"is_{value}"] = _struct_check(form.cls)
        return f"is_{value}({value})"
    condition = _CONDITIONS.get(form.kind)
    if condition is None:
        return None
    condition = condition.format(value=value)
    if form.kind is FormKind.SEQUENCE and form.item is not None:
        item = _condition_of(form.item, f"{value}_item", names)
        if item is not None:
            condition += f" and all([{item} for {value}_item in {value}])"
    return condition
