"""A snapshot for somebody outside: a file at a path of the caller's, verified, that is whole or not there.

A manager's own snapshots are in directory.py. Invariant: a file under the name that was asked for is verified and on
disk, and no file that was there before is replaced.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final

from warren_raft.errors import InUse, RefusedForSafety, SnapshotInvalid
from warren_raft.snapshots.file import (
    Manifest,
    Path,
    manifest_in,
    no_space_as_storage_full,
    opened,
    sha256_of,
    write_into,
)
from warren_raft.snapshots.verification import Cancel, verify_in_child
from warren_raft.store.database import Database
from warren_raft.store.generations import sync_directory

logger = logging.getLogger("warren_raft.saving")

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES})
_NOT_LOCKED: Final = frozenset({errno.EWOULDBLOCK, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_ATTEMPTS: Final = 10  # to make a part; each fails only if another save to the same path begins in that very moment


def save(
    database: Database,
    path: Path,
    *,
    created_at: datetime,
    node_id: str,
    quorum: bool,
    cancel: Cancel | None = None,
) -> Manifest:
    """Write a snapshot to `path` (mode 0600), verify every record of it in a child, and only then give it that name.

    Raises RefusedForSafety (there is a file of that name), StorageFull, OSError, SnapshotInvalid (the state itself is
    not sound), VerificationFailed, Closed (`cancel` was set). Nothing is left then.
    """
    with new_file(path) as (part, descriptor):
        manifest = write_into(descriptor, part, database, created_at=created_at, node_id=node_id, quorum=quorum)
        verify_in_child(part, records=True, cancel=cancel)
    return manifest


@contextmanager
def new_file(path: Path) -> Iterator[tuple[str, int]]:
    """A file to fill, `PATH.<random>.part`, and its descriptor. It gets the name `path` when the block ends well.

    Else it is removed, and by the next one for the same path where the process was killed: the lock on a part that is
    being filled goes with its process. Errors name `path`.
    """
    path = os.path.abspath(os.fspath(path))
    _require_free(path)
    part, descriptor = _new_part(path)
    try:
        try:
            _remove_leftovers(path)
            yield part, descriptor
            _give_name(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
            os.close(descriptor)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        if error.filename == part:
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _new_part(path: str) -> tuple[str, int]:
    """A part of this path, locked, and its descriptor."""
    for _ in range(_ATTEMPTS):
        part = f"{path}.{secrets.token_hex(4)}.part"
        try:
            with no_space_as_storage_full(path):
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)  # another save came between the making and the lock, and took it for left
    raise InUse(path, "is being saved by others all the time")


def _remove_leftovers(path: str) -> None:
    """Parts of this path that nobody fills any more."""
    directory, name = os.path.split(path)
    is_part = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{8}}\.part")
    try:
        left = [os.path.join(directory, each) for each in os.listdir(directory) if is_part.fullmatch(each)]
    except PermissionError:
        return  # one may write here, and not look
    for part in left:
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            logger.warning("not removed, as it cannot be opened: %s: %s", part, error.strerror)
            continue
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and _lock(descriptor, wait=False):
                with suppress(FileNotFoundError):  # another save was faster
                    os.unlink(part)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Whether the file is locked now. Where the file system has no locks it never is, and what is left there stays."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NOT_LOCKED:
            raise
        return False
    return True


def _require_free(path: str) -> None:
    if os.path.lexists(path):
        raise RefusedForSafety(f"{path} is there already: name another file, or remove it first")


def _give_name(part: str, path: str) -> None:
    """A link, because a rename would replace what somebody else has put there meanwhile."""
    try:
        os.link(part, path, follow_symlinks=False)
    except FileExistsError:
        _require_free(path)
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _require_free(path)
        os.rename(part, path)


def require_hash(path: Path) -> Manifest:
    """The manifest of a file that came over a connection, if every byte of it came. Raises SnapshotInvalid."""
    path = os.fspath(path)
    with opened(path) as descriptor:
        manifest = manifest_in(descriptor, path)
        if sha256_of(descriptor, manifest.size_bytes) != manifest.sha256:
            raise SnapshotInvalid(path, "does not fit its hash: it was changed on its way")
    return manifest


Take = Callable[[str], object]
"""Saves a snapshot at a path, as the `snapshot` of a store does."""


def take_nameless(directory: str, take: Take) -> int:
    """A snapshot without a name, as a descriptor: its space is given back with that, however this process ends.

    While it is made it is DIRECTORY/sending-<random>.part; `SnapshotDirectory.create` removes one that was left.
    """
    path = os.path.join(directory, f"sending-{secrets.token_hex(8)}.part")
    take(path)
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        os.unlink(path)
