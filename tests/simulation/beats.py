"""Nodes that beat at the managers, die, come back and drain; and the judge of each manager, like its thread.

Not here: what must hold (checkers/beats.py). Invariant: draws of nodes come from a random source of their own, so a
seed without nodes is not changed by them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

from warren_raft.fsm.answers import CONFLICT, Result
from warren_raft.heartbeats.judging import Judge
from warren_raft.model.entities import Node, NodeStatus
from warren_raft.raft.context import LONG_AGO
from warren_raft.store import codec
from warren_raft.store.command import Operation
from warren_raft.store.operations import put_operation
from warren_raft.store.tables import NODE

if TYPE_CHECKING:
    from tests.simulation.workload import Client, Workload
    from tests.simulation.world import Process, World

LOOK_SECONDS = 0.2
"""As in manager/heartbeats.py."""
BEATS_A_TTL = 4
NEW = (NodeStatus.READY, NodeStatus.UNKNOWN, NodeStatus.DOWN)
"""The statuses that the program gives to new nodes."""


@dataclass
class Taken:
    """A beat that a manager has answered."""

    at: float
    process: int
    """The number of the manager's process."""


class SimulatedNode:
    """A node and the program on it that beats. It stays with one manager as long as that one answers."""

    def __init__(self, beats: NodesThatBeat, id_: str, ttl: float) -> None:
        self.beats = beats
        self.world = beats.world
        self.random = beats.random
        self.id = id_
        self.ttl = ttl
        self.is_alive = True
        self.is_stored = False
        self.stored = ""
        """The status that the program gave it last."""
        self.is_drained = False
        """The program has set its status to draining."""
        self.manager = ""
        self.answered: list[Taken] = []
        """Its answered beats of the last minute or so, the newest last."""
        self.first_at: float | None = None
        """When it first sent a beat to a manager that runs, whether or not it was answered; None: it never did."""
        self.last_at = LONG_AGO
        """When it last sent a beat to a manager that runs, whether or not it was answered."""
        self._again()

    def _again(self) -> None:
        self.world.after(self.random.uniform(0.5, 1.0) * self.ttl / BEATS_A_TTL, self._turn)

    def _turn(self) -> None:
        if self.is_alive and not self.beats.workload_ended_for_good:
            for _ in range(2):
                if self._beat():
                    break
                self.manager = self._other()
        self._again()

    def _other(self) -> str:
        return self.random.choice(sorted(self.world.directories))

    def _beat(self) -> bool:
        """As ReplicatedStore.heartbeat does it. Returns whether the beat was answered."""
        process = self.world.processes.get(self.manager)
        if process is None or process.paused_until > self.world.now or process.audience is not self.beats.audience:
            return False
        with process.opened.database.read() as view:
            if view.get(NODE, self.id) is None:
                return False
        self.last_at = self.world.now
        if self.first_at is None:
            self.first_at = self.last_at
        is_answered = process.engine.beats.take(self.id, self.ttl, process.clock)
        self.world.checked["seen: beat answered" if is_answered else "seen: beat not answered"] += 1
        if is_answered:
            self.answered.append(Taken(self.world.now, process.number))
            del self.answered[:-60]
        return is_answered


