"""Which peers the transport is to dial, at which addresses, and what operators and members hear of addresses.

Lives here: the wish to have a link, and addresses that differ from the list. Not here: the addresses that are known of
a member (address_book.py), the links that there are (roster.py), and dialling (links/transport.py). Invariant: an
address makes no manager a member; it is only a place to dial.
"""

from __future__ import annotations

from typing import Final

from warren_raft.raft.address_book import Said
from warren_raft.raft.context import Context
from warren_raft.raft.effects import Dial
from warren_raft.raft.membership import Member
from warren_raft.raft.messages import Addresses

DIAL_ANYWAY_SECONDS: Final = 1.0
"""The manager with the smaller id dials the one with the larger id. After this time without a link the larger one dials
too: the smaller one may not know it yet (it is a joiner), or may not know its new address."""


class Dialling:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._node_id = context.node_id
        self._roster = context.roster
        self._book = context.roster.book
        self._outbox = context.outbox
        self._alarms = context.alarms
        self._dialled: dict[str, tuple[str, ...]] | None = None
        self._unlinked_since: dict[str, float] = {}
        self._places: dict[str, tuple[str, ...]] = {}
        self._places_version = -1
        self._told_version = -1
        """The version of the address book that was sent over the present links."""
        self._told_rows: tuple[list[tuple[str, str, str]], dict[str, int]] = ([], {})
        """The addresses that were sent last, and the links over which they were sent."""

    def tick(self) -> None:
        """Bring the transport, the members and the operator up to date."""
        self._dial(self._peers_to_dial())
        self._tell()

    def stop(self) -> None:
        """This manager must stop: dial nobody any more."""
        self._dial({})

    def link_up(self, peer: str) -> None:
        self._unlinked_since.pop(peer, None)
        self._told_version = -1

    # Whom to dial --------------------------------------------------------------------------------------------------

    def _dial(self, peers: dict[str, tuple[str, ...]]) -> None:
        if peers != self._dialled:
            self._dialled = peers
            self._outbox.add(Dial(peers))

    def _peers_to_dial(self) -> dict[str, tuple[str, ...]]:
        """The peers that the transport is to keep or make links to: id -> addresses, in the order to try them."""
        roster, now = self._roster, self._context.now
        wanted: dict[str, tuple[str, ...]] = {id_: (address,) for id_, address in roster.guests.addresses.items()}
        for member in roster.members.values():
            if member.id == self._node_id:
                continue
            linked = member.id in roster.links  # it stays in the answer, or the transport would close its link
            since = now if linked else self._unlinked_since.setdefault(member.id, now)
            if linked or member.id > self._node_id or now - since >= DIAL_ANYWAY_SECONDS:
                wanted[member.id] = self._places_of(member)
        return wanted

    def _places_of(self, member: Member) -> tuple[str, ...]:
        """The addresses of a member. Each tick asks for them, so they are kept until the address book changes."""
        if self._places_version != self._book.version:
            self._places_version = self._book.version
            self._places.clear()
        places = self._places.get(member.id)
        if places is None:
            places = self._places[member.id] = self._book.places(member)
        return places

    # Addresses that differ from the list -----------------------------------------------------------------------------

    def on_addresses(self, peer: str, message: Addresses) -> None:
        """A member tells the addresses of other members. This manager dials them; they make no manager a member."""
        entries = [(id_, Said(incarnation, address)) for id_, incarnation, address in message.said]
        self._book.told(peer, entries, self._roster.members)

    def _tell(self) -> None:
        """Tell each member which other members have other addresses than the list says, and the operator too. So two
        members that have moved find each other after the third one, which knew both addresses, has died."""
        if self._told_version == self._book.version:
            return
        self._told_version = self._book.version
        self._tell_members()
        differing = self._book.differing(self._roster.members.values())
        self._alarms.clear_others("address-differs", differing.keys())
        for id_, address in differing.items():
            self._alarms.raise_alarm("address-differs", self._text(id_, address), subject=id_)

    def _tell_members(self) -> None:
        roster = self._roster
        told = [row for row in self._book.to_tell(roster.members) if row[0] != self._node_id]
        linked = {peer: link.number for peer, link in roster.links.items()}
        is_news = (told, linked) != self._told_rows  # addresses that other members told us are not passed on
        self._told_rows = (told, linked)
        if told and is_news and roster.membership is not None:
            for peer in sorted(roster.links):
                if roster.counts(peer):
                    self._outbox.send(peer, Addresses(told))

    def _text(self, id_: str, address: str) -> str:
        """For the operator: the member says that it has this address, and the command to type."""
        listed = self._roster.members[id_].address
        says = "listens on" if id_ == self._node_id else "says that its address is"
        return (
            f"{id_} {says} {address}, but the member list has {listed} for it; if "
            f"{address} is a mistake, start {id_} with {listed}; if not, "
            f"type: warren-raft members update {id_}={address}"
        )
