"""A snapshot is verified on a second processor while this process already makes a state of it.

Not here: the verification (verification.py), and the new state (install.py).
Invariant: when the block begins, hash, structure and digest of the file are proved. `require` returns only if every
record of the same file is proved too; nothing may be published before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Final

from warren_raft.errors import Corrupted, SnapshotInvalid
from warren_raft.snapshots.file import Progress, SnapshotInfo
from warren_raft.snapshots.verification import VerificationFailed, verify, verify_in_child
from warren_raft.support.workers import Workers

BESIDE_BYTES: Final = 16 * 1024 * 1024
"""The records of a smaller file are verified before the start of a child would be done."""

Require = Callable[[], None]


@contextmanager
def verified_beside(file: str, manifest: SnapshotInfo, progress: Progress) -> Iterator[Require]:
    """Verify the whole file, its records in a child while the block runs. The block calls the yielded function before
    it publishes anything. `manifest` is that of the file.

    Raises the errors of `verify`, from the beginning or from the function; SnapshotInvalid too if the file became
    another one.
    """
    if manifest.size_bytes < BESIDE_BYTES or len(os.sched_getaffinity(0)) == 1:
        verify(file, progress=progress)
        yield lambda: None
        return
    cancel, workers = Event(), Workers(1, "verification")
    try:
        records = workers.submit(verify_in_child, file, records=True, low_priority=False, cancel=cancel)

        def require() -> None:
            try:
                verified = records.result()
            except VerificationFailed:  # the child got no result: it was killed, or had no memory
                verified = verify(file)
            if verified != manifest:
                raise SnapshotInvalid(file, "was changed while it was verified")

        verify(file, records=False, progress=progress)  # before LMDB opens a copy of it
        try:
            yield require
        except Corrupted:  # of the copy: the other process words the fault, with the name of this file
            require()
            raise
    finally:
        cancel.set()
        workers.shutdown()
