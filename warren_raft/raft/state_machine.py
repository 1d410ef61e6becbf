"""The interface of the state machine that consensus uses: apply entries in order, and give the applied index.

Lives here: the protocol, and reading its member list. Not here: an implementation (fsm/machine.py). Invariant: a member
list that no version wrote raises InvariantViolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from warren_raft.errors import InvariantViolation
from warren_raft.raft.membership import Change, Membership
from warren_raft.raft.submit import Outcome


class StateMachine(Protocol):
    """For the raft thread or a simulator only; `applied_index` may be read from any thread."""

    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int: ...
    @property
    def membership(self) -> bytes | None: ...
    @property
    def level(self) -> int:
        """The level of the command set. For any thread."""

    def digest_at(self, index: int) -> bytes | None:
        """The digest of the state after the entry at `index`, the same on every manager; None: it is not known (any
        more)."""

    def problem_of(self, command: bytes, sender: str) -> str:
        """Why a command may not be put into a log; "": every manager of this release can apply it.

        `sender`: the manager that sent the command, by its certificate; "": it is not known, or is not to be checked.
        """

    def apply(self, index: int, term: int, commands: Sequence[bytes]) -> Sequence[Outcome]: ...
    def apply_all(self, index: int, entries: Sequence[tuple[int, Sequence[bytes]]]) -> Sequence[Sequence[Outcome]]:
        """Like `apply` for entries in a row, (term, commands) each, of which `index` is the first; all or none."""

    def apply_membership(self, index: int, term: int, cluster_id: str, membership: bytes, level: int) -> None:
        """Store the list of members, and raise the level of the command set to `level` if it is lower."""

    def settle(self) -> None:
        """Call this after an apply that raised StorageFull, before applied_index is read again. It finds out whether
        the transaction was committed."""


def membership_of(machine: StateMachine) -> Membership | None:
    """The member list in the state. Raises InvariantViolation for bytes that no version wrote. The state's own checks
    exclude damage, so such bytes were made up."""
    blob = machine.membership
    try:
        return Membership.decode(blob) if blob else None
    except ValueError as error:
        raise InvariantViolation(f"the list of members in the state cannot be read: {error}") from None


def apply_membership(
    machine: StateMachine, index: int, term: int, membership: Membership | None, change: Change
) -> None:
    """`membership`: the list after the change."""
    if membership is None:
        machine.apply(index, term, ())
    else:
        machine.apply_membership(index, term, membership.cluster_id, membership.encode(), change.level)
