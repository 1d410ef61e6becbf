"""The sentence for an error of the operating system: the file or directory, the reason, and the next step.

Not here: the exit code (main.py). Invariant: the sentence names the path of the error, or the directory in it that is
the reason.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from typing import Final

OUTPUT_LOST: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of a write. Only the output of a command is written to a file without a name, which is stdout: the errors of
other files have the name (disk/files.py)."""


def sentence(error: OSError) -> str:
    """One line for the operator."""
    reason = error.strerror or str(error)
    if not isinstance(error.filename, str) or not error.filename:
        return f"the output could not be written to stdout: {reason}" if error.errno in OUTPUT_LOST else reason
    path = error.filename
    if error.errno is None or reason != os.strerror(error.errno):
        return f"{path}: {reason}"  # the words of this package
    match error.errno:
        case errno.ENOENT if not os.path.lexists(path):
            return _nothing(path)
        case errno.EBADF:
            return f"{path} is closed: send the output to a file or a pipe"
        case errno.EISDIR:
            return f"{path} is a directory: name a file"
        case errno.ENOTDIR:
            return f"{path}: {_nearest(path)} is a file, not a directory"
        case errno.EACCES:
            return f"{path}: {reason}: {_rights(_nearest(path))}; change the mode, or run this as the owner"
        case _:
            return f"{path}: {reason}"


def _nothing(path: str) -> str:
    directory = os.path.dirname(path) or os.curdir
    if not os.path.isdir(directory):
        return f"there is no directory {directory}: correct the name, or make the directory first"
    return f"there is no file {path}"


def _nearest(path: str) -> str:
    """The path, or the nearest directory above it, that exists as far as this user can see."""
    while not os.path.lexists(path) and path not in ("", os.sep):
        path = os.path.dirname(path)
    return path or os.curdir


def _rights(path: str) -> str:
    found = os.stat(path, follow_symlinks=False)
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} has mode {mode:04o} and belongs to {_user(found.st_uid)}, and this is {_user(os.geteuid())}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
