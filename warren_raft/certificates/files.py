"""DATA_DIR/tls: the key and the certificates that a manager uses, and their replacement by newer ones.

Lives here: writing that directory as a whole. Not here: whether its files can be used (credentials.py), and issuing
(ca.py). Invariant: the three files in it belong together, even if a process is killed at any moment.

A new directory is written as tls.part, becomes tls.new when it is complete, and then replaces tls. Between the two
renames there is no tls for an instant: a reader tries again, and `finish` completes an interrupted replacement.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from ..disk import sharing
from ..disk.durable import rename
from ..disk.files import OS_FILES, Files
from ..disk.paths import absolute
from ..errors import InUse
from .credentials import (
    AUTHORITIES,
    CERTIFICATE,
    DIRECTORY_NAME,
    KEY,
)
from .join_files import KeyAndCertificates

LOCAL: Final = "local"
"""A file that exists if the certificate was issued by this host's own CA (local.py)."""
LOCK_SECONDS: Final = 5.0
"""A replacement takes some milliseconds, but a process that was suspended in the middle may keep the lock for ever."""
LOCK_PAUSE_SECONDS: Final = 0.02
_PART, _NEW, _OLD = f"{DIRECTORY_NAME}.part", f"{DIRECTORY_NAME}.new", f"{DIRECTORY_NAME}.old"

Fingerprint = tuple[tuple[int, int, int], ...]


def directory_of(data_dir: str | os.PathLike[str]) -> str:
    return os.path.join(absolute(data_dir), DIRECTORY_NAME)


def is_there(data_dir: str | os.PathLike[str]) -> bool:
    """Whether there is such a directory, or a complete one of an interrupted replacement."""
    return any(os.path.lexists(os.path.join(absolute(data_dir), name)) for name in (DIRECTORY_NAME, _NEW))


def is_local(data_dir: str | os.PathLike[str]) -> bool:
    """Whether the certificate in use was issued by this host's own CA."""
    return os.path.exists(os.path.join(directory_of(data_dir), LOCAL))


def fingerprint(data_dir: str | os.PathLike[str]) -> Fingerprint | None:
    """A value that changes when a file does; None if there is no such directory, or if it is being replaced just
    now."""
    try:
        found = [os.stat(os.path.join(directory_of(data_dir), name)) for name in (KEY, CERTIFICATE, AUTHORITIES)]
    except FileNotFoundError:
        return None
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)


def contents(data_dir: str | os.PathLike[str]) -> KeyAndCertificates:
    """Raises FileNotFoundError if a file is missing, or if the directory is being replaced just now; OSError."""
    texts = []
    for name in (KEY, CERTIFICATE, AUTHORITIES):
        with open(os.path.join(directory_of(data_dir), name), encoding="utf-8", errors="replace") as file:
            texts.append(file.read())
    key, certificate, ca = texts
    return KeyAndCertificates(key=key, certificate=certificate, ca=ca)


def install(
    data_dir: str | os.PathLike[str],
    files: KeyAndCertificates,
    *,
    check: Callable[[str], None],
    local: bool = False,
    disk: Files = OS_FILES,
) -> None:
    """Replace the present files by these. The data directory must exist.

    `check` is called with a directory that holds the new files, before anything is changed. If it raises, nothing has
    changed. The files belong to the owner of the data directory, even if root runs the command. Raises InUse if another
    process replaces them, OSError, and the errors of `check`.
    """
    data_dir = absolute(data_dir)
    with _exchanging(data_dir):
        part = os.path.join(data_dir, _PART)
        _remove(part, disk)
        disk.make_directory(part)
        texts = {KEY: files.key, CERTIFICATE: files.certificate, AUTHORITIES: files.ca}
        if local:
            texts[LOCAL] = ""
        owner = os.stat(data_dir)
        for name, text in texts.items():
            _write(os.path.join(part, name), text.encode(), disk)
            _give_to_owner(os.path.join(part, name), owner)
        _give_to_owner(part, owner)
        disk.sync_directory(part)
        try:
            check(part)
        except BaseException:
            _remove(part, disk)
            raise
        rename(part, os.path.join(data_dir, _NEW), files=disk)
        _put_in_place(data_dir, disk)


def finish(data_dir: str | os.PathLike[str], *, disk: Files = OS_FILES) -> None:
    """Complete an interrupted replacement, or discard it. Does nothing if there was none. Raises OSError."""
    data_dir = absolute(data_dir)
    if any(os.path.lexists(os.path.join(data_dir, name)) for name in (_PART, _NEW, _OLD)):
        with _exchanging(data_dir):
            _put_in_place(data_dir, disk)
            _remove(os.path.join(data_dir, _PART), disk)


@contextmanager
def _exchanging(data_dir: str) -> Iterator[None]:
    """One process at a time. The data directory's own lock belongs to the manager, which may run meanwhile."""
    path = os.path.join(data_dir, f"{DIRECTORY_NAME}.lock")
    descriptor = sharing.open_new(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        _give_to_owner(path, os.stat(data_dir))
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                text = f"is locked by another process that exchanges certificates: `fuser -v {path}` shows it"
                raise InUse(path, text) from None
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return


def _put_in_place(data_dir: str, disk: Files) -> None:
    new, current, old = (os.path.join(data_dir, name) for name in (_NEW, DIRECTORY_NAME, _OLD))
    if os.path.lexists(new):
        if os.path.lexists(current):
            _remove(old, disk)
            disk.rename(current, old)
        disk.rename(new, current)
        disk.sync_directory(data_dir)
    _remove(old, disk)


def _write(path: str, data: bytes, disk: Files) -> None:
    with closing(disk.make_file(path)) as file:
        file.write(0, data)
        file.sync()


def _give_to_owner(path: str, owner: os.stat_result) -> None:
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _remove(directory: str, disk: Files) -> None:
    if os.path.lexists(directory):
        disk.remove_tree(directory)
