"""Requests of operators: changes of members and transfers of leadership, from any manager to the leader.

A request goes to the leader and its answer comes back; the manager that asked repeats it until it is done. Not here:
the effect of a change (membership.py), and whether it may be made (changes.py). Invariant: each request gets one
answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from warren_raft.raft.changes import Answer, Changes
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.guard import Guard
from warren_raft.raft.membership import REMOVE, UPDATE
from warren_raft.raft.messages import (
    DONE,
    PENDING,
    REFUSED,
    WAIT,
    ChangeAnswer,
    HandOver,
    RequestChange,
    TimeoutNow,
)
from warren_raft.raft.reasons import (
    CLOSING,
    REMOVED,
    TRANSFER,
    Reason,
)

TRANSFER_SECONDS: Final = 1.0
"""A transfer of leadership that has not happened after this time is called off, and writes go on at this leader."""
TELL_AGAIN_SECONDS: Final = 0.05
"""The leader repeats its message to the target of a transfer this often. The target cannot campaign before it has
applied all committed entries."""
TRANSFER_VERB: Final = "transfer"
"""The verb of a request for a transfer of leadership, in the place of the verb of a change."""
NO_LEADER: Final = "there is no leader: warren-raft status shows the reason"
"""The answer to a request while no leader is connected."""


@dataclass(frozen=True, slots=True)
class ChangeWanted:
    """An operator's change of members; `answer` is called once per request, in the raft thread."""

    verb: str
    member_id: str
    address: str
    answer: Callable[[Answer], None]
    incarnation: str = ""
    """For a removal: the directory that is meant. The request is repeated until it is done, and the leader may have
    added another directory under that id since. "": this manager's list did not have the member, so the leader's answer
    counts."""


@dataclass(frozen=True, slots=True)
class TransferWanted:
    """Hand leadership to `target`, or to the voter that suits best."""

    target: str | None
    answer: Callable[[Answer], None]
    is_closing: bool = False
    """The manager that asks is about to close."""
    away_from: str = ""
    """The leader that is to be replaced by any other; empty: whoever leads. The next leader is never asked: leadership
    would move twice."""


Wanted = ChangeWanted | TransferWanted


