"""Changes of members and transfers of leadership, as their caller sees them: the leader is asked until it is done.

Everything here runs in the caller's thread. Not here: whether a change may be made (raft/changes.py), its way to the
leader (raft/requests.py). Invariant: a change is called done only after a barrier that the leader passed behind it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from warren_raft.certificates.own import OwnCertificate
from warren_raft.config import check_address, check_node_id
from warren_raft.errors import Closed, InvalidConfig, InvalidEntity, RefusedForSafety, Unavailable
from warren_raft.manager.calls import WriteCalls
from warren_raft.manager.lifetime import Lifetime
from warren_raft.manager.readiness import Readiness
from warren_raft.manager.session import Call
from warren_raft.raft.changes import Answer
from warren_raft.raft.driver import Driver
from warren_raft.raft.membership import ADD, REMOVE, UPDATE
from warren_raft.raft.messages import DONE, PENDING, REFUSED
from warren_raft.raft.refusals import Removed
from warren_raft.raft.requests import NO_LEADER, ChangeWanted, TransferWanted
from warren_raft.support import timeouts
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.manager.membership")

ASK_AGAIN_SECONDS: Final = 0.1
"""The time between two questions to the leader about the same change of members, unless something changes earlier."""
MOVED_SECONDS: Final = 2.0
"""How long a member with a new address may take to answer there, before the result says that it does not answer."""
HAND_OVER_SECONDS: Final = 2.0
"""How long a closing leader waits for another manager to take over."""

Question = Callable[[Callable[[Answer], None]], ChangeWanted | TransferWanted]
"""Makes the question, which calls the function with the leader's answer."""


