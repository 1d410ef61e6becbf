"""Promise: a watch gives each change that its program asked for once and in order, from any store. It ends with an
error: with its store, with its manager, in a forked child, or when it missed something. A watch that nobody refers to
any more is closed.

tests/unit/test_feeding.py has what depends on the steps of the hub. Here are threads, stores and their ends.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import warren_raft as wr
from tests.cluster.harness import free_ports, wait_until
from tests.fsm_harness import one, put
from tests.interrupting import At, interrupt, interrupted, sweep
from tests.unit.test_local import in_child
from warren_raft.errors import InvariantViolation
from warren_raft.fsm import history
from warren_raft.fsm.machine import StateMachine
from warren_raft.store.database import Database
from warren_raft.store.events import Event, Filter
from warren_raft.store.generations import StateDirectory
from warren_raft.store.watch import Feed, Wanted, Watch
from warren_raft.support.waiting import Bell

DEADLINE = 60.0


def one_manager(directory: Path) -> wr.ReplicatedStore:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    store = wr.ReplicatedStore(
        wr.Config(node_id="m1", data_dir=directory, listen=address, members={"m1": address}, admin=False)
    )
    store.wait_ready(DEADLINE)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[wr.LocalStore]:
    with wr.LocalStore(tmp_path / "state") as store:
        yield store


@pytest.fixture(params=["local", "replicated", "read only"])
def written_and_watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[wr.Store, wr.Reader]]:
    """A store that is written, and a store of the same state that is watched."""
    if request.param == "local":
        with wr.LocalStore(tmp_path / "state") as local:
            yield local, local
    elif request.param == "replicated":
        with one_manager(tmp_path / "m1") as manager:
            yield manager, manager
    else:
        with wr.LocalStore(tmp_path / "state") as local:
            child = OtherProcess(tmp_path / "state")
            yield local, child  # type: ignore[misc]
            child.end()


class OtherProcess:
    """A ReadOnlyStore in a process of its own: the owner's process cannot open the same files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[int] = []

    def watch(self, since: int, **chosen: Any) -> OtherWatch:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(DEADLINE))
            try:
                with (
                    os.fdopen(writing, "w") as pipe,
                    wr.ReadOnlyStore(self._directory) as store,
                    store.watch(since, **chosen) as events,
                ):
                    for event in events:
                        pipe.write(f"{event.revision} {event.operation} {event.id} {event.index}\n")
                        pipe.flush()
            finally:
                os._exit(0)
        os.close(writing)
        self._children.append(child)
        return OtherWatch(reading)

    def end(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class OtherWatch:
    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor)

    def __iter__(self) -> Iterator[Event]:
        for line in self._pipe:
            revision, operation, id_, index = line.split()
            yield Event(int(revision), operation, "container", id_, None, int(index))  # type: ignore[arg-type]

    def close(self) -> None:
        self._pipe.close()


def container(id_: str, node: str = "n1", **more: Any) -> wr.Container:
    return wr.Container(id=id_, node_id=node, service_id="s1", **more)


def told(event: Event) -> tuple[int, str, str]:
    return event.revision, event.operation, event.id


def some(watch: Any, count: int) -> list[tuple[int, str, str]]:
    return [told(event) for event in itertools.islice(watch, count)]


# Every store ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_watch_gives_changes_while_they_happen(written_and_watched: tuple[wr.Store, wr.Reader]) -> None:
    written, watched = written_and_watched
    written.create_node(wr.Node(id="n1"))
    watch = watched.watch(1, node="n1")
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(some, watch, 4)
        written.create_container(container("a"))
        written.create_container(container("elsewhere", "n2"))
        with written.batch() as batch:
            batch.create_container(container("b"))
            batch.update_container(container("a", "n2"))
        written.delete_container("b")
        assert seen.result(DEADLINE) == [(2, "put", "a"), (4, "put", "b"), (4, "left", "a"), (5, "delete", "b")]
    watch.close()


def test_a_view_is_watched_exactly_behind_it(store: wr.LocalStore) -> None:
    """Reading everything and watching on from there misses nothing, and repeats nothing."""
    store.create_container(container("before"))
    with store.read() as view:
        store.create_container(container("between"))
        there = {each.id for each in view.list_containers()}
        watch = view.watch(kinds={"container"})
    store.create_container(container("after"))
    with watch:
        assert there == {"before"}
        assert some(watch, 2) == [(2, "put", "between"), (3, "put", "after")]


