"""All writes: declared once (WriteMethods), one command each in a store (Writer), several as one command (Batch).

Operations are made in operations.py. `_execute` and `_start` send a command; each store has its own (local/, manager/).
Invariant: a command that reaches them can be stored.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from concurrent.futures import Future
from types import FunctionType, NoneType
from typing import Any, ClassVar, Generic, Never, TypeVar, get_args, get_origin

from warren_raft.errors import InvalidEntity, Misuse, WarrenError
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
from warren_raft.store.codec import INDEXED_WIDTHS
from warren_raft.store.command import (
    COMMAND_OVERHEAD_BYTES,
    INDEXED_ITEMS_MAX,
    MAX_BATCH_BYTES,
    Operation,
    operation_size_bytes,
)
from warren_raft.store.leading import indexed_items
from warren_raft.store.operations import TOO_MANY_HOSTS, delete_operation, put_operation
from warren_raft.store.tables import (
    CA,
    CERTIFICATE,
    CONTAINER,
    INGRESS,
    NETWORK,
    NODE,
    SECRET,
    SERVICE,
    VOLUME,
    Kind,
)
from warren_raft.support import timeouts

E = TypeVar("E")
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
    def _write(self, operation: Operation, timeout: Timeout | None) -> Result:
        """Carry out one write, or keep it for later."""

    def _save(self, kind: Kind[E], entity: E, if_revision: int | None, timeout: Timeout | None) -> Result:
        return self._write(put_operation(kind, entity, if_revision), timeout)

    def _delete(self, kind: Kind[Any], id: str, if_revision: int | None, timeout: Timeout | None) -> Result:  # noqa: A002
        return self._write(delete_operation(kind, id, if_revision), timeout)

    # ---- nodes

    def create_node(self, node: Node, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:
        """Store a node; an existing one with its id is replaced."""
        return self._save(NODE, node, if_revision, timeout)

    def update_node(self, node: Node, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:
        """Store a node; if none exists with its id, it is created."""
        return self._save(NODE, node, if_revision, timeout)

    def delete_node(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the node with this id, if it exists."""
        return self._delete(NODE, id, if_revision, timeout)

    # ---- services

    def create_service(
        self, service: Service, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a service; an existing one with its id is replaced."""
        return self._save(SERVICE, service, if_revision, timeout)

    def update_service(
        self, service: Service, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a service; if none exists with its id, it is created."""
        return self._save(SERVICE, service, if_revision, timeout)

    def delete_service(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the service with this id, if it exists."""
        return self._delete(SERVICE, id, if_revision, timeout)

    # ---- containers

    def create_container(
        self, container: Container, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a container; an existing one with its id is replaced."""
        return self._save(CONTAINER, container, if_revision, timeout)

    def update_container(
        self, container: Container, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a container; if none exists with its id, it is created."""
        return self._save(CONTAINER, container, if_revision, timeout)

    def delete_container(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the container with this id, if it exists."""
        return self._delete(CONTAINER, id, if_revision, timeout)

    # ---- secrets

    def create_secret(
        self, secret: Secret, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a secret; an existing one with its id is replaced."""
        return self._save(SECRET, secret, if_revision, timeout)

    def delete_secret(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the secret with this id, if it exists."""
        return self._delete(SECRET, id, if_revision, timeout)

    # ---- volumes

    def create_volume(
        self, volume: Volume, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a volume; an existing one with its id is replaced."""
        return self._save(VOLUME, volume, if_revision, timeout)

    def delete_volume(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the volume with this id, if it exists."""
        return self._delete(VOLUME, id, if_revision, timeout)

    # ---- networks

    def create_network(
        self, network: Network, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a network; an existing one with its id is replaced."""
        return self._save(NETWORK, network, if_revision, timeout)

    def delete_network(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the network with this id, if it exists."""
        return self._delete(NETWORK, id, if_revision, timeout)

    # ---- the CA

    def save_ca(self, data: bytes, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:
        """Store the CA; an existing one is replaced."""
        return self._save(CA, data, if_revision, timeout)

    # ---- ingresses

    def create_ingress(
        self, ingress: Ingress, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store an ingress; an existing one with its id is replaced."""
        return self._save(INGRESS, ingress, if_revision, timeout)

    def update_ingress(
        self, ingress: Ingress, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store an ingress; if none exists with its id, it is created."""
        return self._save(INGRESS, ingress, if_revision, timeout)

    def delete_ingress(self, id: str, *, if_revision: int | None = None, timeout: Timeout | None = None) -> Result:  # noqa: A002
        """Delete the ingress with this id, if it exists."""
        return self._delete(INGRESS, id, if_revision, timeout)

    # ---- TLS certificates

    def create_tls_certificate(
        self, certificate: TLSCertificate, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a TLS certificate; an existing one with its id is replaced."""
        return self._save(CERTIFICATE, certificate, if_revision, timeout)

    def update_tls_certificate(
        self, certificate: TLSCertificate, *, if_revision: int | None = None, timeout: Timeout | None = None
    ) -> Result:
        """Store a TLS certificate; if none exists with its id, it is created."""
        return self._save(CERTIFICATE, certificate, if_revision, timeout)

    def delete_tls_certificate(
        self,
        id: str,  # noqa: A002
        *,
        if_revision: int | None = None,
        timeout: Timeout | None = None,
    ) -> Result:
        """Delete the TLS certificate with this id, if it exists."""
        return self._delete(CERTIFICATE, id, if_revision, timeout)


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
    delete returns the revision of the deletion, or the latest revision if there was nothing to delete. `revision` of
    the given entity has no effect.

    `if_revision=n`: only if the stored entity's revision is n (0: only if no entity is stored).
    `timeout`: seconds from 0 on; `math.inf` waits for ever; None is the store's default.

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
        if none is stored). `timeout`: seconds from 0 on; None is the store's default. Raises InvalidEntity,
        RevisionConflict, Unavailable, Closed, and for a create or an update StorageFull. See help(Writer).
        """

    @abstractmethod
    def _execute(self, operations: tuple[Operation, ...], timeout: float | None) -> int:
        """Carry out one command and return its revision."""

    @abstractmethod
    def _start(self, operations: tuple[Operation, ...], timeout: float | None) -> Future[int]:
        """Send one command and return at once. The future gets its revision, or the error."""

    @abstractmethod
    def _latest_revision(self) -> int:
        """The revision of the latest change that is applied here. An empty batch returns it."""

    def _write(self, operation: Operation, timeout: float | None) -> int:
        return self._execute((operation,), timeout)

    def batch(self, *, wait: bool = True, timeout: float | None = None) -> Batch:
        """Several writes as one atomic command: `with store.batch() as b: b.create_node(...)`.

        The command is sent at the end of the `with` block, which then waits for its result. With `wait=False` it does
        not wait: `b.future` is a `concurrent.futures.Future` of the revision. The writes of one thread are carried out
        in their order. See Batch.
        """
        return Batch(self, wait=wait, timeout=timeouts.checked(timeout))


# ------------------------------------------------------------------------------- many writes, one command


def _ended(outcome: int | Exception) -> Future[int]:
    """A future that is already done."""
    future: Future[int] = Future()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


class Batch(WriteMethods[None, Never]):
    """Writes that are all carried out or all refused, as one command and one revision. For one `with` block, one
    thread.

    Each write is checked when it is added (InvalidEntity); an exception that leaves the block sends nothing. If a
    condition (`if_revision`) does not hold, nothing is changed, and the end of the block raises RevisionConflict. A
    later write sees the earlier ones of its batch. At most 4 MiB encoded. An empty batch changes nothing and has the
    latest revision.

    With `wait=False` the end of the block never blocks and raises only InvalidEntity. The errors of the store and of
    the cluster are in the future: a closed store, no leader, not enough space, a full queue. Futures of one thread are
    sent in order.
    """

    __slots__ = (
        "_future",
        "_hosts",
        "_operations",
        "_revision",
        "_size_bytes",
        "_state",
        "_timeout",
        "_wait",
        "_writer",
    )

    _each_write = """
        Becomes part of the batch's command. `if_revision=n`: only if the stored entity's revision is n (0: only if none
        is stored); if not, nothing of the batch is done. Raises InvalidEntity, and Misuse outside of the `with` block.
        """

    def __init__(self, writer: Writer, *, wait: bool, timeout: float | None) -> None:
        self._writer = writer
        self._wait = wait
        self._timeout = timeout
        self._operations: list[Operation] = []
        self._size_bytes = COMMAND_OVERHEAD_BYTES
        self._hosts = 0
        self._state = "new"
        self._revision: int | None = None
        self._future: Future[int] | None = None

    def __enter__(self) -> Batch:
        if self._state != "new":
            raise Misuse("a batch is used once; ask the store for another")
        self._state = "open"
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        self._state = "done"
        operations, self._operations = tuple(self._operations), []
        if kind is None:
            self._send(operations)

    def _send(self, operations: tuple[Operation, ...]) -> None:
        writer = self._writer
        if self._wait:
            self._revision = writer._execute(operations, self._timeout) if operations else writer._latest_revision()
            return
        try:
            self._future = writer._start(operations, self._timeout) if operations else _ended(writer._latest_revision())
        except InvalidEntity:  # the caller's own fault
            raise
        except (WarrenError, OSError) as error:  # the disk does not even report its free space
            self._future = _ended(error)

    @property
    def revision(self) -> int:
        """The revision of the command, after the block. For a batch with `wait=False` see `future`."""
        if self._revision is None:
            raise Misuse("the batch has no revision: it was not sent, or not waited for (see future)")
        return self._revision

    @property
    def future(self) -> Future[int]:
        """With `wait=False`, after the block: a future of the command's revision or error."""
        if self._future is None:
            raise Misuse("the batch has no future: it was not sent, or was waited for (see revision)")
        return self._future

    def __repr__(self) -> str:
        """For logs and debuggers. It works in any state and never raises."""
        return f"<Batch of {len(self._operations)} writes, {self._state}>"

    def __len__(self) -> int:
        """The number of writes so far."""
        return len(self._operations)

    def _write(self, operation: Operation, timeout: None) -> None:
        if timeout is not None:
            raise TypeError("a write of a batch has no timeout of its own: use store.batch(timeout=...)")
        hosts = self._hosts
        if operation.kind_number == CERTIFICATE.number and operation.entity is not None:
            hosts += indexed_items(operation.entity, INDEXED_WIDTHS[CERTIFICATE.number], INDEXED_ITEMS_MAX)
            if hosts > INDEXED_ITEMS_MAX:
                raise InvalidEntity("batch", TOO_MANY_HOSTS)
        if self._state != "open":
            raise Misuse("a batch takes writes within its with block only")
        size_bytes = self._size_bytes + operation_size_bytes(operation)
        if size_bytes > MAX_BATCH_BYTES:
            raise InvalidEntity("batch", f"takes more than {MAX_BATCH_BYTES} bytes encoded")
        self._operations.append(operation)
        self._size_bytes = size_bytes
        self._hosts = hosts
