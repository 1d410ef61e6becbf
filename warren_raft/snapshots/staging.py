"""A data directory whose log, state and snapshots are replaced all at once, or not at all, whenever the process dies.

What the new ones hold is made elsewhere (install.py, restoring.py). Within the directory, because it may be a mount
point, and may hold what is not ours (lost+found). Invariant: until `commit` has returned nothing of the directory is
touched; from then on whoever opens it next finds the new one, by `finish`; what was there is moved, never removed.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from warren_raft.errors import Corrupted
from warren_raft.privacy import NAMES
from warren_raft.sharing import without_links
from warren_raft.store.generations import make_directory, replace_file, sync_directory

Path = str | os.PathLike[str]

OURS: Final = ("log", "state", "snapshots")
"""What makes a directory a manager's. A lock, or the socket of one that is gone, does not."""

_OTHERS: Final = ("admin.sock", "lost+found")
_PART: Final = "restore.part"
_READY: Final = "restore.ready"
_ASIDE: Final = "aside"  # in either: where the old ones go
_ASIDE_NAME: Final = re.compile(r"aside-[0-9TZ-]+\Z")


def held(directory: Path) -> list[str]:
    """Which of OURS the directory holds; whatever else is in it is not looked at."""
    return [name for name in OURS if os.path.lexists(os.path.join(directory, name))]


def strangers(directory: Path) -> list[str]:
    """What else the directory holds, and no manager or file system leaves there."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    known = {*NAMES, *_OTHERS}
    return sorted(name for name in names if name not in known and not _ASIDE_NAME.match(name))


def asides(directory: Path) -> list[str]:
    """The paths of what was moved aside here, the oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [os.path.join(directory, name) for name in sorted(names) if _ASIDE_NAME.match(name)]


def begin(directory: Path) -> str:
    """A new, empty place to make the new ones in, under the names OURS. The caller holds the directory's lock."""
    discard(directory)
    part = os.path.join(directory, _PART)
    make_directory(part)
    return part


def discard(directory: Path) -> None:
    """Remove what was begun, by this process or by one that died."""
    with suppress(FileNotFoundError):
        shutil.rmtree(os.path.join(directory, _PART))


def commit(directory: Path, now: datetime) -> None:
    """What was made, and synced, is the directory's from now on. The caller closes what it has open, then `finish`."""
    part = os.path.join(directory, _PART)
    replace_file(os.path.join(part, _ASIDE), _free_name(directory, now).encode())
    sync_directory(part)
    os.rename(part, os.path.join(directory, _READY))
    sync_directory(os.fspath(directory))


def is_committed(directory: Path) -> bool:
    """Whether there was a `commit` that `finish` has not carried through yet."""
    return os.path.lexists(os.path.join(directory, _READY, _ASIDE))


def _free_name(directory: Path, now: datetime) -> str:
    name = stamp = f"aside-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    number = 1
    while os.path.lexists(os.path.join(directory, name)):
        number += 1
        name = f"{stamp}-{number}"
    return name


def finish(directory: Path) -> str | None:
    """After a `commit`: the old ones go aside, and the new ones take their place. Else nothing.

    May be cut short anywhere and called again. Returns the path of what went aside. The caller holds the lock.
    """
    ready = os.path.join(directory, _READY)
    try:
        with open(os.path.join(ready, _ASIDE), encoding="ascii", opener=without_links) as file:
            name = file.read()
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            os.rmdir(ready)
        return None
    if not _ASIDE_NAME.match(name):
        raise Corrupted(os.path.join(ready, _ASIDE), f"{name!r} is not a name that was written there")
    aside = os.path.join(directory, name)
    for each in OURS:
        _take_place(os.path.join(ready, each), os.path.join(directory, each), os.path.join(aside, each))
    os.unlink(os.path.join(ready, _ASIDE))
    os.rmdir(ready)
    sync_directory(os.fspath(directory))
    return aside if os.path.isdir(aside) else None


def _take_place(new: str, place: str, aside: str) -> None:
    if not os.path.lexists(new):
        return  # a call before this one got so far
    if os.path.lexists(place):
        make_directory(os.path.dirname(aside))
        os.rename(place, aside)
        sync_directory(os.path.dirname(aside))
    os.rename(new, place)
    sync_directory(os.path.dirname(place))
