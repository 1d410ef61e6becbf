"""The housekeeping thread of a manager lives as long as the manager."""

from __future__ import annotations

import errno
import socket
import threading
from pathlib import Path

import pytest

from warren_raft.config import Config
from warren_raft.manager import ReplicatedStore


def test_an_error_in_housekeeping_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Pins a bug: one EMFILE while the start was noted, and the state was never written back again.)"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    config = Config(
        data_dir=tmp_path, node_id="m1", listen=address, members={"m1": address}, checkpoint_interval_seconds=0.05
    )
    checkpointed = threading.Event()
    with ReplicatedStore(config) as store:
        opened = store._opened
        noted, checkpoint = opened.state.note_ready, opened.database.checkpoint
        errors = [OSError(errno.EMFILE, "Too many open files")]

        def note_ready() -> None:
            if errors:
                raise errors.pop()
            noted()

        def observed() -> None:
            checkpoint()
            checkpointed.set()

        monkeypatch.setattr(opened.state, "note_ready", note_ready)
        monkeypatch.setattr(opened.database, "checkpoint", observed)
        assert checkpointed.wait(20)
        assert not errors
        assert store.failure is None
