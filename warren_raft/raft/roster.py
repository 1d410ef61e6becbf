"""The members as this manager sees them now: its links, and the standing of each peer.

Lives here: the live side of membership.py. Not here: the first start (forming.py), the peers to dial (dialling.py).
Invariant: a peer counts as a member only if its link was opened under the incarnation in the member list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from warren_raft.certificates.identity import Identity
from warren_raft.raft.address_book import AddressBook
from warren_raft.raft.guests import Guests
from warren_raft.raft.log.log import Log
from warren_raft.raft.membership import (
    FIRST_LEVEL,
    MALFORMED,
    REMOVED,
    REMOVED_CERTIFICATE,
    Founding,
    Hello,
    Member,
    Membership,
    Origin,
    judge,
    judge_release,
    read_note,
)
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.trust import PeerStanding


@dataclass(slots=True)
class Link:
    """One established link. `view` and `configured` are the peer's declaration before there was a cluster: the managers
    that it has met (id -> incarnation), and its initial members (id -> address)."""

    number: int
    hello: Hello
    identity: Identity | None = None
    """The identity in the peer's certificate; None: the link is plaintext."""
    heard_at: float = -1e9
    """When a message of the peer last arrived, by this manager's clock."""
    since: float = -1e9
    """When the link was established, by the same clock."""
    view: Mapping[str, str] = field(default_factory=dict)
    configured: Mapping[str, str] = field(default_factory=dict)


