"""Time and the managers: a heap of events, and processes that live on directories.

A directory (log in memory_files, state as a real LMDB file) outlives its processes. A process is a manager without its
threads: the opened directory, the engine, and its links. Not here: callers (workload.py), faults (nemesis.py), restores
(disaster.py), the way of messages (network.py). Invariant: everything happens in an event of the heap, in an order that
the seed decides.
"""

from __future__ import annotations

import heapq
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from errno import errorcode
from pathlib import Path
from random import Random
from tempfile import mkdtemp as make_directory
from typing import TYPE_CHECKING, Any

from tests.killed import Killed, killed_after
from tests.memory_files import Crashed, Fault, MemoryFiles, keep_some
from tests.simulation.lists import MemberLists
from tests.simulation.network import LINK_TIMEOUT_SECONDS, Network
from tests.simulation.options import Options
from tests.simulation.upgrades import Upgrades
from warren_raft.alarms import Alarms
from warren_raft.config import Config
from warren_raft.data_dir.opening import OpenedDirectory
from warren_raft.disk.files import File, OsFiles
from warren_raft.errors import Corrupted, RefusedForSafety, WarrenError
from warren_raft.fsm.machine import StateMachine
from warren_raft.raft.barriers import Barrier
from warren_raft.raft.effects import (
    Cancel,
    CloseLink,
    Dial,
    Effect,
    Send,
    Work,
    WriteLog,
)
from warren_raft.raft.engine import Engine
from warren_raft.raft.events import Event, Received, Synced, Worked
from warren_raft.raft.log.log import Batch
from warren_raft.raft.replacement import Arrow, Phase
from warren_raft.raft.submit import Proposal
from warren_raft.snapshots.keeper import Held
from warren_raft.snapshots.verification import prove_state, verify

if TYPE_CHECKING:
    from tests.simulation.beats import NodesThatBeat

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The wall clock's time at second 0."""
DIAL_SECONDS = 0.05
NOTICE_STEP_SECONDS = 0.002
MOST_JOB_OPERATIONS = 30
"""File operations of the longest job on snapshots, about."""


class Failure(AssertionError):
    """An invariant broke in a run."""


class Audience:
    """The checkers and callers of one cluster. A restored cluster is another cluster, and has another audience."""

    def __init__(self) -> None:
        self.observers: list[Any] = []
        """Each observer has methods for the events that it wants to see."""
        self.lists = MemberLists()
        """The cluster's member lists. In a run of our own engine it is an observer as well."""
        self._told: dict[str, list[Callable[..., None]]] = {}
        self._told_count = 0

    def tell(self, what: str, *arguments: Any) -> None:
        if len(self.observers) != self._told_count:
            self._told.clear()
            self._told_count = len(self.observers)
        methods = self._told.get(what)
        if methods is None:
            found = (getattr(observer, what, None) for observer in self.observers)
            methods = self._told[what] = [method for method in found if method is not None]
        for method in methods:
            method(*arguments)


