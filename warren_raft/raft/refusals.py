"""The refusals and faults of peers: which are alarms, and which stop this manager.

Lives here: refusals of this manager and by this manager, messages that no manager sends, and members at other addresses
than the list has. Not here: whether a peer is let in (roster.py, membership.py). Invariant: the word of a single member
stops no manager.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from warren_raft.alarms import AlarmName
from warren_raft.certificates.identity import LOCAL_TRUST_DOMAIN, Identity
from warren_raft.errors import RefusedForSafety
from warren_raft.raft import entries
from warren_raft.raft.context import Context
from warren_raft.raft.membership import (
    NOT_LISTED,
    OLDER_RELEASE,
    OTHER_CLUSTER,
    OTHER_ORIGIN,
    OTHER_TRUST_DOMAIN,
    REMOVE,
    REMOVED,
    REMOVED_CERTIFICATE,
    UNKNOWN_DIRECTORY,
    Change,
)
from warren_raft.raft.refusal import WRONG_NODE, Refusal
from warren_raft.raft.roster import Roster
from warren_raft.raft.way_back import way_back

REFUSAL_SECONDS: Final = 15.0
"""A peer that refuses is dialled again within seconds: a refusal that was not repeated for this long is over."""
FAULT_SECONDS: Final = 300.0
"""A peer that sent an impossible message is under suspicion for this long."""
STRANGERS: Final = "strangers"
"""The subject of alarms about managers that are not members."""
NOTED_REFUSALS: Final = frozenset(
    {OLDER_RELEASE, OTHER_CLUSTER, OTHER_ORIGIN, OTHER_TRUST_DOMAIN, REMOVED_CERTIFICATE, UNKNOWN_DIRECTORY}
)
"""Reasons for which a member is not let in that need an operator here."""
NOTED_OF_OTHERS: Final = NOTED_REFUSALS | {NOT_LISTED, REMOVED}
"""The same for a manager that is not a member, with a certificate of the cluster's CA: one that was removed, or that
belonged to the cluster before `recover`."""
OTHERS_NAMED: Final = 4
"""The most subjects of `member-not-let-in` that are not members. All further ones share the subject STRANGERS, so that
the places of members stay free."""
LEAVING_SECONDS: Final = 10.0
"""A manager that was removed while it ran hears that within this time, and stops. It is no matter for an operator."""


_RENEW: Final = dict.fromkeys(
    ("expired", "not_yet_valid"),
    "; if both clocks are right, type on the CA's host: warren-raft cert issue {id} --ca DIR; and on the host of {id}: "
    "warren-raft cert renew {id}.join --data-dir DIR",
)
"""Code of a refusal of a certificate -> the advice."""


class Removed(RefusedForSafety):
    """This manager stopped because it is no longer a member."""


def removed(roster: Roster) -> Removed:
    return Removed(
        f"{roster.node_id} was removed from the cluster and stops; its data directory cannot be used again. To bring "
        f"it back: {way_back(roster.node_id, roster.address, roster.trust_domain, is_removed=True)}"
    )


class Refusals:
    """Raft thread or simulator only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._node_id = context.node_id
        self._roster = context.roster
        self._log = context.log
        self._outbox = context.outbox
        self._alarms = context.alarms
        self._foreign: set[str] = set()
        """Members that turned out to be of another cluster, and have had no link since."""
        self._removed_by: set[str] = set()
        """Members that refused this manager as removed, and have not let it in since."""
        self._refused_by: dict[str, tuple[float, str]] = {}
        """Members that refuse this manager -> when they did last, and why. Only for people."""
        self._dismissed: dict[str, float] = {}
        """Peers whose link this manager closed because they were removed -> when; each for LEAVING_SECONDS."""
        self._faulty: dict[str, str] = {}
        """Members with an alarm "peer-fault" -> the incarnation that the list had for them."""

    def link_up(self, peer: str) -> None:
        self._refused_by.pop(peer, None)
        self._removed_by.discard(peer)
        self._foreign.discard(peer)
        self._alarms.clear_alarm("refused-by-member", peer)
        self._alarms.clear_alarm("member-not-let-in", peer)

    # Refusals ------------------------------------------------------------------------------------------------------

    def judged(self, peer: str, refusal: Refusal, identity: Identity | None, now: float) -> None:
        """This manager does not let a peer in, which says that it is `peer`."""
        if identity is not None and not self._roster.is_revoked(identity):
            self._note_foreign(identity.node_id, refusal)
        self._roster.guests.refused(peer, refusal.text)
        self._roster.no_link(peer, f"this manager refuses it: {refusal.text}")
        if peer not in self._roster.members or refusal.code == REMOVED:
            self._judged_other(peer, refusal, identity, now)
            return
        if refusal.code not in NOTED_REFUSALS:
            return
        if refusal.code == UNKNOWN_DIRECTORY:
            if self._roster.membership is None or self._roster.connected(peer):
                return  # nobody knows the directories yet; or a stranger has the id of a member that works
            self._roster.guests.met_another(peer, now)
            self._fault_over(peer)  # it was another directory's
        self._note("member-not-let-in", peer, f"{peer} is not let in: {refusal.text}")

    def _judged_other(self, peer: str, refusal: Refusal, identity: Identity | None, now: float) -> None:
        """A manager that is not a member, or whose directory was removed, is not let in. A stranger raises no alarm:
        the certificate has to be one of the cluster's CA, and the id is the one in it."""
        if identity is None or identity.node_id != peer or refusal.code not in NOTED_OF_OTHERS:
            return
        if self._roster.membership is None or now - self._dismissed.get(peer, -1e9) < LEAVING_SECONDS:
            return
        told = {alarm.subject for alarm in self._alarms.active if alarm.name == "member-not-let-in"}
        others = told - self._roster.members.keys() - {STRANGERS}
        text = f"{peer} is not let in: {refusal.text}"
        if refusal.code == REMOVED:
            way = way_back(peer, "", identity.trust_domain, is_removed=True)
            text = f"{text}; stop it, or, to bring it back: {way}"
        is_named = peer in self._roster.members or peer in others or len(others) < OTHERS_NAMED
        self._note_as("member-not-let-in", peer if is_named else STRANGERS, text)

    def dismissed(self, peer: str, now: float) -> None:
        """This manager closes the link to a peer that was removed. The peer comes back once, hears that, and stops."""
        self._dismissed = {id_: at for id_, at in self._dismissed.items() if now - at < LEAVING_SECONDS}
        self._dismissed[peer] = now

    def heard(
        self, peer: str, refusal: Refusal, identity: Identity | None, *, applied_index: int, is_leaving: bool
    ) -> None:
        """A peer refuses this manager. Raises Removed if that, with earlier refusals by others, proves a removal.

        `is_leaving`: this manager has applied its own removal.
        """
        self._roster.guests.refused(peer, refusal.text)
        if refusal.code != WRONG_NODE:  # it looked for another manager here, and its own log says so
            self._roster.no_link(peer, f"it refuses this manager: {refusal.text}")
            if peer in self._roster.members:
                self._refused_by[peer] = self._context.now, refusal.text
            self._note("refused-by-member", peer, f"{peer} refuses this manager: {refusal.text}")
        if self._roster.is_revoked(identity):
            return  # the certificate was stolen, or is that of a removed member: its holder's word counts for nothing
        if refusal.code == REMOVED and peer in self._roster.voters:
            self._removed_by.add(peer)
            if is_leaving or self._log_removes_us(applied_index) or self._are_enough(self._removed_by):
                raise removed(self._roster)
        self._note_foreign(peer, refusal)

    def not_reached(self, peer: str, why: str, refusal: Refusal | None) -> None:
        """A dial of a peer failed. `refusal`: this manager does not accept the peer's certificate."""
        self._roster.no_link(peer, why)
        if refusal is None or peer not in self._roster.members or self._roster.connected(peer):
            return
        advice = _RENEW.get(refusal.code, "").format(id=peer) if self._roster.trust_domain != LOCAL_TRUST_DOMAIN else ""
        self._note("member-not-let-in", peer, f"{peer} is not let in: {refusal.text}{advice}")

    def why_refused(self, peers: Collection[str]) -> str:
        """A sentence about those of the peers that refuse this manager now; empty if none does."""
        since = self._context.now - REFUSAL_SECONDS
        reasons = {id_: text for id_, (at, text) in sorted(self._refused_by.items()) if id_ in peers and at >= since}
        if not reasons:
            return ""
        verb = "refuses" if len(reasons) == 1 else "refuse"
        return f"{', '.join(reasons)} {verb} {self._node_id}: {next(iter(reasons.values()))}"

    def _log_removes_us(self, applied_index: int) -> bool:
        """Whether an entry that is not applied yet removes this directory: this manager acknowledged that entry, and
        may not have heard that it is committed."""
        own = (REMOVE, self._node_id, self._log.incarnation)
        first = max(applied_index - self._log.base_index, 0) + 1
        contents = (entries.decode(entry) for entry, _, _ in self._log.entries[first:] if entry[:2] == entries.CHANGE)
        changes = (content for content in contents if isinstance(content, Change))
        return any((change.verb, change.id, change.incarnation) == own for change in changes)

    def _are_enough(self, members: set[str]) -> bool:
        """Whether these are a majority of the other voters, and more than one: a single member's word stops no manager,
        also in a cluster of two."""
        others = self._roster.voters - {self._node_id}
        count = len(members & others)
        return count > 1 and count * 2 > len(others)

    def _note(self, name: AlarmName, peer: str, text: str) -> None:
        self._note_as(name, self.subject(peer), text)

    def _note_as(self, name: AlarmName, subject: str, text: str) -> None:
        self._alarms.raise_alarm(name, text, subject=subject, ends_after_seconds=REFUSAL_SECONDS)

    def _note_foreign(self, peer: str, refusal: Refusal) -> None:
        if refusal.code == OTHER_CLUSTER and peer in self._roster.members and self._roster.membership is not None:
            self._foreign.add(peer)

    def check_foreign(self, *, is_ready: bool) -> None:
        """A manager that was started on the directory of another cluster would wait for ever for that cluster.

        Raises RefusedForSafety when a majority of the other voters has turned out to be of another cluster. A manager
        that has been ready since its start goes on.
        """
        foreign = self._foreign & self._roster.voters - self._roster.links.keys()
        if not is_ready and self._are_enough(foreign):
            raise RefusedForSafety(
                f"the data directory of {self._node_id} belongs to cluster {self._roster.cluster_id}, and "
                f"{', '.join(sorted(foreign))} to another; start it among its own members, or on an empty directory"
            )

    # Faults and addresses --------------------------------------------------------------------------------------------

    def drop(self, peer: str, reason: str) -> None:
        """A peer sent a message that no manager sends: its link is closed, with an alarm."""
        if peer in self._roster.links:
            subject = self.subject(peer)
            self._alarms.raise_alarm("peer-fault", reason, subject=subject, ends_after_seconds=FAULT_SECONDS)
            if subject in self._roster.members:
                self._faulty[subject] = self._roster.members[subject].incarnation
            self._outbox.close_link(peer, reason)

    def list_changed(self) -> None:
        """The fault of a directory that is no longer a member's is over."""
        members = self._roster.members
        for id_, incarnation in list(self._faulty.items()):
            if id_ not in members or members[id_].incarnation != incarnation:
                self._fault_over(id_)

    def _fault_over(self, id_: str) -> None:
        if self._faulty.pop(id_, None) is not None:
            self._alarms.clear_alarm("peer-fault", id_)

    def subject(self, peer: str) -> str:
        """The subject of an alarm about a peer. Alarms are bounded in number: strangers share one place, so that they
        cannot take the places of members."""
        roster = self._roster
        return peer if peer in roster.members or peer in roster.guests.addresses else STRANGERS
