"""The writes of a store and of a lead as coroutines, one at a time (AsyncWriter) and as a batch (AsyncBatch).

The writes themselves are declared in store/writing.py. Not here: how a command is carried out (the store's `_begin`).
Invariant: nothing is sent and no error is raised before a coroutine is awaited. The writes of a loop are sent in the
order in which they begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from warren_raft.aio.waiting import done
from warren_raft.errors import RevisionConflict
from warren_raft.store.command import Operation
from warren_raft.store.operations import cascade_operation, checked_request_id, delete_operation, put_operation
from warren_raft.store.tables import Kind
from warren_raft.store.writing import BatchWrites, Modification, WriteMethods, Writer

E = TypeVar("E")


async def carried_out(
    writer: Writer, operations: tuple[Operation, ...], timeout: float | None, request_key: str = ""
) -> int:
    """The revision of one command."""
    return await done(lambda landing: writer._begin(operations, timeout, landing, request_key=request_key))


class AsyncWriter(WriteMethods[Coroutine[Any, Any, int], float]):
    """The write operations as coroutines: `await store.aio.create_node(node)`. They mean the same as those of `Writer`.

    A write begins when it is awaited (or its task runs), and errors come from `await`. The writes of one loop are
    carried out in the order in which they begin. When too many writes of this process wait (`Config.queue_limit` and
    16,384 more, or 256 MiB), a write raises Unavailable (`maybe_applied=False`) at once.

    Cancelling does not take a write back. If it was sent, it may be carried out, now or a moment later. If it was not
    sent yet, because no leader is known or others wait before it, it is dropped. Write it again with a `request_id`,
    or with `if_revision`, to have it once.
    """

    __slots__ = ("_writer",)

    _each_write = """
        Await it: returns the revision when the write is done. `if_revision=n`: only if the stored entity's revision is
        n (0: only if none is stored). `timeout`: seconds from 0 on; None is the store's default. `request_id`: the
        caller's id of the write, which is then carried out once even if the caller crashes and makes it again. Raises
        InvalidEntity, RevisionConflict, Unavailable, Closed, and for a create or an update StorageFull. If it is
        cancelled, it may be carried out or not. See help(AsyncStore).
        """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def _write(self, operation: Operation, timeout: float | None, request_id: str | None) -> int:
        key = "" if request_id is None else checked_request_id(request_id)
        return await carried_out(self._writer, (operation,), timeout, key)

    async def _save(
        self, kind: Kind[E], entity: E, if_revision: int | None, timeout: float | None, request_id: str | None
    ) -> int:
        return await self._write(put_operation(kind, entity, if_revision), timeout, request_id)

    async def _delete(
        self,
        kind: Kind[Any],
        id: str,  # noqa: A002
        if_revision: int | None,
        timeout: float | None,
        request_id: str | None,
    ) -> int:
        return await self._write(delete_operation(kind, id, if_revision), timeout, request_id)

    async def _delete_cascade(
        self,
        id: str,  # noqa: A002
        if_revision: int | None,
        timeout: float | None,
        request_id: str | None,
    ) -> int:
        return await self._write(cascade_operation(id, if_revision), timeout, request_id)

    async def modify(
        self,
        cls: type[E],
        id: str,  # noqa: A002
        function: Callable[[E], E],
        *,
        timeout: float | None = None,
    ) -> E:
        """Change one entity: read it, call `function(entity)`, store the result if the entity is still the same;
        otherwise begin again, until the timeout. Returns the entity as it is stored now, with its revision.

        `function` is called in the loop, perhaps several times, and should return at once. `timeout` in seconds, None:
        that of a write. See `Writer.modify` for the rest, and for the errors.
        """
        change = Modification(self._writer, cls, id, function, timeout)
        while True:
            operation, seconds = change.attempt()
            try:
                return change.stored(await carried_out(self._writer, (operation,), seconds))
            except RevisionConflict as error:
                change.conflict = error

    def batch(self, *, timeout: float | None = None, request_id: str | None = None) -> AsyncBatch:
        """Several writes as one atomic command: `async with store.aio.batch() as b: b.create_node(...)`.

        The writes are added without `await`. The command is sent at the end of the block, which waits for its result.
        `timeout` in seconds, None: the store's default. See AsyncBatch.
        """
        return AsyncBatch(self._writer, timeout=timeout, request_id=request_id)


class AsyncBatch(BatchWrites):
    """Writes that are all carried out or all refused, as one command and one revision. For one `async with` block.

    As Batch: each write is checked when it is added (InvalidEntity); an exception that leaves the block, a cancellation
    too, sends nothing. The end of the block waits for the result, and raises the errors of a write. `revision` is there
    after the block.
    """

    __slots__ = ()

    async def __aenter__(self) -> AsyncBatch:
        self._open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        operations = self._end()
        if kind is not None:
            return
        if operations:
            self._revision = await carried_out(self._writer, operations, self._timeout, self._request_key)
        else:
            await asyncio.sleep(0)
            self._revision = self._writer._latest_revision()