class Process:
    """A running manager."""

    def __init__(self, world: World, directory: Directory, opened: OpenedDirectory) -> None:
        self.world = world
        self.directory = directory
        self.audience = directory.audience
        self.id = directory.id
        self.number = world.next_number()
        """Never used again, so observers may use it as the key for facts about the process."""
        self.opened = opened
        self._started_at = world.now
        self._clock_rate = world.clock_rate()
        self._leapt = 0.0
        self.engine: Engine = opened.make_engine(self.clock)
        self.stamp: tuple[object, ...] = ()
        self.was_ready = False
        self.events: list[Event] = []
        self.calls: dict[tuple[int, int], Proposal | Barrier] = {}
        """(session, sequence) -> a submitted proposal that has not ended; (0, number) -> a barrier."""
        self.dialed: dict[str, Sequence[str]] = {}
        self.batch: Batch | None = None
        self.paused_until = 0.0
        self.woke_at: float | None = None
        """When it was last woken after a pause."""
        self.state_is_wrong = False
        """The run has made the state wrong, and it was not replaced since."""
        self.times_wrong = 0
        self._fetches = False
        self.cannot_rebuild = False
        """The next attempt to rebuild the state finds no usable snapshot of this manager."""
        self.alive = True
        self._step_due = False
        self._tick()
        world.after(DIAL_SECONDS * world.random.random(), self._dial)

    @property
    def clock(self) -> float:
        """The manager's own monotonic clock. It runs a little too fast or slow, and jumps when its machine slept."""
        return self._started_at + (self.world.now - self._started_at) * self._clock_rate + self._leapt

    @property
    def replaces_state(self) -> bool:
        """Whether another state is about to take the place of the state in use, or is wanted."""
        return self.engine.renewal_wanted or self.engine._replacement.phase is not Phase.IN_USE

    def leap(self, seconds: float) -> None:
        """The manager's machine slept: its clock has gone on, and no message came meanwhile."""
        self._leapt += seconds
        self.world.tell("leapt", self)
        if seconds >= LINK_TIMEOUT_SECONDS:
            self.world.network.overslept(self.id)

    def watch_keeper(self) -> None:
        keeper = self.opened.keeper
        self._rebuild, keeper.rebuild = keeper.rebuild, self._rebuilding  # type: ignore[method-assign]
        keeper.on_swap = self.swapped
        self.engine._replacement.on_arrow = self._at_arrow

    def watch_log(self) -> None:
        self.directory.incarnation = self.opened.log.incarnation
        contents = self.opened.log._contents
        truncated = contents._on_truncation

        def counted(index: int) -> None:
            when = " while a batch was on its way" if self.batch is not None else ""
            self.world.faults[f"log truncated{when}"] += 1
            truncated(index)

        contents._on_truncation = counted

    # Steps -------------------------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        if isinstance(event, Received) and self.world.upgrades.ignores(self.directory, event.message):
            return
        if self.alive:
            self.events.append(event)
            self.schedule(0.0)

    def schedule(self, delay: float) -> None:
        if not self._step_due:
            self._step_due = True
            self.world.after(delay, self._step)

    def _tick(self) -> None:
        if self.alive:
            self.schedule(0.0)
            self.world.after(self.world.options.tick_seconds, self._tick)

    def _step(self) -> None:
        if not self.alive:
            return
        if self.paused_until > self.world.now:
            self.world.at(self.paused_until, self._step)
            return
        self._step_due = False
        events, self.events = self.events, []
        try:
            for effect in self.engine.step(self.clock, events):
                self._perform(effect)
            more = self.engine.apply()
            self.engine.alarms.tick()
        except Crashed:
            self.world.end(self, power_cut=False)
            return
        except Killed:
            power_cut = self.world.random.random() < self.world.options.power_cut
            self.world.faults["power cut at an arrow" if power_cut else "kill -9 at an arrow"] += 1
            self._die(power_cut=power_cut)
            return
        self._look_at_fetch()
        self.world.stepped(self)
        if self.engine.failure is not None:
            self.world.stopped_by_itself(self, self.engine.failure)
        elif more:
            self.schedule(0.0)
        elif self.engine.holds_notices:
            self.schedule(NOTICE_STEP_SECONDS)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.world.network.send(self, effect.link, effect.message)
        elif isinstance(effect, WriteLog):
            if self.batch is not None and self.batch is not effect.batch:
                raise Failure(f"{self.id} writes two log batches at once")
            self.batch = effect.batch
            self.world.tell("took", self, effect.batch)
            self.world.after(self.world.sync_seconds(self.directory), lambda: self._write(effect.batch))
        elif isinstance(effect, Work):
            self.world.after(self.world.random.uniform(0.0, self.world.job_seconds), lambda: self._work(effect))
        elif isinstance(effect, Dial):
            self.dialed = dict(effect.peers)
        elif isinstance(effect, Cancel):
            self.world.network.cancel(self, effect.link, effect.number)
        elif isinstance(effect, CloseLink):
            self.world.network.close(self.id, effect.link)

    def _work(self, work: Work) -> None:
        """Carry out a job on snapshots, like a worker thread. The process may die in the middle of it."""
        if not self.alive:
            return
        try:
            with self.world.upgrades.release_of(self.directory):
                result = self._carried_out(work)
            if isinstance(result, Held):
                self.world.faults["snapshot taken"] += 1
            elif isinstance(result, tuple):
                self.world.on_fetch(self)  # the fetched snapshot, and a state that was made from it
            done = Worked(work, result)
        except (WarrenError, OSError) as problem:
            done = Worked(work, None, problem)
            self.world.faults[f"job on snapshots failed: {type(problem).__name__}"] += 1
        except Killed:
            self.world.faults["kill -9 in a job on snapshots"] += 1
            self._die(power_cut=False)
            return
        self.take(done)

    def _look_at_fetch(self) -> None:
        fetches = self.engine.fetching is not None
        if fetches and not self._fetches:
            self.world.on_fetch(self)
        self._fetches = fetches

    def _die(self, *, power_cut: bool) -> None:
        self.world.end(self, power_cut=power_cut)
        down = self.world.random.uniform(0.0, self.world.options.down_max)
        self.world.after(down, lambda: self.world.restart(self.id))

    def _at_arrow(self, arrow: Arrow) -> None:
        """The replacement of the state goes one step further. The process may die before anything of it is done."""
        self.world.checked[f"seen: arrow {arrow}"] += 1
        self.world.on_arrow(self, arrow)

    def _carried_out(self, work: Work) -> object:
        if self.world.is_calm or self.world.random.random() >= self.world.options.job_kill:
            return work.job()
        with killed_after(self.world.random.randrange(MOST_JOB_OPERATIONS)):
            return work.job()

    def spoil_state(self) -> None:
        """Make the digest wrong, and nothing else: callers still read the right records, so all other checks hold."""
        machine = self.opened.machine
        machine.settle()  # a commit that the disk refused may have come through: its position is kept
        with machine.database.write() as transaction:
            transaction.move(machine.committed.position._replace(digest=self.world.random.randbytes(32)))
        machine._load()
        self.state_is_wrong = True
        self.times_wrong += 1

    def find_wrong(self) -> None:
        """A copy of the state fails its verification."""

        def verdict(_result: object, _error: Exception | None) -> None:
            self.engine._installation.condemn()

        self.take(Worked(Work(lambda: None, verdict), None))

    def _rebuilding(self, log_holds: Callable[[int, int], bool]) -> Callable[[], StateMachine]:
        job = self._rebuild(log_holds)

        def rebuild() -> StateMachine:
            if self.cannot_rebuild:
                self.cannot_rebuild = False
                raise Corrupted("the state", "cannot be rebuilt: made so by the simulation")
            return job()

        return rebuild

    def swapped(self, machine: StateMachine, was_wrong: bool) -> None:
        self.state_is_wrong = False
        if was_wrong:
            self.world.tell("diverged", self, machine.database)
        self.world.tell("swapped", self)
        self.world.faults["state replaced by a snapshot"] += 1
        self.world.note(f"{self.id} goes on from a snapshot at index {machine.applied_index}")
        self.world.after(0.1, lambda: self.opened.keeper.tidy() if self.alive else None)

    def _remove_segments(self) -> None:
        """Remove old segments of the log some time after a batch, like a worker thread."""
        removal = self.opened.log.removal() if self.alive else None
        if removal is None:
            return
        try:
            removal()
            self.world.faults["log segments removed"] += 1
        except OSError:
            self.world.faults["log segments not removed"] += 1
        except Crashed:
            self.world.end(self, power_cut=False)

    def _write(self, batch: Batch) -> None:
        if not self.alive or self.batch is not batch:
            return
        error: OSError | None = None
        try:
            batch.write()
        except OSError as problem:
            error = problem
            self.world.checked[f"seen: log write failed with {errorcode[problem.errno or 0]}"] += 1
        except Crashed:
            self.world.end(self, power_cut=False)
            return
        if error is None:
            self.batch = None
            self.directory.last_batch = effect_range(batch)
            self.world.tell("wrote", self, batch)
            self.world.after(0.05, self._remove_segments)
        self.take(Synced(batch, error))

    def _dial(self) -> None:
        if self.alive:
            if self.paused_until <= self.world.now:
                for peer, addresses in sorted(self.dialed.items()):
                    self.world.network.dial(self.id, peer, addresses)
            self.world.after(DIAL_SECONDS * (0.5 + self.world.random.random()), self._dial)


