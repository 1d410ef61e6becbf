"""Read and write transactions on a database: records with their indexes, and the sub-databases without entities.

Opening, closing and durability are in database.py. Entities are bytes here, except for their indexed values.
Invariant: an index changes in the transaction that changes its records.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain, starmap, zip_longest
from operator import eq
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol, TypeAlias

import lmdb

from warren_raft.errors import Closed, Corrupted, InvalidEntity, WarrenError
from warren_raft.store import codec
from warren_raft.store.cache import DecodedCache
from warren_raft.store.leading import begin_alike, leading_items
from warren_raft.store.lmdb_errors import translated
from warren_raft.store.memo import ChangedKeys, Listed
from warren_raft.store.position import (
    FIRST_INDEX,
    NO_RECORDS,
    Position,
    fits_check,
    position_in,
    record_of,
    revision_in,
)
from warren_raft.store.tables import ID_MAX_BYTES, KINDS, Index, Kind
from warren_raft.support import forking
from warren_raft.support.counting import Durations

if TYPE_CHECKING:
    Handle: TypeAlias = lmdb._Database

VIEW_AGE_MAX_SECONDS: Final = 3600.0
"""A view that is open for longer is ended: the file grows by every write since the view began, and never shrinks."""

Space: TypeAlias = Literal["meta", "sessions", "history"]
KeysBefore: TypeAlias = Sequence[tuple[bytes, ...]]
"""The keys of one record, for each index of its kind, in the order of `Kind.indexes`."""
WHOLE_IN_A_PAGE_BYTES: Final = 1024
"""A record up to this size lies within a page of a tree, with any key; larger ones may have pages of their own."""

META: Final = "meta"
SESSIONS: Final = "sessions"
HISTORY: Final = "history"
SPACES: Final[tuple[Space, ...]] = (META, SESSIONS, HISTORY)
"""The sub-databases that hold no entities. Keys and values belong to the code that uses them (fsm/)."""

FORMAT: Final = 2
"""The version of the format that this package writes. A newer format is refused at open. Format 1 had a record for each
part of the position. It is read, and the first change of the state changes it to format 2."""

POSITION: Final = b"position"
"""All that changes with every entry, in one record (position.py)."""
CLUSTER_ID: Final = b"cluster_id"
FORMAT_VERSION: Final = b"format"
MEMBERSHIP: Final = b"membership"
LEVEL: Final = b"level"
"""Of the command set (levels.py)."""
POSITION_OF_FORMAT_1: Final = (b"applied_index", b"applied_term", b"revision", b"digest")
CHECK_OF_FORMAT_1: Final = b"check"
META_KEYS: Final = (POSITION, CLUSTER_ID, FORMAT_VERSION, MEMBERSHIP, LEVEL, *POSITION_OF_FORMAT_1, CHECK_OF_FORMAT_1)
"""All keys of `meta`. Integers are 8 bytes, big-endian."""
DIGEST_META_KEYS: Final = (CLUSTER_ID, MEMBERSHIP, LEVEL)
"""The keys that are the same for all managers at the same revision, and are therefore in the digest."""


class Ended:
    """Stands for an LMDB transaction that must not be used any more: every use raises Closed."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> NoReturn:
        raise Closed(self._reason)


NOT_OPEN: Final[Any] = Ended("the transaction is not open")
FORKED: Final[Any] = Ended(forking.PARENTS)
EXPIRED: Final[Any] = Ended(
    f"the view was open for more than {VIEW_AGE_MAX_SECONDS:.0f} seconds and was ended, so that the "
    "database stops growing; open a new one"
)


class Table:
    """The sub-databases of one kind: its records, and each index with the function that takes its keys from a record.

    `indexed_width`: from how many of the first items of an entity these keys are taken. `changed`: every write of a
    record is noted there. `listed`: the latest list of the kind, for lookup.py.
    """

    __slots__ = ("changed", "handle", "indexed_width", "indexes", "listed")

    def __init__(self, handle: Handle, indexes: tuple[tuple[Handle, codec.KeysOf], ...], indexed_width: int) -> None:
        self.handle = handle
        self.indexes = indexes
        self.indexed_width = indexed_width
        self.changed: Final = ChangedKeys()
        self.listed: Listed | None = None


