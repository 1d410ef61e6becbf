"""Which commands and entries of other managers may enter this manager's log.

An entry that a manager cannot read would stop it at once and at each start, so no such entry is appended. Not here:
the contents of a command (the state machine), the order of entries (guard.py). Pure. Invariant: no entry that this
manager cannot apply, and no cluster of other members than the initial ones, gets into its log by a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from warren_raft.raft import entries
from warren_raft.raft.context import Context
from warren_raft.raft.membership import FORM, Change, too_old
from warren_raft.raft.messages import PeerFault


class EntryChecks:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._roster = context.roster

    def check_commands(self, peer: str, commands: Sequence[bytes]) -> None:
        """Raises PeerFault for a command that may not be put into a log: a correct manager does not send it."""
        identity = self._roster.links[peer].identity
        sender = "" if identity is None else identity.node_id
        for command in commands:
            problem = self._context.machine.problem_of(command, sender)
            if problem:
                raise PeerFault(f"a command that no manager takes: {problem}")

    def problem_of_entry(self, entry: bytes) -> str:
        """Why an entry of a leader is not appended; "": it may be appended."""
        problem = entries.problem_of(entry, partial(self._context.machine.problem_of, sender=""), self._context.decoded)
        if not problem and entry[:2] == entries.CHANGE:
            change = entries.decode(entry)
            assert isinstance(change, Change)
            return self._problem_of_change(change)
        return problem

    def _problem_of_change(self, change: Change) -> str:
        """The cluster is formed by the members that the founding record names, and nobody else. A level that this
        release does not read would stop this manager."""
        if change.level > self._roster.level_max:
            why = too_old(self._roster.node_id, self._roster.level_max, change.level)
            return f"it raises the level of the command set: {why}"
        founding = self._roster.founding
        if change.verb != FORM or self._roster.membership is not None or founding is None:
            return ""
        formed = {(m.id, m.address, m.incarnation, m.voter) for m in change.members}
        founders = {(m.id, m.address, m.incarnation, m.voter) for m in founding.members.values()}
        return "" if formed == founders else "a cluster of other members than those that have met"
