"""The directory of a LocalStore, named for a manager by mistake.

Lives here: telling the two apart, and the refusal. Not here: the opposite mistake (local/store.py).
Invariant: nothing is changed, so the LocalStore can be opened again.
"""

from __future__ import annotations

import os
import shlex
from contextlib import closing

from warren_raft.data_dir.description import state_file
from warren_raft.errors import Corrupted, RefusedForSafety
from warren_raft.fsm.entry import Committed, read_committed
from warren_raft.store.database import Database
from warren_raft.store.position import FIRST_INDEX


def refuse_local_state(directory: str | os.PathLike[str]) -> None:
    """For a directory without a log. Raises RefusedForSafety if its state is that of a LocalStore, RefusedForSafety for
    a later format, OSError. A state that is damaged or missing is not judged. Nobody may write to it meanwhile."""
    try:
        with closing(Database.open_file(state_file(os.fspath(directory)))) as database, database.read() as transaction:
            refuse_local(read_committed(transaction), directory)
    except Corrupted:
        return


def refuse_local(position: Committed, directory: str | os.PathLike[str]) -> None:
    """Raises RefusedForSafety if only a LocalStore can have brought the state of `directory` to this position."""
    if position.cluster_id is None and position.applied_term == 0 and position.applied_index > FIRST_INDEX:
        raise RefusedForSafety(
            f"{directory} belongs to a LocalStore, not to a manager; nothing was changed; read it with: warren-raft "
            f"list KIND --data-dir {shlex.quote(os.fspath(directory))}; name another directory for the manager"
        )