class Requests:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context, guard: Guard, changes: Changes) -> None:
        self._context = context
        self._node_id = context.node_id
        self._roster = context.roster
        self._log = context.log
        self._outbox = context.outbox
        self._answer_seconds = context.settings.election_timeout_seconds
        self._core = guard.core
        self._guard = guard
        self._changes = changes
        self._now = LONG_AGO
        self._number = 0
        self._asked: dict[int, tuple[Wanted, float, str]] = {}
        """Number -> a request of an operator here, when it was made, and the leader that it was sent to."""
        self.is_transferring = False
        """Whether a transfer runs. Then there are no new entries, so that the target can have all entries."""
        self._transfer_until = LONG_AGO
        self._transfer_target: str | None = None
        self._transfer_tried: str | None = None
        self._transfer_why = Reason(TRANSFER, "")
        self._told_at = LONG_AGO

    @property
    def is_waiting(self) -> bool:
        """Whether an operator's request has no answer yet."""
        return bool(self._asked)

    def leadership_changed(self) -> None:
        self._transfer_tried = None
        self._transfer_until = LONG_AGO
        self.is_transferring = False

    # Requests and answers ----------------------------------------------------------------------------------------

    def ask(self, wanted: Wanted) -> None:
        """Send an operator's request to the leader."""
        self._look_at_clock()
        self._number += 1
        message = _message(self._number, wanted)
        leader = self._core.leader
        self._asked[self._number] = (wanted, self._now, leader or "")
        if isinstance(wanted, TransferWanted) and wanted.away_from and leader not in (None, wanted.away_from):
            self.answered(ChangeAnswer(number=self._number, state=DONE, text=""))
        elif self._core.is_leader:
            self.answered(self.answer(self._node_id, message))
        elif leader is None or leader not in self._roster.links:
            self.answered(ChangeAnswer(number=self._number, state=WAIT, text=NO_LEADER))
        else:
            self._outbox.send(leader, message)

    def answer(self, asker: str, message: RequestChange) -> ChangeAnswer:
        """The leader's answer to a request that was made at the manager `asker`."""
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
            answer = self._changes.request(*what, self._context.machine.applied_index, asker, message.incarnation or "")
        return ChangeAnswer(number=message.number, state=answer.state, text=answer.text, made=answer.is_made)

    def _leave(self, asker: str) -> Answer:
        """Hand leadership over: the next leader removes this manager."""
        answer = self.transfer_to(None, Reason(REMOVED, f"the removal of {self._node_id} was asked for at {asker}"))
        return Answer(WAIT, "leadership is handed over first") if answer.state != REFUSED else answer

    def receive_answer(self, peer: str, message: ChangeAnswer) -> None:
        """Take the answer of the leader that was asked; answers of other peers are dropped. A change is done only when
        the list here has it too: applied entries are committed, and the leader's answer alone is no proof."""
        asked = self._asked.get(message.number)
        if asked is None or asked[2] != peer:
            return
        wanted = asked[0]
        if message.state == DONE and isinstance(wanted, ChangeWanted) and not self._shows(wanted):
            text = f"{peer} says that the change is made; {self._node_id} has not applied it yet"
            message = replace(message, state=PENDING, text=text, made=False)
        self.answered(message)

    def _shows(self, wanted: ChangeWanted) -> bool:
        """Whether the applied list here has the change."""
        member = self._roster.members.get(wanted.member_id)
        if wanted.verb == REMOVE:
            return member is None or member.incarnation != wanted.incarnation
        is_there = member is not None and member.address == wanted.address
        return is_there and (wanted.verb == UPDATE or wanted.member_id in self._roster.voters)

    def answered(self, message: ChangeAnswer) -> None:
        asked = self._asked.pop(message.number, None)
        if asked is not None:
            asked[0].answer(Answer(message.state, message.text, message.made))

    def expire(self) -> None:
        """The leader's answer may be lost with its link: tell callers that have waited too long to ask again."""
        for number, (_, since, _) in list(self._asked.items()):
            if self._now - since > self._answer_seconds:
                self.answered(ChangeAnswer(number=number, state=PENDING, text="the leader does not answer"))

    @property
    def successor(self) -> str | None:
        """The manager that this leader hands over to now."""
        return self._transfer_target if self.is_transferring and self._core.is_leader else None

    def _look_at_clock(self) -> float:
        self._now = self._context.now
        self.is_transferring = self._transfer_until > self._now
        return self._now

    # Transfers ---------------------------------------------------------------------------------------------------

    def transfer_to(self, target: str | None, why: Reason) -> Answer:
        """Begin a transfer to `target`, or else to the voter that `_suits` best."""
        voters = self._roster.voters - {self._node_id}
        if target == self._node_id:
            return Answer(DONE)
        if target is not None and target not in voters:
            return Answer(REFUSED, f"{target} is not a voting member: warren-raft members list shows the members")
        connected = [voter for voter in voters if self._roster.counts(voter)]
        if not connected or (target is not None and target not in connected):
            return Answer(REFUSED, f"{target or 'no other voting member'} is {'not ' if target else ''}connected")
        if self._transfer_until <= self._now:
            best = max(connected, key=self._suits)
            self._transfer_target = self._transfer_tried = target or best
            self._transfer_until = self._now + TRANSFER_SECONDS
            self.is_transferring = True
            self._transfer_why = why
            self._announce()
        return Answer(PENDING, f"leadership is being handed over to {self._transfer_target}")

    def _announce(self) -> None:
        """Tell the voters which manager will ask for their votes while we lead. They believe only their leader."""
        assert self._transfer_target is not None
        message = HandOver(term=self._core.term, target=self._transfer_target)
        for peer in sorted(self._roster.voters - {self._node_id}):
            self._outbox.send(peer, message)

    def _suits(self, voter: str) -> tuple[bool, bool, int, str]:
        """How well a voter suits as the next leader, higher is better: it is not being removed, it was not tried last,
        and it has the most of the log."""
        stays, is_untried = not self._changes.is_removing(voter), voter != self._transfer_tried
        return stays, is_untried, self._guard.match_index(voter), voter

    def tick(self, *, must_go: Reason | None) -> None:
        """When the target of a transfer has all entries, tell it to campaign at once. `must_go`: why this leader cannot
        or must not commit, so that it hands leadership over by itself; None: it need not."""
        now = self._look_at_clock()
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
            self._outbox.send(target, TimeoutNow(term=self._core.term, why=why.told()))


def _message(number: int, wanted: Wanted) -> RequestChange:
    if isinstance(wanted, ChangeWanted):
        verb, id_, address = wanted.verb, wanted.member_id, wanted.address
        return RequestChange(number=number, verb=verb, id=id_, address=address, incarnation=wanted.incarnation)
    target = wanted.target or ""
    return RequestChange(number=number, verb=TRANSFER_VERB, id=target, address="", closing=wanted.is_closing)