class Roster:
    """For the raft thread or a simulator only; `membership`, `members` and `voters` may be read from any thread."""

    def __init__(
        self,
        node_id: str,
        address: str,
        configured: Mapping[str, str],
        log: Log,
        membership: Membership | None,
        *,
        hints: Mapping[str, Sequence[str]],
        identity: Identity | None = None,
        level_max: int = FIRST_LEVEL,
    ) -> None:
        self.node_id = node_id
        self.level_max = level_max
        """The highest level of the command set that this manager reads."""
        self.identity = identity
        """The identity in this manager's own certificate; None: its links are plaintext."""
        self.address = address
        self.configured = dict(configured)
        self.membership = membership
        """The replicated list that this manager has applied; None: there is no cluster yet."""
        self.members: Mapping[str, Member] = {}
        """The replicated list; without one, the founding record's; without that, the configured initial members."""
        self.voters: frozenset[str] = frozenset()
        self.settled_index = 0
        """This manager knows that all lists up to the one of this index are settled (settling.py)."""
        self.is_settled = False
        """Whether this manager knows that the present list is settled."""
        self._voters_index = 0 if membership is None else membership.index
        """Index of the newest list with other voters than the list before. It is not known after a start;
        then it is the index of the present list."""
        self.links: dict[str, Link] = {}
        given = {id_: (configured[id_],) if id_ in configured else () for id_ in {*configured, *hints}}
        self.book = AddressBook(address, {id_: (*first, *hints.get(id_, ())) for id_, first in given.items()})
        self.guests: Final = Guests()
        self._log = log
        self._founding_position = 0
        """Log.position of the founding record; 0: the record was durable at the start."""
        self._heard_at: dict[str, float] = {}
        """Peer without a link -> when its last message arrived."""
        self._link_problems: dict[str, str] = {}
        """Member without a link -> why the last attempt to make one failed."""
        self.founding: Founding | None = None
        self.origin = ""
        """The cluster id that this directory was restored with; "": it was not restored."""
        match read_note(log.note):
            case Origin() as origin:
                self.origin, self.configured = origin.cluster_id, dict(origin.members)
            case Founding() as founding:
                self.origin, self.founding = founding.origin, founding
        self._choose_list()
        self._hear_again()

    # Members and standings ---------------------------------------------------------------------------------------

    def _choose_list(self) -> None:
        """Set `members` and `voters`: each write reads them a hundred times, and they change only with the list."""
        if self.membership is not None:
            self.members = self.membership.members
        elif self.founding is not None:
            self.members = self.founding.members
        else:
            configured = self.configured.items()
            self.members = {id_: Member(id_, address, "", voter=True) for id_, address in configured}
        self.voters = frozenset(member.id for member in self.members.values() if member.voter)

    @property
    def cluster_id(self) -> str | None:
        return None if self.membership is None else self.membership.cluster_id

    @property
    def is_voter(self) -> bool:
        """Whether this very data directory is a voting member. A blank directory never is."""
        me = self.members.get(self.node_id)
        return me is not None and me.voter and me.incarnation == self._log.incarnation

    @property
    def was_removed(self) -> bool:
        """Whether the list says that this very data directory was removed."""
        return self.membership is not None and self._log.incarnation in self.membership.removed

    @property
    def may_vote(self) -> bool:
        """Any directory that belongs to a cluster answers vote requests, because a learner that was promoted may not
        know it yet (Raft thesis 4.1: a server votes for a candidate that its own list does not have). A blank directory
        never votes (docs/pysyncobj-holes.md, hole 7: wiped disks)."""
        return self.membership is not None or self.founding is not None

    def standing(self, peer: str) -> PeerStanding | None:
        """The standing of the peer, by its present link (trust.py); None: there is no link."""
        link = self.links.get(peer)
        if link is None:
            return None
        member = self.members.get(peer)
        if member is not None and member.incarnation == link.hello.incarnation:
            return PeerStanding.MEMBER
        if self._is_leaving(link.hello):
            return PeerStanding.LEAVING
        is_later = link.hello.membership_index > (0 if self.membership is None else self.membership.index)
        if is_later and not self.is_foreign(link.hello):
            return PeerStanding.AHEAD
        return PeerStanding.FORMING if self.membership is None else PeerStanding.GUEST

    def counts(self, peer: str) -> bool:
        """Whether messages over the present link to `peer` are those of a member of the applied list."""
        return self.standing(peer) in (PeerStanding.MEMBER, PeerStanding.LEAVING)

    def may_serve(self, peer: str) -> bool:
        """Whether a snapshot may come over the present link to `peer`."""
        return self.counts(peer) or self.standing(peer) is PeerStanding.AHEAD

    def identity_of(self, member: Member) -> Identity | None:
        """The identity in the certificate that a member shows now; None: it has no link, or a plaintext link."""
        if member.id == self.node_id:
            return self.identity if member.incarnation == self._log.incarnation else None
        link = self.links.get(member.id)
        is_its = link is not None and link.hello.incarnation == member.incarnation
        return link.identity if link is not None and is_its else None

    @property
    def trust_domain(self) -> str:
        """The trust domain of this manager's own certificate; "": its links are plaintext."""
        return "" if self.identity is None else self.identity.trust_domain

    def connected(self, peer: str) -> bool:
        return peer == self.node_id or self.counts(peer)

    def contact_age(self, peer: str, now: float) -> float | None:
        """Seconds since the peer's last message; None: no message since this manager started. For any thread."""
        link = self.links.get(peer)
        heard_at = self._heard_at.get(peer) if link is None else link.heard_at
        return 0.0 if peer == self.node_id else None if heard_at is None else max(0.0, now - heard_at)

    def no_link(self, peer: str, why: str) -> None:
        """Note why an attempt to make a link with a member failed, for people."""
        if peer in self.members and not self.connected(peer):
            self._link_problems[peer] = why

    def link_problem(self, peer: str) -> str:
        """Why the last attempt to make a link with a member failed; empty if there is a link, or if that is not known.
        For any thread."""
        return "" if self.connected(peer) else self._link_problems.get(peer, "")

    # Changes of the list -----------------------------------------------------------------------------------------

    def apply(self, membership: Membership) -> None:
        """Take the list that one more change has made."""
        if self.membership is None:
            self.settled(membership.index)  # the founding record of this list was durable before it
        elif _voting(self.members) != _voting(membership.members):
            self._voters_index = membership.index
        self._take_list(membership)

    def replace(self, membership: Membership | None) -> None:
        """Take the list of another state that has replaced ours. It is not known which change was the last one."""
        if membership is not None and membership != self.membership:
            self._voters_index = membership.index
        self._take_list(membership)

    def _take_list(self, membership: Membership | None) -> None:
        self.membership = membership
        self._look_whether_settled()
        self._members_changed()

    def settled(self, index: int) -> None:
        """Note that the list of `index` and all lists before it are settled."""
        self.settled_index = max(self.settled_index, index)
        self._look_whether_settled()

    def _look_whether_settled(self) -> None:
        self.is_settled = self.membership is not None and self.settled_index >= self.membership.index

    @property
    def has_settled_voters(self) -> bool:
        """Whether the newest list with other voters is settled, so that the voters may be changed again."""
        return self.settled_index >= self._voters_index

    def _is_leaving(self, hello: Hello) -> bool:
        """Whether the removal of this directory made the present voters, and its vote may still be needed. That can be
        only the directory removed last: the next change waits until the change before it is settled."""
        membership = self.membership
        if membership is None or not membership.removed or self.has_settled_voters:
            return False
        return hello.incarnation == membership.removed[-1] and hello.node_id not in membership.members

    def is_leaving(self, peer: str) -> bool:
        """Whether the present link to `peer` leads to a directory with the standing LEAVING."""
        return peer in self.links and self._is_leaving(self.links[peer].hello)

    def is_fed(self, peer: str) -> bool:
        """Whether the peer gets the log without counting for the quorum: it is a learner, or it is leaving."""
        member = self.members.get(peer)
        return self.is_leaving(peer) if member is None else not member.voter

    def is_foreign(self, hello: Hello) -> bool:
        """Whether the peer says that it belongs to another cluster than this manager."""
        return self.membership is not None and hello.cluster_id not in (None, self.membership.cluster_id)

    @property
    def links_of_non_members(self) -> list[str]:
        """Peers with a link that are not members, and did not name this cluster in their hello."""
        return sorted(
            peer
            for peer, link in self.links.items()
            if not self.counts(peer) and link.hello.cluster_id != self.cluster_id
        )

    @property
    def removed_links(self) -> list[str]:
        """Peers with a link and a removed directory or certificate, if they are not leaving any more."""
        return sorted(
            peer
            for peer, link in self.links.items()
            if self._is_removed(peer, link) and not self._is_leaving(link.hello)
        )

    def _is_removed(self, peer: str, link: Link) -> bool:
        """Whether the peer's directory or its certificate was removed."""
        membership = self.membership
        if membership is None:
            return False
        if self.is_revoked(link.identity):
            return True
        return peer not in self.members and link.hello.incarnation in membership.removed

    def is_revoked(self, identity: Identity | None) -> bool:
        """Whether this is the certificate of a member that was removed."""
        return identity is not None and self.membership is not None and self.membership.is_removed(identity)

    # Links -------------------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(
            node_id=self.node_id,
            address=self.address,
            incarnation=self._log.incarnation,
            blank=self._is_blank,
            cluster_id=self.cluster_id,
            membership_index=0 if self.membership is None else self.membership.index,
            founding=self._told_founding(),
            origin=self.origin,
            level_max=self.level_max,
        )

    @property
    def _is_blank(self) -> bool:
        """Whether this directory has taken part in nothing yet: no entry and no founding record, so also no vote.

        A later term alone does not count as taking part: any peer that claims to lead can bring a new manager into a
        later term, and the cluster has to let that manager in after that.
        """
        return self._log.has_only_base and self._log.base_term == 0 and self.founding is None

    def _told_founding(self) -> bytes:
        """The founding record for a hello, empty before the record is durable: after a power cut took the record away,
        this manager might agree to another view."""
        if self.founding is None or self._log.synced_position < self._founding_position:
            return b""
        return self.founding.encode()

    def judge(
        self, message: Mapping[str, object], identity: Identity | None, *, level: int = FIRST_LEVEL
    ) -> Refusal | None:
        """Why a peer is not let in; None: it is. `level`: of the command set, in our state."""
        try:
            theirs = Hello.from_message(message)
            refusal = judge(
                self.hello(),
                theirs,
                membership=self.membership,
                configured=self.configured,
                identity=identity,
                trust_domain=self.trust_domain,
                level=level,
            )
        except ValueError as error:
            return Refusal(MALFORMED, str(error))
        is_of_removed = refusal is not None and refusal.code in (REMOVED, REMOVED_CERTIFICATE)
        return judge_release(theirs, level) if is_of_removed and self._is_leaving(theirs) else refusal

    def link_up(self, peer: str, number: int, hello: Hello, identity: Identity | None, now: float) -> None:
        self.links[peer] = Link(number, hello, identity, heard_at=now, since=now)
        self._link_problems.pop(peer, None)
        self._heard_at.pop(peer, None)
        self._hear(peer, hello.incarnation, hello.address)

    def link_down(self, peer: str, number: int) -> bool:
        """False: that was an older link than the present one."""
        link = self.links.get(peer)
        if link is None or link.number != number:
            return False
        if peer in self.members:
            self._heard_at[peer] = link.heard_at
        del self.links[peer]
        return True

    # Addresses ---------------------------------------------------------------------------------------------------

    def _hear(self, id_: str, incarnation: str, address: str) -> None:
        member = self.members.get(id_)
        if member is not None:
            self.book.heard(member, incarnation, address)

    def _members_changed(self) -> None:
        """Take the new list. The address that a new member gave before it was a member counts from now on."""
        before = self.members
        self._choose_list()
        self.book.members_changed(before, self.members)
        self._link_problems = {id_: why for id_, why in self._link_problems.items() if id_ in self.members}
        self._hear_again()

    def _hear_again(self) -> None:
        self._hear(self.node_id, self._log.incarnation, self.address)
        for peer, link in self.links.items():
            self._hear(peer, link.hello.incarnation, link.hello.address)

    def said_address(self, id_: str) -> str | None:
        """The address that a member gave in its hello on the present link; None: it has no link."""
        if id_ == self.node_id:
            return self.address
        link, member = self.links.get(id_), self.members.get(id_)
        is_member = link is not None and member is not None and link.hello.incarnation == member.incarnation
        return link.hello.address if link is not None and is_member else None

    # The first start ---------------------------------------------------------------------------------------------

    @property
    def is_forming(self) -> bool:
        """Whether this directory is blank and belongs to no cluster yet (forming.py)."""
        return self.membership is None and self._is_blank

    def record(self, founding: Founding) -> None:
        """Take the founding record for the list of members, and write it into the log."""
        self.founding = founding
        self._members_changed()
        self._log.set_note(founding.encode())
        self._founding_position = self._log.position


def _voting(members: Mapping[str, Member]) -> set[tuple[str, str]]:
    """The voters, each with the incarnation of its directory."""
    return {(member.id, member.incarnation) for member in members.values() if member.voter}
