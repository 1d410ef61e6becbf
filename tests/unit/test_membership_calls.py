"""A change of members that is not done at its deadline says how far it is: not begun, begun, or made and not finished.

Operators decide by that whether to try again, to wait, or to look first.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from warren_raft.alarms import Alarms
from warren_raft.errors import InvalidConfig, InvalidEntity, RefusedForSafety, Unavailable
from warren_raft.manager.lifetime import Lifetime
from warren_raft.manager.membership import MembershipCalls
from warren_raft.raft.changes import Answer
from warren_raft.raft.messages import PENDING, WAIT
from warren_raft.raft.requests import NO_LEADER, ChangeWanted, TransferWanted

ADDRESS = "127.0.0.1:7949"


class Leader:
    """A driver whose leader gives these answers, and then the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.engine = SimpleNamespace(members={}, view=0, leader="m1")
        self._answers = list(answers)

    def post(self, wanted: ChangeWanted | TransferWanted) -> None:
        wanted.answer(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])


def calls_to(*answers: Answer) -> MembershipCalls:
    nothing: Any = SimpleNamespace(require_reach=lambda *_: None, wait_leader=lambda _seconds: "m1")
    leader: Any = Leader(*answers)
    life = Lifetime(Alarms("m1"))
    return MembershipCalls("m1", 10.0, life=life, readiness=nothing, driver=leader, calls=nothing, certificate=nothing)


def ended(*answers: Answer) -> Unavailable:
    """The error of an addition with a leader that gives these answers until the deadline."""
    with pytest.raises(Unavailable) as caught:
        calls_to(*answers).add("m4", ADDRESS, 0.25)
    return caught.value


def test_nothing_was_done() -> None:
    error = ended(Answer(WAIT, "m4 does not answer"))
    assert (str(error), error.maybe_applied) == ("m4 does not answer; nothing was changed", False)


def test_it_was_begun() -> None:
    error = ended(Answer(PENDING, "the change is under way"), Answer(WAIT, "the leader changed"))
    assert (str(error), error.maybe_applied) == (
        "the leader changed; the change may have been applied, or may still be",
        True,
    )


def test_it_is_made_and_not_finished() -> None:
    """(Pins a bug: "m4 was added, and is catching up; it may have been applied".)"""
    error = ended(Answer(PENDING, "the change is under way"), Answer(PENDING, "m4 was added", is_made=True))
    assert (str(error), error.maybe_applied) == ("m4 was added; repeat the request to wait until it is done", True)


def test_a_made_change_of_a_leader_that_is_lost_is_one_that_may_be_applied() -> None:
    error = ended(Answer(PENDING, "m4 was added", is_made=True), Answer(WAIT, NO_LEADER))
    assert (str(error), error.maybe_applied) == (
        f"{NO_LEADER}; the change may have been applied, or may still be",
        True,
    )


@pytest.mark.parametrize(
    ("answer", "said", "may_happen"),
    [
        (Answer(WAIT, "m2 is not connected"), "m2 is not connected", False),
        (Answer(PENDING, "m2 is to lead"), "m2 is to lead; leadership may still move", True),
    ],
)
def test_a_transfer_that_is_not_done_speaks_of_no_write(answer: Answer, said: str, may_happen: bool) -> None:
    """(Pins a bug: "it may have been applied".)"""
    with pytest.raises(Unavailable) as caught:
        calls_to(answer).transfer("m2", 0.25)
    assert (str(caught.value), caught.value.maybe_applied, caught.value.of_write) == (said, may_happen, False)


@pytest.mark.parametrize(
    ("member_id", "address", "field"),
    [("m 4", ADDRESS, "id"), ("m4", "nowhere", "address"), ("m4", "[::]:1", "address")],
)
def test_a_member_that_cannot_be_is_no_wrong_setting(member_id: str, address: str, field: str) -> None:
    for change in (MembershipCalls.add, MembershipCalls.update):
        with pytest.raises(InvalidEntity) as caught:
            change(calls_to(), member_id, address, 1.0)
        assert (caught.value.kind, caught.value.field) == ("member", field)
        assert not isinstance(caught.value, InvalidConfig)


def test_an_update_of_a_manager_that_is_no_member_says_that() -> None:
    """(Pins a bug: the error was about the certificates that a member at that address would need.)"""
    calls = calls_to(Answer(WAIT, ""))
    members = calls._engine.members = {"m4": None}  # type: ignore[assignment, misc, dict-item]
    assert members

    def require_reach(member_id: str, address: str) -> None:
        raise RefusedForSafety(f"{member_id} would be beyond this host")

    calls._certificate.require_reach = require_reach  # type: ignore[method-assign]
    for id_, says in (("nope", "nope is not a member: warren-raft members list"), ("m4", "m4 would be beyond")):
        with pytest.raises(RefusedForSafety, match=says):
            calls.update(id_, "10.0.0.1:1", 0.25)
