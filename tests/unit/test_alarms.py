"""An alarm is there exactly while its condition lasts: raised once, logged again while it lasts, cleared when over."""

from __future__ import annotations

import ast
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest

from tests.sources import trees_with
from warren_raft.alarms import (
    REMIND_SECONDS,
    SUBJECTS_MAX,
    TEXT_CHARACTERS,
    AlarmName,
    Alarms,
    Severity,
)

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
    alarms.raise_alarm("refused-by-member", "m2 has been away for 5 s", subject="m2")
    clock.seconds = 60
    alarms.raise_alarm("refused-by-member", "m2 has been away for 65 s", subject="m2", severity="critical")
    (alarm,) = alarms.active
    assert alarm.to_json() == {
        "name": "refused-by-member",
        "subject": "m2",
        "severity": "critical",
        "text": "m2 has been away for 65 s",
        "since": "2026-11-01T00:00:00.000Z",
    }


def test_an_alarm_that_is_raised_again_after_it_was_cleared_has_a_new_beginning(alarms: Alarms, clock: Clock) -> None:
    alarms.raise_alarm("log-no-space", "no quorum")
    alarms.clear_alarm("log-no-space")
    assert alarms.active == ()
    clock.seconds = 9
    alarms.raise_alarm("log-no-space", "no quorum")
    assert [alarm.since for alarm in alarms.active] == [START + timedelta(seconds=9)]


def test_the_log_has_one_line_for_raising_one_for_clearing_and_reminders_between(
    alarms: Alarms, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "warren_raft.alarms")
    for _ in range(3):
        alarms.raise_alarm("log-no-space", "2 of 3 voters are away", severity="critical")
        alarms.tick()
    clock.seconds = REMIND_SECONDS
    alarms.tick()
    alarms.tick()
    alarms.clear_alarm("log-no-space")
    alarms.clear_alarm("log-no-space")
    assert [record.getMessage() for record in caplog.records] == [
        "alarm raised node=m1 alarm=log-no-space severity=critical since=2026-11-01T00:00:00Z: 2 of 3 voters are away",
        "alarm lasts node=m1 alarm=log-no-space severity=critical since=2026-11-01T00:00:00Z: 2 of 3 voters are away",
        "alarm cleared node=m1 alarm=log-no-space lasted_seconds=300",
    ]


def test_alarms_of_one_name_are_apart_by_subject(alarms: Alarms) -> None:
    for peer in ("m2", "m3", "m4"):
        alarms.raise_alarm("refused-by-member", f"{peer} is away", subject=peer)
    alarms.clear_others("refused-by-member", {"m3"})
    assert [alarm.subject for alarm in alarms.active] == ["m3"]
    assert alarms.is_raised("refused-by-member", "m3")
    assert not alarms.is_raised("refused-by-member", "m2")


def test_names_that_a_peer_makes_up_and_long_texts_are_bounded(alarms: Alarms) -> None:
    for number in range(SUBJECTS_MAX + 5):
        alarms.raise_alarm("refused-by-member", "x" * 10_000, subject=f"peer-{number}")
    assert len(alarms.active) == SUBJECTS_MAX
    assert {len(alarm.text) for alarm in alarms.active} == {TEXT_CHARACTERS}
    alarms.raise_alarm("log-no-space", "no quorum")
    assert alarms.is_raised("log-no-space"), "another alarm was kept out"


def test_an_alarm_of_events_ends_when_there_was_none_for_so_long(alarms: Alarms, clock: Clock) -> None:
    for clock.seconds in (0.0, 10.0):
        alarms.raise_alarm("refused-by-member", "m4 refuses", subject="m4", ends_after_seconds=15)
    clock.seconds = 24
    alarms.tick()
    assert alarms.is_raised("refused-by-member", "m4")
    clock.seconds = 25
    alarms.tick()
    assert alarms.active == ()


def test_an_alarm_that_waited_before_it_was_raised_began_when_its_condition_did(alarms: Alarms, clock: Clock) -> None:
    clock.seconds = 60
    alarms.raise_alarm("refused-by-member", "m2 has been away for 10 s", subject="m2", ago_seconds=10)
    assert [alarm.since for alarm in alarms.active] == [START + timedelta(seconds=50)]


