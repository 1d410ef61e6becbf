"""The promise: `batch(wait=False)` returns at once and raises for nothing that the cluster does. Every write ends, in
its future or in its caller. The writes of one thread are sent in the order in which they were made.

(Pins: without a leader, the first write of a process blocked for the whole timeout, and then raised.)
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports, wait_until
from warren_raft.fsm.answers import STALE, UNKNOWN_SESSION, Result
from warren_raft.manager import session as module
from warren_raft.manager.session import QUEUE_FULL, Write, Writes
from warren_raft.raft.fitness import NO_QUORUM
from warren_raft.raft.submit import Proposal
from warren_raft.store.command import (
    OPEN_SESSION,
    Operation,
    Verb,
    decode,
    encode_body,
)
from warren_raft.store.database import Database
from warren_raft.support.deliveries import Deliveries
from warren_raft.support.waking import Sleeper

DEADLINE = 60.0
SOON = 20.0
"""For steps that do not block, on a busy machine. A step that blocks takes DEADLINE."""


# ------------------------------------------------------------------------------------------------- by itself


class Sent:
    """The writes, and the commands that come out of it."""

    def __init__(self, queue_limit: int = 100) -> None:
        self.writes = Writes("m1", queue_limit, Deliveries("test-futures"))
        self.proposals: list[Proposal] = []

    def take(self, *writes: Write) -> list[str]:
        """The ids of the nodes that are sent now; "open" for a session."""
        proposals = self.writes.take(writes)
        self.proposals += proposals
        return [name_of(proposal) for proposal in proposals]

    def end(self, name: str, *error: str) -> None:
        """The state machine's answer."""
        proposal = next(each for each in self.proposals if name_of(each) == name)
        self.proposals.remove(proposal)
        proposal.outcome = Result(proposal.session, proposal.sequence, 7, error or None)
        proposal.done(proposal)

    def write(self, name: str, deadline: float = math.inf) -> Write:
        data = encode_body([Operation(Verb.DELETE, 1, name)])
        write = Write(0, 0, data, deadline, self.writes.done)
        write.prepare_wait()
        return write


def name_of(proposal: Proposal) -> str:
    (operation,) = decode(proposal.data).operations
    return "open" if operation.verb == OPEN_SESSION else operation.id


def test_writes_wait_for_the_session_and_keep_their_order() -> None:
    sent = Sent()
    a, b, c = (sent.write(name) for name in "abc")
    assert sent.take(a, b) == ["open"]
    assert sent.take(c) == []
    assert not sent.writes.has_more
    sent.end("open")
    assert sent.writes.has_more
    assert sent.take() == ["a", "b", "c"]
    commands = [decode(proposal.data) for proposal in sent.proposals]
    assert len({command.session for command in commands}) == 1
    assert [command.sequence for command in commands] == [2, 3, 4]
    assert [command.lowest for command in commands] == [2, 2, 2]


def test_no_more_than_the_limit_are_out_and_the_lowest_that_waits_is_told() -> None:
    sent = Sent(queue_limit=2)
    writes = [sent.write(name) for name in "abcd"]
    sent.take(*writes)
    sent.end("open")
    assert sent.take() == ["a", "b"]
    assert not sent.writes.has_more
    sent.end("b")
    assert writes[1].wait(0)
    assert writes[1].result() == 7
    assert sent.take() == ["c"]
    assert decode(sent.proposals[-1].data).lowest == 2, "a is still out"
    sent.end("a")
    assert sent.take() == ["d"]
    assert decode(sent.proposals[-1].data).lowest == 4


def test_the_window_of_the_session_is_never_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SESSION_WINDOW", 4)
    sent = Sent()
    sent.take(*(sent.write(name) for name in "abcdefgh"))
    sent.end("open")
    assert sent.take() == ["a", "b", "c", "d"]
    for name in "bcd":
        sent.end(name)
    assert sent.take() == [], "a has no answer: the session must remember all that follow it"
    sent.end("a")
    assert sent.take() == ["e", "f", "g", "h"]


def test_a_session_that_the_cluster_has_forgotten_is_opened_again() -> None:
    sent = Sent()
    a, b = sent.write("a"), sent.write("b")
    sent.take(a)
    sent.end("open")
    sent.take()
    sent.end("a", UNKNOWN_SESSION)
    with pytest.raises(wr.Unavailable, match="no longer knows the session"):
        a.result()
    assert sent.take(b) == ["open"]
    sent.end("open")
    assert sent.take() == ["b"]
    sent.end("b", STALE)
    with pytest.raises(wr.Unavailable):
        b.result()
    assert sent.take(sent.write("c")) == ["c"], "the session is as good as before"


