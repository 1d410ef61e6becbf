"""Promise: requests that wait while a commit runs are committed together, and each caller gets its own outcome.

No caller waits for ever: not at a deadline, not after an interrupt, not when a callback writes again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from warren_raft.errors import Closed, StorageFull, Unavailable
from warren_raft.local import group_commit
from warren_raft.local.group_commit import GroupCommit, Outcome
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.own_thread import OwnThread

DEADLINE = 60.0


class Disk:
    """A commit that the test holds up: it shows its requests, and answers with each request's length."""

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []
        self.started = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.slow = True
        self.raises: BaseException | None = None
        self.running = 0
        self.threads: set[str] = set()

    def commit(self, requests: Sequence[bytes]) -> Sequence[Outcome]:
        self.running += 1
        self.threads.add(threading.current_thread().name)
        assert self.running == 1, "two commits at once"
        try:
            self.groups.append(list(requests))
            self.started.release()
            if self.slow:
                assert self.release.acquire(timeout=DEADLINE)
            if self.raises is not None:
                raise self.raises
            return [len(data) if data != b"bad" else StorageFull("bad") for data in requests]
        finally:
            self.running -= 1

    def wait_started(self) -> None:
        assert self.started.acquire(timeout=DEADLINE)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def commits(disk: Disk) -> Iterator[GroupCommit]:
    deliveries = Deliveries("test-futures")
    thread = OwnThread("test-commits", deliveries.look)
    thread.start()
    commits = GroupCommit(disk.commit, thread, deliveries, lambda: 1)
    yield commits
    disk.slow = False
    disk.release.release(100)
    close(commits)
    deliveries.finish(DEADLINE)
    thread.stop()
    thread.join(DEADLINE)
    assert not [each.name for each in threading.enumerate() if each.name.startswith("test-")]


def close(commits: GroupCommit) -> None:
    """As a store does it: in the thread that commits."""
    commits._thread.call(commits.close)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll: the awaited condition is inside the class, which must not get hooks for tests."""
    pause = threading.Event()
    for _ in range(int(DEADLINE * 1000)):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it never came true")


def queued(commits: GroupCommit) -> int:
    return len(commits._queue)


def test_a_single_caller_does_not_commit_in_its_own_thread(disk: Disk, commits: GroupCommit) -> None:
    """An exception that arrives in the caller's thread must find nothing half done."""
    disk.slow = False
    assert commits.run(b"four", DEADLINE) == 4
    assert disk.threads == {"test-commits"}


def test_waiting_requests_are_committed_together(disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor) -> None:
    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    others = [pool.submit(commits.run, b"x" * n, DEADLINE) for n in range(2, 12)]
    wait_until(lambda: queued(commits) == 10)
    disk.release.release(2)
    assert first.result(DEADLINE) == 1
    assert [other.result(DEADLINE) for other in others] == list(range(2, 12))
    assert [len(group) for group in disk.groups] == [1, 10]


def test_each_caller_gets_its_own_error(disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor) -> None:
    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    bad = pool.submit(commits.run, b"bad", DEADLINE)
    good = pool.submit(commits.run, b"good", DEADLINE)
    wait_until(lambda: queued(commits) == 2)
    disk.release.release(2)
    assert first.result(DEADLINE) == 1
    with pytest.raises(StorageFull):
        bad.result(DEADLINE)
    assert good.result(DEADLINE) == 4


def test_a_commit_that_fails_fails_its_own_group_only(disk: Disk, commits: GroupCommit) -> None:
    disk.slow = False
    disk.raises = OSError("broken disk")
    with pytest.raises(OSError, match="broken disk"):
        commits.run(b"1", DEADLINE)
    disk.raises = None
    assert commits.run(b"22", DEADLINE) == 2


def test_at_the_deadline_a_request_that_still_waits_was_certainly_not_applied(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor
) -> None:
    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    with pytest.raises(Unavailable) as caught:
        commits.run(b"late", 0.01)
    assert caught.value.maybe_applied is False
    disk.release.release()
    assert first.result(DEADLINE) == 1
    disk.slow = False
    assert commits.run(b"next", DEADLINE) == 4
    assert [data for group in disk.groups for data in group] == [b"1", b"next"]


