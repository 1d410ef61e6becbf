"""The state and the snapshot that most tests of this folder begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snapshot_support import small_state, snapshot_of
from warren_raft.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with small_state(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def path(database: Database, tmp_path: Path) -> Path:
    snapshot_of(database, tmp_path / "s.mdb")
    return tmp_path / "s.mdb"
