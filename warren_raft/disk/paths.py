"""Names of directories: made absolute once, and the error for a name that leads to another place later.

Lives here: the code that every module with a name needs. Not here: opening, and the check (store/ownership.py).
Invariant: an absolute name means the directory that was meant when it was given, also after an `os.chdir`.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from ..errors import Corrupted, RefusedForSafety

_DATA_NAMES: Final = ("log", "state", "lock")
"""A data directory has at least one of them, also after its owner was killed at its first start."""


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute name of `path`; symbolic links stay as they are.

    Raises FileNotFoundError for an empty name, which does not mean the current directory, and for a relative name when
    the current directory was removed.
    """
    name = os.fspath(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "the name of a file or directory is empty", name)
    try:
        return os.path.abspath(_without_parents(name))
    except FileNotFoundError:
        reason = "the current directory was removed: give an absolute name instead of this one"
        raise FileNotFoundError(errno.ENOENT, reason, name) from None


def _without_parents(name: str) -> str:
    """Resolve `..`: if a is a symbolic link, `a/..` is not `.`, and only the file system knows the parent."""
    parts = name.split("/")
    if ".." not in parts:
        return name
    end = len(parts) - parts[::-1].index("..")
    return os.path.join(os.path.realpath("/".join(parts[:end])), *parts[end:])


def refuse_file(directory: str) -> None:
    """Raises RefusedForSafety if there is a file in the place of a directory, or of a directory above it. Does nothing
    if there is nothing yet."""
    place = directory
    while not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    if os.path.exists(place) and not os.path.isdir(place):
        raise RefusedForSafety(f"{place} is a file, not a directory: name a data directory")


def require_directory(directory: str) -> None:
    """Raises RefusedForSafety if there is no such directory."""
    refuse_file(directory)
    if not os.path.isdir(directory):
        raise RefusedForSafety(f"there is no directory {directory}: name the data directory of a stopped manager")


def missing_data(data_dir: str) -> str | None:
    """The reason why `data_dir` cannot be the data directory of a manager or store that ran; None if it may be one."""
    if not os.path.isdir(data_dir):
        return "there is no such directory"
    if not any(os.path.lexists(os.path.join(data_dir, name)) for name in _DATA_NAMES):
        return "the directory holds no manager's data"
    return None


def moved(path: str) -> Corrupted:
    """The error that stops a store when a directory or a file is no longer in the place where the store opened it."""
    return Corrupted(
        path,
        "was removed, moved or replaced while a store worked in it",
        remedy="the store stopped, because its writes would be lost: put the original back and open it again, "
        "or see docs/recovery.md",
    )
