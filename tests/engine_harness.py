"""Several real engines in one thread: virtual clock, links and disks, driven by hand or run until a condition holds.

Of the product, only clock, randomness, sockets and the disk (tests/memory_files.py) are replaced. The state machine is
a list, so any divergence shows. Every run checks: one leader in a term, one batch of the log on its way, nothing
applied beyond the synced log, no exception out of a step. Not here: random faults (the simulation's matter).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

import cbor2

from tests import frames
from tests.list_machine import ListMachine, ListSnapshots
from tests.memory_files import MemoryFiles
from warren_raft.alarms import Alarms
from warren_raft.certificates.identity import Identity
from warren_raft.errors import StorageFull, WarrenError
from warren_raft.raft.barriers import Barrier
from warren_raft.raft.changes import DONE, REFUSED, Answer
from warren_raft.raft.effects import (
    CloseLink,
    Dial,
    Effect,
    Send,
    Work,
    WriteLog,
)
from warren_raft.raft.engine import Engine
from warren_raft.raft.events import (
    BarriersWanted,
    Event,
    LinkDown,
    LinkUp,
    Received,
    Refused,
    Submitted,
    Synced,
    Worked,
)
from warren_raft.raft.lanes import Lane
from warren_raft.raft.large import LARGE_BYTES
from warren_raft.raft.log.log import Batch, Entry, Log
from warren_raft.raft.membership import FIRST_LEVEL, Origin
from warren_raft.raft.messages import lane_of
from warren_raft.raft.refusal import Refusal
from warren_raft.raft.requests import ChangeWanted, TransferWanted
from warren_raft.raft.settings import Settings
from warren_raft.raft.submit import Proposal

Message = dict[str, Any]

STEP_SECONDS = 0.01
HEARTBEAT_SECONDS = 0.1
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The calendar time at second 0."""
LOG_DIRECTORY = "/log"
NOT_AFTER = EPOCH.timestamp() + 365 * 86400
"""The end of every certificate."""
SEGMENT_BYTES = 256 * 1024
START_SEGMENT_BYTES = 32 * 1024
RESTORED_INDEX = 2
ASK_AGAIN_SECONDS = 0.1
"""The interval at which the product's manager asks again for a change of members; here too."""


class Sent(NamedTuple):
    """A message that left an engine."""

    sender: str
    receiver: str
    message: Message
    now: float


class Durable(NamedTuple):
    """The contents of a manager's log after a power cut."""

    term: int
    vote: str | None
    entries: tuple[Entry, ...]


BLANK = Durable(0, None, ())


def said_by(log: Log) -> Durable:
    return Durable(log.current_term, log.voted_for, tuple(log.entries))


class Full(ListMachine):
    """A machine that has no space left while `full` is true."""

    full = False

    def _advance(self, index: int, term: int) -> None:
        if self.full:
            raise StorageFull("no space left")
        super()._advance(index, term)


@dataclass
class Node:
    """A running manager."""

    id: str
    engine: Engine
    log: Log
    snapshots: ListSnapshots
    events: list[Event] = field(default_factory=list)
    batches: deque[Batch] = field(default_factory=deque)
    """Batches that wait for the disk; with `disk_seconds` None they stay until complete_sync()."""
    dialed: dict[str, Sequence[str]] = field(default_factory=dict)
    write_at: float | None = None
    step_at: float = 0.0
    """When the next step is due although nothing happens, as in the driver."""
    disk_seconds: float | None = 0.0
    waits_for_disk: bool = False
    """Whether each batch is written at once, before anything is applied, as the driver does while the disk is quick."""
    disk_error: OSError | None = None
    """The error of the next writes of the log; nothing is written then."""
    syncs: int = 0
    taken: Durable = BLANK
    durable: Durable = BLANK
    """The log's contents after the batch that is being written, and after the last one that was written."""
    work: deque[Work] = field(default_factory=deque)
    works: bool = True
    """Whether the workers do their jobs."""

    @property
    def machine(self) -> ListMachine:
        """The state in use. It is another object after the state was replaced."""
        return self.snapshots.machine

    @property
    def held_bytes(self) -> int:
        """The bytes of the large entries of others that it holds."""
        return sum(held.size_bytes for held in self.engine._held._held.values())

    @property
    def alarm_texts(self) -> list[str]:
        return [alarm.text for alarm in self.engine.alarms.active]

    @property
    def alarm_names(self) -> list[str]:
        return [alarm.name for alarm in self.engine.alarms.active]


