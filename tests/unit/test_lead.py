"""Promise: a program that acts while its manager leads begins with a state that has everything, is told when it is
over, and writes nothing after that. A LocalStore leads always, so that such a program runs on it unchanged.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.unit.test_leadership import AtOnce, Here, opened
from warren_raft.aio.leading import AsyncLead
from warren_raft.leadership import loops
from warren_raft.leadership.callbacks import Leadership
from warren_raft.leadership.lead import Lead, Leading, Leads
from warren_raft.leadership.loops import Attempts
from warren_raft.store.command import Operation
from warren_raft.store.fence import Fence
from warren_raft.store.tables import Kind
from warren_raft.store.writing import Writer
from warren_raft.support.handover import Begun, Landing, Passed

DEADLINE = 60.0


@pytest.fixture(params=["local", "replicated"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[wr.LocalStore | wr.ReplicatedStore]:
    with wr.LocalStore(tmp_path / "s") if request.param == "local" else opened(tmp_path) as store:
        yield store


class Broken(Passed[int]):
    """A write of a coroutine that ends by an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(0)
        self._error = error

    def result(self) -> int:
        raise self._error


class Sent(Writer):
    """A store that only notes what it is given."""

    _default_timeout_seconds = 5.0

    def __init__(self) -> None:
        self.fences: list[int] = []
        """The term of each command; 0: it has no fence."""
        self.outcomes: list[BaseException | None] = []
        """Of the next commands; then each is carried out."""

    def _next(self, operations: tuple[Operation, ...], fence: Fence | None) -> BaseException | None:
        assert (fence is None) is (operations == ()), "only the empty command has no fence"
        self.fences.append(0 if fence is None else fence.term)
        return self.outcomes.pop(0) if self.outcomes else None

    def _execute(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> int:
        error = self._next(operations, fence)
        if error is not None:
            raise error
        return 7

    def _start(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Future[int]:
        error = self._next(operations, fence)
        future: Future[int] = Future()
        if error is None:
            future.set_result(7)
        else:
            future.set_exception(error)
        return future

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: Fence | None = None,
    ) -> Begun[int]:
        error = self._next(operations, fence)
        landing.release()
        if error is not None:
            return Broken(error)
        return Passed(7)

    def _latest_revision(self) -> int:
        return 7

    def _get(self, kind: Kind[Any], id: str) -> Any:  # noqa: A002
        return wr.Node(id=id)


# ---------------------------------------------------------------------------------------- the lead


def test_every_write_of_a_lead_has_its_term_as_fence() -> None:
    sent = Sent()
    lead = Lead(sent, Here(term_now=5), 5)
    lead.create_node(wr.Node(id="n"))
    lead.delete_service("s", cascade=True, request_id="job")
    lead.modify(wr.Node, "n", lambda node: replace(node, hostname="x"))
    with lead.batch() as batch:
        batch.create_node(wr.Node(id="n"))
    with lead.batch(wait=False) as batch:
        batch.require("node", "n", 0)
    assert batch.future.result(0) == 7
    assert sent.fences == [5] * 5


@pytest.mark.parametrize("change", [{"leads": False}, {"term_now": 6}], ids=str)
def test_a_lead_that_is_over_sends_nothing_and_never_comes_back(change: dict[str, Any]) -> None:
    here, sent = Here(term_now=5), Sent()
    lead = Lead(sent, here, 5)
    assert not lead.is_over
    assert not lead.wait_over(0)
    here.change(**change)
    assert lead.is_over
    here.change(leads=True, term_now=5)  # as after a raft thread that was stuck
    assert lead.is_over
    assert lead.wait_over(math.inf)
    for write in (lambda: lead.create_node(wr.Node(id="n")), lambda: lead.modify(wr.Node, "n", lambda node: node)):
        with pytest.raises(wr.LeadershipLost) as lost:
            write()
        assert lost.value.term == 5
    with pytest.raises(wr.LeadershipLost), lead.batch() as batch:
        batch.create_node(wr.Node(id="n"))
    with lead.batch(wait=False) as batch:
        batch.create_node(wr.Node(id="n"))
    assert isinstance(batch.future.exception(0), wr.LeadershipLost)
    assert sent.fences == []


def test_a_closed_store_is_closed_to_its_lead_too() -> None:
    here = Here(term_now=5)
    lead = Lead(Sent(), here, 5)
    here.change(leads=False, has_ended=True)
    assert lead.is_over
    with pytest.raises(wr.Closed):
        lead.create_node(wr.Node(id="n"))


def test_the_wait_for_leadership_ends_when_it_comes_at_the_timeout_and_with_the_store() -> None:
    here, sent = Here(term_now=5, leads=False), Sent()
    with (
        pytest.raises(wr.Unavailable, match=r"did not get to lead within 0\.01 s") as caught,
        Leading(sent, Leads(here), 0.01),
    ):
        pass
    assert (caught.value.maybe_applied, caught.value.of_write) == (False, False)
    with pytest.raises(wr.InvalidEntity):
        Leading(sent, Leads(here), -1)
    found: list[int] = []

    def run() -> None:
        with Leading(sent, Leads(here), None) as lead:
            found.append(lead.term)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    here.change(term_now=6, leads=True)
    thread.join(DEADLINE)
    assert found == [6]
    here.change(has_ended=True)
    with pytest.raises(wr.Closed), Leading(sent, Leads(here), None):
        pass


def test_a_wait_for_leadership_is_used_once() -> None:
    leading = Leading(Sent(), Leads(Here()), 1)
    with leading, pytest.raises(wr.Misuse), leading:
        pass


# ---------------------------------------------------------------------------------------- writes of unknown end

UNKNOWN = wr.Unavailable("late", maybe_applied=True)
KNOWN = [wr.Unavailable("late", maybe_applied=False), wr.RevisionConflict("node", "n", 0, 1), wr.LeadershipLost(5)]


class Interrupt(BaseException):
    """What a signal handler raises."""


def write(lead: Lead) -> None:
    lead.create_node(wr.Node(id="n"))


def write_by_future(lead: Lead) -> None:
    with lead.batch(wait=False) as batch:
        batch.create_node(wr.Node(id="n"))
    batch.future.result(DEADLINE)


def write_by_coroutine(lead: Lead) -> None:
    async def main() -> None:
        await AsyncLead(lead).create_node(wr.Node(id="n"))

    asyncio.run(main())


WAYS = [write, write_by_future, write_by_coroutine]


@pytest.mark.parametrize("way", WAYS)
def test_a_lead_is_over_when_the_end_of_a_write_is_not_known(way: Callable[[Lead], object]) -> None:
    """Otherwise the next pass reads a state without this write, and makes it again under new ids."""
    sent, rung = Sent(), threading.Event()
    lead = Lead(sent, Here(term_now=5), 5, ring=rung.set)
    sent.outcomes = [UNKNOWN]
    with pytest.raises(wr.Unavailable):
        way(lead)
    assert lead.is_over
    assert rung.is_set()
    with pytest.raises(wr.LeadershipLost, match="lead of term 5 is over: the end of one of its writes is not known"):
        way(lead)
    assert sent.fences == [5]


@pytest.mark.parametrize("way", WAYS)
def test_a_lead_goes_on_after_an_error_that_says_that_nothing_is_carried_out(way: Callable[[Lead], object]) -> None:
    sent = Sent()
    lead = Lead(sent, Here(term_now=5), 5)
    sent.outcomes = [*KNOWN]
    for error in KNOWN:
        with pytest.raises(type(error)):
            way(lead)
    way(lead)
    assert not lead.is_over


def test_a_write_that_is_interrupted_ends_its_lead() -> None:
    sent = Sent()
    lead = Lead(sent, Here(term_now=5), 5)
    sent.outcomes = [Interrupt()]
    with pytest.raises(Interrupt):
        write(lead)
    assert lead.is_over


@pytest.mark.parametrize("way", ["_start", "_begin"])
def test_a_write_that_is_interrupted_before_its_future_is_known_ends_its_lead(way: str) -> None:
    """It may be on its way. (Pins a fault: the lead went on, and its function could make the same thing twice.)"""
    sent = Sent()
    lead = Lead(sent, Here(term_now=5), 5)

    def interrupted(*_arguments: Any, **_more: Any) -> Any:
        raise Interrupt

    setattr(sent, way, interrupted)
    with pytest.raises(Interrupt):
        getattr(lead, way)((), 1.0, *([cast(Landing, None)] if way == "_begin" else []))
    assert lead.is_over


def test_the_future_of_a_write_ends_after_its_lead() -> None:
    """A program that waits for the future begins its next pass at once."""
    started: Future[int] = Future()
    sent = Sent()
    sent._start = lambda *_arguments, **_more: started  # type: ignore[method-assign]
    lead = Lead(sent, Here(term_now=5), 5)
    with lead.batch(wait=False) as batch:
        batch.create_node(wr.Node(id="n"))
    was_over: list[bool] = []
    batch.future.add_done_callback(lambda _future: was_over.append(lead.is_over))
    started.set_exception(UNKNOWN)
    assert was_over == [True]


def test_the_next_lead_of_a_term_begins_behind_an_empty_command() -> None:
    sent, here = Sent(), Here(term_now=5)
    leads = Leads(here)
    for _ in range(2):
        with Leading(sent, leads, None) as lead:
            write(lead)
        assert lead.is_over
        with pytest.raises(wr.LeadershipLost, match="its block or its function has ended"):
            write(lead)
    here.change(term_now=6)
    with Leading(sent, leads, None) as lead:
        write(lead)
    assert sent.fences == [5, 0, 5, 6]


def test_no_lead_begins_before_its_empty_command_is_carried_out() -> None:
    sent, here = Sent(), Here(term_now=5)
    leads = Leads(here)
    with Leading(sent, leads, None):
        pass
    sent.outcomes = [UNKNOWN, UNKNOWN, None]
    with Leading(sent, leads, None):
        assert sent.fences == [0, 0, 0]
    sent.outcomes = [UNKNOWN] * 1000
    with pytest.raises(wr.Unavailable, match=r"did not get to lead within 0\.25 s"), Leading(sent, leads, 0.25):
        pass
    assert 2 <= len(sent.fences) - 3 < 10


def test_an_empty_command_that_another_leader_carries_out_begins_no_lead() -> None:
    class Deposed(Sent):
        def _execute(self, operations: tuple[Operation, ...], *_arguments: Any, **_more: Any) -> int:
            here.change(term_now=7)
            return super()._execute(operations, *_arguments, **_more)

    here, sent = Here(term_now=5), Deposed()
    leads = Leads(here)
    with Leading(sent, leads, None) as lead:
        assert lead.term == 5
    with Leading(sent, leads, None) as lead:
        assert (lead.term, sent.fences) == (7, [0])


def test_a_term_that_is_told_late_makes_no_later_one_new_again() -> None:
    leads = Leads(Here())
    assert [leads.is_first(term) for term in (3, 5, 3, 5, 4, 5, 6, 6)] == [
        *(True, True, True, False, True, False),
        *(True, False),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_store_refuses_what_a_lead_has_not_sent_at_its_end(
    store: wr.LocalStore | wr.ReplicatedStore, way: Callable[[Lead], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread is between the look at its lead and its write when the lead ends by the write of another thread."""
    with store.leading(DEADLINE) as lead:
        monkeypatch.setattr(lead, "_require", lambda: lead._end("the test"))
        with pytest.raises(wr.LeadershipLost, match="over: the test"):
            way(lead)
    assert store.list_nodes() == []


# ---------------------------------------------------------------------------------------- loops


class Loop:
    """A function for `run_while_leading` that notes its leads, and then does what the test says."""

    def __init__(self, then: Callable[[wr.Lead], object] = lambda lead: None) -> None:
        self.terms: list[int] = []
        self.left = 0
        self._then = then

    def __call__(self, lead: wr.Lead) -> None:
        self.terms.append(lead.term)
        try:
            self._then(lead)
        finally:
            self.left += 1

    def wait(self, *terms: int, left: int) -> None:
        wait_until(lambda: (self.terms, self.left) == (list(terms), left), f"{terms}, {left}; it is {vars(self)}")


def running(here: Here, loop: Loop) -> tuple[Leadership, Callable[[], None]]:
    leadership = Leadership(here, AtOnce())
    return leadership, leadership.run_while_leading(Sent(), loop)


def test_the_function_runs_once_each_time_this_manager_leads() -> None:
    here = Here(term_now=3, leads=False)
    loop = Loop(lambda lead: lead.wait_over())
    leadership, _ = running(here, loop)
    here.change(leads=True)
    loop.wait(3, left=0)
    here.change(term_now=5)  # lost, and won again
    loop.wait(3, 5, left=1)
    here.change(leads=False)
    loop.wait(3, 5, left=2)
    here.change(leads=True, term_now=9)
    loop.wait(3, 5, 9, left=2)
    here.change(leads=False, has_ended=True)
    leadership.join(DEADLINE, but=())
    assert (loop.terms, loop.left) == ([3, 5, 9], 3)


def test_a_function_that_returns_is_not_called_again_in_the_same_term() -> None:
    here, loop = Here(term_now=3), Loop()
    leadership, _ = running(here, loop)
    loop.wait(3, left=1)
    here.change(leads=False)
    here.change(leads=True, term_now=4)
    loop.wait(3, 4, left=2)
    here.change(has_ended=True, leads=False)
    leadership.join(DEADLINE, but=())


def lost(lead: wr.Lead) -> None:
    raise wr.LeadershipLost(lead.term)


def test_a_lost_leadership_that_leaves_the_function_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    here, loop = Here(term_now=3), Loop(lost)
    leadership, _ = running(here, loop)
    loop.wait(3, left=1)
    here.change(term_now=4)
    loop.wait(3, 4, left=2)
    here.change(has_ended=True, leads=False)
    leadership.join(DEADLINE, but=())
    assert caplog.records == []


def late(lead: wr.Lead) -> None:
    raise wr.Unavailable("no majority", maybe_applied=True)


def test_trouble_of_the_cluster_is_one_line_in_the_log_and_the_next_lead_begins(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.001)
    leads: list[wr.Lead] = []
    here, loop = Here(term_now=3), Loop(lambda lead: (leads.append(lead), late(lead)))
    leadership, _ = running(here, loop)
    wait_until(lambda: loop.left >= 2, "it to be called again")
    here.change(has_ended=True, leads=False)
    leadership.join(DEADLINE, but=())
    assert leads[0] is not leads[1]
    assert leads[0].is_over
    assert all(record.exc_info is None for record in caplog.records)
    assert {(record.levelname, record.getMessage()) for record in caplog.records} == {
        (
            "WARNING",
            "function of a leader begins again term=3: no majority; the change may have been applied, or may still be",
        )
    }


def fail(_lead: wr.Lead) -> None:
    raise SystemExit("a bug")


def test_a_function_that_fails_is_called_again_and_the_error_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconciler that stopped for good at its first error would be missed only when nothing is repaired any more."""
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.001)
    here, loop = Here(term_now=3), Loop(fail)
    leadership, _ = running(here, loop)
    wait_until(lambda: loop.left >= 3, "it to be called again")
    here.change(has_ended=True, leads=False)
    leadership.join(DEADLINE, but=())
    assert {record.getMessage().partition(":")[0].split(" term=")[0] for record in caplog.records}
    assert "function of a leader failed" in caplog.text
    assert "a bug" in caplog.text


def test_a_function_that_has_worked_for_a_while_is_called_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(loops.time, "monotonic", lambda: now)
    attempts, pauses = Attempts(), []
    for term, runs_seconds in [(3, 0), (3, 0), (3, 0), (3, 0), (3, 3600), (3, 0), (3, 0), (4, 0)]:
        attempts.begin(term)
        now += runs_seconds
        pauses.append(attempts.failed(ValueError()))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 1, 2, 4, 1]


def test_the_end_of_the_calls_is_the_end_of_the_lead() -> None:
    here, loop = Here(term_now=3), Loop(lambda lead: lead.wait_over())
    leadership, unsubscribe = running(here, loop)
    loop.wait(3, left=0)
    unsubscribe()
    loop.wait(3, left=1)
    leadership.join(DEADLINE, but=())
    here.change(term_now=4)
    assert (loop.terms, loop.left) == ([3], 1)


# ---------------------------------------------------------------------------------------- on real stores


def test_a_store_gives_a_lead_and_ends_it_when_it_closes(store: wr.LocalStore | wr.ReplicatedStore) -> None:
    loop, told = Loop(lambda lead: lead.wait_over()), []
    store.run_while_leading(loop)
    store.on_leadership(lambda leads, term: told.append((leads, term)))
    with store.leading(timeout=DEADLINE) as lead:
        assert store.is_leader
        revision = lead.create_node(wr.Node(id="n"))
        assert store.get_node("n").revision == revision
        with lead.batch() as batch:
            batch.require("node", "n", revision)
            batch.create_node(wr.Node(id="m"))
        assert not lead.is_over
        loop.wait(lead.term, left=0)
        wait_until(lambda: (True, lead.term) in told, "the callback")
        assert repr(lead).endswith(f"in term {lead.term}>")
        store.close()
        assert not store.is_leader
        assert lead.wait_over(DEADLINE)
    wait_until(lambda: told[-1][0] is False, "the callback")
    loop.wait(lead.term, left=1)
    for call in (lambda: store.run_while_leading(loop), lambda: store.on_leadership(lambda leads, term: None)):
        with pytest.raises(wr.Closed):
            call()
    for enter in (lambda: store.leading().__enter__(), lambda: lead.create_node(wr.Node(id="x"))):
        with pytest.raises(wr.Closed):
            enter()


def test_a_loop_may_close_its_store(store: wr.LocalStore | wr.ReplicatedStore) -> None:
    store.run_while_leading(lambda lead: store.close())
    wait_until(lambda: "closed" in repr(store), "the end")


def test_a_loop_that_waits_when_its_store_is_closed_is_no_error(
    store: wr.LocalStore | wr.ReplicatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop of most programs: a pass, then the wait for a change. Each regular end had a traceback in the log."""
    ends: list[type[BaseException]] = []
    waits = threading.Semaphore(0)

    def until_closed(wait: Callable[[], object]) -> None:
        waits.release()
        try:
            wait()
        except wr.Closed as error:
            ends.append(type(error))
            raise

    def call(_leads: bool, _term: int) -> None:
        with store.watch() as changes:
            until_closed(changes.take)

    def run(lead: Lead) -> None:
        with store.watch() as changes:
            until_closed(changes.take)

    store.run_while_leading(run)
    store.on_leadership(call)
    for _ in range(2):
        assert waits.acquire(timeout=DEADLINE)
    store.close()
    wait_until(lambda: len(ends) == 2, "the ends of the loop and of the callback")
    for thread in threading.enumerate():
        if thread.name.startswith("warren-raft-leadership"):
            thread.join(DEADLINE)
    assert [record.getMessage() for record in caplog.records if ".leadership." in record.name] == []


def test_a_closed_watch_in_a_loop_is_an_error_while_the_store_is_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(lead: Lead) -> None:
        watch = store.watch()
        watch.close()
        watch.take()

    with wr.LocalStore(tmp_path / "s") as store:
        store.run_while_leading(run)
        wait_until(lambda: "function of a leader failed" in caplog.text, "the line in the log")


def test_the_loop_in_the_page_on_embedding_works(tmp_path: Path) -> None:
    page = (Path(wr.__file__).parent.parent / "docs" / "embedding.md").read_text(encoding="utf-8")
    loop, begin = (part.split("```")[0] for part in page.split("```python\n")[1:3])
    source = loop.replace("wait_over(5)", "wait_over(0.01)") + begin
    with wr.LocalStore(tmp_path / "s") as store:
        store.create_service(wr.Service(id="svc-1", replicas=3))
        names: dict[str, Any] = {"store": store}
        exec(source, names)
        wait_until(lambda: len(store.list_containers_by_service("svc-1")) == 3, "the containers")
        store.modify(wr.Service, "svc-1", lambda service: replace(service, replicas=5))
        wait_until(lambda: len(store.list_containers_by_service("svc-1")) == 5, "two more")
        names["unsubscribe"]()


# ---------------------------------------------------------------------------------------- modify


def test_modify_changes_the_entity_as_it_is(store: wr.LocalStore | wr.ReplicatedStore) -> None:
    store.create_service(wr.Service(id="s", name="web", replicas=1), timeout=DEADLINE)
    tries = []

    def double(service: wr.Service) -> wr.Service:
        tries.append(service.replicas)
        if len(tries) == 1:  # another caller comes in between
            store.update_service(replace(service, replicas=10))
        return replace(service, replicas=2 * service.replicas, env=["A=b"])  # type: ignore[arg-type]

    new = store.modify(wr.Service, "s", double, timeout=DEADLINE)
    assert tries == [1, 10]
    assert (new, new.revision) == (store.get_service("s"), store.get_service("s").revision)
    assert (new.replicas, new.env) == (20, ("A=b",))
    assert store.modify(wr.Service, "s", lambda service: service).revision == new.revision


def test_modify_raises_what_is_wrong_and_writes_nothing(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        revision = store.create_node(wr.Node(id="n"))
        with pytest.raises(wr.NotFound):
            store.modify(wr.Node, "m", lambda node: node)
        with pytest.raises(wr.InvalidEntity, match="another id"):
            store.modify(wr.Node, "n", lambda node: replace(node, id="m"))
        with pytest.raises(wr.InvalidEntity, match="must be a Node"):
            store.modify(wr.Node, "n", lambda node: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(wr.InvalidEntity, match="not a class of entities"):
            store.modify(bytes, "ca", lambda data: data)
        with pytest.raises(wr.InvalidEntity, match="not a class of entities"):
            store.modify(None, "ca", lambda data: data)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            store.modify(wr.Node, "n", lambda node: replace(node, hostname=str(1 // 0)))
        with pytest.raises(wr.InvalidEntity, match="timeout"):
            store.modify(wr.Node, "n", lambda node: node, timeout=-1)
        assert store.get_node("n").revision == revision


class Raced(Sent):
    """Another writer is always quicker."""

    def _execute(self, *_operations: Any, **_more: Any) -> int:
        self.fences.append(0)
        raise wr.RevisionConflict("node", "n", 0, 1)


def test_modify_gives_up_at_its_timeout_and_has_changed_nothing() -> None:
    raced = Raced()
    with pytest.raises(wr.Unavailable, match="node 'n' was changed by others at each attempt") as caught:
        raced.modify(wr.Node, "n", lambda node: node, timeout=0)
    assert not caught.value.maybe_applied
    assert isinstance(caught.value.__cause__, wr.RevisionConflict)
    assert len(raced.fences) == 1, "it is tried once, even without any time"


# ---------------------------------------------------------------------------------------- request ids, conditions


def test_a_write_with_a_known_request_id_is_not_done_again(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        first = store.create_node(wr.Node(id="n", hostname="a"), request_id="job-17")
        store.create_node(wr.Node(id="m"))
    with wr.LocalStore(tmp_path / "s") as store:
        assert store.update_node(wr.Node(id="n", hostname="b"), request_id="job-17") == first
        assert store.delete_node("n", request_id="job-17") == first
        with store.batch(request_id="job-17") as batch:
            batch.delete_node("m")
        assert batch.revision == first
        with store.batch(wait=False) as batch:
            batch.delete_node("m", request_id="job-17")
            batch.delete_node("n")
        assert batch.future.result(DEADLINE) == first
        assert [node.id for node in store.list_nodes()] == ["m", "n"]


def test_a_request_id_is_remembered_for_its_time(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "s", request_memory_seconds=0) as store:
        first = store.create_node(wr.Node(id="n", hostname="a"), request_id="job-17")
        store.create_node(wr.Node(id="m"), request_id="job-18")
        store.create_node(wr.Node(id="o"), request_id="job-19")
        assert store.create_node(wr.Node(id="n", hostname="b"), request_id="job-17") > first


@pytest.mark.parametrize("request_id", ["", "x" * 129, "ä" * 65, "\ud800", 17, b"job"])
def test_a_wrong_request_id_is_refused_before_anything_is_sent(tmp_path: Path, request_id: Any) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        for call in (
            lambda: store.create_node(wr.Node(id="n"), request_id=request_id),
            lambda: store.batch(request_id=request_id),
        ):
            with pytest.raises(wr.InvalidEntity, match="request_id") as caught:
                call()
            assert caught.value.field == "request_id"
        assert store.create_node(wr.Node(id="n"), request_id="x" * 128) == 1
        assert store.list_nodes() == [wr.Node(id="n")]


def test_a_batch_has_one_request_id(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        with store.batch(request_id="job") as batch:
            batch.create_node(wr.Node(id="n"), request_id="job")
            with pytest.raises(wr.Misuse, match="second one"):
                batch.create_node(wr.Node(id="m"), request_id="other")
        assert [node.id for node in store.list_nodes()] == ["n"]


def test_a_required_revision_that_is_wrong_refuses_the_batch(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "s") as store:
        revision = store.create_service(wr.Service(id="s", name="web"))
        with store.batch() as batch:
            batch.require("service", "s", revision)
            batch.require("services", "t", 0)
            batch.create_container(wr.Container(id="c", service_id="s"))
        refused = store.batch(wait=False)
        with refused:
            refused.create_container(wr.Container(id="d", service_id="s"))
            refused.require("service", "s", 0)
        with pytest.raises(wr.RevisionConflict) as caught:
            refused.future.result(DEADLINE)
        assert (caught.value.kind, caught.value.id, caught.value.expected, caught.value.actual) == (
            "service", "s", 0, revision,
        )  # fmt: skip
        assert [each.id for each in store.list_containers()] == ["c"]
        with store.batch() as batch:
            for wrong in (("thing", "s", 1), ("service", "", 1), ("service", "s", -1), ("service", "s", None)):
                with pytest.raises(wr.InvalidEntity):
                    batch.require(*wrong)  # type: ignore[arg-type]
        with pytest.raises(wr.Misuse):
            batch.require("service", "s", 1)
