"""Other users of the host must not have access to a data directory.

Lives here: the check of a directory before it is opened for writing. Not here: the users that share one, and the modes
of new files (sharing.py). Invariant: no store works in a directory where every user may read or write the log, the
state, a snapshot or a key, nor on files elsewhere to which a symbolic link in the directory leads.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from typing import Final

from ..errors import RefusedForSafety
from .sharing import name_of_user

NAMES: Final = frozenset(
    {"lock", "log", "state", "snapshots", "manager.json", "restore.part", "restore.ready"}
    | {"tls", "tls.part", "tls.new", "tls.old", "tls.lock"}
)
"""The names of a manager's files in its directory. Other names there (lost+found) are not checked."""
_ASIDE: Final = re.compile(r"aside-[0-9TZ-]+\Z")


def require_private(data_dir: str) -> None:
    """Raises RefusedForSafety if every user of the host may read or write the directory or a manager's file in it, or
    if such a file is a symbolic link. Does nothing if the directory does not exist. Raises OSError.

    An empty directory is closed to other users, if this process may do that: `mkdir` leaves it open. Nothing else is
    changed. `data_dir` itself may be a link: its name was chosen by the operator.
    """
    try:
        status = os.stat(data_dir)
    except FileNotFoundError:
        return
    if status.st_mode & stat.S_IRWXO and os.geteuid() in (0, status.st_uid) and _is_empty(data_dir):
        os.chmod(data_dir, stat.S_IMODE(status.st_mode) & ~stat.S_IRWXO)
        if not _is_empty(data_dir):  # another user has put a file there just now
            raise RefusedForSafety(
                f"{data_dir} was open to every user of this host, and files that this manager did not make have come "
                f"into it; look at them, and empty it: ls -la {shlex.quote(data_dir)}"
            )
        status = os.stat(data_dir)
    _require_closed(data_dir, status, data_dir)
    for path, status in _walk(_ours(data_dir)):
        if stat.S_ISLNK(status.st_mode):
            raise RefusedForSafety(_is_link(path))
        _require_closed(path, status, data_dir)


def _is_empty(data_dir: str) -> bool:
    """Apart from the directory that a new file system has."""
    return not set(os.listdir(data_dir)) - {"lost+found"}


def _ours(data_dir: str) -> list[os.DirEntry[str]]:
    with os.scandir(data_dir) as found:
        return [entry for entry in found if entry.name in NAMES or _ASIDE.match(entry.name)]


def refuse_link(path: str) -> None:
    """Raises RefusedForSafety if `path` is a symbolic link. Does nothing if `path` does not exist."""
    if os.path.islink(path):
        raise RefusedForSafety(_is_link(path))


def _walk(entries: list[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    """These entries and everything below them, without following a link."""
    while entries:
        entry = entries.pop()
        try:
            yield entry.path, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as found:
                    entries.extend(found)
        except FileNotFoundError:
            continue  # a store in the directory removed it just now


def _require_closed(path: str, status: os.stat_result, data_dir: str) -> None:
    if not status.st_mode & stat.S_IRWXO or stat.S_ISSOCK(status.st_mode):
        return
    text = (
        f"{path} is open to every user of this host (mode {stat.S_IMODE(status.st_mode):04o}), and a data directory "
        f"holds secrets: chmod -R o-rwx {shlex.quote(data_dir)}"
    )
    if os.geteuid() not in (0, status.st_uid):
        text += (
            f" as its owner, user {name_of_user(status.st_uid)}; or name a directory inside it that does not exist "
            "yet: it is made with mode 0700"
        )
    raise RefusedForSafety(text)


def _is_link(path: str) -> str:
    target = os.readlink(path)
    return (
        f"{path} is a symbolic link to {target}, and links out of a data directory are not followed: replace the link "
        f"by its target, or mount the target there (mount --bind {shlex.quote(target)} {shlex.quote(path)})"
    )