def effect_range(batch: Batch) -> tuple[str, int]:
    """(path, offset) at which the newest batch of a log begins. Damage from there on may look like a torn write."""
    assert batch.written is not None
    segment, _ = batch.written
    return segment.file._inode.path, segment.end  # type: ignore[attr-defined]


class _Disk(OsFiles):
    """The disk of one manager: its log is in memory, everything else on the real disk."""

    def __init__(self, log_directory: str, log: MemoryFiles) -> None:
        self._log_directory = log_directory
        self._log = log

    def list_directory(self, path: str) -> list[str]:
        return (self._log if path == self._log_directory else super()).list_directory(path)

    def make_directory(self, path: str, *, private: bool = False) -> None:
        (self._log if path == self._log_directory else super()).make_directory(path, private=private)

    def open(self, path: str, *, create: bool = False) -> File:  # type: ignore[override]
        return (self._log if self._is_log(path) else super()).open(path, create=create)

    def rename(self, old: str, new: str) -> None:
        (self._log if self._is_log(old) else super()).rename(old, new)

    def unlink(self, path: str) -> None:
        (self._log if self._is_log(path) else super()).unlink(path)

    def sync_directory(self, path: str) -> None:
        if path == os.path.dirname(self._log_directory):
            self._log.sync_directory(path)
        (self._log if path == self._log_directory else super()).sync_directory(path)

    def _is_log(self, path: str) -> bool:
        return os.path.dirname(path) == self._log_directory


