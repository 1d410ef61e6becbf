"""A thread of each store for calls that must not end half done: opening, committing, closing.

An exception that arrives in a caller's thread (Ctrl-C, a time limit) ends only the caller's wait. A signal handler that
interrupts one close() and calls another waits for the same close. Python raises such exceptions in the main thread, or
in a thread that the program names, and no program names this one.
Invariant: calls are made one at a time, in the order in which they were requested, each completely.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from warren_raft.disk.file_size_signal import held_off
from warren_raft.errors import Closed
from warren_raft.support.log_lines import log_event
from warren_raft.support.waiting import Reply

logger = logging.getLogger("warren_raft.support.own_thread")

T = TypeVar("T")
U = TypeVar("U")

POLL_SECONDS: Final = 1.0
"""How often a caller checks whether the answering thread is alive, and when an `idle` that raised is called again."""


class OwnThread:
    """Makes calls. `call` and `post` may be used by any thread, and in signal handlers.

    `idle()` is called between them. It returns the seconds until its next call, or None for the time after the next
    posted call. Exceptions of `idle` and of posted calls are logged.
    """

    def __init__(self, name: str, idle: Callable[[], float | None] = lambda: None) -> None:
        self._idle = idle
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, function: Callable[[], object]) -> None:
        """Request a call. After the thread has ended, the request has no effect."""
        self._jobs.put(function)

    def call(self, function: Callable[[], T]) -> T:
        """Request a call and wait for its result or exception. Raises Closed if the thread has ended."""
        reply: Reply[T] = Reply()
        self.post(partial(_answer, reply, function))
        while not reply.wait(POLL_SECONDS):
            if not self._thread.is_alive():
                if reply.wait(0):  # it answered and then ended
                    break
                raise Closed
        return reply.result()

    def stop(self) -> None:
        """The thread ends when it has made all calls that were posted before."""
        self._jobs.put(None)

    def join(self, seconds: float = math.inf) -> None:
        self._thread.join(None if seconds == math.inf else seconds)

    def _run(self) -> None:
        with held_off():  # also in the threads that are started here
            while self._make_next():
                pass

    def _make_next(self) -> bool:
        """Make one call, or none if it is time for `idle` again. Returns False after the last call."""
        try:
            job = self._jobs.get(timeout=self._do(self._idle, POLL_SECONDS))
        except Empty:
            return True
        if job is not None:
            self._do(job, None)
        return job is not None

    def _do(self, function: Callable[[], T], otherwise: U) -> T | U:
        """The result of `function`, or `otherwise` if it raises."""
        try:
            return function()
        except BaseException as error:  # noqa: BLE001  it is logged
            log_event(logger, logging.ERROR, "call failed", thread=self._thread.name, exc_info=error)
            return otherwise


def _answer(reply: Reply[T], function: Callable[[], T]) -> None:
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001  it belongs to the caller
        reply.fail(error)
    else:
        reply.give(value)
