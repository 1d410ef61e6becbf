"""Clusters that end with their test."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.harness import Cluster


@pytest.fixture(scope="session", autouse=True)
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM of the tests, as a CI that lost patience sends it, ends the clusters as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """Cluster(...) that is destroyed when the test ends, however it ends."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: object, **settings: object) -> Cluster:
            return stack.enter_context(Cluster(*arguments, **settings))

        yield make


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three managers, ready."""
    return make_cluster()
