"""A model of a cluster, for programs under simulation: its managers, their faults, elections, and whose turn it is.

Lives here: the events and their times; all of them are drawn from one Random. Not here: the log (log.py), the way of a
write (writes.py), the store that a program sees (store.py). This is a model of the product's promises, and no Raft.
Invariant: fewer than half of the managers fail at a time. A leader has applied every committed entry when it begins.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from warren_raft.errors import WarrenError
from warren_raft.fsm.machine import Result, StateMachine
from warren_raft.model.entities import Node
from warren_raft.store import lookup
from warren_raft.store.database import Database
from warren_raft.store.tables import NODE
from warren_raft.testing.simulated import coroutines
from warren_raft.testing.simulated.beats import Beats
from warren_raft.testing.simulated.log import Flight, SimulatedLog
from warren_raft.testing.simulated.schedule import Schedule
from warren_raft.testing.simulated.store import SimulatedStore
from warren_raft.testing.simulated.turns import MISTAKES, Task, Turns, TurnsBell
from warren_raft.testing.simulated.writes import Writes
from warren_raft.watching.feeding import Feeding

Seconds = tuple[float, float]
"""The least and the most."""

STEP_SECONDS: Final = (0.0005, 0.02)
"""How far the clock moves with each turn."""
FAULT: Final = 0.08
"""The chance of a fault before each turn, while one more manager may fail."""
FAULT_AT_WRITE: Final = 0.25
"""The same after the turn of a thread that is about to send a write, or to hear of its result. At this moment a paused
leader does harm, so the fault is that of its manager."""
FAULT_OF_LAST: Final = 0.5
"""The chance that any other fault is that of the manager that had the last turn."""
CATCHES_UP: Final = 0.3
"""The chance, before each turn, that a follower applies some of the entries that it lacks."""

FROZEN_SECONDS: Final = (0.1, 12.0)
CUT_OFF_SECONDS: Final = (0.1, 15.0)
RESTART_SECONDS: Final = (0.5, 6.0)
ELECTION_SECONDS: Final = (0.6, 3.0)
"""From the loss of a leader to the next one."""
HEARING_SECONDS: Final = (0.01, 2.0)
"""How long an old leader takes to hear of a new term, after it goes on or has its links again."""
ALONE_SECONDS: Final = (1.0, 3.0)
"""How long a leader without links believes that it leads."""

CALM_SECONDS: Final = 30.0
CALM_WAITS: Final = 3
"""The programs change nothing any more if they have changed nothing for so long, by the simulated clock and without
faults, and each thread has waited so often since."""
CALM_TURNS: Final = 5
"""Programs that never wait, or that change the state without end, are not waited for longer than so many times the
turns with faults."""


class Process:
    """One life of a manager: from its start until it is killed."""

    def __init__(self, database: Database) -> None:
        self.tasks: list[Task] = []
        self.is_killed = False
        self.is_closed = False
        """Its program has closed the store."""
        self.feeding: Final = Feeding(lambda: database)


class Manager:
    """A manager: its state, and its knowledge of the cluster."""

    def __init__(self, id_: str, machine: StateMachine) -> None:
        self.id: Final = id_
        self.machine: Final = machine
        self.process: Process | None = None
        self.is_frozen = False
        self.cut_off_at: float | None = None
        """When its links were lost; None: it has links."""
        self.leader: str | None = None
        """The leader that it knows."""
        self.term = 0
        """The term that it knows."""
        self.leads_in: int | None = None
        """The term in which it believes that it leads."""
        self.behind_since: float | None = None
        """Since when there is a committed entry that it has not applied."""

    @property
    def is_connected(self) -> bool:
        return self.cut_off_at is None

    @property
    def is_up(self) -> bool:
        """Whether it takes part in the cluster."""
        return self.process is not None and self.is_connected and not self.is_frozen

    def nodes(self) -> list[Node]:
        """All nodes in its state."""
        database = self.machine.database
        with database.begin() as txn:
            return lookup.everything(database, txn, NODE)


class SimulatedCluster:
    """One run. `always` is called with each state that is committed, and raises if it is wrong."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        programs: Sequence[Callable[[Any], object]],
        size: int,
        always: Callable[[Database], object],
    ) -> None:
        self.random: Final = Random(seed)  # noqa: S311
        self.turns: Final = Turns(Random(seed).randbytes)  # noqa: S311
        self.bell: Final = TurnsBell(self.turns)
        self.schedule: Final = Schedule()
        self.met: Final[Counter[str]] = Counter()
        self.failure: BaseException | None = None
        """The mistake that was found."""
        self.is_setting_up = True
        self.is_calm = True
        """There are no faults."""
        self.leader: Manager | None = None
        self._programs: Final = programs
        self._always: Final = always
        self._held: Final = ExitStack()
        self.log: Final = SimulatedLog(self._opened(directory / "committed"), self.random, self._committed)
        self.managers: Final = [
            Manager(f"m{number}", self._opened(directory / f"m{number}")) for number in range(1, size + 1)
        ]
        self.writes: Final = Writes(self)
        self.beats: Final = Beats(self)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers: Final = itertools.count()
        self._last: Manager | None = None
        """The manager that had the last turn."""
        self._is_at_write = False
        self._changed_at = 0.0
        self._revision = 0

    def _opened(self, directory: Path) -> StateMachine:
        directory.mkdir(mode=0o700)
        database = Database.open(directory, sync=False)
        self._held.callback(database.abandon)
        return StateMachine(database)

    def close(self) -> None:
        """End all programs, and close their states. Raises Stuck."""
        with self._held:
            for manager in self.managers:
                if manager.process is not None:
                    self._end(manager.process)

    def abandon(self) -> None:
        """Close the states. A thread that did not come back is left where it is."""
        self._held.close()

    # The course of a run ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The managers form a cluster. No program runs yet."""
        for manager in self.managers:
            manager.process = Process(manager.machine.database)
        self._elect()
        self._all_hear()

    def first_store(self) -> SimulatedStore:
        """For the setup."""
        manager = self.managers[0]
        assert manager.process is not None
        return SimulatedStore(self, manager, manager.process)

    def start_programs(self) -> None:
        """After the setup."""
        self._all_apply()
        self.is_setting_up = False
        for manager in self.managers:
            self._start_programs(manager)

    def run(self, steps: int) -> None:
        """So many turns, with faults; then without, until the programs change nothing any more."""
        self.is_calm = False
        last = self.schedule.turn + steps
        while self.schedule.turn < last and self.failure is None:
            self._step()
        self.is_calm = True
        if self.failure is None:
            self._end_faults()
        self._note_change()
        last = self.schedule.turn + CALM_TURNS * steps
        while self.schedule.turn < last and self.failure is None and not self._is_quiet:
            self._step()

    def _end_faults(self) -> None:
        self.schedule.note("--", "the faults end")
        for manager in self.managers:
            manager.is_frozen = False
            manager.cut_off_at = None
            if manager.process is None:
                self._start(manager)
        if self.leader is None or self.leader.leads_in != self.log.term:
            self._elect()
        self._all_hear()
        self._all_apply()

    @property
    def _is_quiet(self) -> bool:
        return self.turns.now - self._changed_at >= CALM_SECONDS and all(
            task.waits >= CALM_WAITS or task.waits_for_ever for task in self._tasks()
        )

    def _note_change(self) -> None:
        self._changed_at = self.turns.now
        for task in self._tasks():
            task.waits = 0

    def _tasks(self) -> list[Task]:
        return [task for manager in self.managers if manager.process is not None for task in manager.process.tasks]

    def _step(self) -> None:
        """One turn of one thread; or, if every thread waits, the clock moves on."""
        self._run_events()
        if not self.is_calm:
            self._perhaps_fail()
        self._perhaps_catch_up()
        tasks = [
            (manager, task)
            for manager in self.managers
            if manager.process is not None and not manager.is_frozen
            for task in manager.process.tasks
        ]
        runnable = [pair for pair in tasks if pair[1].is_runnable]
        if not runnable:
            self._skip([task.deadline for _, task in tasks])
            return
        manager, task = self.random.choice(runnable)
        self._advance(self.turns.now + self.random.uniform(*STEP_SECONDS))
        self.schedule.turn += 1
        self._last = manager
        self.turns.run(task)
        if task.has_ended:
            self._ended(manager, task)

    def _skip(self, deadlines: list[float]) -> None:
        """Move the clock to the next moment at which something happens."""
        of_threads = min(deadlines, default=math.inf)
        at = min(of_threads, *(event[0] for event in self._events[:1]), self.turns.now + CALM_SECONDS)
        if of_threads == math.inf:  # perhaps no thread will ever have a turn again
            self.schedule.turn += 1
        self._advance(max(self.turns.now, at))

    def _advance(self, now: float) -> None:
        self.turns.now = self.schedule.now = now

    def note(self, manager: Manager, event: str) -> None:
        """A line of the schedule."""
        self.schedule.note(manager.id, event)

    # Events ---------------------------------------------------------------------------------------------------------

    def after(self, seconds: Seconds, event: Callable[[], None]) -> float:
        """Call `event` some time later. Returns when."""
        at = self.turns.now + self.random.uniform(*seconds)
        heapq.heappush(self._events, (at, next(self._numbers), event))
        return at

    def _run_events(self) -> None:
        while self._events and self._events[0][0] <= self.turns.now:
            heapq.heappop(self._events)[2]()

    # Programs -------------------------------------------------------------------------------------------------------

    def _start(self, manager: Manager) -> None:
        if manager.process is None:
            self.note(manager, "starts")
            manager.process = Process(manager.machine.database)
            self._hear(manager)
            self._start_programs(manager)

    def _start_programs(self, manager: Manager) -> None:
        assert manager.process is not None
        store = SimulatedStore(self, manager, manager.process)
        for program in self._programs:
            is_async = inspect.iscoroutinefunction(program)
            function = partial(coroutines.run, self.turns, program) if is_async else program
            self.begin_task(manager.process, partial(function, store))

    def begin_task(self, process: Process, function: Callable[[], object]) -> None:
        """Another thread of a program."""
        process.tasks.append(Task(self.turns, function))

    def _ended(self, manager: Manager, task: Task) -> None:
        """A thread of a program has ended."""
        process, error = manager.process, task.error
        if process is None or task not in process.tasks:
            return
        process.tasks.remove(task)
        if isinstance(error, WarrenError) and not isinstance(error, MISTAKES):
            self.note(manager, f"its program ends by {type(error).__name__}: {error}")
            self.met["programs ended by an error"] += 1
            self._kill(manager)
        elif error is not None:
            self.fail(error)
        elif process.is_closed and not process.tasks:
            self.note(manager, "its program has ended")
            self._kill(manager)

    def fail(self, error: BaseException) -> None:
        """A mistake was found."""
        if self.failure is None:
            self.failure = error

    def _end(self, process: Process) -> None:
        process.is_killed = True
        tasks, process.tasks = process.tasks, []
        for task in tasks:
            self.turns.kill(task)

    # Faults ---------------------------------------------------------------------------------------------------------

    def pause_at_write(self) -> None:
        """A turn at a moment at which a fault does harm."""
        self._is_at_write = True
        self.turns.pause()

    def _perhaps_fail(self) -> None:
        is_at_write, self._is_at_write = self._is_at_write, False
        if self.random.random() >= (FAULT_AT_WRITE if is_at_write else FAULT):
            return
        manager = self.random.choice(self.managers)
        if self._last is not None and (is_at_write or self.random.random() < FAULT_OF_LAST):
            manager = self._last
        fault = self.random.choice((self._freeze, self._freeze, self._cut_off, self._kill, self._depose))
        still_up = sum(each.is_up for each in self.managers) - 1
        if manager.is_up and 2 * still_up > len(self.managers):
            fault(manager)

    def _freeze(self, manager: Manager) -> None:
        self.note(manager, "is frozen")
        self.met["frozen"] += 1
        manager.is_frozen = True
        self._may_be_lost(manager)
        self.after(FROZEN_SECONDS, partial(self._wake, manager, manager.process))

    def _wake(self, manager: Manager, process: Process | None) -> None:
        if manager.process is not process or not manager.is_frozen:
            return
        self.note(manager, f"goes on{self._belief(manager)}")
        manager.is_frozen = False
        self.after(HEARING_SECONDS, partial(self._hear, manager))

    def _belief(self, manager: Manager) -> str:
        if manager.leads_in in (None, self.log.term):
            return ""
        return f" and believes that it leads in term {manager.leads_in}"

    def _cut_off(self, manager: Manager) -> None:
        self.note(manager, "loses its links")
        self.met["links lost"] += 1
        manager.cut_off_at = at = self.turns.now
        self._may_be_lost(manager)
        self.after(CUT_OFF_SECONDS, partial(self._link, manager, at))
        self.after(ALONE_SECONDS, partial(self._step_down, manager, at))

    def _link(self, manager: Manager, cut_off_at: float) -> None:
        if manager.cut_off_at == cut_off_at:
            self.note(manager, f"has its links again{self._belief(manager)}")
            manager.cut_off_at = None
            self.after(HEARING_SECONDS, partial(self._hear, manager))

    def _step_down(self, manager: Manager, cut_off_at: float) -> None:
        """Nothing was heard of the others for long."""
        if manager.cut_off_at != cut_off_at or manager.is_frozen:
            return
        manager.leader = None
        if manager.leads_in is not None:
            self.note(manager, f"does not lead in term {manager.leads_in} any more: it hears nothing")
            manager.leads_in = None
        self.bell.ring()

    def _kill(self, manager: Manager) -> None:
        process = manager.process
        if process is None:
            return
        self.note(manager, "is killed")
        self.met["killed"] += 1
        manager.process = None
        manager.leads_in = manager.leader = None
        manager.is_frozen = False
        self._end(process)
        self._may_be_lost(manager)
        if self.leader is manager:
            self.leader = None
        self.after(RESTART_SECONDS, partial(self._start, manager))

    def _depose(self, _manager: Manager) -> None:
        """An election without a fault, as after a delay of the network."""
        if self.serves:
            self.met["deposed"] += 1
            self._elect(but=self.leader)

    # Leadership -----------------------------------------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        """Whether there is a leader that can commit entries."""
        return self.leader is not None and self.leader.is_up and self._has_quorum

    def reaches_leader(self, manager: Manager) -> bool:
        """Whether a write of this manager can be sent."""
        return manager.is_connected and self.serves

    @property
    def _has_quorum(self) -> bool:
        return 2 * sum(each.is_up for each in self.managers) > len(self.managers)

    def _may_be_lost(self, manager: Manager) -> None:
        """If this is the leader, there will be an election."""
        if manager is self.leader:
            self.after(ELECTION_SECONDS, self._elect_if_needed)

    def _elect_if_needed(self) -> None:
        if self.serves:
            return
        if self._has_quorum:
            self._elect()
        else:
            self.after(ELECTION_SECONDS, self._elect_if_needed)

    def _elect(self, but: Manager | None = None) -> None:
        before = self.leader
        self.leader = leader = self.random.choice([each for each in self.managers if each.is_up and each is not but])
        self.log.begin_term()
        self.apply(leader, self.log.last_index)
        leader.term = leader.leads_in = self.log.term
        leader.leader = leader.id
        self.bell.ring()
        self.met["elections"] += 1
        self.note(leader, f"leads in term {self.log.term}")
        for manager in self.managers:
            if manager is before:
                self.after(HEARING_SECONDS, partial(self._hear, manager))
            else:
                self._hear(manager)

    def _hear(self, manager: Manager) -> None:
        """It hears of the present term, if it can."""
        if not manager.is_up or self.leader is None:
            return
        manager.term, manager.leader = self.log.term, self.leader.id
        if manager.leads_in is not None and manager.leads_in < self.log.term:
            self.note(manager, f"hears that it does not lead in term {manager.leads_in} any more")
            manager.leads_in = None
        self.bell.ring()

    def _all_hear(self) -> None:
        for manager in self.managers:
            self._hear(manager)

    # Entries --------------------------------------------------------------------------------------------------------

    def _committed(self, flight: Flight, result: Result) -> None:
        """An entry with a command was committed."""
        if self.leader is not None and self.leader.is_up:
            self.apply(self.leader, self.log.last_index)
        for manager in self.managers:
            if manager.behind_since is None and manager.machine.applied_index < self.log.last_index:
                manager.behind_since = self.turns.now
        if self.is_setting_up:
            return
        if result.error is not None:
            self.schedule.note(flight.manager, f"{flight.name} is refused: {result.error[0]}")
        elif result.revision == self._revision or self.log.machine.revision == self._revision:
            self.schedule.note(flight.manager, f"{flight.name} is committed, and changes nothing")
        else:
            self.schedule.note(flight.manager, f"{flight.name} is committed: revision {result.revision}")
        if self.log.machine.revision != self._revision:
            self._revision = self.log.machine.revision
            self._note_change()
            self.check(self._always)

    def settle(self, flight: Flight) -> None:
        """Commit a command that was delayed, if that is still possible."""
        if self.log.is_pending(flight) and self.serves:
            self.log.commit(flight)

    def check(self, check: Callable[[Database], object]) -> None:
        """Look for a mistake in the state that is committed."""
        try:
            check(self.log.machine.database)
        except Exception as error:  # noqa: BLE001  it is the mistake that was looked for
            self.fail(error)

    def apply(self, manager: Manager, up_to: int) -> None:
        """Apply committed entries on a manager."""
        machine = manager.machine
        entries = self.log.between(machine.applied_index, up_to)
        if entries:
            machine.apply_all(machine.applied_index + 1, entries)
        if machine.applied_index == self.log.last_index:
            manager.behind_since = None
        if manager.process is not None:
            self.feed(manager.process)

    def feed(self, process: Process) -> None:
        """Give the watches of a process the entries that were applied."""
        while not process.feeding.is_idle and process.feeding.step(self.turns.monotonic()) == 0:
            pass

    def _perhaps_catch_up(self) -> None:
        last = self.log.last_index
        for manager in self.managers:
            behind = last - manager.machine.applied_index
            if behind and manager.is_up and (self.is_calm or self.random.random() < CATCHES_UP):
                self.apply(manager, last - self.random.randint(0, behind - 1))

    def _all_apply(self) -> None:
        for manager in self.managers:
            self.apply(manager, self.log.last_index)

    def waited(self, condition: Callable[[], object], deadline: float) -> bool:
        """Whether the condition was true before the deadline, for the thread of a program."""
        turns = self.turns
        if not turns.evaluated(condition):
            turns.wait(condition, deadline)
        return bool(turns.evaluated(condition)) and turns.now < deadline
