"""The first line of a status says "healthy" only if all is well. Else it names the faults, and how many more may
fail."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from warren_raft.manager.verdict import verdict_of
from warren_raft.results import MemberAlarm, MemberStatus, Status
from warren_raft_cli.status import print_verdict


def member(id_: str, **differing: Any) -> MemberStatus:
    usual: dict[str, Any] = {field.name: None for field in fields(MemberStatus)}
    usual |= {"id": id_, "connected": True, "voter": True, "leader": id_ == "m1", "alarms": ()}
    return MemberStatus(**usual | differing)


def alarm(name: str, subject: str = "") -> MemberAlarm:
    return MemberAlarm(name=name, subject=subject, severity="warning")


def status(*members: MemberStatus, **differing: Any) -> Status:
    usual: dict[str, Any] = {field.name: None for field in fields(Status)} | {
        "node_id": "m1",
        "leader": "m1",
        "term": 4,
        "has_quorum": True,
        "ready": True,
        "full": False,
        "waits": "",
        "alarms": (),
        "configured_only": (),
        "members": members or (member("m1"), member("m2"), member("m3")),
    }
    return Status(**usual | differing)


def line(given: Status) -> str:
    verdict = verdict_of(given)
    return f"{verdict.state}: {verdict.text}"


AWAY = {"connected": False, "alarms": None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (status(), "healthy: m1 leads term 4, 3 of 3 connected, tolerates 1 failure"),
        (status(member("m1")), "healthy: m1 leads term 4, 1 of 1 connected, tolerates 0 failures"),
        (  # (Pins a report: after a member was removed, "healthy" did not say that one of the three is missing.)
            status(member("m1"), member("m2"), configured_only=("m3",)),
            "healthy: m1 leads term 4, 2 of 2 connected, tolerates 0 failures (add a third manager); "
            "configured, but no member: m3",
        ),
        (
            status(member("m1"), configured_only=tuple("abcdef")),
            "healthy: m1 leads term 4, 1 of 1 connected, tolerates 0 failures; "
            "configured, but no member: a, b, c, d and 2 more",
        ),
        (status(*map(member, "abcde"), leader="a"), "healthy: a leads term 4, 5 of 5 connected, tolerates 2 failures"),
        (
            status(*map(member, ("m1", "m2", "m3")), member("m4", voter=False)),
            "healthy: m1 leads term 4, 3 of 3 connected, tolerates 1 failure",
        ),
        (
            status(member("m1"), member("m2"), member("m3", **AWAY)),
            "degraded: m1 leads term 4, 2 of 3 connected, tolerates 0 failures; not connected: m3",
        ),
        (
            status(member("m1"), member("m2"), member("m3", **AWAY), alarms=[alarm("member-away", "m3")]),
            "degraded: m1 leads term 4, 2 of 3 connected, tolerates 0 failures; not connected: m3",
        ),
        (
            status(member("m1"), member("m2", **AWAY), member("m3", **AWAY), has_quorum=False, leader=None),
            "no quorum: no leader is known, 1 of 3 connected; not connected: m2, m3",
        ),
        (
            status(has_quorum=False, leader=None, alarms=[alarm("no-quorum")]),
            "no quorum: no leader is known, 3 of 3 connected",
        ),
        (
            status(has_quorum=False, leader=None, waits="the cluster is not formed yet: m1 waits for m2"),
            "no quorum: the cluster is not formed yet: m1 waits for m2",
        ),
        (
            status(alarms=[alarm("backup-failed", "/mnt/backup")]),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 1 failure; backup-failed /mnt/backup",
        ),
        (
            status(member("m1"), member("m2", alarms=[alarm("log-no-space")]), member("m3")),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 0 failures; log-no-space m2",
        ),
        (
            status(member("m1"), member("m2", alarms=[alarm("log-blocked")]), member("m3")),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 0 failures; log-blocked m2",
        ),
        (  # m2 and m3 acknowledge, but could not lead in the place of m1: they cannot apply entries
            status(member("m1"), *(member(id_, alarms=[alarm("state-no-space")]) for id_ in ("m2", "m3"))),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 0 failures; state-no-space m2; state-no-space m3",
        ),
        (
            status(member("m1"), member("m2"), member("m3", alarms=[alarm("state-blocked")])),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 0 failures; state-blocked m3",
        ),
        (
            status(member("m1"), *(member(id_, alarms=[alarm("log-no-space")]) for id_ in ("m2", "m3"))),
            "no quorum: m1 leads term 4, 3 of 3 connected; log-no-space m2; log-no-space m3",
        ),
        (
            status(member("m1"), alarms=[alarm("log-blocked")]),
            "no quorum: m1 leads term 4, 1 of 1 connected; log-blocked m1",
        ),
        (
            status(member("m1"), member("m2", alarms=[alarm("peer-fault", "m3")]), member("m3")),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 1 failure; peer-fault m3 on m2",
        ),
        (
            status(member("m1"), member("m2"), member("m3", alarms=[alarm("no-quorum"), alarm("member-away", "m2")])),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 1 failure; no-quorum m3; member-away m2 on m3",
        ),
        (
            status(ready=False, leader="m2"),
            "degraded: m2 leads term 4, 3 of 3 connected, tolerates 1 failure; m1 is not ready",
        ),
        (
            status(full=True),
            "degraded: m1 leads term 4, 3 of 3 connected, tolerates 1 failure; "
            "creates and updates are refused: the cluster is low on space",
        ),
        (
            status(has_quorum=False, failure="the log cannot be written: Input/output error"),
            "degraded: m1 stopped: the log cannot be written: Input/output error",
        ),
    ],
)
def test_the_line_says_how_it_is(given: Status, said: str) -> None:
    assert line(given) == said


def test_two_voting_members_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """(Pins a report: `status --check` said only "healthy" with exit code 0, and the loss of one manager stopped all
    writes.) Two are usual while a manager is replaced, so it is no fault."""
    two = status(member("m1"), member("m2"))
    assert verdict_of(two).warning == (
        "both voting members are needed for a majority: if one is lost, no write is acknowledged; add a third manager "
        "with `warren-raft members add ID=HOST:PORT`"
    )
    catching_up = status(member("m1"), member("m2"), member("m3", voter=False))
    assert verdict_of(catching_up).warning.endswith(
        "no write is acknowledged; m3 does not vote before it has caught up"
    )
    print_verdict({"verdict": verdict_of(two).to_json()})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("healthy: m1 leads term 4, 2 of 2 connected, tolerates 0 failures")
    assert second == f"warning: {verdict_of(two).warning}"
    for given in (
        status(),
        status(member("m1")),
        status(member("m1"), member("m2"), member("m3", **AWAY)),
        status(member("m1"), member("m2", **AWAY), has_quorum=False, leader=None),
        status(member("m1"), member("m2"), failure="the log cannot be written"),
    ):
        assert verdict_of(given).warning == ""
        print_verdict({"verdict": verdict_of(given).to_json()})
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_an_alarm_that_several_members_have_is_said_once() -> None:
    behind = alarm("member-behind", "m3")
    given = status(member("m1", alarms=[behind]), member("m2", alarms=[behind]), member("m3"), alarms=[behind])
    assert line(given).endswith("tolerates 0 failures; member-behind m3")


def test_of_many_problems_some_are_named() -> None:
    given = status(alarms=[alarm("backup-failed", f"/{number}") for number in range(9)])
    assert line(given).endswith("; backup-failed /0; backup-failed /1; backup-failed /2; backup-failed /3; 5 more")


def test_the_alarms_of_a_member_that_is_away_are_not_shown() -> None:
    gone = member("m3", connected=False, alarms=[alarm("disk-low")])
    assert "disk-low" not in line(status(member("m1"), member("m2"), gone))