def test_at_the_deadline_a_request_in_a_running_commit_may_be_applied(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor
) -> None:
    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    second = pool.submit(commits.run, b"22", DEADLINE)
    wait_until(lambda: queued(commits) == 1)
    third = pool.submit(commits.run, b"333", 0.2)
    wait_until(lambda: queued(commits) == 2)
    disk.release.release()
    disk.wait_started()  # second leads, and has taken third along
    with pytest.raises(Unavailable) as caught:
        third.result(DEADLINE)
    assert caught.value.maybe_applied is True
    disk.release.release()
    assert (first.result(DEADLINE), second.result(DEADLINE)) == (1, 2)


def test_a_future_is_returned_at_once_and_served_without_a_caller(disk: Disk, commits: GroupCommit) -> None:
    first = commits.start(b"1", DEADLINE)
    disk.wait_started()
    rest = [commits.start(b"x" * n, DEADLINE) for n in range(2, 50)]
    assert not first.done()
    disk.release.release(2)
    assert [future.result(DEADLINE) for future in rest] == list(range(2, 50))
    assert [len(group) for group in disk.groups] == [1, 48]


def test_the_error_of_a_future_is_in_the_future(disk: Disk, commits: GroupCommit) -> None:
    disk.slow = False
    with pytest.raises(StorageFull):
        commits.start(b"bad", DEADLINE).result(DEADLINE)


def test_callers_and_futures_are_served_in_order(disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor) -> None:
    futures = [commits.start(b"first", DEADLINE)]
    disk.wait_started()
    futures += [commits.start(b"b", DEADLINE), pool.submit(commits.run, b"c", DEADLINE)]
    wait_until(lambda: queued(commits) == 2)
    futures.append(commits.start(b"d", DEADLINE))
    disk.release.release(4)
    for future in futures:
        future.result(DEADLINE)
    assert [data for group in disk.groups for data in group] == [b"first", b"b", b"c", b"d"]


def test_a_callback_of_a_future_may_write_and_close(disk: Disk, commits: GroupCommit) -> None:
    """A callback may wait for another future, too: then another thread delivers the next ones."""
    disk.slow = False
    answers: list[int] = []
    done = threading.Event()

    def callback(_future: object) -> None:
        answers.append(commits.run(b"22", DEADLINE))
        answers.append(commits.start(b"333", DEADLINE).result(DEADLINE))
        close(commits)
        done.set()

    disk.slow = True
    future = commits.start(b"1", DEADLINE)
    disk.wait_started()
    future.add_done_callback(callback)
    disk.slow = False
    disk.release.release()
    assert done.wait(DEADLINE)
    assert answers == [2, 3]


def test_a_commit_that_is_broken_off_fails_its_own_group_only(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor
) -> None:
    disk.raises = SystemExit()
    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    second = pool.submit(commits.run, b"22", DEADLINE)
    wait_until(lambda: queued(commits) == 1)
    disk.release.release()
    with pytest.raises(Unavailable) as caught:
        first.result(DEADLINE)
    assert caught.value.maybe_applied is True
    disk.wait_started()
    disk.raises = None
    disk.release.release()
    assert second.result(DEADLINE) == 2


class Interrupted(BaseException):
    """Stands for a KeyboardInterrupt at a chosen place."""


def test_an_interrupted_caller_takes_its_request_along(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_request: object) -> bool:
        raise Interrupted

    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    with monkeypatch.context() as patch:
        patch.setattr(group_commit.Request, "wait", interrupted)
        with pytest.raises(Interrupted):
            commits.run(b"given up", DEADLINE)
    assert queued(commits) == 0
    disk.slow = False
    disk.release.release()
    assert first.result(DEADLINE) == 1
    assert commits.run(b"22", DEADLINE) == 2
    assert [data for group in disk.groups for data in group] == [b"1", b"22"]


