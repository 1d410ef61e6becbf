"""Two worlds with one interface, stock PySyncObj and our engines: a story happens to both on the same schedule.

Nothing moves by itself: the story delivers messages, ticks managers and elects leaders. Disks return at once. Not here:
the right end of a story (test_holes.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import cbor2

from tests.engine_harness import Cluster
from tests.stock_pysyncobj import StockCluster
from warren_raft.raft import entries
from warren_raft.raft.membership import Change
from warren_raft.raft.reasons import Reason

Message = dict[str, Any]

FOREVER_SECONDS = 1e6
HEARTBEATS_SECONDS = 0.2
"""The time that passes in a tick. One heartbeat is due for sure."""
PATIENCE_SECONDS = 1.0
"""Our callers give up after five ticks. Until then a write goes to each new leader again, which stock does not do."""
NOTICE_SECONDS = 0.003
"""Our leader holds a message without entries back for 2 ms."""


REPLIES = {"next_node_idx": "next_node_idx", "append_reply": "next_index"}
"""The type of a follower's reply in stock PySyncObj and in ours, and its field with the next index."""


def is_reset(message: Message) -> bool:
    return message["type"] in REPLIES and bool(message["reset"])


def acknowledges(index: int) -> Callable[[Message], bool]:
    """Whether a message is a follower's success that covers an entry."""
    return lambda message: (
        message["type"] in REPLIES and bool(message["success"]) and message[REPLIES[message["type"]]] > index
    )


class World(ABC):
    """At the beginning m1 leads, all managers are linked, and no message is on its way."""

    is_stock: bool
    ids: Sequence[str]

    @abstractmethod
    def connect(self, *ids: str) -> None:
        """Link each of these managers to each other."""

    @abstractmethod
    def disconnect(self, a: str, b: str, *, keep: bool = False) -> None:
        """`keep`: messages on their way may still arrive, by deliver_late()."""

    @abstractmethod
    def crash(self, id_: str) -> None: ...

    @abstractmethod
    def restart(self, id_: str) -> None:
        """The manager runs again, without links."""

    @abstractmethod
    def tick(self, *ids: str) -> None:
        """Time passes, enough for a heartbeat. Then these managers (or all) take a turn."""

    @abstractmethod
    def deliver(self, a: str, b: str, count: int | None = None) -> list[Message]:
        """Deliver messages in order: the first `count`, or all. b puts its answers on the wire."""

    @abstractmethod
    def deliver_late(self, a: str, b: str, count: int | None = None) -> list[Message]: ...

    @abstractmethod
    def on_wire(self, a: str, b: str) -> list[Message]: ...

    @abstractmethod
    def campaign(self, id_: str) -> None:
        """The election timeout of a manager fires, and nothing prevents its campaign."""

    @abstractmethod
    def leads(self, id_: str) -> bool: ...

    @abstractmethod
    def submit(self, id_: str, text: str) -> None: ...

    @property
    @abstractmethod
    def acknowledged(self) -> set[str]:
        """The writes that were reported to their callers as successful."""

    @abstractmethod
    def applied(self, id_: str) -> list[str]: ...

    @abstractmethod
    def log_of(self, id_: str) -> list[str]:
        """The writes in a log, in order."""

    @abstractmethod
    def last_index(self, id_: str) -> int: ...

    def disconnect_from_all(self, id_: str) -> None:
        for other in self.ids:
            if other != id_:
                self.disconnect(id_, other)

    def deliver_until(self, a: str, b: str, wanted: Callable[[Message], bool]) -> None:
        """Deliver messages from a to b up to the first that is wanted. It has to be on the wire."""
        waiting = self.on_wire(a, b)
        self.deliver(a, b, next(number for number, message in enumerate(waiting, start=1) if wanted(message)))

    def flow(self, *ids: str) -> None:
        """Deliver among these managers until no message is on its way."""
        moved = True
        while moved:
            moved = False
            for a in ids:
                for b in ids:
                    if a != b and self.on_wire(a, b):
                        self.deliver(a, b)
                        moved = True

    def rounds(self, count: int, *ids: str) -> None:
        for _ in range(count):
            self.tick(*ids)
            self.flow(*ids)

    def elect(self, id_: str, *voters: str) -> None:
        """`id_` becomes leader by the votes of `voters`. No other manager hears of it yet."""
        self.campaign(id_)
        self.flow(id_, *voters)
        assert self.leads(id_), f"{id_} was not elected"

    def elect_whoever_can(self, *ids: str) -> str:
        """Each of these managers campaigns, in this order, until one is elected."""
        for id_ in ids:
            self.campaign(id_)
            self.flow(*ids)
            if self.leads(id_):
                return id_
        raise AssertionError(f"none of {ids} was elected")

    def close(self) -> None:
        return None


