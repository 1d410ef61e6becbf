"""The making of the log's segments: filled with zeros, headed, and named only when all of that is durable.

Lives here: one new file from nothing to usable, in steps. Not here: which one is needed, and when.
Invariant: a segment that has a name is whole, or damaged; no crash leaves a part of one.
"""

from __future__ import annotations

import contextlib
import errno
import posixpath
from dataclasses import dataclass

from . import log_format as form
from .files import File, Files
from .log_format import SegmentHeader

FILL_BYTES = 1024 * 1024  # zeros written between two syncs, so that a log sync never queues behind 16 MiB
TEMPORARY_SUFFIX = ".tmp"


def segment_path(directory: str, number: int) -> str:
    """The name of a segment; log_opening.py knows it again."""
    return posixpath.join(directory, f"{number:016d}.log")


@dataclass(slots=True)
class Segment:
    """The segment being written. `end`: where the next batch begins, in bytes from its start."""

    file: File
    number: int
    capacity: int
    salt: int
    end: int


class Preparation:
    """A segment filled with zeros ahead of need, in another thread than the log's.

    The log's thread looks at `file` only when `running` is False, which is set last.
    """

    def __init__(self, files: Files, path: str, capacity: int) -> None:
        self._files = files
        self.path = path
        self.capacity = capacity
        self.running = True
        self.file: File | None = None

    def __call__(self) -> None:
        """Fill the segment. OSError passes through, the space given back."""
        try:
            self.file = _zero_filled(self._files, self.path, self.capacity, sync_each=True)
        finally:
            self.running = False


class Roll:
    """One new segment, in steps that are taken up again where an OSError stopped them."""

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
        """The finished segment. Any thread; at most one at a time."""
        is_untried = self._is_prepared and not self._has_tried
        try:
            return self._run()
        except OSError as error:
            if not is_untried or error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        self._forget_prepared()  # somebody removed it, a tidy-up of *.tmp perhaps; there are only zeros in it
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
        """An attempt that ended with an error may have happened nevertheless; then the next one finds nothing."""
        try:
            self._files.rename(self._temporary, self._path)
        except FileNotFoundError:
            if not self._has_tried:
                raise
        finally:
            self._has_tried = True

    @property
    def is_filled(self) -> bool:
        """False while nothing of it is on the disk: until then it can be given up as if it had never been begun."""
        return self._file is not None

    def close(self) -> None:
        """Give up: what is on the disk is tidied up by the next open."""
        if self._file is not None:
            self._file.close()


def _zero_filled(files: Files, path: str, capacity: int, *, sync_each: bool) -> File:
    """A new file of `capacity` zeros. After an error it is removed: it may be what filled the disk."""
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
