"""The continuous backup: once a second the leader writes its newest committed entries to the backup directory.

Lives here: where a leader begins, what is written when, removing old files, the alarm. Not here: the files
(recovery/shipped_log.py). Invariant: only entries that this manager has applied are written, so each is committed. The
raft thread is never asked and never waits: entries are copied from the log in memory.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from warren_raft.alarms import Alarms
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.files import OS_FILES, Files
from warren_raft.errors import SnapshotInvalid, WarrenError
from warren_raft.fsm.entry import Committed
from warren_raft.recovery.shipped_log import FILE_BYTES, Contents, Header, Mark, ShippedFile, first_index_in, names_in
from warren_raft.snapshots.backups import Backups
from warren_raft.snapshots.file import SnapshotInfo
from warren_raft.snapshots.freshness import Position
from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.backups")

PAUSE_SECONDS: Final = 1.0
"""Between two marks: a cluster that is lost as a whole loses the changes of about so long."""
RETRY_SECONDS: Final = 5.0
FAILED: Final = "backup-log-failed"


@dataclass(frozen=True, slots=True)
class _End:
    """The last entry of a file."""

    index: int
    term: int


class Shipping:
    """`run` belongs to one thread. `now` is the time in UTC.

    A leader continues where the files in the directory end, if its log in memory reaches back to there, and else behind
    the newest backup. If it does not reach back to that either, it asks for a new backup. After an error it begins
    another file.
    """

    def __init__(
        self,
        opened: OpenedDirectory,
        backups: Backups,
        *,
        alarms: Alarms,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        files: Files = OS_FILES,
    ) -> None:
        self._opened = opened
        self._node_id = opened.config.node_id
        self._backups = backups
        self._directory = backups.directory
        self._alarms = alarms
        self._now = now
        self._files = files
        self._file: ShippedFile | None = None
        self._next: int | None = None
        """The index of the next entry to write; None: this manager does not lead, or has to find where it begins."""
        self._begun_behind: SnapshotInfo | None = None
        self._ends: dict[str, _End] = {}
        """Where the files in the directory end, by name."""
        self._again_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set."""
        while not stop.wait(PAUSE_SECONDS):
            self.look()
        self._close()

    def look(self) -> None:
        """Write the entries that are not written yet, if this manager leads. Never raises: it raises an alarm."""
        newest = self._backups.newest
        if newest is None:  # it does not lead, or the first backup is not there yet
            self._close()
            self._ends.clear()  # other leaders write now
            self._alarms.clear_alarm(FAILED, self._directory)
            return
        if time.monotonic() < self._again_at:
            return
        try:
            if self._next is None:
                self._begin(newest[1])
            if self._next is not None:
                self._ship()
                self._alarms.clear_alarm(FAILED, self._directory)
            if newest[1] != self._begun_behind:
                self._begun_behind = newest[1]
                self._remove_old()
        except (WarrenError, OSError) as error:
            self._fails(error)
        except Exception as error:  # noqa: BLE001 - an error in this program must be seen, but must not end all writing
            log_event(logger, logging.ERROR, "backup log failed", directory=self._directory, exc_info=error)
            self._fails(error)

    def _fails(self, error: Exception) -> None:
        self._close()
        self._again_at = time.monotonic() + RETRY_SECONDS
        self._backups.freshness.note_failure(str(error))
        self._alarms.raise_alarm(
            FAILED,
            f"the newest changes cannot be written to {self._directory}: {error}. The manager tries again every "
            f"{RETRY_SECONDS:g} s",
            subject=self._directory,
        )

    def _close(self) -> None:
        self._next = None
        file, self._file = self._file, None
        if file is not None:
            file.close()
            if not file.has_mark:  # on a full disk there would be another one every few seconds
                with suppress(OSError):
                    self._files.unlink(file.path)

    # Where to begin ----------------------------------------------------------------------------------------------

    def _begin(self, newest: SnapshotInfo) -> None:
        log = self._opened.log
        for index, term in (self._end_in_directory(newest), (newest.index, newest.term)):
            if log.term_of(index) == term:  # then every entry before it is the same too
                self._next = index + 1
                return
        # The directory's disk was away for longer than the log in memory reaches back, or this manager is new here.
        text = f"the entries behind index {newest.index} are no longer in the log, so a backup is saved now"
        log_event(logger, logging.WARNING, "backup log interrupted", text, node=self._node_id)
        self._backups.wanted = True
        self._again_at = time.monotonic() + RETRY_SECONDS

    def _end_in_directory(self, newest: SnapshotInfo) -> tuple[int, int]:
        """(index, term) of the last entry in the files that follow the newest backup without a gap."""
        names = names_in(self._files.list_directory(self._directory))
        behind: list[tuple[int, _End]] = []
        for name in reversed(names):  # earlier files end before the newest backup
            end = self._end_of(name, newest.cluster_id)
            if end is not None:
                behind.append((first_index_in(name), end))
                if first_index_in(name) <= newest.index + 1:
                    break
        index, term = newest.index, newest.term
        for first, end in reversed(behind):
            if first <= index + 1 and end.index > index:
                index, term = end.index, end.term
        return index, term

    def _end_of(self, name: str, cluster_id: str | None) -> _End | None:
        """Where a file of this cluster ends, which is read once; None: it is of another cluster, or damaged."""
        found = self._ends.get(name)
        if found is None:
            with suppress(SnapshotInvalid, OSError):  # a restore names it
                contents = Contents(os.path.join(self._directory, name))
                if contents.header.cluster_id == cluster_id and not contents.problem:
                    before = contents.header.first_index - 1
                    last = before if contents.last is None else contents.last.index
                    found = _End(last, contents.term_at(last) or contents.header.previous_term)
                    self._ends[name] = found
        return found

    # Writing -----------------------------------------------------------------------------------------------------

    def _ship(self) -> None:
        assert self._next is not None
        committed, now = self._opened.machine.committed, self._now()
        if committed.applied_index >= self._next:
            entries = self._opened.log.copy(self._next, committed.applied_index)
            previous_term = self._opened.log.term_of(self._next - 1)
            if entries is None or previous_term is None:
                self._close()  # the next look finds out whether a new backup is needed
                return
            if self._file is None:
                self._file = self._new_file(committed, previous_term, now)
            mark = Mark(committed.applied_index, committed.revision, committed.digest, now)
            self._file.append(entries, mark)
            self._next = committed.applied_index + 1
            # Known, and not read back later: after a failed sync the file may show entries that are not on the disk.
            self._ends[os.path.basename(self._file.path)] = _End(committed.applied_index, committed.applied_term)
            if self._file.size >= FILE_BYTES:
                self._file.close()
                self._file = None
        self._backups.freshness.note_shipped(
            Position(committed.cluster_id, committed.revision, committed.digest.hex()), now, committed.applied_index
        )

    def _new_file(self, committed: Committed, previous_term: int, now: datetime) -> ShippedFile:
        assert self._next is not None
        header = Header(
            cluster_id=committed.cluster_id or "",
            node_id=self._node_id,
            first_index=self._next,
            previous_term=previous_term,
        )
        return ShippedFile(self._directory, header, now=now, files=self._files)

    # Removing ----------------------------------------------------------------------------------------------------

    def _remove_old(self) -> None:
        """Remove the files of this cluster whose entries are all in the oldest backup that is kept."""
        oldest = self._backups.oldest_index
        if oldest is None:
            return
        cluster_id = self._opened.machine.cluster_id
        own = None if self._file is None else os.path.basename(self._file.path)
        names = names_in(self._files.list_directory(self._directory))
        for name in names:
            if name == own or first_index_in(name) > oldest:
                continue
            end = self._end_of(name, cluster_id)
            if end is not None and end.index <= oldest:
                path = os.path.join(self._directory, name)
                self._files.unlink(path)
                log_event(logger, logging.INFO, "old backup log removed", path=path)
        self._ends = {name: end for name, end in self._ends.items() if name in names}
