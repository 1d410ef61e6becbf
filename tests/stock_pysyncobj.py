"""Stock PySyncObj in one thread: the released library as it is, on a clock, links and a disk of ours.

The stories of docs/pysyncobj-holes.md happen to it, and to our engines on the same schedule (engine_harness.py has the
same words). The clock, randomness, sockets and the journal file are replaced, in a private copy of the module, so that
other users of PySyncObj in the process notice nothing. The journal is perfect: every operation is durable at once,
except changes of the commit index, which the library itself stores once a second.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, NamedTuple
from zlib import crc32

from pysyncobj.config import FAIL_REASON
from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

Entry = tuple[bytes, int, int]
Message = dict[str, Any]

TICK_SECONDS = 0.05
"""SyncObjConf.autoTickPeriod."""
HEARTBEAT_SECONDS = 0.1
"""SyncObjConf.appendEntriesPeriod."""
NEVER_SECONDS = 1e9
"""Elections happen only in elect(), unless a cluster has real timeouts."""

REASONS: dict[int, str] = {value: name for name, value in vars(FAIL_REASON).items() if isinstance(value, int)}
SUCCESS = "SUCCESS"

_COMMAND_KINDS = {1: "no-op", 2: "membership", 3: "version"}


class StockNode(Node):  # type: ignore[misc]
    """A member. Its hash does not depend on PYTHONHASHSEED. The library iterates over sets of members, and a test must
    repeat."""

    def __hash__(self) -> int:
        return crc32(self.id.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.id == other.id


class StockJournal(Journal):  # type: ignore[misc]
    """A journal. Every operation is durable at once, except changes of the commit index: once a second."""

    def __init__(self, entries: Iterable[Entry] = (), term: int = 0, vote: str | None = None, commit: int = 1) -> None:
        self.entries = list(entries)
        self.term, self.vote = term, vote
        self.commit = self.stored_commit = commit

    def image(self) -> StockJournal:
        """The journal that the next process finds after this one died."""
        return StockJournal(self.entries, self.term, self.vote, self.stored_commit)

    def add(self, command: bytes, index: int, term: int) -> None:
        self.entries.append((command, index, term))

    def clear(self) -> None:
        self.entries = []

    def deleteEntriesFrom(self, position: int) -> None:
        del self.entries[position:]

    def deleteEntriesTo(self, position: int) -> None:
        self.entries = self.entries[position:]

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)

    def setRaftCommitIndex(self, index: int) -> None:
        self.commit = index

    def getRaftCommitIndex(self) -> int:
        return self.commit

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self.term, self.vote = term, vote
        self.stored_commit = self.commit

    def getCurrentTerm(self) -> int:
        return self.term

    def getVotedForNodeId(self) -> str | None:
        return self.vote

    def onOneSecondTimer(self) -> None:
        self.stored_commit = self.commit

    def _destroy(self) -> None:
        return None


class _NoPoller:
    """The library polls nothing, because there are no sockets."""

    def poll(self, _timeout: float) -> None:
        return None


class _NoResolver:
    """All users of PySyncObj in the process share the settings of the real resolver."""

    def setTimeouts(self, *_: object) -> None:
        return None

    def setPreferredAddrFamily(self, *_: object) -> None:
        return None


def load_stock(clock: Callable[[], float], random: Random) -> ModuleType:
    """A private copy of pysyncobj.syncobj, on `clock` and `random`. It takes journal objects as journal files."""
    spec = importlib.util.find_spec("pysyncobj.syncobj")
    assert spec is not None
    assert spec.origin is not None
    module = ModuleType("pysyncobj.stock")
    module.__package__ = "pysyncobj"
    module.__file__ = spec.origin
    exec(compile(Path(spec.origin).read_bytes(), spec.origin, "exec", dont_inherit=True), module.__dict__)
    module.__dict__.update(
        monotonicTime=clock,
        random=random,
        createJournal=lambda journal: journal,
        createPoller=lambda _kind: _NoPoller(),
        globalDnsResolver=_NoResolver,
        PIPE_NOTIFIER_ENABLED=False,
    )
    return module


def make_machine_class(module: ModuleType) -> Any:
    """A state machine that is the list of the applied writes, so that any divergence shows."""

    class ListMachine(module.SyncObj):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.applied: list[str] = []

        @module.replicated  # type: ignore[untyped-decorator]
        def put(self, text: str) -> int:
            self.applied.append(text)
            return len(self.applied)

        @module.replicated  # type: ignore[untyped-decorator]
        def fail(self, text: str) -> None:
            raise ValueError(text)

    return ListMachine


def make_newer_machine_class(module: ModuleType) -> Any:
    """The next release of the same program: `put` has a second version."""
    older = make_machine_class(module)

    class NewerListMachine(older):  # type: ignore[misc, valid-type]
        @module.replicated(ver=1)  # type: ignore[untyped-decorator]
        def put_more(self, text: str) -> None:
            self.applied.append(text)

    return NewerListMachine


class _Link(Transport):  # type: ignore[misc]
    """One manager's end of all its links."""

    def __init__(self, cluster: StockCluster, machine: Any, own: Node, others: Any) -> None:
        super().__init__(machine, own, others)
        self._cluster = cluster
        self._own = own

    def send(self, node: Node, message: Message) -> bool:
        return self._cluster.send(self._own.id, node.id, message)

    def dropNode(self, node: Node) -> None:
        self._cluster.disconnect(self._own.id, node.id)

    def destroy(self) -> None:
        return None


