"""The first start: how blank managers find out that all of them expect the same members, and record them.

DESIGN.md ("The first start") has the argument why no two directories ever record different members. Lives here: this
manager's declaration, those of its peers, and the decision to record. Not here: the list that the first leader makes
of the record (changes.py). Invariant: a manager declares nothing any more once it has recorded, and tells its record
only when it is durable.
"""

from __future__ import annotations

from collections.abc import Mapping

from warren_raft.certificates.identity import LOCAL_TRUST_DOMAIN
from warren_raft.raft.context import Context
from warren_raft.raft.core import Core
from warren_raft.raft.membership import Founding, Hello, Member
from warren_raft.raft.messages import FoundingRecord, FoundingView, PeerFault
from warren_raft.raft.refusals import Refusals
from warren_raft.raft.roster import Link


class Forming:
    """For the raft thread or a simulator only; `waits` may be read from any thread."""

    def __init__(self, context: Context, core: Core, refusals: Refusals) -> None:
        self._node_id = context.node_id
        self._log = context.log
        self._roster = context.roster
        self._outbox = context.outbox
        self._alarms = context.alarms
        self._core = core
        self._refusals = refusals
        self._bootstrap = context.settings.bootstrap
        self._is_told = self._roster.founding is not None
        self._declared: dict[str, str] = {}
        """The view that this blank manager declared last (id -> incarnation); empty before its first declaration."""
        self.waits = ""
        """A sentence for people about the managers that the first start waits for; empty once the founders are
        recorded."""

    def tick(self) -> bool:
        """One step towards the founding record. True, once: the record is made, by us or on the word of another
        manager."""
        self._found()
        if self._is_told or self._roster.founding is None:
            return False
        self._is_told = True
        self._alarms.clear_others("initial-members-differ")
        return True

    def _found(self) -> None:
        """Each blank manager declares the managers that it has met, and the initial members that it was told to expect.
        If all initial members have links, are blank, and declare the same as this manager, it records that view. The
        record is durable before any vote, because votes wait for the log."""
        roster = self._roster
        if not roster.is_forming:
            self.waits = ""
            return
        if roster.configured.keys() == {self._node_id} and not (self._bootstrap or roster.origin):
            self.waits = (
                f"{self._node_id} knows no other member and begins no cluster: to add it to a cluster, type on a "
                f"member: warren-raft members add {self._node_id}={roster.address}; or start it with --bootstrap as a "
                "cluster of one"
            )
            return
        view = self._view()
        if view != self._declared:
            self._declared = view
            for peer in sorted(roster.links):
                self._declare_to(peer)
        missing = sorted(roster.configured.keys() - view.keys())
        unsure = sorted(peer for peer in view if peer != self._node_id and not self._agrees(roster.links[peer]))
        # A restored manager has a sentence of its own about the members that were not restored in the same way.
        refused = "" if roster.origin else self._refusals.why_refused(missing)
        self.waits = refused or self._joining() or self._waiting_for(missing, unsure)
        if missing or unsure or view.keys() != roster.configured.keys():
            return
        members = {id_: Member(id_, roster.configured[id_], inc, voter=True) for id_, inc in view.items()}
        self._record(Founding(members, roster.origin))

    def _view(self) -> dict[str, str]:
        """The blank managers of our origin that we have met, and ourselves: id -> incarnation."""
        roster = self._roster
        view = {self._node_id: self._log.incarnation}
        for peer, link in roster.links.items():
            hello = link.hello
            if peer in roster.configured and hello.blank and hello.cluster_id is None and hello.origin == roster.origin:
                view[peer] = link.hello.incarnation
        return view

    def _joining(self) -> str:
        """The sentence of a blank manager that has a link with a member of a cluster; empty if it has none."""
        roster = self._roster
        members = sorted(peer for peer, link in roster.links.items() if link.hello.cluster_id is not None)
        if not members:
            return ""
        return (
            f"joining: {self._node_id} waits until the cluster of {', '.join(members)} adds it; if it is not added by "
            f"itself, type there: warren-raft members add {self._node_id}={roster.address}"
        )

    def _waiting_for(self, missing: list[str], unsure: list[str]) -> str:
        if not missing:
            return f"the cluster is not formed: {', '.join(unsure)} did not meet all initial members" if unsure else ""
        text = f"the cluster is not formed yet: {self._node_id} waits for {', '.join(missing)}" + (
            f", to be restored from the same file with the same members ({', '.join(sorted(self._roster.configured))})"
            if self._roster.origin
            else ""
        )
        if self._roster.trust_domain in ("", LOCAL_TRUST_DOMAIN):
            return text
        # The members are those of join files, and a CA keeps a manager in them until it is told to forget it.
        id_ = missing[0] if len(missing) == 1 else "ID"
        which = id_ if len(missing) == 1 else "one of them"
        return f"{text}; if {which} was removed: issue the join files with --forget {id_}"

    # Declarations --------------------------------------------------------------------------------------------------

    def link_up(self, peer: str, hello: Hello) -> None:
        """A peer has a link. Raises ValueError for a hello with bytes that are not a founding record."""
        if self._declared and self._roster.is_forming:
            self._declare_to(peer)
        if self._roster.membership is None:
            self._tell(peer)  # the hello may be older than the record
        self._adopt(hello.founding, peer)

    def _declare_to(self, peer: str) -> None:
        self._outbox.send(peer, FoundingView(view=self._declared, configured=self._roster.configured))

    def _agrees(self, link: Link) -> bool:
        return link.view == self._declared and link.configured == self._roster.configured

    def on_founding_view(self, peer: str, message: FoundingView) -> None:
        complaint = self._receive_view(peer, message.view, message.configured)
        if complaint is None:
            self._alarms.clear_alarm("initial-members-differ", peer)
        else:
            subject = self._refusals.subject(peer)
            self._alarms.raise_alarm("initial-members-differ", complaint, subject=subject)

    def _receive_view(self, peer: str, view: Mapping[str, str], configured: Mapping[str, str]) -> str | None:
        """Take a peer's declaration while the cluster forms. Returns a line for the operator if the peer has other
        initial members, and so can never agree with this manager."""
        roster = self._roster
        link = roster.links.get(peer)
        if link is None:
            return None
        link.view, link.configured = view, configured
        if configured == roster.configured or not roster.is_forming or link.hello.cluster_id is not None:
            return None
        ours, theirs = (", ".join(f"{i}={a}" for i, a in sorted(m.items())) for m in (roster.configured, configured))
        return (
            f"{peer} was started with other initial members ({theirs}) than {self._node_id} ({ours}): they form no "
            "cluster; start both with the same initial members"
        )

    # The record ----------------------------------------------------------------------------------------------------

    def on_founding(self, peer: str, message: FoundingRecord) -> None:
        """A founding member has recorded the view that this manager is part of."""
        try:
            self._adopt(message.founding, peer)
        except ValueError as error:
            raise PeerFault(str(error)) from error

    def _adopt(self, data: bytes, peer: str) -> None:
        """Record a peer's founding record, if it names exactly the initial members that the operator named, this
        directory, and the present incarnation of each initial member with a link. So a hostile peer that invents a
        record could leave a directory out, but could not put a directory of its own in under another manager's id."""
        roster = self._roster
        if not data or not roster.is_forming:
            return
        founding = Founding.decode(data)
        met = {self._node_id: self._log.incarnation}
        met |= {id_: link.hello.incarnation for id_, link in roster.links.items() if id_ in roster.configured}
        named = {id_: member.incarnation for id_, member in founding.members.items()}
        is_ours = named.keys() == roster.configured.keys() and all(named[id_] == met[id_] for id_ in met)
        if is_ours and peer in named and founding.origin == roster.origin:
            self._record(founding)

    def _record(self, founding: Founding) -> None:
        if self._log.is_untouched and self._core.term > 0:
            # The initial members elect the first leader in terms of their own: earlier claims are void.
            self._core.go_back(0)
        self._roster.record(founding)
        for peer in sorted(self._roster.links):
            self._tell(peer)

    def _tell(self, peer: str) -> None:
        founding = self._roster.founding
        if founding is not None:
            self._outbox.send_when_synced(peer, FoundingRecord(founding.encode()))
