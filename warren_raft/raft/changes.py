"""Changes of members as the leader makes them: one at a time, refused if they would lose the quorum or the right state.

PySyncObj's own guard against two changes at once is dead code, and its changes take effect when they are appended
(docs/pysyncobj-holes.md, hole 7). Ours are ordinary entries that take effect when they are applied (etcd's scheme). The
leader proposes one only when the change before it is applied, the voters that it made are settled (settling.py), and an
entry of this term is applied. Not here: the effect of a change on the list (membership.py). Invariant: a request is
judged by the applied list only, after an entry of this term, so it is always safe to ask again. It is judged again when
the change is proposed, and is called done only when the list with the change is settled.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from warren_raft.config import MEMBERS_MAX, check_address, check_node_id
from warren_raft.errors import InvalidConfig
from warren_raft.raft.address_book import is_address
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.guard import Guard
from warren_raft.raft.health import Health
from warren_raft.raft.keeping_up import Rounds
from warren_raft.raft.levels import raising, read_by_all
from warren_raft.raft.membership import (
    ADD,
    CERTIFY,
    FORM,
    PROMOTE,
    REMOVE,
    UPDATE,
    Certificate,
    Change,
    Member,
    too_old,
)
from warren_raft.raft.messages import (
    DONE,
    PENDING,
    REFUSED,
    WAIT,
)
from warren_raft.raft.way_back import join_first, way_back
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.changes")


@dataclass(frozen=True, slots=True)
class Answer:
    """The leader's answer to a request. DONE: the change is made and finished; `text` may hold a warning. PENDING: the
    change was begun, and may be done by now; ask again. WAIT: nothing was done; `text` gives the reason; ask again.
    REFUSED: `text` says why."""

    state: str
    text: str = ""
    is_made: bool = False
    """With PENDING: the list has the change, and `text` names the step that is not finished."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    verb: str
    id: str
    address: str
    incarnation: str


