"""Other users of the host must not have access to a data directory, and a directory of other files is none.

Lives here: the checks of a directory before it is opened for writing. Not here: the users that share one, and the modes
of new files (sharing.py). Invariant: no store works in a directory where every user may read or write the log, the
state, a snapshot or a key, nor on files elsewhere to which a symbolic link in the directory leads. No advice to change
modes is given for a directory that holds only other files.
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
    {"lock", "log", "state", "snapshots", "manager.json", "origins", "last-failure.json"}
    | {"restore.part", "restore.ready"}
    | {"tls", "tls.part", "tls.new", "tls.old", "tls.lock"}
)
"""The names of a manager's files in its directory. Other names there (lost+found) are not checked."""
_OTHERS: Final = frozenset({"admin.sock", "lost+found"})
"""Names that a manager's process or a file system makes, and that are not checked."""
_ASIDE: Final = re.compile(r"aside-[0-9TZ-]+\Z")
_DATA: Final = {
    "log": re.compile(r"\d{16}\.log\Z"),
    "state": re.compile(r"\d{1,18}\.mdb\Z"),
    "snapshots": re.compile(r"\d{16,20}-\d{1,20}\.mdb\Z"),
    "tls": re.compile(r"key\.pem\Z"),
}
"""Directory -> a file that a manager keeps in it. The name of the directory is not enough: /var has a `log` too."""
_MARKS: Final = frozenset({"manager.json", "restore.part", "restore.ready"})
"""Names that only a manager gives."""
_SHOWN: Final = 3
"""The most names in one sentence."""


def strangers(data_dir: str | os.PathLike[str]) -> list[str]:
    """The names in the directory that neither a manager nor a file system makes, sorted. A join file (`m1.join`) may
    lie there. Empty if the directory does not exist. Raises OSError."""
    try:
        names = os.listdir(data_dir)
    except FileNotFoundError:
        return []
    return sorted(
        name for name in names if name not in NAMES | _OTHERS and not name.endswith(".join") and not _ASIDE.match(name)
    )


def require_data_or_empty(data_dir: str | os.PathLike[str]) -> None:
    """Raises RefusedForSafety if the directory holds other files and no data of a manager or LocalStore: the operator
    named a wrong directory. Does nothing if it does not exist, or if this user may not list it. Raises OSError."""
    try:
        found = strangers(data_dir)
    except PermissionError:
        return  # require_rights says whose it is
    if found and not _holds_data(data_dir):
        raise RefusedForSafety(no_data(data_dir, found))


def no_data(data_dir: str | os.PathLike[str], found: list[str]) -> str:
    """The sentence for a directory that holds the strangers `found` and no data."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{data_dir} holds {', '.join(found[:_SHOWN])}{more}, and no manager's data: name an empty directory"


def _holds_data(data_dir: str | os.PathLike[str]) -> bool:
    if any(name in _MARKS or _ASIDE.match(name) for name in os.listdir(data_dir)):
        return True
    return any(_has_name(os.path.join(data_dir, name), pattern) for name, pattern in _DATA.items())


def _has_name(directory: str, pattern: re.Pattern[str]) -> bool:
    try:
        return any(map(pattern.match, os.listdir(directory)))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False


def require_private(data_dir: str) -> None:
    """Raises RefusedForSafety if every user of the host may read or write the directory or a manager's file in it, or
    if such a file is a symbolic link. Does nothing if the directory does not exist. Raises OSError. Call
    `require_data_or_empty` first.

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
        f"holds secrets: {_closing_command(data_dir)}"
    )
    if os.geteuid() not in (0, status.st_uid):
        text += (
            f" as its owner, user {name_of_user(status.st_uid)}; or name a directory inside it that does not exist "
            "yet: it is made with mode 0700"
        )
    raise RefusedForSafety(text)


def _closing_command(data_dir: str) -> str:
    """The command that closes the directory and the manager's files in it, and leaves other files as they are."""
    if not strangers(data_dir):
        return f"chmod -R o-rwx {shlex.quote(data_dir)}"
    ours = " ".join(shlex.quote(entry.path) for entry in sorted(_ours(data_dir), key=lambda entry: entry.name))
    return f"chmod o-rwx {shlex.quote(data_dir)} && chmod -R o-rwx {ours}"


def _is_link(path: str) -> str:
    target = os.readlink(path)
    return (
        f"{path} is a symbolic link to {target}, and links out of a data directory are not followed: replace the link "
        f"by its target, or mount the target there (mount --bind {shlex.quote(target)} {shlex.quote(path)})"
    )