@pytest.mark.parametrize("full", [False, True])
def test_at_the_deadline_a_held_write_ends_with_the_reason(full: bool) -> None:
    sent = Sent(queue_limit=1)
    early, late = sent.write("early", deadline=10.0), sent.write("late")
    early.needs_space = True
    sent.take(early, late)
    sent.writes.expire(9.9, lambda: (NO_QUORUM, full))
    assert not early.wait(0)
    sent.writes.expire(10.0, lambda: (NO_QUORUM, full))
    assert early.wait(0)
    with pytest.raises(wr.StorageFull if full else wr.Unavailable, match=NO_QUORUM):
        early.result()
    sent.end("open")
    assert sent.take(sent.write("b", deadline=20.0)) == ["late"]
    sent.writes.expire(20.0, lambda: (NO_QUORUM, full))
    sent.end("late")
    assert sent.take() == []


def test_a_write_that_its_caller_gave_up_is_not_sent() -> None:
    sent = Sent()
    a, b = sent.write("a"), sent.write("b")
    sent.take(a, b)
    a.give_up()
    sent.writes.expire(0.0, lambda: (NO_QUORUM, False))
    sent.end("open")
    assert sent.take() == ["b"]


def test_the_end_ends_every_write_once() -> None:
    sent = Sent(queue_limit=1)
    out, held, submitted = (sent.write(name) for name in ("out", "held", "submitted"))
    sent.take(out, held)
    sent.end("open")
    assert sent.take() == ["out"]
    sent.writes.end_all([submitted], "it is over")
    for write, kind in ((out, wr.Unavailable), (held, wr.Closed), (submitted, wr.Closed)):
        assert write.wait(0)
        with pytest.raises(kind, match="it is over"):
            write.result()
    sent.end("out")  # the raft thread was stuck, and goes on
    sent.writes.end_all([], "again")


# ------------------------------------------------------------------------------------------------- in a store


def replicated(directory: Path, others: int = 0, **settings: Any) -> wr.ReplicatedStore:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(1 + others)]
    members = {f"m{number}": address for number, address in enumerate(addresses, 1)}
    return wr.ReplicatedStore(
        wr.Config(
            node_id="m1",
            data_dir=directory / "m1",
            listen=addresses[0],
            members=members,
            write_timeout_seconds=DEADLINE,
            admin=False,
            **settings,
        )
    )


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[wr.ReplicatedStore]:
    """Never has a leader."""
    with replicated(tmp_path, others=1, queue_limit=3) as store:
        yield store


def start(store: Any, name: str = "n", timeout: float | None = None) -> Any:
    """The future of a write that nobody waits for. It must not block."""
    began = time.monotonic()
    with store.batch(wait=False, timeout=timeout) as batch:
        batch.create_node(wr.Node(id=name))
    assert time.monotonic() - began < SOON
    return batch.future


def test_without_a_leader_the_future_ends_at_its_deadline(lonely: wr.ReplicatedStore) -> None:
    futures = [start(lonely, timeout=0.3) for _ in range(10)]  # more than the queue takes
    for future in futures:
        error = future.exception(DEADLINE)
        assert isinstance(error, wr.Unavailable)
        assert error.maybe_applied is False
        assert "no leader" in str(error)


def test_a_write_that_the_queue_cannot_take_ends_at_once(
    lonely: wr.ReplicatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 2)
    futures = [start(lonely, timeout=math.inf) for _ in range(6)]
    error = futures[5].exception(SOON)
    assert isinstance(error, wr.Unavailable)
    assert (error.reason, error.maybe_applied) == (QUEUE_FULL, False)
    assert not any(future.done() for future in futures[:5])
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            lonely.create_node(wr.Node(id="waits"), timeout=math.inf)
        except wr.WarrenError as error:
            ended.append(error)

    waits = threading.Thread(target=wait)
    waits.start()  # a write with a waiting thread is accepted: there are only as many as there are threads
    wait_until(lambda: len(lonely._parts.writes._outstanding) == 6, "it to wait")
    lonely.close()
    waits.join(DEADLINE)
    assert [type(error) for error in ended] == [wr.Closed]
    assert all(isinstance(future.exception(DEADLINE), wr.Closed) for future in futures[:5])


