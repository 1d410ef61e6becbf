"""Applying the log to the database: one entry, or several in a row, in one write transaction with their results.

Pure and deterministic: no clock, no randomness, no environment. The same log makes the same records on every manager.
Invariant: the applied index is written with the changes, and this object publishes a change only after its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from warren_raft.errors import Corrupted
from warren_raft.fsm.answers import Result, raise_for
from warren_raft.fsm.digest import recompute as recompute_digest
from warren_raft.fsm.entry import (
    Committed,
    Entries,
    Made,
    read_committed,
)
from warren_raft.fsm.history import History
from warren_raft.fsm.leases import Leases
from warren_raft.fsm.requests import Requests, sessions_in
from warren_raft.fsm.sessions import Sessions
from warren_raft.fsm.tallies import Tally, tally_of
from warren_raft.store import levels
from warren_raft.store.codec import INDEXED_WIDTHS
from warren_raft.store.command import Command, examine, is_session_of
from warren_raft.store.database import Database
from warren_raft.store.position import FIRST_INDEX

__all__ = ["FIRST_INDEX", "RECENT_DIGESTS", "Committed", "Result", "StateMachine", "raise_for", "recompute_digest"]

RECENT_DIGESTS: Final = 1_024
"""How many (index, digest) are kept in memory. Managers compare the newest digest that both have. They differ by the
entries applied between two heartbeats: a few hundred at the very most."""

EXAMINED_MAX: Final = 4_096
EXAMINED_BYTES_EACH: Final = 2_048
"""How many commands are kept in their decoded form between the check of an entry and its application, and the size of
each. An entry has up to 1,024 commands, and a leader has two entries on their way. Commands that are never applied, of
a leader that failed, stay until the number is reached."""


class StateMachine:
    """Applies entries to a database, in the order of their indexes. One thread applies; any thread may read.

    A failed apply (StorageFull, StorageFailed, an interrupt) leaves everything as it was, and may be repeated.
    """

    def __init__(self, database: Database) -> None:
        """Continue from the position of `database`. Nothing is written."""
        self.database: Final = database
        self.applied_index: int
        """The index of the last entry that was applied; FIRST_INDEX for a new database."""
        self.applied_term: int
        """The term of that entry; 0 for a new database."""
        self.on_made: Callable[[Sequence[Made]], None] = lambda _made: None
        """Is told the revisions of each commit that made some, in the thread that applies. Must not raise."""
        self._examined: dict[bytes, Command] = {}
        """Commands without a problem that were not applied yet."""
        self._tally: tuple[int, Tally] = -1, {}
        """The applied index of a tally, and the tally."""
        self._ring: list[tuple[int, bytes] | None] = [None] * RECENT_DIGESTS
        self._load()

    # ---- the state of the last commit; any thread

    @property
    def committed(self) -> Committed:
        """All of the following properties, as of the same commit."""
        return self._committed

    @property
    def revision(self) -> int:
        """The revision of the latest change; 0 before the first."""
        return self._committed.revision

    @property
    def digest(self) -> bytes:
        """32 bytes. Managers with the same applied index have the same digest."""
        return self._committed.digest

    @property
    def membership(self) -> bytes | None:
        """The members as given to `apply_membership`; None before its first call."""
        return self._committed.membership

    @property
    def cluster_id(self) -> str | None:
        """The id of the cluster; None before the first `apply_membership`."""
        return self._committed.cluster_id

    @property
    def level(self) -> int:
        """The level of the command set (store/levels.py). It never falls."""
        return self._committed.level

    @property
    def leases(self) -> Mapping[str, float]:
        """The ttl in seconds of each node that beats, by its id. Copy it before iterating."""
        return self._leases.ttl_seconds

    @property
    def tally(self) -> Tally:
        """How many nodes there are by role and status, and containers by state."""
        return self._tally[1]

    def digest_at(self, index: int) -> bytes | None:
        """The digest after the entry `index`; None if it is not kept or no longer kept, so nothing can be compared."""
        pair = self._ring[index % RECENT_DIGESTS]
        return pair[1] if pair is not None and pair[0] == index else None

    # ---- applying the log; one thread

    def problem_of(self, command: bytes, sender: str) -> str:
        """Why a command may not be put into a log; "" if every manager of this release can apply it.

        `sender`: the node id in the certificate of the manager that sent the command; "" if it is not known. A good
        command is usually applied a moment later. It is kept in its decoded form until then, so it is decoded once.
        """
        found = examine(command, INDEXED_WIDTHS)
        if isinstance(found, str):
            return found
        if sender and not is_session_of(found.session, sender):
            return f"{sender} writes under the session of another manager"
        if len(command) <= EXAMINED_BYTES_EACH:
            if len(self._examined) >= EXAMINED_MAX:
                self._examined.clear()
            self._examined[command] = found
        return ""

    def apply(self, index: int, term: int, commands: Sequence[bytes], level: int = levels.FIRST) -> list[Result]:
        """Carry out the commands of an entry, one result for each. (A new leader begins with an entry without
        commands.) `level`: raise the level of the command set to it, in the same transaction.

        A failed command does not undo the others. Raises InvariantViolation if `index` is not the next index,
        UnknownCommandVersion, StorageFull and StorageFailed, and RefusedForSafety for a level that this release does
        not read; in these cases nothing is changed. A wrong command never raises.
        """
        return self._apply(index, ((term, commands),), level=level)[0]

    def apply_all(self, index: int, entries: Sequence[tuple[int, Sequence[bytes]]]) -> list[list[Result]]:
        """Carry out entries in a row, of which `index` is the first, in one transaction; each is (term, commands).

        The state after it is the same as after an `apply` for each entry, in a fraction of the time if the entries are
        small. If it raises, none of the entries is applied.
        """
        return self._apply(index, entries)

    def apply_membership(
        self, index: int, term: int, cluster_id: str, membership: bytes, level: int = levels.FIRST
    ) -> None:
        """Store the members (opaque here) and the cluster's id, and raise the level of the command set to `level`.

        Raises the same errors as `apply`.
        """
        self._apply(index, ((term, ()),), (cluster_id, membership), level)

    def settle(self) -> None:
        """After an apply that raised: read from the database whether its commit succeeded.

        `apply` does this by itself. Call it before taking the next index from `applied_index`.
        """
        if self._in_doubt:
            self._load()

    def _apply(
        self,
        index: int,
        entries: Sequence[tuple[int, Sequence[bytes]]],
        members: tuple[str, bytes] | None = None,
        level: int = levels.FIRST,
    ) -> list[list[Result]]:
        if not entries:
            return []
        self.settle()
        self._in_doubt = True  # until the end: an interrupt can come between any two lines
        with self.database.write() as transaction:
            applied = Entries(
                transaction,
                self._committed,
                self._sessions,
                self._requests,
                self._leases,
                self._history,
                self._examined,
            )
            results = [applied.apply(index + n, *entry, members, level) for n, entry in enumerate(entries)]
            after = applied.finish()
        self._tally = after.applied_index, applied.tally_changes.applied_to(self._tally[1])
        self._show(after, applied.digests)
        self._in_doubt = False
        if applied.made:
            self.on_made(applied.made)
        return results

    def _load(self) -> None:
        with self.database.read() as transaction:
            try:
                self._sessions = Sessions(sessions_in(transaction))
                self._leases = Leases(transaction)
                self._requests = Requests(transaction, len(self._sessions) + len(self._leases))
                self._history = History(transaction)
                committed = read_committed(transaction)
                if self._tally[0] != committed.applied_index:
                    self._tally = committed.applied_index, tally_of(transaction)
            except ValueError as error:
                raise Corrupted(self.database.path, f"cannot be read: {error}") from None
        self._show(committed, [(committed.applied_index, committed.digest)])
        self._in_doubt = False

    def _show(self, committed: Committed, digests: Sequence[tuple[int, bytes]]) -> None:
        for pair in digests:
            self._ring[pair[0] % RECENT_DIGESTS] = pair
        self._committed = committed
        self.applied_index, self.applied_term = committed.applied_index, committed.applied_term
