"""Replacing the log, state and snapshots of a data directory together or not at all, even if the process dies.

The new content is made elsewhere (install.py, recovery/restore.py). The new files are made within the directory,
because the directory may be a mount point and may hold foreign files (lost+found). Invariant: until `commit` has
returned, nothing of the directory is changed. After that, the next process that opens it gets the new content, by
`finish`. The old content is set aside, never removed.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from warren_raft.disk.durable import make_directory, rename, replace_file
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.disk.sharing import without_links
from warren_raft.errors import Corrupted

Path = str | os.PathLike[str]

OURS: Final = ("log", "state", "snapshots")
"""A directory with one of these belongs to a manager. A lock file, or the socket of a stopped manager, is not
enough."""

_PART: Final = "restore.part"
_READY: Final = "restore.ready"
_ASIDE: Final = "aside"  # in both of the above: the name of the directory for the old content
_ASIDE_NAME: Final = re.compile(r"aside-[0-9TZ-]+\Z")


def held(directory: Path) -> list[str]:
    """The names of OURS that exist in the directory. Other names are not checked."""
    return [name for name in OURS if os.path.lexists(os.path.join(directory, name))]


def asides(directory: Path) -> list[str]:
    """The paths of the directories with content that was set aside here, the oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [os.path.join(directory, name) for name in sorted(names) if _ASIDE_NAME.match(name)]


def begin(directory: Path, *, files: Files = OS_FILES) -> str:
    """A new empty directory for the new content, under the names OURS. The caller holds the directory's lock."""
    discard(directory, files=files)
    part = os.path.join(directory, _PART)
    make_directory(part, files=files)
    return part


def discard(directory: Path, *, files: Files = OS_FILES) -> None:
    """Remove an unfinished replacement, of this process or of one that died."""
    with suppress(FileNotFoundError):
        files.remove_tree(os.path.join(directory, _PART))


def commit(directory: Path, now: datetime, *, files: Files = OS_FILES) -> None:
    """Make the new content, which is synced, the directory's content. The caller closes its files and calls `finish`.
    Raises OSError; nothing is committed then."""
    part = os.path.join(directory, _PART)
    replace_file(os.path.join(part, _ASIDE), _free_name(directory, now).encode(), files=files)
    rename(part, os.path.join(directory, _READY), files=files)


def is_committed(directory: Path) -> bool:
    """Whether there was a `commit` that `finish` has not completed yet."""
    return os.path.lexists(os.path.join(directory, _READY, _ASIDE))


def _free_name(directory: Path, now: datetime) -> str:
    name = stamp = f"aside-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    number = 1
    while os.path.lexists(os.path.join(directory, name)):
        number += 1
        name = f"{stamp}-{number}"
    return name


def finish(directory: Path, *, files: Files = OS_FILES) -> str | None:
    """After a `commit`, set the old content aside and put the new content in its place. Otherwise do nothing.

    An interrupted call may be repeated. Returns the path of the old content. The caller holds the lock.
    """
    ready = os.path.join(directory, _READY)
    try:
        with open(os.path.join(ready, _ASIDE), encoding="ascii", opener=without_links) as file:
            name = file.read()
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            files.remove_directory(ready)
        return None
    if not _ASIDE_NAME.match(name):
        raise Corrupted(os.path.join(ready, _ASIDE), f"{name!r} is not a name that was written there")
    aside = os.path.join(directory, name)
    for each in OURS:
        _take_place(os.path.join(ready, each), os.path.join(directory, each), os.path.join(aside, each), files)
    files.unlink(os.path.join(ready, _ASIDE))
    files.remove_directory(ready)
    files.sync_directory(os.fspath(directory))
    return aside if os.path.isdir(aside) else None


def _take_place(new: str, place: str, aside: str, files: Files) -> None:
    if not os.path.lexists(new):
        return  # an earlier call has moved it
    if os.path.lexists(place):
        make_directory(os.path.dirname(aside), files=files)
        files.rename(place, aside)
        files.sync_directory(os.path.dirname(aside))
    files.rename(new, place)
    files.sync_directory(os.path.dirname(place))
