"""The batches of the log on their way to the disk: one at a time, and tried again while the disk refuses.

Lives here: when a batch is handed to the driver, and the meaning of a refusal of the disk. Not here: the contents of a
batch (log/), and the messages that wait for it (outbox.py). Invariant: at most one batch is on its way. A batch that
the disk refused for want of a resource is written again, unchanged, until it is durable.
"""

from __future__ import annotations

import errno
from typing import Final

from warren_raft.disk.paths import moved
from warren_raft.disk.shortage import Shortage, shortage_of
from warren_raft.errors import InvariantViolation
from warren_raft.raft.blocked import clear_blocked, raise_blocked
from warren_raft.raft.context import LONG_AGO, Context
from warren_raft.raft.effects import WriteLog
from warren_raft.raft.log.log import Batch

RETRY_SECONDS: Final = 1.0
"""After a refusal by a full disk, the batch is tried again at this interval."""
HUNG_DISK_SECONDS: Final = 5.0
"""A disk that has not returned for this long hangs. A shorter delay is a hiccup."""


class LogWriter:
    """For the raft thread or a simulator only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._log = context.log
        self._outbox = context.outbox
        self.batch: Batch | None = None
        """The batch that is on its way."""
        self._since = context.now
        self._retry_at = LONG_AGO
        self.shortage: Shortage | None = None
        """Why the present batch cannot be written; None: it can, or there is none."""

    @property
    def hung_seconds(self) -> float | None:
        """Seconds since a disk that hangs got the present batch; None: it does not hang."""
        seconds = self._context.now - self._since
        return seconds if self.batch is not None and seconds > HUNG_DISK_SECONDS else None

    def start(self) -> None:
        """Hand the next batch to the disk if none is on its way; or a batch that the disk refused, again."""
        if self.batch is None:
            batch = self._log.take_batch()
            if batch is not None:
                self.write(batch)
        elif self.shortage is not None and self._context.now >= self._retry_at:
            self._retry_at = float("inf")
            self._outbox.add(WriteLog(self.batch))

    def write(self, batch: Batch) -> None:
        """Hand this batch to the disk. None is on its way."""
        self.batch = batch
        self._since = self._context.now
        self._outbox.add(WriteLog(batch))

    def written(self, batch: Batch, error: OSError | None) -> bool:
        """The disk has returned. True: the batch is durable. False: it is tried again later. Raises WarrenError if this
        manager must stop."""
        if error is not None:
            self._refused(error)
            return False
        if self.shortage is not None:
            self.shortage = None
            clear_blocked(self._context.alarms, "log")
        self.batch = None
        self._log.complete(batch)
        return True

    def _refused(self, error: OSError) -> None:
        self._context.look_soon()
        if error.errno == errno.ESTALE:
            raise moved(self._log.directory) from error
        shortage = shortage_of(error)
        if shortage is None:
            raise InvariantViolation(f"the log cannot be written: {error}") from error
        raise_blocked(self._context.alarms, "log", shortage, error, place=self._log.directory)
        self.shortage = shortage
        self._retry_at = self._context.now + RETRY_SECONDS