class NodesThatBeat:
    """All nodes of a run. An observer of the world."""

    def __init__(self, world: World, workload: Workload) -> None:
        self.world = world
        self.workload = workload
        self.audience = world.audience
        self.random = Random(f"nodes {world.options.seed}")
        self.judges: dict[int, Judge] = {}
        self._leasing: dict[int, bool] = {}
        """Process number -> whether a command of leases is on its way."""
        self.workload_ended_for_good = False
        self.until = world.now + world.options.safety_seconds
        self.nodes: dict[str, SimulatedNode] = {}
        lost = bool(world.options.disaster)  # restored nodes have older statuses, which the checkers do not know
        for n in range(0 if lost else world.options.beat_nodes):
            self.nodes[f"node-{n}"] = SimulatedNode(self, f"node-{n}", self.random.uniform(1.5, 5.0))
        if self.nodes:
            world.every(world.options.node_death_rate, self._death, self.until)
            world.after(0.3, self._store)
            world.after(self.random.uniform(0.0, world.options.safety_seconds), self._drain)

    # What the program writes -------------------------------------------------------------------------------------

    def _store(self) -> None:
        """Store the nodes that are not stored yet, as a program does that knows the machines of its cluster."""
        for node in self.nodes.values():
            if not node.is_stored:
                node.stored = status = node.stored or self.random.choice(NEW)
                self._program_writes(Node(id=node.id, status=status), 0, lambda n=node: setattr(n, "is_stored", True))
        if not all(node.is_stored for node in self.nodes.values()):
            self.world.after(0.7, self._store)

    def _drain(self) -> None:
        """One node drains from now on; sometimes it stops to beat then."""
        if len(self.nodes) < 2:
            return
        node = self.nodes["node-0"]
        if not node.is_drained:
            if node.is_stored:
                drained = Node(id=node.id, status=NodeStatus.DRAINING)
                self._program_writes(drained, None, lambda: self._drained(node))
            self.world.after(1.0, self._drain)

    def _drained(self, node: SimulatedNode) -> None:
        self.world.faults["node drained"] += 1
        node.is_drained, node.stored = True, NodeStatus.DRAINING
        node.is_alive = self.random.random() < 0.5

    def _program_writes(self, node: Node, if_revision: int | None, done: Callable[[], object]) -> None:
        clients = [c for c in self.workload.clients.values() if c.process.alive and c.session]
        if not clients:
            return
        client = self.random.choice(clients)
        if client.process.paused_until > self.world.now:
            return
        operation = put_operation(NODE, node, if_revision)
        self.world.audience.tell("program_wrote", client.process, operation)

        def ended(result: Result | None) -> None:
            if result is not None and (result.error is None or result.error[0] == CONFLICT):
                done()

        client._submit(client.session, (operation,), None, ended)

    # Deaths ------------------------------------------------------------------------------------------------------

    def _death(self) -> None:
        node = self.random.choice(sorted(self.nodes.values(), key=lambda node: node.id))
        if node.is_alive and not node.is_drained:
            self.kill(node)
            if self.random.random() < 0.6:
                self.world.after(self.random.uniform(0.2, 3.0) * node.ttl, lambda: self._return(node))

    def kill(self, node: SimulatedNode) -> None:
        self.world.faults["node died"] += 1
        node.is_alive = False

    def _return(self, node: SimulatedNode) -> None:
        self.world.faults["node came back"] += 1
        node.is_alive = True

    # Judges ------------------------------------------------------------------------------------------------------

    def started(self, process: Process) -> None:
        if self.nodes:
            self.judges[process.number] = Judge()
            self.world.after(LOOK_SECONDS * self.random.random(), lambda: self._look(process))

    def _look(self, process: Process) -> None:
        """As the thread of manager/heartbeats.py does it."""
        if not process.alive:
            return
        self.world.after(LOOK_SECONDS, lambda: self._look(process))
        if process.paused_until > self.world.now:
            return
        beats, judge = process.engine.beats, self.judges[process.number]
        client = self.workload.clients.get(process.id)
        verdict = beats.verdict
        if verdict.term == 0 or client is None or client.process is not process:
            judge.begin()
            return
        if not client.session:
            if not client.opening and process.engine.membership is not None:
                client._open_session()  # it was forgotten, and in the quiet time no caller opens another
            return
        utc_now = self.world.utc_now + timedelta(microseconds=self.random.randrange(1000))
        leases = process.opened.machine.leases
        found = judge.look(self._read(process), beats.table, leases, verdict.due, utc_now)
        if found.leased and not self._leasing.get(process.number):
            self._lease(process, client, tuple(found.leased), verdict.term)
        for node_id in found.called_ready:
            beats.take(node_id, beats.table.known[node_id].ttl_seconds, process.clock)
        beats.watched = found.watched
        for node in found.changed:
            self._decide(process, client, node, verdict.term)

    def _lease(self, process: Process, client: Client, operations: tuple[Operation, ...], term: int) -> None:
        def ended(_result: Result | None) -> None:
            self._leasing[process.number] = False

        self._leasing[process.number] = True
        client._submit(client.session, operations, None, ended, fence=term)

    @staticmethod
    def _read(process: Process) -> list[Node]:
        with process.opened.database.read() as view:
            return [codec.decode(NODE, record) for _, record in view.items(NODE)]

    def _decide(self, process: Process, client: Client, node: Node, term: int) -> None:
        operation = put_operation(NODE, node, node.revision)
        self.world.note(f"{process.id} decides in term {term}: {node.id} is {node.status}")
        self.world.audience.tell("node_decided", process, node, operation, term)
        client._submit(client.session, (operation,), None, lambda _result: None, fence=term)

    # At the end --------------------------------------------------------------------------------------------------

    def statuses(self) -> Mapping[str, str]:
        leader = self.world.leader
        return {} if leader is None else {node.id: str(node.status) for node in self._read(leader)}

    @property
    def is_settled(self) -> bool:
        """Whether each node has a status that fits it."""
        found = self.statuses()
        return all(
            found.get(node.id) in self.right_statuses(node) for node in self.nodes.values() if self._is_known(node)
        )

    def _is_known(self, node: SimulatedNode) -> bool:
        """Whether the node has a lease. The first beat of a node is forgotten if its manager dies at once."""
        leader = self.world.leader
        return leader is not None and node.id in leader.opened.machine.leases

    @staticmethod
    def right_statuses(node: SimulatedNode) -> Collection[str]:
        """A node that never beat keeps the status that the program gave it. So does a node that died before the leader
        could make it ready: only a ready node becomes down."""
        if node.is_drained or node.last_at == LONG_AGO:
            return (node.stored,)
        if node.is_alive:
            return (NodeStatus.READY,)
        return sorted({str(NodeStatus.DOWN), str(node.stored)} - {str(NodeStatus.READY)})
