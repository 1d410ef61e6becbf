"""What operators ask of the cluster: membership changes and leadership transfers, from any manager to the leader.

A question goes to the leader and its answer comes back; whoever asked repeats it until it is done. Not here: what a
change does (membership.py), and whether it may be made (changes.py). Invariant: every question is answered once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from warren_raft.raft.changes import Answer, Changes
from warren_raft.raft.core import Core
from warren_raft.raft.guard import Guard
from warren_raft.raft.leadership import CLOSING, REMOVED, TRANSFER, Reason
from warren_raft.raft.log import Log
from warren_raft.raft.membership import REMOVE, UPDATE
from warren_raft.raft.messages import (
    DONE,
    PENDING,
    REFUSED,
    WAIT,
    ChangeAnswer,
    HandOver,
    Message,
    RequestChange,
    TimeoutNow,
)
from warren_raft.raft.roster import Roster

TRANSFER_SECONDS: Final = 1.0
"""A leadership transfer that has not happened by then is called off, and writes go on here."""
TELL_AGAIN_SECONDS: Final = 0.05
"""The target of a transfer is told to campaign so often: who has not applied all that is committed cannot at once."""
LONG_AGO: Final = -1e9
TRANSFER_VERB: Final = "transfer"
"""In the place of the verb of a change: a transfer of leadership."""
NO_LEADER: Final = "there is no leader"
"""The answer to a question that went nowhere."""


@dataclass(frozen=True, slots=True)
class ChangeWanted:
    """An operator's membership change; `answer` is called once per request, in the raft thread."""

    verb: str
    member_id: str
    address: str
    answer: Callable[[Answer], None]
    incarnation: str = ""
    """Of a removal that is asked for again until it is done: the directory that is meant. The leader may have added
    another one under that id since. "": the list here did not have the member, so the leader's word counts."""


@dataclass(frozen=True, slots=True)
class TransferWanted:
    """Hand leadership to `target`, or to the most caught-up voter."""

    target: str | None
    answer: Callable[[Answer], None]
    is_closing: bool = False
    """The manager that asks is about to close."""


Wanted = ChangeWanted | TransferWanted