def test_a_watch_is_resumed_behind_what_it_gave(store: wr.LocalStore) -> None:
    """Also in the middle of a command: then the whole command comes again, because half a command was seen."""
    for number in range(3):
        with store.batch() as batch:
            batch.create_container(container(f"a{number}"))
            batch.create_container(container(f"b{number}"))
    for taken in range(7):
        with store.watch(0) as first:
            given = some(first, taken)
            resumed_at = first.revision
        assert resumed_at == taken // 2
        with store.watch(resumed_at) as second:
            rest = some(second, 6 - 2 * resumed_at)
        assert [*given[: 2 * resumed_at], *rest] == [
            (revision, "put", f"{letter}{revision - 1}") for revision in (1, 2, 3) for letter in "ab"
        ]


def test_take_gives_whole_revisions(store: wr.LocalStore) -> None:
    with store.watch() as watch:
        assert watch.take(0) == []
        with store.batch() as batch:
            for number in range(5):
                batch.create_container(container(f"c{number}"))
        events = watch.take(DEADLINE)
        assert [event.index for event in events] == [0, 1, 2, 3, 4]
        assert watch.revision == 1
        with store.batch() as batch:
            for number in range(5):
                batch.delete_container(f"c{number}")
        assert told(next(watch)) == (2, "delete", "c0")
        assert watch.revision == 1
        assert [event.index for event in watch.take(DEADLINE)] == [1, 2, 3, 4]
        assert watch.revision == 2
        assert watch.take(0.01) == []


@pytest.mark.slow
def test_a_change_is_seen_by_a_watch_that_began_before_it(store: wr.LocalStore) -> None:
    """From when `watch` returns, whatever the hub's thread does meanwhile: it may be starting, or ending."""
    for number in range(200):
        with store.watch() as watch:
            store.create_container(container("c", image=str(number)))
            assert told(next(watch)) == (number + 1, "put", "c")