def test_a_write_with_too_many_bytes_for_the_queue_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large write beside many small ones is accepted; many large ones are not."""
    monkeypatch.setattr(module, "OUTSTANDING_BYTES", 10_000)
    with replicated(tmp_path, others=1) as store:
        writes = store._parts.writes
        futures = [start(store, timeout=math.inf) for _ in range(50)]

        def none_is_on_its_way() -> bool:
            return len(writes._held) == sum(not future.done() for future in futures)

        for _ in range(30):
            wait_until(none_is_on_its_way, "the write is held, or refused")  # until then its bytes may be in no count
            futures.append(start(store, "x" * 500, timeout=math.inf))
        futures[-1].exception(DEADLINE)
        first = next(number for number, future in enumerate(futures) if future.done())
        assert 55 < first < 75
        assert all(future.done() for future in futures[first:])
        assert not any(future.done() for future in futures[:first])
        store._parts.driver.end_writes("the end")
        assert store._parts.writes._outstanding_bytes >= 0


def test_bytes_are_given_back(tmp_path: Path) -> None:
    with replicated(tmp_path) as store:
        for future in [start(store, "x" * 100) for _ in range(20)]:
            future.result(DEADLINE)
        store.create_node(wr.Node(id="n"))
        assert store._parts.writes._outstanding_bytes == 0


def test_writes_of_one_thread_keep_their_order_waited_for_or_not(tmp_path: Path) -> None:
    with replicated(tmp_path, queue_limit=3) as store:
        futures = [start(store, f"n-{n}") for n in range(20)]  # before there is a leader, and a session
        revision = store.create_node(wr.Node(id="n"))
        revisions = [future.result(DEADLINE) for future in futures]
        assert revisions == sorted(revisions)
        assert revision > revisions[-1]


def test_callers_that_do_not_wake_each_other_are_woken_by_the_raft_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each of them were interrupted when it begins to wake the next."""
    monkeypatch.setattr(Sleeper, "leave", lambda _sleeper: None)
    with replicated(tmp_path) as store:
        store.wait_ready(DEADLINE)
        done: list[int] = []

        def write() -> None:
            done.extend(store.create_node(wr.Node(id="n"), timeout=math.inf) for _ in range(5))

        threads = [threading.Thread(target=write, daemon=True) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(done) == 100, "all callers to be woken", DEADLINE)


def closed(store: Any, _patch: pytest.MonkeyPatch) -> None:
    store.close()


def failed(store: Any, _patch: pytest.MonkeyPatch) -> None:
    if isinstance(store, wr.ReplicatedStore):
        store._parts.life.fail(wr.InvariantViolation("a test"))
    else:
        store._failure = wr.InvariantViolation("a test")


def full(store: Any, patch: pytest.MonkeyPatch) -> None:
    if isinstance(store, wr.ReplicatedStore):
        patch.setattr(store._parts.driver.engine._fitness, "is_full", True)
        patch.setattr(type(store._parts.driver.engine), "step", lambda *_: [])
    else:
        store._room._is_over_quota = True
        patch.setattr("warren_raft.local.store.QUOTA_BYTES", -1)


def test_an_error_of_the_disk_is_in_the_future_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_database: Database) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with wr.LocalStore(tmp_path / "local") as store:
        monkeypatch.setattr(Database, "free_bytes", broken)
        error = start(store).exception(DEADLINE)
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO


@pytest.mark.parametrize("kind", ["replicated", "local"])
@pytest.mark.parametrize(
    ("trouble", "errors"),
    [(closed, (wr.Closed,)), (failed, (wr.Closed, wr.InvariantViolation)), (full, (wr.StorageFull,))],
)
def test_an_error_of_the_store_is_in_the_future(
    kind: str,
    trouble: Callable[[Any, pytest.MonkeyPatch], None],
    errors: tuple[type[Exception], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with replicated(tmp_path) if kind == "replicated" else wr.LocalStore(tmp_path / "local") as store:
        if isinstance(store, wr.ReplicatedStore):
            store.wait_ready(DEADLINE)
        with monkeypatch.context() as patch:
            trouble(store, patch)
            assert isinstance(start(store).exception(DEADLINE), errors)
            if trouble is closed:
                with store.batch(wait=False) as empty:
                    pass
                assert isinstance(empty.future.exception(DEADLINE), errors)


def test_the_callers_own_fault_is_raised(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path) as store:
        with pytest.raises(wr.InvalidEntity), store.batch(wait=False) as batch:
            batch.create_node(wr.Node(id=""))
        with pytest.raises(wr.InvalidEntity):
            store.batch(wait=False, timeout=-1)


@pytest.mark.slow
def test_a_callback_that_takes_long_costs_no_leadership(tmp_path: Path) -> None:
    with replicated(tmp_path) as store:
        store.wait_ready(DEADLINE)
        steps = store._parts.driver.steps
        let_go = threading.Event()
        future = start(store)
        future.add_done_callback(lambda _future: let_go.wait(2 * DEADLINE))
        future.result(DEADLINE)
        wait_until(lambda: store._parts.driver.steps > steps + 20, "the raft thread to go on")
        assert start(store).result(DEADLINE)
        let_go.set()


def test_of_a_manager_that_stops_each_future_is_told_whatever_the_callback_of_another_does(tmp_path: Path) -> None:
    """The thread that replaces a blocked one had gone to sleep, because there was nothing to deliver yet."""
    let_go = threading.Event()
    with replicated(tmp_path) as store:
        store.wait_ready(DEADLINE)
        store._parts.life.fail(wr.InvariantViolation("the disk is broken, say"))
        wait_until(lambda: store._parts._own._jobs.empty(), "the store's own thread to be idle")
        for _ in range(3):
            store._parts._own.call(lambda: None)
        told = threading.Event()
        store._parts._deliveries.put([lambda: let_go.wait(2 * DEADLINE), told.set])
        assert told.wait(DEADLINE)
        let_go.set()
