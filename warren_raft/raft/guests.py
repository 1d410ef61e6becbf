"""Managers that the leader was asked to add and that are no members yet: where to dial them, and what came of it.

Also managers with the id of a member and another directory, as after the loss of a disk: they can be added once that
member was removed. Not here: whether they may be added (changes.py), dialling (transport.py). Invariant: what is said
of a guest is what happened since it was invited to its present address.
"""

from __future__ import annotations

from typing import Final

GUESTS_MAX: Final = 4
"""Invited at once; a further one takes the place of the oldest. Any member may ask, and each is dialled."""
ASKED_SECONDS: Final = 10.0
"""Whoever wants a manager added asks ten times a second. One that nobody asked for in so long is not dialled any more:
it may be another cluster's, and refuse for ever."""
ANOTHER_SECONDS: Final = 15.0
"""A manager that is refused dials again within seconds: one that did not for so long runs no more."""


class Guests:
    """Raft thread or simulator only."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        """Whom to dial: id -> address."""
        self._answers: dict[str, str] = {}
        self._asked_at: dict[str, float] = {}
        self._others_at: dict[str, float] = {}
        """When a manager with a member's id, on another directory than the member's, was last refused."""

    def invite(self, guest: str, address: str, now: float) -> str:
        """Dial it until it is forgotten. Returns a clause that says whether it answers, and as whom."""
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
        """Forget those that nobody asks for any more."""
        for guest in [guest for guest, asked_at in self._asked_at.items() if now - asked_at > ASKED_SECONDS]:
            self.forget(guest)

    def clear(self) -> None:
        for guest in list(self.addresses):
            self.forget(guest)

    def not_reached(self, guest: str, why: str) -> None:
        """A dial got nowhere, or somewhere else."""
        if guest in self.addresses:
            self._answers[guest] = f"{guest} does not answer at {self.addresses[guest]}: {why}"

    def refused(self, guest: str, why: str) -> None:
        """It was reached, and one of the two refuses the other."""
        if guest in self.addresses:
            self._answers[guest] = f"{guest} answers at {self.addresses[guest]} and cannot be added: {why}"

    def met_another(self, member_id: str, now: float) -> None:
        """A manager with this member's id, on another directory than the member's, was refused."""
        self._others_at[member_id] = now

    def has_another(self, member_id: str, now: float) -> bool:
        """Whether that was a moment ago, so that such a manager runs now."""
        return now - self._others_at.get(member_id, -1e9) <= ANOTHER_SECONDS