def test_a_revision_of_the_future_is_waited_for(store: wr.LocalStore) -> None:
    with store.watch(3) as watch:
        for number in range(5):
            store.create_container(container(f"c{number}"))
        assert some(watch, 2) == [(4, "put", "c3"), (5, "put", "c4")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": -1},
        {"since": "7"},
        {"since": True},
        {"since": 1.5},
        {"since": 1 << 64},
        {"bookmark_seconds": 0},
        {"bookmark_seconds": float("nan")},
        {"bookmark_seconds": True},
        {"kinds": {"nothing"}},
        {"node": ""},
    ],
)
def test_wrong_arguments_are_refused_at_once(store: wr.LocalStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(wr.InvalidEntity, match=rf"^watch\.{next(iter(wrong))}: "):
        store.watch(**wrong)
    assert store._hub._feeding.is_idle


def test_bookmarks_come_without_events(store: wr.LocalStore) -> None:
    with store.watch(kinds={"service"}, bookmark_seconds=0.001) as watch:
        store.create_container(container("c"))
        store.create_container(container("d"))
        event = next(watch)
        while event.revision < 2:
            event = next(watch)
        assert (event.operation, event.kind, event.id, event.entity) == ("bookmark", "", "", None)
        assert watch.revision == 2


def test_a_slow_program_gets_everything_that_is_kept(store: wr.LocalStore) -> None:
    """Far more than its queue holds."""
    with store.watch() as watch:
        for number in range(40):
            with store.batch() as batch:
                for each in range(100):
                    batch.create_container(container(f"c{each}", image=f"{number} " + "x" * 1000))
        assert [told(event) for event in itertools.islice(watch, 4000)] == [
            (number + 1, "put", f"c{each}") for number in range(40) for each in range(100)
        ]


def test_the_loop_in_the_page_on_embedding_follows_a_node(store: wr.LocalStore) -> None:
    page = (Path(wr.__file__).parent.parent / "docs" / "embedding.md").read_text(encoding="utf-8")
    source = page[page.index("def follow(") :].split("```")[0]
    shown: list[list[str]] = []
    applied: list[tuple[int, str, str]] = []
    names: dict[str, Any] = {
        "wr": wr,
        "show": lambda found: shown.append(sorted(found)),
        "apply": lambda event: applied.append(told(event)),
    }
    exec(source, names)
    store.create_container(container("a"))
    following = threading.Thread(target=_until_closed, args=(names["follow"], store))
    following.start()
    wait_until(lambda: shown == [["a"]], "the first reading")
    store.create_container(container("b"))
    wait_until(lambda: applied == [(2, "put", "b")], "the event")
    store.close()
    following.join(DEADLINE)
    assert not following.is_alive()


def _until_closed(follow: Any, store: wr.LocalStore) -> None:
    with pytest.raises(wr.Closed):
        follow(store, "n1")


def test_a_program_that_is_too_late_is_told_where_to_resume(
    store: wr.LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_CHANGES", 10)
    for number in range(100):
        store.create_container(container("c", image=str(number)))
    with store.watch(1) as watch:
        for _ in range(2):
            with pytest.raises(wr.WatchLost) as lost:
                next(watch)
            with pytest.raises(wr.WatchLost):
                watch.take()
        assert lost.value.resume_from == 100
    with store.watch(lost.value.resume_from) as watch:
        store.create_container(container("c"))
        assert some(watch, 1) == [(101, "put", "c")]


# Ends ----------------------------------------------------------------------------------------------------------------


def hub_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "warren-raft-watching"]


def test_the_thread_lives_only_while_there_are_watches(store: wr.LocalStore) -> None:
    assert not hub_threads()
    with store.watch() as watch:
        assert len(hub_threads()) == 1
        with store.watch(kinds={"node"}):
            assert len(hub_threads()) == 1
        store.create_container(container("c"))
        assert some(watch, 1) == [(1, "put", "c")]
    wait_until(lambda: not hub_threads() and store._ring is None, "the thread to end")


def test_a_watch_that_nobody_refers_to_any_more_is_gone(store: wr.LocalStore) -> None:
    for _ in store.watch(0 if store.create_container(container("c")) else None):
        break
    gc.collect()
    wait_until(lambda: not hub_threads(), "the thread to end")
    assert store._hub._feeding.is_idle


def test_another_thread_closes_a_watch(store: wr.LocalStore) -> None:
    watch = store.watch()
    with ThreadPoolExecutor(1) as pool:
        iterating = pool.submit(lambda: list(watch))
        waiting = threading.Timer(0.05, watch.close)
        waiting.start()
        assert iterating.result(DEADLINE) == []
    watch.close()
    assert list(watch) == []
    with pytest.raises(wr.Closed, match="watch is closed"):
        watch.take()


def test_a_watch_ends_with_its_store(tmp_path: Path) -> None:
    store = wr.LocalStore(tmp_path / "state")
    watch, late = store.watch(), store.watch()
    store.create_container(container("c"))
    with ThreadPoolExecutor(1) as pool:
        iterating = pool.submit(lambda: list(watch))
        wait_until(lambda: watch.revision == 1, "the event")
        store.close()
        with pytest.raises(wr.Closed):
            iterating.result(DEADLINE)
    with pytest.raises(wr.Closed):  # as every call of a closed store, although there is an event in its queue
        next(late)
    with pytest.raises(wr.Closed):
        store.watch()
    watch.close()
    assert not hub_threads()
    with wr.LocalStore(tmp_path / "state") as again:  # no read of the hub held the files
        assert again.get_container("c").revision == 1


def test_a_store_that_cannot_go_on_ends_its_watches(store: wr.LocalStore) -> None:
    with store.watch() as watch:
        store._failure = InvariantViolation("as if its file had failed")
        with pytest.raises(InvariantViolation, match="as if"):
            next(watch)


def test_a_manager_that_stopped_ends_its_watches(tmp_path: Path) -> None:
    with one_manager(tmp_path / "m1") as manager, manager.watch() as watch:
        manager._parts._stop_manager(InvariantViolation("made so by the test"))
        with pytest.raises(wr.Closed, match="this manager stopped: made so by the test"):
            next(watch)


def test_an_error_of_the_hub_is_given_to_every_watch(store: wr.LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_now: float) -> float:
        raise ZeroDivisionError

    with store.watch() as watch, monkeypatch.context() as patched:
        patched.setattr(store._hub._feeding, "step", fails)
        store._hub.ring()
        with pytest.raises(InvariantViolation, match="ZeroDivisionError"):
            next(watch)
    with store.watch() as watch:
        store.create_container(container("c"))
        assert some(watch, 1) == [(1, "put", "c")]


def test_a_watch_goes_on_when_the_state_is_moved(store: wr.LocalStore) -> None:
    """A LocalStore goes on in a copy when another process keeps pages of its file."""
    with store.watch() as watch:
        store.create_container(container("a"))
        assert some(watch, 1) == [(1, "put", "a")]
        store._own.call(store._renew)
        store.create_container(container("b"))
        assert some(watch, 1) == [(2, "put", "b")]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_in_a_forked_child_a_watch_is_closed_and_the_parent_goes_on(store: wr.LocalStore) -> None:
    watch = store.watch()

    def child() -> None:
        for call in (lambda: next(watch), lambda: watch.take(), lambda: store.watch(), lambda: store.watch(0)):
            with pytest.raises(wr.Closed, match="fork"):
                call()
        watch.close()

    in_child(child)
    store.create_container(container("c"))
    assert some(watch, 1) == [(1, "put", "c")]
    watch.close()


def test_a_read_only_store_does_not_go_on_in_another_state(tmp_path: Path) -> None:
    """Its manager may have replaced the state because it was wrong."""
    state = StateDirectory(tmp_path / "m1")
    state.create()

    def publish(generation: int, *ids: str) -> None:
        made = StateDirectory(tmp_path / f"made{generation}")
        with contextlib.closing(Database.open(made, sync=True)) as database:
            machine = StateMachine(database)
            for id_ in ids:
                one(machine, put(container(id_)))
            path = made.file_of(made.current())
        Path(path).rename(state.file_of(generation))
        state.publish(generation)

    publish(1, "right-1", "WRONG-2")
    with wr.ReadOnlyStore(tmp_path / "m1") as store, store.watch(0) as watch, store.read() as view:
        assert some(watch, 2) == [(1, "put", "right-1"), (2, "put", "WRONG-2")]
        publish(2, "right-1", "right-2", "right-3")
        with view.watch() as of_the_old_view, store.watch(0) as new:
            for each in (watch, of_the_old_view):
                with pytest.raises(wr.WatchLost):
                    each.take(DEADLINE)
            assert some(new, 3) == [(1, "put", "right-1"), (2, "put", "right-2"), (3, "put", "right-3")]


# Interruptions -------------------------------------------------------------------------------------------------------


def test_an_interruption_leaves_every_other_watch_working(store: wr.LocalStore) -> None:
    """An exception between any two instructions of opening, taking from, and closing a watch."""
    number = 0

    def use() -> None:
        nonlocal number
        with store.watch() as watch:
            number = store.create_container(container("c", image=str(number)))
            assert [event.revision for event in watch.take(DEADLINE)] == [number]

    with store.watch() as other:
        assert len(sweep(use, interrupt, step=3)) > 50
        store.create_service(wr.Service(id="the last"))
        while (event := next(other)).id != "the last":
            assert event.revision <= store.get_container("c").revision
    gc.collect()
    use()
    wait_until(lambda: store._hub._feeding.is_idle, "all watches to be forgotten")


def test_an_interruption_while_it_waits_loses_no_event(store: wr.LocalStore) -> None:
    watch = store.watch()

    timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1])

    def wait() -> None:
        timer.start()  # here, because on a busy machine the signal may come before the wait
        next(watch)

    before = signal.signal(signal.SIGUSR1, _raise_keyboard_interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    store.create_container(container("c"))
    assert some(watch, 1) == [(1, "put", "c")]
    watch.close()


class NoHub:
    """A watch of these three revisions, which nothing else fills."""

    def __init__(self) -> None:
        self.events = [Event(1, "put", "node", "a"), Event(1, "put", "node", "b")]
        self.events += [Event(revision, "put", "node", "c") for revision in (2, 3)]
        self.last = Event(4, "delete", "node", "c")
        self.watch = Watch(self, Wanted(Filter.of(), 0, 1, None))
        for revision in (1, 2, 3):
            self.feed.put(revision, tuple(each for each in self.events if each.revision == revision), 100)

    def wait_for(self, condition: Callable[[], bool], _deadline: float) -> bool:
        """As the bell of the watch: whoever has to wait gets the last event."""
        if not condition():
            self.feed.put(4, (self.last,), 100)
        return condition()

    def add(self, feed: Feed) -> None:
        self.feed = feed

    def forget(self, feed: Feed) -> None:
        pass

    def ring(self) -> None:
        pass

    def new_bell(self) -> Bell:
        return Bell()


def take(watch: Watch, given: list[Event]) -> None:
    given += watch.take(0)


def iterate(watch: Watch, given: list[Event]) -> None:
    for _ in range(4):
        given.append(next(watch))


def iterate_and_take(watch: Watch, given: list[Event]) -> None:
    given.append(next(watch))
    given += watch.take(0)
    given += watch.take(0)


@pytest.mark.parametrize("use", [take, iterate, iterate_and_take])
def test_an_interruption_of_a_call_loses_no_event_that_is_there(use: Callable[[Watch, list[Event]], None]) -> None:
    """Wherever Python lets a signal in: the same watch gives the others, and so does a watch of its revision."""
    number, at = 0, None
    while at is None or at.seen >= number:
        number += 1
        hub, given, at = NoHub(), list[Event](), At(number, interrupt, real=True)
        interrupted(at, partial(use, hub.watch, given))
        behind = [each for each in hub.events if each.revision > hub.watch.revision]
        assert set(given + behind) == set(hub.events), at.where
        assert hub.feed.queued_bytes == 100 * len(hub.feed.queue), at.where
        hub.watch._bell = hub  # type: ignore[assignment]
        while given[-1:] != [hub.last]:
            more = hub.watch.take()
            assert more, at.where
            given += more
        assert given == [*hub.events, hub.last], at.where
        assert (hub.watch.revision, hub.feed.queued_bytes) == (4, 0)
    assert number > 10


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_signal_handler_may_watch(store: wr.LocalStore) -> None:
    """In the middle of another use of a watch in the same thread."""

    def use() -> None:
        with store.watch(0) as watch:
            watch.take(0)

    assert len(sweep(use, use, step=5)) > 10