def test_a_full_queue_refuses_a_request_with_a_future_at_once(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING", 2)
    first = commits.start(b"1", DEADLINE)
    disk.wait_started()
    futures = [commits.start(b"1", DEADLINE) for _ in range(2)]
    with pytest.raises(Unavailable) as caught:
        commits.start(b"1", DEADLINE)
    assert caught.value.maybe_applied is False
    waits = pool.submit(commits.run, b"4444", DEADLINE)  # as many as there are threads: no queue is needed for that
    wait_until(lambda: queued(commits) == 3)
    disk.slow = False
    disk.release.release()
    for future in [first, *futures]:
        assert future.result(DEADLINE) == 1
    assert waits.result(DEADLINE) == 4


def test_a_future_with_a_turn_that_comes_too_late_was_not_applied(disk: Disk, commits: GroupCommit) -> None:
    first = commits.start(b"1", DEADLINE)
    disk.wait_started()
    late = commits.start(b"late", 0)
    disk.slow = False
    disk.release.release()
    with pytest.raises(Unavailable) as caught:
        late.result(DEADLINE)
    assert caught.value.maybe_applied is False
    assert first.result(DEADLINE) == 1
    assert disk.groups == [[b"1"]]


def test_large_requests_fill_the_queue_sooner_but_a_single_one_always_fits(
    disk: Disk, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_BYTES", 10)
    monkeypatch.setattr(group_commit, "MAX_GROUP_BYTES", 10)
    futures = [commits.start(b"x" * 100, DEADLINE)]
    disk.wait_started()
    futures.append(commits.start(b"x" * 100, DEADLINE))
    with pytest.raises(Unavailable):
        commits.start(b"x" * 100, DEADLINE)
    disk.release.release(2)
    assert [future.result(DEADLINE) for future in futures] == [100, 100]


def test_a_large_request_has_room_beside_many_small_ones(
    disk: Disk, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_WAITING_BYTES", 100)
    futures = [commits.start(b"1", DEADLINE)]
    disk.wait_started()
    futures += [commits.start(b"1", DEADLINE) for _ in range(20)]
    futures.append(commits.start(b"x" * 50, DEADLINE))
    with pytest.raises(Unavailable):
        commits.start(b"x" * 50, DEADLINE)
    disk.slow = False
    disk.release.release()
    assert [future.result(DEADLINE) for future in futures] == [1] * 21 + [50]


def test_a_commit_takes_no_more_than_fits(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MAX_GROUP_BYTES", 10)
    first = pool.submit(commits.run, b"1", DEADLINE)
    disk.wait_started()
    others = [pool.submit(commits.run, b"x" * 4, DEADLINE) for _ in range(9)]
    wait_until(lambda: queued(commits) == 9)
    disk.slow = False
    disk.release.release()
    assert first.result(DEADLINE) == 1
    assert [other.result(DEADLINE) for other in others] == [4] * 9
    assert [len(group) for group in disk.groups] == [1, 2, 2, 2, 2, 1]


def test_close_waits_for_accepted_requests_and_refuses_the_rest(
    disk: Disk, commits: GroupCommit, pool: ThreadPoolExecutor
) -> None:
    future = commits.start(b"1", DEADLINE)
    disk.wait_started()
    commits.refuse()
    closing = pool.submit(close, commits)
    with pytest.raises(Closed):
        commits.run(b"2", DEADLINE)
    with pytest.raises(Closed):
        commits.start(b"2", DEADLINE)
    assert not closing.done()
    disk.release.release()
    assert future.result(DEADLINE) == 1
    closing.result(DEADLINE)
    close(commits)


def test_many_threads_each_get_the_answer_to_their_own_request(disk: Disk, commits: GroupCommit) -> None:
    disk.slow = False

    def caller(number: int) -> None:
        for round_ in range(200):
            data = b"x" * (number * 200 + round_)
            assert commits.run(data, DEADLINE) == len(data)
            if round_ % 10 == 0:
                assert commits.start(data, DEADLINE).result(DEADLINE) == len(data)

    with ThreadPoolExecutor(16) as pool:
        for result in [pool.submit(caller, number) for number in range(16)]:
            result.result(60)
    assert sum(len(group) for group in disk.groups) == 16 * 220
