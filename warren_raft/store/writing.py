"""All writes: declared once (WriteMethods), one command each in a store (Writer), several as one command (Batch).

Operations are made in operations.py. `_execute` and `_start` send a command; each store has its own (local/, manager/).
Invariant: a command that reaches them can be stored.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from types import FunctionType, NoneType
from typing import Any, ClassVar, Generic, Never, TypeVar, get_args, get_origin

from warren_raft.errors import InvalidEntity, Misuse, RevisionConflict, Unavailable, WarrenError
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
from warren_raft.store import codec
from warren_raft.store.codec import INDEXED_WIDTHS
from warren_raft.store.command import (
    COMMAND_OVERHEAD_BYTES,
    INDEXED_ITEMS_MAX,
    MAX_BATCH_BYTES,
    REQUEST_KEY_MAX_BYTES,
    REQUEST_KEY_OVERHEAD_BYTES,
    Operation,
    operation_size_bytes,
)
from warren_raft.store.fence import Fence
from warren_raft.store.leading import indexed_items
from warren_raft.store.operations import (
    TOO_MANY_HOSTS,
    cascade_operation,
    checked_request_id,
    delete_operation,
    kind_of,
    put_operation,
    require_operation,
)
from warren_raft.store.tables import (
    BY_NAME,
    CA,
    CERTIFICATE,
    CONTAINER,
    INGRESS,
    KINDS,
    NETWORK,
    NODE,
    SECRET,
    SERVICE,
    VOLUME,
    Kind,
)
from warren_raft.support import timeouts
from warren_raft.support.handover import Begun, Landing

E = TypeVar("E")
T = TypeVar("T")
Result = TypeVar("Result")
Timeout = TypeVar("Timeout")


# ------------------------------------------------------------------------------- the one declaration of every write


class WriteMethods(ABC, Generic[Result, Timeout]):
    """The write operations, for a store, a batch, and anything else that takes the same writes.

    For authors of a subclass: `Result` is the type that each write returns, and `Timeout` the type of the argument
    `timeout`. With `Never` the writes take no timeout. A subclass defines `_write`, and `_each_write` for `help()`.
    """

    __slots__ = ()

    _each_write: ClassVar[str] = ""
    """Added to the docstring of each write: the result, the units, the errors."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in vars(cls).get("__orig_bases__", ()):
            if get_origin(base) is WriteMethods:
                result, timeout = get_args(base)
                _show_types(cls, None if result is NoneType else result, timeout)

    @abstractmethod
    def _write(self, operation: Operation, timeout: Timeout | None, request_id: str | None) -> Result:
        """Carry out one write, or keep it for later."""

    def _save(
        self, kind: Kind[E], entity: E, if_revision: int | None, timeout: Timeout | None, request_id: str | None
    ) -> Result:
        return self._write(put_operation(kind, entity, if_revision), timeout, request_id)

    def _delete(
        self,
        kind: Kind[Any],
        id: str,  # noqa: A002
        if_revision: int | None,
        timeout: Timeout | None,
        request_id: str | None,
    ) -> Result:
        return self._write(delete_operation(kind, id, if_revision), timeout, request_id)

    def _delete_cascade(
        self,
        id: str,  # noqa: A002
        if_revision: int | None,
        timeout: Timeout | None,
        request_id: str | None,
    ) -> Result:
        return self._write(cascade_operation(id, if_revision), timeout, request_id)

    # ---- nodes

    def create_node(
        self,
        node: Node,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a node; an existing one with its id is replaced."""
        return self._save(NODE, node, if_revision, timeout, request_id)

    def update_node(
        self,
        node: Node,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a node; if none exists with its id, it is created."""
        return self._save(NODE, node, if_revision, timeout, request_id)

    def delete_node(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the node with this id, if it exists."""
        return self._delete(NODE, id, if_revision, timeout, request_id)

    # ---- services

    def create_service(
        self,
        service: Service,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a service; an existing one with its id is replaced."""
        return self._save(SERVICE, service, if_revision, timeout, request_id)

    def update_service(
        self,
        service: Service,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a service; if none exists with its id, it is created."""
        return self._save(SERVICE, service, if_revision, timeout, request_id)

    def delete_service(
        self,
        id: str,  # noqa: A002
        *,
        cascade: bool = False,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the service with this id, if it exists. `cascade=True`: and every container whose `service_id` it is,
        in the same command. Without it the containers remain."""
        if cascade:
            return self._delete_cascade(id, if_revision, timeout, request_id)
        return self._delete(SERVICE, id, if_revision, timeout, request_id)

    # ---- containers

    def create_container(
        self,
        container: Container,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a container; an existing one with its id is replaced."""
        return self._save(CONTAINER, container, if_revision, timeout, request_id)

    def update_container(
        self,
        container: Container,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a container; if none exists with its id, it is created."""
        return self._save(CONTAINER, container, if_revision, timeout, request_id)

    def delete_container(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the container with this id, if it exists."""
        return self._delete(CONTAINER, id, if_revision, timeout, request_id)

    # ---- secrets

    def create_secret(
        self,
        secret: Secret,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a secret; an existing one with its id is replaced."""
        return self._save(SECRET, secret, if_revision, timeout, request_id)

    def delete_secret(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the secret with this id, if it exists."""
        return self._delete(SECRET, id, if_revision, timeout, request_id)

    # ---- volumes

    def create_volume(
        self,
        volume: Volume,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a volume; an existing one with its id is replaced."""
        return self._save(VOLUME, volume, if_revision, timeout, request_id)

    def delete_volume(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the volume with this id, if it exists."""
        return self._delete(VOLUME, id, if_revision, timeout, request_id)

    # ---- networks

    def create_network(
        self,
        network: Network,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a network; an existing one with its id is replaced."""
        return self._save(NETWORK, network, if_revision, timeout, request_id)

    def delete_network(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the network with this id, if it exists."""
        return self._delete(NETWORK, id, if_revision, timeout, request_id)

    # ---- the CA

    def save_ca(
        self,
        data: bytes,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store the CA; an existing one is replaced."""
        return self._save(CA, data, if_revision, timeout, request_id)

    # ---- ingresses

    def create_ingress(
        self,
        ingress: Ingress,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store an ingress; an existing one with its id is replaced."""
        return self._save(INGRESS, ingress, if_revision, timeout, request_id)

    def update_ingress(
        self,
        ingress: Ingress,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store an ingress; if none exists with its id, it is created."""
        return self._save(INGRESS, ingress, if_revision, timeout, request_id)

    def delete_ingress(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the ingress with this id, if it exists."""
        return self._delete(INGRESS, id, if_revision, timeout, request_id)

    # ---- TLS certificates

    def create_tls_certificate(
        self,
        certificate: TLSCertificate,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a TLS certificate; an existing one with its id is replaced."""
        return self._save(CERTIFICATE, certificate, if_revision, timeout, request_id)

    def update_tls_certificate(
        self,
        certificate: TLSCertificate,
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Store a TLS certificate; if none exists with its id, it is created."""
        return self._save(CERTIFICATE, certificate, if_revision, timeout, request_id)

    def delete_tls_certificate(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Delete the TLS certificate with this id, if it exists."""
        return self._delete(CERTIFICATE, id, if_revision, timeout, request_id)


def _show_types(cls: type[WriteMethods[Any, Any]], result: Any, timeout: Any) -> None:
    """Give a subclass its own copy of each write: the same code, with the subclass's types and docstring.

    `help()` and `inspect` then show what editors and type checkers show. From the declaration alone they would show the
    names `Result` and `Timeout`.
    """
    for name, write in vars(WriteMethods).items():
        if name.startswith("_") or name in vars(cls) or not isinstance(write, FunctionType):
            continue
        copy = FunctionType(write.__code__, write.__globals__, name, write.__defaults__, write.__closure__)
        copy.__module__, copy.__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"
        copy.__kwdefaults__ = write.__kwdefaults__
        copy.__annotations__ = {**write.__annotations__, "timeout": timeout | None, "return": result}
        copy.__doc__ = "\n\n".join(inspect.cleandoc(text or "") for text in (write.__doc__, cls._each_write))
        if timeout is Never:
            del copy.__annotations__["timeout"]
            signature = inspect.signature(copy)
            taken = [parameter for parameter in signature.parameters.values() if parameter.name != "timeout"]
            copy.__signature__ = signature.replace(parameters=taken)  # type: ignore[attr-defined]
        setattr(cls, name, copy)


# ------------------------------------------------------------------------------- one write a call


class Writer(WriteMethods[int, float]):
    """The write operations of a store. Thread-safe; each is one command and blocks until it is done.

    create and update both store the entity, whether an entity with its id exists or not, and return the new revision.
    If an equal entity is stored already, nothing is changed, and its revision is returned. delete returns the revision
    of the deletion, or the latest revision if there was nothing to delete. `revision` of the given entity has no
    effect.

    `if_revision=n`: only if the stored entity's revision is n (0: only if no entity is stored).
    `timeout`: seconds from 0 on; `math.inf` waits for ever; None is the store's default.
    `request_id`: the caller's own id of this write, 1 to 128 bytes in UTF-8. If a write with this id was carried out
    before, by this or another process, nothing is done, and the revision of that time is returned. So a caller that
    crashed may make its write again. An id is remembered for `Config.request_memory_seconds`. Use an id for one write
    only: the content is not compared. A write that was refused (RevisionConflict and the like) leaves its id free.

    Raises:
        InvalidEntity: the entity or its id can never be stored, or `timeout` is not such a number. Nothing was sent.
        RevisionConflict: `if_revision` did not hold. Nothing was changed.
        Unavailable: not known to be done at the deadline; `.maybe_applied`.
        StorageFull: not enough space for creates and updates.
        Closed: the store is closed.
    """

    __slots__ = ()

    _each_write = """
        Returns the revision when the write is done. `if_revision=n`: only if the stored entity's revision is n (0: only
        if none is stored). `timeout`: seconds from 0 on; None is the store's default. `request_id`: the caller's id of
        the write, which is then carried out once even if the caller crashes and makes it again. Raises InvalidEntity,
        RevisionConflict, Unavailable, Closed, and for a create or an update StorageFull. See help(Writer).
        """

    @abstractmethod
    def _execute(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        """Carry out one command and return its revision. `fence`: in a log entry of its term only, and only while its
        lead lasts."""

    @abstractmethod
    def _start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        """Send one command and return at once. The future gets its revision, or the error."""

    @abstractmethod
    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Begun[int]:
        """Send one command for a coroutine and return at once. `landing` is released when the command has ended."""

    @abstractmethod
    def _get(self, kind: Kind[E], id: str) -> E:  # noqa: A002
        """The entity as it is stored here. Raises NotFound."""

    @property
    @abstractmethod
    def _default_timeout_seconds(self) -> float:
        """The timeout of a write with `timeout=None`."""

    @abstractmethod
    def _latest_revision(self) -> int:
        """The revision of the latest change that is applied here. An empty batch returns it."""

    def _write(self, operation: Operation, timeout: float | None, request_id: str | None) -> int:
        if request_id is None:
            return self._execute((operation,), timeout)
        return self._execute((operation,), timeout, request_key=checked_request_id(request_id))

    def modify(self, cls: type[E], id: str, function: Callable[[E], E], *, timeout: float | None = None) -> E:  # noqa: A002
        """Change one entity: read it, call `function(entity)`, store the result if the entity is still the same;
        otherwise begin again, until the timeout. Returns the entity as it is stored now, with its revision.

        `cls` is the class of the entity, such as `Service`. `function` returns the changed entity
        (`dataclasses.replace`), with the same id. It may be called several times, and should do nothing else. What it
        raises leaves `modify`, and nothing is written. `timeout` in seconds, None: that of a write.

        Raises NotFound (there is no such entity on this manager; after `barrier()` there is none at all), InvalidEntity
        (also for another id), Unavailable (`maybe_applied=False` if others changed the entity at each attempt), and the
        other errors of a write.
        """
        change = Modification(self, cls, id, function, timeout)
        while True:
            operation, seconds = change.attempt()
            try:
                return change.stored(self._execute((operation,), seconds))
            except RevisionConflict as error:
                change.conflict = error

    def batch(self, *, wait: bool = True, timeout: float | None = None, request_id: str | None = None) -> Batch:
        """Several writes as one atomic command: `with store.batch() as b: b.create_node(...)`.

        The command is sent at the end of the `with` block, which then waits for its result. With `wait=False` it does
        not wait: `b.future` is a `concurrent.futures.Future` of the revision. The writes of one thread are carried out
        in their order. `timeout` in seconds, None: the store's default. `request_id`: see Writer. See Batch.
        """
        return Batch(self, wait=wait, timeout=timeout, request_id=request_id)


class Modification(Generic[E]):
    """The attempts of one `modify`, for a caller that writes: see Writer.modify."""

    def __init__(
        self, writer: Writer, cls: type[E], id_: str, function: Callable[[E], E], timeout: float | None
    ) -> None:
        self._writer = writer
        self._kind = kind_of(cls)
        self._id = id_
        self._function = function
        self._deadline = timeouts.deadline(timeout, writer._default_timeout_seconds)
        self._entity = b""
        self.conflict: RevisionConflict | None = None
        """Set by the caller: the error of the last attempt."""

    def attempt(self) -> tuple[Operation, float]:
        """The operation to carry out, and the seconds that are left for it. Raises what the function raises, NotFound,
        InvalidEntity, and Unavailable at the deadline."""
        kind, id_ = self._kind, self._id
        before = self._writer._get(kind, id_)
        revision: int = before.revision  # type: ignore[attr-defined]
        operation = put_operation(kind, self._function(before), revision)
        if operation.id != id_ or operation.entity is None:
            raise InvalidEntity(kind.name, f"modify of {id_!r} was given an entity with another id", id=operation.id)
        left = self._deadline - time.monotonic()
        if self.conflict is not None and left <= 0:
            reason = f"{kind.name} {id_!r} was changed by others at each attempt"
            raise Unavailable(reason, maybe_applied=False) from self.conflict
        self._entity = operation.entity
        return operation, max(0.0, left)

    def stored(self, revision: int) -> E:
        """The entity of the last attempt, as it is stored."""
        return codec.decode_entity(self._kind, self._entity, revision)


# ------------------------------------------------------------------------------- many writes, one command


def _sent(send: Callable[..., T], operations: tuple[Operation, ...], timeout: float | None, request_key: str) -> T:
    """Without a request key, `send` is called without it: most batches have none."""
    if not request_key:
        return send(operations, timeout)
    return send(operations, timeout, request_key=request_key)


def _ended(outcome: int | Exception) -> Future[int]:
    """A future that is already done."""
    future: Future[int] = Future()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


class BatchWrites(WriteMethods[None, Never]):
    """The writes of a batch, until they are sent. `Batch` is for threads, and `AsyncBatch` for asyncio.

    Each write is checked when it is added (InvalidEntity). All conditions (`if_revision` and `require`) are evaluated
    before the first write. A later write sees the earlier ones of its batch. At most 4 MiB encoded.
    """

    __slots__ = ("_hosts", "_operations", "_request_key", "_revision", "_size_bytes", "_state", "_timeout", "_writer")

    _each_write = """
        Becomes part of the batch's command. `if_revision=n`: only if the stored entity's revision is n (0: only if none
        is stored); if not, nothing of the batch is done. `request_id`: the id of the whole batch. Raises InvalidEntity,
        and Misuse outside of the `with` block, or for a second request id.
        """

    def __init__(self, writer: Writer, *, timeout: float | None, request_id: str | None = None) -> None:
        self._request_key = "" if request_id is None else checked_request_id(request_id)
        self._writer = writer
        self._timeout = timeouts.checked(timeout)
        self._operations: list[Operation] = []
        self._size_bytes = COMMAND_OVERHEAD_BYTES
        self._hosts = 0
        self._state = "new"
        self._revision: int | None = None

    def _open(self) -> None:
        """The block begins."""
        if self._state != "new":
            raise Misuse("a batch is used once; ask the store for another")
        self._state = "open"

    def _end(self) -> tuple[Operation, ...]:
        """The block ends. Returns the operations of its command."""
        self._state = "done"
        operations, self._operations = tuple(self._operations), []
        return operations

    @property
    def revision(self) -> int:
        """The revision of the command, after the block. For a batch with `wait=False` see `future`."""
        if self._revision is None:
            raise Misuse("the batch has no revision: it was not sent, or not waited for (see future)")
        return self._revision

    def __repr__(self) -> str:
        """For logs and debuggers. It works in any state and never raises."""
        return f"<{type(self).__name__} of {len(self._operations)} writes, {self._state}>"

    def __len__(self) -> int:
        """The number of writes so far."""
        return len(self._operations)

    def require(self, kind: str, id: str, revision: int) -> None:  # noqa: A002
        """Carry the batch out only if the stored entity of this kind and id has this revision (0: only if there is
        none), whether or not the batch changes it. `kind` is a word like "service", as in `RevisionConflict.kind`.

        Raises InvalidEntity, and Misuse outside of the `with` block.
        """
        found = BY_NAME.get(kind)
        if found is None:
            raise InvalidEntity("batch", f"{kind!r} is not a kind of entity: {', '.join(each.name for each in KINDS)}")
        self._write(require_operation(found, id, revision), None, None)

    def _write(self, operation: Operation, timeout: None, request_id: str | None) -> None:
        if timeout is not None:
            raise TypeError("a write of a batch has no timeout of its own: use store.batch(timeout=...)")
        if request_id is not None and request_id != self._request_key:
            if self._request_key:
                raise Misuse("a batch is one command and has one request id: this is the second one")
            self._request_key = checked_request_id(request_id)
        hosts = self._hosts
        if operation.kind_number == CERTIFICATE.number and operation.entity is not None:
            hosts += indexed_items(operation.entity, INDEXED_WIDTHS[CERTIFICATE.number], INDEXED_ITEMS_MAX)
            if hosts > INDEXED_ITEMS_MAX:
                raise InvalidEntity("batch", TOO_MANY_HOSTS)
        if self._state != "open":
            raise Misuse("a batch takes writes within its with block only")
        size_bytes = self._size_bytes + operation_size_bytes(operation)
        if size_bytes + REQUEST_KEY_OVERHEAD_BYTES + REQUEST_KEY_MAX_BYTES > MAX_BATCH_BYTES:
            raise InvalidEntity("batch", f"takes more than {MAX_BATCH_BYTES} bytes encoded")
        self._operations.append(operation)
        self._size_bytes = size_bytes
        self._hosts = hosts


class Batch(BatchWrites):
    """Writes that are all carried out or all refused, as one command and one revision. For one `with` block, one
    thread.

    Each write is checked when it is added (InvalidEntity); an exception that leaves the block sends nothing. All
    conditions (`if_revision` and `require`) are evaluated before the first write. If one does not hold, nothing is
    changed, and the end of the block raises RevisionConflict for the first of them. A later write sees the earlier ones
    of its batch. At most 4 MiB encoded. An empty batch changes nothing and has the latest revision.

    A batch has one request id (see Writer), which is given to `batch()` or to any of its writes.

    With `wait=False` the end of the block never blocks and raises only InvalidEntity. The errors of the store and of
    the cluster are in the future: a closed store, no leader, not enough space, a full queue. Futures of one thread are
    sent in order.
    """

    __slots__ = ("_future", "_wait")

    def __init__(self, writer: Writer, *, wait: bool, timeout: float | None, request_id: str | None = None) -> None:
        super().__init__(writer, timeout=timeout, request_id=request_id)
        self._wait = wait
        self._future: Future[int] | None = None

    def __enter__(self) -> Batch:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        operations = self._end()
        if kind is None:
            self._send(operations)

    def _send(self, operations: tuple[Operation, ...]) -> None:
        writer, timeout, key = self._writer, self._timeout, self._request_key
        if self._wait:
            is_empty = not operations
            self._revision = writer._latest_revision() if is_empty else _sent(writer._execute, operations, timeout, key)
            return
        try:
            if operations:
                self._future = _sent(writer._start, operations, timeout, key)
            else:
                self._future = _ended(writer._latest_revision())
        except InvalidEntity:  # the caller's own fault
            raise
        except (WarrenError, OSError) as error:  # the disk does not even report its free space
            self._future = _ended(error)

    @property
    def future(self) -> Future[int]:
        """With `wait=False`, after the block: a future of the command's revision or error."""
        if self._future is None:
            raise Misuse("the batch has no future: it was not sent, or was waited for (see revision)")
        return self._future
