"""Checks each message when it leaves. A message claims no entry, term or vote that is not on the sender's disk. A
manager asks for votes only with a quorum's pre-votes, or because its leader hands over to it. A directory that belongs
to no member does not vote and does not acknowledge entries. Not: whether messages are useful.

A term and a vote count as on disk after the log batch with them was written; entries count when the log says so, which
CommittedLogs and Restarts check.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.world import Failure, Process
from warren_raft.raft import entries
from warren_raft.raft.log.log import Batch
from warren_raft.raft.membership import Change, Founding, read_note


class Speech:
    def __init__(self) -> None:
        self._taken: dict[int, tuple[int, str | None]] = {}
        self._batch: dict[int, Batch] = {}
        self._durable: dict[int, tuple[int, str | None]] = {}
        self._granted: dict[int, tuple[int, set[str]]] = {}
        self._voters: dict[int, set[str]] = {}
        """The voters when the last pre-vote came. A member may be removed while the candidate's disk hangs: its request
        for votes leaves only when it is synced."""
        self._handed: dict[int, int] = {}
        self._campaigns: dict[int, int] = {}
        self._incarnations: set[str] = set()
        self._founded = False
        self._looked = 0

    def started(self, process: Process) -> None:
        log = process.opened.log
        self._durable[process.number] = (log.current_term, log.voted_for)

    def took(self, process: Process, batch: Batch) -> None:
        if self._batch.get(process.number) is batch:
            return  # the same batch again, after no space was left
        self._batch[process.number] = batch
        log = process.opened.log
        self._taken[process.number] = (log.current_term, log.voted_for)

    def wrote(self, process: Process, _batch: Batch) -> None:
        self._durable[process.number] = self._taken[process.number]

    def stepped(self, process: Process) -> None:
        """Collect the directories that belong: those of the first founding record, and those of committed changes."""
        log = process.opened.log
        if not self._founded and log.note:
            founding = read_note(log.note)
            if not isinstance(founding, Founding):
                return  # the directory was restored, and has not met the others yet
            self._founded = True
            self._looked = log.base_index
            self._incarnations.update(m.incarnation for m in founding.members.values())
        last = min(process.engine.commit_index, log.last_index)
        while self._looked < last and log.base_index <= self._looked:
            self._looked += 1
            content = entries.decode(log.entries[self._looked - log.base_index][0])
            if isinstance(content, Change):
                self._incarnations.update({content.incarnation, *(m.incarnation for m in content.members)})

    # Messages ----------------------------------------------------------------------------------------------------

    def delivered(self, process: Process, peer: str, message: dict[str, Any]) -> None:
        if message["type"] == "pre_vote_reply" and message["granted"]:
            number, granted = self._granted.get(process.number, (0, set()))
            if message["round"] == number:
                granted.add(peer)
                self._voters[process.number] = _voters_of(process)
        elif message["type"] == "timeout_now":
            # The newest term counts: an earlier leader's message may arrive again on a later connection.
            self._handed[process.number] = max(message["term"], self._handed.get(process.number, -1))

    def sent(self, process: Process, peer: str, message: dict[str, Any]) -> None:
        check = getattr(self, f"_{message['type']}", None)
        if check is not None:
            check(process, peer, message)

    def _append_reply(self, process: Process, peer: str, message: dict[str, Any]) -> None:
        index = message["next_index"] - 1
        if message["success"]:
            self._belongs(process, "acknowledges entries")
            # An answer to the leader of an earlier term may name entries that a later leader has truncated since.
            log = process.opened.log
            if index > log.synced_index and message["answers"][0] == log.current_term:
                raise Failure(f"{process.id} acknowledges {index} to {peer}, its log is synced to less")
        if message["success"] or message["reset"]:
            self._is_durable(process, message["answers"][0], "an answer")

    def _response_vote(self, process: Process, peer: str, message: dict[str, Any]) -> None:
        self._belongs(process, "votes")
        term, vote = self._durable[process.number]
        if term < message["term"] or (term == message["term"] and vote != peer):
            raise Failure(
                f"{process.id} votes for {peer} in term {message['term']}; on its disk is a vote for {vote} in {term}"
            )

    def _append_entries(self, process: Process, _peer: str, message: dict[str, Any]) -> None:
        self._is_durable(process, message["term"], "leading")

    def _pre_vote(self, process: Process, _peer: str, message: dict[str, Any]) -> None:
        """Answers to earlier rounds, also of an earlier process, may still arrive; they do not count for this round."""
        if self._granted.get(process.number, (0, set()))[0] != message["round"]:
            self._granted[process.number] = (message["round"], set())
            self._voters.pop(process.number, None)

    def _request_vote(self, process: Process, _peer: str, message: dict[str, Any]) -> None:
        self._is_durable(process, message["term"], "a candidacy")
        self._belongs(process, "asks for votes")
        if self._campaigns.get(process.number) == message["term"]:
            return
        self._campaigns[process.number] = message["term"]
        if self._handed.get(process.number, -1) == message["term"] - 1 and message["transfer"]:
            return
        voters = self._voters.pop(process.number, _voters_of(process))
        number, granted = self._granted.get(process.number, (0, set()))
        self._granted[process.number] = (number, set())
        if len((granted & voters) | {process.id}) * 2 <= len(voters):
            raise Failure(
                f"{process.id} asks for votes in term {message['term']} with pre-votes of {sorted(granted)} only"
            )

    def _is_durable(self, process: Process, term: int, what: str) -> None:
        if self._durable[process.number][0] < term:
            raise Failure(
                f"{process.id}: {what} in term {term}, on its disk is term {self._durable[process.number][0]}"
            )

    def _belongs(self, process: Process, what: str) -> None:
        if process.opened.log.incarnation not in self._incarnations:
            raise Failure(f"{process.id} {what}, and its data directory does not belong to a member")


def _voters_of(process: Process) -> set[str]:
    membership = process.engine.membership
    return set(membership.voters if membership else process.engine.members)
