"""Promise: a program that acts while its manager leads begins with a state that has everything, is told when it is
over, and writes nothing after that. A LocalStore leads always, so that such a program runs on it unchanged.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import wait_until
from tests.unit.test_leadership import AtOnce, Here, opened
from warren_raft.leadership import callbacks
from warren_raft.leadership.callbacks import Leadership
from warren_raft.leadership.lead import Lead, Leading
from warren_raft.store.command import Operation
from warren_raft.store.tables import Kind
from warren_raft.store.writing import Writer
from warren_raft.support.handover import Begun, Landing, Passed

DEADLINE = 60.0


@pytest.fixture(params=["local", "replicated"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[wr.LocalStore | wr.ReplicatedStore]:
    with wr.LocalStore(tmp_path / "s") if request.param == "local" else opened(tmp_path) as store:
        yield store


class Sent(Writer):
    """A store that only notes what it is given."""

    _default_timeout_seconds = 5.0

    def __init__(self) -> None:
        self.fences: list[int] = []

    def _execute(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = 0
    ) -> int:
        self.fences.append(fence)
        return 7

    def _start(
        self, operations: tuple[Operation, ...], timeout: float | None, *, request_key: str = "", fence: int = 0
    ) -> Future[int]:
        self.fences.append(fence)
        future: Future[int] = Future()
        future.set_result(7)
        return future

    def _begin(
        self,
        operations: tuple[Operation, ...],
        timeout: float | None,
        landing: Landing,
        *,
        request_key: str = "",
        fence: int = 0,
    ) -> Begun[int]:
        self.fences.append(fence)
        landing.release()
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
        Leading(sent, here, 0.01),
    ):
        pass
    assert (caught.value.maybe_applied, caught.value.of_write) == (False, False)
    with pytest.raises(wr.InvalidEntity):
        Leading(sent, here, -1)
    found: list[int] = []

    def run() -> None:
        with Leading(sent, here, None) as lead:
            found.append(lead.term)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    here.change(term_now=6, leads=True)
    thread.join(DEADLINE)
    assert found == [6]
    here.change(has_ended=True)
    with pytest.raises(wr.Closed), Leading(sent, here, None):
        pass


def test_a_wait_for_leadership_is_used_once() -> None:
    leading = Leading(Sent(), Here(), 1)
    with leading, pytest.raises(wr.Misuse), leading:
        pass


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


def fail(_lead: wr.Lead) -> None:
    raise SystemExit("a bug")


def test_a_function_that_fails_is_called_again_and_the_error_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconciler that stopped for good at its first error would be missed only when nothing is repaired any more."""
    monkeypatch.setattr(callbacks, "AGAIN_SECONDS", 0.001)
    here, loop = Here(term_now=3), Loop(fail)
    leadership, _ = running(here, loop)
    wait_until(lambda: loop.left >= 3, "it to be called again")
    here.change(has_ended=True, leads=False)
    leadership.join(DEADLINE, but=())
    assert {record.getMessage().partition(":")[0].split(" term=")[0] for record in caplog.records}
    assert "function of a leader failed" in caplog.text
    assert "a bug" in caplog.text


class Paused:
    """A lead that notes the pauses, and ends with the last of the given runs of its function."""

    def __init__(self, *runs_seconds: float) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._runs = list(runs_seconds)
        self.term = 3

    @property
    def is_over(self) -> bool:
        return not self._runs

    def wait_over(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def run(self, _lead: object) -> None:
        self.now += self._runs.pop(0)
        raise ValueError


def test_a_function_that_has_worked_for_a_while_is_called_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    lead: Any = Paused(0, 0, 0, 0, 3600, 0, 0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: lead.now)
    Leadership(Here(term_now=3), AtOnce())._run_one_lead(lead, lead.run)
    assert lead.pauses == [1, 2, 4, 8, 1, 2, 4]


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
    assert [record.getMessage() for record in caplog.records if record.name.endswith("leadership.callbacks")] == []


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
    source = page.split("```python\n")[1].split("```")[0].replace("wait_over(5)", "wait_over(0.01)")
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
