"""What errors of LMDB mean to this package.

One function translates, for every module that calls LMDB. Nothing is decided about what to do then.
Invariant: a full disk is told from a broken one, because the first clears by itself and the second must stop a manager.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import lmdb

from warren_raft.errors import Corrupted, InUse, StorageFull, WarrenError

MAX_READERS: Final = 1024
"""Read transactions at the same time, over all processes. 64 bytes a slot in the lock file."""

_FULL_PROBE_BYTES: Final = 64 * 1024**2  # more than any transaction writes


class StorageFailed(WarrenError):
    """The disk refused a read, a write or a sync for another reason than a lack of space.

    The database must not be used any more; a manager stops. `code` is the errno, or LMDB's negative code.
    """

    def __init__(self, path: str, detail: str, code: int) -> None:
        super().__init__(path, detail, code)
        self.path = path
        self.detail = detail
        self.code = code

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


def code_of(error: lmdb.Error) -> int:
    """The errno, or LMDB's negative code, of an error; 0 where py-lmdb raised it itself."""
    code: int = getattr(error, "code", 0)
    return code


def translated(error: lmdb.Error, path: str) -> WarrenError:
    """The error of this package that an error of LMDB, met with the file `path`, amounts to."""
    code = code_of(error)
    if isinstance(error, lmdb.MapFullError) or code in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path}: no space left for the state")
    if code == errno.EIO and _is_full(os.path.dirname(path)):
        # A write that the file system cuts short for lack of space is EIO to LMDB 0.9 (mdb_page_flush).
        return StorageFull(f"{path}: no space left for the state")
    if isinstance(error, lmdb.ReadersFullError):
        return InUse(path, f"has {MAX_READERS} open read transactions, which is all there can be")
    damaged = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)
    if isinstance(error, damaged):
        return Corrupted(path, str(error))
    if code == 0 and "already open" in str(error):
        return InUse(path, "is already open in this process")
    return StorageFailed(path, str(error), code)


def _is_full(directory: str) -> bool:
    """Whether the file system refuses a file somewhat larger than a transaction."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _FULL_PROBE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False
