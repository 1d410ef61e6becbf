"""Managers that the leader was asked to add and that are no members yet: where to dial them, and what came of it.

Not here: whether they may be added (changes.py), dialling (transport.py). Invariant: what is said of a guest is what
happened since it was invited to its present address.
"""

from __future__ import annotations

from typing import Final

GUESTS_MAX: Final = 4
"""Invited at once; a further one takes the place of the oldest. Any member may ask, and each is dialled."""


class Guests:
    """Raft thread or simulator only."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        """Whom to dial: id -> address."""
        self._answers: dict[str, str] = {}

    def invite(self, guest: str, address: str) -> str:
        """Dial it until it is forgotten. Returns a clause that says whether it answers, and as whom."""
        if self.addresses.get(guest) != address:
            self.forget(guest)
            while len(self.addresses) >= GUESTS_MAX:
                self.forget(next(iter(self.addresses)))
            self.addresses[guest] = address
        return self._answers.get(guest, f"{guest} does not answer at {address}")

    def forget(self, guest: str) -> None:
        self.addresses.pop(guest, None)
        self._answers.pop(guest, None)

    def clear(self) -> None:
        self.addresses.clear()
        self._answers.clear()

    def not_reached(self, guest: str, why: str) -> None:
        """A dial got nowhere, or somewhere else."""
        if guest in self.addresses:
            self._answers[guest] = f"{guest} does not answer at {self.addresses[guest]}: {why}"

    def refused(self, guest: str, why: str) -> None:
        """It was reached, and one of the two refuses the other."""
        if guest in self.addresses:
            self._answers[guest] = f"{guest} answers at {self.addresses[guest]} and cannot be added: {why}"
