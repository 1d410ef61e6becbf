"""The promise: one legal write, however large, costs no leader its place on links that carry little, and it is done in
about the time that its bytes need.

Real processes. network.py stands between them, carries a fixed number of bytes a second, and takes in megabytes before
its sender feels it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.harness import Cluster

pytestmark = pytest.mark.timeout(120)

BATCH_BYTES = 4_000_000  # of put_large
MB = 1_000_000


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(network=True)


def test_the_largest_batch_is_done_in_its_time_and_the_leader_stays(cluster: Cluster) -> None:
    """4 MB at 1 MB/s: four seconds, and four election timeouts. A frame that could not be interrupted held up the
    heartbeats, each new leader sent all of it again, and it was never done."""
    leader = cluster.wait_leader()
    term = cluster.status(leader)["term"]
    cluster.slow_links(bytes_per_second=MB)
    begin = time.monotonic()
    assert cluster.ask(leader, "put_large", callers=1, rounds=1).result(60) == 1
    took = time.monotonic() - begin
    assert BATCH_BYTES / MB <= took <= 2 * BATCH_BYTES / MB
    assert {status["term"] for status in cluster.statuses().values()} == {term}
    cluster.heal()
    cluster.wait_converged()


def test_a_large_entity_on_links_of_four_megabits(cluster: Cluster) -> None:
    leader = cluster.wait_leader()
    term = cluster.status(leader)["term"]
    cluster.slow_links(bytes_per_second=500_000)
    begin = time.monotonic()
    cluster.call(leader, "put", key="large", value="x" * 1_000_000, timeout=30)
    assert time.monotonic() - begin <= 4.0
    assert {status["term"] for status in cluster.statuses().values()} == {term}
    cluster.heal()
    cluster.wait_converged()
