"""The target of output that a caller named: a file that is made or replaced, or a device, a FIFO or a descriptor.

The content is not known here (cli/data.py, snapshots/saving.py). Invariant: only a regular file is ever replaced, at
once and by a complete one. Anything else (a device, a FIFO, a symbolic link) stays in its place.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import IO, Final

from warren_raft.disk.durable import unsynced
from warren_raft.disk.files import OS_FILES
from warren_raft.disk.paths import absolute
from warren_raft.errors import RefusedForSafety, StorageFull, WarrenError

LINKS_MAX: Final = 40
"""The most symbolic links that are followed for one name, the same limit as Linux has."""

MEMORY_BYTES: Final = 16 * 1024 * 1024
"""Output to a device or a FIFO is held in memory up to this size; more of it is held in a file without a name."""

_COPY_BYTES: Final = 1024 * 1024
_STDERR: Final = 2


# ---- the meaning of a name


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
    """The descriptor number of this process that /dev/stdout or /dev/fd/N means; None for other names.

    If stdout was redirected to a file and were opened by its name, output would overwrite the file from its beginning.
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
    """Whether output to `path` goes to the same place as this process's messages: a message would become part of it."""
    if _own_descriptor(path) == 1:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:  # there is no such file yet, or stdout is closed
        return False


def resolved(path: str | os.PathLike[str]) -> str:
    """The absolute name of the regular file that `path` means: a symbolic link is followed, as cp and tee do.

    Raises RefusedForSafety for a link to nothing, as cp does: its maker may have meant another file.
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
    """A file to write. When the block ends well, `send` gets the file, to read it from its beginning.

    The reader of `path` may take hours (a pager, a slow link); so the block is over before the first byte is sent.
    Raises StorageFull, which names `path`, if there is no space for the output that is not sent yet.
    """
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
        try:
            yield spool
            spool.seek(0)  # writes the rest of its buffer
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, WarrenError):
                raise
            place = tempfile.gettempdir()
            raise StorageFull(f"{place} has no space left for the output to {path}: set TMPDIR") from error
        send(spool)


@contextmanager
def open_node(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, for a `path` for which `is_node` is true; see `collected`. Waits at the beginning until a reader
    opens a FIFO. Raises OSError, StorageFull."""
    node = node_descriptor(path)
    try:
        with collected(path, lambda file: copy_to_node(file, node, path)) as file:
            yield file
    finally:
        os.close(node)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it: a nearly full disk, and a FIFO, accept only a part at a time. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def copy_to_node(source: IO[bytes], node: int, path: str | os.PathLike[str]) -> None:
    """Copy the rest of `source`. An OSError names `path`."""
    try:
        while chunk := source.read(_COPY_BYTES):
            write_all(node, chunk)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def node_descriptor(path: str | os.PathLike[str]) -> int:
    number = _own_descriptor(path)
    if number is None:
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if number <= _STDERR and not os.get_inheritable(number):
            # It was closed when this process began, and is another file of ours by now: perhaps the database.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.dup(number)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write. Once it is complete and on disk, it replaces or becomes the regular file `path`.

    After an error nothing has changed, unless it says that the file is written (durable.unsynced). A new file has mode
    0600. A replaced file keeps its mode and its group if other users could not read it, and else gets 0600 too. An
    OSError names the file `path`.
    """
    path = resolved(path)
    temporary = f"{path}.{secrets.token_hex(4)}.partial"
    try:
        new = OS_FILES.make_file(temporary, private=True)
        try:
            with closing(new), open(new.fileno(), "wb", closefd=False) as file:
                yield file
                file.flush()
                _keep_mode(new.fileno(), path)
                new.sync()
            OS_FILES.rename(temporary, path)
        except BaseException:
            OS_FILES.unlink(temporary)
            raise
        try:
            OS_FILES.sync_directory(os.path.dirname(path))
        except OSError as error:
            raise unsynced(path, "is written", error) from error
    except WarrenError:  # some of these are an OSError too
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
    except PermissionError:  # not a member of that group: then our group would get rights that were for another
        return
    os.fchmod(descriptor, before.st_mode & 0o770)
