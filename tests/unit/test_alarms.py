"""An alarm is there exactly while its condition lasts: raised once, logged again while it lasts, cleared when over."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from warren_raft.alarms import ALARMS_MAX, REMIND_SECONDS, TEXT_CHARACTERS, Alarms

START = datetime(2026, 11, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def utc_now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alarms(clock: Clock) -> Alarms:
    return Alarms("m1", utc_now=clock.utc_now, monotonic=clock.monotonic)


def test_an_alarm_keeps_the_time_it_began_while_its_text_changes(alarms: Alarms, clock: Clock) -> None:
    alarms.raise_alarm("member-away", "m2 has been away for 5 s", subject="m2")
    clock.seconds = 60
    alarms.raise_alarm("member-away", "m2 has been away for 65 s", subject="m2", severity="critical")
    (alarm,) = alarms.active
    assert alarm.to_json() == {
        "name": "member-away",
        "subject": "m2",
        "severity": "critical",
        "text": "m2 has been away for 65 s",
        "since": "2026-11-01T00:00:00.000Z",
    }


def test_an_alarm_that_is_raised_again_after_it_was_cleared_has_a_new_beginning(alarms: Alarms, clock: Clock) -> None:
    alarms.raise_alarm("no-quorum", "no quorum")
    alarms.clear_alarm("no-quorum")
    assert alarms.active == ()
    clock.seconds = 9
    alarms.raise_alarm("no-quorum", "no quorum")
    assert [alarm.since for alarm in alarms.active] == [START + timedelta(seconds=9)]


def test_the_log_has_one_line_for_raising_one_for_clearing_and_reminders_between(
    alarms: Alarms, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "warren_raft.alarms")
    for _ in range(3):
        alarms.raise_alarm("no-quorum", "2 of 3 voters are away", severity="critical")
        alarms.remind()
    clock.seconds = REMIND_SECONDS
    alarms.remind()
    alarms.remind()
    alarms.clear_alarm("no-quorum")
    alarms.clear_alarm("no-quorum")
    assert [record.getMessage() for record in caplog.records] == [
        "alarm raised node=m1 alarm=no-quorum severity=critical since=2026-11-01T00:00:00Z: 2 of 3 voters are away",
        "alarm lasts node=m1 alarm=no-quorum severity=critical since=2026-11-01T00:00:00Z: 2 of 3 voters are away",
        "alarm cleared node=m1 alarm=no-quorum lasted_seconds=300.0",
    ]


def test_alarms_of_one_name_are_apart_by_subject(alarms: Alarms) -> None:
    for peer in ("m2", "m3", "m4"):
        alarms.raise_alarm("member-away", f"{peer} is away", subject=peer)
    alarms.clear_others("member-away", {"m3"})
    assert [alarm.subject for alarm in alarms.active] == ["m3"]
    assert alarms.is_raised("member-away", "m3")
    assert not alarms.is_raised("member-away", "m2")


def test_names_that_a_peer_makes_up_and_long_texts_are_bounded(alarms: Alarms) -> None:
    for number in range(ALARMS_MAX + 5):
        alarms.raise_alarm("refused", "x" * 10_000, subject=f"peer-{number}")
    assert len(alarms.active) == ALARMS_MAX
    assert {len(alarm.text) for alarm in alarms.active} == {TEXT_CHARACTERS}
