"""DATA_DIR/origins: for the newest revisions, when this manager applied the change, and the session that made it.

Lives here: that file, written by a manager and read beside it. Not here: the changes themselves (fsm/history.py), which
are the same on every manager. Invariant: only the command `events` reads the file. It is not part of the state, no
manager decides by it, and it is never synced. A slot of another revision than the asked one counts as empty.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from warren_raft.disk.files import OS_FILES, File, Files
from warren_raft.disk.sharing import without_links
from warren_raft.fsm.entry import Made
from warren_raft.fsm.history import MAX_CHANGES
from warren_raft.raft.membership import Membership
from warren_raft.store.command import NO_SESSION
from warren_raft.store.reading import Reader
from warren_raft.store.transactions import MEMBERSHIP, META, Owner, ReadTransaction
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.data_dir.origins")

FILE_NAME: Final = "origins"
SLOTS: Final = MAX_CHANGES
"""One for each revision that the history keeps. A revision's slot is its number modulo SLOTS."""

_SLOT: Final = Struct(">QQQ")
"""The revision, the time in microseconds since 1970 (0: not known), and the session."""
_CHECK: Final = Struct(">I")
SLOT_BYTES: Final = _SLOT.size + _CHECK.size
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Origin(NamedTuple):
    """When this manager applied a revision, and whose session made it, as far as the file says."""

    applied_at: datetime | None
    """Aware, UTC. None: the entry was in the log before this manager started."""
    session: int | None
    """Of the manager whose caller made the change. None: it had no session."""


class Origins:
    """The writing side, for one thread. Never raises: if the disk fails, the origins of these changes are dropped.

    The first error is logged, and the first one after each success. If the file cannot be opened, nothing is kept."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        node_id: str,
        old_index: int,
        files: Files = OS_FILES,
        microseconds: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        """`old_index`: the last entry in the log at the start. When entries up to it were made is not known."""
        self._path = os.path.join(directory, FILE_NAME)
        self._node_id = node_id
        self._old_index = old_index
        self._microseconds = microseconds
        self._file: File | None = None
        self._is_failing = False
        with self._errors_logged():
            try:
                self._file = files.open(self._path)
            except FileNotFoundError:
                self._file = files.make_file(self._path)

    def keep(self, changes: Sequence[Made]) -> None:
        """Keep the origins of revisions in a row, which were committed a moment ago."""
        file = self._file
        if file is None:
            return
        now = self._microseconds()
        changes = changes[-SLOTS:]
        first = changes[0].revision % SLOTS
        with self._errors_logged():
            slots = [self._slot(file, change, now) for change in changes]
            file.write(first * SLOT_BYTES, b"".join(slots[: SLOTS - first]))
            if first + len(slots) > SLOTS:
                file.write(0, b"".join(slots[SLOTS - first :]))

    def forget(self, old_index: int) -> None:
        """Forget everything, because the state was wrong. When entries up to `old_index` were made is not known now."""
        self._old_index = old_index
        if self._file is not None:
            with self._errors_logged():
                self._file.truncate(0)

    def close(self) -> None:
        """A second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _slot(self, file: File, change: Made, now: int) -> bytes:
        if change.entry_index > self._old_index:
            return _encoded(change.revision, now, change.session)
        kept = file.read(_place(change.revision), SLOT_BYTES)  # applied again: the time of the first time counts
        found = _decoded(kept)
        if found is not None and (found[0] > change.revision or found[::2] == (change.revision, change.session)):
            return kept
        return _encoded(change.revision, 0, change.session)

    @contextmanager
    def _errors_logged(self) -> Iterator[None]:
        """Log an error of the disk, unless the last call failed too."""
        try:
            yield
        except OSError as error:
            if not self._is_failing:
                log_event(logger, logging.WARNING, "file not written", error, node=self._node_id, path=FILE_NAME)
            self._is_failing = True
        else:
            self._is_failing = False


class KnownOrigins:
    """The reading side: the file of a directory as it was when this object was made."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """A file that is missing or cannot be read knows nothing."""
        self._data = b""
        with (
            suppress(OSError),
            open(os.path.join(directory, FILE_NAME), "rb", opener=without_links) as file,
        ):
            self._data = file.read(SLOTS * SLOT_BYTES)

    def of(self, revision: int) -> Origin:
        """The origin of a revision. Both fields are None if it is not known."""
        place = _place(revision)
        found = _decoded(self._data[place : place + SLOT_BYTES])
        if found is None or found[0] != revision:
            return Origin(None, None)
        _, microseconds, session = found
        try:
            applied_at = _EPOCH + timedelta(microseconds=microseconds) if microseconds else None
        except OverflowError:
            applied_at = None
        return Origin(applied_at, None if session == NO_SESSION else session)


def member_ids(reader: Reader) -> list[str]:
    """The ids of the members in a state, sorted. Empty for a state that is not of a cluster yet."""

    def read(database: Owner, _txn: object) -> list[str]:
        with ReadTransaction(database) as transaction:
            blob = transaction.fetch(META, MEMBERSHIP)
        return sorted(Membership.decode(blob).members) if blob else []

    return reader._within(read)


def _place(revision: int) -> int:
    return revision % SLOTS * SLOT_BYTES


def _encoded(revision: int, microseconds: int, session: int) -> bytes:
    body = _SLOT.pack(revision, microseconds, session)
    return body + _CHECK.pack(crc32(body))


def _decoded(slot: bytes) -> tuple[int, int, int] | None:
    """None for a slot that was not written, or not as a whole."""
    body, check = slot[: _SLOT.size], slot[_SLOT.size :]
    if len(check) != _CHECK.size or not any(body) or _CHECK.unpack(check) != (crc32(body),):
        return None
    revision, microseconds, session = _SLOT.unpack(body)
    return revision, microseconds, session
