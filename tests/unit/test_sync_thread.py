"""The thread that writes the log's batches: each batch gives one result, and the raft thread never waits long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import pytest

from warren_raft.raft.events import Synced
from warren_raft.raft.log.log import Batch
from warren_raft.raft.sync_thread import QUICK_SECONDS, WAIT_SECONDS, SyncThread

DEADLINE = 30.0


class Disk:
    """A batch, and the disk that it goes to."""

    def __init__(self, number: int = 1, *, hangs: bool = False, error: Exception | None = None) -> None:
        self.number = number
        self.began: float | None = None
        self.let_go = threading.Event()
        self._error = error
        if not hangs:
            self.let_go.set()

    def write(self) -> None:
        self.began = time.monotonic()
        assert self.let_go.wait(DEADLINE)
        if self._error is not None:
            raise self._error

    def hang(self) -> None:
        """Return when the write has hung for longer than a quick disk needs. On a busy machine it may begin late."""
        deadline = time.monotonic() + DEADLINE
        while self.began is None or time.monotonic() - self.began <= 2 * QUICK_SECONDS:
            assert time.monotonic() < deadline, "the write never began"
            time.sleep(QUICK_SECONDS)
        self.let_go.set()


class Rig:
    """A raft thread that makes the calls it was asked for when `run` is called."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self.delivered: list[Synced] = []
        self.broken: list[Exception] = []
        self.ended = threading.Event()
        self.thread = SyncThread(
            "m1",
            ring=lambda: self.calls.put((self._take, ())),
            call=lambda function, *arguments: self.calls.put((function, arguments)),
            broken=self.broken.append,
            ended=self.ended.set,
        )
        self.thread.start()

    def _take(self) -> None:
        self.delivered += self.thread.take()
        assert not self.thread.has_results
        assert self.thread.take() == []

    def run(self) -> None:
        """Answer the bell, or make the next call."""
        function, arguments = self.calls.get(timeout=DEADLINE)
        function(*arguments)

    def write(self, disk: Any, *, may_wait: bool = True) -> Synced | None:
        self.thread.write(disk)
        return self.thread.wait(may_wait=may_wait)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.thread.stop()


def test_each_batch_gives_one_result_whether_it_is_waited_for_or_not(rig: Rig) -> None:
    disks = [Disk(number) for number in range(200)]
    returned = [rig.write(disk, may_wait=disk.number % 3 > 0) for disk in disks]
    rig.thread.stop()
    while not rig.ended.is_set():
        rig.run()
    results = [each for each in returned if each is not None] + rig.delivered
    assert sorted(result.batch.number for result in results) == list(range(200))
    assert all(result.error is None for result in results)


def test_a_hanging_disk_is_waited_for_once_and_briefly(rig: Rig) -> None:
    rig.thread._is_quick = True
    hanging = Disk(hangs=True)
    begin = time.monotonic()
    assert rig.write(hanging) is None
    assert time.monotonic() - begin >= WAIT_SECONDS / 2
    hanging.hang()
    rig.run()
    assert [result.batch.number for result in rig.delivered] == [hanging.number]
    assert not rig.thread._is_quick
    again = Disk(2, hangs=True)
    assert rig.write(again) is None
    again.let_go.set()
    rig.run()
    assert len(rig.delivered) == 2


def test_a_batch_that_nobody_waits_for_is_told_of(rig: Rig) -> None:
    disk = Disk()
    rig.thread.write(cast(Batch, disk))
    rig.run()
    assert [result.batch.number for result in rig.delivered] == [disk.number]


def test_a_result_that_was_told_of_is_not_returned_too(rig: Rig) -> None:
    """(Pins a bug: a batch that began in the second half of a step had two results, and its manager stopped itself.)"""
    rig.thread.write(cast(Batch, Disk()))
    rig.run()
    assert len(rig.delivered) == 1
    assert rig.thread.wait(may_wait=True) is None
    rig.thread._is_quick = True
    rig.thread.write(cast(Batch, Disk(2)))
    rig.run()
    assert rig.thread.wait(may_wait=True) is None


def test_an_error_of_the_disk_is_in_the_result(rig: Rig) -> None:
    error = OSError(28, "no space")
    rig.thread._is_quick = True
    result = rig.write(Disk(error=error))
    if result is None:
        rig.run()
        (result,) = rig.delivered
    assert result.error is error


def test_a_bug_is_told_of_and_gives_no_result(rig: Rig) -> None:
    bug = ValueError("a bug")
    rig.thread._is_quick = True
    assert rig.write(Disk(error=bug)) is None
    rig.run()
    assert rig.broken == [bug]
    assert rig.delivered == []


def test_after_stop_the_batches_before_are_still_written(rig: Rig) -> None:
    hanging = Disk(hangs=True)
    assert rig.write(hanging, may_wait=False) is None
    rig.thread.stop()
    hanging.let_go.set()
    rig.run()
    rig.run()
    assert rig.ended.is_set()
    assert len(rig.delivered) == 1
