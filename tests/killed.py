"""The death of a process at its Nth file operation, or no space left from there on, within a test's process.

From the fatal call on, each `os` function that changes something raises Killed. So no clean-up of the code under test
does things that a dead process could not do. Not here: power cuts (page_cache.py; memory_files.py for the log).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

OPERATIONS = (
    "open",
    "write",
    "pwrite",
    "ftruncate",
    "truncate",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "chmod",
    "copy_file_range",
)


NEEDING_ROOM = ("open", "write", "pwrite", "rename", "replace", "link", "mkdir", "copy_file_range")
"""An `open` needs space only if it may make a file."""


class Killed(BaseException):
    """The process is dead."""


class Countdown:
    """`left`: the operations that are still carried out. `died`: there was one more."""

    def __init__(self, operations: int) -> None:
        self.left = operations
        self.died = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            if self.left <= 0:
                self.died = True
                raise Killed
            self.left -= 1
            return function(*arguments, **options)

        return operation


@contextmanager
def killed_after(operations: int) -> Iterator[Countdown]:
    """The process dies at the file operation after `operations`. `with killed_after(3) as countdown`."""
    countdown = Countdown(operations)
    with mock.patch.multiple(os, **{name: countdown.wrap(getattr(os, name)) for name in OPERATIONS}):
        yield countdown


@contextmanager
def full_after(operations: int) -> Iterator[Countdown]:
    """From the file operation after `operations` on, no disk has space left: OSError, ENOSPC."""
    countdown = Countdown(operations)

    def wrap(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def operation(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return function(*arguments, **options)
            if countdown.left <= 0:
                countdown.died = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            countdown.left -= 1
            return function(*arguments, **options)

        return operation

    with mock.patch.multiple(os, **{name: wrap(name) for name in NEEDING_ROOM}):
        yield countdown
