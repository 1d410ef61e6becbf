"""Directories and files with names and contents that survive a power cut.

Lives here: making a directory with its parents, renaming, and replacing a file atomically, on any Files. Not here: the
single operations (files.py), and the modes of new files (sharing.py). Invariant: when a function returns, its change is
on the disk; when it raises, the change was not made, or the error says that it was (`unsynced`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from warren_raft.disk.files import OS_FILES, File, Files


def unsynced(path: str, change: str, error: OSError) -> OSError:
    """The error of a change (`change`: "is written") that was made and cannot be undone, although `error` came when its
    directory was synced."""
    text = f"{change}, but its directory could not be synced ({error.strerror}): a power cut may undo this change"
    return OSError(error.errno, text, path)


def make_directory(path: str, *, private: bool = False, files: Files = OS_FILES) -> None:
    """Make `path` and the missing directories above it durably: mode 0700, or 2770 in a shared directory (sharing.py).
    An existing directory keeps its mode. `private`: mode 0700 for `path` in a shared directory too.

    Raises OSError: then `path` is not there, so that the next call does not take it for durable, or the error says that
    it is there."""
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
    try:
        files.sync_directory(os.path.dirname(path))
    except OSError as error:
        try:
            files.remove_directory(path)
        except OSError:
            raise unsynced(path, "is made", error) from error
        raise


def rename(old: str, new: str, *, files: Files = OS_FILES) -> None:
    """Give a file or a directory another name in the same directory, durably. After an OSError it has its
    old name, so that no program takes a change for complete that was reported as a failure; or the error says that it
    has the new one."""
    files.rename(old, new)
    try:
        files.sync_directory(os.path.dirname(new))
    except OSError as error:
        try:
            files.rename(new, old)
        except OSError:
            raise unsynced(new, "has its new name", error) from error
        raise


def replace_file(path: str, data: bytes, *, files: Files = OS_FILES) -> None:
    """Make `path` hold `data`, atomically and durably: after a crash it holds either the old data or the new. Raises
    OSError: then it holds the old data, or the error says that it holds the new."""
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
        try:
            files.sync_directory(os.path.dirname(path))
        except OSError as error:
            raise unsynced(path, "is written", error) from error
    except BaseException:
        file.close()
        raise
    return file
