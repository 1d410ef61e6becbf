"""A long computation in pieces, so that other threads of this process run meanwhile, above all the raft thread.

Lives here: the pauses, and reading with pauses. Not here: the computation (verification.py).
Invariant: no piece holds the interpreter's lock for much longer than RUN_SECONDS.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from warren_raft.store.transactions import ReadTransaction, Space

RUN_SECONDS: Final = 0.001
PAUSE_SECONDS: Final = 0.004
"""A fifth of one processor: ten times slower than alone on a machine, but no heartbeat is late."""
RECORDS: Final = 16
"""Records read between two pauses: some hundred microseconds."""

T = TypeVar("T")


class Cancelled(BaseException):
    """The computation was cancelled. Not an Exception, so that no code on the way takes it for a fault of the file."""


class Pace:
    """Call it between pieces. Raises Cancelled when `is_cancelled` returns True. For one thread."""

    def __init__(self, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self._is_cancelled = is_cancelled
        self._until = time.perf_counter() + RUN_SECONDS

    def __call__(self) -> None:
        if time.perf_counter() >= self._until:
            if self._is_cancelled():
                raise Cancelled
            time.sleep(PAUSE_SECONDS)
            self._until = time.perf_counter() + RUN_SECONDS

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a pause after some of them."""
        for number, item in enumerate(items):
            if number % RECORDS == 0:
                self()
            yield item


class PacedFile(io.FileIO):
    """A file that is read with pauses."""

    def __init__(self, path: str, pace: Pace) -> None:
        super().__init__(path, "rb")
        self._pace = pace

    def read(self, size: int | None = -1) -> bytes:
        self._pace()
        return super().read(-1 if size is None else size)


class PacedTransaction(ReadTransaction):
    """A read transaction that pauses between records."""

    __slots__ = ("_pace",)

    def __init__(self, database: Any, pace: Pace) -> None:
        super().__init__(database)
        self._pace = pace

    def items(self, kind: Any) -> Iterator[tuple[bytes, bytes]]:
        return self._pace.each(super().items(kind))

    def scan(self, space: Space, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._pace.each(super().scan(space, start, reverse=reverse))

    def index_entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        return self._pace.each(super().index_entries(name))