class MembershipCalls:
    """For any thread, and for signal handlers. Each method waits up to its timeout, by default that of a write."""

    def __init__(
        self,
        node_id: str,
        write_timeout_seconds: float,
        *,
        life: Lifetime,
        readiness: Readiness,
        driver: Driver[Call],
        calls: WriteCalls,
        certificate: OwnCertificate,
    ) -> None:
        self._node_id = node_id
        self._timeout_seconds = write_timeout_seconds
        self._life = life
        self._readiness = readiness
        self._driver = driver
        self._engine = driver.engine
        self._calls = calls
        self._certificate = certificate

    def add(self, member_id: str, address: str, timeout: float | None) -> None:
        self._check(member_id, address)
        self._change(ADD, member_id, address, timeout)

    def update(self, member_id: str, address: str, timeout: float | None) -> str:
        """Returns the leader's remark on the change; mostly empty."""
        self._check_update(member_id, address)
        return self._change(UPDATE, member_id, address, timeout)

    def remove(self, member_id: str, timeout: float | None) -> None:
        self._check(member_id)
        self._change(REMOVE, member_id, "", timeout)

    def transfer(self, target: str | None, timeout: float | None) -> str:
        """Returns the id of the new leader."""
        return self._transfer(target, self._deadline(timeout))

    def hand_over(self) -> None:
        """This manager closes: hand leadership over, so that no caller has to wait for an election."""
        if self._readiness.is_leader and len(self._engine.members) > 1:
            try:
                self._transfer(None, self._deadline(HAND_OVER_SECONDS), is_closing=True)
            except (RefusedForSafety, Unavailable, Closed) as error:
                log_event(logger, logging.WARNING, "leadership not handed over", error, node=self._node_id)

    def _check(self, member_id: str, address: str | None = None) -> None:
        """Raises InvalidEntity for an id or address that no member can have, RefusedForSafety for an address that the
        certificates do not allow."""
        try:
            check_node_id(member_id, field="id")
            if address is not None:
                check_address(address, field="address")
        except InvalidConfig as error:
            raise InvalidEntity("member", error.reason, field=error.field) from None
        if address is not None:
            self._certificate.require_reach(member_id, address)

    def _check_update(self, member_id: str, address: str) -> None:
        """The same; the error for an id that is no member says that, and nothing about certificates."""
        try:
            self._check(member_id, address)
        except RefusedForSafety:
            if member_id in self._engine.members:
                raise
            text = f"{member_id} is not a member: warren-raft members list shows the members"
            raise RefusedForSafety(text) from None

    def _deadline(self, timeout: float | None) -> float:
        return timeouts.deadline(timeout, self._timeout_seconds)

    # Transfers ---------------------------------------------------------------------------------------------------

    def _transfer(self, target: str | None, deadline: float, *, is_closing: bool = False) -> str:
        before = self._readiness.wait_leader(max(0.0, deadline - time.monotonic()))

        def moved() -> bool:
            leader = self._engine.leader
            return leader == target if target is not None else leader not in (None, before)

        def question(answer: Callable[[Answer], None]) -> TransferWanted:
            return TransferWanted(target, answer, is_closing, away_from=before if target is None else "")

        try:
            self._ask_until(lambda _answer: moved(), question, deadline)
        except Unavailable as error:
            tail = "; leadership may still move" if error.maybe_applied else ""
            raise Unavailable(error.reason + tail, maybe_applied=error.maybe_applied, of_write=False) from None
        return self._engine.leader or self._readiness.wait_leader(max(0.0, deadline - time.monotonic()))

    # Changes -----------------------------------------------------------------------------------------------------

    def _change(self, verb: str, member_id: str, address: str, timeout: float | None) -> str:
        """The leader's remark on a change that it made; mostly empty."""
        deadline = self._deadline(timeout)
        said = ""
        known = self._engine.members.get(member_id)
        incarnation = "" if known is None else known.incarnation
        patient_until = time.monotonic() + min(MOVED_SECONDS, (deadline - time.monotonic()) / 2)

        def is_so(answer: Answer | None) -> bool:
            nonlocal said
            if answer is None or answer.state != DONE:
                return False
            said = answer.text
            return not said or time.monotonic() >= patient_until

        def question(answer: Callable[[Answer], None]) -> ChangeWanted:
            return ChangeWanted(verb, member_id, address, answer, incarnation if verb == REMOVE else "")

        try:
            self._ask_until(is_so, question, deadline)
            # A leader that was replaced and does not know it yet may report a change as done that the newest list
            # lacks. A leader that is asked after a barrier has every change that was done before the barrier.
            self._pass_barrier(deadline)
            self._ask_until(is_so, question, deadline)
        except Closed:
            # A manager that removes itself has stopped by the time the removal is done.
            if not (verb == REMOVE and member_id == self._node_id and isinstance(self._life.failure, Removed)):
                raise
        return said

    def _pass_barrier(self, deadline: float) -> None:
        try:
            self._calls.barrier(max(0.0, deadline - time.monotonic()))
        except Unavailable as error:
            raise Unavailable(error.reason, maybe_applied=True) from None

    # Asking the leader -------------------------------------------------------------------------------------------

    def _ask_until(self, is_so: Callable[[Answer | None], bool], question: Question, deadline: float) -> None:
        """Ask the leader repeatedly until the condition holds. Asking for a change again is harmless. Asking for a
        transfer that has already happened would start another transfer, so the condition is checked before each
        question."""
        said = NO_LEADER
        is_first, may_be_so, is_made = True, False, False
        answer: Answer | None = None
        while not is_so(answer):
            if not is_first and time.monotonic() >= deadline:
                advice = "; repeat the request to wait until it is done" if is_made else ""
                raise Unavailable(said + advice, maybe_applied=may_be_so, of_write=not is_made)
            answer, is_first = self._ask(question, deadline), False
            may_be_so = may_be_so or answer is None or answer.state == PENDING
            if answer is not None:
                if answer.state == REFUSED:
                    raise RefusedForSafety(answer.text)
                said, is_made = answer.text or said, answer.is_made
            if is_so(answer):
                return
            self._life.require()
            again_at = min(deadline, time.monotonic() + ASK_AGAIN_SECONDS)
            self._life.changed.wait_for(partial(self._is_other, self._engine.view), again_at)

    def _is_other(self, view: object) -> bool:
        """Whether something has changed since that view, or this manager has ended."""
        return not self._life.is_alive or self._engine.view != view

    def _ask(self, question: Question, deadline: float) -> Answer | None:
        self._life.require()
        answers: list[Answer] = []

        def answered(answer: Answer) -> None:
            answers.append(answer)
            self._life.changed.ring()

        self._driver.post(question(answered))

        def is_answered() -> bool:
            if not answers:
                self._life.require()  # after the end of the raft thread, no question is answered any more
            return bool(answers)

        self._life.changed.wait_for(is_answered, deadline)
        return answers[0] if answers else None
