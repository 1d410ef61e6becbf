"""Directories and files with names and contents that survive a power cut.

Lives here: making a directory with its parents, renaming, and replacing a file atomically, on any Files. Not here: the
single operations (files.py), and the modes of new files (sharing.py). Invariant: when a function returns, its change is
on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from warren_raft.disk.files import OS_FILES, File, Files


def make_directory(path: str, *, private: bool = False, files: Files = OS_FILES) -> None:
    """Make `path` and the missing directories above it durably: mode 0700, or 2770 in a shared directory (sharing.py).
    An existing directory keeps its mode. `private`: mode 0700 for `path` in a shared directory too. Raises OSError."""
    try:
        files.make_directory(path, private=private)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if parent == path:
            raise
        make_directory(parent, files=files)
        try:
            files.make_directory(path, private=private)
        except FileExistsError:  # another process has made it meanwhile
            return
        except FileNotFoundError as error:  # /proc and some other file systems say so
            reason = f"cannot be made: the file system of {parent} does not take new directories"
            raise FileNotFoundError(error.errno, reason, path) from None
    files.sync_directory(os.path.dirname(path))


def rename(old: str, new: str, *, files: Files = OS_FILES) -> None:
    """Give a file or a directory another name in the same directory, durably. After an OSError it has its
    old name, so that no program takes a change for complete that was reported as a failure."""
    files.rename(old, new)
    try:
        files.sync_directory(os.path.dirname(new))
    except OSError:
        files.rename(new, old)
        raise


def replace_file(path: str, data: bytes, *, files: Files = OS_FILES) -> None:
    """Make `path` hold `data`, atomically and durably: after a crash it holds either the old data or the new. Raises
    OSError."""
    replace_and_hold(path, data, locked=False, files=files).close()


def replace_and_hold(path: str, data: bytes, *, locked: bool, files: Files = OS_FILES) -> File:
    """Like `replace_file`. Returns the new file, open; `locked`: it has an flock before it gets its name."""
    temporary = f"{path}.tmp"
    file = files.open(temporary, create=True)
    try:
        try:
            if locked:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(0, data)
            file.sync()
            files.rename(temporary, path)
        except OSError as error:  # for example a full disk
            with contextlib.suppress(FileNotFoundError):
                files.unlink(temporary)
            raise OSError(error.errno, error.strerror, path) from error
        files.sync_directory(os.path.dirname(path))
    except BaseException:
        file.close()
        raise
    return file
