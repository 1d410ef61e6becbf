"""All reads of a store: Reader (one transaction for each call) and View (one snapshot for many calls).

Finding and decoding a record is done in lookup.py. The subclass of Reader provides the database.
Invariant: no transaction stays open across code of the caller, except that of a View, which is ended after a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

import lmdb

from warren_raft.errors import Closed, InvalidEntity, Misuse, NotFound, Unavailable
from warren_raft.model.entities import (
    Container,
    Ingress,
    Network,
    Node,
    Secret,
    Service,
    TLSCertificate,
    Volume,
)
from warren_raft.store import lookup
from warren_raft.store.cache import HEAD_BYTES
from warren_raft.store.counts import TIMED_MASK, ReadCounts
from warren_raft.store.events import Filter, checked_bookmark_seconds, checked_since
from warren_raft.store.lmdb_errors import translated
from warren_raft.store.tables import (
    CA,
    CA_ID,
    CERTIFICATE,
    CERTIFICATE_BY_HOST,
    CERTIFICATE_BY_NAME,
    CONTAINER,
    CONTAINER_BY_NODE,
    CONTAINER_BY_SERVICE,
    INGRESS,
    INGRESS_BY_NAME,
    NETWORK,
    NODE,
    SECRET,
    SECRET_BY_NAME,
    SERVICE,
    SERVICE_BY_NAME,
    VOLUME,
    VOLUME_BY_NAME,
    Index,
    Kind,
)
from warren_raft.store.transactions import ReadTransaction
from warren_raft.store.watch import Feeds, Wanted, Watch
from warren_raft.support import timeouts

if TYPE_CHECKING:
    from warren_raft.store.database import Database
    from warren_raft.store.transactions import Owner

    Txn = lmdb.Transaction[bytes]

E = TypeVar("E")
R = TypeVar("R")
P = ParamSpec("P")

_GENERATION_RACES_MAX: Final = 10  # a generation lives for seconds at least; losing this race twice is a bug

STREAM_CHUNK: Final = 256
"""Entities decoded at a time by the `iter_` methods: enough to hide the cost of a step, and few enough to hold."""


class ReadMethods(ABC):
    """The read operations. Entities come with their revision and are immutable; they may be shared and kept.

    All raise Closed on a closed store, and Corrupted if the file does not hold the bytes that were written to it. Ids
    and names of more than 511 bytes are not found; InvalidEntity says that an id, a name or a host is not text.
    """

    __slots__ = ()

    _reads: ReadCounts

    @abstractmethod
    def _get(self, kind: Kind[E], id: str) -> E: ...  # noqa: A002

    @abstractmethod
    def _within(self, read: Callable[Concatenate[Owner, Txn, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`read(database, transaction, ...)` in this object's transaction."""

    # The next three count: plain steps, because each call within would be felt.

    def _list(self, kind: Kind[E]) -> list[E]:
        reads, number = self._reads, kind.number
        count = reads.lists[number] = reads.lists[number] + 1
        begin = 0.0 if count & TIMED_MASK else perf_counter()
        try:
            return self._within(lookup.everything, kind)
        except Exception as error:
            reads.failures["list", number, type(error).__name__] += 1
            raise
        finally:
            if begin:
                reads.durations["list"][number].note(perf_counter() - begin)

    def _find(
        self,
        read: Callable[[Owner, Txn, Kind[E], Index, str], R],
        kind: Kind[E],
        index: Index,
        value: str,
    ) -> R:
        reads, number = self._reads, kind.number
        count = reads.finds[number] = reads.finds[number] + 1
        begin = 0.0 if count & TIMED_MASK else perf_counter()
        try:
            return self._within(read, kind, index, value)
        except Exception as error:
            reads.failures["find", number, type(error).__name__] += 1
            raise
        finally:
            if begin:
                reads.durations["find"][number].note(perf_counter() - begin)

    def _get_timed(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        """For `_get`, if it is the turn of this read."""
        reads, number = self._reads, kind.number
        reads.begin_timed(number)
        begin = perf_counter()
        try:
            return self._get(kind, id)
        finally:
            reads.durations["get"][number].note(perf_counter() - begin)

    def _named(self, kind: Kind[E], index: Index, name: str) -> E:
        return self._find(lookup.first_by_index, kind, index, name)

    def _with(self, kind: Kind[E], index: Index, value: str) -> list[E]:
        return self._find(lookup.by_index, kind, index, value)

    # ---- nodes

    def get_node(self, id: str) -> Node:  # noqa: A002
        """The node with this id. Raises NotFound."""
        return self._get(NODE, id)

    def list_nodes(self) -> list[Node]:
        """Every node, ordered by id."""
        return self._list(NODE)

    # ---- services

    def get_service(self, id: str) -> Service:  # noqa: A002
        """The service with this id. Raises NotFound."""
        return self._get(SERVICE, id)

    def get_service_by_name(self, name: str) -> Service:
        """The service with this name; if several have it, the one with the smallest id. Raises NotFound."""
        return self._named(SERVICE, SERVICE_BY_NAME, name)

    def list_services(self) -> list[Service]:
        """Every service, ordered by id."""
        return self._list(SERVICE)

    # ---- containers

    def get_container(self, id: str) -> Container:  # noqa: A002
        """The container with this id. Raises NotFound."""
        return self._get(CONTAINER, id)

    def list_containers(self) -> list[Container]:
        """Every container, ordered by id."""
        return self._list(CONTAINER)

    def list_containers_by_service(self, service_id: str) -> list[Container]:
        """The containers of a service, ordered by id; empty for a service that does not exist. An empty id
        gives the containers without a service; for that every container is read."""
        return self._with(CONTAINER, CONTAINER_BY_SERVICE, service_id)

    def list_containers_by_node(self, node_id: str) -> list[Container]:
        """The containers on a node, ordered by id; empty for a node that does not exist. An empty id gives
        the containers without a node; for that every container is read."""
        return self._with(CONTAINER, CONTAINER_BY_NODE, node_id)

    # ---- secrets

    def get_secret(self, id: str) -> Secret:  # noqa: A002
        """The secret with this id. Raises NotFound."""
        return self._get(SECRET, id)

    def get_secret_by_name(self, name: str) -> Secret:
        """The secret with this name; if several have it, the one with the smallest id. Raises NotFound."""
        return self._named(SECRET, SECRET_BY_NAME, name)

    def list_secrets(self) -> list[Secret]:
        """Every secret, ordered by id."""
        return self._list(SECRET)

    # ---- volumes

    def get_volume(self, id: str) -> Volume:  # noqa: A002
        """The volume with this id. Raises NotFound."""
        return self._get(VOLUME, id)

    def get_volume_by_name(self, name: str) -> Volume:
        """The volume with this name; if several have it, the one with the smallest id. Raises NotFound."""
        return self._named(VOLUME, VOLUME_BY_NAME, name)

    def list_volumes(self) -> list[Volume]:
        """Every volume, ordered by id."""
        return self._list(VOLUME)

    # ---- networks

    def get_network(self, id: str) -> Network:  # noqa: A002
        """The network with this id. Raises NotFound."""
        return self._get(NETWORK, id)

    def list_networks(self) -> list[Network]:
        """Every network, ordered by id."""
        return self._list(NETWORK)

    # ---- the CA

    def get_ca(self) -> bytes:
        """The bytes that `save_ca` saved. Raises NotFound if none were saved."""
        return self._get(CA, CA_ID)

    # ---- ingresses

    def get_ingress(self, id: str) -> Ingress:  # noqa: A002
        """The ingress with this id. Raises NotFound."""
        return self._get(INGRESS, id)

    def get_ingress_by_name(self, name: str) -> Ingress:
        """The ingress with this name; if several have it, the one with the smallest id. Raises NotFound."""
        return self._named(INGRESS, INGRESS_BY_NAME, name)

    def list_ingresses(self) -> list[Ingress]:
        """Every ingress, ordered by id."""
        return self._list(INGRESS)

    # ---- TLS certificates

    def get_tls_certificate(self, id: str) -> TLSCertificate:  # noqa: A002
        """The TLS certificate with this id. Raises NotFound."""
        return self._get(CERTIFICATE, id)

    def get_tls_certificate_by_name(self, name: str) -> TLSCertificate:
        """The TLS certificate with this name; if several have it, the one with the smallest id. Raises NotFound."""
        return self._named(CERTIFICATE, CERTIFICATE_BY_NAME, name)

    def get_tls_certificates_by_host(self, host: str) -> list[TLSCertificate]:
        """The TLS certificates that cover a host, ordered by id; ASCII letters are compared without case.

        `*.example.com` covers `a.example.com`, not `a.b.example.com` and not `example.com` (RFC 6125, 6.4.3).
        """
        return self._find(lookup.by_host, CERTIFICATE, CERTIFICATE_BY_HOST, host)

    def list_tls_certificates(self) -> list[TLSCertificate]:
        """Every TLS certificate, ordered by id."""
        return self._list(CERTIFICATE)


class Reader(ReadMethods):
    """The reads of a store. Each call is one read transaction on this machine's database; `read()` makes one for many
    reads.

    Thread-safe. A call sees everything that was applied here when it began, and waits for no other thread.
    """

    __slots__ = ("_gets", "_reads")

    def __init__(self) -> None:
        self._reads: ReadCounts = ReadCounts()
        self._gets: list[int] = self._reads.gets

    @abstractmethod
    def _attached(self) -> Database:
        """The database to read from now; another one after a change of generation. Raises Closed."""

    def _leader_contact_age_seconds(self) -> float | None:
        """The time since the last contact with a leader; 0 on the leader itself; infinite before the first; None if
        it is not known."""
        return None

    def _staleness_seconds(self) -> float | None:
        """How old the state here may be, as far as is known; None if it is not known."""
        return self._leader_contact_age_seconds()

    def read(self, *, max_staleness_seconds: float | None = None) -> View:
        """One snapshot for many reads: `with store.read() as view`.

        With `max_staleness_seconds` (from 0 on), opening the view raises Unavailable if this manager has not heard the
        leader for longer than that, or has not applied for so long what the leader said is committed; on the leader,
        if no majority was heard for so long. Nothing is sent, so it is no exact bound: a leader leads on for up to 1.5
        election timeouts until it notices that it was deposed, and the network's delay is not measured. `barrier()` is
        exact. A ReadOnlyStore does not know when a leader was heard, and always raises Unavailable; a LocalStore never
        does. Raises InvalidEntity for a wrong number.
        """
        return View(self, timeouts.checked(max_staleness_seconds, "max_staleness_seconds"))

    def _require_fresh(self, max_seconds: float) -> None:
        self._attached()
        age = self._staleness_seconds()
        if age is None or age == math.inf:
            reason = "it is not known here how old the state is: no leader was heard"
        elif age > max_seconds:
            reason = f"the state here may be {age:.1f} s old: no leader was heard since, or its entries are not applied"
        else:
            return
        asked = f"max_staleness_seconds={max_seconds:g}"
        raise Unavailable(f"{reason} ({asked})", maybe_applied=False, of_write=False)

    @abstractmethod
    def _feeds(self) -> Feeds:
        """The hub that fills the watches of this store. Raises Closed."""

    def watch(
        self,
        since: int | None = None,
        *,
        kinds: Collection[str] | None = None,
        service: str | None = None,
        node: str | None = None,
        ids: Collection[str] | None = None,
        bookmark_seconds: float | None = None,
    ) -> Watch:
        """The changes from now on, or behind the revision `since`, as events in order: see `Watch` and `Event`.

        `kinds`: only these, such as {"service", "node"}. `service`, `node`: only containers of this service (its id),
        or on this node; a container that ceases to belong to it is told by `left`. `ids`: only these entities.
        `bookmark_seconds`: if the state has changed and no event came for so long, an event `bookmark` says how far the
        watch is. While the state does not change, none comes: it is not a sign of life.

        A `since` that this store has not reached yet, because another manager gave it, is waited for. Events are of the
        state of this store: a follower that is cut off from the leader gives none. Raises InvalidEntity for an argument
        that is wrong, RefusedForSafety beyond 4,096 watches, Closed. Any thread.
        """
        wanted = self._wanted(since, kinds, service, node, ids, bookmark_seconds)
        return Watch(self._feeds(), wanted)

    def _wanted(
        self,
        since: int | None,
        kinds: Collection[str] | None,
        service: str | None,
        node: str | None,
        ids: Collection[str] | None,
        bookmark_seconds: float | None,
    ) -> Wanted:
        """The checked arguments of a watch that begins now. Raises InvalidEntity, Closed."""
        wanted = Filter.of(kinds, service, node, ids)
        seconds = checked_bookmark_seconds(bookmark_seconds)
        position = checked_since(since)
        now, number = self._within(_revision)
        begins_at = now if position is None else position
        return Wanted(wanted, begins_at, number if begins_at <= now else None, seconds)

    def _get(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        """The usual case is done here, in the fewest steps: the entity is in the cache, and its record is the same.

        Everything else, errors too, is left to `_within`, which begins again.
        """
        number, gets = kind.number, self._gets
        count = gets[number] = gets[number] + 1
        if not count:
            return self._get_timed(kind, id)
        database = self._attached()
        try:
            key = id.encode()
            entry = database.decoded.tables[number].get(key)
            if entry is not None:
                record = database.begin(database.tables[number].handle).get(key)
                if record is not None and record[:HEAD_BYTES] == entry[0]:
                    return entry[1]  # type: ignore[no-any-return]
        except (AttributeError, UnicodeEncodeError, Closed, lmdb.Error):
            pass
        try:
            return self._within(lookup.by_id, kind, id)
        except Exception as error:
            self._reads.failures["get", number, type(error).__name__] += 1
            raise

    def _within(self, read: Callable[Concatenate[Owner, Txn, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(_GENERATION_RACES_MAX):
            database = self._attached()
            try:
                with database.begin() as txn:
                    return read(database, txn, *args, **kwargs)
            except (NotFound, InvalidEntity) as error:
                # The traceback would hold the transaction, and the transaction holds the files. A caller that keeps the
                # error (as a test does) could not open the directory again after `close`.
                del txn
                raise error.with_traceback(None) from None
            except Closed:  # perhaps the generation changed after `_attached`; then read from the new one
                if self._attached() is database:
                    raise
            except lmdb.Error as error:
                raise translated(error, database.path) from error
        raise Closed("the database was replaced again and again")


def _revision(database: Owner, _txn: Txn) -> tuple[int, int]:
    """The revision of the state, and the number of its database."""
    with ReadTransaction(database) as transaction:
        return transaction.revision, database.number


def _opened_view(database: Owner, _txn: Txn) -> ReadTransaction:
    return ReadTransaction(database, expires=True).__enter__()


class View(ReadMethods):
    """One snapshot of the state: every read sees the same moment, in spite of later writes. Use it with `with`.

    A view outlives a change of generation and the closing of the store. Keep it short: while it is open, the database
    file grows by every write. After VIEW_AGE_MAX_SECONDS it is ended, and further reads raise Closed.
    """

    __slots__ = ("_contact_age", "_gets", "_max_staleness", "_reader", "_reads", "_revision", "_transaction")

    def __init__(self, reader: Reader, max_staleness_seconds: float | None = None) -> None:
        self._reader = reader
        self._reads = reader._reads
        self._gets = self._reads.gets
        self._max_staleness = max_staleness_seconds
        self._transaction: ReadTransaction | None = None
        self._revision = 0
        self._contact_age: float | None = None

    def __enter__(self) -> View:
        if self._transaction is not None:
            raise Misuse("a view is opened once; ask the store for another")
        if self._max_staleness is not None:
            self._reader._require_fresh(self._max_staleness)
        self._contact_age = self._reader._leader_contact_age_seconds()
        self._transaction = self._reader._within(_opened_view)
        self._revision = self._transaction.revision
        return self

    def __exit__(self, *exception: object) -> None:
        if self._transaction is not None:
            self._transaction.__exit__(*exception)

    def __repr__(self) -> str:
        """For logs and debuggers. It works in any state and never raises."""
        return f"<View of revision {self._revision}>" if self._transaction is not None else "<View, not open>"

    def _opened(self) -> ReadTransaction:
        if self._transaction is None:
            raise Misuse("the view is not open: with store.read() as view")
        return self._transaction

    @property
    def revision(self) -> int:
        """The revision of the latest change that this view sees; 0 before the first change."""
        self._opened()
        return self._revision

    @property
    def leader_contact_age_seconds(self) -> float | None:
        """The time since the last contact with a leader when the view was opened: how far it may lag behind the
        cluster.

        0 on the leader and in a LocalStore; infinite before the first contact; None in a ReadOnlyStore, which does not
        know it. A leader that was deposed counts from before it led, until it hears the next leader.
        """
        return self._contact_age

    def watch(
        self,
        *,
        kinds: Collection[str] | None = None,
        service: str | None = None,
        node: str | None = None,
        ids: Collection[str] | None = None,
        bookmark_seconds: float | None = None,
    ) -> Watch:
        """The changes exactly behind this view, as events in order: see `Reader.watch` for the arguments and errors.

        The watch goes on after the view is closed: read what you need, leave the view, and iterate.
        """
        number = self._opened().database.number
        wanted = self._reader._wanted(self.revision, kinds, service, node, ids, bookmark_seconds)
        return Watch(self._reader._feeds(), wanted._replace(reached_in=number))

    def _get(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        number, gets = kind.number, self._gets
        count = gets[number] = gets[number] + 1
        if not count:
            return self._get_timed(kind, id)
        try:
            return self._within(lookup.by_id, kind, id)
        except Exception as error:
            self._reads.failures["get", number, type(error).__name__] += 1
            raise

    def _within(self, read: Callable[Concatenate[Owner, Txn, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        transaction = self._opened()
        try:
            with transaction.lock:
                return read(transaction.database, transaction.raw, *args, **kwargs)
        except (NotFound, InvalidEntity) as error:
            raise error.with_traceback(None) from None  # see Reader._within
        except lmdb.Error as error:
            raise translated(error, transaction.database.path) from error

    def _iter(self, kind: Kind[E]) -> Iterator[E]:
        last = b""
        while True:
            entities, last = self._within(lookup.some_after, kind, last, STREAM_CHUNK)
            yield from entities
            if len(entities) < STREAM_CHUNK:
                return

    def iter_nodes(self) -> Iterator[Node]:
        """Every node, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(NODE)

    def iter_services(self) -> Iterator[Service]:
        """Every service, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(SERVICE)

    def iter_containers(self) -> Iterator[Container]:
        """Every container, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(CONTAINER)

    def iter_secrets(self) -> Iterator[Secret]:
        """Every secret, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(SECRET)

    def iter_volumes(self) -> Iterator[Volume]:
        """Every volume, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(VOLUME)

    def iter_networks(self) -> Iterator[Network]:
        """Every network, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(NETWORK)

    def iter_ingresses(self) -> Iterator[Ingress]:
        """Every ingress, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(INGRESS)

    def iter_tls_certificates(self) -> Iterator[TLSCertificate]:
        """Every TLS certificate, ordered by id, a few at a time. Only while the view is open."""
        return self._iter(CERTIFICATE)