class IndexedIds:
    """The ids under each key of an index, from the records. The keys of a value are taken once: many records share one.

    Ids are added in their order.
    """

    def __init__(self, kind: Kind[Any], index: Index, keys_of: codec.KeysOf) -> None:
        self.index: Final = index
        self._position = codec.index_position(kind, index)
        self._keys_of = keys_of
        self._found: dict[object, tuple[tuple[bytes, ...], list[bytes]]] = {}
        """Value -> its keys, and the ids of the records that have it. Equal values have the same keys: only texts have
        any."""

    def add(self, array: Sequence[Any], id_: bytes) -> None:
        """`array`: the first items of the entity, or all."""
        value = array[self._position] if len(array) > self._position else None
        if type(value) is list:  # of `leading_items`
            value = tuple(value)
        found = self._found.get(value)
        if found is None:
            found = self._found[value] = (self._keys_of(array), [])
        found[1].append(id_)

    def by_key(self) -> dict[bytes, Sequence[bytes]]:
        lists: defaultdict[bytes, list[list[bytes]]] = defaultdict(list)
        for keys, ids in self._found.values():
            for key in keys:
                lists[key].append(ids)
        return {key: ids[0] if len(ids) == 1 else sorted(chain(*ids)) for key, ids in lists.items()}


class Owner(Protocol):
    """The database that a transaction belongs to (database.py): its handles, and the beginning and the end of a
    transaction."""

    @property
    def path(self) -> str: ...
    @property
    def number(self) -> int:
        """Of the databases of this process, one that was opened later has a higher number."""

    @property
    def clock(self) -> Callable[[], float]:
        """In seconds, for the age of a view."""

    @property
    def decoded(self) -> DecodedCache: ...
    @property
    def is_written_here(self) -> bool:
        """Whether this process makes every change, so that `Table.changed` has all of them."""

    @property
    def tables(self) -> Sequence[Table]:
        """By the number of the kind."""

    @property
    def space_handles(self) -> Mapping[str, Handle]: ...
    @property
    def index_handles(self) -> Mapping[str, Handle]: ...
    @property
    def all_handles(self) -> Sequence[Handle]: ...
    @property
    def begin(self) -> Callable[[], Any]:
        """Begins an LMDB read transaction."""

    @property
    def commits(self) -> Durations:
        """The write transactions that were committed, each from its begin to the end of its commit."""

    def register(self, transaction: ReadTransaction) -> None: ...
    def unregister(self, transaction: ReadTransaction) -> None: ...
    def begin_write(self, transaction: WriteTransaction) -> lmdb.Transaction[bytes]: ...
    def end_write(self) -> None: ...
    def write_failed(self, error: lmdb.Error) -> WarrenError:
        """The error to raise for a commit that failed."""


def key_of(id: str) -> bytes:  # noqa: A002
    """The key of an entity: its id in UTF-8. Raises InvalidEntity if the id cannot be a key."""
    try:
        key = id.encode()
    except UnicodeEncodeError:
        key = b""
    if not 0 < len(key) <= ID_MAX_BYTES:
        raise InvalidEntity("entity", f"the id must have 1 to {ID_MAX_BYTES} bytes in UTF-8", id=id, field="id")
    return key


