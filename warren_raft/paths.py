"""Names of directories: made absolute once, and the error for one that leads elsewhere later.

Lives here: what every part that keeps a name has in common. Not here: opening, and noticing (store/ownership.py).
Invariant: an absolute name means the directory that was meant when it was given, whatever `os.chdir` does later.
"""

from __future__ import annotations

import errno
import os

from .errors import Corrupted


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute name of `path`; symbolic links stay as they are.

    Raises FileNotFoundError for a relative name when the current directory was removed.
    """
    name = os.fspath(path)
    try:
        return os.path.abspath(_without_parents(name))
    except FileNotFoundError:
        reason = "the current directory was removed: give an absolute name instead of this one"
        raise FileNotFoundError(errno.ENOENT, reason, name) from None


def _without_parents(name: str) -> str:
    """`a/..` is another directory than `.` where a is a symbolic link: the file system decides, not the spelling."""
    parts = name.split("/")
    if ".." not in parts:
        return name
    end = len(parts) - parts[::-1].index("..")
    return os.path.join(os.path.realpath("/".join(parts[:end])), *parts[end:])


def moved(path: str) -> Corrupted:
    """The error that stops a store when a directory or a file is not any more where the store opened it."""
    return Corrupted(
        path,
        "was removed or moved, or another one took its place, while a store worked in it",
        remedy="the store stopped, because what it writes would be lost: put back what was there and open it again, "
        "or see docs/recovery.md",
    )
