"""The pytest fixtures `warren_cluster` and `warren_store`, for every project that has warren_raft installed.

Lives here: the fixtures. Not here: the objects that they give (cluster.py, local/). Invariant: nothing but pytest is
loaded until a test uses one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from warren_raft.local.store import LocalStore
    from warren_raft.testing.cluster import Cluster


@pytest.fixture
def warren_cluster() -> Iterator[Cluster]:
    """Three managers in this process, one of which leads: warren_raft.testing.Cluster(size=3)."""
    from warren_raft.testing.cluster import Cluster

    with Cluster(size=3) as cluster:
        yield cluster


@pytest.fixture
def warren_store(tmp_path: Path) -> Iterator[LocalStore]:
    """An empty warren_raft.LocalStore in the test's `tmp_path`."""
    from warren_raft.local.store import LocalStore

    with LocalStore(tmp_path / "warren-store") as store:
        yield store
