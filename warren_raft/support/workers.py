"""Threads of our own that do jobs, in place of `ThreadPoolExecutor`.

Python ends every ThreadPoolExecutor, asyncio's default one too, as soon as the main thread has returned, while other
threads of the program, and `atexit`, still need their manager. Not here: the jobs themselves.
Invariant: as long as the process runs, an accepted job is done, or its future is cancelled by `shutdown`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from warren_raft.support.log_lines import log_event

logger = logging.getLogger("warren_raft.support.workers")

P = ParamSpec("P")
T = TypeVar("T")

JOIN_SECONDS: Final = 30.0
"""`shutdown` waits at most this long: a job may be inside a system call that hangs."""

Job = tuple["Future[Any]", Callable[[], Any]]


class Workers(Executor):
    """Up to `count` daemon threads, started when they are needed. Thread-safe, but not for signal handlers.

    If a thread cannot be started (a limit of the system, or Python is ending) and there is another, jobs wait for the
    other.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count: Final = count
        self._name: Final = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0  # jobs that wait or run; a thread is free only if there are fewer of them than threads
        self._is_shut_down = False

    def start(self) -> Workers:
        """Start the first thread now. Raises RuntimeError if that is not possible."""
        with self._lock:
            if not self._threads:
                self._start_thread()
        return self

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let a thread call the function. Raises RuntimeError after `shutdown`, or if there is no thread at all."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError(f"{self._name} were shut down")
            if len(self._threads) <= self._unfinished and len(self._threads) < self._count:
                try:
                    self._start_thread()
                except RuntimeError:
                    if not self._threads:
                        raise
                    log_event(
                        logger,
                        logging.WARNING,
                        "no further thread started",
                        pool=self._name,
                        threads=len(self._threads),
                    )
            self._unfinished += 1
            self._jobs.put((future, lambda: function(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, seconds: float = JOIN_SECONDS) -> None:
        """Accept no further jobs; with `cancel_futures`, jobs that have not begun are cancelled. Idempotent.

        `wait`: until the threads have ended, `seconds` at most.
        """
        with self._lock:
            self._is_shut_down = True
            while cancel_futures:
                try:
                    job = self._jobs.get_nowait()
                except Empty:
                    break
                if job is not None:
                    job[0].cancel()
            for _ in self._threads:
                self._jobs.put(None)
            threads = list(self._threads)
        give_up_at = time.monotonic() + seconds
        for thread in threads if wait else ():
            if thread is not threading.current_thread():
                thread.join(max(0.0, give_up_at - time.monotonic()))

    def _start_thread(self) -> None:
        """Call this with the lock held."""
        name = f"{self._name} {len(self._threads) + 1}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            tell = _done(*job)
            with self._lock:
                self._unfinished -= 1  # before a waiter learns of the result and has the next job
            tell()
            del job, tell  # so that this thread keeps nothing of this job alive while it waits for the next


def _done(future: Future[object], job: Callable[[], object]) -> Callable[[], None]:
    """Do the job. The returned function publishes its result."""
    if not future.set_running_or_notify_cancel():
        return lambda: None
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001  SystemExit too belongs to the caller that requested the job
        return partial(future.set_exception, error)
    return partial(future.set_result, result)