class Changes:
    """Decides for the leader which change to propose next. For the raft thread or a simulator only."""

    def __init__(self, context: Context, guard: Guard, health: Health) -> None:
        self._context = context
        self._log = context.log
        self._roster = context.roster
        self._core = guard.core
        self._guard = guard
        self._health = health
        self._recent_seconds = context.settings.election_timeout_seconds
        """A member does not count as alive if its last answer is older. A request that is not repeated within it is
        dropped. A learner does not keep up if its round takes longer."""
        self._rounds = Rounds(self._recent_seconds)
        self._led_since = LONG_AGO
        self._proposed_at = 0
        self._proposed: Change | None = None
        self._wanted: _Wanted | None = None
        self._wanted_at = LONG_AGO

    def reset(self) -> None:
        """Leadership changed: forget the requests. The managers that asked for a change ask again."""
        self._led_since = self._context.now
        self._wanted = self._proposed = None
        self._proposed_at = 0
        self._rounds.reset()
        self._roster.guests.clear()

    def proposed(self, index: int, change: Change) -> None:
        self._proposed_at, self._proposed = index, change
        if change.verb in (ADD, PROMOTE, REMOVE):
            self._rounds.forget(change.id)
        self._wanted = None

    def is_removing(self, member_id: str) -> bool:
        """Whether the newest change that this leader proposed is the removal of this member."""
        return self._proposed is not None and (self._proposed.verb, self._proposed.id) == (REMOVE, member_id)

    def tick(self) -> None:
        """Look how far the learners are, and forget the guests that no manager asks for any more."""
        if not self._core.is_leader:
            return
        self._roster.guests.expire(self._context.now)
        for member in self._roster.members.values():
            if member.voter:
                continue
            if not self._roster.counts(member.id):
                self._rounds.forget(member.id)
                continue
            self._rounds.look(
                member.id,
                self._context.now,
                last_index=self._log.last_index,
                match_index=self._guard.match_index(member.id),
                answered=self._core.last_response(member.id),
            )

    # The next change ---------------------------------------------------------------------------------------------

    def next_change(self, applied_index: int, applied_term: int, new_cluster_id: str) -> Change | None:
        """The change to propose now, alone in its entry; None: there is none. It names our trust domain; a list without
        a trust domain takes it over."""
        change = self._next_change(applied_index, applied_term, new_cluster_id)
        return None if change is None else replace(change, trust_domain=self._roster.trust_domain)

    def _next_change(self, applied_index: int, applied_term: int, new_cluster_id: str) -> Change | None:
        if not self._core.is_leader or applied_term != self._core.term or applied_index < self._proposed_at:
            return None
        roster = self._roster
        if roster.membership is None:
            founders = [member for _, member in sorted(roster.members.items())]
            members = tuple(replace(member, certificates=self._certificates_of(member)) for member in founders)
            return Change(FORM, cluster_id=new_cluster_id, members=members, level=read_by_all(roster))
        if not roster.has_settled_voters:
            return None
        return (
            self._wanted_change() or self._raising() or self._promotion() or self._certification() or self._invitation()
        )

    def _raising(self) -> Change | None:
        """The change that raises the level, once every member has answered over the link whose hello says that it reads
        the level. A member that died right after its hello may come back with the older release."""
        roster = self._roster
        found = raising(roster, self._context.machine.level)
        return found if found is not None and all(map(self._answers_on_its_link, roster.members)) else None

    def _answers_on_its_link(self, member_id: str) -> bool:
        if member_id == self._roster.node_id:
            return True
        answered = self._core.last_response(member_id)
        return self._answers(member_id) and answered is not None and answered > self._roster.links[member_id].since

    def _certificates_of(self, member: Member) -> tuple[Certificate, ...]:
        """The certificate that the member shows now, then those that the list has for it."""
        identity = self._roster.identity_of(member)
        shown = () if identity is None else (Certificate.of(identity),)
        return shown + tuple(each for each in member.certificates if each not in shown)

    def _certification(self) -> Change | None:
        """Put each certificate that a member uses into the list, so that all of them are refused after its removal."""
        for member in self._roster.members.values():
            certificates = self._certificates_of(member)
            if certificates[:1] != member.certificates[:1]:
                return Change(CERTIFY, id=member.id, incarnation=member.incarnation, certificate=certificates[0])
        return None

    def _invitation(self) -> Change | None:
        """Add a blank manager with a certificate of this cluster, without a request: the operator issued the
        certificate because the manager is to be a member."""
        roster = self._roster
        membership = roster.membership
        if membership is None or not membership.trust_domain or len(membership.members) >= MEMBERS_MAX:
            return None
        for id_, link in sorted(roster.links.items()):
            identity = link.identity
            if identity is None or id_ in membership.members or identity.trust_domain != membership.trust_domain:
                continue
            if membership.is_removed(identity) or not link.hello.blank or not is_address(link.hello.address):
                continue
            found = self._add(None, id_, link.hello.address)
            if isinstance(found, Change):
                log_event(logger, logging.INFO, "certified manager added", member=id_, address=found.address)
                return found
        return None

    def _wanted_change(self) -> Change | None:
        """The change that was asked for, judged again: it may have waited, and a member may have died meanwhile."""
        wanted = self._wanted
        if wanted is None:
            return None
        found = self._judge(wanted) if self._is_asked_for else None
        if not isinstance(found, Change):
            self._wanted = None  # the manager that asks again gets the reason
            return None
        return found

    @property
    def _is_asked_for(self) -> bool:
        """Whether a manager still asks for the change. It repeats its request; without that the change is not made."""
        return self._context.now - self._wanted_at <= self._recent_seconds

    def _promotion(self) -> Change | None:
        roster = self._roster
        for member in roster.members.values():
            if not member.voter and roster.counts(member.id) and self._rounds.keeps_up(member.id):
                voters = roster.voters | {member.id}
                if sum(map(self._takes_entries, voters)) * 2 > len(voters):
                    return Change(PROMOTE, id=member.id, incarnation=member.incarnation)
        return None

    # Requests ----------------------------------------------------------------------------------------------------

    def request(
        self, verb: str, member_id: str, address: str, applied_index: int, asker: str, incarnation: str = ""
    ) -> Answer:
        """Answer a request of an operator at the manager `asker`. It is repeated until the answer is DONE or REFUSED.
        `incarnation`: the directory to remove; "": the directory that has the id now."""
        roster = self._roster
        if roster.membership is None:
            return Answer(WAIT, "the cluster is not formed yet")
        if not self._log.holds(applied_index, self._core.term):
            # A change that was acknowledged before may still be in the log only, and the list does not have it yet. No
            # request is judged by that list.
            return Answer(WAIT, "this leader was elected just now, and has not applied an entry of its term yet")
        if applied_index < self._proposed_at:
            return Answer(WAIT, "a change of members is under way")
        try:
            check_node_id(member_id)
            if verb in (ADD, UPDATE):
                check_address(address)
        except InvalidConfig as error:
            return Answer(REFUSED, error.reason)
        wanted = _Wanted(verb, member_id, address, incarnation)
        found = self._judge(wanted)
        if isinstance(found, Change):
            return self._want(wanted, asker)
        if found.state == DONE and not roster.is_settled:
            text = "the change is made; a majority of the members does not have it on disk yet"
            return Answer(PENDING, text, is_made=True)
        return found

    def why_stay(self) -> Answer | None:
        """Why this leader does not hand over yet so that it can be removed; None: it may hand over. Without these
        conditions two operators, each removing one of two members, would pass leadership to and fro for ever."""
        if self._wanted is not None and self._is_asked_for:
            return Answer(WAIT, "another change of members is under way")
        if self._context.now - self._led_since <= self._recent_seconds:
            return Answer(WAIT, "this leader was elected just now, and hands over when it has led for a moment")
        return None

    def _want(self, wanted: _Wanted, asker: str) -> Answer:
        if self._wanted not in (None, wanted) and self._is_asked_for:
            return Answer(WAIT, "another change of members is under way")
        if wanted != self._wanted:
            log_event(
                logger,
                logging.INFO,
                "change of members wanted",
                node=self._roster.node_id,
                change=wanted.verb,
                member=wanted.id,
                address=wanted.address or None,
                asked_at=asker,
            )
        self._wanted, self._wanted_at = wanted, self._context.now
        return Answer(PENDING, "the change is under way")

    def _judge(self, wanted: _Wanted) -> Change | Answer:
        """The change to make for the request, or the answer that says why there is none."""
        member = self._roster.members.get(wanted.id)
        if wanted.verb == ADD:
            return self._add(member, wanted.id, wanted.address)
        if wanted.verb == UPDATE:
            return self._update(member, wanted.id, wanted.address)
        if wanted.verb == REMOVE:
            return self._remove(member, wanted)
        return Answer(REFUSED, f"unknown change {wanted.verb!r}")

    def _add(self, member: Member | None, member_id: str, address: str) -> Change | Answer:
        if member is not None:
            if member.address != address:
                text = f"{member_id} is already a member, at {member.address}; if it has moved to {address}, type: "
                return Answer(REFUSED, f"{text}warren-raft members update {member_id}={address}")
            if not self._roster.connected(member_id):
                # The member may be away for a moment only; or it runs with a new directory that is not in the list.
                return Answer(
                    WAIT, f"{member_id} is already a member, and is not connected; {self._why_away(member_id)}"
                )
            if member.voter:
                return Answer(DONE)
            return Answer(PENDING, f"{member_id} was added, and votes when it has caught up", is_made=True)
        holder = next((m.id for m in self._roster.members.values() if m.address == address), None)
        if holder is not None:
            return Answer(REFUSED, f"{address} is the address of {holder}")
        answers = self._roster.guests.invite(member_id, address, self._context.now)
        link = self._roster.links.get(member_id)
        if link is None:
            return Answer(WAIT, f"{answers}; {join_first(member_id, address, self._roster.trust_domain)}")
        if not link.hello.blank or link.hello.origin:
            return Answer(REFUSED, f"the data directory of {member_id} is not empty; start it on an empty one")
        if link.hello.address != address:
            return Answer(REFUSED, f"{member_id} says that its address is {link.hello.address}, not {address}")
        if link.hello.level_max < self._context.machine.level:  # its link is as old as the level before
            return Answer(REFUSED, too_old(member_id, link.hello.level_max, self._context.machine.level))
        self._roster.guests.forget(member_id)
        certificate = None if link.identity is None else Certificate.of(link.identity)
        return Change(ADD, id=member_id, address=address, incarnation=link.hello.incarnation, certificate=certificate)

    def _why_away(self, member_id: str) -> str:
        address, trust_domain = self._roster.members[member_id].address, self._roster.trust_domain
        if self._roster.guests.has_another(member_id, self._context.now):
            way = way_back(member_id, address, trust_domain, is_empty=True)
            return f"the manager that answers as {member_id} has another data directory; {way}"
        return f"start it; or, if its data directory was lost: {way_back(member_id, address, trust_domain)}"

    def _update(self, member: Member | None, member_id: str, address: str) -> Change | Answer:
        if member is None:
            return Answer(REFUSED, f"{member_id} is not a member: warren-raft members list shows the members")
        if member.address == address:
            return Answer(DONE, self._not_there(member_id, address))
        # The list alone is not enough: two members may have taken each other's address.
        addresses = {m.id: m.address for m in self._roster.members.values()}
        addresses |= self._roster.book.differing(self._roster.members.values())
        holder = next((id_ for id_, its in addresses.items() if its == address and id_ != member_id), None)
        if holder is not None:
            return Answer(REFUSED, f"{address} is the address of {holder}")
        if address not in (self._roster.said_address(member_id), self._roster.book.differing([member]).get(member_id)):
            wrong = self._wrong_address_beside(member_id)
            if wrong is not None:
                return Answer(REFUSED, wrong)
        return Change(UPDATE, id=member_id, address=address, incarnation=member.incarnation)

    def _wrong_address_beside(self, member_id: str) -> str | None:
        """Why this member gets no address at which it is not yet; None: it may get it. Two members that are both not
        where the list has them do not find each other after a restart, and no leader could correct the list."""
        for other in self._roster.members.values():
            said = self._roster.said_address(other.id)
            if other.id != member_id and said not in (None, other.address):
                return (
                    f"{other.id} listens on {said}, but the member list has {other.address} for it, and two members at "
                    f"other addresses than in the list may not find each other: start {other.id} with --listen "
                    f"{other.address}, or type: warren-raft members update {other.id}={said}; then change {member_id}"
                )
        return None

    def _not_there(self, member_id: str, address: str) -> str:
        """A warning for the operator if the member does not answer at its new address; else empty."""
        said = self._roster.said_address(member_id)
        if said == address:
            return ""
        restart = f"start {member_id} with --listen {address}"
        if said is None:
            return (
                f"{member_id} does not answer at {address}: {restart}, or correct the address: warren-raft members "
                f"update {member_id}=HOST:PORT"
            )
        return (
            f"{member_id} says that its address is {said}: {restart}, or type: warren-raft members update "
            f"{member_id}={said}"
        )

    def _remove(self, member: Member | None, wanted: _Wanted) -> Change | Answer:
        member_id = wanted.id
        if member is None or wanted.incarnation not in ("", member.incarnation):
            return Answer(DONE)  # a member with this id and another directory was added after the removal
        rest = self._roster.voters - {member_id}
        if not rest:
            return Answer(REFUSED, f"{member_id} is the only voting member")
        certificate, *_ = self._certificates_of(member) or (None,)
        change = Change(REMOVE, id=member_id, incarnation=member.incarnation, certificate=certificate)
        if not member.voter:
            return change
        return self._why_not(rest, member_id) or self._why_not_by_states(rest, member_id) or change

    def _why_not_by_states(self, rest: frozenset[str], member_id: str) -> Answer | None:
        """Why the removal waits until a state is right again; None: it need not wait. A state is known to be wrong
        because a majority holds another one, so that majority must stay. A member with the wrong state may go, and one
        that is away: its state does not count now."""
        if not self._answers(member_id):
            return None
        wrong, disputed = self._health.wrong_states, self._health.disputed_states
        sound = rest - wrong - disputed
        if member_id in wrong | disputed or len(sound) * 2 > len(rest):
            return None
        left = f"removing {member_id} would leave {len(sound)} of {len(rest)} voting members with the right state"
        wait = "wait until the alarm state-differs is cleared"
        if not wrong:
            differing = ", ".join(sorted(disputed))
            return Answer(
                REFUSED,
                f"{left}, as far as is known: {differing} and this leader have different ones; {wait}, or add a "
                "member, because a majority tells which one is right",
            )
        named = ", ".join(sorted(wrong))
        return Answer(
            REFUSED,
            f"{left}: {named} holds a wrong one, which it rebuilds by itself; {wait}, or remove {named} instead",
        )

    # Members that are alive --------------------------------------------------------------------------------------

    def _why_not(self, rest: frozenset[str], member_id: str) -> Answer | None:
        """Why the voters `rest` alone would have no quorum; None: they have one."""
        lost = f"removing {member_id} would lose the quorum"
        connected = sum(map(self._roster.connected, rest))
        if connected * 2 <= len(rest):
            return Answer(REFUSED, f"{lost}: {connected} of {len(rest)} others are connected")
        alive = sum(map(self._answers, rest))
        if alive * 2 > len(rest):
            return self._why_wait_for_snapshots(rest, lost)
        if self._context.now - self._led_since <= self._recent_seconds:
            return Answer(WAIT, "this leader was elected just now, and does not know yet which members answer")
        return Answer(
            REFUSED, f"{lost}: {alive} of {len(rest)} others answered within the last {self._recent_seconds:g} s"
        )

    def _why_wait_for_snapshots(self, rest: frozenset[str], lost: str) -> Answer | None:
        """Why the removal waits until voters of the rest have fetched snapshots; None: enough of them take entries.
        Nothing would be committed meanwhile, not even another change, and their disks may have no room for days."""
        if sum(map(self._takes_entries, rest)) * 2 > len(rest):
            return None
        lacking = sorted(filter(self._guard.needs_snapshot, rest))
        return Answer(WAIT, f"{lost} until a snapshot has reached {', '.join(lacking)}")

    def _takes_entries(self, member_id: str) -> bool:
        """Whether the member answers, and its log goes on from the leader's."""
        return self._answers(member_id) and not self._guard.needs_snapshot(member_id)

    def _answers(self, member_id: str) -> bool:
        """Whether the member has answered this leader within `recent_seconds`. A link alone is not enough: it lasts for
        seconds after the peer has died."""
        if member_id == self._roster.node_id:
            return True
        answered = self._core.last_response(member_id)
        if answered is None or answered <= self._led_since:
            return False  # a new leader's core counts all members as alive, for its own check of the quorum
        return self._roster.connected(member_id) and self._context.now - answered <= self._recent_seconds
