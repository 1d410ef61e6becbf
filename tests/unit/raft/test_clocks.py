"""The promise: an operator is told of clocks that differ between members before a certificate is refused for it; a
delay that does not last, a suspended process and an earlier release raise no alarm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.engine_harness import Cluster
from warren_raft.alarms import Alarms
from warren_raft.raft.clocks import LOOKS, SKEW_SECONDS, Clocks
from warren_raft.raft.reports import Report, is_report


class Rig:
    """The clocks of m1, which leads, and reports of m2."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.alarms = Alarms("m1")
        self.clocks = Clocks("m1", self.alarms)
        self.clocks.now = lambda: self.now

    def second(self, *ahead: float, is_leader: bool = True) -> str:
        """The text of the alarm, after reports in which m2's clock looks so far ahead."""
        self.now += 1
        for seconds in ahead:
            self.clocks.receive("m2", round((self.now + seconds) * 1000))
        self.clocks.look({"m1", "m2"}, is_leader=is_leader)
        return next((alarm.text for alarm in self.alarms.active), "")


def test_a_clock_that_is_ahead_is_told_at_once_and_one_that_is_right_again_soon() -> None:
    rig = Rig()
    assert rig.second(SKEW_SECONDS - 0.1) == ""
    assert rig.second(12).startswith("the clock of m2 is 12 s ahead of that of m1: type date -u on both hosts")
    assert [rig.second(0) for _ in range(LOOKS)][-1] == ""


def test_a_clock_that_is_behind_is_told_when_no_delay_explains_it() -> None:
    rig = Rig()
    texts = [rig.second(-12) for _ in range(LOOKS)]
    assert texts[:-1] == [""] * (LOOKS - 1)
    assert texts[-1].startswith("the clock of m2 is 12 s behind that of m1: ")
    assert rig.second(-0.5) == ""


def test_reports_that_waited_raise_no_alarm() -> None:
    """The network was slow, or this process was suspended and reads the reports of a minute at once."""
    rig = Rig()
    assert not any(rig.second(-30) for _ in range(LOOKS - 1))
    assert rig.second(*range(-60, 1)) == ""
    assert not any(rig.second(-30) for _ in range(LOOKS - 1))


def test_only_the_leader_tells_and_only_of_members_with_a_link() -> None:
    rig = Rig()
    assert rig.second(60, is_leader=False) == ""
    assert rig.second(60)
    assert rig.second(60, is_leader=False) == ""
    assert rig.second(60)
    rig.clocks.forget("m2")
    assert rig.second() == ""
    assert rig.second(60)
    rig.clocks.look({"m1"}, is_leader=True)
    assert rig.alarms.active == ()
    rig.clocks.receive("m2", round((rig.now + 60) * 1000))  # it leaves, and its link is still up
    rig.clocks.look({"m1"}, is_leader=True)
    assert rig.alarms.active == ()


def test_a_member_that_has_sent_nothing_for_long_is_not_told_of() -> None:
    rig = Rig()
    assert rig.second(60)
    assert all(rig.second() for _ in range(LOOKS - 1))
    assert rig.second() == ""
    assert rig.second(60)


def test_the_clock_of_the_leader_is_suspected_only_if_two_members_disagree_with_it() -> None:
    advice = "If the alarm names two or more members, and all others, the clock of m1 is the wrong one"
    assert Rig().second(60).endswith(advice)


def test_the_time_in_a_report_may_be_missing_or_later_than_any_clock() -> None:
    message = Report(version="1").to_message()
    message.pop("time_ms")
    assert is_report(message), "an earlier release has no time in it"
    assert Report.from_message(message).time_ms is None
    assert is_report({**message, "time_ms": 1 << 62})
    assert not any(is_report({**message, "time_ms": wrong}) for wrong in (-1, 1.5, "1", True, 1 << 63))
    rig = Rig()
    rig.clocks.receive("m2", None)
    rig.clocks.receive("m2", 1 << 62)
    assert "s ahead of that of m1" in rig.second()


def test_the_leader_of_a_cluster_names_the_member_with_the_wrong_clock() -> None:
    cluster = Cluster()
    leader = cluster.wait_ready()
    wrong, old = cluster.followers()

    def clock(ahead: float) -> float:
        return 1_800_000_000.0 + cluster.now + ahead

    clocks: dict[str, Callable[[], float]] = {leader.id: partial(clock, 0.0), wrong: partial(clock, -60.0)}
    for id_, each in clocks.items():
        cluster.nodes[id_].engine.use_wall_clock(each)

    def told(id_: str) -> dict[str, str]:
        active = cluster.nodes[id_].engine.alarms.active
        return {alarm.subject: alarm.text for alarm in active if alarm.name == "clock-skew"}

    cluster.run(2 * LOOKS)
    assert {id_: list(told(id_)) for id_ in cluster.nodes} == {leader.id: [wrong], wrong: [], old: []}
    assert "60 s behind" in told(leader.id)[wrong]
    clocks[wrong] = partial(clock, 0.0)
    cluster.nodes[wrong].engine.use_wall_clock(clocks[wrong])
    cluster.run(2)
    assert told(leader.id) == {}
