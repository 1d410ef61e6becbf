"""Managers that the leader was asked to add and that are not members yet: their addresses, and the results of dialling.

Also here: managers with the id of a member and another directory, as after the loss of a disk. They can be added after
that member was removed. Not here: whether a guest may be added (changes.py), dialling (links/transport.py). Invariant:
the text about a guest tells only events since it was invited at its present address.
"""

from __future__ import annotations

from typing import Final

GUESTS_MAX: Final = 4
"""Guests invited at once; a further guest replaces the oldest. Any member may ask, and each guest is dialled."""
ASKED_SECONDS: Final = 10.0
"""A manager that wants a guest added asks ten times a second. After this time without a request the guest is not
dialled any more: it may belong to another cluster, and refuse for ever."""
ANOTHER_SECONDS: Final = 15.0
"""A manager that is refused dials again within seconds. If it does not for this long, it does not run any more."""


class Guests:
    """For the raft thread or a simulator only."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        """The guests to dial: id -> address."""
        self._answers: dict[str, str] = {}
        self._asked_at: dict[str, float] = {}
        self._others_at: dict[str, float] = {}
        """Member's id -> when a manager with this id and another directory was last refused."""

    def invite(self, guest: str, address: str, now: float) -> str:
        """Have the guest dialled until it is forgotten. Returns a clause for people about its answer."""
        if self.addresses.get(guest) != address:
            self.forget(guest)
            while len(self.addresses) >= GUESTS_MAX:
                self.forget(next(iter(self.addresses)))
            self.addresses[guest] = address
        self._asked_at[guest] = now
        return self._answers.get(guest, f"{guest} does not answer at {address}")

    def forget(self, guest: str) -> None:
        self.addresses.pop(guest, None)
        self._answers.pop(guest, None)
        self._asked_at.pop(guest, None)

    def expire(self, now: float) -> None:
        """Forget the guests that no manager asks for any more."""
        for guest in [guest for guest, asked_at in self._asked_at.items() if now - asked_at > ASKED_SECONDS]:
            self.forget(guest)

    def clear(self) -> None:
        for guest in list(self.addresses):
            self.forget(guest)

    def not_reached(self, guest: str, why: str) -> None:
        """A dial did not reach the guest: no manager answered, or another manager."""
        if guest in self.addresses:
            self._answers[guest] = f"{guest} does not answer at {self.addresses[guest]}: {why}"

    def refused(self, guest: str, why: str) -> None:
        """The guest was reached, and it refused this manager, or this manager refused it."""
        if guest in self.addresses:
            self._answers[guest] = f"{guest} answers at {self.addresses[guest]} and cannot be added: {why}"

    def met_another(self, member_id: str, now: float) -> None:
        """A manager with this member's id and another directory was refused."""
        self._others_at[member_id] = now

    def has_another(self, member_id: str, now: float) -> bool:
        """Whether a manager with this member's id and another directory runs: it was refused a moment ago."""
        return now - self._others_at.get(member_id, -1e9) <= ANOTHER_SECONDS
