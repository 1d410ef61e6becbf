"""A snapshot is copied and verified, its records on a second processor while this process makes a state of the copy.

Not here: the verification (verification.py), and the new state (install.py).
Invariant: when the block begins, hash, structure and digest of the copy are proved. `require` returns only if every
record of a file with the same hash is proved too; nothing may be published before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Event
from typing import Final

from warren_raft.disk.descriptors import RESERVE
from warren_raft.disk.files import Files
from warren_raft.errors import Corrupted, SnapshotInvalid
from warren_raft.snapshots.file import Progress, SnapshotInfo, extract
from warren_raft.snapshots.verification import CHANGED, VerificationFailed, verify, verify_copy, verify_in_child
from warren_raft.support.workers import Workers

BESIDE_BYTES: Final = 16 * 1024 * 1024
"""The records of a smaller file are verified before the start of a child would be done."""

Require = Callable[[], None]


@contextmanager
def verified_copy(
    file: str, copy: str, manifest: SnapshotInfo, progress: Progress, *, files: Files
) -> Iterator[Require]:
    """Copy the database in `file` to `copy`, not synced, and verify all of it, its records in a child while the block
    runs. The block calls the yielded function before it publishes anything. `manifest` is that of the file.

    Raises the errors of `extract` and `verify`, from the beginning or from the function; SnapshotInvalid too if the
    file became another one.
    """
    if manifest.size_bytes < BESIDE_BYTES or len(os.sched_getaffinity(0)) == 1:
        extract(file, copy, files=files, sync=False)
        verify_copy(copy, file, manifest, records=True, progress=progress)
        yield lambda: None
        return
    with _verified_in_child(file, manifest) as (say_proved, require):
        extract(file, copy, files=files, sync=False)
        verify_copy(copy, file, manifest, records=False, progress=progress)  # before LMDB opens it
        say_proved()
        try:
            yield require
        except Corrupted:  # of the copy: the other process words the fault, with the name of this file
            require()
            raise


@contextmanager
def _verified_in_child(file: str, manifest: SnapshotInfo) -> Iterator[tuple[Callable[[], None], Require]]:
    """A child verifies the records of the file, beginning when the first function is called. The second waits for
    the result."""
    cancel, workers = Event(), Workers(1, "verification")
    with _pipe() as (reading, writing):
        try:
            records = workers.submit(
                verify_in_child, file, records=True, low_priority=False, cancel=cancel, proof=reading
            )

            def say_proved() -> None:
                os.write(writing, f"{manifest.sha256}\n".encode())

            def require() -> None:
                try:
                    verified = records.result()
                except VerificationFailed:  # the child got no result: it was killed, or had no memory
                    verified = verify(file)
                if verified != manifest:
                    raise SnapshotInvalid(file, CHANGED)

            yield say_proved, require
        finally:
            cancel.set()
            workers.shutdown()


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe, which no child inherits by accident."""
    reading, writing = RESERVE.call(os.pipe)
    with closing(os.fdopen(reading, "rb", 0)), closing(os.fdopen(writing, "wb", 0)):
        yield reading, writing