def test_how_long_an_alarm_lasted_does_not_depend_on_the_clock_on_the_wall(
    alarms: Alarms, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """(Pins a bug: a clock that was set meanwhile made `lasted_seconds` too long, or 0.)"""
    caplog.set_level(logging.INFO, "warren_raft.alarms")
    for number, set_by in enumerate((timedelta(hours=1), timedelta(hours=-1))):
        clock.seconds = 1000.0 * number
        alarms.raise_alarm("member-away", "m2 is away", subject="m2", ago_seconds=2.5)
        clock.seconds += 40
        monkeypatch.setattr(alarms, "_utc_now", lambda set_by=set_by: clock.utc_now() + set_by)
        alarms.clear_alarm("member-away", "m2")
        monkeypatch.undo()
    cleared = [message for message in caplog.messages if "alarm cleared" in message]
    assert [line.split("lasted_seconds=")[1] for line in cleared] == ["42.5", "42.5"]


def test_a_closed_manager_has_no_alarm_but_that_it_failed(alarms: Alarms, caplog: pytest.LogCaptureFixture) -> None:
    """It watches nothing any more. (Pins a bug: `store.alarms` showed `cluster-not-formed` for ever.)"""
    alarms.raise_alarm("cluster-not-formed", "m1 waits for m2")
    caplog.clear()
    alarms.end()
    assert alarms.active == ()
    assert caplog.messages == []  # a handler that hangs must not keep a manager from closing
    alarms.raise_alarm("disk-low", "a thread that hangs goes on after the end")
    assert alarms.active == ()
    alarms.stopped("the disk broke")
    alarms.end()
    assert [alarm.name for alarm in alarms.active] == ["manager-failed"]


def test_a_text_from_a_peer_makes_no_second_line(alarms: Alarms, caplog: pytest.LogCaptureFixture) -> None:
    alarms.raise_alarm("peer-fault", "m2 sent\nCRITICAL all is lost", subject="m2\nalarm")
    assert alarms.active[0].text == "m2 sent CRITICAL all is lost"
    assert "\n" not in caplog.messages[0]


def test_a_manager_that_stopped_raises_no_other_alarm(alarms: Alarms) -> None:
    """(Pins a fault: the thread that looks for hanging disks raised `disk-slow` in a manager that had stopped.)"""
    alarms.raise_alarm("no-quorum", "no majority")
    alarms.stopped("the log cannot be written")
    alarms.raise_alarm("disk-slow", "a sync has lasted for 6 s")
    assert [alarm.name for alarm in alarms.active] == ["manager-failed"]


def test_a_manager_that_stopped_has_the_one_alarm_that_says_so(
    alarms: Alarms, caplog: pytest.LogCaptureFixture
) -> None:
    """The others would last for ever: nobody watches any more."""
    alarms.raise_alarm("no-quorum", "no quorum", severity="critical")
    for _ in range(2):
        alarms.stopped("the log cannot be written")
    (alarm,) = alarms.active
    assert (alarm.name, alarm.severity, alarm.text) == (
        "manager-failed",
        "critical",
        "m1 stopped by itself: the log cannot be written",
    )
    assert [record.levelname for record in caplog.records] == ["ERROR", "CRITICAL"]


# The list for operators ----------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def documented() -> dict[str, list[str]]:
    """Name -> the other cells of its row in docs/alarms.md."""
    text = (ROOT / "docs" / "alarms.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}


def test_every_alarm_is_in_the_list_with_its_severity_and_a_remedy() -> None:
    assert list(documented()) == sorted(get_args(AlarmName))
    for name, (severity, *told) in documented().items():
        assert severity in get_args(Severity), name
        assert len(told) == 2, name
        assert all(cell.endswith(".") for cell in told), name


def test_every_name_of_an_alarm_is_raised_somewhere() -> None:
    """Types see to the other way round: a name that is in no list does not pass mypy."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "warren_raft").rglob("*.py"))
    for name in get_args(AlarmName):
        assert code.count(f'"{name}"') >= 2, f"{name} is in the list, and nothing raises it"


def test_an_alarm_has_the_severity_that_the_list_says() -> None:
    listed, seen = documented(), 0
    for _, tree in trees_with(r"\braise_alarm\b", (ROOT / "warren_raft").rglob("*.py")):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "raise_alarm":
                continue
            if isinstance(node.args[0], ast.Constant):
                name = node.args[0].value
                said = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert listed[str(name)][0] == said.get("severity", "warning"), name
                seen += 1
    assert seen > 5
