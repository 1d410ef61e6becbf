"""A snapshot file: a compact copy of the database, then one page with its manifest and its hash.

Lives here: writing the file, reading its manifest, and extracting its database. The full check is in verification.py.
Invariant: one file, one rename; every flipped bit and every truncation is found, and no snapshot is ever written to.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.files import OS_FILES, File, Files
from warren_raft.disk.shortage import shortage_of, storage_full
from warren_raft.errors import (
    InvariantViolation,
    RefusedForSafety,
    SnapshotInvalid,
    StorageFull,
)
from warren_raft.fsm.entry import Committed, read_committed
from warren_raft.results import Result
from warren_raft.store.database import Database, ReadTransaction, StorageFailed
from warren_raft.store.tables import KINDS

Path: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Callable[[float], object]
"""Called with the share that is done, from 0 to 1, never decreasing."""

FORMAT: Final = 1
"""The version of the trailer and of the database before it. A newer one is refused."""

TRAILER_BYTES: Final = 4096
"""One page after the database's last page. LMDB and its verifier do not read it.

    0     16  MAGIC
    16    4   format version, big-endian
    20    4   length of the manifest, big-endian
    24    n   the manifest: JSON in UTF-8
    ...       zeros
    4064  32  SHA-256 of the 4064 bytes before

