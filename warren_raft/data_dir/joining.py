"""The settings of a manager from its join file, for programs that embed one: `warren_raft.config_from_join`.

Not here: the content of the file (certificates/join_files.py), the settings of the last start (remembered.py), the
sources of the command line (cli/settings.py). Invariant: what the caller names wins.
"""

from __future__ import annotations

import os
from typing import Any

from warren_raft.certificates.files import directory_of
from warren_raft.certificates.join_files import JoinFile
from warren_raft.config import Config
from warren_raft.data_dir.remembered import settings_of


def config_from_join(file: str | os.PathLike[str], *, data_dir: str | os.PathLike[str], **settings: Any) -> Config:
    """The settings of the manager that a join file is for, as `warren-raft serve --join FILE --data-dir DIR` has them.

    The file has the manager's id, its address, the members, its key and its certificate (`warren-raft cert issue
    m1=10.0.0.1:7946 m2=...`). `settings` are any further ones of `Config`, by name. When the manager has started once,
    the file may be removed: its certificate is in `data_dir` then, and so are the settings of its last start.

    Raises InvalidConfig (a wrong setting), InvalidEntity (the file is no join file), RefusedForSafety (other users may
    read it, or `data_dir` is of another kind of store), FileNotFoundError (there is neither the file nor an earlier
    start), InUse (the manager runs, and there is no file), Corrupted, OSError. Starts nothing.
    """
    try:
        join = JoinFile.read(file)
    except FileNotFoundError:
        found = settings_of(data_dir) if os.path.exists(directory_of(data_dir)) else {}
        if not {"node_id", "listen", "members"} <= found.keys():
            raise
    else:
        found = {"node_id": join.node_id, "listen": join.address, "members": join.members}
    return Config.from_mapping({**found, **settings, "data_dir": data_dir, "join": file})
