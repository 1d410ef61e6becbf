"""The links and the list of members, brought to the core and the guard: which peers count, and which get the log.

Lives here: the begin and end of a link, a new list of members, the first list, the words of members about lists. Not
here: the standing of a peer (roster.py), when a list is settled (settling.py), and the effect of a change
(membership.py).
Invariant: the core counts exactly the voters of the list in force, and is connected only with the directories in it.
"""

from __future__ import annotations

from warren_raft.certificates.identity import Identity
from warren_raft.errors import RefusedForSafety
from warren_raft.raft import entries
from warren_raft.raft.context import Context
from warren_raft.raft.dialling import Dialling
from warren_raft.raft.effects import CloseLink
from warren_raft.raft.elections import Elections
from warren_raft.raft.forming import Forming
from warren_raft.raft.guard import Guard
from warren_raft.raft.leading import Leading
from warren_raft.raft.membership import Hello, Membership, judge_release
from warren_raft.raft.messages import HealthReport
from warren_raft.raft.refusals import Refusals, removed
from warren_raft.raft.settling import Settling


class Peers:
    """For the raft thread or a simulator only."""

    def __init__(
        self,
        context: Context,
        guard: Guard,
        settling: Settling,
        elections: Elections,
        refusals: Refusals,
        dialling: Dialling,
        forming: Forming,
        leading: Leading,
    ) -> None:
        self._context = context
        self._node_id = context.node_id
        self._log = context.log
        self._roster = context.roster
        self._outbox = context.outbox
        self._guard = guard
        self._core = guard.core
        self._settling = settling
        self._elections = elections
        self._refusals = refusals
        self._dialling = dialling
        self._forming = forming
        self._leading = leading
        self.check_not_removed()
        self._check_trust_domain()
        self.keep_list()

    def check_not_removed(self) -> None:
        """By incarnation: a manager that was added again reads in the log the removal of its predecessor."""
        if self._roster.was_removed:
            raise removed(self._roster)

    def _check_trust_domain(self) -> None:
        membership, own = self._roster.membership, self._roster.trust_domain
        if membership is not None and own and membership.trust_domain not in ("", own):
            raise RefusedForSafety(
                f"the certificate of {self._node_id} is of the trust domain {own}, and its cluster's is "
                f"{membership.trust_domain}; give it one of that cluster: warren-raft cert issue "
                f"{self._node_id} --ca DIR"
            )

    # Links -------------------------------------------------------------------------------------------------------

    def link_up(self, peer: str, number: int, hello: Hello, identity: Identity | None) -> None:
        if self._roster.is_foreign(hello):  # it was let in, and this manager has come to know its cluster since
            self._outbox.add(CloseLink(number, f"{peer} belongs to another cluster"))
            return
        too_old = judge_release(hello, self._context.machine.level)
        if too_old is not None:  # the same: the level was raised since
            self._outbox.add(CloseLink(number, too_old.text))
            return
        self._refusals.link_up(peer)
        self._outbox.link_up(peer, number)
        try:
            self._roster.link_up(peer, number, hello, identity, self._context.now)
            self._dialling.link_up(peer)
            self._forming.link_up(peer, hello)
        except ValueError as error:
            self._refusals.drop(peer, f"{peer} has an impossible hello, so its link is dropped: {error}")
        self._connect(peer)

    def link_down(self, peer: str, number: int) -> bool:
        """False: that was an older link than the present one."""
        if not self._roster.link_down(peer, number):
            return False
        self._outbox.link_down(peer)
        if peer in self._core.voters:
            self._core.disconnected(peer)
        else:
            self._core.learner_disconnected(peer)
        self._guard.link_down(peer)
        if peer not in self._roster.members:
            self._guard.forget(peer)  # the next link under this id may be of another data directory
        return True

    def connect_again(self) -> None:
        """The core has begun again: connect each peer that has a link."""
        for peer in sorted(self._roster.links):
            self._connect(peer)

    def _connect(self, peer: str) -> None:
        self._connect_core(peer)
        self._guard.link_up(peer)

    def _connect_core(self, peer: str) -> None:
        """A voter is the directory that the list names; another one under its id is nobody to the core."""
        if peer in self._core.voters:
            connect = self._core.connected if self._roster.counts(peer) else self._core.disconnected
            connect(peer)
        elif self._roster.is_fed(peer):
            self._core.learner_connected(peer)

    # The list in force -------------------------------------------------------------------------------------------

    def adopt(self, membership: Membership | None) -> None:
        """The list that the state holds is the one in force."""
        self._context.look_soon()
        if membership is None:
            return
        for member in self._roster.members.values():
            if membership.incarnation(member.id) != member.incarnation:
                self._guard.forget(member.id)
        is_first = self._roster.membership is None
        self._roster.apply(membership)
        self._refusals.list_changed()
        if is_first:
            self._meet_non_members_again()
        self._follow_list()
        self._dismiss_older()
        self.keep_list()

    def replace(self, membership: Membership | None) -> None:
        """The list of another state, which has replaced ours, is the one in force. The core begins again with it."""
        is_first = self._roster.membership is None
        self._roster.replace(membership)
        self._refusals.list_changed()
        if is_first and self._roster.membership is not None:
            self._meet_non_members_again()
        self._dismiss_older()
        self.check_not_removed()

    def _follow_list(self) -> None:
        """Bring the core's members and our links into line with the applied list."""
        roster = self._roster
        self.check_not_removed()
        self._follow_voters()
        for peer in sorted(roster.links):
            self._connect_core(peer)
        self._dismiss_removed()

    def _follow_voters(self) -> None:
        roster, core = self._roster, self._core
        voters = roster.voters
        for peer in sorted(core.voters - voters - {self._node_id}):
            core.disconnected(peer)
            core.remove_voter(peer)
        for peer in sorted(voters - core.voters):
            core.learner_disconnected(peer)
            core.add_voter(peer)

    def _meet_non_members_again(self) -> None:
        """This manager belongs to a cluster from now on. Links that it made before, with managers of other clusters or
        of none, were judged before either side knew that, and are made again."""
        for peer in self._roster.links_of_non_members:
            reason = f"{peer} is not a member of the cluster that {self._node_id} belongs to now"
            self._outbox.close_link(peer, reason)

    def _dismiss_removed(self) -> None:
        """A removed manager whose vote is no longer needed is told so when it comes back."""
        for peer in self._roster.removed_links:
            self._core.learner_disconnected(peer)
            self._guard.forget(peer)
            self._refusals.dismissed(peer, self._context.now)
            self._outbox.close_link(peer, f"{peer} was removed from the cluster")

    def _dismiss_older(self) -> None:
        """Managers of older releases were let in while the level was lower. Their next hello is refused, with the
        reason."""
        for peer, link in sorted(self._roster.links.items()):
            too_old = judge_release(link.hello, self._context.machine.level)
            if too_old is not None:
                self._outbox.close_link(peer, too_old.text)

    # Settled lists -----------------------------------------------------------------------------------------------

    def keep_list(self) -> None:
        """The list of members must be known after any crash, and the state does not survive a power cut: the
        commit index that covers the newest change is made durable, by a batch of its own if need be."""
        membership = self._roster.membership
        if membership is None or self._roster.is_settled:
            return
        if self._log.synced_commit_index < membership.index <= self._log.commit_index:
            self._log.keep_commit()

    def settle(self) -> None:
        """Look whether the list is settled. Raises Removed if this manager waited for that to leave."""
        if self._roster.is_settled and not self._settling.is_leaving:
            return
        was_settled = self._roster.settled_index
        self._settling.tick()
        if self._settling.may_leave:
            raise removed(self._roster)
        if self._roster.settled_index != was_settled:
            self._dismiss_removed()

    def hear_of_lists(self, message: HealthReport) -> None:
        """The commit index and the settled list of a peer, also where no manager can lead."""
        commit, settled = message.commit, message.settled
        if commit is not None and self._leading.leader is None:  # a leader says so itself
            self._learn_of_change(*commit)
        membership = self._roster.membership
        if settled is not None and membership is not None:
            self._roster.settled(min(settled, membership.index))
            self._dismiss_removed()

    def _learn_of_change(self, index: int, term: int) -> None:
        """A member says that the entry (index, term) is committed. It is believed as far as somebody may be needed for
        it: up to the newest change of members in our log."""
        log = self._log
        if not log.holds(index, term):
            return
        for position in range(index - log.base_index, log.commit_index - log.base_index, -1):
            entry, at, its_term = log.entries[position]
            if entry[:2] == entries.CHANGE:
                self._guard.learn_commit(at, its_term)
                return

    # The first start ---------------------------------------------------------------------------------------------

    def form(self) -> None:
        """If there is a founding record now, count by it: our own configuration may have changed since they
        met."""
        if self._forming.tick():
            self._follow_voters()
            for peer in sorted(self._roster.links):
                self._connect_core(peer)
            self._elections.founded(self._context.now, is_alone=self._context.is_alone)
