"""Stock PySyncObj in the same world: `--engine stock`. It has its own messages, elections, log and journal, on the same
network and under the same faults as far as they apply. So the effect of these faults on it can be seen.

It is treated kindly: its journal loses nothing in a crash (the real journal is never synced), no disk fails or fills,
no directory is wiped, members do not change, and there are no snapshots. Not here: the library in memory
(tests/stock_pysyncobj.py).
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from pysyncobj.transport import Transport

from tests.simulation.nemesis import Nemesis
from tests.simulation.options import Options, draw
from tests.simulation.run import LIVENESS_SECONDS, Result
from tests.simulation.world import Failure, Process, World
from tests.stock_pysyncobj import REASONS, SUCCESS, StockJournal, StockNode, load_stock, make_machine_class
from warren_raft.alarms import Alarms
from warren_raft.raft.effects import Dial, Effect, Send
from warren_raft.raft.events import LinkDown, LinkUp, Received
from warren_raft.raft.membership import Hello, Member, Membership

ELECTION_SECONDS = (0.4, 1.4)
"""The library's default; all its other settings here are defaults as well."""


UNSYNCED_SECONDS = 5.0
"""A power cut takes at most the writes of this time from a journal that is never synced. Linux writes pages back after
5 to 35 s."""


def stock_options(seed: int) -> Options:
    """The same options, without the faults that do not apply to the library."""
    return replace(
        draw(seed),
        member_rate=0,
        wipe=0,
        damage=0,
        swap_rate=0,
        disk_full_rate=0,
        disk_error=0,
        state_full_rate=0,
        wrong_state_rate=0,
        renewal_rate=0,
        arrow_kill=0,
        file_fault_rate=0,
        replay=0,
        transfer_rate=0,
        hostile_rate=0,
        disaster=0,
    )