class _Machines(MutableMapping[str, ListMachine]):
    """The state of each manager, whether or not it runs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __getitem__(self, id_: str) -> ListMachine:
        return self._cluster.states[id_].machine

    def __setitem__(self, id_: str, machine: ListMachine) -> None:
        """Use this state from the manager's next start on."""
        state = self._cluster.states.setdefault(id_, ListSnapshots(self._cluster.make_machine))
        state.machine = state.published = machine

    def __delitem__(self, id_: str) -> None:
        del self._cluster.states[id_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cluster.states)

    def __len__(self) -> int:
        return len(self._cluster.states)


class Cluster:
    """`nodes[id]` for each running manager; `run_until(condition)` moves the clock.

    `states` (and so `machines`) and `disks` survive a crash, as a database file and a log directory do.
    """

    def __init__(
        self,
        ids: Sequence[str] = ("m1", "m2", "m3"),
        *,
        seed: int = 1,
        make_machine: Callable[[], ListMachine] = ListMachine,
        election_timeout_seconds: float = 1.0,
        snapshot_after_bytes: int = 1 << 40,
        large_bytes: int = LARGE_BYTES,
        trust_domain: str = "",
        level_max: int = FIRST_LEVEL,
        start: bool = True,
    ) -> None:
        """`trust_domain`: if it is given, links are under TLS, and each manager has a certificate of this domain.
        `level_max`: the highest level of the command set that the managers read."""
        self.random = Random(seed)
        self.now = 1000.0
        self.make_machine = make_machine
        self.election_timeout_seconds = election_timeout_seconds
        self.snapshot_after_bytes = snapshot_after_bytes
        self.large_bytes = large_bytes
        self.trust_domain = trust_domain
        self.level_max = level_max
        self.certificates: dict[str, Identity] = {}
        """The certificate of each manager, made at its first start if there is a trust domain."""
        self.nodes: dict[str, Node] = {}
        self.states: dict[str, ListSnapshots] = {}
        self.machines = _Machines(self)
        self.disks: dict[str, MemoryFiles] = {}
        self.addresses: dict[str, str] = {id_: f"127.0.0.1:{7000 + n}" for n, id_ in enumerate(ids)}
        self.initial: dict[str, str] = dict(self.addresses)
        self.links: dict[tuple[str, str], int] = {}
        """(from, to) -> the number by which `from` knows its link to `to`."""
        self.wire: dict[tuple[str, str], deque[tuple[int, bytes]]] = defaultdict(deque)
        self.late: dict[tuple[str, str], deque[tuple[int, bytes]]] = defaultdict(deque)
        """The messages that were on their way on links that broke, kept by disconnect(keep=True)."""
        self.cut: set[frozenset[str]] = set()
        self.held: set[tuple[str, str]] = set()
        """Directions in which no message is delivered for now (a slow or one-way link)."""
        self.thin: set[tuple[str, str]] = set()
        """Directions in which messages of the BULK lane do not arrive for now, and all others overtake them."""
        self.sent: list[Sent] = []
        self.leaders: dict[int, str] = {}
        self.refusals: list[tuple[str, str, Refusal]] = []
        """(manager that refuses, refused manager, reason)."""
        self.stopped: dict[str, WarrenError] = {}
        """Id -> failure of the engine. The product's driver would have closed these managers."""
        self.on_send: Callable[[Node, str, Message], None] = lambda _node, _peer, _message: None
        """Called for each message at the moment when it leaves an engine."""
        self.acknowledged: dict[str, Any] = {}
        self.failed: dict[str, Exception] = {}
        self._link_number = 0
        self._sequence = 0
        if start:
            for id_ in ids:
                self.start(id_)

    # Managers ----------------------------------------------------------------------------------------------------

    def start(
        self,
        id_: str,
        *,
        members: Mapping[str, str] | None = None,
        address: str | None = None,
        bootstrap: bool = True,
        hints: Mapping[str, Sequence[str]] = MappingProxyType({}),
        level_max: int | None = None,
    ) -> Node:
        """Start or restart a manager. `members`: its configured initial members, `initial` unless given. `level_max`:
        of its release, that of the cluster unless given."""
        if address is not None:
            self.addresses[id_] = address
        configured = dict(self.initial if members is None else members)
        configured.setdefault(id_, self.addresses[id_])
        log = Log.open(
            LOG_DIRECTORY,
            files=self.disks.setdefault(id_, MemoryFiles()),
            node_id=id_,
            new_incarnation=lambda: f"{self.random.getrandbits(64):016x}",
            segment_bytes=SEGMENT_BYTES,
            start_segment_bytes=START_SEGMENT_BYTES,
        )
        snapshots = self.states.setdefault(id_, ListSnapshots(self.make_machine))
        snapshots.open(log)
        settings = Settings(
            node_id=id_,
            address=self.addresses[id_],
            members=configured,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            election_timeout_seconds=self.election_timeout_seconds,
            snapshot_after_bytes=self.snapshot_after_bytes,
            large_bytes=self.large_bytes,
            bootstrap=bootstrap,
            hints=hints,
            identity=self.certificate(id_),
            level_max=self.level_max if level_max is None else level_max,
        )
        engine = Engine(
            settings,
            log=log,
            machine=snapshots.machine,
            snapshots=snapshots,
            alarms=Alarms(id_, utc_now=lambda: EPOCH + timedelta(seconds=self.now), monotonic=lambda: self.now),
            random=Random(self.random.random()),
            now=self.now,
        )
        self.stopped.pop(id_, None)
        self.nodes[id_] = Node(id_, engine, log, snapshots, durable=said_by(log))
        return self.nodes[id_]

    def certificate(self, id_: str) -> Identity | None:
        """The certificate of a manager; None if links are plaintext."""
        if self.trust_domain and id_ not in self.certificates:
            self.issue(id_)
        return self.certificates.get(id_)

    def issue(self, id_: str) -> Identity:
        """Issue another certificate for this id."""
        self._link_number += 1
        serial = f"{self._link_number:x}"
        self.certificates[id_] = Identity(self.trust_domain, id_, serial, NOT_AFTER)
        return self.certificates[id_]

    def crash(self, id_: str) -> None:
        """kill -9, and a power cut for the log alone: memory is lost, and so are unsynced changes of the log."""
        node = self.nodes.pop(id_)
        for other in list(self.nodes):
            self.disconnect(id_, other)
        for pair in [pair for pair in self.links if id_ in pair]:
            del self.links[pair]
        node.log.close()
        self.disks[id_].power_cut()

    def power_cut(self, *ids: str) -> None:
        """The machines of these managers (or of all running ones) go down. Their states are never synced, so they are
        rebuilt from snapshots and log at the next start."""
        for id_ in ids or list(self.nodes):
            self.crash(id_)
            self.states[id_].is_trusted = False

    def restart(self, id_: str) -> Node:
        self.crash(id_)
        return self.start(id_)

    def restore(
        self,
        id_: str,
        applied: Sequence[str],
        *,
        cluster_id: str = "restored",
        members: Mapping[str, str] | None = None,
    ) -> None:
        """Make the directory of a manager that does not run one of a new cluster, as `snapshot restore` does."""
        self.disks[id_] = MemoryFiles()
        self.states[id_] = ListSnapshots.restored(self.make_machine, applied, RESTORED_INDEX)
        Log.create_at(
            LOG_DIRECTORY,
            files=self.disks[id_],
            node_id=id_,
            incarnation=f"{self.random.getrandbits(64):016x}",
            index=RESTORED_INDEX,
            note=Origin(cluster_id, dict(self.initial if members is None else members)).encode(),
            segment_bytes=SEGMENT_BYTES,
            start_segment_bytes=START_SEGMENT_BYTES,
        ).close()

    def wipe(self, id_: str) -> None:
        """Empty the data directory of a manager that does not run."""
        del self.disks[id_]
        self.states.pop(id_, None)

    # Links -------------------------------------------------------------------------------------------------------

    def connect(self, a: str, b: str) -> None:
        """Make a link if both managers accept the other's hello."""
        one, two = self.nodes[a], self.nodes[b]
        hellos = one.engine.hello(), two.engine.hello()
        for judging, hello, judged in ((two, hellos[0], one), (one, hellos[1], two)):
            refusal = judging.engine.judge(hello, self.certificate(judged.id))
            if refusal is not None:
                self.refusals.append((judging.id, judged.id, refusal))
                judged.events.append(Refused(judging.id, refusal, self.certificate(judging.id)))
                return
        for node, other, hello in ((one, b, hellos[1]), (two, a, hellos[0])):
            self._link_number += 1
            self.links[node.id, other] = self._link_number
            node.events.append(LinkUp(other, self._link_number, hello, self.certificate(other)))

    def disconnect(self, a: str, b: str, *, keep: bool = False) -> None:
        """End a link. Messages on the wire are lost; with `keep` they may still arrive, see deliver_late()."""
        for x, y in ((a, b), (b, a)):
            number = self.links.pop((x, y), None)
            if keep:
                self.late[x, y].extend(self.wire[x, y])
            self.wire[x, y].clear()
            if number is not None and x in self.nodes:
                self.nodes[x].events.append(LinkDown(y, number))

    def part(self, a: str, b: str) -> None:
        """No link between two managers until heal()."""
        self.cut.add(frozenset((a, b)))
        self.disconnect(a, b)

    def isolate(self, id_: str) -> None:
        for other in self.addresses:
            if other != id_:
                self.part(id_, other)

    def hold(self, *pairs: tuple[str, str]) -> None:
        """Messages in these directions stay on the wire."""
        self.held.update(pairs)

    def heal(self) -> None:
        self.cut.clear()
        self.held.clear()
        self.thin.clear()

    # Time --------------------------------------------------------------------------------------------------------

    def step(self, id_: str) -> None:
        """One step of one manager at the present time, with all events that wait for it."""
        node = self.nodes[id_]
        self._step_engine(node)
        if node.waits_for_disk and node.batches and node.disk_error is None:
            self.complete_sync(id_)
            self._step_engine(node)
        more = node.engine.apply()
        node.engine.alarms.tick()
        node.step_at = self.now if more else node.engine.step_at
        if node.engine.role == "leader":
            term = node.engine.term
            assert self.leaders.setdefault(term, id_) == id_, f"two leaders in term {term}"
        if node.engine.failure is not None:
            self._stop(node, node.engine.failure)

    def _step_engine(self, node: Node) -> None:
        events, node.events = node.events, []
        for effect in node.engine.step(self.now, events):
            self._perform(node, effect)

    def _stop(self, node: Node, failure: WarrenError) -> None:
        self.stopped[node.id] = failure
        node.engine.close()
        self.crash(node.id)

    def _perform(self, node: Node, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._send(node, effect)
        elif isinstance(effect, WriteLog):
            assert not node.batches, "two batches of the log on their way"
            node.batches.append(effect.batch)
            node.taken = said_by(node.log)
            node.write_at = None if node.disk_seconds is None else self.now + node.disk_seconds
        elif isinstance(effect, Work):
            node.work.append(effect)
        elif isinstance(effect, Dial):
            node.dialed = dict(effect.peers)
        elif isinstance(effect, CloseLink):
            for (frm, to), number in list(self.links.items()):
                if frm == node.id and number == effect.link:
                    self.disconnect(frm, to)

    def _send(self, node: Node, effect: Send) -> None:
        peer = next((to for (frm, to), n in self.links.items() if frm == node.id and n == effect.link), None)
        if peer is not None:
            self.on_send(node, peer, effect.message)
            self.sent.append(Sent(node.id, peer, effect.message, self.now))
            self.wire[node.id, peer].append((self.links[peer, node.id], frames.encode(effect.message)))

    def complete_sync(self, id_: str) -> None:
        """The disk returns from the write that waits."""
        node = self.nodes[id_]
        batch = node.batches.popleft()
        if node.disk_error is None:
            batch.write()
            node.durable = node.taken
            node.syncs += 1
        node.events.append(Synced(batch, node.disk_error))

    def do_work(self, id_: str) -> None:
        """Do the next job of a manager's workers. The result counts at the manager's next step."""
        node = self.nodes[id_]
        work = node.work.popleft()
        try:
            node.events.append(Worked(work, work.job()))
        except Exception as error:  # noqa: BLE001 - as the driver does
            node.events.append(Worked(work, None, error))

    def deliver(self, a: str, b: str, count: int | None = None) -> list[Message]:
        """Deliver messages from a to b, in order: the first `count`, or all. They count at b's next step."""
        return self._deliver(self.wire[a, b], a, b, count)

    def deliver_late(self, a: str, b: str, count: int | None = None) -> list[Message]:
        """Deliver messages that were on their way on a link that broke, with the number of that link."""
        return self._deliver(self.late[a, b], a, b, count)

    def _deliver(self, queue: deque[tuple[int, bytes]], a: str, b: str, count: int | None) -> list[Message]:
        delivered = []
        for _ in range(len(queue) if count is None else count):
            number, data = queue.popleft()
            message = frames.decode(data)
            delivered.append(message)
            if b in self.nodes:
                self.nodes[b].events.append(Received(a, number, message))
        return delivered

    def _deliver_but_bulk(self, a: str, b: str) -> None:
        queue = self.wire[a, b]
        bulk = deque(item for item in queue if lane_of(frames.decode(item[1])) is Lane.BULK)
        self._deliver(deque(item for item in queue if item not in bulk), a, b, None)
        self.wire[a, b] = bulk

    def on_wire(self, a: str, b: str) -> list[Message]:
        """The messages on their way from a to b."""
        return [frames.decode(data) for _, data in self.wire[a, b]]

    def turn(self) -> None:
        """Let one step of time pass for all managers: dial, deliver, sync, step."""
        self.now += STEP_SECONDS
        for id_, node in list(self.nodes.items()):
            for peer in sorted(node.dialed):
                if (id_, peer) not in self.links and self._answers(id_, peer, node.dialed[peer]):
                    self.connect(id_, peer)
        for pair, queue in list(self.wire.items()):
            if not queue or pair in self.held:
                continue
            if pair in self.thin:
                self._deliver_but_bulk(*pair)
            else:
                self.deliver(*pair)
        for id_ in list(self.nodes):
            node = self.nodes[id_]
            if node.batches and node.write_at is not None and node.write_at <= self.now:
                self.complete_sync(id_)
            if node.work and node.works:
                self.do_work(id_)
            if node.events or self.now >= node.step_at:
                self.step(id_)
            if id_ in self.nodes and node.events:
                self.step(id_)

    def _answers(self, caller: str, peer: str, addresses: Sequence[str]) -> bool:
        reachable = frozenset((caller, peer)) not in self.cut
        return reachable and peer in self.nodes and self.addresses[peer] in addresses

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

    # Work --------------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> Node | None:
        """The leader of the latest term that knows that it leads."""
        leaders = [node for node in self.nodes.values() if node.engine.is_leader]
        return max(leaders, key=lambda node: node.engine.term, default=None)

    def wait_leader(self) -> Node:
        node = self.run_until(lambda: self.leader)
        assert isinstance(node, Node)
        return node

    def wait_ready(self) -> Node:
        """Wait until every running manager is ready. Returns the leader."""
        self.run_until(lambda: all(node.engine.is_ready for node in self.nodes.values()))
        return self.wait_leader()

    def followers(self) -> list[str]:
        """The running managers except the leader, sorted."""
        leader = self.wait_leader().id
        return sorted(id_ for id_ in self.nodes if id_ != leader)

    def submit(
        self, id_: str, text: str, seconds: float = 10.0, done: Callable[[Proposal], None] | None = None
    ) -> Proposal:
        """Write through the manager `id_`. The end goes to `acknowledged` or `failed`, unless `done` is given."""
        self._sequence += 1
        data = cbor2.dumps([7, self._sequence, text])
        done = done or (lambda ended: self._done(text, ended))
        proposal = Proposal(7, self._sequence, data, self.now + seconds, done)
        self.nodes[id_].events.append(Submitted([proposal]))
        return proposal

    def _done(self, text: str, proposal: Proposal) -> None:
        assert text not in self.acknowledged, f"{text} ended twice"
        assert text not in self.failed, f"{text} ended twice"
        if proposal.error is not None:
            self.failed[text] = proposal.error
        else:
            self.acknowledged[text] = proposal.outcome

    def barrier(self, id_: str, seconds: float = 10.0) -> Barrier:
        """Begin a barrier at the manager `id_`; it counts at its next step."""
        barrier = Barrier(self.now + seconds, lambda _: None)
        self.nodes[id_].events.append(BarriersWanted([barrier]))
        return barrier

    def write(self, id_: str, *texts: str) -> None:
        """Write through the manager `id_`, and wait until each write is acknowledged."""
        for text in texts:
            self.submit(id_, text)
        self.run_until(lambda: all(text in self.acknowledged for text in texts))

    def ask(
        self, id_: str, verb: str, member_id: str | None = None, address: str = "", incarnation: str = ""
    ) -> Answer:
        """Ask once for a change of members, or for a leadership transfer (verb "transfer"), through the manager
        `id_`."""
        answers: list[Answer] = []
        event: Event
        if verb == "transfer":
            event = TransferWanted(member_id, answers.append)
        else:
            event = ChangeWanted(verb, member_id or "", address, answers.append, incarnation)
        self.nodes[id_].events.append(event)
        self.run_until(lambda: answers)
        return answers[0]

    def change(self, id_: str, verb: str, member_id: str, address: str = "", seconds: float = 20.0) -> Answer:
        """Ask as the product's manager does: again and again, until the change is done or refused."""
        end = self.now + seconds
        known = self.nodes[id_].engine.members.get(member_id)
        incarnation = known.incarnation if verb == "remove" and known is not None else ""
        while True:
            answer = self.ask(id_, verb, member_id, address, incarnation)
            if answer.state in (DONE, REFUSED):
                return answer
            assert self.now < end, f"{verb} {member_id}: {answer.text}; {self.describe()}"
            self.run(ASK_AGAIN_SECONDS)

    # Views -------------------------------------------------------------------------------------------------------

    def converged(self) -> bool:
        machines = [node.machine for node in self.nodes.values()]
        return all(
            machine.applied == machines[0].applied and machine.applied_index == machines[0].applied_index
            for machine in machines
        ) and all(node.log.last_index == node.machine.applied_index for node in self.nodes.values())

    def check_writes(self) -> None:
        """Check that every acknowledged write is applied exactly once on every running manager, and that all lists are
        equal."""
        self.run_until(self.converged)
        for node in self.nodes.values():
            applied = node.machine.applied
            assert len(set(applied)) == len(applied), f"{node.id} applied a write twice"
            missing = self.acknowledged.keys() - set(applied)
            assert not missing, f"{node.id} lacks acknowledged {sorted(missing)}"

    def log_of(self, id_: str) -> list[tuple[int, int]]:
        """(index, term) of each entry in a manager's log."""
        return [(index, term) for _, index, term in self.nodes[id_].log.entries]

    def members(self, id_: str) -> dict[str, bool]:
        """The applied list at one manager: id -> whether it votes."""
        membership = self.nodes[id_].engine.membership
        return {} if membership is None else {m.id: m.voter for m in membership.members.values()}

    def describe(self) -> str:
        lines = [
            f"{node.id}: {node.engine.role} term {node.engine.term} log {node.log.last_index} commit "
            f"{node.engine.commit_index} applied {node.machine.applied_index} links "
            f"{sorted(to for frm, to in self.links if frm == node.id)} alarms {node.alarm_texts}"
            for node in self.nodes.values()
        ]
        return "; ".join([*lines, *(f"{id_} stopped: {failure}" for id_, failure in self.stopped.items())])


def send_raw(node: Node, peer: str, wire: Message) -> None:
    """Send a message, as on the wire, that the engine itself would not send. Does nothing if there is no link."""
    link = node.engine._roster.links.get(peer)
    if link is not None:
        node.engine._outbox.add(Send(link.number, wire))


class Outgoing:
    """In the place of an outbox, for tests of a part alone: keeps each message that was to leave."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.cancelled: list[tuple[str, int]] = []

    def send(self, peer: str, message: Any) -> None:
        self.messages.append((peer, message))

    def cancel(self, peer: str, number: int) -> None:
        self.cancelled.append((peer, number))
