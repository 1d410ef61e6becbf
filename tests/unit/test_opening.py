"""The promise: opening a data directory leaves nothing behind that keeps its owner out of it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

import warren_raft as wr


def config(directory: Path) -> wr.Config:
    return wr.Config(node_id="m1", data_dir=directory, listen="127.0.0.1:7", members={"m1": "127.0.0.1:7"}, admin=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open what is another user's")
def test_root_does_not_write_into_another_users_directory(tmp_path: Path) -> None:
    """An operator typed `sudo` once; the log files that root made kept the manager's own user out at its next start."""
    nobody = pwd.getpwnam("nobody").pw_uid
    (tmp_path / "log").mkdir()
    os.chown(tmp_path / "log", nobody, -1)
    with pytest.raises(wr.RefusedForSafety, match="sudo -u 'nobody'"):
        wr.ReplicatedStore(config(tmp_path))
    assert os.listdir(tmp_path) == ["log"]


def test_what_cannot_be_removed_of_a_killed_restore_keeps_nobody_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "restore.part").touch()  # a file, where a directory was expected
    wr.ReplicatedStore(config(tmp_path)).close()
    assert "is not removed" in caplog.text