class Failure(NamedTuple):
    """An exception of a manager's tick or message handler. The library's own thread logs it and goes on."""

    id: str
    where: str
    error: str


class StockCluster:
    """Several stock managers. By hand: tick(), deliver(), elect(). By time, with real timeouts: turn(), run_until().

    `answers[text]` has the reasons that the callers' callbacks got, in order.
    """

    def __init__(
        self,
        ids: Sequence[str] = ("m1", "m2", "m3"),
        *,
        seed: int = 1,
        election_seconds: tuple[float, float] | None = None,
        start: bool = True,
        **settings: Any,
    ) -> None:
        self.now = 1000.0
        self.module = load_stock(lambda: self.now, Random(seed))
        self.machine_class = make_machine_class(self.module)
        self.settings = settings
        self.election_seconds = election_seconds or (NEVER_SECONDS, 2 * NEVER_SECONDS)
        self.initial = tuple(ids)
        self.nodes: dict[str, Any] = {}
        self.journals: dict[str, StockJournal] = {}
        self.links: dict[frozenset[str], int] = {}
        self.wire: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        self.late: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        """The messages that were on their way on links that broke, kept by disconnect(keep=True)."""
        self.cut: set[frozenset[str]] = set()
        self.held: set[tuple[str, str]] = set()
        self.failures: list[Failure] = []
        self.answers: dict[str, list[str]] = defaultdict(list)
        self._transports: dict[str, _Link] = {}
        self._link_number = 0
        if start:
            for id_ in ids:
                self.start(id_)

    # Managers ----------------------------------------------------------------------------------------------------

    def start(self, id_: str, *, members: Sequence[str] | None = None, machine_class: Any = None) -> Any:
        """Start or restart a manager on its journal."""
        journal = self.journals.setdefault(id_, StockJournal())
        minimum, maximum = self.election_seconds
        options: dict[str, Any] = {
            "raftMinTimeout": minimum,
            "raftMaxTimeout": maximum,
            "connectionTimeout": 2 * maximum,
            "logCompactionMinEntries": 10**9,
            "logCompactionMinTime": 10**9,
            **self.settings,
        }
        conf = self.module.SyncObjConf(autoTick=False, journalFile=journal, **options)
        others = [StockNode(other) for other in (self.initial if members is None else members) if other != id_]

        def links(machine: Any, own: Node, members: Any) -> _Link:
            self._transports[id_] = _Link(self, machine, own, members)
            return self._transports[id_]

        make = self.machine_class if machine_class is None else machine_class
        self.nodes[id_] = make(StockNode(id_), others, conf, nodeClass=StockNode, transportClass=links)
        return self.nodes[id_]

    def crash(self, id_: str) -> None:
        """kill -9: the journal survives, and nothing in memory."""
        for other in list(self.nodes):
            self.disconnect(id_, other)
        del self.nodes[id_], self._transports[id_]
        self.journals[id_] = self.journals[id_].image()

    def restart(self, id_: str, **options: Any) -> Any:
        self.crash(id_)
        return self.start(id_, **options)

    # Links -------------------------------------------------------------------------------------------------------

    def connect(self, *ids: str) -> None:
        """Link each of these managers to each other."""
        for a in ids:
            for b in ids:
                if a < b and frozenset((a, b)) not in self.links:
                    self._link_number += 1
                    self.links[frozenset((a, b))] = self._link_number
                    self._transports[a]._onNodeConnected(StockNode(b))
                    self._transports[b]._onNodeConnected(StockNode(a))

    def disconnect(self, a: str, b: str, *, keep: bool = False) -> None:
        """Messages on the wire are lost with the connection. With `keep` they may still arrive, see deliver_late().

        Stock's transport does deliver such messages: a new incoming connection takes the place of the old one without
        closing it, and the callback of the old one stays bound to the peer.
        """
        if self.links.pop(frozenset((a, b)), None) is None:
            return
        for x, y in ((a, b), (b, a)):
            if keep:
                self.late[x, y].extend(self.wire[x, y])
            self.wire[x, y].clear()
            if x in self._transports:
                self._transports[x]._onNodeDisconnected(StockNode(y))

    def part(self, a: str, b: str) -> None:
        """No link between two managers until heal()."""
        self.cut.add(frozenset((a, b)))
        self.disconnect(a, b)

    def isolate(self, id_: str) -> None:
        for other in list(self.nodes):
            if other != id_:
                self.part(id_, other)

    def hold(self, *pairs: tuple[str, str]) -> None:
        """Messages in these directions stay on the wire in turn() and flow()."""
        self.held.update(pairs)

    def heal(self) -> None:
        """End all cuts and holds. turn() links all managers again."""
        self.cut.clear()
        self.held.clear()

    def send(self, a: str, b: str, message: Message) -> bool:
        if frozenset((a, b)) not in self.links:
            return False
        self.wire[a, b].append(pickle.dumps(message, 2))
        return True

    def deliver(self, a: str, b: str, count: int | None = None) -> list[Message]:
        """Deliver messages from a to b, in order: the first `count`, or all."""
        return self._deliver(self.wire[a, b], a, b, count)

    def deliver_late(self, a: str, b: str, count: int | None = None) -> list[Message]:
        """Deliver messages that were on their way on a link that broke."""
        return self._deliver(self.late[a, b], a, b, count)

    def _deliver(self, queue: deque[bytes], a: str, b: str, count: int | None) -> list[Message]:
        delivered = []
        for _ in range(len(queue) if count is None else count):
            message = pickle.loads(queue.popleft())
            delivered.append(message)
            self._guarded(b, message["type"], self._transports[b]._onMessageReceived, StockNode(a), message)
        return delivered

    def on_wire(self, a: str, b: str) -> list[Message]:
        """The messages on their way from a to b."""
        return [pickle.loads(data) for data in self.wire[a, b]]

    def flow(self, *ids: str) -> None:
        """Deliver among these managers (or all) until no message is on its way."""
        among = ids or tuple(self.nodes)
        moved = True
        while moved:
            moved = False
            for (a, b), queue in list(self.wire.items()):
                if queue and a in among and b in among and (a, b) not in self.held:
                    self.deliver(a, b)
                    moved = True

    # Time --------------------------------------------------------------------------------------------------------

    def tick(self, *ids: str, seconds: float = 2 * HEARTBEAT_SECONDS) -> None:
        """Let time pass, then tick these managers (or all) once."""
        self.now += seconds
        for id_ in ids or tuple(self.nodes):
            self._guarded(id_, "tick", self.nodes[id_].doTick, 0.0)

    def rounds(self, count: int, *ids: str) -> None:
        """Tick these managers, and deliver all messages among them, `count` times."""
        for _ in range(count):
            self.tick(*ids)
            self.flow(*ids)

    def elect(self, id_: str, *voters: str) -> None:
        """Let a manager's election timeout fire, without a rival. `voters`: the managers that it reaches, or all."""
        machine = self.nodes[id_]
        machine._SyncObj__raftElectionDeadline = 0
        self.tick(id_)
        self.flow(id_, *(voters or tuple(other for other in self.nodes if other != id_)))
        assert machine._isLeader(), f"{id_} was not elected: {self.describe()}"

    def turn(self) -> None:
        """Heal links, deliver the messages that were sent before, and tick all managers once."""
        for a in self.nodes:
            for b in self.nodes:
                if a < b and frozenset((a, b)) not in self.cut:
                    self.connect(a, b)
        for pair in list(self.wire):
            if pair not in self.held and pair[1] in self.nodes:
                self.deliver(*pair)
        self.tick(seconds=TICK_SECONDS)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.turn()

    def run_until(self, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Returns the result of `condition` when it is true. Raises AssertionError if it is not true in time."""
        end = self.now + seconds
        while not (result := condition()):
            assert self.now < end, f"not within {seconds} s: {self.describe()}"
            self.turn()
        return result

    def _guarded(self, id_: str, where: str, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - as the library's own thread does; the tests read it
            self.failures.append(Failure(id_, where, repr(error)))

    # Work and views ----------------------------------------------------------------------------------------------

    def submit(self, id_: str, text: str) -> None:
        """Write through the manager `id_`. The reason that the callback gets goes to `answers`."""
        self.nodes[id_].put(text, callback=self.answer_to(text))

    def answer_to(self, text: str) -> Callable[[Any, int], None]:
        """A callback for any other call."""
        return lambda _result, reason: self.answers[text].append(REASONS[reason])

    @property
    def acknowledged(self) -> set[str]:
        """The writes with a callback that got SUCCESS."""
        return {text for text, reasons in self.answers.items() if SUCCESS in reasons}

    @property
    def leader(self) -> str | None:
        """The leader of the highest term, if any."""
        leaders = [id_ for id_, node in self.nodes.items() if node._isLeader()]
        return max(leaders, key=lambda id_: int(self.nodes[id_].raftCurrentTerm), default=None)

    def applied(self, id_: str) -> list[str]:
        applied: list[str] = self.nodes[id_].applied
        return applied

    def commit_index(self, id_: str) -> int:
        return int(self.nodes[id_].raftCommitIndex)

    def members(self, id_: str) -> list[str]:
        """The managers that a manager counts as members, itself included."""
        return sorted([id_, *(node.id for node in self.nodes[id_].otherNodes)])

    def match_index(self, id_: str, peer: str) -> int:
        return int(self.nodes[id_]._SyncObj__raftMatchIndex.get(StockNode(peer), 0))

    def next_index(self, id_: str, peer: str) -> int:
        return int(self.nodes[id_]._SyncObj__raftNextIndex.get(StockNode(peer), 0))

    def log_of(self, id_: str) -> list[tuple[int, int, str]]:
        """(index, term, text or kind) of each entry in a manager's journal."""
        return [(index, term, _text_of(command)) for command, index, term in self.journals[id_].entries]

    def converged(self) -> bool:
        logs = [self.log_of(id_) for id_ in self.nodes]
        lists = [self.applied(id_) for id_ in self.nodes]
        return all(log == logs[0] for log in logs) and all(applied == lists[0] for applied in lists)

    def describe(self) -> str:
        states = ("follower", "candidate", "leader")
        return "; ".join(
            f"{id_}: {states[node.getStatus()['state']]} term {node.raftCurrentTerm} log {self.log_of(id_)[-1]} "
            f"commit {node.raftCommitIndex} applied {node.raftLastApplied}"
            for id_, node in self.nodes.items()
        )


def _text_of(command: bytes) -> str:
    kind = command[0]
    if kind != 0:
        return _COMMAND_KINDS[kind]
    content = pickle.loads(command[1:])
    return str(content[1][0]) if isinstance(content, tuple) else str(content)
