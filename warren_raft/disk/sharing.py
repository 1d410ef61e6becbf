"""The users that may read and write the files of a data directory: the user that made them, or all users of a group.

Lives here: the rule, and making files and directories by it. Not here: the purpose of the files.
Invariant: a file gives rights to a group only inside a directory that was given to the group on purpose, and never
takes rights from the user that owned the directory before.

A directory is shared when its group may do everything in it and new files get that group: mode 2770, that is `chmod
g+rwxs`. Kubernetes sets this mode if a pod has an fsGroup. A umask never sets it, so it is always a decision.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from typing import Final

from ..errors import RefusedForSafety
from .descriptors import RESERVE

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
SHARED_FILE: Final = 0o660
SHARED_DIRECTORY: Final = 0o2770
_SHARED: Final = stat.S_ISGID | stat.S_IRWXG


def is_shared(directory: str | int) -> bool:
    """Whether a directory, by its path or an open descriptor, is shared with its group. Raises OSError."""
    return os.stat(directory).st_mode & _SHARED == _SHARED


def make_directory(path: str) -> None:
    """Make one directory: mode 0700, or 2770 in a shared directory. Raises FileExistsError if it exists."""
    os.mkdir(path, PRIVATE_DIRECTORY)
    if is_shared(os.path.dirname(path) or "."):
        os.chmod(path, SHARED_DIRECTORY)  # the umask may have removed some of these rights


def open_new(path: str, flags: int, *, directory: int | None = None) -> int:
    """`os.open` for a new file: mode 0600, or 0660 in a shared directory. `directory`: `path` is a name in it."""
    descriptor = RESERVE.call(os.open, path, flags | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE, dir_fd=directory)
    try:
        if is_shared(directory if directory is not None else os.path.dirname(path) or "."):
            _set_mode(descriptor, SHARED_FILE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def without_links(path: str, flags: int) -> int:
    """For `open(path, opener=without_links)`. Raises OSError if the last part of the name is a symbolic link (ELOOP),
    or a pipe or a device (EINVAL): to open or read these can take for ever."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open() itself refuses a directory
            raise OSError(errno.EINVAL, "not a regular file", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def correct_mode(path: str) -> None:
    """Give a file of this user the mode of a new file. It may have been copied under any umask, or made by LMDB.

    The file of another user is not changed: only its owner may change it, and need not.
    """
    _set_mode(path, SHARED_FILE if is_shared(os.path.dirname(path)) else PRIVATE_FILE)


def _set_mode(file: str | int, mode: int) -> None:
    status = os.stat(file)
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != mode:
        os.chmod(file, mode)


def require_rights(path: str, *, data_dir: str) -> None:
    """Raises RefusedForSafety if a file or directory in `data_dir` belongs to another user and is not shared with a
    group of this process: our new files would lock its owner out. Does nothing if it does not exist."""
    try:
        status = os.stat(path)
        directory = status if stat.S_ISDIR(status.st_mode) else os.stat(os.path.dirname(path))
    except FileNotFoundError:
        return
    except PermissionError:
        raise RefusedForSafety(_whose(data_dir, os.stat(data_dir).st_uid, data_dir)) from None
    if status.st_uid == os.geteuid():
        return
    is_ours = directory.st_gid in (os.getegid(), *os.getgroups()) or os.geteuid() == 0
    if directory.st_mode & _SHARED != _SHARED or not is_ours:
        raise RefusedForSafety(_whose(path, status.st_uid, data_dir))


def _whose(path: str, owner: int, data_dir: str) -> str:
    name = name_of_user(owner)
    return (
        f"{path} belongs to user {name}, and this is user {name_of_user(os.geteuid())}: run it as the owner: "
        f"sudo -u '{name}' ...; or let a group of both users share it: chgrp -R GROUP {data_dir} && "
        f"chmod -R g+rwX {data_dir} && find {data_dir} -type d -exec chmod g+s {{}} +"
    )


def name_of_user(user: int) -> str:
    """The name of a user id; `#id` if the user has no name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
