"""What a data directory gives to the other users of its host: nothing.

Lives here: the look at a directory before it is opened for writing. Not here: which users share one, and the modes of
new files (sharing.py). Invariant: no store works in a directory where every user may read or write the log, the state,
a snapshot or a key, nor on files elsewhere that a symbolic link in the directory leads to.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from typing import Final

from .errors import RefusedForSafety
from .sharing import name_of_user

NAMES: Final = frozenset(
    {"lock", "log", "state", "snapshots", "manager.json", "restore.part", "restore.ready"}
    | {"tls", "tls.part", "tls.new", "tls.old", "tls.lock"}
)
"""Of what a manager keeps in its directory. Other names there (lost+found) are not looked at."""
_ASIDE: Final = re.compile(r"aside-[0-9TZ-]+\Z")


def require_private(data_dir: str) -> None:
    """Raises RefusedForSafety where every user of the host may read or write the directory or what a manager keeps in
    it, or where that is a symbolic link. Changes nothing; nothing where there is no directory. Raises OSError.

    `data_dir` itself may be a link: its name was chosen by whoever started the manager.
    """
    try:
        status = os.stat(data_dir)
    except FileNotFoundError:
        return
    _require_closed(data_dir, status, data_dir)
    with os.scandir(data_dir) as found:
        ours = [entry for entry in found if entry.name in NAMES or _ASIDE.match(entry.name)]
    for path, status in _walk(ours):
        if stat.S_ISLNK(status.st_mode):
            raise RefusedForSafety(_is_link(path))
        _require_closed(path, status, data_dir)


def refuse_link(path: str) -> None:
    """Raises RefusedForSafety where `path` is a symbolic link. Nothing where there is none."""
    if os.path.islink(path):
        raise RefusedForSafety(_is_link(path))


def _walk(entries: list[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    """These and everything below them, without following a link."""
    while entries:
        entry = entries.pop()
        try:
            yield entry.path, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as found:
                    entries.extend(found)
        except FileNotFoundError:
            continue  # the store that has the directory removed it just now


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
        f"{path} is a symbolic link to {target}, and links out of a data directory are not followed: put in its place "
        f"what it leads to, or mount that there (mount --bind {shlex.quote(target)} {shlex.quote(path)})"
    )
