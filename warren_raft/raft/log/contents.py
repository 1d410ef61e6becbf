"""The contents of a log in memory (entries, term and vote, commit index, note), and which changes are lawful.

Lives here: the same checks for a change that is made now and for one that is read back. Not here: bytes and files.
Invariant: indexes have no gap, no committed entry is dropped, there is one vote in a term, and terms never go back
after an entry, a vote or a note was written.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import InvariantViolation
from . import format as form
from .format import State

BASE_COMMAND = b"\x01"  # the core's empty entry: every log starts with it, and it stands for compacted entries
BASE_INDEX = 1
BASE_TERM = 0

BLANK = State(BASE_INDEX, BASE_TERM, 0, None, BASE_INDEX, b"")

Entry = tuple[bytes, int, int]  # command, index, term: the core's order


class Contents:
    """The log from a base on. Every change is checked: InvariantViolation if it contradicts the log."""

    def __init__(self, start: State, on_truncation: Callable[[int], None]) -> None:
        self._on_truncation = on_truncation
        self.entries: list[Entry] = [(BASE_COMMAND, start.last_index, start.last_term)]
        self.base_index = start.last_index
        self.base_term = start.last_term
        self.current_term = start.current_term
        self.voted_for = start.voted_for
        self.commit_index = self._at_least_base(start.commit_index)
        self.note = start.note
        self._has_promised = False
        """Whether an entry or a vote was ever written."""

    def _at_least_base(self, commit_index: int) -> int:
        """The commit index, or the index of the base if that is higher. All compacted entries were committed, even if
        their commit index was not yet known when a header or batch was written."""
        return max(self.base_index, commit_index)

    def is_at(self, state: State) -> bool:
        """True if the contents lead to this state, which a segment's header has."""
        return self.state() == state._replace(commit_index=self._at_least_base(state.commit_index))

    def state(self) -> State:
        """All contents except the entries."""
        _, index, term = self.entries[-1]
        return State(index, term, self.current_term, self.voted_for, self.commit_index, self.note)

    @property
    def is_untouched(self) -> bool:
        """Whether only terms were ever written: no entry, no vote, no note. Such a log has promised nothing."""
        return self.base_index == BASE_INDEX and not self.note and not self._has_promised and self.voted_for is None

    def append(self, command: bytes, index: int, term: int) -> None:
        _, last_index, last_term = self.entries[-1]
        if index != last_index + 1 or term < last_term:
            raise InvariantViolation(
                f"entry {index} of term {term} cannot follow entry {last_index} of term {last_term}"
            )
        self.entries.append((command, index, term))
        self._has_promised = True

    def truncate_from(self, index: int) -> None:
        if index <= max(self.base_index, self.commit_index):
            raise InvariantViolation(
                f"cannot truncate from {index}: committed up to {self.commit_index}, base {self.base_index}"
            )
        if index <= self.entries[-1][1]:
            del self.entries[index - self.base_index :]
            self._on_truncation(index)

    def set_term(self, term: int, voted_for: str | None) -> None:
        if term < self.current_term and not (self.is_untouched and voted_for is None):
            raise InvariantViolation(f"term {term} is lower than the current term {self.current_term}")
        if term == self.current_term and self.voted_for not in (None, voted_for):
            raise InvariantViolation(
                f"this manager has voted for {self.voted_for!r} in term {term}, so it cannot vote for {voted_for!r}"
            )
        self.current_term = term
        self.voted_for = voted_for
        self._has_promised |= voted_for is not None

    def set_commit(self, index: int) -> None:
        last_index = self.entries[-1][1]
        if not self.commit_index <= index <= last_index:
            raise InvariantViolation(
                f"commit index {index} is below {self.commit_index} or beyond the last entry, {last_index}"
            )
        self.commit_index = index

    def holds(self, index: int, term: int) -> bool:
        """True if there is an entry at `index`, which may be the base, and it has this term."""
        position = index - self.base_index
        return 0 <= position < len(self.entries) and self.entries[position][2] == term

    def drop_prefix(self, index: int) -> None:
        """Make the entry at `index` the base. In one step, because other threads may count the list meanwhile."""
        position = index - self.base_index
        term = self.entries[position][2]
        self.entries[: position + 1] = [(BASE_COMMAND, index, term)]
        self.base_index, self.base_term = index, term

    def reset(self, index: int, term: int) -> None:
        """Begin again behind a snapshot that ends at (index, term). The note stays. Term and vote stay unless `term` is
        higher than the current term.

        InvariantViolation if this would take back a committed entry, or drop entries that follow the snapshot.
        """
        if index <= self.commit_index:
            raise InvariantViolation(f"cannot reset to {index}: committed up to {self.commit_index}")
        if self.holds(index, term):
            raise InvariantViolation(f"cannot reset to {index} of term {term}: the log holds that entry")
        self.entries[:] = [(BASE_COMMAND, index, term)]
        self.base_index, self.base_term = index, term
        self.commit_index = index
        if term > self.current_term:
            self.current_term, self.voted_for = term, None

    def replay(self, batch: form.BatchView, data: bytes) -> None:
        """Take over one batch that was read from a segment. Damaged if it contradicts the contents before it."""
        try:
            for kind, first, second, content in batch.records(data):
                self._replay_record(kind, first, second, content)
            self.set_commit(self._at_least_base(batch.commit_index))
        except (InvariantViolation, UnicodeDecodeError) as error:
            raise form.Damaged(f"batch {batch.number} contradicts the log: {error}") from error

    def _replay_record(self, kind: int, first: int, second: int, content: bytes) -> None:
        if kind == form.ENTRY:
            self.append(content, first, second)
        elif kind == form.TRUNCATE:
            self.truncate_from(first)
        elif kind == form.TERM:
            self.set_term(first, content.decode() if second else None)
        elif kind == form.NOTE:
            self.note = content
        else:
            raise form.Damaged(f"a record has the unknown kind {kind}")
