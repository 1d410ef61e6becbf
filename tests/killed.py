"""The death of a process at its Nth file operation, or a disk that is full from there on, within a test's process.

From the fatal call on every call of the `os` functions that change something raises Killed, so that no clean-up of the
code under test does what a dead process could not. Not here: power cuts (page_cache.py; memory_files.py for the log).
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
"""Of an `open` only one that may make a file."""


class Killed(BaseException):
    """The process is dead."""


class Countdown:
    """`left` operations are still carried out; `died` once there was one too many."""

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
    """The process dies at the file operation after so many. `with killed_after(3) as countdown`."""
    countdown = Countdown(operations)
    with mock.patch.multiple(os, **{name: countdown.wrap(getattr(os, name)) for name in OPERATIONS}):
        yield countdown


@contextmanager
def full_after(operations: int) -> Iterator[Countdown]:
    """There is no room on any disk at the file operation after so many, nor later: OSError, ENOSPC."""
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