class StockWorld(World):
    is_stock = True

    def __init__(self, ids: Sequence[str], message_bytes: int = 65536) -> None:
        self.ids = ids
        self.cluster = StockCluster(ids, appendEntriesBatchSizeBytes=message_bytes)
        self.cluster.connect(*ids)
        self.elect(ids[0], *ids[1:])
        self.rounds(4, *ids)

    def connect(self, *ids: str) -> None:
        self.cluster.connect(*ids)

    def disconnect(self, a: str, b: str, *, keep: bool = False) -> None:
        self.cluster.disconnect(a, b, keep=keep)

    def crash(self, id_: str) -> None:
        self.cluster.crash(id_)

    def restart(self, id_: str) -> None:
        if id_ in self.cluster.nodes:
            self.cluster.crash(id_)
        self.cluster.start(id_)

    def tick(self, *ids: str) -> None:
        self.cluster.tick(*ids, seconds=HEARTBEATS_SECONDS)

    def deliver(self, a: str, b: str, count: int | None = None) -> list[Message]:
        return self.cluster.deliver(a, b, count)

    def deliver_late(self, a: str, b: str, count: int | None = None) -> list[Message]:
        return self.cluster.deliver_late(a, b, count)

    def on_wire(self, a: str, b: str) -> list[Message]:
        return self.cluster.on_wire(a, b)

    def campaign(self, id_: str) -> None:
        self.cluster.nodes[id_]._SyncObj__raftElectionDeadline = 0
        self.cluster.tick(id_)

    def leads(self, id_: str) -> bool:
        return bool(self.cluster.nodes[id_]._isLeader())

    def submit(self, id_: str, text: str) -> None:
        self.cluster.submit(id_, text)

    @property
    def acknowledged(self) -> set[str]:
        return self.cluster.acknowledged

    def applied(self, id_: str) -> list[str]:
        return self.cluster.applied(id_)

    def log_of(self, id_: str) -> list[str]:
        return [text for _, _, text in self.cluster.log_of(id_) if text not in ("no-op", "membership")]

    def last_index(self, id_: str) -> int:
        return self.cluster.log_of(id_)[-1][0]


class OurWorld(World):
    is_stock = False

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.cluster = Cluster(ids, election_timeout_seconds=FOREVER_SECONDS)
        self.cluster.on_send = self._sent
        self.cluster.wait_ready()
        self.cluster.run_until(self.cluster.converged)
        self.cluster.run(1.0)
        self.elect(ids[0], *ids[1:])
        self.rounds(2, *ids)

    def _sent(self, _node: object, _peer: str, message: Message) -> None:
        """Do nothing: only the story holds elections, so pre-votes are dropped."""

    def connect(self, *ids: str) -> None:
        for a in ids:
            for b in ids:
                if a < b and (a, b) not in self.cluster.links:
                    self.cluster.connect(a, b)
        for id_ in ids:
            self._settle(id_)

    def disconnect(self, a: str, b: str, *, keep: bool = False) -> None:
        self.cluster.disconnect(a, b, keep=keep)
        for id_ in (a, b):
            if id_ in self.cluster.nodes:
                self._settle(id_)

    def crash(self, id_: str) -> None:
        self.cluster.crash(id_)

    def restart(self, id_: str) -> None:
        if id_ in self.cluster.nodes:
            self.cluster.crash(id_)
        self.cluster.start(id_)
        self._settle(id_)

    def tick(self, *ids: str) -> None:
        self.cluster.now += HEARTBEATS_SECONDS
        for id_ in ids or tuple(self.cluster.nodes):
            self._settle(id_)

    def deliver(self, a: str, b: str, count: int | None = None) -> list[Message]:
        self._drop_pre_votes(a, b)
        delivered = self.cluster.deliver(a, b, count)
        self._settle(b)
        return delivered

    def deliver_late(self, a: str, b: str, count: int | None = None) -> list[Message]:
        delivered = self.cluster.deliver_late(a, b, count)
        self._settle(b)
        return delivered

    def on_wire(self, a: str, b: str) -> list[Message]:
        self._drop_pre_votes(a, b)
        return self.cluster.on_wire(a, b)

    def _drop_pre_votes(self, a: str, b: str) -> None:
        queue = self.cluster.wire[a, b]
        messages = self.cluster.on_wire(a, b)
        kept = [item for item, message in zip(queue, messages, strict=True) if "pre_vote" not in message["type"]]
        queue.clear()
        queue.extend(kept)

    def _settle(self, id_: str) -> None:
        """Step until the disk has returned, all committed entries are applied, and no notice waits."""
        node = self.cluster.nodes[id_]
        self.cluster.step(id_)
        while node.batches or node.events or node.engine.holds_notices:
            if node.batches:
                self.cluster.complete_sync(id_)
            elif not node.events:
                self.cluster.now += NOTICE_SECONDS
            self.cluster.step(id_)
        while node.engine.apply():
            pass

    def campaign(self, id_: str) -> None:
        self.cluster.now += HEARTBEATS_SECONDS
        for node in self.cluster.nodes.values():  # as if each manager's leader had handed over
            node.engine._elections.handed_over(id_, self.cluster.now)
        self.cluster.nodes[id_].engine._leading.campaign(Reason("transfer", "a test"))
        self._settle(id_)

    def leads(self, id_: str) -> bool:
        return self.cluster.nodes[id_].engine.role == "leader"

    def submit(self, id_: str, text: str) -> None:
        self.cluster.submit(id_, text, seconds=PATIENCE_SECONDS)
        self._settle(id_)

    @property
    def acknowledged(self) -> set[str]:
        return set(self.cluster.acknowledged)

    def applied(self, id_: str) -> list[str]:
        return self.cluster.machines[id_].applied

    def log_of(self, id_: str) -> list[str]:
        contents = [entries.decode(entry[0]) for entry in self.cluster.nodes[id_].log.entries]
        commands = [command for content in contents if not isinstance(content, Change) for command in content]
        return [cbor2.loads(command)[2] for command in commands]

    def last_index(self, id_: str) -> int:
        return self.cluster.nodes[id_].log.last_index
