"""The thread that writes the batches of the log, and the way of its results to the raft thread.

Lives here: the hand-over of a batch, and a short wait for it while the disk is quick. Not here: the write itself
(log/batch.py), and when a batch is written (log_writer.py). Invariant: each batch gives one Synced, or a call of
`broken`. The raft thread never waits longer than WAIT_SECONDS for a disk.

Why the raft thread waits: the two threads share the interpreter. If the raft thread goes on, the sync thread gets its
turn only when the raft thread pauses, which on a follower is after the last entry has been applied; and its result has
to wake the loop. While the raft thread waits for the lock of a batch, the sync thread has the interpreter, and its
result is there at once. A disk that was slow for the last batch is not waited for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from warren_raft.raft.events import Synced
from warren_raft.raft.log.log import Batch
from warren_raft.support.counting import Durations
from warren_raft.support.log_lines import log_event
from warren_raft.support.stamps import Stamps

logger = logging.getLogger("warren_raft.driver")

WAIT_SECONDS: Final = 0.002
"""The longest wait of the raft thread for a batch. A heartbeat may be so late."""
QUICK_SECONDS: Final = 0.001
"""The disk is quick if it needed no longer than this for the last batch."""


class _Writing:
    """One batch on its way."""

    __slots__ = ("batch", "is_awaited", "is_taken", "stamps", "synced", "turn")

    def __init__(self, batch: Batch, stamps: Stamps | None) -> None:
        self.batch = batch
        self.stamps = stamps
        self.synced: Synced | None = None
        """Set by the sync thread before it releases `turn`."""
        self.turn = threading.Lock()
        self.turn.acquire()
        self.is_awaited = False
        """Whether the raft thread waits for `turn`. Otherwise its bell rings."""
        self.is_taken = False
        """Whether the raft thread has the result. Only that thread reads and sets it."""


class SyncThread:
    """`ring` wakes the raft thread, which then finds `has_results`. `call(function, *arguments)` has it call a
    function. All methods are for the raft thread.

    `broken` is called there if a batch failed through a bug, and `ended` after the last batch.
    """

    def __init__(
        self,
        node_id: str,
        *,
        ring: Callable[[], None],
        call: Callable[..., None],
        broken: Callable[[Exception], None],
        ended: Callable[[], None],
    ) -> None:
        self._node_id = node_id
        self._ring = ring
        self._call = call
        self._broken = broken
        self._ended = ended
        self._queue: SimpleQueue[_Writing | None] = SimpleQueue()
        self._newest: _Writing | None = None
        self._done: deque[_Writing] = deque()
        """The batches that ended while the raft thread did not wait for them."""
        self._is_quick = False
        """Set by the sync thread."""
        self.syncs: Final = Durations()
        """The batches that were written, or not: each with its sync."""
        self.writing_since: float | None = None
        """When the batch that is being written began, on the monotonic clock. Any thread may read it."""
        self._thread = threading.Thread(target=self._run, name=f"warren-raft-sync {node_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after all batches that were handed over. `ended` is called then."""
        self._queue.put(None)

    def write(self, batch: Batch, stamps: Stamps | None = None) -> None:
        """Hand a batch over. Call `wait` later in the same step."""
        writing = self._newest = _Writing(batch, stamps)
        self._queue.put(writing)

    def wait(self, *, may_wait: bool) -> Synced | None:
        """The result of the batch that was handed over since the last call, if it comes soon."""
        writing, self._newest = self._newest, None
        if writing is None or writing.is_taken:
            return None
        if may_wait and self._is_quick:
            writing.is_awaited = True
            if writing.turn.acquire(timeout=WAIT_SECONDS):
                writing.is_taken = True
                return writing.synced
            writing.is_awaited = False
        if not writing.turn.acquire(blocking=False):  # it may have ended before it could see that nobody waits
            return None
        writing.is_taken = True
        return writing.synced

    @property
    def has_results(self) -> bool:
        """Whether `take` may have results."""
        return bool(self._done)

    def take(self) -> list[Synced]:
        """The results since the last call that `wait` did not return."""
        results: list[Synced] = []
        while self._done:
            writing = self._done.popleft()
            if not writing.is_taken:
                writing.is_taken = True
                assert writing.synced is not None
                results.append(writing.synced)
        return results

    # In the sync thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (writing := self._queue.get()) is not None:
            self._write(writing)
        self._call(self._ended)

    def _write(self, writing: _Writing) -> None:
        begin = self.writing_since = time.monotonic()
        batch, stamps = writing.batch, writing.stamps
        error: OSError | None = None
        if stamps is not None:
            stamps.add("writing", batch.durable_index)
        try:
            batch.write()
            if stamps is not None:
                stamps.add("written", batch.durable_index)
        except OSError as problem:
            error = problem
        except Exception as problem:  # noqa: BLE001 - it is logged
            # A bug, and the end of this manager: the writes that wait for this batch would wait for ever.
            log_event(
                logger, logging.ERROR, "log batch failed", node=self._node_id, batch=batch.number, exc_info=problem
            )
            self._call(self._broken, problem)
            return
        self.writing_since = None
        took = time.monotonic() - begin
        self.syncs.note(took)
        self._is_quick = took <= QUICK_SECONDS
        writing.synced = Synced(batch, error)
        writing.turn.release()
        if not writing.is_awaited:
            self._done.append(writing)
            self._ring()
