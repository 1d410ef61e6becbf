"""The addresses at which each member can be dialled: the one in the member list, and others that are known of it.

Lives here: addresses that members said of themselves, that others told of them, and that were given at the start; and
which list entries are out of date. Not here: the member list (membership.py), and dialling (transport.py).
Invariant: an address is only a place to dial. The manager that answers there is judged by its hello, like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from warren_raft.config import check_address
from warren_raft.errors import InvalidEntity
from warren_raft.raft.membership import MEMBERS_MAX, TEXT_CHARACTERS, Member

TOLD_MAX: Final = 3
"""Addresses of one member that others told us of and that are dialled, the newest first: each costs a dial while the
member is away."""
PLACES_MAX: Final = 8
"""Addresses of one member that are dialled in turn."""


@dataclass(frozen=True, slots=True)
class Said:
    """An address, and the incarnation of the data directory whose manager has it."""

    incarnation: str
    address: str


class AddressBook:
    """Raft thread or simulator only; `said` may be read from any thread.

    `given`: further addresses by id, from the operator, or said in an earlier run.
    """

    def __init__(self, own_address: str, given: Mapping[str, Sequence[str]]) -> None:
        self._own_address = own_address
        self._given = {id_: tuple(addresses) for id_, addresses in given.items()}
        self.said: Mapping[str, Said] = {}
        """The newest address that each member said it has, id -> Said. Replaced as a whole."""
        self._told: dict[str, dict[str, Said]] = {}
        """Of each member, by the member that told us; the newest first."""
        self.version = 0
        """Goes up with every change."""

    def heard(self, member: Member, incarnation: str, address: str) -> None:
        """A manager said its address itself, when its link came up. Kept if it is that member's manager."""
        said = Said(incarnation, address)
        if incarnation == member.incarnation and self.said.get(member.id) != said and is_address(address):
            self.said = {**self.said, member.id: said}
            self.version += 1

    def told(self, teller: str, entries: Iterable[tuple[str, Said]], members: Mapping[str, Member]) -> None:
        """A member told us the addresses that others had said to it. Those of non-members are not kept, and one of each
        teller: it cannot push out those that others told."""
        for id_, said in entries:
            member = members.get(id_)
            if member is None or member.incarnation != said.incarnation or not is_address(said.address):
                continue
            known = self._told.setdefault(id_, {})
            if known.get(teller) != said:
                known.pop(teller, None)
                self._told[id_] = {teller: said, **known}
                self.version += 1

    def members_changed(self, before: Mapping[str, Member], after: Mapping[str, Member]) -> None:
        """There is a new list: forget addresses of managers that left it, and those that a new entry replaces."""
        moved = {id_ for id_, member in after.items() if id_ in before and before[id_].address != member.address}
        self.said = {
            id_: said
            for id_, said in self.said.items()
            if id_ in after and (id_ not in moved or said.address == after[id_].address)
        }
        self._told = {
            id_: {teller: said for teller, said in told.items() if teller in after}
            for id_, told in self._told.items()
            if id_ in after
        }
        self.version += 1

    def places(self, member: Member) -> tuple[str, ...]:
        """The member's addresses, in the order in which they are tried: the one it said last, the list's, those that
        others told, those that were given at the start."""
        said, told = self._said_by(member), self._told_of(member)
        places = dict.fromkeys([*said, member.address, *told, *self._given.get(member.id, ())])
        if len(places) > 1:
            places.pop(self._own_address, None)  # it was the member's once, and we would meet ourselves there
        return tuple(places)[:PLACES_MAX]

    def _said_by(self, member: Member) -> list[str]:
        said = self.said.get(member.id)
        return [said.address] if said is not None and said.incarnation == member.incarnation else []

    def _told_of(self, member: Member) -> list[str]:
        told = [each for each in self._told.get(member.id, {}).values() if each.incarnation == member.incarnation]
        return list(dict.fromkeys(each.address for each in told))[:TOLD_MAX]

    def differing(self, members: Iterable[Member]) -> dict[str, str]:
        """The members that said they have another address than the list has for them: id -> that address."""
        found = {}
        for member in members:
            said = self.said.get(member.id)
            if said is not None and said.incarnation == member.incarnation and said.address != member.address:
                found[member.id] = said.address
        return found

    def to_keep(self, before: Mapping[str, str], members: Mapping[str, Member]) -> dict[str, str]:
        """For the next start: the address of each member that is not at its address in the list, id -> address.

        `before`: what was kept so far; it holds for members that were not heard of since. For any thread.
        """
        kept = {}
        for member in members.values():
            known = [*self._said_by(member), *self._told_of(member), before.get(member.id, member.address)]
            address = known[0]
            if address not in (member.address, self._own_address):
                kept[member.id] = address
        return kept

    def to_tell(self, members: Mapping[str, Member]) -> list[tuple[str, str, str]]:
        """For the other members: (id, incarnation, address) of each member that said it has another address."""
        differing = self.differing(members.values())
        return [(id_, members[id_].incarnation, address) for id_, address in sorted(differing.items())]


def is_address(text: str) -> bool:
    """Whether managers may use this address. A peer may have said it."""
    try:
        check_address(text)
    except InvalidEntity:
        return False
    return True


def are_told(value: Any) -> bool:
    """Whether a peer sent a list as `to_tell` makes it: rows of three texts, no more than a cluster has members."""
    return type(value) is list and len(value) <= MEMBERS_MAX and all(map(_is_row, value))


def _is_row(row: Any) -> bool:
    texts = type(row) is list and len(row) == 3 and all(type(text) is str for text in row)
    return texts and all(0 < len(text) <= TEXT_CHARACTERS for text in row)