class Transaction:
    """The common part of read and write transactions: reads of one state of the database."""

    __slots__ = ("__weakref__", "_txn", "database")

    def __init__(self, database: Owner) -> None:
        self.database: Final = database
        self._txn: lmdb.Transaction[bytes] = NOT_OPEN

    # ---- records

    def get(self, kind: Kind[Any], id: str) -> bytes | None:  # noqa: A002
        """The record of an entity; None if there is no record."""
        return self._txn.get(key_of(id), None, self.database.tables[kind.number].handle)

    def items(self, kind: Kind[Any]) -> Iterator[tuple[bytes, bytes]]:
        """Every (key, record) of a kind, ordered by key. Only inside the transaction."""
        return iter(self._txn.cursor(self.database.tables[kind.number].handle))

    def count(self, kind: Kind[Any]) -> int:
        """How many entities of a kind there are."""
        return self._txn.stat(self.database.tables[kind.number].handle)["entries"]

    def counts(self) -> dict[str, int]:
        """How many entities of each kind there are, by the plural of the kind."""
        return {kind.plural: self.count(kind) for kind in KINDS if kind.entity is not None}

    # ---- meta, sessions, history

    def fetch(self, space: Space, key: bytes) -> bytes | None:
        """The value under `key` in meta, sessions or history."""
        return self._txn.get(key, None, self.database.space_handles[space])

    def scan(self, space: Space, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Every (key, value) from the first key ≥ `start`; `reverse`: from the last key downwards."""
        cursor = self._txn.cursor(self.database.space_handles[space])
        if reverse:
            return cursor.iterprev()
        if start:
            return cursor.iternext() if cursor.set_range(start) else iter(())
        return cursor.iternext()

    def size(self, space: Space) -> int:
        """How many entries meta, sessions or history has."""
        return self._txn.stat(self.database.space_handles[space])["entries"]

    def meta_keys(self) -> set[bytes]:
        """The keys in `meta`."""
        return {key for key, _ in self.scan("meta")}

    @property
    def position(self) -> Position:
        """The position of the state. Raises Corrupted for a record that is none."""
        record = self.fetch("meta", POSITION)
        if record is None:
            return self._position_of_format_1()
        try:
            return position_in(record)
        except ValueError as error:
            raise Corrupted(self.database.path, f"cannot be read: {error}") from None

    def _position_of_format_1(self) -> Position:
        """Also the position of a new database, which has none of these records."""
        parts = [self.fetch("meta", key) for key in POSITION_OF_FORMAT_1]
        index, term, revision = (None if part is None else int.from_bytes(part, "big") for part in parts[:3])
        return Position(FIRST_INDEX if index is None else index, term or 0, revision or 0, parts[3] or NO_RECORDS)

    @property
    def has_sound_position(self) -> bool:
        """Whether the position fits its check. (The first releases stored none.)"""
        record = self.fetch("meta", POSITION)
        if record is not None:
            return fits_check(record)
        check = self.fetch("meta", CHECK_OF_FORMAT_1)
        return check is None or check == _check_of_format_1(self.position)

    @property
    def revision(self) -> int:
        """The revision of the latest change; 0 before the first change."""
        record = self.fetch("meta", POSITION)  # without the rest of it: every view asks for this
        return self.position.revision if record is None else revision_in(record)

    # ---- the whole state

    def digest_items(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Every (database name, key, record) that the digest covers: tables, sessions, members, cluster id, level."""
        for kind in KINDS:
            for key, record in self.items(kind):
                yield kind.bucket, key, record
        for key, record in self.scan("sessions"):
            yield SESSIONS, key, record
        for key in DIGEST_META_KEYS:
            value = self.fetch("meta", key)
            if value is not None:
                yield META, key, value

    def verify_indexes(self) -> list[str]:
        """Rebuild every index from the records and compare: one line for each difference, none if all are equal."""
        return [problem for kind in KINDS if kind.indexes for problem in self._index_problems(kind)]

    def _index_problems(self, kind: Kind[Any]) -> list[str]:
        width = codec.indexed_width(kind)
        indexes = [IndexedIds(kind, index, keys_of) for index, keys_of in codec.index_keys(kind)]
        for id_, record in self.items(kind):
            array = leading_items(record, width)  # once for all indexes: it takes most of the time
            for ids in indexes:
                ids.add(array, id_)
        return [problem for ids in indexes for problem in self.index_differences(ids.index.name, ids.by_key())]

    def index_differences(self, name: str, ids: Mapping[bytes, Sequence[bytes]]) -> list[str]:
        """Compare an index with the ids under each of its keys. One line for each difference, none if all are equal."""

        def wanted() -> Iterator[tuple[bytes, bytes]]:
            return ((key, id_) for key in sorted(ids) for id_ in ids[key])

        # Records come in the order of their ids, so both sides have one order.
        if all(starmap(eq, zip_longest(self.index_entries(name), wanted()))):
            return []
        there, right = set(self.index_entries(name)), set(wanted())
        problems = [f"index {name} lacks {key!r} -> {id_!r}" for key, id_ in sorted(right - there)]
        return problems + [f"index {name} has a false {key!r} -> {id_!r}" for key, id_ in sorted(there - right)]

    def index_entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Every (value, id) of an index, in order."""
        return iter(self._txn.cursor(self.database.index_handles[name]))

    def ids_in_index(self, name: str, value: bytes) -> list[bytes]:
        """The ids under one value of an index, in order."""
        cursor = self._txn.cursor(self.database.index_handles[name])
        return list(cursor.iternext_dup()) if cursor.set_key(value) else []

    def used_bytes(self, *, history: bool = True) -> int:
        """The size of the pages in use, which is the size of a compact copy of the database. O(1).

        `history`: with the pages of the history, which has a bound of its own and does not shrink when entities are
        deleted.
        """
        txn, pages, page_size = self._txn, 0, 0
        left_out = None if history else self.database.space_handles[HISTORY]
        for handle in self.database.all_handles:
            if handle is left_out:
                continue
            stat = txn.stat(handle)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            page_size = stat["psize"]
        return pages * page_size

    def abandon(self, stand_in: Any) -> Any:
        """Let every further use raise Closed. Returns the LMDB transaction to the caller, or None."""
        txn: Any = self._txn
        self._txn = stand_in
        return None if type(txn) is Ended else txn


class ReadTransaction(Transaction):
    """One snapshot of the database, for many reads, not affected by writers. Use it with `with`; one thread at a time.

    An old one makes the file grow: see `Database.oldest_read_age_seconds`. `expires`: `Database.end_old_reads` may end
    it under `lock`, so its user then holds `lock` for each use.
    """

    __slots__ = ("_begun", "expires", "lock", "started_seconds")

    def __init__(self, database: Owner, *, expires: bool = False) -> None:
        super().__init__(database)
        self._begun: Any = None
        self.expires: Final = expires
        self.lock = threading.RLock()  # a signal handler may read in the view in which its thread is reading
        self.started_seconds = 0.0

    def __enter__(self) -> ReadTransaction:
        try:
            self._begun = self.database.begin()
            self._txn = self._begun.__enter__()
        except lmdb.Error as error:  # for example if no reader slot is left
            raise translated(error, self.database.path) from error
        self.started_seconds = self.database.clock()
        self.database.register(self)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end(NOT_OPEN)

    def end(self, stand_in: object) -> None:
        """Give the snapshot up. Idempotent."""
        with self.lock:
            begun = self.abandon(stand_in)
        if begun is not None:
            begun.abort()
        self.database.unregister(self)

    def abandon(self, stand_in: object) -> Any:
        """Like Transaction.abandon, but returns the object that `Database.begin` gave."""
        begun, self._begun = self._begun, None
        super().abandon(stand_in)
        return begun

    @property
    def raw(self) -> lmdb.Transaction[bytes]:
        """The LMDB transaction, for code that reads thousands of records (lookup.py)."""
        return self._txn


class WriteTransaction(Transaction):
    """The one writer. Everything in the `with` block is committed together, or, after an exception, not at all.

    Raises StorageFull if the commit finds no space left (nothing is changed then, and the database stays usable),
    StorageFailed if the disk fails. One thread; never nested.
    """

    __slots__ = ("_large", "_number", "_started_seconds", "keys_before")

    def __init__(self, database: Owner) -> None:
        super().__init__(database)
        self.keys_before: KeysBefore | None = None
        """The keys of a record in each index of its kind, before the latest change of a record that removed it or
        changed one of its keys. Whoever reads it sets it to None."""
        self._large: set[tuple[int, bytes]] = set()
        """The records of this transaction that may have pages of their own."""

    def __enter__(self) -> WriteTransaction:
        self._txn = self.database.begin_write(self)
        self._number = self._txn.id()
        self._started_seconds = self.database.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        txn: Any = self._txn
        self._txn = NOT_OPEN
        if type(txn) is Ended:  # in a forked child the transaction and its lock belong to the parent
            return
        try:
            if kind is None:
                txn.commit()
                self.database.commits.note(self.database.clock() - self._started_seconds)
            else:
                txn.abort()
                if isinstance(error, lmdb.Error):
                    raise error
        except lmdb.Error as failure:
            raise self.database.write_failed(failure) from failure
        finally:
            self.database.end_write()

    def put(self, kind: Kind[Any], id: str, record: bytes) -> bytes | None:  # noqa: A002
        """Store a record and update the kind's indexes. Returns the previous record.

        A record that cannot be read is not indexed. Raises InvalidEntity for an id that cannot be a key.
        """
        return self.put_key(kind.number, key_of(id), record)

    def put_key(self, kind_number: int, key: bytes, record: bytes) -> bytes | None:
        """The same as `put`, for a key that `key_of` made, or that `command.decode` accepted as an id."""
        table = self.database.tables[kind_number]
        table.changed.note(key, self._number)
        if self._large and (kind_number, key) in self._large:
            # If a smaller record is written in this same transaction, LMDB may give it all pages of the larger one.
            # That is harmless to LMDB, but every later check of the file's structure, also after a restart, takes it
            # for damage.
            previous = self._txn.pop(key, table.handle)
            self._txn.put(key, record, True, True, False, table.handle)
        else:
            previous = self._txn.replace(key, record, table.handle)
        if len(record) > WHOLE_IN_A_PAGE_BYTES:
            self._large.add((kind_number, key))
        if table.indexes and (previous is None or not begin_alike(record, previous, table.indexed_width)):
            self._reindex(table, key, previous, record)
        return previous

    def delete(self, kind: Kind[Any], id: str) -> bytes | None:  # noqa: A002
        """Remove a record and its index entries. Returns the previous record, or None."""
        return self.delete_key(kind.number, key_of(id))

    def delete_key(self, kind_number: int, key: bytes) -> bytes | None:
        """The same as `delete`, for a key as `put_key` takes it."""
        table = self.database.tables[kind_number]
        table.changed.note(key, self._number)
        previous = self._txn.pop(key, table.handle)
        if previous is not None and table.indexes:
            self._reindex(table, key, previous, None)
        return previous

    def _reindex(self, table: Table, key: bytes, before: bytes | None, after: bytes | None) -> None:
        old = [] if before is None else leading_items(before, table.indexed_width)
        new = [] if after is None else leading_items(after, table.indexed_width)
        keys_before: list[tuple[bytes, ...]] = []
        is_other = after is None
        for handle, keys_of in table.indexes:
            old_keys = keys_of(old) if old else ()
            new_keys = keys_of(new) if new else ()
            keys_before.append(old_keys)
            if old_keys == new_keys:
                continue
            is_other = True
            for gone in old_keys:
                if gone not in new_keys:
                    self._txn.delete(gone, key, handle)
            for added in new_keys:
                if added not in old_keys:
                    self._txn.put(added, key, True, True, False, handle)
        if is_other and before is not None:
            self.keys_before = keys_before

    def store(self, space: Space, key: bytes, value: bytes) -> None:
        """Set a value in meta, sessions or history."""
        self._txn.put(key, value, True, True, False, self.database.space_handles[space])

    def erase(self, space: Space, key: bytes) -> bool:
        """Remove a value of meta, sessions or history. Returns whether it existed."""
        return self._txn.delete(key, b"", self.database.space_handles[space])

    def clear(self, space: Space) -> None:
        """Remove every entry of sessions or history."""
        self._txn.drop(self.database.space_handles[space], delete=False)

    def move(self, to: Position) -> int:
        """Store the position of the state. Returns the applied index before. A file of format 1 gets the present
        format."""
        previous = self._txn.replace(POSITION, record_of(to), self.database.space_handles[META])
        if previous is not None:
            return int.from_bytes(previous[:8], "big")
        before = self._position_of_format_1()
        for key in (*POSITION_OF_FORMAT_1, CHECK_OF_FORMAT_1):
            self.erase(META, key)
        self.store(META, FORMAT_VERSION, FORMAT.to_bytes(8, "big"))
        return before.applied_index


def _check_of_format_1(position: Position) -> bytes:
    return blake2b(b"%d %d %d " % position[:3] + position.digest, digest_size=8).digest()