class Requests:
    """Raft thread or simulator only. Core, guard and changes are renewed with the state, see `attach`."""

    def __init__(
        self, node_id: str, roster: Roster, log: Log, *, answer_seconds: float, send: Callable[[str, Message], None]
    ) -> None:
        self._node_id = node_id
        self._roster = roster
        self._log = log
        self._answer_seconds = answer_seconds
        self._send = send
        self._core: Core
        self._guard: Guard
        self._changes: Changes
        self._now = LONG_AGO
        self._number = 0
        self._asked: dict[int, tuple[Wanted, float, str]] = {}
        """What operators asked here: when, and whom it was sent to."""
        self._transfer_until = LONG_AGO
        self._transfer_target: str | None = None
        self._transfer_tried: str | None = None
        self._transfer_why = Reason(TRANSFER, "")
        self._told_at = LONG_AGO

    def attach(self, core: Core, guard: Guard, changes: Changes) -> None:
        self._core, self._guard, self._changes = core, guard, changes

    def leadership_changed(self) -> None:
        self._transfer_tried = None
        self._transfer_until = LONG_AGO

    @property
    def is_transferring(self) -> bool:
        """No new entries while a transfer runs, so that the target can have everything."""
        return self._transfer_until > self._now

    # Questions and answers ---------------------------------------------------------------------------------------

    def ask(self, now: float, wanted: Wanted, applied_index: int) -> None:
        """Take an operator's question to the leader."""
        self._now = now
        self._number += 1
        message = _message(self._number, wanted)
        leader = self._core.leader
        self._asked[self._number] = (wanted, now, leader or "")
        if self._core.is_leader:
            self.answered(self.answer(self._node_id, message, applied_index))
        elif leader is None or leader not in self._roster.links:
            self.answered(ChangeAnswer(number=self._number, state=WAIT, text=NO_LEADER))
        else:
            self._send(leader, message)

    def answer(self, asker: str, message: RequestChange, applied_index: int) -> ChangeAnswer:
        """The leader's answer to a question that was asked at the manager `asker`."""
        if not self._core.is_leader:
            answer = Answer("wait", "the leader changed")
        elif message.verb == TRANSFER_VERB:
            why = Reason(TRANSFER, f"asked for at {asker}")
            if message.closing:
                why = Reason(CLOSING, f"{asker} closes")
            answer = self.transfer_to(message.id or None, why)
        elif message.verb == REMOVE and message.id == self._node_id and len(self._roster.voters) > 1:
            answer = self._changes.why_stay() or self._leave(asker)
        else:
            what = message.verb, message.id, message.address
            answer = self._changes.request(*what, applied_index, asker, message.incarnation or "")
        return ChangeAnswer(number=message.number, state=answer.state, text=answer.text)

    def _leave(self, asker: str) -> Answer:
        """Whoever leads next removes us."""
        answer = self.transfer_to(None, Reason(REMOVED, f"the removal of {self._node_id} was asked for at {asker}"))
        return Answer(WAIT, "leadership moves first") if answer.state != REFUSED else answer

    def receive_answer(self, peer: str, message: ChangeAnswer) -> None:
        """Of the leader that was asked; nobody else answers for it. A change is done when the list here says so too:
        what this manager has applied is committed, and the leader's word alone is no proof."""
        asked = self._asked.get(message.number)
        if asked is None or asked[2] != peer:
            return
        wanted = asked[0]
        if message.state == DONE and isinstance(wanted, ChangeWanted) and not self._shows(wanted):
            text = f"{peer} says that the change is made; {self._node_id} has not applied it yet"
            message = replace(message, state=PENDING, text=text)
        self.answered(message)

    def _shows(self, wanted: ChangeWanted) -> bool:
        """Whether the list that is applied here has the change."""
        member = self._roster.members.get(wanted.member_id)
        if wanted.verb == REMOVE:
            return member is None or member.incarnation != wanted.incarnation
        is_there = member is not None and member.address == wanted.address
        return is_there and (wanted.verb == UPDATE or wanted.member_id in self._roster.voters)

    def answered(self, message: ChangeAnswer) -> None:
        asked = self._asked.pop(message.number, None)
        if asked is not None:
            asked[0].answer(Answer(message.state, message.text))

    def expire(self) -> None:
        """The leader's answer may be lost with its link: whoever asked is told to ask again."""
        for number, (_, since, _) in list(self._asked.items()):
            if self._now - since > self._answer_seconds:
                self.answered(ChangeAnswer(number=number, state=PENDING, text="the leader does not answer"))

    @property
    def successor(self) -> str | None:
        """To whom this leader hands over now."""
        return self._transfer_target if self.is_transferring and self._core.is_leader else None

    # Transfers ---------------------------------------------------------------------------------------------------

    def transfer_to(self, target: str | None, why: Reason) -> Answer:
        """Begin a transfer to `target`, or to the most caught-up voter that was not tried last."""
        voters = self._roster.voters - {self._node_id}
        if target == self._node_id:
            return Answer(DONE)
        if target is not None and target not in voters:
            return Answer(REFUSED, f"{target} is not a voting member")
        connected = [voter for voter in voters if self._roster.counts(voter)]
        if not connected or (target is not None and target not in connected):
            return Answer(REFUSED, f"{target or 'no other voting member'} is {'not ' if target else ''}connected")
        if self._transfer_until <= self._now:
            best = max(connected, key=self._suits)
            self._transfer_target = self._transfer_tried = target or best
            self._transfer_until = self._now + TRANSFER_SECONDS
            self._transfer_why = why
            self._announce()
        return Answer(PENDING, f"leadership moves to {self._transfer_target}")

    def _announce(self) -> None:
        """Tell the voters who will ask for their votes while we lead: from nobody else they hear that."""
        assert self._transfer_target is not None
        message = HandOver(term=self._core.term, target=self._transfer_target)
        for peer in sorted(self._roster.voters - {self._node_id}):
            self._send(peer, message)

    def _suits(self, voter: str) -> tuple[bool, bool, int, str]:
        """The higher, the better: not who is being removed, nor who was tried last, but who has most of the log."""
        stays, is_untried = not self._changes.is_removing(voter), voter != self._transfer_tried
        return stays, is_untried, self._guard.match_index(voter), voter

    def tick(self, now: float, *, must_go: Reason | None) -> None:
        """When the target of a transfer has everything, it is told to campaign at once. `must_go`: why this leader can
        commit nothing, or must not, so that it offers leadership of its own accord."""
        self._now = now
        if not self._core.is_leader:
            return
        if must_go is not None and self._transfer_until <= now:
            self.transfer_to(None, must_go)
        target = self._transfer_target
        if target is None:
            return
        if self._transfer_until <= now:
            self._transfer_target = None
        elif self._guard.match_index(target) == self._log.last_index and now - self._told_at >= TELL_AGAIN_SECONDS:
            self._told_at = now
            self._announce()
            why = Reason(self._transfer_why.word, f"{self._node_id} hands over: {self._transfer_why.text}")
            self._send(target, TimeoutNow(term=self._core.term, why=why.told()))


def _message(number: int, wanted: Wanted) -> RequestChange:
    if isinstance(wanted, ChangeWanted):
        verb, id_, address = wanted.verb, wanted.member_id, wanted.address
        return RequestChange(number=number, verb=verb, id=id_, address=address, incarnation=wanted.incarnation)
    target = wanted.target or ""
    return RequestChange(number=number, verb=TRANSFER_VERB, id=target, address="", closing=wanted.is_closing)
