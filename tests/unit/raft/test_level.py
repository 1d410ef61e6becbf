"""The level of the command set among the members: when it is raised, and which managers are let in after that.

Real engines on a virtual clock; a manager of an older release has a lower `level_max`. Not here: the commands of each
level, and data of another level (tests/unit/test_levels.py).
"""

from __future__ import annotations

import pytest

from tests.engine_harness import Cluster, Node
from tests.list_machine import ListMachine
from tests.unit.raft.test_settled import ask_at_once
from warren_raft.raft.changes import DONE
from warren_raft.raft.levels import level_in
from warren_raft.raft.membership import OLDER_RELEASE, REMOVE, REMOVED


def level_of_all(cluster: Cluster, level: int) -> bool:
    return all(node.machine.level == level for node in cluster.nodes.values())


def raised(cluster: Cluster) -> Node:
    """A cluster that has begun at level 1 and is at level 2 now; its leader."""
    leader = cluster.wait_ready()
    cluster.run_until(lambda: level_of_all(cluster, 2))
    return leader


def formed_without_m3() -> Cluster:
    """A cluster at level 1: m3 died before it was formed, and may come back with an older release."""
    cluster = Cluster(level_max=2)
    cluster.run_until(lambda: all(node.engine._roster.founding for node in cluster.nodes.values()))
    cluster.crash("m3")
    cluster.wait_ready()
    return cluster


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_cluster_formed_without_a_founder_is_raised_when_the_founder_answers_or_is_removed(comes_back: bool) -> None:
    cluster = formed_without_m3()
    cluster.run(3.0)
    assert level_of_all(cluster, 1)
    if comes_back:
        cluster.start("m3")
    else:
        assert cluster.change(cluster.wait_leader().id, REMOVE, "m3").state == DONE
    cluster.run_until(lambda: level_of_all(cluster, 2), 3.0)


def test_a_removed_manager_of_an_older_release_is_not_let_in_while_its_removal_settles() -> None:
    """Its vote would not count here, and it can take no entry of this level. (Pins a fault: it got a link, dropped it
    at the first entry with an alarm about an impossible message, and so on.)"""
    cluster = Cluster(level_max=2)
    leader = raised(cluster)
    _, gone = cluster.followers()
    cluster.crash(gone)
    cluster.run(2.0)
    cluster.run_until(lambda: ask_at_once(cluster, REMOVE, gone) and gone not in leader.engine.members)
    hello = cluster.start(gone, level_max=1).engine.hello()
    roster = leader.engine._roster
    assert not roster.has_settled_voters
    refusal = leader.engine.judge(hello)
    assert refusal is not None
    assert refusal.code == OLDER_RELEASE
    assert leader.engine.judge({**hello, "level_max": 2}) is None
    cluster.run_until(lambda: roster.has_settled_voters)
    refusal = leader.engine.judge(hello)
    assert refusal is not None
    assert refusal.code == REMOVED


def has_raise(node: Node) -> bool:
    return level_in(node.log, 1) == 2


def refused(cluster: Cluster, id_: str, by: str) -> bool:
    """Whether a manager has refused another because of its release."""
    return any((one, two, refusal.code) == (by, id_, OLDER_RELEASE) for one, two, refusal in cluster.refusals)


def test_links_that_were_made_at_a_lower_level_end_when_the_level_is_raised() -> None:
    """A manager was started with an older release while the entry that raises the level was under way. The others let
    it in no more, and say why. (Pins a fault: its links stayed; it went on as a follower without entries, and fetched
    snapshots that it could not open.)"""
    cluster = formed_without_m3()
    leader = cluster.wait_leader()
    (other,) = cluster.followers()
    cluster.start("m3")
    cluster.hold((other, leader.id), ("m3", leader.id))
    cluster.run_until(lambda: (leader.id, "m3") in cluster.links)
    cluster.held.discard(("m3", leader.id))
    cluster.run_until(lambda: has_raise(leader))
    cluster.crash("m3")
    old = cluster.start("m3", level_max=1)
    cluster.run_until(lambda: {(leader.id, "m3"), (other, "m3")} <= cluster.links.keys())
    cluster.hold((leader.id, "m3"))
    cluster.held.discard((other, leader.id))
    cluster.run_until(lambda: leader.machine.level == 2)
    cluster.held.clear()
    cluster.run_until(lambda: refused(cluster, "m3", leader.id) and refused(cluster, "m3", other), 3.0)
    assert not [pair for pair in cluster.links if "m3" in pair]
    assert not has_raise(old)
    assert "refused-by-member" in old.alarm_names
    assert "member-not-let-in" in leader.alarm_names
    cluster.restart("m3")
    cluster.run_until(lambda: level_of_all(cluster, 2), 5.0)


def test_links_end_also_when_a_state_of_a_higher_level_replaces_the_present_one() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    id_ = cluster.followers()[0]
    fetched = ListMachine()
    fetched.load(leader.machine.dump())
    fetched.limit, fetched.level = leader.machine.limit, 2
    cluster.nodes[id_].engine._installation.install(fetched)
    cluster.run_until(lambda: cluster.nodes[id_].machine is fetched)
    cluster.run_until(lambda: all(refused(cluster, other, id_) for other in cluster.nodes if other != id_))
    assert not [pair for pair in cluster.links if id_ in pair]


def test_a_link_that_was_judged_just_before_the_level_was_raised_ends() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    id_ = cluster.followers()[0]
    cluster.disconnect(leader.id, id_)
    cluster.turn()
    cluster.disconnect(leader.id, id_)
    cluster.connect(leader.id, id_)
    leader.machine.level = 2
    cluster.step(leader.id)
    assert (leader.id, id_) not in cluster.links
    assert id_ not in leader.engine._roster.links
