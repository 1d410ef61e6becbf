"""Work on snapshots, and on the data directories of stopped managers, for programs: the commands of the same names.

Lives here: short forms of these functions, as `import warren_raft` offers them; `restore` is recovery/restore.py's own.
Not here: how they are carried out (recovery/, data_dir/description.py, snapshots/). Invariant: none of them
needs a running manager; `recover` alone changes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from warren_raft.data_dir import description as describing
from warren_raft.data_dir.description import Description
from warren_raft.recovery.recover import Recovery
from warren_raft.recovery.restore import Restored
from warren_raft.snapshots import verification
from warren_raft.snapshots.file import SnapshotInfo, read_manifest

Path = str | os.PathLike[str]
Progress = Callable[[float], None]
"""Called with the share that is done, from 0 to 1, in the calling thread."""


def inspect(file: Path) -> SnapshotInfo:
    """The description of a snapshot, from its last page alone. Use `verify` to check the rest of the file.

    Raises SnapshotInvalid (it is not a snapshot, it was cut, or its last page is damaged), RefusedForSafety (the format
    of a newer release), OSError. Thread-safe.
    """
    return read_manifest(file)


def verify(file: Path, *, progress: Progress | None = None) -> SnapshotInfo:
    """Check that a snapshot is as it was saved: its hash, the database, its digest, every record and every index.

    100,000 containers (90 MB) take about 3 s of one processor, in the calling thread. Raises SnapshotInvalid (with the
    fault and its place), RefusedForSafety (the format of a newer release), OSError. Thread-safe.
    """
    return verification.verify(file, progress=progress)


def recover(data_dir: Path, *, force: bool = False, progress: Progress | None = None) -> Restored:
    """Make a cluster of one from the directory of a stopped manager, after its cluster has lost its quorum for good.

    Writes that were acknowledged and that only the lost members held are missing afterwards; of the survivors, take the
    one with the highest index (`describe`). `force`: also if another member answers, if the log has the removal of this
    manager, and without the entries from the first unreadable one on.

    Raises RefusedForSafety, InUse (its manager runs), Corrupted, StorageFull, OSError. After an error, and if the
    process dies, `data_dir` has its old content or all of the new.
    """
    with Recovery(data_dir, force=force) as recovery:
        return recovery.carry_out(progress or (lambda _share: None))


def describe(data_dir: Path) -> Description:
    """The content of a stopped manager's directory: its node id, cluster, members, indexes. Nothing is changed.

    Raises InUse (its manager runs), RefusedForSafety (there is no manager's log), Corrupted, OSError.
    """
    return describing.describe(data_dir)