class Directory:
    """The data directory of a manager, whether or not it runs."""

    def __init__(self, world: World, id_: str, address: str, path: Path) -> None:
        self.world = world
        self.id = id_
        self.address = address
        self.path = path
        self.members: Mapping[str, str] | None = None
        """The members in the configuration of its manager; None: the cluster's initial members."""
        self.incarnation: str | None = None
        """The incarnation of the log in it; None before the first start."""
        self.audience = world.audience
        """The audience of the cluster that it belongs to, or will belong to."""
        self.boot = 0
        self.files = self._empty_files()
        self.last_batch: tuple[str, int] | None = None
        """(path, offset) at which the newest log batch begins."""
        self.damaged: tuple[str, int, int] | None = None
        """(path, offset, bit) of a bit that was flipped."""
        self.state_full_until = 0.0
        """Until this time commits of the state find no space left."""
        self.slow_until = 0.0
        """A sync of the log that begins before this time returns after it."""

    def _empty_files(self, *inside: Path) -> MemoryFiles:
        parents = [str(parent) for parent in [self.path, *self.path.parents, *inside]]
        files = MemoryFiles(*parents)
        files.on_fault = self._count_fault
        return files

    def _count_fault(self, operation: str, fault: Fault) -> None:
        if fault.error is not None:
            self.world.faults[f"{errorcode[fault.error]} at a {operation} of the log"] += 1

    @contextmanager
    def laid_out(self) -> Iterator[None]:
        """Put the log onto the real disk, where the operators' tools look, until the end of the block. No manager runs
        here meanwhile."""
        log = self.path / "log"
        inside = [path for path in self.files.paths() if os.path.dirname(path) == str(log)]
        if inside:
            log.mkdir(mode=0o700)
        for path in inside:
            Path(path).touch(mode=0o600)
            Path(path).write_bytes(self.files.content(path))
        try:
            yield
        finally:
            self._take_in(log)

    def _take_in(self, log: Path) -> None:
        self.files = self._empty_files(log) if log.exists() else self._empty_files()
        for path in sorted(log.iterdir()) if log.exists() else []:
            self.files.set_content(str(path), path.read_bytes())
        shutil.rmtree(log, ignore_errors=True)
        self.last_batch = self.damaged = None

    def wipe(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.files = self._empty_files()
        self.last_batch = self.damaged = self.incarnation = None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def lose_page_cache(self, random: Random, keep_pages: float) -> None:
        """The machine went down: random unsynced pages of the log are lost, and the state file is damaged."""
        self.files.power_cut(keep_some(random, keep_pages), name_changes=random.randrange(0, 4))
        self.boot += 1
        state = self.path / "state"
        for name in sorted(os.listdir(state)) if state.exists() else []:
            if name.endswith(".mdb") and (state / f"{name}.unsynced").exists():
                _scribble(state / name, random)
        incoming = self.path / "snapshots" / "incoming.part"
        if incoming.exists():
            _scribble(incoming, random)

    def rot(self, random: Random) -> bool:
        """Flip one bit of a snapshot, or of a file that is being fetched. False: there is no file that may be
        damaged."""
        directory = self.path / "snapshots"
        names = sorted(os.listdir(directory)) if directory.exists() else []
        snapshots = [name for name in names if name.endswith(".mdb")]
        if len(snapshots) < 2:
            snapshots = []  # a manager that needs its only snapshot would have to be removed and added again
        found = snapshots + [name for name in names if name == "incoming.part"]
        if not found:
            return False
        path = directory / random.choice(found)
        size = path.stat().st_size
        if size == 0:
            return False
        with open(path, "r+b") as file:
            file.seek(random.randrange(size))
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ (1 << random.randrange(8))]))
        return True


