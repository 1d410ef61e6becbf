"""The errors that a program has to handle, when a test asks for them, on a store of any kind.

Lives here: one write that fails, a lead that is over, watches that are lost. Not here: the true causes, which are those
of a cluster (cluster.py). Invariant: outside of `fail_next` a store is as it was, and a write without a fault has no
part in this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from warren_raft.errors import Misuse, Unavailable, WarrenError, WatchLost
from warren_raft.local.store import LocalStore
from warren_raft.store.command import Operation
from warren_raft.store_interface import Store
from warren_raft.support.handover import Around, Begun
from warren_raft.watching.hub import Hub

_WAYS: Final = ("_execute", "_start", "_begin")
"""The methods of a store that take a write: for a caller that waits, for a future, for a coroutine."""


@contextmanager
def fail_next(store: Store, error: WarrenError, *, applied: bool = False, after: int = 0) -> Iterator[None]:
    """Let the next write within the block raise `error`: `with fail_next(store, wr.StorageFull("full")): ...`.

    `after` writes are carried out first. Then one raises the error, and the others are carried out again. A write is a
    call of a write method or of `modify`, or a batch; of the store, of a lead of it, and of `aio`, from any thread.

    Without `applied` the write is not carried out. With `applied=True` it is carried out, and its caller gets the error
    nevertheless, as when the answer comes too late; that fits only an Unavailable with `maybe_applied=True`. With
    `applied=False` that same error stands for a write that was lost on its way, so test a program with both. A write
    that the store refuses raises its own error.

    For one `fail_next` at a time on a store. Raises Misuse for an error that does not fit, and AssertionError at the
    end of the block if no write has failed.
    """
    if applied and not (isinstance(error, Unavailable) and error.maybe_applied):
        raise Misuse(f"after {error!r} a write is never applied: only after Unavailable(..., maybe_applied=True)")
    if any(way in vars(store) for way in _WAYS):
        raise Misuse("this store is within fail_next already")
    fault = _Fault(error, applied, after)
    fault.enter(store)
    try:
        yield
    finally:
        fault.leave(store)
    if not fault.has_come:
        raise AssertionError(f"no write has raised {error!r} within fail_next")


def lose_leadership(store: Store) -> None:
    """Begin the next term of a LocalStore, as if another manager had led meanwhile. Its leads are over, and their
    writes raise LeadershipLost. It leads again at once: callbacks of `on_leadership` are told both, and functions of
    `run_while_leading` are called with a new lead. Any thread.

    Raises Misuse for a manager of a cluster, which loses it in earnest: `transfer_leadership`, or `pause` and `resume`
    of `Cluster`. Raises Closed.
    """
    if not isinstance(store, LocalStore):
        raise Misuse(f"{store!r} is not a LocalStore: use its transfer_leadership(), or pause() of the Cluster")

    def begin() -> None:
        store._term += 1
        store._changed.ring()

    store._own.call(begin)


def lose_watches(store: Store) -> None:
    """Let each watch that is open on the store raise WatchLost, as if it had been too slow, behind the events that it
    has already. Watches that begin afterwards are not lost. Any thread. Raises Closed."""
    hub = store._feeds()
    assert isinstance(hub, Hub)
    lost = WatchLost(store._latest_revision())
    for feed in hub._feeding.feeds:
        feed.end(lost)
        feed.notify()


class _Fault:
    """One write of a store that fails. Any thread."""

    def __init__(self, error: WarrenError, applied: bool, after: int) -> None:
        self._error = error
        self._applied = applied
        self._after = after
        self._numbers = itertools.count()
        self.has_come = False

    def enter(self, store: Store) -> None:
        """In the place of the methods that take a write."""
        vars(store).update(
            _execute=self._through(store._execute, self._raised, self._executed),
            _start=self._through(store._start, self._failed_future, self._started),
            _begin=self._through(store._begin, self._raised, self._begun),
        )

    def leave(self, store: Store) -> None:
        for way in _WAYS:
            del vars(store)[way]

    def _through(
        self, way: Callable[..., Any], refused: Callable[[], Any], failed: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """`way`, of which one call fails: by `refused`, or with the result of the write by `failed`."""

        def call(operations: tuple[Operation, ...], *arguments: Any, **keys: Any) -> Any:
            if not operations or next(self._numbers) != self._after:  # without operations it is a barrier
                return way(operations, *arguments, **keys)
            self.has_come = True
            if not self._applied:
                return refused()
            return failed(way(operations, *arguments, **keys))

        return call

    def _raised(self) -> NoReturn:
        raise self._error

    def _failed_future(self) -> Future[int]:
        future: Future[int] = Future()
        future.set_exception(self._error)
        return future

    def _executed(self, _revision: int) -> NoReturn:
        raise self._error

    def _started(self, future: Future[int]) -> Future[int]:
        late: Future[int] = Future()
        future.add_done_callback(lambda done: late.set_exception(done.exception() or self._error))
        return late

    def _begun(self, begun: Begun[int]) -> Begun[int]:
        return _BegunLate(begun, self._error)


class _BegunLate(Around[int]):
    """A write that was begun, and whose result is an error although it was carried out."""

    def __init__(self, begun: Begun[int], error: WarrenError) -> None:
        super().__init__(begun)
        self._error = error

    def result(self) -> int:
        super().result()
        raise self._error
