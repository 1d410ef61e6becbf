"""The promise: jobs are done for as long as the process runs, also after its main thread has returned. A job that
raises SystemExit costs no thread, and a thread that cannot be started costs no job while there is another thread.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import pytest

from warren_raft.support.workers import Workers

DEADLINE = 60.0


def test_jobs_run_beside_each_other_up_to_the_count() -> None:
    workers = Workers(3, "test")
    everybody = threading.Barrier(4)
    futures = [workers.submit(everybody.wait, DEADLINE) for _ in range(3)]
    one_more = workers.submit(threading.current_thread)
    everybody.wait(DEADLINE)
    assert {future.result(DEADLINE) for future in futures} <= {0, 1, 2, 3}
    assert one_more.result(DEADLINE).daemon
    assert len(workers._threads) == 3
    workers.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]


class Held:
    """A queue of jobs. A thread that has taken a job waits in it until `go` is set."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self.put, self.qsize = self._jobs.put, self._jobs.qsize
        self.taken, self.go = threading.Event(), threading.Event()

    def get(self) -> Any:
        job = self._jobs.get()
        self.taken.set()
        assert self.go.wait(DEADLINE)
        return job


def test_a_job_does_not_wait_for_a_thread_that_has_just_taken_another_one() -> None:
    """(Pins a bug: in that moment the thread counted as free and the queue was empty, so no further thread was started,
    and the job waited until the other one ended. A call of the admin socket could wait behind one that hangs.)"""
    workers, held, hangs = Workers(2, "test"), Held(), threading.Event()
    workers._jobs = held  # type: ignore[assignment]
    try:
        first = workers.submit(hangs.wait, DEADLINE)
        assert held.taken.wait(DEADLINE)
        second = workers.submit(threading.current_thread)
        held.go.set()
        assert second.result(5).name == "test 2"
    finally:
        held.go.set()
        hangs.set()
        workers.shutdown()
    assert first.result(DEADLINE)


def test_one_job_after_another_needs_one_thread() -> None:
    workers = Workers(8, "test")
    for number in range(50):
        assert workers.submit(lambda number=number: number).result(DEADLINE) == number
    assert len(workers._threads) == 1
    workers.shutdown()


def test_an_error_of_a_job_is_in_its_future() -> None:
    workers = Workers(1, "test")

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        workers.submit(leave).result(DEADLINE)
    assert workers.submit(int, "7").result(DEADLINE) == 7
    workers.shutdown()


def test_without_a_thread_to_be_had_the_others_do_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on threads, or Python 3.12 about to end."""
    workers = Workers(4, "test").start()
    hold = threading.Event()
    first = workers.submit(hold.wait, DEADLINE)
    with monkeypatch.context() as patch:

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        second = workers.submit(int, "2")
        with pytest.raises(RuntimeError):
            Workers(1, "none").submit(int, "3")
    hold.set()
    assert first.result(DEADLINE)
    assert second.result(DEADLINE) == 2
    workers.shutdown()


def test_shutdown_cancels_jobs_that_have_not_begun() -> None:
    workers = Workers(1, "test")
    began, hold = threading.Event(), threading.Event()

    def job() -> str:
        began.set()
        hold.wait(DEADLINE)
        return "done"

    first, second = workers.submit(job), workers.submit(job)
    assert began.wait(DEADLINE)
    workers.shutdown(wait=False, cancel_futures=True)
    workers.shutdown(wait=False)
    assert second.cancelled()
    hold.set()
    assert first.result(DEADLINE) == "done"
    with pytest.raises(RuntimeError, match="shut down"):
        workers.submit(job)


def test_asyncio_takes_them_as_an_executor() -> None:
    workers = Workers(1, "test")

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(workers, int, "5")

    assert asyncio.run(main()) == 5
    workers.shutdown()


def test_jobs_are_done_after_the_main_thread_has_returned() -> None:
    """concurrent.futures' own pool raises "cannot schedule new futures after shutdown" there."""
    program = """
import sys, threading, time
from warren_raft.support.workers import Workers
workers = Workers(1, "test")
def later():
    threading.main_thread().join()
    print(workers.submit(lambda: "done").result(20), flush=True)
threading.Thread(target=later).start()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_future_of_a_job_is_an_ordinary_one() -> None:
    workers = Workers(1, "test")
    told: list[Future[int]] = []
    heard = threading.Event()
    future = workers.submit(int, "1")
    future.add_done_callback(lambda future: (told.append(future), heard.set()))
    assert heard.wait(DEADLINE)
    assert told == [future]
    workers.shutdown()
