"""What consensus needs of the state: apply in order, and say how far it is. fsm/machine.py is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from warren_raft.errors import InvariantViolation
from warren_raft.raft.membership import Membership
from warren_raft.raft.submit import Outcome


class StateMachine(Protocol):
    """Raft thread or simulator only; `applied_index` is for any thread."""

    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int: ...
    @property
    def membership(self) -> bytes | None: ...
    def digest_at(self, index: int) -> bytes | None:
        """A digest of the state after an entry, the same on every manager; None where it is not known (any more)."""

    def problem_of(self, command: bytes, sender: str) -> str:
        """Why a command may not be put into a log; "": every manager of this release can apply it.

        `sender`: the manager that wants it there, by its certificate; "": that is not known, or not to be looked at.
        """

    def apply(self, index: int, term: int, commands: Sequence[bytes]) -> Sequence[Outcome]: ...
    def apply_membership(self, index: int, term: int, cluster_id: str, membership: bytes) -> None: ...
    def settle(self) -> None:
        """After an apply that raised StorageFull: see what became of it, before applied_index is read again."""


def membership_of(machine: StateMachine) -> Membership | None:
    """Raises InvariantViolation for a list that no version wrote: a state proves its bytes, so they were made up."""
    blob = machine.membership
    try:
        return Membership.decode(blob) if blob else None
    except ValueError as error:
        raise InvariantViolation(f"the list of members in the state cannot be read: {error}") from None


def apply_membership(machine: StateMachine, index: int, term: int, membership: Membership | None) -> None:
    if membership is None:
        machine.apply(index, term, ())
    else:
        machine.apply_membership(index, term, membership.cluster_id, membership.encode())
