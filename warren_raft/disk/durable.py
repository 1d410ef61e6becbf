"""Directories and files with names and contents that survive a power cut.

Lives here: making a directory, making its names durable, and replacing a file atomically. Not here: the modes of new
files (sharing.py). Invariant: when a function returns, its change is on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from warren_raft.disk import sharing
from warren_raft.disk.descriptors import RESERVE


def make_directory(path: str, *, private: bool = False) -> None:
    """Make `path` and the missing directories above it durably: mode 0700, or 2770 in a shared directory (sharing.py).
    An existing directory keeps its mode. `private`: mode 0700 for `path` in a shared directory too. Raises OSError."""
    try:
        _make_one(path, private=private)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if parent == path:
            raise
        make_directory(parent)
        try:
            _make_one(path, private=private)
        except FileExistsError:  # another process has made it meanwhile
            return
        except FileNotFoundError as error:  # /proc and some other file systems say so
            reason = f"cannot be made: the file system of {parent} does not take new directories"
            raise FileNotFoundError(error.errno, reason, path) from None
    sync_directory(os.path.dirname(path))


def _make_one(path: str, *, private: bool) -> None:
    if private:
        os.mkdir(path, sharing.PRIVATE_DIRECTORY)
    else:
        sharing.make_directory(path)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = RESERVE.call(os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: str, data: bytes) -> None:
    """Make `path` hold `data`, atomically and durably: after a crash it holds either the old data or the new."""
    os.close(replace_and_hold(path, data, locked=False))


def replace_and_hold(path: str, data: bytes, *, locked: bool) -> int:
    """Like `replace_file`. Returns a descriptor of the new file; `locked`: it has an flock before it gets its name."""
    temporary = f"{path}.tmp"
    descriptor = sharing.open_new(temporary, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
    try:
        try:
            if locked:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
            os.rename(temporary, path)
        except OSError as error:  # for example a full disk
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise OSError(error.errno, error.strerror, path) from error
        sync_directory(os.path.dirname(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
