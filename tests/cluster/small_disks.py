"""Small file systems of their own for managers' data directories, so that a disk can really be full.

Each manager gets a tmpfs, which needs a superuser or a user namespace. Invariant: nothing stays mounted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024


class SmallDisk:
    """One mounted file system. `fill` leaves the given bytes, `free` gives the filled space back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def left(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def fill(self, left_bytes: int = 0) -> None:
        """Take space until only `left_bytes` are left."""
        with open(self._filler, "ab", buffering=0) as filler:  # `close` must not try a failed write again
            while (left := self.left() - left_bytes) > 0:
                try:
                    filler.write(bytes(min(left, MIB)))
                except OSError:
                    if not left_bytes:
                        return
                    raise

    def free(self) -> None:
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """A file system of that size at `path`. Skips the test if this user may not mount."""
    path.mkdir(mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", path]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)  # also if a failure keeps files open
