"""One real engine, and peers that send the messages that a fuzzer's bytes describe.

Not here: other engines, the network, the judgement of peers (when links come up). The checked invariant of the product:
no message of a peer stops a manager, or removes an entry that the manager knows to be committed.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Final

from tests.engine_harness import Cluster, Durable, Node
from tests.fuzz.source import Source
from tests.list_machine import ListMachine, ListSnapshots
from tests.memory_files import MemoryFiles
from warren_raft.raft import entries
from warren_raft.raft.events import (
    Arriving,
    LinkDown,
    LinkUp,
    Received,
)
from warren_raft.raft.membership import (
    ADD,
    PROMOTE,
    REMOVE,
    UPDATE,
    Change,
)
from warren_raft.raft.messages import BY_NAME

Message = dict[str, Any]

IDS: Final = ("m1", "m2", "m3")
SELF: Final = "m2"
STEPS_MAX: Final = 40

KINDS: Final = {name: tuple(check[0] for check in cls.CHECKS) for name, cls in BY_NAME.items()}
_FLAGS: Final = frozenset({"reset", "success", "granted", "transfer", "again", "low", "full"})
_DIGESTS: Final = ("0" * 64, "a" * 64, "a" * 63)


@cache
def _formed() -> tuple[MemoryFiles, ListSnapshots, Message, Message]:
    """The disk and the state of a member of three with some entries, and the hellos of the two others."""
    cluster = Cluster(IDS)
    cluster.wait_ready()
    cluster.write("m1", "one", "two", "three")
    cluster.run(1.0)
    hellos = {id_: node.engine.hello() for id_, node in cluster.nodes.items()}
    cluster.crash(SELF)
    return cluster.disks[SELF], cluster.states[SELF], hellos["m1"], hellos["m3"]


def hellos() -> tuple[Message, ...]:
    """The hellos of the two other members."""
    return _formed()[2:]


class _TakesAny(ListMachine):
    """A state machine that accepts any bytes as a command, because this target does not test commands."""

    def _apply_one(self, command: bytes) -> Any:
        self.applied.append(command.hex())
        return None


class Member:
    """The engine under test. Call `check` after each step."""

    def __init__(self) -> None:
        disk, state, *hellos = _formed()
        self._cluster = Cluster(IDS, start=False, make_machine=_TakesAny)
        self._cluster.disks[SELF] = copy.deepcopy(disk)
        snapshots = ListSnapshots(_TakesAny)
        machine = _TakesAny()
        machine.load(state.machine.dump())
        snapshots.machine = snapshots.published = machine
        self._cluster.states[SELF] = snapshots
        self._hellos = dict(zip(("m1", "m3"), hellos, strict=True))
        self._links: dict[str, int] = {}
        self._number = 0
        self._cluster.start(SELF)
        for peer in self._hellos:
            self.connect(peer)
        self.step()

    @property
    def node(self) -> Node:
        return self._cluster.nodes[SELF]

    def connect(self, peer: str) -> None:
        self._number += 1
        self._links[peer] = self._number
        self._cluster.links[SELF, peer] = self._cluster.links[peer, SELF] = self._number
        self.node.events.append(LinkUp(peer, self._number, self._hellos[peer]))

    def disconnect(self, peer: str) -> None:
        number = self._links.pop(peer, None)
        if number is not None:
            self.node.events.append(LinkDown(peer, number))

    def receive(self, peer: str, message: Message) -> None:
        """Receive a message of a peer, on a new link if the last one was dropped."""
        if peer not in self._links:
            self.connect(peer)
        self.node.events.append(Received(peer, self._links[peer], message))

    def arriving(self, peer: str, term: int) -> None:
        self.node.events.append(Arriving(peer, self._links.get(peer, 0), term))

    def step(self, seconds: float = 0.01) -> None:
        """Step the engine. Raises its errors; AssertionError if it stopped or forgot a committed entry."""
        cluster, before = self._cluster, self._committed()
        cluster.now += seconds
        node = self.node
        if node.batches:
            cluster.complete_sync(SELF)
        if node.work:
            cluster.do_work(SELF)
        cluster.step(SELF)
        assert SELF in cluster.nodes, f"stopped: {cluster.stopped[SELF]}"
        for peer, number in list(self._links.items()):
            if cluster.links.get((SELF, peer)) != number:
                del self._links[peer]  # the engine dropped the link
        cluster.sent.clear()
        cluster.wire.clear()
        now = self._committed()
        if node.log.base_index == BASE:
            assert now.entries[: len(before.entries)] == before.entries, "a committed entry changed"
        assert now.term >= before.term

    def _committed(self) -> Durable:
        log = self.node.log
        return Durable(log.current_term, None, tuple(log.entries[: log.commit_index - log.base_index + 1]))

    # Values near the right ones: an attacker sees terms and indexes.

    def number_near(self, source: Source) -> int:
        log = self.node.log
        near = (log.current_term, log.last_index, log.commit_index, log.last_term, log.base_index)
        return source.pick(near) + source.pick((0, 1, -1, 2, 100)) if source.byte() & 3 else source.integer()

    def message(self, source: Source) -> Message:
        """A message of a known type, with fields that mostly have the right type."""
        kind = source.pick(tuple(KINDS)) if source.byte() < 250 else source.text()
        message: Message = {"type": kind}
        for name in KINDS.get(kind, ()):
            if source.byte() < 252:
                message[name] = self._field(source, kind, name)
        return message

    def _field(self, source: Source, kind: str, name: str) -> Any:
        if source.byte() >= 250:
            return source.value()
        if name in _FLAGS:
            return source.byte() & 1 == 1
        match name:
            case "entries":
                return self._entries(source)
            case "commands":
                return [source.blob() for _ in range(source.below(4))]
            case "entry":
                return self.entry(source)
            case "answers" | "commit":
                return source.pick((None, [self.number_near(source), self.number_near(source)]))
            case "sha256":
                return source.pick(_DIGESTS)
            case "data" | "check" | "command" | "founding":
                return source.blob()
            case "verb":
                return source.pick((ADD, PROMOTE, REMOVE, UPDATE, "form", "x"))
            case "id" | "address" | "text" | "state":
                return source.text()
            case "said" | "digests" | "why":
                return [source.value(2) for _ in range(source.below(3))]
            case "view" | "configured" | "report":
                return {source.text(): source.value(2) for _ in range(source.below(3))}
        return self.number_near(source)

    def _entries(self, source: Source) -> list[Any]:
        log = self.node.log
        first = log.last_index + source.pick((1, 1, 1, 0, -1, 2))
        term = log.current_term + source.pick((0, 0, 1, -1))
        return [[self.entry(source), first + n, term] for n in range(source.below(4))]

    def entry(self, source: Source) -> bytes:
        """A log entry: a batch of commands, a change of members, a leader's first entry, or any bytes."""
        kind = source.below(8)
        if kind < 4:
            return entries.encode_commands([source.blob() for _ in range(source.below(3))])
        if kind < 6:
            incarnation = source.pick([hello["incarnation"] for hello in self._hellos.values()] + ["new"])
            verb = source.pick((ADD, PROMOTE, UPDATE, REMOVE))
            return entries.encode_change(Change(verb, source.pick((*IDS, "m4")), "127.0.0.1:9999", incarnation))
        return b"\x01" if kind == 6 else b"\x00" + source.blob()


BASE: Final = 1


def run(source: Source) -> None:
    """The life of a member among peers that send any messages."""
    member = Member()
    for _ in range(STEPS_MAX):
        if not source:
            break
        peer = source.pick(("m1", "m3"))
        what = source.below(16)
        if what < 12:
            member.receive(peer, member.message(source))
        elif what == 12:
            member.step(source.pick((0.05, 0.5, 2.0, 10.0)))
        elif what == 13:
            member.disconnect(peer)
        elif what == 14:
            member.disconnect(peer)
            member.connect(peer)
        else:
            member.arriving(peer, member.number_near(source))
        if source.byte() & 1:
            member.step()
    member.step()
    member.step()
