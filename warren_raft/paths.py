"""The name of a directory, made absolute once, so that a later `os.chdir` of the program leads nobody elsewhere.

Lives here: that one step, for every part that keeps a name. Not here: opening anything.
Invariant: the result means the directory that the name meant when it was given.
"""

from __future__ import annotations

import errno
import os


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
