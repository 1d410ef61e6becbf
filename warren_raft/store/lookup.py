"""From a key, a name or a host to entities, within a read transaction. Only this code decodes records for readers.

Opening and closing the transaction is decided in reading.py.
Invariant: an entity comes out of the cache only if the record begins with the revision it was decoded at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import lmdb

from warren_raft.errors import Corrupted, InvalidEntity, NotFound
from warren_raft.store import codec
from warren_raft.store.cache import CACHED_ENTITIES_MAX, CACHED_RECORD_BYTES_MAX, HEAD_BYTES
from warren_raft.store.memo import Listed
from warren_raft.store.tables import ID_MAX_BYTES, Index, Kind

if TYPE_CHECKING:
    from warren_raft.store.transactions import Owner, Table

    Txn = lmdb.Transaction[bytes]

E = TypeVar("E")

CORRECTED_PART_MAX: Final = 0.25
"""If a larger part of a list was changed, reading all records takes no longer than to look up the changed ones."""


def by_id(database: Owner, txn: Txn, kind: Kind[E], id: str) -> E:  # noqa: A002
    """The entity under an id. Raises NotFound, also for an id that no entity can have, and InvalidEntity."""
    try:
        key = id.encode()
        record = txn.get(key, None, database.tables[kind.number].handle)
    except (lmdb.BadValsizeError, UnicodeEncodeError, AttributeError):  # empty, over 511 bytes, not UTF-8, or no text
        record = None
    if record is None:
        _require_text(kind, "id", id)
        raise NotFound(kind.name, id)
    entry = database.decoded.tables[kind.number].get(key)
    if entry is not None and entry[0] == record[:HEAD_BYTES]:
        return entry[1]  # type: ignore[no-any-return]
    return _decoded_and_kept(database, kind, key, record)


def first_by_index(database: Owner, txn: Txn, kind: Kind[E], index: Index, value: str) -> E:
    """The entity with the smallest id among the entities with this value. Raises NotFound and
    InvalidEntity."""
    _require_text(kind, index.field, value)
    if not value:
        unset = _without(database, txn, kind, index)
        if not unset:
            raise NotFound(kind.name, value)
        return unset[0]
    key = codec.exact_key(value)
    id_ = txn.get(key, None, database.index_handles[index.name]) if key else None  # the first of the duplicates
    if id_ is None:
        raise NotFound(kind.name, value)
    return _entities(database, kind, _records(database, txn, kind, [id_]))[0]


def by_index(database: Owner, txn: Txn, kind: Kind[E], index: Index, value: str) -> list[E]:
    """The entities with this value, ordered by id. Raises InvalidEntity."""
    _require_text(kind, index.field, value)
    if not value:
        return _without(database, txn, kind, index)
    keys = _keys_in(database, txn, index, codec.exact_key(value))
    return _entities(database, kind, _records(database, txn, kind, keys))


def _without(database: Owner, txn: Txn, kind: Kind[E], index: Index) -> list[E]:
    """The entities whose field is empty. No index has them, because LMDB has no empty keys."""
    return [entity for entity in everything(database, txn, kind) if not getattr(entity, index.field)]


def by_host(database: Owner, txn: Txn, kind: Kind[E], index: Index, host: str) -> list[E]:
    """The entities with `host`, or with the wildcard of its parent (RFC 6125, 6.4.3), ordered by id. Raises
    InvalidEntity."""
    _require_text(kind, index.field, host)
    exact = codec.folded_key(host)
    label, _, parent = exact.partition(b".")
    keys = set(_keys_in(database, txn, index, exact))
    if label and parent:
        keys.update(_keys_in(database, txn, index, b"*." + parent))
    return _entities(database, kind, _records(database, txn, kind, sorted(keys)))


def _require_text(kind: Kind[Any], field: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidEntity(kind.name, f"must be text (str), not {type(value).__name__}", field=field)


def everything(database: Owner, txn: Txn, kind: Kind[E]) -> list[E]:
    """Every entity of a kind, ordered by id. The list is the caller's own."""
    table, moment = database.tables[kind.number], txn.id()
    listed = table.listed
    if listed is not None:
        if listed.moment == moment:
            return listed.entities.copy()
        changed = table.changed.since(min(listed.moment, moment)) if database.is_written_here else None
        if changed is not None and len(changed) <= len(listed.keys) * CORRECTED_PART_MAX:
            corrected = _corrected(database, txn, kind, listed, changed, moment) if changed else listed
            if corrected is not None:
                _keep(database, table, corrected)
                return corrected.entities.copy()
    return _scanned(database, txn, kind, moment)


