"""`simulate`: runs the program of an embedder on simulated managers, under hundreds of seeds.

It looks for mistakes of the program: a loop that acts for a leader which is none any more, a write that is repeated
although it was made, a decision by an old state. It does not look for mistakes of the store: the cluster is a model of
the promises of the store (simulated/), with the product's own state machine, reads, leads and watches.
Not here: the model. Invariant: the same seed gives the same run.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from warren_raft.errors import Misuse
from warren_raft.store.database import Database
from warren_raft.store.reading import Reader, View
from warren_raft.store.watch import Feeds
from warren_raft.store_interface import Store
from warren_raft.testing.simulated.cluster import SimulatedCluster
from warren_raft.testing.simulated.turns import Stuck, simulated_time

MEMORY_DIRECTORY: Final = Path("/dev/shm")  # noqa: S108  the states are small, and removed after each seed


class SimulationFailed(AssertionError):
    """A check did not hold, or a program raised an error that is not the store's. The cause is the error itself.

    `seed`: `simulate(..., seeds=[seed])` runs it again. `schedule`: one line for each event: the number of
    the turn, the simulated time, the manager, and its act or the fault that it met.
    """

    def __init__(self, seed: int, reason: str, schedule: list[str]) -> None:
        super().__init__(seed, reason, schedule)
        self.seed = seed
        self.reason = reason
        self.schedule = schedule

    def __str__(self) -> str:
        lines = "\n".join(self.schedule)
        said = f"seed {self.seed}: {self.reason}"
        return f"{said}\n\n{lines}\n\n{said}\nagain: seeds=[{self.seed}]"


def simulate(
    *programs: Callable[[Store], object],
    check: Callable[[View], object],
    always: Callable[[View], object] | None = None,
    setup: Callable[[Store], object] | None = None,
    seeds: Iterable[int] = range(100),
    steps: int = 200,
    size: int = 3,
) -> Counter[str]:
    """Run programs on simulated managers, once for each seed, and check the state that they leave behind.

    Each program is a function that gets the store of its manager, as it would after opening a `ReplicatedStore`. It
    runs on each of `size` managers, in a thread of its own, and again each time that its manager starts. It works in
    `with store.leading() as lead`, calls `store.run_while_leading`, or works on every manager. It keeps its memory in
    local variables, because managers share no memory. It may be a coroutine function, which uses `store.aio`.

    For `steps` turns managers are frozen, killed, cut off and deposed, writes are not answered, and followers lag.
    Then all faults end, and the programs run until they change nothing any more, for 5 * `steps` turns at most.
    `setup(store)` writes the state of the beginning. `check(view)` is called at the end, and `always(view)` after
    each command that changed something. Either one fails if it raises an exception or returns False.

    The same seed gives the same run, as long as the programs depend on nothing but their store, `time.time`,
    `time.monotonic`, `time.sleep`, `uuid.uuid4` and the functions of `random`, which are all simulated in their threads
    (used as `time.sleep`, not as `from time import sleep`). `datetime.now` is not, and neither is the order of a `set`
    of strings from one Python process to the next (PYTHONHASHSEED). A program may not wait for other threads, nor use
    its store in them. `batch(wait=False)` is carried out before its block ends. `status`, members and snapshots are not
    simulated, and raise Misuse.

    Returns a count for each kind of event that the programs met: "writes", "LeadershipLost", "frozen", "killed" and so
    on, over all seeds. Raises SimulationFailed at the first seed that fails.
    """
    if not programs:
        raise TypeError("simulate() takes at least one program: a function of a store")
    if size < 1 or steps < 0:
        raise ValueError(f"size must be at least 1 and steps at least 0, not {size} and {steps}")
    met: Counter[str] = Counter()
    parent = MEMORY_DIRECTORY if os.access(MEMORY_DIRECTORY, os.W_OK) else None
    with simulated_time(), tempfile.TemporaryDirectory(prefix="warren-raft-simulate-", dir=parent) as base:
        for seed in seeds:
            directory = Path(base, str(seed))
            directory.mkdir(mode=0o700)
            met += _run(directory, seed, programs, _Check(check), _Check(always), setup, steps, size)
            shutil.rmtree(directory)
    return met


def _run(
    directory: Path,
    seed: int,
    programs: tuple[Callable[[Store], object], ...],
    check: _Check,
    always: _Check,
    setup: Callable[[Store], object] | None,
    steps: int,
    size: int,
) -> Counter[str]:
    random.seed(seed)
    cluster = SimulatedCluster(directory, seed, programs, size, always)
    try:
        cluster.begin()
        if setup is not None:
            setup(cluster.first_store())
        cluster.start_programs()
        cluster.run(steps)
        if cluster.failure is None:
            cluster.check(check)
        cluster.close()
    except Stuck as stuck:
        reason = f"a program waits for something else than its store, or does not end its loop; it is here:\n{stuck}"
        raise SimulationFailed(seed, reason, cluster.schedule.lines) from None
    finally:
        cluster.abandon()
    error = cluster.failure
    if error is not None:
        raise SimulationFailed(seed, f"{type(error).__name__}: {error}", cluster.schedule.lines) from error
    return cluster.met


class _Check:
    """A check of the program, for the state that is committed."""

    def __init__(self, function: Callable[[View], object] | None) -> None:
        self._function = function

    def __call__(self, database: Database) -> None:
        if self._function is None:
            return
        with View(_Committed(database)) as view:
            if self._function(view) is False:
                raise AssertionError(f"{getattr(self._function, '__name__', 'the check')} returned False")


class _Committed(Reader):
    """Reads the state that is committed."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def _attached(self) -> Database:
        return self._database

    def _feeds(self) -> Feeds:
        raise Misuse("a check has no watches: it is called for each change")
