"""Several real engines in one thread: virtual clock, links and disks, driven by hand or run until a condition holds.

Nothing of the product is replaced but clock, randomness, sockets and file writes. The state machine is a list, so any
divergence shows. Not here: random faults (the simulation's matter).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import cbor2

from warren_raft.raft.engine import (
    CloseLink,
    Dial,
    Engine,
    Event,
    LinkDown,
    LinkUp,
    Received,
    Refused,
    Send,
    Settings,
    Submitted,
    Synced,
    WriteLog,
)
from warren_raft.raft.files import OsFiles
from warren_raft.raft.log import Batch, Log
from warren_raft.raft.submit import Proposal

STEP_SECONDS = 0.01


@dataclass(frozen=True)
class Outcome:
    session: int
    sequence: int
    value: Any


class ListMachine:
    """Durable by decree: what was applied survives the engine. Each command is CBOR [session, sequence, text]."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.indexes: list[int] = []
        self.applied_index = 1
        self.applied_term = 0
        self.membership: bytes | None = None
        self.answered: set[tuple[int, int]] = set()
        self.limit: Callable[[], int] = lambda: 1 << 60

    def _advance(self, index: int, term: int) -> None:
        assert index == self.applied_index + 1
        assert index <= self.limit(), "applied beyond the synced log"
        self.applied_index, self.applied_term = index, term
        self.indexes.append(index)

    def apply(self, index: int, term: int, commands: Sequence[bytes]) -> list[Outcome]:
        self._advance(index, term)
        outcomes = []
        for command in commands:
            session, sequence, text = cbor2.loads(command)
            if (session, sequence) not in self.answered:
                self.answered.add((session, sequence))
                self.applied.append(text)
            outcomes.append(Outcome(session, sequence, len(self.applied)))
        return outcomes

    def settle(self) -> None:
        return None

    def apply_membership(self, index: int, term: int, cluster_id: str, membership: bytes) -> None:
        self._advance(index, term)
        self.membership = membership


@dataclass
class Node:
    id: str
    engine: Engine
    log: Log
    machine: ListMachine
    events: list[Event] = field(default_factory=list)
    batches: deque[Batch] = field(default_factory=deque)
    """Batches that wait for the disk; with `disk_seconds` None they stay until complete_sync()."""
    dialed: dict[str, str] = field(default_factory=dict)
    write_at: float | None = None
    disk_seconds: float | None = 0.0
    syncs: int = 0
    sessions: int = 0