class _Links(Transport):  # type: ignore[misc]
    """The library's end of the simulated network."""

    def __init__(self, engine: StockEngine, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._engine = engine

    def send(self, node: Any, message: Any) -> bool:
        return self._engine.send(node.id, message)

    def dropNode(self, node: Any) -> None:
        return None

    def destroy(self) -> None:
        return None


class StockEngine:
    """The library, with the interface of our engine for the world."""

    failure = None
    holds_notices = False
    is_ready = False
    fetching = None

    def __init__(self, opened: StockDirectory, now: float) -> None:
        self._opened = opened
        self._clock = now
        self.alarms = Alarms(opened.id)
        self.members = {id_: Member(id_, address, "stock", voter=True) for id_, address in opened.members.items()}
        self._links: dict[str, int] = {}
        self._effects: list[Effect] = [Dial({k: (v,) for k, v in opened.members.items() if k != opened.id})]
        self.errors: Counter[str] = Counter()
        module = load_stock(lambda: self._clock, Random(opened.seed))
        shortest, longest = ELECTION_SECONDS
        conf = module.SyncObjConf(
            autoTick=False,
            journalFile=opened.journal,
            raftMinTimeout=shortest,
            raftMaxTimeout=longest,
            logCompactionMinEntries=10**9,
            logCompactionMinTime=10**9,
        )
        others = [StockNode(other) for other in sorted(opened.members) if other != opened.id]

        def links(*arguments: Any) -> _Links:
            self._transport = _Links(self, *arguments)
            return self._transport

        make = make_machine_class(module)
        self.machine = make(StockNode(opened.id), others, conf, nodeClass=StockNode, transportClass=links)

    # The engine's interface --------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        return "leader" if self.machine._isLeader() else "follower"

    @property
    def is_leader(self) -> bool:
        return bool(self.machine._isLeader())

    @property
    def term(self) -> int:
        return int(self.machine.raftCurrentTerm)

    def hello(self) -> dict[str, Any]:
        address = self._opened.members[self._opened.id]
        return Hello(self._opened.id, address, "stock", False, None, 0, b"").to_message()

    def judge(self, _hello: object) -> None:
        return None

    def step(self, now: float, events: Iterable[Any]) -> list[Effect]:
        self._clock = now
        for event in events:
            self._handle(event)
        self._guarded("tick", self.machine.doTick, 0.0)
        effects, self._effects = self._effects, []
        return effects

    def _handle(self, event: Any) -> None:
        match event:
            case LinkUp(peer, number, _):
                self._links[peer] = number
                self._transport._onNodeConnected(StockNode(peer))
            case LinkDown(peer, number) if self._links.get(peer) == number:
                del self._links[peer]
                self._transport._onNodeDisconnected(StockNode(peer))
            case Received(peer, _, message):
                # Also messages of a replaced connection: the library's callback stays bound to the peer.
                content = pickle.loads(message["data"])
                self._guarded(content["type"], self._transport._onMessageReceived, StockNode(peer), content)

    def _guarded(self, where: str, function: Callable[..., object], *arguments: object) -> None:
        """Call a function like the library's own thread, which logs exceptions and goes on."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - see above
            self.errors[f"{where}: {type(error).__name__}"] += 1

    def send(self, peer: str, message: Any) -> bool:
        number = self._links.get(peer)
        if number is None:
            return False
        self._effects.append(Send(number, {"type": "stock", "data": pickle.dumps(message, 2)}))
        return True

    def apply(self) -> bool:
        return False

    def close(self) -> None:
        return None


class StockDirectory:
    """An opened directory, with the interface that the world uses."""

    def __init__(self, id_: str, members: Mapping[str, str], journal: StockJournal, seed: int) -> None:
        self.id = id_
        self.members = members
        self.journal = journal
        self.seed = seed

    def make_engine(self, now: float) -> StockEngine:
        return StockEngine(self, now)

    def release(self) -> None:
        return None


class StockWorld(World):
    """A world that starts stock managers."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.journals: dict[str, StockJournal] = {}
        self.loses_unsynced = False
        members = {id_: Member(id_, address, "stock", voter=True) for id_, address in self.initial.items()}
        self.audience.lists.all.append(Membership("stock", 1, members))
        self._images: dict[str, deque[tuple[float, StockJournal]]] = defaultdict(deque)

    def end(self, process: Process, *, power_cut: bool) -> None:
        super().end(process, power_cut=power_cut)
        images = self._images[process.id]
        if power_cut and self.loses_unsynced and images:
            moment = self.now - self.random.uniform(0.0, UNSYNCED_SECONDS)
            older = [image for when, image in images if when <= moment]
            self.journals[process.id] = older[-1] if older else StockJournal()
        images.clear()

    def stepped(self, process: Process) -> None:
        if self.loses_unsynced:
            images = self._images[process.id]
            if not images or self.now - images[-1][0] > UNSYNCED_SECONDS / 20:
                images.append((self.now, self.journals[process.id].image()))
                while len(images) > 22:
                    images.popleft()
        self.tell("stepped", process)

    def start(self, id_: str, _members: dict[str, str] | None = None) -> Process | None:
        journal = self.journals[id_].image() if id_ in self.journals else StockJournal()
        self.journals[id_] = journal
        opened: Any = StockDirectory(id_, self.initial, journal, self.random.getrandbits(64))
        process = Process(self, self.directories[id_], opened)
        self.processes[id_] = process
        self.note(f"{id_} starts: journal to {journal.entries[-1][1] if journal.entries else 0}")
        self.tell("started", process)
        return process

    def describe(self) -> str:
        return "\n".join(
            f"  {p.id}: {p.engine.role} term {p.engine.term} applied {len(machine_of(p).applied)} "
            f"commit {machine_of(p).raftCommitIndex} {dict(p.engine.errors)}"  # type: ignore[attr-defined]
            for p in self.running()
        )


def machine_of(process: Process) -> Any:
    return process.engine.machine  # type: ignore[attr-defined]


class StockCallers:
    """Callers that put each value once, and the checks. Each failure's text begins with the name of the invariant."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: set[str] = set()
        self.ended = False
        self.order: list[str] = []
        self._positions: dict[str, int] = {}
        self._leaders: dict[int, str] = {}
        self._checked: dict[int, int] = {}
        self._values = 0

    def started(self, process: Process) -> None:
        self._again(process)

    def _again(self, process: Process) -> None:
        self.world.after(self.world.random.expovariate(self.world.options.call_rate), lambda: self._turn(process))

    def _turn(self, process: Process) -> None:
        if process.alive and not self.ended:
            if process.paused_until <= self.world.now:
                self._values += 1
                value = f"v{self._values}"

                def answered(_result: Any, reason: int) -> None:
                    if REASONS[reason] == SUCCESS:
                        self.acknowledged.add(value)

                machine_of(process).put(value, callback=answered)
            self._again(process)

    def stepped(self, process: Process) -> None:
        term = process.engine.term
        if process.engine.is_leader and self._leaders.setdefault(term, process.id) != process.id:
            raise Failure(f"one leader a term: {process.id} and {self._leaders[term]} both lead term {term}")
        applied = machine_of(process).applied
        for position in range(self._checked.get(process.number, 0), len(applied)):
            self._applied(process, position, applied[position])
        self._checked[process.number] = len(applied)

    def _applied(self, process: Process, position: int, value: str) -> None:
        if position == len(self.order):
            if value in self._positions:
                earlier = self._positions[value]
                raise Failure(f"each request once: {process.id} applied {value} at {earlier} and at {position}")
            self.order.append(value)
            self._positions[value] = position
        elif self.order[position] != value:
            raise Failure(f"states agree: {process.id} applied {value} where another applied {self.order[position]}")

    def finish(self) -> None:
        for process in self.world.running():
            lost = self.acknowledged - set(machine_of(process).applied)
            if lost:
                raise Failure(f"acknowledged writes survive: {process.id} lacks {len(lost)}, one is {min(lost)}")


def run_stock(seed: int, *, loses_unsynced: bool = False) -> Result:
    options = stock_options(seed)
    result = Result(seed)
    begin = time.perf_counter()
    world = StockWorld(options)
    world.loses_unsynced = loses_unsynced
    callers = StockCallers(world)
    try:
        world.observers.append(callers)
        world.start_all()
        nemesis = Nemesis(world, options.safety_seconds)
        world.run_until(nemesis.until)
        nemesis.heal()
        before = len(callers.acknowledged)
        deadline = world.now + LIVENESS_SECONDS
        if not world.run_until(deadline, lambda: len(callers.acknowledged) > before + 3):
            raise Failure("liveness: no write is acknowledged any more")
        callers.ended = True
        if not world.run_until(deadline, lambda: _converged(world)):
            raise Failure("liveness: managers do not converge")
        callers.finish()
    except Failure as failure:
        result.failure, result.found_by = str(failure), str(failure).split(":")[0]
        world.note(f"FAILURE: {failure}\n{world.describe()}")
    finally:
        result.trace, result.faults = world.trace, world.faults
        result.acknowledged = len(callers.acknowledged)
        result.simulated_seconds = world.now - 100.0
        result.real_seconds = time.perf_counter() - begin
        world.close()
    return result


def _converged(world: World) -> bool:
    lists = [machine_of(process).applied for process in world.running()]
    return all(applied == lists[0] for applied in lists)