Magic, version and hash stay in these places in every future version."""

MAGIC: Final = b"warren-snapshot\n"
NUMBER_MAX: Final = 1 << 62
"""The largest index, term, revision or size."""
_HASH: Final = re.compile("[0-9a-f]{64}")
MANIFEST_MAX_BYTES: Final = TRAILER_BYTES - 24 - 32
CHUNK_BYTES: Final = 1024 * 1024  # one read: enough for hashlib to let other threads run, and little memory
_FICLONE: Final = 0x4004_9409  # ioctl of linux/fs.h: share the blocks of another file, copy on write
_NO_COPY_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo(Result):
    """The description of a snapshot, stored in its last page."""

    cluster_id: str | None
    """None: the snapshot is of a LocalStore."""
    index: int
    """The index and the term of the last log entry that the snapshot covers."""
    term: int
    revision: int
    """The revision of the latest change in it."""
    digest: str
    """The digest of the whole state, 64 hexadecimal digits."""
    counts: Mapping[str, int]
    """The number of entities, by the plural of each kind."""
    size_bytes: int
    """The size of the database, without the trailer."""
    created_at: datetime
    """Aware, UTC, by the clock of the manager that saved it."""
    sha256: str
    """The hash of the database, 64 hexadecimal digits."""
    node_id: str
    """The manager from which the state comes."""
    quorum: bool
    """Whether that manager had a quorum then. If not, the cluster may have been ahead of it."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """The values for JSON; `created_at` is in RFC 3339."""
        created_at = self.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return asdict(self) | {"counts": dict(self.counts), "created_at": created_at}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SnapshotInfo:
        """The manifest from the values of `to_json`. Raises ValueError for anything else; unknown names are skipped."""
        try:
            created_at = _moment(values["created_at"])
            found = {name: values[name] for name in cls.__dataclass_fields__} | {"created_at": created_at}
            manifest = cls(**found)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the manifest lacks {error}") from None
        if not manifest._is_typed():
            raise ValueError("the manifest has a value of a wrong type")
        return manifest

    def _is_typed(self) -> bool:
        numbers = (self.index, self.term, self.revision, self.size_bytes, self.format)
        return (
            (self.cluster_id is None or (_is_shown(self.cluster_id) and self.cluster_id != ""))
            and all(map(_is_number, numbers))
            and all(type(text) is str and _HASH.fullmatch(text) for text in (self.digest, self.sha256))
            and _is_shown(self.node_id)  # "": of a LocalStore
            and type(self.counts) is dict
            and all(_is_shown(name) and _is_number(count) for name, count in self.counts.items())
            and type(self.quorum) is bool
        )


def _moment(text: str) -> datetime:
    """A time in UTC. Raises ValueError for a time without a zone, or outside UTC's calendar."""
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError("the manifest has a time without a zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"the manifest has an impossible time: {text}") from None


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _is_shown(value: object) -> bool:
    """Whether the value is a text that may be printed to a terminal: a file that was made by hand may hold anything."""
    return type(value) is str and value.isprintable()


# ---------------------------------------------------------------------------------------------- writing


def write(
    database: Database, path: Path, *, created_at: datetime, node_id: str, quorum: bool, files: Files = OS_FILES
) -> SnapshotInfo:
    """Write the present content of `database` to a new file, mode 0600, and sync it. Writers go on meanwhile.

    The caller gives a `.part` name, verifies the file, renames it and syncs the directory. After any error no file is
    left.

    Raises FileExistsError (also for a link), StorageFull, OSError; Closed.
    """
    path = os.fspath(path)
    with _new_file(path, files) as file:
        with database.read() as transaction:
            committed, counts = read_committed(transaction), counts_of(transaction)
            _copy_database(database, transaction, file.fileno(), path)
        size = file.size()
        sha256 = sha256_of(file.fileno(), size)
        manifest = _manifest(committed, counts, size, sha256, created_at, node_id, quorum)
        file.write(size, make_trailer(manifest))
    return manifest


@contextmanager
def _new_file(path: str, files: Files, *, sync: bool = True) -> Iterator[File]:
    """A new file, mode 0600. It is synced at the end of the block if `sync`, or removed after an error."""
    with no_space_as_storage_full(path):
        file = files.make_file(path, private=True)
        try:
            with closing(file):
                yield file
                if sync:
                    file.sync()
        except BaseException:
            with suppress(FileNotFoundError):
                files.unlink(path)
            raise


def _copy_database(database: Database, transaction: ReadTransaction, descriptor: int, path: str) -> None:
    """Copy the database. Errors come from the disk of the copy: LMDB reads the database itself through memory."""
    try:
        database.copy_to(descriptor, transaction)
    except StorageFull as error:
        raise _no_room(path, error, error.code) from error
    except StorageFailed as error:
        if error.code <= 0:
            raise
        raise OSError(error.code, os.strerror(error.code), path) from error


def _manifest(
    committed: Committed,
    counts: dict[str, int],
    size: int,
    sha256: str,
    created_at: datetime,
    node_id: str,
    quorum: bool,
) -> SnapshotInfo:
    return SnapshotInfo(
        cluster_id=committed.cluster_id,
        index=committed.applied_index,
        term=committed.applied_term,
        revision=committed.revision,
        digest=committed.digest.hex(),
        counts=counts,
        size_bytes=size,
        sha256=sha256,
        created_at=created_at.astimezone(UTC),
        node_id=node_id,
        quorum=quorum,
    )


def counts_of(transaction: ReadTransaction) -> dict[str, int]:
    """How many entities of each kind there are, by plural."""
    return {kind.plural: transaction.count(kind) for kind in KINDS if kind.entity is not None}


def sha256_of(descriptor: int, size: int, progress: Progress | None = None) -> str:
    """The SHA-256 of the first `size` bytes, in hexadecimal (of all bytes if the file is shorter). Other threads go
    on."""
    digest, buffer, position = hashlib.sha256(), bytearray(CHUNK_BYTES), 0
    view = memoryview(buffer)
    while position < size:
        count = os.preadv(descriptor, [view[: size - position]], position)
        if count == 0:
            break
        digest.update(view[:count])
        position += count
        if progress is not None:
            progress(position / size)
    return digest.hexdigest()


@contextmanager
def no_space_as_storage_full(path: str) -> Iterator[None]:
    """Raise StorageFull for a full disk and for a limit on the size of files; other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(path, error, error.errno) from error
        raise


def _no_room(path: str, error: Exception, code: int) -> StorageFull:
    shortage = shortage_of(error)
    if shortage is None or shortage.is_space:
        return storage_full(f"{path}: no space left for the snapshot", code)
    return storage_full(f"{path}: the snapshot cannot be written: {shortage.what}; {shortage.remedy}", code)


# ---------------------------------------------------------------------------------------------- the trailer


def make_trailer(manifest: SnapshotInfo) -> bytes:
    """The last page of a snapshot."""
    body = json.dumps(manifest.to_json(), sort_keys=True, separators=(",", ":")).encode()
    if len(body) > MANIFEST_MAX_BYTES:
        raise InvariantViolation(f"a manifest of {len(body)} bytes")
    page = MAGIC + manifest.format.to_bytes(4, "big") + len(body).to_bytes(4, "big") + body
    page = page.ljust(TRAILER_BYTES - 32, b"\0")
    return page + hashlib.sha256(page).digest()


def read_manifest(path: Path) -> SnapshotInfo:
    """The manifest of a snapshot, read from its last page alone: the database before it is not read.

    Raises SnapshotInvalid (not a snapshot, truncated, or this page is damaged), RefusedForSafety (a newer format),
    OSError.
    """
    with opened(path) as descriptor:
        return manifest_in(descriptor, os.fspath(path))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a regular file, for reading. Raises SnapshotInvalid for anything else, without waiting for a
    pipe."""
    path = os.fspath(path)
    descriptor = RESERVE.call(os.open, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SnapshotInvalid(path, "is not a file")
        yield descriptor
    finally:
        os.close(descriptor)


def manifest_in(descriptor: int, path: str) -> SnapshotInfo:
    """The manifest of an open file; `path` is for errors."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise SnapshotInvalid(path, "is empty: take another copy of the snapshot")
    page = os.pread(descriptor, TRAILER_BYTES, size - TRAILER_BYTES) if size >= TRAILER_BYTES else b""
    manifest = _parse_trailer(page, path)
    if manifest.size_bytes + TRAILER_BYTES != size:
        detail = f"has {size} bytes and not the {manifest.size_bytes + TRAILER_BYTES} that its last page tells"
        raise SnapshotInvalid(path, detail)
    return manifest


def _parse_trailer(page: bytes, path: str) -> SnapshotInfo:
    if not page.startswith(MAGIC):
        raise SnapshotInvalid(path, "is not a snapshot, or its end is missing: compare its size with the original")
    if hashlib.sha256(page[:-32]).digest() != page[-32:]:
        raise SnapshotInvalid(path, "is damaged: its last page does not fit the hash in it")
    version = int.from_bytes(page[16:20], "big")
    if version > FORMAT:
        raise RefusedForSafety(
            f"{path} is a snapshot of format {version}, and this program reads up to {FORMAT}: use a newer release"
        )
    length = int.from_bytes(page[20:24], "big")
    try:
        values = json.loads(page[24 : 24 + length])
        return SnapshotInfo.from_json(values)
    except (ValueError, RecursionError) as error:
        raise SnapshotInvalid(path, f"its last page cannot be read: {error}") from None


# ---------------------------------------------------------------------------------------------- extracting


def extract(path: Path, target: Path, *, files: Files = OS_FILES, sync: bool = True) -> SnapshotInfo:
    """Copy the database of a snapshot to a new file, mode 0600, and sync it if `sync`. The snapshot is not changed.

    The copy is never a link, because LMDB would write into the snapshot. If the file system can do that, both files
    share their blocks until one of them is written to, which takes no time and no space. After any error no file is
    left.

    Raises SnapshotInvalid (see `read_manifest`), FileExistsError, StorageFull, OSError.
    """
    path, target = os.fspath(path), os.fspath(target)
    with opened(path) as source:
        manifest = manifest_in(source, path)
        with _new_file(target, files, sync=sync) as copy:
            if not _share_blocks(source, copy, manifest.size_bytes):
                _copy_bytes(source, copy, manifest.size_bytes, path)
    return manifest


def _share_blocks(source: int, copy: File, size: int) -> bool:
    try:
        fcntl.ioctl(copy.fileno(), _FICLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False  # this file system does not support it, or not between these two files
    copy.truncate(size)
    return True


def _copy_bytes(source: int, copy: File, size: int, path: str) -> None:
    position, in_kernel = 0, True
    while position < size:
        wanted = min(size - position, 64 * CHUNK_BYTES if in_kernel else CHUNK_BYTES)
        try:
            count = _copy_some(source, copy, position, wanted, in_kernel)
        except OSError as error:
            if not in_kernel or error.errno not in _NO_COPY_RANGE:
                raise
            in_kernel = False
            continue
        if count == 0:
            raise SnapshotInvalid(path, "became shorter while it was copied")
        position += count


def _copy_some(source: int, copy: File, position: int, wanted: int, in_kernel: bool) -> int:
    if in_kernel:
        return os.copy_file_range(source, copy.fileno(), wanted, position, position)
    data = os.pread(source, wanted, position)
    copy.write(position, data)
    return len(data)