class Cluster:
    """`nodes[id]` for each running manager; `run_until(condition)` moves the clock."""

    def __init__(self, directory: Path, ids: Sequence[str] = ("m1", "m2", "m3"), *, seed: int = 1) -> None:
        self.directory = directory
        self.random = Random(seed)
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, ListMachine] = {}
        self.addresses: dict[str, str] = {id_: f"127.0.0.1:{7000 + n}" for n, id_ in enumerate(ids)}
        self.links: dict[tuple[str, str], int] = {}
        """(from, to) -> the number by which `from` knows its link to `to`."""
        self.wire: dict[tuple[str, str], deque[tuple[int, bytes]]] = defaultdict(deque)
        self.cut: set[frozenset[str]] = set()
        self.held: set[tuple[str, str]] = set()
        """Directions in which nothing is delivered for now (a slow or one-way link)."""
        self.sent: list[tuple[str, str, dict[str, Any], int, int]] = []
        """(from, to, message, log position, synced position) of everything that left an engine."""
        self.leaders: dict[int, str] = {}
        self._link_number = 0
        self._sequence = 0
        self.acknowledged: dict[str, Any] = {}
        self.failed: dict[str, Exception] = {}
        for id_ in ids:
            self.start(id_, members=self.addresses)

    # Managers ----------------------------------------------------------------------------------------------------

    def start(self, id_: str, *, members: dict[str, str] | None = None, address: str | None = None) -> Node:
        if address is not None:
            self.addresses[id_] = address
        members = dict(members or self.addresses)
        members.setdefault(id_, self.addresses[id_])
        log = Log.open(
            str(self.directory / id_),
            files=OsFiles(),
            node_id=id_,
            new_incarnation=lambda: f"{self.random.getrandbits(64):016x}",
        )
        machine = self.machines.setdefault(id_, ListMachine())
        machine.limit = lambda: log.synced_index
        settings = Settings(node_id=id_, address=self.addresses[id_], members=members)
        engine = Engine(settings, log=log, machine=machine, random=Random(self.random.random()), now=self.now)
        self.nodes[id_] = Node(id_, engine, log, machine)
        return self.nodes[id_]

    def crash(self, id_: str) -> None:
        """kill -9: nothing in memory survives, what was written does."""
        node = self.nodes.pop(id_)
        for other in list(self.nodes):
            self.disconnect(id_, other)
        for pair in [pair for pair in self.links if id_ in pair]:
            del self.links[pair]
        node.log.close()

    def wipe(self, id_: str) -> None:
        for path in (self.directory / id_).iterdir():
            path.unlink()
        del self.machines[id_]

    # Links -------------------------------------------------------------------------------------------------------

    def connect(self, a: str, b: str) -> None:
        """A link comes up if both accept the other's hello."""
        one, two = self.nodes[a], self.nodes[b]
        hellos = one.engine.hello(), two.engine.hello()
        for judging, hello, judged in ((two, hellos[0], one), (one, hellos[1], two)):
            refusal = judging.engine.judge(hello)
            if refusal is not None:
                judged.events.append(Refused(judging.id, refusal))
                return
        for node, other, hello in ((one, b, hellos[1]), (two, a, hellos[0])):
            self._link_number += 1
            self.links[node.id, other] = self._link_number
            node.events.append(LinkUp(other, self._link_number, hello))

    def disconnect(self, a: str, b: str) -> None:
        """What is on the wire dies with the connection."""
        for x, y in ((a, b), (b, a)):
            number = self.links.pop((x, y), None)
            self.wire[x, y].clear()
            if number is not None and x in self.nodes:
                self.nodes[x].events.append(LinkDown(y, number))

    def isolate(self, id_: str) -> None:
        for other in self.addresses:
            if other != id_:
                self.cut.add(frozenset((id_, other)))
                self.disconnect(id_, other)

    def heal(self) -> None:
        self.cut.clear()
        self.held.clear()

    # Time --------------------------------------------------------------------------------------------------------

    def step(self, id_: str) -> None:
        node = self.nodes[id_]
        events, node.events = node.events, []
        for effect in node.engine.step(self.now, events):
            self._perform(node, effect)
        node.engine.apply()
        if node.engine.role == "leader":
            term = node.engine.term
            assert self.leaders.setdefault(term, id_) == id_, f"two leaders in term {term}"

    def _perform(self, node: Node, effect: Any) -> None:
        if isinstance(effect, Send):
            peer = next((to for (frm, to), n in self.links.items() if frm == node.id and n == effect.link), None)
            if peer is not None:
                self.sent.append((node.id, peer, effect.message, node.log.position, node.log.synced_position))
                self.wire[node.id, peer].append((self.links[peer, node.id], cbor2.dumps(effect.message)))
        elif isinstance(effect, WriteLog):
            node.batches.append(effect.batch)
            node.write_at = None if node.disk_seconds is None else self.now + node.disk_seconds
        elif isinstance(effect, Dial):
            node.dialed = dict(effect.peers)
        elif isinstance(effect, CloseLink):
            for (frm, to), number in list(self.links.items()):
                if frm == node.id and number == effect.link:
                    self.disconnect(frm, to)

    def complete_sync(self, id_: str) -> None:
        node = self.nodes[id_]
        batch = node.batches.popleft()
        batch.write()
        node.syncs += 1
        node.events.append(Synced(batch))

    def deliver(self, a: str, b: str, count: int | None = None) -> list[dict[str, Any]]:
        """Messages from a to b, in order; all of them unless `count` says otherwise."""
        queue = self.wire[a, b]
        delivered = []
        for _ in range(len(queue) if count is None else count):
            number, data = queue.popleft()
            message = cbor2.loads(data)
            delivered.append(message)
            if b in self.nodes:
                self.nodes[b].events.append(Received(a, number, message))
        return delivered

    def turn(self) -> None:
        """One step of time for everybody: dial, deliver, sync, step."""
        self.now += STEP_SECONDS
        for id_, node in list(self.nodes.items()):
            for peer in sorted(node.dialed):
                if peer in self.nodes and (id_, peer) not in self.links and frozenset((id_, peer)) not in self.cut:
                    self.connect(id_, peer)
        for pair in list(self.wire):
            if pair not in self.held:
                self.deliver(*pair)
        for id_ in list(self.nodes):
            node = self.nodes[id_]
            if node.batches and node.write_at is not None and node.write_at <= self.now:
                self.complete_sync(id_)
            self.step(id_)
            if node.events:
                self.step(id_)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.turn()

    def run_until(self, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Returns what `condition` returned; raises AssertionError when it does not hold in time."""
        end = self.now + seconds
        while not (result := condition()):
            assert self.now < end, f"not within {seconds} s: {self.describe()}"
            self.turn()
        return result

    # Work and views ----------------------------------------------------------------------------------------------

    @property
    def leader(self) -> Node | None:
        leaders = [node for node in self.nodes.values() if node.engine.is_leader]
        return max(leaders, key=lambda node: node.engine.term, default=None)

    def wait_leader(self) -> Node:
        node = self.run_until(lambda: self.leader)
        assert isinstance(node, Node)
        return node

    def submit(self, id_: str, text: str, seconds: float = 10.0) -> Proposal:
        self._sequence += 1
        data = cbor2.dumps([7, self._sequence, text])
        proposal = Proposal(7, self._sequence, data, self.now + seconds, lambda done: self._done(text, done))
        self.nodes[id_].events.append(Submitted([proposal]))
        return proposal

    def _done(self, text: str, proposal: Proposal) -> None:
        if proposal.error is not None:
            self.failed[text] = proposal.error
        else:
            self.acknowledged[text] = proposal.outcome

    def converged(self) -> bool:
        machines = [node.machine for node in self.nodes.values()]
        return all(
            machine.applied == machines[0].applied and machine.applied_index == machines[0].applied_index
            for machine in machines
        ) and all(node.log.last_index == node.machine.applied_index for node in self.nodes.values())

    def describe(self) -> str:
        return "; ".join(
            f"{node.id}: {node.engine.role} term {node.engine.term} log {node.log.last_index} commit "
            f"{node.engine.commit_index} applied {node.machine.applied_index} links "
            f"{sorted(to for frm, to in self.links if frm == node.id)} alarms {list(node.engine.alarms)} "
            f"failure {node.engine.failure}"
            for node in self.nodes.values()
        )
