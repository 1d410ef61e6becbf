"""Directories and files with names and contents that survive a power cut.

Lives here: making a directory, making its names durable, and replacing a file atomically. Not here: the modes of new
files (sharing.py). Invariant: when a function returns, its change is on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from warren_raft import sharing
from warren_raft.descriptors import RESERVE


def make_directory(path: str) -> None:
    """Make `path` durably if it is missing: mode 0700, or 2770 in a shared directory (sharing.py). An existing
    directory keeps its mode."""
    try:
        sharing.make_directory(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_directory(os.path.dirname(path))
        make_directory(path)  # another process may make it meanwhile
        return
    sync_directory(os.path.dirname(path))


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
