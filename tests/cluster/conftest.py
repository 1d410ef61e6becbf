"""Clusters that end with their test."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.harness import Cluster


@pytest.fixture(scope="session", autouse=True)
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM to the tests, as a CI sends it after its time limit, ends the clusters like Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """Makes a Cluster(...) that is destroyed at the end of the test, also if the test fails."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: object, **settings: object) -> Cluster:
            return stack.enter_context(Cluster(*arguments, **settings))

        yield make


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three managers, ready."""
    return make_cluster()