def _scanned(database: Owner, txn: Txn, kind: Kind[E], moment: int) -> list[E]:
    """All records, one after another. The list is kept for the next call if none of them is large."""
    table, cached = database.tables[kind.number], database.decoded.tables[kind.number].get
    keys: list[bytes] = []
    found: list[E] = []
    added: dict[bytes, tuple[bytes, E]] = {}
    can_be_kept = True
    for key, record in txn.cursor(table.handle):
        head = record[:HEAD_BYTES]
        entry = cached(key)
        if entry is None or entry[0] != head:
            entry = head, _decoded(database, kind, key, record)
            if len(record) <= CACHED_RECORD_BYTES_MAX:
                added[key] = entry
            else:
                can_be_kept = False
        keys.append(key)
        found.append(entry[1])
    database.decoded.add_all(kind.number, added)
    if not can_be_kept:
        return found
    _keep(database, table, Listed(moment, keys, found))
    return found.copy()


def _corrected(
    database: Owner, txn: Txn, kind: Kind[E], listed: Listed, changed: list[bytes], moment: int
) -> Listed | None:
    """The list of another moment, earlier or later, from this list and all keys that were changed between the two.

    None if a record is too large to be kept in a list.
    """
    handle = database.tables[kind.number].handle
    keys, entities = listed.keys, listed.entities.copy()
    for key in changed:
        record = txn.get(key, None, handle)
        at = bisect_left(keys, key)
        is_there = at < len(keys) and keys[at] == key
        if (record is not None) is not is_there and keys is listed.keys:
            keys = keys.copy()
        if record is None:
            if is_there:
                del keys[at], entities[at]
            continue
        if len(record) > CACHED_RECORD_BYTES_MAX:
            return None
        (entity,) = _entities(database, kind, [(key, record)])
        if is_there:
            entities[at] = entity
        else:
            keys.insert(at, key)
            entities.insert(at, entity)
    return Listed(moment, keys, entities)


def _keep(database: Owner, table: Table, listed: Listed) -> None:
    """Keep a list for the next call, within the bound of the cache for all kinds together."""
    kept = table.listed
    if kept is not None and kept.moment >= listed.moment:
        return
    others = [other for other in database.tables[1:] if other is not table]
    room = CACHED_ENTITIES_MAX - len(listed.keys)
    if room < sum(len(other.listed.keys) for other in others if other.listed is not None):
        for other in others:
            other.listed = None
    table.listed = listed if room >= 0 else None


def some_after(database: Owner, txn: Txn, kind: Kind[E], last: bytes, count: int) -> tuple[list[E], bytes]:
    """Up to `count` entities with keys above `last` (b"": from the first), and the key of the last one returned.

    For streams: decoded entities are not cached, so that an export does not displace the rest of the cache.
    """
    cursor = txn.cursor(database.tables[kind.number].handle)
    if last and not cursor.set_range(last):
        return [], last
    if last and cursor.key() == last and not cursor.next():
        return [], last
    pairs = list(islice(cursor.iternext(), count))
    return _entities(database, kind, pairs, remember=False), pairs[-1][0] if pairs else last


# ------------------------------------------------------------------------------- records to entities


def _keys_in(database: Owner, txn: Txn, index: Index, key: bytes) -> list[bytes]:
    if not 0 < len(key) <= ID_MAX_BYTES:
        return []
    cursor = txn.cursor(database.index_handles[index.name])
    return list(cursor.iternext_dup()) if cursor.set_key(key) else []


def _records(database: Owner, txn: Txn, kind: Kind[Any], keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    handle = database.tables[kind.number].handle
    for key in keys:
        record = txn.get(key, None, handle)
        if record is None:
            raise Corrupted(database.path, f"an index has {kind.name} {_shown(key)}, but the table does not have it")
        yield key, record


def _entities(
    database: Owner, kind: Kind[E], pairs: Iterable[tuple[bytes, bytes]], *, remember: bool = True
) -> list[E]:
    cached = database.decoded.tables[kind.number].get
    decode = _decoded_and_kept if remember else _decoded
    found: list[E] = []
    for key, record in pairs:
        entry = cached(key)
        if entry is not None and entry[0] == record[:HEAD_BYTES]:
            found.append(entry[1])
        else:
            found.append(decode(database, kind, key, record))
    return found


def _decoded(database: Owner, kind: Kind[E], key: bytes, record: bytes) -> E:
    """Raises Corrupted if the record cannot be decoded."""
    try:
        return codec.decode(kind, record)
    except codec.MalformedRecord as error:
        raise Corrupted(database.path, f"{kind.name} {_shown(key)}: {error}") from None


def _decoded_and_kept(database: Owner, kind: Kind[E], key: bytes, record: bytes) -> E:
    """The same for an entity that is not in the cache. It is put there, unless its record is large."""
    entity = _decoded(database, kind, key, record)
    if len(record) <= CACHED_RECORD_BYTES_MAX:
        database.decoded.add(kind.number, key, record[:HEAD_BYTES], entity)
    return entity


def _shown(key: bytes) -> str:
    return repr(key.decode(errors="replace"))
