"""A snapshot for use outside a manager: a verified file at a path of the caller's. It is complete, or does not exist.

A manager's own snapshots are in directory.py. Invariant: a file under the requested name is verified and on disk, and
no existing file is replaced. A device or a FIFO gets a snapshot that was verified before.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.disk.outputs import copy_to_node, is_node, node_descriptor
from warren_raft.disk.paths import absolute
from warren_raft.errors import RefusedForSafety, SnapshotInvalid
from warren_raft.snapshots.file import (
    Path,
    SnapshotInfo,
    manifest_in,
    opened,
    sha256_of,
    write,
)
from warren_raft.snapshots.verification import Cancel, verify_in_child
from warren_raft.store.database import Database
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.saving")

LEFTOVER_SECONDS: Final = 86_400.0
"""A part that was not written to for a day belongs to a dead process. A lock is not used, because some network file
systems have no locks."""
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES})


def save(
    database: Database,
    path: Path,
    *,
    created_at: datetime,
    node_id: str,
    quorum: bool,
    cancel: Cancel | None = None,
    files: Files = OS_FILES,
) -> SnapshotInfo:
    """Write a snapshot to `path` (mode 0600), verify every record of it in a child, and only then give it that name.

    If `path` is a device, a FIFO or /dev/stdout, the snapshot is made in the directory for temporary files and then
    copied to `path`.

    Raises RefusedForSafety (a file of that name exists), StorageFull, OSError, SnapshotInvalid (the state itself is
    damaged), VerificationFailed, Closed (`cancel` was set). In these cases no file is left.
    """
    with new_file(path, files=files) as part:
        manifest = write(database, part, created_at=created_at, node_id=node_id, quorum=quorum, files=files)
        verify_in_child(part, records=True, cancel=cancel)
    return manifest


@contextmanager
def new_file(path: Path, *, files: Files = OS_FILES) -> Iterator[str]:
    """The name of a file to make, `PATH.<random>.part`, which gets the name `path` when the block ends well.

    After an error it is removed. If the process was killed, the next save to the same path removes it a day later.
    Errors name `path`. For a device or a FIFO it is a name in a directory for temporary files, and the content is
    copied.
    """
    if is_node(path):
        with _for_node(path) as part:
            yield part
        return
    path = absolute(path)
    _require_free(path)
    directory, name = os.path.split(path)
    remove_leftovers(directory, re.compile(rf"{re.escape(name)}\.[0-9a-f]{{8}}\.part"), now=time.time(), files=files)
    part = f"{path}.{secrets.token_hex(4)}.part"
    try:
        try:
            yield part
            _give_name(part, path, files)
        finally:
            with suppress(FileNotFoundError):
                files.unlink(part)
        try:
            files.sync_directory(os.path.dirname(path))
        except OSError:
            files.unlink(path)
            raise
    except OSError as error:
        if error.filename == part:
            raise OSError(error.errno, error.strerror, path) from error
        raise


@contextmanager
def _for_node(path: Path) -> Iterator[str]:
    node = node_descriptor(path)
    try:
        with tempfile.TemporaryDirectory(prefix="warren-raft-") as directory:
            part = os.path.join(directory, "snapshot.part")
            yield part
            with open(part, "rb") as file:
                copy_to_node(file, node, path)
    finally:
        os.close(node)


def remove_leftovers(directory: str, is_part: re.Pattern[str], *, now: float, files: Files = OS_FILES) -> None:
    """Remove the files with such a name in a directory that are LEFTOVER_SECONDS old at `now`. A file that cannot be
    removed is logged, but does not prevent the next save."""
    try:
        parts = [entry for entry in os.scandir(directory) if is_part.fullmatch(entry.name)]
        for part in parts:
            with suppress(FileNotFoundError):
                if now - part.stat(follow_symlinks=False).st_mtime > LEFTOVER_SECONDS:
                    files.unlink(part.path)
    except (FileNotFoundError, NotADirectoryError):
        return  # the code that makes the file reports it
    except OSError as error:
        log_event(logger, logging.WARNING, "part of a killed save not removed", error, directory=directory)


def _require_free(path: str) -> None:
    if os.path.isdir(path):
        raise RefusedForSafety(f"{path} is a directory: name a file")
    if os.path.lexists(path):
        raise RefusedForSafety(f"{path} exists already: name another file, or remove it first")


def _give_name(part: str, path: str, files: Files) -> None:
    """Make a link, because a rename would replace a file that another process has put there meanwhile."""
    try:
        files.link(part, path)
    except FileExistsError:
        _require_free(path)
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _require_free(path)
        files.rename(part, path)


def require_hash(path: Path) -> SnapshotInfo:
    """The manifest of a file that came over a connection, if all bytes are correct. Raises SnapshotInvalid."""
    path = os.fspath(path)
    with opened(path) as descriptor:
        manifest = manifest_in(descriptor, path)
        if sha256_of(descriptor, manifest.size_bytes) != manifest.sha256:
            raise SnapshotInvalid(path, "does not fit its hash: it was changed on its way")
    return manifest


Take = Callable[[str], object]
"""A function that saves a snapshot at a path, like the `snapshot` method of a store."""


def take_nameless(directory: str, take: Take, *, files: Files = OS_FILES) -> int:
    """The descriptor of a snapshot without a name: its space is freed with the descriptor, however this process ends.

    While it is made it is DIRECTORY/sending-<random>.part; `SnapshotDirectory.create` removes the part of a dead
    process.
    """
    path = os.path.join(directory, f"sending-{secrets.token_hex(8)}.part")
    take(path)
    try:
        return RESERVE.call(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        files.unlink(path)
