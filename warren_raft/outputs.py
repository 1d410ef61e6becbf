"""Where output goes that a caller named: the file that is made or replaced, or the device, FIFO or descriptor.

What is written is not known here (cli/data.py, snapshots/saving.py). Invariant: only a regular file is ever replaced,
at once and by a whole one; anything else (a device, a FIFO, a symbolic link) stays what it is.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from warren_raft.errors import RefusedForSafety, StorageFull, WarrenError
from warren_raft.paths import absolute
from warren_raft.store.generations import sync_directory

LINKS_MAX: Final = 40
"""Symbolic links that are followed for one name: as many as Linux follows."""

MEMORY_BYTES: Final = 16 * 1024 * 1024
"""Of output to a device or a FIFO so much is held in memory; more of it in a file without a name."""

_COPY_BYTES: Final = 1024 * 1024
_STDERR: Final = 2


# ---- what a name stands for


def is_node(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is written to as it is: a device, a FIFO, a socket, /dev/stdout, /dev/fd/N. Raises OSError."""
    if _own_descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _own_descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of the descriptor of this process that /dev/stdout or /dev/fd/N is; None for other names.

    Opened by its name, a file that stdout was redirected to would be written from its beginning, over what is there.
    """
    name = absolute(path)
    own = re.compile(rf"{os.path.realpath('/proc/self')}(/task/\d+)?/fd")
    for _ in range(LINKS_MAX):
        directory, last = os.path.split(name)
        directory = os.path.realpath(directory)
        if own.fullmatch(directory) and last.isdigit():
            return int(last)
        name = os.path.join(directory, last)
        if not os.path.islink(name):
            return None
        name = os.path.join(directory, os.readlink(name))
    return None


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether output to `path` goes where the messages of this process go: a message would become a part of it."""
    if _own_descriptor(path) == 1:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:  # there is no such file yet, or stdout is closed
        return False


def resolved(path: str | os.PathLike[str]) -> str:
    """The absolute name of the regular file that `path` stands for: a symbolic link is followed, as cp and tee do.

    Raises RefusedForSafety for a link to nothing, as cp does: whoever made it may have had another file in mind.
    """
    path = absolute(path)
    if not os.path.islink(path):
        return path
    if not os.path.exists(path):
        raise RefusedForSafety(
            f"{path} is a symbolic link to {os.readlink(path)}, which does not exist: remove the link, or name another"
        )
    return os.path.realpath(path)


# ---- writing


@contextmanager
def collected(path: str | os.PathLike[str], send: Callable[[IO[bytes]], object]) -> Iterator[IO[bytes]]:
    """A file to write. When the block ends well, `send` gets it, to read from its beginning; else nobody does.

    Whoever reads `path` may take hours (a pager, a slow link): the block is over before the first byte goes. Raises
    StorageFull, with a word about `path`, where there is no room for what is not sent yet.
    """
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
        try:
            yield spool
            spool.seek(0)  # writes what is left in its buffer
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, WarrenError):
                raise
            place = tempfile.gettempdir()
            raise StorageFull(f"{place} has no space left for the output to {path}: set TMPDIR") from error
        send(spool)


@contextmanager
def open_node(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, for a `path` of which `is_node` is true; see `collected`. A FIFO is waited for at the beginning,
    until somebody opens it. Raises OSError, StorageFull."""
    node = node_descriptor(path)
    try:
        with collected(path, lambda file: copy_to_node(file, node, path)) as file:
            yield file
    finally:
        os.close(node)


def write_all(descriptor: int, data: bytes) -> None:
    """A nearly full disk, and a FIFO, take a part first. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def copy_to_node(source: IO[bytes], node: int, path: str | os.PathLike[str]) -> None:
    """All that `source` still has. An OSError names `path`."""
    try:
        while chunk := source.read(_COPY_BYTES):
            write_all(node, chunk)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def node_descriptor(path: str | os.PathLike[str]) -> int:
    number = _own_descriptor(path)
    if number is None:
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    if number <= _STDERR and not os.get_inheritable(number):
        # It was closed when this process began, and is a file of ours by now: maybe the database.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), os.fspath(path))
    return os.dup(number)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of the regular file `path`, or makes it, once it is complete and on disk.

    Where anything fails, nothing has changed. A new file has mode 0600. One that is replaced keeps its mode and its
    group, if no others could read it; else it gets 0600 too. An OSError names the file that was wanted.
    """
    path = resolved(path)
    temporary = f"{path}.{secrets.token_hex(4)}.partial"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                _keep_mode(file.fileno(), path)
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sync_directory(os.path.dirname(path))
    except WarrenError:  # some are an OSError too
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _keep_mode(descriptor: int, path: str) -> None:
    try:
        before = os.stat(path)
    except FileNotFoundError:
        return
    if before.st_mode & stat.S_IRWXO:
        return
    try:
        os.fchown(descriptor, -1, before.st_gid)
    except PermissionError:  # not a member of that group: then ours would get what was meant for another
        return
    os.fchmod(descriptor, before.st_mode & 0o770)
