"""Health reports between managers, once a second: digests of their states, and whether they are low on space.

Lives here: finding the states that have diverged, and whether a majority has enough space. Pure, except for the
messages that it sends. Not here: replacing a wrong state (installation.py), measuring a disk (manager/disk_space.py).
Invariant: a comparison that could not be made counts neither as agreement nor as disagreement.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final, Protocol

from warren_raft.raft.clocks import Clocks
from warren_raft.raft.context import Context
from warren_raft.raft.messages import HealthReport
from warren_raft.raft.reports import SAMPLES_TOLD, Heard, Report

TELL_SECONDS: Final = 1.0
SAMPLE_EVERY: Final = 64
"""A report has the digests at the newest applied index and at multiples of this. So managers that are never at the same
index at the same moment have some indexes in common."""
CLAIMS_KEPT: Final = 64
"""Digests kept of one peer; the oldest are dropped first. A peer that is further ahead is compared when we have caught
up."""


class Digests(Protocol):
    @property
    def applied_index(self) -> int: ...
    def digest_at(self, index: int) -> bytes | None:
        """The digest of the state after the entry at `index`; None: it is not known (any more)."""


class Health:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context) -> None:
        self._node_id = context.node_id
        self._roster = context.roster
        self._outbox = context.outbox
        self._alarms = context.alarms
        self.clocks: Final = Clocks(context.node_id, context.alarms)
        self._told_at = -1e9
        self._claims: dict[str, dict[int, bytes]] = {}
        self._low: dict[str, bool] = {}
        self._full: dict[str, bool] = {}
        self._disagreed_at: dict[str, int] = {}
        """Peer -> the newest index at which its digest differs from ours, until the two agree at a later index."""
        self._disputes: dict[str, str] = {}
        """Peer whose digest differs from ours -> the id whose state is wrong: the peer's or ours; "": nobody knows."""
        self.compared: dict[str, int] = {}
        """Peer -> the newest index at which its digest equals ours. A peer that is missing here was never equal."""
        self.reports: dict[str, Heard] = {}
        """Peer -> its last report, also if its link is down."""

    def is_due(self, now: float) -> bool:
        """Whether it is time to send a report to the other members."""
        return now - self._told_at >= TELL_SECONDS and self._roster.membership is not None

    def tick(
        self,
        now: float,
        machine: Digests,
        report: Report,
        *,
        low: bool,
        is_leader: bool,
        commit: tuple[int, int] | None,
        settled: int,
    ) -> bool:
        """Send a report to the other members, and compare digests. Returns whether a majority of the voters agrees on
        another state than ours.

        `commit` is the (index, term) of the newest entry that this manager knows to be committed, `settled` the index
        of the newest settled list. The engine of the receiver uses both.
        """
        self._told_at = now
        message = HealthReport(
            digests=self._samples(machine),
            low=low,
            full=is_leader and self.lacks_room(low=low),
            report=replace(report, time_ms=self.clocks.time_ms()).to_message(),
            commit=commit,
            settled=settled,
        )
        self._forget_removed()
        for peer in sorted(self._roster.links):
            if self._roster.counts(peer):
                self._outbox.send(peer, message)
        self.clocks.look(self._roster.members, is_leader=is_leader)
        return self._compare(machine)

    @staticmethod
    def _samples(machine: Digests) -> list[tuple[int, bytes]]:
        """The digests to report, as pairs: a map in a message must have texts as its keys (links/wire.py)."""
        newest = machine.applied_index
        first = newest - newest % SAMPLE_EVERY
        indexes = {newest, *range(first, max(0, first - SAMPLE_EVERY * (SAMPLES_TOLD - 1)), -SAMPLE_EVERY)}
        found = [(index, machine.digest_at(index)) for index in sorted(indexes)]
        return [(index, digest) for index, digest in found if digest is not None]

    def receive(self, peer: str, message: HealthReport, now: float) -> None:
        report = Report.from_message(message.report)
        self.reports[peer] = Heard(report, now)
        self.clocks.receive(peer, report.time_ms)
        claims = self._claims.setdefault(peer, {})
        claims.update(message.digests)
        for index in sorted(claims)[:-CLAIMS_KEPT]:
            del claims[index]
        self._low[peer] = message.low
        self._full[peer] = message.full

    def _forget_removed(self) -> None:
        members = self._roster.members
        known: tuple[dict[str, Any], ...] = (self.reports, self._disagreed_at, self._disputes, self.compared)
        for of_peers in known:
            for peer in of_peers.keys() - members.keys():
                del of_peers[peer]
        self._alarms.clear_others("state-differs", self._disagreed_at)

    def link_down(self, peer: str) -> None:
        """Forget the peer's digests and space: after its link was down it may have another state."""
        for known in (self._claims, self._low, self._full):
            known.pop(peer, None)
        self.clocks.forget(peer)

    def state_changed(self) -> None:
        """Our own state was replaced: all comparisons must be made again."""
        self.compared.clear()
        self._disagreed_at.clear()
        self._disputes.clear()
        self._alarms.clear_others("state-differs")

    @property
    def wrong_states(self) -> frozenset[str]:
        """The managers of which a majority says that their states are wrong; perhaps this one."""
        return frozenset(self._disputes.values()) - {""}

    @property
    def disputed_states(self) -> frozenset[str]:
        """The peers with another state than ours of which nobody knows which of the two states is right."""
        return frozenset(peer for peer, wrong in self._disputes.items() if not wrong)

    # Digests -----------------------------------------------------------------------------------------------------

    def _compare(self, machine: Digests) -> bool:
        odd = False
        for index in sorted({index for claims in self._claims.values() for index in claims}):
            mine = machine.digest_at(index)
            if mine is None:
                continue
            claims = {peer: claims[index] for peer, claims in self._claims.items() if index in claims}
            for peer, theirs in claims.items():
                if theirs == mine:
                    self._agrees(peer, index)
            odd |= self._judge(index, mine, {peer for peer, theirs in claims.items() if theirs != mine}, claims)
        return odd

    def _agrees(self, peer: str, index: int) -> None:
        self.compared[peer] = max(index, self.compared.get(peer, 0))
        if index >= self._disagreed_at.get(peer, index + 1):
            del self._disagreed_at[peer]
            self._disputes.pop(peer, None)
            self._alarms.clear_alarm("state-differs", peer)

    def _judge(self, index: int, mine: bytes, differing: set[str], claims: dict[str, bytes]) -> bool:
        if not differing:
            return False
        voters = self._roster.voters
        votes = Counter(digest for peer, digest in {**claims, self._node_id: mine}.items() if peer in voters)
        majority = next((digest for digest, count in votes.items() if count * 2 > len(voters)), None)
        for peer in sorted(differing):
            if index < self._disagreed_at.get(peer, self.compared.get(peer, 0) + 1):
                continue  # a later index was compared already
            self._disagreed_at[peer] = index
            self._disputes[peer] = "" if majority is None else self._node_id if claims[peer] == majority else peer
            if majority is None:
                verdict = "it is not known yet which of the two states is right"
            elif claims[peer] == majority:
                verdict = f"{self._node_id} is in the minority"
            else:
                verdict = f"{peer} is in the minority"
            text = f"{peer} and {self._node_id} hold different states at index {index}; {verdict}"
            self._alarms.raise_alarm("state-differs", text, subject=peer, severity="critical")
        return majority is not None and majority != mine

    # Space -------------------------------------------------------------------------------------------------------

    def lacks_room(self, *, low: bool) -> bool:
        """For the leader: whether the voters with enough space are not a majority. `low`: this manager is low."""
        voters = self._roster.voters
        with_room = sum(not (low if id_ == self._node_id else self._low.get(id_, False)) for id_ in voters)
        return with_room * 2 <= len(voters)

    def is_full(self, leader: str | None, *, low: bool) -> bool:
        """Whether creates and updates are refused: the leader says so, or without a leader, the reports known here."""
        if leader is None or leader == self._node_id:
            return self.lacks_room(low=low)
        return self._full.get(leader, False)

    def low_members(self, *, low: bool) -> list[str]:
        """The members that are low on space, by the last reports. For any thread."""
        known = {**self._low, self._node_id: low}
        return sorted(id_ for id_, is_low in known.items() if is_low)
