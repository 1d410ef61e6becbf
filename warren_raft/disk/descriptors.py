"""File descriptors in reserve, for the case that the program around a store has used all that it may have.

Lives here: the reserve of this process, and calls that may use it. Not here: the log's next segment, which is opened
ahead (raft/log/segments.py). Invariant: while a store is open and descriptors are available, RESERVED of them are held.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RESERVED: Final = 12
"""The verification of a snapshot needs this many at one moment: the file, its directory, a child and its pipes."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Reserve:
    """All methods are thread-safe."""

    def __init__(self, count: int = RESERVED) -> None:
        self._count = count
        self._lock = threading.RLock()  # a signal handler may save a snapshot while its thread does
        self._held: list[int] = []
        self._stores = 0
        os.register_at_fork(after_in_child=self._forget_in_child)

    def open(self) -> None:
        """A store begins: hold as many descriptors as are available."""
        with self._lock:
            self._stores += 1
        self.refill()

    def close(self) -> None:
        """A store ends; the last store gives the descriptors back."""
        with self._lock:
            self._stores -= 1
            if self._stores == 0:
                self._let_go()

    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call a function that opens files. If it finds no descriptor, free the reserve and call it once more. Raises
        the errors of the function."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            if _code(error) not in _EXHAUSTED or not self._spend():
                raise
        try:
            return function(*arguments, **options)
        finally:
            self.refill()

    def refill(self) -> bool:
        """Hold as many descriptors as are available. Returns whether there are more. For a timer too. Raises
        OSError."""
        with self._lock:
            try:
                while self._stores and len(self._held) < self._count:
                    self._held.append(_one_more())
                os.close(_one_more())
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                return False
            return True

    def _spend(self) -> bool:
        with self._lock:
            had = bool(self._held)
            self._let_go()
            return had

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _forget_in_child(self) -> None:
        self._lock = threading.RLock()
        self._stores = 0
        self._let_go()


def _one_more() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _code(error: BaseException) -> int | None:
    """The errno of an OSError, or of an error of LMDB."""
    code: int | None = getattr(error, "errno", None) or getattr(error, "code", None)
    return code


def limit() -> int:
    """How many descriptors this process may have open (ulimit -n)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


RESERVE: Final = Reserve()
