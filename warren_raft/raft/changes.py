"""Membership changes as the leader makes them: one at a time, refused when they would lose the quorum.

PySyncObj's own guard against two changes at once is dead code, and its changes take effect when appended (hole 7).
Ours are ordinary entries that take effect when applied (etcd's scheme), proposed only when the one before is applied
and an entry of this term is. Not here: what a change does to the list (membership.py). Invariant: a request is judged
by the applied list only, so asking again is always safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from warren_raft.config import check_address, check_node_id
from warren_raft.errors import InvalidEntity, RefusedForSafety
from warren_raft.raft.core import Core
from warren_raft.raft.guard import Guard
from warren_raft.raft.log import Log
from warren_raft.raft.membership import ADD, FORM, PROMOTE, REMOVE, UPDATE, Change, Member
from warren_raft.raft.roster import Roster

Message = dict[str, Any]

CAUGHT_UP_ENTRIES: Final = 64
"""A learner becomes a voter when it lacks at most so many entries; what it lacks is on its way by then."""

DONE, PENDING, WAIT, REFUSED = "done", "pending", "wait", "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the leader says to a request: DONE (`text`: what is still wrong), PENDING (it was begun, and may be done by
    now; ask again), WAIT (nothing was done; `text`: for what it waits; ask again), or REFUSED (`text`: why)."""

    state: str
    text: str = ""


class Changes:
    """Decides for the leader which change to propose next. Raft thread or simulator only."""

    def __init__(self, core: Core, log: Log, guard: Guard, roster: Roster) -> None:
        self._core = core
        self._log = log
        self._guard = guard
        self._roster = roster
        self._proposed_at = 0
        self._wanted: Change | None = None

    def reset(self) -> None:
        """Leadership changed: what was wanted is asked for again by whoever wants it."""
        self._wanted = None
        self._proposed_at = 0
        self._roster.guests.clear()

    def proposed(self, index: int) -> None:
        self._proposed_at = index
        self._wanted = None

    def next_change(self, applied_index: int, applied_term: int, new_cluster_id: str) -> Change | None:
        """The change to propose now, alone in its entry, or None."""
        if not self._core.is_leader or applied_term != self._core.term or applied_index < self._proposed_at:
            return None
        roster = self._roster
        if roster.membership is None:
            members = tuple(member for _, member in sorted(roster.members.items()))
            return Change(FORM, cluster_id=new_cluster_id, members=members)
        return self._wanted or self._promotion()

    def _promotion(self) -> Change | None:
        for member in self._roster.members.values():
            if not member.voter and self._roster.counts(member.id):
                lacking = self._log.last_index - self._guard.match_index(member.id)
                if self._guard.match_index(member.id) > 0 and lacking <= CAUGHT_UP_ENTRIES:
                    return Change(PROMOTE, id=member.id, incarnation=member.incarnation)
        return None

    def request(self, verb: str, member_id: str, address: str, applied_index: int) -> Answer:
        """What an operator wants. Called again until it answers DONE or REFUSED."""
        roster = self._roster
        if roster.membership is None:
            return Answer(WAIT, "the cluster is not formed yet")
        if applied_index < self._proposed_at:
            return Answer(WAIT, "a membership change is under way")
        try:
            check_node_id(member_id)
            if verb in (ADD, UPDATE):
                check_address(address)
        except (InvalidEntity, RefusedForSafety) as error:
            return Answer(REFUSED, error.reason if isinstance(error, InvalidEntity) else str(error))
        member = roster.members.get(member_id)
        if verb == ADD:
            return self._add(member, member_id, address)
        if verb == UPDATE:
            return self._update(member, member_id, address)
        if verb == REMOVE:
            return self._remove(member, member_id)
        return Answer(REFUSED, f"unknown change {verb!r}")

    def _add(self, member: Member | None, member_id: str, address: str) -> Answer:
        if member is not None:
            if member.address != address:
                return Answer(REFUSED, f"{member_id} is a member already, at {member.address}")
            if not self._roster.connected(member_id):
                # Done, if it was away a moment; or a new directory runs there, which the cluster does not know.
                text = "is a member already, and not connected; if its directory was lost, run members remove first"
                return Answer(WAIT, f"{member_id} {text}")
            return Answer(DONE) if member.voter else Answer(PENDING, f"{member_id} was added, and is catching up")
        holder = next((m.id for m in self._roster.members.values() if m.address == address), None)
        if holder is not None:
            return Answer(REFUSED, f"{address} is the address of {holder}")
        link = self._roster.links.get(member_id)
        if link is None:
            answers = self._roster.guests.invite(member_id, address)
            return Answer(WAIT, f"{answers}; start {member_id} there, on an empty data directory")
        if not link.hello.blank or link.hello.origin:
            return Answer(REFUSED, f"the data directory of {member_id} is not empty; start it on an empty one")
        if link.hello.address != address:
            return Answer(REFUSED, f"{member_id} says its address is {link.hello.address}, not {address}")
        self._roster.guests.forget(member_id)
        return self._want(Change(ADD, id=member_id, address=address, incarnation=link.hello.incarnation))

    def _update(self, member: Member | None, member_id: str, address: str) -> Answer:
        if member is None:
            return Answer(REFUSED, f"{member_id} is not a member")
        if member.address == address:
            return Answer(DONE, self._not_there(member_id, address))
        # Not by the list alone: two may have taken each other's address.
        addresses = {m.id: m.address for m in self._roster.members.values()}
        addresses |= self._roster.book.differing(self._roster.members.values())
        holder = next((id_ for id_, its in addresses.items() if its == address and id_ != member_id), None)
        if holder is not None:
            return Answer(REFUSED, f"{address} is the address of {holder}")
        return self._want(Change(UPDATE, id=member_id, address=address, incarnation=member.incarnation))

    def _not_there(self, member_id: str, address: str) -> str:
        """What the operator has to know where the member does not answer at its new address; else empty."""
        said = self._roster.said_address(member_id)
        if said == address:
            return ""
        restart = f"start {member_id} with --listen {address}"
        if said is None:
            return f"{member_id} does not answer at {address}: {restart}, or correct the address with members update"
        return f"{member_id} says that its address is {said}: {restart}, or type members update {member_id}={said}"

    def _remove(self, member: Member | None, member_id: str) -> Answer:
        if member is None:
            return Answer(DONE)
        rest = self._roster.voters - {member_id}
        if not rest:
            return Answer(REFUSED, f"{member_id} is the only voting member")
        alive = sum(self._roster.connected(id_) for id_ in rest)
        if member.voter and alive * 2 <= len(rest):
            return Answer(
                REFUSED, f"removing {member_id} would lose the quorum: {alive} of {len(rest)} others are connected"
            )
        return self._want(Change(REMOVE, id=member_id, incarnation=member.incarnation))

    def _want(self, change: Change) -> Answer:
        if self._wanted not in (None, change):
            return Answer(WAIT, "another membership change is under way")
        self._wanted = change
        return Answer(PENDING, "the change is under way")
