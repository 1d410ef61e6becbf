"""Checks: no node is called down within its ttl after a beat that a manager answered, if that manager still ran then; a
decision takes effect in its term only; only ready nodes become down, and a draining one never; the log has no change of
a node that neither the program nor a judge asked for, so a beat alone is never written; at the end each node has the
status that fits it, and a node that dies then is down within its ttl and a second, also if leadership moves meanwhile
(simulation/run.py).

Not: how soon a node is down while there are faults. A decision that was refused (the leader was deposed) counts for
nothing.
"""

from __future__ import annotations

from tests.simulation.beats import SimulatedNode
from tests.simulation.workload import Workload
from tests.simulation.world import Failure, Process, World
from warren_raft.fsm import history
from warren_raft.model.entities import Node, NodeStatus
from warren_raft.raft import entries
from warren_raft.raft.beat_table import GAP_SECONDS
from warren_raft.raft.membership import Change
from warren_raft.store import codec
from warren_raft.store.command import Operation, decode
from warren_raft.store.tables import NODE

DECIDING_SECONDS = 2.0
"""A beat of a late node that comes while the node is being called down comes too late."""
MOMENT_SECONDS = 0.02
"""The clock of a simulated node is read at other moments than those of the managers."""


class Heartbeats:
    def __init__(self) -> None:
        self._decided: dict[bytes, tuple[str, int]] = {}
        """The bytes of each node as a judge wanted it to be -> why that was wrong ("": it was right), and the term."""
        self._terms: dict[bytes, int] = {}
        """The same -> the term of its first committed entry."""
        self._looked = 0
        """The newest index whose entry was looked at."""
        self._written: set[bytes] = set()
        """The same for the program's own writes."""
        self._leaps: list[float] = []

    def program_wrote(self, _process: Process, operation: Operation) -> None:
        assert operation.entity is not None
        self._written.add(operation.entity)

    def leapt(self, process: Process) -> None:
        self._leaps.append(process.world.now)

    def stepped(self, process: Process) -> None:
        log = process.opened.log
        last = min(log.commit_index, log.last_index)
        if not self._decided or last <= self._looked:
            return
        for index in range(max(self._looked, log.base_index) + 1, last + 1):
            data, _, term = log.entries[index - log.base_index]
            content = entries.decode(data)
            for command in [] if isinstance(content, Change) else map(decode, content):
                for operation in command.operations:
                    if operation.entity in self._decided:
                        self._terms.setdefault(operation.entity, term)
        self._looked = last

    def node_decided(self, process: Process, node: Node, operation: Operation, term: int) -> None:
        assert operation.entity is not None
        wrong = ""
        if node.status == NodeStatus.DOWN:
            process.world.checked["nodes called down"] += 1
            wrong = self._too_early(process, process.world.beats.nodes[node.id])
        else:
            process.world.checked["nodes called ready"] += 1
        self._decided[operation.entity] = wrong, term

    def _too_early(self, process: Process, node: SimulatedNode) -> str:
        world = process.world
        running = {each.number: each.id for each in world.running()}
        beats = [beat for beat in node.answered if beat.process in running]
        if not beats:
            return ""
        beat = beats[-1]
        # Beats at managers that have died since do not count. Without one that counts, a node may be late as soon as
        # its first beat of all is older than its ttl.
        before = beats[-2].at if len(beats) > 1 else node.first_at
        assert before is not None
        if beat.at - before > node.ttl and world.now - beat.at < DECIDING_SECONDS:
            return ""  # the node was late already when that beat came
        leaps = sum(at >= beat.at for at in self._leaps)
        slack = 2.5 * world.options.clock_drift * node.ttl + GAP_SECONDS * leaps + MOMENT_SECONDS
        age = world.now - beat.at
        if age >= node.ttl - slack:
            return ""
        return (
            f"{process.id} called {node.id} down {age:.3f} s after a beat that {running[beat.process]} answered at "
            f"{beat.at - 100:.3f}; its ttl is {node.ttl:.3f} s"
        )

    def finish(self, world: World, workload: Workload) -> None:
        if not world.beats.nodes:
            return
        for process in world.members():
            before: dict[str, str] = {}
            with process.opened.database.read() as transaction:
                for revision, operations, _ in history.since(transaction, workload.base_revision):
                    for operation in operations:
                        if operation.kind_number == NODE.number and operation.entity is not None:
                            node = codec.decode(NODE, codec.make_record(revision, operation.entity))
                            self._check(process, node, operation.entity, before.get(node.id, ""))
                            before[node.id] = node.status

    def _check(self, process: Process, node: Node, entity: bytes, before: str) -> None:
        decided = self._decided.get(entity)
        if decided is None:
            if entity not in self._written:
                raise Failure(f"{process.id}: {node!r} was stored, and nobody asked for it")
            return
        wrong, term = decided
        if wrong:
            raise Failure(wrong)
        if self._terms.get(entity, term) != term:
            raise Failure(
                f"{node.id} became {node.status} in an entry of term {self._terms[entity]}, decided in term {term}"
            )
        if before not in ({NodeStatus.READY} if node.status == NodeStatus.DOWN else {NodeStatus.DOWN, "unknown"}):
            raise Failure(f"{process.id}: {node.id} was {before}, and became {node.status} by itself")
