"""A thread of a store's own for what must not be left half done: opening, committing, closing.

An exception that arrives in a caller's thread (Ctrl-C, a time limit) ends the caller's wait, and nothing else; and a
signal handler that interrupts one close() and calls another waits for the same one. Python raises such exceptions in
the main thread, or in a thread that somebody names, which nobody does with this one.
Invariant: calls are made one at a time, in the order in which they were asked for, each from its beginning to its end.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from warren_raft.errors import Closed
from warren_raft.file_size_signal import held_off
from warren_raft.log_lines import log_event
from warren_raft.waiting import Reply

logger = logging.getLogger("warren_raft.own_thread")

T = TypeVar("T")
U = TypeVar("U")

POLL_SECONDS: Final = 1.0
"""How often a caller looks whether the thread that is to answer still lives, and when an `idle` that raised is called
again."""


class OwnThread:
    """Makes calls. `call` and `post` may be used by any thread, and in signal handlers.

    `idle()` is called between them; it returns after how many seconds it is to be called again, None: after the next
    call. What it raises, and what a posted call raises, is logged.
    """

    def __init__(self, name: str, idle: Callable[[], float | None] = lambda: None) -> None:
        self._idle = idle
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, function: Callable[[], object]) -> None:
        """Have it called. Nothing is done with it once the thread has ended."""
        self._jobs.put(function)

    def call(self, function: Callable[[], T]) -> T:
        """Have it called, and wait: what it returned, or raised. Raises Closed when the thread has ended."""
        reply: Reply[T] = Reply()
        self.post(partial(_answer, reply, function))
        while not reply.wait(POLL_SECONDS):
            if not self._thread.is_alive():
                if reply.wait(0):  # it answered, then it ended
                    break
                raise Closed
        return reply.result()

    def stop(self) -> None:
        """The thread ends when it has done what was posted before."""
        self._jobs.put(None)

    def join(self, seconds: float = math.inf) -> None:
        self._thread.join(None if seconds == math.inf else seconds)

    def _run(self) -> None:
        with held_off():  # also in the threads that begin in here
            while self._make_next():
                pass

    def _make_next(self) -> bool:
        """One call, or none if it is time to idle again. False: it was the last one."""
        try:
            job = self._jobs.get(timeout=self._do(self._idle, POLL_SECONDS))
        except Empty:
            return True
        if job is not None:
            self._do(job, None)
        return job is not None

    def _do(self, function: Callable[[], T], otherwise: U) -> T | U:
        """`otherwise`: what it returns where it raises."""
        try:
            return function()
        except BaseException as error:  # noqa: BLE001  it is logged
            log_event(logger, logging.ERROR, "call failed", thread=self._thread.name, exc_info=error)
            return otherwise


def _answer(reply: Reply[T], function: Callable[[], T]) -> None:
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001  it belongs to whoever asked
        reply.fail(error)
    else:
        reply.give(value)
