"""The promise: an operator is told of a disk that is slow for a while, or that hangs; not of one late sync."""

from __future__ import annotations

import pytest

from warren_raft.alarms import Alarms
from warren_raft.manager.slow_disk import HANGS_SECONDS, SLOW_SECONDS, SLOW_SYNCS, WINDOW_SECONDS, SlowDisk
from warren_raft.support.counting import Durations


class Rig:
    """A disk whose syncs the test makes, and the alarm after each second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.syncs = Durations()
        self.syncing_since: float | None = None
        self.alarms = Alarms("m1")
        self.slow_disk = SlowDisk("data", self.syncs, lambda: self.syncing_since, self.alarms, now=lambda: self.now)

    def second(self, *took: float, later: float = 1.0) -> bool:
        for seconds in took:
            self.syncs.note(seconds)
        self.now += later
        self.slow_disk.look()
        return self.alarms.is_raised("disk-slow")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_disk_that_is_slow_for_a_while_raises_the_alarm_until_it_is_quick_for_a_while(rig: Rig) -> None:
    assert [rig.second(0.9) for _ in range(SLOW_SYNCS)] == [False] * (SLOW_SYNCS - 1) + [True]
    assert "3 of the last 3 syncs of the log took longer than 256 ms, all of them 900 ms on average" in (
        rig.alarms.active[0].text
    )
    assert rig.second(*[0.001] * SLOW_SYNCS)
    assert not rig.second(0.001)


def test_a_disk_that_is_no_longer_written_to_is_forgotten_after_the_window(rig: Rig) -> None:
    assert [rig.second(0.9) for _ in range(SLOW_SYNCS)][-1]
    still = sum(rig.second() for _ in range(2 * int(WINDOW_SECONDS)))
    assert WINDOW_SECONDS - SLOW_SYNCS - 1 <= still <= WINDOW_SECONDS


def test_a_few_late_syncs_among_many_quick_ones_raise_none(rig: Rig) -> None:
    assert not any(rig.second(0.9, *[0.001] * 3) for _ in range(100))


def test_the_limit_is_not_slow(rig: Rig) -> None:
    assert not any(rig.second(SLOW_SECONDS) for _ in range(10))


def test_a_sync_that_does_not_end_raises_the_alarm(rig: Rig) -> None:
    rig.syncing_since = rig.now
    lasting = [rig.second() for _ in range(int(HANGS_SECONDS) + 1)]
    assert lasting == [False] * (int(HANGS_SECONDS) - 1) + [True, True]
    assert "a sync of the log began 6 s ago and has not ended" in rig.alarms.active[0].text
    rig.syncing_since = None
    assert not rig.second(6.0)


def test_a_process_that_was_suspended_in_a_sync_blames_no_disk(rig: Rig) -> None:
    rig.syncing_since = rig.now
    assert not rig.second(later=60.0)
    rig.syncing_since = None
    assert not rig.second(60.0)
