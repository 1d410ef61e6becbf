"""Resources that a process or a machine may lack for a while: space, file descriptors, memory, allowed file size.

Lives here: the errors that mean a shortage, and the words for them. Not here: trying again, and the alarms.
Invariant: an operation that ends with such an error may be repeated. EIO is not such an error: after it the content of
the disk is unknown.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from ..errors import StorageFull


@dataclass(frozen=True, slots=True)
class Shortage:
    """`what` ends a sentence that begins "because …"; `remedy` is the advice to the operator."""

    what: str
    remedy: str
    is_space: bool = False


SPACE: Final = Shortage("no space is left on the disk", "free or add space", is_space=True)

_SHORTAGES: Final = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: Shortage("this user's quota on the disk is used up", "free space, or raise the quota", is_space=True),
    errno.EMFILE: Shortage(
        "this process has no file descriptor left",
        "find the leak (as root: ls -l /proc/PID/fd), or raise the limit (ulimit -n, LimitNOFILE=)",
    ),
    errno.ENFILE: Shortage(
        "this machine has no file descriptor left",
        "find the process that leaks them (lsof), or raise fs.file-max (sysctl)",
    ),
    errno.ENOMEM: Shortage("there is no memory left", "find the process that uses it, or raise the limit"),
    errno.EFBIG: Shortage(
        "a file would become larger than this process, or its file system, allows",
        "raise the limit (ulimit -f, LimitFSIZE=)",
    ),
}


def storage_full(text: str, code: int) -> StorageFull:
    """The error for a shortage, with its errno as `code`."""
    error = StorageFull(text)
    error.code = code
    return error


def shortage_of(error: BaseException) -> Shortage | None:
    """The shortage behind an OSError, a StorageFull or an error of LMDB; None if the error is no shortage."""
    code = getattr(error, "errno", None) or getattr(error, "code", None) or 0
    return shortage_for(code) or (SPACE if isinstance(error, StorageFull) else None)


def shortage_for(code: int) -> Shortage | None:
    """The shortage of an errno; None if the errno means no shortage."""
    return _SHORTAGES.get(code)