def _scribble(path: Path, random: Random) -> None:
    """A page of the file was lost: other bytes are in its place."""
    with open(path, "r+b") as file:
        file.seek(4096 * random.randrange(2, 8))
        file.write(random.randbytes(4096))


class World:
    """One run. `processes[id]` is a running manager; `directories[id]` is its directory."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.random = Random(f"world {options.seed}")
        self.now = 100.0
        self.faults: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        """Counts of checks, and of events that were seen, to be added up over the runs."""
        self.two_clusters = False
        """Members of an old cluster run beside members of a new one, by mistake."""
        self.on_arrow: Callable[[Process, Arrow], None] = lambda _process, _arrow: None
        """Called when the replacement of a manager's state goes one step further. It may raise Killed."""
        self.on_fetch: Callable[[Process], None] = lambda _process: None
        """Called when a manager begins to fetch a snapshot, and when it has fetched it."""
        self.is_calm = False
        """This is the liveness phase: nothing is slow any more."""
        self.trace: list[str] = []
        self.network = Network(self)
        self.upgrades = Upgrades(self)
        self.processes: dict[str, Process] = {}
        self.directories: dict[str, Directory] = {}
        self.audience = Audience()
        """The checkers and the workload of the present cluster, or of the one that is about to form."""
        self.beats: NodesThatBeat
        """The nodes of the present cluster; set by run.py."""
        self.removed: set[str] = set()
        self.accused: set[str] = set()
        """Managers in the name of which a hostile member has sent impossible messages (hostile.py)."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        base = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.root = Path(make_directory(prefix="warren-raft-simulation-", dir=base))
        self._used_paths: set[Path] = set()
        self.faults[f"cluster of {options.managers}"] += 1
        if options.profile:
            self.faults[f"profile: {options.profile}"] += 1
        self.initial = {f"m{n}": f"127.0.0.1:{7000 + n}" for n in range(1, options.managers + 1)}
        for id_, address in self.initial.items():
            self.new_directory(id_, address)

    def new_directory(self, id_: str, address: str) -> Directory:
        """A blank directory for this id. The directory that had the id before stays on the disk."""
        paths = (self.root / (f"{id_}-{n}" if n else id_) for n in itertools.count())
        path = next(path for path in paths if path not in self._used_paths)
        self._used_paths.add(path)
        self.directories[id_] = Directory(self, id_, address, path)
        return self.directories[id_]

    def start_all(self) -> None:
        """Start the initial managers. Call this after the observers were added."""
        for id_ in self.initial:
            self.start(id_)

    # Time --------------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._order), what))

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self.at(self.now + delay, what)

    def run_until(self, end: float, condition: Callable[[], bool] | None = None) -> bool:
        """Run events until `end`, or until `condition` holds. Returns whether it holds."""
        while self._heap and self._heap[0][0] <= end:
            self.now, _, what = heapq.heappop(self._heap)
            what()
            if condition is not None and condition():
                return True
        self.now = max(self.now, end)
        return condition is not None and condition()

    def every(self, rate: float, what: Callable[[], None], until: float) -> None:
        """Poisson events of `rate` per second until the time `until`."""
        if rate <= 0:
            return

        def again() -> None:
            if self.now < until:
                what()
                self.after(self.random.expovariate(rate), again)

        self.after(self.random.expovariate(rate), again)

    def note(self, text: str) -> None:
        text = text.replace(str(self.root), "")  # the path differs in each process
        self.trace.append(f"{self.now - 100:9.4f}  {text}")

    def tell(self, what: str, about: Process | World, *arguments: Any) -> None:
        """Tell the observers of that process, or of the present cluster."""
        about.audience.tell(what, about, *arguments)

    @property
    def utc_now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now)

    @property
    def observers(self) -> list[Any]:
        """The observers of the present cluster."""
        return self.audience.observers

    # Managers ----------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        return next(self._numbers)

    def clock_rate(self) -> float:
        return 1.0 + self.options.clock_drift * self.random.uniform(-1.0, 1.0)

    def sync_seconds(self, directory: Directory) -> float:
        options, random = self.options, self.random
        if directory.slow_until > self.now:
            return directory.slow_until - self.now + random.uniform(0.0, 0.3)
        if not self.is_calm and random.random() < options.slow_sync:
            self.faults["slow sync"] += 1
            return random.uniform(0.1, 2.0)
        return random.uniform(options.sync_min, options.sync_max)

    def start(self, id_: str, members: dict[str, str] | None = None) -> Process | None:
        directory = self.directories[id_]
        configured = dict(self._members_for(id_) if members is None else members)
        configured[id_] = directory.address
        config = self._config(directory, configured)
        seed = self.random.getrandbits(64)
        try:
            with self.upgrades.release_of(directory):
                opened = self._open(directory, config, seed)
        except (Crashed, OSError) as problem:
            directory.files.kill()
            self.checked[f"seen: start failed with {type(problem).__name__}"] += 1
            self.note(f"{id_} did not open its directory: {problem!r}")
            self.after(0.5, lambda: self.restart(id_))
            return None
        except (Corrupted, RefusedForSafety) as error:
            self._did_not_open(directory, error)
            return None
        try:
            with self.upgrades.release_of(directory):
                process = Process(self, directory, opened)
            process.watch_keeper()
            process.engine.submitter.large_bytes = self.options.large_bytes
            process.watch_log()
        except WarrenError as error:
            opened.release()
            if "was removed from the cluster" not in str(error):
                raise Failure(f"{id_} does not start: {error!r}") from error
            self.note(f"{id_} does not start: {error}")
            return None
        self.processes[id_] = process
        directory.damaged = None  # the damaged bytes are not read; the log goes on from here
        self.note(f"{id_} starts: log to {opened.log.last_index}, applied {opened.machine.applied_index}")
        self.tell("started", process)
        return process

    def _config(self, directory: Directory, members: dict[str, str], id_: str | None = None) -> Config:
        return Config(
            node_id=id_ or directory.id,
            data_dir=directory.path,
            listen=directory.address,
            members=members,
            admin=False,
            disk_reserve_bytes=0,
            snapshot_after_bytes=self.options.snapshot_after_bytes,
        )

    def _open(self, directory: Directory, config: Config, seed: int) -> OpenedDirectory:
        opened = OpenedDirectory(
            config,
            files=_Disk(str(directory.path / "log"), directory.files),
            random=Random(seed),
            alarms=Alarms(directory.id, utc_now=lambda: self.utc_now, monotonic=lambda: self.now),
            boot_id=lambda: f"boot {directory.boot}",
            verify=lambda path, records, _cancel: verify(path, records=records),
            prove_apart=prove_state,
        )
        opened.keeper.state_bytes = lambda: 0  # type: ignore[method-assign]  # even an empty LMDB file outweighs these logs
        return opened

    @property
    def job_seconds(self) -> float:
        return 0.01 if self.is_calm else self.options.job_seconds

    def _did_not_open(self, directory: Directory, error: WarrenError) -> None:
        """A manager does not open its directory. Injected damage is a good reason; any other reason is a bug."""
        if self.upgrades.refused(directory, error):
            return
        if directory.damaged is None:
            raise Failure(f"{directory.id} does not open its directory: {error!r}") from error
        self.checked["seen: damaged log refused"] += 1
        self.note(f"{directory.id} does not start: {error}")

    def expect_refusal(self, id_: str, directory: Directory) -> None:
        """Start a manager on the directory of another manager; it must refuse."""
        directory.files.clear_faults()
        members = {id_: directory.address}
        config = self._config(directory, members, id_)
        try:
            opened = self._open(directory, config, 1)
        except RefusedForSafety:
            return
        opened.release()
        raise Failure(f"{id_} opened the directory of {directory.id}")

    def restart(self, id_: str) -> None:
        if id_ not in self.processes and id_ not in self.removed and id_ in self.directories:
            self.start(id_, self._members_for(id_))

    def _members_for(self, id_: str) -> dict[str, str]:
        """The configured members of a manager; `start` adds the manager itself."""
        members = self.directories[id_].members
        return dict(self.initial if members is None else members)

    def end(self, process: Process, *, power_cut: bool) -> None:
        """End a process by kill -9, or by a power cut of its machine: nothing in memory survives."""
        self.tell("ending", process)
        process.alive = False
        self.processes.pop(process.id, None)
        process.engine.close()
        process.opened.release()
        self.network.process_died(process.id)
        if power_cut:
            process.directory.lose_page_cache(self.random, self.options.keep_pages)
        else:
            process.directory.files.kill()

    def stop_all(self) -> None:
        """End all processes at once. All planned events are dropped: they concern these processes, their links and
        their faults."""
        for process in list(self.running()):
            power_cut = self.random.random() < self.options.power_cut
            self.end(process, power_cut=power_cut)
        self._heap.clear()
        self.network = Network(self)
        self.removed.clear()
        for directory in self.directories.values():
            directory.files.clear_faults()
            directory.files.limit_bytes = None
            directory.state_full_until = directory.slow_until = 0.0

    def stopped_by_itself(self, process: Process, failure: WarrenError) -> None:
        self.note(f"{process.id} stops by itself: {failure}")
        self.tell("failed", process, failure)
        self.end(process, power_cut=False)
        self.checked["seen: manager stopped by itself"] += 1
        self.after(self.random.uniform(0.1, 0.1 + self.options.down_max), lambda: self.restart(process.id))

    def stepped(self, process: Process) -> None:
        self.tell("step_ended", process)
        engine, log = process.engine, process.opened.log
        committed = process.opened.machine.committed
        stamp = (engine.term, engine.role, engine.commit_index, log.commit_index, log.last_index, log.synced_index)
        if (*stamp, committed) != process.stamp:
            process.stamp = (*stamp, committed)
            self.tell("stepped", process)
        if engine.is_ready and not process.was_ready:
            process.was_ready = True
            process.opened.state.forget_starts()

    # Views -------------------------------------------------------------------------------------------------------

    def running(self) -> Iterable[Process]:
        return [process for _, process in sorted(self.processes.items())]

    @property
    def leader(self) -> Process | None:
        leaders = [process for process in self.running() if process.engine.is_leader]
        return max(leaders, key=lambda process: process.engine.term, default=None)

    def members(self) -> list[Process]:
        """Running processes that are members by the leader's list; if there is no leader, all running processes."""
        leader = self.leader
        return [p for p in self.running() if leader is None or p.id in leader.engine.members]

    def describe(self) -> str:
        return "\n".join(
            f"  {p.id}: {p.engine.role} term {p.engine.term} log {p.opened.log.last_index} synced "
            f"{p.opened.log.synced_index} commit {p.engine.commit_index} applied {p.opened.machine.applied_index} "
            f"links {self.network.peers_of(p.id)} members {sorted(p.engine.members)} "
            f"alarms {[alarm.text for alarm in p.engine.alarms.active[-3:]]}"
            for p in self.running()
        )

    def close(self) -> None:
        for process in list(self.running()):
            process.alive = False
            process.opened.release()
        shutil.rmtree(self.root, ignore_errors=True)
