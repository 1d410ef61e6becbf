"""The meaning of LMDB's errors for this package, and which of LMDB's file formats this package can read.

One function translates the errors for every module that calls LMDB. The reaction to an error is decided elsewhere.
Invariant: a full disk and a broken disk give different errors, because a full disk recovers by itself and a broken disk
must stop a manager. An error that does not concern the data file (a newer format, a lock file, a limit of this process)
is never Corrupted.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import lmdb

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.shortage import shortage_for, storage_full
from warren_raft.errors import (
    Corrupted,
    InUse,
    RefusedForSafety,
    StorageFull,
    WarrenError,
)

MAX_READERS: Final = 1024
"""The most read transactions at the same time, over all processes. Each slot takes 64 bytes in the lock file."""

DATA_VERSION: Final = 1
"""MDB_DATA_VERSION of LMDB 0.9, the format that this package writes."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_MAGIC: Final = 0xBEEFC0DE
_HEADER_BYTES: Final = (16, 24)  # of a page in LMDB 0.9 and in 1.0; the magic number follows the header

_FULL_PROBE_BYTES: Final = 64 * 1024**2  # more than any transaction writes


class StorageFailed(WarrenError):
    """The disk failed a read, a write or a sync for another reason than lack of space.

    The database must not be used any more; a manager stops. `code` is the errno, or LMDB's negative code.
    """

    def __init__(self, path: str, detail: str, code: int) -> None:
        super().__init__(path, detail, code)
        self.path = path
        self.detail = detail
        self.code = code

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


class WouldBlock(InUse):
    """Another process holds LMDB's lock on a database. LMDB locks the byte at the offset of the process id, and
    processes in two containers can have the same process id."""


@contextmanager
def no_space_as_storage_full(path: str) -> Iterator[None]:
    """Raise StorageFull for a full disk; other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{path}: no space left for the state") from error
        raise


def code_of(error: lmdb.Error) -> int:
    """The errno of an error, or LMDB's negative code; 0 if py-lmdb raised the error itself."""
    code: int = getattr(error, "code", 0)
    return code


def translated(error: lmdb.Error, path: str) -> WarrenError:
    """This package's error for an error of LMDB that occurred with the file `path`."""
    code = code_of(error)
    if isinstance(error, lmdb.MapFullError):
        return StorageFull(f"{path}: no space left for the state")
    if code == errno.EAGAIN:
        return WouldBlock(
            path,
            f"is locked by a process in another container that has the same process id as this one ({os.getpid()}) and "
            "reads the file without this program or with an older release: stop that process",
        )
    # If the system cuts a write short for lack of space, LMDB 0.9 reports EIO (mdb_page_flush).
    code_of_shortage = code if code != errno.EIO else _why_short(path)
    shortage = shortage_for(code_of_shortage)
    if shortage is not None:
        text = "no space left for the state"
        if not shortage.is_space:
            text = f"the state cannot be written: {shortage.what}; {shortage.remedy}"
        return storage_full(f"{path}: {text}", code_of_shortage)
    if isinstance(error, lmdb.ReadersFullError):
        return InUse(path, f"has {MAX_READERS} open read transactions, the most there can be")
    of_a_header = (lmdb.InvalidError, lmdb.VersionMismatchError)
    if isinstance(error, of_a_header) and _data_versions(path) == [DATA_VERSION] * 2:
        # LMDB reports the same error for its lock file, which is created again when no process has it open.
        return InUse(path, f"is open in a process of another release, which made {path}-lock: stop that process")
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, *of_a_header)):
        return Corrupted(path, str(error))
    if code == 0 and "already open" in str(error):
        return InUse(path, "is already open in this process")
    return StorageFailed(path, str(error), code)


def _data_versions(path: str) -> list[int | None]:
    """The versions in the two header pages of an LMDB file; None for a page that is not a header. Raises OSError."""
    found: list[int | None] = []
    with RESERVE.call(open, path, "rb", buffering=0) as file:
        for page in range(2):
            head = os.pread(file.fileno(), 32, page * _PAGE_BYTES)
            places = (place for place in _HEADER_BYTES if len(head) >= place + 8)
            pairs = (struct.unpack_from("=II", head, place) for place in places)
            found.append(next((version for magic, version in pairs if magic == _MAGIC), None))
    return found


def refuse_newer_data(path: str) -> None:
    """Raise RefusedForSafety if the file is in a format of LMDB that this program does not write. Raises OSError.

    Both header pages must name that format: a single damaged header page must not prevent the file from being rebuilt.
    """
    first, second = _data_versions(path)
    if first is not None and first == second and first != DATA_VERSION:
        raise RefusedForSafety(
            f"{path} is in LMDB's data format {first}, and this program reads up to {DATA_VERSION}: use a newer release"
        )


def _why_short(path: str) -> int:
    """The errno if the file cannot grow by more than a transaction needs; 0 if there is enough space."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        if limit != resource.RLIM_INFINITY and os.stat(path).st_size + _FULL_PROBE_BYTES > limit:
            return errno.EFBIG
        flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
        descriptor = RESERVE.call(os.open, os.path.dirname(path), flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _FULL_PROBE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno or 0
    return 0
