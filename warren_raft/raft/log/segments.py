"""Making the log's segments: filled with zeros, given a header, and named only when all of that is durable.

Lives here: the steps that make one new file. Not here: which segment is needed, and when.
Invariant: a segment that has a name is whole, or damaged. No crash leaves a part of one.
"""

from __future__ import annotations

import contextlib
import errno
import posixpath
from dataclasses import dataclass

from ...disk.files import File, Files
from . import format as form
from .format import SegmentHeader

FILL_BYTES = 1024 * 1024  # zeros written between two syncs, so that a log sync never queues behind 16 MiB
TEMPORARY_SUFFIX = ".tmp"


def segment_path(directory: str, number: int) -> str:
    """The path of a segment. opening.py finds segments by this form of name."""
    return posixpath.join(directory, f"{number:016d}.log")


@dataclass(slots=True)
class Segment:
    """The segment that is being written. `end`: the offset of the next batch, in bytes from the segment's start."""

    file: File
    number: int
    capacity: int
    salt: int
    end: int


class Preparation:
    """A segment that a worker thread fills with zeros before it is needed.

    The log's thread reads `file` only when `running` is False, which is set last.
    """

    def __init__(self, files: Files, path: str, capacity: int) -> None:
        self._files = files
        self.path = path
        self.capacity = capacity
        self.running = True
        self.file: File | None = None

    def __call__(self) -> None:
        """Fill the segment. Raises OSError; then the space is given back."""
        try:
            self.file = _zero_filled(self._files, self.path, self.capacity, sync_each=True)
        finally:
            self.running = False


class Roll:
    """Makes one new segment in steps. After an OSError, the next call goes on with the step that failed."""

    def __init__(
        self, files: Files, directory: str, header: SegmentHeader, prepared: Preparation | None = None
    ) -> None:
        self._files = files
        self._directory = directory
        self._header = header
        self._path = segment_path(directory, header.number)
        self._temporary = prepared.path if prepared else self._path + TEMPORARY_SUFFIX
        self._file = prepared.file if prepared else None
        self._is_prepared = prepared is not None
        self._named = False
        self._has_tried = False

    def run(self) -> Segment:
        """Return the finished segment. Any thread may call, but only one at a time."""
        is_untried = self._is_prepared and not self._has_tried
        try:
            return self._run()
        except OSError as error:
            if not is_untried or error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        self._forget_prepared()  # somebody removed the prepared file, perhaps with all *.tmp; it had zeros only
        return self._run()

    def _forget_prepared(self) -> None:
        self.close()
        self._file = None
        self._temporary = self._path + TEMPORARY_SUFFIX
        self._is_prepared = self._has_tried = False

    def _run(self) -> Segment:
        header = form.encode_header(self._header)
        if self._file is None:
            self._file = _zero_filled(self._files, self._temporary, self._header.capacity, sync_each=False)
        if not self._named:
            self._file.write(0, header)
            self._file.sync()
            self._rename()
            self._named = True
        self._files.sync_directory(self._directory)
        return Segment(self._file, self._header.number, self._header.capacity, form.header_salt(header), len(header))

    def _rename(self) -> None:
        """Rename the file. An attempt that raised an error may have renamed it all the same. Then the next attempt does
        not find it."""
        try:
            self._files.rename(self._temporary, self._path)
        except FileNotFoundError:
            if not self._has_tried:
                raise
        finally:
            self._has_tried = True

    @property
    def is_filled(self) -> bool:
        """False while no byte of the segment is on the disk. Until then it can be given up without a trace."""
        return self._file is not None

    def close(self) -> None:
        """Give up. The next open removes an unfinished file from the disk."""
        if self._file is not None:
            self._file.close()


def _zero_filled(files: Files, path: str, capacity: int, *, sync_each: bool) -> File:
    """A new file of `capacity` zeros. After an error the file is removed, because it may have filled the disk."""
    file = files.open(path, create=True)
    try:
        for offset in range(0, capacity, FILL_BYTES):
            file.write(offset, bytes(min(FILL_BYTES, capacity - offset)))
            if sync_each:
                file.sync()
    except OSError:
        file.close()
        with contextlib.suppress(FileNotFoundError):
            files.unlink(path)
        raise
    return file
