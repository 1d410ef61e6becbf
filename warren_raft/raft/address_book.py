"""The addresses at which each member can be dialled: its address in the member list, and others from three sources.

Lives here: addresses that a member said itself, that other members told, and that were given at the start; and which
addresses in the list are out of date. Not here: the member list (membership.py), and dialling (links/transport.py).
Invariant: an address is only a place to dial. The manager that answers there is judged by its hello, like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from warren_raft.config import MEMBERS_MAX, check_address
from warren_raft.errors import InvalidConfig
from warren_raft.raft.membership import TEXT_CHARACTERS, Member

TOLD_MAX: Final = 3
"""The most addresses of one member that are dialled because other members told them, the newest first. Each costs a
dial while the member is away."""
PLACES_MAX: Final = 8
"""The most addresses of one member that are dialled in turn."""


EARLIER: Final = ""
"""In the place of a member that told an address: an earlier list."""


@dataclass(frozen=True, slots=True)
class Said:
    """The address of a manager, and the incarnation of its data directory."""

    incarnation: str
    address: str


class AddressBook:
    """The known addresses of all members. For the raft thread or the simulator; any thread may read `said`.

    `given`: further addresses by id, from the operator, or said by members in an earlier run.
    """

    def __init__(self, own_address: str, given: Mapping[str, Sequence[str]]) -> None:
        self._own_address = own_address
        self._given = {id_: tuple(addresses) for id_, addresses in given.items()}
        self.said: Mapping[str, Said] = {}
        """Id -> the newest address that the member said itself. Replaced as a whole."""
        self._told: dict[str, dict[str, Said]] = {}
        """Id -> the addresses that other members told, by teller, the newest first. Teller EARLIER: the address that it
        had before the list got another one. Perhaps the member has not moved there yet. The inner maps are never
        changed, but replaced: other threads read them (`to_keep`)."""
        self.version = 0
        """Increases with every change."""

    def heard(self, member: Member, incarnation: str, address: str) -> None:
        """A manager said its own address when its link came up. The address is kept if the manager's incarnation is the
        member's."""
        said = Said(incarnation, address)
        if incarnation == member.incarnation and self.said.get(member.id) != said and is_address(address):
            self.said = {**self.said, member.id: said}
            if EARLIER in self._told.get(member.id, {}):
                self._told[member.id] = _without(self._told[member.id], EARLIER)
            self.version += 1

    def told(self, teller: str, entries: Iterable[tuple[str, Said]], members: Mapping[str, Member]) -> None:
        """A member told us the addresses that other members had said to it. Addresses of non-members are not kept. One
        address of each teller is kept, so that a teller cannot push out the addresses of other tellers."""
        for id_, said in entries:
            member = members.get(id_)
            if member is None or member.incarnation != said.incarnation or not is_address(said.address):
                continue
            known = self._told.get(id_, {})
            if known.get(teller) != said:
                self._told[id_] = {teller: said, **_without(known, teller)}
                self.version += 1

    def members_changed(self, before: Mapping[str, Member], after: Mapping[str, Member]) -> None:
        """There is a new list. Forget the addresses of members that left it. An address that the list replaces counts
        as told: it is dialled after the one in the list."""
        moved = {id_ for id_, member in after.items() if id_ in before and before[id_].address != member.address}
        for id_ in moved:
            place = self._said_by(before[id_]) or [before[id_].address]
            if place[0] != after[id_].address:
                earlier = Said(after[id_].incarnation, place[0])
                self._told[id_] = {EARLIER: earlier, **_without(self._told.get(id_, {}), EARLIER)}
        self.said = {
            id_: said
            for id_, said in self.said.items()
            if id_ in after and (id_ not in moved or said.address == after[id_].address)
        }
        self._told = {
            id_: {teller: said for teller, said in told.items() if teller in after or teller == EARLIER}
            for id_, told in self._told.items()
            if id_ in after
        }
        self.version += 1

    def places(self, member: Member) -> tuple[str, ...]:
        """The member's addresses, in the order in which they are dialled: the address that it said last, the address in
        the list, those that other members told, those that were given at the start."""
        said, told = self._said_by(member), self._told_of(member)
        places = dict.fromkeys([*said, member.address, *told, *self._given.get(member.id, ())])
        if len(places) > 1:
            places.pop(self._own_address, None)  # the member had it once; now we would dial ourselves there
        return tuple(places)[:PLACES_MAX]

    def _said_by(self, member: Member) -> list[str]:
        said = self.said.get(member.id)
        return [said.address] if said is not None and said.incarnation == member.incarnation else []

    def _told_of(self, member: Member) -> list[str]:
        told = [each for each in self._told.get(member.id, {}).values() if each.incarnation == member.incarnation]
        return list(dict.fromkeys(each.address for each in told))[:TOLD_MAX]

    def differing(self, members: Iterable[Member]) -> dict[str, str]:
        """Id -> address, for each member that said another address than the list has for it."""
        found = {}
        for member in members:
            said = self.said.get(member.id)
            if said is not None and said.incarnation == member.incarnation and said.address != member.address:
                found[member.id] = said.address
        return found

    def to_keep(self, before: Mapping[str, str], members: Mapping[str, Member]) -> dict[str, str]:
        """For the next start: id -> address of each member that is not at its address in the list.

        `before`: the addresses that were kept so far. They hold for members that have said no address since, and about
        which no member told any. For any thread.
        """
        kept = {}
        for member in members.values():
            known = [*self._said_by(member), *self._told_of(member), before.get(member.id, member.address)]
            address = known[0]
            if address not in (member.address, self._own_address):
                kept[member.id] = address
        return kept

    def to_tell(self, members: Mapping[str, Member]) -> list[tuple[str, str, str]]:
        """For the other members: (id, incarnation, address) of each member that said another address than the list
        has."""
        differing = self.differing(members.values())
        return [(id_, members[id_].incarnation, address) for id_, address in sorted(differing.items())]


def _without(told: dict[str, Said], teller: str) -> dict[str, Said]:
    return {other: said for other, said in told.items() if other != teller}


def is_address(text: str) -> bool:
    """Whether managers may use this address. A peer may have said it."""
    try:
        check_address(text)
    except InvalidConfig:
        return False
    return True


def are_told(value: object) -> bool:
    """Whether a peer's value is a list as `to_tell` makes it: rows of three texts, at most one for each member."""
    return type(value) is list and len(value) <= MEMBERS_MAX and all(map(_is_row, value))


def _is_row(row: Any) -> bool:
    texts = type(row) is list and len(row) == 3 and all(type(text) is str for text in row)
    return texts and all(0 < len(text) <= TEXT_CHARACTERS for text in row)
