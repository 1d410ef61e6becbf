"""Links between simulated managers: connections with delay, loss by breaking, partitions in one or both directions.

A connection keeps the order and loses nothing while it lives, like TCP. When it breaks, the messages on their way are
lost, or arrive late under the old number. Not here: which managers dial (the engine decides). Invariant: of two links
between a pair only the newer one is up at each end, and its down-event comes before the next up-event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tests import frames
from tests.simulation.wires import Wire
from warren_raft.raft.events import (
    Arriving,
    LinkDown,
    LinkUp,
    Received,
    Refused,
)
from warren_raft.raft.lanes import Lane
from warren_raft.raft.membership import Hello
from warren_raft.raft.messages import lane_of, leaders_term

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

LINK_TIMEOUT_SECONDS = 5.0
"""A connection on which nothing arrives for this long is closed, as the product's transport does it."""

REPLAY_MAX_SECONDS = 0.5
"""A message of the old connection comes again at most this long after a reconnect."""

MANY_CHUNKS = 5

KEPT_MAX = 20
"""Messages of one connection that are kept to come again."""


SLOW_MAX = 20.0
"""A slow direction, and a slow message, take up to this many times as long."""


@dataclass
class Connection:
    """A connection between `a` and `b`. `numbers[x]` is the number that x uses for it. `up`: the ends that do not know
    of its end yet."""

    a: str
    b: str
    numbers: dict[str, int]
    up: set[str] = field(default_factory=set)
    broken: bool = False
    last_delivery: dict[tuple[str, Lane], float] = field(default_factory=dict)
    """(receiver, lane) -> the last arrival. Messages have an order within a lane only."""
    held: dict[str, list[Callable[[], None]]] = field(default_factory=dict)
    """Receiver -> the arrivals that a partition holds back."""
    kept: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(sender, receiver, message) of messages that arrived, and arrive again when this connection was replaced."""
    wires: dict[str, Wire] = field(default_factory=dict)
    """Receiver -> its wire, if links carry a limited number of bytes a second."""


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.blocked: set[tuple[str, str]] = set()
        """(from, to) of the directions in which nothing arrives."""
        self._current: dict[frozenset[str], Connection] = {}
        self._by_number: dict[tuple[str, int], Connection] = {}
        self.uninvited: dict[tuple[str, str], int] = {}
        """(manager, peer) -> the number of the manager's link with a hostile one that says that it is this peer."""
        self._number = 0
        self._slow: dict[tuple[str, str], float] = {}

    # Connecting --------------------------------------------------------------------------------------------------

    def dial(self, caller: str, peer: str, addresses: Sequence[str]) -> None:
        pair = frozenset((caller, peer))
        world = self.world
        if len(pair) < 2 or self._linked(pair, caller):
            return
        callee = world.processes.get(peer)
        if callee is None or callee.directory.address not in addresses or callee.paused_until > world.now:
            return
        if (caller, peer) in self.blocked or (peer, caller) in self.blocked:
            return
        world.after(self._latency(caller, peer), lambda: self._handshake(caller, peer))

    def _linked(self, pair: frozenset[str], caller: str) -> bool:
        current = self._current.get(pair)
        return current is not None and caller in current.up

    def _handshake(self, a: str, b: str) -> None:
        one, two = self.world.processes.get(a), self.world.processes.get(b)
        if one is None or two is None or self._linked(frozenset((a, b)), a):
            return
        hellos = one.engine.hello(), two.engine.hello()
        for judging, hello, judged in ((two, hellos[0], one), (one, hellos[1], two)):
            refusal = judging.engine.judge(hello)
            if refusal is not None:
                judged.take(Refused(judging.id, refusal))
                return
        older = self._current.get(frozenset((a, b)))
        if older is not None:
            self._break(older, at_once=True)
        self._number += 2
        connection = Connection(a, b, {a: self._number, b: self._number + 1}, {a, b})
        if self.world.options.link_bytes_per_second:
            self._string(connection)
        self._current[frozenset((a, b))] = connection
        for process, peer, hello in ((one, b, hellos[1]), (two, a, hellos[0])):
            Hello.from_message(hello)
            self.end_uninvited(process, peer)
            self._by_number[process.id, connection.numbers[process.id]] = connection
            process.take(LinkUp(peer, connection.numbers[process.id], hello))
        if older is not None:
            self._replay(older)

    def has_link(self, id_: str, peer: str) -> bool:
        """Whether a manager has a link with a peer, also one of which it does not know yet."""
        return (id_, peer) in self.uninvited or self._linked(frozenset((id_, peer)), id_)

    def end_uninvited(self, process: Process, peer: str) -> None:
        """The link of a hostile one ends, at the latest before the next link with that peer: so it is in the
        transport."""
        number = self.uninvited.pop((process.id, peer), None)
        if number is not None:
            process.take(LinkDown(peer, number))

    def _string(self, connection: Connection) -> None:
        """Make both wires of a connection."""
        a, b = connection.a, connection.b
        for sender, receiver in ((a, b), (b, a)):
            connection.wires[receiver] = Wire(
                self.world,
                self.world.options.link_bytes_per_second,
                latency=partial(self._latency, sender, receiver),
                on_its_way=partial(self._on_its_way, connection, sender, receiver),
                deliver=partial(self._deliver_from_wire, connection, sender, receiver),
                arriving=partial(self._arriving, connection, sender, receiver),
            )
        connection.wires[a].back, connection.wires[b].back = connection.wires[b], connection.wires[a]

    def _on_its_way(
        self, connection: Connection, sender: str, receiver: str, when: float, arrive: Callable[[], None]
    ) -> None:
        def come() -> None:
            if not connection.broken:
                self._pass(connection, sender, receiver, arrive)

        connection.last_delivery[receiver, Lane.NORMAL] = when
        self.world.at(when, come)

    def _pass(self, connection: Connection, sender: str, receiver: str, arrive: Callable[[], None]) -> None:
        """Have a message arrive, or let it wait for the end of a partition, behind the messages that wait already."""
        if (sender, receiver) in self.blocked or receiver in connection.held:
            connection.held.setdefault(receiver, []).append(arrive)
        else:
            arrive()

    def _deliver_from_wire(self, connection: Connection, sender: str, receiver: str, message: dict[str, Any]) -> None:
        if self.world.random.random() < self.world.options.replay:
            self._keep(connection, sender, receiver, frames.encode(message))
        self._deliver(connection, sender, receiver, message)

    def _arriving(self, connection: Connection, sender: str, receiver: str, term: int) -> None:
        process = self.world.processes.get(receiver)
        if process is not None:
            process.take(Arriving(sender, connection.numbers[receiver], term))

    def _keep(self, connection: Connection, sender: str, receiver: str, data: bytes) -> None:
        connection.kept = [*connection.kept[1 - KEPT_MAX :], (sender, receiver, data)]

    def _replay(self, older: Connection) -> None:
        """The kept messages of the last connection arrive again, under its old number, beside the new connection."""
        for sender, receiver, data in older.kept:
            self.world.after(
                self.world.random.uniform(0.0, REPLAY_MAX_SECONDS),
                lambda s=sender, r=receiver, d=data: self._deliver_again(older, s, r, d),  # type: ignore[misc]
            )
        older.kept.clear()

    def _deliver_again(self, connection: Connection, sender: str, receiver: str, data: bytes) -> None:
        self.world.faults["message replayed after a reconnect"] += 1
        self._deliver(connection, sender, receiver, frames.decode(data))

    # Messages ----------------------------------------------------------------------------------------------------

    def send(self, process: Process, number: int, message: dict[str, Any]) -> None:
        sender = process.id
        connection = self._by_number.get((sender, number))
        if connection is None or connection.broken:
            return
        receiver = connection.b if sender == connection.a else connection.a
        self.world.tell("sent", process, receiver, message)
        self.world.tell("sent_on", process, number, message)
        if message["type"] == "snapshot_chunk" and message["offset"] == MANY_CHUNKS * self.world.options.chunk_bytes:
            self.world.faults[f"snapshot of more than {MANY_CHUNKS} chunks sent"] += 1
        if connection.wires:
            connection.wires[receiver].send(message)
            return
        data = frames.encode(message)
        lane = lane_of(message)
        latency = self._latency(sender, receiver) * (1.0 if lane is not Lane.BULK else self.world.options.bulk_factor)
        arrival = max(connection.last_delivery.get((receiver, lane), 0.0), self.world.now + latency)
        connection.last_delivery[receiver, lane] = arrival
        if arrival > self.world.now + LINK_TIMEOUT_SECONDS and lane is not Lane.BULK:
            self.world.after(LINK_TIMEOUT_SECONDS, lambda: self._fell_silent(connection))
        if lane is Lane.BULK:
            part_arrives = self.world.random.uniform(self.world.now, arrival)
            term = leaders_term(message)
            self.world.at(part_arrives, lambda: self._part_arrives(connection, sender, receiver, term))
        self.world.at(arrival, lambda: self._arrive(connection, sender, receiver, data))

    def cancel(self, process: Process, number: int, message_number: int) -> None:
        """A large message is not wanted any more. Only a wire may not have sent all of it yet."""
        connection = self._by_number.get((process.id, number))
        if connection is not None and connection.wires and not connection.broken:
            self.world.faults["large message cancelled"] += 1
            connection.wires[connection.b if process.id == connection.a else connection.a].cancel(message_number)

    def _part_arrives(self, connection: Connection, sender: str, receiver: str, term: int) -> None:
        if not connection.broken and (sender, receiver) not in self.blocked:
            self.world.checked["seen: part of a large message"] += 1
            self._arriving(connection, sender, receiver, term)

    def _fell_silent(self, connection: Connection) -> None:
        """One message took longer than a link may be silent, and all messages behind it wait."""
        if not connection.broken:
            self._break(connection, at_once=False)

    @property
    def latest_arrival(self) -> float:
        """The time at which the last message on its way arrives."""
        return max((at for each in self._current.values() for at in each.last_delivery.values()), default=0.0)

    def _arrive(self, connection: Connection, sender: str, receiver: str, data: bytes) -> None:
        if connection.broken:
            if self.world.options.late_messages and self.world.random.random() < 0.5:
                self.world.faults["message of a broken connection arrived late"] += 1
                self._deliver(connection, sender, receiver, frames.decode(data))
            return

        def arrive() -> None:
            if self.world.random.random() < self.world.options.replay:
                self._keep(connection, sender, receiver, data)
            self._deliver(connection, sender, receiver, frames.decode(data))

        self._pass(connection, sender, receiver, arrive)

    def _deliver(self, connection: Connection, sender: str, receiver: str, message: dict[str, Any]) -> None:
        process = self.world.processes.get(receiver)
        if process is not None:
            self.world.tell("delivered", process, sender, message)
            self.world.tell("received_on", process, connection.numbers[receiver], message)
            process.take(Received(sender, connection.numbers[receiver], message))

    @property
    def slowest_seconds(self) -> float:
        """A message that was sent before the calm may be on its way for this long, and delays its lane."""
        options = self.world.options
        factor = (SLOW_MAX if options.slow_link else 1.0) * (SLOW_MAX if options.slow_direction else 1.0)
        return options.latency_max * factor

    def _latency(self, sender: str, receiver: str) -> float:
        options, random = self.world.options, self.world.random
        if self.world.is_calm:
            return options.latency_min
        seconds = random.uniform(options.latency_min, options.latency_max) * self._slowness(sender, receiver)
        if random.random() < options.slow_link:
            self.world.faults["slow message"] += 1
            seconds *= random.uniform(1, SLOW_MAX)
        return seconds

    def _slowness(self, sender: str, receiver: str) -> float:
        """Some directions are slow for the whole run."""
        factor = self._slow.get((sender, receiver))
        if factor is None:
            random = self.world.random
            is_slow = random.random() < self.world.options.slow_direction
            factor = self._slow[sender, receiver] = random.uniform(2.0, SLOW_MAX) if is_slow else 1.0
            if is_slow:
                self.world.faults["slow direction"] += 1
        return factor

    # Breaking ----------------------------------------------------------------------------------------------------

    def close(self, closer: str, number: int) -> None:
        connection = self._by_number.get((closer, number))
        if connection is not None:
            self._break(connection, at_once=True)

    def break_random(self) -> None:
        alive = [c for _, c in sorted(self._current.items(), key=lambda item: sorted(item[0])) if not c.broken]
        if alive:
            self.world.faults["connection broken"] += 1
            self._break(self.world.random.choice(alive), at_once=False)

    def overslept(self, id_: str) -> None:
        """A manager's machine slept: its transport finds that nothing came for too long, unless a message comes now."""
        for pair, connection in sorted(self._current.items(), key=lambda item: sorted(item[0])):
            if id_ in pair and not connection.broken and self.world.random.random() < 0.5:
                self._break(connection, at_once=False)

    def process_died(self, id_: str) -> None:
        self.uninvited = {ends: number for ends, number in self.uninvited.items() if ends[0] != id_}
        for pair, connection in sorted(self._current.items(), key=lambda item: sorted(item[0])):
            if id_ in pair and not connection.broken:
                self._break(connection, at_once=False)

    def _break(self, connection: Connection, *, at_once: bool) -> None:
        connection.broken = True
        for end in sorted(connection.up):
            delay = 0.0 if at_once else self.world.random.uniform(0.0, 0.05)
            if delay == 0.0:
                self._report_down(connection, end)
            else:
                self.world.after(delay, lambda end=end: self._report_down(connection, end))  # type: ignore[misc]

    def _report_down(self, connection: Connection, end: str) -> None:
        if end not in connection.up:
            return
        connection.up.discard(end)
        number = connection.numbers[end]
        process = self.world.processes.get(end)
        if process is not None and self._by_number.pop((end, number), None) is not None:
            peer = connection.b if end == connection.a else connection.a
            process.take(LinkDown(peer, number))

    # Partitions --------------------------------------------------------------------------------------------------

    def block(self, directions: set[tuple[str, str]]) -> None:
        self.blocked |= directions
        for pair, connection in sorted(self._current.items(), key=lambda item: sorted(item[0])):
            if any(set(direction) == pair for direction in directions) and not connection.broken:
                self.world.after(LINK_TIMEOUT_SECONDS, lambda c=connection: self._give_up(c))  # type: ignore[misc]

    def _give_up(self, connection: Connection) -> None:
        directions = {(connection.a, connection.b), (connection.b, connection.a)}
        if not connection.broken and directions & self.blocked:
            self._break(connection, at_once=False)

    def unblock(self, directions: set[tuple[str, str]]) -> None:
        self.blocked -= directions
        for connection in list(self._current.values()):
            for sender, receiver in ((connection.a, connection.b), (connection.b, connection.a)):
                if (sender, receiver) not in self.blocked and not connection.broken:
                    for arrive in connection.held.pop(receiver, []):
                        arrive()

    def peers_of(self, id_: str) -> list[str]:
        return sorted(next(iter(pair - {id_})) for pair, c in self._current.items() if id_ in pair and id_ in c.up)
