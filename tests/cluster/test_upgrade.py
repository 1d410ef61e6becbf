"""The promise of docs/upgrade.md: managers are upgraded one at a time under load, and nothing is lost.

New commands are used only once all members can read them. Until then each manager can go back to the release before;
afterwards that release refuses to open the data. The release before is made from this source, in
tests/previous_release.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.harness import Cluster, ManagerError
from tests.previous_release import LEVEL_MAX
from warren_raft.store import levels


@pytest.fixture
def previous(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three managers of the previous release, ready."""
    cluster = make_cluster(start=False)
    cluster.previous |= set(cluster.members)
    cluster.start(*cluster.members)
    return cluster


def restart(cluster: Cluster, id_: str, *, previous: bool = False) -> None:
    """Stop a manager, change its release, start it, and wait until it is ready, as docs/upgrade.md says."""
    cluster.stop(id_)
    (cluster.previous.add if previous else cluster.previous.discard)(id_)
    cluster.start(id_)


def levels_of(cluster: Cluster) -> set[int]:
    return {status["level"] for status in cluster.statuses().values()}


def readable(cluster: Cluster, id_: str) -> dict[str, int]:
    return {member["id"]: member["level_max"] for member in cluster.status(id_)["members"]}


def wait_level(cluster: Cluster, level: int) -> None:
    cluster.wait(lambda: levels_of(cluster) == {level}, f"level {level} on all managers")


def assert_refused_until_raised(cluster: Cluster, id_: str) -> None:
    """The features of the newer release are refused by one sentence, and everything else works."""
    for command, arguments in (
        ("put", {"key": "asked", "value": "", "request_id": "r1"}),
        ("put_if", {"key": "kept", "value": "1", "if_revision": cluster.call(id_, "get", key="kept")[1]}),
        ("heartbeat", {"node_id": "n1", "ttl_seconds": 5.0}),
    ):
        with pytest.raises(ManagerError) as refused:
            cluster.call(id_, command, **arguments)
        assert refused.value.kind == "Unavailable"
        assert not refused.value.data["maybe_applied"]
        assert "needs level 2 of the command set" in refused.value.text
        assert f"{min(cluster.previous)} reads up to level {LEVEL_MAX}" in refused.value.text
    assert cluster.call(id_, "barrier") > 0


@pytest.mark.slow
def test_three_managers_are_upgraded_under_load_and_nothing_is_lost(previous: Cluster) -> None:
    cluster = previous
    leader = cluster.wait_leader()
    first, second = (id_ for id_ in cluster.members if id_ != leader)
    term = cluster.status(leader)["term"]
    cluster.call(leader, "put", key="kept", value="0")
    cluster.call(leader, "put_node", id="n1", status="ready")
    assert levels_of(cluster) == {LEVEL_MAX}
    cluster.start_load()
    cluster.wait_acknowledged(100)
    for id_ in (first, second):
        restart(cluster, id_)
        cluster.start_load(id_)
        cluster.wait_acknowledged(50, id_)
        assert_refused_until_raised(cluster, id_)
    cluster.assert_no_election(leader, term)
    cluster.wait(lambda: None not in readable(cluster, first).values(), "links")
    assert readable(cluster, first) == {first: levels.NEWEST, second: levels.NEWEST, leader: LEVEL_MAX}

    restart(cluster, leader)
    wait_level(cluster, levels.NEWEST)
    assert {status["term"] for status in cluster.statuses().values()} == {term + 1}
    cluster.wait_acknowledged(100)
    assert cluster.call(first, "put", key="asked", value="", request_id="r1") > 0
    revision = cluster.call(leader, "get", key="kept")[1]
    assert cluster.call(second, "put_if", key="kept", value="1", if_revision=revision) > revision
    cluster.call(second, "heartbeat", node_id="n1", ttl_seconds=5.0)
    cluster.stop_load()
    for key in ("kept", "kept-checked", "asked"):
        cluster.call(first, "delete", key=key)
    cluster.check()

    cluster.stop(first)
    cluster.previous.add(first)
    refused = cluster.launch_refused(first)
    assert refused.kind == "RefusedForSafety"
    assert "uses level 2 of the command set, and this release reads up to level 1" in refused.text
    cluster.previous.discard(first)
    cluster.start(first)  # the refused start has changed nothing
    cluster.check()

    cluster.previous.add("m4")
    cluster.add_blank("m4")
    with pytest.raises(ManagerError, match=r"m4 runs a release that reads the command set up to level 1, and .* 2"):
        cluster.call(second, "add_member", id="m4", address=cluster.addresses["m4"], timeout=3)


@pytest.mark.slow
def test_managers_go_back_to_the_previous_release_before_the_level_is_raised(previous: Cluster) -> None:
    cluster = previous
    leader = cluster.wait_leader()
    upgraded = [id_ for id_ in cluster.members if id_ != leader]
    cluster.start_load(leader)
    for id_ in upgraded:
        restart(cluster, id_)
        cluster.wait_acknowledged(30)
    cluster.start_load(upgraded[0])
    cluster.wait_acknowledged(30, upgraded[0])
    assert levels_of(cluster) == {LEVEL_MAX}
    for id_ in upgraded:
        restart(cluster, id_, previous=True)
        cluster.wait_acknowledged(30)
    cluster.stop_load(leader)
    assert levels_of(cluster) == {LEVEL_MAX}
    cluster.check()


def test_a_new_cluster_begins_at_the_newest_level(cluster: Cluster) -> None:
    assert levels_of(cluster) == {levels.NEWEST}
    cluster.call("m2", "put", key="asked", value="", request_id="r1")
