"""Managers elect a leader also if a sync of their disks takes longer than their election timeout.

(Pins a bug: with syncs of 0.6 s on both survivors of three, each campaigned again before its last candidacy, or the
other's vote for it, had reached the disk. So every vote arrived at a candidate of a later term, for ever.)
"""

from __future__ import annotations

import pytest

from tests.engine_harness import Cluster

ELECTION_TIMEOUT_SECONDS = 1.0
SYNCS_OF_AN_ELECTION = 3  # the candidate's term, the vote, and the new leader's first entry


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sync_seconds", [0.3, 0.6, 1.0, 2.0])
def test_a_leader_is_elected_although_every_sync_takes_longer_than_an_election(sync_seconds: float, seed: int) -> None:
    cluster = Cluster(seed=seed)
    leader = cluster.wait_ready()
    for node in cluster.nodes.values():
        node.disk_seconds = sync_seconds
    cluster.crash(leader.id)
    bound = SYNCS_OF_AN_ELECTION * sync_seconds + 2 * ELECTION_TIMEOUT_SECONDS
    cluster.run_until(lambda: cluster.leader, bound)


def test_a_dead_leader_is_nobodys_leader() -> None:
    """The core remembers the dead leader until another one is elected. A caller that waits for a leader must not be
    told the dead one."""
    cluster = Cluster()
    leader = cluster.wait_ready()
    alone, other = cluster.followers()
    assert cluster.nodes[alone].engine.leader == leader.id
    cluster.crash(leader.id)
    cluster.crash(other)
    cluster.run_until(lambda: cluster.nodes[alone].engine.leader is None, 1.0)
    assert not cluster.nodes[alone].engine.has_quorum
